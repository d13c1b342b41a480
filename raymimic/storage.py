"""Reading and atomically writing files, on a local disk or behind a URI that fsspec knows.

A path with a scheme (`s3://bucket/runs`, `gs://…`, `file:///…`) goes through fsspec; everything
else is a plain local path.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import posixpath
import re
import shutil
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from raymimic.errors import ConfigError, OutputError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Pauses before a remote call is made again, in seconds.
_RETRY_AFTER_S = (1.0, 4.0)

# The longest name of a file [bytes]. File systems take 255; the rest is for numbers and endings.
_LONGEST_NAME = 150

_LFS_START = b"version https://git-lfs"
LFS_POINTER = "the stand-in of one that Git LFS keeps elsewhere: git lfs pull fetches it"
"""Ends a complaint about a file that Git LFS has not fetched."""


def is_uri(path: str) -> bool:
    """Whether a path names a remote (or explicitly schemed) location."""
    return "://" in path


def join(base: str, *parts: str) -> str:
    """Joins path components under a local folder or a URI."""
    return posixpath.join(base, *parts) if is_uri(base) else str(Path(base, *parts))


def expanded(path: str | Path) -> Path:
    """A local path with the home folder in the place of a leading `~` or `~user`.

    Raises:
        ConfigError: that home is not known.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:  # no such user, or one without a home
        raise ConfigError(
            f"'{path}' lies in an unknown home: write the path without '~', or set HOME"
        ) from error


def absolute(path: str) -> str:
    """Makes a local path absolute, so that it means the same in every process.

    `file://` URIs become plain paths, which are written more safely.
    """
    path = path.removeprefix("file://")
    return path if is_uri(path) else str(expanded(path).absolute())


def _remote(uri: str, call: Callable[[Any, str], T]) -> T:
    """Calls a remote file system, and again after a pause if it fails.

    Args:
        uri: of a file or folder.
        call: takes the file system and the path within it.

    Raises:
        FileNotFoundError: there is no such file.
        OutputError: for any other error; each kind of store has exceptions of its own.
    """
    import fsspec

    for pause in (*_RETRY_AFTER_S, None):
        try:
            return call(*fsspec.core.url_to_fs(uri))
        except (FileNotFoundError, OutputError):
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
    """Writes a file, which appears under its name only when it is complete.

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

        _write_remote(path, put)
        return
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(target, data, permissions=0o666)
    except OSError as error:
        raise _not_written(path, error) from error


def _replace(target: Path, data: bytes | memoryview, permissions: int) -> None:
    """Writes a local file to a temporary name and to the disk, then gives it its name."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with open_own(temporary, flags, "wb", permissions) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_file(path: Path, ending: str = ".part", replace: bool = True) -> Iterator[Path]:
    """Writes a local file, which appears under its name once the block is complete.

    Args:
        path: of the file. Its folder is made.
        ending: of the name until then, where a library goes by it.
        replace: whether an existing file is replaced.

    Yields:
        The path to write to, beside it. If the block raises, nothing is left.

    Raises:
        OSError: the file cannot be written.
        OutputError: it exists and is not to be replaced: another process may have written it
            meanwhile.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        if replace:
            part.replace(path)
        else:
            _place(part, path)
    finally:
        with contextlib.suppress(OSError):  # there may be no such place
            part.unlink()


def _place(part: Path, path: Path) -> None:
    """Gives a file its name, unless there is a file of that name.

    Raises:
        OSError: it cannot get the name.
        OutputError: there is one.
    """
    try:
        path.hardlink_to(part)  # in one step, as no renaming is
    except OSError as error:  # not all file systems can do so
        if isinstance(error, FileExistsError) or path.exists():
            raise exists_already(path) from error
        part.replace(path)


@contextlib.contextmanager
def writing_folder(target: str | Path) -> Iterator[Path]:
    """Writes a local folder, which appears under its name once the block is complete.

    Args:
        target: path of the folder; an empty one is replaced.

    Yields:
        The folder to write to, beside it. If the block raises, nothing is left.

    Raises:
        OutputError: the folder cannot be written, or holds something already.
    """
    refuse_uri(target)
    path = Path(target).absolute()
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"'{path}' is there already: choose another place, or remove it")
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        part.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot write '{path}': {error.strerror or error}; make room there or choose another"
            " place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def append_bytes(path: str, data: bytes) -> None:
    """Appends to a local file; the bytes are on the disk when this returns.

    Args:
        path: local path of the file, which is made where there is none.
        data: the bytes to add. A process that is killed meanwhile may leave a part of it.

    Raises:
        OutputError: the file cannot be written.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _not_written(path, error) from error


