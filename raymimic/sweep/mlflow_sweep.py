"""A sweep in MLflow: a parent run, and a child run for each trial.

Only the sweep's driver writes. Each run has a spool and a delivery of its own, as that of a single
training has (`raymimic.tracking.mlflow_tracker`): so a server that is down loses nothing, what is
logged again counts once, and the runs of a driver that was killed are closed as KILLED.
"""

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raymimic.errors import OutputError
from raymimic.sweep.folder import SPEC, SweepFolder
from raymimic.sweep.result import FinalScore, TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.stats import expected_online_performance
from raymimic.tracking.journal import RUN_FILE, is_finished, pending, read_json, spool_dir_of
from raymimic.tracking.mlflow_tracker import (
    MLflowTracker,
    resolve_tracking_uri,
    rest_waits,
    sync,
    undelivered_parts,
)
from raymimic.tracking.tracker import Status, TrackerGroup
from raymimic.training.trainer import dataset_name
from raymimic.utils import storage

if TYPE_CHECKING:
    from raymimic.sweep.report import Report

logger = logging.getLogger(__name__)

_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SweepRecords:
    """The MLflow runs of one sweep; nothing is written where `mlflow.enabled` is off.

    Args:
        spec: the sweep.
        facts: about all of its trainings (algorithm, dataset digest, versions, ...), for tags.

    Raises:
        ConfigError: MLflow could not open the tracking URI.
    """

    def __init__(self, spec: SweepSpec, facts: Mapping[str, str]) -> None:
        self._spec, self._settings = spec, spec.base_config["mlflow"]
        self._tags = {**facts, "sweep": spec.name}
        if self._settings["enabled"]:
            resolve_tracking_uri(self._settings["tracking_uri"], Path())
        self._local = Path()
        self._key: str | None = None
        self._uri = ""
        self._parent = TrackerGroup([])
        self._children: dict[str, TrackerGroup] = {}
        self._closing: list[threading.Thread] = []
        self._said: set[str] = set()
        self._saying = threading.Lock()

    @property
    def run_id(self) -> str | None:
        """The parent run, `None` until the server was reached for the first time."""
        run_id: str | None = read_json(self._local / RUN_FILE).get("run_id")
        return run_id

    @contextlib.contextmanager
    def of(self, folder: SweepFolder) -> Iterator[None]:
        """Opens the parent run, or goes on with it, and closes all with how the sweep truly ended.

        Args:
            folder: of the sweep.
        """
        spec, self._local = self._spec, folder.local
        if storage.is_uri(folder.uri):  # another machine may go on with the sweep, without `local`
            self._key = folder.uri
        if self._settings["enabled"]:
            self._uri = resolve_tracking_uri(self._settings["tracking_uri"], folder.local)
        name = self._settings["run_name"] or spec.name
        self._parent = self._tracker(
            "", name, params=parent_params(spec, self._tags["dataset"]), config_file=SPEC
        )
        self._parent.start(self._local, spec.to_dict(), self._tags)
        status: Status = "FAILED"
        try:
            yield
            status = "FINISHED"
        except (KeyboardInterrupt, SystemExit):
            status = "KILLED"
            raise
        finally:
            for child in self._children.values():  # those that an error or the user left open
                self._finish(child, "KILLED")
            self._finish(self._parent, status)
            for thread in self._closing:
                thread.join()
            if self._settings["enabled"]:
                self._deliver_rest(try_again=status != "KILLED")

    # -- children --

    def open(self, trial: Trial) -> None:
        """Opens a trial's run, or goes on with it."""
        if trial.trial_id in self._children:
            return  # its process was lost and started again
        config = self._spec.config_for(trial)
        params = config.to_dict()
        # Beside the setting and the seed, nothing shall differ on MLflow's comparison page.
        del params["meta"], params["experiment"]["name"]
        tags = {**self._tags, "dataset": dataset_name(config)}
        tags |= {"trial": trial.trial_id, "setting": trial.setting_id, "seed": str(trial.seed)}
        if "train.data" in trial.setting:
            tags.pop("dataset_digest", None)  # which is of one of the datasets
        child = self._tracker(
            f"trials/{trial.trial_id}",
            config.experiment.name,
            params=params,
            parent=self._local,
        )
        child.start(self._local / "trials" / trial.trial_id, config.to_dict(), tags)
        self._children[trial.trial_id] = child

    def log(self, trial_id: str, epochs: Sequence[tuple[int, int, dict[str, float]]]) -> None:
        """Passes on what a trial said of its epochs; what the run has already counts once."""
        for epoch, step, metrics in epochs:
            self._children[trial_id].log_epoch(epoch, step, metrics)

    def close(self, trial: Trial, result: TrialResult) -> None:
        """Closes a trial's run as it ended; the delivery of the rest goes on beside the sweep."""
        self.open(trial)  # where it was not begun again in this session
        child = self._children.pop(result.trial_id)
        child.set_tags(
            {"status": result.status} | ({"error": result.error} if result.error else {})
        )
        self._finish(child, _STATUS[result.status])

    def amend(self, trial: Trial, result: TrialResult) -> None:
        """Closes the run of a trial that ended just before its driver was killed."""
        if not is_finished(spool_dir_of(self._local / "trials" / trial.trial_id)):
            self.close(trial, result)

    # -- results --

    def report(self, report: "Report", final: FinalScore | None) -> None:
        """Gives the parent run the report, the winner's checkpoint and its score.

        Args:
            report: files and table.
            final: the winner's score on new episodes.
        """
        numbers = {"search/episodes": float(report.episodes)}
        winner = next(row for row in report.rows if row.setting_id == report.best_setting_id)
        if winner.score is not None:
            score = winner.score
            numbers |= {f"best/{k}": getattr(score, k) for k in ("mean", "iqm", "low", "high")}
        if winner.last is not None:
            numbers["best/last"] = winner.last
        if final is not None:
            numbers |= {f"final/{key}": float(final[key]) for key in ("mean", "low", "high")}
            numbers["final/episodes"] = float(final["episodes"])
        self._log_numbers(0, numbers)
        curves = {
            "best": [row.score.mean for row in report.rows if row.score],
            "last": [row.last for row in report.rows if row.score and row.last is not None],
        }
        for name, scores in curves.items():
            expected = expected_online_performance(scores, self._spec.mode).expected
            for tried, value in enumerate(expected, start=1):
                self._log_numbers(tried, {f"expected_online_performance/{name}": value})
        for file in report.files:
            self._parent.log_artifact(file, "figures" if file.suffix == ".png" else None)
        if winner.best_checkpoint is not None:
            with storage.local_copy(winner.best_checkpoint) as checkpoint:
                self._parent.log_artifact(checkpoint, "checkpoints")
        self._parent.set_tags({"best_setting": report.best_setting_id})

    def _log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        self._parent.tell(lambda tracker: tracker.log_numbers(step, numbers))

    # -- how --

    def _tracker(self, below: str, name: str, **options: Any) -> TrackerGroup:
        """A run's tracker.

        Args:
            below: the run's folder, within that of the sweep.
            name: that MLflow shows.
            options: of `MLflowTracker`.
        """
        if not self._settings["enabled"]:
            return TrackerGroup([])
        tracker = _SweepTracker(
            self._say,
            tracking_uri=self._uri,
            experiment=self._settings["experiment_name"] or "raymimic",
            run_name=name,
            tags=self._settings["tags"],
            key=None if self._key is None else f"{self._key}/{below}",
            **options,
        )
        return TrackerGroup([tracker])

    def _finish(self, tracker: TrackerGroup, status: Status) -> None:
        """Closes a run without waiting for its delivery."""
        thread = threading.Thread(target=tracker.finish, args=[status], name="mlflow-finish")
        thread.start()
        self._closing.append(thread)

    def _deliver_rest(self, try_again: bool) -> None:
        """Delivers what trials that ended while the server was down have left, or says how."""
        if try_again and undelivered_parts(self._local) and not pending(spool_dir_of(self._local)):
            with contextlib.suppress(OutputError):
                sync(self._local)
        spools = [self._local, *undelivered_parts(self._local)]
        left = sum(pending(spool_dir_of(folder)) for folder in spools)
        if left:
            logger.warning(rest_waits(self._local, left))

    def _say(self, level: int, text: str) -> None:
        """Says once what several runs meet: a server that is down is one mishap."""
        what, _, _ = text.partition(" (")
        with self._saying:
            if level == logging.INFO:  # the server is back
                self._said.clear()
            elif what in self._said:
                return
            else:
                self._said.add(what)
        logger.log(level, text)


