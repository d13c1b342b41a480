"""Demonstrations in memory: one flat tensor per quantity, and where each demo lies in it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import h5py
import numpy as np
import torch
from torch import Tensor

from raymimic.data.schema import Column, ColumnRequest, Demo, DemoSource, Layout, open_dataset, scan
from raymimic.errors import DatasetError

FloatType = type[np.float32] | type[np.float64]


def shard_owners(lengths: np.ndarray, world_size: int) -> np.ndarray:
    """Deals demos out to workers so that their numbers of transitions are close.

    Longest first, each to the worker that has the least: no worker ends with more than 4/3 of the
    best possible largest share (Graham 1969).

    Args:
        lengths: transitions of each demo, ``[num_demos]``.
        world_size: number of workers, at most as many as demos.

    Returns:
        The worker that holds each demo, ``[num_demos]``.

    Raises:
        DatasetError: there are fewer demos than workers.
    """
    if len(lengths) < world_size:
        raise DatasetError(
            f"{len(lengths)} demos cannot be dealt out to {world_size} workers: set"
            " ray.data_placement to 'replicate', or use fewer workers"
        )
    owners = np.empty(len(lengths), dtype=np.int64)
    held = np.zeros(world_size, dtype=np.int64)
    for demo in np.argsort(-lengths, kind="stable"):
        owners[demo] = np.argmin(held)
        held[owners[demo]] += max(int(lengths[demo]), 1)
    return owners


@dataclass(frozen=True)
class DemoStore:
    """Flat columns of all transitions of some demos.

    Attributes:
        columns: by name (``obs/flat``, ``next_obs/flat``, ``actions``, ``rewards``, ``dones``, …),
            ``[N, ...]``, all on one device. ``actions`` are the action keys side by side; images
            stay uint8 ``[N, H, W, C]``, everything else is of the store's float type; ``rewards``
            and ``dones`` are ``[N]``.
        starts: first row of each demo, int64 ``[num_demos]``, on the columns' device.
        lengths: rows of each demo, int64 ``[num_demos]``, on the columns' device.
        layout: what the files hold, including demos of other workers.
        owned: positions of this store's demos in ``layout.demos``.
    """

    columns: dict[str, Tensor]
    starts: Tensor
    lengths: Tensor
    layout: Layout
    owned: np.ndarray

    @classmethod
    def load(
        cls,
        sources: Sequence[DemoSource],
        request: ColumnRequest,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] | None = None,
    ) -> "DemoStore":
        """Finds demos (:func:`raymimic.data.schema.scan`) and reads them (:meth:`read`)."""
        return cls.read(scan(sources, request), dtype, shard)

    @classmethod
    def read(
        cls,
        layout: Layout,
        dtype: torch.dtype = torch.float32,
        shard: tuple[int, int] | None = None,
    ) -> "DemoStore":
        """Reads demos into memory; the peak is little more than the columns themselves.

        Args:
            layout: what to read.
            dtype: float type of the columns.
            shard: ``(rank, world_size)`` reads only the demos that :func:`shard_owners` gives to
                this rank; None reads all.

        Raises:
            DatasetError: a value is not finite, or a file is damaged.
        """
        owned = np.arange(len(layout.demos))
        if shard is not None:
            rank, world_size = shard
            owned = np.flatnonzero(shard_owners(layout.lengths, world_size) == rank)
        demos = [layout.demos[i] for i in owned]
        arrays = read_columns(demos, layout.columns, numpy_dtype(dtype))
        lengths = layout.lengths[owned]
        return cls(
            columns={key: torch.from_numpy(array) for key, array in arrays.items()},
            starts=torch.from_numpy(np.cumsum(lengths) - lengths),
            lengths=torch.from_numpy(lengths),
            layout=layout,
            owned=owned,
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
        """Memory of the columns."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def device(self) -> torch.device:
        """Where the columns lie."""
        return self.starts.device

    def to(self, device: torch.device) -> "DemoStore":
        """The same store on another device."""
        return replace(
            self,
            columns={key: column.to(device) for key, column in self.columns.items()},
            starts=self.starts.to(device),
            lengths=self.lengths.to(device),
        )


def numpy_dtype(dtype: torch.dtype) -> FloatType:
    """The same float type as numpy names it."""
    return np.float64 if dtype == torch.float64 else np.float32


def read_columns(
    demos: Iterable[Demo], columns: Mapping[str, Column], dtype: FloatType
) -> dict[str, np.ndarray]:
    """Reads columns of demos, straight into their final place and type.

    Args:
        demos: what to read, in this order.
        columns: which columns, see :func:`raymimic.data.schema.scan`.
        dtype: type of everything that is not an image.

    Returns:
        ``[N, ...]`` by column name.

    Raises:
        DatasetError: a value is NaN or infinite, or the file is damaged.
    """
    demos = list(demos)
    total = sum(demo.length for demo in demos)
    arrays = {
        key: np.empty((total, *column.shape), np.uint8 if column.image else dtype)
        for key, column in columns.items()
    }
    start = 0
    for path, group in itertools.groupby(demos, key=lambda demo: demo.path):
        with open_dataset(path) as handle:
            for demo in group:
                rows = slice(start, start + demo.length)
                for key, column in columns.items():
                    _read(handle["data"][demo.name], demo, column, arrays[key][rows])
                start = rows.stop
    return arrays


def _read(group: h5py.Group, demo: Demo, column: Column, out: np.ndarray) -> None:
    """Reads one column of one demo into ``out [n, ...]`` and checks that it is finite."""
    left = 0
    for i, name in enumerate(column.parts):
        item = group[name]
        target = out
        if len(column.parts) > 1:
            target = out[:, left : left + column.widths[i]]
            left += column.widths[i]
        if target.flags.c_contiguous and target.shape == item.shape and item.dtype.kind != "b":
            item.read_direct(target)  # converts on the way, without a copy of the whole
        else:
            target[...] = item[()].reshape(target.shape)
        # The sum is a test without a temporary array; only when it fails are elements looked at.
        with np.errstate(invalid="ignore", over="ignore"):
            suspect = target.dtype.kind == "f" and not np.isfinite(target.sum(dtype=np.float64))
        if suspect:
            _complain_if_not_finite(demo, name, target)


def _complain_if_not_finite(demo: Demo, name: str, values: np.ndarray) -> None:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise DatasetError(
            f"dataset '{demo.path}': demo '{demo.name}': '{name}' holds NaN or infinity (first in"
            f" row {bad[0]}); repair or remove the demo, for example by a filter key without it"
        )
