"""From dicts of observations to features, and from features to dicts of outputs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError, RaymimicError, did_you_mean
from raymimic.models.base_nets import Linear, Module, computed_without_calls
from raymimic.models.named_classes import shown
from raymimic.models.obs_core import ENCODER_CORES, EncoderCore, VisualCoreLanguageConditioned
from raymimic.models.trial import first_pass
from raymimic.models.vision.randomizers import RANDOMIZERS, Randomizer
from raymimic.observations.modality import modality_named
from raymimic.observations.shapes import ObsShapes, language_keys
from raymimic.tensors import repeat_rows
from raymimic.user_modules import own_reason

ObsDict = Mapping[str, Tensor]
EncoderKwargs = Mapping[str, Mapping[str, Any]]
Activation = Callable[[Tensor], Tensor]
# A chain of more is no augmentation, but a file that keeps a machine busy.
MAX_RANDOMIZERS = 10


def obs_encoder_args_from_config(encoder_config: EncoderKwargs) -> dict[str, Any]:
    """Returns `config.observation.encoder` as keyword arguments of this module's networks."""
    return {"encoder_kwargs": encoder_config}


def _encoder_core(
    key: str, shape: Sequence[int], modality: str, kwargs: Mapping[str, Any]
) -> EncoderCore | None:
    """Makes the encoder that the config names for a key; None means: as it is, flattened."""
    name = kwargs.get("core_class")
    if name is None:
        return None
    arguments = kwargs.get("core_kwargs")
    with _explained(key, modality):
        core = ENCODER_CORES.make(name, "core_class", arguments, input_shape=tuple(shape))
        with _works(name, "core_kwargs", arguments, shape):
            _try_core(core, shape)
    return core


def _try_core(core: EncoderCore, shape: Sequence[int]) -> None:
    """Makes sure that an encoder takes observations, and gives as many features as it says."""

    def inputs() -> tuple[Tensor, ...]:
        x = torch.zeros(2, *shape)
        if isinstance(core, VisualCoreLanguageConditioned):
            return x, torch.zeros(2, core.lang_emb_dim)
        return (x,)

    y = first_pass(core, inputs)
    if y is not None and (len(y) != 2 or y[0].numel() != core.output_dim):
        raise ValueError(
            f"it makes {list(y.shape)} of 2 observations, but its output_dim is {core.output_dim}"
        )


def _randomizers(
    key: str, shape: Sequence[int], modality: str, kwargs: Mapping[str, Any]
) -> list[Randomizer]:
    """Makes the chain of randomizers that the config names for a key."""
    names, arguments = kwargs.get("obs_randomizer_class"), kwargs.get("obs_randomizer_kwargs")
    names = list(names) if isinstance(names, list | tuple) else [names]
    arguments = list(arguments) if isinstance(arguments, list | tuple) else [arguments]
    if len(names) != len(arguments):
        raise ConfigError(
            f"observation.encoder.{modality} lists {len(names)} in obs_randomizer_class and "
            f"{len(arguments)} in obs_randomizer_kwargs: list the arguments of each, such as {{}}"
        )
    if len(names) > MAX_RANDOMIZERS:
        raise ConfigError(
            f"observation.encoder.{modality}.obs_randomizer_class lists {len(names)} randomizers: "
            f"list at most {MAX_RANDOMIZERS}"
        )
    chain: list[Randomizer] = []
    for name, own in zip(names, arguments, strict=True):
        if name is not None:
            with _explained(key, modality):
                randomizer = RANDOMIZERS.make(
                    name, "obs_randomizer_class", own, input_shape=tuple(shape)
                )
                with _works(name, "obs_randomizer_kwargs", own, shape):
                    shape = _try_randomizer(randomizer, shape)
            chain.append(randomizer)
    return chain


