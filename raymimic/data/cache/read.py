"""Takes rows out of columns of the cache: through a memory map, or by reads on a few threads."""

from __future__ import annotations

import itertools
import mmap
import threading
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from raymimic.data.cache.build import DemoGroup, Say, open_or_build
from raymimic.data.cache.column_file import OpenColumn
from raymimic.data.cache.packing import THREADS
from raymimic.data.columns import (
    Column,
    DemoRef,
    FloatType,
    Layout,
    column_group,
    warn_of_cut_off,
)
from raymimic.data.memory import free_memory
from raymimic.data.metadata import demo_order
from raymimic.terminal import readable_bytes

Array = np.ndarray

_TOUCH_BYTES = 1 << 24
_PAGE = 4096
# The map is for data that fit beside the training's own memory.
_MAX_SHARE = 0.7


class CachedColumn:
    """Rows of one column, which lie in files of the cache.

    Args:
        files: the files, whose rows count one after the other.
        rows: their numbers for the rows of this column, int64 `[N]`; None: all, in order.
        maps: where files are mapped; None: all are read.
        pool: threads that read.
    """

    def __init__(
        self,
        files: Sequence[OpenColumn],
        rows: np.ndarray | None,
        maps: _Maps | None,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._files, self._rows, self._maps, self._pool = files, rows, maps, pool
        self._sizes = np.array([opened.file.shape[0] for opened in files])
        self._ends = np.cumsum(self._sizes)
        size = int(self._ends[-1]) if rows is None else len(rows)
        first = files[0].file
        self.shape: tuple[int, ...] = (size, *first.shape[1:])
        """Of all rows, `[N, ...]`."""
        self.dtype: torch.dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        self.row_bytes: int = first.row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return len(self) * self.row_bytes

    def __getitem__(self, rows: slice) -> Tensor:
        """Consecutive rows, by one read."""
        index = torch.arange(*rows.indices(len(self)))
        out = torch.empty((len(index), *self.shape[1:]), dtype=self.dtype)
        self.take_into(index, out)
        return out

    def take_into(self, rows: Tensor, out: Tensor) -> None:
        """Takes rows `[n, ...]` out of the files.

        Args:
            rows: int64 `[n]`, on the CPU.
            out: where they go, contiguous and of the column's type.

        Raises:
            DatasetError: a file cannot be read.
        """
        index, target = rows.numpy(), out.numpy()
        if not len(index):
            return
        if index.min() < 0 or index.max() >= len(self):
            raise IndexError(f"rows {index.min()} to {index.max()} of {len(self)}")
        if self._rows is not None:
            index = self._rows[index]
        number = np.searchsorted(self._ends, index, side="right")
        index = index - (self._ends - self._sizes)[number]  # within each row's file
        maps = [None if self._maps is None else self._maps.of(opened) for opened in self._files]
        mapped = np.array([rows is not None for rows in maps])[number]
        for i in np.unique(number[mapped]):
            every = maps[i]
            assert every is not None
            if len(self._files) == 1:
                # Without a mode there would be a copy: the indices were checked above.
                every.take(index, axis=0, out=target, mode="clip")
            else:
                here = np.flatnonzero(number == i)
                target[here] = every[index[here]]
        if not mapped.all():
            self._read(number, index, np.flatnonzero(~mapped), target)

    def _read(self, number: np.ndarray, index: np.ndarray, wanted: np.ndarray, out: Array) -> None:
        """Reads rows, consecutive ones at once.

        Args:
            number: of each row's file, `[n]`.
            index: of each row in its file, `[n]`.
            wanted: the places in `out` of those to read, in rising order.
            out: gets them, `[n, ...]`.
        """
        buffer = out.reshape(-1).view(np.uint8).data
        number, index = number[wanted], index[wanted]
        together = (np.diff(index) == 1) & (np.diff(number) == 0) & (np.diff(wanted) == 1)
        bounds = [0, *(np.flatnonzero(~together) + 1).tolist(), len(wanted)]

        def read(runs: Iterable[tuple[int, int]]) -> None:
            for begin, end in runs:
                place = int(wanted[begin]) * self.row_bytes
                part = buffer[place : place + (end - begin) * self.row_bytes]
                self._files[number[begin]].read(part, int(index[begin]))

        runs = list(itertools.pairwise(bounds))
        parts = min(THREADS, len(runs))
        if parts == 1:
            read(runs)
            return
        for done in [self._pool.submit(read, runs[i::parts]) for i in range(parts)]:
            done.result()


class _Maps:
    """Memory maps of the files that fit into memory, ready once each page was touched.

    A thread touches them in order, which reads the files as fast as the disk gives them. Until then
    rows are read: a row of a map that is not in memory costs a wait for each of its pages.

    Attributes:
        ready: whether rows are to be taken from the maps.
    """

    def __init__(self, files: Iterable[OpenColumn]) -> None:
        self._mapped: dict[int, Array] = {}
        maps: list[mmap.mmap] = []
        for opened in files:
            file = opened.file
            maps.append(mmap.mmap(opened.descriptor, file.size, access=mmap.ACCESS_READ))
            count = int(np.prod(file.shape, dtype=np.int64))
            flat = np.frombuffer(maps[-1], file.dtype, count, file.offset)
            self._mapped[opened.descriptor] = flat.reshape(file.shape)
        self.ready, stop = threading.Event(), threading.Event()
        weakref.finalize(self, stop.set)
        work = (maps, self.ready, stop)
        threading.Thread(target=_touch, args=work, name="raymimic-cache", daemon=True).start()

    def __contains__(self, opened: OpenColumn) -> bool:
        return opened.descriptor in self._mapped

    def of(self, opened: OpenColumn) -> Array | None:
        """All rows of a file; None while they are to be read."""
        return self._mapped.get(opened.descriptor) if self.ready.is_set() else None


def _touch(maps: Sequence[mmap.mmap], ready: threading.Event, stop: threading.Event) -> None:
    for mapped in maps:
        pages = np.frombuffer(mapped, np.uint8)[::_PAGE]
        for start in range(0, len(pages), _TOUCH_BYTES // _PAGE):
            if stop.is_set():
                return
            pages[start : start + _TOUCH_BYTES // _PAGE].max()
    for mapped in maps:
        # Pages that the system takes away again come back one by one, not with all around them:
        # by default a batch of 3 MB reads 300 MB.
        mapped.madvise(mmap.MADV_RANDOM)
    ready.set()


@dataclass(frozen=True)
class DemoCache:
    """Columns of all demos of a training in the cache of this node.

    Attributes:
        columns: the columns by name, which all files have.
        files: of each column.
        places: the first row of each demo.
        maps: of the files that fit into memory; None: none does.
        pool: threads that read.
        left_out: groups that could not be read and are not needed.
    """

    columns: dict[str, Column]
    files: dict[str, list[OpenColumn]]
    places: dict[tuple[int, str], int]
    maps: _Maps | None
    pool: ThreadPoolExecutor
    left_out: frozenset[str]
    _groups: dict[object, int]

    @classmethod
    def open(
        cls,
        layouts: Sequence[Layout],
        keys: Collection[str],
        dtype: FloatType,
        say: Say = lambda text: None,
        window: int = 1,
    ) -> DemoCache:
        """Opens the columns, and builds those first that are not there.

        Args:
            layouts: demos to train on and to validate on.
            keys: names of the columns.
            dtype: type of everything that is not an image.
            say: called with a line about the progress of a build.
            window: consecutive rows that a sample takes of large columns.

        Raises:
            DatasetError: see `raymimic.data.cache.build.open_or_build`.
            NoCacheError: the disk does not take them.
        """
        groups, numbers = _groups(layouts)
        shared = set(keys).intersection(*(layout.columns for layout in layouts))
        columns = {key: x for key, x in layouts[0].columns.items() if key in shared}
        large = _larger_than_memory(groups, columns, dtype)
        found = [
            open_or_build(group, columns, dtype, say, too_large, window)
            for group, too_large in zip(groups, large, strict=True)
        ]
        lost = {column_group(key) for key in columns if any(key not in opened for opened in found)}
        columns = {key: x for key, x in columns.items() if column_group(key) not in lost}
        for group, opened in zip(groups, found, strict=True):
            for key, column in columns.items():
                if (extent := opened[key].extent) is not None:
                    warn_of_cut_off(group.file.path, key, column, extent)
        places: dict[tuple[int, str], int] = {}
        row = 0
        for i, group in enumerate(groups):
            for demo in group.demos:
                places[i, demo.name] = row
                row += demo.length
        files = {key: [opened[key] for opened in found] for key in columns}
        mapped = [
            opened[key]
            for opened, too_large in zip(found, large, strict=True)
            for key in columns.keys() - too_large
            if opened[key].blocks is None
        ]
        pool = ThreadPoolExecutor(THREADS, "raymimic-cache")
        maps = _Maps(mapped) if mapped else None
        return cls(columns, files, places, maps, pool, frozenset(lost), numbers)

    @property
    def summary(self) -> str:
        """Says which columns are mapped and which compressed; empty where all are mapped."""
        files = [opened for column in self.files.values() for opened in column]
        mapped = sum(x.size for x in files if self.maps is not None and x in self.maps)
        read = sum(x.size for x in files) - mapped
        if not read:
            return ""
        text = "the cache is read"
        if mapped:
            text = f"{readable_bytes(mapped)} of the cache are mapped, {readable_bytes(read)} read"
        packed = [x for x in files if x.blocks is not None]
        if not packed:
            return text
        before, after = sum(x.file.size for x in packed), sum(x.size for x in packed)
        return (
            f"{text}; {len({x.file.column for x in packed})} of {len(self.files)} columns are"
            f" compressed from {readable_bytes(before)} to {readable_bytes(after)}, as"
            f" {packed[0].reason}"
        )

    def rows_of(self, demos: Sequence[DemoRef]) -> np.ndarray:
        """The cache's rows of some demos, int64 `[N]`, in their order."""
        lengths = np.array([demo.length for demo in demos], dtype=np.int64)
        firsts = [self.places[self._groups[_own(demo)], demo.name] for demo in demos]
        shift = np.array(firsts, dtype=np.int64) - (np.cumsum(lengths) - lengths)
        rows: np.ndarray = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
        return rows

    def take(self, demos: Sequence[DemoRef]) -> dict[str, CachedColumn]:
        """The columns of some demos, in their order."""
        rows = self.rows_of(demos)
        whole = sum(x.file.shape[0] for x in next(iter(self.files.values()), []))
        every = np.array_equal(rows, np.arange(whole))
        return {
            key: CachedColumn(files, None if every else rows, self.maps, self.pool)
            for key, files in self.files.items()
        }


def _larger_than_memory(
    groups: Sequence[DemoGroup], columns: Mapping[str, Column], dtype: FloatType
) -> list[set[str]]:
    """Names of the columns of each group that are read; the smallest files are mapped."""
    sizes = [
        (sum(demo.length for demo in group.demos) * column.row_bytes(dtype), i, key)
        for i, group in enumerate(groups)
        for key, column in columns.items()
    ]
    room = _MAX_SHARE * free_memory()
    large: list[set[str]] = [set() for _ in groups]
    for size, i, key in sorted(sizes):
        room -= size
        if room < 0:
            large[i].add(key)
    return large


def _own(demo: DemoRef) -> object:
    given = tuple(sorted((key, tuple(values)) for key, values in demo.given.items()))
    return demo.file, given


def _groups(layouts: Sequence[Layout]) -> tuple[list[DemoGroup], dict[object, int]]:
    """The demos of all layouts, each once, by their file."""
    demos: dict[object, dict[str, DemoRef]] = {}
    linked: dict[object, frozenset[Path]] = {}
    for layout in layouts:
        source = np.repeat(np.arange(len(layout.source_sizes)), layout.source_sizes)
        for demo, number in zip(layout.demos, source, strict=True):
            demos.setdefault(_own(demo), {})[demo.name] = demo
            linked[demo.file] = linked.get(demo.file, frozenset()) | layout.linked[number]
    groups = []
    for members in demos.values():
        ordered = sorted(members.values(), key=lambda demo: demo_order(demo.name))
        file = ordered[0].file
        groups.append(DemoGroup(file, linked[file], tuple(ordered), ordered[0].given))
    return groups, {own: i for i, own in enumerate(demos)}
