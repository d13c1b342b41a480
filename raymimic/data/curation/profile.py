"""The distribution of a dataset's values: of actions, rewards and vectors, demo by demo."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymimic.data.columns import Column, read_column, room_for
from raymimic.data.curation.summary import DatasetSummary
from raymimic.data.curation.validate import demo_digest
from raymimic.data.hdf5 import DatasetFile, DemoReader, open_dataset
from raymimic.data.stats import MIN_RANGE, Moments
from raymimic.errors import DatasetError

Array = NDArray[np.float64]

_MOST_ROWS = 100_000  # of a sample
_MOST_NUMBERS = 20_000_000
_SATURATED = 0.1  # share of rows at a bound
_FAR = 5.0  # from the middle half, in its widths


@dataclass(frozen=True)
class Outlier:
    """A demo that reaches far beyond the others.

    Attributes:
        demo: its name.
        quantity: such as `actions[2]`, `length` or `return`.
        value: the value that is farthest.
        distance: from the middle half of all values, in widths of that half.
    """

    demo: str
    quantity: str
    value: float
    distance: float


@dataclass
class Quantity:
    """An array of vectors, over all demos.

    Attributes:
        key: `actions`, `rewards` or `obs/<key>`.
        sample: rows evenly spread over all demos, `[n, D]`.
        moments: of all rows.
        demos: names of the demos that have it.
        lows: least values in each of them, `[num_demos, D]`.
        highs: greatest values.
    """

    key: str
    sample: Array
    moments: Moments
    demos: list[str]
    lows: Array
    highs: Array

    @property
    def width(self) -> int:
        """Number of components."""
        return len(self.moments.low)

    @property
    def constant(self) -> list[int]:
        """Components that do not vary."""
        return [int(i) for i in np.flatnonzero(self.moments.high - self.moments.low < MIN_RANGE)]

    def saturated(self) -> dict[int, float]:
        """The share of rows at the least or greatest value, of components where it is large.

        Components of few values, such as a gripper's, are not meant.
        """
        found = {}
        for i in sorted(set(range(self.width)) - set(self.constant)):
            values = self.sample[:, i]
            ends = (values == self.moments.low[i]) | (values == self.moments.high[i])
            between = np.unique(values[~ends][:1000])
            share = float(ends.mean())
            if share > _SATURATED and len(between) > 10:
                found[i] = share
        return found

    def histogram(self, component: int, bins: int) -> NDArray[np.int64]:
        """Numbers of the sample's rows in equal parts of the range of a component."""
        low, high = self.moments.low[component], self.moments.high[component]
        with np.errstate(over="ignore"):
            if not np.isfinite(high - low) or high <= low:
                low, high = low - 0.5, low + 0.5
        counts: NDArray[np.int64] = np.histogram(self.sample[:, component], bins, (low, high))[0]
        return counts

    def outliers(self) -> Iterator[Outlier]:
        """Demos with a value far from the middle half of the sample."""
        first, third = np.quantile(self.sample, (0.25, 0.75), axis=0)
        for i in np.flatnonzero(third - first > MIN_RANGE):
            name = f"{self.key}[{i}]" if self.width > 1 else self.key
            for values in (self.lows[:, i], self.highs[:, i]):
                yield from far(self.demos, name, values, float(first[i]), float(third[i]))


@dataclass
class Profile:
    """The distribution of a dataset's values.

    Attributes:
        summary: the dataset at a glance.
        quantities: actions, rewards and vectors among the observations, by key.
        copies: demos with the actions and vectors of another one, which is the value.
        outliers: the farthest first.
        problems: a sentence about each array that could not be read.
    """

    summary: DatasetSummary
    quantities: dict[str, Quantity] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    outliers: list[Outlier] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def far(
    demos: Sequence[str],
    quantity: str,
    values: Array,
    first: float,
    third: float,
    least: float = 0.0,
) -> Iterator[Outlier]:
    """The demos whose value is far from the middle half of all values.

    Args:
        demos: their names.
        quantity: its name.
        values: one for each demo.
        first: lower end of the middle half.
        third: upper end.
        least: width of the middle half that is supposed at least.
    """
    width = max(third - first, least)
    if width <= 0:
        return
    distance = np.maximum(first - values, values - third) / width
    for i in np.flatnonzero(distance > _FAR):
        yield Outlier(demos[int(i)], quantity, float(values[i]), float(distance[i]))


