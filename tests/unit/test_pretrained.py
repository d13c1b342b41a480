"""Weights from files, and encoders that see the instruction."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.errors import ConfigError
from raymimic.models.obs_core import VisualCore, VisualCoreLanguageConditioned
from raymimic.models.obs_nets import ObservationEncoder
from raymimic.models.vision.resnets import (
    R3MConv,
    ResNet18Conv,
    ResNet18ConvFiLM,
    resnet_parts,
)
from raymimic.models.vision.weights import weights_follow
from raymimic.observations.shapes import ObsShapes

NAMES = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]


def weights(prefix: str = "") -> dict[str, torch.Tensor]:
    """A ResNet-18's weights by torchvision's names, random but for the last linear layer's."""
    torch.manual_seed(5)
    parts = resnet_parts("resnet18")
    state = {
        f"{prefix}{name}.{key}": x
        for name, part in zip(NAMES, parts, strict=True)
        for key, x in part.state_dict().items()
    }
    for key, x in state.items():
        if key.endswith("running_mean"):
            x.normal_()
    return {**state, f"{prefix}fc.weight": torch.zeros(2, 2)}


def test_a_resnet_starts_from_the_weights_of_a_file(tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "net.pth")
    path = str(tmp_path / "net.pth")
    state = ResNet18Conv(pretrained=True, pretrained_path=path).state_dict()
    expected = weights()
    assert torch.equal(state["nets.0.weight"], expected["conv1.weight"])
    assert torch.equal(state["nets.7.1.bn2.running_mean"], expected["layer4.1.bn2.running_mean"])
    grey = ResNet18Conv(1, pretrained=True, pretrained_path=path).state_dict()
    assert grey["nets.0.weight"].shape == (64, 1, 7, 7)
    assert torch.equal(grey["nets.4.0.conv1.weight"], expected["layer1.0.conv1.weight"])


def test_without_a_path_it_is_the_file_that_torchvision_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no file .*resnet18-f37072fd.pth, and nothing is down"):
        ResNet18Conv(pretrained=True)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(weights(), folder / "resnet18-f37072fd.pth")
    net = ResNet18Conv(pretrained=True)
    assert torch.equal(net.state_dict()["nets.0.weight"], weights()["conv1.weight"])


class Dangerous:
    def __reduce__(self) -> Any:
        return (print, ("called",))


def test_a_file_of_weights_is_a_strangers(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "net.pth"

    def load() -> None:
        ResNet18Conv(pretrained=True, pretrained_path=str(path))

    with pytest.raises(ConfigError, match=r"cannot read the weights .*net.pth: No such file"):
        load()
    torch.save({"conv1.weight": Dangerous()}, path)
    with pytest.raises(ConfigError, match=r"cannot read the weights .*save them again"):
        load()
    assert "called" not in capsys.readouterr().out
    torch.save({**weights(), "bn1.bias": torch.zeros(3)}, path)
    with pytest.raises(
        ConfigError, match=r"'bn1.bias' has the shape \[64\] in the network, in the"
    ):
        load()
    torch.save({"layer": 3}, path)
    with pytest.raises(ConfigError, match=r"'conv1.weight' .* in the file it is missing"):
        load()


def test_a_checkpoints_policy_needs_no_file(tmp_path: Path) -> None:
    with weights_follow():
        ResNet18Conv(pretrained=True, pretrained_path=str(tmp_path / "absent.pth"))
        ResNet18Conv(pretrained_path=str(tmp_path / "absent.pth"))
        R3MConv()
    with pytest.raises(ConfigError, match=r"name the file of R3M \(model.pt\)"):
        R3MConv()


def test_a_file_that_is_not_asked_for_is_refused() -> None:
    for cls in (ResNet18Conv, ResNet18ConvFiLM):
        with pytest.raises(ConfigError, match=r"pretrained_path is 'a.pth', but .*pretrained is"):
            cls(pretrained_path="a.pth")


def test_r3m_is_frozen_and_scales_its_images(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"r3m": weights("module.convnet."), "global_step": 3}, path)
    net = R3MConv(pretrained_path=str(path)).train()
    assert torch.equal(net.nets[1].weight, weights()["conv1.weight"])  # type: ignore[index]
    assert not any(p.requires_grad for p in net.parameters())
    assert not any(m.training for m in net.nets.modules())
    images = torch.rand(1, 3, 300, 280)
    prepared = net.nets[0](images)  # type: ignore[index]
    assert prepared.shape == (1, 3, 224, 224)
    plain = net.nets[0](torch.full((1, 3, 300, 280), 0.485))  # type: ignore[index]
    torch.testing.assert_close(plain[0, 0], torch.zeros(224, 224), atol=1e-5, rtol=0)
    assert plain[0, 2, 0, 0].item() == pytest.approx((0.485 - 0.406) / 0.225, abs=1e-5)
    assert net(images).shape == (1, 512, 1, 1)
    assert R3MConv(pretrained_path=str(path), freeze=False).train().nets[2].training  # type: ignore[index]
    with pytest.raises(ConfigError, match="did you mean 'resnet50'"):
        R3MConv(r3m_model_class="resnet5")


