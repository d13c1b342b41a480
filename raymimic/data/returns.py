"""Returns of demonstrations, to compare a policy's with."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from raymimic.data.columns import DemoRef, read_array
from raymimic.data.hdf5 import open_dataset
from raymimic.data.training_data import DataInfo
from raymimic.errors import DatasetError


def demo_returns(demos: Iterable[DemoRef], horizon: int | None = None) -> list[float]:
    """The undiscounted return of each demo.

    Args:
        demos: the demos, in this order.
        horizon: later steps do not count; None counts all.

    Raises:
        DatasetError: a demo has no `rewards`, or they cannot be read.
    """
    returns: list[float] = []
    for file, group in itertools.groupby(demos, key=lambda demo: demo.file):
        with open_dataset(file) as reader:
            for demo in group:
                opened = reader.demo(demo.name)
                if opened is None:
                    raise DatasetError(f"{reader} has no demo '{demo.name}'")
                returns.append(float(read_array(opened, "rewards")[:horizon].sum()))
    return returns


def reference_returns(data: DataInfo, horizon: int) -> dict[str, dict[str, float]]:
    """Returns to compare a policy's with, by environment and name.

    `data` is the mean over the training demos that were recorded in the environment, each cut to
    the horizon. `expert` is the file's attribute `expert_return`, which `raymimic dataset make`
    writes; where a demo is longer than the horizon, no episode can reach it, and it is left out.

    Args:
        data: the training's data.
        horizon: steps of an episode in an evaluation.

    Returns:
        by the environment's name in metrics; empty for one without demos, rewards or attribute.
    """
    sizes = data.train.source_sizes
    ends = itertools.accumulate(sizes)
    sources = [data.train.demos[end - size : end] for end, size in zip(ends, sizes, strict=True)]
    references: dict[str, dict[str, float]] = {}
    for env in data.eval_envs:
        demos = [demo for index in env.sources for demo in sources[index]]
        found = {"data": _mean_return(demos, horizon), "expert": _expert_return(demos, horizon)}
        references[env.key] = {k: value for k, value in found.items() if math.isfinite(value)}
    return references


def _mean_return(demos: Sequence[DemoRef], horizon: int) -> float:
    """The mean of `demo_returns`; NaN where there are none."""
    try:
        return float(np.mean(demo_returns(demos, horizon))) if demos else math.nan
    except DatasetError:  # without rewards, say
        return math.nan


def _expert_return(demos: Sequence[DemoRef], horizon: int) -> float:
    """The attribute `expert_return` of the first demo's file; NaN where there is none."""
    if not demos or max(demo.length for demo in demos) > horizon:
        return math.nan
    try:
        with open_dataset(demos[0].file) as reader:
            stated: Any = reader.attribute(reader.data, "expert_return", str(reader))
    except DatasetError:
        return math.nan
    return float(stated) if isinstance(stated, int | float) else math.nan
