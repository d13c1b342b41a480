"""One run behind a URI and two drivers: one trains, the other is refused or takes over."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from checks import assert_same, state_of
from sweeps import small_spec
from tiny import Ran, train_args
from waiting import DEADLINE_S, wait_for

from raymimic import lease
from raymimic.errors import ConfigError
from raymimic.sweep.trials.folder import SweepFolder

SETTINGS = ["ray.commit_interval_s=0", "experiment.epoch_every_n_steps=60", "train.num_epochs=999"]


# `raymimic`, which stops within epoch 3 as if its machine were suspended: between two commits, as
# nothing helps against a machine that freezes between a look at the lease and the next write.
STOPS = """
import os, signal, sys
from raymimic import lease
from raymimic.algo import TD3_BC
from raymimic.cli import main

train, stopped = TD3_BC.train_on_batch, []

def train_or_stop(self, batch, epoch, validate=False):
    if epoch == 3 and not stopped:
        stopped.append(epoch)
        os.kill(os.getpid(), signal.SIGSTOP)
    return train(self, batch, epoch, validate)

TD3_BC.train_on_batch = train_or_stop
lease.RENEW_S = 1e6
main(sys.argv[1:])
"""


@pytest.fixture
def start(hopper: Path, tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a real process that trains a run in `local://<tmp_path>/store`."""
    places = [f"ray.storage_path=local://{tmp_path}/store", f"train.output_dir={tmp_path}/first"]
    started: list[subprocess.Popen[str]] = []

    def driver(*program: str) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, *program, *train_args(hopper, *SETTINGS, *places)],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield driver
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def resume(cli: Callable[..., Ran], tmp_path: Path) -> Callable[..., Ran]:
    """A driver of another machine, in this process: it has a local folder of its own."""

    def run(*settings: str) -> Ran:
        (folder,) = (tmp_path / "store" / "test").iterdir()
        uri = f"local://{folder}"
        args = ["--set", f"train.output_dir={tmp_path}/second", *settings]
        return cli("train", "--resume", uri, "--json", *args)

    return run


def wait_for_epoch(process: "subprocess.Popen[str]", store: Path, epoch: int) -> None:
    """Waits until a driver has committed an epoch and trains the next one."""

    def committed() -> bool:
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(ValueError, OSError):
            for path in store.glob("test/*/checkpoints.json"):
                return json.loads(path.read_text())["checkpoints"][-1]["epoch"] >= epoch
        return False

    wait_for(committed, f"a checkpoint of epoch {epoch}", interval_s=0.01)


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != lease.LEASE)
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_second_driver_is_refused_and_goes_on_after_a_kill(
    cli, hopper, start, resume, tmp_path
) -> None:
    driver = start("-m", "raymimic")
    wait_for_epoch(driver, tmp_path / "store", 2)
    ran = resume()
    assert ran.status == 2
    said = ran.err.splitlines()
    assert said[-1].startswith("raymimic: error: the run 'local://")
    assert "is being trained by another process" in said[-1]
    assert all(line.startswith("WARNING: ") for line in said[:-1])
    assert driver.poll() is None
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    (run,) = (tmp_path / "store" / "test").iterdir()
    epochs = 1 + max(int(p.stem.rpartition("_")[2]) for p in run.glob("models/*.pth"))
    resumed = resume(f"train.num_epochs={epochs}")
    assert not (run / lease.LEASE).exists()
    whole = cli(*train_args(hopper, *SETTINGS, f"train.num_epochs={epochs}"), "--json")
    assert_same(state_of(resumed), state_of(whole))


@pytest.mark.slow
def test_a_driver_that_slept_too_long_stops(start, resume, tmp_path, monkeypatch, caplog) -> None:
    for name, value in {"STALE_S": 2.0, "WATCH_S": 1.0}.items():
        monkeypatch.setattr(lease, name, value)
    driver = start("-c", STOPS)
    assert os.WIFSTOPPED(os.waitpid(driver.pid, os.WUNTRACED)[1])
    (run,) = (tmp_path / "store" / "test").iterdir()
    ran = resume("train.num_epochs=4")
    assert ran.status == 0, ran.err
    assert "was not released" in caplog.text
    before = content_of(run)
    os.kill(driver.pid, signal.SIGCONT)
    _, said = driver.communicate(timeout=DEADLINE_S)
    assert driver.returncode == 2
    (line,) = said.splitlines()
    assert line.startswith("raymimic: error: another process, ")
    assert "has taken over 'local://" in line
    assert content_of(run) == before


def test_a_second_driver_of_a_sweep_is_refused(tmp_path: Path, monkeypatch) -> None:
    for name, value in {"STALE_S": 60.0, "WATCH_S": 30.0, "RENEW_S": 0.1, "SETTLE_S": 0.1}.items():
        monkeypatch.setattr(lease, name, value)
    specs = []
    for machine in ("a", "b"):
        places = {
            "observation.modalities.obs.low_dim": ["flat"],
            "ray.storage_path": f"local://{tmp_path}/store",
            "train.output_dir": str(tmp_path / machine),
        }
        specs.append(small_spec(tmp_path, set=places))
    first = SweepFolder.create(specs[0], "digest")
    with pytest.raises(ConfigError, match=r"the sweep 'local://.* is being run by another process"):
        SweepFolder.find(specs[1], "digest")
    first.check_lease()
    first.release()
    second = SweepFolder.find(specs[1], "digest")
    assert second.uri == first.uri
    assert not (second.local / lease.LEASE).exists()
    second.release()
