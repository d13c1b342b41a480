"""Two workers compute one worker's result: the training loop itself, on two gloo processes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raymimic.algo.td3_bc import TD3_BC
from raymimic.config import config_factory
from raymimic.errors import TrainingError
from raymimic.training.grad_sync import GradientSync
from raymimic.training.link import Committed, Event
from raymimic.training.worker import WorkerSpec, train_loop
from raymimic.utils.file_utils import load_dict_from_checkpoint

STEPS = 200


@dataclass
class RecordingLink:
    """The training loop's end of a link that nobody answers."""

    events: list[Event] = field(default_factory=list)

    def send(self, event: Event) -> None:
        self.events.append(event)

    def outcomes(self) -> list[Any]:
        return []

    def stopped(self) -> None:
        return None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "d.hdf5"
    rng = np.random.default_rng(0)
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
    return WorkerSpec("td3_bc", json.dumps(config.to_dict()), str(run_dir), (), {}, False, "digest")


def _rank(rank: int, world_size: int, run: WorkerSpec, store: str, patch: str | None) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    if patch == "local_lambda":
        TD3_BC.dist_mean = lambda self, x: x.detach().mean()  # type: ignore[method-assign]
    if patch == "local_gradients":
        GradientSync.average_gradients = lambda self, params: None  # type: ignore[method-assign]
    try:
        train_loop(
            run, RecordingLink(), rank=rank, world_size=world_size, device=torch.device("cpu")
        )
        dist.barrier()  # a rank that leaves while another still talks may abort it
    finally:
        dist.destroy_process_group()


def trained(run: WorkerSpec, workers: int, patch: str | None = None) -> dict[str, Any]:
    """The last checkpoint of a training on that many workers."""
    folder = Path(run.run_dir)
    folder.mkdir(parents=True)
    if workers == 1:
        link = RecordingLink()
        threads = torch.get_num_threads()
        train_loop(run, link, rank=0, world_size=1, device=torch.device("cpu"))
        torch.set_num_threads(threads)
        committed = [e for e in link.events if isinstance(e, Committed)]
        assert [r.epoch for e in committed for r in e.records] == [1, 2]
    else:
        mp.spawn(_rank, (workers, run, str(folder / "store"), patch), nprocs=workers)
    return load_dict_from_checkpoint(str(folder / "models" / "model_epoch_2.pth"))


def relative_difference(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of a parameter, relative to the size of its tensor."""
    nets_a, nets_b = a["model"]["nets"], b["model"]["nets"]
    assert nets_a.keys() == nets_b.keys()
    return max(float((nets_a[k] - nets_b[k]).abs().max() / nets_a[k].abs().max()) for k in nets_a)


@pytest.mark.parametrize("batch_size", [64, 51])
def test_two_workers_give_the_one_worker_result(
    dataset: Path, tmp_path: Path, batch_size: int
) -> None:
    settings = {"train.batch_size": batch_size}
    one = trained(spec(dataset, tmp_path / "one", **settings), 1)
    two = trained(spec(dataset, tmp_path / "two", **settings), 2)
    assert one["raymimic"]["step"] == two["raymimic"]["step"] == STEPS
    assert relative_difference(one, two) < 1e-5
    histories = [json.loads(ckpt["raymimic"]["history"]) for ckpt in (one, two)]
    for a, b in zip(*histories, strict=True):
        for key, value in a["metrics"].items():
            # A norm of a mean is not the mean of norms; it is the same only after averaging.
            if key.startswith("Train/"):
                assert b["metrics"][key] == pytest.approx(value, rel=1e-6, abs=1e-9), key


def test_sharded_data_with_every_sample_in_some_shard_gives_the_same_batches(
    dataset: Path, tmp_path: Path
) -> None:
    one = trained(spec(dataset, tmp_path / "one"), 1)
    two = trained(spec(dataset, tmp_path / "two", **{"ray.data_placement": "shard"}), 2)
    assert relative_difference(one, two) < 1e-5


def test_a_local_lambda_would_be_noticed(dataset: Path, tmp_path: Path) -> None:
    one = trained(spec(dataset, tmp_path / "one"), 1)
    two = trained(spec(dataset, tmp_path / "two"), 2, patch="local_lambda")
    assert relative_difference(one, two) > 1e-5


def test_gradients_that_go_round_the_average_stop_the_run(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(mp.ProcessRaisedException, match=r"copies of .* differ after epoch 1"):
        trained(spec(dataset, tmp_path / "two"), 2, patch="local_gradients")
    assert issubclass(TrainingError, Exception)
