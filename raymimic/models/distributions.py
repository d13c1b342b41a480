"""Distributions over actions and values, and how the outputs of a network parametrise them.

None of torch's distributions validates its arguments here: that would read every tensor back from
the device.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, overload

import torch
import torch.distributions as D
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution

from raymimic.errors import ConfigError, did_you_mean

# Standard deviation of a policy that acts (nearly) without noise, as in robomimic.
LOW_NOISE_STD = 1e-4

_STD_ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda x: x,
    "softplus": F.softplus,
    "exp": torch.exp,
}


def std_activation_from_name(name: str | None) -> Callable[[Tensor], Tensor]:
    """Returns the function from a network's output to a standard deviation: softplus, exp or none.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in _STD_ACTIVATIONS:
        known = [k for k in _STD_ACTIVATIONS if k is not None]
        raise ConfigError(f"std_activation '{name}' is unknown{did_you_mean(str(name), known)}")
    return _STD_ACTIVATIONS[name]


class TanhWrappedDistribution(Distribution):
    """The distribution of `scale * tanh(z)`, where z follows another distribution.

    The density follows by change of variables, log p(a) = log p(z) - Σ log(1 - tanh(z)²). A small
    constant inside the logarithm bounds it where tanh saturates (Haarnoja et al., "Soft
    Actor-Critic Algorithms and Applications", appendix C; the constant is robomimic's).

    Args:
        base_dist: the distribution of z.
        scale: the actions' bound.
        epsilon: the constant.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Distribution, scale: float = 1.0, epsilon: float = 1e-6) -> None:
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)
        self.base_dist = base_dist
        self.scale = scale
        self.epsilon = epsilon

    def log_prob(self, value: Tensor, pre_tanh_value: Tensor | None = None) -> Tensor:
        """Returns the log-density of values, shaped like that of the base distribution.

        Args:
            value: `[*batch, *event]`. On the bound the log-density is finite, and so it is
                beyond, where the density is zero: data that leave the bound count as if on it.
            pre_tanh_value: the z of `value`, where it is known: inverting tanh loses digits.
        """
        tanh = (value / self.scale).clamp(-1.0, 1.0)
        if pre_tanh_value is None:
            above, below = ((1.0 + s * tanh).clamp(min=self.epsilon) for s in (1.0, -1.0))
            pre_tanh_value = 0.5 * torch.log(above / below)
        correction = torch.log(1.0 - tanh * tanh + self.epsilon)
        log_prob: Tensor = self.base_dist.log_prob(pre_tanh_value)
        event_dims = correction.dim() - log_prob.dim()
        return log_prob - (correction.flatten(-event_dims).sum(-1) if event_dims else correction)

    @overload
    def rsample(
        self, sample_shape: Any = ..., return_pretanh_value: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def rsample(
        self, sample_shape: Any = ..., *, return_pretanh_value: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def rsample(
        self, sample_shape: Any = (), return_pretanh_value: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Samples with gradients; with the samples' z too, if asked."""
        z = self.base_dist.rsample(sample_shape)
        value = torch.tanh(z) * self.scale
        return (value, z) if return_pretanh_value else value

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples without gradients."""
        with torch.no_grad():
            return torch.tanh(self.base_dist.sample(sample_shape)) * self.scale

    @property
    def mode(self) -> Tensor:
        """The base distribution's mode through tanh, by which such policies act without noise.

        (The density's own maximum lies further out.)
        """
        return torch.tanh(self.base_dist.mode) * self.scale


def rsample_with_log_prob(dist: Distribution, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
    """Samples with gradients, and their log-densities without inverting a tanh.

    Returns:
        Values `[*sample_shape, *batch, *event]`, log-densities `[*sample_shape, *batch]`.
    """
    if isinstance(dist, TanhWrappedDistribution):
        value, z = dist.rsample(sample_shape, return_pretanh_value=True)
        return value, dist.log_prob(value, z)
    value = dist.rsample(sample_shape)
    log_prob: Tensor = dist.log_prob(value)
    return value, log_prob


class DiscreteValueDistribution:
    """A categorical distribution over fixed values, the atoms of a return (C51).

    Args:
        values: the atoms `[N]`.
        probs: their probabilities `[..., N]`, or
        logits: unnormalised log-probabilities `[..., N]`.
    """

    def __init__(
        self, values: Tensor, probs: Tensor | None = None, logits: Tensor | None = None
    ) -> None:
        self.values = values
        self._categorical = D.Categorical(probs=probs, logits=logits, validate_args=False)

    @property
    def probs(self) -> Tensor:
        """Probabilities `[..., N]`."""
        probs: Tensor = self._categorical.probs
        return probs

    @property
    def logits(self) -> Tensor:
        """Log-probabilities `[..., N]`."""
        logits: Tensor = self._categorical.logits
        return logits

    def mean(self) -> Tensor:
        """Returns the expected value `[...]`."""
        return (self.probs * self.values).sum(dim=-1)

    def variance(self) -> Tensor:
        """Returns the variance `[...]`."""
        deviation = self.values - self.mean().unsqueeze(-1)
        return (self.probs * deviation.square()).sum(dim=-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Samples atoms `[*sample_shape, ...]`."""
        atoms: Tensor = self._categorical.sample(sample_shape)  # type: ignore[no-untyped-call]
        return self.values[atoms]


class ActionHead(Protocol):
    """How a network's outputs become a distribution over actions."""

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """The outputs that the network must have, and their shapes."""

    def __call__(self, outputs: Mapping[str, Tensor], low_noise: bool = False) -> Distribution:
        """Makes the distribution of outputs `{name: [..., *shape]}`.

        Args:
            outputs: of the network.
            low_noise: nearly no noise: `LOW_NOISE_STD` in place of the learned one.
        """


@dataclass(frozen=True)
class GaussianHead:
    """Makes a diagonal Gaussian of the outputs `mean` and `scale`.

    Attributes:
        ac_dim: number of action dimensions.
        fixed_std: the standard deviation is `init_std`; `scale` is ignored.
        std_activation: `"softplus"`, scaled so that an output of 0 gives `init_std`; `"exp"`;
            or None: the output as it is.
        init_std: see the two above.
        mean_limits: bounds of the mean, before its tanh.
        std_limits: bounds of the standard deviation.
        use_tanh: squash the samples by tanh; else the mean is.

    Raises:
        ConfigError: for an unknown `std_activation`.
    """

    ac_dim: int
    fixed_std: bool = False
    std_activation: str | None = "softplus"
    init_std: float = 0.3
    mean_limits: Sequence[float] = (-9.0, 9.0)
    std_limits: Sequence[float] = (0.007, 7.5)
    use_tanh: bool = False

    def __post_init__(self) -> None:
        std_activation_from_name(self.std_activation)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """`mean` and `scale`, `[A]` each."""
        return {"mean": (self.ac_dim,), "scale": (self.ac_dim,)}

    def __call__(self, outputs: Mapping[str, Tensor], low_noise: bool = False) -> Distribution:
        """Makes the distribution over actions `[..., A]`, with batch shape `[...]`."""
        mean = outputs["mean"].clamp(*self.mean_limits)
        if not self.use_tanh:
            mean = torch.tanh(mean)
        std = torch.full_like(mean, LOW_NOISE_STD) if low_noise else self._std(outputs["scale"])
        gaussian = D.Independent(D.Normal(mean, std, validate_args=False), 1, validate_args=False)
        return TanhWrappedDistribution(gaussian) if self.use_tanh else gaussian

    def _std(self, scale: Tensor) -> Tensor:
        if self.fixed_std:
            low, high = self.std_limits
            return torch.full_like(scale, min(max(self.init_std, low), high))
        std = std_activation_from_name(self.std_activation)(scale)
        if self.std_activation == "softplus":
            std = std * (self.init_std / math.log(2.0))  # softplus(0) = log 2
        return std.clamp(*self.std_limits)


@dataclass(frozen=True)
class GMMHead:
    """Makes a mixture of diagonal Gaussians of the outputs `mean`, `scale` and `logits`.

    Attributes:
        ac_dim: number of action dimensions.
        num_modes: number of Gaussians.
        min_std: added to each standard deviation.
        std_activation: `"softplus"` or `"exp"`.
        use_tanh: squash the samples by tanh; else the means are.

    Raises:
        ConfigError: for an unknown `std_activation`.
    """

    ac_dim: int
    num_modes: int = 5
    min_std: float = 0.01
    std_activation: str = "softplus"
    use_tanh: bool = False

    def __post_init__(self) -> None:
        std_activation_from_name(self.std_activation)

    @property
    def output_shapes(self) -> dict[str, tuple[int, ...]]:
        """`mean` and `scale`, `[M, A]` each, and `logits` `[M]`."""
        modes = (self.num_modes, self.ac_dim)
        return {"mean": modes, "scale": modes, "logits": (self.num_modes,)}

    def __call__(self, outputs: Mapping[str, Tensor], low_noise: bool = False) -> Distribution:
        """Makes the distribution over actions `[..., A]`, with batch shape `[...]`."""
        mean = outputs["mean"] if self.use_tanh else torch.tanh(outputs["mean"])
        if low_noise:
            std = torch.full_like(mean, LOW_NOISE_STD)
        else:
            std = std_activation_from_name(self.std_activation)(outputs["scale"]) + self.min_std
        modes = D.Independent(D.Normal(mean, std, validate_args=False), 1, validate_args=False)
        weights = D.Categorical(logits=outputs["logits"], validate_args=False)
        mixture = D.MixtureSameFamily(weights, modes, validate_args=False)
        return TanhWrappedDistribution(mixture) if self.use_tanh else mixture
