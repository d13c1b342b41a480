"""Downloads files of the web; a file appears once it is complete and checked.

An interrupted download continues where it ended, in the same call or in a later one. Until then its
bytes are beside the file, in `.<name>.<version>.part`, where the version is the server's.
"""

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm  # type: ignore[import-untyped]

from raymimic import storage
from raymimic.data.hdf5 import HDF5_ENDINGS, open_hdf5
from raymimic.errors import DatasetError, OutputError, full_disk
from raymimic.terminal import readable_bytes

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20
# Pauses before a server is asked again that sent no further byte [s].
_PAUSES_S = (0.5, 2.0)
_CUT_OFF = (http.client.HTTPException, ConnectionError, TimeoutError)
_NO_ANSWER = (urllib.error.URLError, ValueError, *_CUT_OFF)


def url_is_alive(url: str) -> bool:
    """Whether a server has something at a URL (`http` or `https`)."""
    try:
        with _opened(url, method="HEAD"):
            return True
    except (OSError, *_NO_ANSWER):
        return False


def download(url: str, target: Path) -> None:
    """Downloads a file, with a progress bar.

    Its SHA-256 is checked if the server sends one (Hugging Face does), else its size, and that
    HDF5 files open.

    Args:
        url: of `http` or `https`.
        target: the local file; an existing one is replaced. Its folder is made.

    Raises:
        DatasetError: the server does not answer, or not with the whole file.
        OutputError: the file cannot be written.
    """
    try:
        with _opened(url) as (answer, remote):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{remote.version}.part")
            with part.open("ab") as file:
                _lock(file, target)
                if not remote.tag or remote.size is None:
                    _empty(file)  # its bytes may be of another version, or all or some of it
                _check_room(remote, file, target)
                with tqdm(total=remote.size, unit="B", unit_scale=True, desc=target.name) as bar:
                    _receive(remote, answer, file, bar)
        _check(remote, part, target)
        part.replace(target)
    except _NO_ANSWER as error:
        raise DatasetError(
            f"'{url}' cannot be downloaded ({_why(error)}): check the address and this machine's "
            "network"
        ) from error
    except OSError as error:
        raise full_disk(error) or OutputError(
            f"'{target}' cannot be written: {error.strerror or error}"
        ) from error


def is_whole_hdf5(path: Path) -> bool:
    """Whether a local file is HDF5, as long as it says."""
    try:
        with open_hdf5(path):
            return True
    except DatasetError:
        return False


@dataclass(frozen=True)
class _Remote:
    """A file as its server describes it.

    Attributes:
        url: of the file.
        size: in bytes; None: not told.
        sha256: None: not told.
        tag: tells this version of the file from others; empty: not told.
    """

    url: str
    size: int | None
    sha256: str | None
    tag: str

    @property
    def version(self) -> str:
        """A name for the version, of a few letters."""
        known = f"{self.url} {self.sha256 or self.tag} {self.size}"
        return hashlib.sha256(known.encode()).hexdigest()[:12]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirections, and keeps the digest that Hugging Face sends with them."""

    linked_etag = ""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        self.linked_etag = headers.get("X-Linked-ETag", self.linked_etag)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _opened(
    url: str, method: str = "GET", headers: dict[str, str] | None = None
) -> Iterator[tuple[HTTPResponse, _Remote]]:
    """Asks a server for a file.

    Yields:
        the answer, and the file that it is of.

    Raises:
        ValueError: it is no URL of `http` or `https`.
        OSError, HTTPException: it does not answer, or refuses.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"'{url}' is no URL of http or https")
    redirects = _Redirects()
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    answer: HTTPResponse
    with urllib.request.build_opener(redirects).open(request, timeout=_TIMEOUT_S) as answer:
        size = answer.headers.get("Content-Length")
        sha256 = re.fullmatch(r'"?([0-9a-f]{64})"?', redirects.linked_etag)
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        yield (
            answer,
            _Remote(
                url,
                None if size is None else int(size),
                None if sha256 is None else sha256[1],
                tag,
            ),
        )


def _receive(remote: _Remote, answer: HTTPResponse, file: IO[bytes], bar: Any) -> None:
    """Appends the bytes that the file lacks: of this answer where it has none, then of others.

    Raises:
        DatasetError: no more come, they are others than asked for, or the file has changed.
        HTTPError: the server refuses.
    """
    if not file.tell():
        _copy(answer, file, bar)
    before, pauses = -1, list(_PAUSES_S)
    while remote.size is not None and file.tell() < remote.size:
        if file.tell() <= before:
            if not pauses:
                raise DatasetError(
                    f"'{remote.url}' ended after {before:,} of {remote.size:,} bytes: give the same"
                    " command again, which goes on from there"
                )
            time.sleep(pauses.pop(0))
        before = max(before, file.tell())
        wanted = {"Range": f"bytes={file.tell()}-"}
        if remote.tag:
            wanted["If-Range"] = remote.tag
        try:
            with _opened(remote.url, headers=wanted) as (rest, now):
                if rest.status != http.client.PARTIAL_CONTENT:  # this server sends wholes alone
                    if now.version != remote.version:
                        raise DatasetError(
                            f"'{remote.url}' changed during the download: give the command again"
                        )
                    _empty(file)
                elif not rest.headers.get("Content-Range", "").startswith(f"bytes {file.tell()}-"):
                    _empty(file)
                    raise DatasetError(
                        f"'{remote.url}' sends other bytes than requested: give the command again, "
                        "which starts from the beginning"
                    )
                _copy(rest, file, bar)
        except urllib.error.HTTPError:
            raise
        except (urllib.error.URLError, *_CUT_OFF):
            continue


def _copy(answer: HTTPResponse, file: IO[bytes], bar: Any) -> None:
    """Appends the bytes of an answer, until it ends or is cut off."""
    try:
        while block := answer.read(_CHUNK_BYTES):
            file.write(block)
            bar.update(file.tell() - bar.n)
    except _CUT_OFF:
        if "Content-Length" not in answer.headers:
            raise  # else the missing bytes are noticed by their number


def _empty(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _lock(file: IO[bytes], target: Path) -> None:
    try:
        storage.lock(file)
    except BlockingIOError:
        raise OutputError(
            f"'{target}' is being downloaded by another process: wait for it"
        ) from None
    except OSError:  # this file system has no locks
        pass


def _check_room(remote: _Remote, file: IO[bytes], target: Path) -> None:
    missing = (remote.size or 0) - file.tell()
    free = shutil.disk_usage(target.parent).free
    if missing > free:
        raise OutputError(
            f"'{target}' needs {readable_bytes(missing)} and its disk has {readable_bytes(free)}: "
            "make room there, or choose another folder"
        )


def _check(remote: _Remote, part: Path, target: Path) -> None:
    """Removes a file that has arrived damaged.

    Raises:
        DatasetError: it had.
    """
    fault = ""
    size = part.stat().st_size
    if remote.size is not None and size != remote.size:
        fault = f"{size:,} bytes instead of {remote.size:,}"
    elif remote.sha256 is not None:
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != remote.sha256:
                fault = "its SHA-256 is another than the server tells"
    elif target.suffix in HDF5_ENDINGS and not is_whole_hdf5(part):
        fault = "it is no HDF5 file"
    if fault:
        part.unlink()
        raise DatasetError(f"'{remote.url}' arrived damaged ({fault}): give the command again")


def _why(error: Exception) -> str:
    """The reason of an error of the network, in a few words."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
