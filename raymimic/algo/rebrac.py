"""ReBRAC: TD3 that is drawn towards the data's actions, in the actor and in the critic.

Tarasov et al., "Revisiting the Minimalist Approach to Offline Reinforcement Learning" (2023),
https://arxiv.org/abs/2305.09836. TD3+BC's steps with other losses, and with critics of three hidden
layers that are normalised (LayerNorm).

Deviations from the authors' code: each layer is normalised before its activation, as in robomimic's
`MLP`, not after it; targets follow the networks as they are after the step, as in TD3.
"""

from typing import Any

import torch
from torch import Tensor

from raymimic import tensors
from raymimic.algo.algo import Algo, register_algo_factory_func
from raymimic.algo.learning import Batch
from raymimic.algo.losses import td_target
from raymimic.algo.td3_bc import TD3_BC
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.data.reads import Reads, one_step


@register_algo_factory_func("rebrac")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """ReBRAC has one class."""
    return ReBRAC, {}


class ReBRAC(TD3_BC):
    """ReBRAC. Its penalties are squared distances, summed over the action's dimensions."""

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """One transition of `algo.n_step` steps, and the action after it."""
        return one_step(config.algo.n_step)

    def _critic_args(self) -> dict[str, Any]:
        return {**super()._critic_args(), "layer_norm": self.algo_config.critic.layer_norm}

    @torch.no_grad()
    def compute_td_target(self, batch: Batch) -> Tensor:
        """TD target `[B, 1]`: r + discount (1 - done) (Q'(s', a') - β₂ |a' - â'|²).

        a' is the target actor's action plus clipped noise, â' the data's next action. The last step
        of a demo that a time limit cut has none: there it is the last action.
        """
        actor, critic = self.algo_config.actor, self.algo_config.critic
        action = self.nets["actor_target"](batch["next_obs"], batch["goal_obs"])
        noise = torch.randn_like(action) * actor.noise_std
        action = (action + noise.clamp(-actor.noise_clip, actor.noise_clip)).clamp(-1.0, 1.0)

        value = self.target_values(batch["next_obs"], action, batch["goal_obs"])
        penalty = (action - batch["next_actions"]).square().sum(dim=1, keepdim=True)
        value = value - critic.bc_weight * penalty
        return td_target(batch["rewards"], batch["dones"], value, self.discount)

    def compute_actor_loss(self, batch: Batch) -> Tensor:
        """Actor's loss (0-d): mean (β₁ |π(s) - a|² - λ min Q(s, π(s))).

        λ = 1 / mean |min Q|, over the global batch; 1 without `actor.normalize_q`.
        """
        config = self.algo_config.actor
        action = self.nets["actor"](batch["obs"], batch["goal_obs"])
        with tensors.frozen(self.nets["critic"]):  # its weight gradients are of no use here
            values = self.ensemble_values("critic", batch["obs"], action, batch["goal_obs"])
        q = values.amin(dim=0)
        scale = 1.0 / self.dist_mean(q.abs()) if config.normalize_q else 1.0
        penalty = (action - batch["actions"]).square().sum(dim=1)
        loss: Tensor = config.bc_weight * penalty.mean() - scale * q.mean()
        return loss
