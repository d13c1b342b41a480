"""A sweep in MLflow: a parent run, and a child run for each trial.

Only the sweep's driver writes. Each run has a spool and a delivery of its own, as that of a single
training has (`raymimic.tracking.mlflow_tracker`): so a server that is down loses nothing, what is
logged again counts once, and the runs of a driver that was killed are closed as KILLED.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from raymimic.sweep.result import FinalScore, TrialResult
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.tracking.journal import RUN_FILE, JournalReader, read_json, spool_dir_of
from raymimic.tracking.mlflow_tracker import MLflowTracker, resolve_tracking_uri
from raymimic.tracking.tracker import Status, TrackerGroup

if TYPE_CHECKING:
    from raymimic.config import BaseConfig
    from raymimic.sweep.report import Report

_STATUS: dict[str, Status] = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class SweepRecords:
    """The MLflow runs of one sweep; nothing is written where `mlflow.enabled` is off.

    Args:
        spec: the sweep.
        config: the base config, which says where MLflow is.

    Raises:
        ConfigError: MLflow could not open the tracking URI.
    """

    def __init__(self, spec: SweepSpec, config: "BaseConfig") -> None:
        self._spec, self._settings = spec, spec.base_config["mlflow"]
        if self._settings["enabled"]:
            resolve_tracking_uri(self._settings["tracking_uri"], Path())
        self._folder = Path()
        self._uri: str | None = None
        self._parent = TrackerGroup([])
        self._children: dict[str, TrackerGroup] = {}
        self._closing: list[threading.Thread] = []

    @property
    def run_id(self) -> str | None:
        """The parent run, `None` until the server was reached for the first time."""
        run_id: str | None = read_json(self._folder / RUN_FILE).get("run_id")
        return run_id

    @contextlib.contextmanager
    def of(self, folder: Path) -> Iterator[None]:
        """Opens the parent run, or goes on with it, and closes all with how the sweep truly ended.

        Args:
            folder: of the sweep.
        """
        self._folder = folder
        self._parent = self._tracker(folder, self._settings["run_name"] or self._spec.name, None)
        what = self._spec.to_dict()
        what |= {"algo": self._spec.algo, "dataset": self._dataset}
        self._parent.start(folder, what, self._tags())
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

    # -- children --

    def open(self, trial: Trial, run_dir: Path) -> None:
        """Opens a trial's run, or goes on with it."""
        if trial.trial_id in self._children:
            return  # its process was lost and started again
        run_dir.mkdir(parents=True, exist_ok=True)
        child = self._tracker(run_dir, trial.trial_id, self._folder)
        tags = self._tags() | {
            "trial": trial.trial_id,
            "setting": trial.setting_id,
            "seed": str(trial.seed),
        }
        child.start(run_dir, self._spec.config_for(trial).to_dict(), tags)
        self._children[trial.trial_id] = child

    def log(self, trial_id: str, epochs: Sequence[tuple[int, int, dict[str, float]]]) -> None:
        """Passes on what a trial said of its epochs; what the run has already counts once."""
        for epoch, step, metrics in epochs:
            self._children[trial_id].log_epoch(epoch, step, metrics)

    def close(self, result: TrialResult) -> None:
        """Closes a trial's run as it ended; the delivery of the rest goes on beside the sweep."""
        child = self._children.pop(result.trial_id)
        child.set_tags(
            {"status": result.status} | ({"error": result.error} if result.error else {})
        )
        self._finish(child, _STATUS[result.status])

    def amend(self, trial: Trial, result: TrialResult) -> None:
        """Closes the run of a trial that ended just before its driver was killed."""
        run_dir = Path(result.run_dir)
        if self._settings["enabled"] and not _is_closed(run_dir):
            self.open(trial, run_dir)
            self.close(result)

    # -- results --

    def report(self, report: "Report", final: FinalScore | None, episodes: int) -> None:
        """Gives the parent run the report, the winner's checkpoint and its score.

        Args:
            report: files and table.
            final: the winner's score on new episodes.
            episodes: evaluation episodes that the search played.
        """
        numbers = {"search/episodes": float(episodes)}
        winner = next(row for row in report.rows if row.setting_id == report.best_setting_id)
        if winner.score is not None:
            score = winner.score
            numbers |= {f"best/{k}": getattr(score, k) for k in ("mean", "iqm", "low", "high")}
        if winner.last is not None:
            numbers["best/last"] = winner.last
        if final is not None:
            numbers |= {f"final/{key}": float(final[key]) for key in ("mean", "low", "high")}
            numbers["final/episodes"] = float(final["episodes"])
        self._parent.log_epoch(0, 0, numbers)
        for file in report.files:
            self._parent.log_artifact(file, "figures" if file.suffix == ".png" else None)
        if winner.best_checkpoint is not None:
            self._parent.log_artifact(Path(winner.best_checkpoint), "checkpoints")
        self._parent.set_tags({"best_setting": report.best_setting_id})

    # -- how --

    @property
    def _dataset(self) -> str:
        data = self._spec.base_config["train"]["data"]
        paths = [data] if isinstance(data, str) else [d["path"] for d in data or []]
        return ",".join(Path(path).name for path in paths)

    def _tags(self) -> dict[str, str]:
        return {"sweep": self._spec.name, "algo": self._spec.algo, "dataset": self._dataset}

    def _tracker(self, folder: Path, name: str, parent: Path | None) -> TrackerGroup:
        if not self._settings["enabled"]:
            return TrackerGroup([])
        if self._uri is None:
            self._uri = resolve_tracking_uri(self._settings["tracking_uri"], folder)
        tracker = MLflowTracker(
            tracking_uri=self._uri,
            experiment=self._settings["experiment_name"] or "raymimic",
            run_name=name,
            tags=self._settings["tags"],
            parent=parent,
        )
        return TrackerGroup([tracker])

    def _finish(self, tracker: TrackerGroup, status: Status) -> None:
        """Closes a run without waiting for its delivery."""
        thread = threading.Thread(target=tracker.finish, args=[status], name="mlflow-finish")
        thread.start()
        self._closing.append(thread)


def _is_closed(run_dir: Path) -> bool:
    """Whether the driver said how the run of a trial ended."""
    try:
        records = JournalReader(spool_dir_of(run_dir)).read()
    except FileNotFoundError:
        return False
    kinds = [record.type for record in records if record.type in ("start", "finish")]
    return kinds[-1:] == ["finish"]
