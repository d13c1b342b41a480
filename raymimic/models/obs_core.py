"""Encoders of one observation key: `EncoderCore`, its registry, and those that come with raymimic.

A config names an encoder in `observation.encoder.<modality>.core_class`, and its arguments in
`core_kwargs`. Randomizers, which stand before an encoder, are in
`raymimic.models.vision.randomizers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Size, Tensor, nn

from raymimic.errors import ConfigError
from raymimic.models.base_nets import Linear, Module
from raymimic.models.named_classes import NamedClasses
from raymimic.models.vision.convolutions import BACKBONES, Conv1dBase
from raymimic.models.vision.pools import POOLS, Pool

ENCODER_CORES: NamedClasses[EncoderCore] = NamedClasses("an encoder core")
register_encoder_core = ENCODER_CORES.register


class EncoderCore(Module):
    """Base of the networks that turn one observation key into features.

    A subclass is known by its name, unless another class has that name already.

    Attributes:
        output_dim: number of features that come out; subclasses set it, or define `output_shape`.

    Args:
        input_shape: shape of the observation, without batch dimensions.
    """

    output_dim: int

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.input_shape = tuple(input_shape)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Registers the class, as in robomimic."""
        super().__init_subclass__(**kwargs)
        ENCODER_CORES.offer(cls)

    def __getattr__(self, name: str) -> Any:
        if name == "output_dim" and type(self).output_shape is not EncoderCore.output_shape:
            return Size(self.output_shape(self.input_shape)).numel()
        return super().__getattr__(name)

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns the shape of the features."""
        return [self.output_dim]

    def _check_shape(self, x: Tensor) -> None:
        """Makes sure that observations have the shape that the network was made for.

        Raises:
            ConfigError: they have another one.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ConfigError(
                f"an observation has the shape {list(x.shape[1:])}, but the network was made for "
                f"{list(self.input_shape)}: give it observations as in training"
            )


def _finish(
    core: EncoderCore,
    layers: list[nn.Module],
    shape: Sequence[int],
    flatten: bool,
    feature_dimension: int | None,
) -> nn.Sequential:
    """Adds the last layers, and sets `output_dim`.

    Raises:
        ConfigError: there are no features, or a linear layer follows some that are not flat.
    """
    if min(shape) < 1:
        raise ConfigError(
            f"core_kwargs leave no features of the shape {list(core.input_shape)}, but "
            f"{list(shape)}: raise the sizes in them"
        )
    core.output_dim = Size(shape).numel()
    if flatten:
        layers.append(nn.Flatten())
    if feature_dimension is not None:
        if not flatten:
            raise ConfigError(
                f"core_kwargs.feature_dimension is {feature_dimension}, which needs flat features: "
                "set core_kwargs.flatten to true"
            )
        if feature_dimension < 1:
            raise ConfigError(
                f"core_kwargs.feature_dimension is {feature_dimension}: it must be at least 1, or "
                "null"
            )
        layers.append(Linear(core.output_dim, feature_dimension))
        core.output_dim = feature_dimension
    return nn.Sequential(*layers)


@register_encoder_core
class VisualCore(EncoderCore):
    """Encodes an image: a convolutional network, a pool, a linear layer.

    Backbone and pool are registered twice, as in robomimic, whose checkpoints hold both names.

    Args:
        input_shape: `[C, H, W]` of the image.
        backbone_class: name of the convolutional network, see
            `raymimic.models.vision.convolutions.register_backbone`.
        pool_class: name of the pool, see `raymimic.models.vision.pools.register_pool`; None: none.
        backbone_kwargs: arguments of the network.
        pool_kwargs: arguments of the pool.
        flatten: flatten the features.
        feature_dimension: number of features after the linear layer; None: there is no such layer.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        backbone_class: str = "ResNet18Conv",
        pool_class: str | None = "SpatialSoftmax",
        backbone_kwargs: Mapping[str, Any] | None = None,
        pool_kwargs: Mapping[str, Any] | None = None,
        flatten: bool = True,
        feature_dimension: int | None = 64,
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 3:
            raise ConfigError(
                f"{type(self).__name__} encodes images, but the observation has the shape "
                f"{list(self.input_shape)}: list it under another modality"
            )
        if min(self.input_shape) < 1:
            raise ConfigError(
                f"an image of the shape {list(self.input_shape)} has no pixels: list another key"
            )
        self.backbone = BACKBONES.make(
            backbone_class, "backbone_class", backbone_kwargs, input_channel=self.input_shape[0]
        )
        if type(self) is VisualCore and hasattr(self.backbone, "lang_emb_dim"):
            raise ConfigError(
                f"backbone_class '{backbone_class}' takes language: choose 'ResNet18Conv', or "
                "core_class 'VisualCoreLanguageConditioned'"
            )
        shape = self.backbone.output_shape(self.input_shape)
        layers: list[nn.Module] = [self.backbone]
        self.pool: Pool | None = None
        if pool_class is not None:
            self.pool = POOLS.make(pool_class, "pool_class", pool_kwargs, input_shape=shape)
            shape = self.pool.output_shape(shape)
            layers.append(self.pool)
        self.nets = _finish(self, layers, shape, flatten, feature_dimension)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images `[B, C, H, W]` to features `[B, D]`."""
        self._check_shape(x)
        return cast("Tensor", self.nets(x))