def profile(
    file: DatasetFile,
    summary: DatasetSummary,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Reads the actions, the rewards and the vectors of each demo once; images are not read.

    Args:
        file: the dataset.
        summary: of the same.
        progress: called with the number of demos done and of all demos.

    Raises:
        DatasetError: the file cannot be opened.
    """
    found = Profile(summary)
    widths = {key: extent.width for key, extent in summary.extents.items() if key != "dones"}
    for key, form in summary.observations.items():
        if form.modality == "low_dim":
            widths[f"obs/{key}"] = form.shape[0]
    step = {
        key: max(1, summary.meta.num_transitions // min(_MOST_ROWS, 1 + _MOST_NUMBERS // width))
        for key, width in widths.items()
    }
    pieces: dict[str, _Pieces] = {key: _Pieces() for key in widths}
    seen: dict[bytes, str] = {}
    with open_dataset(file) as reader:
        for number, name in enumerate(summary.meta.demos, 1):
            if progress is not None:
                progress(number, len(summary.meta.demos))
            demo = reader.demo(name)
            digests = []
            for key, width in widths.items():
                rows = None if demo is None else _rows(demo, key, width, found.problems)
                if rows is not None and len(rows):
                    pieces[key].add(name, rows, step[key])
                    digests.append((key, rows))
            if any(key == "actions" for key, _ in digests):
                first = seen.setdefault(demo_digest(digests), name)
                if first != name:
                    found.copies[name] = first
    found.quantities = {key: part.quantity(key) for key, part in pieces.items() if part.demos}
    found.outliers = sorted(_outliers(found), key=lambda outlier: -outlier.distance)
    return found


def _rows(demo: DemoReader, key: str, width: int, problems: list[str]) -> Array | None:
    """The rows of an array of a demo, `[T, D]`; None where it has none that can be read."""
    try:
        if not demo.has(key):
            return None
        item = demo.numbers(key)
        column = Column((key,), (), (width,))
        rows = room_for(demo, key, column, item.shape[0], np.float64)
        if item.shape[0]:
            read_column(demo, column, rows)
    except (DatasetError, ValueError) as error:
        problems.append(str(error))
        return None
    return rows


class _Pieces:
    """Gathers one array, demo by demo."""

    def __init__(self) -> None:
        self.demos: list[str] = []
        self._sample: list[Array] = []
        self._lows: list[Array] = []
        self._highs: list[Array] = []
        self._moments: Moments | None = None
        self._before = 0  # rows so far

    def add(self, demo: str, rows: Array, step: int) -> None:
        """Takes up the rows of a demo, each `step`th into the sample."""
        self.demos.append(demo)
        self._sample.append(rows[-self._before % step :: step].copy())
        self._before += len(rows)
        self._lows.append(rows.min(axis=0))
        self._highs.append(rows.max(axis=0))
        part = Moments.of(rows)
        self._moments = part if self._moments is None else self._moments.merge(part)

    def quantity(self, key: str) -> Quantity:
        """All that was gathered."""
        assert self._moments is not None
        return Quantity(
            key,
            np.concatenate(self._sample),
            self._moments,
            self.demos,
            np.stack(self._lows),
            np.stack(self._highs),
        )


def _outliers(found: Profile) -> Iterator[Outlier]:
    best: dict[tuple[str, str], Outlier] = {}
    for quantity in found.quantities.values():
        for outlier in quantity.outliers():
            key = (outlier.demo, outlier.quantity)
            if key not in best or best[key].distance < outlier.distance:
                best[key] = outlier
    yield from best.values()
    summary = found.summary
    totals: list[tuple[str, Sequence[str], Any]] = [
        ("length", summary.meta.demos, np.asarray(summary.lengths, np.float64))
    ]
    if len(summary.returns) == len(summary.meta.demos):
        totals.append(("return", summary.meta.demos, np.asarray(summary.returns)))
    for name, demos, values in totals:
        if len(values) == len(demos) > 0:
            first, third = np.quantile(values, (0.25, 0.75))
            least = abs(float(first)) / 10  # most demos may have the same length
            yield from far(demos, name, values, float(first), float(third), least)
