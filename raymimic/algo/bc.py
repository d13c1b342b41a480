"""Behavioural cloning: regress the demonstrated actions."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from raymimic.algo.algo import Algo, Batch, ObsDict, PolicyAlgo, register_algo_factory_func
from raymimic.algo.losses import cosine_loss
from raymimic.config.config import Config
from raymimic.errors import ConfigError
from raymimic.models.obs_nets import obs_encoder_args_from_config
from raymimic.models.policy_nets import ActorNetwork
from raymimic.utils import torch_utils


@register_algo_factory_func("bc")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the variant of BC.

    Raises:
        ConfigError: for the stochastic and recurrent variants, which are not available yet.
    """
    for variant in ("gaussian", "gmm", "vae", "rnn", "transformer"):
        if variant in algo_config and algo_config[variant].enabled:
            raise ConfigError(
                f"algo.{variant}.enabled: this variant of bc is not available in this version of "
                "raymimic; disable it to train a deterministic MLP policy"
            )
    return BC, {}


class BC(PolicyAlgo):
    """Behavioural cloning of a deterministic policy (``robomimic/algo/bc.py``).

    Minimises a weighted sum of the squared error, the Huber loss ("L1") and the cosine loss of
    the first three action dimensions, an end effector's displacement.
    """

    def _create_networks(self) -> None:
        self.nets["policy"] = ActorNetwork(
            obs_shapes=self.obs_shapes,
            ac_dim=self.ac_dim,
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            goal_shapes=self.goal_shapes,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Takes one gradient step on the loss, or only computes it."""
        info = super().train_on_batch(batch, epoch, validate)
        with torch_utils.maybe_no_grad(validate):
            actions = self.nets["policy"](batch["obs"], batch["goal_obs"])
            losses = self.compute_losses(actions, batch["actions"])
        info.update(losses)
        if not validate:
            info["policy_grad_norms"] = self._learn("policy", losses["loss"])
        return info

    def compute_losses(self, actions: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compares actions ``[B, A]`` with demonstrated ones.

        Returns:
            ``loss``, the weighted sum, and its parts.
        """
        weights = self.algo_config.loss
        l2 = F.mse_loss(actions, targets)
        l1 = F.smooth_l1_loss(actions, targets)
        cosine = cosine_loss(actions[..., :3], targets[..., :3])
        loss = weights.l2_weight * l2 + weights.l1_weight * l1 + weights.cos_weight * cosine
        return {"loss": loss, "l2_loss": l2, "l1_loss": l1, "cosine_loss": cosine}

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the policy's actions ``[B, A]``."""
        action: Tensor = self.nets["policy"](obs_dict, goal_dict)
        return action
