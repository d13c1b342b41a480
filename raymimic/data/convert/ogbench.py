"""OGBench's .npz files (Park et al. 2025, arXiv:2410.20092; `ogbench.utils.load_dataset`).

A file holds the rows of all trajectories one after the other; `terminals` is 1 in the last row of
each. That is a time limit: OGBench records without a task. `<name>-val.npz` beside a file holds its
validation trajectories.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from raymimic import storage
from raymimic.data.convert.folders import inside
from raymimic.data.convert.heads import Head
from raymimic.data.convert.npz import NpzArray, NpzFile, array_names
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.fetch import is_remote, local_path
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.envs.env_base import FLAT_KEY, EnvType
from raymimic.errors import DatasetError

logger = logging.getLogger(__name__)

_REQUIRED = ("observations", "actions", "terminals")
_KEPT = ("rewards", "masks", "qpos", "qvel", "button_states")
# OGBench's kinds of data; the rest of the name is the environment's.
_DATASET = re.compile(r"(.+)-(?:navigate|stitch|explore|play|noisy)-(v\d+)(?:-val)?")


@register_format("ogbench")
class OgbenchReader(FormatReader):
    """Reads what `ogbench.utils.load_dataset` reads, with the same steps.

    The last row of a trajectory has no row after it: it is the `next_obs` of the step before and no
    step itself, as in OGBench's loader. Files that hold what that loader returns are read as
    well: with `valids` (compact) and with `next_observations`.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._path = local_path(source)
        self._held_out = self._beside()

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether the file is .npz and holds OGBench's arrays."""
        if not (head.source.endswith(".npz") and head.is_file):
            return False
        return set(_REQUIRED) <= array_names(storage.expanded(head.source))

    @property
    def files(self) -> list[Path]:
        """The file, and that of the validation trajectories."""
        return [path for path in (self._path, self._held_out) if path is not None]

    @property
    def env_meta(self) -> dict[str, Any]:
        """OGBench's environment, by the file's name; empty where that is not OGBench's."""
        named = _DATASET.fullmatch(self._path.stem)
        if named is None:
            return {}
        return {"env_name": f"{named[1]}-{named[2]}", "type": EnvType.GYM_TYPE, "env_kwargs": {}}

    @property
    def mapping(self) -> list[str]:
        """Of the arrays that the file has."""
        with NpzFile(self._path) as file:
            arrays = file.arrays
        kept = [key for key in _KEPT if key in arrays]
        lines = [
            f"observations -> obs/{FLAT_KEY}, {_shown(arrays, 'observations')}",
            f"actions -> actions, {_shown(arrays, 'actions')}, OGBench's range is -1 to 1",
            "terminals -> truncated: trajectories end by a time limit",
            "masks -> dones, 1 - masks" if "masks" in arrays else "no source -> dones, 0",
            *(f"{key} -> {key}, {_shown(arrays, key)}" for key in kept if key != "masks"),
        ]
        if "next_observations" in arrays:
            lines.append(f"next_observations -> next_obs/{FLAT_KEY}")
        else:
            lines.append(f"the next row of observations -> next_obs/{FLAT_KEY}")
        if self._held_out is not None:
            lines.append(f"{self._held_out.name} -> filter key valid, {self._path.name} -> train")
        if left := sorted(set(arrays) - {*_REQUIRED, "next_observations", "valids", *kept}):
            lines.append(f"{', '.join(left)} -> left out")
        return lines

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields the trajectories in the file's order, then those of the validation file."""
        if self._held_out is None:
            yield from _trajectories(self._path, ())
        else:
            yield from _trajectories(self._path, ("train",))
            yield from _trajectories(self._held_out, ("valid",))

    def _beside(self) -> Path | None:
        name = f"{self._path.stem}-val.npz"
        if is_remote(self.source) or not self._path.with_name(name).exists():
            return None
        return inside(self._path.absolute().parent, name)


def _shown(arrays: dict[str, NpzArray], key: str) -> str:
    array = arrays[key]
    return f"{array.dtype.name} {list(array.shape[1:])}"


def _trajectories(path: Path, filter_keys: tuple[str, ...]) -> Iterator[RecordedEpisode]:
    with NpzFile(path) as file:
        total = _common_length(file)
        has_next = "next_observations" in file.arrays
        keys = ["observations", "actions", *(["next_observations"] if has_next else ())]
        keys += [key for key in _KEPT if key in file.arrays]
        rows = {key: file.rows(key) for key in keys}
        dropped = 0
        for length in _lengths(file, total):
            taken = {key: column.take(length) for key, column in rows.items()}
            obs = taken.pop("observations")
            if has_next:
                following = taken.pop("next_observations")
            else:
                obs, following = obs[:-1], obs[1:]
                taken = {key: x[:-1] for key, x in taken.items()}
            if not len(obs):
                dropped += 1
                continue
            yield _episode(obs, following, taken, filter_keys)
        if dropped:
            logger.warning("%d trajectories of '%s' have one row, so no step", dropped, path)


def _episode(
    obs: Array, following: Array, others: dict[str, Array], filter_keys: tuple[str, ...]
) -> RecordedEpisode:
    truncated = np.zeros(len(obs), np.int64)
    truncated[-1] = 1
    masks = others.pop("masks", np.ones(len(obs)))
    return RecordedEpisode(
        obs={FLAT_KEY: obs},
        next_obs={FLAT_KEY: following},
        actions=others.pop("actions"),
        rewards=others.pop("rewards", None),
        dones=(masks == 0).astype(np.int64),
        others={**others, "truncated": truncated},
        filter_keys=filter_keys,
    )


def _common_length(file: NpzFile) -> int:
    if len(file.rows("terminals").array.shape) != 1:
        raise DatasetError(f"'{file.path}': 'terminals' is not one number a step")
    lengths = {key: file.arrays[key].shape[0] for key in file.arrays if file.arrays[key].shape}
    total = lengths["actions"]
    for key in (*_REQUIRED, "next_observations", "valids", *_KEPT):
        if lengths.get(key, total) != total:
            raise DatasetError(
                f"'{file.path}': '{key}' has {lengths[key]} rows, but 'actions' has {total}: give"
                " each step one row of each"
            )
    return total


def _lengths(file: NpzFile, total: int) -> list[int]:
    """Rows of each trajectory."""
    # In the compact form `terminals` is 1 in the row before the end as well.
    compact = "valids" in file.arrays
    ends = file.values("valids") == 0 if compact else file.values("terminals") != 0
    last = np.flatnonzero(ends) + 1
    if total and (not len(last) or last[-1] != total):
        logger.warning(
            "the last trajectory of '%s' has no end: it is read up to the last row", file.path
        )
        last = np.append(last, total)
    return [int(length) for length in np.diff(last, prepend=0)]
