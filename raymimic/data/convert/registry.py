"""The registries of dataset formats: readers, and writers of those that can be written."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self, TypeVar

from raymimic import storage
from raymimic.data.convert.heads import Head
from raymimic.data.fetch import is_remote, local_path
from raymimic.data.writer import RecordedEpisode
from raymimic.errors import ConfigError, DatasetError, did_you_mean
from raymimic.user_modules import same_definition


class FormatReader(ABC):
    """Reads the episodes of a dataset of some format. It never runs code that the dataset names.

    Each episode is a `RecordedEpisode`: `dones` are 1 where the task ended, never at a time limit;
    a format that knows time limits gives them as `others["truncated"]`, 1 where the episode was cut
    off (both `[T]`, int64).

    Args:
        source: where the dataset lies, as the user names it: a file, a folder, perhaps an id.

    Attributes:
        format: the name that the class is registered by.
        trains_as_is: whether a training reads such files without a conversion.
        general: whether other formats are special cases of this one; they come before it.
    """

    format: ClassVar[str] = ""
    trains_as_is: ClassVar[bool] = False
    general: ClassVar[bool] = False

    def __init__(self, source: str) -> None:
        self.source = source

    @classmethod
    def recognises(cls, head: Head) -> bool:
        """Whether a source is of this format, judged by its names and headers alone.

        Args:
            head: of the source, `head.source`, which may be anything, or not be there.
        """
        return False

    @classmethod
    def absolute(cls, source: str) -> str:
        """The source's absolute path, which means the same in every process; of an id too."""
        return storage.absolute(source)

    @property
    def files(self) -> list[Path]:
        """The files that the dataset consists of: what its digest is made of."""
        place = storage.expanded(self.source)
        if not place.is_dir():
            return [local_path(self.source)]
        found = (path for path in place.rglob("*") if path.is_file())
        return sorted(path for path in found if not _hidden(path.relative_to(place)))

    @property
    def name(self) -> str:
        """The dataset's own name: an id, or the last part of its path."""
        return Path(self.source.rstrip("/")).name

    @classmethod
    def file_name(cls, source: str) -> str:
        """A name for the HDF5 file that a source is converted into."""
        name = storage.file_names([Path(source.rstrip("/")).stem])
        return f"{next(iter(name.values()))}.hdf5"

    @property
    def version(self) -> str:
        """The version of the format, or of the library that wrote it, as the source states it."""
        return ""

    @property
    @abstractmethod
    def env_meta(self) -> dict[str, Any]:
        """The environment: `env_name`, `type`, `env_kwargs`; empty where it is not known."""

    @property
    def attrs(self) -> dict[str, Any]:
        """Attributes of the dataset as a whole."""
        return {}

    @property
    def num_episodes(self) -> int | None:
        """How many episodes there are, where that is known beforehand."""
        return None

    @property
    def mapping(self) -> list[str]:
        """Lines `source's name -> robomimic's name, units, range, notes`.

        Complete once all episodes were read.
        """
        return []

    @abstractmethod
    def episodes(self) -> Iterator[RecordedEpisode]:
        """Yields all episodes, one at a time.

        Raises:
            DatasetError: the source cannot be read.
        """

    def close(self) -> None:  # noqa: B027  # most readers hold nothing open
        """Closes the files that the reader holds open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


class FormatWriter(ABC):
    """Writes a dataset of some format into a folder.

    Args:
        folder: an empty folder, which gets its name once `finish` has returned.
        target: the path that it gets then, absolute.
        env_meta: the environment: `env_name`, `type`, `env_kwargs`; empty: not known.
        attrs: attributes of the dataset as a whole.

    Attributes:
        format: the name that the class is registered by.
        mapping: lines `robomimic's name -> the format's name, units, range, notes`; complete after
            `finish`.
    """

    format: ClassVar[str] = ""

    def __init__(
        self, folder: Path, target: Path, env_meta: Mapping[str, Any], attrs: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        self.target = target
        self.env_meta = dict(env_meta)
        self.attrs = dict(attrs)
        self.mapping: list[str] = []

    @abstractmethod
    def add(self, episode: RecordedEpisode) -> None:
        """Writes an episode.

        Raises:
            DatasetError: the format cannot hold it.
        """

    @abstractmethod
    def finish(self) -> None:
        """Writes all that concerns the dataset as a whole."""

    def close(self) -> None:  # noqa: B027  # most writers hold nothing open
        """Closes the files that the writer holds open; called after `finish`, or at an error."""


_READERS: dict[str, type[FormatReader]] = {}
_WRITERS: dict[str, type[FormatWriter]] = {}

Reader = TypeVar("Reader", bound=type[FormatReader])
Writer = TypeVar("Writer", bound=type[FormatWriter])
Kind = TypeVar("Kind", bound=type[FormatReader] | type[FormatWriter])


def register_format(name: str) -> Callable[[Reader], Reader]:
    """Registers the decorated class as the reader of a format.

    Args:
        name: of the format.

    Raises:
        ConfigError: another class has that name already.
    """
    return _registering(_READERS, name)


def register_writer(name: str) -> Callable[[Writer], Writer]:
    """Registers the decorated class as the writer of a format, for `convert --to`.

    Args:
        name: of the format.

    Raises:
        ConfigError: another class has that name already.
    """
    return _registering(_WRITERS, name)


def _registering(known: dict[str, Any], name: str) -> Callable[[Kind], Kind]:
    """The decorator that puts a class into a registry under a name, which the class gets too."""

    def decorator(kind: Kind) -> Kind:
        own = known.get(name, kind)
        if not same_definition(own, kind):
            raise ConfigError(
                f"a dataset format '{name}' is registered already, by {own.__module__}: choose"
                " another name"
            )
        kind.format = name
        known[name] = kind
        return kind

    return decorator


def registered_formats() -> list[str]:
    """Names of all formats that can be read."""
    return sorted(_READERS)


def registered_writers() -> list[str]:
    """Names of all formats that can be written."""
    return sorted(_WRITERS)


def format_reader(name: str) -> type[FormatReader]:
    """The reader of a format.

    Raises:
        ConfigError: there is no such format.
    """
    if name not in _READERS:
        raise ConfigError(f"unknown dataset format '{name}'{did_you_mean(name, _READERS)}")
    return _READERS[name]


def format_writer(name: str) -> type[FormatWriter]:
    """The writer of a format.

    Raises:
        ConfigError: there is none.
    """
    if name not in _WRITERS:
        raise ConfigError(f"no dataset is written in format '{name}'{did_you_mean(name, _WRITERS)}")
    return _WRITERS[name]


def local_source(source: str | Path) -> str:
    """A dataset as its reader takes it: a path or an id; a URI is fetched.

    Raises:
        DatasetError: it cannot be fetched.
    """
    here = local_path(source) if is_remote(source) else source
    return str(here).removeprefix("file://")


def recognised_format(source: str | Path) -> type[FormatReader] | None:
    """The reader of the format that a source is of, by its names and headers.

    Args:
        source: as for `FormatReader`; a URI is fetched.

    Returns:
        The reader; None if no format recognises the source.

    Raises:
        DatasetError: several formats do, such as in a folder that mixes files.
    """
    head = Head(local_source(source))
    found = [reader for _, reader in sorted(_READERS.items()) if reader.recognises(head)]
    found = [reader for reader in found if not reader.general] or found
    if len(found) > 1:
        names = " and ".join(f"'{reader.format}'" for reader in found)
        raise DatasetError(
            f"'{source}' looks like {names} at once: put the files of one format into a folder of"
            " their own, or name the format (raymimic dataset convert --format)"
        )
    return found[0] if found else None


def absolute_dataset(source: str) -> str:
    """A dataset's absolute path, or its URI, of whatever format it is."""
    there = storage.is_uri(source) or storage.expanded(source).exists()
    kind = None if there else recognised_format(source)
    return storage.absolute(source) if kind is None else kind.absolute(source)
