"""Normalisation statistics of observations and actions, over the training demonstrations.

Computed once, in float64, and merged block by block, so that no copy of a column is made and
that a worker's share of a sharded dataset does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymimic.data.cache.read import CachedColumn, DemoCache
from raymimic.data.columns import Column, FloatType, Layout, read_columns
from raymimic.errors import ConfigError
from raymimic.observations.modality import Modality

Stats = dict[str, dict[str, NDArray[np.float32]]]
"""`offset` and `scale` by key, float32 `[1, ...]`: normalised = (x - offset) / scale."""

_OBS_TOLERANCE = 1e-3
# An element that varies less is constant.
MIN_RANGE = 1e-4
_MIN_STD = 1e-6
_ACTION_LIMIT = 0.999999
_BLOCK_BYTES = 1 << 19
_STREAM_BYTES = 1 << 26


@dataclass(frozen=True)
class Moments:
    """Count, mean, summed squared deviation and range of some rows, element by element.

    Attributes:
        count: number of rows.
        mean: `[...]`, float64, as are the others.
        sqdiff: sum of squared deviations from the mean.
        low: minimum.
        high: maximum.
    """

    count: int
    mean: NDArray[np.float64]
    sqdiff: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Moments:
        """Moments of `rows [n, ...]`."""
        mean = rows.mean(axis=0)
        sqdiff = np.square(rows - mean).sum(axis=0)
        return cls(len(rows), mean, sqdiff, rows.min(axis=0), rows.max(axis=0))

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of rows together (Chan, Golub & LeVeque 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * (other.count / count),
            self.sqdiff + other.sqdiff + delta**2 * (self.count * other.count / count),
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )

    def split(self, widths: Mapping[str, int]) -> dict[str, Moments]:
        """Moments of consecutive parts of flat rows, by name."""
        parts, left = {}, 0
        for name, width in widths.items():
            cut = slice(left, left + width)
            parts[name] = Moments(
                self.count, self.mean[cut], self.sqdiff[cut], self.low[cut], self.high[cut]
            )
            left += width
        return parts

    @property
    def std(self) -> NDArray[np.float64]:
        """Standard deviation (of the population)."""
        return np.sqrt(self.sqdiff / self.count)


def moments(columns: Iterable[Tensor | CachedColumn], modality: Modality | None = None) -> Moments:
    """Moments of the rows of all the given pieces of a column, prepared as for networks.

    Args:
        columns: of the CPU or of the cache, `[n, ...]`, at least one row in all.
        modality: of the observation key, which prepares the rows; None: they stay as they are.
    """
    modality = Modality() if modality is None else modality
    total: Moments | None = None
    for column in columns:
        rows = max(_BLOCK_BYTES // (8 * max(column[:1].numel(), 1)), 1)
        for start in range(0, len(column), rows):
            block = column[start : start + rows]
            part = Moments.of(modality.process(block).numpy().astype(np.float64))
            total = part if total is None else total.merge(part)
    if total is None:
        raise ValueError("moments of no rows")
    return total


def stream_column(
    layout: Layout, key: str, dtype: FloatType, cache: DemoCache | None = None
) -> Iterator[Tensor | CachedColumn]:
    """Reads one column of all demos of a layout from the files, piece by piece.

    Args:
        layout: the demos, whichever worker holds them.
        key: name of the column.
        dtype: float type that a store would hold it in.
        cache: read instead of the files if it has the column.

    Yields:
        Columns `[n, ...]` of whole demos, of about 64 MB.
    """
    column: Mapping[str, Column] = {key: layout.columns[key]}
    row_bytes = 8 * int(np.prod(layout.columns[key].shape, dtype=np.int64))
    rows_per_piece = max(_STREAM_BYTES // max(row_bytes, 1), 1)
    piece = np.cumsum(layout.lengths) // rows_per_piece
    for number in np.unique(piece):
        demos = [layout.demos[i] for i in np.flatnonzero(piece == number)]
        if cache is not None and key in cache.columns:
            yield cache.take(demos)[key]
        else:
            yield torch.from_numpy(read_columns(demos, column, dtype)[key])


def obs_normalization_stats(by_key: Mapping[str, Moments]) -> Stats:
    """Mean and standard deviation of each observation key.

    Args:
        by_key: moments of each key's training observations.

    Returns:
        `offset` is the mean, `scale` the standard deviation plus 1e-3: a constant element is
        thus centred and at most magnified a thousandfold, never divided by zero.

    Source: robomimic/utils/dataset.py, `normalize_obs`; here in float64 until the end.
    """
    return {
        key: _entry(offset=found.mean, scale=found.std + _OBS_TOLERANCE)
        for key, found in by_key.items()
    }


def action_normalization_stats(
    by_key: Mapping[str, Moments], action_config: Mapping[str, Mapping[str, Any]]
) -> Stats:
    """Offset and scale of each action key, by its method in `train.action_config`.

    Args:
        by_key: moments of each action key's training actions, in `train.action_keys`' order.
        action_config: options by action key; `normalization` is None (as they are), `min_max`
            (range to ±0.999999, so that a tanh can reach it) or `gaussian` (mean 0, deviation 1).

    Returns:
        By key. Elements that hardly vary (range below 1e-4, deviation below 1e-6) are only
        centred: scale 1.

    Raises:
        ConfigError: another method.

    Source: robomimic/utils/dataset.py, `action_stats_to_normalization_stats`.
    """
    stats: Stats = {}
    for key, found in by_key.items():
        method = (action_config.get(key) or {}).get("normalization")
        if method is None:
            stats[key] = _entry(np.zeros_like(found.mean), np.ones_like(found.mean))
        elif method == "min_max":
            constant = found.high - found.low < MIN_RANGE
            scale = np.where(constant, 1.0, (found.high - found.low) / (2 * _ACTION_LIMIT))
            offset = np.where(constant, found.low, found.low + scale * _ACTION_LIMIT)
            stats[key] = _entry(offset, scale)
        elif method == "gaussian":
            stats[key] = _entry(found.mean, np.where(found.std < _MIN_STD, 1.0, found.std))
        else:
            raise ConfigError(
                f"train.action_config['{key}'].normalization is '{method}': it must be null,"
                " 'min_max' or 'gaussian'"
            )
    return stats


def _entry(
    offset: NDArray[np.float64], scale: NDArray[np.float64]
) -> dict[str, NDArray[np.float32]]:
    return {"offset": offset[None].astype(np.float32), "scale": scale[None].astype(np.float32)}


def greatest_magnitude(found: Moments, entry: Mapping[str, NDArray[Any]]) -> float:
    """Returns the greatest absolute value that normalised rows have.

    Args:
        found: moments of the rows.
        entry: their `offset` and `scale` `[1, ...]`.
    """
    bounds = (np.stack([found.low, found.high]) - entry["offset"]) / entry["scale"]
    return float(np.abs(bounds).max())


def scaling_of(stats: Stats, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Offset and scale of several keys side by side, `[sum of widths]`.

    Args:
        stats: by key, in the order of the columns.
        like: has the type and device wanted.

    Returns:
        None where all values stay as they are.
    """
    joined = [
        torch.cat([torch.from_numpy(entry[name][0]) for entry in stats.values()]).to(like)
        for name in ("offset", "scale")
    ]
    if not joined[0].any() and (joined[1] == 1).all():
        return None
    return joined[0], joined[1]
