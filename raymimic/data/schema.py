"""What a valid dataset is, and every complaint about one.

The format is robomimic's HDF5: ``data/<demo>/{obs/<key>, next_obs/<key>, actions, rewards, dones}``
with one row per transition, the environment as JSON in ``data.attrs["env_args"]``, and named
subsets of the demos ("filter keys") as lists of names in ``mask/<filter key>``.

Files as people have them are taken where their meaning is plain: any numeric type, demo numbers
with gaps, nested groups under ``obs`` (key ``robot/eef_pos``), no ``mask``, no ``env_args``, a
wrong ``total``. What is missing or contradicts itself is a :class:`DatasetError`, in one sentence
that names the file, the demo, the key and the remedy.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raymimic.data.fetch import local_path
from raymimic.errors import DatasetError, did_you_mean

logger = logging.getLogger(__name__)

NEXT_OBS = "next_obs"
# What an algorithm needs that is no column: actions in [-1, 1] after normalisation.
BOUNDED_ACTIONS = "bounded_actions"
"""Name of the group, and of the need, of the observations after each step."""

_METADATA_CACHE_BYTES = 1 << 18
_DIGEST_WHOLE_BYTES = 1 << 31
_DIGEST_BLOCK_BYTES = 1 << 20
_DIGEST_BLOCKS = 1024


@dataclass(frozen=True)
class DemoSource:
    """Some demos of one file.

    Attributes:
        path: local path or URI.
        filter_key: name under ``mask/``; None takes all demos.
        demo_limit: take only the first so many, in order of demo number.
    """

    path: str
    filter_key: str | None = None
    demo_limit: int | None = None


@dataclass(frozen=True)
class ColumnRequest:
    """What to read of each transition.

    Attributes:
        obs_keys: keys under ``obs/``.
        action_keys: datasets that make up the action vector, in this order.
        dataset_keys: further datasets, such as ``rewards``. ``rewards`` and ``dones`` are left out
            of the batches of a file that lacks them, unless ``needs`` holds them (robomimic would
            serve zeros); any other key must be there.
        load_next_obs: read ``next_obs`` where the file has it.
        needs: what an algorithm cannot do without, of ``{"next_obs", "rewards", "dones"}``.
    """

    obs_keys: tuple[str, ...]
    action_keys: tuple[str, ...] = ("actions",)
    dataset_keys: tuple[str, ...] = ("actions", "rewards", "dones")
    load_next_obs: bool = True
    needs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Demo:
    """One demonstration: its file, its name in the file, its number of transitions."""

    path: Path
    name: str
    length: int


@dataclass(frozen=True)
class Column:
    """One quantity of each transition.

    Attributes:
        parts: datasets inside a demo that are concatenated along the last axis.
        widths: the last axis' size of each part.
        shape: shape of one row.
        image: whether rows are images kept as uint8.
    """

    parts: tuple[str, ...]
    widths: tuple[int, ...]
    shape: tuple[int, ...]
    image: bool = False


@dataclass(frozen=True)
class Layout:
    """What :func:`scan` found: the demos to read, in order, and what their rows hold.

    Attributes:
        demos: all demos of all sources.
        source_sizes: how many of the demos each source has.
        columns: by name, for example ``obs/flat``, ``next_obs/flat``, ``actions``, ``rewards``.
        derive_next_obs: whether ``next_obs`` is wanted and has to be taken from the next row of
            ``obs``.
    """

    demos: tuple[Demo, ...]
    source_sizes: tuple[int, ...]
    columns: dict[str, Column]
    derive_next_obs: bool

    @cached_property
    def lengths(self) -> np.ndarray:
        """Transitions of each demo, ``[num_demos]``."""
        return np.array([demo.length for demo in self.demos], dtype=np.int64)

    def shape_metadata(self, modalities: Mapping[str, str]) -> dict[str, Any]:
        """As :func:`shape_metadata`, for the columns of this layout."""
        shapes = {
            key.removeprefix("obs/"): column.shape
            for key, column in self.columns.items()
            if key.startswith("obs/")
        }
        return _shape_metadata(shapes, self.columns["actions"].shape[0], modalities)


@dataclass(frozen=True)
class DatasetMeta:
    """What a file says about itself, without its data being read.

    Attributes:
        path: the local file.
        env_meta: environment as robomimic names it: ``env_name``, ``type``, ``env_kwargs``
            (``{}`` where left out). Empty when the file has no ``env_args``.
        num_demos: demos in the file.
        num_transitions: rows of all demos, counted.
        filter_keys: names of demos by filter key.
        obs_shapes: row shape of each observation key of the first demo.
        attrs: further attributes of ``data``, such as measured returns.
    """

    path: Path
    env_meta: dict[str, Any]
    num_demos: int
    num_transitions: int
    filter_keys: dict[str, list[str]]
    obs_shapes: dict[str, tuple[int, ...]]
    attrs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """Digest of the file's content, see :func:`content_digest`."""
        return content_digest(self.path)


