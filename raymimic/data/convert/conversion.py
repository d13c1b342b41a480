"""Converts datasets of any known format to robomimic's HDF5, and back to some of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raymimic import storage
from raymimic.data.convert.registry import (
    FormatReader,
    format_reader,
    format_writer,
    local_source,
    recognised_format,
    registered_formats,
)
from raymimic.data.convert.robomimic import RobomimicReader
from raymimic.data.fetch import local_path
from raymimic.data.hdf5 import HDF5_ENDINGS, open_hdf5
from raymimic.data.metadata import content_digest, digest_of_files
from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.errors import DatasetError
from raymimic.storage import is_same_file

ProgressCallback = Callable[[int, int | None], None]
"""Called with the number of converted episodes, and of all episodes (None: not known)."""

SOURCE = "source"
"""Attribute of a converted file: JSON of the source's `format`, `version`, `name`, `digest`."""

_OF_ONE_SHAPE = ("actions", "rewards", "dones")
_OBSERVATIONS = ("obs/", "next_obs/")


@dataclass(frozen=True)
class ConvertedDataset:
    """A dataset that was converted.

    Attributes:
        path: of the HDF5 file, or of the folder of another format.
        num_demos: its episodes.
        num_transitions: their steps.
        digest: of the file's content, see `raymimic.data.metadata.content_digest`; empty for a
            folder.
        format: of the source, or of the folder.
        mapping: the source of each part, see `FormatReader.mapping`.
        action_range: least and greatest action of all.
        terminated: episodes that end in a done.
        truncated: episodes that were cut off, where the source says so.
    """

    path: Path
    num_demos: int
    num_transitions: int
    digest: str
    format: str
    mapping: tuple[str, ...]
    action_range: tuple[float, float]
    terminated: int
    truncated: int


def reader_of(source: str | Path, format_name: str | None = None) -> FormatReader:
    """Opens a dataset of any format.

    Args:
        source: see `FormatReader`; a URI of a file is fetched.
        format_name: as registered; None looks at the source.

    Raises:
        ConfigError: there is no such format.
        DatasetError: the source is not there, of no known format, of several, or cannot be read.
    """
    kind = recognised_format(source) if format_name is None else format_reader(format_name)
    if kind is None:
        place = local_path(source)
        if place.suffix in HDF5_ENDINGS:
            with open_hdf5(place):  # or says why it cannot be opened
                pass
        raise DatasetError(
            f"'{place}' is damaged, or of none of the formats {', '.join(registered_formats())}:"
            " --format NAME tells why it is not read as one of them"
        )
    return kind(local_source(source))


def convert_dataset(
    source: str | Path,
    target: str | Path,
    format_name: str | None = None,
    progress: ProgressCallback | None = None,
    replace: bool = True,
) -> ConvertedDataset:
    """Writes a dataset of any registered format as robomimic's HDF5.

    Args:
        source: where it lies.
        target: the HDF5 file; it appears once it is complete.
        format_name: as registered; None looks at the source.
        progress: called after each episode with the numbers done and in all (None: not known).
        replace: whether an existing file is replaced.

    Raises:
        ConfigError: there is no such format.
        DatasetError: the source cannot be read, has no episodes, or changed meanwhile.
        OutputError: the file cannot be written, or exists and is not to be replaced.
    """
    with reader_of(source, format_name) as reader:
        return convert(reader, target, progress, replace)


def convert(
    reader: FormatReader,
    target: str | Path,
    progress: ProgressCallback | None = None,
    replace: bool = True,
) -> ConvertedDataset:
    """As `convert_dataset`, of a dataset that is open."""
    before = stamps(reader.files)
    if any(is_same_file(target, file) for file in reader.files):
        raise DatasetError(f"'{target}' is the source itself: choose another file to write")
    count = _Count(progress, reader.num_episodes)
    with writing_dataset(target, reader.env_meta, replace=replace) as writer:
        writer.attrs.update(reader.attrs)
        for episode in _episodes(reader):
            writer.add(episode)
            count.add(episode)
        identity = {
            "format": reader.format,
            "version": reader.version,
            "name": reader.name,
            "digest": digest_of_files(reader.files),
        }
        if reader.format != RobomimicReader.format:  # a copy keeps the source of its source
            writer.attrs.setdefault(SOURCE, json.dumps(identity))
        _check_unchanged(reader, before)
    return count.result(target, content_digest(target), reader.format, reader.mapping)


