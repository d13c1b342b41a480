"""Writes datasets in robomimic's HDF5 format, whole or not at all."""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic.errors import DatasetError, OutputError, full_disk_in

Array = NDArray[Any]

_IMAGE_DIMS = 4  # [T, H, W, C]


@dataclass(frozen=True)
class RecordedEpisode:
    """One episode of T steps, as plain arrays.

    Attributes:
        obs: the observation before each step, `{key: [T, ...]}`.
        actions: `[T, A]`.
        next_obs: the observation after each step, `{key: [T, ...]}`; empty: not recorded.
        rewards: `[T]`, if there are any.
        dones: `[T]`, 1 where the task ended, never at a time limit; if they are known.
        states: of the simulator before each step, `[T, S]`, if there are any.
        others: further datasets `[T, ...]`, by name.
        attrs: attributes of the demo.
        filter_keys: the named subsets that it belongs to.
    """

    obs: Mapping[str, Array]
    actions: Array
    next_obs: Mapping[str, Array] = field(default_factory=dict)
    rewards: Array | None = None
    dones: Array | None = None
    states: Array | None = None
    others: Mapping[str, Array] = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)
    filter_keys: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.actions)

    def arrays(self) -> dict[str, Array]:
        """All arrays by their names in a demo."""
        named = {f"obs/{key}": x for key, x in self.obs.items()}
        named |= {f"next_obs/{key}": x for key, x in self.next_obs.items()}
        named["actions"] = self.actions
        for name, x in (("rewards", self.rewards), ("dones", self.dones), ("states", self.states)):
            if x is not None:
                named[name] = x
        return {**named, **self.others}


class DatasetWriter:
    """Takes episodes; made by `writing_dataset`.

    Args:
        data: the group of all demos.
        filter_keys: named subsets that are written even if they stay empty.
        compress: stores images `[T, H, W, C]` compressed, frame by frame (gzip).

    Attributes:
        attrs: attributes of the dataset, written at the end.
        num_demos: episodes so far.
        num_transitions: their steps.
    """

    def __init__(
        self, data: h5py.Group, filter_keys: Iterable[str] = (), compress: bool = False
    ) -> None:
        self.attrs: dict[str, Any] = {}
        self.num_demos = self.num_transitions = 0
        self._data, self._compress = data, compress
        self._filter_keys: dict[str, list[str]] = {key: [] for key in filter_keys}

    def add(self, episode: RecordedEpisode, filter_keys: Iterable[str] = ()) -> str:
        """Writes an episode.

        Args:
            episode: the episode.
            filter_keys: named subsets that it belongs to, besides its own.

        Returns:
            The demo's name.

        Raises:
            DatasetError: the episode is empty, or its arrays differ in length.
        """
        name = f"demo_{self.num_demos}"
        if not len(episode):
            raise DatasetError(f"{name} has no steps: leave the episode out")
        for key, array in episode.arrays().items():
            if len(array) != len(episode):
                raise DatasetError(
                    f"{name}: '{key}' has {len(array)} rows, but 'actions' has {len(episode)}:"
                    " give each step one row of each"
                )
        group = self._data.create_group(name)
        for key, value in {**episode.attrs, "num_samples": len(episode)}.items():
            group.attrs[key] = value
        for key, array in episode.arrays().items():
            if self._compress and array.ndim == _IMAGE_DIMS:
                frame = (1, *array.shape[1:])  # is read without its neighbours
                group.create_dataset(key, data=array, chunks=frame, compression="gzip")
            else:
                group[key] = array
        for key in dict.fromkeys((*episode.filter_keys, *filter_keys)):
            self._filter_keys.setdefault(key, []).append(name)
        self.num_demos += 1
        self.num_transitions += len(episode)
        return name

    def finish(self, env_meta: Mapping[str, Any], file: h5py.File) -> None:
        """Writes all that concerns the dataset as a whole."""
        attrs = {"total": self.num_transitions, "env_args": json.dumps(env_meta), **self.attrs}
        for key, value in attrs.items():
            self._data.attrs[key] = value
        for key, names in sorted(self._filter_keys.items()):
            file[f"mask/{key}"] = np.array(names, dtype="S")


@contextmanager
def writing_dataset(
    path: str | Path,
    env_meta: Mapping[str, Any],
    filter_keys: Iterable[str] = (),
    compress: bool = False,
) -> Iterator[DatasetWriter]:
    """Writes a dataset; the file appears once the block is complete.

    Args:
        path: of the HDF5 file; an existing one is replaced.
        env_meta: the environment: `env_name`, `type`, `env_kwargs`; empty: not known.
        filter_keys: named subsets that are written even if they stay empty.
        compress: stores images compressed, see `DatasetWriter`.

    Yields:
        The writer of the episodes. If the block raises, nothing is left.

    Raises:
        OutputError: the file cannot be written.
    """
    with writing_file(path) as file:
        writer = DatasetWriter(file.create_group("data"), filter_keys, compress)
        yield writer
        writer.finish(env_meta, file)


@contextmanager
def writing_file(path: str | Path) -> Iterator[h5py.File]:
    """Writes an HDF5 file, which appears once the block is complete.

    Args:
        path: of the file; an existing one is replaced.

    Yields:
        The file, empty. If the block raises, nothing is left.

    Raises:
        OutputError: the file cannot be written.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(part, "w") as file:
            yield file
        part.replace(path)
    except (OSError, RuntimeError) as error:
        if (full := full_disk_in(error)) is not None:
            error = full
        elif not isinstance(error, OSError):
            raise
        # HDF5's own message spans lines
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise OutputError(
            f"cannot write dataset '{path}': {reason}; make room there or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # there may be no such place
            part.unlink()
