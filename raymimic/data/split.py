"""Holds demos out for validation, drawn by the seed, for `train.validation_fraction`."""

from dataclasses import replace

import numpy as np

from raymimic.data.columns import DemoRef, Layout
from raymimic.errors import DatasetError

_STREAM = 3  # apart from the sampler's streams of one seed


def hold_out(layout: Layout, fraction: float, seed: int) -> tuple[Layout, Layout]:
    """Splits demos into those to train on and those to validate on, by whole demos.

    The split follows from the seed, and from the number and the order of the demos, not from the
    names of files: it is the same on every worker, and after a file was moved. Each file gives its
    share. A demo that several entries of `train.data` name lies on one side.

    Args:
        layout: all demos.
        fraction: share of the demos to hold out, between 0 and 1.
        seed: any integer.

    Returns:
        Demos to train on, at least one of each source, and demos to validate on, at least one.

    Raises:
        DatasetError: there are too few demos.
    """
    ends = np.cumsum(layout.source_sizes)
    source_of = np.searchsorted(ends, np.arange(len(layout.demos)), side="right")
    places: dict[tuple[object, str], list[int]] = {}  # of each distinct demo
    files: dict[object, list[tuple[object, str]]] = {}
    for i, demo in enumerate(layout.demos):
        own = _identity(demo)
        if own not in places:
            files.setdefault(demo.path, []).append(own)
        places.setdefault(own, []).append(i)

    generator = np.random.default_rng((seed % 2**63, _STREAM, 0))
    rank: dict[tuple[object, str], float] = {}
    for demos in files.values():  # evenly spread, so that each file gives its share
        order = generator.permutation(len(demos))
        spread = (np.arange(len(demos)) + generator.random(len(demos))) / len(demos)
        rank |= {demos[j]: float(at) for j, at in zip(order, spread, strict=True)}

    count = min(max(round(fraction * len(places)), 1), len(places) - 1)
    left = list(layout.source_sizes)
    held: set[int] = set()
    for own in sorted(rank, key=rank.__getitem__):
        if count < 1:
            break
        taken = np.bincount(source_of[places[own]], minlength=len(left))
        if all(taken < np.where(taken > 0, left, 1)):
            left = [size - int(n) for size, n in zip(left, taken, strict=True)]
            held.update(places[own])
            count -= 1
    if not held:
        raise DatasetError(
            f"dataset '{layout.demos[0].path}' has {len(places)} demos to train on and none to "
            "spare for validation (train.validation_fraction): record more, or set "
            "experiment.validate to false and train.validation_fraction to null"
        )

    def part(is_held: bool) -> Layout:
        chosen = [i for i in range(len(layout.demos)) if (i in held) is is_held]
        sizes = np.bincount(source_of[chosen], minlength=len(left)).tolist()
        return replace(
            layout, demos=tuple(layout.demos[i] for i in chosen), source_sizes=tuple(sizes)
        )

    return part(False), part(True)


def _identity(demo: DemoRef) -> tuple[object, str]:
    return demo.path, demo.name
