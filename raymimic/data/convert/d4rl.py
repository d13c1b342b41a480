"""D4RL's HDF5 files: episodes one after another in flat arrays, with `terminals` and `timeouts`.

Episodes and transitions are those of `d4rl.qlearning_dataset` (`d4rl/__init__.py`): the last step
of an episode that was cut off has no next observation, and is left out. Deviations: a terminal step
stays, be it at a time limit or the file's last; the last episode of a file counts as cut off where
it ends; without `timeouts` episodes end where `next_observations` do not go on (D4RL asks the
environment for its time limit).
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic.data.convert.heads import Head
from raymimic.data.convert.registry import FormatReader, register_format
from raymimic.data.hdf5 import DatasetReader, open_hdf5
from raymimic.data.writer import Array, RecordedEpisode
from raymimic.envs.env_base import FLAT_KEY, EnvType
from raymimic.errors import DatasetError

_NEEDED = ("observations", "actions", "rewards", "terminals")
_FLAGS = ("terminals", "timeouts")
LOCOMOTION = re.compile(r"(ant|halfcheetah|hopper|walker2d)-([a-z-]+)-v(\d+)")
"""D4RL's names of its locomotion data: robot, level, version."""


@register_format("d4rl")
class D4rlReader(FormatReader):
    """Cuts the flat arrays into episodes.

    The file does not name the environment. For locomotion it follows from the file's name, such as
    `hopper_medium-v2.hdf5`; for others `experiment.env` must name it.

    Raises:
        DatasetError: an array is missing, or they differ in length.
    """

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._stack = ExitStack()
        self._reader = self._stack.enter_context(open_hdf5(source))
        try:
            self._items = self._arrays(self._reader)
            self._bounds = self._episode_bounds()
        except BaseException:
            self._stack.close()
            raise
        self._lines: dict[str, None] = {}

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether the arrays lie in the file's root."""
        members = head.hdf5_members
        return all(members.get(name) is False for name in _NEEDED)

    def close(self) -> None:
        """Closes the file."""
        self._stack.close()

    @property
    def env_meta(self) -> dict[str, Any]:
        """The environment of D4RL's locomotion files, by D4RL's name."""
        name = Path(self.source).stem.replace("_", "-")
        if not LOCOMOTION.fullmatch(name):
            return {}
        return {"env_name": name, "type": EnvType.GYM_TYPE, "env_kwargs": {}}

    @property
    def num_episodes(self) -> int:
        """Episodes, by their ends."""
        return len(self._bounds)

    @property
    def mapping(self) -> list[str]:
        """Names, ends, and steps without a next observation."""
        return list(self._lines)

    def _arrays(self, reader: DatasetReader) -> dict[str, h5py.Dataset]:
        """The arrays with a row for each step, by name."""
        found = reader.keys(reader.root, str(reader))
        for name in _NEEDED:
            if name not in found:
                raise DatasetError(f"{reader} has no '{name}', as files of D4RL have it")
        kept: dict[str, h5py.Dataset] = {}
        for name, item in found.items():
            shape, dtype = reader.form_of(item, f"{reader}: '{name}'")
            numeric = dtype.kind in "biuf" and bool(shape)
            own = name in (*_NEEDED, "timeouts", "next_observations")
            if own and not numeric:
                raise DatasetError(f"{reader}: '{name}' is not an array of numbers: write it again")
            if own or (name.startswith("infos/") and numeric):
                reader.check(item, f"{reader}: '{name}'")
                kept[name] = item
        steps = len(kept["actions"])
        for name, item in kept.items():
            if len(item) != steps:
                raise DatasetError(
                    f"{reader}: '{name}' has {len(item)} rows, but 'actions' has {steps}: the file"
                    " is damaged; copy or make it again"
                )
        if not steps:
            raise DatasetError(f"{reader} has no actions: copy or make it again")
        if (following := kept.get("next_observations")) is not None:
            shapes = [list(item.shape) for item in (kept["observations"], following)]
            if shapes[0] != shapes[1]:
                raise DatasetError(
                    f"{reader}: 'next_observations' is {shapes[1]}, but 'observations' is"
                    f" {shapes[0]}: the file is damaged; copy or make it again"
                )
        return kept

    def _values(self, name: str, start: int = 0, stop: int | None = None) -> Array:
        where = f"{self._reader}: '{name}'"
        return self._reader.rows(self._items[name], start, stop, where)

    def _episode_bounds(self) -> list[tuple[int, int]]:
        """First step of each episode, and the one after its last."""
        steps = len(self._items["actions"])
        ends = self._flags("terminals")
        if "timeouts" in self._items:
            ends = ends | self._flags("timeouts")
        elif "next_observations" in self._items:
            following = self._values("next_observations")[:-1]
            jumps = following != self._values("observations")[1:]
            ends[:-1] |= jumps.any(axis=tuple(range(1, jumps.ndim)))
        stops = np.flatnonzero(ends) + 1
        if not stops.size or stops[-1] != steps:
            stops = np.append(stops, steps)
        return list(zip([0, *stops[:-1].tolist()], stops.tolist(), strict=True))

    def _flags(self, name: str) -> NDArray[np.bool_]:
        flags: NDArray[np.bool_] = self._values(name).reshape(-1) != 0
        return flags

    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields all episodes in order."""
        has_next = "next_observations" in self._items
        terminals = self._flags("terminals")
        self._note_names(has_next)
        for start, stop in self._bounds:
            terminated = bool(terminals[stop - 1])
            observations = self._values("observations", start, stop)
            if has_next:
                last, next_obs = stop, self._values("next_observations", start, stop)
            else:
                # The observation after a terminal step counts for nothing, as its done is 1.
                last = stop if terminated else stop - 1
                next_obs = np.concatenate([observations[1:], observations[-1:]])[: last - start]
                if not terminated:
                    self._note(
                        "steps without a next observation, the last of a cut episode: left out"
                    )
            if last == start:
                continue
            truncated = np.zeros(last - start, np.int64)
            truncated[-1] = not terminated
            yield RecordedEpisode(
                obs={FLAT_KEY: observations[: last - start]},
                next_obs={FLAT_KEY: next_obs},
                actions=self._values("actions", start, last),
                rewards=self._values("rewards", start, last).reshape(-1),
                dones=terminals[start:last].astype(np.int64),
                others={
                    "truncated": truncated,
                    **{
                        name: self._values(name, start, last)
                        for name in self._items
                        if name.startswith("infos/")
                    },
                },
            )

    def _note(self, *lines: str) -> None:
        self._lines |= dict.fromkeys(lines)

    def _note_names(self, has_next: bool) -> None:
        following = "next_observations" if has_next else "the next step's observations"
        cut = "timeouts"
        if "timeouts" not in self._items:
            cut = "no timeouts: where next_observations do not go on"
            cut = cut if has_next else "no timeouts and no next_observations: the file's end alone"
        self._note(
            f"observations -> obs/{FLAT_KEY}, {following} -> next_obs/{FLAT_KEY}",
            "actions -> actions",
            "rewards -> rewards",
            "terminals -> dones, 1 where the task ended",
            f"{cut} -> truncated, 1 at the last step of an episode that did not end in a terminal",
            *(f"{name} -> {name}" for name in self._items if name.startswith("infos/")),
        )
        if not self.env_meta:
            self._note("environment: not in the file; experiment.env names it")
