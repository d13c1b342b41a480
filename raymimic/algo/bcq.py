"""BCQ: Q-learning over the actions that a generative model of the data proposes.

Fujimoto, Meger & Precup, "Off-Policy Deep Reinforcement Learning without Exploration" (2018),
https://arxiv.org/abs/1812.02900; after `robomimic/algo/bcq.py`.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from raymimic import tensors
from raymimic.algo import optimization
from raymimic.algo.algo import Algo, ObsDict, register_algo_factory_func
from raymimic.algo.critics import CriticAlgo
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.losses import categorical_loss, project_onto_atoms, td_target
from raymimic.config.config import Config
from raymimic.errors import ConfigError
from raymimic.models.distributions import DiscreteValueDistribution
from raymimic.models.obs_coders import obs_encoder_args_from_config, states_for
from raymimic.models.policy_nets import (
    GMMActorNetwork,
    PerturbationActorNetwork,
    gmm_args_from_config,
)
from raymimic.models.vae_nets import VAEActor, gumbel_temperature, vae_args_from_config
from raymimic.models.value_nets import DistributionalActionValueNetwork


@register_algo_factory_func("bcq")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses by the model that proposes actions and by the critics' predictions.

    Raises:
        ConfigError: if nothing proposes actions, or the atoms of a return have no bounds.
    """
    sampler, critic = algo_config.action_sampler, algo_config.critic
    if not (sampler.gmm.enabled or sampler.vae.enabled):
        raise ConfigError(
            "bcq needs a model that proposes actions: set algo.action_sampler.vae.enabled or "
            "algo.action_sampler.gmm.enabled to true"
        )
    if critic.distributional.enabled and critic.value_bounds is None:
        raise ConfigError(
            "algo.critic.distributional needs the lowest and the highest return: set "
            "algo.critic.value_bounds=[low,high]"
        )
    variants: dict[tuple[bool, bool], type[BCQ]] = {
        (False, False): BCQ,
        (True, False): BCQ_GMM,
        (False, True): BCQ_Distributional,
        (True, True): BCQ_GMM_Distributional,
    }
    return variants[sampler.gmm.enabled, critic.distributional.enabled], {}


class Candidates(NamedTuple):
    """Actions to choose from, n for each of B states, one state's side by side.

    Attributes:
        obs: the states `{key: [B, *shape]}`, or repeated, `[B * n, *shape]` (`states_for`).
        actions: `[B * n, A]`.
        goal: the goals, in the same form; None: no goals.
    """

    obs: ObsDict
    actions: Tensor
    goal: ObsDict | None


