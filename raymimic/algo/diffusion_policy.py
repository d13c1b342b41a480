"""Diffusion Policy: a network that denoises a sequence of actions.

Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion" (2023),
https://arxiv.org/abs/2303.04137; after `robomimic/algo/diffusion_policy.py`, which has the
U-Net alone, ignores `algo.unet`, `prediction_type` (in training) and goals, and forgets the
moving average's step when it resumes. The noise schedules are those of `diffusers`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.algo.algo import Algo, ObsDict, PolicyAlgo, register_algo_factory_func
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.optimization import EMAModel
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.config.diffusion_policy_config import DiffusionPolicyConfig
from raymimic.data.reads import Reads, Window
from raymimic.errors import CheckpointError, ConfigError, pip_install
from raymimic.models.diffusion_nets import ConditionalUnet1D, DiffusionTransformer
from raymimic.models.obs_coders import ObservationGroupEncoder, obs_encoder_args_from_config
from raymimic.models.obs_nets import obs_and_goal_groups
from raymimic.models.vision.norms import replace_bn_with_gn
from raymimic.tensors import map_tensor


@register_algo_factory_func("diffusion_policy")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the network.

    Raises:
        ConfigError: if neither is enabled.
    """
    if algo_config.unet.enabled:
        return DiffusionPolicyUNet, {}
    if algo_config.transformer.enabled:
        return DiffusionPolicyTransformer, {}
    raise ConfigError("no network is enabled: set algo.unet.enabled or algo.transformer.enabled")


