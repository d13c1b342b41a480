"""Joins a Ray cluster or starts a local one, explains why that fails, and leaves it."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raymimic.cluster.ray_internals import (
    job_config,
    no_driver_messages,
    no_helpers,
    own_sigterm_handler,
)
from raymimic.cluster.watch import ClusterWatch, check_port
from raymimic.config import BaseConfig
from raymimic.errors import FULL_DISK, ClusterError

# For a cluster's port to answer.
_PORT_S = 10.0
# Ray gives its processes half a minute to start, which is too short on a busy machine.
_STARTS = 3


@contextlib.contextmanager
def ray_session(config: BaseConfig) -> Iterator[ClusterWatch]:
    """Joins the cluster that config or environment name, or starts a local one, and leaves it.

    A Ray that is already connected is used and left alone.

    Yields:
        a watch that notices when the cluster ends.

    Raises:
        ClusterError: the named cluster does not answer.
    """
    import ray

    if ray.is_initialized():
        yield ClusterWatch(config.ray.placement_timeout_s)
        return
    with no_driver_messages(), _no_core_messages():
        try:
            _join(cluster_address(config))
            yield ClusterWatch(config.ray.placement_timeout_s)
        finally:
            ray.shutdown()


def cluster_address(config: BaseConfig) -> str | None:
    """The cluster that config or environment name; None: a local one is started."""
    address: str | None = config.ray.address or os.environ.get("RAY_ADDRESS")
    return address


def _join(address: str | None) -> None:
    """Connects to a cluster, or starts a local one.

    Raises:
        ClusterError: it does not answer.
    """
    import ray

    options: dict[str, Any] = {} if address else {"include_dashboard": False}
    for left in reversed(range(1 if address else _STARTS)):
        try:
            if address:
                check_port(address, timeout_s=_PORT_S)
            with _deferred_signals(), contextlib.nullcontext() if address else no_helpers():
                ray.init(
                    address=address,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=True,
                    job_config=job_config(),
                    **options,
                )
            return
        except Exception as error:  # Ray raises all kinds, bare `Exception` among them
            if not left or "timed out" not in str(error).lower():
                raise ClusterError(why_not_joined(address, error)) from error
            ray.shutdown()  # the processes of this attempt end with this one at the latest


def why_not_joined(address: str | None, error: BaseException) -> str:
    """Why `ray.init` failed, in one sentence."""
    where = f"Ray cluster at '{address}'" if address else "local Ray cluster"
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    text = " ".join(" ".join(map(str, chain)).split())
    if "InvalidAuthToken" in text:
        return (
            f"the {where} wants a token, and the one given is missing or wrong; set "
            "RAY_AUTH_MODE=token, and give the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
        )
    if "AF_UNIX path length" in text:
        folder = text.rpartition("bytes: ")[2].partition("/session_")[0]
        return (
            f"cannot start a {where}: the path of its temporary folder '{folder}' is too long for "
            "the sockets in it; set RAY_TMPDIR to a short one, such as RAY_TMPDIR=/tmp"
        )
    if "Version mismatch" in text:
        mismatch = text[text.index("Version mismatch") :].removeprefix("Version mismatch: ")
        return (
            f"cannot join the {where}, which has other versions ({mismatch.rstrip('. ')}); install "
            "those here, or train without Ray by --workers 0"
        )
    if any(isinstance(e, OSError) and e.errno in FULL_DISK for e in chain):
        return (
            f"cannot start a {where}: the disk of Ray's temporary folder is full; make room "
            "there, or set RAY_TMPDIR to a folder on another disk"
        )
    barred = [e.filename for e in chain if isinstance(e, PermissionError) and e.filename]
    if barred or "determine home directory" in text:
        folder = f"in '{barred[0]}'" if barred else "in the home of a user who has none"
        return (
            f"cannot start a {where}: Ray cannot write {folder}; set HOME and RAY_TMPDIR to "
            "folders where you may write"
        )
    if any(isinstance(e, UnicodeEncodeError) for e in chain):
        return (
            f"cannot start a {where}: Ray needs names in UTF-8, and this command or its folder has "
            "another one; rename the file or the folder"
        )
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"cannot join the {where}: {reason}; check ray.address and RAY_ADDRESS, or train without "
        "Ray by --workers 0"
    )


@contextlib.contextmanager
def _no_core_messages() -> Iterator[None]:
    """Keeps messages of Ray's core on stderr off the terminal: its log has the same lines.

    Works only if Python's stderr is another file descriptor, as the command line arranges it.
    """
    try:
        shared = sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):
        shared = True
    if shared:
        yield
        return
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextlib.contextmanager
def _deferred_signals() -> Iterator[None]:
    """Delivers signals once Ray has started, to the handlers that they had before.

    A signal while Ray starts would abort the process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {signum: signal.getsignal(signum) for signum in signals}
    deferred: list[tuple[Callable[..., Any], int]] = []

    def defer(signum: int, frame: Any) -> None:
        handler = handlers[signal.Signals(signum)]
        assert callable(handler)
        deferred.append((handler, signum))

    for signum, handler in handlers.items():
        if callable(handler):
            signal.signal(signum, defer)
    try:
        with own_sigterm_handler():
            yield
    finally:
        for signum, handler in handlers.items():
            if handler is not None:
                signal.signal(signum, handler)
        for handler, number in deferred:
            handler(number, None)
