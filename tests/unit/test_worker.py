"""A worker in this process: an epoch in robomimic's numbers, and its events."""

import contextlib
import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from checks import assert_same
from image_files import write_cameras
from recording import RecordingLink
from reference import DATA, centred_rng, fill, golden_batch, make, state, variant_config
from tiny import SETTINGS, small_config

from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig, config_factory
from raymimic.config.base_config import parse_set
from raymimic.errors import ConfigError, DatasetError, TrainingError
from raymimic.models.vision.convolutions import ShallowConv, register_backbone
from raymimic.models.vision.weights import are_needed, read_weights, weights_follow
from raymimic.tracking.system_metrics import Sampling
from raymimic.training import trainer, worker
from raymimic.training.link import Committed, Loading, MachineLoad, Progress, Started
from raymimic.training.machines import sampled
from raymimic.training.prepare import prepare
from raymimic.training.run_folder import RunFolder
from raymimic.training.worker import WorkerSpec, train_loop

TOLERANCE = 1e-4


@pytest.fixture
def specs(tmp_path: Path) -> Iterator[Any]:
    """Makes the spec of a run from a config; restores the number of threads."""
    folders: list[RunFolder] = []
    threads = torch.get_num_threads()

    def make_spec(config: BaseConfig) -> WorkerSpec:
        with config.unlocked():
            config.train.output_dir = str(tmp_path / "runs")
            config.train.cuda = False
            config.mlflow.enabled = False
            config.experiment.rollout.enabled = False
            config.ray.threads_per_worker = 1
        prepared = prepare(config)
        folders.append(RunFolder.create(prepared.config))
        return prepared.worker_spec(folders[-1])

    yield make_spec
    for folder in folders:
        folder.release()
    torch.set_num_threads(threads)


def train(spec: WorkerSpec, link: RecordingLink | None = None) -> list[Any]:
    """Trains with one worker; returns its events but the signs of life within slow epochs."""
    link = link or RecordingLink()
    train_loop(spec, link, rank=0, world_size=1, device=torch.device("cpu"))
    return lasting(link)


def lasting(link: RecordingLink) -> list[Any]:
    return [event for event in link.events if not isinstance(event, Progress)]


def trained(spec: WorkerSpec, link: RecordingLink | None = None) -> str:
    """Trains; returns the path of the last checkpoint."""
    train(spec, link)
    store = CheckpointStore(spec.run_dir, config_factory("bc").experiment.save)
    assert store.last is not None
    return store.path(store.last)


def write_samples(path: Path, raw: dict[str, Any]) -> Path:
    """Each sample of a raw batch of single steps as a demo of its own."""
    with h5py.File(path, "w") as file:
        for i in range(len(raw["actions"])):
            demo = file.create_group(f"data/demo_{i}")
            demo.attrs["num_samples"] = 1
            for group in ("obs", "next_obs"):
                for key, value in raw.get(group, raw["obs"]).items():
                    demo[f"{group}/{key}"] = value[i].numpy()
            for key in ("actions", "rewards", "dones"):
                demo[key] = raw[key][i].numpy()
    return path


@pytest.mark.parametrize("name", ["bc", "td3_bc"])
def test_an_epoch_gives_robomimics_numbers(name: str, specs: Any, tmp_path: Path) -> None:
    """Three steps on a batch that is the whole dataset, from robomimic's parameters."""
    case = json.loads(gzip.decompress((DATA / "numbers_low_dim.json.gz").read_bytes()))[name]
    config = variant_config(name)
    raw = golden_batch(config, case["idx"])
    begin = fill(make(config))
    weights = {
        "model": begin.serialize(),
        "algo_name": config.algo_name,
        "config": config.dump(),
        "env_metadata": {},
        "shape_metadata": {"all_shapes": {}, "ac_dim": 7},
    }
    torch.save(weights, tmp_path / "weights.pth")
    config.train.data = str(write_samples(tmp_path / "data.hdf5", raw))
    config.train.hdf5_filter_key = config.train.hdf5_validation_filter_key = None
    config.train.hdf5_normalize_obs = False  # as in the reference
    config.train.batch_size = len(case["idx"])
    config.train.num_epochs = 1
    config.experiment.validate = False
    config.experiment.epoch_every_n_steps = len(case["train"])
    config.experiment.ckpt_path = str(tmp_path / "weights.pth")
    spec = specs(config)
    with centred_rng():
        started, committed = train(spec)
    assert isinstance(started, Started)
    assert started.info["samples"] == len(case["idx"])
    (record,) = committed.records
    assert record.step == len(case["train"])
    data_s, step_s, share, epoch_s = (
        record.metrics[f"Timing/{name}"] for name in ("data_s", "step_s", "data_share", "epoch_s")
    )
    assert 0 < share < 1
    assert data_s + step_s <= data_s / share * (1 + 1e-9) <= epoch_s * (1 + 1e-9)
    for key in case["train"][0]:
        if all(key in step for step in case["train"]) and "norm" not in key.lower():
            mean = sum(step[key] for step in case["train"]) / len(case["train"])
            assert record.metrics[f"Train/{key}"] == pytest.approx(mean, rel=TOLERANCE), key

    algo = make(config)
    content = CheckpointStore(spec.run_dir, config.experiment.save).load_last()
    assert content is not None
    algo.deserialize(content.model)
    sums = state(algo)
    for key, (expected, scale) in case["param_sums"].items():
        total = sums[key].double().sum().item()
        assert total == pytest.approx(expected, abs=TOLERANCE * scale), key


