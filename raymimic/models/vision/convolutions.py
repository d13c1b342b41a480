"""Convolutional networks other than ResNets: layers, backbones, and their registry.

A backbone maps images `[B, C, H, W]` to a map of features. A config names it in
`observation.encoder.<modality>.core_kwargs.backbone_class`; `register_backbone` makes one of the
user's own known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError, did_you_mean
from raymimic.models.base_nets import Module
from raymimic.models.named_classes import NamedClasses

BACKBONES: NamedClasses[ConvBase] = NamedClasses("a backbone")
register_backbone = BACKBONES.register


class ConvBase(Module):
    """Base of backbones, which compute `nets`.

    A subclass is known by its name, unless another class has that name already.

    A backbone takes the argument `input_channel`, the number of input channels. A backbone that
    also sees the instruction has an attribute `lang_emb_dim`, and its `forward` takes images and
    embeddings `[B, lang_emb_dim]`.
    """

    nets: nn.Module

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Registers the class, as in robomimic."""
        super().__init_subclass__(**kwargs)
        BACKBONES.offer(cls)

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features `[C', H', W']` of an image `[C, H, W]`."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H', W']`."""
        y: Tensor = self.nets(x)
        return y


class CoordConv2d(nn.Conv2d):
    """A convolution that also sees where it is: y and x, in 0 to 1, are two further channels.

    Liu et al., "An Intriguing Failing of Convolutional Neural Networks and the CoordConv Solution"
    (2018), https://arxiv.org/abs/1807.03247.

    Args:
        in_channels: channels of the image, without the two.
        out_channels: channels that come out.
        kernel_size: see `nn.Conv2d`.
        coord_encoding: `"position"`, the only way.
        **kwargs: further arguments of `nn.Conv2d`.

    Raises:
        ConfigError: for another `coord_encoding`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        coord_encoding: str = "position",
        **kwargs: Any,
    ) -> None:
        if coord_encoding != "position":
            raise ConfigError(f"coord_encoding '{coord_encoding}' is unknown: it is 'position'")
        super().__init__(in_channels + 2, out_channels, kernel_size, **kwargs)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Maps `[B, C, H, W]` to `[B, C', H', W']`."""
        return super().forward(with_positions(input))


def with_positions(x: Tensor) -> Tensor:
    """Adds two channels, y / H and x / W of each pixel, to images `[B, C, H, W]`."""
    height, width = x.shape[-2:]
    y = torch.arange(height, device=x.device, dtype=x.dtype) / height
    z = torch.arange(width, device=x.device, dtype=x.dtype) / width
    places = torch.stack(torch.meshgrid(y, z, indexing="ij"))
    return torch.cat([x, places.expand(*x.shape[:-3], -1, -1, -1)], dim=-3)


