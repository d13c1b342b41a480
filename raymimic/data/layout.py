"""The structure of a valid dataset, and every error about it.

The format is robomimic's HDF5: `data/<demo>/{obs/<key>, next_obs/<key>, actions, rewards, dones}`
with one row per transition, the environment as JSON in `data.attrs["env_args"]`, and named
subsets of the demos ("filter keys") as lists of names in `mask/<filter key>`.

These variations are accepted: any numeric type, demo numbers with gaps, nested groups under `obs`
(key `robot/eef_pos`), no `mask`, no `env_args`, a wrong `total`. A missing or contradictory part
is a `DatasetError`, one sentence that names the file, the demo, the key and the remedy.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py

from raymimic.data.columns import (
    Column,
    ColumnRequest,
    DemoRef,
    DemoSource,
    Given,
    Layout,
    column_group,
    shape_metadata_of,
    warn_left_out,
    warn_once,
)
from raymimic.data.hdf5 import (
    DatasetFile,
    DatasetReader,
    DemoReader,
    MislistedObservationError,
    NumberArray,
    open_dataset,
)
from raymimic.data.images import better_modality, objection
from raymimic.data.metadata import demo_names, filter_key_members
from raymimic.data.reads import NEXT_OBS
from raymimic.errors import DatasetError, did_you_mean
from raymimic.observations.modality import modality_named


def shape_metadata(
    path: str | Path,
    all_obs_keys: Sequence[str],
    action_keys: Sequence[str] = ("actions",),
    modalities: Mapping[str, str] | None = None,
    allow_links: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Shapes that networks are built from, in robomimic's form.

    Args:
        path: local path or URI.
        all_obs_keys: observation keys of all networks.
        action_keys: datasets that make up the action vector.
        modalities: `low_dim`, `rgb`, `depth` or `scan` by key; a key that is left out is
            `low_dim`.
        allow_links: folders besides the file's own that its links may lead into.

    Returns:
        `ac_dim`, `all_shapes` (by sorted key, images as `[C, H, W]`), `all_obs_keys`,
        `use_images` and `use_depths`.

    Raises:
        DatasetError: the file cannot be read or lacks a key.
    """
    with open_dataset(path, allow_links) as reader:
        demo = reader.known_demo(next(iter(demo_names(reader)), ""))
        shapes = {key: _row_shape(demo.numbers(f"obs/{key}")) for key in all_obs_keys}
        ac_dim = sum(_action_width(demo, key, demo.numbers(key)) for key in action_keys)
    return shape_metadata_of(shapes, ac_dim, modalities or {})


def scan(sources: Sequence[DemoSource], request: ColumnRequest) -> Layout:
    """Checks the structure of every demo that will be read, without reading its data.

    Args:
        sources: the files and the subsets of their demos. Rows of all sources must agree in shape.
        request: the quantities to read.

    Returns:
        The demos in order (sources as given, demos by number) and their columns.

    Raises:
        DatasetError: an unknown filter key, a missing key, lengths or shapes that differ, …
    """
    demos: list[DemoRef] = []
    sizes: list[int] = []
    linked: list[frozenset[Path]] = []
    columns: dict[str, tuple[Column, str]] = {}
    lacking: dict[str, str] = {}
    spoiled: dict[str, str] = {}
    unwritten: dict[str, str] = {}
    for source in sources:
        file = DatasetFile.locate(source.path, source.allow_links)
        with open_dataset(file) as reader:
            names = selected_demos(reader, source)
            first = reader.known_demo(names[0])
            given = {key: x for key, x in source.given.items() if not first.has(f"obs/{key}")}
            for name in names:
                here = f"demo '{name}' of {reader}"
                demo = reader.known_demo(name)
                found, length = _inspect(demo, request, spoiled, unwritten, given)
                for key, column in found.items():
                    known, there = columns.setdefault(key, (column, here))
                    fault = disagreement(key, column, here, known, there)
                    if fault and column.needed:
                        raise DatasetError(fault)
                    if fault:
                        spoiled.setdefault(column_group(key), fault)
                for key in _optional(request) - {column_group(key) for key in found}:
                    lacking.setdefault(key, here)
                demos.append(DemoRef(file, name, length, given))
            sizes.append(len(names))
            linked.append(frozenset(reader.linked))

    for key in sorted(request.needs - {NEXT_OBS}):
        if key in lacking:
            raise DatasetError(
                f"{lacking[key]} has no '{key}', which this algorithm needs: add it to the file, or"
                " choose an algorithm that learns from observations and actions alone (bc)"
            )
    derive = NEXT_OBS in lacking and NEXT_OBS in request.needs
    if derive:
        warn_once(
            f"{lacking[NEXT_OBS]} has no next_obs: it is taken from the next row of obs (a demo's"
            " last step repeats its own observation)"
        )
    for key, reason in spoiled.items():
        warn_left_out(key, reason)
    for key, where in unwritten.items():
        warn_once(f"{where}: '{key}' was never written: it is read as the fill value")
    absent = lacking.keys() | spoiled.keys()  # from some demo, so that no batch may have it
    return Layout(
        demos=tuple(demos),
        source_sizes=tuple(sizes),
        linked=tuple(linked),
        columns={k: column for k, (column, _) in columns.items() if column_group(k) not in absent},
        derive_next_obs=derive,
    )


