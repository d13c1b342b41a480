"""Brings a dataset to this machine.

A path is used where it lies. A URI (`s3://…`, `gs://…`, any that fsspec reads) is copied
once per node into a cache, where all processes of the node find it.
"""

import hashlib
import math
import os
import shutil
from pathlib import Path

from raymimic import storage
from raymimic.errors import DatasetError


def cache_dir() -> Path:
    """Where fetched datasets are kept: `$RAYMIMIC_CACHE` or `~/.cache/raymimic`."""
    return Path(os.environ.get("RAYMIMIC_CACHE", "~/.cache/raymimic")).expanduser()


def is_remote(path_or_uri: str | Path) -> bool:
    """Whether a dataset has to be fetched."""
    name = str(path_or_uri)
    return "://" in name and not name.startswith("file://")


def local_path(path_or_uri: str | Path) -> Path:
    """A local path of a dataset, fetched first where it is a URI.

    The cached copy is named after the URI and the remote file's fingerprint, so that a file that
    changed is fetched again. Processes of one node wait for each other's download by a file lock.

    Args:
        path_or_uri: a local path (`~` is expanded) or a URI that fsspec reads.

    Returns:
        The path of an existing file.

    Raises:
        DatasetError: there is no such file, or it cannot be fetched.
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
            f"dataset '{path}' does not exist: check train.data (the path must be there on every"
            " node of the cluster; a URI such as s3://… is fetched)"
        )
    return path


def _fetch(uri: str) -> Path:
    """Copies a remote file into the cache, unless it is there."""
    import fsspec

    try:
        fs, remote = fsspec.core.url_to_fs(uri)
        if not fs.isfile(remote):
            raise DatasetError(f"dataset '{uri}' does not exist: check train.data")
        fingerprint = hashlib.sha256(f"{uri} {fs.ukey(remote)}".encode()).hexdigest()[:20]
        target = cache_dir() / "datasets" / f"{fingerprint}-{Path(remote).name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.with_suffix(".lock").open("w") as lock:
            storage.lock(lock, patience_s=math.inf)
            if not target.exists():
                partial = target.with_suffix(".partial")
                with fs.open(remote, "rb") as source, partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 24)
                partial.replace(target)
    except DatasetError:
        raise
    except Exception as error:  # each kind of storage has errors of its own
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DatasetError(f"dataset '{uri}' cannot be fetched: {reason}") from error
    return target
