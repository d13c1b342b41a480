"""Sections that several algorithms share: defaults, comments, ranges, choices and checks at once.

An algorithm's config puts one where it wants it, `self.algo.vae = VAESection()`, and then changes
the defaults that differ. The section's rules hold wherever it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf, nextafter
from typing import Any, ClassVar

from raymimic.config.config import Config

# The least number above 0: the lower end of a range without 0.
ABOVE_0 = nextafter(0.0, 1.0)
# The greatest number below 1: the upper end of a range without 1.
BELOW_1 = nextafter(1.0, 0.0)


class AnyOf(tuple[Any, ...]):
    """Examples of a value that may be of several types."""


class SettingRules:
    """Tables that say which values the keys of a config class, or of a section, can have.

    A default shows the type of its key; the tables say the rest. Keys are dotted paths, in a
    section relative to it, in which `*` stands for anything. A subclass has its bases' entries
    too, and replaces those whose keys it states itself.

    Attributes:
        RANGES: least and greatest value: `{"algo.actor_beta": (0, math.inf)}`. Of a list each
            element is meant. Numbers are finite in any case, unless the key's default is not.
        CHOICES: the values that a key may have: `{"algo.mode": ("fast", "exact")}`.
        EXAMPLES: a value of a key whose default is null or an empty list, to show its type:
            `{"algo.clip": 1.0}`.
        NULLABLE: keys that may be null although their default is not.
        PERTURBABLE: keys that population based training (PBT) may change while the algorithm runs:
            those that the algorithm reads at each step.
    """

    __slots__ = ()

    RANGES: ClassVar[Mapping[str, tuple[float, float]]] = {}
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    EXAMPLES: ClassVar[Mapping[str, Any]] = {}
    NULLABLE: ClassVar[tuple[str, ...]] = ()
    PERTURBABLE: ClassVar[tuple[str, ...]] = ()


class Section(SettingRules, Config):
    """Base of sections with rules; a subclass fills itself in `section_config`.

    A section whose key `enabled` is false is not checked for contradictions.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.section_config()
        self.declare_optional()

    def section_config(self) -> None:
        """Fills the section: the comment of each key is its documentation."""

    def optional_config(self) -> None:
        """Sets keys that may be absent to the value that their absence stands for."""

    def declare_optional(self) -> None:
        """Makes the keys of `optional_config` optional ones of this section."""
        optional = type(self).__new__(type(self))
        optional.optional_config()
        _declare(self, optional)

    def problems(self, config: Config) -> Iterable[str]:
        """Returns one sentence for each contradiction in the section, or with the rest of `config`.

        All types and ranges are right when this runs.
        """
        return ()

    def warnings(self, config: Config) -> Iterable[str]:
        """Returns one sentence for each setting of the section with a surprising effect."""
        return ()


def _declare(section: Config, optional: Config) -> None:
    for key, default in optional.items():
        if isinstance(default, Config):
            _declare(section[key], default)
        else:
            section.optional_keys(**{key: default})


def enabled_of(section: Config, *names: str) -> list[str]:
    """Returns those of some sections within a section that are there and enabled."""
    parts = {name: section.get(name) for name in names}
    return [
        name for name, part in parts.items() if isinstance(part, Config) and part.get("enabled")
    ]


