"""A worker or the driver is really killed; the result is an uninterrupted run's, bit by bit."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from checks import assert_same, state_in
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from tiny import LAYERS, SETTINGS, write_hopper
from waiting import DEADLINE_S, pids, wait_for

pytestmark = pytest.mark.ray

EPOCHS = 16
STEPS = 60


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

        def committed() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            with contextlib.suppress(ValueError, OSError):
                manifest = self.run_dir / "checkpoints.json"
                return json.loads(manifest.read_text())["checkpoints"][-1]["epoch"] >= epoch
            return False

        wait_for(committed, f"a checkpoint of epoch {epoch}")

    def pids(self, title: str) -> list[int]:
        """Processes of this training whose title has a word in it."""
        return pids(self.marker, title)

    def wait_for_log(self, text: str) -> None:
        """Waits until the run's log has some words."""

        def logged() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            return text in (self.run_dir / "logs" / "log.txt").read_text()

        wait_for(logged, text)

    def wait_for_others(self, title: str, known: list[int]) -> list[int]:
        """Processes of a title beside those that are known, once there are any."""
        found: list[int] = []

        def others() -> list[int]:
            assert self.process.poll() is None, self.process.communicate()
            found[:] = [pid for pid in self.pids(title) if pid not in known]
            return found

        wait_for(others, title, interval_s=0.01)
        return found

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, err
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def end(self) -> None:
        """Ends its remaining processes, by id."""
        self.process.kill()

        def killed() -> bool:
            left = self.pids("")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_for(killed, "the end of all its processes")


def launch(folder: Path, dataset: Path, *args: str, mlflow: bool = True) -> Launched:
    folder.mkdir(exist_ok=True)
    marker = uuid.uuid4().hex
    settings = [
        *LAYERS["td3_bc"],
        *SETTINGS,
        f"mlflow.enabled={str(mlflow).lower()}",
        f"experiment.epoch_every_n_steps={STEPS}",
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
    training = launch(tmp_path_factory.mktemp("whole") / "w", hopper, mlflow=False)
    try:
        yield training.result()
    finally:
        training.end()


def mlflow_run(result: dict[str, Any]) -> tuple[MlflowClient, Run]:
    store = Path(result["run_dir"]).parents[2] / "mlflow.db"  # where the command ran
    client = MlflowClient(f"sqlite:///{store}")
    (experiment,) = client.search_experiments(filter_string="name = 'raymimic'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == result["mlflow_run_id"]
    return client, run


def check(result: dict[str, Any], uninterrupted: dict[str, Any]) -> None:
    """Same weights, same metrics, one complete MLflow run."""
    assert_same(state_in(result["last_checkpoint"]), state_in(uninterrupted["last_checkpoint"]))
    assert Path(result["best_checkpoint"]).name == Path(uninterrupted["best_checkpoint"]).name
    client, run = mlflow_run(result)
    assert run.info.status == "FINISHED"
    for metric, epochs in {
        "Train/Loss": range(1, EPOCHS + 1),
        "Valid/Loss": range(1, EPOCHS + 1),
        "epoch": range(1, EPOCHS + 1),
        "Rollout/Hopper-v5/Return": range(4, EPOCHS + 1, 4),
    }.items():
        points = client.get_metric_history(run.info.run_id, metric)
        assert sorted(point.step for point in points) == [STEPS * e for e in epochs], metric
    returns = [
        result["metrics"]["Rollout/Return/Hopper-v5"],
        run.data.metrics["Rollout/Hopper-v5/Return"],
    ]
    assert returns == [uninterrupted["metrics"]["Rollout/Return/Hopper-v5"]] * 2


def test_lost_processes_are_replaced_one_after_the_other(
    hopper: Path, tmp_path: Path, uninterrupted: Any
) -> None:
    training = launch(tmp_path / "w", hopper)
    try:
        training.wait_for_epoch(3)
        first = training.pids("RayTrainWorker")
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        # Again, while the workers start, and then the actor between them and the driver.
        training.wait_for_log("a worker was lost after epoch")
        second = training.wait_for_others("RayTrainWorker", first)
        os.kill(second[0], signal.SIGKILL)
        training.wait_for_log("(restart 2 of 3)")
        training.wait_for_log("workers restarted; training goes on after epoch")
        (mailbox,) = training.pids("Mailbox")
        os.kill(mailbox, signal.SIGKILL)
        result = training.result()
    finally:
        training.end()
    log = (Path(result["run_dir"]) / "logs" / "log.txt").read_text()
    assert re.search(r"a worker was lost after epoch \d+; waiting for 2 × 0\.\d+ CPU, at most", log)
    assert "the process between workers and driver was lost after epoch" in log
    assert "(restart 3 of 3)" in log
    check(result, uninterrupted)


def test_a_restarted_worker_notices_that_the_data_were_replaced(
    hopper: Path, tmp_path: Path
) -> None:
    dataset = Path(shutil.copyfile(hopper, tmp_path / "mine.hdf5"))
    training = launch(tmp_path / "w", dataset, mlflow=False)
    try:
        training.wait_for_epoch(3)
        write_hopper(tmp_path / "other.hdf5", seed=1).replace(dataset)
        os.kill(training.pids("RayTrainWorker")[0], signal.SIGKILL)
        _, said = training.process.communicate(timeout=DEADLINE_S)
    finally:
        training.end()
    assert training.process.returncode == 2
    (line,) = (line for line in said.splitlines() if line.startswith("raymimic: error: "))
    assert str(dataset) in line
    assert "are not those with which this training was started (sha256:" in line
    assert "Traceback" not in said


def test_a_killed_driver_is_resumed(hopper: Path, tmp_path: Path, uninterrupted: Any) -> None:
    training = launch(tmp_path / "w", hopper)
    try:
        training.wait_for_epoch(3)
        run_dir = training.run_dir
        training.process.kill()
        wait_for(lambda: not training.pids("RayTrainWorker"), "the end of the workers")
    finally:
        training.end()
    resumed = launch(tmp_path / "w", hopper, "--resume", str(run_dir))
    try:
        result = resumed.result()
    finally:
        resumed.end()
    assert result["run_dir"] == str(run_dir)
    check(result, uninterrupted)