class _SweepTracker(MLflowTracker):
    """The tracker of one run of a sweep, whose mishaps the sweep tells."""

    def __init__(self, say: Callable[[int, str], None], **options: Any) -> None:
        super().__init__(**options)
        self._say = say

    def say(self, level: int, text: str) -> None:
        """See :meth:`MLflowTracker.say`."""
        self._say(level, text)

    def say_rest(self, left: int) -> None:
        """Nothing: the sweep tries again, then says so of all its runs."""


def parent_params(spec: SweepSpec, dataset: str) -> dict[str, Any]:
    """What tells sweeps apart on MLflow's page; ``sweep.json`` beside it holds all.

    Args:
        spec: the sweep.
        dataset: its data, in a word.
    """
    what = spec.to_dict()
    base = spec.base_config
    params = {
        "algo": spec.algo,
        "dataset": dataset,
        **{f"space.{path}": json.dumps(kind) for path, kind in what["space"].items()},
        "scheduler": spec.scheduler,
        **{f"scheduler.{name}": value for name, value in spec.scheduler_options.items()},
        **{key: what[key] for key in ("seeds", "search", "search_seed", "metric", "mode")},
        **{key: what[key] for key in ("budget", "resources", "final_episodes")},
        "train.num_epochs": base["train"]["num_epochs"],
        "train.batch_size": base["train"]["batch_size"],
        "experiment.epoch_every_n_steps": base["experiment"]["epoch_every_n_steps"],
    }
    return {key: value for key, value in params.items() if value is not None}
