"""A cluster that fails under a command: one sentence says so, and how to go on."""

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
from head import environment, free_port, ray_head, ray_node, short_folder
from sweeps import SWEEP
from tiny import Ran, train_args, write_hopper
from waiting import DEADLINE_S, wait_for

pytestmark = pytest.mark.ray

MANY = ["train.num_epochs=100000", "experiment.epoch_every_n_steps=20", "ray.commit_interval_s=0"]
EPOCH = r"^epoch \d+/"  # a slow first epoch has no line of its own


class Command:
    """`raymimic` in a process of its own, whose output is followed."""

    def __init__(self, folder: Path, *args: str, **variables: str) -> None:
        folder.mkdir(exist_ok=True)
        self.files = folder / "out.txt", folder / "err.txt"
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raymimic", *args],
                cwd=folder,
                env={**environment(folder, None), "PYTHONUNBUFFERED": "1", **variables},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def wait_for(self, pattern: str) -> None:
        """Waits until it has said something."""

        def said() -> object:
            assert self.process.poll() is None, [file.read_text() for file in self.files]
            return re.search(pattern, self.files[0].read_text(), re.M)

        wait_for(said, pattern)

    def family(self, title: str, name: str = "") -> list[psutil.Process]:
        """Its Ray processes with a word in their command line, of some name or of any."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if title in " ".join(process.cmdline()) and name in ("", process.name()):
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """Kills its Ray process of a name."""
        (process,) = self.family("", name)
        process.kill()

    def ran(self) -> Ran:
        """Its status and output, when it has ended."""
        try:
            status = self.process.wait(DEADLINE_S)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)
        return Ran(status, *(file.read_text() for file in self.files))


def error_of(ran: Ran) -> str:
    """The one sentence of a command that failed; nothing of Ray's beside it."""
    assert ran.status == 2, ran
    assert ran.err.count("\n") == 1, ran.err
    assert "\x1b" not in ran.out + ran.err
    assert "raylet)" not in ran.out
    assert "state-dump" not in ran.out
    return ran.err.removeprefix("raymimic: error: ").strip()


def going_on(error: str) -> list[str]:
    """The arguments of the command with which a sentence says to go on."""
    command = error.partition("go on with raymimic ")[2]
    return shlex.split(re.sub(r"[\[\]]", "", command))


# -- a cluster that the command starts itself --


def test_a_local_ray_that_is_killed_ends_each_command_in_one_sentence(
    tmp_path: Path, hopper: Path
) -> None:
    args = [*train_args(hopper, *MANY, algo="bc"), "--workers", "1"]
    train = Command(tmp_path / "train", *args)
    train.wait_for(EPOCH)
    workers = train.family("RayTrainWorker")
    assert not train.family("log_monitor.py")
    train.kill("raylet")
    error = error_of(train.ran())
    assert "raylet) was killed, probably because memory ran out; its log is '" in error
    assert error.partition("its log is '")[2].partition("'")[0].endswith("/logs/raylet.out")
    resume = going_on(error)
    assert resume[:2] == ["train", "--resume"]
    assert not psutil.wait_procs(workers, DEADLINE_S)[1]  # until then they replace checkpoints
    checkpoint = next(Path(resume[2], "models").glob("*.pth"))

    play = ["--episodes", "50000", "--horizon", "1000", "--actors", "1", "--env", "Hopper-v5"]
    evaluate = Command(tmp_path / "evaluate", "evaluate", str(checkpoint), *play)
    wait_for(lambda: plays(evaluate), "an actor plays")
    evaluate.kill("gcs_server")
    assert "control store (gcs_server) was killed, probably" in error_of(evaluate.ran())


def test_a_killed_raylet_ends_a_sweep(tmp_path: Path) -> None:
    data = write_hopper(tmp_path / "hopper.hdf5")
    settings = SWEEP["set"] | {"train.num_epochs": 100000, "mlflow.enabled": False}
    sweep = SWEEP | {"dataset": str(data), "seeds": [1], "set": settings, "max_concurrent": 1}
    (tmp_path / "s.yaml").write_text(json.dumps(sweep))
    tune = Command(tmp_path / "tune", "tune", "../s.yaml", "--json")
    tune.wait_for("started: ")
    tune.kill("raylet")
    error = error_of(tune.ran())
    assert "probably because memory ran out" in error
    assert error.endswith("; --resume goes on with the sweep")


