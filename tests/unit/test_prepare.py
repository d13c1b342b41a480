"""Everything that is checked before a training starts."""

import json
import logging
import pickle
from pathlib import Path

import odd_envs
import pytest
import torch
from image_files import write_cameras
from tiny import small_config

from raymimic.config.base_config import sections_named
from raymimic.data import store
from raymimic.errors import ConfigError, DatasetError
from raymimic.models.vision.resnets import resnet_parts
from raymimic.training.prepare import prepare, prepare_resumed
from raymimic.training.run_folder import RunFolder

LAYERS = ("layer1", "layer2", "layer3", "layer4")


def test_a_prepared_training_is_the_callers_own_and_its_workers_plain_data(
    hopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(hopper.parent)
    settings = {"train.data": hopper.name, "experiment.env": "odd_envs:Odd-v0"}
    config = small_config("td3_bc", **settings)
    config.train.output_dir = str(tmp_path)
    config.mlflow.tracking_uri = "http://ann:secret@host:5000"
    prepared = prepare(config)
    assert config.train.data == hopper.name
    assert prepared.config.train.data == str(hopper)
    with pytest.raises(ConfigError, match="locked"):
        prepared.config.train.seed = 2
    assert prepared.imports == ("odd_envs",)
    assert [meta["env_name"] for meta in prepared.envs.values()] == ["odd_envs:Odd-v0"]
    tryout = prepared.tryout()
    assert tryout is not None
    assert tryout.policy.action_dim == 3

    folder = RunFolder(str(tmp_path / "run"), tmp_path / "run")
    spec = pickle.loads(pickle.dumps(prepared.worker_spec(folder)))
    assert spec == prepared.worker_spec(folder)
    assert (spec.run_dir, spec.imports, spec.evaluates) == (folder.uri, ("odd_envs",), True)
    assert spec.dataset_digest == prepared.data.digest
    assert json.loads(spec.config)["train"]["data"] == str(hopper)
    assert "secret" not in spec.config


def test_a_planner_is_not_evaluated_and_that_is_said(
    hopper: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        prepared = prepare(small_config("gl", **{"train.data": str(hopper)}))
    assert prepared.envs == {}
    assert prepared.tryout() is None
    assert "nothing is evaluated: gl plans, but does not act" in caplog.text


def test_a_lost_dataset_of_a_resumed_run_names_the_option(tmp_path: Path) -> None:
    config = small_config("td3_bc", **{"train.data": str(tmp_path / "moved.hdf5")})
    with pytest.raises(DatasetError) as new:
        prepare(config)
    with pytest.raises(DatasetError, match="if the dataset was moved, name its new place"):
        prepare_resumed(config, str(tmp_path))
    assert "--dataset" not in str(new.value)


def test_an_environment_that_takes_less_than_the_data_is_warned_of(tmp_path: Path) -> None:
    odd_envs.write_demos(tmp_path / "demos.hdf5", odd="box of [0, 1]")
    settings = {"train.data": str(tmp_path / "demos.hdf5"), "train.imports": ["odd_envs"]}
    prepared = prepare(small_config("bc", **settings))
    (warning,) = prepared.clipping_warnings(prepared.try_environments())
    assert warning.startswith("component 0 of the data's actions goes from -1 to ")
    assert warning.endswith(", and Odd-v0 takes 0 to 1: actions are clipped when it is played")


@pytest.mark.parametrize(
    "algo",
    ["bc", "bcq", "cql", "diffusion_policy", "gl", "hbc", "iql", "rebrac", "td3_bc"],
)
def test_a_mistake_in_an_encoder_is_found_before_data_are_read(
    algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", lengths=(4, 4))
    settings = {"train.data": str(path), "experiment.rollout.enabled": False}
    config = small_config(algo, **settings, **{"train.batch_size": 4})
    monkeypatch.setattr(store, "read_columns", lambda *args: pytest.fail("data are read"))
    for core, words in [
        ({"backbone_class": "ImpalaConf"}, "backbone_class 'ImpalaConf' .* mean 'ImpalaConv'"),
        (
            {"backbone_class": "ImpalaConv", "pool_kwargs": {"num_kq": 4}},
            "pool_kwargs.num_kq: .* mean 'num_kp'",
        ),
        ({"backbone_class": "ImpalaConv", "backbone_kwargs": {"stack_sizes": [4]}}, None),
    ]:
        for _, groups in sections_named(config.observation, "modalities"):
            groups.obs.rgb = ["camera_0"]
        for _, encoders in sections_named(config.observation, "encoder"):
            encoders.rgb.core_kwargs = core
        if words is None:
            prepare(config)
            continue
        with pytest.raises(ConfigError, match=words):
            prepare(config)


def test_weights_that_cannot_be_read_are_found_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cameras(tmp_path / "cameras.hdf5", lengths=(4, 4))
    config = small_config("bc", **{"train.data": str(path), "experiment.rollout.enabled": False})
    config.train.batch_size = 4
    config.observation.modalities.obs.rgb = ["camera_0"]
    file = tmp_path / "net.pth"
    config.observation.encoder.rgb.core_kwargs = {
        "backbone_class": "ResNet18Conv",
        "backbone_kwargs": {"pretrained": True, "pretrained_path": str(file)},
    }
    monkeypatch.setattr(store, "read_columns", lambda *args: pytest.fail("data are read"))
    with pytest.raises(ConfigError, match=r"cannot read the weights .*net.pth: No such file"):
        prepare(config)
    parts = dict(zip(("conv1", "bn1", "", "", *LAYERS), resnet_parts("resnet18"), strict=True))
    weights = {
        f"{name}.{key}": x for name, part in parts.items() for key, x in part.state_dict().items()
    }
    torch.save({**weights, "bn1.bias": torch.zeros(3)}, file)
    with pytest.raises(ConfigError, match=r"net.pth do not fit: 'bn1.bias' .* it is \[3\]"):
        prepare(config)
    torch.save(weights, file)
    prepare(config)
    file.unlink()
    # Weights of a checkpoint follow.
    with pytest.raises(ConfigError, match="No such file"):
        prepare(config)
    config.experiment.ckpt_path = str(tmp_path / "begun.pth")
    prepare(config)
