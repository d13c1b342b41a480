"""Behavioural cloning: supervised learning of the demonstrated actions.

All variants make the demonstrated actions likely under the policy. The policy is deterministic,
Gaussian, a mixture of Gaussians or a VAE; it may have a memory (an RNN) or see the last
observations at once (a transformer).

Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation" (2021), https://arxiv.org/abs/2108.03298; after `robomimic/algo/bc.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.algo.algo import Algo, ObsDict, PolicyAlgo, register_algo_factory_func
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.algo.losses import cosine_loss
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.data.reads import Reads, Window
from raymimic.errors import ConfigError
from raymimic.models.base_nets import RNNState, rnn_args_from_config
from raymimic.models.obs_coders import obs_encoder_args_from_config
from raymimic.models.policy_nets import (
    ActorNetwork,
    GaussianActorNetwork,
    GMMActorNetwork,
    RNNActorNetwork,
    RNNGMMActorNetwork,
    gaussian_args_from_config,
    gmm_args_from_config,
)
from raymimic.models.transformers import (
    TransformerActorNetwork,
    TransformerGMMActorNetwork,
    transformer_args_from_config,
)
from raymimic.models.vae_nets import VAEActor, gumbel_temperature, vae_args_from_config
from raymimic.tensors import map_tensor


@register_algo_factory_func("bc")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the variant of BC: by the distribution of actions, and by the policy's inputs.

    Raises:
        ConfigError: for a combination that there is no policy of.
    """

    def enabled(*names: str) -> str | None:
        return next((n for n in names if n in algo_config and algo_config[n].enabled), None)

    actions, memory = enabled("gaussian", "gmm", "vae"), enabled("rnn", "transformer")
    variants: dict[tuple[str | None, str | None], type[BC]] = {
        (None, None): BC,
        ("gaussian", None): BC_Gaussian,
        ("gmm", None): BC_GMM,
        ("vae", None): BC_VAE,
        (None, "rnn"): BC_RNN,
        ("gmm", "rnn"): BC_RNN_GMM,
        (None, "transformer"): BC_Transformer,
        ("gmm", "transformer"): BC_Transformer_GMM,
    }
    if (actions, memory) not in variants:
        raise ConfigError(
            f"algo.{actions}.enabled and algo.{memory}.enabled: there is no such policy, as there "
            f"is none in robomimic; algo.gmm goes with algo.{memory}"
        )
    return variants[actions, memory], {}


class BC(PolicyAlgo):
    """Behavioural cloning of a deterministic policy.

    Minimises a weighted sum of the squared error, the Huber loss ("L1") and the cosine loss of
    the first three action dimensions, an end effector's displacement.
    """

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """One step's observation and action."""
        return Reads(obs=Window(0, 1), actions=Window(0, 1))

    def _create_networks(self) -> None:
        self.nets["policy"] = self._create_policy(
            obs_shapes=self.obs_shapes,
            goal_shapes=self.goal_shapes,
            ac_dim=self.ac_dim,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )

    @property
    def _policy(self) -> Any:
        """The policy's network, of whichever class this variant has."""
        return self.nets["policy"]

    def _create_policy(self, **args: Any) -> nn.Module:
        """Makes the policy's network, of which the arguments are common to all variants."""
        return ActorNetwork(mlp_layer_dims=self.algo_config.actor_layer_dims, **args)

    def updates(self) -> Sequence[Update]:
        """Steps the policy."""
        return (Update((Learner("policy", "policy_grad_norms"),), self._losses),)

    def _losses(self, batch: Batch, epoch: int) -> Losses:
        losses = self.compute_losses(batch)
        return Losses({"policy": losses["loss"]}, losses)

    def compute_losses(self, batch: Batch) -> dict[str, Any]:
        """Compares the policy's actions with the demonstrated ones.

        Returns:
            `loss`, which is minimised, and its parts.
        """
        weights = self.algo_config.loss
        actions, targets = self._predict(batch["obs"], batch["goal_obs"]), batch["actions"]
        l2 = F.mse_loss(actions, targets)
        l1 = F.smooth_l1_loss(actions, targets)
        cosine = cosine_loss(actions[..., :3], targets[..., :3])
        loss = weights.l2_weight * l2 + weights.l1_weight * l1 + weights.cos_weight * cosine
        return {"loss": loss, "l2_loss": l2, "l1_loss": l1, "cosine_loss": cosine}

    def _predict(self, obs_dict: ObsDict, goal_dict: ObsDict | None) -> Tensor:
        """Returns the policy's actions, shaped like the demonstrated ones."""
        actions: Tensor = self._policy(obs_dict, goal_dict)
        return actions

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns the policy's actions `[B, A]`, drawn if it is stochastic."""
        action: Tensor = self._policy(obs_dict, goal_dict)
        return action


