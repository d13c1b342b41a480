"""ResNets, with the parameters' names of torchvision's children in a `Sequential`.

He et al., "Deep Residual Learning for Image Recognition" (2015),
https://arxiv.org/abs/1512.03385. Blocks of three convolutions have their stride in the second one.
Weights that were trained elsewhere are read from files, see `raymimic.models.vision.weights`.
"""

from collections.abc import Sequence
from typing import ClassVar, Self, cast

import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.errors import ConfigError, did_you_mean
from raymimic.models.base_nets import Linear
from raymimic.models.vision import weights
from raymimic.models.vision.batch_norm import GlobalBatchNorm2d
from raymimic.models.vision.convolutions import ConvBase, CoordConv2d, halved, register_backbone


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
        return nn.Sequential(_conv(channels, out, 1, stride), GlobalBatchNorm2d(out))

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
        self.bn1 = GlobalBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = GlobalBatchNorm2d(width)
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
        self.bn1 = GlobalBatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = GlobalBatchNorm2d(width)
        self.conv3 = _conv(width, out, 1)
        self.bn3 = GlobalBatchNorm2d(out)
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
        pretrained_path: see `ResNet18Conv`.

    Returns:
        Convolution, BatchNorm, ReLU, max pooling, and the four layers.

    Raises:
        ConfigError: a file is named but not asked for, or it cannot be read or does not fit.
    """
    if pretrained_path is not None and not pretrained and weights.are_needed():
        raise ConfigError(
            f"backbone_kwargs.pretrained_path is '{pretrained_path}', but "
            "backbone_kwargs.pretrained is false: set pretrained to true or pretrained_path to null"
        )
    block, numbers = ARCHITECTURES[name]
    parts: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, padding=3, bias=False),
        GlobalBatchNorm2d(64),
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


class FiLMLayer(nn.Module):
    """Scales and shifts each channel by the language, then a ReLU.

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (2017),
    https://arxiv.org/abs/1709.07871.

    Args:
        lang_emb_dim: size of the language's embedding.
        channels: of the features.
    """

    def __init__(self, lang_emb_dim: int, channels: int) -> None:
        super().__init__()
        self.lang_proj = Linear(lang_emb_dim, 2 * channels)

    def forward(self, x: Tensor, lang_emb: Tensor) -> Tensor:
        """Maps `[B, C, H, W]` and embeddings `[B, E]` to `[B, C, H, W]`."""
        beta, gamma = self.lang_proj(lang_emb)[:, :, None, None].chunk(2, dim=1)
        return F.relu(x * (1.0 + gamma) + beta, inplace=True)


@register_backbone
class ResNet18ConvFiLM(ConvBase):
    """ResNet-18 with a `FiLMLayer` after each block: it sees an embedding of the instruction.

    Args:
        input_channel: see `ResNet18Conv`.
        pretrained: see `ResNet18Conv`.
        input_coord_conv: see `ResNet18Conv`.
        lang_emb_dim: size of the embedding; robomimic's text encoder (CLIP) gives 768.
        pretrained_path: see `ResNet18Conv`.
    """

    def __init__(
        self,
        input_channel: int = 3,
        pretrained: bool = False,
        input_coord_conv: bool = False,
        lang_emb_dim: int = 768,
        pretrained_path: str | None = None,
    ) -> None:
        super().__init__()
        parts = resnet_parts("resnet18", pretrained, pretrained_path)
        fit_input(parts, input_channel, input_coord_conv)
        self.lang_emb_dim = lang_emb_dim
        blocks = [block for layer in parts[4:] for block in cast("nn.Sequential", layer)]
        self._base_block = nn.Sequential(*parts[:4])
        self._conv_blocks = nn.ModuleList(blocks)
        self._film_layers = nn.ModuleList(
            FiLMLayer(lang_emb_dim, cast("BasicBlock", block).conv2.out_channels)
            for block in blocks
        )

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features of an image `[C, H, W]`."""
        return [output_channels("resnet18"), *(halved(side, 5) for side in input_shape[1:])]

    def forward(self, x: Tensor, lang_emb: Tensor) -> Tensor:  # type: ignore[override]
        """Maps `[B, C, H, W]` and embeddings `[B, E]` to `[B, 512, H / 32, W / 32]`."""
        x = self._base_block(x)
        for block, film in zip(self._conv_blocks, self._film_layers, strict=True):
            x = film(block(x), lang_emb)
        return x


class _R3MPreparation(nn.Module):
    """Resizes the shorter side to 256, crops 224 in the centre, and scales as for ImageNet."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        short = min(height, width)
        if short != 256:
            size = [256 * height // short, 256 * width // short]
            x = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=True)
        top, left = (round((side - 224) / 2) for side in x.shape[-2:])
        x = x[..., top : top + 224, left : left + 224]
        mean, std = x.new_tensor(_IMAGENET).view(2, 3, 1, 1).unbind()
        return (x - mean) / std


# Mean and standard deviation of ImageNet's red, green and blue, in 0 to 1.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@register_backbone
class R3MConv(ConvBase):
    """A ResNet with the weights of R3M, from a local file.

    Nair et al., "R3M: A Universal Visual Representation for Robot Manipulation" (2022),
    https://arxiv.org/abs/2203.12601. The file is the one that R3M publishes, its `model.pt`: a
    dict `r3m` of tensors, `module.convnet.conv1.weight` and so on. robomimic downloads it.

    Args:
        input_channel: 3.
        r3m_model_class: `resnet18`, `resnet34` or `resnet50`.
        freeze: never train the weights, nor BatchNorm's statistics.
        pretrained_path: the file.

    Raises:
        ConfigError: there is no such model, no file, or another number of channels.
    """

    def __init__(
        self,
        input_channel: int = 3,
        r3m_model_class: str = "resnet18",
        freeze: bool = True,
        pretrained_path: str | None = None,
    ) -> None:
        super().__init__()
        if r3m_model_class not in ARCHITECTURES:
            raise ConfigError(
                f"backbone_kwargs.r3m_model_class '{r3m_model_class}' is unknown"
                f"{did_you_mean(str(r3m_model_class), ARCHITECTURES)}"
            )
        if input_channel != 3:
            raise ConfigError(
                f"R3MConv takes images of 3 channels, not of {input_channel}: choose another "
                "backbone_class"
            )
        parts = resnet_parts(r3m_model_class)
        if weights.are_needed():
            weights.load_r3m(parts, pretrained_path)
        self._model_class, self._frozen = r3m_model_class, freeze
        self.nets = nn.Sequential(_R3MPreparation(), *parts, nn.AdaptiveAvgPool2d(1), nn.Identity())
        if freeze:
            self.nets.requires_grad_(False)
        self.nets.eval()

    def train(self, mode: bool = True) -> Self:
        """Sets training mode; a frozen network stays in evaluation mode."""
        super().train(mode)
        if self._frozen:
            self.nets.eval()
        return self

    def output_shape(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of the features of an image `[C, H, W]`."""
        return [output_channels(self._model_class), 1, 1]


@register_backbone
class MVPConv(ConvBase):
    """Not available: robomimic's vision transformer of MVP.

    Raises:
        ConfigError: always, with the reason.
    """

    def __init__(
        self,
        input_channel: int = 3,
        mvp_model_class: str = "vitb-mae-egosoup",
        freeze: bool = True,
    ) -> None:
        raise ConfigError(
            "backbone_class MVPConv is not available: its network and weights come from code on no "
            "package index (the package 'mvp' there is another program), which downloads them; "
            "choose 'R3MConv', or 'ResNet18Conv' with backbone_kwargs.pretrained"
        )
