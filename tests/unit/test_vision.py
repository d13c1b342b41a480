"""Networks for images against explicit computations, without torchvision."""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.config.checks import check_config
from raymimic.errors import ConfigError
from raymimic.models import vision
from raymimic.models.obs_core import ENCODER_CORES, EncoderCore, ScanCore, VisualCore
from raymimic.models.obs_nets import ObservationEncoder, ObservationGroupEncoder, states_for
from raymimic.models.trial import first_pass
from raymimic.models.value_nets import ActionValueNetwork
from raymimic.models.vision.convolutions import (
    BACKBONES,
    Conv1dBase,
    CoordConv2d,
    ImpalaConv,
    ShallowConv,
)
from raymimic.models.vision.norms import replace_bn_with_gn
from raymimic.models.vision.pools import POOLS, FeatureAggregator, SpatialMeanPool, SpatialSoftmax
from raymimic.models.vision.resnets import ResNet18Conv, ResNet50Conv
from raymimic.models.vision.weights import weights_follow
from raymimic.observations.shapes import ObsShapes
from raymimic.tensors import repeat_rows

IMAGE = (3, 20, 24)
SMALL: dict[str, Any] = {
    "backbone_class": "ShallowConv",
    "pool_kwargs": {"num_kp": 4},
    "feature_dimension": 5,
}


def encoder(rgb: dict[str, Any], *cameras: str, **shapes: Any) -> ObservationEncoder:
    keys = {**dict.fromkeys(cameras or ("camera",), IMAGE), **shapes}
    modalities = dict.fromkeys(cameras or ("camera",), "rgb")
    rgb = {"core_class": "VisualCore", "core_kwargs": SMALL, **rgb}
    return ObservationEncoder(ObsShapes(keys, modalities), {"rgb": rgb, "low_dim": {}})


def core(**kwargs: Any) -> dict[str, Any]:
    return {"core_kwargs": {**SMALL, **kwargs}}


def augmented(name: str, **kwargs: Any) -> dict[str, Any]:
    return {"obs_randomizer_class": name, "obs_randomizer_kwargs": kwargs}


def residual_keys(prefix: str, convolutions: int, downsample: bool) -> set[str]:
    norms = [f"{prefix}bn{i}" for i in range(1, convolutions + 1)]
    norms += [f"{prefix}downsample.1"] * downsample
    names = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{norm}.{name}" for norm in norms for name in names}
    keys |= {f"{prefix}conv{i}.weight" for i in range(1, convolutions + 1)}
    return keys | {f"{prefix}downsample.0.weight"} if downsample else keys


@pytest.mark.parametrize(
    ("cls", "numbers", "convolutions", "channels", "parameters"),
    [
        (ResNet18Conv, (2, 2, 2, 2), 2, 512, 11176512),
        (ResNet50Conv, (3, 4, 6, 3), 3, 2048, 23508032),
    ],
)
def test_a_resnet_has_torchvisions_parameters(
    cls: Any, numbers: Any, convolutions: int, channels: int, parameters: int
) -> None:
    with torch.device("meta"):
        net = cls()
    expected = {"nets.0.weight"} | {
        f"nets.1.{name}"
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    }
    for layer, number in enumerate(numbers):
        for block in range(number):
            first = block == 0 and (layer > 0 or convolutions == 3)
            expected |= residual_keys(f"nets.{layer + 4}.{block}.", convolutions, first)
    assert set(net.state_dict()) == expected
    assert sum(p.numel() for p in net.parameters()) == parameters  # torchvision's, without fc
    assert net(torch.empty(2, 3, 70, 50, device="meta")).shape == (2, channels, 3, 2)
    assert net.output_shape((3, 70, 50)) == [channels, 3, 2]


def test_a_resnets_block_adds_its_input_before_the_last_relu() -> None:
    torch.manual_seed(0)
    block = ResNet18Conv().nets[5][0].eval()
    x = torch.randn(2, 64, 6, 6)
    inner = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    expected = (inner + block.downsample[1](block.downsample[0](x))).relu()
    torch.testing.assert_close(block(x), expected)
    assert block.conv1.stride == block.downsample[0].stride == (2, 2)


