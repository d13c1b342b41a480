"""Odd environments: misfits are found before the first step, failures while playing are counted."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import odd_envs
import pytest
import ray
from tiny import LAYERS, SETTINGS, Ran, start_ray

from raymimic.rollout import actors, tryout

RATE = ["experiment.rollout.enabled=true", "experiment.rollout.rate=1", "experiment.rollout.n=6"]
Trained = Callable[..., Ran]
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(autouse=True)
def _no_core_files() -> None:
    """A process that crashes leaves none in its folder, whatever the user's shell allows."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


@pytest.fixture
def trained(cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """Trains BC on demos whose environment is odd, and evaluates after each of two epochs."""

    def train(odd: str, *settings: str, workers: int = 0, **env_kwargs: Any) -> Ran:
        odd_envs.write_demos(tmp_path / "demos.hdf5", odd=odd, **env_kwargs)
        args = ["train", "--algo", "bc", "--dataset", "demos.hdf5", "--workers", str(workers)]
        args += ["--import", "odd_envs", "--json", "--set", *LAYERS["bc"], *SETTINGS, *RATE]
        return cli(*args, "experiment.render_video=false", *settings)

    return train


def assert_refused(ran: Ran, folder: Path, *parts: str) -> None:
    assert ran.status == 2, ran
    assert ran.err.startswith("raymimic: error: environment 'Odd-v0'"), ran.err
    assert ran.err.count("\n") == 1, ran.err
    for part in parts:
        assert part in ran.err
    left = {path.name for path in folder.rglob("*") if "__pycache__" not in path.parts}
    assert left == {"demos.hdf5"}


@pytest.mark.parametrize(
    ("odd", "part"),
    [
        ("width", "gives observation 'flat' of shape [4], and the policy reads [3]; play another"),
        ("five actions", "takes actions of 5 components, and the policy gives 2"),
        ("old step", "returns from its step a tuple of 4 values"),
        ("reset crashes", "ended its process (SIGSEGV) while it was tried"),
    ],
)
def test_a_misfit_is_found_before_the_first_step(
    trained: Trained, tmp_path: Path, odd: str, part: str
) -> None:
    assert_refused(trained(odd), tmp_path, part, "experiment.env", "rollout.enabled=false")


def test_an_environment_that_hangs_is_given_up(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tryout, "LEAST_S", 3.0)
    ran = trained("reset hangs", "ray.placement_timeout_s=2")
    assert_refused(ran, tmp_path, "did not answer within 3 s (ray.placement_timeout_s gives it")


def test_an_environment_that_only_this_process_knows_is_tried_here(
    trained: Trained, tmp_path: Path
) -> None:
    gymnasium.register("Mine-v0", lambda **kwargs: odd_envs.OddEnv("width"))
    try:
        ran = trained("", "experiment.env=Mine-v0")
    finally:
        gymnasium.registry.pop("Mine-v0")
    assert ran.status == 2
    assert "'Mine-v0' gives observation 'flat' of shape [4]" in ran.err


@pytest.mark.slow
def test_training_goes_on_where_episodes_fail(
    trained: Trained, cli: Callable[..., Ran], tmp_path: Path
) -> None:
    ran = trained("box of [0, 1]", crash_seeds=seeds_of(1, 2)[1:8:3])  # two of the first, then one
    assert ran.status == 0, ran.err
    metrics = ran.result["metrics"]
    assert metrics["Rollout/Failed_Episodes/Odd-v0"] == 1.0
    assert metrics["Rollout/Return/Odd-v0"] == 10.0
    assert metrics["Rollout/Success_Rate/Odd-v0"] == 0.0
    log = "".join(p.read_text() for p in tmp_path.rglob("log.txt"))
    # Each is said once, what it counts for every time.
    failed = "2 of 6 episodes failed (RuntimeError: the simulation is unstable"
    assert log.count(f"{failed} ({DATA}/odd_envs.py, line ") == 1
    assert "Odd-v0 return 10.0 [10.0, 10.0], 2 of 6 episodes failed" in log
    assert "Odd-v0 return 10.0 [10.0, 10.0], 1 of 6 episodes failed" in log
    assert log.count("warning: component 0 of the data's actions goes from -1 to ") == 1
    assert "and Odd-v0 takes 0 to 1: actions are clipped" in log

    best = ran.result["best_checkpoint"]
    play = ["evaluate", best, "--import", "odd_envs", "--actors", "0", "--episodes", "3"]
    ran = cli(*play, "--json", "out.json")
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["summary"]["Failed_Episodes"] == 0.0
    assert [e["error"] for e in report["episodes"]] == [None] * 3
    ran = cli(*play, "--env", "Hopper-v5")
    assert ran.status == 2
    assert "'Hopper-v5' cannot be made" in ran.err  # it has no argument 'odd'


def test_all_episodes_may_fail(trained: Trained, tmp_path: Path) -> None:
    ran = trained("", crash_seeds=seeds_of(1, 2))
    assert ran.status == 0, ran.err
    assert ran.result["metrics"]["Rollout/Failed_Episodes/Odd-v0"] == 6.0
    assert "Rollout/Return/Odd-v0" not in ran.result["metrics"]
    assert ran.result["best_checkpoint"] is None
    log = "".join(p.read_text() for p in tmp_path.rglob("log.txt"))
    assert log.count("warning: in epoch 1, Odd-v0: all 6 episodes failed (RuntimeError") == 1
    assert log.count("warning") == 1
    assert "evaluated epoch 2: Odd-v0 all 6 episodes failed" in log


@pytest.mark.slow
def test_without_ray_too_a_simulators_end_costs_an_episode(
    trained: Trained, tmp_path: Path
) -> None:
    crashing = seeds_of(1, 2)[2::6]  # one of each epoch
    ran = trained("episodes end the process", crash_seeds=crashing)
    assert ran.status == 0, ran.err
    assert ran.result["metrics"]["Rollout/Return/Odd-v0"] == 10.0
    log = "".join(p.read_text() for p in tmp_path.rglob("log.txt"))
    for epoch in (1, 2):
        assert f"evaluated epoch {epoch}: Odd-v0 return 10.0 [10.0, 10.0], 1 of 6" in log
    assert log.count("1 of 6 episodes failed (its process ended with status 0)") == 1


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PYTHONPATH", str(DATA))
    start_ray()
    yield
    ray.shutdown()


@pytest.mark.ray
def test_actors_try_environments_and_outlive_their_crashes(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: None
) -> None:
    assert_refused(trained("width", workers=1), tmp_path, "of shape [4]")
    monkeypatch.setattr(actors, "RETRIES", 1)  # each is a process to start
    settings = ["train.num_epochs=1", "ray.rollout_actors=1"]
    ran = trained("episodes crash", *settings, workers=1, crash_seeds=seeds_of(1)[2:3])
    assert ran.status == 0, ran.err
    metrics = ran.result["metrics"]
    assert metrics["Rollout/Failed_Episodes/Odd-v0"] == 1.0
    assert metrics["Rollout/Return/Odd-v0"] == 10.0
    log = "".join(p.read_text() for p in tmp_path.rglob("log.txt"))
    assert "1 of 6 episodes failed (its process ended with SIGSEGV)" in log


def seeds_of(*epochs: int) -> list[int]:
    from raymimic.config import config_factory
    from raymimic.envs.seeds import evaluation_seeds

    base = config_factory("bc").train.seed
    return [seed for epoch in epochs for seed in evaluation_seeds(base, epoch, 6)]
