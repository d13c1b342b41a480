"""Two workers compute one worker's result: the training loop itself, on two gloo processes."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ranks import run_two_ranks
from recording import RecordingLink
from run_records import epochs_of

from raymimic.algo.td3_bc import TD3_BC
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import config_factory
from raymimic.data.training_data import inspect_data
from raymimic.errors import DatasetError
from raymimic.training.grad_sync import GradientSync
from raymimic.training.link import Committed
from raymimic.training.worker import WorkerSpec, train_loop
from raymimic.user_modules import ImportPath

pytestmark = pytest.mark.slow

STEPS = 100
HELD_OUT = {"experiment.validate": True, "train.validation_fraction": 0.4}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "d.hdf5")


def write_data(path: Path, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for i, length in enumerate((61, 97, 30, 110, 41)):
            demo = file.create_group(f"data/demo_{i}")
            obs = rng.normal(size=(length + 1, 7))
            demo["obs/flat"], demo["next_obs/flat"] = obs[:-1], obs[1:]
            demo["actions"] = rng.uniform(-1, 1, (length, 3))
            demo["rewards"] = rng.normal(size=length)
            demo["dones"] = (rng.random(length) < 0.05).astype(np.int64)
            demo.attrs["num_samples"] = length
    return path


def spec(dataset: Path, run_dir: Path, **settings: Any) -> WorkerSpec:
    config = config_factory("td3_bc")
    values = {
        "train.data": str(dataset),
        "train.dtype": "float64",
        "train.num_epochs": 2,
        "train.batch_size": 64,
        "train.hdf5_normalize_obs": True,
        "experiment.epoch_every_n_steps": STEPS // 2,
        "experiment.rollout.enabled": False,
        "algo.actor.noise_std": 0.0,
        "algo.actor.layer_dims": [32, 32],
        "algo.critic.layer_dims": [32, 32],
        "ray.threads_per_worker": 1,
    }
    with config.values_unlocked():
        for key, value in (values | settings).items():
            config.set_path(key, value)
    digest = inspect_data(config, TD3_BC.reads(config)).digest
    return WorkerSpec(
        "td3_bc",
        json.dumps(config.to_dict()),
        str(run_dir),
        ImportPath((), ()),
        {},
        False,
        digest,
    )


def _rank(rank: int, runs: list[tuple[WorkerSpec, str | None]], store: str) -> None:
    """Trains one run after the other, each with a fault or none."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        for run, fault in runs:
            _train(rank, run, fault)
            dist.barrier()  # a rank that leaves while another still talks may abort it
    except BaseException as error:  # of the two ranks' errors, only one reaches the test
        Path(f"{store}.error_{rank}").write_text(str(error))
        raise
    finally:
        dist.destroy_process_group()