def test_other_inputs_have_a_first_convolution_of_their_own() -> None:
    assert ResNet18Conv(input_channel=1).nets[0].weight.shape == (64, 1, 7, 7)
    net = ResNet18Conv(input_channel=4, input_coord_conv=True)
    assert net.nets[0].weight.shape == (64, 6, 7, 7)
    assert isinstance(net.nets[0], CoordConv2d)


def test_coordinates_are_two_more_channels() -> None:
    net = CoordConv2d(1, 1, 1, bias=False)
    x = torch.randn(2, 1, 3, 4)
    w = net.weight.flatten().tolist()
    for b in range(2):
        for i in range(3):
            for j in range(4):
                expected = w[0] * x[b, 0, i, j] + w[1] * i / 3 + w[2] * j / 4
                torch.testing.assert_close(net(x)[b, 0, i, j], expected)
    with pytest.raises(ConfigError, match="coord_encoding 'polar' is unknown"):
        CoordConv2d(1, 1, 1, coord_encoding="polar")


def test_keypoints_are_the_means_of_a_softmax() -> None:
    torch.manual_seed(0)
    pool = SpatialSoftmax([3, 4, 5], num_kp=2, temperature=0.7, output_variance=True)
    x = torch.randn(2, 3, 4, 5)
    maps = pool.nets(x) if pool.nets is not None else x
    found = pool(x)
    assert list(found.shape[1:]) == pool.output_shape() == [2, 6]
    for b in range(2):
        for k in range(2):
            weights = {
                (i, j): math.exp(maps[b, k, i, j].item() / 0.7) for i in range(4) for j in range(5)
            }
            total = sum(weights.values())
            at = {(i, j): (-1 + 2 * j / 4, -1 + 2 * i / 3) for i, j in weights}

            def mean(
                f: Callable[..., float], w: Any = weights, at: Any = at, n: float = total
            ) -> float:
                return sum(p * f(*at[place]) for place, p in w.items()) / n

            x_mean, y_mean = mean(lambda x, y: x), mean(lambda x, y: y)
            covariance = mean(lambda x, y: x * y) - x_mean * y_mean
            expected = [
                *(x_mean, y_mean, mean(lambda x, y: x * x) - x_mean**2, covariance, covariance),
                mean(lambda x, y: y * y) - y_mean**2,
            ]
            torch.testing.assert_close(found[b, k].tolist(), expected, atol=1e-5, rtol=1e-5)


def test_keypoints_have_noise_in_training_only_and_a_temperature_to_learn() -> None:
    pool = SpatialSoftmax([3, 4, 5], num_kp=None, noise_std=0.5, learnable_temperature=True)
    assert dict(pool.named_parameters()).keys() == {"temperature"}
    x = torch.randn(2, 3, 4, 5)
    pool.eval()
    still = pool(x)
    assert torch.equal(pool(x), still)
    pool.train()

    class Ones:
        def normal(self, shape: Any, like: Tensor) -> Tensor:
            return torch.ones(shape)

    pool.draws = Ones()  # type: ignore[assignment]
    torch.testing.assert_close(pool(x), still + 0.5)
    quiet = SpatialSoftmax([3, 4, 5])
    assert not dict(quiet.named_parameters()).keys() & {"temperature"}
    assert {"temperature", "pos_x", "pos_y"} <= quiet.state_dict().keys()


def test_means_over_the_map_and_over_patches() -> None:
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(SpatialMeanPool([3, 4, 5])(x), x.mean(dim=(2, 3)))
    patches = FeatureAggregator(dim=1, agg_type="w_avg")
    with pytest.raises(RuntimeError, match="set_weight"):
        patches(x)
    patches.set_weight(torch.tensor([1.0, 0.0, 2.0])[:, None, None])
    torch.testing.assert_close(patches(x), x[:, 0] + 2 * x[:, 2])
    torch.testing.assert_close(FeatureAggregator()(x), x.mean(dim=1))


