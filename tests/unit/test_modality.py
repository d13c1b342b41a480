"""A modality is a class and a line: a toy one trains, from bytes in a file to an encoder."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from tiny import Ran, train_args, write_hopper
from torch import Tensor, nn

from raymimic.algo import algo_class, algo_factory
from raymimic.config import config_factory
from raymimic.config.checks import check_config
from raymimic.data.training_data import make_loaders
from raymimic.errors import ConfigError
from raymimic.models.obs_nets import EncoderCore, register_encoder_core
from raymimic.observations.modality import (
    Modality,
    modality_named,
    process_obs,
    register_modality,
    registered_modalities,
)


@register_encoder_core
class SkinCore(EncoderCore):
    """Four features of a skin's pressures."""

    output_dim = 4

    def __init__(self, input_shape: Any) -> None:
        super().__init__(input_shape)
        self.net = nn.Linear(int(np.prod(input_shape)), 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.flatten(1))


@register_modality("skin")
class Skin(Modality):
    """Pressures of 0 to 255 on a strip `[N, 2]`, which networks see as `[2, N]`."""

    default_core = "SkinCore"

    def keeps_bytes(self, shape: Any, dtype: Any) -> bool:
        return dtype == np.uint8

    def processed_shape(self, shape: Any) -> list[int]:
        return [shape[1], shape[0]]

    def raw_shape(self, shape: Any) -> list[int]:
        return [shape[1], shape[0]]

    def process(self, x: Tensor) -> Tensor:
        return x.movedim(-1, -2) / 255.0


def write_skin(path: Path) -> Path:
    write_hopper(path)
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            demo["obs/palm"] = rng.integers(0, 256, (20, 3, 2), dtype=np.uint8)
    return path


def test_a_modality_of_ones_own_trains(cli: Any, tmp_path: Path) -> None:
    path = write_skin(tmp_path / "skin.hdf5")
    modalities = 'observation.modalities.obs={"low_dim": ["flat"], "skin": ["palm"]}'
    ran: Ran = cli(*train_args(path, modalities, algo="bc"))
    assert ran.status == 0, ran.err


def test_its_bytes_stay_bytes_until_the_device_prepares_them(tmp_path: Path) -> None:
    config = config_factory("bc")
    config.train.data, config.train.batch_size = str(write_skin(tmp_path / "skin.hdf5")), 8
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.obs.skin = ["palm"]
    config.experiment.rollout.enabled = False
    check_config(config)
    reads = algo_class("bc", config).reads(config)
    data = make_loaders(config, reads, torch.device("cpu"))
    assert data.shape_meta["all_shapes"] == {"flat": [11], "palm": [2, 3]}
    raw, _, _ = next(data.train.epoch(1))
    assert raw["obs"]["palm"].dtype == torch.uint8
    assert raw["obs"]["palm"].shape == (8, 1, 3, 2)
    algo = algo_factory("bc", config, data.shape_meta["all_shapes"], 3, "cpu")
    assert any(isinstance(net, SkinCore) for net in algo.nets.modules())
    batch = algo.postprocess_batch_for_training(algo.process_batch_for_training(raw), None)
    expected = raw["obs"]["palm"][:, 0].float().transpose(1, 2) / 255
    torch.testing.assert_close(batch["obs"]["palm"], expected)


def test_images_come_channel_first_and_back() -> None:
    for name in ("rgb", "depth"):
        modality = modality_named(name)
        assert modality.processed_shape([84, 60, 3]) == [3, 84, 60]
        assert modality.raw_shape([3, 84, 60]) == [84, 60, 3]
    x = torch.tensor([[[[0.0, 255.0]]]])
    assert process_obs(x, "rgb").flatten().tolist() == [0.0, 1.0]
    assert process_obs(x, "depth").shape == (1, 2, 1, 1)
    assert process_obs(x, "low_dim") is x


def test_unknown_names_and_taken_ones() -> None:
    assert {"depth", "low_dim", "rgb"} <= set(registered_modalities())
    with pytest.raises(ConfigError, match="modality 'rbg' is unknown; did you mean 'rgb'"):
        modality_named("rbg")
    with pytest.raises(ConfigError, match="a modality 'rgb' is registered already"):
        register_modality("rgb")(type("Mine", (Modality,), {}))


def test_scans_come_channel_first_and_back() -> None:
    scan = modality_named("scan")
    assert scan.processed_shape([60, 2]) == [2, 60]
    assert scan.raw_shape([2, 60]) == [60, 2]
    x = torch.arange(6.0).reshape(1, 3, 2)
    assert torch.equal(process_obs(x, "scan"), x.transpose(1, 2))
    assert modality_named("lang").processed_shape([768]) == [768]


def test_images_train_with_a_chain_of_randomizers(cli: Any, tmp_path: Path) -> None:
    path = write_hopper(tmp_path / "images.hdf5")
    rng = np.random.default_rng(0)
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            for group in ("obs", "next_obs"):
                images = rng.integers(0, 256, (20, 24, 20, 3), dtype=np.uint8)
                demo[f"{group}/agentview_image"] = images
    args = train_args(
        path,
        "observation.modalities.obs.rgb=[agentview_image]",
        'observation.encoder.rgb.core_kwargs={"backbone_class": "ImpalaConv"}',
        'observation.encoder.rgb.obs_randomizer_class=["CropRandomizer", "ColorRandomizer"]',
        "observation.encoder.rgb.obs_randomizer_kwargs="
        '[{"crop_height": 20, "crop_width": 18}, {"hue": 0.1}]',
        algo="bc",
    )
    ran: Ran = cli(*args)
    assert ran.status == 0, ran.err
    ran = cli(*args, 'observation.encoder.rgb.core_kwargs.backbone_class="ImpalConv"')
    assert ran.status == 2
    assert "did you mean 'ImpalaConv'" in ran.err
