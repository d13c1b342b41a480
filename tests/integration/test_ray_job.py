"""`ray job submit` to a cluster that wants a token, on this machine."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny import train_args

BIN = Path(sys.executable).parent
TOKEN = "a-token-of-at-least-thirty-two-characters"


@dataclass(frozen=True)
class Head:
    """A cluster of one node with two CPUs."""

    dashboard: str
    home: Path

    def submit(self, *command: str, token: str | None = TOKEN) -> subprocess.CompletedProcess[str]:
        """Submits a command from an empty working directory, and waits for its end."""
        work = self.home / "work"
        work.mkdir(exist_ok=True)
        submit = [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", work]
        return subprocess.run(
            [*submit, "--", *command],
            env=environment(self.home, token),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


def environment(home: Path, token: str | None) -> dict[str, str]:
    """This process's, with a home of its own and a cluster's token."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    auth = {} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    return kept | {"HOME": str(home), "OMP_NUM_THREADS": "1"} | auth


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not in pytest's folder: a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        home, dashboard = Path(folder), free_port()
        process = start(home, dashboard)
        try:
            yield Head(f"http://127.0.0.1:{dashboard}", home)
        finally:
            stop(process)


def start(home: Path, dashboard: int) -> subprocess.Popen[bytes]:
    """Starts the cluster; again where a busy machine takes longer than Ray waits."""
    log = home / "head.log"
    for _ in range(3):
        process = subprocess.Popen(
            [
                *(BIN / "ray", "start", "--head", "--block", "--num-cpus=2"),
                *(f"--port={free_port()}", f"--temp-dir={home}/t"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
                "--object-store-memory=100000000",
            ],
            env=environment(home, TOKEN),
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            if "Ray runtime started" in log.read_text():
                return process
            time.sleep(0.2)
        stop(process)
    raise AssertionError(log.read_text())


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends all that `ray start` began: it is in the process group of its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def job(dataset: Path, *settings: str) -> list[str]:
    return [str(BIN / "raymimic"), *train_args(dataset, *settings, algo="bc"), "--workers", "2"]


def test_a_job_trains_and_leaves_its_results(head: Head, hopper: Path, tmp_path: Path) -> None:
    ran = head.submit(*job(hopper, f"ray.storage_path={tmp_path}"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "succeeded" in ran.stdout
    (run,) = tmp_path.glob("*/*")
    assert (run / "config.json").exists()
    (path,) = run.glob("models/*.pth")
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["variable_state"]["epoch"] == 2
    assert checkpoint["raymimic"]["workers"] == 2


def test_a_job_without_the_token_is_refused(head: Head, hopper: Path, tmp_path: Path) -> None:
    for token in (None, "another-token-that-is-as-long-as-the-right-one"):
        ran = head.submit(*job(hopper, f"ray.storage_path={tmp_path}"), token=token)
        assert ran.returncode != 0
        assert "authentication" in (ran.stdout + ran.stderr).lower()
    assert not list(tmp_path.iterdir())


def test_a_relative_output_folder_is_refused_in_a_job(head: Head, hopper: Path) -> None:
    ran = head.submit(*job(hopper, "train.output_dir=results"))
    assert ran.returncode == 1
    assert "exit code 2" in ran.stdout + ran.stderr
    assert "'results' in this Ray job's working directory, which is deleted" in ran.stdout
    assert "--set ray.storage_path=/shared/results" in ran.stdout
