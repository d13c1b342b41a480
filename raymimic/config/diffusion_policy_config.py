"""Settings of Diffusion Policy (https://arxiv.org/abs/2303.04137)."""

from collections.abc import Iterator
from math import inf

from raymimic.config.base_config import BaseConfig
from raymimic.config.sections import OptimizerSection, TransformerSection, enabled_of


class DiffusionPolicyConfig(BaseConfig):
    """Diffusion Policy, with a U-Net or a transformer.

    Keys and defaults as in `robomimic/config/diffusion_policy_config.py`, and a section for the
    transformer, whose defaults are the paper's for low-dimensional observations.
    """

    __slots__ = ()

    ALGO_NAME = "diffusion_policy"
    IN_ROBOMIMIC = True
    SEES_STACKS = True
    OWN_KEYS = (*BaseConfig.OWN_KEYS, "algo.transformer", "algo.ddpm.respace_steps")
    RANGES = {
        "algo.horizon.*": (1, inf),
        "algo.unet.diffusion_step_embed_dim": (4, inf),
        "algo.unet.down_dims": (1, inf),
        "algo.unet.kernel_size": (1, inf),
        "algo.unet.n_groups": (1, inf),
        "algo.ema.power": (0, inf),
        "algo.dd?m.num_*_timesteps": (1, inf),
        "algo.ddim.steps_offset": (0, inf),
    }
    CHOICES = {
        "algo.dd?m.beta_schedule": ("squaredcos_cap_v2", "linear", "scaled_linear"),
        "algo.dd?m.prediction_type": ("epsilon", "sample", "v_prediction"),
    }

    def train_config(self) -> None:
        """Leaves out next_obs, and makes sequences as long as the horizons."""
        super().train_config()
        self.train.hdf5_load_next_obs = False  # load next_obs (where the algorithm uses it)
        self.train.seq_length = 16  # with frame_stack - 1, at least the prediction horizon
        self.train.frame_stack = 2  # observations at each step; must equal the observation horizon

    def algo_config(self) -> None:
        """Fills `algo`."""
        self.algo.optim_params.policy = OptimizerSection(
            1e-4,
            optimizer_type="adamw",
            learning_rate={
                "step_every_batch": True,
                "scheduler_type": "cosine",
                "num_cycles": 0.5,
                "warmup_steps": 500,
            },
            regularization={"L2": 1e-6},
        )
        self.algo.optim_params.policy.learning_rate.do_not_lock_keys()

        self.algo.horizon.observation_horizon = 2  # steps that the policy sees
        self.algo.horizon.action_horizon = 8  # actions executed before the next prediction
        self.algo.horizon.prediction_horizon = 16  # actions in a prediction

        self.algo.unet.enabled = True  # predict noise by convolutions over time
        self.algo.unet.diffusion_step_embed_dim = 256  # size of the diffusion step's embedding
        self.algo.unet.down_dims = [256, 512, 1024]  # channels; each level but the last halves time
        self.algo.unet.kernel_size = 5  # of the convolutions; odd
        self.algo.unet.n_groups = 8  # of the group norms; divides all of down_dims

        self.algo.transformer = TransformerSection()
        self.algo.transformer.enabled = False  # predict noise by a transformer; disable the U-Net

        self.algo.ema.enabled = True  # act by a moving average of the weights
        self.algo.ema.power = 0.75  # after n steps its decay is 1 - n^-power

        self.algo.ddpm.enabled = True  # denoise by DDPM
        self.algo.ddpm.num_train_timesteps = 100  # diffusion steps
        self.algo.ddpm.num_inference_timesteps = 100  # of these, taken to act
        # With fewer steps to act: each also removes the noise of the steps that are left out;
        # robomimic's steps do not.
        self.algo.ddpm.respace_steps = False
        self.algo.ddpm.beta_schedule = "squaredcos_cap_v2"  # or "linear", "scaled_linear"
        self.algo.ddpm.clip_sample = True  # keep denoised actions in [-1, 1]
        self.algo.ddpm.prediction_type = "epsilon"  # noise; or "sample", "v_prediction"

        self.algo.ddim.enabled = False  # denoise by DDIM, in fewer steps; disable DDPM
        self.algo.ddim.num_train_timesteps = 100  # diffusion steps
        self.algo.ddim.num_inference_timesteps = 10  # of these, taken to act
        self.algo.ddim.beta_schedule = "squaredcos_cap_v2"  # or "linear", "scaled_linear"
        self.algo.ddim.clip_sample = True  # keep denoised actions in [-1, 1]
        self.algo.ddim.set_alpha_to_one = True  # the last step leaves no noise
        self.algo.ddim.steps_offset = 0  # added to the diffusion steps taken
        self.algo.ddim.prediction_type = "epsilon"  # noise; or "sample", "v_prediction"

    def problems(self) -> Iterator[str]:
        """Looks at horizons, networks and schedulers."""
        yield from super().problems()
        yield from self._horizon_problems()
        for pair in (("unet", "transformer"), ("ddpm", "ddim")):
            chosen = enabled_of(self.algo, *pair)
            if len(chosen) != 1:
                first, second = (self.algo[name].dotted("enabled") for name in pair)
                yield (
                    f"{'both' if chosen else 'neither'} of '{first}' and '{second}' "
                    f"{'are' if chosen else 'is'} true: enable one"
                )
        for name in enabled_of(self.algo, "ddpm", "ddim"):
            scheduler = self.algo[name]
            if scheduler.num_inference_timesteps > scheduler.num_train_timesteps:
                yield (
                    f"'{scheduler.dotted('num_inference_timesteps')}' is "
                    f"{scheduler.num_inference_timesteps}, more than "
                    f"'{scheduler.dotted('num_train_timesteps')}' "
                    f"({scheduler.num_train_timesteps}): lower it"
                )
        if self.algo.unet.enabled:
            yield from self._unet_problems()

    def _horizon_problems(self) -> Iterator[str]:
        horizon, train = self.algo.horizon, self.train
        if horizon.observation_horizon != train.frame_stack:
            yield (
                f"'{horizon.dotted('observation_horizon')}' is {horizon.observation_horizon} but "
                f"'train.frame_stack' is {train.frame_stack}: set both to the same number of steps"
            )
        # A sample begins with the first of the stacked steps.
        steps = train.frame_stack - 1 + train.seq_length
        if horizon.prediction_horizon > steps:
            yield (
                f"'{horizon.dotted('prediction_horizon')}' is {horizon.prediction_horizon} but a "
                f"sample has {steps} steps (train.frame_stack - 1 + train.seq_length): raise "
                f"'train.seq_length' to {horizon.prediction_horizon + 1 - train.frame_stack}"
            )
        most = horizon.prediction_horizon - horizon.observation_horizon + 1
        if horizon.action_horizon > most:
            yield (
                f"'{horizon.dotted('action_horizon')}' is {horizon.action_horizon}: of "
                f"{horizon.prediction_horizon} predicted steps only {most} lie ahead, so it must "
                f"be at most {most}"
            )

    def _unet_problems(self) -> Iterator[str]:
        unet, horizon = self.algo.unet, self.algo.horizon
        dims, groups = list(unet.down_dims), unet.n_groups
        if any(dim % groups for dim in dims):
            yield (
                f"'{unet.dotted('down_dims')}' is {dims}, not all multiples of "
                f"'{unet.dotted('n_groups')}' ({groups}): change one of them"
            )
        for key, remainder in {"kernel_size": 1, "diffusion_step_embed_dim": 0}.items():
            if unet[key] % 2 != remainder:
                parity = "odd" if remainder else "even"
                yield f"'{unet.dotted(key)}' is {unet[key]}: it must be {parity}"
        halved = 2 ** (len(dims) - 1)
        if horizon.prediction_horizon % halved:
            yield (
                f"'{horizon.dotted('prediction_horizon')}' is {horizon.prediction_horizon}, which "
                f"{len(dims)} levels of '{unet.dotted('down_dims')}' cannot halve: make it a "
                f"multiple of {halved}"
            )

    def warnings(self) -> Iterator[str]:
        """Looks for noise that DDPM leaves."""
        yield from super().warnings()
        ddpm = self.algo.ddpm
        if (
            ddpm.enabled
            and not ddpm.respace_steps
            and ddpm.num_inference_timesteps < ddpm.num_train_timesteps
        ):
            yield (
                f"'{ddpm.dotted()}' leaves noise in the actions: each of its "
                f"{ddpm.num_inference_timesteps} inference steps removes that of one of "
                f"{ddpm.num_train_timesteps} steps, as in robomimic; set "
                f"'{ddpm.dotted('respace_steps')}' to true, or use "
                f"'{self.algo.ddim.dotted()}'"
            )