@pytest.fixture
def spec(hopper: Path, specs: Any) -> WorkerSpec:
    settings = {
        "train.data": str(hopper),
        "train.num_epochs": 3,
        "train.batch_size": 8,
        "experiment.epoch_every_n_steps": 2,
        "experiment.save.every_n_epochs": 2,
        "ray.commit_interval_s": 1000.0,
    }
    return specs(small_config("td3_bc", **settings))


def test_epochs_are_sent_with_the_checkpoint_that_contains_them(spec: WorkerSpec) -> None:
    started, *commits = train(spec)
    assert (started.epoch, started.history, started.pending) == (0, [], {})
    assert [(c.epoch, [r.epoch for r in c.records]) for c in commits] == [(2, [1, 2]), (3, [3])]
    assert [r.step for c in commits for r in c.records] == [2, 4, 6]
    assert not any(c.evaluate for c in commits)
    (started,) = train(spec)  # which is finished
    assert [record.epoch for record in started.history] == [1, 2, 3]


def test_a_restarted_worker_goes_on_bit_by_bit(spec: WorkerSpec, specs: Any) -> None:
    train(spec)
    config = json.loads(spec.config)
    other = RunFolder(f"{spec.run_dir}_2", Path(f"{spec.run_dir}_2"))
    other.prepare(new=True)
    interrupted = replace(spec, run_dir=other.uri)
    config["train"]["num_epochs"] = 2
    train(replace(interrupted, config=json.dumps(config)))
    started, committed = train(interrupted)
    assert (started.epoch, committed.epoch) == (2, 3)
    whole, resumed = (
        torch.load(f"{run.run_dir}/models/model_epoch_3.pth", weights_only=True)["model"]
        for run in (spec, interrupted)
    )
    assert whole["nets"].keys() == resumed["nets"].keys()
    for key, value in whole["nets"].items():
        assert torch.equal(value, resumed["nets"][key]), key
    other.release()


@register_backbone
class FromFileConv(ShallowConv):
    """A small backbone that starts from the weights of a file, as ResNets do."""

    def __init__(self, input_channel: int = 3, pretrained_path: str = "") -> None:
        super().__init__(input_channel)
        if are_needed():
            self.load_state_dict(read_weights(Path(pretrained_path)))


def test_a_checkpoints_weights_need_no_pretrained_ones(specs: Any, tmp_path: Path) -> None:
    """Neither to go on, nor for a new run that begins with them."""
    weights = tmp_path / "pretrained.pth"
    with weights_follow():
        torch.save(FromFileConv(pretrained_path="").state_dict(), weights)
    settings = {
        "train.data": str(write_cameras(tmp_path / "cameras.hdf5", lengths=[2], sizes=[(16, 16)])),
        "train.num_epochs": 2,
        "train.batch_size": 2,
        "observation.modalities.obs.rgb": ["camera_0"],
        "observation.encoder.rgb.core_kwargs": {
            "backbone_class": "FromFileConv",
            "backbone_kwargs": {"pretrained_path": str(weights)},
            "pool_class": None,
        },
    }
    spec = specs(small_config("bc", **settings))
    config = json.loads(spec.config)
    config["train"]["num_epochs"] = 1
    checkpoint = trained(replace(spec, config=json.dumps(config)))
    weights.unlink()
    started, *commits = train(spec)
    assert (started.epoch, commits[-1].epoch) == (1, 2)
    other = RunFolder(f"{spec.run_dir}_2", Path(f"{spec.run_dir}_2"))
    other.prepare(new=True)
    new = replace(spec, run_dir=other.uri)
    with pytest.raises(ConfigError, match="cannot read the weights"):
        train(new)
    started, *_ = train(replace(new, initial_weights=checkpoint))
    assert started.epoch == 0
    other.release()


