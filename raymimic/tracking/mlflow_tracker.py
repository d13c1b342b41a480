"""One MLflow run for each training, sweep and trial, complete even while the server is down.

Records go first into a spool beside the run (`raymimic.tracking.journal`); a separate process
(`raymimic.tracking.delivery`) carries them to MLflow. So no call here waits for a network, imports
MLflow or changes this process's environment.
"""

from __future__ import annotations

import contextlib
import itertools
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from raymimic.config import BaseConfig
from raymimic.config.config import leaves
from raymimic.credentials import (
    FULL_URI,
    PASSWORD,
    TOKEN,
    TRACKING_URI,
    USERNAME,
    ServerUri,
    masked,
)
from raymimic.errors import ConfigError, OutputError, RaymimicError
from raymimic.storage import open_own
from raymimic.tracking.delivery import EXIT_BUSY, STATE
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.tracking.journal import (
    ARTIFACTS,
    JOURNAL,
    JournalReader,
    JournalWriter,
    began_with_all_settings,
    check_spool,
    first_start,
    is_finished,
    machine_of,
    pending,
    run_id_of,
    spool_dir_of,
    state_of,
    system_steps,
)
from raymimic.tracking.parameters import settings_in_force
from raymimic.tracking.places import (
    check_named_by_run,
    configured_uri,
    experiment_name,
    resolve_tracking_uri,
    sqlite_path,
)
from raymimic.tracking.run_contents import DatasetUse, KeptModel
from raymimic.tracking.system_metrics import Sampling, SystemMonitor
from raymimic.tracking.tags import names_of_0_1_0
from raymimic.tracking.tracker import RunInfo, Status, Tracker

logger = logging.getLogger(__name__)

# How long the end of a run waits for a server, or a SQLite file, that takes no records.
FINISH_DEADLINE_S = 20.0
SQLITE_FINISH_DEADLINE_S = 60.0
# The same for one that takes them, or that nobody has asked yet: importing MLflow and creating its
# tables takes 10 s on an idle machine, and minutes on a busy one.
WORKING_DEADLINE_S = 180.0
LOG = "delivery.log"
COPY_LIMIT_BYTES = 16 * 2**20

# Defaults for the delivery process; the user's environment wins. MLflow makes one attempt each:
# the delivery repeats it, and its loop must notice a restarted server soon.
DELIVERY_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_UV_AUTO_DETECT": "false",  # no model takes up files of the current folder
}


