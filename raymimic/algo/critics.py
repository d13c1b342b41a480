"""Base of algorithms with an ensemble of Q-functions: networks, targets, TD learning."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from raymimic.algo import losses, optimization
from raymimic.algo.algo import ObsDict, PolicyAlgo, ValueAlgo
from raymimic.algo.learning import Batch, Losses
from raymimic.config.base_config import BaseConfig
from raymimic.data.reads import Reads, one_step
from raymimic.models.obs_coders import obs_encoder_args_from_config
from raymimic.models.value_nets import ActionValueEnsemble, ActionValueNetwork


class CriticAlgo(PolicyAlgo, ValueAlgo):
    """An algorithm that learns Q(s, a) by an ensemble of critics and their slow targets.

    `nets["critic"]` and `nets["critic_target"]` hold `critic.ensemble.n` networks each. Every
    member has an optimizer of its own; one backward pass serves all. By default
    `nets["actor"]` acts.
    """

    def _create_critics(self) -> None:
        """Puts the ensemble and its target, which starts equal, into `nets`."""
        for name in ("critic", "critic_target"):
            self.nets[name] = ActionValueEnsemble(
                self._make_critic(**self._critic_args()) for _ in range(self._critic_count())
            )
        optimization.hard_update(self.nets["critic"], self.nets["critic_target"])

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """One transition of `algo.n_step` steps."""
        return replace(one_step(config.algo.n_step), next_actions=None)

    def _critic_count(self) -> int:
        """Returns the number of critics."""
        return int(self.algo_config.critic.ensemble.n)

    def _critic_args(self) -> dict[str, Any]:
        """Returns the arguments of one critic."""
        return {
            "obs_shapes": self.obs_shapes,
            "ac_dim": self.ac_dim,
            "mlp_layer_dims": self.algo_config.critic.layer_dims,
            "value_bounds": self.algo_config.critic.get("value_bounds"),
            "goal_shapes": self.goal_shapes,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        }

    def _make_critic(self, **args: Any) -> nn.Module:
        """Makes one critic."""
        return ActionValueNetwork(**args)

    def _critics(self, name: str = "critic") -> nn.ModuleList:
        """Returns the ensemble `critic` or `critic_target`."""
        return cast("nn.ModuleList", self.nets[name])

    def ensemble_values(
        self, name: str, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q(s, a) `[n, B, 1]` of each member.

        Args:
            name: `critic` or `critic_target`.
            obs_dict: `{key: [B, *shape]}`.
            actions: `[B, A]`.
            goal_dict: `{key: [B, *shape]}` of the goal; None: no goal.
        """
        values: Tensor = self.nets[name](obs_dict, actions, goal_dict)
        return values

    @torch.no_grad()
    def target_values(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q'(s, a) `[B, 1]`: the targets' minimum and maximum, mixed.

        `critic.ensemble.weight` is the minimum's share.
        """
        values = self.ensemble_values("critic_target", obs_dict, actions, goal_dict)
        return losses.ensemble_mix(values, self.algo_config.critic.ensemble.weight)

    def compute_critic_losses(self, batch: Batch, target: Tensor) -> list[Tensor]:
        """Returns the error (0-d) of each critic's Q(s, a) against a TD target `[B, 1]`."""
        values = self.ensemble_values("critic", batch["obs"], batch["actions"], batch["goal_obs"])
        huber = self.algo_config.critic.use_huber
        return [losses.regression_loss(value, target, huber) for value in values]

    def td_losses(self, batch: Batch, target: Tensor) -> Losses:
        """Regresses each critic to a TD target, and reports both.

        Args:
            batch: a processed batch.
            target: as `compute_critic_losses` takes it.
        """
        info = {
            "critic/done_mask_percentage": 100.0 * (1.0 - batch["dones"]),
            "critic/q_targets": target,
        }
        return self.losses_of_critics(self.compute_critic_losses(batch, target), info)

    def losses_of_critics(
        self, critic_losses: Sequence[Tensor], info: Mapping[str, Any] | None = None
    ) -> Losses:
        """Reports the members' losses under robomimic's names of metrics.

        Args:
            critic_losses: for each member, the mean (0-d) over this rank's samples.
            info: further metrics.
        """
        named = {f"critic/critic{i}_loss": loss for i, loss in enumerate(critic_losses, 1)}
        return Losses({"critic": critic_losses}, {**(info or {}), **named})

    @cached_property
    def _targets(self) -> dict[str, optimization.TargetNetwork]:
        """The targets that have moved so far, by the name of their source."""
        return {}

    def _update_target(self, name: str) -> None:
        """Moves `<name>_target` a share `target_tau` of the way towards the network."""
        if name not in self._targets:
            target = optimization.TargetNetwork(self.nets[name], self.nets[f"{name}_target"])
            self._targets[name] = target
        self._targets[name].follow(self.algo_config.target_tau)

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the actor's actions `[B, A]`."""
        action: Tensor = self.nets["actor"](obs_dict, goal_dict)
        return action

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns Q(s, π(s)) `[B, 1]` of the first critic."""
        actions = self.get_action(obs_dict, goal_dict)
        return self.get_state_action_value(obs_dict, actions, goal_dict)

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q(s, a) `[B, 1]` of the first critic."""
        value: Tensor = self._critics()[0](obs_dict, actions, goal_dict)
        return value