@pytest.mark.parametrize("name", ["ImpalaConv", "ResNet18Conv", "ShallowConv"])
@pytest.mark.parametrize("size", [(33, 17), (16, 20)])
def test_a_backbone_knows_the_shape_of_its_features(name: str, size: tuple[int, int]) -> None:
    net = BACKBONES.make(name, "backbone_class", {}, input_channel=2)
    features = net(torch.zeros(2, 2, *size))
    assert list(features.shape[1:]) == net.output_shape((2, *size))


def test_the_keys_of_the_small_networks() -> None:
    def keys(net: nn.Module) -> set[str]:
        return {key.removesuffix(".weight") for key in net.state_dict() if "weight" in key}

    assert keys(ShallowConv()) == {"nets.0", "nets.2", "nets.4", "nets.6"}
    assert keys(Conv1dBase()) == {"nets.conv0", "nets.conv1", "nets.conv2"}
    assert keys(ImpalaConv(stack_sizes=[4])) == {"nets.0", "nets.2.nets.1", "nets.2.nets.3"}


def test_a_visual_core_is_backbone_pool_and_a_linear_layer() -> None:
    core = VisualCore(IMAGE, **SMALL)
    assert {"backbone.nets.0.weight", "nets.0.nets.0.weight", "pool.nets.weight", "pool.pos_x"} < (
        core.state_dict().keys()
    )
    assert core.nets[3].weight.shape == (5, 8)
    x = torch.randn(2, *IMAGE)
    keypoints = core.pool(core.backbone(x)) if core.pool is not None else x
    torch.testing.assert_close(core(x), core.nets[3](keypoints.flatten(1)))
    assert core.output_dim == 5
    bare = VisualCore(IMAGE, "ShallowConv", pool_class=None, feature_dimension=None, flatten=False)
    assert bare(x).shape == (2, 32, 10, 12)
    assert bare.output_dim == 32 * 10 * 12
    with pytest.raises(ConfigError, match="made for"):
        core(torch.zeros(2, 3, 24, 20))


def test_a_scan_core_convolves_over_the_length() -> None:
    core = ScanCore((2, 60), feature_dimension=7, pool_class="SpatialMeanPool", pool_kwargs={})
    assert core(torch.randn(3, 2, 60)).shape == (3, 7)
    assert {"backbone.nets.conv0.weight", "nets.0.nets.conv2.bias", "nets.4.weight"} < (
        core.state_dict().keys()
    )
    flat = ScanCore((1, 60), conv_kwargs={"out_channels": [4], "kernel_size": [5], "stride": [3]})
    assert flat.output_dim == flat(torch.randn(3, 1, 60)).shape[1] == 4 * 19


