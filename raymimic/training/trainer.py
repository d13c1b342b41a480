"""From a config to a trained, evaluated, logged policy: `raymimic.train`."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from raymimic import storage
from raymimic.algo import algo_class
from raymimic.algo.rollout_policy import can_act
from raymimic.checkpoints.store import CheckpointStore
from raymimic.config import BaseConfig
from raymimic.errors import ConfigError, LeaseLostError, RaymimicError, TrainingError
from raymimic.rollout.local import LocalEvaluator
from raymimic.tensors import get_torch_device
from raymimic.terminal import duration, shown
from raymimic.tracking.journal import run_id_of
from raymimic.tracking.places import RecordsPage, check_records, records_line, records_page
from raymimic.tracking.registry import trackers_for
from raymimic.tracking.tags import run_tags
from raymimic.tracking.tracker import RunInfo, Status, Tracker, TrackerGroup
from raymimic.training.driver import Driver
from raymimic.training.link import LocalLink
from raymimic.training.passwords import remove_passwords
from raymimic.training.prepare import Configured, Prepared, prepare, prepare_resumed
from raymimic.training.progress import ProgressReporter
from raymimic.training.resume import Resumed, check_resume, go_back
from raymimic.training.run import Run
from raymimic.training.run_folder import RunFolder
from raymimic.training.worker import train_loop

# Two trainings would draw from the same generators, and share one connection to Ray.
_TURN = threading.RLock()


@dataclass(frozen=True)
class TrainResult:
    """The results of a training.

    Attributes:
        run_dir: folder or URI of the run.
        last_checkpoint: path or URI of the newest checkpoint.
        best_checkpoint: that of the best evaluation, if any was made.
        metrics: the newest value of each metric.
        mlflow_run_id: the run's id on the tracking server, once that has given one.
        learning_curve: picture of the learning curve.
        mlflow_command: shell command that shows the run in MLflow; None with a tracking server.
        mlflow_url: the run's page on the tracking server; None without a server.
    """

    run_dir: str
    last_checkpoint: str | None
    best_checkpoint: str | None
    metrics: dict[str, float]
    mlflow_run_id: str | None
    learning_curve: str | None
    mlflow_command: str | None = None
    mlflow_url: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def train(
    config: Configured,
    *,
    resume: str | None = None,
    from_checkpoint: str | None = None,
    quiet: bool = False,
) -> TrainResult:
    """Trains a policy.

    A process trains one policy at a time: a call in another thread waits for its turn.

    Args:
        config: a config, its dictionary, or the path of its JSON file.
        resume: folder or URI of a run to go on with; `config` may then differ from the run's own
            only in settings that change no result (see `raymimic.training.resume.FREE`).
        from_checkpoint: checkpoint of that run from which it goes on, instead of the newest: its
            name in the run's folder `models`, or its path or URI. The later ones are kept aside.
        quiet: print nothing.

    Returns:
        where the results lie.

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    if from_checkpoint is not None and resume is None:
        raise ConfigError(
            f"--from '{from_checkpoint}' needs the run of that checkpoint: name the run after "
            "--resume"
        )
    with _TURN:
        if resume is None:
            prepared = prepare(config)
            trackers = trackers_for(prepared.config, RunInfo(prepared.config.experiment.name))
            return _train(prepared, RunFolder.create(prepared.config), trackers, quiet=quiet)
        prepared = prepare_resumed(config, resume)
        info = RunInfo(prepared.config.experiment.name, resumed=True)
        trackers = trackers_for(prepared.config, info)
        folder, resumed = _resume(prepared, resume, from_checkpoint)
        return _train(prepared, folder, trackers, resumed=resumed, quiet=quiet)


def train_in_folder(
    config: BaseConfig, run_dir: str, tracker: Tracker, patience_s: float
) -> TrainResult:
    """Trains as a part of something larger, in a given folder and for a given tracker.

    Goes on from the last checkpoint where the folder holds one. The config may differ from that
    checkpoint's: the caller knows why. The config's own trackers, MLflow and TensorBoard, are
    left out.

    Args:
        config: the whole config.
        run_dir: folder or URI of the run.
        tracker: gets all records. Its exceptions become warnings; SystemExit ends the training.
        patience_s: how long to wait for another process to leave the folder [s].

    Raises:
        RaymimicError: the user can correct it; one sentence tells how.
    """
    prepared = prepare(config, run_dir)
    folder = RunFolder.at(run_dir, prepared.config)
    folder.prepare(patience_s)
    return _train(prepared, folder, [tracker], resumed=Resumed(), quiet=True, alone=False)


def _resume(
    prepared: Prepared, run_dir: str, from_checkpoint: str | None
) -> tuple[RunFolder, Resumed]:
    """Checks the folder of a run, takes hold of it, and goes back in it if asked to."""
    config, digest, envs = prepared.config, prepared.data.digest, prepared.envs
    folder = RunFolder.at(run_dir, config)
    notes = check_resume(config, folder, digest, envs, newest=from_checkpoint is None)
    check_records(config, folder.local)
    folder.prepare()
    remove_passwords(folder.uri, folder.local)
    if from_checkpoint is None:
        return folder, Resumed(notes)
    try:
        return folder, go_back(config, folder, from_checkpoint, digest, envs)
    except BaseException:
        folder.release()
        raise


