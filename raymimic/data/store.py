"""Demonstrations: one flat column per quantity, in memory or in files, and their places in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from raymimic.data.buffers import Buffers
from raymimic.data.cache.read import CachedColumn, DemoCache
from raymimic.data.columns import (
    ColumnRequest,
    DemoSource,
    Layout,
    column_group,
    numpy_dtype,
    read_columns,
)
from raymimic.data.layout import scan
from raymimic.errors import DatasetError


def shard_owners(lengths: np.ndarray, world_size: int) -> np.ndarray:
    """Deals demos out to workers so that their numbers of transitions are close.

    Longest first, each to the worker that has the least: no worker ends with more than 4/3 of the
    best possible largest share (Graham 1969).

    Args:
        lengths: transitions of each demo, `[num_demos]`.
        world_size: number of workers, at most as many as demos.

    Returns:
        The worker that holds each demo, `[num_demos]`.

    Raises:
        DatasetError: there are fewer demos than workers.
    """
    if len(lengths) < world_size:
        raise DatasetError(
            f"{len(lengths)} demos cannot be distributed over {world_size} workers: set"
            " ray.data_placement to 'replicate', or use fewer workers"
        )
    owners = np.empty(len(lengths), dtype=np.int64)
    held = np.zeros(world_size, dtype=np.int64)
    for demo in np.argsort(-lengths, kind="stable"):
        owners[demo] = np.argmin(held)
        held[owners[demo]] += max(int(lengths[demo]), 1)
    return owners


def owned_demos(layout: Layout, shard: tuple[int, int] | None) -> np.ndarray:
    """Positions in `layout.demos` of those that a worker holds, see `DemoStore.read`."""
    if shard is None:
        return np.arange(len(layout.demos))
    rank, world_size = shard
    return np.flatnonzero(shard_owners(layout.lengths, world_size) == rank)


@dataclass(frozen=True)
class DemoStore:
    """Flat columns of all transitions of some demos.

    Attributes:
        columns: by name (`obs/flat`, `next_obs/flat`, `actions`, `rewards`, `dones`, …),
            `[N, ...]`, all on one device, or in files of the cache. `actions` are the action keys
            side by side; images stay uint8 `[N, H, W, C]`, everything else is of the store's float
            type; `rewards` and `dones` are `[N]`.
        starts: first row of each demo, int64 `[num_demos]`, on the columns' device.
        lengths: rows of each demo, int64 `[num_demos]`, on the columns' device.
        layout: the contents of the files, including demos of other workers.
        owned: positions of this store's demos in `layout.demos`.
        scaling: of columns that are normalised when rows are taken: offset and scale `[...]`. The
            columns themselves stay as recorded, so that they may lie in files that others share.
        cache: the columns in files, of all demos; None: there are none.
        pin: whether rows come in memory from which a GPU copies by itself.
        buffers: memory of rows, by column.
    """

    columns: dict[str, Tensor | CachedColumn]
    starts: Tensor
    lengths: Tensor
    layout: Layout
    owned: np.ndarray
    scaling: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    cache: DemoCache | None = None
    pin: bool = False
    buffers: dict[str, Buffers] = field(default_factory=lambda: defaultdict(Buffers), repr=False)

    @classmethod
    def load(
        cls,
        sources: Sequence[DemoSource],
        request: ColumnRequest,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] | None = None,
    ) -> DemoStore:
        """Finds demos (`raymimic.data.layout.scan`) and reads them (`read`)."""
        return cls.read(scan(sources, request), dtype, shard)

    @classmethod
    def read(
        cls,
        layout: Layout,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] | None = None,
        cache: DemoCache | None = None,
    ) -> DemoStore:
        """Reads demos into memory; the peak is little more than the columns themselves.

        Args:
            layout: the demos and columns to read.
            dtype: float type of the columns.
            shard: `(rank, world_size)` reads only the demos that `shard_owners` gives to
                this rank; None reads all.
            cache: columns that are not read, since they lie in files.

        Raises:
            DatasetError: a value is not finite, one of `dones` is not within [0, 1], or a file is
                damaged.

        Columns that are not needed are left out where they cannot be read.
        """
        owned = owned_demos(layout, shard)
        demos = [layout.demos[i] for i in owned]
        cached = {} if cache is None else cache.take(demos)
        wanted = {key: column for key, column in layout.columns.items() if key not in cached}
        if cache is not None:
            wanted = {k: x for k, x in wanted.items() if column_group(k) not in cache.left_out}
        arrays = read_columns(demos, wanted, numpy_dtype(dtype))
        left_out = {column_group(key) for key in wanted.keys() - arrays.keys()}
        found = {key: torch.from_numpy(array) for key, array in arrays.items()} | cached
        lengths = layout.lengths[owned]
        return cls(
            columns={
                key: found[key]
                for key in layout.columns
                if key in found and column_group(key) not in left_out
            },
            starts=torch.from_numpy(np.cumsum(lengths) - lengths),
            lengths=torch.from_numpy(lengths),
            layout=layout,
            owned=owned,
            cache=cache,
        )

    @property
    def num_transitions(self) -> int:
        """Rows of the columns."""
        return int(self.lengths.sum())

    @property
    def is_shard(self) -> bool:
        """Whether some demos of the layout are held by other workers only."""
        return len(self.owned) < len(self.layout.demos)

    @property
    def num_bytes(self) -> int:
        """Memory of the columns that are in memory."""
        return sum(x.nbytes for x in self.columns.values() if isinstance(x, Tensor))

    @property
    def is_cached(self) -> bool:
        """Whether some columns lie in files."""
        return any(isinstance(column, CachedColumn) for column in self.columns.values())

    @property
    def device(self) -> torch.device:
        """Where the columns lie."""
        return self.starts.device

    def rows(self, column: str, rows: Tensor) -> Tensor:
        """Rows `[n, ...]` of a column, normalised where `scaling` says so.

        Args:
            column: its name.
            rows: int64 `[n]`, on the store's device.
        """
        stored = self.columns[column]
        if self.device.type != "cpu" and isinstance(stored, Tensor):
            values = stored.index_select(0, rows)
        else:
            values = self._room(column, (len(rows), *stored.shape[1:]), stored.dtype)
            if isinstance(stored, Tensor):
                torch.index_select(stored, 0, rows, out=values)
            else:
                stored.take_into(rows, values)
        if column in self.scaling:
            offset, scale = self.scaling[column]
            values.sub_(offset).div_(scale)
        return values

    def _room(self, column: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory for rows of a column; torch itself uses pinned memory again."""
        if self.pin:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        return self.buffers[column].empty(shape, dtype)

    def to(self, device: torch.device) -> DemoStore:
        """The same store on another device; cached columns stay in their files."""
        columns = self.columns.items()
        return replace(
            self,
            columns={k: x.to(device) if isinstance(x, Tensor) else x for k, x in columns},
            starts=self.starts.to(device),
            lengths=self.lengths.to(device),
            scaling={k: (x.to(device), y.to(device)) for k, (x, y) in self.scaling.items()},
        )