@pytest.mark.parametrize(
    ("rgb", "message"),
    [
        ({"core_class": "VisualCor"}, "core_class 'VisualCor' is not available; did you mean 'Vis"),
        ({"core_kwargs": {"pool_clas": None}}, "core_kwargs.pool_clas: VisualCore has no such"),
        (
            {"core_kwargs": {"backbone_class": "ResNet18Con"}},
            "backbone_class 'ResNet18Con' is not available; did you mean 'ResNet18Conv'",
        ),
        (
            {"core_kwargs": {"backbone_kwargs": {"pretraind": True}}},
            r"backbone_kwargs.pretraind: ResNet18Conv has no such argument; did you mean 'pretrain",
        ),
        (
            {"core_kwargs": {"backbone_kwargs": {"input_channel": 3}}},
            "backbone_kwargs.input_channel follows from the data",
        ),
        ({"core_kwargs": {"pool_class": "MaxPool"}}, "pool_class 'MaxPool' is not available"),
        ({"core_kwargs": {"flatten": False}}, "set core_kwargs.flatten to true"),
        ({"core_kwargs": {"feature_dimension": "a"}}, "core_kwargs: VisualCore cannot be made"),
        (
            {"obs_randomizer_class": "CropRandomizr", "obs_randomizer_kwargs": {}},
            "did you mean 'CropRandomizer'",
        ),
        (
            {"obs_randomizer_class": "CropRandomizer", "obs_randomizer_kwargs": {"crop": 3}},
            "obs_randomizer_kwargs.crop: CropRandomizer has no such argument",
        ),
        ({"core_class": "ScanCore", "core_kwargs": {}}, "ScanCore encodes scans"),
        (core(pool_kwargs={"noise_std": None}), "pool_kwargs.noise_std is None: it must be"),
        (core(pool_kwargs={"num_kp": -1}), "pool_kwargs.num_kp is -1: it must be at least 1"),
        (core(pool_kwargs={"num_kp": 0}), "pool_kwargs.num_kp is 0: it must be at least 1"),
        (core(pool_kwargs={"num_kp": "a"}), "pool_kwargs: SpatialSoftmax cannot be made of {'num"),
        (core(pool_kwargs={"temperature": []}), "pool_kwargs: SpatialSoftmax cannot be made of"),
        (core(pool_kwargs=["a"]), r"pool_kwargs is \['a'\]: it must be a section"),
        (core(backbone_kwargs=3), "backbone_kwargs is 3: it must be a section"),
        ({"core_kwargs": [3]}, r"core_kwargs is \[3\]: it must be a section"),
        (core(backbone_class="ResNet18ConvFiLM"), "'ResNet18ConvFiLM' takes language"),
        (core(feature_dimension=-5), "core_kwargs.feature_dimension is -5: it must be at least 1"),
        (core(feature_dimension=0), "core_kwargs.feature_dimension is 0: it must be at least 1"),
        (core(backbone_kwargs={"output_channel": -1}), "backbone_kwargs.output_channel is -1"),
        (core(backbone_kwargs={"output_channel": "a"}), "backbone_kwargs: ShallowConv cannot be"),
        (core(backbone_class="ImpalaConv", backbone_kwargs={"stack_sizes": []}), "stack_sizes is"),
        (core(backbone_class="ImpalaConv", backbone_kwargs={"stack_sizes": [0]}), "stack_sizes is"),
        (
            core(backbone_class="ImpalaConv", backbone_kwargs={"stack_sizes": 3}),
            "backbone_kwargs: ImpalaConv cannot be made of {'stack_sizes': 3}: TypeError",
        ),
        (
            core(
                backbone_class="ResNet18Conv",
                backbone_kwargs={"pretrained": True, "pretrained_path": "~nobody-at-all/x"},
            ),
            "backbone_kwargs: ResNet18Conv cannot be made of .*~nobody-at-all/x.*home",
        ),
        (augmented("CropRandomizer", crop_height=9, crop_width=9, pos_enc=None), "pos_enc is None"),
        (augmented("CropRandomizer", crop_height=9.5, crop_width=9), "CropRandomizer with .*9.5"),
        (augmented("CropRandomizer", crop_height=None), "CropRandomizer cannot be made of"),
        (augmented("GaussianNoiseRandomizer", noise_std=None), "noise_std is None: it must be a"),
        (augmented("GaussianNoiseRandomizer", limits=3), "GaussianNoiseRandomizer cannot be made"),
    ],
)
def test_settings_that_do_not_exist(rgb: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        encoder(rgb)
    assert "observation key 'camera' is rgb" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"stride": [4, 0, 1]}, r"conv_kwargs.stride is \[4, 0, 1\]: each must be at least 1"),
        ({"out_channels": [-1, 2, 3]}, "conv_kwargs.out_channels is"),
        ({"padding": ["same"] * 3}, "core_kwargs: ScanCore cannot be made of"),
        ({"padding": [-9, 0, 0]}, "conv_kwargs.padding is .*: each must be at least 0"),
        ({"padding": "same"}, "conv_kwargs.padding is same: list one for each"),
        ({"groups": [2, 1, 1]}, "core_kwargs: ScanCore cannot be made of"),
        ([3], "core_kwargs: ScanCore cannot be made of"),
    ],
)
def test_scans_that_cannot_be_encoded(kwargs: Any, message: str) -> None:
    shapes = ObsShapes({"laser": (1, 60)}, {"laser": "scan"})
    with pytest.raises(ConfigError, match=message) as caught:
        ObservationEncoder(
            shapes, {"scan": {"core_class": "ScanCore", "core_kwargs": {"conv_kwargs": kwargs}}}
        )
    assert "\n" not in str(caught.value)


