"""Variational autoencoders, p(x | s), with several priors; after `robomimic/models/vae_nets.py`.

Kingma & Welling, "Auto-Encoding Variational Bayes" (2014), https://arxiv.org/abs/1312.6114;
Sohn et al., "Learning Structured Output Representation using Deep Conditional Generative Models"
(2015), for conditional ones. Priors are in `raymimic.models.vae_priors`.
"""

from collections.abc import Collection, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor, nn

from raymimic.config.config import Config
from raymimic.errors import ConfigError
from raymimic.models import vae_losses
from raymimic.models.obs_coders import EncoderKwargs, ObsDict
from raymimic.models.obs_nets import MIMO_MLP, obs_and_goal_groups
from raymimic.models.vae_priors import (
    CategoricalPrior,
    GaussianPrior,
    GMMPrior,
    Prior,
    Shapes,
    StandardNormalPrior,
)
from raymimic.observations.shapes import ObsShapes


class VAEOutput(TypedDict):
    """Outcome of a forward pass for training.

    Attributes:
        encoder_params: parameters of the posterior, `{name: [B, ...]}`.
        encoder_z: latents `[B, latent_size]`, drawn from it.
        decoder_outputs: reconstructions `{key: [B, *shape]}`.
        kl_loss: KL of the posterior from the prior, averaged over the batch (0-d).
        reconstruction_loss: squared error of the reconstructions (0-d).
    """

    encoder_params: dict[str, Tensor]
    encoder_z: Tensor
    decoder_outputs: dict[str, Tensor]
    kl_loss: Tensor
    reconstruction_loss: Tensor


def vae_args_from_config(vae_config: Config) -> dict[str, Any]:
    """Returns a config's section `vae` as keyword arguments of `VAE`."""
    decoder, prior = vae_config.decoder, vae_config.prior
    return {
        "encoder_layer_dims": vae_config.encoder_layer_dims,
        "decoder_layer_dims": vae_config.decoder_layer_dims,
        "latent_dim": vae_config.latent_dim,
        "latent_clip": vae_config.latent_clip,
        "decoder_is_conditioned": decoder.is_conditioned,
        "decoder_reconstruction_sum_across_elements": decoder.reconstruction_sum_across_elements,
        "prior_learn": prior.learn,
        "prior_is_conditioned": prior.is_conditioned,
        "prior_layer_dims": vae_config.prior_layer_dims,
        "prior_use_gmm": prior.use_gmm,
        "prior_gmm_num_modes": prior.gmm_num_modes,
        "prior_gmm_learn_weights": prior.gmm_learn_weights,
        "prior_use_categorical": prior.use_categorical,
        "prior_categorical_dim": prior.categorical_dim,
        "prior_categorical_gumbel_softmax_hard": prior.categorical_gumbel_softmax_hard,
    }


def gumbel_temperature(prior_config: Config, epoch: int) -> float:
    """Temperature of a categorical prior's Gumbel softmax in an epoch: falls on a line.

    Args:
        prior_config: a config's section `vae.prior`.
        epoch: number of the epoch.
    """
    temperature = prior_config.categorical_init_temp - epoch * (
        prior_config.categorical_temp_anneal_step
    )
    return float(max(temperature, prior_config.categorical_min_temp))


