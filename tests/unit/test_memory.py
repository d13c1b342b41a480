"""The memory that data take is known before they are read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import write_cameras

from raymimic.config import BaseConfig, config_factory
from raymimic.data import columns, memory
from raymimic.data.reads import one_step
from raymimic.data.training_data import make_loaders
from raymimic.errors import DatasetError

IMAGES = 3 * (12 * 10 + 8 * 8)  # bytes of a step's images
ROW = 2 * IMAGES + 4 * (2 + 1 + 1)  # with the next ones, actions, reward and end


@pytest.fixture
def config(tmp_path: Path) -> BaseConfig:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = []
    config.observation.modalities.obs.rgb = ["camera_0", "camera_1"]
    config.experiment.rollout.enabled = False
    config.train.data = str(write_cameras(tmp_path / "cameras.hdf5"))
    config.train.batch_size = 8
    return config


def load(config: BaseConfig, **where: Any) -> None:
    make_loaders(config, one_step(), torch.device("cpu"), **where)


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Any:
    def limit(free: int, total: int = 10**9) -> None:
        monkeypatch.setattr(columns, "free_memory", lambda: free)
        monkeypatch.setattr(columns, "total_memory", lambda: total)

    return limit


def test_data_that_do_not_fit_are_refused_before_they_are_read(
    config: BaseConfig, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits(100 * ROW)
    load(config)
    limits(100 * ROW - 1)
    monkeypatch.setattr(columns, "read_columns", None)
    with pytest.raises(DatasetError) as refused:
        load(config)
    message = str(refused.value)
    assert message.startswith(f"dataset '{config.train.data}': the columns that are read take ")
    assert f"take {100 * ROW:,} bytes (0.0 GB), more than the {100 * ROW - 1:,} bytes" in message
    assert f"largest is 'obs/camera_0', {100 * 360:,} bytes" in message
    assert "ray.data_placement 'shard'" in message


def test_training_and_validation_count_together(config: BaseConfig, limits: Any) -> None:
    config.experiment.validate, config.train.validation_fraction = True, 0.3
    limits(100 * ROW)
    load(config)
    limits(100 * ROW - 1)
    with pytest.raises(DatasetError, match=f"take {100 * ROW:,} bytes"):
        load(config)


def test_a_shard_counts_its_own_demos(config: BaseConfig, limits: Any) -> None:
    config.ray.data_placement = "shard"  # 40 samples, and 30 + 30
    limits(59 * ROW)
    load(config, rank=0, world_size=2)
    with pytest.raises(DatasetError, match=f"take {60 * ROW:,} bytes"):
        load(config, rank=1, world_size=2)


def test_workers_of_one_machine_share_its_memory(
    config: BaseConfig, limits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    limits(200 * ROW, total=300 * ROW)
    load(config, rank=0, world_size=3)
    limits(200 * ROW, total=300 * ROW - 1)
    with pytest.raises(DatasetError, match="in each of the 3 workers on this machine, more than"):
        load(config, rank=0, world_size=3)


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    names = {1: ("limit_in_bytes", "usage_in_bytes"), 2: ("max", "current")}[version]
    folder = tmp_path / "memory" if version == 1 else tmp_path
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    without = memory.free_memory()
    (folder / f"memory.{names[0]}").write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    (folder / f"memory.{names[1]}").write_text("9000000\n")
    (folder / "memory.stat").write_text(
        "anon 1000000\ninactive_file 5000000\nactive_file 3000000\n"
    )
    assert memory.total_memory() > 10**8
    assert memory.free_memory() > without / 2
    (folder / f"memory.{names[0]}").write_text("11000000\n")
    assert memory.total_memory() == 11_000_000
    assert memory.free_memory() == 10_000_000  # files in memory are given up
