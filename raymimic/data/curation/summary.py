"""A dataset at a glance: lengths, actions, rewards, ends and successes of its demos."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic.data.hdf5 import DemoReader
from raymimic.data.images import fitting_modality, likely_modality, objection
from raymimic.data.metadata import DatasetMeta, read_metadata
from raymimic.data.stats import MIN_RANGE
from raymimic.errors import DatasetError

_SUMMARISED = ("actions", "rewards", "dones")


@dataclass
class Extent:
    """Least and greatest values of some rows, component by component.

    Attributes:
        low: least values `[D]`.
        high: greatest values `[D]`.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.low)

    @property
    def constant(self) -> list[int]:
        """Indices of the components that do not vary."""
        return [int(i) for i in np.flatnonzero(self.high - self.low < MIN_RANGE)]

    @property
    def greatest_magnitude(self) -> float:
        """Greatest absolute value."""
        return float(np.abs([self.low, self.high]).max())


@dataclass
class ObservationForm:
    """How a file holds an observation.

    Attributes:
        shape: of a row.
        dtype: of its numbers.
        modality: the one that it fits; None where it fits none.
        fault: why it is no image although it looks like one; empty otherwise.
        num_bytes: size of all rows as they are.
        stored_bytes: the same in the file, where it may be compressed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    modality: str | None = field(init=False)
    fault: str = field(init=False)
    num_bytes: int = 0
    stored_bytes: int = 0

    def __post_init__(self) -> None:
        self.modality = fitting_modality(self.shape, self.dtype)
        likely = likely_modality(self.shape)
        self.fault = ""
        if self.modality is None and likely is not None:
            found = objection(self.shape, self.dtype, likely)
            self.fault = f"not {likely}: {found}" if found else ""

    @property
    def row_bytes(self) -> int:
        """Size of a row as it is."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def memory_bytes(self) -> int:
        """Memory that a training holds it in: numbers other than bytes of images are float32."""
        is_bytes = self.dtype == np.uint8 and len(self.shape) == 3
        return self.num_bytes // self.dtype.itemsize * (1 if is_bytes else 4)

    def agrees(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        """Whether one training can take another demo's rows too; types of numbers may differ."""
        is_image = len(shape) == 3
        return shape == self.shape and (
            not is_image or (dtype == np.uint8) == (self.dtype == np.uint8)
        )


@dataclass
class DatasetSummary:
    """A dataset at a glance.

    Attributes:
        meta: the file's statements about itself.
        observations: each observation's form, by key.
        lengths: transitions of each demo.
        held: number of demos that have each dataset besides observations, and `next_obs`.
        extents: of `actions`, `rewards` and `dones`, as far as there are any.
        returns: sum of the rewards of each demo that has rewards.
        ended: demos of which a step is done.
        successes: demos with a reward of 1, where all rewards are 0 or 1; None: not known.
    """

    meta: DatasetMeta
    observations: dict[str, ObservationForm] = field(default_factory=dict)
    lengths: list[int] = field(default_factory=list)
    held: Counter[str] = field(default_factory=Counter)
    extents: dict[str, Extent] = field(default_factory=dict)
    returns: list[float] = field(default_factory=list)
    ended: int = 0
    successes: int | None = None

    @property
    def usable(self) -> dict[str, tuple[int, ...]]:
        """Row shape of each observation that a modality takes as it is."""
        return {key: form.shape for key, form in self.observations.items() if form.modality}

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain values."""
        meta = self.meta
        return {
            "path": str(meta.path),
            "demos": meta.num_demos,
            "transitions": meta.num_transitions,
            "env_args": meta.env_meta,
            "observations": {key: list(shape) for key, shape in meta.obs_shapes.items()},
            "observation_forms": {
                key: {
                    "dtype": form.dtype.name,
                    "modality": form.modality,
                    "fault": form.fault,
                    "row_bytes": form.row_bytes,
                    "bytes": form.num_bytes,
                    "stored_bytes": form.stored_bytes,
                }
                for key, form in self.observations.items()
            },
            "filter_keys": {key: len(demos) for key, demos in meta.filter_keys.items()},
            "attributes": meta.attrs,
            "lengths": statistics(self.lengths),
            "returns": statistics(self.returns),
            "held": dict(self.held),
            "ended": self.ended if "dones" in self.held else None,
            "successes": self.successes,
            **{
                key: {
                    "width": extent.width,
                    "low": extent.low.tolist(),
                    "high": extent.high.tolist(),
                    "constant": extent.constant,
                }
                for key, extent in self.extents.items()
            },
            "problems": list(meta.problems),
        }


def statistics(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, least and greatest of some numbers; None without any."""
    if not values:
        return None
    return {"mean": float(np.mean(values)), "min": min(values), "max": max(values)}


def summarize(
    path: str | Path,
    allow_links: Sequence[str | Path] = (),
    progress: Callable[[int, int], None] | None = None,
) -> DatasetSummary:
    """Looks at each demo once: at its structure, and at the values of all but observations.

    Args:
        path: local path or URI.
        allow_links: folders besides the file's own that its links may lead into.
        progress: called with the number of demos done and of all demos.

    Returns:
        All of it, faults in `meta.problems`.

    Raises:
        DatasetError: see `read_metadata`.
    """
    collector = _Collector()
    problems: list[str] = []

    def look(demo: DemoReader, length: int, items: dict[str, h5py.Dataset]) -> None:
        try:
            collector.add(demo, length, items)
        except DatasetError as error:
            problems.append(str(error))

    meta = read_metadata(path, allow_links, look, progress)
    return collector.summary(replace(meta, problems=(*meta.problems, *problems)))


class _Collector:
    """Gathers a summary, demo by demo."""

    def __init__(self) -> None:
        self._lengths: list[int] = []
        self._held: Counter[str] = Counter()
        self._extents: dict[str, Extent] = {}
        self._returns: list[float] = []
        self._observations: dict[str, ObservationForm] = {}
        self._ended = self._successes = 0
        self._is_sparse = True

    def add(self, demo: DemoReader, length: int, items: dict[str, h5py.Dataset]) -> None:
        """Takes up a demo."""
        self._lengths.append(length)
        groups = {key.partition("/")[0] if "obs/" in key else key for key in items}
        self._held.update(groups - {"obs"})
        for key in _SUMMARISED:
            if key not in items:
                continue
            what = f"{demo}: '{key}'"
            demo.reader.check(items[key], what)
            values = demo.reader.values(items[key], what)
            if values.dtype.kind not in "biuf" or not values.ndim or not values.size:
                raise DatasetError(f"{what} is no array of numbers with one row per transition")
            rows = values.reshape(len(values), -1).astype(np.float64)
            if not np.isfinite(rows).all():
                raise DatasetError(f"{what} holds NaN or infinity: repair or remove the demo")
            self._stretch(key, rows, what)
            if key == "rewards":
                self._returns.append(float(rows.sum()))
                self._is_sparse = self._is_sparse and bool(((rows == 0) | (rows == 1)).all())
                self._successes += bool((rows == 1).any())
            if key == "dones":
                self._ended += bool((rows > 0).any())
        for key, item in items.items():
            if key.startswith("obs/"):
                self._observe(demo, key, item, length)

    def _observe(self, demo: DemoReader, name: str, item: h5py.Dataset, length: int) -> None:
        what = f"{demo}: '{name}'"
        shape, dtype, stored = demo.reader.row_of(item, what)
        if dtype.kind not in "biuf":
            return
        key = name.removeprefix("obs/")
        known = self._observations.get(key)
        if known is None:
            known = self._observations[key] = ObservationForm(shape, dtype)
        elif not known.agrees(shape, dtype):
            raise DatasetError(
                f"{what} has rows {list(shape)} of {dtype.name}, and demos before it"
                f" {list(known.shape)} of {known.dtype.name}: convert or remove the demo"
            )
        known.num_bytes += length * math.prod(shape) * dtype.itemsize
        known.stored_bytes += stored

    def _stretch(self, key: str, rows: NDArray[np.float64], what: str) -> None:
        low, high = rows.min(axis=0), rows.max(axis=0)
        known = self._extents.get(key)
        if known is None:
            self._extents[key] = Extent(low, high)
        elif known.width != len(low):
            raise DatasetError(
                f"{what} has {len(low)} components, and those of demos before it {known.width}"
            )
        else:
            self._extents[key] = Extent(np.minimum(known.low, low), np.maximum(known.high, high))

    def summary(self, meta: DatasetMeta) -> DatasetSummary:
        """All that was gathered."""
        known = self._is_sparse and len(self._returns) == len(self._lengths) > 0
        return DatasetSummary(
            meta=meta,
            observations=dict(sorted(self._observations.items())),
            lengths=self._lengths,
            held=self._held,
            extents=self._extents,
            returns=self._returns,
            ended=self._ended,
            successes=self._successes if known else None,
        )
