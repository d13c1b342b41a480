"""The MLflow run of one training, sweep or trial, filled from its spool.

Each record arrives exactly once: the cursor is written after a delivery, so a crash between the two
sends records again. Repeated parameters, tags and files do no harm; for metrics, the (key, step)
pairs on the server are read before the first point of a key is sent, and again after each failure.
Imports MLflow: only the delivery process imports this.
"""

import contextlib
import getpass
import glob
import hashlib
import os
import posixpath
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)
from sqlalchemy import Engine, event

from raymimic.credentials import full_uri, masked
from raymimic.storage import write_json
from raymimic.tracking import metric_names
from raymimic.tracking.journal import (
    ARTIFACTS,
    RECORDS_AT_A_TIME,
    RUN_FILE,
    Cursor,
    JournalReader,
    Record,
    artifact_file,
    one_line,
    records_of_epoch,
    run_id_of,
)
from raymimic.tracking.metric_names import NAMES_TAG, NAMES_VERSION
from raymimic.tracking.mlflow_models import LoggedModels, check_stored, dataset_input
from raymimic.tracking.places import artifact_location, is_trial, sqlite_path, sqlite_uri
from raymimic.tracking.sent_points import SentSteps
from raymimic.tracking.tables import TABLES_TAG, TableSchedule, tables_of, with_tables

JOURNAL_TAG = "raymimic.journal"
# Digest of the description that raymimic wrote: the user may have changed it since.
NOTE_TAG = "raymimic.note"
# MLflow's pages show such an experiment as one of model training. The user's own stay as they are.
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}


class ParentMissingError(Exception):
    """A trial's run waits for its sweep's run, in a store that answers."""


def valid_name(name: str) -> str:
    """The nearest name that MLflow accepts for a metric, parameter or tag.

    Characters other than letters, digits, spaces and `_ - . : /` become `_`, and the name becomes
    a plain relative path of at most 250 characters.
    """
    name = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name).strip("/"))
    name = name.replace("../", "").strip("/")
    return name[:MAX_ENTITY_KEY_LENGTH] if name not in {".", ".."} else "_"