class BCQ(CriticAlgo):
    """BCQ (the paper's algorithm 1), its generative model G a conditional VAE.

    Each step trains G on the data; regresses the critics to a target that maximises over actions
    of G, each moved a little by the perturbation network ξ; and trains ξ, which may be absent
    (`actor.enabled`), to move actions uphill.
    """

    def _create_networks(self) -> None:
        args = {
            "obs_shapes": self.obs_shapes,
            "goal_shapes": self.goal_shapes,
            "ac_dim": self.ac_dim,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        }
        self._create_critics()
        self.nets["action_sampler"] = self._make_action_sampler(**args)
        if self.algo_config.actor.enabled:
            for name in ("actor", "actor_target"):
                self.nets[name] = PerturbationActorNetwork(
                    mlp_layer_dims=self.algo_config.actor.layer_dims, **args
                )
            optimization.hard_update(self.nets["actor"], self.nets["actor_target"])

    def _make_action_sampler(self, **args: Any) -> nn.Module:
        """Makes G, of which the arguments are common to all variants."""
        return VAEActor(**vae_args_from_config(self.algo_config.action_sampler.vae), **args)

    # ---------------------------------------------------------------------- training

    def updates(self) -> Sequence[Update]:
        """Steps G, then every critic, then ξ; targets follow."""
        limit = self.algo_config.critic.max_gradient_norm
        names = "critic/critic{}_grad_norms"
        critic = Learner("critic", names, limit, then=partial(self._update_target, "critic"))
        updates = [
            Update((Learner("action_sampler", "action_sampler/grad_norms"),), self._sampler_losses),
            Update((critic,), self._critic_losses),
        ]
        if "actor" in self.nets:
            follow = partial(self._update_target, "actor")
            actor = Learner("actor", "actor/grad_norms", then=follow)
            updates.append(Update((actor,), self._actor_losses))
        return updates

    def _sampler_losses(self, batch: Batch, epoch: int) -> Losses:
        losses = self.compute_action_sampler_losses(batch, epoch)
        info = {f"action_sampler/{key}": value for key, value in losses.items()}
        return Losses({"action_sampler": losses["loss"]}, info)

    def _critic_losses(self, batch: Batch, epoch: int) -> Losses:
        return self.td_losses(batch, self.compute_td_target(batch))

    def _actor_losses(self, batch: Batch, epoch: int) -> Losses:
        loss = self.compute_actor_loss(batch)
        return Losses({"actor": loss}, {"actor/loss": loss})

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Turns the losses of a step into metrics; `Loss` is without the parts of the VAE's."""
        critics = range(1, len(self._critics()) + 1)
        losses = [info["action_sampler/loss"], info.get("actor/loss", 0.0)]
        losses += [info[f"critic/critic{i}_loss"] for i in critics]
        return super().log_info({**info, "loss": sum(losses)})

    def compute_action_sampler_losses(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Returns the VAE's `loss`, reconstruction error + β KL, and its parts."""
        sampler = cast("VAEActor", self.nets["action_sampler"])
        config = self.algo_config.action_sampler
        if config.vae.prior.use_categorical:
            sampler.set_gumbel_temperature(gumbel_temperature(config.vae.prior, epoch))
        frozen = config.freeze_encoder_epoch != -1 and epoch >= config.freeze_encoder_epoch
        output = sampler.forward_train(batch["actions"], batch["obs"], batch["goal_obs"], frozen)
        reconstruction, kl = output["reconstruction_loss"], output["kl_loss"]
        losses: dict[str, Any] = {
            "loss": reconstruction + config.vae.kl_weight * kl,
            "reconsruction_loss": reconstruction,  # so robomimic spells it
            "KL_loss": kl,
        }
        if config.vae.prior.use_categorical:
            losses["gumbel_temperature"] = sampler.get_gumbel_temperature()
        else:
            losses["encoder_variance"] = output["encoder_params"]["logvar"].detach().exp()
        return losses

    @torch.no_grad()
    def compute_td_target(self, batch: Batch) -> Tensor:
        """TD target `[B, 1]`: r + discount (1 - done) max over a' of Q'(s', a') (eq. 13).

        The a' are `critic.num_action_samples` candidates, moved by ξ'; Q' mixes the smallest and
        the largest of the target critics by `ensemble.weight`, the paper's λ.
        """
        n = self.algo_config.critic.num_action_samples
        candidates = self.propose(batch["next_obs"], batch["goal_obs"], n, "actor_target")
        values = self.target_values(*candidates)
        best = values.view(-1, n).amax(dim=1, keepdim=True)
        return td_target(batch["rewards"], batch["dones"], best, self.discount)

    def compute_actor_loss(self, batch: Batch) -> Tensor:
        """Actor's loss (0-d): -mean Q(s, a + ξ(s, a)) with an action a of G for each s (eq. 12)."""
        obs, goal = batch["obs"], batch["goal_obs"]
        with torch.no_grad():
            actions = self._sample(obs, goal, 1)
        critic = self._critics()[0]
        with tensors.frozen(critic):  # its weight gradients are of no use here
            values: Tensor = critic(obs, self._perturb("actor", obs, actions, goal), goal)
        return -values.mean()

    def propose(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None, n: int, actor: str
    ) -> Candidates:
        """Draws n actions of G for each state and moves them by ξ.

        Args:
            obs_dict: `{key: [B, *shape]}`.
            goal_dict: `{key: [B, *shape]}` of the goal; None: no goal.
            n: number of candidates.
            actor: `actor` or `actor_target`.
        """
        actions = self._sample(obs_dict, goal_dict, n)
        nets = [*self._critics(), *([self.nets[actor]] if actor in self.nets else [])]
        obs, goal = states_for(nets, obs_dict, goal_dict, n)
        return Candidates(obs, self._perturb(actor, obs, actions, goal), goal)

    def _sample(self, obs_dict: ObsDict, goal_dict: ObsDict | None, n: int) -> Tensor:
        """Draws n actions `[B * n, A]` of G for each state, which lie side by side.

        In training G proposes as it does when the policy acts, in evaluation mode.
        """
        sampler = cast("VAEActor", self.nets["action_sampler"])
        with tensors.evaluating(sampler):
            return sampler.sample(obs_dict, goal_dict, n)

    def _perturb(
        self, actor: str, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None
    ) -> Tensor:
        """Moves actions `[B, A]` by ξ, if there is one."""
        if actor not in self.nets:
            return actions
        net = self.nets[actor]
        net.perturbation_scale = self.algo_config.actor.perturbation_scale
        moved: Tensor = net(obs_dict, actions, goal_dict)
        return moved

    # ------------------------------------------------------------------------ acting

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the best of `critic.num_action_samples_rollout` candidates `[B, A]`."""
        return self._best(obs_dict, goal_dict)[0]

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the value `[B, 1]` of the best of so many candidates."""
        return self._best(obs_dict, goal_dict)[1]

    def _best(self, obs_dict: ObsDict, goal_dict: ObsDict | None) -> tuple[Tensor, Tensor]:
        """Returns the best candidate `[B, A]` of each state by the first critic, and its Q."""
        n = self.algo_config.critic.num_action_samples_rollout
        candidates = self.propose(obs_dict, goal_dict, n, "actor")
        values, best = self.get_state_action_value(*candidates).view(-1, n).max(1, keepdim=True)
        return _pick(candidates.actions, best, n), values


def _pick(x: Tensor, index: Tensor, n: int) -> Tensor:
    """Takes from each n rows of `[B * n, D]` the one that `[B, 1]` says: `[B, D]`."""
    return x.view(len(index), n, -1).take_along_dim(index.unsqueeze(-1), dim=1).squeeze(1)


class BCQ_GMM(BCQ):
    """BCQ whose generative model is a mixture of Gaussians.

    In validation its likelihood uses the learned standard deviation. There robomimic uses the
    standard deviation of acting with `low_noise_eval`, 0.0001.
    """

    def _make_action_sampler(self, **args: Any) -> nn.Module:
        config = self.algo_config.action_sampler
        return GMMActorNetwork(
            mlp_layer_dims=config.actor_layer_dims, **gmm_args_from_config(config.gmm), **args
        )

    def compute_action_sampler_losses(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Returns `loss`, the mean of -log G(a | s)."""
        sampler = cast("GMMActorNetwork", self.nets["action_sampler"])
        dist = sampler.forward_train(batch["obs"], batch["goal_obs"])
        return {"loss": -dist.log_prob(batch["actions"]).mean()}


class BCQ_Distributional(BCQ):
    """BCQ with one critic, which predicts the distribution of returns over fixed atoms.

    C51: Bellemare, Dabney & Munos, "A Distributional Perspective on Reinforcement Learning" (2017),
    https://arxiv.org/abs/1707.06887, algorithm 1.
    """

    def _critic_count(self) -> int:
        return 1

    def _make_critic(self, **args: Any) -> nn.Module:
        num_atoms = self.algo_config.critic.distributional.num_atoms
        return DistributionalActionValueNetwork(num_atoms=num_atoms, **args)

    @torch.no_grad()
    def compute_td_target(self, batch: Batch) -> Tensor:
        """Probabilities `[B, N]` of the atoms: Φ(r + discount (1 - done) Z'(s', a*)) (eq. 7).

        a* is the candidate with the largest expected return. By default returns are cut off at
        the second lowest atom, as robomimic has it (`loss_utils.project_values_onto_atoms`
        takes it for the highest); `distributional.clip_to_second_atom=false` is C51.
        """
        config = self.algo_config.critic
        n = config.num_action_samples
        candidates = self.propose(batch["next_obs"], batch["goal_obs"], n, "actor_target")
        dist = self._predict_returns("critic_target", *candidates)
        best = dist.mean().view(-1, n).argmax(dim=1, keepdim=True)
        atoms = dist.values
        returns = td_target(batch["rewards"], batch["dones"], atoms, self.discount)
        if config.distributional.clip_to_second_atom:
            returns = returns.clamp(max=atoms[1])
        return project_onto_atoms(returns, _pick(dist.probs, best, n), atoms)

    def compute_critic_losses(self, batch: Batch, target: Tensor) -> list[Tensor]:
        """Returns the divergence (0-d) of Z(s, a) from target probabilities `[B, N]`."""
        dist = self._predict_returns("critic", batch["obs"], batch["actions"], batch["goal_obs"])
        return [categorical_loss(dist.logits, target)]

    def _predict_returns(
        self, name: str, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None
    ) -> DiscreteValueDistribution:
        """Returns Z(s, a) of the `critic` or the `critic_target`."""
        critic = cast("DistributionalActionValueNetwork", self._critics(name)[0])
        return critic.forward_train(obs_dict, actions, goal_dict)


class BCQ_GMM_Distributional(BCQ_GMM, BCQ_Distributional):
    """Both: a mixture proposes, and the critic predicts distributions.

    (robomimic takes the VAE here even with `action_sampler.gmm.enabled`.)
    """