def disagreement(key: str, column: Column, here: str, other: Column, there: str) -> str:
    """Says of two demos that one training cannot take both; empty where it can.

    Args:
        key: name of the column.
        column: of one demo.
        here: that demo, as a user knows it.
        other: of the other demo.
        there: the other demo.
    """
    if (other.shape, other.image) == (column.shape, column.image):
        return ""
    return (
        f"{here}: rows of '{key}' {_difference(column, other)} in {there}; all demos of a training"
        " must agree: convert or remove one"
    )


def _difference(column: Column, other: Column) -> str:
    if column.shape != other.shape:
        return f"have shape {list(column.shape)}, but {list(other.shape)}"
    types = ("uint8", "another type than uint8")
    return "are of {}, but of {}".format(*(types if column.image else types[::-1]))


def _optional(request: ColumnRequest) -> set[str]:
    """The groups that a demo may lack: `rewards`, `dones`, `next_obs`, where asked for at all."""
    asked = set(request.dataset_keys) | request.needs
    if request.load_next_obs:
        asked.add(NEXT_OBS)
    return asked & {"rewards", "dones", NEXT_OBS}


def selected_demos(reader: DatasetReader, source: DemoSource) -> list[str]:
    """Names of a source's demos, in order.

    Raises:
        DatasetError: there are none, or no such filter key.
    """
    if source.demo_limit is not None and source.demo_limit < 1:
        raise DatasetError(
            f"{reader}: demo_limit is {source.demo_limit}, it must be at least 1 (or null)"
        )
    if source.filter_key is None:
        names = demo_names(reader)
        if not names:
            raise DatasetError(f"{reader} holds no demos: nothing in its group 'data' is a group")
        return names[: source.demo_limit]
    mask = reader.find(None, "mask", str(reader))
    known = reader.names(mask) if isinstance(mask, h5py.Group) else []
    if not isinstance(mask, h5py.Group) or not known:
        raise DatasetError(
            f"{reader} has no filter keys (no group 'mask'), but '{source.filter_key}' is asked"
            " for: leave the filter key out (null); train.validation_fraction=0.1 holds demos out"
            " without one"
        )
    item = reader.find(mask, source.filter_key, f"{reader}: in 'mask'")
    if item is None:
        raise DatasetError(
            f"{reader} has no filter key '{source.filter_key}'"
            + did_you_mean(source.filter_key, known)
        )
    if not isinstance(item, h5py.Dataset):
        raise DatasetError(f"{reader}: filter key '{source.filter_key}' is no list of names")
    names = filter_key_members(reader, item, source.filter_key)
    if not names:
        raise DatasetError(
            f"{reader}: filter key '{source.filter_key}' holds no demos; choose another (known are:"
            f" {', '.join(known)})"
        )
    for name in names:
        if reader.demo(name) is None:
            raise DatasetError(
                f"{reader}: filter key '{source.filter_key}' names demo '{name}', which is not in"
                " the file; write the filter key again"
            )
    return names[: source.demo_limit]


def _inspect(
    demo: DemoReader,
    request: ColumnRequest,
    spoiled: dict[str, str],
    unwritten: dict[str, str],
    given: Given,
) -> tuple[dict[str, Column], int]:
    """Columns that one demo has of those asked for, and its number of transitions.

    Args:
        demo: the demo.
        request: the quantities to read.
        spoiled: takes up columns that cannot be read and are not needed, with the reason.
        unwritten: collects arrays that were never written, with the demo.
        given: observations that the demo lacks, see `DemoSource`.
    """
    length = known_length(demo)
    optional = _optional(request)
    spare = optional - request.needs
    found: dict[str, Column] = {}
    absent: set[str] = set()
    for key, names in wanted_arrays(request).items():
        group = column_group(key)
        if group in absent or group in spoiled:
            continue
        if (name := key.partition("/")[2]) in given:
            found[key] = Column((key,), (), (len(given[name]),), needed=group not in spare)
            continue
        try:
            if group in optional and not demo.has(key):
                absent.add(group)
                continue
            column, never = checked_column(
                demo, key, names, length, request, found, needed=group not in spare
            )
            for part in never:
                unwritten.setdefault(part, str(demo))
            found[key] = column
        except DatasetError as error:
            if group not in spare:
                raise
            spoiled[group] = str(error)
    return {k: column for k, column in found.items() if column_group(k) not in absent}, length


def known_length(demo: DemoReader) -> int:
    """Number of transitions of a demo that a training can read.

    Raises:
        DatasetError: it is not known, or 0.
    """
    length = demo.length()
    if length is None:
        raise DatasetError(
            f"{demo} has neither the attribute 'num_samples' nor 'actions', so that its length is"
            " unknown; record it again, remove it, or choose others by a filter key"
        )
    if length < 1:
        raise DatasetError(f"{demo} has no samples; remove it")
    return length