class OptimizerSection(Section):
    """Optimizer and learning rate of one network: `algo.optim_params.<network>`.

    Each network of `optim_params` has the rules and the optional keys, even if an algorithm of a
    user's own writes its keys there one by one. robomimic's training script adds
    `num_train_batches` and `num_epochs` itself.

    Args:
        initial: learning rate at the start.
        decay_factor: factor of the learning rate at each decay.
        **changes: other values, also of optional keys, which are present then.
    """

    __slots__ = ()

    RANGES = {
        "learning_rate.initial": (0, inf),
        "learning_rate.decay_factor": (0, inf),
        "learning_rate.epoch_schedule": (1, inf),
        "learning_rate.warmup_steps": (0, inf),
        "learning_rate.num_cycles": (0, inf),
        "regularization.L2": (0, inf),
        "start_epoch": (-1, inf),
        "end_epoch": (-1, inf),
        "num_train_batches": (1, inf),
        "num_epochs": (1, inf),
    }
    CHOICES = {
        "optimizer_type": ("adam", "adamw"),
        "learning_rate.scheduler_type": ("multistep", "linear", "cosine"),
    }
    EXAMPLES = {"learning_rate.epoch_schedule": [1], "num_train_batches": 1, "num_epochs": 1}
    PERTURBABLE = ("learning_rate.initial",)

    def __init__(self, initial: float = 1e-3, decay_factor: float = 0.1, **changes: Any) -> None:
        super().__init__()
        self.learning_rate.update(initial=initial, decay_factor=decay_factor, epoch_schedule=[])
        self.update(changes)

    def section_config(self) -> None:
        """Fills the section."""
        self.learning_rate.initial = 1e-3  # learning rate at the start
        self.regularization.L2 = 0.0  # weight decay

    def optional_config(self) -> None:
        """Sets the optional keys."""
        self.optimizer_type = "adam"  # Adam; "adamw": with decoupled weight decay
        self.start_epoch = -1  # first epoch that trains the network; -1: at once
        self.end_epoch = -1  # epoch from which on it is not trained; -1: to the end
        self.num_train_batches = None  # set by the training: gradient steps in an epoch
        self.num_epochs = None  # set by the training: its number of epochs
        self.learning_rate.decay_factor = 0.1  # factor at each decay
        self.learning_rate.epoch_schedule = ()  # epochs of the decays
        # "multistep": decays at the scheduled epochs; "linear": towards decay_factor at the one
        # scheduled epoch; "cosine": down to 0, with step_every_batch, warmup_steps, num_cycles.
        self.learning_rate.scheduler_type = "multistep"
        # Step the schedule with each gradient step, not each epoch.
        self.learning_rate.step_every_batch = False
        self.learning_rate.warmup_steps = 0  # gradient steps of linear warm-up before the cosine
        self.learning_rate.num_cycles = 0.5  # periods of the cosine over the training

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the schedule, and at the epochs that train the network."""
        rate = self.learning_rate
        schedule = list(rate.epoch_schedule)
        if schedule != sorted(schedule):
            yield f"'{rate.dotted('epoch_schedule')}' is {schedule}: list the epochs in order"
        if rate.scheduler_type == "linear" and len(schedule) > 1:
            yield (
                f"'{rate.dotted('epoch_schedule')}' is {schedule}: a linear schedule takes one "
                "epoch, the one at which it ends"
            )
        if rate.scheduler_type == "cosine" and not rate.step_every_batch:
            yield (
                f"'{rate.dotted('scheduler_type')}' is 'cosine', which counts gradient steps: set "
                f"'{rate.dotted('step_every_batch')}' to true"
            )
        if -1 < self.end_epoch < self.start_epoch:
            yield (
                f"'{self.dotted()}' ends (end_epoch {self.end_epoch}) before it starts "
                f"({self.start_epoch})"
            )


class CriticSection(Section):
    """An ensemble of critics: `algo.critic`."""

    __slots__ = ()

    RANGES = {
        "max_gradient_norm": (ABOVE_0, inf),
        "ensemble.n": (1, inf),
        "layer_dims": (1, inf),
    }
    EXAMPLES = {"max_gradient_norm": 1.0}

    def section_config(self) -> None:
        """Fills the section."""
        self.use_huber = False  # Huber loss instead of the squared one
        self.max_gradient_norm = None  # clip gradients to this L2 norm; null: don't
        self.ensemble.n = 2  # number of critics
        self.layer_dims = (300, 400)  # hidden layers


class BoundedCriticSection(CriticSection):
    """Critics whose values may be bounded."""

    __slots__ = ()

    EXAMPLES = {"value_bounds": [-1.0, 1.0]}

    def section_config(self) -> None:
        """Fills the section."""
        super().section_config()
        self.value_bounds = None  # [lowest, highest] value; null: unbounded

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the bounds."""
        bounds = self.value_bounds
        if bounds is not None and (len(bounds) != 2 or not bounds[0] < bounds[1]):
            yield f"'{self.dotted('value_bounds')}' is {list(bounds)}: give [lowest, highest]"


