"""CQL: soft actor-critic with a penalty on the values of actions that the data do not show.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning" (2020),
https://arxiv.org/abs/2006.04779, on top of Haarnoja et al., "Soft Actor-Critic Algorithms and
Applications" (2018), https://arxiv.org/abs/1812.05905; after `robomimic/algo/cql.py`.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributions import Distribution

from raymimic import tensors
from raymimic.algo.algo import Algo, ObsDict, register_algo_factory_func
from raymimic.algo.critics import CriticAlgo
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.losses import conservative_gap, regression_loss, td_target
from raymimic.algo.optimization import Adam
from raymimic.config.config import Config
from raymimic.models.base_nets import Parameter
from raymimic.models.distributions import rsample_with_log_prob
from raymimic.models.obs_coders import obs_encoder_args_from_config, states_for
from raymimic.models.policy_nets import GaussianActorNetwork, stochastic_actor_from_config


@register_algo_factory_func("cql")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the class: there is one."""
    return CQL, {}


class CQL(CriticAlgo):
    """Conservative Q-learning, the variant CQL(H).

    Each step updates the actor, then every critic, then the targets. Two weights may be dual
    variables, tuned by gradient steps of their own: the entropy's, so that the policy has
    `actor.target_entropy`, and the penalty's, so that the gap is `critic.target_q_gap`.
    """

    def _create_networks(self) -> None:
        self._create_critics()
        self.nets["actor"] = stochastic_actor_from_config(
            self.algo_config.actor.net,
            obs_shapes=self.obs_shapes,
            ac_dim=self.ac_dim,
            mlp_layer_dims=self.algo_config.actor.layer_dims,
            goal_shapes=self.goal_shapes,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )
        if self.algo_config.actor.target_entropy is not None:
            self.nets["log_entropy_weight"] = Parameter(torch.zeros(1))
        target_gap = self.algo_config.critic.target_q_gap
        if target_gap is not None and target_gap >= 0:
            self.nets["log_cql_weight"] = Parameter(torch.zeros(1))

    def _create_optimizers(self) -> None:
        super()._create_optimizers()
        # The dual variables go at the pace of the network that they constrain.
        for name, net in (("entropy", "actor"), ("cql", "critic")):
            if (dual := f"log_{name}_weight") in self.nets:
                rate = self.optim_params[net]["learning_rate"]["initial"]
                parameters = self.nets[dual].parameters()
                self.optimizers[name] = Adam(parameters, lr=rate, fused=True)

    @property
    def entropy_weight(self) -> Tensor:
        """Weight alpha `[1]` of the entropy: exp of its dual variable, or 1."""
        if "log_entropy_weight" in self.nets:
            return torch.exp(self.nets["log_entropy_weight"]())
        return torch.ones(1, device=self.device, dtype=self.dtype)

    @property
    def cql_weight(self) -> Tensor:
        """Weight `[1]` of the critics' penalty: exp of its dual variable, or `cql_weight`."""
        if "log_cql_weight" in self.nets:
            return torch.exp(self.nets["log_cql_weight"]()).clamp(max=1e6)
        fixed = self.algo_config.critic.cql_weight
        return torch.full((1,), fixed, device=self.device, dtype=self.dtype)

    @property
    def target_entropy(self) -> float:
        """The entropy that its weight is tuned for."""
        target = self.algo_config.actor.target_entropy
        return float(-self.ac_dim if target == "default" else target)

    def updates(self) -> Sequence[Update]:
        """Steps the actor, then every critic, each beside its dual variable; targets follow."""
        actor, critic = self.algo_config.actor, self.algo_config.critic
        follow = partial(self._update_target, "critic")
        limit = critic.max_gradient_norm
        actors = [Learner("actor", "actor/grad_norms", actor.max_gradient_norm, self._count_step)]
        critics = [Learner("critic", "critic/critic{}_grad_norms", limit, follow)]
        if "entropy" in self.optimizers:
            actors.append(Learner("entropy", "entropy_grad_norms"))
        if "cql" in self.optimizers:
            critics.append(Learner("cql", "critic/CQL_grad_norms"))
        return (
            Update(tuple(actors), self._actor_losses),
            Update(tuple(critics), self._critic_losses),
        )

    def _count_step(self) -> None:
        self.actor_update_counter += 1

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Turns the losses of a step into metrics; `Loss` is without those of dual variables."""
        critics = range(1, len(self._critics()) + 1)
        total = info["actor/loss"] + sum(info[f"critic/critic{i}_loss"] for i in critics)
        return super().log_info({**info, "loss": total})

    def _actor_losses(self, batch: Batch, epoch: int) -> Losses:
        """Losses of the actor and of the entropy's weight alpha.

        The actor minimises mean(alpha log π(a|s) - min Q(s, a)), a ~ π(s) (SAC, eq. 7); in the
        first `bc_start_steps` steps log π(a|s) of the data's action stands for Q. Alpha rises
        while the entropy, mean(-log π), is below its target (SAC, eq. 18, in log alpha).
        """
        policy = self._policy(batch["obs"], batch["goal_obs"])
        actions, log_prob = rsample_with_log_prob(policy)
        alpha = self.entropy_weight
        if self.actor_update_counter < self.algo_config.actor.bc_start_steps:
            gain = policy.log_prob(batch["actions"])
        else:
            with tensors.frozen(self.nets["critic"]):  # their weights' gradients: of no use
                args = batch["obs"], actions, batch["goal_obs"]
                gain = self.ensemble_values("critic", *args).amin(dim=0)
        loss = (alpha.detach() * log_prob).mean() - gain.mean()
        losses = {"actor": loss}
        info = {"actor/loss": loss, "entropy_weight": alpha, "entropy_weight_loss": 0.0}
        if "entropy" in self.optimizers:
            missing = (log_prob.detach() + self.target_entropy).mean()
            dual_loss = -(self.nets["log_entropy_weight"]() * missing).mean()
            losses["entropy"] = info["entropy_weight_loss"] = dual_loss
        return Losses(losses, info)

    def _critic_losses(self, batch: Batch, epoch: int) -> Losses:
        """Losses of the critics and of the penalty's weight.

        Each critic minimises its TD error plus weight * (`min_q_weight` * gap - `target_q_gap`)
        (CQL, eq. 4), the gap being `conservative_gap`. The weight rises
        while the gap is above its target (CQL, appendix F); where it is fixed, there is no target.
        """
        settings = self.algo_config.critic
        with torch.no_grad():
            policy = self._policy(batch["obs"], batch["goal_obs"])
            next_policy = self._policy(batch["next_obs"], batch["goal_obs"])
            target = self.compute_td_target(batch, next_policy)
            sampled, log_densities = self._sample_proposals(policy, next_policy)
        # The data's actions and all sampled ones in one forward pass.
        actions = torch.cat([batch["actions"].unsqueeze(1), sampled], dim=1)
        values = self._values_of_many("critic", batch["obs"], actions, batch["goal_obs"])

        tuned = "cql" in self.optimizers
        weight = self.cql_weight
        gaps = torch.stack([conservative_gap(q[:, 1:], log_densities, q[:, 0]) for q in values])
        excess = settings.min_q_weight * gaps - (settings.target_q_gap if tuned else 0.0)
        errors = [regression_loss(q[:, :1], target, settings.use_huber) for q in values]
        losses = torch.stack(errors) + weight.detach() * excess

        critics = self.losses_of_critics(
            losses.unbind(), {"critic/done_mask_percentage": 100.0 * (1.0 - batch["dones"])}
        )
        if not tuned:
            return critics
        dual_loss = -(weight * excess.detach()).mean()
        info = {"critic/CQL_weight": weight, "critic/CQL_weight_loss": dual_loss}
        return Losses({**critics.of, "cql": dual_loss}, {**critics.info, **info})

    def _policy(self, obs_dict: ObsDict, goal_dict: ObsDict | None) -> Distribution:
        """Returns π(s), the distribution over actions `[B, A]`."""
        return cast("GaussianActorNetwork", self.nets["actor"]).forward_train(obs_dict, goal_dict)

    @torch.no_grad()
    def compute_td_target(self, batch: Batch, next_policy: Distribution) -> Tensor:
        """TD target `[B, 1]`: r + discount (1 - done) min max Q'(s', a').

        The maximum is over `num_action_samples` actions a' ~ π(s'), the minimum over target
        critics. With one sample and without `deterministic_backup` -alpha log π(a'|s') is added,
        as in SAC (eq. 3).

        Args:
            batch: a processed batch.
            next_policy: π(s').
        """
        settings = self.algo_config.critic
        actions, log_prob = rsample_with_log_prob(next_policy, (settings.num_action_samples,))
        args = batch["next_obs"], actions.transpose(0, 1), batch["goal_obs"]
        values = self._values_of_many("critic_target", *args).amax(dim=2, keepdim=True).amin(dim=0)
        if settings.num_action_samples == 1 and not settings.deterministic_backup:
            values = values - self.entropy_weight * log_prob.transpose(0, 1)
        return td_target(batch["rewards"], batch["dones"], values, self.discount)

    def _sample_proposals(
        self, policy: Distribution, next_policy: Distribution
    ) -> tuple[Tensor, Tensor]:
        """Samples actions from which the soft maximum of Q is estimated.

        `num_random_actions` = N for each state, of each of three kinds: uniform, π(s), π(s').

        Returns:
            Actions `[B, 3 N, A]` and their log-densities `[B, 3 N]`.
        """
        shape = (self.algo_config.critic.num_random_actions,)
        actions, log_densities = rsample_with_log_prob(policy, shape)
        next_actions, next_log_densities = rsample_with_log_prob(next_policy, shape)
        uniform = torch.empty_like(actions).uniform_(-1.0, 1.0)
        uniform_log_density = torch.full_like(log_densities, -self.ac_dim * math.log(2.0))
        return (
            torch.cat([uniform, actions, next_actions]).transpose(0, 1),
            torch.cat([uniform_log_density, log_densities, next_log_densities]).transpose(0, 1),
        )

    def _values_of_many(
        self, name: str, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None
    ) -> Tensor:
        """Returns Q(s, a) `[n, B, M]` of M actions `[B, M, A]` in each state."""
        num = actions.shape[1]
        obs, goal = states_for(self._critics(name), obs_dict, goal_dict, num)
        values = self.ensemble_values(name, obs, actions.flatten(0, 1), goal)
        return values.view(len(values), -1, num)
