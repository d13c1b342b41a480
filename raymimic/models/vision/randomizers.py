"""Randomizers: augment observations in training, on the device, for a whole batch at once.

A randomizer stands before the encoder of a key (`observation.encoder.<modality>.
obs_randomizer_class`; a list is a chain, the first one first). It may make several variants of each
sample, whose features are averaged after the encoder. In evaluation nothing is random: the centre
is cropped, and colours, noise and place stay as they are. `register_randomizer` makes one of the
user's own known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raymimic.errors import ConfigError
from raymimic.models.named_classes import NamedClasses
from raymimic.models.vision.convolutions import with_positions
from raymimic.models.vision.draws import DrawingModule

# Shares of red, green and blue in a grey value (ITU-R 601-2 luma, to torchvision's four digits).
_LUMA = (0.2989, 0.587, 0.114)


RANDOMIZERS: NamedClasses[Randomizer] = NamedClasses("a randomizer")
register_randomizer = RANDOMIZERS.register


class Randomizer(DrawingModule):
    """Base of randomizers. A subclass defines `_forward_in`, and may override the rest.

    It is known by its name, unless another class has that name already.

    It takes the argument `input_shape`, the shape of an observation as it comes in.

    Attributes:
        num_samples: variants of each sample, in training.
    """

    num_samples: int = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Registers the class, as in robomimic."""
        super().__init_subclass__(**kwargs)
        RANDOMIZERS.offer(cls)

    def output_shape_in(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of an observation after `forward_in`."""
        return list(input_shape)

    def output_shape_out(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of features after `forward_out`."""
        return list(input_shape)

    def forward_in(self, x: Tensor) -> Tensor:
        """Augments observations `[B, *shape]`.

        Returns:
            In training `[B * num_samples, *shape]`, variants of one sample side by side, in
            evaluation `[B, *shape]`.
        """
        return self._forward_in(x) if self.training else self._forward_in_eval(x)

    def forward_out(self, x: Tensor) -> Tensor:
        """Averages the features of a sample's variants, in training."""
        return self._forward_out(x) if self.training else self._forward_out_eval(x)

    def _forward_in(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _forward_in_eval(self, x: Tensor) -> Tensor:
        return x

    def _forward_out(self, x: Tensor) -> Tensor:
        if self.num_samples == 1:
            return x
        return x.reshape(-1, self.num_samples, *x.shape[1:]).mean(dim=1)

    def _forward_out_eval(self, x: Tensor) -> Tensor:
        return x

    def _uniform(self, rows: int, *shape: int) -> Tensor:
        """Draws numbers of each variant: `[rows * num_samples, *shape]` in [0, 1), on the CPU."""
        return self.draws.uniform((rows, self.num_samples, *shape)).flatten(0, 1)


def crop(images: Tensor, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Cuts a window out of each image.

    Args:
        images: `[B, C, H, W]`.
        top: `[B]`, the window's first row in each image.
        left: `[B]`, its first column.
        height: of the windows.
        width: of the windows.

    Returns:
        `[B, C, height, width]`, with the images' order of dimensions in memory.
    """
    # All windows of all images, as a view: [B, rows, columns, height, width, C].
    windows = images.permute(0, 2, 3, 1).unfold(1, height, 1).unfold(2, width, 1).movedim(3, -1)
    rows = torch.arange(len(images), device=images.device)
    return windows[rows, top, left].permute(0, 3, 1, 2)


def _variants(x: Tensor, number: int) -> Tensor:
    """Repeats each row, copies side by side."""
    return x if number == 1 else x.repeat_interleave(number, dim=0)


def _image_shape(input_shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """Returns channels, height and width.

    Raises:
        ConfigError: it is no shape of an image.
    """
    if len(input_shape) != 3:
        raise ConfigError(
            f"{name} takes images, but the observation has the shape {list(input_shape)}: set "
            "obs_randomizer_class to null"
        )
    channels, height, width = input_shape
    return channels, height, width


def _check_number(number: int, name: str) -> int:
    if not isinstance(number, int) or number < 1:
        raise ConfigError(f"obs_randomizer_kwargs.{name} is {number}: it must be at least 1")
    return number


@register_randomizer
class CropRandomizer(Randomizer):
    """Crops at a random place; in evaluation in the centre.

    The window's place is uniform over all but the lowest and the rightmost one, as in robomimic.

    Args:
        input_shape: `[C, H, W]` of the image.
        crop_height: rows that are left.
        crop_width: columns that are left.
        num_crops: crops of each image.
        pos_enc: add two channels, y / H and x / W of each pixel in the whole image. (robomimic
            lacks them in evaluation, and fails.)

    Raises:
        ConfigError: the crop is larger than the image.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        crop_height: int = 76,
        crop_width: int = 76,
        num_crops: int = 1,
        pos_enc: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = _image_shape(input_shape, "CropRandomizer")
        if not (1 <= crop_height <= height and 1 <= crop_width <= width):
            raise ConfigError(
                f"a crop of {crop_height}x{crop_width} (obs_randomizer_kwargs.crop_height, "
                f"crop_width) does not fit into images of {height}x{width}: make it smaller"
            )
        self.crop_height, self.crop_width = crop_height, crop_width
        self.num_samples = _check_number(num_crops, "num_crops")
        if not isinstance(pos_enc, bool | int):
            raise ConfigError(f"obs_randomizer_kwargs.pos_enc is {pos_enc}: it must be a boolean")
        self.pos_enc = bool(pos_enc)
        self._channels = channels

    def output_shape_in(self, input_shape: Sequence[int]) -> list[int]:
        """Returns the shape of a crop."""
        return [self._channels + 2 * self.pos_enc, self.crop_height, self.crop_width]

    def _forward_in(self, x: Tensor) -> Tensor:
        rows, (height, width) = len(x), x.shape[-2:]
        room = torch.tensor([height - self.crop_height, width - self.crop_width])
        places = (self._uniform(rows, 2) * room).long().to(x.device)
        x = _variants(with_positions(x) if self.pos_enc else x, self.num_samples)
        return crop(x, places[:, 0], places[:, 1], self.crop_height, self.crop_width)

    def _forward_in_eval(self, x: Tensor) -> Tensor:
        x = with_positions(x) if self.pos_enc else x
        top = (x.shape[-2] - self.crop_height) // 2
        left = (x.shape[-1] - self.crop_width) // 2
        return x[..., top : top + self.crop_height, left : left + self.crop_width]


@register_randomizer
class RandomShift(Randomizer):
    """Shifts by up to `pad` pixels, the border repeated; in evaluation not at all.

    Kostrikov, Yarats & Fergus, "Image Augmentation Is All You Need" (DrQ, 2020),
    https://arxiv.org/abs/2004.13649. It is not in robomimic.

    Args:
        input_shape: `[C, H, W]` of the image.
        pad: largest shift, in pixels.
        num_samples: shifts of each image.
    """

    def __init__(self, input_shape: Sequence[int], pad: int = 4, num_samples: int = 1) -> None:
        super().__init__()
        _image_shape(input_shape, "RandomShift")
        self.pad = _check_number(pad, "pad")
        self.num_samples = _check_number(num_samples, "num_samples")

    def _forward_in(self, x: Tensor) -> Tensor:
        rows, (height, width) = len(x), x.shape[-2:]
        places = (self._uniform(rows, 2) * (2 * self.pad + 1)).long().to(x.device)
        padded = _variants(F.pad(x, (self.pad,) * 4, mode="replicate"), self.num_samples)
        return crop(padded, places[:, 0], places[:, 1], height, width)


Strength = float | Sequence[float] | None


@register_randomizer
class ColorRandomizer(Randomizer):
    """Changes brightness, contrast, saturation and hue, in random order; in evaluation nothing.

    Images are in 0 to 1. Each variant has factors and an order of its own. A number x stands for
    factors of 1 - x to 1 + x, two numbers for the factors between them, null for no change.

    Args:
        input_shape: `[C, H, W]` of the image, of one channel or three.
        brightness: factor of all values.
        contrast: factor of the distance from the mean grey value.
        saturation: factor of the distance from each pixel's grey value.
        hue: turn of the colour circle, in turns; a number x stands for -x to x.
        num_samples: variants of each image.

    Raises:
        ConfigError: a factor is negative or a turn beyond a half, or the image has other channels.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        brightness: Strength = 0.3,
        contrast: Strength = 0.3,
        saturation: Strength = 0.3,
        hue: Strength = 0.3,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        channels, _, _ = _image_shape(input_shape, "ColorRandomizer")
        if channels not in (1, 3):
            raise ConfigError(
                f"ColorRandomizer takes images of 1 or 3 channels, not of {channels}: put it "
                "before other randomizers, or set obs_randomizer_class to null"
            )
        self.num_samples = _check_number(num_samples, "num_samples")
        ranges = {
            "brightness": _range("brightness", brightness, 1.0, 0.0, math.inf),
            "contrast": _range("contrast", contrast, 1.0, 0.0, math.inf),
            "saturation": _range("saturation", saturation, 1.0, 0.0, math.inf),
            "hue": _range("hue", hue, 0.0, -0.5, 0.5),
        }
        self._ranges = {name: ends for name, ends in ranges.items() if ends is not None}

    def _forward_in(self, x: Tensor) -> Tensor:
        rows, number = len(x), len(self._ranges)
        if number == 0:
            return _variants(x, self.num_samples)
        drawn = self._uniform(rows, 2, number)
        low, high = torch.tensor(list(self._ranges.values())).T
        factors = low + (high - low) * drawn[:, 0]
        order = drawn[:, 1].argsort(dim=1, stable=True)  # [rows, number]: which change comes when
        x = _variants(x, self.num_samples)
        x = x.clone() if self.num_samples == 1 else x
        for turn in range(number):
            for i, name in enumerate(self._ranges):
                chosen = (order[:, turn] == i).nonzero()[:, 0]
                factor = factors[chosen, i].to(x.device, x.dtype)[:, None, None, None]
                chosen = chosen.to(x.device)
                x[chosen] = _CHANGES[name](x[chosen], factor)
        return x


def _range(
    name: str, strength: Strength, middle: float, low: float, high: float
) -> tuple[float, float] | None:
    """Returns the least and greatest factor of a change, None if there is none.

    Raises:
        ConfigError: they are out of bounds or order.
    """
    if strength is None:
        return None
    if isinstance(strength, int | float):
        ends = (max(0.0, middle - strength) if middle else -strength, middle + strength)
    elif len(strength) == 2:
        ends = (float(strength[0]), float(strength[1]))
    else:
        ends = (1.0, 0.0)
    if not low <= ends[0] <= ends[1] <= high:
        limits = "between -0.5 and 0.5" if name == "hue" else "of at least 0"
        raise ConfigError(
            f"obs_randomizer_kwargs.{name} is {strength}: give a number, or [least, greatest] "
            f"{limits}"
        )
    return ends


def grey(x: Tensor) -> Tensor:
    """Returns the grey values `[..., 1, H, W]` of images `[..., C, H, W]`, C = 1 or 3."""
    if x.shape[-3] == 1:
        return x
    red, green, blue = x.unbind(dim=-3)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue).unsqueeze(-3)


def _blend(x: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    return (factor * x + (1.0 - factor) * other).clamp(0.0, 1.0)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiplies images `[B, C, H, W]` by factors `[B, 1, 1, 1]`; at most 1."""
    return _blend(x, 0.0, factor)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Moves images `[B, C, H, W]` away from their mean grey value by factors `[B, 1, 1, 1]`."""
    return _blend(x, grey(x).mean(dim=(-3, -2, -1), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Moves images `[B, C, H, W]` away from their grey values by factors `[B, 1, 1, 1]`."""
    return x if x.shape[-3] == 1 else _blend(x, grey(x), factor)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the colours of images `[B, C, H, W]`, by way of HSV.

    Args:
        x: in 0 to 1.
        turn: `[B, 1, 1, 1]`, in whole turns of the colour circle.
    """
    if x.shape[-3] == 1:
        return x
    value = x.amax(dim=-3, keepdim=True)
    chroma = value - x.amin(dim=-3, keepdim=True)
    red, green, blue = (channel.unsqueeze(-3) for channel in x.unbind(dim=-3))
    divisor = torch.where(chroma == 0, 1.0, chroma)
    sector = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor),
    )
    # A colour's channel is value - chroma * clamp(min(k, 4 - k)), k = (n + sector) mod 6.
    offsets = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype)[:, None, None]
    k = (offsets + sector + 6.0 * turn) % 6.0
    return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


_CHANGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": adjust_brightness,
    "contrast": adjust_contrast,
    "saturation": adjust_saturation,
    "hue": adjust_hue,
}


@register_randomizer
class GaussianNoiseRandomizer(Randomizer):
    """Adds noise to observations of any shape; in evaluation none.

    The noise is Gaussian. (robomimic's is uniform, from `noise_mean` to `noise_mean + noise_std`.)

    Args:
        input_shape: of the observation.
        noise_mean: mean of the noise.
        noise_std: its standard deviation.
        limits: least and greatest value of the result; None: any.
        num_samples: variants of each observation.

    Raises:
        ConfigError: `limits` are not two numbers in order, or another argument is no number.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        noise_mean: float = 0.0,
        noise_std: float = 0.3,
        limits: Sequence[float] | None = None,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        if limits is not None and (len(limits) != 2 or not limits[0] <= limits[1]):
            raise ConfigError(
                f"obs_randomizer_kwargs.limits is {limits}: give [least, greatest] or null"
            )
        for name, number in (("noise_mean", noise_mean), ("noise_std", noise_std)):
            if not isinstance(number, int | float):
                raise ConfigError(f"obs_randomizer_kwargs.{name} is {number}: it must be a number")
        self.noise_mean, self.noise_std = noise_mean, noise_std
        self.limits = limits
        self.num_samples = _check_number(num_samples, "num_samples")

    def _forward_in(self, x: Tensor) -> Tensor:
        x = _variants(x, self.num_samples)
        x = x + self.draws.normal(x.shape, x) * self.noise_std + self.noise_mean
        return x if self.limits is None else x.clamp(*self.limits)