class StochasticPolicySection(Section):
    """Distribution of a policy that learns from values: `algo.actor.net`.

    Its sections besides `common` are the distributions among which `type` chooses.
    """

    __slots__ = ()

    RANGES = {"gaussian.init_last_fc_weight": (0, inf), "gaussian.init_std": (ABOVE_0, inf)}
    CHOICES = {"common.std_activation": ("softplus", "exp")}
    NULLABLE = ("gaussian.init_last_fc_weight",)

    def section_config(self) -> None:
        """Fills the section."""
        self.type = "gaussian"  # the policy's distribution
        self.common.std_activation = "softplus"  # maps the network's output to the std
        self.common.use_tanh = False  # tanh of samples; false: tanh of the mean
        self.common.low_noise_eval = True  # nearly no noise in evaluation
        # Bound of the last layer's uniform initialisation; null: torch's.
        self.gaussian.init_last_fc_weight = 0.001
        self.gaussian.init_std = 0.3  # std at the start, with softplus or fixed
        self.gaussian.fixed_std = False  # keep the std at init_std

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the type."""
        types = [key for key in self if key not in ("type", "common")]
        if self.type not in types:
            listed = " or ".join(f"'{name}'" for name in types)
            yield f"'{self.dotted('type')}' is '{self.type}': it must be {listed}"


class EncoderSection(Section):
    """Encoder of the keys of one modality: `observation.encoder.<modality>`.

    Args:
        core_class: name of the encoder; None: values are taken as they are.
    """

    __slots__ = ()

    EXAMPLES = {
        "core_class": "VisualCore",
        "obs_randomizer_class": AnyOf(("CropRandomizer", ["CropRandomizer"])),
        "obs_randomizer_kwargs": AnyOf(({}, [{}])),
        "share_net_from": {},
    }
    NULLABLE = ("core_class",)

    def __init__(self, core_class: str | None = None) -> None:
        super().__init__()
        self.core_class = core_class

    def section_config(self) -> None:
        """Fills the section."""
        self.core_class = None  # class that encodes each key; null: no encoder
        self.core_kwargs = dict[str, Any]()  # arguments of it
        # Class that augments each key in training: "CropRandomizer"; a list is a chain.
        self.obs_randomizer_class = None
        self.obs_randomizer_kwargs = dict[str, Any]()  # arguments of it; a list for a chain

    def optional_config(self) -> None:
        """Sets the optional key."""
        self.share_net_from = None  # keys that share the encoder of another key: {key: other}

    def __setitem__(self, key: str, value: Any) -> None:
        # Arguments are a section, or a list of sections.
        if key == "obs_randomizer_kwargs" and isinstance(value, list | tuple) and not self._locked:
            dict.__setitem__(self, key, None)
        super().__setitem__(key, value)

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at a chain of randomizers."""
        classes, kwargs = self.obs_randomizer_class, self.obs_randomizer_kwargs
        numbers = [len(x) if isinstance(x, list | tuple) else 1 for x in (classes, kwargs)]
        if numbers[0] != numbers[1]:
            yield (
                f"'{self.dotted('obs_randomizer_class')}' names {numbers[0]} randomizers, but "
                f"'{self.dotted('obs_randomizer_kwargs')}' has arguments for {numbers[1]}: list "
                "those of each, such as {}"
            )


class GaussianSection(Section):
    """A policy with Gaussian actions: `algo.gaussian`."""

    __slots__ = ()

    RANGES = {"init_std": (ABOVE_0, inf), "min_std": (0, inf)}
    CHOICES = {"std_activation": ("softplus", "exp")}

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # policy with Gaussian actions
        self.fixed_std = False  # keep the standard deviation at init_std
        self.init_std = 0.1  # standard deviation at the start
        self.min_std = 0.01  # least standard deviation
        self.std_activation = "softplus"  # maps the network's output to it
        self.low_noise_eval = True  # nearly no noise in evaluation


