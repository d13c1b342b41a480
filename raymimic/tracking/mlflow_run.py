"""The MLflow run of one training, filled from its spool.

Exactly once: the cursor is written after a delivery, so a crash between the two sends
records again. Parameters, tags and files bear that; for metrics the (key, step) pairs
that the server has are read before the first point of a key is sent, and again after
each failure. Imports MLflow: only the delivery process imports this.
"""

import contextlib
import getpass
import os
import posixpath
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_METRICS_PER_BATCH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    MAX_TAG_VAL_LENGTH,
)
from sqlalchemy.engine import make_url

from raymimic.tracking.journal import RUN_FILE, Cursor, Record, one_line, read_json, write_json

JOURNAL_TAG = "raymimic.journal"


class ParentMissingError(Exception):
    """A run waits for the run that it is a part of."""


def valid_name(name: str) -> str:
    """The nearest name that MLflow accepts for a metric, parameter or tag.

    Other characters than letters, digits and ``_ - . : /`` or a space become ``_``, and
    the name is made a plain relative path of at most 250 characters.
    """
    name = posixpath.normpath(re.sub(r"[^/\w.\- :]", "_", name).strip("/"))
    name = name.replace("../", "").strip("/")
    return name[:MAX_ENTITY_KEY_LENGTH] if name not in {".", ".."} else "_"