class BC_Gaussian(BC):
    """Behavioural cloning of a Gaussian policy: maximises the log-likelihood.

    The log-likelihood uses the learned standard deviation, in validation too. There robomimic uses
    the standard deviation of acting with `low_noise_eval`, 0.0001.
    """

    def _create_policy(self, **args: Any) -> nn.Module:
        return GaussianActorNetwork(
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            **gaussian_args_from_config(self.algo_config.gaussian),
            **args,
        )

    def compute_losses(self, batch: Batch) -> dict[str, Any]:
        """Returns `loss`, the mean of -log π(a | s), and its opposite."""
        log_likelihood = self._log_prob(batch).mean()
        return {"loss": -log_likelihood, "log_likelihood": log_likelihood}

    def _log_prob(self, batch: Batch) -> Tensor:
        """Returns log π(a | s) of the demonstrated actions, one for each."""
        dist = self._policy.forward_train(batch["obs"], batch["goal_obs"])
        log_prob: Tensor = dist.log_prob(batch["actions"])
        return log_prob


class BC_GMM(BC_Gaussian):
    """Behavioural cloning of a policy that is a mixture of Gaussians."""

    def _create_policy(self, **args: Any) -> nn.Module:
        return GMMActorNetwork(
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            **gmm_args_from_config(self.algo_config.gmm),
            **args,
        )


class BC_VAE(BC):
    """Behavioural cloning of a conditional VAE: maximises a bound of the log-likelihood.

    Kingma & Welling, "Auto-Encoding Variational Bayes" (2013), equation 3, with the second term
    weighted (a β-VAE).
    """

    def _create_policy(self, **args: Any) -> nn.Module:
        return VAEActor(**vae_args_from_config(self.algo_config.vae), **args)

    def _losses(self, batch: Batch, epoch: int) -> Losses:
        """Computes the losses; a categorical latent's temperature falls by the epoch."""
        prior = self.algo_config.vae.prior
        if prior.use_categorical:
            self._policy.set_gumbel_temperature(gumbel_temperature(prior, epoch))
        return super()._losses(batch, epoch)

    def compute_losses(self, batch: Batch) -> dict[str, Any]:
        """Returns `loss`, -log p(a | z, s) + β KL(q(z | a, s) || p(z | s)), and its parts."""
        output = self._policy.forward_train(batch["actions"], batch["obs"], batch["goal_obs"])
        reconstruction, kl = output["reconstruction_loss"], output["kl_loss"]
        losses = {
            "loss": reconstruction + self.algo_config.vae.kl_weight * kl,
            "reconstruction_loss": reconstruction,
            "KL_loss": kl,
        }
        if self.algo_config.vae.prior.use_categorical:
            losses["gumbel_temperature"] = self._policy.get_gumbel_temperature()
        else:
            losses["encoder_variance"] = output["encoder_params"]["logvar"].detach().exp()
        return losses


@dataclass
class _Memory:
    """A recurrent policy's memory of each episode of a batch.

    Attributes:
        step: `[B]`, steps since the hidden state was last cleared; 0: to be cleared.
        state: the hidden state `[L, B, H]`, of an LSTM two of them.
        obs: observations `{key: [B, *shape]}` of step 0, of an open-loop policy.
    """

    step: Tensor
    state: RNNState
    obs: dict[str, Tensor]


class BC_RNN(BC):
    """Behavioural cloning of a recurrent policy.

    It learns from sequences of `rnn.horizon` steps, and resets its memory after as many steps when
    it acts. An open-loop policy sees only the first observation of these steps. Each episode of a
    batch counts its own steps.
    """

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """Sequences; of an open-loop policy's observations the first."""
        sequence = Window(0, config.train.seq_length)
        obs = Window(0, 1) if config.algo.rnn.open_loop else sequence
        return Reads(obs=obs, actions=sequence)

    def _create_networks(self) -> None:
        super()._create_networks()
        self._memory: _Memory | None = None

    def _create_policy(self, **args: Any) -> nn.Module:
        return RNNActorNetwork(
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            **rnn_args_from_config(self.algo_config.rnn),
            **args,
        )

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes whole sequences: `{key: [B, T, *shape]}` and actions `[B, T, A]`.

        Of an open-loop policy every observation of a sequence is the first.

        Raises:
            ConfigError: if observations are stacked.
        """
        self._refuse_stacks(batch)
        obs = batch["obs"]
        if self.algo_config.rnn.open_loop:
            obs = {k: x[:, :1] for k, x in obs.items()}
        actions = self._cast(batch["actions"])
        size = actions.shape[:2]
        return {
            "obs": {k: self._cast(x).expand(*size, *x.shape[2:]) for k, x in obs.items()},
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
            "actions": actions,
        }

    def reset(self, mask: Tensor | None = None) -> None:
        """Forgets the episode; those of a mask `[B]` at their next action."""
        if mask is None:
            self._memory = None
        elif self._memory is not None:
            self._memory.step.masked_fill_(mask.to(self.device), 0)

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns actions `[B, A]` for the next step of each episode.

        Raises:
            RuntimeError: if there are more or fewer episodes than at the step before.
        """
        memory = self._recall(obs_dict)
        rnn = self.algo_config.rnn
        begins = memory.step == 0
        state = map_tensor(memory.state, lambda x: x.masked_fill(begins[:, None], 0.0))
        if rnn.open_loop:
            obs_dict = memory.obs = {
                k: torch.where(begins.view(-1, *(1,) * (x.dim() - 1)), obs_dict[k], x)
                for k, x in memory.obs.items()
            }
        action: Tensor
        action, memory.state = self._policy.forward_step(obs_dict, goal_dict, state)
        memory.step = (memory.step + 1) % rnn.horizon
        return action

    def _recall(self, obs_dict: ObsDict) -> _Memory:
        """Returns the memory of the episodes, an empty one at first."""
        size = len(next(iter(obs_dict.values())))
        if self._memory is None:
            self._memory = _Memory(
                step=torch.zeros(size, dtype=torch.long, device=self.device),
                state=self._policy.get_rnn_init_state(size, self.device),
                obs={k: obs_dict[k] for k in self.obs_shapes},
            )
        self._check_episodes(len(self._memory.step), size)
        return self._memory


