"""Compares a run's checkpoints with the SHA-256 that its manifest lists of each."""

import hashlib
import json
import posixpath
from contextlib import suppress
from pathlib import Path

from raymimic import storage
from raymimic.errors import CheckpointError, OutputError

MANIFEST = "checkpoints.json"
# The newest checkpoint, beside the manifest.
LAST = "last.pth"


def sha256_of(path: str) -> str | None:
    """Digest of a file, in hexadecimal; `None` where there is no such file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        if storage.is_uri(path):
            return hashlib.sha256(storage.read_bytes(path)).hexdigest()
        if not Path(path).is_file():  # a pipe might never end
            return None
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(
            f"cannot read checkpoint '{path}': {storage.unread(error)}"
        ) from error


def check_digest(path: str, sha256: str | None) -> None:
    """Makes sure that a checkpoint is the one that was written; one that is missing passes.

    Args:
        path: local path or URI.
        sha256: of the content that was written; `None` where it is not known.

    Raises:
        CheckpointError: it is another one.
    """
    if sha256 is not None and (found := sha256_of(path)) not in (None, sha256):
        raise CheckpointError(
            f"checkpoint '{path}' is truncated or damaged, or was replaced: its SHA-256 is "
            f"{found}, and '{MANIFEST}' lists {sha256}"
        )


def check_listed(path: str) -> None:
    """As `check_digest`, by the manifest of the run that a checkpoint lies in.

    The manifest lies in the run's folder; in that of 0.1.0 beside the checkpoints. Passes where
    there is none, or none that can be read: the file is none of a run's.

    Raises:
        CheckpointError: the manifest has another digest of it.
    """
    folder, _, name = path.rpartition("/")
    if posixpath.basename(folder) == "models":
        places = [posixpath.dirname(folder), folder]
    elif name == LAST:
        places = [folder]
    else:
        return
    for place in places:
        with suppress(OSError, OutputError, ValueError, RecursionError, TypeError, LookupError):
            entries = json.loads(storage.read_bytes(storage.join(place, MANIFEST)))["checkpoints"]
            if name == LAST:
                # A killed commit may leave the one before.
                entries = sorted(entries, key=lambda entry: entry["epoch"])
                digests = [entry["sha256"] for entry in entries]
                if sha256_of(path) not in digests:
                    check_digest(path, str(digests[-1]))
                return
            (entry,) = (entry for entry in entries if entry["file"] == name)
            if isinstance(sha256 := entry["sha256"], str):
                check_digest(path, sha256)
            return
