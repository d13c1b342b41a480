"""Writes datasets in robomimic's HDF5 format; a file appears once it is complete."""

import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic import storage
from raymimic.errors import DatasetError, OutputError

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


class _Sink(io.RawIOBase):
    """A file that HDF5 writes to; keeps the first error, and drops all that is written after it.

    HDF5 itself does not survive a full disk: it meets the error again whenever it closes an object,
    and then ends the process.

    Args:
        file: unbuffered.

    Attributes:
        error: the first one; None so far.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer) or 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        start = self._file.tell()
        try:
            done = 0
            while done < len(view) and self.error is None:
                done += self._file.write(view[done:])
        except OSError as error:
            self.error = error
        if self.error is not None:
            self._file.seek(start + len(view))
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self._file.tell() if size is None else size

    def check(self) -> None:
        """Raises the error."""
        if self.error is not None:
            raise self.error


@contextmanager
def writing_hdf5(
    path: Path, track_order: bool = False
) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Writes an HDF5 file; a full disk is an error here, where HDF5 ends the process.

    Args:
        path: of the file.
        track_order: as for `h5py.File`.

    Yields:
        The file, and a function that raises the first error of all that was written so far.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("w+b", buffering=0) as raw:
        sink = _Sink(raw)
        try:
            with h5py.File(sink, "w", track_order=track_order) as file:
                yield file, sink.check
        except Exception as error:
            if sink.error is not None and error is not sink.error:
                raise sink.error from error  # HDF5 stumbled over what was dropped
            raise
        sink.check()


class DatasetWriter:
    """Takes episodes; made by `writing_dataset`.

    Args:
        data: the group of all demos.
        check: raises an error of the file that was met while writing.
        compress: stores images `[T, H, W, C]` compressed, frame by frame (gzip).

    Attributes:
        attrs: attributes of the dataset, written at the end.
        num_demos: episodes so far.
        num_transitions: their steps.
    """

    def __init__(
        self,
        data: h5py.Group,
        check: Callable[[], None],
        compress: bool = False,
    ) -> None:
        self.attrs: dict[str, Any] = {}
        self.num_demos = self.num_transitions = 0
        self._data, self._check, self._compress = data, check, compress
        self._filter_keys: dict[str, list[str]] = {}

    def add(
        self, episode: RecordedEpisode, filter_keys: Iterable[str] = (), name: str | None = None
    ) -> str:
        """Writes an episode.

        Args:
            episode: the episode.
            filter_keys: named subsets that it belongs to, besides its own.
            name: of the demo; None: `demo_<number>`.

        Returns:
            The demo's name.

        Raises:
            DatasetError: the episode is empty, or its arrays differ in length.
            OSError: the file cannot be written.
        """
        name = f"demo_{self.num_demos}" if name is None else name
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
        self._count(name, len(episode), (*episode.filter_keys, *filter_keys))
        return name

    def copy(self, demo: h5py.Group, name: str, filter_keys: Iterable[str] = ()) -> None:
        """Copies a demo of another file, which a writer wrote, byte for byte.

        Args:
            demo: the group of the demo.
            name: of the demo here.
            filter_keys: named subsets that it belongs to.
        """
        self._data.copy(demo, self._data, name)
        self._count(name, int(demo.attrs["num_samples"]), filter_keys)

    def _count(self, name: str, steps: int, filter_keys: Iterable[str]) -> None:
        for key in dict.fromkeys(filter_keys):
            self._filter_keys.setdefault(key, []).append(name)
        self._check()
        self.num_demos += 1
        self.num_transitions += steps

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
    compress: bool = False,
    replace: bool = True,
) -> Iterator[DatasetWriter]:
    """Writes a dataset; the file appears once the block is complete.

    Args:
        path: of the HDF5 file.
        env_meta: the environment: `env_name`, `type`, `env_kwargs`; empty: not known.
        compress: stores images compressed, see `DatasetWriter`.
        replace: whether an existing file is replaced.

    Yields:
        The writer of the episodes. If the block raises, nothing is left.

    Raises:
        OutputError: the file cannot be written, or exists and is not to be replaced.
    """
    with writing_file(path, replace) as (file, check):
        writer = DatasetWriter(file.create_group("data"), check, compress)
        yield writer
        writer.finish(env_meta, file)


@contextmanager
def writing_file(
    path: str | Path, replace: bool = True
) -> Iterator[tuple[h5py.File, Callable[[], None]]]:
    """Writes an HDF5 file, which appears once the block is complete.

    Args:
        path: of the file.
        replace: whether an existing file is replaced.

    Yields:
        The file, empty, and the function of `writing_hdf5`. If the block raises, nothing is left.

    Raises:
        OutputError: the file cannot be written, or exists and is not to be replaced.
    """
    storage.refuse_uri(path)
    try:
        with (
            storage.writing_file(Path(path), replace=replace) as part,
            writing_hdf5(part) as opened,
        ):
            yield opened
    except OSError as error:
        # HDF5's own message spans lines
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise OutputError(
            f"cannot write dataset '{path}': {reason}; make room there or choose another place"
        ) from error
