"""A worker or the driver is really killed; the result is an uninterrupted run's, bit by bit."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tiny import LAYERS, SETTINGS

from raymimic.utils.file_utils import load_dict_from_checkpoint

EPOCHS = 16
DEADLINE_S = 240.0


@dataclass
class Launched:
    """A `raymimic train` with two workers in a process of its own."""

    process: subprocess.Popen[str]
    folder: Path
    marker: str

    @property
    def run_dir(self) -> Path:
        (config,) = (self.folder / "out" / "r").glob("*/config.json")
        return config.parent

    def wait_for_epoch(self, epoch: int) -> None:
        """Waits until a checkpoint of that epoch or a later one is committed."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.process.communicate()
            with contextlib.suppress(ValueError, OSError):
                manifest = self.run_dir / "models" / "checkpoints.json"
                if json.loads(manifest.read_text())["checkpoints"][-1]["epoch"] >= epoch:
                    return
            time.sleep(0.1)
        raise TimeoutError(f"no checkpoint of epoch {epoch}")

    def pids(self, title: str) -> list[int]:
        """Processes of this training whose title has a word in it."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    self.marker.encode() in (entry / "environ").read_bytes()
                    and title.encode() in (entry / "cmdline").read_bytes()
                ):
                    found.append(int(entry.name))
        return found

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def end(self) -> None:
        """Ends what is left of it, by process id."""
        self.process.kill()
        deadline = time.monotonic() + 30
        while (left := self.pids("")) and time.monotonic() < deadline:
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


def launch(folder: Path, dataset: Path, *args: str) -> Launched:
    folder.mkdir(exist_ok=True)
    marker = uuid.uuid4().hex
    settings = [
        *LAYERS["td3_bc"],
        *SETTINGS,
        "mlflow.enabled=true",
        "experiment.epoch_every_n_steps=60",
        f"train.num_epochs={EPOCHS}",
        f"train.output_dir={folder / 'out'}",
        "train.hdf5_normalize_obs=true",
        "experiment.validate=true",
        "train.hdf5_filter_key=train",
        "train.hdf5_validation_filter_key=valid",
        "experiment.rollout.enabled=true",
        "experiment.rollout.rate=4",
        "experiment.save.every_n_epochs=null",
        "experiment.rollout.n=4",
        "experiment.rollout.horizon=50",
        "experiment.render_video=false",
        "ray.commit_interval_s=0",
        "ray.cpus_per_worker=0.5",
        "ray.rollout_actors=1",
    ]
    common = ["--algo", "td3_bc", "--dataset", str(dataset), "--name", "r", "--workers", "2"]
    command = [sys.executable, "-m", "raymimic", "train", "--json"]
    command += args or [*common, "--set", *settings]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "TEST_MARKER": marker},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return Launched(process, folder, marker)


@pytest.fixture(scope="module")
def uninterrupted(hopper: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    training = launch(tmp_path_factory.mktemp("whole") / "w", hopper)
    try:
        yield training.result()
    finally:
        training.end()


def state(checkpoint: str) -> dict[str, Any]:
    """Everything that training computed, and nothing about where or when."""
    ckpt = load_dict_from_checkpoint(checkpoint)
    history = json.loads(ckpt["raymimic"]["history"])
    return {
        "model": ckpt["model"],
        "training_state": ckpt["raymimic"]["training_state"],
        "step": ckpt["raymimic"]["step"],
        "metrics": [
            {k: v for k, v in row["metrics"].items() if not k.startswith("Timing/")}
            for row in history
        ],
        "best_return": ckpt["variable_state"]["best_return"],
    }


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equality to the last bit, at any depth."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def mlflow_run(result: dict[str, Any]) -> tuple[MlflowClient, Run]:
    store = Path(result["run_dir"]).parent / "mlflow.db"
    client = MlflowClient(f"sqlite:///{store}")
    (experiment,) = client.search_experiments(filter_string="name = 'raymimic'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == result["mlflow_run_id"]
    return client, run


def check(result: dict[str, Any], uninterrupted: dict[str, Any]) -> None:
    """Same weights, same metrics, one complete MLflow run."""
    assert_same(state(result["last_checkpoint"]), state(uninterrupted["last_checkpoint"]))
    assert Path(result["best_checkpoint"]).name == Path(uninterrupted["best_checkpoint"]).name
    client, run = mlflow_run(result)
    assert run.info.status == "FINISHED"
    for metric, epochs in {
        "Train/Loss": range(1, EPOCHS + 1),
        "Valid/Loss": range(1, EPOCHS + 1),
        "gradient_steps": range(1, EPOCHS + 1),
        "Rollout/Return/Hopper-v5": range(4, EPOCHS + 1, 4),
    }.items():
        points = client.get_metric_history(run.info.run_id, metric)
        assert sorted(point.step for point in points) == list(epochs), metric
    returns = [
        result["metrics"]["Rollout/Return/Hopper-v5"],
        run.data.metrics["Rollout/Return/Hopper-v5"],
    ]
    assert returns == [uninterrupted["metrics"]["Rollout/Return/Hopper-v5"]] * 2


def test_a_killed_worker_is_replaced(hopper: Path, tmp_path: Path, uninterrupted: Any) -> None:
    training = launch(tmp_path / "w", hopper)
    try:
        training.wait_for_epoch(3)
        workers = training.pids("RayTrainWorker")
        assert len(workers) == 2
        os.kill(workers[0], signal.SIGKILL)
        result = training.result()
    finally:
        training.end()
    log = (Path(result["run_dir"]) / "logs" / "log.txt").read_text()
    assert "workers restarted; training goes on after epoch" in log
    check(result, uninterrupted)


def test_a_killed_driver_is_resumed(hopper: Path, tmp_path: Path, uninterrupted: Any) -> None:
    training = launch(tmp_path / "w", hopper)
    try:
        training.wait_for_epoch(3)
        run_dir = training.run_dir
        training.process.kill()
        deadline = time.monotonic() + 60
        while training.pids("RayTrainWorker") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not training.pids("RayTrainWorker")
    finally:
        training.end()
    resumed = launch(tmp_path / "w", hopper, "--resume", str(run_dir))
    try:
        result = resumed.result()
    finally:
        resumed.end()
    assert result["run_dir"] == str(run_dir)
    check(result, uninterrupted)