def link(path: str, target: str) -> bool:
    """Gives a local file a second name, in the place of any file of that name.

    Args:
        path: local path of the file.
        target: the second name.

    Returns:
        whether the file system can do so; it cannot between two disks, and no URI can.
    """
    if is_uri(path) or is_uri(target):
        return False
    temporary = Path(target).with_name(f".{Path(target).name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        temporary.hardlink_to(path)
        temporary.replace(target)
    except OSError:
        return False
    finally:  # a rename between two names of one file does nothing
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def refuse_uri(path: str | Path) -> None:
    """Refuses a URI as the output of a command that writes to disks only.

    Raises:
        OutputError: it is one.
    """
    if is_uri(str(path)):
        raise OutputError(
            f"cannot write '{path}': write it to a local disk, and copy it there afterwards"
        )


def check_local(path: str | Path, reads: Iterable[str] = ()) -> None:
    """As `check_writable`, for a file that is written to disks only.

    Raises:
        OutputError: see there; or it is a URI.
    """
    refuse_uri(path)
    check_writable(str(path), reads)


def check_writable(path: str, reads: Iterable[str] = ()) -> None:
    """Makes sure, before long work, that a file can be written; leaves nothing behind.

    Behind a URI, an empty file is written beside it and deleted; the folder stays.

    Args:
        path: local path or URI of the file.
        reads: files that the command reads, paths or URIs.

    Raises:
        OutputError: it cannot (no such place, a name that is too long, permissions, a store that
            does not answer), or would replace a folder, a file that the command reads, a link, a
            pipe or a device.
    """
    if is_uri(path):
        _check_remote(path, reads)
        return
    target = Path(path).absolute()
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.is_symlink() or (target.exists() and not target.is_file()):
            raise OSError(errno.EINVAL, "it is a link, a pipe or a device")
        if any(is_same_file(target, source) for source in reads):
            raise OSError(errno.EINVAL, "the command reads this file")
        folder = next(parent for parent in target.parents if parent.exists())
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}.", suffix=".tmp", dir=folder):
            pass
    except OSError as error:
        raise _not_written(path, error) from error


def _check_remote(uri: str, reads: Iterable[str]) -> None:
    def probe(fs: Any, name: str) -> None:
        if not posixpath.basename(name) or fs.isdir(name):
            raise OutputError(f"cannot write '{uri}': it is a folder; name a file in it")
        folder = posixpath.dirname(name)
        beside = posixpath.join(folder, f".{posixpath.basename(name)}.{uuid.uuid4().hex}.tmp")
        fs.makedirs(folder, exist_ok=True)
        fs.pipe_file(beside, b"")
        with contextlib.suppress(PermissionError):  # one may write there, and not delete
            fs.rm_file(beside)

    if uri in reads:
        raise _not_written(uri, OSError(errno.EINVAL, "the command reads this file"))
    _write_remote(uri, probe)


def _write_remote(uri: str, write: Callable[[Any, str], None]) -> None:
    """As `_remote`, for a file to be written.

    Raises:
        OutputError: it cannot be.
    """
    try:
        _remote(uri, write)
    except FileNotFoundError as error:  # such as a bucket that is not there
        raise OutputError(
            f"cannot write '{uri}': there is no such place; check the address"
        ) from error


def is_same_file(path: str | Path, other: str | Path) -> bool:
    """Whether both are one local file, perhaps by two names."""
    with contextlib.suppress(OSError, ValueError):  # one of them is not there, or no path
        return Path(path).samefile(other)
    return False


def exists_already(path: str | Path) -> OutputError:
    """The error of a command that replaces no file, about a file of that name."""
    return OutputError(f"'{path}' exists already: choose another name, or remove it")


def _not_written(path: str, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write '{path}': {error.strerror or error}; make room there or choose another place"
    )


def read_bytes(path: str) -> bytes:
    """Reads a whole file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it is a pipe or a device, which might never end, or cannot be read.
        OutputError: the store does not answer.
    """
    if not is_uri(path):
        place = Path(path)
        if place.exists() and not place.is_file() and not place.is_dir():
            raise OSError(errno.EINVAL, "it is a pipe or a device", path)
        return Path(path).read_bytes()
    data: bytes = _remote(path, lambda fs, name: fs.cat_file(name))
    return data


def unread(error: OSError) -> str:
    """The reason why a file cannot be read, and the remedy, for the end of a message."""
    missing = isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError)
    remedy = "check its permissions" if isinstance(error, PermissionError) else "check the path"
    return f"{error.strerror or ('no such file' if missing else error)}; {remedy}"


def read_many(uris: list[str]) -> list[bytes]:
    """Reads files of one remote storage, at the same time where it can.

    Raises:
        FileNotFoundError: one is missing.
        OutputError: the store does not answer.
    """

    def read(fs: Any, _: str) -> list[bytes]:
        from fsspec.core import url_to_fs

        names = [url_to_fs(uri)[1] for uri in uris]
        contents = fs.cat(names)
        if isinstance(contents, bytes):  # of a single file
            return [contents]
        return [contents[name] for name in names]

    return _remote(uris[0], read) if uris else []


def is_lfs_pointer(content: bytes) -> bool:
    """Whether a file's content, or its start, is the stand-in that Git LFS leaves of a file."""
    return content.startswith(_LFS_START)


