"""`ray job submit` to a cluster that wants a token, on this machine."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from head import BIN, TOKEN, environment, free_port, ray_head, short_folder
from tiny import train_args


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
