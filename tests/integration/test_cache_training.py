"""A training on data in files of the cache ends with the parameters of one on data in memory."""

import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from image_files import write_cameras
from ranks import run_two_ranks
from recording import RecordingLink
from torch import Tensor
from waiting import DEADLINE_S

from raymimic.algo import algo_class
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import config_factory
from raymimic.data.training_data import inspect_data
from raymimic.training.worker import WorkerSpec, train_loop
from raymimic.user_modules import ImportPath

pytestmark = pytest.mark.slow


def spec(
    data: Path, run_dir: Path, mode: str | None, epochs: int = 2, **settings: object
) -> WorkerSpec:
    config = config_factory("bc")
    values = {
        "train.data": str(data),
        "train.hdf5_cache_mode": mode,
        "train.hdf5_normalize_obs": True,
        "train.validation_fraction": 0.3,
        "train.seq_length": 3,
        "train.num_epochs": epochs,
        "train.batch_size": 7,
        "experiment.validate": True,
        "experiment.epoch_every_n_steps": 5,
        "experiment.rollout.enabled": False,
        "experiment.save.epochs": [epochs],
        "observation.modalities.obs.low_dim": ["flat"],
        "observation.modalities.obs.rgb": ["camera_0"],
        "observation.encoder.rgb.core_kwargs": {
            "backbone_class": "ShallowConv",
            "backbone_kwargs": {},
            "feature_dimension": 8,
        },
        "algo.actor_layer_dims": [],
        "algo.rnn.enabled": True,
        "algo.rnn.horizon": 3,
        "algo.rnn.hidden_dim": 8,
        "ray.threads_per_worker": 1,
        **settings,
    }
    with config.values_unlocked():
        for key, value in values.items():
            config.set_path(key, value)
    digest = inspect_data(config, algo_class("bc", config).reads(config)).digest
    run_dir.mkdir(parents=True, exist_ok=True)
    dump = json.dumps(config.to_dict())
    return WorkerSpec("bc", dump, str(run_dir), ImportPath((), ()), {}, False, digest)


def _rank(
    rank: int, both: list[WorkerSpec], alone: list[WorkerSpec], cache: str, store: str
) -> None:
    os.environ["RAYMIMIC_CACHE"] = cache
    link, cpu = RecordingLink(), torch.device("cpu")
    deadline = timedelta(seconds=DEADLINE_S)
    dist.init_process_group("gloo", f"file://{store}", timeout=deadline, rank=rank, world_size=2)
    try:
        for one in both:
            train_loop(one, link, rank=rank, world_size=2, device=cpu)
            dist.barrier()
    finally:
        dist.destroy_process_group()
    for one in alone if rank == 0 else ():
        train_loop(one, link, rank=0, world_size=1, device=cpu)


def nets(run: Path) -> dict[str, Tensor]:
    content = load_dict_from_checkpoint(str(run / "models" / "model_epoch_2.pth"))
    return content["model"]["nets"]


def test_parameters_are_those_of_data_in_memory_to_the_bit(tmp_path: Path) -> None:
    data = write_cameras(tmp_path / "cameras.hdf5", sizes=[(24, 24)], next_obs=False)
    shard = {"ray.data_placement": "shard"}
    both = [
        spec(data, tmp_path / "2" / "all", "all"),
        spec(data, tmp_path / "2" / "null", None),
        spec(data, tmp_path / "2" / "all shards", "all", **shard),
        spec(data, tmp_path / "2" / "null shards", None, **shard),
    ]
    alone = [
        spec(data, tmp_path / "1" / "all", "all"),
        spec(data, tmp_path / "1" / "null", None),
        spec(data, tmp_path / "1" / "low_dim", "low_dim"),
        spec(data, tmp_path / "1" / "resumed", None, epochs=1),
        spec(data, tmp_path / "1" / "resumed", "all"),
        spec(data, tmp_path / "1" / "resumed into files", "all", epochs=1),
        spec(data, tmp_path / "1" / "resumed into files", "low_dim"),
    ]
    run_two_ranks(_rank, both, alone, str(tmp_path / "cache"), str(tmp_path / "store"))
    assert list((tmp_path / "cache" / "columns").glob("*.column"))
    for pair in (
        ("1/all", "1/null"),
        ("1/all", "1/low_dim"),
        ("1/all", "1/resumed"),
        ("1/all", "1/resumed into files"),
        ("2/all", "2/null"),
        ("2/all shards", "2/null shards"),
    ):
        one, other = nets(tmp_path / pair[0]), nets(tmp_path / pair[1])
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in one.items()), pair
    one, other = nets(tmp_path / "1" / "null"), nets(tmp_path / "2" / "null")
    assert all(torch.allclose(x, other[key], rtol=1e-3, atol=1e-4) for key, x in one.items())
