"""Reads untrusted .npz files row by row, and never a pickled object."""

from __future__ import annotations

import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from raymimic import storage
from raymimic.data.convert.folders import is_plain
from raymimic.data.convert.heads import zip_members
from raymimic.data.hdf5 import reading
from raymimic.data.memory import free_memory
from raymimic.data.writer import Array
from raymimic.errors import DatasetError

_ENDING = ".npy"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # those of numpy


@dataclass(frozen=True)
class NpzArray:
    """An array of a file, not read yet.

    Attributes:
        shape: of all of it.
        dtype: as in the file.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class NpzFile:
    """An open .npz file.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        arrays: those of numbers or texts, by name.

    Raises:
        DatasetError: it is no .npz file, is truncated, holds Python objects, names that lead out
            of a folder, or archives that unpack without end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if storage.starts_as_lfs_pointer(str(path)):
            raise DatasetError(f"'{path}' is {storage.LFS_POINTER}")
        with reading(f"'{path}'"):
            self._zip = zipfile.ZipFile(path)
        try:
            self.arrays = self._listed()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> NpzFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._zip.close()

    def rows(self, name: str) -> NpzRows:
        """The rows of an array, in order.

        Raises:
            DatasetError: there is no such array of numbers with rows.
        """
        array = self.arrays.get(name)
        if array is None:
            known = ", ".join(sorted(self.arrays)) or "nothing"
            raise DatasetError(f"'{self.path}' has no '{name}', it holds {known}")
        what = f"'{self.path}': '{name}'"
        if array.dtype.kind not in "biuf" or not array.shape:
            raise DatasetError(f"{what} is no array of numbers, one row per step")
        with reading(what):
            return NpzRows(self._zip.open(name + _ENDING), array, what)

    def values(self, name: str) -> Array:
        """All of an array of numbers; raises as `rows` and `NpzRows.take`."""
        rows = self.rows(name)
        return rows.take(rows.array.shape[0])

    def text(self, name: str) -> str | None:
        """A single text; None where the array is something else."""
        array = self.arrays.get(name)
        if array is None or array.dtype.kind not in "US" or math.prod(array.shape) != 1:
            return None
        with reading(f"'{self.path}': '{name}'"), self._zip.open(name + _ENDING) as stream:
            value = npy.read_array(stream, allow_pickle=False).item()
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)

    def _listed(self) -> dict[str, NpzArray]:
        arrays = {}
        size = self.path.stat().st_size
        members = self._zip.infolist()
        if sum(member.compress_size for member in members) > size:
            raise DatasetError(
                f"'{self.path}' is an archive whose members overlap, made to unpack without end:"
                " do not use it"
            )
        for member in members:
            what = f"'{self.path}': '{member.filename}'"
            if not member.filename.endswith(_ENDING):
                raise DatasetError(
                    f"{what} is no array: the file was not written by numpy.savez; leave it out"
                )
            name = member.filename.removesuffix(_ENDING)
            if not is_plain(name):
                raise DatasetError(f"{what} is a name that leads out of the file: do not use it")
            with reading(what):
                if member.compress_type not in _METHODS:
                    raise DatasetError(f"{what} is compressed in a way that numpy does not know")
                arrays[name] = self._header(member, what)
        return arrays

    def _header(self, member: zipfile.ZipInfo, what: str) -> NpzArray:
        with self._zip.open(member) as stream:
            array, _ = _read_header(stream, what)
            start = stream.tell()
        if start + array.dtype.itemsize * math.prod(array.shape) != member.file_size:
            raise DatasetError(f"{what} is of another size than its header says: it is damaged")
        return array


class NpzRows:
    """Rows of an array of a .npz file, read one after the other.

    Args:
        stream: at the start of the array's file.
        array: of which there is a first axis.
        what: it, for complaints.
    """

    def __init__(self, stream: IO[bytes], array: NpzArray, what: str) -> None:
        self.array = array
        self._stream, self._what, self._at = stream, what, 0
        with reading(what):
            _, by_column = _read_header(stream, what)
        # The rows of such an array lie apart.
        self._whole = self._turned() if by_column and len(array.shape) > 1 else None

    def take(self, count: int) -> Array:
        """The next rows.

        Args:
            count: how many, no more than are left.

        Returns:
            `[count, ...]`, in this machine's byte order.

        Raises:
            DatasetError: they cannot be read, or do not fit into memory.
        """
        start, self._at = self._at, self._at + count
        if self._whole is not None:
            return self._whole[start : self._at]
        return self._read((count, *self.array.shape[1:]))

    def _turned(self) -> Array:
        return np.ascontiguousarray(self._read(self.array.shape[::-1]).T)

    def _read(self, shape: tuple[int, ...]) -> Array:
        dtype = self.array.dtype
        size = dtype.itemsize * math.prod(shape)
        if size > free_memory():
            raise DatasetError(
                f"{self._what}: one episode of it takes {size:,} bytes, more than the memory that"
                " is free"
            )
        with reading(self._what):
            content = self._stream.read(size)
            if len(content) != size:
                raise EOFError("it ends early")
            values = np.frombuffer(content, dtype).reshape(shape)
        return values.astype(dtype.newbyteorder("="), copy=False)


def array_names(path: Path) -> set[str]:
    """Names of the arrays of a .npz file; none where it is something else."""
    return {name.removesuffix(_ENDING) for name in zip_members(path) if name.endswith(_ENDING)}


def natural_order(name: str) -> tuple[tuple[int, str], ...]:
    """Sorts `episode_2` before `episode_10`."""
    parts = re.split(r"(\d+)", name)
    return tuple((int(part) if part.isdecimal() else -1, part) for part in parts)


def _read_header(stream: IO[bytes], what: str) -> tuple[NpzArray, bool]:
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise DatasetError(f"{what} is in version {version} of numpy's format, of records")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_column, dtype = read(stream)
    if dtype.hasobject:
        raise DatasetError(
            f"{what} holds pickled Python objects, which can run any code: write plain arrays of"
            " one dtype (numpy.savez without dtype=object)"
        )
    return NpzArray(tuple(shape), dtype), by_column
