"""A driver that is asked to end: truthful records, an honest status, nothing left running."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tiny import train_args

TIMEOUT_S = 240.0


@pytest.mark.parametrize(
    ("send", "sent", "status"),
    # A terminal sends Ctrl-C to all processes of its foreground job.
    [(os.kill, signal.SIGTERM, 143), (os.killpg, signal.SIGINT, 130)],
    ids=["kill", "ctrl-c"],
)
def test_an_asked_end_is_recorded(
    send: Callable[[int, int], None],
    sent: signal.Signals,
    status: int,
    hopper: Path,
    tmp_path: Path,
) -> None:
    many = ["train.num_epochs=100000", "mlflow.enabled=true"]
    command = [*train_args(hopper, *many, algo="bc"), "--workers", "1"]
    said = tmp_path / "said.txt"
    with said.open("w") as output:
        driver = subprocess.Popen(
            [sys.executable, "-m", "raymimic", *command],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for_epoch(driver, said)
        family = psutil.Process(driver.pid).children(recursive=True)
        assert any("RayTrainWorker" in " ".join(p.cmdline()) for p in family)
        send(driver.pid, sent)
        assert driver.wait(60) == status
        assert not psutil.wait_procs(family, timeout=30)[1]
    finally:
        if driver.poll() is None:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait(30)
    assert "Traceback" not in said.read_text()
    (store,) = tmp_path.rglob("mlflow.db")
    with sqlite3.connect(store) as records:
        assert records.execute("select status from runs").fetchall() == [("KILLED",)]


def wait_for_epoch(driver: subprocess.Popen[bytes], said: Path) -> None:
    end = time.monotonic() + TIMEOUT_S
    while "epoch 1" not in said.read_text():
        assert driver.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.2)