def _slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_refusal(error: Exception) -> bool:
    """Whether the server will never take this request; it must not block the rest."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in {401, 403, 408, 429}
    return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"


class Delivery:
    """Delivers records, in order, to one MLflow run.

    Every method may raise MLflow's exceptions; the next call connects again and goes on at the
    first record that was not delivered.

    Args:
        spool_dir: folder of the journal, absolute and without links.
        run_dir: folder of the run; `mlflow_run.json` in it holds the run's id.
        server: the store, without the password.
        start: the latest start record, with experiment and run name.
        key: identifies the run on the server before `mlflow_run.json` is written.
        report: called with a logging level, a topic and one line for the user.
    """

    def __init__(
        self,
        spool_dir: Path,
        run_dir: Path,
        server: str,
        start: dict[str, Any],
        key: str,
        report: Callable[[str, str, str], None],
    ) -> None:
        self._spool_dir = spool_dir
        self._run_dir = run_dir
        self._server = server
        self._start = start
        self._key = key
        self._report = report
        self._cursor = Cursor.load(spool_dir)
        self._run: Run | None = None
        self._client: MlflowClient | None = None
        self._models: LoggedModels | None = None
        self._reader = JournalReader(spool_dir, self._cursor.offset)
        self._sent: dict[str, SentSteps] = {}
        self._numbers: dict[str, dict[int, Metric]] = {}  # the newest of each step
        self._tables = TableSchedule()

    @property
    def client(self) -> MlflowClient:
        """The client; its first call opens the store."""
        if self._client is None:
            self._client = MlflowClient(_opened(self._server))
        return self._client

    @property
    def models(self) -> LoggedModels:
        """The logged models of the run that it is connected to."""
        assert self._models is not None
        return self._models

    def deliver(self, until: int) -> None:
        """Sends the records behind the cursor, a few at a time; a new run gets them all.

        Args:
            until: end of the last record to send [bytes].
        """
        run = self._connected()
        while records := self._reader.read(RECORDS_AT_A_TIME, until):
            self._deliver_some(run, records)

    def _deliver_some(self, run: Run, records: Sequence[Record]) -> None:
        newest = {_target(r.data): r.end for r in records if r.type == "artifact"}
        kept = [record for record in records if record.type == "models"][-1:]
        points: list[Metric] = []
        for record in records:
            if "metrics" in record.data:
                points += self._of_model(self._new_points(run, record.data), record.data)
                if record.type == "evaluation":
                    self._tables.add()
                if len(points) < MAX_METRICS_PER_BATCH:
                    continue
            self._send_metrics(run, points)
            points = []
            if record.type == "artifact" and newest[_target(record.data)] > record.end:
                self._drop_copy(record.data)  # a newer version follows
            elif record.type == "model" and _is_gone(record, kept):
                self._drop_copy(record.data)  # its checkpoint was deleted meanwhile
            else:
                self._send(run, record.data, record.end)
            self._advance(record.end)
        self._send_metrics(run, points)
        if self._tables.is_due():
            self._send_tables(run)
        self._advance(records[-1].end)

    def set_killed(self, end_time: int) -> None:
        """Closes the run of a training that was killed."""
        run = self._connected()
        if self._tables.is_due(at_end=True):
            self._send_tables(run)
            self._cursor.save(self._spool_dir)
        self.client.set_terminated(run.info.run_id, "KILLED", end_time)

    def disconnect(self) -> None:
        """Forgets the server's state; the next delivery asks for it again."""
        self._run = self._models = None
        self._sent.clear()
        self._numbers.clear()
        self._cursor = Cursor.load(self._spool_dir)
        self._reader = JournalReader(self._spool_dir, self._cursor.offset)

    def _connected(self) -> Run:
        if self._run is None:
            self._run = self._find_run() or self._create_run()
            run_id = self._run.info.run_id
            write_json(
                self._run_dir / RUN_FILE,
                {
                    "run_id": run_id,
                    "experiment_id": self._run.info.experiment_id,
                    "experiment": self._start["experiment"],
                    "tracking_uri": self._server,
                    "artifact_uri": masked(self._run.info.artifact_uri or ""),
                },
                permissions=0o644,
            )
            if self._cursor.run_id != run_id:
                self._cursor = Cursor(run_id)
                self._reader = JournalReader(self._spool_dir)
                self._tables = TableSchedule()
            self._models = LoggedModels(self.client, self._run)
            self._retry_deferred(self._run, self._cursor.offset)
        return self._run

    def _find_run(self) -> Run | None:
        run_id = run_id_of(self._run_dir)
        if run_id is None:
            return None
        try:
            return self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self._report(
                "WARNING",
                "run",
                f"MLflow no longer has run {run_id}; its records, but for files that it "
                "already got, goes to a new run",
            )
            return None

    def _create_run(self) -> Run:
        tags = {valid_name(k): v[:MAX_TAG_VAL_LENGTH] for k, v in self._start["tags"].items()}
        parent = None
        if is_trial(self._start):
            parent = run_id_of(self._run_dir.parents[1])
            if parent is None:
                path = sqlite_path(self._server)
                if path is None or path.exists():  # the delivery of the sweep's run makes the file
                    self.client.get_experiment_by_name(self._start["experiment"])
                raise ParentMissingError("the sweep's run is not recorded yet")
            tags["mlflow.parentRunId"] = parent
        tags |= self._names_tag(parent)
        experiment_id = self._experiment_id()
        found = self.client.search_runs(
            [experiment_id], f"tags.`{JOURNAL_TAG}` = '{self._key}'", max_results=1
        )
        if found:  # made by an attempt whose answer never came, or on another machine
            return found[0]
        with contextlib.suppress(KeyError, OSError):  # a container may know no user
            tags.setdefault("mlflow.user", getpass.getuser())
        return self.client.create_run(
            experiment_id,
            start_time=self._start["time"],
            tags={**tags, JOURNAL_TAG: self._key},
            run_name=self._start["run_name"],
        )

    def _names_tag(self, parent: str | None) -> dict[str, str]:
        """The tag of a new run's names: all trials of a sweep have those of its own run.

        Args:
            parent: id of the sweep's run; None outside of sweeps.
        """
        if parent is not None and NAMES_TAG not in self.client.get_run(parent).data.tags:
            return {}
        return {NAMES_TAG: NAMES_VERSION}

    def _experiment_id(self) -> str:
        name = self._start["experiment"]
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                location = artifact_location(self._server, self._run_dir)
                return self.client.create_experiment(name, location, EXPERIMENT_TAGS)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                return self._experiment_id()  # another training was faster
        if experiment.lifecycle_stage != "active":
            raise RuntimeError(
                f"experiment '{name}' was deleted; restore it with "
                f"'mlflow experiments restore -x {experiment.experiment_id}'"
            )
        return str(experiment.experiment_id)

    def _new_points(self, run: Run, data: dict[str, Any]) -> list[Metric]:
        """The points of a record that the run does not have yet.

        An epoch's metric never changes; a number of a sweep may.
        """
        may_change = data["type"] == "numbers"
        points = self._points(run, data)
        return [point for point in points if self._is_news(run, point, may_change)]

    def _points(self, run: Run, data: dict[str, Any]) -> list[Metric]:
        """The points of a record, under MLflow's names."""

        def is_logged(name: str) -> bool:
            key = valid_name(name)
            return key in self._sent or key in run.data.metrics

        step, metrics = metric_names.points(data, run.data.tags.get(NAMES_TAG), is_logged)
        return [
            Metric(valid_name(name), float(value), data["time"], step)
            for name, value in metrics.items()
        ]

    def _is_news(self, run: Run, point: Metric, may_change: bool) -> bool:
        """Whether the run lacks a point, or has another value; notes it as sent.

        Args:
            run: the run, as it was when the connection was made.
            point: of an epoch, or a number of a sweep.
            may_change: whether a later value replaces an earlier one.
        """
        key, step = point.key, point.step
        if may_change:
            if key not in self._numbers:
                self._numbers[key] = {old.step: old for old in self._history(run, key)}
            sent = self._numbers[key].get(step)
            if sent and (point.timestamp <= sent.timestamp or point.value == sent.value):
                return False
            self._numbers[key][step] = point
            return True
        if key not in self._sent:
            self._sent[key] = SentSteps(old.step for old in self._history(run, key))
        if step in self._sent[key]:
            return False
        self._sent[key].add(step)
        return True

    def _history(self, run: Run, key: str) -> list[Metric]:
        """The points of a metric that the server has, oldest first."""
        if key not in run.data.metrics:
            return []
        history = self.client.get_metric_history(run.info.run_id, key)
        return sorted(history, key=lambda point: point.timestamp)

    def _send_metrics(self, run: Run, points: Sequence[Metric]) -> None:
        points = sorted(points, key=lambda point: metric_names.rank(point.key))
        for batch in _slices(points, MAX_METRICS_PER_BATCH):
            with self._refusals_reported("metrics"):
                self.client.log_batch(run.info.run_id, metrics=batch)

    def _of_model(self, points: list[Metric], data: dict[str, Any]) -> list[Metric]:
        """The points of a record, as those of the model of its epoch if there is one."""
        if not points or data["type"] in {"numbers", "system"}:
            return points
        model = self.models.of_epoch(data["epoch"])
        return points if model is None else self.models.points(model, points)

    def _send(self, run: Run, data: dict[str, Any], end: int) -> None:
        match data["type"]:
            case "start":
                self.client.update_run(run.info.run_id, status="RUNNING")
                self._send_params(run, data["params"])
                self._send_tags(run, data["tags"])
            case "tags":
                self._send_tags(run, data["tags"])
            case "note":
                self._send_note(run, data["text"])
            case "artifact":
                self._send_artifact(run, data)
            case "datasets":
                with self._refusals_reported("datasets"):
                    inputs = [dataset_input(entry) for entry in data["datasets"]]
                    self.client.log_inputs(run.info.run_id, inputs)
            case "model":
                self._send_model(run, data, end)
            case "models":
                with self._refusals_reported("models"):
                    self.models.keep(data["kept"])
                for gone in [d for d in self._cursor.deferred if _is_dropped(d, data["kept"])]:
                    self._cursor.deferred.remove(gone)
                    self._drop_copy(gone)
            case "finish":
                if self._tables.is_due(at_end=True):
                    self._send_tables(run)
                self._retry_deferred(run, end)
                self.client.set_terminated(run.info.run_id, data["status"], data["time"])

    def _send_params(self, run: Run, params: dict[str, str]) -> None:
        params = {valid_name(k): v[:MAX_PARAM_VAL_LENGTH] for k, v in params.items()}
        logged = run.data.params
        new = [Param(k, v) for k, v in params.items() if k not in logged]
        for batch in _slices(new, MAX_PARAMS_TAGS_PER_BATCH):
            with self._refusals_reported("parameters"):
                self.client.log_batch(run.info.run_id, params=batch)
        logged.update({param.key: param.value for param in new})
        # MLflow's parameters cannot change; tags hold the values of a resumed run.
        self._send_tags(run, {f"resume.{k}": v for k, v in params.items() if logged[k] != v})

    def _send_tags(self, run: Run, tags: dict[str, str]) -> None:
        entities = [RunTag(valid_name(k), v[:MAX_TAG_VAL_LENGTH]) for k, v in tags.items()]
        for batch in _slices(entities, MAX_PARAMS_TAGS_PER_BATCH):
            with self._refusals_reported("tags"):
                self.client.log_batch(run.info.run_id, tags=batch)

    def _send_note(self, run: Run, text: str) -> None:
        """Describes the run, unless the user has written the description."""
        text = text[:MAX_TAG_VAL_LENGTH]
        tags = self.client.get_run(run.info.run_id).data.tags
        shown = tags.get(MLFLOW_RUN_NOTE)
        if not shown or _digest(shown) == tags.get(NOTE_TAG):
            self._send_tags(run, {MLFLOW_RUN_NOTE: text, NOTE_TAG: _digest(text)})

    def _send_artifact(self, run: Run, data: dict[str, Any]) -> None:
        """Uploads a file; a failing artifact store must not hold up the metrics."""
        path = artifact_file(self._spool_dir, data["copy"])
        if path is None:
            self._report(
                "WARNING",
                "outside",
                f"the journal in {self._spool_dir} names a file that is not in it "
                f"({data['copy'][:200]!r}), which is left alone",
            )
            return
        if not path.is_file():
            return  # delivered before a crash, which came before the cursor was written
        for older in [d for d in self._cursor.deferred if _target(d) == _target(data)]:
            self._cursor.deferred.remove(older)
            self._drop_copy(older)
        try:
            _check_artifact_uri(run)
            folder = data["artifact_path"]
            self.client.log_artifact(run.info.run_id, str(path), folder)
            check_stored(path, lambda _: self.client.list_artifacts(run.info.run_id, folder))
        except Exception as error:
            self._defer(run, data, path, error)
        else:
            self._drop_copy(data)

    def _send_tables(self, run: Run) -> None:
        """Uploads the tables of evaluations and episodes again; a run of 0.1.0 has none."""
        if NAMES_TAG not in run.data.tags:
            return
        records = JournalReader(self._spool_dir).stream()
        tables = tables_of(record.data for record in records)
        (self._spool_dir / ARTIFACTS).mkdir(exist_ok=True)
        for name, content in tables.files.items():
            path = Path(tempfile.mkdtemp(dir=self._spool_dir / ARTIFACTS)) / name
            try:
                path.write_text(content)
                copy = str(path.relative_to(self._spool_dir))
                data = {"type": "artifact", "time": 0, "copy": copy, "artifact_path": None}
                self._send_artifact(run, data)
            except BaseException:  # the next attempt writes it again
                shutil.rmtree(path.parent, ignore_errors=True)
                raise
        tag = run.data.tags.get(TABLES_TAG)
        listed = with_tables(tag, tables.files)
        if tables.files and listed != tag:
            self._send_tags(run, {TABLES_TAG: listed})
            run.data.tags[TABLES_TAG] = listed
        self._tables.sent(tables.evaluations)

    def _send_model(self, run: Run, data: dict[str, Any], end: int) -> None:
        """Logs a checkpoint's model, with the metrics of its epoch so far.

        Args:
            run: the run.
            data: a record of type `model`.
            end: end of the last record that was sent [bytes].
        """
        if not self.models.supported:
            self._report("WARNING", "model", "MLflow's server keeps no models: they need MLflow 3")
            self._send_artifact(run, {**data, "type": "artifact", "artifact_path": "checkpoints"})
            return
        try:
            there = self.models.upload(data, self._spool_dir)
        except Exception as error:
            self._defer(run, data, self._spool_dir / data["copy"], error)
            return
        model = self.models.of_epoch(data["epoch"])
        if there and model is not None:
            # As the run got them, the first of each with its time: so MLflow sees one point.
            points: dict[str, Metric] = {}
            for record in records_of_epoch(self._spool_dir, data["epoch"], end):
                if record.type != "numbers":
                    points = {p.key: p for p in self._points(run, record.data)} | points
            self._send_metrics(run, self.models.points(model, [*points.values()]))
        self._drop_copy(data)

    def _defer(self, run: Run, data: dict[str, Any], path: Path, error: Exception) -> None:
        """Notes a file that the artifact store did not take.

        Raises:
            MlflowException: the server is down altogether.
        """
        self.client.get_run(run.info.run_id)
        if not _is_refusal(error):
            self._cursor.deferred.append(data)
        self._report(
            "WARNING",
            "artifact",
            f"MLflow's artifact store did not take {path.name} ({one_line(error)}); "
            f"a copy stays in {path.parent}",
        )

    def _retry_deferred(self, run: Run, end: int) -> None:
        """Sends files again that the artifact store did not take.

        Args:
            run: the run.
            end: end of the last record that was sent [bytes].
        """
        deferred, self._cursor.deferred = self._cursor.deferred, []
        for data in deferred:
            if data["type"] == "model":
                self._send_model(run, data, end)
            else:
                self._send_artifact(run, data)
        if deferred:
            self._cursor.save(self._spool_dir)

    def _drop_copy(self, data: dict[str, Any]) -> None:
        path = artifact_file(self._spool_dir, data["copy"])
        if path is not None:
            shutil.rmtree(path.parent, ignore_errors=True)

    def _advance(self, offset: int) -> None:
        self._cursor.offset = offset
        self._cursor.save(self._spool_dir)

    @contextlib.contextmanager
    def _refusals_reported(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not _is_refusal(error):
                raise
            self._report("WARNING", what, f"MLflow refused some {what}: {one_line(error)}")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _target(data: dict[str, Any]) -> tuple[str | None, str]:
    """Folder and name of an artifact record's file."""
    return data.get("artifact_path", data["type"]), Path(data["copy"]).name


def _is_dropped(data: dict[str, Any], kept: dict[str, Any]) -> bool:
    """Whether a record is of a model that a later record no longer lists."""
    return data["type"] == "model" and data["sha256"] not in kept


def _is_gone(record: Record, kept: Sequence[Record]) -> bool:
    """Whether a record is of a model whose checkpoint was deleted soon afterwards.

    Args:
        record: of type `model`.
        kept: the last record of the kept models, if there is one.
    """
    return any(
        later.end > record.end and _is_dropped(record.data, later.data["kept"]) for later in kept
    )


def _check_artifact_uri(run: Run) -> None:
    """Refuses a folder for files that MLflow did not make for the run.

    An untrusted server or database could name any folder of this machine.
    """
    place = urlsplit(run.info.artifact_uri or "")
    parts = unquote(place.path).split("/")
    if place.scheme not in {"", "file"}:
        return
    if ".." in parts or parts[-2:] != [run.info.run_id, "artifacts"]:
        raise ValueError(f"'{run.info.artifact_uri}' is no folder of run {run.info.run_id}")


def _opened(server: str) -> str:
    """A store's URI as MLflow takes it; a missing SQLite file is made."""
    path = sqlite_path(server)
    if path is None:
        return full_uri(server)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow and SQLAlchemy disagree on `%` and `?` in a path.
    if {"%", "?"} & set(str(path)):
        os.chdir(path.parent)
        path = Path(path.name)
    if not path.exists():
        _create_whole(path)
    return sqlite_uri(path, server)


def _create_whole(path: Path) -> None:
    """Makes a new SQLite store under another name, then renames it.

    MLflow builds its tables in many transactions over several seconds; a process killed
    meanwhile would leave a file that no later one can open. So the disk need not have each of them,
    which would take most of the time: it has the whole file before that gets its name.
    """
    # Each attempt has another name, as MLflow keeps the file of a failed one open.
    new = path.with_name(f"{path.name}.{os.getpid()}.{time.time_ns()}.new")
    event.listen(Engine, "connect", _wait_for_no_disk)
    try:
        MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        os.link(new, path)
    except FileExistsError:  # another training was faster
        pass
    except OSError:  # a file system without links, or without room
        if not path.exists():
            new.rename(path)
    finally:
        event.remove(Engine, "connect", _wait_for_no_disk)
        for left in path.parent.glob(f"{glob.escape(new.name)}*"):  # and SQLite's own journal
            left.unlink(missing_ok=True)


def _wait_for_no_disk(connection: sqlite3.Connection, record: object) -> None:
    """Has SQLite leave it to the system when the disk gets what it writes."""
    connection.execute("PRAGMA synchronous = OFF")
