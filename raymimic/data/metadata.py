"""Metadata: a dataset's environment, filter keys, counts and digest, read without its data."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py

from raymimic.data.fetch import local_path
from raymimic.data.hdf5 import DatasetReader, DemoReader, open_dataset
from raymimic.envs.env_base import EnvType
from raymimic.errors import DatasetError, printable
from raymimic.storage import unread

logger = logging.getLogger(__name__)

_DIGEST_WHOLE_BYTES = 1 << 31
_DIGEST_BLOCK_BYTES = 1 << 20
_DIGEST_BLOCKS = 1024


@dataclass(frozen=True)
class DatasetMeta:
    """A file's statements about itself, read without its data.

    Attributes:
        path: the local file.
        env_meta: see `read_env_meta`.
        num_demos: demos in the file.
        num_transitions: rows of all demos, counted.
        filter_keys: names of demos by filter key.
        obs_shapes: row shape of each observation key of the first demo.
        attrs: further attributes of `data`, such as measured returns.
        demos: names of the demos, in order of demo number.
        others: groups in `data` that are no demos.
        problems: faults of demos, filter keys and links, a sentence each.
        linked: other files that links and virtual datasets lead into.
    """

    path: Path
    env_meta: dict[str, Any]
    num_demos: int
    num_transitions: int
    filter_keys: dict[str, list[str]]
    obs_shapes: dict[str, tuple[int, ...]]
    attrs: dict[str, Any] = field(default_factory=dict)
    demos: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    linked: frozenset[Path] = frozenset()

    @cached_property
    def digest(self) -> str:
        """Digest of the content, see `content_digest`."""
        return content_digest(self.path, self.linked)


def content_digest(path: str | Path, linked: Collection[Path] = ()) -> str:
    """Digest of a dataset's bytes, to tell datasets apart; file names do not count.

    Args:
        path: local path or URI.
        linked: other files that the dataset's links and virtual datasets lead into.

    Returns:
        `"sha256:<hex>"` over the whole file; beyond 2 GiB `"sha256-sampled:<hex>"` over its
        size and 1024 blocks of 1 MiB spread evenly, so that a large file does not delay a start.
        With linked files `"sha256-linked:<hex>"` over the digests of all of them.
    """
    own = _file_digest(local_path(path))
    if not linked:
        return own
    digests = [own, *sorted(_file_digest(file) for file in linked)]
    return f"sha256-linked:{hashlib.sha256(' '.join(digests).encode()).hexdigest()}"


def digest_of_files(files: Sequence[Path]) -> str:
    """Digest of a dataset that consists of several local files, as `content_digest`.

    Returns:
        that of a single file; of several `"sha256-folder:<hex>"` over their paths below the
        folder that they have in common and their digests. Beyond 2 GiB altogether each file gives
        its share of the 1024 blocks, two at least.
    """
    if len(files) == 1:
        return _file_digest(files[0])
    digest = hashlib.sha256()
    try:
        total = sum(file.stat().st_size for file in files)
    except OSError as error:
        raise DatasetError(f"'{error.filename}' cannot be read: {unread(error)}") from error
    above = Path(os.path.commonpath([file.absolute().parent for file in files]))
    for file in sorted(files):
        name = file.absolute().relative_to(above)
        digest.update(f"{name.as_posix()!r} {_file_digest(file, total)}\n".encode())
    return f"sha256-folder:{digest.hexdigest()}"


def _file_digest(file: Path, total: int | None = None) -> str:
    try:
        return _digest_of(file, total)
    except OSError as error:
        raise DatasetError(f"dataset '{file}' cannot be read: {unread(error)}") from error


def _digest_of(file: Path, total: int | None = None) -> str:
    """Digest of a file that belongs to files of so many bytes in all."""
    size = file.stat().st_size
    total = size if total is None else total
    blocks = max(2, _DIGEST_BLOCKS * size // max(total, 1))
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if total <= _DIGEST_WHOLE_BYTES or size <= 2 * _DIGEST_BLOCK_BYTES:
            while block := stream.read(_DIGEST_BLOCK_BYTES):
                digest.update(block)
            return f"sha256:{digest.hexdigest()}"
        digest.update(str(size).encode())
        for i in range(blocks):
            stream.seek(i * (size - _DIGEST_BLOCK_BYTES) // (blocks - 1))
            digest.update(stream.read(_DIGEST_BLOCK_BYTES))
    return f"sha256-sampled:{digest.hexdigest()}"


def demo_names(reader: DatasetReader) -> list[str]:
    """Names of all demos of an open dataset, by number (`demo_2` before `demo_10`).

    Raises:
        DatasetError: one is a link that leads nowhere.
    """
    names = sorted(reader.names(reader.data), key=demo_order)
    return [name for name in names if reader.demo(name) is not None]


def demo_order(name: str) -> tuple[int, str]:
    """Sorts names by the number that they end in (`demo_2` before `demo_10`)."""
    number = re.search(r"\d{1,18}$", name)
    return (int(number.group()) if number else -1, name)


def filter_keys(reader: DatasetReader, problems: list[str]) -> dict[str, list[str]]:
    """The named subsets of an open dataset's demos, each in order of demo number.

    Args:
        reader: the open dataset.
        problems: collects the faults of those that cannot be read.
    """
    found: dict[str, list[str]] = {}
    try:
        mask = reader.find(None, "mask", str(reader))
    except DatasetError as error:
        problems.append(str(error))
        return found
    for key in reader.names(mask) if isinstance(mask, h5py.Group) else ():
        try:
            item = reader.find(mask, key, f"{reader}: in 'mask'")
            if isinstance(item, h5py.Dataset):
                found[key] = filter_key_members(reader, item, key)
        except DatasetError as error:
            problems.append(str(error))
    return found


def filter_key_members(reader: DatasetReader, item: h5py.Dataset, key: str) -> list[str]:
    """Names of the demos of a filter key, in order of demo number.

    Args:
        reader: the open dataset.
        item: the filter key's list of names.
        key: its name, for complaints.
    """
    return sorted(reader.texts(item, f"{reader}: filter key '{key}'"), key=demo_order)


def read_metadata(
    path: str | Path,
    allow_links: Sequence[str | Path] = (),
    look: Callable[[DemoReader, int, dict[str, h5py.Dataset]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DatasetMeta:
    """Reads a file's statements about itself.

    Args:
        path: local path or URI.
        allow_links: folders besides the file's own that its links may lead into.
        look: is given each demo while it is open, its length, and all its datasets by name.
        progress: called with the number of groups done and of all groups.

    Returns:
        All of it, faults of demos, filter keys and links in `problems`.

    Raises:
        DatasetError: the file cannot be read, or its `env_args` are not a JSON object.
    """
    with open_dataset(path, allow_links) as reader:
        lengths: dict[str, int] = {}
        others: list[str] = []
        problems: list[str] = []
        shapes: dict[str, tuple[int, ...]] = {}
        names = sorted(reader.names(reader.data), key=demo_order)
        for number, name in enumerate(names, 1):
            if progress is not None:
                progress(number, len(names))
            try:
                demo = reader.demo(name)
                length = None if demo is None else demo.length()
            except DatasetError as error:
                problems.append(str(error))
                continue
            if demo is None:
                continue
            if length is None:
                others.append(name)
                continue
            items = demo.datasets(problems=problems)
            if look is not None:
                look(demo, length, items)
            if not lengths:
                found = _shapes(demo, problems)
                shapes = {k[4:]: shape for k, shape in found.items() if k.startswith("obs/")}
            lengths[name] = length
        masks = filter_keys(reader, problems)
        total = sum(lengths.values())
        attrs = reader.attributes(reader.data)
        attrs.pop("env_args", None)
        declared = attrs.pop("total", None)
        if declared not in (None, total):
            logger.warning(
                "%s: data.attrs['total'] says %s, its demos hold %s transitions; the count is used",
                *(reader.path, printable(str(declared)), total),
            )
        return DatasetMeta(
            path=reader.path,
            env_meta=env_meta_of(reader),
            num_demos=len(lengths),
            num_transitions=total,
            filter_keys=masks,
            obs_shapes=shapes,
            attrs=attrs,
            demos=tuple(lengths),
            others=tuple(others),
            problems=tuple(problems),
            linked=frozenset(reader.linked),
        )


def _shapes(demo: DemoReader, problems: list[str]) -> dict[str, tuple[int, ...]]:
    try:
        return demo.shapes(problems=problems)
    except DatasetError as error:
        problems.append(str(error))
        return {}


def read_env_meta(path: str | Path, allow_links: Sequence[str | Path] = ()) -> dict[str, Any]:
    """Reads the environment in which a dataset was recorded.

    Args:
        path: local path or URI.
        allow_links: folders besides the file's own that its links may lead into.

    Returns:
        The environment as robomimic names it: `env_name`, `type`, `env_kwargs` (`{}` where
        left out). Empty when the file has no `env_args`, or empty ones.

    Raises:
        DatasetError: `env_args` are not a JSON object.
    """
    with open_dataset(path, allow_links) as reader:
        return env_meta_of(reader)


def env_meta_of(reader: DatasetReader) -> dict[str, Any]:
    """As `read_env_meta`, of an open dataset."""
    where = f"{reader}: data.attrs['env_args']"
    remedy = "write the environment's env_name, type and env_kwargs there"
    text = reader.attribute(reader.data, "env_args", str(reader))
    if text is None or text == "":
        return {}
    if not isinstance(text, str):
        raise DatasetError(f"{where} is {text!r}, not a JSON string; {remedy}")
    try:
        text.encode()
        env_meta = json.loads(text)
    except UnicodeEncodeError as error:
        raise DatasetError(f"{where} is not UTF-8; {remedy}") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{where} is not JSON ({error}); {remedy}") from error
    if env_meta in (None, "", {}):
        return {}
    if not isinstance(env_meta, dict):
        raise DatasetError(f"{where} is not a JSON object; {remedy}")
    env_kwargs = env_meta.get("env_kwargs") or {}
    if not isinstance(env_kwargs, dict):
        raise DatasetError(f"{where} has 'env_kwargs' that are not a JSON object; {remedy}")
    return {**env_meta, "env_kwargs": env_kwargs}


def is_of_robosuite(reader: DatasetReader) -> bool:
    """Whether the environment in which an open dataset was recorded is one of robosuite."""
    try:
        return env_meta_of(reader).get("type") == EnvType.ROBOSUITE_TYPE
    except DatasetError:  # those who need the environment complain of it
        return False
