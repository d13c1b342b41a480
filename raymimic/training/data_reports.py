"""The pages about a training's data, which are made during it if its data lie in a cache."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from raymimic import storage
from raymimic.data.training_data import DataInfo
from raymimic.errors import RaymimicError
from raymimic.recording.report_files import is_made, kept_report
from raymimic.rollout.child import ChildProcess

logger = logging.getLogger(__name__)

_LEAST_PRIORITY = 19


class DataReports:
    """Finds the pages of a training's files, and makes those that are missing.

    A process of the lowest priority makes them. Nobody waits for it: it ends with the training, and
    a page appears once it is complete.

    Args:
        data: of the training.
        allow_links: folders besides the files' own that their links may lead into.
    """

    def __init__(self, data: DataInfo, allow_links: Sequence[str]) -> None:
        digests = dict(zip(data.paths, data.digest.split(","), strict=True))
        self._awaited = {str(path): kept_report(path, digest) for path, digest in digests.items()}
        self._allow_links = tuple(allow_links)
        self._child: ChildProcess | None = None

    def found(self) -> list[Path]:
        """The pages that have appeared since the last call."""
        self._end_if_done()
        there = {path: page for path, page in self._awaited.items() if is_made(page)}
        for path in there:
            del self._awaited[path]
        return list(there.values())

    def make_missing(self) -> None:
        """Begins to make the pages that were not found."""
        if self._awaited and self._child is None:
            try:
                self._child = ChildProcess(_LEAST_PRIORITY)
            except OSError as error:
                _warn(error)
                return
            self._child.call(_make, dict(self._awaited), self._allow_links)

    def close(self) -> None:
        """Ends the process."""
        child, self._child = self._child, None
        if child is not None:
            child.close()

    def _end_if_done(self) -> None:
        if self._child is None or not self._child.finished():
            return
        if self._child.crashed:
            _warn(self._child.story())
        for reason in self._child.records:
            _warn(reason)
        self.close()


def _warn(reason: object) -> None:
    logger.warning("the report of the data is not made: %s", reason)


def _make(pages: dict[str, Path], allow_links: Sequence[str]) -> Iterator[str]:
    """Makes the pages of some files; those that another process makes are left to it.

    Yields:
        The reason for each that cannot be made.
    """
    from raymimic.data.curation.summary import summarize
    from raymimic.recording.report import make_report

    for path, page in pages.items():
        page.parent.mkdir(parents=True, exist_ok=True)
        with page.with_suffix(".lock").open("w") as lock:
            try:
                storage.lock(lock)
            except BlockingIOError:
                continue
            try:
                make_report(path, summarize(path, allow_links), allow_links)
            except RaymimicError as error:
                yield str(error)
