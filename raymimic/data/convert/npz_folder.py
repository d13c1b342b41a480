"""A folder of .npz files, one for each episode, as scripts around a robot write them.

Names are those in common use: see `_SINGLE` and `_GROUPS`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from raymimic import storage
from raymimic.data.convert.folders import inside, renamed
from raymimic.data.convert.heads import Head
from raymimic.data.convert.npz import NpzFile, array_names, natural_order
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.envs.env_base import FLAT_KEY
from raymimic.errors import DatasetError

_SINGLE = {
    "actions": "actions",
    "action": "actions",
    "rewards": "rewards",
    "reward": "rewards",
    "terminals": "terminated",
    "terminations": "terminated",
    "terminated": "terminated",
    "dones": "ended",
    "done": "ended",
    "truncated": "truncated",
    "truncations": "truncated",
    "timeouts": "truncated",
    "states": "states",
}
"""Our name of an array, by that in the file; `ended`: for either reason."""
_GROUPS = {
    "obs": "obs",
    "observation": "obs",
    "observations": "obs",
    "next_obs": "next_obs",
    "next_observation": "next_obs",
    "next_observations": "next_obs",
}
"""Our group of an array, by the name in the file, alone or before a slash."""
_TEXTS = ("lang", "language", "instruction", "language_instruction", "task")
_OTHER_DATA = (".hdf5", ".h5", ".zarr", ".parquet", ".npy", ".pkl", ".tfrecord")
_ENDS = ("terminated", "ended", "truncated")


@register_format("npz")
class NpzFolderReader(FormatReader):
    """Reads the files of a folder in the order of their names, numbers by their value.

    A file's arrays have one row for each step; observations may have one more, the last
    observation, which makes `next_obs`.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._folder = storage.expanded(source)
        self._mapping: dict[str, None] = {}  # in order
        if not self._folder.is_dir():
            raise DatasetError(
                f"'{source}' is not a folder: name the folder of the .npz files of the episodes"
            )
        entries = sorted((path.name for path in self._folder.iterdir()), key=natural_order)
        names = [name for name in entries if name.endswith(".npz") and not name.startswith(".")]
        mixed = [name for name in entries if name.endswith(_OTHER_DATA)]
        if names and mixed:
            raise DatasetError(
                f"'{source}' holds '{names[0]}' and '{mixed[0]}', files of two formats: put the"
                " files of each into a folder of their own"
            )
        self._files = [inside(self._folder, name) for name in names]

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether there are .npz files in the folder, and the first holds actions."""
        if not head.is_folder:
            return False
        try:
            files = [p for p in storage.expanded(head.source).iterdir() if p.suffix == ".npz"]
        except OSError:  # may not be read
            return False
        first = min(files, key=lambda path: natural_order(path.name), default=None)
        return first is not None and not {"action", "actions"}.isdisjoint(array_names(first))

    @property
    def files(self) -> list[Path]:
        """The files of the episodes."""
        return self._files

    @property
    def env_meta(self) -> dict[str, Any]:
        """Not known."""
        return {}

    @property
    def num_episodes(self) -> int:
        """Files of the folder."""
        return len(self._files)

    @property
    def mapping(self) -> list[str]:
        """Of all arrays that were found."""
        return list(self._mapping)

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the episodes in the order of the files' names."""
        for path in self._files:
            with NpzFile(path) as file:
                yield self._episode(file)

    def _episode(self, file: NpzFile) -> RecordedEpisode:
        named = renamed(file.arrays, _name, f"'{file.path}'")
        if "actions" not in named:
            raise DatasetError(
                f"episode '{file.path}' has no 'actions', it holds"
                f" {', '.join(sorted(file.arrays)) or 'nothing'}: remove it, or record it again"
            )
        length = file.rows(named["actions"]).array.shape[0]
        arrays = {}
        for name, key in named.items():
            if _fits(file, key, length, name):
                arrays[name] = file.values(key)
                row = f"{arrays[name].dtype.name} {list(arrays[name].shape[1:])}"
                self._mapping[f"{key} -> {name}, {row}"] = None
            elif key not in _TEXTS:
                self._mapping[f"{key} -> left out: it has no row for each step"] = None
        obs, following = _group(arrays, "obs/"), _group(arrays, "next_obs/")
        for key, x in obs.items():
            if len(x) > length:
                following.setdefault(key, x[1:])
        for key in _ENDS:
            if key in arrays and np.any(np.diff(_flags(arrays[key])) < 0):
                raise DatasetError(
                    f"'{file.path}' holds several episodes, as '{named[key]}' is 1 between its"
                    " steps: write one file for each, or name the file itself if it is OGBench's"
                )
        dones, truncated = _ends(arrays)
        known = ("actions", "rewards", "states", *_ENDS)
        others = {k: x for k, x in arrays.items() if k not in known and "obs/" not in k}
        if truncated is not None:
            others["truncated"] = truncated
        return RecordedEpisode(
            obs={key: x[:length] for key, x in obs.items()},
            actions=arrays["actions"],
            next_obs=following if following.keys() == obs.keys() else {},
            rewards=arrays.get("rewards"),
            dones=dones,
            states=arrays.get("states"),
            others=others,
            attrs=_instruction(file),
        )


def _name(key: str) -> str:
    """Our name of an array of a file."""
    if key in _SINGLE:
        return _SINGLE[key]
    group, _, rest = key.partition("/")
    return f"{_GROUPS[group]}/{rest or FLAT_KEY}" if group in _GROUPS else key


def _fits(file: NpzFile, key: str, length: int, name: str) -> bool:
    """Whether an array has a row for each step, or is an observation, which must have.

    Raises:
        DatasetError: it must have, and has not.
    """
    array = file.arrays[key]
    rows = array.shape[0] if array.shape else 0
    numbers = array.dtype.kind in "biuf"
    if numbers and (rows == length or (name.startswith("obs/") and rows == length + 1)):
        return True
    if "/" not in name and key not in _SINGLE:
        return False
    raise DatasetError(
        f"'{file.path}': '{key}' is {array.dtype.name} {list(array.shape)}, but there are {length}"
        " actions: give each step one row of numbers"
    )


def _group(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


def _ends(arrays: Mapping[str, Array]) -> tuple[Array | None, Array | None]:
    """Where the task ended and where the episode was cut off, each None if it is not known."""
    flags = {key: _flags(arrays[key]) for key in _ENDS if key in arrays}
    truncated, ended = flags.get("truncated"), flags.get("ended")
    if ended is not None and truncated is not None:
        ended = ended * (1 - truncated)
    return flags.get("terminated", ended), truncated


def _flags(x: Array) -> Array:
    flags: Array = (x.reshape(len(x), -1) != 0).any(axis=1).astype(np.int64)
    return flags


def _instruction(file: NpzFile) -> dict[str, str]:
    text = next((text for key in _TEXTS if (text := file.text(key)) is not None), None)
    return {} if text is None else {"lang": text}
