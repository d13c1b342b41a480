"""The folder of the cache: its files, their total size, and the choice of files to delete."""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.data.cache.column_file import (
    COLUMN,
    LEDGER,
    PARTIAL,
    DamagedColumnError,
    held,
    read_header,
)
from raymimic.data.fetch import cache_dir
from raymimic.errors import ConfigError, OutputError
from raymimic.terminal import readable_bytes

LIMIT = "RAYMIMIC_CACHE_GB"
"""Variable with the most GB that all columns may take; without it half of the disk."""

_PATIENCE_S = 60.0
_LONGEST_LINE = 1 << 16


class NoCacheError(OutputError):
    """The cache of a training cannot be written to the disk."""


def columns_folder() -> Path:
    """The folder of all columns of all datasets."""
    return cache_dir() / "columns"


@dataclass(frozen=True)
class CacheEntry:
    """A file of the cache.

    Attributes:
        path: of the file.
        size: its bytes.
        used: when it was last opened [s since 1970].
        content: of its header; empty while it is built, or if it is damaged.
        in_use: whether a process reads or builds it.
    """

    path: Path
    size: int
    used: float
    content: dict[str, Any]
    in_use: bool

    @property
    def is_whole(self) -> bool:
        """Whether it is a whole column, not one that is being built or whose builder was ended."""
        return self.path.suffix == COLUMN

    def delete(self) -> bool:
        """Deletes it, unless a process uses it; tells whether it is gone."""
        with held(self.path) as free:
            if free or self.path.is_symlink():
                self.path.unlink(missing_ok=True)
                self.path.with_suffix(LEDGER).unlink(missing_ok=True)
        return not self.path.exists()


def entries(folder: Path | None = None) -> list[CacheEntry]:
    """The files of the cache, those that were not used for longest first."""
    found = []
    folder = columns_folder() if folder is None else folder
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix not in (COLUMN, PARTIAL):
            continue
        with contextlib.suppress(FileNotFoundError), held(path) as free:
            status = path.stat(follow_symlinks=False)
            content = _content(path) if path.suffix == COLUMN else _begun(path)
            found.append(CacheEntry(path, status.st_size, status.st_mtime, content, not free))
    return sorted(found, key=lambda entry: entry.used)


def _content(path: Path) -> dict[str, Any]:
    try:
        with storage.open_own(path, os.O_RDONLY, "rb") as file:
            return read_header(file.fileno())
    except (DamagedColumnError, OSError):
        return {}


def _begun(path: Path) -> dict[str, Any]:
    """The first line of the ledger of a file that is being built; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        with storage.open_own(path.with_suffix(LEDGER), os.O_RDONLY, "rb") as ledger:
            content = json.loads(ledger.readline(_LONGEST_LINE))
        if isinstance(content, dict):
            return content
    return {}


def limit(folder: Path) -> int:
    """The most bytes that all files of the cache may take.

    Raises:
        ConfigError: the variable `LIMIT` is not a number.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return shutil.disk_usage(folder).total // 2
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ConfigError(
            f"the variable {LIMIT} is '{text}': it must be a number of at least 0, the largest size"
            " in GB of the cache of datasets on this machine"
        )
    return int(number * 1e9)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets one process delete files and take room at a time.

    Raises:
        NoCacheError: another one does not come to an end.
    """
    with (folder / "lock").open("w") as lock:
        try:
            storage.lock(lock, _PATIENCE_S)
        except BlockingIOError as error:
            raise NoCacheError(
                f"another process has made room in the cache '{folder}' for more than"
                f" {_PATIENCE_S:.0f} s: end it, or name another folder by RAYMIMIC_CACHE"
            ) from error
        yield


def clear() -> tuple[int, list[CacheEntry]]:
    """Deletes all files that no process uses.

    Returns:
        The bytes of those that are gone, and the files that are left.

    Raises:
        NoCacheError: they cannot be deleted.
    """
    folder = columns_folder()
    if not folder.is_dir():
        return 0, []
    try:
        with _alone(folder):
            found = entries(folder)
            left = [entry for entry in found if not entry.delete()]
    except OSError as error:
        raise NoCacheError(
            f"the cache '{folder}' cannot be emptied: {error.strerror or error}; check its"
            " permissions"
        ) from error
    return sum(e.size for e in found) - sum(e.size for e in left), left


@contextlib.contextmanager
def room_for(needed: int, own: Collection[Path]) -> Iterator[None]:
    """Deletes files that were not used for longest until there is room for further ones.

    Files in use stay. Other builders wait until this one has taken its room.

    Args:
        needed: bytes.
        own: files that stay.

    Raises:
        NoCacheError: there is no such room.
    """
    folder = columns_folder()
    with _alone(folder):
        _make_room(folder, needed, own)
        yield


def _make_room(folder: Path, needed: int, own: Collection[Path]) -> None:
    found, most = entries(folder), limit(folder)
    other = [entry for entry in found if entry.path not in own]
    spare = [entry for entry in other if not entry.in_use]
    taken, free = sum(entry.size for entry in found), shutil.disk_usage(folder).free
    least = taken - sum(entry.size for entry in spare)
    origin = LIMIT if os.environ.get(LIMIT) else f"half of the disk; {LIMIT} sets another limit"
    # Nothing is deleted in vain.
    for room, reason in (
        (most - least, f"all caches together may take {readable_bytes(most)} ({origin})"),
        (free + taken - least, f"the disk of '{folder}' has {readable_bytes(free)} free"),
    ):
        if needed > room:
            size = readable_bytes(needed)
            raise NoCacheError(f"the cache of the data takes {size}, but {reason}")
    for entry in spare:
        if needed <= min(most - taken, free):
            break
        if entry.delete():
            taken -= entry.size
            free = shutil.disk_usage(folder).free
