"""One MLflow run for each training, complete even when the server is not there.

What is logged goes first into a spool beside the run (:mod:`raymimic.tracking.journal`);
a process of its own (:mod:`raymimic.tracking.delivery`) carries it to MLflow. So no call
here waits for a network, imports MLflow or changes this process's environment.
"""

import contextlib
import json
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raymimic.errors import ConfigError, OutputError, did_you_mean
from raymimic.tracking.delivery import EXIT_BUSY
from raymimic.tracking.journal import (
    ARTIFACTS,
    JOURNAL,
    RUN_FILE,
    JournalWriter,
    is_finished,
    pending,
    read_json,
    spool_dir_of,
)
from raymimic.tracking.tracker import Status

logger = logging.getLogger(__name__)

SERVER_SCHEMES = {"http", "https", "databricks", "databricks-uc", "uc"}
DATABASE_SCHEMES = {"sqlite", "postgresql", "mysql", "mssql"}

FINISH_DEADLINE_S = 20.0
# Importing MLflow and creating its tables takes 10 s on an idle machine, and nothing is
# down that one could come back to later: a short run waits for it.
SQLITE_FINISH_DEADLINE_S = 60.0
LOG = "delivery.log"
COPY_LIMIT_BYTES = 16 * 2**20

# For the delivery process; what the user has set in the environment wins. One attempt
# each: the delivery itself comes back, and its loop must notice a restarted server soon.
DELIVERY_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_tracking_uri(tracking_uri: str) -> None:
    """Refuses a tracking URI that MLflow could not open.

    Args:
        tracking_uri: ``http(s)://host``, ``sqlite:///file``, another database's URI,
            ``databricks``, or a scheme that an installed MLflow plugin brings.

    Raises:
        ConfigError: the scheme is unknown, or something that it needs is missing.
    """
    where = f"mlflow.tracking_uri '{tracking_uri}'"
    parts = urlsplit(tracking_uri)
    scheme = parts.scheme.partition("+")[0] or (
        tracking_uri if tracking_uri in SERVER_SCHEMES else ""
    )
    if scheme in {"", "file"}:
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in {"true", "1"}:
            raise ConfigError(
                f"{where} names a folder, which MLflow no longer writes to; use a file such as "
                f"'sqlite:///{(parts.path or 'results').rstrip('/')}/mlflow.db' "
                "or the address of a server"
            )
        return
    known = SERVER_SCHEMES | DATABASE_SCHEMES
    if scheme not in known:
        known |= {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}
        if scheme not in known:
            raise ConfigError(
                f"{where} has the unknown scheme '{scheme}'{did_you_mean(scheme, known)}"
            )
    if scheme in {"http", "https"} and not parts.hostname:
        raise ConfigError(f"{where} names no host; write 'http://host:port'")
    if scheme == "sqlite" and len(parts.path) < 2:
        raise ConfigError(f"{where} names no file; write 'sqlite:///folder/mlflow.db'")


