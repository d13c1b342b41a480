"""Randomizers against slices, loops and the colour conversions of Python's library."""

import colorsys
from typing import Any

import pytest
import torch
from torch import Tensor

from raymimic.errors import ConfigError
from raymimic.models.obs_nets import ObservationEncoder
from raymimic.models.vision.draws import drawing_modules
from raymimic.models.vision.randomizers import (
    ColorRandomizer,
    CropRandomizer,
    GaussianNoiseRandomizer,
    RandomShift,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    crop,
    grey,
)
from raymimic.observations.shapes import ObsShapes

SHAPE = (3, 8, 9)


class Given:
    """Draws numbers that a test chooses, and remembers the shapes that were asked for."""

    def __init__(self, *uniform: Any, normal: float = 0.0) -> None:
        self.numbers, self.noise = list(uniform), normal
        self.shapes: list[tuple[int, ...]] = []

    def uniform(self, shape: Any) -> Tensor:
        self.shapes.append(tuple(shape))
        return torch.as_tensor(self.numbers.pop(0), dtype=torch.float32).expand(shape)

    def normal(self, shape: Any, like: Tensor) -> Tensor:
        self.shapes.append(tuple(shape))
        return torch.full(tuple(shape), self.noise, dtype=like.dtype)


def images(number: int = 2, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("channels_last", [False, True])
def test_crops_are_slices(channels_last: bool) -> None:
    x = images(3)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    tops, lefts = torch.tensor([0, 3, 2]), torch.tensor([4, 0, 1])
    found = crop(x, tops, lefts, 5, 4)
    for i, (top, left) in enumerate(zip(tops, lefts, strict=True)):
        assert torch.equal(found[i], x[i, :, top : top + 5, left : left + 4])
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=order)


