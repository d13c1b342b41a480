"""Reading and atomically writing files, on a local disk or behind a URI that fsspec knows.

A path with a scheme (``s3://bucket/runs``, ``gs://…``, ``file:///…``) goes through fsspec;
everything else is a plain local path.
"""

import contextlib
import os
import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from raymimic.errors import OutputError


def is_uri(path: str) -> bool:
    """Whether a path names a remote (or explicitly schemed) location."""
    return "://" in path


def join(base: str, *parts: str) -> str:
    """Joins path components under a local folder or a URI."""
    return posixpath.join(base, *parts) if is_uri(base) else str(Path(base, *parts))


def absolute(path: str) -> str:
    """Makes a local path absolute, so that it means the same in every process."""
    return path if is_uri(path) else str(Path(path).expanduser().absolute())


def _filesystem(uri: str) -> tuple[Any, str]:
    import fsspec

    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError) as error:
        raise OutputError(f"cannot use storage '{uri}': {error}") from error
    return fs, path


@contextlib.contextmanager
def atomic_writer(path: str) -> Iterator[IO[bytes]]:
    """Opens a file that appears under its name only when it is complete.

    Locally the bytes go to a temporary name, reach the disk, and are renamed. On an
    object store the object becomes visible when its upload is completed.

    Args:
        path: local path or URI of the file.

    Yields:
        a binary file to write to.

    Raises:
        OutputError: the place cannot be written (permissions, full disk, unreachable store).
    """
    try:
        if is_uri(path):
            fs, name = _filesystem(path)
            fs.makedirs(posixpath.dirname(name), exist_ok=True)
            with fs.transaction, fs.open(name, "wb") as file:
                yield file
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}; make room there or choose another "
            "place (results of a training: train.output_dir or ray.storage_path)"
        ) from error


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a whole file atomically (see `atomic_writer`)."""
    with atomic_writer(path) as file:
        file.write(data)


def read_bytes(path: str) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: there is none.
    """
    if not is_uri(path):
        return Path(path).read_bytes()
    fs, name = _filesystem(path)
    data: bytes = fs.cat_file(name)
    return data


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if not is_uri(path):
        return Path(path).exists()
    fs, name = _filesystem(path)
    return bool(fs.exists(name))


def remove(path: str) -> None:
    """Deletes a file; one that is already gone is no error."""
    if not is_uri(path):
        Path(path).unlink(missing_ok=True)
        return
    fs, name = _filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(name)


def remove_tree(path: str) -> None:
    """Deletes a folder and all that is in it; one that is already gone is no error."""
    if not is_uri(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    fs, name = _filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        fs.rm(name, recursive=True)


def subfolders(path: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none when it does not exist."""
    if not is_uri(path):
        folder = Path(path)
        return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    fs, name = _filesystem(path)
    if not fs.isdir(name):
        return []
    entries = fs.ls(name, detail=True)
    return sorted(
        posixpath.basename(e["name"].rstrip("/")) for e in entries if e["type"] == "directory"
    )


def upload(local: Path, path: str) -> None:
    """Copies a local file to a path or URI."""
    write_bytes(path, local.read_bytes())
