"""`ray job submit` to a cluster that wants a token, on this machine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from head import BIN, TOKEN, environment, free_port, ray_head, short_folder
from sweeps import SWEEP
from tiny import train_args
from waiting import DEADLINE_S

pytestmark = pytest.mark.ray


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
        for _ in range(5):
            ran = subprocess.run(
                [*submit, "--", *command],
                env=environment(self.home, token),
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
            # Ray gives the process that takes jobs ten seconds to be there.
            if "status code 500" not in ran.stdout + ran.stderr:
                break
        return ran


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    dashboard = free_port()
    options = [f"--port={free_port()}", "--num-cpus=2"]
    options += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    with short_folder() as home, ray_head(home, *options):
        yield Head(f"http://127.0.0.1:{dashboard}", home)


def job(dataset: Path, *settings: str) -> list[str]:
    return [str(BIN / "raymimic"), *train_args(dataset, *settings, algo="bc"), "--workers", "2"]


def test_a_job_trains_and_leaves_its_results(head: Head, hopper: Path, tmp_path: Path) -> None:
    ran = head.submit(*job(hopper, f"ray.storage_path={tmp_path}"))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "succeeded" in ran.stdout
    assert "joining the Ray cluster " in ran.stdout  # each task that takes a while is named
    assert "placing 2 workers …" in ran.stdout
    (run,) = tmp_path.glob("*/*")
    assert (run / "config.json").exists()
    checkpoint = torch.load(run / "models" / "model_epoch_2.pth", weights_only=True)
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


def test_a_sweep_of_a_script_is_a_job_and_tells_of_its_trials(
    head: Head, hopper: Path, tmp_path: Path
) -> None:
    script = head.home / "work" / "sweep.py"
    script.parent.mkdir(exist_ok=True)
    settings = SWEEP["set"] | {
        "ray.storage_path": str(tmp_path),
        "mlflow.enabled": False,
        "train.num_epochs": 2,
    }
    sweep = SWEEP | {"name": "s", "dataset": str(hopper), "seeds": [1], "set": settings}
    sweep["final_episodes"] = 0
    refused = [{"resources": {"workers": 9}}, {"set": settings | {"ray.storage_path": None}}]
    script.write_text(
        "import os\nimport raymimic.sweep\nfrom raymimic.errors import RaymimicError\n"
        f"for sweep in {[sweep | change for change in refused]!r}:\n"
        "    try:\n"
        "        raymimic.sweep.run(sweep)\n"
        "    except RaymimicError as error:\n"
        "        print('refused:', error)\n"
        f"print('left:', os.listdir({str(tmp_path)!r}))\n"
        f"print('ran:', raymimic.sweep.run({sweep!r}).sweep_dir)\n"
    )
    ran = head.submit(sys.executable, script.name)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "refused: the cluster can never place a trial of 9 workers of 1 CPU each" in ran.stdout
    assert "refused: results would go to 'out' in this Ray job's working directory" in ran.stdout
    assert "left: []" in ran.stdout  # a job that could never run made no folder
    (folder,) = tmp_path.glob("s/*")
    assert f"ran: {folder}" in ran.stdout
    assert f"results go to {folder}" in ran.stdout
    for event in ("started", "finished"):
        for alpha in (0.5, 2.5):
            assert f"{event}: alpha_{alpha}, seed 1" in ran.stdout
    rows = json.loads((folder / "table.json").read_text())["settings"]
    assert len(rows) == 2
    config = json.loads((folder / "best_config.json").read_text())
    assert config["algo"]["alpha"] == rows[0]["setting"]["algo.alpha"]
