"""What algorithms with an ensemble of Q-functions share: networks, targets, TD learning."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from raymimic.algo import losses
from raymimic.algo.algo import Batch, ObsDict, PolicyAlgo, ValueAlgo
from raymimic.models.obs_nets import obs_encoder_args_from_config
from raymimic.models.value_nets import ActionValueEnsemble, ActionValueNetwork
from raymimic.utils import torch_utils


class CriticAlgo(PolicyAlgo, ValueAlgo):
    """An algorithm that learns Q(s, a) by an ensemble of critics and their slow targets.

    ``nets["critic"]`` and ``nets["critic_target"]`` hold ``critic.ensemble.n`` networks each. Every
    member has an optimizer of its own; one backward pass serves all. By default what acts is
    ``nets["actor"]``.
    """

    def _create_critics(self) -> None:
        """Puts the ensemble and its target, which starts equal, into ``nets``."""
        for name in ("critic", "critic_target"):
            self.nets[name] = ActionValueEnsemble(
                self._make_critic(**self._critic_args()) for _ in range(self._critic_count())
            )
        torch_utils.hard_update(self.nets["critic"], self.nets["critic_target"])

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
        """Returns the ensemble ``critic`` or ``critic_target``."""
        return cast("nn.ModuleList", self.nets[name])

    def ensemble_values(
        self, name: str, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q(s, a) ``[n, B, 1]`` of each member.

        Args:
            name: ``critic`` or ``critic_target``.
            obs_dict: ``{key: [B, *shape]}``.
            actions: ``[B, A]``.
            goal_dict: likewise, if there is a goal.
        """
        values: Tensor = self.nets[name](obs_dict, actions, goal_dict)
        return values

    @torch.no_grad()
    def target_values(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Returns Q'(s, a) ``[B, 1]``: the targets' minimum and maximum, mixed.

        ``critic.ensemble.weight`` is the minimum's share.
        """
        values = self.ensemble_values("critic_target", obs_dict, actions, goal_dict)
        return losses.ensemble_mix(values, self.algo_config.critic.ensemble.weight)

    def compute_critic_losses(self, batch: Batch, target: Tensor) -> list[Tensor]:
        """Returns the error (0-d) of each critic's Q(s, a) against a TD target ``[B, 1]``."""
        values = self.ensemble_values("critic", batch["obs"], batch["actions"], batch["goal_obs"])
        huber = self.algo_config.critic.use_huber
        return [losses.regression_loss(value, target, huber) for value in values]

    def _learn_critics(
        self, critic_losses: Sequence[Tensor], learn: bool = True
    ) -> dict[str, Tensor]:
        """Takes one gradient step of each critic on its loss, all in one backward pass.

        Args:
            critic_losses: for each member, the mean (0-d) over this rank's samples.
            learn: take the step; otherwise only the losses are reported.

        Returns:
            Losses and squared norms of gradients, under robomimic's names of metrics.
        """
        info = {f"critic/critic{i}_loss": loss for i, loss in enumerate(critic_losses, 1)}
        if learn:
            norms = torch_utils.backprop_for_losses(
                optims=self.optimizers["critic"],
                losses=critic_losses,
                max_grad_norm=self._max_grad_norm(self.algo_config.critic.max_gradient_norm),
            )
            info |= {f"critic/critic{i}_grad_norms": norm for i, norm in enumerate(norms, 1)}
        return info

    def _update_target(self, name: str) -> None:
        """Moves ``<name>_target`` a share ``target_tau`` of the way towards the network."""
        torch_utils.soft_update(
            source=self.nets[name],
            target=self.nets[f"{name}_target"],
            tau=self.algo_config.target_tau,
        )

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
        value: Tensor = self._critics()[0](obs_dict, actions, goal_dict)
        return value