def starts_as_lfs_pointer(path: str) -> bool:
    """As `is_lfs_pointer`, of a local file; files behind URIs are not looked at."""
    file = Path(path)
    try:
        if is_uri(path) or not file.is_file():
            return False
        with file.open("rb") as stream:
            return is_lfs_pointer(stream.read(len(_LFS_START)))
    except (OSError, ValueError):  # whoever reads the file complains
        return False


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


def move(path: str, target: str) -> None:
    """Moves a file (locally a folder too); one that is not there is no error.

    Args:
        path: local path or URI.
        target: its new path, in the same storage.

    Raises:
        OutputError: it cannot be moved.
    """
    if is_uri(path):
        with contextlib.suppress(FileNotFoundError):
            write_bytes(target, read_bytes(path))
            remove(path)
        return
    try:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            Path(path).replace(target)
    except OSError as error:
        raise OutputError(
            f"cannot move '{path}' to '{target}': {error.strerror or error}; check the permissions"
        ) from error


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
        entries = fs.ls(name, detail=True) if fs.isdir(name) else []
        kept = (e["name"] for e in entries if (e["type"] == "directory") == folders)
        return sorted(posixpath.basename(n.rstrip("/")) for n in kept)

    return _remote(path, names)


@contextlib.contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """A file on the local disk: itself, or a copy that is deleted afterwards.

    Raises:
        FileNotFoundError: there is none at the URI.
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
    """A path in the form that Ray takes.

    Returns:
        an Arrow file system (`None` for the local disk), and the path within it.
    """
    if not is_uri(path):
        return None, path
    import fsspec
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    filesystem, name = fsspec.core.url_to_fs(path)
    return PyFileSystem(FSSpecHandler(filesystem)), name


def file_names(names: Iterable[str]) -> dict[str, str]:
    """File names for environments or datasets, whose own names may hold any character.

    Everything but letters, digits and `_ . + -` becomes `-`: `gym_pusht/PushT-v0` is
    `gym_pusht-PushT-v0`. Names that would be equal get a number.

    Returns:
        the file name of each name, without an extension.
    """
    result: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = re.sub(r"[^\w.+-]+", "-", name).strip("-.")
        plain = plain.encode(errors="ignore")[:_LONGEST_NAME].decode(errors="ignore") or "unnamed"
        unique = plain
        for number in itertools.count(2):
            if unique not in result.values():
                break
            unique = f"{plain}-{number}"
        result[name] = unique
    return result


def upload(local: Path, path: str) -> None:
    """Copies a local file to a path or URI."""
    write_bytes(path, local.read_bytes())


# Far deeper than any config. Readers of JSON recurse, and Python's stack holds about a thousand.
MAX_DEPTH = 64


def parse_json(text: str | bytes, unique_keys: bool = False) -> Any:
    """Parses JSON that any of our functions can walk through.

    Args:
        text: bytes are read as UTF-8.
        unique_keys: whether to refuse a key that comes twice, of which JSON keeps the last.

    Raises:
        ValueError: it is not JSON (`json.JSONDecodeError` names the place), is nested too deeply,
            or has a key twice.
    """
    try:
        content = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        if "integer string conversion" in str(error):
            raise ValueError("a number has more than 4,300 digits") from None
        raise
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [x for value in level for x in _children(value)]
        if not level:
            return content
    raise _too_deep()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of whose keys none comes twice."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"the key '{twice}' comes twice in one section: remove one")
    return content


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _too_deep() -> ValueError:
    return ValueError(f"its sections are nested more than {MAX_DEPTH} deep")


def lock(file: IO[Any], patience_s: float = 0.0) -> None:
    """Locks a file for this process; closing the file, or dying, unlocks it.

    Args:
        file: open for writing.
        patience_s: how long to wait for another process that holds it [s].

    Raises:
        BlockingIOError: another process holds it.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.2)


# The largest file that `read_json` reads [bytes].
MAX_JSON_BYTES = 16 * 2**20


def open_own(path: Path, flags: int, mode: str, permissions: int = 0o600) -> IO[Any]:
    """Opens a plain file, never through a link; one that it makes is for its owner alone.

    Args:
        path: the file.
        flags: of `os.open`.
        mode: of `open`.
        permissions: of a new file.

    Raises:
        OSError: it is a link, a pipe or a device, or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, permissions)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"'{path}' is not a plain file")
    return os.fdopen(descriptor, mode)


def write_json(path: Path, value: Any, permissions: int = 0o600) -> None:
    """Replaces a local JSON file in one step, so that no reader ever sees half of it.

    Raises:
        OSError: it cannot be written.
    """
    _replace(path, f"{json.dumps(value, indent=2)}\n".encode(), permissions)


def read_json(path: Path) -> dict[str, Any]:
    """Reads a local JSON object; an empty one if the file is missing, damaged or no plain file."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        with open_own(path, os.O_RDONLY, "rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
        value = json.loads(content) if len(content) <= MAX_JSON_BYTES else None
        if isinstance(value, dict):
            return value
    return {}
