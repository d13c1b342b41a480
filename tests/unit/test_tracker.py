import json
import logging
import shlex
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tiny import small_config

import raymimic
from raymimic.errors import ConfigError, OutputError
from raymimic.storage import file_names
from raymimic.tracking import mlflow_tracker
from raymimic.tracking.journal import Cursor, JournalReader, JournalWriter, pending, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker, flatten, sync
from raymimic.tracking.places import (
    RecordsPage,
    experiment_name,
    open_command,
    records_page,
    resolve_tracking_uri,
)
from raymimic.tracking.tags import names_of_0_1_0, run_tags
from raymimic.tracking.tensorboard_tracker import TensorBoardTracker
from raymimic.tracking.tracker import Status, Tracker, TrackerGroup


class Diary(Tracker):
    """A tracker that writes down its calls, and may fail at everything."""

    def __init__(self, name: str | None = None, error: Exception | None = None) -> None:
        self.name, self.error = name, error
        self.heard: list[Any] = []

    def _hear(self, *what: Any) -> None:
        self.heard.append(what)
        if self.error is not None:
            raise self.error

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        self._hear("start", run_dir, config, tags)
        return self.name

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        self._hear("epoch", epoch, step, metrics)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        self._hear("artifact", path, artifact_path)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self._hear("tags", tags)

    def finish(self, status: Status) -> None:
        self._hear("finish", status)


