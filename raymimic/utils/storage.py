"""Reading and atomically writing files, on a local disk or behind a URI that fsspec knows.

A path with a scheme (``s3://bucket/runs``, ``gs://…``, ``file:///…``) goes through fsspec;
everything else is a plain local path.
"""

import contextlib
import logging
import os
import posixpath
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from raymimic.errors import OutputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Pauses before a remote call is made again, in seconds.
_RETRY_AFTER_S = (1.0, 4.0)


def is_uri(path: str) -> bool:
    """Whether a path names a remote (or explicitly schemed) location."""
    return "://" in path


def join(base: str, *parts: str) -> str:
    """Joins path components under a local folder or a URI."""
    return posixpath.join(base, *parts) if is_uri(base) else str(Path(base, *parts))


def absolute(path: str) -> str:
    """Makes a local path absolute, so that it means the same in every process.

    `file://` URIs become plain paths, which are written more safely.
    """
    path = path.removeprefix("file://")
    return path if is_uri(path) else str(Path(path).expanduser().absolute())


def _remote(uri: str, call: Callable[[Any, str], T]) -> T:
    """Calls a file system, again where it fails, as stores far away do now and then.

    Args:
        uri: where.
        call: takes the file system and the path within it.

    Raises:
        FileNotFoundError: there is no such file.
        OutputError: anything else; each kind of store has exceptions of its own.
    """
    import fsspec

    for pause in (*_RETRY_AFTER_S, None):
        try:
            return call(*fsspec.core.url_to_fs(uri))
        except FileNotFoundError:
            raise
        except (ImportError, ValueError) as error:
            raise OutputError(f"cannot use storage '{uri}': {error}") from error
        except Exception as error:
            if pause is None:
                raise OutputError(
                    f"storage '{uri}' does not answer as it should: {type(error).__name__}: "
                    f"{error}; check the address and your credentials for it"
                ) from error
            logger.info("trying '%s' again in %g s: %s", uri, pause, error)
            time.sleep(pause)
    raise AssertionError("unreachable")


def write_bytes(path: str, data: bytes | memoryview) -> None:
    """Writes a file that appears under its name only when it is complete.

    Locally the bytes go to a temporary name, reach the disk, and are renamed. An object store
    shows an object when its upload is completed.

    Args:
        path: local path or URI of the file.
        data: the whole content.

    Raises:
        OutputError: the place cannot be written (permissions, full disk, unreachable store).
    """
    if is_uri(path):

        def put(fs: Any, name: str) -> None:
            fs.makedirs(posixpath.dirname(name), exist_ok=True)
            fs.pipe_file(name, bytes(data))

        _remote(path, put)
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                file.write(data)
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


def read_bytes(path: str) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: there is none.
        OutputError: the store does not answer.
    """
    if not is_uri(path):
        return Path(path).read_bytes()
    data: bytes = _remote(path, lambda fs, name: fs.cat_file(name))
    return data


def exists(path: str) -> bool:
    """Whether a file or folder is there."""
    if not is_uri(path):
        return Path(path).exists()
    return bool(_remote(path, lambda fs, name: fs.exists(name)))


def remove(path: str) -> None:
    """Deletes a file; one that is already gone is no error."""
    if not is_uri(path):
        Path(path).unlink(missing_ok=True)
        return
    with contextlib.suppress(FileNotFoundError):
        _remote(path, lambda fs, name: fs.rm_file(name))


def remove_tree(path: str) -> None:
    """Deletes a folder and all that is in it; one that is already gone is no error."""
    if not is_uri(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(FileNotFoundError):
        _remote(path, lambda fs, name: fs.rm(name, recursive=True))


def files(path: str) -> list[str]:
    """Names of the files directly in a folder, sorted; none when it does not exist."""
    return _names(path, folders=False)


def subfolders(path: str) -> list[str]:
    """Names of the folders directly below a folder, sorted; none when it does not exist."""
    return _names(path, folders=True)


def _names(path: str, folders: bool) -> list[str]:
    if not is_uri(path):
        folder = Path(path)
        entries = folder.iterdir() if folder.is_dir() else ()
        return sorted(p.name for p in entries if p.is_dir() == folders)

    def names(fs: Any, name: str) -> list[str]:
        fs.invalidate_cache()
        found = fs.ls(name, detail=True) if fs.isdir(name) else []
        kept = (e["name"] for e in found if (e["type"] == "directory") == folders)
        return sorted(posixpath.basename(n.rstrip("/")) for n in kept)

    return _remote(path, names)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file as one of the local disk: itself, or a copy that is gone afterwards.

    Raises:
        FileNotFoundError: there is none behind the URI.
        OutputError: the store does not answer.
    """
    if not is_uri(path):
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / posixpath.basename(path)
        copy.write_bytes(read_bytes(path))
        yield copy


def for_arrow(path: str) -> tuple[Any, str]:
    """A path as Ray takes it.

    Returns:
        a file system of Arrow's, `None` for the local disk, and the path within it.
    """
    if not is_uri(path):
        return None, path
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, name = fsspec.core.url_to_fs(path)
    return PyFileSystem(FSSpecHandler(filesystem)), name


def upload(local: Path, path: str) -> None:
    """Copies a local file to a path or URI."""
    write_bytes(path, local.read_bytes())
