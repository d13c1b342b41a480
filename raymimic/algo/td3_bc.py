"""TD3+BC: TD3 on a fixed dataset, with a behavioural-cloning term in the actor's loss.

Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning" (2021),
https://arxiv.org/abs/2106.06860; after `robomimic/algo/td3_bc.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymimic import tensors
from raymimic.algo import optimization
from raymimic.algo.algo import Algo, register_algo_factory_func
from raymimic.algo.critics import CriticAlgo
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.losses import td_target
from raymimic.config.config import Config
from raymimic.models.obs_coders import obs_encoder_args_from_config
from raymimic.models.policy_nets import ActorNetwork


@register_algo_factory_func("td3_bc")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the class: there is one."""
    return TD3_BC, {}


class TD3_BC(CriticAlgo):
    """TD3+BC.

    Each step regresses every critic to the TD target; every `actor.update_freq` steps the
    actor is updated and all target networks follow.
    """

    def _create_networks(self) -> None:
        self._create_critics()
        for name in ("actor", "actor_target"):
            self.nets[name] = ActorNetwork(
                obs_shapes=self.obs_shapes,
                ac_dim=self.ac_dim,
                mlp_layer_dims=self.algo_config.actor.layer_dims,
                goal_shapes=self.goal_shapes,
                **obs_encoder_args_from_config(self.obs_config.encoder),
            )
        optimization.hard_update(self.nets["actor"], self.nets["actor_target"])

    def updates(self) -> Sequence[Update]:
        """Steps every critic; then, when it is its turn, the actor."""
        limit = self.algo_config.critic.max_gradient_norm
        critic = Learner("critic", "critic/critic{}_grad_norms", limit, then=self._count_step)
        actor = Learner("actor", "actor/grad_norms", then=self._update_targets)
        return (
            Update((critic,), self._critic_losses),
            Update((actor,), self._actor_losses, when=self._is_actors_turn),
        )

    def _critic_losses(self, batch: Batch, epoch: int) -> Losses:
        return self.td_losses(batch, self.compute_td_target(batch))

    def _actor_losses(self, batch: Batch, epoch: int) -> Losses:
        loss = self.compute_actor_loss(batch)
        return Losses({"actor": loss}, {"actor/loss": loss})

    def _count_step(self) -> None:
        self.actor_update_counter += 1

    def _is_actors_turn(self) -> bool:
        return self.actor_update_counter % int(self.algo_config.actor.update_freq) == 0

    def _update_targets(self) -> None:
        """Moves all targets; as in the authors' code, only with the actor."""
        self._update_target("critic")
        self._update_target("actor")

    @torch.no_grad()
    def compute_td_target(self, batch: Batch) -> Tensor:
        """TD target `[B, 1]`: r + discount (1 - done) Q'(s', π'(s') + clipped noise)."""
        config = self.algo_config
        action = self.nets["actor_target"](batch["next_obs"], batch["goal_obs"])
        noise = torch.randn_like(action) * config.actor.noise_std
        noise = noise.clamp(-config.actor.noise_clip, config.actor.noise_clip)
        action = (action + noise).clamp(-1.0, 1.0)

        value = self.target_values(batch["next_obs"], action, batch["goal_obs"])
        return td_target(batch["rewards"], batch["dones"], value, self.discount)

    def compute_actor_loss(self, batch: Batch) -> Tensor:
        """Actor's loss (0-d): -λ mean Q(s, π(s)) + mean (π(s) - a)².

        λ = alpha / mean |Q|, over the global batch (the paper's equations 3 to 5).
        """
        action = self.nets["actor"](batch["obs"], batch["goal_obs"])
        critic = self._critics()[0]
        with tensors.frozen(critic):  # its weight gradients are of no use here
            q = critic(batch["obs"], action, batch["goal_obs"])
        lam = self.algo_config.alpha / self.dist_mean(q.abs())
        loss: Tensor = F.mse_loss(action, batch["actions"]) - lam * q.mean()
        return loss
