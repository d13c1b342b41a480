"""A driver that is asked to end: truthful records, an honest status, nothing left running."""

import contextlib
import os
import pty
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest
from tiny import train_args
from waiting import DEADLINE_S

pytestmark = pytest.mark.mlflow


def heed_signals() -> None:
    """Restores in a child the signals that `nohup` or a script around the tests ignores."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def hang_up(group: int) -> None:
    """Acts as a closed terminal on its foreground job, and as a job scheduler soon after."""
    os.killpg(group, signal.SIGHUP)
    time.sleep(0.2)
    os.kill(group, signal.SIGTERM)


def interrupt(group: int) -> None:
    """A terminal sends Ctrl-C to all processes of its foreground job; here twice."""
    os.killpg(group, signal.SIGINT)
    time.sleep(0.2)
    os.kill(group, signal.SIGINT)


@pytest.mark.parametrize(
    ("ask", "status", "word"), [(hang_up, 129, "hangup"), (interrupt, 130, "interrupted")]
)
def test_an_asked_end_is_recorded(
    ask: Callable[[int], None], status: int, word: str, hopper: Path, tmp_path: Path
) -> None:
    with training(hopper, tmp_path, "--workers", "1") as (driver, said):
        wait_for_epoch(driver, said)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert any(is_worker(process) for process in family)
        ask(driver.pid)
        assert driver.wait(DEADLINE_S) == status
        assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]
    last = said.read_text().splitlines()[-1]
    assert last.startswith("raymimic: ")
    assert word in last
    assert last.endswith("; --resume goes on from the last checkpoint")
    check_killed(tmp_path, said)


def test_a_closed_terminal_ends_a_training(hopper: Path, tmp_path: Path) -> None:
    ours, terminal = pty.openpty()
    said = tmp_path / "said.txt"
    # The shell of a terminal, which makes it the terminal of all that it starts.
    shell = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    shell += "os.execv(sys.executable, sys.argv[1:])"
    driver = subprocess.Popen(
        [sys.executable, "-c", shell, *command(hopper)],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=heed_signals,
    )
    os.close(terminal)
    with ended(driver):
        shown = b""
        deadline = time.monotonic() + DEADLINE_S
        while b"epoch 2/" not in shown:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], shown
            shown += os.read(ours, 10_000)
        os.close(ours)
        assert driver.wait(DEADLINE_S) == 129
    said.write_bytes(shown)
    check_killed(tmp_path, said)


def test_nohup_keeps_a_training_from_being_hung_up(hopper: Path, tmp_path: Path) -> None:
    with training(hopper, tmp_path, before=["nohup"]) as (driver, said):
        wait_for_epoch(driver, said)
        os.kill(driver.pid, signal.SIGHUP)
        seen = len(said.read_text())
        wait_for_epoch(driver, said, beyond=seen)
        os.kill(driver.pid, signal.SIGTERM)
        assert driver.wait(DEADLINE_S) == 143
    assert said.read_text().splitlines()[-1].startswith("raymimic: terminated; --resume")
    check_killed(tmp_path, said)


def test_a_signal_while_ray_starts_ends_it_too(hopper: Path, tmp_path: Path) -> None:
    with training(hopper, tmp_path, "--workers", "1") as (driver, said):
        deadline = time.monotonic() + DEADLINE_S
        while not (family := started_by_ray(driver.pid)):
            assert driver.poll() is None, said.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(driver.pid, signal.SIGTERM)
        assert driver.wait(DEADLINE_S) == 143
        assert not psutil.wait_procs(family, timeout=DEADLINE_S)[1]
    assert said.read_text().splitlines()[-1].startswith("raymimic: terminated")
    assert "Traceback" not in said.read_text()


def is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):  # it has ended meanwhile
        return "RayTrainWorker" in " ".join(process.cmdline())
    return False


def started_by_ray(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):  # one of them ends meanwhile
        family = psutil.Process(pid).children(recursive=True)
        return family if any(p.name() == "gcs_server" for p in family) else []
    return []


def command(hopper: Path, *more: str) -> list[str]:
    many = ["train.num_epochs=100000", "mlflow.enabled=true"]
    return [sys.executable, "-m", "raymimic", *train_args(hopper, *many, algo="bc"), *more]


@contextlib.contextmanager
def training(
    hopper: Path, folder: Path, *more: str, before: Sequence[str] = ()
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An endless training in a process group of its own, and the file with all that it says."""
    said = folder / "said.txt"
    with said.open("w") as output:
        driver = subprocess.Popen(
            [*before, *command(hopper, *more)],
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=heed_signals,
        )
    with ended(driver):
        yield driver, said


@contextlib.contextmanager
def ended(driver: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait(30)


def check_killed(folder: Path, said: Path) -> None:
    """The records say how it ended, and nothing was said that a user cannot read."""
    assert "Traceback" not in said.read_text()
    (store,) = folder.rglob("mlflow.db")
    with sqlite3.connect(store) as records:
        assert records.execute("select status from runs").fetchall() == [("KILLED",)]


def wait_for_epoch(driver: subprocess.Popen[bytes], said: Path, beyond: int = 0) -> None:
    end = time.monotonic() + DEADLINE_S
    while "epoch " not in said.read_text()[beyond:]:
        assert driver.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.2)


SWALLOWS = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.{signal})
    time.sleep(10)
except BaseException:  # as some libraries do while they are imported
    pass
"""


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_that_a_library_swallows_ends_the_command(
    number: str, status: int, tmp_path: Path
) -> None:
    (tmp_path / "swallows.py").write_text(SWALLOWS.format(signal=number))
    (tmp_path / "then.py").write_text("import time\ntime.sleep(600)\n")
    command = [sys.executable, "-m", "raymimic", "dataset", "info", "none.hdf5"]
    ended = subprocess.run(
        [*command, "--import", "swallows", "then"],
        cwd=tmp_path,
        preexec_fn=heed_signals,
        stderr=subprocess.PIPE,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert ended.returncode == status, ended.stderr
    assert ended.stderr.startswith("raymimic: ")
    assert ended.stderr.count("\n") == 1
