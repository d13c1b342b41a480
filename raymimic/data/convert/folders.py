"""Files of a dataset that is a folder, and names in it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from raymimic import storage
from raymimic.data.hdf5 import reading
from raymimic.errors import DatasetError, reason

_MAX_JSON_BYTES = 1 << 28
_MAX_POINTER_BYTES = 1024


def inside(root: Path, name: str) -> Path:
    """A file of a dataset, by the name that the dataset's own metadata give it.

    Args:
        root: the dataset's folder.
        name: of the file, relative to it.

    Returns:
        The file, links resolved.

    Raises:
        DatasetError: there is no such file, Git LFS has not fetched it, it is no plain file, or it
            lies outside the folder. A snapshot in Hugging Face's cache consists of links into
            `blobs`, which are allowed.
    """
    try:
        path = (root / name).resolve()
        outside = not any(path.is_relative_to(folder) for folder in _folders(root))
        there = path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # bytes 0, names too long, circles
        raise DatasetError(f"dataset '{root}' names '{name}' as a file: {reason(error)}") from error
    if outside:
        raise DatasetError(
            f"dataset '{root}' names '{name}', which leads out of its folder, to '{path}': copy the"
            " file into the folder if you trust it"
        )
    if not there:
        raise DatasetError(
            f"dataset '{root}' lacks the file '{name}': it was copied or downloaded in part; fetch"
            " it again"
        )
    if path.stat().st_size < _MAX_POINTER_BYTES and storage.starts_as_lfs_pointer(str(path)):
        raise DatasetError(f"'{root / name}' is {storage.LFS_POINTER}")
    return path


def _folders(root: Path) -> list[Path]:
    real = root.resolve()
    if real.parent.name == "snapshots":
        return [real, real.parent.parent / "blobs"]
    return [real]


def is_plain(name: str) -> bool:
    """Whether an array's name in a file may become one in an HDF5 file."""
    return "\0" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def read_object(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        DatasetError: the file is no JSON object, or larger than 256 MiB.
    """
    with reading(f"'{path}'"):
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise DatasetError(f"'{path}' is larger than 256 MiB, which no metadata are")
        return parsed_object(path.read_bytes(), f"'{path}'")


def parsed_object(text: bytes, what: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DatasetError: the text is something else.
    """
    with reading(what):
        content = storage.parse_json(text)
    if not isinstance(content, dict):
        raise DatasetError(f"{what} is not a JSON object: it is damaged; copy or make it again")
    return content


def renamed(keys: Iterable[str], name: Callable[[str], str], what: str) -> dict[str, str]:
    """The source's key of each array, by our name.

    Args:
        keys: of the source.
        name: gives our name of a key.
        what: begins the complaint.

    Raises:
        DatasetError: two keys have one name.
    """
    found: dict[str, str] = {}
    for key in sorted(keys):
        other = found.setdefault(name(key), key)
        if other != key:
            raise DatasetError(
                f"{what} holds '{other}' and '{key}', and both would be '{name(key)}': leave one"
                " out"
            )
    return found
