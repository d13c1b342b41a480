"""Training on images gives one result for any number of workers: the training loop, on gloo.

A group of three processes trains all that is needed: first all three together, then two, while the
third trains alone.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from recording import RecordingLink
from run_records import epochs_of
from torch import Tensor, nn
from waiting import DEADLINE_S

from raymimic.algo import algo_class
from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import config_factory
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.models.obs_nets import EncoderCore, register_encoder_core
from raymimic.models.vision import batch_norm
from raymimic.models.vision.batch_norm import GlobalBatchNorm2d
from raymimic.models.vision.draws import DrawingModule
from raymimic.training import worker
from raymimic.training.worker import WorkerSpec, train_loop
from raymimic.user_modules import ImportPath

pytestmark = pytest.mark.slow

SIDE, CROP, STEPS = 14, 9, 5  # of an image, of its part that the network sees, of an epoch
# Of a ResNet, whose steps are slow; its last layer sees 2 x 2 places.
LARGE, LARGE_CROP, FEW_STEPS = 40, 34, 2
LENGTHS = (1, 30, 28, 9, 6)  # a worker that holds the first demo alone often has no sample


class Augment(DrawingModule):
    """A random part of each image, its brightness, and noise; in evaluation the middle."""

    def forward(self, x: Tensor) -> Tensor:
        spare = x.shape[-1] - CROP
        middle = spare // 2
        if not self.training:
            return x[..., middle : middle + CROP, middle : middle + CROP]
        begins = (self.draws.uniform((len(x), 2)) * (spare + 1)).long().tolist()
        x = torch.stack(
            [i[:, y : y + CROP, z : z + CROP] for i, (y, z) in zip(x, begins, strict=True)]
        )
        brightness = 0.5 + self.draws.uniform((len(x), 1, 1, 1)).to(x)
        return x * brightness + 0.05 * self.draws.normal(x.shape, x)


class TorchDraws:
    """Torch's own random numbers."""

    def uniform(self, shape: Any) -> Tensor:
        return torch.rand(tuple(shape))

    def normal(self, shape: Any, like: Tensor) -> Tensor:
        return torch.randn_like(like)


@register_encoder_core
class TinyCamera(EncoderCore):
    """Two convolutions with BatchNorm."""

    output_dim = 2 * 6

    def __init__(self, input_shape: Any) -> None:
        super().__init__(input_shape)
        self.net = nn.Sequential(
            Augment(),
            nn.Conv2d(3, 4, 3, stride=2, bias=False),
            GlobalBatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, bias=False),
            GlobalBatchNorm2d(6),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.net(x)
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)


def write_data(path: Path, side: int) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i, length in enumerate(LENGTHS):
            demo = file.create_group(f"data/demo_{i}")
            shape = (length + 1, side, side, 3)
            images = rng.integers(0, 256, shape, dtype=np.uint8)
            demo["obs/camera"], demo["next_obs/camera"] = images[:-1], images[1:]
            demo["actions"] = rng.uniform(-1, 1, (length, 3))
            demo["rewards"] = rng.normal(size=length)
            demo["dones"] = np.zeros(length, dtype=np.int64)
            demo.attrs["num_samples"] = length
        names = [f"demo_{i}" for i in range(len(LENGTHS))]
        file["mask/train"] = np.array(names[:-1], dtype="S")
        file["mask/valid"] = np.array(names[-1:], dtype="S")
    return path


TINY = {"observation.encoder.rgb.core_class": "TinyCamera"}
BC = {"algo.actor_layer_dims": [8]}
RNN = {
    "algo.actor_layer_dims": [],
    "algo.rnn.enabled": True,
    "algo.rnn.horizon": 3,
    "algo.rnn.hidden_dim": 8,
    "train.seq_length": 3,
    "train.goal_mode": "last",  # a batch of goals beside sequences
    "observation.modalities.goal.rgb": ["camera"],
}
TD3_BC = {
    "algo.actor.layer_dims": [8],
    "algo.critic.layer_dims": [8],
    "algo.actor.noise_std": 0.0,
}
RESNET = {
    "experiment.epoch_every_n_steps": FEW_STEPS,
    "observation.encoder.rgb.core_class": "VisualCore",
    "observation.encoder.rgb.core_kwargs": {
        "feature_dimension": 16,
        "backbone_class": "ResNet18Conv",
        "pool_class": "SpatialSoftmax",
        "pool_kwargs": {"num_kp": 4},
    },
}


def randomized(crop: int) -> dict[str, Any]:
    """Random parts of images, in random colours."""
    crops = {"crop_height": crop, "crop_width": crop}
    return {
        "observation.encoder.rgb.obs_randomizer_class": ["CropRandomizer", "ColorRandomizer"],
        "observation.encoder.rgb.obs_randomizer_kwargs": [crops, {}],
    }


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bc": ("bc", TINY | BC),
    "bc_rnn": ("bc", TINY | RNN | randomized(SIDE - 2)),
    "td3_bc": ("td3_bc", TINY | TD3_BC),
    "resnet": ("bc", RESNET | BC | randomized(LARGE_CROP)),
}
SHARDED = [case for case in CASES if case != "resnet"]
SHARDS = {"ray.data_placement": "shard"}


