"""The registry of dataset formats, and conversion into robomimic's HDF5."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from raymimic.data.metadata import content_digest
from raymimic.data.writer import RecordedEpisode, writing_dataset
from raymimic.errors import ConfigError, DatasetError, did_you_mean
from raymimic.user_modules import same_definition


class FormatReader(ABC):
    """Reads the episodes of a dataset of some format.

    Args:
        source: where the dataset lies, as the user names it.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @property
    @abstractmethod
    def env_meta(self) -> dict[str, Any]:
        """The environment: `env_name`, `type`, `env_kwargs`; empty where it is not known."""

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the dataset as a whole."""
        return {}

    @abstractmethod
    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields all episodes, one at a time.

        Raises:
            DatasetError: the source cannot be read.
        """


_FORMATS: dict[str, type[FormatReader]] = {}

Reader = TypeVar("Reader", bound=type[FormatReader])


def register_format(name: str) -> Callable[[Reader], Reader]:
    """Registers the decorated class as the reader of a format.

    Args:
        name: of the format.

    Raises:
        ConfigError: another class has that name already.
    """

    def decorator(reader: Reader) -> Reader:
        known = _FORMATS.get(name, reader)
        if not same_definition(known, reader):
            raise ConfigError(
                f"a dataset format '{name}' is registered already, by {known.__module__}: choose"
                " another name"
            )
        _FORMATS[name] = reader
        return reader

    return decorator


def registered_formats() -> list[str]:
    """Returns the names of all formats."""
    return sorted(_FORMATS)


@dataclass(frozen=True)
class ConvertedDataset:
    """A dataset that was converted.

    Attributes:
        path: of the HDF5 file.
        num_demos: its episodes.
        num_transitions: their steps.
        digest: of the file's content, see `raymimic.data.metadata.content_digest`.
    """

    path: Path
    num_demos: int
    num_transitions: int
    digest: str


def convert_dataset(source: str | Path, target: str | Path, format_name: str) -> ConvertedDataset:
    """Writes a dataset of any registered format as robomimic's HDF5.

    Args:
        source: where it lies.
        target: the HDF5 file; it appears once it is complete, and replaces an existing one.
        format_name: as registered.

    Raises:
        ConfigError: there is no such format.
        DatasetError: the source cannot be read, or has no episodes.
        OutputError: the file cannot be written.
    """
    if format_name not in _FORMATS:
        raise ConfigError(
            f"unknown dataset format '{format_name}'{did_you_mean(format_name, _FORMATS)}"
        )
    reader = _FORMATS[format_name](str(source))
    with writing_dataset(target, reader.env_meta) as writer:
        writer.attrs.update(reader.attrs)
        for episode in reader.episodes():
            writer.add(episode)
        if not writer.num_demos:
            raise DatasetError(f"dataset '{source}' holds no episodes: there is nothing to convert")
    digest = content_digest(target)
    return ConvertedDataset(Path(target), writer.num_demos, writer.num_transitions, digest)
