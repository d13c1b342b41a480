"""Goal learning: predicts the observation some steps ahead, a subgoal, for a hierarchy's planner.

As in IRIS (Mandlekar et al. 2020, https://arxiv.org/abs/1911.05321), which samples subgoals from
a conditional VAE and chooses the one of highest value; after `robomimic/algo/gl.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from raymimic.algo.algo import (
    Algo,
    ObsDict,
    PlannerAlgo,
    ValueAlgo,
    register_algo_factory_func,
)
from raymimic.algo.composite import CompositeAlgo, reads_of_part
from raymimic.algo.learning import Batch, Learner, Losses, Update
from raymimic.config.base_config import BaseConfig
from raymimic.config.config import Config
from raymimic.config.hbc_config import LATENT_SUBGOAL
from raymimic.data.reads import Reads, Window
from raymimic.errors import ConfigError
from raymimic.models.obs_coders import obs_encoder_args_from_config
from raymimic.models.obs_nets import MIMO_MLP, obs_and_goal_groups
from raymimic.models.vae_nets import VAE, gumbel_temperature, vae_args_from_config
from raymimic.tensors import map_tensor, repeat_rows


@register_algo_factory_func("gl")
def algo_config_to_class(algo_config: Config) -> tuple[type[Algo], dict[str, Any]]:
    """Chooses the class: one subgoal, or a distribution of them."""
    return (GL_VAE if algo_config.vae.enabled else GL), {}


class GL(PlannerAlgo):
    """Predicts one subgoal for each state: regresses the observation `subgoal_horizon` ahead.

    With normalised observations subgoals are normalised too. robomimic does not normalise them, so
    its actors see normalised subgoals in training and raw ones when they act.
    """

    @classmethod
    def reads(cls, config: BaseConfig) -> Reads:
        """The present observation, and the one that is its subgoal."""
        return cls._windows(config.algo.subgoal_horizon)

    @staticmethod
    def _windows(horizon: int) -> Reads:
        return Reads(obs=Window(0, 1), next_obs=Window(horizon - 1, horizon))

    def _create_networks(self) -> None:
        self.nets["goal_network"] = MIMO_MLP(
            input_obs_group_shapes=obs_and_goal_groups(self.obs_shapes, self.goal_shapes),
            output_shapes=self.subgoal_shapes,
            layer_dims=self.algo_config.ae.planner_layer_dims,
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )

    def process_batch_for_training(self, batch: Batch) -> Batch:
        """Takes the first observation of each sequence, and the one that is its subgoal.

        Args:
            batch: as `Algo.process_batch_for_training` takes it.

        Returns:
            On the algorithm's device, in its dtype: `obs` and `target_subgoals`
            `{key: [B, *shape]}`, and `goal_obs`, None if there is no goal.

        Raises:
            ConfigError: if the subgoal lies beyond the batch's sequences, or observations are
                stacked.
        """
        self._refuse_stacks(batch)
        horizon = self.algo_config.subgoal_horizon
        batch = self._cut(batch, self._windows(horizon))
        if not all(x.shape[1] for x in batch["next_obs"].values()):
            raise ConfigError(
                f"subgoal_horizon={horizon} needs sequences as long: set train.seq_length={horizon}"
                f" (it is {self.global_config.train.seq_length})"
            )
        return {
            "obs": {k: self._cast(batch["obs"][k][:, 0]) for k in self.obs_shapes},
            "target_subgoals": {
                k: self._cast(batch["next_obs"][k][:, 0]) for k in self.subgoal_shapes
            },
            "goal_obs": map_tensor(batch.get("goal_obs"), self._cast),
        }

    def postprocess_batch_for_training(
        self, batch: Batch, obs_normalization_stats: Mapping[str, Mapping[str, Any]] | None
    ) -> Batch:
        """Prepares the subgoals too."""
        prepared = super().postprocess_batch_for_training(batch, obs_normalization_stats)
        prepared["target_subgoals"] = self._prepare_obs(
            batch["target_subgoals"], self.subgoal_shapes, obs_normalization_stats
        )
        return prepared

    def get_actor_goal_for_training_from_processed_batch(
        self, processed_batch: Batch, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Returns the subgoals `{key: [B, *shape]}` that an actor is trained towards.

        Args:
            processed_batch: as `process_batch_for_training` returned it.
            kwargs: ways to choose them, of which this class has one.
        """
        subgoals: dict[str, Tensor] = processed_batch["target_subgoals"]
        return subgoals

    def updates(self) -> Sequence[Update]:
        """Steps the network that predicts subgoals."""
        return (Update((Learner("goal_network", "goal_grad_norms"),), self._losses),)

    def _losses(self, batch: Batch, epoch: int) -> Losses:
        losses = self.compute_losses(batch, epoch)
        return Losses({"goal_network": losses["goal_loss"]}, losses)

    def compute_losses(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Squared errors (0-d) of the predicted subgoals, for each key and their sum."""
        predictions = self.get_subgoal_predictions(batch["obs"], batch["goal_obs"])
        targets = batch["target_subgoals"]
        errors = {k: F.mse_loss(x, targets[k]) for k, x in predictions.items()}
        losses = {f"goal_{key}_loss": error for key, error in errors.items()}
        return {**losses, "goal_loss": torch.stack(list(errors.values())).sum()}

    # Entries of `info` are logged under these names; losses under their own too.
    _LOG_NAMES: ClassVar[Mapping[str, str]] = {
        "goal_loss": "loss",
        "goal_grad_norms": "grad_norms",
        "recons_loss": "reconstruction_loss",
        "kl_loss": "KL_loss",
        "encoder_variance": "encoder_variance",
        "gumbel_temperature": "gumbel_temperature",
    }

    def log_info(self, info: Mapping[str, Any]) -> dict[str, Tensor | float]:
        """Turns the result of `train_on_batch` into metrics, under robomimic's names."""
        named = {self._LOG_NAMES[key]: x for key, x in info.items() if key in self._LOG_NAMES}
        losses = {key: x.detach() for key, x in info.items() if key.endswith("_loss")}
        return {**super().log_info(named), **losses}

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Predicts one subgoal `{key: [B, *shape]}` for each state."""
        subgoals: dict[str, Tensor] = self.nets["goal_network"](obs=obs_dict, goal=goal_dict)
        return subgoals

    def sample_subgoals(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Returns the same subgoal `{key: [B, num_samples, *shape]}` in place of each sample."""
        subgoals = self.get_subgoal_predictions(obs_dict, goal_dict)
        return {
            k: x.unsqueeze(1).expand(-1, num_samples, *x.shape[1:]) for k, x in subgoals.items()
        }


class GL_VAE(GL):
    """Samples subgoals from a VAE that is conditioned on the state.

    Minimises reconstruction error + β KL (`kl_weight`), a bound of the negative log-likelihood.
    """

    def _create_networks(self) -> None:
        self.nets["goal_network"] = VAE(
            input_shapes=self.subgoal_shapes,
            output_shapes=self.subgoal_shapes,
            condition_shapes=self.obs_shapes,
            goal_shapes=self.goal_shapes,
            **vae_args_from_config(self.algo_config.vae),
            **obs_encoder_args_from_config(self.obs_config.encoder),
        )

    @property
    def _vae(self) -> VAE:
        return cast("VAE", self.nets["goal_network"])

    def compute_losses(self, batch: Batch, epoch: int) -> dict[str, Any]:
        """Returns the terms (0-d) of the loss, and the posterior's statistics."""
        config = self.algo_config.vae
        if config.prior.use_categorical:
            self._vae.set_gumbel_temperature(gumbel_temperature(config.prior, epoch))
        target = batch["target_subgoals"]
        output = self._vae(target, target, batch["obs"], batch["goal_obs"])
        info = {
            "recons_loss": output["reconstruction_loss"],
            "kl_loss": output["kl_loss"],
            "goal_loss": output["reconstruction_loss"] + config.kl_weight * output["kl_loss"],
        }
        if config.prior.use_categorical:
            info["gumbel_temperature"] = self._vae.get_gumbel_temperature()
        else:
            info["encoder_variance"] = output["encoder_params"]["logvar"].detach().exp()
        return info

    @torch.no_grad()
    def get_actor_goal_for_training_from_processed_batch(
        self,
        processed_batch: Batch,
        use_latent_subgoals: bool = False,
        use_prior_correction: bool = False,
        num_prior_samples: int = 100,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Returns the subgoals that an actor is trained towards.

        Args:
            processed_batch: its observations are prepared, if latents are asked for.
            use_latent_subgoals: return latents `[B, Z]` that the encoder makes of the subgoals.
            use_prior_correction: return, of samples of the prior, the nearest to that latent, as
                the actor meets the prior's when it acts.
            num_prior_samples: how many samples.
            kwargs: not looked at.
        """
        if not use_latent_subgoals:
            return super().get_actor_goal_for_training_from_processed_batch(processed_batch)
        obs, goal = processed_batch["obs"], processed_batch["goal_obs"]
        vae = self._vae
        z = vae.prior.sample_posterior(vae.encode(processed_batch["target_subgoals"], obs, goal))
        if use_prior_correction:
            samples = vae.sample_prior(obs, goal, num_prior_samples)
            samples = samples.view(len(z), -1, z.shape[1])
            nearest = (samples - z[:, None]).square().sum(dim=-1).argmin(dim=1)
            z = samples[torch.arange(len(z), device=z.device), nearest]
        return {LATENT_SUBGOAL: z}

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Samples one subgoal `{key: [B, *shape]}` for each state."""
        return self._vae.decode(obs_dict, goal_dict)

    def sample_subgoals(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Samples subgoals `{key: [B, num_samples, *shape]}` for each state."""
        subgoals = self._vae.sample(obs_dict, goal_dict, num_samples)
        return {k: x.view(-1, num_samples, *x.shape[1:]) for k, x in subgoals.items()}


class ValuePlanner(CompositeAlgo, PlannerAlgo, ValueAlgo):
    """Chooses the subgoal of highest value among several that a planner samples.

    Attributes:
        planner: goal learning (`gl`), which samples subgoals.
        value_net: batch-constrained Q-learning (`bcq`), whose V(subgoal) ranks them.

    Args:
        planner_algo_class: class of the planner; None: that of its algorithm.
        value_algo_class: class of the value network; None: that of its algorithm.
        args: see `Algo`.
        kwargs: see `Algo`.
    """

    log_names: ClassVar[Mapping[str, str]] = {"planner": "Planner", "value_net": "ValueNetwork"}

    @classmethod
    def part_reads(cls, config: BaseConfig) -> dict[str, Reads]:
        """Reads the steps of the planner and of the value network."""
        return {
            "planner": reads_of_part("gl", config, config.algo.planner),
            "value_net": reads_of_part("bcq", config, config.algo.value),
        }

    def __init__(
        self,
        *args: Any,
        planner_algo_class: type[Algo] | None = None,
        value_algo_class: type[Algo] | None = None,
        **kwargs: Any,
    ) -> None:
        self._classes = planner_algo_class, value_algo_class
        super().__init__(*args, **kwargs)

    def _create_networks(self) -> None:
        config, obs_config = self.algo_config, self.obs_config
        planner, value = self._classes
        self.planner = cast(
            "GL", self._make_part("gl", config.planner, obs_config.planner, algo_class=planner)
        )
        self.value_net = cast(
            "ValueAlgo", self._make_part("bcq", config.value, obs_config.value, algo_class=value)
        )
        unknown = [key for key in self.value_net.obs_shapes if key not in self.subgoal_shapes]
        if unknown:
            raise ConfigError(
                f"subgoals have no {', '.join(unknown)}, which their value depends on: add to "
                "observation.value_planner.planner.modalities.subgoal, or remove from "
                "observation.value_planner.value.modalities.obs"
            )

    def get_subgoal_predictions(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Chooses one subgoal `{key: [B, *shape]}`, of `num_samples`, for each state."""
        num_samples = self.algo_config.num_samples
        subgoals = self.sample_subgoals(obs_dict, goal_dict, num_samples)
        values = self.value_net.get_state_value(
            {k: x.flatten(0, 1) for k, x in subgoals.items()},
            repeat_rows(goal_dict, num_samples),
        )
        best = values.view(-1, num_samples).argmax(dim=1)
        rows = torch.arange(len(best), device=best.device)
        return {k: x[rows, best] for k, x in subgoals.items()}

    def sample_subgoals(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Samples subgoals `{key: [B, num_samples, *shape]}` for each state."""
        return self.planner.sample_subgoals(obs_dict, goal_dict, num_samples)

    @property
    def discount(self) -> float:
        """Discount of the value after the (n-step) reward, the value network's."""
        return self.value_net.discount

    @discount.setter
    def discount(self, value: float) -> None:
        self.value_net.discount = value

    def get_state_value(self, obs_dict: ObsDict, goal_dict: ObsDict | None = None) -> Tensor:
        """Estimates the values `[B, 1]` of states `{key: [B, *shape]}`."""
        return self.value_net.get_state_value(obs_dict, goal_dict)

    def get_state_action_value(
        self, obs_dict: ObsDict, actions: Tensor, goal_dict: ObsDict | None = None
    ) -> Tensor:
        """Estimates the values `[B, 1]` of actions `[B, A]` in states."""
        return self.value_net.get_state_action_value(obs_dict, actions, goal_dict)
