"""diffusion_policy's replay buffers in Zarr (Chi et al. 2023, its `common/replay_buffer.py`).

A group `data` has an array `[N, ...]` for each key, `meta/episode_ends` the end of each episode.
The store is a folder or, as `.zarr.zip`, one file. Codecs of objects, such as `pickle`, run what
the file holds: the metadata of all arrays are read and checked before Zarr opens one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from raymimic import storage
from raymimic.data.convert.folders import inside, is_plain, parsed_object, renamed
from raymimic.data.convert.heads import Head, is_file, zip_members
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.fetch import local_path
from raymimic.data.hdf5 import reading
from raymimic.data.memory import free_memory
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.errors import DatasetError, pip_install

logger = logging.getLogger(__name__)

_ENDS = "meta/episode_ends"
_METADATA = {".zarray": 2, "zarr.json": 3}
"""Names of an array's metadata, and the version of Zarr's format."""
_RENAMED = {
    "action": "actions",
    "reward": "rewards",
    "done": "dones",
    "terminals": "dones",
    "timeouts": "truncated",
}
_MAY_BE_EMPTY = ("reward", "rewards", "done", "dones", "terminals", "timeouts", "truncated")
_NO_OBSERVATIONS = ("actions", "rewards", "dones", "truncated", "states")
_IMAGE_CODECS = ("jpeg2k", "jpegxl", "jpeg", "png", "webp")
_NUMBER_CODECS = (
    *("blosc", "zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "shuffle", "delta", "crc32"),
    *("adler32", "crc32c", "fletcher32", "fixedscaleoffset", "quantize", "bitround", "astype"),
    *("bytes", "transpose", "sharding_indexed"),
)
_CODECS = {*_NUMBER_CODECS, *(f"imagecodecs_{name}" for name in _IMAGE_CODECS)}
_BLOSC_HEAD = 16  # bytes of a chunk, of which the last four are the chunk's size
_NO_CHUNK = 2**64 - 1  # place, in a shard's index, of a chunk that is not stored
_SIDE = 16  # of an image at least: smaller arrays are tables


@register_format("zarr")
class ZarrReader(FormatReader):
    """Reads each array of `data` as an observation, but for actions, rewards and ends.

    Colour images of floating-point numbers, as PushT's, become bytes: whole numbers of 0 to 255 as
    they are, fractions of 0 to 1 times 255.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._path = local_path(source)
        self._notes: list[str] = []
        self._store = _Store(self._path)
        self._arrays = {
            key.removeprefix("data/"): what
            for key, what in self._store.arrays.items()
            if key.startswith("data/")
        }
        if "actions" not in renamed(self._arrays, _name, f"'{source}': 'data'"):
            raise DatasetError(
                f"'{source}' has no 'data/action', it holds {', '.join(self._arrays) or 'nothing'}:"
                " raymimic learns from actions, write them there"
            )

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether there is an array `meta/episode_ends` in a folder or in a .zip file."""
        if head.is_folder:
            place = storage.expanded(head.source) / _ENDS
            return any(is_file(str(place / name)) for name in _METADATA)
        return head.is_file and _prefix(zip_members(storage.expanded(head.source))) is not None

    @property
    def files(self) -> list[Path]:
        """The file, or all files of the folder."""
        return self._store.files

    @property
    def version(self) -> str:
        """The version of Zarr's format."""
        return f"zarr {self._store.version}"

    @property
    def env_meta(self) -> dict[str, Any]:
        """Not known."""
        return {}

    @property
    def num_episodes(self) -> int:
        """Entries of `episode_ends`."""
        return math.prod(self._store.arrays[_ENDS])

    @property
    def mapping(self) -> list[str]:
        """Of all arrays of `data`."""
        lines = [
            f"data/{key} -> {_name(key)}, {list(shape[1:])}" for key, shape in self._arrays.items()
        ]
        return [*lines, "meta/episode_ends -> demos", *self._notes]

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the episodes in the buffer's order."""
        with self._store.opened() as group:
            ends = self._ends(group)
            columns = {
                _name(key): _Column(group, f"data/{key}", f"'{self.source}': 'data/{key}'")
                for key in self._arrays
            }
            scales: dict[str, float | None] = {}
            for length in np.diff(ends, prepend=0).tolist():
                arrays = {key: column.take(length) for key, column in columns.items()}
                for key, x in arrays.items():
                    if _is_picture(x):
                        arrays[key] = self._bytes(key, x, scales)
                yield _episode(arrays)

    def _ends(self, group: Any) -> Array:
        """The end of each episode, checked against the rows."""
        what = f"'{self.source}': '{_ENDS}'"
        with reading(what):
            ends: Array = np.asarray(group[_ENDS][...])
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or np.any(np.diff(ends, prepend=0) <= 0):
            raise DatasetError(f"{what} is no list of rising whole numbers: make the file again")
        total = int(ends[-1]) if len(ends) else 0
        for key, shape in self._arrays.items():
            rows = shape[0] if shape else 0
            if rows != total:
                raise DatasetError(
                    f"'{self.source}': 'data/{key}' has {rows} rows, but {_ENDS} ends at {total}:"
                    " the file was cut, or is still being written; make or copy it again"
                )
        return ends

    def _bytes(self, key: str, x: Array, scales: dict[str, float | None]) -> Array:
        """Images of floating-point numbers as bytes, as the first episode has them.

        Args:
            key: of the observation.
            x: `[T, H, W, 3]`.
            scales: what numbers are multiplied by, by key; None: they are no colours. Of a key that
                comes for the first time it is found.
        """
        if key not in scales:
            scales[key] = _scale(x)
            how = {1.0: "whole numbers of 0 to 255", 255.0: "255 x, rounded"}.get(scales[key] or 0)
            self._notes.append(f"{key} is stored as {f'bytes: {how}' if how else 'it is'}")
        scale = scales[key]
        if scale is None:
            return x
        # Whole numbers of 0 and 1, such as a black picture's, are fractions too.
        found = _scale(x)
        if found != scale and not (found == 1.0 and x.max() <= 1):
            raise DatasetError(
                f"'{self.source}': '{key}' holds images of numbers from {x.min():g} to {x.max():g},"
                " other than those of the first episode: write bytes of 0 to 255"
            )
        return np.rint(x * scale).astype(np.uint8)


