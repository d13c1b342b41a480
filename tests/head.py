"""A Ray cluster of its own, as `ray start --head` makes it."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-at-least-thirty-two-characters"
# Above the ports of Ray's workers, and below those that the system gives to connections and to
# servers that ask for any: it gives nobody a port that a test has yet to use.
PORTS = range(20_000, 32_768)


def environment(home: Path, token: str | None = TOKEN, **more: str) -> dict[str, str]:
    """This process's variables, with a home of its own and a cluster's token."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("RAY_") or name == "RAY_worker_niceness"
    }
    auth = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | auth | more


def free_port() -> int:
    """A port without a server; of two processes of one run of the tests, none gets the other's."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16
    choice = random.SystemRandom()
    while True:
        port = choice.choice(PORTS[worker::16])
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextlib.contextmanager
def short_folder() -> Iterator[Path]:
    """A temporary folder whose path is short enough for the sockets in it."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@contextlib.contextmanager
def ray_head(home: Path, *options: str, **variables: str) -> Iterator[int]:
    """Runs a cluster; starts it again where a busy machine takes longer than Ray waits.

    Yields:
        its process group.
    """
    command = ["--head", "--node-ip-address=127.0.0.1"]
    # The ports that are always the same by default, where other clusters may be.
    command += [
        f"--{name}-port={free_port()}" for name in ("ray-client-server", "dashboard-agent-listen")
    ]
    command += [f"--temp-dir={home}/t", *options]
    with _ray_start(home / "head.log", command, environment(home, **variables)) as group:
        yield group


@contextlib.contextmanager
def ray_node(home: Path, address: str, *options: str, **variables: str) -> Iterator[None]:
    """Runs a further node of a cluster, until it is killed in the end."""
    command = [f"--address={address}", "--node-ip-address=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}", *options]
    with _ray_start(home / "node.log", command, environment(home, **variables)):
        yield


@contextlib.contextmanager
def _ray_start(log: Path, options: list[str], env: dict[str, str]) -> Iterator[int]:
    command = [BIN / "ray", "start", "--block", "--object-store-memory=100000000", *options]
    for attempt in (1, 2, 3):
        with log.open("w") as output:
            process = subprocess.Popen(
                command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            if _started(process, log):
                yield process.pid
                return
        finally:
            # Everything that `ray start` began is in its session's process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        assert attempt < 3, log.read_text()


def _started(process: subprocess.Popen[bytes], log: Path) -> bool:
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if "Ray runtime started" in log.read_text():
            return True
        time.sleep(0.2)
    return False
