"""Changes an HDF5 file in place, completely or not at all, even if the process is killed.

A dataset may have hundreds of gigabytes, too many to copy for a few names. HDF5 itself updates its
structures one by one. Here it writes into pages in memory. The pages, with the bytes that they
replace, go into a journal beside the file, which is written atomically. Then they go into the file,
and the journal is removed. After a kill there is either no journal and the file is unchanged, or a
journal, and the next change first completes the interrupted one.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py

from raymimic import storage
from raymimic.errors import DatasetError, OutputError

_PAGE = 4096
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # by some file systems
_MAGIC = b"raymimic journal 1\n"


def journal_of(path: Path) -> Path:
    """Place of the journal of a file."""
    file = path.resolve()
    return file.with_name(f".{file.name}.journal")


@contextmanager
def changing(path: Path) -> Iterator[h5py.File]:
    """Opens a file to change it; the changes are made, all of them, when the block ends.

    Yields:
        The file. If the block raises, the file stays as it is.

    Raises:
        DatasetError: another process reads or writes it, or it is damaged.
        OutputError: it cannot be written.
    """
    with _locked(path) as file:
        _complete(path, file)
        overlay = _Overlay(file)
        try:
            handle = h5py.File(overlay, "r+")
        except Exception as error:  # h5py raises any error of its bindings
            raise DatasetError(
                f"dataset '{path}' cannot be changed: it is damaged; copy or make it again"
            ) from error
        with handle:
            yield handle
        _commit(path, file, overlay)


def complete_change(path: Path) -> None:
    """Completes the change of a process that was killed, if there is one.

    Raises:
        DatasetError: another process reads or writes the file, or the journal is not its own.
        OutputError: it cannot be written.
    """
    if journal_of(path).exists():
        with _locked(path) as file:
            _complete(path, file)


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("r+b", buffering=0)
    except OSError as error:
        raise OutputError(
            f"dataset '{path}' cannot be written ({error.strerror}): check its permissions"
        ) from error
    with file:
        try:
            storage.lock(file)
        except BlockingIOError as error:
            raise DatasetError(
                f"dataset '{path}' is in use by another process: wait until it has been read"
            ) from error
        except OSError:  # this file system has no locks
            pass
        yield file


class _Overlay(io.RawIOBase):
    """A file as it would be after writing, which is not written.

    Args:
        base: the file.

    Attributes:
        size: in bytes.
        pages: those that were written, by number.
    """

    def __init__(self, base: IO[bytes]) -> None:
        self._base, self._position = base, 0
        self.size = os.fstat(base.fileno()).st_size
        self.pages: dict[int, bytearray] = {}

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        out, start = memoryview(buffer).cast("B"), self._position
        length = max(0, min(len(out), self.size - start))
        out[:length] = os.pread(self._base.fileno(), length, start).ljust(length, b"\0")
        for number in self._numbers(start, length) & self.pages.keys():
            first, last = max(start, number * _PAGE), min(start + length, (number + 1) * _PAGE)
            page = self.pages[number]
            out[first - start : last - start] = page[first - number * _PAGE : last - number * _PAGE]
        self._position += length
        return length

    def write(self, data: Any) -> int:
        source, start = memoryview(data).cast("B"), self._position
        for number in self._numbers(start, len(source)):
            if number not in self.pages:
                old = os.pread(self._base.fileno(), _PAGE, number * _PAGE)
                self.pages[number] = bytearray(old.ljust(_PAGE, b"\0"))
            first, last = max(start, number * _PAGE), min(start + len(source), (number + 1) * _PAGE)
            page = self.pages[number]
            page[first - number * _PAGE : last - number * _PAGE] = source[
                first - start : last - start
            ]
        self._position += len(source)
        self.size = max(self.size, self._position)
        return len(source)

    @staticmethod
    def _numbers(start: int, length: int) -> set[int]:
        """Numbers of the pages in which some bytes lie."""
        return set(range(start // _PAGE, -(-(start + length) // _PAGE))) if length else set()


def _commit(path: Path, file: IO[bytes], overlay: _Overlay) -> None:
    """Writes the journal, then the file."""
    before = os.fstat(file.fileno()).st_size
    writes, old, new = [], b"", b""
    for number, page in sorted(overlay.pages.items()):
        start = number * _PAGE
        content = bytes(page[: max(0, overlay.size - start)])
        replaced = os.pread(file.fileno(), len(content), start)
        if content != replaced:
            writes.append([start, len(content), len(replaced)])
            old, new = old + replaced, new + content
    header = {"sizes": [before, overlay.size], "writes": writes}
    body = json.dumps(header).encode() + b"\n" + old + new
    _reserve(path, file, before, overlay.size)
    journal = journal_of(path)
    content = _MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body
    try:
        storage.write_bytes(str(journal), content)
    except OutputError:
        _shorten(file, before)
        raise
    _complete(path, file)


def _reserve(path: Path, file: IO[bytes], before: int, after: int) -> None:
    """Takes the room on the disk that the change needs."""
    if after <= before:
        return
    try:
        os.posix_fallocate(file.fileno(), before, after - before)
    except OSError as error:
        _shorten(file, before)
        if error.errno not in _NOT_SUPPORTED:
            raise OutputError(f"cannot change '{path}': {error.strerror}; make room") from error


def _shorten(file: IO[bytes], size: int) -> None:
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), size)


def _complete(path: Path, file: IO[bytes]) -> None:
    """Makes the change that the journal holds, if there is one."""
    journal = journal_of(path)
    if not journal.exists():
        return
    alien = DatasetError(
        f"'{journal}' is not the journal of a change of dataset '{path}': remove it, and copy or"
        " make the dataset again if it is damaged"
    )
    try:
        with storage.open_own(journal, os.O_RDONLY, "rb") as stream:
            magic, told, body = stream.readline(), stream.readline().strip(), stream.read()
        if magic != _MAGIC or told.decode() != hashlib.sha256(body).hexdigest():
            raise alien
        line, _, content = body.partition(b"\n")
        header = json.loads(line)
        sizes, writes = [int(size) for size in header["sizes"]], header["writes"]
        cut = sum(old for _, _, old in writes)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise alien from error
    olds, news = content[:cut], content[cut:]
    planned = []
    for start, length, length_before in writes:
        old, olds = olds[:length_before], olds[length_before:]
        new, news = news[:length], news[length:]
        here = os.pread(file.fileno(), length, start)
        known = zip(here, old.ljust(length, b"\0"), new, strict=False)
        if any(byte not in (a, b) for byte, a, b in known):
            raise alien
        planned.append((start, new))
    if not min(sizes) <= os.fstat(file.fileno()).st_size <= max(sizes):
        raise alien
    try:
        for start, new in planned:
            os.pwrite(file.fileno(), new, start)
        os.ftruncate(file.fileno(), sizes[1])
        os.fsync(file.fileno())
        journal.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot change '{path}': {error.strerror}; make room, then give the command again,"
            " which completes the change"
        ) from error
