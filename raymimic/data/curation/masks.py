"""Filter keys (masks): named lists of demos, written into a dataset in place.

Splits and subsets are drawn as robomimic draws them, so that the same seed names the same demos.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic.data.columns import DemoRef, DemoSource, read_array
from raymimic.data.fetch import is_remote, local_path
from raymimic.data.hdf5 import DatasetFile, DatasetReader, DemoReader, open_dataset
from raymimic.data.in_place import changing, complete_change
from raymimic.data.layout import known_length, selected_demos
from raymimic.data.returns import demo_returns
from raymimic.errors import ConfigError, DatasetError, did_you_mean

Shuffle = Callable[[NDArray[np.float64]], None]
"""Shuffles an array in place: `numpy.random.shuffle`, or that of a `RandomState`."""


@dataclass(frozen=True)
class Conditions:
    """Demos that are wanted. A condition that is None does not count.

    Attributes:
        success: the demo solved the task: its attribute `success`, or a reward of 1 in a file whose
            rewards are all 0 or 1.
        min_return: least undiscounted return.
        max_return: greatest undiscounted return.
        min_length: least number of steps.
        max_length: greatest number of steps.
    """

    success: bool = False
    min_return: float | None = None
    max_return: float | None = None
    min_length: int | None = None
    max_length: int | None = None

    @property
    def name(self) -> str:
        """The conditions as part of a filter key's name; empty without any."""
        bounds = {key: value for key, value in vars(self).items() if key != "success"}
        found = ["success"] if self.success else []
        found += [f"{key}_{value:g}" for key, value in bounds.items() if value is not None]
        return "_".join(found)


@dataclass(frozen=True)
class WrittenMasks:
    """Filter keys that were written.

    Attributes:
        lengths: by filter key, the number of steps of each of its demos.
        replaced: filter keys that there were before.
    """

    lengths: dict[str, list[int]]
    replaced: tuple[str, ...]


def split_demos(
    path: str | Path, ratio: float, shuffle: Shuffle, filter_key: str | None = None
) -> WrittenMasks:
    """Writes the filter keys `train` and `valid`, with `<filter key>_` before them if there is one.

    Args:
        path: local path.
        ratio: share of the demos for validation, rounded down.
        shuffle: draws them.
        filter_key: the demos to split; None: all.

    Raises:
        DatasetError: too few demos, or no such filter key.
        ConfigError: the ratio is not between 0 and 1.

    Source: robomimic/scripts/split_train_val.py; there a side without a demo is written too.
    """
    if not 0 < ratio < 1:
        raise ConfigError(f"the ratio is {ratio:g}: it must be between 0 and 1, such as 0.1")
    names = _members(path, filter_key)
    number = int(ratio * len(names))
    if number < 1:
        raise DatasetError(
            f"dataset '{path}': {ratio:g} of {len(names)} demos is less than one for validation:"
            + (
                f" raise the ratio to {1 / len(names):.3g} or more"
                if len(names) > 1
                else " record more"
            )
        )
    valid, train = _drawn(names, number, shuffle)
    before = "" if filter_key is None else f"{filter_key}_"
    return write_masks(path, {f"{before}train": train, f"{before}valid": valid})


def filter_demos(
    path: str | Path,
    shuffle: Shuffle,
    numbers: Sequence[int] = (),
    conditions: Conditions | None = None,
    filter_key: str | None = None,
    name: str | None = None,
) -> WrittenMasks:
    """Writes filter keys of the demos that meet conditions, or of some drawn among these.

    Args:
        path: local path.
        shuffle: draws them.
        numbers: sizes of the filter keys, one for each; none: all that meet the conditions.
        conditions: see there; None: all demos.
        filter_key: the demos to choose from; None: all.
        name: of the filter key; None: such as `50_demos` or `success`. `<filter key>_` stands
            before it.

    Raises:
        DatasetError: too few demos meet the conditions, or these cannot be told.
        ConfigError: several filter keys would have one name, or one has no demos.

    Source: robomimic/scripts/filter_dataset_size.py; there a number larger than that of the demos
    takes them all.
    """
    conditions = conditions or Conditions()
    if not numbers and not conditions.name:
        raise ConfigError("nothing to choose demos by: give a number (--demos 50) or a condition")
    if min(numbers, default=1) < 1:
        raise ConfigError(f"{min(numbers)} demos make no filter key: ask for 1 or more")
    if name is not None and len(numbers) > 1:
        raise ConfigError(f"{len(numbers)} filter keys cannot all be called '{name}': leave it out")
    names = _meeting(path, _members(path, filter_key), conditions)
    if not names:
        raise DatasetError(f"dataset '{path}': no demo meets the conditions: ask for less")
    before = [] if filter_key is None else [filter_key]
    masks: dict[str, list[str]] = {}
    for number in numbers or (len(names),):
        if number > len(names):
            which = " that meet the conditions" if conditions.name else ""
            raise DatasetError(
                f"dataset '{path}' has {len(names)} demos{which}, not {number}: ask for fewer"
            )
        own = [conditions.name] if conditions.name else []
        own += [f"{number}_demos"] if numbers else []
        key = "_".join([*before, *(own if name is None else [name])])
        masks[key] = _drawn(names, number, shuffle)[0] if numbers else names
    return write_masks(path, masks)


