"""Removes passwords from the folders of runs and sweeps that raymimic 0.1.0 made."""

import io
import json
import logging
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from raymimic import storage
from raymimic.credentials import secret_parts
from raymimic.tracking.journal import JOURNAL, RUN_FILE, spool_dir_of

logger = logging.getLogger(__name__)

# Files into which 0.1.0 wrote the URI of the tracking server, with its password.
_FILES = ("config.json", "sweep.json", RUN_FILE, str(spool_dir_of(Path()) / JOURNAL))
# In JSON, and in JSON that is a string of JSON.
_URI = re.compile(
    rb'tracking_uri": *"((?:[^"\\]|\\.)+)"'
    rb'|tracking_uri\\": *\\"([^"\\]+(?:\\u[0-9a-f]{4}[^"\\]*)*)'
)


def remove_passwords(uri: str, local: Path) -> None:
    """Overwrites the password of a tracking server in all files of a folder.

    Asterisks replace it, character by character: offsets and lengths within files stay.

    Args:
        uri: folder or URI of a run or sweep.
        local: its local folder.

    Raises:
        OutputError: a file cannot be written.
    """
    folders = {uri, str(local)}
    secrets = {s for folder in folders for name in _FILES for s in _secrets_of(folder, name)}
    if not secrets:
        return
    count = sum(_clean(path, secrets) for folder in folders for path in _files(folder))
    logger.warning(
        "'%s' held the password of its MLflow server in %d files, where it is removed now; MLflow "
        "itself may still show it among the run's parameters and files: change the password",
        uri,
        count,
    )


def _secrets_of(folder: str, name: str) -> set[bytes]:
    """The passwords in the URIs of a file, in each form that files contain."""
    try:
        content = storage.read_bytes(storage.join(folder, name))
    except OSError:
        return set()
    found = set()
    for match in _URI.finditer(content):
        with suppress(ValueError):
            for part in secret_parts(json.loads(b'"' + (match[1] or match[2]) + b'"')):
                escaped = json.dumps(part)[1:-1]
                found |= {s.encode() for s in (part, escaped, json.dumps(escaped)[1:-1])}
    return found


def _files(folder: str) -> Iterator[str]:
    for name in storage.files(folder):
        path = storage.join(folder, name)
        plain = not Path(path).is_symlink() and Path(path).is_file()
        if storage.is_uri(path) or plain:
            yield path
    for name in storage.subfolders(folder):
        path = storage.join(folder, name)
        if storage.is_uri(path) or not Path(path).is_symlink():
            yield from _files(path)


def _clean(path: str, secrets: set[bytes]) -> bool:
    """Overwrites the passwords in a file; returns whether there were any."""
    content = storage.read_bytes(path)
    if not any(secret in content for secret in secrets):
        return False
    try:
        clean = _rezipped(content, secrets)  # a checkpoint, whose parts have checksums
    except Exception:  # zipfile raises errors of many kinds for other files
        clean = _overwritten(content, secrets)
    storage.write_bytes(path, clean)
    return True


def _overwritten(content: bytes, secrets: set[bytes]) -> bytes:
    for secret in secrets:
        content = content.replace(secret, _hidden(secret))
    return content


def _hidden(secret: bytes) -> bytes:
    """A part of a URI, such as `user:password@` or `token=abc`, with asterisks for its secret."""
    user, colon, rest = secret.partition(b":") if secret.endswith(b"@") else (b"", b"", secret)
    if colon:
        return user + colon + b"*" * (len(rest) - 1) + b"@"
    if secret.endswith(b"@"):
        return b"*" * (len(secret) - 1) + b"@"
    key, equals, value = secret.partition(b"=")
    return key + equals + b"*" * len(value)


def _rezipped(content: bytes, secrets: set[bytes]) -> bytes:
    clean = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(clean, "w", zipfile.ZIP_STORED) as new,
    ):
        for part in old.infolist():
            new.writestr(part.filename, _overwritten(old.read(part), secrets))
    return clean.getvalue()