class GMMSection(Section):
    """A policy with Gaussian mixture actions: `algo.gmm`."""

    __slots__ = ()

    RANGES = {"num_modes": (1, inf), "min_std": (0, inf)}
    CHOICES = {"std_activation": ("softplus", "exp")}

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # policy with Gaussian mixture actions
        self.num_modes = 5  # Gaussians in the mixture
        self.min_std = 0.0001  # least standard deviation
        self.std_activation = "softplus"  # maps the network's output to it
        self.low_noise_eval = True  # nearly no noise in evaluation


class VAESection(Section):
    """A variational auto-encoder: `algo.vae`."""

    __slots__ = ()

    RANGES = {
        "latent_dim": (1, inf),
        "latent_clip": (ABOVE_0, inf),
        "kl_weight": (0, inf),
        "prior.gmm_num_modes": (1, inf),
        "prior.categorical_dim": (1, inf),
        "prior.categorical_init_temp": (1e-6, inf),
        "prior.categorical_temp_anneal_step": (0, inf),
        "prior.categorical_min_temp": (1e-6, inf),
        "*_layer_dims": (1, inf),
    }
    EXAMPLES = {"latent_clip": 1.0}

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # decode a sample from a latent
        self.latent_dim = 14  # size of the latent
        self.latent_clip = None  # bound of latents drawn from the prior; null: none
        self.kl_weight = 1.0  # weight of the KL term (beta-VAE)
        self.decoder.is_conditioned = True  # decoder sees the observation
        self.decoder.reconstruction_sum_across_elements = False  # sum, not mean, the error

        self.prior.learn = False  # learn the prior; else it is N(0, 1) or uniform
        self.prior.is_conditioned = False  # prior sees the observation
        self.prior.use_gmm = False  # Gaussian mixture prior
        self.prior.gmm_num_modes = 10  # Gaussians in it
        self.prior.gmm_learn_weights = False  # learn the weights of the mixture
        self.prior.use_categorical = False  # categorical prior
        self.prior.categorical_dim = 10  # classes of each latent dimension
        self.prior.categorical_gumbel_softmax_hard = False  # one-hot samples
        self.prior.categorical_init_temp = 1.0  # temperature at the start
        self.prior.categorical_temp_anneal_step = 0.001  # less by this each epoch
        self.prior.categorical_min_temp = 0.3  # least temperature

        self.encoder_layer_dims = (300, 400)  # hidden layers of the encoder
        self.decoder_layer_dims = (300, 400)  # hidden layers of the decoder
        self.prior_layer_dims = (300, 400)  # hidden layers of a conditioned prior

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the prior, and whether anything depends on the observation."""
        prior, decoder = self.prior, self.decoder
        learn, conditioned = prior.dotted("learn"), prior.dotted("is_conditioned")
        if prior.use_gmm and prior.use_categorical:
            yield (
                f"'{prior.dotted('use_gmm')}' and '{prior.dotted('use_categorical')}' exclude each "
                "other: set one to false"
            )
        if prior.use_gmm and not prior.learn:
            yield f"'{prior.dotted('use_gmm')}' is a learned prior: set '{learn}' to true"
        if prior.is_conditioned and not prior.learn:
            yield f"'{conditioned}' needs a learned prior: set '{learn}' to true"
        if not decoder.is_conditioned and not prior.is_conditioned:
            yield (
                f"neither '{decoder.dotted('is_conditioned')}' nor '{conditioned}' is true, so "
                "that nothing depends on the observation: set one to true"
            )
        if prior.use_categorical and prior.categorical_min_temp > prior.categorical_init_temp:
            yield (
                f"'{prior.dotted('categorical_min_temp')}' is {prior.categorical_min_temp}, above "
                f"'{prior.dotted('categorical_init_temp')}' ({prior.categorical_init_temp}): lower "
                "it"
            )


class RNNSection(Section):
    """A policy with memory: `algo.rnn`."""

    __slots__ = ()

    RANGES = {"horizon": (1, inf), "hidden_dim": (1, inf), "num_layers": (1, inf)}
    CHOICES = {"rnn_type": ("LSTM", "GRU")}

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # policy with memory
        self.horizon = 10  # steps that it remembers; usually train.seq_length
        self.hidden_dim = 400  # size of the hidden state
        self.rnn_type = "LSTM"  # kind of the recurrent layers
        self.num_layers = 2  # recurrent layers
        self.open_loop = False  # act on the first observation of each horizon only
        self.kwargs.bidirectional = False  # further arguments of torch's RNN
        self.kwargs.do_not_lock_keys()

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the arguments of torch's RNN."""
        if self.kwargs.get("bidirectional"):
            yield (
                f"'{self.dotted('kwargs.bidirectional')}' is true, but a policy that acts step by "
                "step does not know the steps to come: set it to false"
            )

    def warnings(self, config: Config) -> Iterator[str]:
        """Looks at the horizon."""
        if self.horizon != config.train.seq_length:
            yield (
                f"'{self.dotted('horizon')}' is {self.horizon} but 'train.seq_length' is "
                f"{config.train.seq_length}: the policy learns from sequences of another length "
                "than it remembers when it acts; usually both are the same number of steps"
            )