def write_masks(path: str | Path, masks: Mapping[str, Sequence[str]]) -> WrittenMasks:
    """Writes filter keys into a dataset, in place; see `raymimic.data.in_place` for kills.

    Args:
        path: local path.
        masks: names of demos by filter key, in the order in which they are written. One that
            exists is replaced.

    Raises:
        DatasetError: the dataset lacks a demo, or another process reads it.
        ConfigError: a filter key has an impossible name.
        OutputError: the file cannot be written.
    """
    place = local_file(path)
    for key in masks:
        if not key or "/" in key or key in (".", "..") or not key.isprintable():
            raise ConfigError(f"'{key}' is no name of a filter key: use letters, digits and _")
    lengths = {key: _lengths(place, key, names) for key, names in masks.items()}
    replaced = []
    with changing(place) as file:
        group = own_group(file, "mask", place)
        for key, names in masks.items():
            if group.id.links.exists(key.encode()):
                replaced.append(key)
            put_mask(group, key, names)
    return WrittenMasks(lengths, tuple(replaced))


def put_mask(group: h5py.Group, key: str, names: Iterable[str]) -> None:
    """Writes a filter key, as robomimic does.

    Args:
        group: `mask` of a file that is open for writing.
        key: name of the filter key; one that exists is replaced, a link by itself.
        names: of its demos.
    """
    if group.id.links.exists(key.encode(errors="surrogateescape")):
        del group[key]
    group[key] = np.array([name.encode(errors="surrogateescape") for name in names], dtype="S")


def own_group(parent: h5py.Group, name: str, path: Path) -> h5py.Group:
    """A group of a file that is open for writing, which is made where there is none.

    It is never reached by a link, which may lead into another file.

    Raises:
        DatasetError: it is a link, or no group.
    """
    link = name.encode(errors="surrogateescape")
    if not parent.id.links.exists(link):
        return parent.create_group(link)
    is_own = parent.id.links.get_info(link).type == h5py.h5l.TYPE_HARD
    group = parent[link] if is_own else None
    if not isinstance(group, h5py.Group):
        raise DatasetError(
            f"dataset '{path}': '{name}' is {'no group' if is_own else 'a link'}: raymimic dataset"
            " repair writes a file with a group of its own"
        )
    return group


def local_file(path: str | Path) -> Path:
    """The file of a dataset that is to be changed.

    Raises:
        DatasetError: it is not on this machine.
    """
    if is_remote(path):
        raise DatasetError(
            f"dataset '{path}' is a URI, which cannot be changed: copy the file to this machine"
        )
    return local_path(path)


def _members(path: str | Path, filter_key: str | None) -> list[str]:
    """Names of the demos of a filter key, or of all, as robomimic sorts them."""
    place = local_file(path)
    complete_change(place)
    with open_dataset(place) as reader:
        return sorted(selected_demos(reader, DemoSource(str(place), filter_key)))


def _drawn(names: Sequence[str], number: int, shuffle: Shuffle) -> tuple[list[str], list[str]]:
    """So many of some names, and the others, drawn as robomimic does."""
    mask = np.zeros(len(names))
    mask[:number] = 1.0
    shuffle(mask)
    chosen = [name for name, is_in in zip(names, mask, strict=True) if is_in]
    others = [name for name, is_in in zip(names, mask, strict=True) if not is_in]
    return chosen, others


def _lengths(path: Path, key: str, names: Sequence[str]) -> list[int]:
    """Steps of each demo of a filter key, in the order of robomimic's `create_hdf5_filter_key`."""
    complete_change(path)
    lengths = {}
    with open_dataset(path) as reader:
        for name in names:
            demo = reader.demo(name)
            if demo is None:
                raise DatasetError(
                    f"filter key '{key}' cannot name demo '{name}', which {reader} lacks"
                    + did_you_mean(name, reader.names(reader.data))
                )
            lengths[name] = known_length(demo)
    return [lengths[name] for name in sorted(lengths)]


def _meeting(path: str | Path, names: Sequence[str], conditions: Conditions) -> list[str]:
    """The demos that meet conditions."""
    if not conditions.name:
        return list(names)
    file = DatasetFile.locate(local_file(path))
    with open_dataset(file) as reader:
        demos = [reader.known_demo(name) for name in names]
        refs = [DemoRef(file, demo.name, known_length(demo)) for demo in demos]
        solved = _successes(reader, demos) if conditions.success else [True] * len(refs)
    returns: Sequence[float | None] = [None] * len(refs)
    if (conditions.min_return, conditions.max_return) != (None, None):
        returns = demo_returns(refs)

    def within(value: float | None, low: float | None, high: float | None) -> bool:
        return value is None or ((low is None or value >= low) and (high is None or value <= high))

    return [
        ref.name
        for ref, is_solved, total in zip(refs, solved, returns, strict=True)
        if is_solved
        and within(total, conditions.min_return, conditions.max_return)
        and within(ref.length, conditions.min_length, conditions.max_length)
    ]


def _successes(reader: DatasetReader, demos: Sequence[DemoReader]) -> list[bool]:
    """Whether each demo solved its task, see `Conditions`."""
    told: list[Any] = [reader.attribute(demo.group, "success", str(demo)) for demo in demos]
    if all(isinstance(value, bool | int | float) for value in told):
        return [bool(value) for value in told]
    solved = []
    for demo in demos:
        rewards = read_array(demo, "rewards")
        if not np.isin(rewards, (0, 1)).all():
            raise DatasetError(
                f"{demo}: success is not known, as rewards are not all 0 or 1 and not all demos"
                " have the attribute 'success': choose by --min-return"
            )
        solved.append(bool(rewards.any()))
    return solved