def export_dataset(
    source: str | Path,
    target: str | Path,
    format_name: str,
    progress: ProgressCallback | None = None,
    source_format: str | None = None,
) -> ConvertedDataset:
    """Writes robomimic's HDF5, or a dataset of any registered format, as a folder of another one.

    Args:
        source: where it lies.
        target: the folder; it appears once it is complete.
        format_name: as registered by `register_writer`.
        progress: called after each episode with the numbers done and in all (None: not known).
        source_format: as registered by `register_format`; None looks at the source.

    Raises:
        ConfigError: there is no such format.
        DatasetError: the source cannot be read, has no episodes, changed meanwhile, or holds data
            that the format cannot hold.
        OutputError: the folder cannot be written, or holds something already.
    """
    kind = format_writer(format_name)
    with reader_of(source, source_format) as reader, storage.writing_folder(target) as folder:
        before = stamps(reader.files)
        count = _Count(progress, reader.num_episodes)
        writer = kind(folder, Path(target).absolute(), reader.env_meta, reader.attrs)
        with closing(writer):
            for episode in _episodes(reader):
                writer.add(episode)
                count.add(episode)
            writer.finish()
        _check_unchanged(reader, before)
    return count.result(target, "", format_name, [*reader.mapping, *writer.mapping])


def _episodes(reader: FormatReader) -> Iterator[RecordedEpisode]:
    """Yields the episodes of a source, which must have steps, and rows of one shape in each array.

    Raises:
        DatasetError: an episode does not, or there is none.
    """
    shapes: dict[str, tuple[tuple[int, ...], int]] = {}
    number = -1
    for number, episode in enumerate(reader.episodes()):
        what = f"dataset '{reader.source}': episode {number} (counted from 0)"
        if not len(episode):
            raise DatasetError(f"{what} has no steps: leave the episode out")
        for name, x in episode.arrays().items():
            if name not in _OF_ONE_SHAPE and not name.startswith(_OBSERVATIONS):
                continue
            shape, first = shapes.setdefault(name, (x.shape[1:], number))
            if x.shape[1:] != shape:
                raise DatasetError(
                    f"{what}: rows of '{name}' have shape {list(x.shape[1:])}, and those of episode"
                    f" {first} have {list(shape)}: put the episodes of each shape into a dataset"
                    " of their own"
                )
        yield episode
    if number < 0:
        raise DatasetError(
            f"dataset '{reader.source}' holds no episodes: there is nothing to convert"
        )


def _check_unchanged(reader: FormatReader, before: list[tuple[str, int, int]]) -> None:
    if stamps(reader.files) != before:
        raise DatasetError(
            f"dataset '{reader.source}' changed while it was read: convert it again when nothing"
            " writes it any more"
        )


class _Count:
    """Counts what was converted.

    Args:
        progress: called after each episode with the numbers done and in all (None: not known).
        total: episodes, where that is known.
    """

    def __init__(self, progress: ProgressCallback | None, total: int | None) -> None:
        self._progress, self._total = progress, total
        self._demos = self._steps = self._terminated = self._truncated = 0
        self._low, self._high = np.inf, -np.inf

    def add(self, episode: RecordedEpisode) -> None:
        """Counts an episode."""
        self._demos += 1
        self._steps += len(episode)
        self._low = min(self._low, float(np.min(episode.actions)))
        self._high = max(self._high, float(np.max(episode.actions)))
        self._terminated += episode.dones is not None and bool(np.any(episode.dones))
        self._truncated += bool(np.any(episode.others.get("truncated", False)))
        if self._progress is not None:
            self._progress(self._demos, self._total)

    def result(
        self, path: str | Path, digest: str, format_name: str, mapping: Sequence[str]
    ) -> ConvertedDataset:
        """All of it."""
        return ConvertedDataset(
            path=Path(path),
            num_demos=self._demos,
            num_transitions=self._steps,
            digest=digest,
            format=format_name,
            mapping=tuple(mapping),
            action_range=(self._low, self._high),
            terminated=self._terminated,
            truncated=self._truncated,
        )


def stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Path, size [bytes] and time of change [ns] of each file: they change when a file does."""
    try:
        found = [(file, file.stat()) for file in files]
    except OSError as error:
        raise DatasetError(f"'{error.filename}' cannot be read: {storage.unread(error)}") from error
    return [(str(file.absolute()), stat.st_size, stat.st_mtime_ns) for file, stat in found]
