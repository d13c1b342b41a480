"""IQL: Q-learning that never asks for the value of an action outside the data.

Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning" (2021),
https://arxiv.org/abs/2110.06169; after `robomimic/algo/iql.py`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from raymimic.algo.algo import Algo, ObsDict, register_algo_factory_func
from raymimic.algo.critics import CriticAlgo
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.losses import advantage_weights, expectile_loss, regression_loss, td_target
from raymimic.config.config import Config
from raymimic.models.obs_coders import obs_encoder_args_from_config
from raymimic.models.policy_nets import StochasticActorNetwork, stochastic_actor_from_config
from raymimic.models.value_nets import ValueNetwork

# Greatest weight of an action in the actor's loss, with `adv.use_final_clip`.
MAX_ADVANTAGE_WEIGHT = 100.0


@register_algo_factory_func("iql")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the class: there is one."""
    return IQL, {}


class IQL(CriticAlgo):
    """Implicit Q-learning.

    V is an upper expectile of Q over the data's actions, and Q is regressed to the backup of V. The
    actor imitates the data's actions, weighted by their advantages.
    """

    def _create_networks(self) -> None:
        args = {
            "obs_shapes": self.obs_shapes,
            "goal_shapes": self.goal_shapes,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        }
        self._create_critics()
        self.nets["vf"] = ValueNetwork(mlp_layer_dims=self.algo_config.critic.layer_dims, **args)
        self.nets["actor"] = stochastic_actor_from_config(
            self.algo_config.actor.net,
            ac_dim=self.ac_dim,
            mlp_layer_dims=self.algo_config.actor.layer_dims,
            **args,
        )

    def updates(self) -> Sequence[Update]:
        """Steps critics, V and actor together, all from where they stand before."""
        critic, actor = self.algo_config.critic, self.algo_config.actor
        follow = partial(self._update_target, "critic")
        limit = critic.max_gradient_norm
        learners = (
            Learner("critic", "critic/critic{}_grad_norms", limit, then=follow),
            Learner("vf", "vf/grad_norms", limit),
            Learner("actor", "actor/grad_norms", actor.max_gradient_norm),
        )
        return (Update(learners, self._losses),)

    def _losses(self, batch: Batch, epoch: int) -> Losses:
        settings = self.algo_config
        obs, actions, goal = batch["obs"], batch["actions"], batch["goal_obs"]
        with torch.no_grad():
            q = self.ensemble_values("critic_target", obs, actions, goal).amin(dim=0)
            next_v = self.nets["vf"](batch["next_obs"], goal)
        target = td_target(batch["rewards"], batch["dones"], next_v, self.discount)
        values = self.ensemble_values("critic", obs, actions, goal)
        critics = self.losses_of_critics(
            [regression_loss(value, target, settings.critic.use_huber) for value in values]
        )  # eq. 6

        v = self.nets["vf"](obs, goal)
        v_loss = expectile_loss(v, q, settings.vf_quantile)  # eq. 5

        actor = cast("StochasticActorNetwork", self.nets["actor"])
        log_prob = actor.forward_train(obs, goal).log_prob(actions)
        advantages = q - v.detach()
        weights = self.compute_advantage_weights(advantages)
        actor_loss = -(weights.squeeze(1) * log_prob).mean()  # eq. 7

        info = {
            **critics.info,
            "loss": actor_loss + v_loss + sum(critics.of["critic"]),
            "critic/critic1_pred": values[0],
            "actor/log_prob": log_prob,
            "actor/loss": actor_loss,
            "vf/v_loss": v_loss,
            **_statistics("vf/q_pred", q),
            **_statistics("vf/v_pred", v),
            **_statistics("adv/adv", advantages),
            **_statistics("adv/adv_weight", weights),
        }
        return Losses({**critics.of, "vf": v_loss, "actor": actor_loss}, info)

    def compute_advantage_weights(self, advantages: Tensor) -> Tensor:
        """Weights exp((Q - V) / beta) of the data's actions, for advantages `[B, 1]`."""
        settings = self.algo_config.adv
        return advantage_weights(
            advantages,
            temperature=settings.beta,
            max_advantage=settings.clip_adv_value,
            max_weight=MAX_ADVANTAGE_WEIGHT if settings.use_final_clip else None,
        )

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Turns the result of `train_on_batch` into metrics.

        Robomimic writes the names of this algorithm's metrics small. `Loss` and learning rates,
        which it does not log, are named as for other algorithms.
        """
        log = super().log_info({"loss": info["loss"]})
        log |= {key: value.detach().mean() for key, value in info.items() if key != "loss"}
        return log

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns V(s) `[B, 1]`."""
        value: Tensor = self.nets["vf"](obs_dict, goal_dict)
        return value


def _statistics(name: str, x: Tensor) -> dict[str, Tensor]:
    """Summarises values `[B, 1]` as robomimic logs them."""
    x = x.detach()
    low, high = x.aminmax()
    std = x.std(correction=min(1, len(x) - 1))  # of a single sample: 0
    return {f"{name}/max": high, f"{name}/min": low, f"{name}/mean": x.mean(), f"{name}/std": std}