def content_digest(path: str | Path) -> str:
    """Digest of a file's bytes, to tell datasets apart.

    Args:
        path: local path or URI.

    Returns:
        ``"sha256:<hex>"`` over the whole file; beyond 2 GiB ``"sha256-sampled:<hex>"`` over its
        size and 1024 blocks of 1 MiB spread evenly, so that a large file does not delay a start.
    """
    file = local_path(path)
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= _DIGEST_WHOLE_BYTES:
            while block := stream.read(_DIGEST_BLOCK_BYTES):
                digest.update(block)
            return f"sha256:{digest.hexdigest()}"
        digest.update(str(size).encode())
        for i in range(_DIGEST_BLOCKS):
            stream.seek(i * (size - _DIGEST_BLOCK_BYTES) // (_DIGEST_BLOCKS - 1))
            digest.update(stream.read(_DIGEST_BLOCK_BYTES))
    return f"sha256-sampled:{digest.hexdigest()}"


@contextmanager
def open_dataset(path: str | Path) -> Iterator[h5py.File]:
    """Opens a dataset for reading.

    Args:
        path: local path or URI.

    Yields:
        The open file, which has a group ``data`` with at least one demo.

    Raises:
        DatasetError: the file is missing, empty, truncated, not HDF5 or has no demos, or what is
            read from it while it is open turns out to be damaged.
    """
    file = local_path(path)
    if file.is_dir():
        raise DatasetError(f"dataset '{file}' is a folder: name the .hdf5 file in it")
    if file.stat().st_size == 0:
        raise DatasetError(f"dataset '{file}' is empty (0 bytes): make or download it again")
    try:
        if not h5py.is_hdf5(file):
            raise DatasetError(
                f"dataset '{file}' is not an HDF5 file: train.data takes robomimic's HDF5 format"
            )
        with h5py.File(file, "r", locking="best-effort") as handle:
            _limit_metadata_cache(handle)
            if not isinstance(handle.get("data"), h5py.Group):
                raise DatasetError(
                    f"dataset '{file}' has no group 'data': it is HDF5, but not in robomimic's"
                    " format (data/<demo>/obs, data/<demo>/actions, …)"
                )
            if not demo_names(handle):
                raise DatasetError(
                    f"dataset '{file}' holds no demos: its group 'data' is empty; record or"
                    " convert the demonstrations again"
                )
            yield handle
    except PermissionError as error:
        raise DatasetError(f"dataset '{file}' may not be read: check its permissions") from error
    except (OSError, RuntimeError, KeyError) as error:  # what h5py raises for damaged files
        if "truncated" in str(error):
            raise DatasetError(
                f"dataset '{file}' is truncated (an interrupted copy or recording): copy or make"
                " it again"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DatasetError(
            f"dataset '{file}' cannot be read ({reason}): it is damaged or in use; copy or make"
            " it again"
        ) from error


def _limit_metadata_cache(handle: h5py.File) -> None:
    """Keeps HDF5's own memory small: left alone it takes 15 kB for each demo, and keeps it."""
    limits = handle.id.get_mdc_config()
    limits.set_initial_size = True
    limits.initial_size = limits.min_size = limits.max_size = _METADATA_CACHE_BYTES
    handle.id.set_mdc_config(limits)


def demo_names(handle: h5py.File) -> list[str]:
    """Names of all demos of an open file, by number (``demo_2`` before ``demo_10``)."""
    names = (name for name, item in handle["data"].items() if isinstance(item, h5py.Group))
    return sorted(names, key=_demo_order)


def _demo_order(name: str) -> tuple[int, str]:
    number = re.search(r"\d+$", name)
    return (int(number.group()) if number else -1, name)


def filter_keys(handle: h5py.File) -> dict[str, list[str]]:
    """The named subsets of an open file's demos, each in order of demo number."""
    mask = handle.get("mask")
    if not isinstance(mask, h5py.Group):
        return {}
    return {
        key: sorted((_text(name) for name in np.ravel(names[()])), key=_demo_order)
        for key, names in mask.items()
        if isinstance(names, h5py.Dataset)
    }


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def read_metadata(path: str | Path) -> DatasetMeta:
    """Reads what a file says about itself.

    Args:
        path: local path or URI.

    Raises:
        DatasetError: the file cannot be read, or its ``env_args`` are not a JSON object.
    """
    with open_dataset(path) as handle:
        file, data = Path(handle.filename), handle["data"]
        names = demo_names(handle)
        total = sum(_demo_length(file, data[name]) for name in names)
        attrs = {key: _plain(value) for key, value in data.attrs.items()}
        env_args = attrs.pop("env_args", None)
        declared = attrs.pop("total", total)
        if declared != total:
            logger.warning(
                "%s: data.attrs['total'] says %s, its demos hold %s transitions; the count is used",
                *(file, declared, total),
            )
        return DatasetMeta(
            path=file,
            env_meta=_env_meta(file, env_args),
            num_demos=len(names),
            num_transitions=total,
            filter_keys=filter_keys(handle),
            obs_shapes=_leaf_shapes(data[names[0]].get("obs")),
            attrs=attrs,
        )


def _plain(value: Any) -> Any:
    """An HDF5 attribute as a plain Python value."""
    if isinstance(value, bytes):
        return value.decode()
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _env_meta(file: Path, env_args: object) -> dict[str, Any]:
    if env_args is None:
        return {}
    try:
        env_meta = json.loads(str(env_args))
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"dataset '{file}': data.attrs['env_args'] is not JSON ({error}); write the"
            " environment's env_name, type and env_kwargs there"
        ) from error
    if not isinstance(env_meta, dict) or "env_name" not in env_meta:
        raise DatasetError(
            f"dataset '{file}': data.attrs['env_args'] has no 'env_name'; write the environment's"
            " env_name, type and env_kwargs there"
        )
    return {**env_meta, "env_kwargs": env_meta.get("env_kwargs") or {}}


def _demo_length(file: Path, demo: h5py.Group) -> int:
    """Transitions of a demo: ``num_samples``, or the rows of its actions."""
    if "num_samples" in demo.attrs:
        return int(demo.attrs["num_samples"])
    if isinstance(demo.get("actions"), h5py.Dataset):
        return int(demo["actions"].shape[0])
    raise DatasetError(
        f"dataset '{file}': demo '{_name(demo)}' has neither the attribute 'num_samples' nor"
        " 'actions', so that its length is unknown; record it again or remove it"
    )


def _name(demo: h5py.Group) -> str:
    return str(demo.name).rsplit("/", 1)[-1]


def _leaf_shapes(group: object) -> dict[str, tuple[int, ...]]:
    """Row shape of each dataset at any depth of a group."""
    shapes: dict[str, tuple[int, ...]] = {}
    if isinstance(group, h5py.Group):

        def visit(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.shape:
                shapes[name] = tuple(item.shape[1:])

        group.visititems(visit)
    return shapes


def processed_shape(shape: Sequence[int], modality: str) -> list[int]:
    """Shape of an observation as networks see it: images channel first, all else unchanged."""
    if modality in ("rgb", "depth") and len(shape) == 3:
        return [shape[2], shape[0], shape[1]]
    return list(shape)


def shape_metadata(
    path: str | Path,
    all_obs_keys: Sequence[str],
    action_keys: Sequence[str] = ("actions",),
    modalities: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Shapes that networks are built from, in robomimic's form.

    Args:
        path: local path or URI.
        all_obs_keys: observation keys of all networks.
        action_keys: datasets that make up the action vector.
        modalities: ``low_dim``, ``rgb``, ``depth`` or ``scan`` by key; a key that is left out is
            ``low_dim``.

    Returns:
        ``ac_dim``, ``all_shapes`` (by sorted key, images as ``[C, H, W]``), ``all_obs_keys``,
        ``use_images`` and ``use_depths``.

    Raises:
        DatasetError: the file cannot be read or lacks a key.
    """
    with open_dataset(path) as handle:
        file, demo = Path(handle.filename), handle["data"][demo_names(handle)[0]]
        shapes = {key: _dataset(file, demo, f"obs/{key}").shape[1:] for key in all_obs_keys}
        ac_dim = sum(_action_width(file, demo, key) for key in action_keys)
    return _shape_metadata(shapes, ac_dim, modalities or {})


def _shape_metadata(
    shapes: Mapping[str, Sequence[int]], ac_dim: int, modalities: Mapping[str, str]
) -> dict[str, Any]:
    kinds = {key: modalities.get(key, "low_dim") for key in sorted(shapes)}
    return {
        "ac_dim": ac_dim,
        "all_shapes": {key: processed_shape(shapes[key], kinds[key]) for key in kinds},
        "all_obs_keys": list(kinds),
        "use_images": "rgb" in kinds.values(),
        "use_depths": "depth" in kinds.values(),
    }


def scan(sources: Sequence[DemoSource], request: ColumnRequest) -> Layout:
    """Checks the structure of every demo that will be read, without reading its data.

    Args:
        sources: the files and the subsets of their demos. Rows of all sources must agree in shape.
        request: what to read of each transition.

    Returns:
        The demos in order (sources as given, demos by number) and their columns.

    Raises:
        DatasetError: an unknown filter key, a missing key, lengths or shapes that differ, …
    """
    demos: list[Demo] = []
    sizes: list[int] = []
    columns: dict[str, tuple[Column, str]] = {}
    lacking: dict[str, str] = {}
    for source in sources:
        with open_dataset(source.path) as handle:
            file = Path(handle.filename)
            names = _selected(file, handle, source)
            for name in names:
                here = f"demo '{name}' of dataset '{file}'"
                found, length = _inspect(file, handle["data"][name], request)
                for key, column in found.items():
                    known, there = columns.setdefault(key, (column, here))
                    if known.shape != column.shape:
                        raise DatasetError(
                            f"{here}: rows of '{key}' have shape {list(column.shape)}, but"
                            f" {list(known.shape)} in {there}; all demos of a training must agree:"
                            " convert or remove one"
                        )
                for key in _optional(request) - {name.split("/")[0] for name in found}:
                    lacking.setdefault(key, here)
                demos.append(Demo(file, name, length))
            sizes.append(len(names))

    for key in sorted(request.needs - {NEXT_OBS}):
        if key in lacking:
            raise DatasetError(
                f"{lacking[key]} has no '{key}', which this algorithm needs: add it to the file, or"
                " choose an algorithm that learns from observations and actions alone (bc)"
            )
    derive = NEXT_OBS in lacking and NEXT_OBS in request.needs
    if derive:
        logger.warning(
            "%s has no next_obs: it is taken from the next row of obs (a demo's last step repeats"
            " its own observation)",
            lacking[NEXT_OBS],
        )
    absent = {
        key
        for key in columns
        if key.split("/")[0] in lacking  # some demo lacks it, so no batch may have it
    }
    return Layout(
        demos=tuple(demos),
        source_sizes=tuple(sizes),
        columns={key: column for key, (column, _) in columns.items() if key not in absent},
        derive_next_obs=derive,
    )


def _optional(request: ColumnRequest) -> set[str]:
    """What a demo may lack: ``rewards``, ``dones``, ``next_obs``, where asked for at all."""
    asked = set(request.dataset_keys) | request.needs
    if request.load_next_obs:
        asked.add(NEXT_OBS)
    return asked & {"rewards", "dones", NEXT_OBS}


def _selected(file: Path, handle: h5py.File, source: DemoSource) -> list[str]:
    """Names of a source's demos, in order."""
    known = demo_names(handle)
    names = known
    if source.filter_key is not None:
        keys = filter_keys(handle)
        if not keys:
            raise DatasetError(
                f"dataset '{file}' has no filter keys (no group 'mask'), but"
                f" '{source.filter_key}' is asked for: leave the filter key out (null)"
            )
        if source.filter_key not in keys:
            raise DatasetError(
                f"dataset '{file}' has no filter key '{source.filter_key}'"
                + did_you_mean(source.filter_key, keys)
            )
        names = keys[source.filter_key]
        if not names:
            raise DatasetError(
                f"dataset '{file}': filter key '{source.filter_key}' holds no demos; choose another"
                f" (known are: {', '.join(sorted(keys))})"
            )
        if unknown := sorted(set(names) - set(known)):
            raise DatasetError(
                f"dataset '{file}': filter key '{source.filter_key}' names demo '{unknown[0]}',"
                " which is not in the file; write the filter key again"
            )
    if source.demo_limit is not None and source.demo_limit < 1:
        raise DatasetError(
            f"dataset '{file}': demo_limit is {source.demo_limit}, it must be at least 1 (or null)"
        )
    return names[: source.demo_limit]


def _inspect(file: Path, demo: h5py.Group, request: ColumnRequest) -> tuple[dict[str, Column], int]:
    """Columns that one demo has of those asked for, and its number of transitions."""
    parts: dict[str, tuple[str, ...]] = {f"obs/{k}": (f"obs/{k}",) for k in request.obs_keys}
    parts["actions"] = request.action_keys
    optional = _optional(request)
    for key in sorted(set(request.dataset_keys) | request.needs):
        if key not in parts and key != NEXT_OBS and (key in demo or key not in optional):
            parts[key] = (key,)
    if NEXT_OBS in optional and all(f"{NEXT_OBS}/{key}" in demo for key in request.obs_keys):
        parts |= {f"{NEXT_OBS}/{key}": (f"{NEXT_OBS}/{key}",) for key in request.obs_keys}

    length = _demo_length(file, demo)
    if length < 1:
        raise DatasetError(f"dataset '{file}': demo '{_name(demo)}' has no samples; remove it")
    found: dict[str, Column] = {}
    for key, names in parts.items():
        items = [_dataset(file, demo, name) for name in names]
        for name, item in zip(names, items, strict=True):
            if item.shape[0] != length:
                raise DatasetError(
                    f"dataset '{file}': lengths differ in demo '{_name(demo)}': '{name}' has"
                    f" {item.shape[0]} rows, the demo {length} samples; cut or remove the demo"
                )
        found[key] = _column(file, demo, key, names, items)
    return found, length


def _dataset(file: Path, demo: h5py.Group, name: str) -> h5py.Dataset:
    """A dataset of a demo, or the complaint that it is not there."""
    where = f"dataset '{file}': demo '{_name(demo)}'"
    item = demo.get(name)
    if item is None:
        group, _, key = name.partition("/")
        if group in ("obs", NEXT_OBS) and key:
            known = _leaf_shapes(demo.get(group))
            raise DatasetError(
                f"{where} has no observation '{key}'{did_you_mean(key, known)} (see"
                " observation.modalities)"
            )
        raise DatasetError(f"{where} has no '{name}'{did_you_mean(name, _leaf_shapes(demo))}")
    if isinstance(item, h5py.Group):
        members = ", ".join(f"{name.partition('/')[2] or name}/{key}" for key in item)
        raise DatasetError(f"{where}: '{name}' is a group: name its members, such as {members}")
    if not isinstance(item, h5py.Dataset) or not item.shape or item.dtype.kind not in "biuf":
        raise DatasetError(
            f"{where}: '{name}' is not an array of numbers with one row per transition; leave the"
            " key out"
        )
    return item


def _action_width(file: Path, demo: h5py.Group, name: str) -> int:
    """Size of one part of the action vector; a flat list of numbers is one wide."""
    shape = _dataset(file, demo, name).shape
    if len(shape) > 2:
        raise DatasetError(
            f"dataset '{file}': demo '{_name(demo)}': actions must be [N, D], but '{name}' is"
            f" {list(shape)}; flatten it or change train.action_keys"
        )
    return int(shape[1]) if len(shape) == 2 else 1


def _column(
    file: Path, demo: h5py.Group, key: str, names: tuple[str, ...], items: list[h5py.Dataset]
) -> Column:
    shape = tuple(items[0].shape[1:])
    if key == "actions":
        widths = tuple(_action_width(file, demo, name) for name in names)
        return Column(names, widths, (sum(widths),))
    if key in ("rewards", "dones"):
        if shape not in ((), (1,)):
            raise DatasetError(
                f"dataset '{file}': demo '{_name(demo)}': '{key}' must be one number per"
                f" transition, but is {list(items[0].shape)}; convert the file"
            )
        shape = ()
    image = len(shape) == 3 and items[0].dtype == np.uint8
    return Column(names, (), shape, image)