def test_a_crop_has_a_place_for_each_variant_and_the_centre_in_evaluation() -> None:
    randomizer, x = CropRandomizer(SHAPE, 5, 4, num_crops=2), images()
    # Of 3 and 5 rows and columns of room: floor(3 u), floor(5 u).
    numbers = [[[0.0, 0.99], [0.34, 0.2]], [[0.7, 0.0], [0.99, 0.5]]]
    randomizer.draws = draws = Given(numbers)
    found = randomizer.forward_in(x)
    places = [(0, 4), (1, 1), (2, 0), (2, 2)]
    for i, (top, left) in enumerate(places):
        assert torch.equal(found[i], x[i // 2, :, top : top + 5, left : left + 4])
    assert draws.shapes == [(2, 2, 2)]
    features = torch.arange(8.0).reshape(4, 2)
    assert randomizer.forward_out(features).tolist() == [[1.0, 2.0], [5.0, 6.0]]
    randomizer.eval()
    assert torch.equal(randomizer.forward_in(x), x[:, :, 1:6, 2:6])
    assert torch.equal(randomizer.forward_out(features), features)


def test_a_crop_may_say_where_it_was() -> None:
    randomizer = CropRandomizer(SHAPE, 5, 4, pos_enc=True)
    assert randomizer.output_shape_in(SHAPE) == [5, 5, 4]
    randomizer.draws = Given([[0.4, 0.5]])
    x = images(1)
    found = randomizer.forward_in(x)
    assert torch.equal(found[0, :3], x[0, :, 1:6, 2:6])
    torch.testing.assert_close(found[0, 3, :, 0].tolist(), [i / 8 for i in range(1, 6)])
    torch.testing.assert_close(found[0, 4, 0].tolist(), [j / 9 for j in range(2, 6)])
    assert randomizer.eval().forward_in(x).shape == (1, 5, 5, 4)


def test_a_shift_repeats_the_border() -> None:
    randomizer, x = RandomShift(SHAPE, pad=2), images()
    randomizer.draws = Given([[[0.0, 0.99]], [[0.5, 0.5]]])  # up left of the padding; the middle
    found = randomizer.forward_in(x)
    rows = [max(0, i - 2) for i in range(8)]
    columns = [min(8, j + 2) for j in range(9)]
    assert torch.equal(found[0], x[0][:, rows][:, :, columns])
    assert torch.equal(found[1], x[1])
    assert torch.equal(randomizer.eval().forward_in(x), x)


def test_colours_change_as_in_hsv() -> None:
    x = images(2)
    x[0, :, 0, 0] = 0.5  # grey has no hue
    x[0, :, 0, 1] = torch.tensor([1.0, 0.0, 0.0])
    turns = torch.tensor([0.3, -0.45])
    found = adjust_hue(x, turns[:, None, None, None])
    for b in range(2):
        for i in range(8):
            for j in range(9):
                h, s, v = colorsys.rgb_to_hsv(*x[b, :, i, j].tolist())
                expected = colorsys.hsv_to_rgb((h + turns[b].item()) % 1.0, s, v)
                torch.testing.assert_close(
                    found[b, :, i, j].tolist(), list(expected), atol=1e-5, rtol=1e-5
                )


def test_brightness_contrast_and_saturation_blend() -> None:
    x, factor = images(), torch.tensor([0.4, 1.6])[:, None, None, None]
    luma = 0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    torch.testing.assert_close(grey(x)[:, 0], luma)
    torch.testing.assert_close(adjust_brightness(x, factor), (x * factor).clamp(0, 1))
    for b, f in enumerate((0.4, 1.6)):
        mean = luma[b].mean()
        torch.testing.assert_close(
            adjust_contrast(x, factor)[b], (mean + f * (x[b] - mean)).clamp(0, 1)
        )
        torch.testing.assert_close(
            adjust_saturation(x, factor)[b], (luma[b] + f * (x[b] - luma[b])).clamp(0, 1)
        )
    depth = x[:, :1]
    assert torch.equal(adjust_hue(depth, factor), depth)
    assert torch.equal(adjust_saturation(depth, factor), depth)


def test_each_variant_has_factors_and_an_order_of_its_own() -> None:
    randomizer = ColorRandomizer(
        SHAPE, brightness=0.5, contrast=[1.5, 2.5], saturation=None, hue=None
    )
    x = images()
    before = x.clone()
    factors = [[0.0, 0.5], [1.0, 0.0]]  # brightness 0.5 and 1.5, contrast 2 and 1.5
    order = [[0.1, 0.2], [0.9, 0.3]]  # brightness first; contrast first
    randomizer.draws = Given([[[factors[0], order[0]]], [[factors[1], order[1]]]])
    found = randomizer.forward_in(x)

    def factor(value: float) -> Tensor:
        return torch.full((1, 1, 1, 1), value)

    first = adjust_contrast(adjust_brightness(x[:1], factor(0.5)), factor(2.0))
    second = adjust_brightness(adjust_contrast(x[1:], factor(1.5)), factor(1.5))
    torch.testing.assert_close(found, torch.cat([first, second]))
    assert torch.equal(x, before)
    assert torch.equal(randomizer.eval().forward_in(x), x)


def test_noise_is_gaussian_and_limited() -> None:
    randomizer = GaussianNoiseRandomizer((4,), 0.1, 2.0, limits=[0.0, 1.5], num_samples=3)
    x = torch.tensor([[0.0, -3.0, 0.2, 1.0]])
    randomizer.draws = Given(normal=0.5)
    found = randomizer.forward_in(x)
    assert found.shape == (3, 4)
    torch.testing.assert_close(found[2], torch.tensor([1.1, 0.0, 1.3, 1.5]))
    assert torch.equal(randomizer.eval().forward_in(x), x)


def test_torchs_generator_is_the_default_source() -> None:
    x = images()
    for cls in (CropRandomizer, RandomShift, ColorRandomizer, GaussianNoiseRandomizer):
        randomizer = cls(SHAPE, 4, 4) if cls is CropRandomizer else cls(SHAPE)
        torch.manual_seed(3)
        first = randomizer.forward_in(x)
        assert not torch.equal(randomizer.forward_in(x), first)
        torch.manual_seed(3)
        assert torch.equal(randomizer.forward_in(x), first)


def make(classes: Any, kwargs: Any) -> ObservationEncoder:
    core = {"backbone_class": "ShallowConv", "pool_class": None, "feature_dimension": 2}
    rgb = {
        "core_class": "VisualCore",
        "core_kwargs": core,
        "obs_randomizer_class": classes,
        "obs_randomizer_kwargs": kwargs,
    }
    return ObservationEncoder(ObsShapes({"camera": SHAPE}, {"camera": "rgb"}), {"rgb": rgb})


def test_a_chain_stands_before_the_encoder_and_averages_after_it() -> None:
    crops = {"crop_height": 5, "crop_width": 4, "num_crops": 2}
    net = make(["CropRandomizer", "GaussianNoiseRandomizer"], [crops, {"num_samples": 3}])
    assert [name for name, _ in drawing_modules(net)] == [
        "obs_randomizers.camera.0",
        "obs_randomizers.camera.1",
    ]
    assert not any("randomizers" in key for key in net.state_dict())
    crop_at, noise = Given(0.0), Given(normal=0.1)
    (_, first), (_, second) = drawing_modules(net)
    first.draws, second.draws = crop_at, noise
    x = images(4)
    found = net({"camera": x})
    assert crop_at.shapes == [(4, 2, 2)]
    assert noise.shapes == [(4 * 2 * 3, 3, 5, 4)]
    core = net.obs_nets["camera"]
    expected = core(x[:, :, :5, :4] + 0.03).relu()
    torch.testing.assert_close(found, expected)
    net.eval()
    torch.testing.assert_close(net({"camera": x}), core(x[:, :, 1:6, 2:6]).relu())


def test_vectors_have_noise_too() -> None:
    low_dim = {
        "core_class": None,
        "obs_randomizer_class": "GaussianNoiseRandomizer",
        "obs_randomizer_kwargs": {"num_samples": 2},
    }
    net = ObservationEncoder(ObsShapes({"arm": (3,)}), {"low_dim": low_dim})
    (_, randomizer), *_ = drawing_modules(net)
    randomizer.draws = Given(normal=1.0)
    x = torch.randn(2, 3)
    torch.testing.assert_close(net({"arm": x}), x + 0.3)


@pytest.mark.parametrize(
    ("classes", "kwargs", "message"),
    [
        ("CropRandomizer", {}, "a crop of 76x76 .* does not fit into images of 8x9"),
        ("CropRandomizer", {"crop_height": 5, "crop_width": 4, "num_crops": 0}, "num_crops is 0"),
        (["CropRandomizer"], {"crop_height": 9, "crop_width": 4}, "does not fit"),
        (["RandomShift", None], [{}], "lists 2 in obs_randomizer_class and 1"),
        ("ColorRandomizer", {"hue": 0.7}, "hue is 0.7: .* between -0.5 and 0.5"),
        ("ColorRandomizer", {"contrast": [2.0, 1.0]}, r"contrast is \[2.0, 1.0\]"),
        ("GaussianNoiseRandomizer", {"limits": [1.0]}, "limits is"),
        ("RandomShift", {"pad": 0}, "pad is 0"),
    ],
)
def test_impossible_settings(classes: Any, kwargs: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(classes, kwargs)
    vectors = {"obs_randomizer_class": "RandomShift", "obs_randomizer_kwargs": {}}
    with pytest.raises(ConfigError, match="RandomShift takes images"):
        ObservationEncoder(ObsShapes({"arm": (3,)}), {"low_dim": vectors})