class BC_RNN_GMM(BC_RNN, BC_GMM):
    """Behavioural cloning of a recurrent policy that is a mixture of Gaussians at each step."""

    def _create_policy(self, **args: Any) -> nn.Module:
        return RNNGMMActorNetwork(
            mlp_layer_dims=self.algo_config.actor_layer_dims,
            **rnn_args_from_config(self.algo_config.rnn),
            **gmm_args_from_config(self.algo_config.gmm),
            **args,
        )


class BC_Transformer(BC):
    """Behavioural cloning of a transformer that sees the last `context_length` observations.

    It predicts an action at each of these steps, and executes the last one. The loss covers the
    last one, or all of them (`supervise_all_steps`). With `pred_future_acs` it predicts the current
    action and future ones instead, and executes the first one.
    """

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """A stack of observations, and the actions to predict."""
        return cls._windows(config.algo.transformer, 1 - config.train.frame_stack)

    @staticmethod
    def _windows(config: Config, first: int) -> Reads:
        """Windows of a stack that begins at step `first`."""
        length = config.context_length
        now = first + length - 1  # the last of the stack
        actions = Window(now, now + 1)
        if config.supervise_all_steps:
            start = now if config.pred_future_acs else first
            actions = Window(start, start + length)
        return Reads(obs=Window(first, first + length), actions=actions)

    def _create_policy(self, **args: Any) -> nn.Module:
        return TransformerActorNetwork(
            **transformer_args_from_config(self.algo_config.transformer), **args
        )

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes stacks of observations `{key: [B, T, *shape]}` and the actions to predict.

        Those are `[B, A]`, or `[B, T, A]` where all steps are supervised.

        Raises:
            ConfigError: if the batch's sequences are too short.
        """
        config = self.algo_config.transformer
        length, first = config.context_length, 1 - self.global_config.train.frame_stack
        windows = self._windows(config, first)
        assert windows.actions is not None
        available = batch["actions"].shape[1]
        needed = windows.actions.stop - first
        if available < needed and available != len(windows.actions):
            raise ConfigError(
                f"the transformer needs sequences of {needed} steps but there are {available}: "
                f"set train.frame_stack={length} and train.seq_length={needed - length + 1}"
            )
        batch = self._cut(batch, windows)
        actions = batch["actions"] if config.supervise_all_steps else batch["actions"][:, 0]
        return {
            "obs": map_tensor(batch["obs"], self._cast),
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
            "actions": self._cast(actions),
        }

    def _predict(self, obs_dict: ObsDict, goal_dict: ObsDict | None) -> Tensor:
        actions = super()._predict(obs_dict, goal_dict)
        return actions if self.algo_config.transformer.supervise_all_steps else actions[:, -1]

    def get_action(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Returns actions `[B, A]` for stacks of observations `{key: [B, T, *shape]}`."""
        actions = super().get_action(obs_dict, goal_dict)
        return actions[:, 0 if self.algo_config.transformer.pred_future_acs else -1]


class BC_Transformer_GMM(BC_Transformer, BC_GMM):
    """Behavioural cloning of a transformer policy that is a mixture of Gaussians at each step."""

    def _create_policy(self, **args: Any) -> nn.Module:
        return TransformerGMMActorNetwork(
            **transformer_args_from_config(self.algo_config.transformer),
            **gmm_args_from_config(self.algo_config.gmm),
            **args,
        )

    def _log_prob(self, batch: Batch) -> Tensor:
        dist = self._policy.forward_train(
            batch["obs"],
            batch["goal_obs"],
            last_only=not self.algo_config.transformer.supervise_all_steps,
        )
        log_prob: Tensor = dist.log_prob(batch["actions"])
        return log_prob