def wanted_arrays(request: ColumnRequest) -> dict[str, tuple[str, ...]]:
    """The arrays of a demo that make up each column of a request, observations first."""
    wanted: dict[str, tuple[str, ...]] = {f"obs/{k}": (f"obs/{k}",) for k in request.obs_keys}
    wanted["actions"] = request.action_keys
    for key in sorted((set(request.dataset_keys) | request.needs) - {NEXT_OBS, "actions"}):
        wanted.setdefault(key, (key,))
    if NEXT_OBS in _optional(request):
        wanted |= {f"{NEXT_OBS}/{key}": (f"{NEXT_OBS}/{key}",) for key in request.obs_keys}
    return wanted


def checked_column(
    demo: DemoReader,
    key: str,
    names: tuple[str, ...],
    length: int,
    request: ColumnRequest,
    found: Mapping[str, Column],
    needed: bool = True,
) -> tuple[Column, list[str]]:
    """A column of one demo, whose structure is that which a training takes.

    Args:
        demo: the demo.
        key: name of the column.
        names: the arrays that make it up.
        length: rows that each must have.
        request: modalities of observations.
        found: the columns of this demo so far, its observations among them.
        needed: see `Column`.

    Returns:
        The column, and those of its arrays that were never written.

    Raises:
        DatasetError: an array is missing, is no array of numbers, or has another shape.
    """
    items = [demo.numbers(name) for name in names]
    for name, item in zip(names, items, strict=True):
        if item.shape[0] != length:
            raise DatasetError(
                f"{demo.reader}: lengths differ in demo '{demo.name}': '{name}' has"
                f" {item.shape[0]} rows, the demo {length} samples; cut or remove the demo"
            )
    column = _column(demo, key, names, items, request, needed)
    if column_group(key) == NEXT_OBS:
        _check_next(demo, key, column, found)
    return column, [name for name, item in zip(names, items, strict=True) if not item.written]


def _check_next(demo: DemoReader, key: str, column: Column, found: Mapping[str, Column]) -> None:
    """Makes sure that a next observation is like the observation of its key.

    Raises:
        DatasetError: its rows have another shape or type.
    """
    obs_key = f"obs/{key.partition('/')[2]}"
    known = found[obs_key]
    if (known.shape, known.image) != (column.shape, column.image):
        raise DatasetError(
            f"{demo}: rows of '{key}' {_difference(column, known)} in '{obs_key}'; convert one to "
            "the form of the other, or remove next_obs from all demos: it is then taken from the "
            "next row of obs"
        )


def _row_shape(item: NumberArray) -> tuple[int, ...]:
    """Shape of a row; one number per step is a row of one."""
    return item.shape[1:] or (1,)


def _action_width(demo: DemoReader, name: str, item: NumberArray) -> int:
    """Size of one part of the action vector; a flat list of numbers is one wide."""
    shape = item.shape
    if len(shape) > 2:
        raise DatasetError(
            f"{demo}: actions must be [N, D], but '{name}' is {list(shape)}; flatten it or change"
            " train.action_keys"
        )
    return int(shape[1]) if len(shape) == 2 else 1


def _column(
    demo: DemoReader,
    key: str,
    names: tuple[str, ...],
    items: list[NumberArray],
    request: ColumnRequest,
    needed: bool,
) -> Column:
    if key == "actions":
        widths = tuple(map(partial(_action_width, demo), names, items))
        return Column(names, widths, (sum(widths),))
    shape = items[0].shape[1:]
    if key in ("rewards", "dones"):
        if shape not in ((), (1,)):
            raise DatasetError(
                f"{demo}: '{key}' must be one number per transition, but is"
                f" {list(items[0].shape)}; convert the file"
            )
        return Column(names, (), (), needed=needed)
    if key.startswith(("obs/", f"{NEXT_OBS}/")):
        shape = _row_shape(items[0])
        _check_modality(demo, key, items[0], request)
    name = request.modalities.get(key.partition("/")[2], "low_dim")
    modality = modality_named(name, request.cut_depth)
    image = modality.keeps_bytes(shape, items[0].dtype)
    return Column(names, (), shape, image, needed, modality.cut_off)


def _check_modality(demo: DemoReader, name: str, item: NumberArray, request: ColumnRequest) -> None:
    """Makes sure that an observation can be what it is listed as.

    Raises:
        MislistedObservationError: it cannot.
    """
    own = name.partition("/")[2]
    listed = request.modalities.get(own)
    fault = None if listed is None else objection(_row_shape(item), item.dtype, listed)
    if fault is None:
        return
    fits: dict[str, str] = {}
    for key, modality in request.modalities.items():
        try:
            found = demo.numbers(f"obs/{key}")
        except DatasetError:
            continue  # the user is told of one fault at a time
        if fit := better_modality(_row_shape(found), found.dtype, modality):
            fits[key] = fit
    message = f"{demo}: '{name}' is listed as {listed}, but {fault}"
    raise MislistedObservationError(message, own, fits)