def conv_length(length: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """Returns the number of places of a convolution's or a pooling's window along one side."""
    return (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def halved(side: int, times: int) -> int:
    """Returns the length of an image's side after so many layers with a stride of 2.

    Each of them has an odd window, and a border of zeros that is half as wide.
    """
    for _ in range(times):
        side = (side + 1) // 2
    return side


@register_backbone
class ShallowConv(ConvBase):
    """Four convolutions, at half the image's resolution.

    Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning" (2016),
    https://arxiv.org/abs/1509.06113.

    Args:
        input_channel: channels of the image.
        output_channel: channels of the features; robomimic accepts 32 only.

    Raises:
        ConfigError: there are no such channels.
    """

    def __init__(self, input_channel: int = 3, output_channel: int = 32) -> None:
        super().__init__()
        if output_channel < 1:
            raise ConfigError(
                f"backbone_kwargs.output_channel is {output_channel}: it must be at least 1"
            )
        self.output_channel = output_channel
        self.nets = nn.Sequential(
            nn.Conv2d(input_channel, 64, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv2d(64, 32, 1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, output_channel, 3, padding=1),
        )

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features of an image `[C, H, W]`."""
        return [self.output_channel, *(halved(side, 1) for side in input_shape[1:])]


class _Residual(nn.Module):
    """x + conv(relu(conv(relu(x))))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nets = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.nets(x)
        return y


@register_backbone
class ImpalaConv(ConvBase):
    """The residual network of IMPALA: small, without BatchNorm.

    Espeholt et al., "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner
    Architectures" (2018), https://arxiv.org/abs/1802.01561. The defaults are OGBench's
    `impala_small`. It is not in robomimic.

    Args:
        input_channel: channels of the image.
        stack_sizes: channels of each stack, which halves the resolution.
        num_blocks: residual blocks in each stack.

    Raises:
        ConfigError: there is no stack, or one without channels.
    """

    def __init__(
        self,
        input_channel: int = 3,
        stack_sizes: Sequence[int] = (16, 32, 32),
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        if min(stack_sizes, default=0) < 1:
            raise ConfigError(
                f"backbone_kwargs.stack_sizes is {stack_sizes}: list the channels of one stack or "
                "more, each at least 1"
            )
        layers: list[nn.Module] = []
        channels = input_channel
        for size in stack_sizes:
            layers += [nn.Conv2d(channels, size, 3, padding=1), nn.MaxPool2d(3, 2, padding=1)]
            layers += [_Residual(size) for _ in range(num_blocks)]
            channels = size
        self.stack_sizes = tuple(stack_sizes)
        self.nets = nn.Sequential(*layers, nn.ReLU(inplace=True))
        for layer in self.nets.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.xavier_uniform_(layer.weight)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features of an image `[C, H, W]`."""
        sides = (halved(side, len(self.stack_sizes)) for side in input_shape[1:])
        return [self.stack_sizes[-1], *sides]


class Conv1dBase(Module):
    """Convolutions over a laser scan, with an activation after each.

    Args:
        input_channel: channels of the scan.
        activation: `"relu"`; None or `"None"`: none.
        out_channels: channels of each layer.
        kernel_size: of each layer.
        stride: of each layer.
        **conv_kwargs: further arguments of `nn.Conv1d`, lists with one element for each layer.

    Raises:
        ConfigError: the lists are not of one length, a size in them is too small, or an
            activation or an argument is unknown.
    """

    def __init__(
        self,
        input_channel: int = 1,
        activation: str | None = "relu",
        out_channels: Sequence[int] = (32, 64, 64),
        kernel_size: Sequence[int] = (8, 4, 2),
        stride: Sequence[int] = (4, 2, 1),
        **conv_kwargs: Sequence[Any],
    ) -> None:
        super().__init__()
        if activation not in ("relu", "None", None):
            raise ConfigError(f"conv_activation '{activation}' is unknown: it is 'relu' or null")
        further = ("padding", "dilation", "groups", "bias", "padding_mode")
        for key in conv_kwargs:
            if key not in further:
                known = ("out_channels", "kernel_size", "stride", *further)
                raise ConfigError(
                    f"conv_kwargs.{key}: there is no such argument{did_you_mean(key, known)}"
                )
        lists: Mapping[str, Sequence[Any]] = {
            "out_channels": out_channels,
            "kernel_size": kernel_size,
            "stride": stride,
            **conv_kwargs,
        }
        for key, values in lists.items():
            if not isinstance(values, list | tuple) or len(values) != len(out_channels):
                raise ConfigError(
                    f"conv_kwargs.{key} is {values}: list one for each of the {len(out_channels)} "
                    "layers (conv_kwargs.out_channels)"
                )
        least = {"out_channels": 1, "kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        for key, number in least.items():
            if any(isinstance(x, int) and x < number for x in lists.get(key, ())):
                raise ConfigError(
                    f"conv_kwargs.{key} is {lists[key]}: each must be at least {number}"
                )
        self.nets = nn.Sequential()
        channels = input_channel
        for i in range(len(out_channels)):
            layer = {key: values[i] for key, values in lists.items()}
            self.nets.add_module(f"conv{i}", nn.Conv1d(channels, **layer))
            if activation == "relu":
                self.nets.add_module(f"act{i}", nn.ReLU())
            channels = out_channels[i]

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features `[C', L']` of a scan `[C, L]`."""
        channels, length = input_shape
        for layer in self.nets:
            if isinstance(layer, nn.Conv1d):
                channels = layer.out_channels
                if layer.padding == "same":  # torch takes it with a stride of 1 only
                    continue
                padding = 0 if isinstance(layer.padding, str) else layer.padding[0]
                length = conv_length(
                    length, layer.kernel_size[0], layer.stride[0], padding, layer.dilation[0]
                )
        return [channels, length]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, L]` to `[B, C', L']`."""
        y: Tensor = self.nets(x)
        return y
