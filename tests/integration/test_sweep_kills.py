"""Processes of trials are really killed; every curve is that of an undisturbed training."""

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from test_sweep import DEADLINE_S, RATE, STEPS, SWEEP, Tune
from tiny import small_config

from raymimic.sweep.config_folder import configs_in
from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.trial import Reports, trial_config
from raymimic.training.trainer import train_at
from raymimic.utils.hyperparam_utils import ConfigGenerator

ACTOR_RATE = "algo.optim_params.actor.learning_rate.initial"
EPOCHS = 12
CHANGES = {
    "mlflow.enabled": False,
    "ray.commit_interval_s": 0,
    "train.dtype": "float64",
    "train.num_epochs": EPOCHS,
}


def pids(marker: str, title: str, holding: str = "") -> list[int]:
    """Processes of a sweep whose title has a word in it, and which hold a file of a folder open."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (
                marker.encode() in (entry / "environ").read_bytes()
                and title.encode() in (entry / "cmdline").read_bytes()
                and any(str(fd.resolve()).startswith(holding) for fd in (entry / "fd").iterdir())
            ):
                found.append(int(entry.name))
    return found


def trials_under_way(tune: Tune) -> list[dict[str, Any]]:
    """The trials that run, once each of them has a score but not its last ones."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert tune.process.poll() is None, tune.process.communicate()
        with contextlib.suppress(ValueError, OSError):
            running = [r for r in tune.results().values() if r["status"] == "running"]
            if running and all(1 <= len(result["curve"]) < 5 for result in running):
                return running
        time.sleep(0.02)
    raise TimeoutError("no trial is under way")


def undisturbed(spec: SweepSpec, trial: Trial, folder: Path) -> list[tuple[int, float]]:
    """The curve of a trial that trains alone, in this process, with one worker."""
    told: list[dict[str, Any]] = []
    config = trial_config(spec, trial)
    with config.values_unlocked():
        config.ray.num_workers = 0
    reports = Reports(spec.metric, config.experiment.rollout.n, lambda m, **_: told.append(m))
    train_at(config, str(folder / trial.trial_id), reports, 0.0)
    return [(m["gradient_steps"], m["score"]) for m in told if "score" in m]


def check_curves(tune: Tune, marker: str, trials: list[Trial], spec: SweepSpec) -> None:
    results = tune.results()
    for trial in trials:
        expected = undisturbed(spec, trial, tune.folder / "undisturbed")
        steps = [STEPS * epoch for epoch in range(RATE, EPOCHS + 1, RATE)]
        assert [step for step, _ in expected] == steps
        curve = results[trial.trial_id]["curve"]
        assert [step for step, _ in curve] == steps
        scores = [score for _, score in expected]
        assert [score for _, score in curve] == pytest.approx(scores, rel=1e-9)
    deadline = time.monotonic() + 60.0  # Ray's processes end when they miss their cluster
    while pids(marker, "ray::"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_trials_of_two_workers_survive_the_loss_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARKER", marker)
    changes = CHANGES | {"ray.rollout_actors": 1, "ray.cpus_per_actor": 0.5}
    changes["algo.actor.noise_std"] = 0.0  # which each worker draws for itself
    sweep = SWEEP | {
        "set": SWEEP["set"] | changes,
        "seeds": [1],
        "space": {"algo.alpha": {"grid": [0.5, 2.5]}},
        "resources": {"workers": 2, "cpus_per_worker": 0.25},
    }
    tune = Tune(tmp_path, "pairs", sweep)
    trials_under_way(tune)
    os.kill(pids(marker, "RayTrainWorker")[0], signal.SIGKILL)
    outcome = tune.outcome()
    assert [row["trials"] for row in outcome["table"]] == [{"finished": 1}] * 2
    logs = [Path(r["run_dir"]) / "logs" / "log.txt" for r in tune.results().values()]
    assert sum("workers restarted" in log.read_text() for log in logs) == 1
    spec = SweepSpec.from_file(tmp_path / "pairs.yaml")
    check_curves(tune, marker, spec.trials(), spec)


def test_a_trial_is_retried_after_its_death_but_not_after_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARKER", marker)
    settings = SWEEP["set"] | CHANGES | {"train.data": str(tmp_path / "hopper.hdf5")}
    (tmp_path / "base.json").write_text(small_config("td3_bc", **settings).dump())
    folder = tmp_path / "mixed"
    generator = ConfigGenerator(tmp_path / "base.json", "run", generated_config_dir=folder)
    rates = [1e-3, 1e300]
    generator.add_param(ACTOR_RATE, "lr", 0, rates, value_names=["small", "huge"])
    generator.add_param("train.seed", "seed", 1, [1, 2])
    generator.generate()

    tune = Tune(tmp_path, "mixed", None, "--configs", "mixed", "--set", "final_episodes=3")
    killed = trials_under_way(tune)[0]
    os.kill(pids(marker, "ray::", killed["run_dir"])[0], signal.SIGKILL)
    outcome = tune.outcome()
    good, bad = outcome["table"]
    assert (good["rank"], good["setting"], good["trials"]) == (
        1,
        {ACTOR_RATE: 1e-3},
        {"finished": 2},
    )
    assert (bad["rank"], bad["mean"], bad["trials"]) == (None, None, {"failed": 2})
    results = tune.results()
    failed = [result for result in results.values() if result["status"] == "failed"]
    assert all("the loss is not a number in epoch 1 " in result["error"] for result in failed)
    spec = configs_in(folder)
    log = Path(killed["run_dir"]) / "logs" / "log.txt"
    assert log.read_text().count("resuming") == 2
    check_curves(tune, marker, [spec.trial({ACTOR_RATE: 1e-3}, seed) for seed in (1, 2)], spec)