class _Store:
    """A store whose metadata were checked.

    Args:
        path: of the folder or the .zip file.

    Attributes:
        files: all of it.
        arrays: the shape of each array below `data`, and of `episode_ends`, by name.
        version: of Zarr's format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(f"'{path}'"):
            members = _members(path)
        prefix = _prefix(members)
        if prefix is None:
            raise DatasetError(f"'{path}' has no array '{_ENDS}': it is no replay buffer in Zarr")
        self._prefix = prefix
        self.files = [path] if path.is_file() else [inside(path, name) for name in members]
        self.version = 2 if f"{prefix}{_ENDS}/.zarray" in members else 3
        self._needs_images = False
        self._blosc: dict[str, _Shards | None] = {}
        self.arrays = dict(self._checked(sorted(members)))
        self._check_blosc(members)

    @contextlib.contextmanager
    def opened(self) -> Iterator[Any]:
        """Opens the group that holds `data` and `meta`."""
        zarr = _imported("zarr")
        if self._needs_images:
            _imported("imagecodecs.numcodecs").register_codecs()
        store: Any
        with reading(f"'{self._path}'"):
            if self._path.is_file():
                store = zarr.storage.ZipStore(self._path, mode="r", read_only=True)
            else:
                store = zarr.storage.LocalStore(self._path, read_only=True)
            group = zarr.open_group(
                store,
                mode="r",
                path=self._prefix.rstrip("/"),
                zarr_format=self.version,
                use_consolidated=False,  # a second copy of the metadata, not checked here
            )
        try:
            yield group
        finally:
            store.close()

    def _checked(self, members: list[str]) -> Iterator[tuple[str, tuple[int, ...]]]:
        for member in members:
            place, _, file = member.removeprefix(self._prefix).rpartition("/")
            if not member.startswith(self._prefix) or _METADATA.get(file) != self.version:
                continue
            if place != _ENDS and not place.startswith("data/"):
                continue
            what = f"'{self._path}': '{place}'"
            if not is_plain(place):
                raise DatasetError(f"{what} is a name that leads out of the store: do not use it")
            content = parsed_object(self._read(member), what)
            if content.get("node_type") == "group":
                continue
            with reading(what):
                if _ends_in_blosc(content):
                    self._blosc[f"{self._prefix}{place}/"] = None
                elif (shards := _Shards.of(content)) is not None:
                    self._blosc[f"{self._prefix}{place}/"] = shards
            yield place, self._shape(content, what)

    def _check_blosc(self, members: list[str]) -> None:
        """Refuses chunks that were cut: Blosc decodes them, from memory beyond their end."""
        with contextlib.ExitStack() as stack:
            archive = None
            if self._path.is_file():
                archive = stack.enter_context(zipfile.ZipFile(self._path))
            for member in members:
                file = member.rpartition("/")[2]
                if (
                    not member.startswith(tuple(self._blosc))
                    or file.startswith((".z", "zarr."))
                    or not file
                ):
                    continue
                shards = next(x for place, x in self._blosc.items() if member.startswith(place))
                what = f"'{self._path}': '{member}'"
                with reading(what):
                    opened: IO[bytes]
                    if archive is not None:
                        size = archive.getinfo(member).file_size
                        opened = archive.open(member)
                    else:
                        place = inside(self._path, member)
                        size = place.stat().st_size
                        opened = place.open("rb")
                    with opened as chunk:
                        spans = [(0, size)] if shards is None else shards.spans(chunk, size)
                        whole = all(_is_whole(chunk, *span, size) for span in spans)
                if not whole:
                    raise DatasetError(f"{what} is damaged or truncated; copy or make it again")

    def _shape(self, content: Mapping[str, Any], what: str) -> tuple[int, ...]:
        """The shape of an array that can be read without running what the file holds."""
        kind = content.get("dtype", content.get("data_type"))
        with reading(what):
            if not isinstance(kind, str) or np.dtype(kind).kind not in "biuf":
                raise DatasetError(
                    f"{what} holds {kind!r}, not numbers; objects could run any code: leave the"
                    " array out, or write numbers"
                )
            shape = tuple(int(n) for n in content["shape"])
        for codec in _codecs(content):
            if codec not in _CODECS:
                raise DatasetError(
                    f"{what} is stored by the codec '{codec}', which raymimic does not open"
                    " (codecs of objects can run any code): write numbers, by Blosc for example"
                )
            self._needs_images = self._needs_images or codec.startswith("imagecodecs_")
        return shape

    def _read(self, member: str) -> bytes:
        with reading(f"'{self._path}': '{member}'"):
            if not self._path.is_file():
                return inside(self._path, member).read_bytes()
            with zipfile.ZipFile(self._path) as archive:
                return archive.read(member)


@dataclass(frozen=True)
class _Shards:
    """The files of an array each of which holds many chunks that Blosc wrote, and their index.

    Attributes:
        chunks: in a shard.
        extra: bytes of the index beside a place and a size for each chunk: its checksum.
        at_end: whether the index is at the end of the file; else at its begin.
    """

    chunks: int
    extra: int
    at_end: bool

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> _Shards | None:
        """The shards of an array; None if it has none, or none of Blosc's chunks.

        Raises:
            ValueError: they cannot be checked.
        """
        last = (content.get("codecs") or [None])[-1]
        if not isinstance(last, dict) or last.get("name") != "sharding_indexed":
            return None
        given = last["configuration"]
        inner = list(_codecs({"codecs": given["codecs"]}))
        if "blosc" in inner and "sharding_indexed" in inner:
            raise ValueError("Blosc's chunks lie in shards within shards")
        if not _ends_in_blosc(given):
            return None
        index, first = given["index_codecs"], given["index_codecs"][0]
        names = [codec["name"] for codec in index]
        big = first.get("configuration", {}).get("endian", "little") != "little"
        if names not in (["bytes"], ["bytes", "crc32c"]) or big:
            raise ValueError(f"the index of its shards is stored by {json.dumps(index)}")
        outer = content["chunk_grid"]["configuration"]["chunk_shape"]
        counts = (int(n) // int(m) for n, m in zip(outer, given["chunk_shape"], strict=True))
        at_end = given.get("index_location", "end") == "end"
        return cls(math.prod(counts), 4 * (len(index) - 1), at_end)

    def spans(self, file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
        """Place and size of each chunk of a shard that is there.

        Args:
            file: of the shard.
            size: its bytes.
        """
        length = 16 * self.chunks
        file.seek(max(size - length - self.extra, 0) if self.at_end else 0)
        index = np.frombuffer(file.read(length), "<u8").reshape(self.chunks, 2)
        yield from index[index[:, 0] != _NO_CHUNK].tolist()


def _is_whole(file: IO[bytes], place: int, length: int, size: int) -> bool:
    """Whether a chunk of Blosc is as long as its head says.

    Args:
        file: that holds it.
        place: of its first byte.
        length: its bytes.
        size: of the file.
    """
    if length < _BLOSC_HEAD or place + length > size:
        return False
    file.seek(place)
    return int.from_bytes(file.read(_BLOSC_HEAD)[12:], "little") == length


def _is_picture(x: Array) -> bool:
    """Whether rows may be colour images of floating-point numbers."""
    shape = x.shape[1:]
    return x.dtype.kind == "f" and len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= _SIDE


def _scale(x: Array) -> float | None:
    """The factor that makes bytes of colours: 1 for whole numbers, 255 for fractions up to 1."""
    low, high = float(x.min()), float(x.max())
    if low >= 0 and high <= 255 and not np.any(x % 1):
        return 1.0
    return 255.0 if low >= 0 and high <= 1 else None


class _Column:
    """The rows of an array, each chunk read once."""

    def __init__(self, group: Any, name: str, what: str) -> None:
        with reading(what):
            array = group[name]
            absent = array.nchunks - array.nchunks_initialized
        self._array, self._what, self._at = array, what, 0
        self._step = int((getattr(array, "shards", None) or array.chunks)[0])
        self._row_bytes = array.dtype.itemsize * math.prod(array.shape[1:])
        self._left: Array = np.empty((0, *array.shape[1:]), array.dtype)
        # Zarr does not store a chunk of nothing but fill values: there may be no reward, no end.
        if absent == array.nchunks and name.removeprefix("data/") not in _MAY_BE_EMPTY:
            raise DatasetError(
                f"{what}: none of its {absent} chunks is there, so that all of it would be"
                f" {array.fill_value}: copy the store again, or delete the array if that is true"
            )
        if absent:
            logger.warning(
                "%s: %d of %d chunks are not there, so that their rows are %s: either all of them"
                " are, or the store was copied in part",
                *(what, absent, array.nchunks, array.fill_value),
            )

    def take(self, count: int) -> Array:
        """The next rows `[count, ...]`."""
        parts, have = [self._left], len(self._left)
        if have < count:
            chunks = math.ceil((count - have) / self._step)
            stop = min(self._at + chunks * self._step, self._array.shape[0])
            if (size := chunks * self._step * self._row_bytes) > free_memory():
                raise DatasetError(
                    f"{self._what}: one episode and the chunks that it lies in take {size:,} bytes,"
                    " more than the memory that is free"
                )
            with reading(self._what):
                parts.append(np.asarray(self._array[self._at : stop]))
            self._at = stop
        rows = np.concatenate(parts) if have else parts[-1]
        self._left = rows[count:].copy()  # frees the chunks
        return rows[:count]


def _episode(arrays: Mapping[str, Array]) -> RecordedEpisode:
    def flags(key: str) -> Array | None:
        return None if key not in arrays else (arrays[key].ravel() != 0).astype(np.int64)

    truncated = flags("truncated")
    obs = {k.removeprefix("obs/"): x for k, x in arrays.items() if k.startswith("obs/")}
    rewards = arrays.get("rewards")
    return RecordedEpisode(
        obs=obs,
        actions=arrays["actions"],
        rewards=None if rewards is None else rewards.ravel(),
        dones=flags("dones"),
        states=arrays.get("states"),
        others={} if truncated is None else {"truncated": truncated},
    )


def _name(key: str) -> str:
    name = _RENAMED.get(key, key)
    return name if name in _NO_OBSERVATIONS else f"obs/{name}"


def _members(path: Path) -> list[str]:
    """Names of all files of a store, relative to it."""
    if path.is_file():
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    found = []
    for folder, folders, files in os.walk(path):
        place = Path(folder).relative_to(path)
        found += [(place / name).as_posix() for name in files]
        for name in folders:
            if (Path(folder) / name).is_symlink():
                raise DatasetError(
                    f"'{Path(folder) / name}' is a link to a folder: copy the folder there if you"
                    " trust it"
                )
    return found


def _prefix(members: list[str]) -> str | None:
    """The folder, within a store, that holds `meta/episode_ends`."""
    for name in _METADATA:
        for member in members:
            if member == f"{_ENDS}/{name}" or member.endswith(f"/{_ENDS}/{name}"):
                return member.removesuffix(f"{_ENDS}/{name}")
    return None


def _codecs(content: Mapping[str, Any]) -> Iterator[str]:
    """Names of all codecs of an array, those within others too."""
    listed = [content.get("compressor"), *(content.get("filters") or [])]
    listed += content.get("codecs") or []
    listed += content.get("storage_transformers") or []
    for codec in listed:
        if codec is None:
            continue
        name = codec.get("id", codec.get("name")) if isinstance(codec, dict) else codec
        yield str(name).removeprefix("numcodecs.")
        inner = codec.get("configuration") if isinstance(codec, dict) else None
        if isinstance(inner, dict):
            yield from _codecs({"codecs": inner.get("codecs")})
            yield from _codecs({"codecs": inner.get("index_codecs")})


def _ends_in_blosc(content: Mapping[str, Any]) -> bool:
    """Whether the files of an array's chunks are what Blosc wrote."""
    last = content.get("compressor") or (content.get("codecs") or [None])[-1]
    name = last.get("id", last.get("name")) if isinstance(last, dict) else last
    return str(name).removeprefix("numcodecs.") == "blosc"


def _imported(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DatasetError(
            f"this dataset is read by the package '{error.name}': {pip_install('zarr')}"
        ) from error