class _Augmented(nn.Module):
    """Observations after a randomizer."""

    def __init__(self, randomizer: Randomizer) -> None:
        super().__init__()
        self.randomizer = randomizer

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, *shape]` to `[B, *shape]`, perhaps another one."""
        return self.randomizer.forward_in(x)


def _try_randomizer(randomizer: Randomizer, shape: Sequence[int]) -> Sequence[int]:
    """Makes sure that a randomizer takes observations, and returns the shape that it gives them."""
    given = randomizer.output_shape_in(shape)
    y = first_pass(_Augmented(randomizer), lambda: (torch.zeros(2, *shape),))
    if y is not None and list(y.shape) != [2, *given]:
        raise ValueError(
            f"it makes {list(y.shape)} of 2 observations, but its output_shape_in is {given}"
        )
    return given


@contextmanager
def _works(name: str, section: str, arguments: Any, shape: Sequence[int]) -> Iterator[None]:
    """Turns the error of an encoder or a randomizer, of any type, into a sentence."""
    try:
        yield
    except RaymimicError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{section}: {name} with {shown(arguments or {})} fails on the shape {list(shape)}: "
            f"{own_reason(error)}"
        ) from error


@contextmanager
def _explained(key: str, modality: str) -> Iterator[None]:
    """Names the observation key, and its place in the config, in errors."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            f"observation key '{key}' is {modality}, and observation.encoder.{modality} cannot "
            f"encode it: {error}"
        ) from error


def _add_net(nets: nn.ModuleDict, key: str, net: nn.Module) -> None:
    """Puts the network of an observation key into a dict under its name.

    Raises:
        ConfigError: torch does not take the name.
    """
    try:
        nets[key] = net
    except KeyError as error:
        raise ConfigError(
            f"observation key '{key}' cannot name a network in torch ({error.args[0]}): rename it "
            "in the dataset"
        ) from error


@computed_without_calls
class ObservationEncoder(Module):
    """Encodes each observation key, flattens it, and concatenates them in order.

    Randomizers of a key stand before its encoder, and average the features of their variants after
    it. Keys may share an encoder, each with randomizers of its own. An embedding of language that
    an encoder takes is no feature besides.

    As in robomimic, an encoder may be made key by key instead: by `register_obs_key`, then `make`.

    Args:
        obs_shapes: the keys, their shapes and modalities; None: those that are registered.
        encoder_kwargs: for each modality, how its keys are encoded (`core_class` and
            `core_kwargs`), augmented (`obs_randomizer_class`, `obs_randomizer_kwargs`) and which
            keys have the encoder of another (`share_net_from`, `{key: the other}`); an absent
            modality or `core_class`: by its `Modality.default_core`; None: as they are.
        feature_activation: activation after each of these encoders, a function or a module's class;
            None: none.

    Raises:
        ConfigError: an encoder or a randomizer cannot be made, or shared.
    """

    def __init__(
        self,
        obs_shapes: ObsShapes | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        feature_activation: Activation | type[nn.Module] | None = torch.relu,
    ) -> None:
        super().__init__()
        self._made = obs_shapes is not None
        self._language: str | None = None
        self.output_dim = 0
        if feature_activation is not None and not callable(feature_activation):
            raise TypeError(f"feature_activation is no function: {feature_activation!r:.60}")
        obs_shapes = ObsShapes() if obs_shapes is None else obs_shapes
        self.obs_shapes = obs_shapes
        self.feature_activation: Activation | None = (
            feature_activation() if isinstance(feature_activation, type) else feature_activation
        )
        self.obs_nets = nn.ModuleDict()
        self.obs_randomizers = nn.ModuleDict()
        shared: dict[str, str] = {}
        for key, shape in obs_shapes.items():
            modality = obs_shapes.modality(key)
            kwargs: Mapping[str, Any] = {}
            if encoder_kwargs is not None:
                default = {"core_class": modality_named(modality).default_core}
                kwargs = {**default, **encoder_kwargs.get(modality, {})}
            for randomizer in _randomizers(key, shape, modality, kwargs):
                if key not in self.obs_randomizers:
                    _add_net(self.obs_randomizers, key, nn.ModuleList())
                self._chain(key).append(randomizer)
            if source := (kwargs.get("share_net_from") or {}).get(key):
                shared[key] = source
            elif core := _encoder_core(key, self._augmented_shape(key), modality, kwargs):
                _add_net(self.obs_nets, key, core)
        for key, source in shared.items():
            self._share(key, source)
        self._count_features()

    def _count_features(self) -> None:
        """Sets `output_dim`."""
        self._language = self._language_key()
        self.output_dim = sum(
            _num_features(self._core(key), self._augmented_shape(key))
            if key in self.obs_nets
            else torch.Size(shape).numel()
            for key, shape in self.obs_shapes.items()
            if key != self._language
        )

    def register_obs_key(
        self,
        name: str,
        shape: Sequence[int],
        net_class: str | None = None,
        net_kwargs: Mapping[str, Any] | None = None,
        net: nn.Module | None = None,
        randomizers: Randomizer | Sequence[Randomizer | None] | None = None,
        share_net_from: str | None = None,
    ) -> None:
        """Adds an observation key, before `make`.

        Args:
            name: the key.
            shape: of its observations, as networks see them.
            net_class: registered name of its encoder.
            net_kwargs: arguments of that class; `input_shape` follows from `shape`.
            net: its encoder itself instead, which has an `output_shape`.
            randomizers: one or a chain of them.
            share_net_from: a registered key that it shares the encoder with, instead. Without any
                of these it is flattened.

        Raises:
            ConfigError: the key is registered, or the encoder is made already; or its encoder is
                given in two ways, or cannot be made or shared.
        """
        if self._made or name in self.obs_shapes:
            raise ConfigError(
                f"observation key '{name}' cannot be registered: "
                + ("the encoder is made already" if self._made else "it is registered already")
            )
        if sum(given is not None for given in (net_class, net, share_net_from)) > 1:
            raise ConfigError(
                f"observation key '{name}' has one encoder: give one of net_class, net and "
                "share_net_from"
            )
        self.obs_shapes[name] = tuple(shape)
        chain = [randomizers] if isinstance(randomizers, Randomizer) else randomizers or ()
        if kept := [randomizer for randomizer in chain if randomizer is not None]:
            _add_net(self.obs_randomizers, name, nn.ModuleList(kept))
        if share_net_from is not None:
            self._share(name, share_net_from)
        elif net_class is not None:
            own = {k: v for k, v in (net_kwargs or {}).items() if k != "input_shape"}
            seen = self._augmented_shape(name)
            core = _encoder_core(
                name, seen, "low_dim", {"core_class": net_class, "core_kwargs": own}
            )
            assert core is not None
            _add_net(self.obs_nets, name, core)
        elif net is not None:
            _add_net(self.obs_nets, name, net)

    def make(self) -> None:
        """Ends the registration of keys.

        Raises:
            ConfigError: it has ended already.
        """
        if self._made:
            raise ConfigError("the encoder is made already: call make() once")
        self._made = True
        self._count_features()

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns `[D]`, the number of features."""
        return [self.output_dim]

    def _language_key(self) -> str | None:
        """Returns the key of the embedding that encoders take, and that is no feature therefore.

        None if no encoder takes one.

        Raises:
            ConfigError: there is none or more than one, or it is of another size.
        """
        conditioned = {
            key: core
            for key, core in self.obs_nets.items()
            if isinstance(core, VisualCoreLanguageConditioned)
        }
        if not conditioned:
            return None
        first = next(iter(conditioned))
        found = language_keys({key: self.obs_shapes.modality(key) for key in self.obs_shapes})
        if len(found) != 1:
            raise ConfigError(
                f"the encoder of '{first}' takes one embedding of language, but the observations "
                f"have {len(found)}: list it under observation.modalities.obs.lang, or set the "
                "encoder's core_class to 'VisualCore'"
            )
        size = torch.Size(self.obs_shapes[found[0]]).numel()
        for key, core in conditioned.items():
            if core.lang_emb_dim != size:
                raise ConfigError(
                    f"'{found[0]}' has {size} numbers, but the encoder of '{key}' takes "
                    f"{core.lang_emb_dim}: set core_kwargs.backbone_kwargs.lang_emb_dim of "
                    f"observation.encoder.{self.obs_shapes.modality(key)} to {size}"
                )
        return found[0]

    def _core(self, key: str) -> EncoderCore:
        return cast("EncoderCore", self.obs_nets[key])

    def _chain(self, key: str) -> nn.ModuleList:
        """Returns the randomizers of a key."""
        return cast("nn.ModuleList", self.obs_randomizers[key])

    def _augmented_shape(self, key: str) -> Sequence[int]:
        """Returns the shape of a key's observations after its randomizers."""
        shape: Sequence[int] = self.obs_shapes[key]
        if key in self.obs_randomizers:
            for randomizer in self._chain(key):
                shape = cast("Randomizer", randomizer).output_shape_in(shape)
        return shape

    def _share(self, key: str, source: str) -> None:
        """Gives a key the encoder of another."""
        setting = f"observation.encoder.{self.obs_shapes.modality(key)}.share_net_from.{key}"
        if not isinstance(source, str):
            raise ConfigError(f"{setting} is {source}: give the name of one key")
        if source not in self.obs_shapes:
            raise ConfigError(
                f"{setting} names '{source}', which is not in the same group of observations (obs, "
                f"goal, …) as '{key}': list it in each group that has '{key}', or remove the "
                f"setting{did_you_mean(source, self.obs_nets.keys())}"
            )
        if source not in self.obs_nets:
            hint = did_you_mean(source, self.obs_nets.keys())
            raise ConfigError(f"{setting} names '{source}', which has no encoder of its own{hint}")
        shape, core = tuple(self._augmented_shape(key)), self._core(source)
        if shape != getattr(core, "input_shape", shape):
            raise ConfigError(
                f"{setting} names '{source}', whose encoder takes the shape "
                f"{list(core.input_shape)}, but '{key}' has {list(shape)}: remove it"
            )
        _add_net(self.obs_nets, key, core)

    def forward(self, obs_dict: ObsDict) -> Tensor:
        """Maps `{key: [B, *shape]}`, which may hold more keys, to features `[B, D]`.

        A key of B / n rows is encoded once, and each of its rows holds for n neighbours.
        """
        features, nets, randomizers = [], self.obs_nets, self.obs_randomizers
        for key in self.obs_shapes:
            if key == self._language:
                continue
            x = obs_dict[key]
            chain = self._chain(key) if key in randomizers else ()
            for randomizer in chain:
                x = cast("Randomizer", randomizer).forward_in(x)
            if key in nets:
                core = nets[key]
                if self._language and isinstance(core, VisualCoreLanguageConditioned):
                    x = core(x, obs_dict[self._language])
                else:
                    x = core(x)
                x = x if self.feature_activation is None else self.feature_activation(x)
            for randomizer in reversed(chain):
                x = cast("Randomizer", randomizer).forward_out(x)
            features.append(x)
        return joined(features)


def _num_features(core: EncoderCore, shape: Sequence[int]) -> int:
    """Number of features of an encoder, or of any network with robomimic's `output_shape`."""
    if isinstance(core, EncoderCore):
        return core.output_dim
    return torch.Size(core.output_shape(list(shape))).numel()


def joined(features: Sequence[Tensor]) -> Tensor:
    """Flattens features `[B, *shape]` and concatenates them to `[B, D]`.

    A row of those that have fewer holds for neighbours.
    """
    flat = [x if x.dim() == 2 else x.flatten(start_dim=1) for x in features]
    rows = [len(x) for x in flat]
    most = max(rows)
    if min(rows) < most:
        flat = [
            x if n == most else x.repeat_interleave(most // max(1, n), dim=0)
            for x, n in zip(flat, rows, strict=True)
        ]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def states_for(
    nets: Iterable[nn.Module], obs: ObsDict, goal: ObsDict | None, n: int
) -> tuple[ObsDict, ObsDict | None]:
    """Observations and goals for networks that are given n actions of each state, side by side.

    A class with `encodes_once = True` of its own encodes a state once and repeats its features.
    For others, such as a user's, the states are repeated.

    Args:
        nets: the networks.
        obs: `{key: [B, *shape]}`.
        goal: `{key: [B, *shape]}` of the goal; None: no goal.
        n: number of actions.
    """
    if all(vars(type(net)).get("encodes_once") for net in nets):
        return obs, goal
    repeated: tuple[ObsDict, ObsDict | None] = repeat_rows((dict(obs), goal), n)
    return repeated


@computed_without_calls
class ObservationGroupEncoder(Module):
    """Encodes several groups of observations (`obs`, `goal`, …) side by side.

    Args:
        observation_group_shapes: the groups, in the order in which they are concatenated.
        feature_activation: see `ObservationEncoder`.
        encoder_kwargs: see `ObservationEncoder`.
    """

    def __init__(
        self,
        observation_group_shapes: Mapping[str, Mapping[str, Sequence[int]]],
        feature_activation: Activation | type[nn.Module] | None = torch.relu,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleDict()
        self.output_dim = 0
        for group, shapes in observation_group_shapes.items():
            encoder = ObservationEncoder(ObsShapes(shapes), encoder_kwargs, feature_activation)
            self.nets[group] = encoder
            self.output_dim += encoder.output_dim

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns `[D]`, the number of features of all groups."""
        return [self.output_dim]

    def forward(self, **groups: ObsDict | None) -> Tensor:
        """Maps observations of each group, which may be more groups, to `[B, D]`.

        A group of B / n rows is encoded once, and each of its rows holds for n neighbours.
        """
        return joined([encoder(groups[group]) for group, encoder in self.nets.items()])

    def encode_sequence(self, **groups: ObsDict | None) -> Tensor:
        """Encodes each step of sequences of observations.

        Args:
            groups: `{key: [B, T, *shape]}`; a group that is `[B, *shape]`, a goal, is encoded
                once and holds at every step.

        Returns:
            Features `[B, T, D]`.
        """
        flat: dict[str, ObsDict] = {}
        steps: Sequence[int] = ()  # [B, T]
        for group, net in self.nets.items():
            encoder, obs = cast("ObservationEncoder", net), groups[group]
            assert obs is not None
            key, shape = next(iter(encoder.obs_shapes.items()))
            leading = obs[key].shape[: obs[key].dim() - len(shape)]  # [B, T] or [B]
            flat[group] = {k: obs[k].flatten(0, len(leading) - 1) for k in encoder.obs_shapes}
            steps = max(steps, leading, key=len)
        features: Tensor = self(**flat)
        return features.reshape(*steps, features.shape[-1])


@computed_without_calls
class ObservationDecoder(Module):
    """Predicts each output from shared features by a linear layer of its own.

    Args:
        decode_shapes: the outputs and their shapes.
        input_feat_dim: number of features.
    """

    def __init__(self, decode_shapes: Mapping[str, Sequence[int]], input_feat_dim: int) -> None:
        super().__init__()
        self.shapes = {k: tuple(shape) for k, shape in decode_shapes.items()}
        self.nets = nn.ModuleDict()
        for key, shape in self.shapes.items():
            _add_net(self.nets, key, Linear(input_feat_dim, torch.Size(shape).numel()))

    def output_shape(self, input_shape: Sequence[int] | None = None) -> dict[str, list[int]]:
        """Returns the shape of each output."""
        return {key: list(shape) for key, shape in self.shapes.items()}

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """Maps `[B, D]` to `{key: [B, *shape]}`."""
        return {key: self.shaped(key, net(features)) for key, net in self.nets.items()}

    def shaped(self, key: str, x: Tensor) -> Tensor:
        """Gives an output `[..., D]` its shape, `[..., *shape]`."""
        shape = self.shapes[key]
        return x if len(shape) == 1 else x.reshape(*x.shape[:-1], *shape)