def resolve_tracking_uri(tracking_uri: str | None, run_dir: Path) -> str:
    """Where a run is logged.

    Args:
        tracking_uri: as configured, or ``None``.
        run_dir: the run's folder.

    Returns:
        the configured URI, else ``MLFLOW_TRACKING_URI``, else a SQLite file in the folder
        that holds all runs of this name; a relative SQLite path is made absolute.

    Raises:
        ConfigError: see :func:`check_tracking_uri`.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{run_dir.resolve().parent / 'mlflow.db'}"
    check_tracking_uri(uri)
    scheme, separator, path = uri.partition(":///")
    if scheme.partition("+")[0] == "sqlite":
        return scheme + separator + str(Path(path).resolve())
    return uri


def open_command(tracking_uri: str) -> str:
    """The shell command that opens MLflow's page on a tracking URI.

    Args:
        tracking_uri: a resolved tracking URI.
    """
    if tracking_uri in SERVER_SCHEMES or urlsplit(tracking_uri).scheme in SERVER_SCHEMES:
        return f"{shlex.quote(sys.executable)} -m webbrowser {shlex.quote(tracking_uri)}"
    beside = Path(sys.executable).with_name("mlflow")
    found = shutil.which("mlflow")
    # The environment that runs us may not be activated in the user's shell.
    mlflow = "mlflow" if not beside.exists() or found == str(beside) else str(beside)
    return f"{shlex.quote(mlflow)} ui --backend-store-uri {shlex.quote(tracking_uri)}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a nested configuration as MLflow shows parameters.

    Args:
        config: nested, JSON-serialisable.
        prefix: put before every name.

    Yields:
        dotted name and value; strings as they are, all else as JSON.
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            yield f"{prefix}{key}", text


def _artifact_location(tracking_uri: str, run_dir: Path) -> str | None:
    """Where a new experiment keeps files; servers know that themselves.

    MLflow's own default for a database is ``./mlruns`` wherever the process happens to be.
    """
    if urlsplit(tracking_uri).scheme.partition("+")[0] not in DATABASE_SCHEMES:
        return None
    scheme, _, path = tracking_uri.partition(":///")
    folder = Path(path).parent if scheme.startswith("sqlite") else run_dir.resolve().parent
    return (folder / "mlartifacts").as_uri()


class MLflowTracker:
    """Logs a training to MLflow; see :class:`~raymimic.tracking.tracker.Tracker`.

    The run's id lies in ``<run_dir>/mlflow_run.json`` once the server has given it; a
    tracker started on the same folder continues that run. Parameters that differ then
    become tags ``resume.<key>``, and an epoch's metric that the run already has is not
    sent again, so logging an epoch twice is harmless. The x-axis is the epoch; the
    metric ``gradient_steps`` tells the steps done by then.

    A training that ends without :meth:`finish` is closed as KILLED.

    Args:
        tracking_uri: see :func:`resolve_tracking_uri`.
        experiment: MLflow experiment, created if it does not exist.
        run_name: name that MLflow shows, ``None`` lets MLflow invent one.
        tags: the user's tags; they win over the run's own.
        finish_deadline_s: how long :meth:`finish` waits for MLflow [s]; ``None``: 20, or 60
            for a SQLite file.
        parent: folder of the run that this one is a part of.
        params: what MLflow shows as parameters; every value of the configuration unless given.
        config_file: name of the file that holds the configuration.
        key: names the run for whoever goes on with it without its folder; without one, only
            ``mlflow_run.json`` does.

    Raises:
        ConfigError: MLflow could not open the tracking URI.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "raymimic",
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        finish_deadline_s: float | None = None,
        parent: Path | None = None,
        params: Mapping[str, Any] | None = None,
        config_file: str = "config.json",
        key: str | None = None,
    ) -> None:
        resolve_tracking_uri(tracking_uri, Path())
        self._tracking_uri = tracking_uri
        self._experiment = experiment
        self._run_name = run_name
        self._tags = {key: str(value) for key, value in (tags or {}).items()}
        self._finish_deadline_s = finish_deadline_s
        self._parent = parent
        self._params = params
        self._config_file = config_file
        self._key = key
        self._journal: JournalWriter | None = None
        self._delivery: subprocess.Popen[str] | None = None

    @property
    def run_id(self) -> str | None:
        """The MLflow run, ``None`` until the server was reached for the first time."""
        return read_json(self._run_dir / RUN_FILE).get("run_id")

    @property
    def tracking_uri(self) -> str:
        """Where the run is logged, once it was started."""
        return self._resolved_uri

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.start`; returns a resumed run's id.

        A new run's id is in :attr:`run_id` some seconds later.
        """
        self._run_dir = run_dir.resolve()
        self._resolved_uri = resolve_tracking_uri(self._tracking_uri, run_dir)
        self._spool_dir = spool_dir_of(self._run_dir)
        self._journal = JournalWriter(self._spool_dir)
        self._append(
            "start",
            key=self._key or uuid.uuid4().hex,
            tracking_uri=self._resolved_uri,
            artifact_location=_artifact_location(self._resolved_uri, run_dir),
            experiment=self._experiment,
            run_name=self._run_name,
            parent=None if self._parent is None else str(self._parent.resolve()),
            params=dict(flatten(config if self._params is None else self._params)),
            tags={key: str(value) for key, value in {**tags, **self._tags}.items()},
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._config_file
            path.write_text(json.dumps(config, indent=4, default=str))
            self.log_artifact(path)
        self._delivery = self._spawn()
        return self.run_id

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.log_epoch`."""
        values = {name: float(value) for name, value in metrics.items()}
        self._append("epoch", epoch=int(epoch), step=int(step), metrics=values)

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Records metrics that belong to no epoch; a later value of a step is the one that counts.

        Args:
            step: place on the x-axis.
            numbers: name to value.
        """
        values = {name: float(value) for name, value in numbers.items()}
        self._append("numbers", epoch=int(step), metrics=values)

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.log_artifact`.

        The spool gets its own copy, so that the file may change or go. Above 16 MB that is
        a hard link where the file system has them: a large file must be replaced by
        renaming, as checkpoints are, not be rewritten in place.
        """
        size = path.stat().st_size
        (self._spool_dir / ARTIFACTS).mkdir(exist_ok=True)
        copy = Path(tempfile.mkdtemp(dir=self._spool_dir / ARTIFACTS)) / path.name
        if size > COPY_LIMIT_BYTES:
            with contextlib.suppress(OSError):
                os.link(path, copy)
        if not copy.exists():
            shutil.copyfile(path, copy)
        self._append(
            "artifact", copy=str(copy.relative_to(self._spool_dir)), artifact_path=artifact_path
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.set_tags`."""
        self._append("tags", tags={key: str(value) for key, value in tags.items()})

    def finish(self, status: Status) -> None:
        """See :meth:`~raymimic.tracking.tracker.Tracker.finish`.

        Waits a bounded time for the delivery; what is left then stays in the spool, and
        one warning tells the command that delivers it.
        """
        if self._journal is None or self._delivery is None:
            return
        self._append("finish", status=status)
        self._journal.close()
        self._journal = None
        local = self._resolved_uri.startswith("sqlite")
        default_s = SQLITE_FINISH_DEADLINE_S if local else FINISH_DEADLINE_S
        deadline_s = default_s if self._finish_deadline_s is None else self._finish_deadline_s
        if self._delivery.poll() is not None:
            self._delivery = self._spawn()
        try:
            self._delivery.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self._delivery.kill()
            self._delivery.wait()
        left = pending(self._spool_dir)
        if left:
            self.say_rest(left)

    def say(self, level: int, text: str) -> None:
        """Tells the user about a mishap."""
        logger.log(level, text)

    def say_rest(self, left: int) -> None:
        """Tells the user that so many records have not been delivered."""
        self.say(logging.WARNING, rest_waits(self._run_dir, left))

    def _append(self, kind: str, **data: Any) -> None:
        assert self._journal is not None, "start() comes first, and nothing after finish()"
        self._journal.append({"type": kind, "time": int(time.time() * 1000), **data})

    def _spawn(self) -> "subprocess.Popen[str]":
        """Starts the delivery, and a thread that repeats what it says as log messages."""
        command = _delivery_command(self._spool_dir, self._run_dir)
        with (self._spool_dir / LOG).open("a") as log:
            process = subprocess.Popen(
                [*command, "--owner", str(os.getpid()), "--patience", str(FINISH_DEADLINE_S)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self._spool_dir,
                env=_delivery_environment(),
                start_new_session=True,  # Ctrl-C ends the training, which then ends this
            )

        def listen() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    level, _, text = line.rstrip().partition(" ")
                    self.say(logging.getLevelNamesMapping().get(level, logging.DEBUG), text)
            if process.wait() and self._journal is not None:
                logger.warning(
                    "The process that delivers to MLflow ended with status %d (see %s); "
                    "it is started again when the training ends",
                    process.returncode,
                    self._spool_dir / LOG,
                )

        threading.Thread(target=listen, name="mlflow-delivery", daemon=True).start()
        return process


def _delivery_command(spool_dir: Path, run_dir: Path) -> list[str]:
    return [sys.executable, "-m", "raymimic.tracking.delivery", str(spool_dir), str(run_dir)]


def _delivery_environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])  # raymimic may be imported from a working directory
    python_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**DELIVERY_ENVIRONMENT, **os.environ, "PYTHONPATH": python_path}


@dataclass(frozen=True)
class SyncReport:
    """What :func:`sync` did.

    Attributes:
        run_id: the MLflow run, ``None`` when it could not be created.
        delivered: records that MLflow has got now.
        left: records that still wait.
        reason: why some are left, in one line; empty if none are.
    """

    run_id: str | None
    delivered: int
    left: int
    reason: str


def rest_waits(run_dir: Path, left: int) -> str:
    """Says that so many records of a run wait, and how they get to MLflow."""
    return (
        f"MLflow has not got all of this run ({left} records wait in {spool_dir_of(run_dir)}); "
        f"deliver the rest with: raymimic mlflow sync {shlex.quote(str(run_dir))}"
    )


def sync(run_dir: Path) -> SyncReport:
    """Delivers what a training or a sweep that has ended could not (``raymimic mlflow sync``).

    A run whose training was killed is closed as KILLED. A sweep's own run comes before those of
    its trials, which are shown below it.

    Args:
        run_dir: the folder of the training or sweep.

    Returns:
        what was delivered and what was not.

    Raises:
        OutputError: the folder holds no spool, or the training is still running.
    """
    run_dir = run_dir.resolve()
    spool_dir = spool_dir_of(run_dir)
    if not (spool_dir / JOURNAL).exists():
        raise OutputError(
            f"{run_dir} has nothing for MLflow ({spool_dir / JOURNAL} is missing); "
            "name the folder of a run, the one that holds config.json"
        )
    report = _sync_one(run_dir, spool_dir)
    for part in undelivered_parts(run_dir):
        waiting = pending(spool_dir_of(part))
        # Without the run that it is a part of there is no place for it.
        one = SyncReport(None, 0, waiting, report.reason)
        if not report.left:
            one = _sync_one(part, spool_dir_of(part))
        report = replace(
            report,
            delivered=report.delivered + one.delivered,
            left=report.left + one.left,
            reason=report.reason or one.reason,
        )
    return report


def undelivered_parts(run_dir: Path) -> list[Path]:
    """Folders of a sweep's trials whose runs are not complete in MLflow."""
    spools = sorted(run_dir.glob(f"trials/*/{spool_dir_of(Path())}"))
    return [spool.parents[1] for spool in spools if not is_finished(spool) or pending(spool)]


def _sync_one(run_dir: Path, spool_dir: Path) -> SyncReport:
    before = pending(spool_dir)
    done = subprocess.run(
        _delivery_command(spool_dir, run_dir),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=spool_dir,
        env=_delivery_environment(),
        check=False,
    )
    if done.returncode == EXIT_BUSY:
        raise OutputError(
            f"{run_dir} is being delivered to MLflow by its training, which still runs; "
            "there is nothing to do until it has ended"
        )
    left = pending(spool_dir)
    said = [line.partition(" ")[2] for line in done.stdout.splitlines()]
    trace = done.stderr.strip().splitlines()
    reason = " ".join(said or trace[-1:]) if left or done.returncode else ""
    return SyncReport(read_json(run_dir / RUN_FILE).get("run_id"), before - left, left, reason)
