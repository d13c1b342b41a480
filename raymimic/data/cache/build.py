"""Builds columns of the cache: one pass over a dataset, by one builder, resumed if killed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from raymimic import storage
from raymimic.data.cache.column_file import (
    LEDGER,
    PARTIAL,
    ColumnFile,
    DamagedColumnError,
    Extent,
    OpenColumn,
)
from raymimic.data.cache.packing import LEAST_ROW_BYTES, ROWS, disk_rate, gain, pack
from raymimic.data.cache.room import NoCacheError, columns_folder, room_for
from raymimic.data.columns import (
    Column,
    DemoRef,
    FloatType,
    Given,
    column_group,
    left_out_by,
    opened_demos,
    read_rows,
)
from raymimic.data.hdf5 import DatasetFile, DemoReader
from raymimic.data.metadata import content_digest
from raymimic.errors import DatasetError, printable

logger = logging.getLogger(__name__)

Say = Callable[[str], None]
"""Shows the user how far a task is, again and again."""

_BLOCK_BYTES = 1 << 26
_SYNC_BYTES = 1 << 30
_TRIED_BYTES = 1 << 23
_POLL_S = 0.2
# A builder that writes nothing for so long is stuck [s].
_STUCK_S = 900.0


@dataclass(frozen=True)
class DemoGroup:
    """Demos of one file whose columns lie in the same files of the cache.

    Attributes:
        file: the file.
        linked: other files that its links lead into.
        demos: in the order of the cache's rows.
        given: observations that the file lacks, the same for all of the demos.
    """

    file: DatasetFile
    linked: frozenset[Path]
    demos: tuple[DemoRef, ...]
    given: Given

    def version(self) -> Version:
        """The files' content as it is now.

        Raises:
            DatasetError: a file cannot be read.
        """
        paths = [self.file.path, *sorted(self.linked)]
        times: tuple[int, ...] = ()
        try:
            digest = content_digest(self.file.path, self.linked)
            if not digest.startswith("sha256:"):
                times = tuple(path.stat().st_mtime_ns for path in paths)
        except OSError as error:
            raise DatasetError(
                f"dataset '{self.file.path}' cannot be read: {storage.unread(error)}"
            ) from error
        return Version(digest, times)

    def column_file(
        self, key: str, column: Column, dtype: FloatType, version: Version
    ) -> ColumnFile:
        """The file of one of its columns.

        Args:
            key: the column's name.
            column: the column.
            dtype: type of everything that is not an image.
            version: of the dataset.
        """
        given = self.given.get(key.partition("/")[2])
        stored = column.stored_type(dtype)
        content = {
            "version": version,
            "demos": [[demo.name, demo.length] for demo in self.demos],
            "key": key,
            "column": {**asdict(column), "needed": None},
            "given": None if given is None else [float(x) for x in given],
            "dtype": stored.str,
        }
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        rows = sum(demo.length for demo in self.demos)
        path, shape = str(self.file.path), (rows, *column.shape)
        return ColumnFile(columns_folder(), path, version.digest, key, identity, shape, stored)


class Version(NamedTuple):
    """The content of a dataset at some time.

    Attributes:
        digest: see `raymimic.data.metadata.content_digest`.
        times: of the last change of each file, where a digest of samples may miss it.
    """

    digest: str
    times: tuple[int, ...]


def open_or_build(
    group: DemoGroup,
    columns: Mapping[str, Column],
    dtype: FloatType,
    say: Say,
    large: Collection[str],
    window: int,
) -> dict[str, OpenColumn]:
    """Opens columns of the cache; builds those first that are not there.

    Args:
        group: the demos.
        columns: by name.
        dtype: type of everything that is not an image.
        say: called with a line about the progress of this or another build.
        large: columns that do not fit into memory, which are compressed where that makes reading
            quicker.
        window: consecutive rows that a sample takes of them.

    Returns:
        The columns by name, but for those that are not needed and cannot be read (`Column`).

    Raises:
        DatasetError: a value is not allowed, the dataset cannot be read or changes meanwhile, or
            another process builds the columns and is stuck.
        NoCacheError: the disk does not take them.
    """
    version = group.version()
    files = {key: group.column_file(key, x, dtype, version) for key, x in columns.items()}
    try:
        found, missing = _open_all(files)
        if missing:
            columns_folder().mkdir(parents=True, exist_ok=True, mode=0o700)
            name = hashlib.sha256(version.digest.encode()).hexdigest()[:32]
            with _only_builder(columns_folder() / f"{name}.lock", missing.values(), group, say):
                found, missing = _open_all(files)  # another process may have built them
                for file in missing.values():
                    _remove_damaged(file)
                if missing:
                    _build(group, version, missing, columns, say, large, window)
                    found, _ = _open_all(files)
    except OSError as error:
        raise _not_written(error) from error
    return found


def _open_all(
    files: Mapping[str, ColumnFile],
) -> tuple[dict[str, OpenColumn], dict[str, ColumnFile]]:
    """Opens the files that are whole; returns the others, too."""
    found: dict[str, OpenColumn] = {}
    for key, file in files.items():
        with contextlib.suppress(DamagedColumnError):
            if (opened := file.open()) is not None:
                found[key] = opened
    return found, {key: file for key, file in files.items() if key not in found}


def _remove_damaged(file: ColumnFile) -> None:
    try:
        file.open()
    except DamagedColumnError as error:
        logger.warning(
            "the cache of '%s' of %s ('%s') is damaged (%s): it is built again",
            *(file.column, printable(file.dataset), file.path(), error),
        )
        file.path().unlink(missing_ok=True)


def _not_written(error: OSError) -> NoCacheError:
    return NoCacheError(
        f"the cache '{columns_folder()}' cannot be used: {error.strerror or error}; name another"
        " folder by the variable RAYMIMIC_CACHE, or fix this one"
    )


# -- waiting for another builder --


@contextlib.contextmanager
def _only_builder(
    path: Path, files: Collection[ColumnFile], group: DemoGroup, say: Say
) -> Iterator[None]:
    """Lets one process of the node build; the others wait, as long as it gets on.

    Raises:
        DatasetError: it does not.
    """
    with path.open("a+") as lock:
        last, since = "", time.monotonic()
        while True:
            try:
                storage.lock(lock)
                break
            except BlockingIOError:
                pass
            if (state := _state(files)) != last:
                last, since = state, time.monotonic()
            elif time.monotonic() - since > _STUCK_S:
                lock.seek(0)
                raise DatasetError(
                    f"dataset '{group.file.path}': process {lock.read(20) or 'unknown'} builds its"
                    f" cache and has written nothing for {_STUCK_S / 60:.0f} minutes: end that"
                    " process, and start this one again"
                )
            done = max((_demos_in(file.path(LEDGER)) for file in files), default=0)
            say(_progress(group, done))
            time.sleep(_POLL_S)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _state(files: Collection[ColumnFile]) -> str:
    """Changes whenever a builder writes something."""
    states = []
    for file in files:
        for ending in (PARTIAL, LEDGER):
            with contextlib.suppress(OSError):
                status = file.path(ending).stat()
                states.append(f"{status.st_ino} {status.st_size} {status.st_mtime_ns}")
    return " ".join(states)


def _demos_in(ledger: Path) -> int:
    """How many demos a ledger has."""
    try:
        return max(ledger.read_bytes().count(b"\n") - 1, 0)
    except OSError:
        return 0


def _progress(group: DemoGroup, done: int) -> str:
    return f"caching {group.file.path.name}: {done:,} of {len(group.demos):,} demos"


# -- building --


def _build(
    group: DemoGroup,
    version: Version,
    files: Mapping[str, ColumnFile],
    columns: Mapping[str, Column],
    say: Say,
    large: Collection[str],
    window: int,
) -> None:
    """Writes columns in one pass over the dataset, each chunk of which is read once.

    Raises:
        DatasetError: see `open_or_build`.
        NoCacheError: the disk does not take the columns.
        OSError: the disk does not take the columns; nothing is left of them.
    """
    partial = {file.path(PARTIAL): file.size for file in files.values()}
    needed = sum(max(size - _size(path), 0) for path, size in partial.items())
    with ExitStack() as stack:
        writers: dict[str, _ColumnWriter] = {}
        try:
            tried = {key: file for key, file in files.items() if key in large}
            with room_for(needed, partial.keys()):
                reasons = _reasons_to_pack(group, columns, tried, window)
                for key, file in files.items():
                    writer = _ColumnWriter(file, reasons.get(key, ""))
                    writers[key] = stack.enter_context(writer)
            say(_progress(group, 0))  # a resumed build checks first what there is
            for writer in writers.values():
                writer.resume([demo.length for demo in group.demos])
            first = min(writer.demos for writer in writers.values())
            for i, (demo, opened) in enumerate(opened_demos(group.demos[first:]), start=first):
                say(_progress(group, i))
                _write_demo(i, demo, opened, columns, writers)
                if not writers:
                    return
            if group.version() != version:
                raise DatasetError(
                    f"dataset '{group.file.path}' was changed while it was read: wait until nothing"
                    " writes it, and start again"
                )
            for writer in writers.values():
                writer.finish()
        except (OSError, NoCacheError, DatasetError):
            for writer in writers.values():
                writer.discard()
            raise


def _reasons_to_pack(
    group: DemoGroup,
    columns: Mapping[str, Column],
    files: Mapping[str, ColumnFile],
    window: int,
) -> dict[str, str]:
    """Tries, on the first rows of columns, whether compressed ones are read more quickly.

    Returns:
        A reason for each column that is to be compressed.
    """
    reasons: dict[str, str] = {}
    tried = [key for key, file in files.items() if file.row_bytes >= LEAST_ROW_BYTES]
    if not tried:
        return reasons
    try:
        disk = disk_rate(columns_folder())
    except OSError:  # a build that goes on may have taken all the room there is
        return reasons
    for demo, opened in opened_demos(group.demos[:1]):
        for key in tried:
            rows = min(demo.length, max(_TRIED_BYTES // files[key].row_bytes, ROWS))
            sample = np.empty((rows, *columns[key].shape), files[key].dtype)
            try:
                read_rows(demo, opened, key, columns[key], sample, slice(0, rows))
            except DatasetError:  # the build itself says so
                continue
            found = gain(sample, disk, window)
            if found.pays:
                reasons[key] = str(found)
    return reasons


def _write_demo(
    number: int,
    demo: DemoRef,
    opened: DemoReader,
    columns: Mapping[str, Column],
    writers: dict[str, _ColumnWriter],
) -> None:
    """Writes the rows of one demo; drops the columns that turn out to be unreadable."""
    for key in list(writers):
        if key not in writers or writers[key].demos > number:
            continue
        writer, column = writers[key], columns[key]
        try:
            for rows in _blocks(demo, opened, key, column, writer.row_bytes):
                shape = (rows.stop - rows.start, *column.shape)
                values = np.empty(shape, writer.file.dtype)
                read_rows(demo, opened, key, column, values, rows)
                writer.append(values, with_extent=column.cut_off is not None)
            writer.end_demo()
        except DatasetError as error:
            group = left_out_by(error, key, column)
            for other in [k for k in writers if column_group(k) == group]:
                writers.pop(other).discard()


def _blocks(
    demo: DemoRef, opened: DemoReader, key: str, column: Column, row_bytes: int
) -> Iterator[slice]:
    """Rows of a demo that are read together: whole chunks, of about 64 MB."""
    step = max(_BLOCK_BYTES // row_bytes, 1)
    if len(column.parts) != 1:
        step = demo.length
    elif key.partition("/")[2] not in demo.given:
        together = opened.numbers(column.parts[0]).rows_at_once
        step = -(-step // together) * together
    for start in range(0, demo.length, step):
        yield slice(start, min(start + step, demo.length))


def _size(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return 0


class _ColumnWriter:
    """Writes the file of one column, demo by demo.

    Beside the file lies its ledger, whose first line names the file. Each further one holds the
    CRC-32 and the extent of all rows up to the end of a demo. So a build that was killed goes on
    after the last demo whose rows are there.

    Args:
        file: the file.
        reason: for which rows are compressed; empty: they are not.

    Attributes:
        demos: how many are written.
    """

    def __init__(self, file: ColumnFile, reason: str) -> None:
        self.file = file
        self.row_bytes = max(file.row_bytes, 1)
        self.demos = 0
        self._reason = reason
        self._blocks = [[0, 0, 0]]  # see `OpenColumn`
        self._of_demo: list[list[int]] = []
        self._crc32, self._extent = 0, None
        self._place = self._synced = file.offset
        self._path = file.path(PARTIAL)
        self._stream = storage.open_own(self._path, os.O_RDWR | os.O_CREAT, "r+b", 0o600)
        self._ledger: IO[bytes] | None = None
        try:
            fcntl.flock(self._stream, fcntl.LOCK_EX)  # so that nobody makes room by deleting it
            self._stream.truncate(min(_size(self._path), file.size))
            os.posix_fallocate(self._stream.fileno(), 0, file.size)
        except BaseException:
            self.discard()
            raise

    _extent: Extent | None

    def __enter__(self) -> _ColumnWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def _close(self) -> None:
        self._stream.close()
        if self._ledger is not None:
            self._ledger.close()

    def resume(self, lengths: Sequence[int]) -> None:
        """Finds the demos that a killed builder has finished.

        Args:
            lengths: rows of all demos.
        """
        names = ("identity", "digest", "dataset", "column")
        first = {name: getattr(self.file, name) for name in names}
        first["packed"] = bool(self._reason)
        lines: list[bytes] = []
        with contextlib.suppress(FileNotFoundError):
            lines = self.file.path(LEDGER).read_bytes().split(b"\n")
        kept = [json.dumps(first).encode()]
        if lines[:1] == kept:
            kept += self._verified(lines[1:], lengths)
        ledger = self.file.path(LEDGER)
        self._ledger = storage.open_own(ledger, os.O_RDWR | os.O_CREAT | os.O_TRUNC, "wb")
        self._ledger.write(b"\n".join(kept) + b"\n")
        self._ledger.flush()

    def _verified(self, lines: Sequence[bytes], lengths: Sequence[int]) -> list[bytes]:
        """The lines of the demos whose rows are on the disk as they were written."""
        good: list[bytes] = []
        for line, length in zip(lines, lengths, strict=False):
            try:
                stated = json.loads(line)
                expected, extent = int(stated["crc32"]), stated["extent"]
                blocks, end = stated["blocks"], self._place + length * self.row_bytes
                if self._reason:
                    end = self.file.offset + int(blocks[-1][1])
            except (LookupError, TypeError, ValueError):  # the last one may be half-written
                break
            crc32, place = self._crc32, self._place
            while place < end:
                block = os.pread(self._stream.fileno(), min(_BLOCK_BYTES, end - place), place)
                if not block:
                    return good
                crc32, place = zlib.crc32(block, crc32), place + len(block)
            if crc32 != expected:
                break
            self._crc32, self._place, self.demos = crc32, end, self.demos + 1
            self._blocks += blocks
            self._extent = None if extent is None else (float(extent[0]), float(extent[1]))
            good.append(line)
        return good

    def append(self, values: np.ndarray, with_extent: bool) -> None:
        """Writes further rows.

        Args:
            values: the rows, contiguous.
            with_extent: whether their least and greatest value are to be known.
        """
        if self._reason:
            for i in range(0, len(values), ROWS):
                self._append_block(values[i : i + ROWS])
        else:
            self._write(values.reshape(-1).view(np.uint8).data)
        if with_extent and values.size:
            low, high = float(values.min()), float(values.max())
            if self._extent is not None:
                low, high = min(low, self._extent[0]), max(high, self._extent[1])
            self._extent = low, high
        if self._place - self._synced > _SYNC_BYTES:  # else all of it would wait for the end
            os.fdatasync(self._stream.fileno())
            self._synced = self._place

    def _append_block(self, rows: np.ndarray) -> None:
        first = (self._of_demo or self._blocks)[-1][0]
        block = pack(rows.reshape(-1).view(np.uint8).data)
        self._write(memoryview(block))
        end = self._place - self.file.offset
        self._of_demo.append([first + len(rows), end, zlib.crc32(block)])

    def _write(self, data: memoryview) -> None:
        self._crc32 = zlib.crc32(data, self._crc32)
        self._place = self._put(data, self._place)

    def _put(self, data: memoryview, place: int) -> int:
        """Writes all of some bytes, of which the system may take a part at a time.

        Returns:
            The place after them.
        """
        while data:
            done = os.pwrite(self._stream.fileno(), data, place)
            data, place = data[done:], place + done
        return place

    def end_demo(self) -> None:
        """Records that all rows of a demo are written."""
        assert self._ledger is not None
        line = {"crc32": self._crc32, "extent": self._extent, "blocks": self._of_demo}
        self._ledger.write(json.dumps(line).encode() + b"\n")
        self._ledger.flush()
        self._blocks += self._of_demo
        self._of_demo = []
        self.demos += 1

    def finish(self) -> None:
        """Gives the file its name."""
        blocks = None
        if self._reason:
            blocks = np.array(self._blocks, np.int64)
            end = self._put(blocks.data.cast("B"), self._place)
            self._stream.truncate(end)
        header = self.file.header(self._crc32, self._extent, blocks, self._reason)
        self._put(memoryview(header), 0)
        os.fsync(self._stream.fileno())
        self._path.replace(self.file.path())
        self.file.path(LEDGER).unlink(missing_ok=True)
        self._close()

    def discard(self) -> None:
        """Deletes all that was written."""
        self._close()
        self._path.unlink(missing_ok=True)
        self.file.path(LEDGER).unlink(missing_ok=True)