def _train(rank: int, run: WorkerSpec, fault: str | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if fault == "local_lambda":
            patch.setattr(TD3_BC, "dist_mean", lambda self, x: x.detach().mean())
        if fault == "local_gradients":
            patch.setattr(GradientSync, "average_gradients", lambda self, params: None)
        if fault == "other_data" and rank == 1:
            run = replace(run, config=run.config.replace("d.hdf5", "other.hdf5"))
        train_loop(run, RecordingLink(), rank=rank, world_size=2, device=torch.device("cpu"))


def trained_alone(run: WorkerSpec) -> dict[str, Any]:
    """The last checkpoint of a training on one worker."""
    Path(run.run_dir).mkdir(parents=True)
    link = RecordingLink()
    threads = torch.get_num_threads()
    train_loop(run, link, rank=0, world_size=1, device=torch.device("cpu"))
    torch.set_num_threads(threads)
    committed = [e for e in link.events if isinstance(e, Committed)]
    assert [r.epoch for e in committed for r in e.records] == [1, 2]
    return last_of(run)


def train_on_two(folder: Path, *runs: tuple[WorkerSpec, str | None]) -> None:
    """Trains on two workers: all runs in one pair of processes, as they take long to start."""
    for run, _ in runs:
        Path(run.run_dir).mkdir(parents=True)
    run_two_ranks(_rank, list(runs), str(folder / "store"))


def said_by_two(folder: Path, *runs: tuple[WorkerSpec, str | None]) -> str:
    """The errors of two workers that fail: one may raise, and the other be aborted by its end."""
    with pytest.raises((mp.ProcessRaisedException, mp.ProcessExitedException)):
        train_on_two(folder, *runs)
    return "\n".join(path.read_text() for path in sorted(folder.glob("store.error_*")))


def last_of(run: WorkerSpec) -> dict[str, Any]:
    """The last checkpoint of a run, and its epochs."""
    path = str(Path(run.run_dir) / "models" / "model_epoch_2.pth")
    return load_dict_from_checkpoint(path) | {"epochs": epochs_of(path)}


@pytest.fixture(scope="module")
def alone(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The checkpoint of one worker, with the usual settings."""
    return trained_alone(spec(dataset, tmp_path_factory.mktemp("alone") / "run"))


@pytest.fixture(scope="module")
def pairs(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The checkpoints of two workers, by the difference in their training."""
    folder = tmp_path_factory.mktemp("pairs")
    runs: dict[str, tuple[WorkerSpec, str | None]] = {
        "usual": (spec(dataset, folder / "usual"), None),
        "batches of 51": (spec(dataset, folder / "51", **{"train.batch_size": 51}), None),
        "shards": (spec(dataset, folder / "shards", **{"ray.data_placement": "shard"}), None),
        "held out": (spec(dataset, folder / "held", **HELD_OUT), None),
        "local lambda": (spec(dataset, folder / "lambda"), "local_lambda"),
    }
    train_on_two(folder, *runs.values())
    return {name: last_of(run) for name, (run, _) in runs.items()}


def relative_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of a parameter, relative to the size of its tensor."""
    nets_a, nets_b = a["model"]["nets"], b["model"]["nets"]
    assert nets_a.keys() == nets_b.keys()
    return max(float((nets_a[k] - nets_b[k]).abs().max() / nets_a[k].abs().max()) for k in nets_a)


def assert_same_training(one: dict[str, Any], two: dict[str, Any]) -> None:
    assert one["raymimic"]["step"] == two["raymimic"]["step"] == STEPS
    assert relative_difference(one, two) < 1e-5
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        for key, value in a["metrics"].items():
            # A norm of a mean is not the mean of norms; it is the same only after averaging.
            if key.startswith("Train/"):
                assert b["metrics"][key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_two_workers_give_the_one_worker_result(
    alone: dict[str, Any], pairs: dict[str, dict[str, Any]]
) -> None:
    assert_same_training(alone, pairs["usual"])


def test_two_workers_share_a_batch_of_odd_size(
    dataset: Path, tmp_path: Path, pairs: dict[str, dict[str, Any]]
) -> None:
    one = trained_alone(spec(dataset, tmp_path / "one", **{"train.batch_size": 51}))
    assert_same_training(one, pairs["batches of 51"])


def test_two_workers_validate_on_the_demos_that_one_worker_holds_out(
    dataset: Path, tmp_path: Path, pairs: dict[str, dict[str, Any]]
) -> None:
    one, two = trained_alone(spec(dataset, tmp_path / "one", **HELD_OUT)), pairs["held out"]
    assert_same_training(one, two)
    for a, b in zip(one["epochs"], two["epochs"], strict=True):
        loss = a["metrics"]["Valid/Loss"]
        assert b["metrics"]["Valid/Loss"] == pytest.approx(loss, rel=1e-6)


def test_sharded_data_with_every_sample_in_some_shard_gives_the_same_batches(
    alone: dict[str, Any], pairs: dict[str, dict[str, Any]]
) -> None:
    assert relative_difference(alone, pairs["shards"]) < 1e-5


def test_a_local_lambda_would_be_noticed(
    alone: dict[str, Any], pairs: dict[str, dict[str, Any]]
) -> None:
    assert relative_difference(alone, pairs["local lambda"]) > 1e-5


def test_gradients_that_go_round_the_average_stop_the_run(dataset: Path, tmp_path: Path) -> None:
    said = said_by_two(tmp_path, (spec(dataset, tmp_path / "two"), "local_gradients"))
    assert re.search(r"copies of .* differ after epoch 1", said)


def test_a_node_that_holds_other_data_is_noticed(dataset: Path, tmp_path: Path) -> None:
    write_data(dataset.with_name("other.hdf5"), seed=1)
    said = said_by_two(tmp_path, (spec(dataset, tmp_path / "two"), "other_data"))
    assert re.search(r"other\.hdf5\) on .* are not those with which", said)


def test_data_that_are_replaced_after_the_start_are_noticed(tmp_path: Path) -> None:
    run = spec(write_data(tmp_path / "d.hdf5"), tmp_path / "run")
    trained_alone(run)
    write_data(tmp_path / "d.hdf5", seed=1)
    with pytest.raises(DatasetError, match="are not those with which this training was started"):
        train_loop(run, RecordingLink(), rank=0, world_size=1, device=torch.device("cpu"))
    # Nor does a driver that saw the new data from the beginning go on with the old checkpoint.
    again = spec(tmp_path / "d.hdf5", tmp_path / "run")
    with pytest.raises(DatasetError, match=r"have changed since .*model_epoch_2"):
        train_loop(again, RecordingLink(), rank=0, world_size=1, device=torch.device("cpu"))
