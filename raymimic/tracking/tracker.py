"""What a training tells to whoever keeps its records.

A :class:`Tracker` receives parameters, metrics by epoch, files and the end of a
run. The driver owns it; workers and rollout actors never see it. Keeping records
must neither end nor slow a run: trackers return at once, and
:class:`TrackerGroup` turns whatever goes wrong in one of them into a warning.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from raymimic.errors import RaymimicError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """Keeps the records of one training."""

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """Opens the record of a training, or goes on with the one that ``run_dir`` holds.

        Args:
            run_dir: folder of the training.
            config: the whole configuration, nested, JSON-serialisable.
            tags: facts about the run (algorithm, dataset digest, versions, ...).

        Returns:
            the name that the record has where it is kept, if it is known already.

        Raises:
            ConfigError: the configuration names a place that cannot be.
        """
        ...

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of an epoch; several calls may add to one epoch.

        Args:
            epoch: the epoch that the metrics belong to, also when they come later.
            step: gradient steps done at that epoch's end.
            metrics: name to value; NaN and infinities are allowed.
        """
        ...

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """Keeps a copy of a file.

        Args:
            path: the file. A file of the same name in the same folder replaces it.
            artifact_path: folder within the record, ``None`` for its root.
        """
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Sets or replaces tags of the run."""
        ...

    def finish(self, status: Status) -> None:
        """Closes the record with how the training truly ended."""
        ...


class NullTracker:
    """Keeps nothing."""

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See :meth:`Tracker.start`."""
        return None

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log_epoch`."""

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See :meth:`Tracker.log_artifact`."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See :meth:`Tracker.set_tags`."""

    def finish(self, status: Status) -> None:
        """See :meth:`Tracker.finish`."""


class TrackerGroup:
    """Several trackers as one, none of which can end the run.

    An exception of a tracker becomes one warning per tracker; the others still hear
    everything. Only a :class:`RaymimicError` of :meth:`start` passes, since it tells
    the user what to correct before anything was trained.

    Args:
        trackers: who is told, in this order.
    """

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = tuple(trackers)
        self._warned: set[int] = set()

    def start(
        self, run_dir: Path, config: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """See :meth:`Tracker.start`; returns the first name that a tracker gives."""
        names = self.tell(lambda tracker: tracker.start(run_dir, config, tags))
        return next((name for name in names if name is not None), None)

    def log_epoch(self, epoch: int, step: int, metrics: Mapping[str, float]) -> None:
        """See :meth:`Tracker.log_epoch`."""
        self.tell(lambda tracker: tracker.log_epoch(epoch, step, metrics))

    def log_artifact(self, path: Path, artifact_path: str | None = None) -> None:
        """See :meth:`Tracker.log_artifact`."""
        self.tell(lambda tracker: tracker.log_artifact(path, artifact_path))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """See :meth:`Tracker.set_tags`."""
        self.tell(lambda tracker: tracker.set_tags(tags))

    def finish(self, status: Status) -> None:
        """See :meth:`Tracker.finish`."""
        self.tell(lambda tracker: tracker.finish(status))

    def tell(self, call: Callable[[Any], T]) -> list[T]:
        """Calls each tracker, with whatever it knows beyond the protocol too."""
        answers = []
        for index, tracker in enumerate(self.trackers):
            try:
                answers.append(call(tracker))
            except RaymimicError:
                raise
            except Exception as error:
                if index not in self._warned:
                    self._warned.add(index)
                    logger.warning(
                        "%s cannot record this run (%s: %s); training goes on",
                        type(tracker).__name__,
                        type(error).__name__,
                        error,
                    )
        return answers
