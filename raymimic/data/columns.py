"""Columns: the demos and arrays that a training reads, and reading them."""

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymimic.data.hdf5 import DatasetFile, DemoReader, open_dataset
from raymimic.data.memory import free_memory, total_memory
from raymimic.data.reads import NEXT_OBS
from raymimic.errors import DatasetError, printable
from raymimic.observations.modality import processed_shape

logger = logging.getLogger(__name__)

_SMALL_BYTES = 1 << 26

FloatType = type[np.float32] | type[np.float64]
Given = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class DemoSource:
    """Some demos of one file.

    Attributes:
        path: local path or URI.
        filter_key: name under `mask/`; None takes all demos.
        demo_limit: take only the first so many, in order of demo number.
        allow_links: folders besides the file's own that its links may lead into.
        given: observations `[D]` by key, the same in each row, for a file that lacks them.
    """

    path: str
    filter_key: str | None = None
    demo_limit: int | None = None
    allow_links: tuple[str, ...] = ()
    given: Given = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnRequest:
    """The quantities to read of each transition.

    Attributes:
        obs_keys: keys under `obs/`.
        action_keys: datasets that make up the action vector, in this order.
        dataset_keys: further datasets, such as `rewards`. `rewards` and `dones` are left out
            of the batches of a file that lacks them, unless `needs` holds them (robomimic would
            serve zeros); any other key must be there.
        load_next_obs: read `next_obs` where the file has it.
        needs: the groups that must be there, of `{"next_obs", "rewards", "dones"}`.
        modalities: of the observation keys; a key that is left out is `low_dim`.
        cut_depth: whether networks see `depth` cut off at 0 and 1.
    """

    obs_keys: tuple[str, ...]
    action_keys: tuple[str, ...] = ("actions",)
    dataset_keys: tuple[str, ...] = ("actions", "rewards", "dones")
    load_next_obs: bool = True
    needs: frozenset[str] = frozenset()
    modalities: Mapping[str, str] = field(default_factory=dict)
    cut_depth: bool = True


@dataclass(frozen=True)
class DemoRef:
    """One demonstration.

    Attributes:
        file: the file that holds it.
        name: its name in the file.
        length: its number of transitions.
        given: observations that the file lacks, see `DemoSource`.
    """

    file: DatasetFile
    name: str
    length: int
    given: Given = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.file.path