def flatten(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and values of a nested configuration as MLflow shows parameters.

    Args:
        config: nested, JSON-serialisable.

    Yields:
        dotted name and value; strings as they are, all else as JSON.
    """
    for name, value in leaves(config):
        yield name, value if isinstance(value, str) else json.dumps(value, default=str)


def make_tracker(config: BaseConfig, run: RunInfo) -> MLflowTracker | None:
    """The tracker of a run; None with `mlflow.enabled` off.

    Raises:
        ConfigError: MLflow could not open the tracking URI.
    """
    settings = config.mlflow
    if not settings.enabled:
        return None
    uri = settings.tracking_uri
    return MLflowTracker(
        tracking_uri=uri if run.sweep_dir is None else _store_of_sweep(uri, run.sweep_dir),
        experiment=experiment_name(settings.experiment_name),
        run_name=run.name if run.kind == "trial" else settings.run_name or run.name,
        tags=settings.tags,
        kind=run.kind,
        params=settings_in_force(config) if run.params is None else run.params,
        config_file=run.config_file,
        key=run.key,
        resumed=run.resumed,
        say=run.say,
    )


def _store_of_sweep(tracking_uri: str | None, sweep_dir: Path) -> ServerUri:
    """The store of a sweep's own run, which the runs of its trials share.

    Args:
        tracking_uri: the configured URI, or None.
        sweep_dir: folder of the sweep, whose own run this process has started.
    """
    if configured_uri(tracking_uri) is None:
        with contextlib.suppress(OSError):  # the sweep's own run could not start
            start = state_of(JournalReader(spool_dir_of(sweep_dir))).start
            if start is not None:
                return ServerUri.of(start["tracking_uri"])
    return resolve_tracking_uri(tracking_uri, sweep_dir)


class MLflowTracker(Tracker):
    """Logs a run to MLflow.

    The run's id lies in `<run_dir>/mlflow_run.json` once the server has given it; a tracker
    started on the same folder continues that run. Parameters that differ then become tags
    `resume.<key>`. An epoch's metric that the run already has is not sent again, so logging an
    epoch twice is harmless. MLflow's names and steps are those of `metric_names.py`; the tables
    of evaluations and episodes are those of `tables.py`.

    A training that ends without `finish` is closed as KILLED.

    Args:
        tracking_uri: see `resolve_tracking_uri`.
        experiment: MLflow experiment, created if it does not exist.
        run_name: name that MLflow shows; None lets MLflow invent one.
        tags: the user's tags; they win over the run's own.
        finish_deadline_s: how long `finish` waits for an MLflow that takes no records [s]; None:
            20, or 60 for a SQLite file. While MLflow takes them, it waits up to three minutes.
        kind: see `RunInfo`. The folder of a `trial` lies two levels below its sweep's.
        params: parameters that MLflow shows; None: every value of the configuration.
        config_file: name of the file that holds the configuration.
        key: finds the run on the server where its folder is missing; None: only
            `mlflow_run.json` leads to the run.
        resumed: whether the run's folder, which is untrusted, says where the run is logged.
        say: shows the user a mishap; None: the log does.

    Raises:
        ConfigError: MLflow could not open the tracking URI, or a variable of system metrics has an
            impossible value.
    """

    def __init__(
        self,
        tracking_uri: str | None = None,
        experiment: str = "raymimic",
        run_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        finish_deadline_s: float | None = None,
        kind: Literal["training", "sweep", "trial"] = "training",
        params: Mapping[str, Any] | None = None,
        config_file: str = "config.json",
        key: str | None = None,
        resumed: bool = False,
        say: Callable[[int, str], None] | None = None,
    ) -> None:
        resolve_tracking_uri(tracking_uri, Path())
        self._tracking_uri = None if tracking_uri is None else ServerUri.of(tracking_uri)
        self._experiment = experiment
        self._run_name = run_name
        self._tags = {key: str(value) for key, value in (tags or {}).items()}
        self._finish_deadline_s = finish_deadline_s
        self._kind = kind
        self._params = params
        self._config_file = config_file
        self._key = key
        self._resumed = resumed
        self._say = say or logger.log
        self._sampling = None if kind == "trial" else Sampling.of_environment()
        self._monitor: SystemMonitor | None = None
        self._system_steps: dict[str, itertools.count[int]] = {}  # of the next point, by machine
        self._journal: JournalWriter | None = None
        self._delivery: subprocess.Popen[str] | None = None
        self._fails = threading.Event()  # MLflow takes no records from the delivery
        self._models: dict[str, Path] = {}  # copies in the spool, by SHA-256

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until the server has given one."""
        return run_id_of(self._run_dir)

    @property
    def tracking_uri(self) -> str:
        """The store of a started run, without the password."""
        return self._resolved_uri

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See `Tracker.start`; returns a resumed run's id.

        A new run's id is in `run_id` some seconds later.
        """
        self._run_dir = run_dir.resolve()
        self._resolved_uri = resolve_tracking_uri(self._tracking_uri, run_dir)
        self._spool_dir = spool_dir_of(self._run_dir)
        check_spool(self._run_dir)
        params = self._shown(config)
        began_as = self._run_dir.parents[1] if self._kind == "trial" else self._run_dir
        if began_with_all_settings(began_as):
            tags = names_of_0_1_0(tags)
        self._journal = JournalWriter(self._spool_dir)
        self._append(
            "start",
            key=self._key or uuid.uuid4().hex,
            tracking_uri=self._resolved_uri,
            experiment=self._experiment,
            run_name=self._run_name,
            trial=self._kind == "trial",
            in_force=True,  # the parameters are a part of the config
            params={name: masked(value) for name, value in params.items()},
            tags={key: masked(str(value)) for key, value in {**tags, **self._tags}.items()},
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        self._delivery = self._spawn()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / self._config_file
            path.write_text(masked(json.dumps(config, indent=4, default=str)))
            self.log_artifact(path)
        if self._sampling is not None:
            self._system_steps = {
                machine: itertools.count(step)
                for machine, step in system_steps(self._run_dir).items()
            }
            self._monitor = SystemMonitor(
                self._sampling,
                self._log_own_system,
                lambda text: self._say(logging.WARNING, text),
            )
            self._monitor.start()
        return self.run_id

    @property
    def sampling(self) -> Sampling | None:
        """See `Tracker.sampling`: as MLflow's variables ask for it, of a training or sweep."""
        return self._sampling

    def log_system(self, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_system`; the points of each machine count their own steps."""
        machine = machine_of(next(iter(metrics), ""))
        steps = self._system_steps.setdefault(machine, itertools.count())
        self._append("system", step=next(steps), metrics=_numbers(metrics))

    def _log_own_system(self, metrics: Mapping[str, float]) -> None:
        """Records the load of this machine, if the disk has room; the run itself tells of that."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self.log_system(metrics)

    def _stop_sampling(self) -> None:
        monitor, self._monitor = self._monitor, None
        if monitor is not None:
            monitor.stop()

    def _shown(self, config: Mapping[str, Any]) -> dict[str, str]:
        """The parameters; a resumed run goes on with those that it began with."""
        shown = dict(flatten(config if self._params is None else self._params))
        first = first_start(self._run_dir)
        if first is None:
            return shown
        now = dict(flatten(config))
        return {name: now[name] for name in first["params"] if name in now} | shown

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_epoch`."""
        self._append("epoch", epoch=int(epoch), step=int(step), metrics=_numbers(metrics))

    def log_evaluation(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        episodes: Mapping[str, Sequence[EpisodeRow]],
    ) -> None:
        """See `Tracker.log_evaluation`."""
        self._append(
            "evaluation",
            epoch=int(epoch),
            step=int(step),
            metrics=_numbers(metrics),
            episodes={name: list(played) for name, played in episodes.items()},
        )

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker.log_numbers`."""
        self._append("numbers", epoch=int(step), metrics=_numbers(numbers))

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See `Tracker.log_artifact`.

        The spool gets its own copy, so that the file may change or go. Above 16 MB the copy is a
        hard link where the file system has them: a large file must be replaced by renaming, as
        checkpoints are, not be rewritten in place.
        """
        with self._copied(path) as copy:
            self._append("artifact", copy=self._named(copy), artifact_path=artifact_path)

    def log_datasets(self, datasets: Sequence[DatasetUse]) -> None:
        """See `Tracker.log_datasets`."""
        entries = [asdict(dataset) for dataset in datasets]
        for entry in entries:
            entry["source"] = masked(entry["source"])
        self._append("datasets", datasets=entries)

    def log_model(self, model: KeptModel) -> None:
        """See `Tracker.log_model`.

        The spool gets a copy of the checkpoint, as of other files.
        """
        interface = model.interface
        with contextlib.suppress(FileNotFoundError), self._copied(model.path) as copy:
            example = copy.with_name("example.json")
            example.write_text(json.dumps(interface.example))
            self._append(
                "model",
                copy=self._named(copy),
                example=self._named(example),
                name=model.path.stem,
                sha256=model.sha256,
                epoch=model.epoch,
                step=model.step,
                algo=interface.algo,
                inputs=[asdict(tensor) for tensor in interface.inputs],
                outputs=[asdict(tensor) for tensor in interface.outputs],
            )
            self._models[model.sha256] = copy

    def keep_models(self, kept: Mapping[str, Sequence[str]]) -> None:
        """See `Tracker.keep_models`.

        A copy that still waits in the spool goes, so that a server that is down for long leaves no
        more copies than there are checkpoints.
        """
        self._append("models", kept={digest: list(reasons) for digest, reasons in kept.items()})
        for digest in self._models.keys() - kept.keys():
            shutil.rmtree(self._models.pop(digest).parent, ignore_errors=True)

    def _named(self, copy: Path) -> str:
        """A file of the spool, as records name it."""
        return str(copy.relative_to(self._spool_dir))

    @contextlib.contextmanager
    def _copied(self, path: Path) -> Iterator[Path]:
        """A copy of a file in the spool, which is dropped where the disk has no room."""
        size = path.stat().st_size
        (self._spool_dir / ARTIFACTS).mkdir(exist_ok=True)
        # Readable by its owner alone.
        folder = Path(tempfile.mkdtemp(dir=self._spool_dir / ARTIFACTS))
        copy = folder / path.name
        try:
            if size > COPY_LIMIT_BYTES:
                with contextlib.suppress(OSError):
                    os.link(path, copy)
            if not copy.exists():
                shutil.copyfile(path, copy)
                copy.chmod(0o600)
            yield copy
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def log_note(self, text: str) -> None:
        """See `Tracker.log_note`; a description that the user has edited stays as it is."""
        self._append("note", text=masked(text))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See `Tracker.set_tags`."""
        self._append("tags", tags={key: str(value) for key, value in tags.items()})

    def finish(self, status: Status) -> None:
        """See `Tracker.finish`.

        Waits a bounded time for the delivery. The rest stays in the spool, and one warning names
        the command that delivers it.
        """
        self._stop_sampling()
        if self._journal is None or self._delivery is None:
            return
        journal, self._journal = self._journal, None
        try:
            self._append_to(journal, "finish", status=status)
        except OSError:
            # The delivery will see that this process is gone: there is nothing to wait for.
            self._say_rest(pending(self._spool_dir))
            raise
        finally:
            journal.close()
        local = sqlite_path(self._resolved_uri) is not None
        default_s = SQLITE_FINISH_DEADLINE_S if local else FINISH_DEADLINE_S
        deadline_s = default_s if self._finish_deadline_s is None else self._finish_deadline_s
        if self._delivery.poll() is not None:
            self._delivery = self._spawn()
        self._wait_for(self._delivery, deadline_s)
        left = pending(self._spool_dir)
        if left:
            self._say_rest(left)

    def _wait_for(self, delivery: subprocess.Popen[str], deadline_s: float) -> None:
        """Waits for the delivery's end, and ends it when it takes too long."""
        begin = time.monotonic()
        while True:
            limit_s = deadline_s if self._fails.is_set() else max(deadline_s, WORKING_DEADLINE_S)
            with contextlib.suppress(subprocess.TimeoutExpired):
                delivery.wait(0.2)
                return
            if time.monotonic() - begin >= limit_s:
                delivery.kill()
                delivery.wait()
                return

    def abandon(self) -> None:
        """See `Tracker.abandon`."""
        self._stop_sampling()
        if self._journal is None or self._delivery is None:
            return
        self._journal.close()
        self._journal = None
        self._delivery.kill()
        self._delivery.wait()

    def is_closed(self, run_dir: Path) -> bool:
        """See `Tracker.is_closed`; a run that has a key may be open where its folder is lost."""
        spool_dir = spool_dir_of(run_dir)
        if not (spool_dir / JOURNAL).exists():
            return self._key is None
        return is_finished(spool_dir)

    def finish_sweep(self, status: Status) -> None:
        """Delivers the records of trials that ended while the server was down, or says how to."""
        run_dir = self._run_dir
        if status != "KILLED" and undelivered_parts(run_dir) and not pending(self._spool_dir):
            with contextlib.suppress(OutputError):
                sync(run_dir, self._resolved_uri)
        parts = [run_dir, *undelivered_parts(run_dir)]
        left = sum(pending(spool_dir_of(part)) for part in parts)
        if left:
            logger.warning(rest_waits(run_dir, left))

    def _say_rest(self, left: int) -> None:
        """Warns of undelivered records; in a sweep, `finish_sweep` does so for all runs."""
        if self._kind == "training":
            self._say(logging.WARNING, rest_waits(self._run_dir, left))

    def _append(self, kind: str, **data: Any) -> None:
        assert self._journal is not None, "start() comes first, and nothing after finish()"
        self._append_to(self._journal, kind, **data)

    @staticmethod
    def _append_to(journal: JournalWriter, kind: str, **data: Any) -> None:
        journal.append({"type": kind, "time": int(time.time() * 1000), **data})

    def _spawn(self) -> subprocess.Popen[str]:
        """Starts the delivery, and a thread that passes its messages on to the user."""
        command = _delivery_command(self._spool_dir, self._run_dir, self._resolved_uri)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with open_own(self._spool_dir / LOG, flags, "a") as log:
            process = subprocess.Popen(
                [*command, "--owner", str(os.getpid()), "--patience", str(FINISH_DEADLINE_S)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd="/",
                env=delivery_environment(self._resolved_uri, named_by_run=self._resumed),
                start_new_session=True,  # Ctrl-C ends the training, which then ends the delivery
            )

        fails = self._fails = threading.Event()

        def listen() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    level, _, text = line.rstrip().partition(" ")
                    if level == STATE:
                        (fails.set if int(text) else fails.clear)()
                        continue
                    self._say(logging.getLevelNamesMapping().get(level, logging.DEBUG), text)
            if process.wait() and self._journal is not None:
                logger.warning(
                    "The process that delivers to MLflow ended with status %d (see %s); "
                    "it is started again when the training ends",
                    process.returncode,
                    self._spool_dir / LOG,
                )

        threading.Thread(target=listen, name="mlflow-delivery", daemon=True).start()
        return process


def _numbers(values: Mapping[str, float]) -> dict[str, float]:
    """Numbers as JSON takes them, such as those of numpy."""
    return {name: float(value) for name, value in values.items()}


def _delivery_command(spool_dir: Path, run_dir: Path, server: str) -> list[str]:
    # With -P, and in another folder, no file in the run's folder can pass for a module.
    command = [sys.executable, "-P", "-m", "raymimic.tracking.delivery"]
    return [*command, str(spool_dir), str(run_dir), "--server", str(server)]


def delivery_environment(server: ServerUri, *, named_by_run: bool) -> dict[str, str]:
    """The environment of a delivery, which brings it the password.

    Args:
        server: the store.
        named_by_run: whether a run's folder, which is untrusted, names the store: then the
            delivery does not get the login of another server that `MLFLOW_TRACKING_URI` names.
    """
    environment = {**DELIVERY_ENVIRONMENT, **os.environ}
    environment.pop(FULL_URI, None)
    given = environment.pop(TRACKING_URI, None)
    if named_by_run and given and resolve_tracking_uri(given, Path()) != server:
        for variable in (USERNAME, PASSWORD, TOKEN):
            environment.pop(variable, None)
    environment |= server.environment
    # Relative entries would mean folders near the delivery's own.
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    root = str(Path(__file__).parents[2])  # raymimic may be imported from a working directory
    environment["PYTHONPATH"] = os.pathsep.join([*filter(os.path.isabs, paths), root])
    return environment


def run_with_mlflow(
    command: Sequence[str], server: ServerUri, *, named_by_run: bool
) -> subprocess.CompletedProcess[str]:
    """Runs a command that talks to a store, to its end; its folder leads to no module.

    Args:
        command: the command.
        server: the store.
        named_by_run: as of `delivery_environment`.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd="/",
        env=delivery_environment(server, named_by_run=named_by_run),
        check=False,
    )


@dataclass(frozen=True)
class SyncReport:
    """The result of `sync`.

    Attributes:
        run_id: id of the MLflow run; None when it could not be created.
        delivered: number of records that MLflow got.
        left: number of records that still wait.
        reason: why records still wait, in one line; empty if none do.
        server: the store, without the password.
        remarks: further messages, such as those about damaged lines.
    """

    run_id: str | None
    delivered: int
    left: int
    reason: str
    server: str
    remarks: tuple[str, ...] = ()


def rest_waits(run_dir: Path, left: int) -> str:
    """The warning that records of a run wait, with the command that delivers them.

    Args:
        run_dir: folder of the run.
        left: number of records.
    """
    return (
        f"MLflow has not got all of this run ({left} records wait in {spool_dir_of(run_dir)}); "
        f"deliver the rest with: raymimic mlflow sync {shlex.quote(str(run_dir))}"
    )


def sync(run_dir: Path, server: ServerUri | None = None) -> SyncReport:
    """Delivers the remaining records of a training or sweep that has ended.

    `raymimic mlflow sync` calls this. A run whose training was killed is closed as KILLED. A
    sweep's own run comes before those of its trials, which MLflow shows below it.

    Args:
        run_dir: folder of the training or sweep; it is untrusted.
        server: the store, with the password; None: the folder names it.

    Raises:
        OutputError: the folder holds no spool, or one that leads out of it, or the training is
            still running.
        ConfigError: the folder names a database file that is none of MLflow's.
    """
    run_dir = run_dir.resolve()
    spool_dir = spool_dir_of(run_dir)
    if not (spool_dir / JOURNAL).exists():
        raise OutputError(
            f"{run_dir} has nothing for MLflow ({spool_dir / JOURNAL} is missing); "
            "name the folder of a run, the one that holds config.json"
        )
    parent = report = _sync_one(run_dir, server)
    for part in undelivered_parts(run_dir):
        waiting = SyncReport(None, 0, pending(spool_dir_of(part)), parent.reason, parent.server)
        of_part = waiting  # MLflow shows a trial below its sweep's run, which must come first
        if not parent.left:
            try:
                of_part = _sync_one(part, server)
            except RaymimicError as error:  # the other parts are delivered all the same
                of_part = replace(waiting, reason=str(error))
        report = replace(
            report,
            delivered=report.delivered + of_part.delivered,
            left=report.left + of_part.left,
            reason=report.reason or of_part.reason,
            remarks=report.remarks + of_part.remarks,
        )
    return report


def undelivered_parts(run_dir: Path) -> list[Path]:
    """Folders of a sweep's trials whose runs are not complete in MLflow.

    Raises:
        OutputError: one of them is a link that leads out of the sweep.
    """
    journals = sorted(run_dir.glob(f"trials/*/{spool_dir_of(Path())}/{JOURNAL}"))
    parts = [journal.parents[2] for journal in journals]
    for part in parts:
        for folder in (part.parent, part):
            if not folder.resolve().is_relative_to(run_dir.resolve()):
                raise OutputError(f"'{folder}' is a link that leads out of the sweep: remove it")
        check_spool(part)
    spools = {part: spool_dir_of(part) for part in parts}
    return [part for part, spool in spools.items() if not is_finished(spool) or pending(spool)]


def _sync_one(run_dir: Path, server: ServerUri | None) -> SyncReport:
    spool_dir = spool_dir_of(run_dir)
    check_spool(run_dir)
    try:
        start = state_of(JournalReader(spool_dir)).start
    except OSError as error:
        raise OutputError(f"cannot read the journal of '{run_dir}': {error}") from error
    if start is None:
        raise OutputError(
            f"'{spool_dir / JOURNAL}' does not say where its records belong, as its first line is "
            f"missing or damaged; 'raymimic train --resume {shlex.quote(str(run_dir))}' records "
            "the run again"
        )
    named_by_run = server is None
    if server is None:
        server = _named_server(run_dir, start["tracking_uri"])
    before = pending(spool_dir)
    command = _delivery_command(spool_dir, run_dir, server)
    done = run_with_mlflow(command, server, named_by_run=named_by_run)
    if done.returncode == EXIT_BUSY:
        raise OutputError(
            f"{run_dir} is being delivered to MLflow by its training, which still runs; "
            "there is nothing to do until it has ended"
        )
    left = pending(spool_dir)
    messages = tuple(line.partition(" ")[2] for line in done.stdout.splitlines())
    trace = done.stderr.strip().splitlines()
    failed = left or done.returncode
    reason = " ".join(messages or trace[-1:]) if failed else ""
    remarks = () if failed else messages
    return SyncReport(run_id_of(run_dir), before - left, left, reason, server, remarks)


def _named_server(run_dir: Path, tracking_uri: str) -> ServerUri:
    """The store that a run's folder names, or the one that the user confirms."""
    server = ServerUri.of(tracking_uri)
    try:
        check_named_by_run(server, run_dir)
    except ConfigError:
        given = os.environ.get(TRACKING_URI)
        if not given:
            raise
        return resolve_tracking_uri(given, run_dir)
    return server