def test_group_tells_everyone_and_warns_once_about_who_fails(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken, diary = Diary(error=OSError("disk full")), Diary("run-7")
    group = TrackerGroup([broken, Tracker(), diary])
    assert group.start(tmp_path, {"a": 1}, {}) == "run-7"
    group.log_epoch(3, 30, {"Train/Loss": 0.5})
    group.log_artifact(tmp_path / "x.png", "figures")
    group.set_tags({"k": "v"})
    group.finish("FAILED")
    assert diary.heard == [
        ("start", tmp_path, {"a": 1}, {}),
        ("epoch", 3, 30, {"Train/Loss": 0.5}),
        ("artifact", tmp_path / "x.png", "figures"),
        ("tags", {"k": "v"}),
        ("finish", "FAILED"),
    ]
    assert broken.heard == diary.heard
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "Diary" in caplog.text
    assert "disk full" in caplog.text


def test_group_lets_the_users_mistakes_through(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such place"):
        TrackerGroup([Diary(error=ConfigError("no such place"))]).start(tmp_path, {}, {})


def test_flatten_gives_dotted_names_and_json_values() -> None:
    config = {"algo": {"alpha": 2.5, "dims": [256, 256], "empty": {}}, "name": "x", "none": None}
    assert dict(flatten(config)) == {
        "algo.alpha": "2.5",
        "algo.dims": "[256, 256]",
        "algo.empty": "{}",
        "name": "x",
        "none": "null",
    }


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://server:5000", "unknown scheme 'htp'; did you mean 'http'?"),
        ("http://", "names no host"),
        ("sqlite://", "names no file"),
        ("./mlruns", "names a folder"),
        ("file:///tmp/mlruns", "names a folder.*sqlite:////tmp/mlruns/mlflow.db"),
    ],
)
def test_impossible_tracking_uri_is_refused_at_once(
    uri: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(ConfigError, match=message):
        MLflowTracker(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=message):
        MLflowTracker()


def test_where_a_run_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run_dir = Path("out/exp/20260101")
    assert resolve_tracking_uri(None, run_dir) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")  # whose current folder vanishes
    assert resolve_tracking_uri(None, run_dir) == f"sqlite:///{tmp_path}/out/mlflow.db"
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert resolve_tracking_uri("sqlite:///a.db", run_dir) == f"sqlite:///{tmp_path}/a.db"
    assert resolve_tracking_uri("sqlite:////b/c.db", run_dir) == "sqlite:////b/c.db"
    assert resolve_tracking_uri("postgresql+psycopg2://u@h/d", run_dir).endswith("u@h/d")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server:5000")
    assert resolve_tracking_uri(None, run_dir) == "http://server:5000"
    assert resolve_tracking_uri("databricks", run_dir) == "databricks"


def test_a_run_goes_on_where_it_was_logged_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    run_dir = tmp_path / "out" / "exp" / "run"
    spool_dir_of(run_dir).mkdir(parents=True)
    assert resolve_tracking_uri(None, run_dir) == f"sqlite:///{tmp_path}/mlflow.db"
    (run_dir.parent / "mlflow.db").touch()  # 0.1.0's default; MLflow was down so far
    assert resolve_tracking_uri(None, run_dir) == f"sqlite:///{tmp_path}/out/exp/mlflow.db"
    record = run_dir / "mlflow_run.json"
    record.write_text(json.dumps({"tracking_uri": "http://host:5000"}))
    assert resolve_tracking_uri(None, run_dir) == "http://host:5000"
    record.write_text(json.dumps({"tracking_uri": "sqlite:////etc/x.db"}))  # a stranger's
    with pytest.raises(ConfigError, match="MLflow has no database yet"):
        resolve_tracking_uri(None, run_dir)


def test_open_command_can_be_pasted_into_a_shell() -> None:
    words = shlex.split(open_command("sqlite:////a folder/mlflow.db") or "")
    assert words[1:] == ["ui", "--backend-store-uri", "sqlite:////a folder/mlflow.db"]
    assert shutil.which(words[0]) is not None
    assert open_command("http://h:5000") is None
    assert open_command("databricks") is None


def test_the_end_of_a_run_names_its_page(tmp_path: Path) -> None:
    config = small_config("bc", **{"mlflow.tracking_uri": "http://me:secret@h:5000/sub/"})
    # The server was down so far; or another server has got the run.
    assert records_page(config, tmp_path).url == "http://h:5000/sub/"
    known = {"run_id": "0a1b", "experiment_id": "7", "tracking_uri": "http://other:5000"}
    (tmp_path / "mlflow_run.json").write_text(json.dumps(known))
    assert records_page(config, tmp_path).url == "http://h:5000/sub/"
    known["tracking_uri"] = "http://h:5000/sub/"
    (tmp_path / "mlflow_run.json").write_text(json.dumps(known))
    page = records_page(config, tmp_path)
    begin = "http://h:5000/sub/#/experiments/7/runs/0a1b"
    assert page == RecordsPage(url=f"{begin}?workflowType=machine_learning")
    (tmp_path / "mlflow_run.json").write_text(json.dumps({**known, "experiment_id": "7/../x"}))
    assert records_page(config, tmp_path).url == "http://h:5000/sub/"
    config.mlflow.tracking_uri = f"sqlite:///{tmp_path}/mlflow.db"
    page = records_page(config, tmp_path)
    assert page.url is None
    assert str(page).endswith(f" ui --backend-store-uri sqlite:///{tmp_path}/mlflow.db")
    config.mlflow.enabled = False
    assert str(records_page(config, tmp_path)) == ""


def test_people_read_the_tags_without_a_prefix() -> None:
    config = small_config("bc", **{"train.data": "demos/hopper.hdf5"})
    tags = run_tags(config, "0a1b", ["Hopper-v5", "Walker2d-v5"])
    plain = {name: value for name, value in tags.items() if "." not in name}
    assert plain == {
        "algo": "bc",
        "dataset": "hopper.hdf5",
        "environment": "Hopper-v5,Walker2d-v5",
        "raymimic_version": raymimic.__version__,
    }
    others = {name.partition(".")[0] for name in tags.keys() - plain.keys()}
    assert others == {"raymimic", "mlflow"}
    before = names_of_0_1_0(tags)
    assert before.keys() >= {"dataset_digest", "workers", "version.raymimic", "version.torch"}
    assert not any(name.startswith("raymimic") for name in before)
    assert "environment" not in run_tags(config, "0a1b", [])


def test_journal_survives_a_torn_line(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    first_epoch = {"type": "epoch", "time": 1, "epoch": 1, "step": 5, "metrics": {"x": 0.5}}
    writer.append(first_epoch)
    writer.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"type": "epoch", "epo')  # killed here
    reader = JournalReader(tmp_path)
    (first,) = reader.read()
    assert first.data == first_epoch
    assert reader.read() == []
    writer = JournalWriter(tmp_path)
    next_epoch = first_epoch | {"epoch": 2, "metrics": {"x": float("inf")}}
    writer.append(next_epoch)
    writer.close()
    (second,) = reader.read()
    assert second.data == next_epoch
    assert reader.damaged == 1
    assert second.end == (tmp_path / "journal.jsonl").stat().st_size
    assert pending(tmp_path) == 2
    file = {"type": "artifact", "time": 1, "copy": "artifacts/a/b", "artifact_path": None}
    Cursor("run", first.end, [file]).save(tmp_path)
    assert Cursor.load(tmp_path) == Cursor("run", first.end, [file])
    assert pending(tmp_path) == 2  # the second line and the deferred file
    (tmp_path / "cursor.json").write_text("{torn")
    assert Cursor.load(tmp_path) == Cursor()


def test_sync_of_a_folder_without_spool_names_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="name the folder of a run"):
        sync(tmp_path)


def test_names_that_mlflow_refuses_are_made_valid() -> None:
    from mlflow.utils.validation import _validate_metric_name

    from raymimic.tracking.mlflow_run import valid_name

    for name in ("critic/critic1_loss", "Train/Loss", "Rollout/Return/Walker2d-v5", "a.b-c_d: e"):
        assert valid_name(name) == name
    changed = {
        "Return (mean)": "Return _mean_",
        "/a//b/": "a/b",
        "../../up": "up",
        "a/../..": "_",
        "": "_",
        "System/RAM Usage [MB]": "System/RAM Usage _MB_",
        "x" * 300: "x" * 250,
    }
    for name, valid in changed.items():
        assert valid_name(name) == valid
        _validate_metric_name(valid)


def test_importing_trackers_imports_no_mlflow() -> None:
    code = (
        "import sys, raymimic.tracking.mlflow_tracker, raymimic.tracking.tensorboard_tracker;"
        "sys.exit(any(m in sys.modules for m in ('mlflow', 'torch', 'ray', 'tensorboardX')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensorboard_gets_metrics_by_epoch(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    tracker = TensorBoardTracker()
    tracker.start(tmp_path, {}, {})
    tracker.log_epoch(1, 100, {"Train/Loss": 0.5})
    tracker.log_epoch(2, 200, {"Train/Loss": 0.25})
    tracker.finish("FINISHED")
    (path,) = (tmp_path / "logs" / "tb").iterdir()
    data, points = path.read_bytes(), []
    while data:  # TFRecord: length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        points += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
        data = data[16 + length :]
    assert points == [
        ("Train/Loss", 1, 0.5),
        ("gradient_steps", 1, 100.0),
        ("Train/Loss", 2, 0.25),
        ("gradient_steps", 2, 200.0),
    ]


def test_journal_line_is_json_of_one_line(tmp_path: Path) -> None:
    writer = JournalWriter(tmp_path)
    writer.append({"type": "tags", "tags": {"a": "two\nlines"}})
    writer.close()
    (line,) = (tmp_path / "journal.jsonl").read_text().splitlines()
    assert json.loads(line)["tags"]["a"] == "two\nlines"


def test_experiment_is_the_configs_then_the_environments_then_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert experiment_name(None) == "raymimic"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    assert experiment_name(None) == "theirs"
    assert experiment_name("mine") == "mine"


def test_environments_of_any_name_have_files_of_their_own() -> None:
    names = ["Hopper-v5", "gym_pusht/PushT-v0", "gym_pusht PushT-v0", "../../up", "..", "/", "é\0ü"]
    files = file_names([*names, "x" * 400, "x" * 401, "Hopper-v5"])
    assert list(files.values()) == [
        *("Hopper-v5", "gym_pusht-PushT-v0", "gym_pusht-PushT-v0-2", "up"),
        *("unnamed", "unnamed-2", "é-ü", "x" * 150, "x" * 150 + "-2"),
    ]


# -- the end of a run --


@pytest.mark.parametrize(
    ("program", "working_s", "status"),
    [
        ("time.sleep(0.5)", 1e6, 0),  # it works, so it may take its time
        ("print('STATE 1', flush=True); time.sleep(1e6)", 1e6, -signal.SIGKILL),
        ("print('STATE 1\\nSTATE 0', flush=True); time.sleep(1e6)", 0.5, -signal.SIGKILL),
        ("time.sleep(1e6)", 0.5, -signal.SIGKILL),
    ],
)
def test_the_end_waits_longer_for_a_store_that_takes_records(
    program: str, working_s: float, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-c", f"import time; {program}"]
    monkeypatch.setattr(mlflow_tracker, "_delivery_command", lambda *args: command)
    monkeypatch.setattr(mlflow_tracker, "WORKING_DEADLINE_S", working_s)
    tracker = MLflowTracker(f"sqlite:///{tmp_path}/x.db", finish_deadline_s=0.0)
    tracker.start(tmp_path, {}, {})
    tracker.finish("FINISHED")
    assert tracker._delivery is not None
    assert tracker._delivery.returncode == status