def _train(
    prepared: Prepared,
    folder: RunFolder,
    trackers: Sequence[Tracker],
    *,
    resumed: Resumed | None = None,
    quiet: bool,
    alone: bool = True,
) -> TrainResult:
    """Trains in a folder that this process holds, and releases it in the end.

    Args:
        prepared: the training.
        folder: of the run.
        trackers: get the records.
        resumed: the run that goes on; None for a new one.
        quiet: print nothing.
        alone: see `Run`.
    """
    config = prepared.config
    log_file = folder.local / "logs" / "log.txt"
    progress = ProgressReporter(
        config.train.num_epochs,
        log_file if config.experiment.logging.terminal_output_to_txt else None,
        quiet=quiet,
    )
    begin = time.monotonic()
    _announce(prepared, folder, resumed, progress)
    try:
        prepared.fetch_initial_weights(folder)
        with _tracked(trackers) as tracker:
            tags = run_tags(config, prepared.data.digest, prepared.envs)
            tags |= resumed.tags if resumed else {}
            result = _run(Run(prepared, folder, tracker, progress, tags, alone))
            progress.phase("closing the records")
        result = _with_records(result, config, folder, alone=alone)
        progress.line(
            f"finished in {duration(time.monotonic() - begin)}; results are in {shown(folder.uri)}"
        )
        folder.mirror()
    except TrainingError:
        raise  # the folder keeps its story
    except RaymimicError:
        # Some mistakes show only where the workers are placed or have read the data.
        if resumed is None and not progress.begun:
            progress.close()
            folder.discard()
        raise
    finally:
        progress.close()
        with suppress(LeaseLostError):  # after which nothing more is written
            folder.mirror()
        folder.release()
    return result


def _announce(
    prepared: Prepared, folder: RunFolder, resumed: Resumed | None, progress: ProgressReporter
) -> None:
    """Tells the user where the results go, and how a resumed run goes on."""
    progress.line(f"{'results go to' if resumed is None else 'resuming'} {shown(folder.uri)}")
    if resumed is not None:
        for note in resumed.notes:
            progress.line(note)
        # The run's folder, which is untrusted, says where.
        records = records_line(prepared.config, folder.local)
        if records is not None:
            progress.line(records)


@contextmanager
def _tracked(trackers: Sequence[Tracker]) -> Iterator[TrackerGroup]:
    """Closes the records with how the training truly ended; the driver opens them."""
    group = TrackerGroup(trackers)
    status: Status | None = "FAILED"
    try:
        yield group
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except LeaseLostError:
        status = None
        group.abandon()
        raise
    finally:
        if status is not None:
            group.finish(status)


# -- one run --


def _run(run: Run) -> TrainResult:
    """Trains, waits for the evaluations, and gathers the results."""
    if run.prepared.config.ray.num_workers == 0:
        driver = _train_here(run)
    else:
        # Importing Ray takes a second, which a training without it saves.
        from raymimic.training.on_ray import train_on_ray

        driver = train_on_ray(run)
    return _result(run, driver)


def _train_here(run: Run) -> Driver:
    """Trains in this process, without Ray."""
    config, imports = run.prepared.config, run.prepared.imports

    def may_begin() -> bool:
        if not driver.started:
            run.progress.phase(driver.preparation)
        return driver.may_begin()

    link = LocalLink(lambda event: driver.handle(event), may_begin)
    evaluator = LocalEvaluator(config.envs_per_actor, imports, apart=run.alone)
    driver = Driver(run, evaluator if run.prepared.envs else None, link.post)
    threads = torch.get_num_threads()
    run.progress.phase(driver.preparation)
    try:
        train_loop(
            run.prepared.worker_spec(run.folder),
            link,
            rank=0,
            world_size=1,
            device=get_torch_device(try_to_use_cuda=config.train.cuda),
        )
        driver.finish()
    finally:
        driver.close()
        evaluator.close()
        torch.set_num_threads(threads)
    return driver


def _result(run: Run, driver: Driver) -> TrainResult:
    config, folder = run.prepared.config, run.folder
    store = CheckpointStore(folder.uri, config.experiment.save)
    curve = driver.draw_learning_curve()
    best, last = store.best, store.last
    driver.keep_models(store)
    driver.describe(store)
    kept = best or last
    if kept is not None and not can_act(algo_class(config.algo_name, config)):
        with storage.local_copy(store.path(kept)) as file:
            run.tracker.log_artifact(file, "checkpoints")
    for video in sorted((folder.local / "videos").glob("*.mp4")):
        run.tracker.log_artifact(video, "videos")
    return TrainResult(
        run_dir=folder.uri,
        last_checkpoint=store.path(last) if last else None,
        best_checkpoint=store.path(best) if best else None,
        metrics=driver.metrics,
        mlflow_run_id=None,  # which MLflow may give while the records are closed
        learning_curve=str(curve) if curve else None,
    )


def _with_records(
    result: TrainResult, config: BaseConfig, folder: RunFolder, *, alone: bool
) -> TrainResult:
    """Adds the place of the records, once they are closed."""
    page = records_page(config, folder.local) if alone else RecordsPage()
    return replace(
        result,
        mlflow_run_id=run_id_of(folder.local),
        mlflow_command=page.command,
        mlflow_url=page.url,
    )
