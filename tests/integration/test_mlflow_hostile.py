"""Run folders that somebody else made, delivered by a real process to a real SQLite store."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from tiny import PROGRAMS
from waiting import DEADLINE_S

from raymimic.errors import ConfigError, OutputError
from raymimic.tracking.journal import pending, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker, sync

pytestmark = pytest.mark.mlflow

SPY = "from pathlib import Path\nPath({marker!r}).touch()\n"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


def lines(run_dir: Path, uri: str, *more: dict[str, Any] | str) -> None:
    """Writes a journal, as a training writes it or not."""
    start = {"key": "k", "tracking_uri": uri, "experiment": "e", "run_name": "n", "params": {}}
    start |= {"type": "start", "time": 1, "tags": {}, "host": "elsewhere", "pid": 7}
    # 0.1.0 wrote these too, and a stranger may: they name neither a place of files nor a parent.
    start |= {"artifact_location": "file:///etc", "parent": None}
    spool = spool_dir_of(run_dir)
    spool.mkdir(parents=True, exist_ok=True)
    texts = [one if isinstance(one, str) else json.dumps(one) for one in (start, *more)]
    (spool / "journal.jsonl").write_text("\n".join(texts) + "\n")


def file(copy: str, artifact_path: str | None = None) -> dict[str, Any]:
    return {"type": "artifact", "time": 1, "copy": copy, "artifact_path": artifact_path}


def test_a_strangers_run_runs_no_code_and_touches_no_file_of_mine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, marker = tmp_path / "exp" / "run", tmp_path / "ran"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "key.txt").write_text("private")
    uri = f"sqlite:///{tmp_path}/exp/mlflow.db"
    spool = spool_dir_of(run)
    metrics = {"type": "epoch", "time": 1, "epoch": 1, "step": 5, "metrics": {"x": 0.5}}
    lines(
        run,
        uri,
        file("artifacts/good/a.txt", "figures"),
        file(str(mine / "key.txt")),
        "not a record",
        file("../../../../mine/key.txt"),
        file("artifacts/../../../../../mine/key.txt"),
        metrics,
        file("artifacts/good2/b.txt", "../../up"),
        {"type": "finish", "time": 3, "status": "FINISHED"},
    )
    (spool / "artifacts" / "good").mkdir(parents=True)
    (spool / "artifacts" / "good" / "a.txt").write_text("good")
    # Modules that a delivery imports, in every folder that it could be near to.
    for folder in (spool, run, run / "logs", tmp_path / "cwd", tmp_path / "exp"):
        for name in ("mlflow", "json", "sqlalchemy", "raymimic", "sitecustomize", "alembic"):
            (folder / f"{name}.py").write_text(SPY.format(marker=str(marker)))
    monkeypatch.setenv("PYTHONPATH", f":.:{os.path.relpath(spool)}")

    report = sync(run)

    assert not marker.exists()
    assert (report.left, report.reason, report.server) == (0, "", uri)
    assert len(report.remarks) == 2
    assert any("names a file that is not in it" in remark for remark in report.remarks)
    assert any("2 lines of the journal" in remark for remark in report.remarks)
    assert (mine / "key.txt").read_text() == "private"
    assert not (spool / "artifacts" / "good").exists()  # delivered
    client = MlflowClient(uri)
    assert report.run_id is not None
    found = client.get_run(report.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["x"] == 0.5
    store = tmp_path / "exp" / "mlartifacts"
    assert [p.name for p in store.rglob("*") if p.is_file()] == ["a.txt"]
    assert found.info.artifact_uri == (store / report.run_id / "artifacts").as_uri()


def test_a_strangers_database_cannot_send_files_anywhere(tmp_path: Path) -> None:
    """Its run says that its files belong into a folder of mine."""
    run, uri = tmp_path / "exp" / "run", f"sqlite:///{tmp_path}/exp/mlflow.db"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "authorized_keys").write_text("mine")
    lines(run, uri, file("artifacts/x/authorized_keys"))
    copy = spool_dir_of(run) / "artifacts" / "x" / "authorized_keys"
    copy.parent.mkdir(parents=True)
    copy.write_text("theirs")
    client = MlflowClient(uri)
    experiment = client.create_experiment("e", mine.as_uri())
    theirs = client.create_run(experiment)
    with client._tracking_client.store.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE runs SET artifact_uri = ?", (mine.as_uri(),))
    (run / "mlflow_run.json").write_text(json.dumps({"run_id": theirs.info.run_id}))
    report = sync(run)
    assert report.left == 1
    assert "artifact store did not take authorized_keys" in report.reason
    assert (mine / "authorized_keys").read_text() == "mine"
    assert copy.read_text() == "theirs"


def test_a_strangers_run_names_no_file_for_its_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, wanted = tmp_path / "exp" / "run", tmp_path / "precious" / "new.db"
    lines(run, f"sqlite:///{wanted}")
    with pytest.raises(ConfigError, match="confirm it: MLFLOW_TRACKING_URI=sqlite") as refused:
        sync(run)
    assert not wanted.parent.exists()
    # The command that the sentence gives.
    confirmed = str(refused.value).rpartition("MLFLOW_TRACKING_URI=")[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", confirmed)
    report = sync(run)
    assert (report.left, report.server, wanted.exists()) == (0, confirmed, True)


def test_a_journal_without_a_beginning_says_so(tmp_path: Path) -> None:
    lines(tmp_path, "http://h")
    journal = spool_dir_of(tmp_path) / "journal.jsonl"
    journal.write_text("damaged\n" + json.dumps({"type": "finish", "time": 1, "status": "FAILED"}))
    with pytest.raises(OutputError, match="does not say where its records belong"):
        sync(tmp_path)


def test_a_folder_of_any_name_has_its_store_where_it_should(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "what? 100%41 #1 é;&=+"
    run = odd / "exp" / "run"
    run.mkdir(parents=True)
    monkeypatch.chdir(odd / "exp")
    tracker = MLflowTracker(run_name="odd", finish_deadline_s=DEADLINE_S)
    tracker.start(run, {"a": 1}, {})
    tracker.log_epoch(1, 10, {"Train/Loss": 0.5})
    tracker.finish("FINISHED")
    assert pending(spool_dir_of(run)) == 0
    assert sorted(p.name for p in (odd / "exp").iterdir()) == ["mlartifacts", "mlflow.db", "run"]
    assert [p.name for p in tmp_path.iterdir() if p.name != "cwd"] == [odd.name]
    (config,) = (odd / "exp" / "mlartifacts").rglob("config.json")
    assert json.loads(config.read_text()) == {"a": 1}
    plain = shutil.copy(odd / "exp" / "mlflow.db", tmp_path / "copy.db")
    found = MlflowClient(f"sqlite:///{plain}").get_run(str(tracker.run_id))
    assert found.info.run_name == "odd"
    assert sync(run).left == 0


@pytest.mark.parametrize("full", ["spool", "database"])
def test_a_full_disk_is_said_at_once(tmp_path: Path, full: str) -> None:
    """On a file system of the process's own, with too little room for MLflow's tables."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=700k tmpfs '{disk}' && exec \"$@\""
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    done = subprocess.run(
        [*inside, sys.executable, PROGRAMS / "fill_disk.py", str(disk), full],
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    if full == "spool":
        assert "No space left on device" in told["spool"]
        assert "No space left on device" in told["finish"]
    assert "the disk is full" in told["said"]
    assert "records wait in" in told["said"]
    assert float(told["seconds"]) < 300  # instead of the 600 that MLflow may take
