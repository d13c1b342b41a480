"""The protocol between a run and the keepers of its records; trainings and sweeps both speak it.

A `Tracker` receives parameters, metrics by epoch, files and the end of a run. The driver owns it;
workers and rollout actors never see it. Keeping records must neither end nor slow a run: trackers
return at once, and `TrackerGroup` turns their exceptions into warnings.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from raymimic.credentials import masked
from raymimic.errors import RaymimicError
from raymimic.tracking.episode_rows import EpisodeRow
from raymimic.tracking.run_contents import DatasetUse, KeptModel
from raymimic.tracking.system_metrics import Sampling

logger = logging.getLogger(__name__)

T = TypeVar("T")

Status = Literal["FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class RunInfo:
    """A run, as far as it is known before its folder is.

    Attributes:
        name: name to show.
        kind: `training`; `sweep`: a sweep's own run; `trial`: the run of one of its trials.
        sweep_dir: a trial's sweep: the folder with which that sweep's own record was started.
        params: parameters to show; None: the settings in force
            (`raymimic.tracking.parameters`).
        config_file: file name of the configuration.
        key: identifies the record where another machine may go on with the run, without its
            folder; None: only the folder leads to the record.
        resumed: whether the run's folder is older than this process, and so untrusted.
        say: shows the user a mishap, with a logging level; None: the log does.
    """

    name: str
    kind: Literal["training", "sweep", "trial"] = "training"
    sweep_dir: Path | None = None
    params: Mapping[str, Any] | None = None
    config_file: str = "config.json"
    key: str | None = None
    resumed: bool = False
    say: Callable[[int, str], None] | None = None


class Tracker:
    """Keeps the records of one run: a training, a sweep, or one of its trials.

    A subclass overrides the methods that it has a use for; here they do nothing.
    """

    @property
    def sampling(self) -> Sampling | None:
        """How often the machines of workers on other nodes are looked at; None: never."""
        return None

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """Opens the record of a run, or goes on with the record of that folder.

        Args:
            run_dir: local folder of the run.
            config: the whole configuration, nested, JSON-serialisable.
            tags: facts about the run (algorithm, dataset digest, versions, ...).

        Returns:
            the record's name where it is kept, if it is known already.

        Raises:
            ConfigError: the configuration names an impossible place.
        """
        return None

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of an epoch; several calls may add to one epoch.

        A resumed run logs its earlier epochs again, with the same values.

        Args:
            epoch: the epoch of the metrics, also when they come later.
            step: gradient steps done at that epoch's end.
            metrics: name to value; NaN and infinities are allowed.
        """

    def log_evaluation(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        episodes: Mapping[str, Sequence[EpisodeRow]],
    ) -> None:
        """Records the evaluation of a checkpoint, which may come after later epochs.

        A tracker that keeps no episodes leaves this to `log_epoch`.

        Args:
            epoch: the epoch at whose end the checkpoint was taken.
            step: gradient steps done by then.
            metrics: name to value; see `log_epoch`.
            episodes: every episode by environment; empty where an earlier version played them.
        """
        self.log_epoch(epoch, step, metrics)

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Records numbers that belong to no epoch; a later value of a step replaces an earlier.

        Args:
            step: place on the x-axis.
            numbers: name to value.
        """

    def log_system(self, metrics: Mapping[str, float]) -> None:
        """Records the load of a worker's machine at this moment.

        Args:
            metrics: name to value; the names begin with `system/` and the machine's name.
        """

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Keeps a copy of a file.

        Args:
            path: the file. A file of the same name in the same folder replaces it.
            artifact_path: folder within the record, None for its root.
        """

    def log_datasets(self, datasets: Sequence[DatasetUse]) -> None:
        """Records the data of the run.

        Args:
            datasets: each file's demos to train on, and those to validate on.
        """

    def log_model(self, model: KeptModel) -> None:
        """Keeps a checkpoint, which can then be loaded and served as a model.

        A resumed run logs its checkpoints again. A file that is gone already is left out.

        Args:
            model: a checkpoint that the run keeps.
        """

    def keep_models(self, kept: Mapping[str, Sequence[str]]) -> None:
        """Drops the models of checkpoints that the run no longer keeps.

        Args:
            kept: why a checkpoint is kept (see
                `raymimic.checkpoints.manifest.StoredCheckpoint`), by its SHA-256.
        """

    def log_note(self, text: str) -> None:
        """Describes the run to its readers; a later description replaces an earlier one.

        Args:
            text: Markdown.
        """

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or replaces tags of the run."""

    def finish(self, status: Status) -> None:
        """Closes the record, with the run's true end."""

    def abandon(self) -> None:
        """Stops at once and leaves the record open: another process keeps it from now on."""

    def is_closed(self, run_dir: Path) -> bool:
        """Whether an earlier process is known to have closed the record of a folder, or made none.

        Args:
            run_dir: local folder of the run.
        """
        return True

    def finish_sweep(self, status: Status) -> None:
        """Completes a sweep: its own record and those of all its trials are closed.

        Args:
            status: how the sweep ended.
        """


