"""Priors p(z) or p(z | s) of variational autoencoders, each with the family of its posterior.

After `robomimic/models/vae_nets.py`. Jang et al., "Categorical Reparameterization with
Gumbel-Softmax" (2017), https://arxiv.org/abs/1611.01144, for the categorical one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models import vae_losses
from raymimic.models.obs_coders import EncoderKwargs, ObsDict
from raymimic.models.obs_nets import MIMO_MLP
from raymimic.observations.shapes import ObsShapes

Shapes = Mapping[str, Sequence[int]]

# Logarithms of variances are kept within these where a Gaussian is sampled or a density taken.
_LOGVAR_LIMITS = (-8.0, 30.0)


def reparameterize(mean: Tensor, logvar: Tensor) -> Tensor:
    """Draws from diagonal Gaussians `[B, D]` so that gradients reach their parameters."""
    std = (0.5 * logvar.clamp(*_LOGVAR_LIMITS)).exp()
    return mean + std * torch.randn_like(std)


class Prior(nn.Module):
    """A VAE's latents: the family of their posterior, and the prior p(z) or p(z | s).

    Parameters of the prior are a network's outputs if it is conditioned, else parameters of
    their own; a prior without parameters is fixed.

    Attributes:
        posterior_shapes: names and shapes of a posterior's parameters, which the encoder predicts.
        latent_size: length of a latent, as the decoder sees it.

    Args:
        param_shapes: the prior's parameters and their shapes.
        condition_groups: the groups of observations that they depend on; None: on nothing.
        layer_dims: hidden layers of the network that predicts them.
        encoder_kwargs: see `ObservationEncoder`.
    """

    posterior_shapes: Shapes
    latent_size: int

    def __init__(
        self,
        param_shapes: Shapes,
        condition_groups: Mapping[str, ObsShapes] | None = None,
        layer_dims: Sequence[int] = (),
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__()
        self.prior_params = nn.ParameterDict()
        self.prior_module: MIMO_MLP | None = None
        if condition_groups is not None:
            self.prior_module = MIMO_MLP(
                condition_groups, param_shapes, layer_dims, encoder_kwargs=encoder_kwargs
            )
            return
        for name, shape in param_shapes.items():
            x = torch.randn(1, *shape)
            self.prior_params[name] = nn.Parameter(x / x.numel() ** 0.5)

    def _params(self, conditions: ObsDict, goals: ObsDict | None) -> dict[str, Tensor]:
        """Returns the prior's parameters, `[B, *shape]` or `[1, *shape]`."""
        if self.prior_module is not None:
            params: dict[str, Tensor] = self.prior_module(obs=conditions, goal=goals)
            return params
        return dict(self.prior_params.items())

    def sample_posterior(self, posterior: Mapping[str, Tensor]) -> Tensor:
        """Draws latents `[B, latent_size]` that gradients flow through."""
        raise NotImplementedError

    def sample(
        self, conditions: ObsDict, goals: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Draws latents `[B * num_samples, latent_size]`; those of one state are neighbours."""
        raise NotImplementedError

    def kl(
        self,
        posterior: Mapping[str, Tensor],
        z: Tensor,
        conditions: ObsDict,
        goals: ObsDict | None = None,
    ) -> Tensor:
        """KL (0-d, mean over the batch) of the posterior from the prior.

        Args:
            posterior: the posterior's parameters.
            z: latents `[B, latent_size]` drawn from it, for priors whose KL is estimated.
            conditions: the states.
            goals: the goals, if there are any.
        """
        raise NotImplementedError


def _first(conditions: ObsDict) -> Tensor:
    """One of the observations, for the batch size, device and dtype of tensors beside them."""
    return next(iter(conditions.values()))


def _for_samples(x: Tensor, conditions: ObsDict, num_samples: int) -> Tensor:
    """Repeats a parameter `[B, ...]` or `[1, ...]` for each sample: `[B * n, ...]`."""
    batch_size = _first(conditions).shape[0]
    return x.expand(batch_size, *x.shape[1:]).repeat_interleave(num_samples, dim=0)


class StandardNormalPrior(Prior):
    """N(0, 1), and the base of all priors on Gaussian latents.

    Args:
        latent_dim: length of a latent.
        latent_clip: largest absolute value of a latent drawn from the prior; None: unlimited.
        param_shapes: see `Prior`.
        **kwargs: see `Prior`.
    """

    def __init__(
        self,
        latent_dim: int,
        latent_clip: float | None = None,
        param_shapes: Shapes | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(param_shapes or {}, **kwargs)
        self.latent_size = latent_dim
        self.latent_clip = latent_clip
        self.posterior_shapes = {"mean": (latent_dim,), "logvar": (latent_dim,)}

    def sample_posterior(self, posterior: Mapping[str, Tensor]) -> Tensor:
        """Draws latents `[B, latent_size]` by the reparameterisation trick."""
        return reparameterize(posterior["mean"], posterior["logvar"])

    def sample(
        self, conditions: ObsDict, goals: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Draws latents `[B * num_samples, latent_size]` and clips them."""
        z = self._draw(conditions, goals, num_samples)
        return z if self.latent_clip is None else z.clamp(-self.latent_clip, self.latent_clip)

    def _draw(self, conditions: ObsDict, goals: ObsDict | None, num_samples: int) -> Tensor:
        """Draws latents."""
        like = _first(conditions)
        size = (like.shape[0] * num_samples, self.latent_size)
        return torch.randn(size, dtype=like.dtype, device=like.device)

    def kl(
        self,
        posterior: Mapping[str, Tensor],
        z: Tensor,
        conditions: ObsDict,
        goals: ObsDict | None = None,
    ) -> Tensor:
        """KL (0-d), in closed form."""
        return vae_losses.standard_normal_kl(posterior["mean"], posterior["logvar"])


class GaussianPrior(StandardNormalPrior):
    """A Gaussian whose mean and variance are learned.

    Args:
        latent_dim: see `StandardNormalPrior`.
        latent_clip: see `StandardNormalPrior`.
        **kwargs: see `Prior`.
    """

    def __init__(self, latent_dim: int, latent_clip: float | None = None, **kwargs: Any) -> None:
        # One mode, as robomimic's shapes have it.
        shapes = {"mean": (1, latent_dim), "logvar": (1, latent_dim)}
        super().__init__(latent_dim, latent_clip, shapes, **kwargs)

    def _moments(self, conditions: ObsDict, goals: ObsDict | None) -> tuple[Tensor, Tensor]:
        """Returns means and log-variances, `[B, D]` or `[1, D]`."""
        params = self._params(conditions, goals)
        return params["mean"][:, 0], params["logvar"][:, 0]

    def _draw(self, conditions: ObsDict, goals: ObsDict | None, num_samples: int) -> Tensor:
        mean, logvar = (
            _for_samples(x, conditions, num_samples) for x in self._moments(conditions, goals)
        )
        return reparameterize(mean, logvar)

    def kl(
        self,
        posterior: Mapping[str, Tensor],
        z: Tensor,
        conditions: ObsDict,
        goals: ObsDict | None = None,
    ) -> Tensor:
        """KL (0-d), in closed form."""
        moments = self._moments(conditions, goals)
        return vae_losses.gaussian_kl(posterior["mean"], posterior["logvar"], *moments)


class GMMPrior(StandardNormalPrior):
    """A mixture of Gaussians that are learned, with weights that may be learned too.

    Args:
        latent_dim: see `StandardNormalPrior`.
        num_modes: Gaussians in the mixture.
        learn_weights: learn their weights; else they are equal.
        latent_clip: see `StandardNormalPrior`.
        **kwargs: see `Prior`.
    """

    def __init__(
        self,
        latent_dim: int,
        num_modes: int,
        learn_weights: bool,
        latent_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        shapes = {"mean": (num_modes, latent_dim), "logvar": (num_modes, latent_dim)}
        weights = {"weight": (num_modes,)} if learn_weights else {}
        super().__init__(latent_dim, latent_clip, {**shapes, **weights}, **kwargs)

    def _mixture(self, conditions: ObsDict, goals: ObsDict | None) -> tuple[Tensor, Tensor, Tensor]:
        """Means and log-variances `[B, M, D]` and logits `[B, M]` of the modes, B or 1."""
        params = self._params(conditions, goals)
        mean, logvar = params["mean"], params["logvar"]
        logits = params["weight"] if "weight" in params else torch.zeros_like(mean[..., 0])
        return mean, logvar, logits

    def _draw(self, conditions: ObsDict, goals: ObsDict | None, num_samples: int) -> Tensor:
        means, logvars, logits = (
            _for_samples(x, conditions, num_samples) for x in self._mixture(conditions, goals)
        )
        modes = torch.multinomial(logits.softmax(dim=-1), 1).unsqueeze(-1)
        mean, logvar = (x.take_along_dim(modes, dim=1)[:, 0] for x in (means, logvars))
        return reparameterize(mean, logvar)

    def kl(
        self,
        posterior: Mapping[str, Tensor],
        z: Tensor,
        conditions: ObsDict,
        goals: ObsDict | None = None,
    ) -> Tensor:
        """KL (0-d), estimated at one latent drawn from each posterior."""
        means, logvars, logits = self._mixture(conditions, goals)
        logvar = posterior["logvar"].clamp(*_LOGVAR_LIMITS)
        log_q = vae_losses.gaussian_log_prob(z, posterior["mean"], logvar)
        log_p = vae_losses.mixture_log_prob(z, means, logvars.clamp(*_LOGVAR_LIMITS), logits)
        return (log_q - log_p).mean()


class CategoricalPrior(Prior):
    """Independent categorical variables, one-hot, one after the other; uniform or learned.

    The prior draws one-hot vectors, the posterior relaxed ones by the Gumbel softmax.
    For a single variable robomimic's uniform prior does not draw: the class is the row's number in
    the batch, so an episode's latents would depend on the other rows. This prior draws.

    Attributes:
        temperature: of the Gumbel softmax; an algorithm lets it fall while it trains.

    Args:
        latent_dim: number of variables.
        categorical_dim: classes of each.
        learn: learn the prior's logits; else it is uniform.
        hard: let the posterior's samples be one-hot too, with the relaxed ones' gradient.
        **kwargs: see `Prior`.
    """

    def __init__(
        self, latent_dim: int, categorical_dim: int, learn: bool, hard: bool, **kwargs: Any
    ) -> None:
        self.shape = (latent_dim, categorical_dim)
        super().__init__({"logit": self.shape} if learn else {}, **kwargs)
        self.hard = hard
        self.temperature = 1.0
        self.latent_size = latent_dim * categorical_dim
        self.posterior_shapes = {"logit": (self.latent_size,)}

    def _logits(self, conditions: ObsDict, goals: ObsDict | None) -> Tensor:
        """Returns logits `[B, D, C]` or `[1, D, C]`."""
        params = self._params(conditions, goals)
        return params.get("logit", _first(conditions).new_zeros(1, *self.shape))

    def sample_posterior(self, posterior: Mapping[str, Tensor]) -> Tensor:
        """Draws latents `[B, D * C]`, relaxed one-hot vectors."""
        logits = posterior["logit"].view(-1, *self.shape)
        return F.gumbel_softmax(logits, tau=self.temperature, hard=self.hard).flatten(1)

    def sample(
        self, conditions: ObsDict, goals: ObsDict | None = None, num_samples: int = 1
    ) -> Tensor:
        """Draws latents `[B * num_samples, D * C]`, one-hot vectors."""
        logits = _for_samples(self._logits(conditions, goals), conditions, num_samples)
        classes = torch.multinomial(logits.flatten(0, 1).softmax(dim=-1), 1)
        one_hot = torch.zeros_like(logits).flatten(0, 1).scatter(-1, classes, 1.0)
        return one_hot.view(-1, self.latent_size)

    def kl(
        self,
        posterior: Mapping[str, Tensor],
        z: Tensor,
        conditions: ObsDict,
        goals: ObsDict | None = None,
    ) -> Tensor:
        """KL (0-d), in closed form."""
        logits = posterior["logit"].view(-1, *self.shape)
        return vae_losses.categorical_kl(logits, self._logits(conditions, goals))
