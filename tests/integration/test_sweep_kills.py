"""Processes of trials are really killed; every curve is that of an undisturbed training."""

import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweeps import RATE, STEPS, SWEEP, Tune
from tiny import small_config
from waiting import pids, wait_for

from raymimic.sweep.spec.config_folder import configs_in
from raymimic.sweep.spec.config_generator import ConfigGenerator
from raymimic.sweep.spec.sweep_file import sweep_from_file
from raymimic.sweep.spec.sweep_spec import SweepSpec, Trial
from raymimic.sweep.trials.messages import TuneTracker
from raymimic.sweep.trials.trial import trial_config
from raymimic.training.trainer import train_in_folder

pytestmark = pytest.mark.ray

ACTOR_RATE = "algo.optim_params.actor.learning_rate.initial"
EPOCHS = 24  # long enough to be met while they run
CHANGES = {
    "mlflow.enabled": False,
    "ray.commit_interval_s": 0,
    "train.dtype": "float64",
    "train.num_epochs": EPOCHS,
}


def trials_under_way(tune: Tune) -> list[dict[str, Any]]:
    """The trials that have a score, but not yet half of their scores."""

    def under_way(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        running = [r for r in results.values() if r["status"] == "running"]
        return [r for r in running if 1 <= len(r["curve"]) < EPOCHS / RATE / 2]

    return under_way(tune.wait_for(under_way, "a trial to be under way"))


def undisturbed(spec: SweepSpec, trial: Trial, folder: Path) -> list[tuple[int, float]]:
    """The curve of a trial that trains alone, in this process, with one worker."""
    told: list[dict[str, Any]] = []
    config = trial_config(spec, trial)
    with config.values_unlocked():
        config.ray.num_workers = 0
    reports = TuneTracker(spec.metric, config.experiment.rollout.n, lambda m, **_: told.append(m))
    train_in_folder(config, str(folder / trial.trial_id), reports, 0.0)
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
    # Ray's processes end when they miss their cluster.
    wait_for(lambda: not pids(marker, "ray::"), "the end of Ray's processes", interval_s=0.2)


def test_a_trial_of_two_workers_survives_the_loss_of_one(
    tune: Callable[..., Tune], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARKER", marker)
    changes = CHANGES | {"ray.rollout_actors": 1, "ray.cpus_per_actor": 0.5}
    changes["algo.actor.noise_std"] = 0.0  # which each worker draws for itself
    sweep = SWEEP | {
        "set": SWEEP["set"] | changes,
        "seeds": [1],
        "final_episodes": 0,
        "space": {"algo.alpha": {"grid": [0.5]}},
        "resources": {"workers": 2, "cpus_per_worker": 0.25},
    }
    pair = tune("pair", sweep)
    (trial,) = trials_under_way(pair)
    os.kill(pids(marker, "RayTrainWorker")[0], signal.SIGKILL)
    outcome = pair.outcome()
    assert [row["trials"] for row in outcome["table"]] == [{"finished": 1}]
    assert "workers restarted" in (Path(trial["run_dir"]) / "logs" / "log.txt").read_text()
    spec = sweep_from_file(tmp_path / "pair.yaml")
    check_curves(pair, marker, spec.trials(), spec)


def test_a_trial_is_retried_after_its_death_but_not_after_its_error(
    tune: Callable[..., Tune], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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

    mixed = tune("mixed", None, "--configs", "mixed", "--set", "final_episodes=0")
    killed = trials_under_way(mixed)[0]
    os.kill(pids(marker, "ray::", killed["run_dir"])[0], signal.SIGKILL)
    outcome = mixed.outcome()
    good, bad = outcome["table"]
    assert (good["rank"], good["setting"], good["trials"]) == (
        1,
        {ACTOR_RATE: 1e-3},
        {"finished": 2},
    )
    assert (bad["rank"], bad["mean"], bad["trials"]) == (None, None, {"failed": 2})
    results = mixed.results()
    failed = [result for result in results.values() if result["status"] == "failed"]
    assert all("the loss is not a number in epoch 1 " in result["error"] for result in failed)
    spec = configs_in(folder)
    log = Path(killed["run_dir"]) / "logs" / "log.txt"
    assert log.read_text().count("resuming") == 2
    check_curves(mixed, marker, [spec.trial({ACTOR_RATE: 1e-3}, seed) for seed in (1, 2)], spec)