class VAE(nn.Module):
    """A conditional variational autoencoder, p(x | s) = ∫ p(x | z, s) p(z | s) dz.

    x and s are dicts of observations (or of other tensors). The encoder always sees s; the
    arguments say whether decoder and prior see it, and at least one of them must. robomimic
    conditions the decoder whatever `decoder_is_conditioned` says; here the argument has an effect.

    Args:
        input_shapes: shapes of x, as the encoder sees it.
        output_shapes: shapes of the reconstructed values.
        encoder_layer_dims: hidden layers of the encoder.
        decoder_layer_dims: hidden layers of the decoder.
        latent_dim: length of the latent; number of variables of a categorical one.
        device: where the networks live; None: where torch makes them.
        condition_shapes: shapes of s, of which there must be some.
        decoder_is_conditioned: let the decoder see s.
        decoder_reconstruction_sum_across_elements: add the errors of elements, instead of
            averaging them.
        latent_clip: largest absolute value of Gaussian latents drawn from the prior; None:
            unlimited.
        output_squash: outputs that a tanh keeps in [-1, 1].
        prior_learn: learn the prior; else it is N(0, 1), or uniform if categorical.
        prior_is_conditioned: let the prior depend on s.
        prior_layer_dims: hidden layers of a conditioned prior.
        prior_use_gmm: make it a Gaussian mixture.
        prior_gmm_num_modes: Gaussians in the mixture.
        prior_gmm_learn_weights: learn the weights of the mixture.
        prior_use_categorical: make the latent categorical.
        prior_categorical_dim: classes of each variable.
        prior_categorical_gumbel_softmax_hard: let the posterior's samples be one-hot.
        goal_shapes: shapes of a goal, which goes wherever s goes; None or empty: no goal.
        encoder_kwargs: see `ObservationEncoder`.

    Raises:
        ConfigError: if the settings contradict each other.
    """

    def __init__(
        self,
        input_shapes: Shapes,
        output_shapes: Shapes,
        encoder_layer_dims: Sequence[int],
        decoder_layer_dims: Sequence[int],
        latent_dim: int,
        device: torch.device | str | None = None,
        condition_shapes: Shapes | None = None,
        decoder_is_conditioned: bool = True,
        decoder_reconstruction_sum_across_elements: bool = False,
        latent_clip: float | None = None,
        output_squash: Collection[str] = (),
        prior_learn: bool = False,
        prior_is_conditioned: bool = False,
        prior_layer_dims: Sequence[int] = (),
        prior_use_gmm: bool = False,
        prior_gmm_num_modes: int = 10,
        prior_gmm_learn_weights: bool = False,
        prior_use_categorical: bool = False,
        prior_categorical_dim: int = 10,
        prior_categorical_gumbel_softmax_hard: bool = False,
        goal_shapes: Shapes | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__()
        if not condition_shapes:
            raise ConfigError("a VAE takes observations that condition it: give condition_shapes")
        if not (decoder_is_conditioned or prior_is_conditioned):
            raise ConfigError(
                "a VAE that nothing conditions on the observation: set "
                "vae.decoder.is_conditioned or vae.prior.is_conditioned to true"
            )
        if not prior_learn and (prior_is_conditioned or prior_use_gmm):
            key = "is_conditioned" if prior_is_conditioned else "use_gmm"
            raise ConfigError(
                f"vae.prior.{key} needs a prior that is learned: set vae.prior.learn to true"
            )
        if prior_use_gmm and prior_use_categorical:
            raise ConfigError(
                "vae.prior.use_gmm and vae.prior.use_categorical exclude each other: set one of "
                "them to false"
            )
        self.output_squash = frozenset(output_squash)
        self.sum_elements = decoder_reconstruction_sum_across_elements

        prior_args = {
            "condition_groups": obs_and_goal_groups(condition_shapes, goal_shapes)
            if prior_is_conditioned
            else None,
            "layer_dims": prior_layer_dims,
            "encoder_kwargs": encoder_kwargs,
        }
        prior: Prior
        if prior_use_categorical:
            prior = CategoricalPrior(
                latent_dim,
                prior_categorical_dim,
                learn=prior_learn,
                hard=prior_categorical_gumbel_softmax_hard,
                **prior_args,
            )
        elif prior_use_gmm:
            prior = GMMPrior(
                latent_dim, prior_gmm_num_modes, prior_gmm_learn_weights, latent_clip, **prior_args
            )
        elif prior_learn:
            prior = GaussianPrior(latent_dim, latent_clip, **prior_args)
        else:
            prior = StandardNormalPrior(latent_dim, latent_clip)

        condition = {"condition": ObsShapes(condition_shapes)}
        if goal_shapes:
            condition["goal"] = ObsShapes(goal_shapes)
        latent = {"input": ObsShapes({"latent": (prior.latent_size,)})}
        self.nets = nn.ModuleDict()
        self.nets["encoder"] = MIMO_MLP(
            {"input": ObsShapes(input_shapes), **condition},
            prior.posterior_shapes,
            encoder_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )
        self.nets["decoder"] = MIMO_MLP(
            {**latent, **condition} if decoder_is_conditioned else latent,
            output_shapes,
            decoder_layer_dims,
            encoder_kwargs=encoder_kwargs,
        )
        self.nets["prior"] = prior
        if device is not None:
            self.to(device)

    @property
    def prior(self) -> Prior:
        """The prior, which also knows the family of the posterior."""
        prior = self.nets["prior"]
        assert isinstance(prior, Prior)
        return prior

    @property
    def latent_size(self) -> int:
        """Length of a latent, as the decoder sees it."""
        return self.prior.latent_size

    def encode(
        self, inputs: ObsDict, conditions: ObsDict, goals: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Returns the parameters `{name: [B, ...]}` of the posterior q(z | x, s)."""
        posterior: dict[str, Tensor] = self.nets["encoder"](
            input=inputs, condition=conditions, goal=goals
        )
        return posterior

    def decode(
        self, conditions: ObsDict, goals: ObsDict | None = None, z: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Returns x `{key: [B, *shape]}`.

        Args:
            conditions: s, `{key: [B, *shape]}`.
            goals: the goals, if there are any.
            z: latents `[B, latent_size]`, or several for each s, side by side; None: one from the
                prior for each s.
        """
        if z is None:
            z = self.sample_prior(conditions, goals)
        outputs = self.nets["decoder"](input={"latent": z}, condition=conditions, goal=goals)
        return {k: torch.tanh(x) if k in self.output_squash else x for k, x in outputs.items()}

    def sample_prior(
        self, conditions: ObsDict, goals: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Draws latents `[B * num_samples, latent_size]` from the prior.

        Args:
            conditions: s, `{key: [B, *shape]}`.
            goals: the goals, if there are any.
            num_samples: latents for each s; they are neighbours.
        """
        return self.prior.sample(conditions, goals, num_samples)

    def sample(
        self, conditions: ObsDict, goals: ObsDict | None = None, num_samples: int = 1
    ) -> dict[str, Tensor]:
        """Samples x `{key: [B * num_samples, *shape]}`; those of one s are neighbours."""
        z = self.sample_prior(conditions, goals, num_samples)
        return self.decode(conditions, goals, z)  # which encodes each s once

    def forward(
        self,
        inputs: ObsDict,
        outputs: ObsDict,
        conditions: ObsDict,
        goals: ObsDict | None = None,
        freeze_encoder: bool = False,
    ) -> VAEOutput:
        """Reconstructs x from a latent of its posterior, for the two terms of the loss.

        Args:
            inputs: x, `{key: [B, *shape]}`.
            outputs: the values to reconstruct.
            conditions: s.
            goals: the goals, if there are any.
            freeze_encoder: send no gradient into the encoder.
        """
        posterior = self.encode(inputs, conditions, goals)
        if freeze_encoder:
            posterior = {name: x.detach() for name, x in posterior.items()}
        z = self.prior.sample_posterior(posterior)
        reconstructions = self.decode(conditions, goals, z)
        return {
            "encoder_params": posterior,
            "encoder_z": z,
            "decoder_outputs": reconstructions,
            "kl_loss": self.prior.kl(posterior, z, conditions, goals),
            "reconstruction_loss": vae_losses.reconstruction_loss(
                reconstructions, outputs, self.sum_elements
            ),
        }

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Sets the temperature at which a categorical posterior is sampled."""
        self._categorical.temperature = temperature

    def get_gumbel_temperature(self) -> float:
        """Returns the temperature at which a categorical posterior is sampled."""
        return self._categorical.temperature

    @property
    def _categorical(self) -> CategoricalPrior:
        if not isinstance(self.prior, CategoricalPrior):
            raise TypeError("only a categorical prior has a Gumbel temperature")
        return self.prior


class VAEActor(nn.Module):
    """A stochastic policy: latents from the prior, decoded to actions in [-1, 1].

    Args:
        obs_shapes: shapes of the observation keys.
        ac_dim: number of action dimensions.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        encoder_kwargs: see `ObservationEncoder`.
        **vae_args: further arguments of `VAE`, see `vae_args_from_config`.
    """

    bounded_actions: ClassVar[bool] = True  # to [-1, 1]

    def __init__(
        self,
        obs_shapes: Shapes,
        ac_dim: int,
        goal_shapes: Shapes | None = None,
        encoder_kwargs: EncoderKwargs | None = None,
        **vae_args: Any,
    ) -> None:
        super().__init__()
        self._vae = VAE(
            input_shapes={"action": (ac_dim,)},
            output_shapes={"action": (ac_dim,)},
            condition_shapes=obs_shapes,
            output_squash=("action",),
            goal_shapes=goal_shapes,
            encoder_kwargs=encoder_kwargs,
            **vae_args,
        )

    def encode(
        self, actions: Tensor, obs_dict: ObsDict, goal_dict: ObsDict | None = None
    ) -> dict[str, Tensor]:
        """Returns the parameters of the posterior of actions `[B, A]`."""
        return self._vae.encode({"action": actions}, obs_dict, goal_dict)

    def decode(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, z: Tensor | None = None
    ) -> Tensor:
        """Returns actions `[B, A]`; of latents from the prior if none are given."""
        return self._vae.decode(obs_dict, goal_dict, z)["action"]

    def forward_train(
        self,
        actions: Tensor,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        freeze_encoder: bool = False,
    ) -> VAEOutput:
        """Reconstructs demonstrated actions `[B, A]`, see `VAE.forward`."""
        action = {"action": actions}
        output: VAEOutput = self._vae(action, action, obs_dict, goal_dict, freeze_encoder)
        return output

    def forward(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, z: Tensor | None = None
    ) -> Tensor:
        """Samples actions `[B, A]`, or decodes the latents that are given."""
        return self.decode(obs_dict, goal_dict, z)

    def sample(
        self, obs_dict: ObsDict, goal_dict: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Samples actions `[B * num_samples, A]`; those of one state are neighbours."""
        return self._vae.sample(obs_dict, goal_dict, num_samples)["action"]

    def set_gumbel_temperature(self, temperature: float) -> None:
        """Sets the temperature at which a categorical posterior is sampled."""
        self._vae.set_gumbel_temperature(temperature)

    def get_gumbel_temperature(self) -> float:
        """Returns the temperature at which a categorical posterior is sampled."""
        return self._vae.get_gumbel_temperature()
