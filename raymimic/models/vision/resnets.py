"""ResNets, with the parameters' names of torchvision's children in a `Sequential`.

He et al., "Deep Residual Learning for Image Recognition" (2015),
https://arxiv.org/abs/1512.03385. Blocks of three convolutions have their stride in the second one.
Weights that were trained elsewhere are read from files, see `raymimic.models.vision.weights`.
"""

from collections.abc import Sequence
from typing import ClassVar, cast

import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models.vision import weights
from raymimic.models.vision.convolutions import ConvBase, CoordConv2d, halved, register_backbone
from raymimic.models.vision.norms import batch_norm


def _conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2, bias=False)


class Residual(nn.Module):
    """Base of the blocks: what they compute, plus their input, through a ReLU.

    Attributes:
        expansion: output channels for each channel of `width`.
        downsample: fits the input where the shape changes; None: it stays as it is.
    """

    expansion: ClassVar[int]
    downsample: nn.Sequential | None

    def _shortcut(self, channels: int, out: int, stride: int) -> nn.Sequential | None:
        if stride == 1 and channels == out:
            return None
        return nn.Sequential(_conv(channels, out, 1, stride), batch_norm(out))

    def _residual(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` to `[B, C', H', W']`."""
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(self._residual(x).add_(shortcut), inplace=True)


class BasicBlock(Residual):
    """Two convolutions of 3x3.

    Args:
        channels: that come in.
        width: that go out.
        stride: of the first convolution.
    """

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv(channels, width, 3, stride)
        self.bn1 = batch_norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = batch_norm(width)
        self.downsample = self._shortcut(channels, width, stride)

    def _residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return cast("Tensor", self.bn2(self.conv2(x)))


class Bottleneck(Residual):
    """Convolutions of 1x1, 3x3 and 1x1.

    Args:
        channels: that come in.
        width: of the first two convolutions; four times as many go out.
        stride: of the second convolution.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = _conv(channels, width, 1)
        self.bn1 = batch_norm(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = batch_norm(width)
        self.conv3 = _conv(width, out, 1)
        self.bn3 = batch_norm(out)
        self.downsample = self._shortcut(channels, out, stride)

    def _residual(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return cast("Tensor", self.bn3(self.conv3(x)))


# Kind of the blocks, and their number in each of the four layers.
ARCHITECTURES: dict[str, tuple[type[BasicBlock | Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
}


def resnet_parts(
    name: str, pretrained: bool = False, pretrained_path: str | None = None
) -> list[nn.Module]:
    """Makes a ResNet for colour images without its last pooling and linear layer.

    Args:
        name: a key of `ARCHITECTURES`.
        pretrained: see `ResNet18Conv`.
        pretrained_path: likewise.

    Returns:
        Convolution, BatchNorm, ReLU, max pooling, and the four layers.
    """
    block, numbers = ARCHITECTURES[name]
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        batch_norm(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    channels = 64
    for i, number in enumerate(numbers):
        width = 64 * 2**i
        blocks = []
        for j in range(number):
            blocks.append(block(channels, width, stride=2 if i > 0 and j == 0 else 1))
            channels = width * block.expansion
        parts.append(nn.Sequential(*blocks))
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if pretrained and weights.are_needed():
        file = weights.torchvision_file(name, pretrained_path)
        weights.load_resnet(parts, weights.read_weights(file), file)
    return parts


def output_channels(name: str) -> int:
    """Returns the number of channels of a ResNet's features."""
    return 512 * ARCHITECTURES[name][0].expansion


def fit_input(parts: list[nn.Module], input_channel: int, input_coord_conv: bool) -> None:
    """Replaces the first convolution where the input is no plain colour image."""
    if input_coord_conv:
        parts[0] = CoordConv2d(input_channel, 64, 7, stride=2, padding=3, bias=False)
    elif input_channel != 3:
        parts[0] = nn.Conv2d(input_channel, 64, 7, stride=2, padding=3, bias=False)


class _ResNetConv(ConvBase):
    """Base of the ResNets for images.

    Args:
        input_channel: channels of the image.
        pretrained: start from weights that were trained on ImageNet, except those of a first
            convolution for another input.
        input_coord_conv: let the first convolution see where it is, see `CoordConv2d`.
        pretrained_path: local file of those weights, by torchvision's names; None: the file that
            torchvision keeps.
    """

    name: ClassVar[str]

    def __init__(
        self,
        input_channel: int = 3,
        pretrained: bool = False,
        input_coord_conv: bool = False,
        pretrained_path: str | None = None,
    ) -> None:
        super().__init__()
        parts = resnet_parts(self.name, pretrained, pretrained_path)
        fit_input(parts, input_channel, input_coord_conv)
        self.nets = nn.Sequential(*parts)

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features of an image `[C, H, W]`."""
        return [output_channels(self.name), *(halved(side, 5) for side in input_shape[1:])]


@register_backbone
class ResNet18Conv(_ResNetConv):
    """ResNet-18: `[B, C, H, W]` to `[B, 512, H / 32, W / 32]`."""

    name = "resnet18"


@register_backbone
class ResNet50Conv(_ResNetConv):
    """ResNet-50: `[B, C, H, W]` to `[B, 2048, H / 32, W / 32]`."""

    name = "resnet50"
