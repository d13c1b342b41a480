"""Why a cluster cannot be joined, without one; ports that answer and ports that do not."""

import contextlib
import errno
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from raymimic.cluster import session
from raymimic.cluster.session import ray_session, why_not_joined
from raymimic.cluster.watch import check_port
from raymimic.config import config_factory
from raymimic.errors import ClusterError


@pytest.fixture
def port() -> Iterator[int]:
    """A port that listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, nor gets from the system."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_port_is_tried_where_an_address_has_one(port: int, closed_port: int) -> None:
    check_port(f"127.0.0.1:{port}", timeout_s=5)
    check_port(f"ray://127.0.0.1:{port}", timeout_s=5)
    for without in ("auto", "local", "head"):
        check_port(without, timeout_s=5)
    for address in (f"127.0.0.1:{closed_port}", f"ray://[::ffff:127.0.0.1]:{closed_port}"):
        with pytest.raises(OSError, match="refused"):
            check_port(address, timeout_s=5)


def test_a_cluster_that_does_not_answer_is_an_error_at_once(
    closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_factory("bc")
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    message = (
        rf"cannot join the Ray cluster at '127.0.0.1:{closed_port}': .*refused; check ray.address "
        "and RAY_ADDRESS, or train without Ray by --workers 0"
    )
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ClusterError, match=message), ray_session(config):
        pass
    with config.values_unlocked():
        config.ray.address = f"127.0.0.1:{closed_port}"
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # the config comes first
    with pytest.raises(ClusterError, match=message), ray_session(config):
        pass
    assert handlers == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(
    ("address", "error", "failures", "starts", "succeeds"),
    [
        (None, "The current node timed out during startup. This", 2, 3, True),
        (None, "Timed out waiting for file /tmp/x", 9, 3, False),
        (None, "AF_UNIX path length cannot exceed 107 bytes: /long/session_1/s", 9, 1, False),
        ("auto", "The current node timed out during startup. This", 9, 1, False),
    ],
)
def test_a_local_cluster_that_starts_too_slowly_is_started_again(
    address: str | None,
    error: str,
    failures: int,
    starts: int,
    succeeds: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Any] = []

    def init(**options: Any) -> None:
        begun.append(options["address"])
        if len(begun) <= failures:
            raise Exception(error)

    monkeypatch.setattr("ray.init", init)
    monkeypatch.setattr(session, "no_helpers", contextlib.nullcontext)
    with contextlib.nullcontext() if succeeds else pytest.raises(ClusterError, match="cannot"):
        session._join(address)
    assert begun == [address] * starts


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("x InvalidAuthToken y"), "Ray cluster at 'h:1' wants a token"),
        (
            RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.1. "),
            "other versions (The cluster was started with: Ray: 2.1); install those here",
        ),
        (OSError("AF_UNIX path length cannot exceed 107 bytes: /long/session_1/s"), "'/long' is"),
        (OSError(errno.ENOSPC, "full"), "the disk of Ray's temporary folder is full"),
        (PermissionError(errno.EACCES, "denied", "/h/.ray"), "in '/h/.ray'; set HOME and"),
        (RuntimeError("Could not determine home directory."), "in the home of a user who has none"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates"), "Ray needs names in UTF-8"),
        (Exception(), "cannot join the Ray cluster at 'h:1': Exception; check ray.address"),
        (Exception("first\nsecond"), "at 'h:1': first; check"),
    ],
)
def test_errors_of_ray_become_one_sentence(error: Exception, said: str) -> None:
    sentence = why_not_joined("h:1", error)
    assert said in sentence
    assert "\n" not in sentence
    # Ray often hides the cause behind an error of its own.
    outer = RuntimeError("Ray failed")
    outer.__cause__ = error
    if type(error) is not Exception:
        assert said in why_not_joined("h:1", outer)