@dataclass(frozen=True)
class Column:
    """One quantity of each transition.

    Attributes:
        parts: datasets inside a demo that are concatenated along the last axis.
        widths: the last axis' size of each part.
        shape: shape of one row.
        image: whether rows are images kept as uint8.
        needed: whether a training cannot do without it. Otherwise it is left out of the batches
            where it cannot be read.
        cut_off: least and greatest value that networks see of it; None: all.
    """

    parts: tuple[str, ...]
    widths: tuple[int, ...]
    shape: tuple[int, ...]
    image: bool = False
    needed: bool = True
    cut_off: tuple[float, float] | None = None

    def stored_type(self, dtype: FloatType) -> np.dtype[Any]:
        """Type of its values in memory and in the cache; `dtype` unless they are images."""
        return np.dtype(np.uint8 if self.image else dtype)

    def row_bytes(self, dtype: FloatType) -> int:
        """Memory of one row."""
        return math.prod(self.shape) * self.stored_type(dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The demos to read, in order, and the columns of their rows, as `scan` finds them.

    Attributes:
        demos: all demos of all sources.
        source_sizes: how many of the demos each source has.
        linked: other files that links and virtual datasets of each source lead into.
        columns: by name, for example `obs/flat`, `next_obs/flat`, `actions`, `rewards`.
        derive_next_obs: whether `next_obs` is wanted and has to be taken from the next row of
            `obs`.
    """

    demos: tuple[DemoRef, ...]
    source_sizes: tuple[int, ...]
    linked: tuple[frozenset[Path], ...]
    columns: dict[str, Column]
    derive_next_obs: bool

    @cached_property
    def lengths(self) -> np.ndarray:
        """Transitions of each demo, `[num_demos]`."""
        return np.array([demo.length for demo in self.demos], dtype=np.int64)

    def shape_metadata(self, modalities: Mapping[str, str]) -> dict[str, Any]:
        """As `raymimic.data.layout.shape_metadata`, for the columns of this layout."""
        shapes = {
            key.removeprefix("obs/"): column.shape
            for key, column in self.columns.items()
            if key.startswith("obs/")
        }
        return shape_metadata_of(shapes, self.columns["actions"].shape[0], modalities)


def shape_metadata_of(
    shapes: Mapping[str, Sequence[int]], ac_dim: int, modalities: Mapping[str, str]
) -> dict[str, Any]:
    """Shapes in robomimic's form, see `raymimic.data.layout.shape_metadata`.

    Args:
        shapes: row shape of each observation key, as the file holds it.
        ac_dim: size of the action vector.
        modalities: by key; a key that is left out is `low_dim`.
    """
    kinds = {key: modalities.get(key, "low_dim") for key in sorted(shapes)}
    return {
        "ac_dim": ac_dim,
        "all_shapes": {key: processed_shape(shapes[key], kinds[key]) for key in kinds},
        "all_obs_keys": list(kinds),
        "use_images": "rgb" in kinds.values(),
        "use_depths": "depth" in kinds.values(),
    }


@cache
def warn_once(message: str) -> None:
    """Warns of something in a file; once, as a driver may be its own worker and look again."""
    logger.warning(message)


def warn_left_out(group: str, reason: str) -> None:
    """Warns that a group is left out of the batches, which the algorithm does not need."""
    warn_once(
        f"{printable(reason)}; the algorithm does not need '{group}', which is left out of the"
        " batches"
    )


def column_group(column: str) -> str:
    """`next_obs` of column `next_obs/flat`; other columns are of their own."""
    return NEXT_OBS if column.startswith(f"{NEXT_OBS}/") else column


def numpy_dtype(dtype: torch.dtype) -> FloatType:
    """The same float type as numpy names it."""
    return np.float64 if dtype == torch.float64 else np.float32


def read_columns(
    demos: Iterable[DemoRef], columns: Mapping[str, Column], dtype: FloatType
) -> dict[str, np.ndarray]:
    """Reads columns of demos, straight into their final place and type.

    Args:
        demos: the demos, in this order.
        columns: which columns, see `raymimic.data.layout.scan`.
        dtype: type of everything that is not an image.

    Returns:
        `[N, ...]` by column name. A column that is not needed (`Column`) is left out where
        it holds such values or cannot be read.

    Raises:
        DatasetError: a value is NaN or infinite, one of `dones` is not within [0, 1], the columns
            are larger than this machine's free memory, or the file is damaged.
    """
    demos = list(demos)
    arrays = _empty_arrays(demos, columns, dtype)
    start = 0
    for demo, opened in opened_demos(demos):
        rows = slice(start, start + demo.length)
        for key in list(arrays):
            if key not in arrays:
                continue
            try:
                read_rows(demo, opened, key, columns[key], arrays[key][rows])
            except DatasetError as error:
                left_out = left_out_by(error, key, columns[key])
                arrays = {k: a for k, a in arrays.items() if column_group(k) != left_out}
        start = rows.stop
    for key, array in arrays.items():
        if array.size and columns[key].cut_off is not None:
            extent = float(array.min()), float(array.max())
            warn_of_cut_off(demos[0].path, key, columns[key], extent)
    return arrays


def opened_demos(demos: Iterable[DemoRef]) -> Iterator[tuple[DemoRef, DemoReader]]:
    """Opens demos one after the other. A reader is valid until the next one is opened.

    Raises:
        DatasetError: a file cannot be opened, or a demo is gone.
    """
    for file, group in itertools.groupby(demos, key=lambda demo: demo.file):
        with open_dataset(file) as reader:
            for demo in group:
                opened = reader.demo(demo.name)
                if opened is None:
                    raise DatasetError(
                        f"{reader}: demo '{demo.name}' is gone, as the file was changed: start "
                        "again when nothing writes it any more"
                    )
                yield demo, opened


def left_out_by(error: DatasetError, key: str, column: Column) -> str:
    """The group that is left out because one of its columns cannot be read, with a warning.

    Raises:
        DatasetError: the same, where a training cannot do without the column.
    """
    if column.needed:
        raise error
    group = column_group(key)
    warn_left_out(group, str(error))
    return group


def check_memory(
    parts: Sequence[tuple[Sequence[DemoRef], Mapping[str, Column]]],
    dtype: FloatType,
    workers: int = 1,
) -> None:
    """Makes sure, before anything is read, that columns fit into this machine's memory.

    Args:
        parts: demos, and which of their columns; all are in memory at once.
        dtype: type of everything that is not an image.
        workers: processes on this machine that each read as much.

    Raises:
        DatasetError: they do not fit.
    """
    sizes: Counter[str] = Counter()
    for demos, columns in parts:
        samples = sum(demo.length for demo in demos)
        sizes.update({key: samples * column.row_bytes(dtype) for key, column in columns.items()})
    needed, free = sizes.total(), free_memory()
    if needed > free:
        place = f"more than the {_amount(free)} that are free on this machine"
    elif workers * needed > total_memory():
        place = (
            f"in each of the {workers} workers on this machine, more than the"
            f" {_amount(total_memory())} that it has"
        )
    else:
        return
    demo = max((demo for demos, _ in parts for demo in demos), key=lambda demo: demo.length)
    largest, size = sizes.most_common(1)[0]
    raise DatasetError(
        f"dataset '{demo.path}': the columns that are read take {_amount(needed)}, {place}"
        f" (longest is demo '{demo.name}' of {demo.length} samples, largest is '{largest}',"
        f" {_amount(size)}): keep them in a cache file"
        " (train.hdf5_cache_mode null, or 'low_dim' for the images alone), use fewer keys, fewer"
        " demos (demo_limit or a filter key), or ray.data_placement 'shard' on more machines"
    )


def _amount(size: int) -> str:
    """A number of bytes for people, exact and in GB."""
    return f"{size:,} bytes ({size / 1e9:,.1f} GB)"


def _empty_arrays(
    demos: Sequence[DemoRef], columns: Mapping[str, Column], dtype: FloatType
) -> dict[str, np.ndarray]:
    """Memory for columns, as far as this machine has it."""
    check_memory([(demos, columns)], dtype)
    total = sum(demo.length for demo in demos)
    return {
        key: np.empty((total, *column.shape), column.stored_type(dtype))
        for key, column in columns.items()
    }


def read_array(demo: DemoReader, name: str) -> np.ndarray:
    """All numbers of an array of a demo, in float64.

    Raises:
        DatasetError: there is none, it is empty, it cannot be read, or is larger than the memory.
    """
    shape = demo.numbers(name).shape
    if 0 in shape:
        raise DatasetError(f"{demo}: '{name}' has no rows: record the demo again, or remove it")
    values = room_for(demo, name, Column((name,), (), shape[1:]), shape[0], np.float64)
    demo.read(name, values)
    return values


def room_for(
    demo: DemoReader, key: str, column: Column, length: int, dtype: FloatType
) -> np.ndarray:
    """Memory for a column of one demo, `[length, ...]`, which a file may claim to be of any size.

    Raises:
        DatasetError: this machine has not that much.
    """
    if length * column.row_bytes(dtype) > _SMALL_BYTES:  # asking the machine takes a millisecond
        here = DemoRef(DatasetFile(demo.reader.path), demo.name, length)
        check_memory([([here], {key: column})], dtype)
    return np.empty((length, *column.shape), np.uint8 if column.image else dtype)


def read_rows(
    ref: DemoRef,
    demo: DemoReader,
    key: str,
    column: Column,
    out: np.ndarray,
    rows: slice | None = None,
) -> None:
    """Reads a column of one demo, or takes the values that the file lacks, see `read_column`.

    Args:
        ref: the demo.
        demo: the same, open.
        key: the column's name.
        column: the column.
        out: where its values go, `[n, ...]`.
        rows: consecutive rows; None: all.
    """
    if (given := ref.given.get(key.partition("/")[2])) is not None:
        out[...] = given
    else:
        read_column(demo, column, out, rows)


def read_column(
    demo: DemoReader, column: Column, out: np.ndarray, rows: slice | None = None
) -> None:
    """Reads a column of one demo, or some rows of it, into `out [n, ...]` and checks its values.

    All must be finite, and `dones` within [0, 1]: a target's bootstrap value is weighed by
    1 - done, which would be negative or a multiple of it.

    Args:
        demo: the demo.
        column: the column.
        out: where its values go, in this array's type.
        rows: consecutive rows; None: all.

    Raises:
        DatasetError: a value is not allowed, or the file is damaged.
    """
    left = 0
    for i, name in enumerate(column.parts):
        target = out
        if len(column.parts) > 1:
            target = out[:, left : left + column.widths[i]]
            left += column.widths[i]
        demo.read(name, target, rows)
        # The sum is a test without a temporary array; only when it fails are elements looked at.
        with np.errstate(invalid="ignore", over="ignore"):
            suspect = target.dtype.kind == "f" and not np.isfinite(target.sum(dtype=np.float64))
        if suspect:
            _complain_if_not_finite(demo, name, target, rows)
        if name == "dones" and (target.min() < 0 or target.max() > 1):
            bad = int(np.flatnonzero((target < 0) | (target > 1))[0])
            row = bad + (rows.start if rows else 0)
            raise DatasetError(
                f"{demo}: 'dones' holds {target[bad]:g} in row {row}; each must be 1 where the"
                " episode's task ended and 0 elsewhere: convert the file"
            )


def cut_off_fault(key: str, column: Column, extent: tuple[float, float]) -> str | None:
    """A sentence about values that networks see clipped; None if none are.

    Args:
        key: the column's name.
        column: the column.
        extent: its least and greatest value.
    """
    if column.cut_off is None or column_group(key) == NEXT_OBS:
        return None
    (least, greatest), (low, high) = column.cut_off, extent
    if low >= least and high <= greatest:
        return None
    return (
        f"'{key}' holds {low:.4g} to {high:.4g}, and networks see it clipped to {least:g} to"
        f" {greatest:g}: scale it in the file; train.cut_depth=false does not clip depth"
    )


def warn_of_cut_off(path: Path, key: str, column: Column, extent: tuple[float, float]) -> None:
    """Warns once of values that networks see clipped, see `cut_off_fault`."""
    if fault := cut_off_fault(key, column, extent):
        warn_once(f"dataset '{path}': {fault}")


def _complain_if_not_finite(
    demo: DemoReader, name: str, values: np.ndarray, rows: slice | None
) -> None:
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if not len(bad):
        return
    first = bad[0] + (rows.start if rows else 0)
    exact = np.empty(values.shape, np.float64)
    demo.read(name, exact, rows)
    if np.isfinite(exact).all():
        raise DatasetError(
            f"{demo}: '{name}' holds numbers too large for float32 (first in row {first}); repair"
            " the demo, or set train.dtype to 'float64'"
        )
    raise DatasetError(
        f"{demo}: '{name}' holds NaN or infinity (first in row {first}); repair or remove the"
        " demo, for example by a filter key without it"
    )
