"""A column of a dataset as one file: a header, then its rows.

The header is some pages of 4 KiB: a magic text, the length and the CRC-32 of a JSON object, the
place of the first row, and that object. The rows lie there as they do in memory, or in blocks that
are compressed (`raymimic.data.cache.packing`) with an index of the blocks at the file's end.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import struct
import weakref
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from raymimic import storage
from raymimic.data.cache.packing import unpack
from raymimic.errors import DatasetError

COLUMN, PARTIAL, LEDGER = ".column", ".partial", ".ledger"
"""Endings of a whole file, of one that is being built, and of the record of its finished demos."""

_MAGIC = b"raymimic column\n"
_NUMBERS = struct.Struct("<III")  # length and CRC-32 of the JSON, place of the first row
_FORMAT = 1
_PAGE = 4096
_LARGEST_HEADER = 1 << 20
_FOUND = ("crc32", "extent", "blocks", "index_crc32", "reason")  # by the builder
_ROOM = 512  # for all that is known when the file is complete

Extent = tuple[float, float]
"""Least and greatest value."""


class DamagedColumnError(Exception):
    """A file of the cache that cannot be used; it is built again."""


@dataclass(frozen=True)
class ColumnFile:
    """The file of one column.

    Attributes:
        folder: of all columns.
        dataset: path of the dataset, for people.
        digest: of the dataset's content.
        column: the column's name.
        identity: digest of everything that decides the rows.
        shape: of all rows, `[N, ...]`.
        dtype: of their values.
    """

    folder: Path
    dataset: str
    digest: str
    column: str
    identity: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def path(self, ending: str = COLUMN) -> Path:
        """The file's place, or that of its parts while it is built."""
        return self.folder / f"{self.identity[:32]}{ending}"

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def rows_bytes(self) -> int:
        """Bytes of all rows."""
        return self.shape[0] * self.row_bytes

    @cached_property
    def offset(self) -> int:
        """Place of the first row: a whole number of pages, which hold the header."""
        needed = len(_MAGIC) + _NUMBERS.size + len(json.dumps(self._content({}))) + _ROOM
        return -(-needed // _PAGE) * _PAGE

    @property
    def size(self) -> int:
        """Bytes of the whole file, if its rows are not compressed."""
        return self.offset + self.rows_bytes

    def _content(self, found: dict[str, Any]) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "dataset": self.dataset,
            "digest": self.digest,
            "column": self.column,
            "identity": self.identity,
            "shape": list(self.shape),
            "dtype": self.dtype.str,
            **{name: found.get(name) for name in _FOUND},
        }

    def header(
        self, crc32: int, extent: Extent | None, blocks: np.ndarray | None = None, reason: str = ""
    ) -> bytes:
        """The pages before the first row.

        Args:
            crc32: of all rows, as they lie in the file.
            extent: of all values; None where it was not computed.
            blocks: the index, which follows the rows; None: they are not compressed.
            reason: for which they are compressed, for people.
        """
        found: dict[str, Any] = {"crc32": crc32, "extent": extent, "reason": reason}
        if blocks is not None:
            found |= {"blocks": len(blocks), "index_crc32": zlib.crc32(blocks.tobytes())}
        content = json.dumps(self._content(found)).encode()
        numbers = _NUMBERS.pack(len(content), zlib.crc32(content), self.offset)
        return (_MAGIC + numbers + content).ljust(self.offset, b"\0")

    def open(self) -> OpenColumn | None:
        """Opens the file for reading, and marks it as used just now.

        Returns:
            None if there is none.

        Raises:
            DamagedColumnError: it is not the file that it should be.
            OSError: it may not be read.
        """
        try:
            descriptor = os.open(self.path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # until it is closed nobody deletes it
            if not _is_still(descriptor, self.path()):
                os.close(descriptor)
                return None
            content = read_header(descriptor)
            expected = self._content(content)
            for name in expected.keys() - {"dataset"}:
                if content.get(name) != json.loads(json.dumps(expected[name])):
                    raise DamagedColumnError(f"its {name} is wrong")
            blocks, size = None, os.fstat(descriptor).st_size
            if content.get("blocks") is not None:
                blocks = self._index(descriptor, size, content)
            elif size != self.size:
                raise DamagedColumnError(f"it has {size:,} bytes instead of {self.size:,}")
            with contextlib.suppress(OSError):
                os.utime(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        extent, reason = _extent(content["extent"]), content.get("reason") or ""
        return OpenColumn(self, descriptor, content["crc32"], extent, blocks, reason)

    def _index(self, descriptor: int, size: int, content: dict[str, Any]) -> np.ndarray:
        """Reads the index of the blocks, see `OpenColumn`.

        Raises:
            DamagedColumnError: it does not describe the file.
        """
        count = content["blocks"]
        if not isinstance(count, int) or not 0 < count <= self.shape[0] + 1:
            raise DamagedColumnError("the number of its blocks is wrong")
        index = np.zeros((count, 3), np.int64)
        place = size - index.nbytes
        if place >= self.offset and os.preadv(descriptor, [index.data.cast("B")], place):
            ends, last = index[:, :2], [self.shape[0], place - self.offset]
            rising = bool((np.diff(ends, axis=0) > 0).all())
            whole = zlib.crc32(index.tobytes()) == content["index_crc32"]
            if whole and rising and ends[0].tolist() == [0, 0] and ends[-1].tolist() == last:
                return index
        raise DamagedColumnError("the index of its blocks is damaged")


@dataclass(frozen=True)
class OpenColumn:
    """The open file of a column, which is not deleted meanwhile.

    Attributes:
        file: the file.
        descriptor: of the operating system; closed with this object.
        crc32: of all rows, as they lie in the file.
        extent: of all values; None where it was not computed.
        blocks: int64 `[n + 1, 3]`: the row and the place at which each block ends, counted from
            those of the first block, and its CRC-32; zeros come before. None: rows are not
            compressed.
        reason: for which they are compressed.
    """

    file: ColumnFile
    descriptor: int
    crc32: int
    extent: Extent | None
    blocks: np.ndarray | None = field(compare=False)
    reason: str
    _closed: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_closed", weakref.finalize(self, os.close, self.descriptor))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        if self.blocks is None:
            return self.file.size
        return self.file.offset + int(self.blocks[-1, 1]) + self.blocks.nbytes

    def read(self, out: memoryview, first: int) -> None:
        """Reads consecutive rows.

        Args:
            out: gets their bytes.
            first: number of the first row.

        Raises:
            DatasetError: they cannot be read.
        """
        row_bytes = self.file.row_bytes
        if self.blocks is None:
            self._read(out, first * row_bytes)
            return
        stop = first + len(out) // row_bytes
        begin = int(np.searchsorted(self.blocks[:, 0], first, side="right")) - 1
        end = int(np.searchsorted(self.blocks[:, 0], stop, side="left"))
        blocks = self.blocks[begin : end + 1].tolist()
        start = blocks[0][1]
        packed = memoryview(bytearray(blocks[-1][1] - start))
        self._read(packed, start)
        for (row, place, _), (next_row, next_place, crc32) in itertools.pairwise(blocks):
            block = packed[place - start : next_place - start]
            try:
                rows = unpack(block, (next_row - row) * row_bytes, crc32)
            except OSError as error:
                raise self._unreadable(f"the block of row {row} is damaged") from error
            low, high = max(row, first), min(next_row, stop)
            out[(low - first) * row_bytes : (high - first) * row_bytes] = rows[
                (low - row) * row_bytes : (high - row) * row_bytes
            ]

    def _read(self, out: memoryview, begin: int) -> None:
        """Reads consecutive bytes, counted from the first row's."""
        done = 0
        while done < len(out):
            try:
                count = os.preadv(self.descriptor, [out[done:]], self.file.offset + begin + done)
            except OSError as error:
                raise self._unreadable(error.strerror or str(error)) from error
            if count == 0:
                raise self._unreadable("it was cut")
            done += count

    def _unreadable(self, reason: str) -> DatasetError:
        return DatasetError(
            f"the cache file '{self.file.path()}' of '{self.file.column}' cannot be read"
            f" ({reason}): check the disk; raymimic dataset cache --clear deletes all of them, and"
            " the next training builds it again"
        )


def read_header(descriptor: int) -> dict[str, Any]:
    """The JSON object in the header of a file.

    Raises:
        DamagedColumnError: there is none.
        OSError: the file cannot be read.
    """
    start = os.pread(descriptor, len(_MAGIC) + _NUMBERS.size, 0)
    if not start.startswith(_MAGIC) or len(start) < len(_MAGIC) + _NUMBERS.size:
        raise DamagedColumnError("it does not begin as a file of the cache")
    length, crc32, _ = _NUMBERS.unpack(start[len(_MAGIC) :])
    if length > _LARGEST_HEADER:
        raise DamagedColumnError("its header is damaged")
    text = os.pread(descriptor, length, len(start))
    if zlib.crc32(text) != crc32:
        raise DamagedColumnError("its header is damaged")
    try:
        content = storage.parse_json(text)
    except ValueError as error:
        raise DamagedColumnError("its header is damaged") from error
    if not isinstance(content, dict):
        raise DamagedColumnError("its header is damaged")
    return content


def _is_still(descriptor: int, path: Path) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _extent(value: Any) -> Extent | None:
    return None if value is None else (float(value[0]), float(value[1]))


@contextlib.contextmanager
def held(path: Path) -> Iterator[bool]:
    """Holds a file of the cache alone, so that it can be deleted.

    Args:
        path: of a whole or a partial file.

    Yields:
        False if another process has it in use, or it is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = _is_still(descriptor, path)
    except BlockingIOError:
        free = False
    try:
        yield free
    finally:
        os.close(descriptor)
