"""Brings a dataset to this machine.

A path is used where it lies. A URI (`s3://…`, `gs://…`, any that fsspec reads) of a file or a
folder is copied once per node into a cache, where all processes of the node find it.
"""

import hashlib
import math
import os
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

from raymimic import storage
from raymimic.errors import ConfigError, DatasetError


def cache_dir() -> Path:
    """Where fetched datasets are kept: `$RAYMIMIC_CACHE` or `~/.cache/raymimic`.

    Raises:
        ConfigError: it is in the home of a user who has none.
    """
    folder = os.environ.get("RAYMIMIC_CACHE", "~/.cache/raymimic")
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"the folder of caches '{folder}' is in an unknown home: name another folder by the"
            " variable RAYMIMIC_CACHE"
        ) from error


def is_remote(path_or_uri: str | Path) -> bool:
    """Whether a dataset has to be fetched."""
    name = str(path_or_uri)
    return "://" in name and not name.startswith("file://")


def local_path(path_or_uri: str | Path) -> Path:
    """A local path of a dataset, fetched first where it is a URI.

    The cached copy lies in a folder named after the URI and the remote files' fingerprints, so that
    files that changed are fetched again. Processes of one node wait for each other's download by a
    file lock.

    Args:
        path_or_uri: a local path (`~` is expanded) or a URI that fsspec reads.

    Returns:
        The path of an existing file or folder.

    Raises:
        DatasetError: there is none, or it cannot be fetched.
    """
    if is_remote(path_or_uri):
        return _fetch(str(path_or_uri))
    path = Path(str(path_or_uri).removeprefix("file://"))
    try:
        path = path.expanduser()
        there = path.exists()
    except (OSError, RuntimeError) as error:  # no such user; a folder that may not be searched
        raise DatasetError(
            f"dataset '{path}' cannot be reached: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not there:
        raise DatasetError(
            f"dataset '{path}' does not exist: check the path (train.data of a training must be"
            " there on every node of the cluster; a URI such as s3://… is fetched)"
        )
    return path


def _fetch(uri: str) -> Path:
    """Copies a remote file or folder into the cache, unless it is there."""
    import fsspec

    try:
        fs, remote = fsspec.core.url_to_fs(uri)
        files = _files(fs, uri, remote)
        if not files:
            raise DatasetError(f"dataset '{uri}' does not exist: check the URI")
        keys = [uri, *(f"{name} {fs.ukey(path)}" for name, path in files.items())]
        fingerprint = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:20]
        folder = cache_dir() / "datasets" / fingerprint
        target = folder / PurePosixPath(remote).name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            storage.lock(lock, patience_s=math.inf)
            if not target.exists():
                partial = folder / ".partial"
                shutil.rmtree(partial, ignore_errors=True)
                for name, path in files.items():
                    copy = partial / target.name / name
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    with fs.open(path, "rb") as source, copy.open("wb") as sink:
                        shutil.copyfileobj(source, sink, 1 << 24)
                (partial / target.name).replace(target)
                partial.rmdir()
    except DatasetError:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DatasetError(f"dataset '{uri}' cannot be fetched: {reason}") from error
    return target


def _files(fs: Any, uri: str, remote: str) -> dict[str, str]:
    """The files of a remote dataset by their names below its folder; of one file, `""`.

    A URI that ends in `/` is a folder's: a web server answers both alike.
    """
    if not uri.endswith("/") and fs.isfile(remote):
        return {"": remote}
    above = f"{remote.rstrip('/')}/"
    found = {path.removeprefix(above): path for path in sorted(fs.find(remote))}
    for name, path in found.items():
        if name == path or not name or ".." in PurePosixPath(name).parts:
            raise DatasetError(f"dataset '{uri}' lists '{path}', which lies outside of it")
    return found
