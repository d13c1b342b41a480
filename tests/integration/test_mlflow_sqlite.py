"""Logging to the default store, a SQLite file in the current folder."""

import logging
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient
from waiting import DEADLINE_S, pids

from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.tracking.mlflow_tracker import MLflowTracker, sync

pytestmark = pytest.mark.mlflow


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def steps(client: MlflowClient, run_id: str | None) -> list[int]:
    assert run_id is not None
    return sorted(point.step for point in client.get_metric_history(run_id, "Train/Loss"))


def test_two_trainings_make_one_store_and_leave_nothing_elsewhere(tmp_path: Path) -> None:
    """Both find no store; one of their delivery processes dies, as if out of memory."""
    trackers = [
        MLflowTracker(run_name=name, finish_deadline_s=DEADLINE_S) for name in ("one", "two")
    ]
    for index, tracker in enumerate(trackers):
        run_dir = tmp_path / "out" / "exp" / f"run{index}"
        run_dir.mkdir(parents=True)
        tracker.start(run_dir, {"seed": index}, {"algo": "bc"})
        tracker.log_epoch(1, 10, {"Train/Loss": float(index)})
    (delivery,) = pids("", f"raymimic.tracking.delivery\0{tmp_path}/out/exp/run0")
    os.kill(delivery, signal.SIGKILL)
    trackers[1].finish("KILLED")
    trackers[0].finish("FINISHED")

    folder = tmp_path / "cwd"
    assert trackers[0].tracking_uri == f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(trackers[0].tracking_uri)
    (experiment,) = client.search_experiments(filter_string="name = 'raymimic'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == {
        "one": "FINISHED",
        "two": "KILLED",
    }
    assert {name: run.data.params["seed"] for name, run in runs.items()} == {"one": "0", "two": "1"}
    for tracker in trackers:
        assert steps(client, tracker.run_id) == [10]
        config = folder / "mlartifacts" / str(tracker.run_id) / "artifacts" / "config.json"
        assert config.exists()
    assert sorted(path.name for path in folder.iterdir() if "new" not in path.name) == [
        "mlartifacts",
        "mlflow.db",
    ]
    assert {path.name for path in (tmp_path / "out" / "exp").iterdir()} == {"run0", "run1"}


def test_a_broken_artifact_store_holds_up_no_metric_and_a_lost_run_is_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="raymimic")
    run_dir = tmp_path / "exp" / "run"
    run_dir.mkdir(parents=True)
    (tmp_path / "cwd" / "mlartifacts").write_text("in the way")
    tracker = MLflowTracker(finish_deadline_s=DEADLINE_S)
    tracker.start(run_dir, {}, {})
    tracker.log_epoch(1, 10, {"Train/Loss": 1.0})
    episode = EpisodeRow(seed=1, episode_return=2.0, length=3, success=None, error=None)
    tracker.log_evaluation(1, 10, {"Rollout/Return/E": 2.0}, {"E": [episode]})
    tracker.finish("FINISHED")
    client = MlflowClient(tracker.tracking_uri)
    run_id = tracker.run_id
    assert steps(client, run_id) == [10]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "artifact store did not take config.json" in said[0]
    assert said[1].startswith("MLflow has not got all of this run (3 records wait")

    (tmp_path / "cwd" / "mlartifacts").unlink()
    report = sync(run_dir)
    assert (report.run_id, report.delivered, report.left) == (run_id, 3, 0)
    local = client.download_artifacts(str(run_id), "config.json", str(tmp_path))
    assert Path(local).read_text() == "{}"
    tables = ["episodes.json", "evaluations.json"]
    files = [file.path for file in client.list_artifacts(str(run_id))]
    assert sorted(files) == ["config.json", *tables]

    with sqlite3.connect(tmp_path / "cwd" / "mlflow.db") as database:
        for table in ("metrics", "latest_metrics", "tags", "params", "runs"):
            database.execute(f"DELETE FROM {table}")
    database.close()
    report = sync(run_dir)
    assert report.run_id not in {None, run_id}
    assert steps(client, report.run_id) == [10]
    assert sorted(file.path for file in client.list_artifacts(str(report.run_id))) == tables
    assert client.get_run(str(report.run_id)).info.status == "FINISHED"
