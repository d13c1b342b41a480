"""Layers that turn a map of features into a vector, and their registry.

A config names one in `observation.encoder.<modality>.core_kwargs.pool_class`; `register_pool` makes
one of the user's own known.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError
from raymimic.models.base_nets import Module
from raymimic.models.named_classes import NamedClasses
from raymimic.models.vision.draws import DrawingModule


class Pool(Module):
    """Base of pools.

    A pool takes the argument `input_shape`, the shape `[C, H, W]` of the features that come in.
    """

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns the shape that comes out."""
        raise NotImplementedError


POOLS: NamedClasses[Pool] = NamedClasses("a pool")
register_pool = POOLS.register


@register_pool
class SpatialSoftmax(Pool, DrawingModule):
    """Keypoints: for each, the mean place of a softmax over the map.

    Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning" (2016),
    https://arxiv.org/abs/1509.06113. Places are in -1 to 1, x before y.

    Args:
        input_shape: `[C, H, W]` of the features.
        num_kp: number of keypoints; None: one for each channel.
        temperature: divides the features; a large one makes the softmax flat.
        learnable_temperature: learn it.
        output_variance: give each keypoint's covariance too.
        noise_std: standard deviation of noise on the places, in training.

    Raises:
        ConfigError: there are no keypoints, or the noise is no number of at least 0.
    """

    pos_x: Tensor
    pos_y: Tensor
    temperature: Tensor

    def __init__(
        self,
        input_shape: Sequence[int],
        num_kp: int | None = 32,
        temperature: float = 1.0,
        learnable_temperature: bool = False,
        output_variance: bool = False,
        noise_std: float = 0.0,
    ) -> None:
        super().__init__()
        if num_kp is not None and num_kp < 1:
            raise ConfigError(f"pool_kwargs.num_kp is {num_kp}: it must be at least 1, or null")
        if not isinstance(noise_std, int | float) or not noise_std >= 0:
            raise ConfigError(f"pool_kwargs.noise_std is {noise_std}: it must be at least 0")
        channels, height, width = input_shape
        self.nets = None if num_kp is None else nn.Conv2d(channels, num_kp, kernel_size=1)
        self.num_kp = channels if num_kp is None else num_kp
        self.output_variance, self.noise_std = output_variance, noise_std
        start = torch.full((1,), float(temperature))
        if learnable_temperature:
            self.temperature = nn.Parameter(start)
        else:
            self.register_buffer("temperature", start)
        y, x = torch.meshgrid(
            torch.linspace(-1.0, 1.0, height, dtype=torch.float64),
            torch.linspace(-1.0, 1.0, width, dtype=torch.float64),
            indexing="ij",
        )
        self.register_buffer("pos_x", x.reshape(1, -1).float())
        self.register_buffer("pos_y", y.reshape(1, -1).float())

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns `[K, 2]`, with covariances `[K, 6]`."""
        return [self.num_kp, 6 if self.output_variance else 2]

    def forward(self, x: Tensor) -> Tensor:
        """Maps features `[B, C, H, W]` to keypoints `[B, K, 2]`.

        Returns:
            x and y; with `output_variance` also var(x), cov(x, y), cov(x, y), var(y).
        """
        if self.nets is not None:
            x = self.nets(x)
        attention = torch.softmax(x.flatten(2) / self.temperature, dim=-1)  # [B, K, H * W]
        places = torch.cat([self.pos_x, self.pos_y])  # [2, H * W]
        mean = attention @ places.T
        keypoints = mean
        if self.training and self.noise_std > 0:
            keypoints = mean + self.draws.normal(mean.shape, mean) * self.noise_std
        if not self.output_variance:
            return keypoints
        products = (places[:, None] * places[None]).flatten(0, 1)  # xx, xy, yx, yy
        covariance = attention @ products.T - (mean[..., None] * mean[..., None, :]).flatten(-2)
        return torch.cat([keypoints, covariance], dim=-1)


@register_pool
class SpatialMeanPool(Pool):
    """The mean over the map.

    Args:
        input_shape: `[C, H, W]` of the features.
    """

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.channels = input_shape[0]

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns `[C]`."""
        return [self.channels]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, ...]` to `[B, C]`."""
        return x.flatten(2).mean(dim=2)


class FeatureAggregator(nn.Module):
    """Averages features over one dimension, such as those of several patches of an image.

    Args:
        dim: the dimension.
        agg_type: `"avg"`, or `"w_avg"` with weights from `set_weight`.

    Raises:
        ConfigError: for another `agg_type`.
    """

    def __init__(self, dim: int = 1, agg_type: str = "avg") -> None:
        super().__init__()
        if agg_type not in ("avg", "w_avg"):
            raise ConfigError(f"agg_type '{agg_type}' is unknown: it is 'avg' or 'w_avg'")
        self.dim, self.agg_type = dim, agg_type
        self.agg_weight: Tensor | None = None

    def set_weight(self, w: Tensor) -> None:
        """Sets the weights of `"w_avg"`, which broadcast to the features."""
        self.agg_weight = w

    def clear_weight(self) -> None:
        """Forgets the weights."""
        self.agg_weight = None

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape, batch dimension included, without the dimension."""
        return [*input_shape[: self.dim], *input_shape[self.dim + 1 :]]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, N, ...]` to `[B, ...]`.

        Raises:
            RuntimeError: `"w_avg"` has no weights.
        """
        if self.agg_type == "avg":
            return x.mean(dim=self.dim)
        if self.agg_weight is None:
            raise RuntimeError("a weighted average needs weights: call set_weight first")
        return (x * self.agg_weight).sum(dim=self.dim)