@register_encoder_core
class VisualCoreLanguageConditioned(VisualCore):
    """Encodes an image, conditioned on an instruction (an embedding of language).

    Args:
        input_shape: see `VisualCore`.
        backbone_class: a network that also takes the embedding.
        pool_class: see `VisualCore`.
        backbone_kwargs: see `VisualCore`.
        pool_kwargs: see `VisualCore`.
        flatten: see `VisualCore`.
        feature_dimension: see `VisualCore`.

    Raises:
        ConfigError: the network does not take an embedding.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        backbone_class: str = "ResNet18ConvFiLM",
        pool_class: str | None = "SpatialSoftmax",
        backbone_kwargs: Mapping[str, Any] | None = None,
        pool_kwargs: Mapping[str, Any] | None = None,
        flatten: bool = True,
        feature_dimension: int | None = 64,
    ) -> None:
        super().__init__(
            input_shape,
            backbone_class,
            pool_class,
            backbone_kwargs,
            pool_kwargs,
            flatten,
            feature_dimension,
        )
        if not hasattr(self.backbone, "lang_emb_dim"):
            raise ConfigError(
                f"backbone_class '{backbone_class}' takes no language: choose "
                "'ResNet18ConvFiLM', or core_class 'VisualCore'"
            )

    @property
    def lang_emb_dim(self) -> int:
        """Size of the embedding."""
        return int(cast("int", self.backbone.lang_emb_dim))

    def forward(self, x: Tensor, lang_emb: Tensor) -> Tensor:  # type: ignore[override]
        """Maps images `[B, C, H, W]` and embeddings `[B, E]` to features `[B, D]`.

        Several images in a row may have one embedding in common: B is then a multiple of its rows.
        """
        self._check_shape(x)
        if len(lang_emb) != len(x):
            lang_emb = lang_emb.repeat_interleave(len(x) // max(1, len(lang_emb)), dim=0)
        return cast("Tensor", self.nets[1:](self.backbone(x, lang_emb)))


@register_encoder_core
class ScanCore(EncoderCore):
    """Encodes a laser scan: convolutions over its length, perhaps a pool and a linear layer.

    Args:
        input_shape: `[C, L]` of the scan.
        conv_kwargs: arguments of `Conv1dBase`.
        conv_activation: see `Conv1dBase`.
        pool_class: see `VisualCore`; the features are a map of one column.
        pool_kwargs: arguments of the pool.
        flatten: flatten the features.
        feature_dimension: see `VisualCore`.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        conv_kwargs: Mapping[str, Any] | None = None,
        conv_activation: str | None = "relu",
        pool_class: str | None = None,
        pool_kwargs: Mapping[str, Any] | None = None,
        flatten: bool = True,
        feature_dimension: int | None = None,
    ) -> None:
        super().__init__(input_shape)
        if len(self.input_shape) != 2:
            raise ConfigError(
                f"ScanCore encodes scans [L, C], but the observation has the shape "
                f"{list(self.input_shape)}: list it under another modality"
            )
        channels, length = self.input_shape
        self.backbone = Conv1dBase(channels, conv_activation, **(conv_kwargs or {}))
        shape = self.backbone.output_shape(self.input_shape)
        if shape[1] < 1:
            raise ConfigError(
                f"a scan of {length} values is too short for the convolutions of ScanCore: lower "
                "core_kwargs.conv_kwargs.kernel_size or stride"
            )
        layers: list[nn.Module] = [self.backbone]
        self.pool: Pool | None = None
        if pool_class is not None:
            shape = [*shape, 1]
            self.pool = POOLS.make(pool_class, "pool_class", pool_kwargs, input_shape=shape)
            layers += [nn.Unflatten(-1, (-1, 1)), self.pool]
            shape = self.pool.output_shape(shape)
        self.nets = _finish(self, layers, shape, flatten, feature_dimension)

    def forward(self, x: Tensor) -> Tensor:
        """Maps scans `[B, C, L]` to features `[B, D]`."""
        self._check_shape(x)
        return cast("Tensor", self.nets(x))