def test_a_frozen_encoder_stays_as_it_is_while_the_policy_learns(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"r3m": weights("module.convnet.")}, path)
    config = config_factory("bc")
    config.algo.actor_layer_dims = [8]
    config.observation.modalities.obs.low_dim = []
    config.observation.modalities.obs.rgb = ["camera"]
    config.observation.encoder.rgb.core_kwargs = {
        "backbone_class": "R3MConv",
        "pool_class": None,
        "backbone_kwargs": {"pretrained_path": str(path)},
    }
    algo = algo_factory("bc", config, {"camera": [3, 32, 32]}, 2, "cpu")
    before = {key: x.clone() for key, x in algo.nets.state_dict().items()}
    algo.set_train()
    batch = {
        "obs": {"camera": torch.rand(2, 3, 32, 32)},
        "goal_obs": None,
        "actions": torch.ones(2, 2),
    }
    algo.train_on_batch(batch, 1)
    after = algo.nets.state_dict()
    changed = {key for key, x in before.items() if not torch.equal(x, after[key])}
    assert changed
    assert not any("nets.0.nets" in key or "backbone" in key for key in changed)


def test_mvp_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"MVPConv is not available: .* another program"):
        VisualCore((3, 32, 32), backbone_class="MVPConv")


def test_film_scales_and_shifts_each_blocks_features() -> None:
    torch.manual_seed(0)
    net = ResNet18ConvFiLM(lang_emb_dim=4).eval()
    assert {"_base_block.0.weight", "_conv_blocks.7.bn2.bias", "_film_layers.7.lang_proj.bias"} < (
        net.state_dict().keys()
    )
    x, language = torch.rand(2, 3, 40, 40), torch.randn(2, 4)
    expected = net._base_block(x)
    for block, film in zip(net._conv_blocks, net._film_layers, strict=True):
        beta, gamma = film.lang_proj(language).split(block.conv2.out_channels, dim=1)  # type: ignore[operator,union-attr]
        expected = (block(expected) * (1 + gamma[..., None, None]) + beta[..., None, None]).relu()
    torch.testing.assert_close(net(x, language), expected)
    assert list(expected.shape[1:]) == net.output_shape((3, 40, 40))


def language_encoder(modality: str, key: str = "instruction", size: int = 4) -> ObservationEncoder:
    shapes = {"camera": (3, 40, 40), key: (size,), "arm": (2,)}
    kwargs = {"backbone_kwargs": {"lang_emb_dim": 4}, "feature_dimension": 5}
    rgb = {"core_class": "VisualCoreLanguageConditioned", "core_kwargs": kwargs}
    crop = {
        "obs_randomizer_class": "CropRandomizer",
        "obs_randomizer_kwargs": {"crop_height": 36, "crop_width": 36, "num_crops": 2},
    }
    modalities = {"camera": "rgb", key: modality}
    return ObservationEncoder(ObsShapes(shapes, modalities), {"rgb": {**rgb, **crop}})


@pytest.mark.parametrize(("modality", "key"), [("lang", "instruction"), ("low_dim", "lang_emb")])
def test_an_instruction_conditions_images_and_is_no_feature_besides(
    modality: str, key: str
) -> None:
    torch.manual_seed(0)
    net = language_encoder(modality, key)
    assert net.output_dim == 7
    obs = {"camera": torch.rand(3, 3, 40, 40), key: torch.randn(3, 4), "arm": torch.rand(3, 2)}
    assert net(obs).shape == (3, 7)  # two crops of each image have one instruction
    net.eval()
    features = net(obs)
    other = net({**obs, key: torch.randn(3, 4)})
    assert not torch.allclose(features[:, :5], other[:, :5])
    assert torch.equal(features[:, 5:], other[:, 5:])
    core = net.obs_nets["camera"]
    assert isinstance(core, VisualCoreLanguageConditioned)
    torch.testing.assert_close(
        features[:, :5], core(obs["camera"][..., 2:38, 2:38], obs[key]).relu()
    )


def test_an_instruction_that_is_missing_or_of_another_size() -> None:
    with pytest.raises(ConfigError, match=r"takes one embedding of language, but .* have 0"):
        language_encoder("low_dim")
    with pytest.raises(ConfigError, match=r"'instruction' has 6 numbers, .*lang_emb_dim .* to 6"):
        language_encoder("lang", size=6)
    with pytest.raises(ConfigError, match="'ResNet18Conv' takes no language"):
        VisualCoreLanguageConditioned((3, 40, 40), backbone_class="ResNet18Conv")


def test_without_such_an_encoder_an_instruction_is_a_feature() -> None:
    shapes = ObsShapes({"arm": (2,), "instruction": (4,)}, {"instruction": "lang"})
    net = ObservationEncoder(shapes, {"low_dim": {}})
    assert net({"arm": torch.rand(3, 2), "instruction": torch.rand(3, 4)}).shape == (3, 6)