def plays(command: Command) -> bool:
    assert command.process.poll() is None, [file.read_text() for file in command.files]
    return bool(command.family("ray::_RolloutActor.play"))


def test_a_long_temporary_folder_is_refused(tmp_path: Path, hopper: Path) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    args = [*train_args(hopper, algo="bc"), "--workers", "1"]
    error = error_of(Command(tmp_path / "run", *args, TMPDIR=str(long)).ran())
    assert f"'{long}/ray' is too long for the sockets in it" in error
    assert "set RAY_TMPDIR to a short one" in error


# -- a cluster that the command joins --

OTHER_VERSION = """
import re, sys
from ray._raylet import GcsClient

place = b"CLUSTER_METADATA", b"cluster"
store = GcsClient(address=sys.argv[1])
facts = store.internal_kv_get(*place)
other = re.sub(rb'"ray_version": "[^"]*"', b'"ray_version": "%s"' % sys.argv[2].encode(), facts)
store.internal_kv_put(place[0], other, True, place[1])
"""

LOADS = """
from raymimic.tracking import Tracker, register_tracker
from raymimic.tracking.system_metrics import Sampling


class Loads(Tracker):
    sampling = Sampling(interval_s=0.5)

    def log_system(self, metrics):
        print("load of", *{name.rpartition("/")[0] for name in metrics})


register_tracker("loads")(lambda config, run: Loads())
"""


def test_a_cluster_that_refuses_loses_a_node_and_is_shut_down(tmp_path: Path, hopper: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    options = [f"--port={address.split(':')[1]}", "--num-cpus=1", "--include-dashboard=false"]
    settings = ["ray.placement_timeout_s=5", "ray.cpus_per_worker=1"]
    args = [*train_args(hopper, *MANY, *settings, algo="bc"), "--workers", "2"]
    args += ["--import", "loads"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "loads.py").write_text(LOADS)
    # Ray takes fifteen seconds to call a node dead, longer than the training waits for another.
    soon = {"RAY_health_check_period_ms": "500", "RAY_health_check_failure_threshold": "3"}
    with short_folder() as home, ray_head(home, *options, **soon) as group:
        token = {k: v for k, v in environment(home).items() if k.startswith("RAY_AUTH")}
        joined = token | {"RAY_ADDRESS": address}

        refused = error_of(Command(tmp_path / "run", *args, RAY_ADDRESS=address).ran())
        assert f"the Ray cluster at '{address}' wants a token" in refused
        assert "set RAY_AUTH_MODE=token" in refused

        for version in ("2.9.0", ray.__version__):
            put = [sys.executable, "-c", OTHER_VERSION, address, version]
            subprocess.run(put, env=environment(home), check=True, timeout=DEADLINE_S)
            if version == "2.9.0":
                refused = error_of(Command(tmp_path / "run", *args, **joined).ran())
                assert "has other versions (The cluster was started with: Ray: 2.9.0" in refused

        with ray_node(home, address, "--num-cpus=1"):
            train = Command(tmp_path / "run", *args, **joined)
            train.wait_for(EPOCH)
            train.wait_for("load of ")
        train.wait_for("waiting for 2 × 1 CPU, at most 5 s")
        ran = train.ran()
        assert re.search(r"^a worker was lost after epoch \d+; waiting for 2 ×", ran.out, re.M)
        # Of the machine of the second node alone: both are on this one.
        (machine,) = set(re.findall("^load of (.*)$", ran.out, re.M))
        assert machine.startswith(f"system/{socket.gethostname()}-")
        error = error_of(ran)
        assert error.startswith(
            "a node was lost and none came; go on with raymimic train --resume "
        )
        assert error.endswith(" [--workers 1]")

        resumed = Command(tmp_path / "run", *going_on(error), **joined)
        resumed.wait_for(EPOCH)
        os.killpg(group, signal.SIGKILL)
        error = error_of(resumed.ran())
        assert (
            "was shut down, or its head node is lost; go on with raymimic train --resume" in error
        )
        assert going_on(error)[:2] == ["train", "--resume"]