def test_a_scans_length_stays_where_the_padding_is_the_same() -> None:
    for padding, length in (("same", 60), ("valid", 56)):
        net = Conv1dBase(1, None, [4], [5], [1], padding=[padding])
        assert net.output_shape([1, 60]) == [4, length]
        assert net(torch.zeros(2, 1, 60)).shape == (2, 4, length)


def test_an_image_without_pixels() -> None:
    with pytest.raises(ConfigError, match=r"an image of the shape \[3, 0, 24\] has no pixels"):
        encoder({}, camera=(3, 0, 24))


class Moody(EncoderCore):
    """A core that does all that a first pass must undo, and fails as it is told."""

    output_dim = 3
    count: Tensor

    def __init__(self, input_shape: Any, mood: str = "good") -> None:
        super().__init__(input_shape)
        self.mood = mood
        self.norm = nn.BatchNorm2d(3)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        if self.mood != "shapes" and x.sum().item() != 0.0:  # "meta" has no values
            raise AssertionError
        if self.mood == "bad":
            raise IndexError("a reason\nin two lines")
        features = self.norm(x + 0 * torch.rand(x.shape)).mean(dim=(2, 3))
        return features[:, :2] if self.mood == "short" else features


@pytest.mark.parametrize("mood", ["good", "shapes"])
def test_a_first_pass_leaves_no_trace(mood: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(ENCODER_CORES._classes, "Moody", Moody)
    before = torch.get_rng_state()
    net = encoder({"core_class": "Moody", "core_kwargs": {"mood": mood}})
    assert torch.equal(torch.get_rng_state(), before)
    core = net.obs_nets["camera"]
    assert all(module.training for module in net.modules())
    assert core.count == 0
    norm = cast("nn.BatchNorm2d", core.norm)
    assert norm.num_batches_tracked == 0
    assert norm.running_mean is not None
    assert norm.running_mean.device.type == "cpu"
    assert all(p.device.type == "cpu" for p in net.parameters())


def test_a_first_pass_gives_a_network_its_tensors_back() -> None:
    net = VisualCore(IMAGE, **SMALL)  # has its backbone and its pool twice
    net.double()  # inputs are float32
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    numbers = {name: x.detach().clone() for name, x in tensors.items()}
    y = first_pass(net, lambda: (torch.zeros(2, *IMAGE),))
    assert y is not None
    assert y.shape == (2, 5)
    assert y.device.type == "meta"
    after = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    assert list(after) == list(tensors)
    assert all(after[name] is x and torch.equal(x, numbers[name]) for name, x in tensors.items())


@pytest.mark.parametrize(
    ("mood", "message"),
    [
        ("bad", r"core_kwargs: Moody with {'mood': 'bad'} fails on the shape .*: IndexError: a re"),
        ("short", r"it makes \[2, 2\] of 2 observations, but its output_dim is 3"),
    ],
)
def test_an_encoder_that_fails_does_so_at_once(mood: str, message: str, monkeypatch: Any) -> None:
    monkeypatch.setitem(ENCODER_CORES._classes, "Moody", Moody)
    with pytest.raises(ConfigError, match=message) as caught:
        encoder({"core_class": "Moody", "core_kwargs": {"mood": mood}})
    assert "\n" not in str(caught.value)
    with weights_follow():  # a checkpoint's network was tried before its training
        encoder({"core_class": "Moody", "core_kwargs": {"mood": mood}})


def test_a_keyword_of_another_class_is_left_out_with_a_warning(caplog: Any) -> None:
    kwargs = {**SMALL, "backbone_kwargs": {"pretrained": False}, "pool_class": "SpatialMeanPool"}
    encoder({"core_kwargs": kwargs})
    assert "backbone_kwargs.pretrained has no effect: ShallowConv" in caplog.text
    assert "pool_kwargs.num_kp has no effect: SpatialMeanPool" in caplog.text


def test_features_of_keys_stand_in_order_after_an_activation() -> None:
    net = encoder({}, arm=(2,))
    images, arm = torch.randn(3, *IMAGE), torch.randn(3, 2)
    features = net({"camera": images, "arm": arm})
    assert features.shape == (3, 7)
    assert net.output_dim == 7
    torch.testing.assert_close(features[:, :5], net.obs_nets["camera"](images).relu())
    assert torch.equal(features[:, 5:], arm)


def test_two_keys_share_an_encoder() -> None:
    net = encoder({"share_net_from": {"left": "right"}}, "left", "right")
    assert net.obs_nets["left"] is net.obs_nets["right"]
    assert {k.split(".")[1] for k in net.state_dict()} == {"left", "right"}
    images = torch.randn(2, *IMAGE)
    left, right = net({"left": images, "right": images}).split(5, dim=1)
    assert torch.equal(left, right)
    for source, message in (("rihgt", "did you mean 'right'"), ("left", "no encoder of its own")):
        with pytest.raises(ConfigError, match=message):
            encoder({"share_net_from": {"left": source}}, "left", "right")
    with pytest.raises(ConfigError, match=r"'right', which is not in the same group .* as 'left'"):
        encoder({"share_net_from": {"left": "right"}}, "left")
    with pytest.raises(ConfigError, match=r"whose encoder takes the shape \[3, 20, 24\]"):
        ObservationEncoder(
            ObsShapes({"a": IMAGE, "b": (3, 24, 24)}, {"a": "rgb", "b": "rgb"}),
            {
                "rgb": {
                    "core_class": "VisualCore",
                    "core_kwargs": SMALL,
                    "share_net_from": {"b": "a"},
                }
            },
        )


@pytest.mark.parametrize(
    ("sharing", "message"),
    [
        ({"wrst": "front"}, r"share_net_from' names 'wrst', .*; did you mean 'wrist'"),
        ({"joints": "front"}, "'joints', which is no observation of modality 'rgb'"),
        ({"wrist": ["front"]}, r"share_net_from.wrist' is \['front'\]: it must be the name"),
        ({"wrist": "front", "far": "front"}, None),
    ],
)
def test_keys_that_share_an_encoder_are_listed_in_some_group(
    sharing: dict[str, Any], message: str | None
) -> None:
    config = config_factory("bc")
    with config.unlocked():
        config.train.data = "demos.hdf5"
        config.train.goal_mode = "last"
        config.observation.modalities.obs.low_dim = ["joints"]
        config.observation.modalities.obs.rgb = ["front", "wrist"]
        config.observation.modalities.goal.rgb = ["front", "far"]
        config.observation.encoder.rgb.share_net_from = sharing
    if message is None:
        check_config(config)
    else:
        with pytest.raises(ConfigError, match=message) as caught:
            check_config(config)
        assert "\n" not in str(caught.value)


def test_a_key_shares_with_one_key() -> None:
    with pytest.raises(ConfigError, match=r"share_net_from.left is \['right'\]"):
        encoder({"share_net_from": {"left": ["right"]}}, "left", "right")


def test_the_default_encoder_takes_arguments() -> None:
    shapes = ObsShapes({"camera": IMAGE}, {"camera": "rgb"})
    net = ObservationEncoder(shapes, {"rgb": {"core_kwargs": SMALL}})
    assert net.output_dim == 5
    assert ObservationEncoder(shapes, {"rgb": {"core_class": None}}).output_dim == 3 * 20 * 24


def test_a_chain_of_randomizers_is_short() -> None:
    names = ["GaussianNoiseRandomizer"]
    for number in (10, 11):
        rgb = {
            "obs_randomizer_class": names * number,
            "obs_randomizer_kwargs": [{}] * number,
        }
        if number == 10:
            assert len(encoder(rgb).obs_randomizers["camera"]) == 10  # type: ignore[arg-type]
        else:
            with pytest.raises(ConfigError, match="lists 11 randomizers: list at most 10"):
                encoder(rgb)


def test_classes_of_ones_own_are_registered_by_the_package() -> None:
    assert vision.register_backbone == BACKBONES.register
    assert vision.register_pool == POOLS.register


def test_sequences_are_encoded_step_by_step() -> None:
    rgb = {"core_class": "VisualCore", "core_kwargs": SMALL}
    shapes = ObsShapes({"camera": IMAGE}, {"camera": "rgb"})
    net = ObservationGroupEncoder({"obs": shapes, "goal": shapes}, encoder_kwargs={"rgb": rgb})
    images, goal = torch.randn(2, 3, *IMAGE), torch.randn(2, *IMAGE)
    features = net.encode_sequence(obs={"camera": images}, goal={"camera": goal})
    assert features.shape == (2, 3, 10)
    step = net(obs={"camera": images[:, 1]}, goal={"camera": goal})
    torch.testing.assert_close(features[:, 1], step)


def test_groups_take_the_place_of_batch_statistics() -> None:
    net = replace_bn_with_gn(VisualCore((3, 40, 40)))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert net.backbone is net.nets[0]  # type: ignore[union-attr,index]
    norms = [m for m in net.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert (norms[0].num_groups, norms[0].num_channels) == (4, 64)
    assert "backbone.nets.1.weight" in net.state_dict()
    assert not any("running" in key for key in net.state_dict())


def test_diffusion_policy_has_no_batch_statistics() -> None:
    config = config_factory("diffusion_policy")
    config.observation.modalities.obs.low_dim = []
    config.observation.modalities.obs.rgb = ["camera"]
    config.algo.optim_params.policy.update(num_train_batches=1, num_epochs=1)
    with torch.device("meta"):
        algo = algo_factory("diffusion_policy", config, {"camera": [3, 40, 40]}, 2, "meta")
    modules = list(algo.nets["policy"]["obs_encoder"].modules())  # type: ignore[index]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in modules)
    assert sum(isinstance(module, nn.GroupNorm) for module in modules) == 20


def test_each_image_is_encoded_once_for_all_actions() -> None:
    """Values and gradients are those of repeated images; a user's critic gets repeated ones."""
    shapes = ObsShapes({"arm": (2,), "camera": IMAGE}, {"camera": "rgb"})
    encoders = {"rgb": {"core_class": "VisualCore", "core_kwargs": SMALL}}
    critic = ActionValueNetwork(shapes, 3, [8], goal_shapes=shapes, encoder_kwargs=encoders)
    obs, goal = ({"arm": torch.randn(2, 2), "camera": torch.rand(2, *IMAGE)} for _ in "ab")
    actions = torch.randn(8, 3)
    seen: list[int] = []
    for name in ("obs", "goal"):
        core = critic.nets["encoder"].nets[name].obs_nets["camera"]
        core.register_forward_hook(lambda net, inputs, y: seen.append(len(y)))

    def results(obs: Any, goal: Any) -> list[Tensor]:
        critic.zero_grad()
        values = critic(obs, actions, goal)
        values.square().sum().backward()
        return [values, *(p.grad for p in critic.parameters())]

    once = results(*states_for([critic], obs, goal, 4))
    assert seen == [2, 2]
    torch.testing.assert_close(once, results(*repeat_rows((obs, goal), 4)))

    class OwnCritic(ActionValueNetwork):
        pass

    own = OwnCritic(shapes, 3, [8])
    assert len(states_for([critic, own], obs, None, 4)[0]["camera"]) == 8
