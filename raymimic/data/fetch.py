"""Brings a dataset to this machine.

A path is used where it lies. A URI (``s3://…``, ``gs://…``, whatever fsspec reads) is copied
once per node into a cache, where all processes of the node find it.
"""

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from raymimic.errors import DatasetError


def cache_dir() -> Path:
    """Where fetched datasets are kept: ``$RAYMIMIC_CACHE`` or ``~/.cache/raymimic``."""
    return Path(os.environ.get("RAYMIMIC_CACHE", "~/.cache/raymimic")).expanduser()


def local_path(path_or_uri: str | Path) -> Path:
    """A local path of a dataset, fetched first where it is a URI.

    The cached copy is named after the URI and the remote file's fingerprint, so that a file that
    changed is fetched again. Processes of one node wait for each other's download by a file lock.

    Args:
        path_or_uri: a local path (``~`` is expanded) or a URI that fsspec reads.

    Returns:
        The path of an existing file.

    Raises:
        DatasetError: there is no such file, or it cannot be fetched.
    """
    name = str(path_or_uri)
    if name.startswith("file://"):
        name = name.removeprefix("file://")
    if "://" not in name:
        path = Path(name).expanduser()
        if not path.exists():
            raise DatasetError(
                f"dataset '{path}' does not exist: check train.data (the path must be there on"
                " every node of the cluster; a URI such as s3://… is fetched)"
            )
        return path
    return _fetch(name)


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
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not target.exists():
                partial = target.with_suffix(".partial")
                with fs.open(remote, "rb") as source, partial.open("wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 24)
                partial.replace(target)
    except (OSError, ImportError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DatasetError(f"dataset '{uri}' cannot be fetched: {reason}") from error
    return target
