"""Columns in files of the cache: the batches of data in memory, whole files, one builder."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from image_files import write_cameras
from ranks import run_ranks
from torch import Tensor
from waiting import DEADLINE_S, wait_for

from raymimic.config import BaseConfig, config_factory
from raymimic.data import loader, placement
from raymimic.data.cache import build, read, room
from raymimic.data.cache.read import DemoCache
from raymimic.data.cache.room import NoCacheError, entries
from raymimic.data.layout import scan
from raymimic.data.columns import ColumnRequest, DemoSource
from raymimic.data.reads import one_window
from raymimic.data.training_data import TrainData, make_loaders
from raymimic.errors import ConfigError, DatasetError

CPU = torch.device("cpu")
IMAGES = {"obs/camera_0", "obs/camera_1", "next_obs/camera_0", "next_obs/camera_1"}
REQUEST = ColumnRequest(
    obs_keys=("flat", "camera_0"), modalities={"flat": "low_dim", "camera_0": "rgb"}
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache."""
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(room.LIMIT, raising=False)
    return tmp_path / "cache" / "columns"


@pytest.fixture(params=["mapped", "read"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Data that fit into memory, and data that do not."""
    if request.param == "read":
        monkeypatch.setattr(read, "_MAX_SHARE", 0)
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    options = {"chunks": (7, 8, 4, 1), "compression": "gzip"}
    return write_cameras(tmp_path / "cameras.hdf5", sizes=[(12, 10), (8, 8)], **options)


def config_for(path: Path | list[dict[str, Any]], mode: str | None, **settings: Any) -> BaseConfig:
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.obs.rgb = ["camera_0", "camera_1"]
    config.experiment.rollout.enabled = False
    config.experiment.epoch_every_n_steps = None  # one pass
    config.train.data = path if isinstance(path, list) else str(path)
    config.train.batch_size = 8
    for key, value in {"train.hdf5_cache_mode": mode, **settings}.items():
        config.set_path(key, value)
    return config


def loaders(config: BaseConfig, **where: Any) -> TrainData:
    data = make_loaders(config, one_window(config.train, {"next_obs"}), CPU, **where)
    cache = data.train.dataset.store.cache
    if cache is not None and cache.maps is not None:
        assert cache.maps.ready.wait(DEADLINE_S)
    return data


def flat(batch: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in batch.items():
        if isinstance(value, dict):
            yield from flat(value, f"{key}/")
        else:
            yield f"{above}{key}", value


def served(data: TrainData) -> list[list[tuple[str, Tensor]]]:
    """All batches of two epochs, of training and validation."""
    sides = [data.train] + ([data.valid] if data.valid is not None else [])
    return [
        [*flat(batch), ("count", torch.tensor([count, total]))]
        for side, epoch in itertools.product(sides, (1, 2))
        for batch, count, total in side.epoch(epoch)
    ]


def assert_equal_data(one: TrainData, other: TrainData) -> None:
    for a, b in zip(served(one), served(other), strict=True):
        assert [key for key, _ in a] == [key for key, _ in b]
        for (key, x), (_, y) in zip(a, b, strict=True):
            assert x.dtype == y.dtype, key
            assert torch.equal(x, y), key
    for name in ("obs_normalization_stats", "action_normalization_stats"):
        stats, others = getattr(one, name), getattr(other, name)
        assert (stats is None) == (others is None)
        for key in stats or {}:
            for part in ("offset", "scale"):
                np.testing.assert_array_equal(stats[key][part], others[key][part])
    np.testing.assert_array_equal(one.action_range, other.action_range)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "float64": {"train.dtype": "float64"},
    "sequences": {"train.seq_length": 5, "train.frame_stack": 2},
    "goals": {"train.goal_mode": "last", "observation.modalities.goal.rgb": ["camera_1"]},
    "normalised": {"train.hdf5_normalize_obs": True},
    "validated": {"experiment.validate": True, "train.validation_fraction": 0.3},
    "filtered": {
        "experiment.validate": True,
        "train.hdf5_filter_key": "valid",
        "train.hdf5_validation_filter_key": "train",
        "train.batch_size": 2,
    },
    "actions": {"train.action_config": {"actions": {"normalization": "min_max"}}},
}


@pytest.mark.parametrize("mode", ["low_dim", None])
@pytest.mark.parametrize("name", SETTINGS)
def test_batches_and_statistics_are_those_of_data_in_memory(
    path: Path, reader: str, name: str, mode: str | None
) -> None:
    placements = ["replicate"] if name == "filtered" else ["replicate", "shard"]
    for placed, rank in itertools.product(placements, range(2)):
        where = {"rank": rank, "world_size": 2}
        settings = {**SETTINGS[name], "ray.data_placement": placed}
        cached = loaders(config_for(path, mode, **settings), **where)
        columns = cached.train.dataset.store.columns
        on_disk = {key for key, x in columns.items() if isinstance(x, read.CachedColumn)}
        assert on_disk == (IMAGES if mode == "low_dim" else columns.keys())
        assert_equal_data(cached, loaders(config_for(path, "all", **settings), **where))


@pytest.mark.parametrize("mode", ["low_dim", None])
def test_several_datasets_share_batches(tmp_path: Path, reader: str, mode: str | None) -> None:
    options: dict[str, Any] = {"sizes": [(12, 10), (8, 8)], "next_obs": False}
    a = write_cameras(tmp_path / "a.hdf5", [9, 30], **options)
    b = write_cameras(tmp_path / "b.hdf5", [20, 5, 14], **options)
    entries = [
        {"path": str(a), "weight": 2.0},
        {"path": str(b), "filter_key": "valid"},
        {"path": str(b), "demo_limit": 2, "weight": 0.5},
    ]
    settings = {"train.seq_length": 3, "train.normalize_weights_by_ds_size": True}
    settings["experiment.epoch_every_n_steps"] = 20
    cached = loaders(config_for(entries, mode, **settings))
    assert_equal_data(cached, loaders(config_for(entries, "all", **settings)))


def test_a_second_training_reads_the_cache_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    first = served(loaders(config_for(path, None)))
    monkeypatch.setattr(build, "_build", None)
    again = served(loaders(config_for(path, None)))
    assert all(torch.equal(x, y) for a, b in zip(first, again, strict=True) for (_, x), (_, y) in zip(a, b, strict=True))
    assert {file.suffix for file in folder.iterdir()} == {".column", ".lock", ""}
    assert all(not file.stat().st_mode & 0o077 for file in folder.glob("*.column"))