def noise_scheduler_from_config(algo_config: Config) -> Any:
    """Makes the scheduler of `diffusers` that `algo.ddpm` or `algo.ddim` describes.

    Raises:
        ConfigError: if neither is enabled, or `diffusers` is not installed.
    """
    try:
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError as error:
        raise ConfigError(
            "Diffusion Policy takes its noise schedules from diffusers: "
            f"{pip_install('diffusion')} ({error})"
        ) from error
    name = _scheduler_name(algo_config)
    settings = dict(algo_config[name])
    for ours in ("enabled", "num_inference_timesteps", "respace_steps"):
        settings.pop(ours, None)
    return {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[name](**settings)


def _scheduler_name(algo_config: Config) -> str:
    for name in ("ddpm", "ddim"):
        if algo_config[name].enabled:
            return name
    raise ConfigError("no noise schedule is enabled: set algo.ddpm.enabled or algo.ddim.enabled")


def inference_steps(algo_config: Config, scheduler: Any) -> list[int]:
    """Returns the diffusion steps that denoising goes through, the noisiest first.

    If these are fewer than in training, a step of DDPM must also remove the noise of the steps that
    are left out. robomimic's step removes the noise of one step only. So does this one, unless
    `algo.ddpm.respace_steps` is set: then `diffusers` gets the list of steps, and spans them.
    """
    settings = algo_config[_scheduler_name(algo_config)]
    trained, taken = settings.num_train_timesteps, settings.num_inference_timesteps
    if settings.get("respace_steps", True):
        scheduler.set_timesteps(taken)
        steps: list[int] = scheduler.timesteps.tolist()
        return steps
    return list(range(0, trained, trained // taken))[::-1]


@dataclass
class ActionQueue:
    """The predicted actions that are not executed yet, for each environment of a batch.

    Attributes:
        actions: `[B, Ta, A]`.
        left: `[B]`, how many of them, counted from the end, are to be taken.
    """

    actions: Tensor
    left: Tensor

    def pop(self) -> Tensor:
        """Returns the next action of each row `[B, A]`."""
        rows = torch.arange(len(self.left), device=self.left.device)
        action = self.actions[rows, self.actions.shape[1] - self.left]
        self.left -= 1
        return action


class DiffusionPolicy(PolicyAlgo):
    """Base of the variants, which differ in the network that predicts the noise.

    Training adds noise of a random diffusion step to demonstrated actions and regresses the noise
    (eq. 5). To act, the policy denoises `prediction_horizon` actions from pure noise (eq. 4) with
    the moving average of the weights. It executes `action_horizon` of them, from the current step
    on, before the next prediction.

    Attributes:
        ema: the moving average of `nets`; None without it.
    """

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """The observed steps and the actions to predict, which start at the same step."""
        return cls._windows(config.algo.horizon, 1 - config.train.frame_stack)

    @staticmethod
    def _windows(horizon: Config, first: int) -> Reads:
        """Windows that begin at step `first`."""
        return Reads(
            obs=Window(first, first + horizon.observation_horizon),
            actions=Window(first, first + horizon.prediction_horizon),
            bounded_actions=True,
        )

    def _create_networks(self) -> None:
        encoder = ObservationGroupEncoder(
            obs_and_goal_groups(self.obs_shapes, self.goal_shapes),
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )
        replace_bn_with_gn(encoder)  # the average of the weights would not fit batch statistics
        self.nets["policy"] = nn.ModuleDict(
            {"obs_encoder": encoder, "noise_pred_net": self._noise_net(encoder.output_dim)}
        )
        self.noise_scheduler = noise_scheduler_from_config(self.algo_config)
        self.ema: EMAModel | None = None
        if self.algo_config.ema.enabled:
            nets = self.nets.to(device=self.device, dtype=self.dtype)
            self.ema = EMAModel(nets, self.algo_config.ema.power)
        self._queue: ActionQueue | None = None

    def _noise_net(self, obs_dim: int) -> nn.Module:
        """Makes the network that predicts the noise, from the size of one step's features."""
        raise NotImplementedError

    # ---------------------------------------------------------------------- training

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes the observed steps and the actions to predict, which start at the same step.

        Args:
            batch: `obs` `{key: [B, T, *shape]}` and `actions` `[B, T, A]`, `goal_obs`
                `{key: [B, *shape]}` if present.

        Returns:
            `obs` `{key: [B, To, *shape]}`, `actions` `[B, Tp, A]`, `goal_obs`.

        Raises:
            ConfigError: if the sequences are shorter than the prediction horizon.
        """
        horizon = self.algo_config.horizon
        batch = self._cut(batch, self._windows(horizon, 1 - self.global_config.train.frame_stack))
        actions = batch["actions"]
        if actions.shape[1] < horizon.prediction_horizon:
            raise ConfigError(
                f"algo.horizon.prediction_horizon={horizon.prediction_horizon} needs sequences as "
                f"long: raise train.seq_length (a sample has {actions.shape[1]} actions)"
            )
        return {
            "obs": map_tensor(batch["obs"], self._cast),
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
            "actions": self._cast(actions),
        }

    def updates(self) -> Sequence[Update]:
        """Steps the policy; the average follows."""
        policy = Learner("policy", "policy_grad_norms", then=self._update_ema)
        return (Update((policy,), self._losses),)

    def _losses(self, batch: Batch, epoch: int) -> Losses:
        loss = self.compute_loss(batch)
        return Losses({"policy": loss}, {"loss": loss})

    def compute_loss(self, batch: Batch) -> Tensor:
        """Mean squared error (0-d) of the predicted noise (eq. 5).

        With `prediction_type` `"sample"` that of the predicted actions, with
        `"v_prediction"` that of the velocity (https://arxiv.org/abs/2202.00512).
        """
        actions, scheduler = batch["actions"], self.noise_scheduler
        noise = torch.randn_like(actions)
        steps = torch.randint(
            0, scheduler.config.num_train_timesteps, (len(actions),), device=actions.device
        )
        noisy = scheduler.add_noise(actions, noise, steps)
        predicted = self._predict(self.nets, noisy, steps, self._encode(self.nets, batch))
        kind = scheduler.config.prediction_type
        if kind == "v_prediction":
            target = scheduler.get_velocity(actions, noise, steps)
        else:
            target = actions if kind == "sample" else noise
        return F.mse_loss(predicted, target)

    @staticmethod
    def _encode(nets: nn.ModuleDict, batch: Batch) -> Tensor:
        """Returns the features `[B, To, D]` of the observations and of the goal."""
        encoder = nets["policy"]["obs_encoder"]  # type: ignore[index]
        features: Tensor = encoder.encode_sequence(obs=batch["obs"], goal=batch["goal_obs"])
        return features

    @staticmethod
    def _predict(nets: nn.ModuleDict, noisy: Tensor, step: Tensor | int, cond: Tensor) -> Tensor:
        """Returns the noise (or `prediction_type`'s quantity) in actions `[B, Tp, A]`."""
        predicted: Tensor = nets["policy"]["noise_pred_net"](noisy, step, cond)  # type: ignore[index]
        return predicted

    def _update_ema(self) -> None:
        """Moves the average towards the weights."""
        if self.ema is not None:
            self.ema.step(self.nets)

    # ----------------------------------------------------------------------- acting

    def reset(self, mask: Tensor | None = None) -> None:
        """Empties the queues of actions, or those of a mask `[B]`."""
        if mask is None:
            self._queue = None
        elif self._queue is not None:
            self._queue.left.masked_fill_(mask.to(self.device), 0)

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns each row's next action `[B, A]`; rows without one make a new prediction.

        Args:
            obs_dict: the steps that the environment stacks, `{key: [B, To, *shape]}`, or
                `{key: [B, *shape]}` where there is one.
            goal_dict: `{key: [B, *shape]}`, if there is a goal.

        Raises:
            RuntimeError: if there are more or fewer episodes than at the step before.
        """
        obs = {
            k: obs_dict[k] if obs_dict[k].dim() > len(shape) + 1 else obs_dict[k][:, None]
            for k, shape in self.obs_shapes.items()
        }
        rows = len(next(iter(obs.values())))
        queue = self._queue
        if queue is None:
            size = (rows, self.algo_config.horizon.action_horizon, self.ac_dim)
            actions = torch.zeros(size, device=self.device, dtype=self.dtype)
            left = torch.zeros(rows, device=self.device, dtype=torch.long)
            queue = self._queue = ActionQueue(actions, left)
        self._check_episodes(len(queue.left), rows)
        empty = queue.left == 0
        if empty.any():
            with self._noise_only(empty):
                actions = self.sample_actions(obs, goal_dict)
            queue.actions = torch.where(empty[:, None, None], actions, queue.actions)
            queue.left = torch.where(empty, actions.shape[1], queue.left)
        return queue.pop()

    @torch.no_grad()
    def sample_actions(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Denoises actions (eq. 4).

        Args:
            obs_dict: `{key: [B, To, *shape]}`.
            goal_dict: `{key: [B, *shape]}`, if there is a goal.

        Returns:
            The actions from the last observed step on, `[B, Ta, A]`.
        """
        horizon, scheduler = self.algo_config.horizon, self.noise_scheduler
        nets = cast("nn.ModuleDict", self.ema.averaged_model) if self.ema else self.nets
        cond = self._encode(nets, {"obs": obs_dict, "goal_obs": goal_dict})
        size = (len(cond), horizon.prediction_horizon, self.ac_dim)
        actions = torch.randn(size, device=self.device, dtype=self.dtype)
        for step in inference_steps(self.algo_config, scheduler):
            predicted = self._predict(nets, actions, step, cond)
            actions = scheduler.step(predicted, step, actions).prev_sample
        start = horizon.observation_horizon - 1
        return actions[:, start : start + horizon.action_horizon]

    # ------------------------------------------------------------------- checkpoints

    def serialize(self) -> dict[str, Any]:
        """Returns robomimic's state, the average under `ema`, and the average's step."""
        average, step = None, 0
        if self.ema is not None:
            average, step = self.ema.averaged_model.state_dict(), self.ema.optimization_step
        return {**super().serialize(), "ema": average, "ema_step": step}

    def deserialize(self, model_dict: Mapping[str, Any], load_optimizers: bool = False) -> None:
        """Loads the result of `serialize`, or robomimic's, which has no step.

        The optimizer counts as many steps, so that robomimic's checkpoint trains on as if it
        had been there. (robomimic starts again at 0, which discards the average.)

        Raises:
            CheckpointError: if it does not fit this config.
        """
        super().deserialize(model_dict, load_optimizers)
        if self.ema is None:
            return
        weights = model_dict.get("ema")
        try:
            self.ema.averaged_model.load_state_dict(weights or self.nets.state_dict())
        except RuntimeError as error:
            raise CheckpointError(
                f"the checkpoint's moving average does not fit: {' '.join(str(error).split())}"
            ) from error
        if load_optimizers:
            counted = [int(s["step"]) for s in self.optimizers["policy"].state.values()]
            self.ema.optimization_step = model_dict.get("ema_step", max(counted, default=0))


class DiffusionPolicyUNet(DiffusionPolicy):
    """Diffusion Policy with a temporal U-Net."""

    def _noise_net(self, obs_dim: int) -> ConditionalUnet1D:
        unet, horizon = self.algo_config.unet, self.algo_config.horizon
        net = ConditionalUnet1D(
            input_dim=self.ac_dim,
            global_cond_dim=obs_dim * horizon.observation_horizon,
            diffusion_step_embed_dim=unet.diffusion_step_embed_dim,
            down_dims=unet.down_dims,
            kernel_size=unet.kernel_size,
            n_groups=unet.n_groups,
        )
        if horizon.prediction_horizon % net.shrinks_by:
            raise ConfigError(
                f"algo.horizon.prediction_horizon={horizon.prediction_horizon} must be a multiple "
                f"of {net.shrinks_by}, as algo.unet.down_dims has {len(unet.down_dims)} levels"
            )
        return net

    @classmethod
    def correct_config_by_weights(cls, config: BaseConfig, model: Mapping[str, Any]) -> None:
        """Reads the U-Net's sizes from robomimic's weights: its `algo.unet` may say others.

        Goals are struck out, as its network sees none.
        """
        weights = model.get("nets", model)
        net = "policy.noise_pred_net"
        names = (f"{net}.down_modules.{level}.0.blocks.0.block.0.weight" for level in count())
        first = []
        for name in names:
            if name not in weights:
                break
            first.append(weights[name])
        if not first:
            return  # loading will name the fault
        unet = config.algo.unet
        unet.down_dims = [w.shape[0] for w in first]
        unet.kernel_size = first[0].shape[2]
        step_dim = weights[f"{net}.diffusion_step_encoder.1.weight"].shape[1]
        unet.diffusion_step_embed_dim = step_dim
        unet.n_groups = 8  # robomimic's, always
        goals = config.observation.modalities.goal
        goals.update({modality: [] for modality in goals})

    @classmethod
    def why_not_exportable(cls, config: BaseConfig) -> str | None:
        """Goals, and any U-Net but the one that it always builds, as it ignores `algo.unet`."""
        if config.use_goals:
            return "Diffusion Policy that sees goals (observation.modalities.goal)"
        own, its = config.algo.unet, DiffusionPolicyConfig().algo.unet
        sizes = ("diffusion_step_embed_dim", "down_dims", "kernel_size", "n_groups")
        other = [name for name in sizes if own[name] != its[name]]
        return f"a U-Net of other sizes than its own (algo.unet.{other[0]})" if other else None


class DiffusionPolicyTransformer(DiffusionPolicy):
    """Diffusion Policy with the time-series diffusion transformer, which robomimic announces."""

    def _noise_net(self, obs_dim: int) -> DiffusionTransformer:
        transformer, horizon = self.algo_config.transformer, self.algo_config.horizon
        return DiffusionTransformer(
            input_dim=self.ac_dim,
            cond_dim=obs_dim,
            horizon=horizon.prediction_horizon,
            cond_steps=horizon.observation_horizon,
            embed_dim=transformer.embed_dim,
            num_layers=transformer.num_layers,
            num_heads=transformer.num_heads,
            emb_dropout=transformer.emb_dropout,
            attn_dropout=transformer.attn_dropout,
        )

    @classmethod
    def why_not_exportable(cls, config: BaseConfig) -> str | None:
        """This variant."""
        return "Diffusion Policy with a transformer"
