"""Keeps the outcomes of the episodes of a file until all of them are finished.

They are in a folder beside the file, `<file>.parts`. If the command is killed, the same command
finds them there, and plays only the other episodes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py

from raymimic import __version__
from raymimic.data.curation.copying import check_new
from raymimic.data.writer import DatasetWriter, RecordedEpisode, writing_dataset
from raymimic.errors import OutputError
from raymimic.recording.players import Players
from raymimic.storage import lock, read_json, refuse_uri, remove_tree, write_bytes, write_json

logger = logging.getLogger(__name__)

_PLAN, _LOCK, _OUTCOMES, _WHOLE = "plan.json", "lock", "outcomes.jsonl", "whole"
_PARTS = "[0-9]*.part.*"


@dataclass(frozen=True)
class Facts:
    """The part of an episode's outcome that a line of JSON takes.

    Attributes:
        crash: the reason of an episode that crashed.
    """

    crash: str | None = None


F = TypeVar("F", bound=Facts)


class Parts:
    """The outcomes so far; made by `keeping_parts`.

    Episodes have one order, and each outcome is kept when it and all before it are there. Crashes
    at the end are not kept for another run: the machine may have been at fault.

    Args:
        out: the file that is being written.
        folder: of the parts.
        compress: stores images compressed, see `DatasetWriter`.

    Attributes:
        num_kept: outcomes of an earlier, interrupted run.
    """

    def __init__(self, out: Path, folder: Path, compress: bool) -> None:
        self._out, self._folder, self._compress = out, folder, compress
        self._lines = self._read()
        self.num_kept, self._taken = len(self._lines), 0

    def play(
        self,
        players: Players,
        jobs: Sequence[Any],
        kind: type[F],
        taken: Callable[[Any], tuple[F, RecordedEpisode | bytes | None]],
    ) -> Generator[tuple[int, F], None, None]:
        """Yields the outcome of each job, in the order of the jobs; plays those that are not kept.

        Close the generator when you have enough: the rest is not played.

        Args:
            players: play.
            jobs: those before them are the jobs of earlier calls.
            kind: of the facts.
            taken: takes an outcome apart: facts, and data of an episode that is to be kept.

        Yields:
            the number of the part with the data, for `copy` and `read`, and the facts.

        Raises:
            OutputError: an outcome cannot be written; the others stay.
        """
        done = 0
        while done < len(jobs) and self._taken < len(self._lines):
            done, self._taken = done + 1, self._taken + 1
            yield self._taken - 1, kind(**self._lines[self._taken - 1]["facts"])
        with closing(players.play(jobs[done:])) as outcomes:
            for outcome in outcomes:
                facts, data = taken(outcome)
                self._keep(asdict(facts), data)
                self._taken += 1
                yield self._taken - 1, facts

    def copy(
        self, index: int, writer: DatasetWriter, name: str | None, filter_keys: Iterable[str]
    ) -> None:
        """Copies an episode into the dataset.

        Args:
            index: number of its part.
            writer: of the dataset.
            name: of the demo; None: `demo_<number>`.
            filter_keys: named subsets that it belongs to.

        Raises:
            OutputError: the part is damaged.
        """
        file = self._file(index, "hdf5")
        try:
            part = h5py.File(file)
            demo = part["data/demo_0"]
        except (KeyError, OSError) as error:
            raise OutputError(
                f"'{file}' is damaged: the same command plays its demo, and those after it, again"
            ) from error
        with part:
            writer.copy(demo, f"demo_{writer.num_demos}" if name is None else name, filter_keys)

    def read(self, index: int) -> bytes:
        """The data of a part that is no episode.

        Raises:
            OutputError: it cannot be read.
        """
        file = self._file(index, "bin")
        try:
            return file.read_bytes()
        except OSError as error:
            raise OutputError(f"'{file}' cannot be read: {error.strerror or error}") from error

    @contextmanager
    def writing(self, env_meta: Mapping[str, Any]) -> Iterator[DatasetWriter]:
        """Scope in which the dataset is put together, see `whole` and `writing_dataset`."""
        with self.whole("hdf5") as whole, writing_dataset(whole, env_meta) as writer:
            yield writer

    @contextmanager
    def whole(self, ending: str) -> Iterator[Path]:
        """Scope in which the file is written among the parts; it gets its place at the end.

        So a kill before leaves nothing beside the parts.

        Args:
            ending: of the file.

        Raises:
            OutputError: it cannot get its place.
        """
        whole = self._folder / f"{_WHOLE}.{ending}"
        yield whole
        try:
            whole.replace(self._out)
        except OSError as error:
            raise OutputError(f"cannot write '{self._out}': {error.strerror or error}") from error

    def _keep(self, facts: Mapping[str, Any], data: RecordedEpisode | bytes | None) -> None:
        if isinstance(data, RecordedEpisode):
            file = self._file(self._taken, "hdf5")
            with writing_dataset(file, {}, compress=self._compress) as writer:
                writer.add(data)
        elif data is not None:
            file = self._file(self._taken, "bin")
            write_bytes(str(file), data)
        else:
            file = None
        part = None if file is None else file.name
        ledger = self._folder / _OUTCOMES
        try:
            line = {"facts": facts, "part": part, "digest": self._digest(facts, part)}
            with ledger.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write '{ledger}': {error.strerror or error}; make room there"
            ) from error

    def _read(self) -> list[dict[str, Any]]:
        """The lines of all outcomes up to the first that is damaged or whose data are."""
        ledger, lines = self._folder / _OUTCOMES, []
        with suppress(OSError, ValueError, LookupError, TypeError):  # the last may be half-written
            for text in ledger.read_text(errors="replace").splitlines():
                line = json.loads(text)
                if self._digest(line["facts"], line["part"]) != line["digest"]:
                    break
                lines.append(line)
        while lines and lines[-1]["facts"]["crash"] is not None:
            lines.pop()
        write_bytes(str(ledger), "".join(json.dumps(x) + "\n" for x in lines).encode())
        return lines

    def _digest(self, facts: Mapping[str, Any], part: str | None) -> str:
        """SHA-256 of an outcome: of its facts, and of the file of its data."""
        digest = hashlib.sha256()
        if part is not None:
            with (self._folder / part).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256")
        digest.update(json.dumps(facts).encode())
        return digest.hexdigest()

    def _file(self, index: int, ending: str) -> Path:
        return self._folder / f"{index:06}.part.{ending}"


@contextmanager
def keeping_parts(
    out: str | Path, plan: Mapping[str, Any], compress: bool = False, replace: bool = True
) -> Iterator[Parts]:
    """Scope in which the outcomes of the episodes of a file are kept until it is written.

    Args:
        out: the file; its parts are in the folder `<out>.parts`.
        plan: all that the outcomes follow from, as JSON values. Parts of another plan are refused.
        compress: stores images compressed, see `DatasetWriter`.
        replace: whether a file that is there already may be replaced.

    Yields:
        The parts. They are deleted at the end, and stay if the block raises.

    Raises:
        OutputError: the folder belongs to another plan or another process, or cannot be written, or
            the file is there already.
    """
    refuse_uri(out)
    folder = Path(f"{out}.parts")
    with ExitStack() as stack:
        try:
            whole = {**json.loads(json.dumps(plan)), "version of raymimic": __version__}
            _hold(stack, str(out), folder)
            try:
                if not replace:  # only now can no other process be writing it
                    check_new(out)
                _begin(folder, whole)
            except BaseException:
                _remove_if_empty(folder)
                raise
        except OSError as error:
            raise OutputError(
                f"cannot write '{folder}': {error.strerror or error}; make room there or choose "
                "another place"
            ) from error
        try:
            yield Parts(Path(out), folder, compress)
        except BaseException:
            if not _remove_if_empty(folder):
                logger.warning(
                    "finished demos are kept in '%s': give the same command again to continue",
                    folder,
                )
            raise
        remove_tree(str(folder))


def _remove_if_empty(folder: Path) -> bool:
    """Deletes the folder if it holds no outcome to go on with; returns whether it did."""
    if any(folder.glob(_PARTS)):
        return False
    remove_tree(str(folder))
    return True


def _hold(stack: ExitStack, out: str, folder: Path) -> None:
    """Takes the folder for this process."""
    folder.mkdir(parents=True, exist_ok=True)
    # A kill may leave the lock, and a plan that has no name yet.
    others = [x for x in folder.iterdir() if x.name != _LOCK and not x.match(f".{_PLAN}.*.tmp")]
    if others and not (folder / _PLAN).is_file():
        raise OutputError(
            f"'{folder}' exists already and holds other files, which this command would delete: "
            "move it, or choose another name"
        )
    try:
        held = stack.enter_context((folder / _LOCK).open("w"))
    except OSError:
        with suppress(OSError):
            folder.rmdir()
        raise
    try:
        lock(held)
        if not os.fstat(held.fileno()).st_nlink:  # deleted by the process that held it
            raise BlockingIOError
    except BlockingIOError as error:
        raise OutputError(
            f"another process is writing '{out}': wait for it, or choose another name"
        ) from error


def _begin(folder: Path, plan: Mapping[str, Any]) -> None:
    """Makes sure that kept outcomes are of this plan, and writes the plan."""
    kept = read_json(folder / _PLAN)
    if any(folder.glob(_PARTS)) and kept != plan:
        differing = [key for key in plan if kept.get(key) != plan[key]]
        raise OutputError(
            f"'{folder}' holds demos of an earlier run with another {', '.join(differing)}: give "
            "the same arguments to go on with them, delete the folder, or choose another name"
        )
    if kept != plan:
        (folder / _OUTCOMES).unlink(missing_ok=True)
    write_json(folder / _PLAN, plan)