class TransformerSection(Section):
    """A transformer: `algo.transformer`."""

    __slots__ = ()

    RANGES = {
        "embed_dim": (1, inf),
        "num_layers": (1, inf),
        "num_heads": (1, inf),
        "*dropout": (0, 1),
    }

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # use a transformer
        self.embed_dim = 256  # size of the embeddings
        self.num_layers = 8  # blocks
        self.num_heads = 4  # attention heads; must divide embed_dim
        self.emb_dropout = 0.0  # dropout of the embeddings
        self.attn_dropout = 0.3  # dropout of the attention

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the attention heads."""
        if self.embed_dim % self.num_heads:
            yield (
                f"'{self.dotted('embed_dim')}' is {self.embed_dim}, which {self.num_heads} heads "
                f"do not divide: change it or '{self.dotted('num_heads')}'"
            )


class TransformerPolicySection(TransformerSection):
    """A transformer policy that sees the last observations."""

    __slots__ = ()

    RANGES = {"context_length": (1, inf)}
    CHOICES = {"activation": ("gelu", "geglu")}

    def section_config(self) -> None:
        """Fills the section."""
        self.enabled = False  # transformer policy
        self.context_length = 10  # steps it sees; must equal train.frame_stack
        self.embed_dim = 512  # size of the embeddings
        self.num_layers = 6  # blocks
        self.num_heads = 8  # attention heads; must divide embed_dim
        self.emb_dropout = 0.1  # dropout of the embeddings
        self.attn_dropout = 0.1  # dropout of the attention
        self.block_output_dropout = 0.1  # dropout after each block
        self.sinusoidal_embedding = False  # sine and cosine for time steps
        self.activation = "gelu"  # in the blocks' MLPs
        self.supervise_all_steps = False  # imitate all actions, not just the last
        self.nn_parameter_for_timesteps = True  # else an embedding table
        self.pred_future_acs = False  # predict future actions

    def problems(self, config: Config) -> Iterator[str]:
        """Looks at the attention heads, and at the steps that are seen and predicted."""
        yield from super().problems(config)
        length, train = self.context_length, config.train
        future, all_steps = self.dotted("pred_future_acs"), self.dotted("supervise_all_steps")
        if length != train.frame_stack:
            yield (
                f"'{self.dotted('context_length')}' is {length} but 'train.frame_stack' is "
                f"{train.frame_stack}: set both to the same number of steps"
            )
        if self.pred_future_acs and not self.supervise_all_steps:
            yield f"'{future}' needs '{all_steps}': set it to true"
        elif self.pred_future_acs and train.seq_length < length:
            yield (
                f"'{future}' predicts {length} steps but 'train.seq_length' is "
                f"{train.seq_length}: raise 'train.seq_length' to {length}"
            )