class TrackerGroup(Tracker):
    """Several trackers as one, none of which can end the run.

    The first exception of a tracker becomes a warning; the others still get every call. Only a
    `RaymimicError` passes, since it tells the user how to correct a mistake.

    Args:
        trackers: the trackers, in the order in which they are called.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)
        self._warned: set[int] = set()

    @property
    def keeps_models(self) -> bool:
        """Whether a tracker does anything with a model."""
        return any(type(tracker).log_model is not Tracker.log_model for tracker in self.trackers)

    @property
    def sampling(self) -> Sampling | None:
        """The first that a tracker wants."""
        wanted = self._call(lambda tracker: tracker.sampling)
        return next((sampling for sampling in wanted if sampling is not None), None)

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See `Tracker.start`; returns the first name that a tracker gives."""
        names = self._call(lambda tracker: tracker.start(run_dir, config, tags))
        return next((name for name in names if name is not None), None)

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_epoch`."""
        self._call(lambda tracker: tracker.log_epoch(epoch, step, metrics))

    def log_evaluation(
        self,
        epoch: int,
        step: int,
        metrics: Mapping[str, float],
        episodes: Mapping[str, Sequence[EpisodeRow]],
    ) -> None:
        """See `Tracker.log_evaluation`."""
        self._call(lambda tracker: tracker.log_evaluation(epoch, step, metrics, episodes))

    def log_numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker.log_numbers`."""
        self._call(lambda tracker: tracker.log_numbers(step, numbers))

    def log_system(self, metrics: Mapping[str, float]) -> None:
        """See `Tracker.log_system`."""
        self._call(lambda tracker: tracker.log_system(metrics))

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See `Tracker.log_artifact`."""
        self._call(lambda tracker: tracker.log_artifact(path, artifact_path))

    def log_datasets(self, datasets: Sequence[DatasetUse]) -> None:
        """See `Tracker.log_datasets`."""
        self._call(lambda tracker: tracker.log_datasets(datasets))

    def log_model(self, model: KeptModel) -> None:
        """See `Tracker.log_model`."""
        self._call(lambda tracker: tracker.log_model(model))

    def keep_models(self, kept: Mapping[str, Sequence[str]]) -> None:
        """See `Tracker.keep_models`."""
        self._call(lambda tracker: tracker.keep_models(kept))

    def log_note(self, text: str) -> None:
        """See `Tracker.log_note`."""
        self._call(lambda tracker: tracker.log_note(text))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See `Tracker.set_tags`."""
        self._call(lambda tracker: tracker.set_tags(tags))

    def finish(self, status: Status) -> None:
        """See `Tracker.finish`."""
        self._call(lambda tracker: tracker.finish(status))

    def abandon(self) -> None:
        """See `Tracker.abandon`."""
        self._call(lambda tracker: tracker.abandon())

    def is_closed(self, run_dir: Path) -> bool:
        """Whether every tracker's record is closed."""
        return all(self._call(lambda tracker: tracker.is_closed(run_dir)))

    def finish_sweep(self, status: Status) -> None:
        """See `Tracker.finish_sweep`."""
        self._call(lambda tracker: tracker.finish_sweep(status))

    def _call(self, method: Callable[[Tracker], T]) -> list[T]:
        results = []
        for index, tracker in enumerate(self.trackers):
            try:
                results.append(method(tracker))
            except RaymimicError:
                raise
            except Exception as error:
                if index not in self._warned:
                    self._warned.add(index)
                    logger.warning(
                        "%s cannot record this run (%s: %s); the run goes on",
                        type(tracker).__name__,
                        type(error).__name__,
                        masked(str(error)),
                    )
        return results