def _slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _is_refusal(error: Exception) -> bool:
    """Whether sending the same again can never succeed, so that it must not block the rest."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return 400 <= status < 500 and status not in {401, 403, 408, 429}
    return isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"


class Delivery:
    """Delivers records, in order, to the MLflow run of one training.

    Every method may raise whatever MLflow raises; the next call connects anew and goes on
    at the first record that was not delivered.

    Args:
        spool_dir: folder of the journal.
        run_dir: folder of the training; ``mlflow_run.json`` in it names the run.
        start: the latest start record: which server, experiment and run name.
        key: what identifies the run on the server before ``mlflow_run.json`` is written.
        report: called with a logging level, a topic and one line for the user.
    """

    def __init__(
        self,
        spool_dir: Path,
        run_dir: Path,
        start: dict[str, Any],
        key: str,
        report: Callable[[str, str, str], None],
    ) -> None:
        self._spool_dir = spool_dir
        self._run_dir = run_dir
        self._start = start
        self._key = key
        self._report = report
        self._cursor = Cursor.load(spool_dir)
        self._run: Run | None = None
        self._client: MlflowClient | None = None
        self._sent: dict[str, dict[int, Metric]] = {}  # the newest point of each step

    @property
    def client(self) -> MlflowClient:
        """The client; its store is opened by the first call that uses it."""
        if self._client is None:
            _create_sqlite_whole(self._start["tracking_uri"])
            self._client = MlflowClient(self._start["tracking_uri"])
        return self._client

    def deliver(self, records: Sequence[Record]) -> None:
        """Sends what the cursor has not passed.

        Args:
            records: all of the journal's records in order: a new run gets them all.
        """
        run = self._connected()
        records = [record for record in records if record.end > self._cursor.offset]
        newest = {_target(r.data): r.end for r in records if r.type == "artifact"}
        points: list[Metric] = []
        for record in records:
            if record.type in {"epoch", "numbers"}:
                points += self._new_points(run, record.data)
                if len(points) < MAX_METRICS_PER_BATCH:
                    continue
            self._send_metrics(run, points)
            points = []
            if record.type == "artifact" and newest[_target(record.data)] > record.end:
                self._drop_copy(record.data)  # a newer version follows
            else:
                self._send(run, record.data)
            self._advance(record.end)
        self._send_metrics(run, points)
        if records:
            self._advance(records[-1].end)

    def set_killed(self, end_time: int) -> None:
        """Closes the run of a training that died without a word."""
        self.client.set_terminated(self._connected().info.run_id, "KILLED", end_time)

    def disconnect(self) -> None:
        """Forgets what the server is believed to have; the next delivery asks it again."""
        self._run = None
        self._sent.clear()
        self._cursor = Cursor.load(self._spool_dir)

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
                    "tracking_uri": self._start["tracking_uri"],
                    "artifact_uri": self._run.info.artifact_uri,
                },
            )
            if self._cursor.run_id != run_id:
                self._cursor = Cursor(run_id)
            self._retry_deferred(self._run)
        return self._run

    def _find_run(self) -> Run | None:
        run_id = read_json(self._run_dir / RUN_FILE).get("run_id")
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
                f"MLflow no longer has run {run_id}; what was logged, but for files that it "
                "already got, goes to a new run",
            )
            return None

    def _create_run(self) -> Run:
        tags = {valid_name(k): v[:MAX_TAG_VAL_LENGTH] for k, v in self._start["tags"].items()}
        if self._start.get("parent") is not None:
            parent = read_json(Path(self._start["parent"]) / RUN_FILE).get("run_id")
            if parent is None:
                raise ParentMissingError("the run that it is a part of is not recorded yet")
            tags["mlflow.parentRunId"] = parent
        experiment_id = self._experiment_id()
        found = self.client.search_runs(
            [experiment_id], f"tags.`{JOURNAL_TAG}` = '{self._key}'", max_results=1
        )
        if found:  # by an attempt whose answer never came, or on another machine
            return found[0]
        with contextlib.suppress(KeyError, OSError):  # a container may know no user
            tags.setdefault("mlflow.user", getpass.getuser())
        return self.client.create_run(
            experiment_id,
            start_time=self._start["time"],
            tags={**tags, JOURNAL_TAG: self._key},
            run_name=self._start["run_name"],
        )

    def _experiment_id(self) -> str:
        name = self._start["experiment"]
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return self.client.create_experiment(name, self._start["artifact_location"])
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

        An epoch's metric is what it is; another number may have changed since.
        """
        points = []
        may_change = data["type"] == "numbers"
        own = {} if may_change else {"gradient_steps": data["step"]}
        for name, value in {**own, **data["metrics"]}.items():
            key = valid_name(name)
            if key not in self._sent:
                history = (
                    self.client.get_metric_history(run.info.run_id, key)
                    if key in run.data.metrics
                    else []
                )
                history = sorted(history, key=lambda point: point.timestamp)
                self._sent[key] = {point.step: point for point in history}
            point = Metric(key, float(value), data["time"], int(data["epoch"]))
            known = self._sent[key].get(point.step)
            if known is None or (
                may_change and point.timestamp > known.timestamp and point.value != known.value
            ):
                self._sent[key][point.step] = point
                points.append(point)
        return points

    def _send_metrics(self, run: Run, points: Sequence[Metric]) -> None:
        for batch in _slices(points, MAX_METRICS_PER_BATCH):
            with self._refusals_reported("metrics"):
                self.client.log_batch(run.info.run_id, metrics=batch)

    def _send(self, run: Run, data: dict[str, Any]) -> None:
        match data["type"]:
            case "start":
                self.client.update_run(run.info.run_id, status="RUNNING")
                self._send_params(run, data["params"])
                self._send_tags(run, data["tags"])
            case "tags":
                self._send_tags(run, data["tags"])
            case "artifact":
                self._send_artifact(run, data)
            case "finish":
                self._retry_deferred(run)
                self.client.set_terminated(run.info.run_id, data["status"], data["time"])

    def _send_params(self, run: Run, params: dict[str, str]) -> None:
        params = {valid_name(k): v[:MAX_PARAM_VAL_LENGTH] for k, v in params.items()}
        known = run.data.params
        new = [Param(k, v) for k, v in params.items() if k not in known]
        for batch in _slices(new, MAX_PARAMS_TAGS_PER_BATCH):
            with self._refusals_reported("parameters"):
                self.client.log_batch(run.info.run_id, params=batch)
        known.update({param.key: param.value for param in new})
        # MLflow's parameters cannot change; a resumed run tells what did in tags.
        self._send_tags(run, {f"resume.{k}": v for k, v in params.items() if known[k] != v})

    def _send_tags(self, run: Run, tags: dict[str, str]) -> None:
        entities = [RunTag(valid_name(k), v[:MAX_TAG_VAL_LENGTH]) for k, v in tags.items()]
        for batch in _slices(entities, MAX_PARAMS_TAGS_PER_BATCH):
            with self._refusals_reported("tags"):
                self.client.log_batch(run.info.run_id, tags=batch)

    def _send_artifact(self, run: Run, data: dict[str, Any]) -> None:
        """Uploads a file; an artifact store that fails must not hold up the metrics."""
        path = self._spool_dir / data["copy"]
        if not path.exists():
            return  # delivered before a crash that came before the cursor
        for older in [d for d in self._cursor.deferred if _target(d) == _target(data)]:
            self._cursor.deferred.remove(older)
            self._drop_copy(older)
        try:
            self.client.log_artifact(run.info.run_id, str(path), data["artifact_path"])
        except Exception as error:
            self.client.get_run(run.info.run_id)  # raises when it is the server that is down
            if not _is_refusal(error):
                self._cursor.deferred.append(data)
            self._report(
                "WARNING",
                "artifact",
                f"MLflow's artifact store did not take {path.name} ({one_line(error)}); "
                f"a copy stays in {path.parent}",
            )
        else:
            self._drop_copy(data)

    def _retry_deferred(self, run: Run) -> None:
        deferred, self._cursor.deferred = self._cursor.deferred, []
        for data in deferred:
            self._send_artifact(run, data)
        if deferred:
            self._cursor.save(self._spool_dir)

    def _drop_copy(self, data: dict[str, Any]) -> None:
        shutil.rmtree((self._spool_dir / data["copy"]).parent, ignore_errors=True)

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


def _target(data: dict[str, Any]) -> tuple[str | None, str]:
    """Where an artifact record puts its file: folder and name."""
    return data["artifact_path"], Path(data["copy"]).name


def _create_sqlite_whole(tracking_uri: str) -> None:
    """Makes a new SQLite store under another name, then renames it.

    MLflow builds its tables in many transactions over several seconds; a process killed
    meanwhile would leave a file that no later one can open.
    """
    if not tracking_uri.startswith("sqlite"):
        return
    path = Path(make_url(tracking_uri).database or "")
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
    try:
        os.link(new, path)
    except FileExistsError:  # another training was faster
        pass
    except OSError:  # a file system without links
        if not path.exists():
            new.rename(path)
    new.unlink(missing_ok=True)