def test_a_sampled_machine_changes_no_bit(spec: WorkerSpec, tmp_path: Path) -> None:
    plain = torch.load(trained(spec), weights_only=True)
    other = RunFolder(f"{spec.run_dir}_sampled", Path(f"{spec.run_dir}_sampled"))
    other.prepare(new=True)
    link = RecordingLink()
    with sampled(Sampling(0.001, node="two"), link):
        checkpoint = trained(replace(spec, run_dir=other.uri), link)
    assert sum(isinstance(event, MachineLoad) for event in link.events) > 1
    sampled_too = torch.load(checkpoint, weights_only=True)
    for key, value in plain["model"]["nets"].items():
        assert torch.equal(value, sampled_too["model"]["nets"][key]), key
    other.release()


def test_other_data_than_the_drivers_are_refused(spec: WorkerSpec) -> None:
    link = RecordingLink()
    with pytest.raises(DatasetError, match="are not those with which this training was started"):
        train(replace(spec, dataset_digest="0" * 64), link)
    assert link.events == []


def test_a_stopped_worker_ends_before_its_first_step_or_at_its_next_commit(
    spec: WorkerSpec,
) -> None:
    assert train(spec, RecordingLink(stop_reason="the driver gave up")) == []

    class Stopping(RecordingLink):
        def send(self, event: Any) -> None:
            super().send(event)
            if isinstance(event, Committed):
                self.stop_reason = "Ctrl-C"

    link = Stopping()
    with pytest.raises(TrainingError, match="stopped by its driver"):
        train(spec, link)
    assert [event.epoch for event in lasting(link)] == [0, 2]


def test_a_worker_that_builds_a_cache_says_so_and_heeds_its_driver(
    specs: Any, hopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMIMIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(worker, "_SIGN_OF_LIFE_S", -1.0)
    settings = {"train.data": str(hopper), "train.hdf5_cache_mode": None, "train.num_epochs": 1}
    spec = specs(small_config("bc", **settings))
    with pytest.raises(TrainingError, match="training was stopped by its driver"):
        train(spec, RecordingLink(stop_reason="Ctrl-C"))
    assert list((tmp_path / "cache" / "columns").glob("*.partial"))  # a later start goes on there
    link = RecordingLink()
    train_loop(spec, link, rank=0, world_size=1, device=torch.device("cpu"))
    said = [event.text for event in link.events if isinstance(event, Loading)]
    assert said[1:] == [f"caching hopper.hdf5: {i} of 6 demos" for i in range(6)]
    (started,) = (event for event in link.events if isinstance(event, Started))
    assert started.info["place"].endswith(" in the cache file")


def tiny_training(hopper: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Trains by `raymimic.train`, in this process; returns the weights."""
    config = small_config("td3_bc")
    settings = ("ray.num_workers=0", f"train.data={hopper}", f"train.output_dir={folder}")
    for setting in (*SETTINGS, *settings):
        config.set_path(*parse_set(setting))
    last = trainer.train(config, quiet=True).last_checkpoint
    return torch.load(last, weights_only=True)["model"]["nets"]


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize(
    "session", [default_dtype, default_device, torch.no_grad, torch.inference_mode]
)
def test_a_training_is_the_same_in_any_session(
    session: Callable[[], AbstractContextManager[Any]], hopper: Path, tmp_path: Path
) -> None:
    expected = tiny_training(hopper, tmp_path)
    with session():
        assert_same(tiny_training(hopper, tmp_path), expected)


def test_trainings_of_threads_take_turns(hopper: Path, tmp_path: Path) -> None:
    expected = tiny_training(hopper, tmp_path)
    with ThreadPoolExecutor(2) as pool:
        for weights in pool.map(lambda _: tiny_training(hopper, tmp_path), range(2)):
            assert_same(weights, expected)