def spec(dataset: Path, run_dir: Path, case: str = "bc", **settings: Any) -> WorkerSpec:
    name, own = CASES[case]
    config = config_factory(name)
    values = {
        "train.data": str(dataset),
        "train.dtype": "float64",
        "train.num_epochs": 2,
        "train.batch_size": 8,
        "train.hdf5_filter_key": "train",
        "train.hdf5_validation_filter_key": "valid",
        "experiment.validate": True,
        "experiment.epoch_every_n_steps": STEPS,
        "experiment.rollout.enabled": False,
        "observation.modalities.obs.low_dim": [],
        "observation.modalities.obs.rgb": ["camera"],
        "ray.threads_per_worker": 1,
    }
    with config.values_unlocked():
        for key, value in (values | own | settings).items():
            config.set_path(key, value)
    digest = inspect_data(config, algo_class(name, config).reads(config)).digest
    dump = json.dumps(config.to_dict())
    return WorkerSpec(name, dump, str(run_dir), ImportPath((), ()), {}, False, digest)


@dataclass(frozen=True)
class Job:
    """Trainings, one after the other, of some ranks, with a fault or none."""

    specs: tuple[WorkerSpec, ...]
    fault: str | None = None


@contextmanager
def broken(fault: str | None) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if fault == "statistics of a rank":
            patch.setattr(batch_norm, "current_sync", lambda: None)
        if fault == "draws of a rank":
            patch.setattr(worker, "share_draws", lambda net, draws: False)
            patch.setattr(Augment, "draws", TorchDraws())
        yield


def _train(jobs: list[Job], rank: int, world_size: int) -> None:
    for job in jobs:
        for run in job.specs:
            Path(run.run_dir).mkdir(parents=True, exist_ok=True)
            with broken(job.fault):
                train_loop(
                    run,
                    RecordingLink(),
                    rank=rank,
                    world_size=world_size,
                    device=torch.device("cpu"),
                )
            if world_size > 1:
                dist.barrier()  # the next one may resume the checkpoint that rank 0 writes


def _together(jobs: list[Job], rank: int, world_size: int, store: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}_{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=DEADLINE_S),
    )
    try:
        _train(jobs, rank, world_size)
        dist.barrier()  # a rank that leaves while another still talks may abort it
    finally:
        dist.destroy_process_group()


def _rank(rank: int, jobs: dict[int, list[Job]], store: str) -> None:
    _together(jobs[3], rank, 3, store)
    if rank == 2:
        _train(jobs[1], 0, 1)
    else:
        _together(jobs[2], rank, 2, store)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders of all trainings: `<workers>/<name>`."""
    folder = tmp_path_factory.mktemp("image_ranks")
    small, large = write_data(folder / "d.hdf5", SIDE), write_data(folder / "large.hdf5", LARGE)

    def job(workers: int, name: str, case: str, fault: str | None = None, **settings: Any) -> Job:
        data = large if case == "resnet" else small
        return Job((spec(data, folder / f"{workers}" / name, case, **settings),), fault)

    jobs = {n: [job(n, case, case) for case in CASES] for n in (1, 2, 3)}
    jobs[3] += [job(3, f"{case} shards", case, **SHARDS) for case in SHARDED]
    resumed = folder / "2" / "resumed"
    halves = [spec(small, resumed, "bc_rnn", **{"train.num_epochs": n}) for n in (1, 2)]
    jobs[2] += [
        Job(tuple(halves)),
        job(2, "statistics of a rank", "bc", "statistics of a rank"),
        job(2, "draws of a rank", "bc", "draws of a rank"),
    ]
    run_ranks(3, _rank, jobs, str(folder / "store"))
    return folder


def nets(run: Path) -> dict[str, Tensor]:
    content = load_dict_from_checkpoint(str(run / "models" / "model_epoch_2.pth"))
    assert content["raymimic"]["step"] == 2 * (FEW_STEPS if run.name == "resnet" else STEPS)
    return content["model"]["nets"]


def difference(one: Path, other: Path) -> float:
    """The largest one of parameters and running statistics, relative to the size of the tensor."""
    a, b = nets(one), nets(other)
    assert a.keys() == b.keys()
    assert any("running_var" in key for key in a)
    return max(float((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1e-6)) for k in a)


def losses(run: Path) -> list[float]:
    epochs = epochs_of(run / "models" / "model_epoch_2.pth")
    return [epoch["metrics"][key] for epoch in epochs for key in ("Train/Loss", "Valid/Loss")]


@pytest.mark.parametrize(
    ("case", "many"),
    [
        *((case, f"{workers}/{case}") for case in CASES for workers in (2, 3)),
        *((case, f"3/{case} shards") for case in SHARDED),
    ],
)
def test_any_number_of_workers_gives_the_one_workers_result(
    folder: Path, case: str, many: str
) -> None:
    one, other = folder / "1" / case, folder / many
    assert difference(one, other) < 1e-9
    assert losses(other) == pytest.approx(losses(one), rel=1e-9)


def test_some_worker_holds_none_of_the_samples_of_some_batch(folder: Path) -> None:
    run = spec(folder / "d.hdf5", folder / "none", **{"ray.data_placement": "shard"})
    config = config_factory("bc", dic=json.loads(run.config))
    reads = algo_class("bc", config).reads(config)
    counts = [
        n
        for rank in range(3)
        for epoch in (1, 2)
        for _, n, _ in make_loaders(config, reads, torch.device("cpu"), rank, 3).train.epoch(epoch)
    ]
    assert 0 in counts


def test_a_resumed_training_sees_the_same_images_to_the_bit(folder: Path) -> None:
    unbroken, resumed = nets(folder / "2" / "bc_rnn"), nets(folder / "2" / "resumed")
    assert all(torch.equal(resumed[key], value) for key, value in unbroken.items())


@pytest.mark.parametrize("fault", ["statistics of a rank", "draws of a rank"])
def test_statistics_and_draws_of_a_rank_alone_would_be_noticed(folder: Path, fault: str) -> None:
    assert difference(folder / "1" / "bc", folder / "2" / fault) > 1e-4
