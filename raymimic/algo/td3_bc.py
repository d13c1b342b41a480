"""TD3+BC: TD3 on a fixed dataset, with a behavioural-cloning term in the actor's loss.

Fujimoto & Gu, "A Minimalist Approach to Offline Reinforcement Learning" (2021),
https://arxiv.org/abs/2106.06860; after ``robomimic/algo/td3_bc.py``.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.algo.algo import (
    Algo,
    Batch,
    ObsDict,
    PolicyAlgo,
    ValueAlgo,
    register_algo_factory_func,
)
from raymimic.algo.losses import regression_loss
from raymimic.config.config import Config
from raymimic.models.obs_nets import obs_encoder_args_from_config
from raymimic.models.policy_nets import ActorNetwork
from raymimic.models.value_nets import ActionValueNetwork
from raymimic.utils import torch_utils


@register_algo_factory_func("td3_bc")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the class: there is one."""
    return TD3_BC, {}


class TD3_BC(PolicyAlgo, ValueAlgo):
    """TD3+BC.

    Each step regresses every critic to the TD target; every ``actor.update_freq`` steps the
    actor is updated and all target networks follow.
    """

    def _create_networks(self) -> None:
        encoder_args = obs_encoder_args_from_config(self.obs_config.encoder)

        def critics() -> nn.ModuleList:
            return nn.ModuleList(
                ActionValueNetwork(
                    obs_shapes=self.obs_shapes,
                    ac_dim=self.ac_dim,
                    mlp_layer_dims=self.algo_config.critic.layer_dims,
                    value_bounds=self.algo_config.critic.value_bounds,
                    goal_shapes=self.goal_shapes,
                    **encoder_args,
                )
                for _ in range(self.algo_config.critic.ensemble.n)
            )

        def actor() -> ActorNetwork:
            return ActorNetwork(
                obs_shapes=self.obs_shapes,
                ac_dim=self.ac_dim,
                mlp_layer_dims=self.algo_config.actor.layer_dims,
                goal_shapes=self.goal_shapes,
                **encoder_args,
            )

        self.nets["critic"], self.nets["critic_target"] = critics(), critics()
        self.nets["actor"], self.nets["actor_target"] = actor(), actor()
        for name in ("critic", "actor"):
            torch_utils.hard_update(self.nets[name], self.nets[f"{name}_target"])

    def _critics(self, name: str) -> nn.ModuleList:
        """Returns the ensemble ``critic`` or ``critic_target``."""
        return cast("nn.ModuleList", self.nets[name])

    def train_on_batch(self, batch: Batch, epoch: int, validate: bool = False) -> dict[str, Any]:
        """Takes one gradient step with every critic and, when it is its turn, with the actor."""
        info = super().train_on_batch(batch, epoch, validate)

        learn_critic = not validate and self._check_epoch("critic", epoch)
        with torch_utils.maybe_no_grad(not learn_critic):
            info.update(self._train_critic_on_batch(batch, learn=learn_critic))

        self.actor_update_counter += learn_critic
        learn_actor = (
            not validate
            and self._check_epoch("actor", epoch)
            and self.actor_update_counter % self.algo_config.actor.update_freq == 0
        )
        with torch_utils.maybe_no_grad(not learn_actor):
            info.update(self._train_actor_on_batch(batch, learn=learn_actor))

        if learn_actor:  # as in the authors' code, targets move only with the actor
            for name in ("critic", "actor"):
                torch_utils.soft_update(
                    source=self.nets[name],
                    target=self.nets[f"{name}_target"],
                    tau=self.algo_config.target_tau,
                )
        return info

    def _train_critic_on_batch(self, batch: Batch, learn: bool) -> dict[str, Tensor]:
        """Regresses each critic to the TD target."""
        target = self.compute_td_target(batch)
        info = {
            "critic/done_mask_percentage": 100.0 * (1.0 - batch["dones"]),
            "critic/q_targets": target,
        }
        losses = [self.compute_critic_loss(c, batch, target) for c in self._critics("critic")]
        norms: list[Tensor] = []
        if learn:
            norms = torch_utils.backprop_for_losses(
                optims=self.optimizers["critic"],
                losses=losses,
                max_grad_norm=self._max_grad_norm(self.algo_config.critic.max_gradient_norm),
            )
        info |= {f"critic/critic{i}_loss": loss for i, loss in enumerate(losses, 1)}
        info |= {f"critic/critic{i}_grad_norms": norm for i, norm in enumerate(norms, 1)}
        return info

    def _train_actor_on_batch(self, batch: Batch, learn: bool) -> dict[str, Tensor]:
        """Updates the actor; its loss is logged at the other steps too."""
        loss = self.compute_actor_loss(batch)
        info = {"actor/loss": loss}
        if learn:
            info["actor/grad_norms"] = self._learn("actor", loss)
        return info

    @torch.no_grad()
    def compute_td_target(self, batch: Batch) -> Tensor:
        """TD target ``[B, 1]``: r + discount (1 - done) Q'(s', π'(s') + clipped noise).

        Q' mixes the smallest and the largest of the target critics by ``ensemble.weight``; its
        default 1 is TD3's minimum.
        """
        config = self.algo_config
        action = self.nets["actor_target"](batch["next_obs"], batch["goal_obs"])
        noise = torch.randn_like(action) * config.actor.noise_std
        noise = noise.clamp(-config.actor.noise_clip, config.actor.noise_clip)
        action = (action + noise).clamp(-1.0, 1.0)

        values = [
            critic(batch["next_obs"], action, batch["goal_obs"])
            for critic in self._critics("critic_target")
        ]
        low, high = torch.stack(values).aminmax(dim=0)
        value = torch.lerp(high, low, config.critic.ensemble.weight)
        target: Tensor = batch["rewards"] + self.discount * (1.0 - batch["dones"]) * value
        return target

    def compute_critic_loss(self, critic: nn.Module, batch: Batch, target: Tensor) -> Tensor:
        """Error (0-d) of one critic's Q(s, a) against the TD target ``[B, 1]``."""
        q = critic(batch["obs"], batch["actions"], batch["goal_obs"])
        return regression_loss(q, target, self.algo_config.critic.use_huber)

    def compute_actor_loss(self, batch: Batch) -> Tensor:
        """Actor's loss (0-d): -λ mean Q(s, π(s)) + mean (π(s) - a)².

        λ = alpha / mean |Q|, over the global batch (the paper's equations 3 to 5).
        """
        action = self.nets["actor"](batch["obs"], batch["goal_obs"])
        critic = self._critics("critic")[0]
        with torch_utils.frozen(critic):  # its weight gradients are of no use here
            q = critic(batch["obs"], action, batch["goal_obs"])
        lam = self.algo_config.alpha / self.dist_mean(q.abs())
        loss: Tensor = F.mse_loss(action, batch["actions"]) - lam * q.mean()
        return loss

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the actor's actions ``[B, A]``."""
        action: Tensor = self.nets["actor"](obs_dict, goal_dict)
        return action

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns Q(s, π(s)) ``[B, 1]`` of the first critic."""
        actions = self.get_action(obs_dict, goal_dict)
        return self.get_state_action_value(obs_dict, actions, goal_dict)

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q(s, a) ``[B, 1]`` of the first critic."""
        value: Tensor = self._critics("critic")[0](obs_dict, actions, goal_dict)
        return value
