"""Population based training for real: what is taken over, by whom, and over a kill."""

import contextlib
import json
import os
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_sweep import DEADLINE_S, RATE, STEPS, SWEEP, Tune
from test_sweep_kills import pids

from raymimic.sweep.spec import SweepSpec, Trial
from raymimic.sweep.trial import trial_config
from raymimic.tracking.tracker import TrackerGroup
from raymimic.training.checkpoint import CheckpointStore
from raymimic.training.trainer import train_at

EPOCHS = 6
ACTOR = "algo.optim_params.actor.learning_rate.initial"
CRITIC = "algo.optim_params.critic.learning_rate.initial"
POPULATION = SWEEP | {
    "set": SWEEP["set"] | {"train.num_epochs": EPOCHS, "mlflow.enabled": False},
    "space": {
        "algo.alpha": {"loguniform": [0.25, 5]},
        "algo.target_tau": {"loguniform": [0.002, 0.05]},
        ACTOR: {"loguniform": [1e-4, 1e-2]},
        # With the last one a loss is soon no number.
        CRITIC: {"choice": [1e-4, 1e-3, 1e25]},
    },
    "seeds": [1],
    "search": "random",
    "search_seed": 0,
    "scheduler": {"pbt": {"interval_steps": RATE * STEPS}},
    "budget": {"trials": 4},
}


def test_the_weakest_go_on_from_the_strongest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Tune(tmp_path, "undisturbed", POPULATION, "--max-concurrent", "2")
    undisturbed.outcome()
    results = undisturbed.results()
    assert sorted(r["status"] for r in results.values()) == ["failed"] + 3 * ["finished"]
    adopted = [r for r in results.values() if len(r["schedule"]) > 1]
    assert adopted
    evaluations = sum(len(result["curve"]) for result in results.values())
    assert sum(r["episodes"] for r in results.values()) == 2 * evaluations
    for result in results.values():
        if result["best_checkpoint"] is not None:
            assert Path(result["best_checkpoint"]).exists()
    for result in adopted:
        _check_adoption(undisturbed, result, tmp_path / "again" / result["trial_id"])

    # The same decisions with one trial at a time, and over kills of a trial and of the driver.
    marker = uuid.uuid4().hex
    monkeypatch.setenv("TEST_MARKER", marker)
    killed = Tune(tmp_path, "killed", POPULATION, "--max-concurrent", "1")
    begun = _wait_for_an_adoption(killed)
    os.kill(_process_of_a_trial(killed, marker), signal.SIGKILL)
    _wait_for(killed, lambda results: _scores(results) > begun)
    killed.kill()
    resumed = Tune(tmp_path, "killed", POPULATION, "--max-concurrent", "1", "--resume")
    resumed.outcome()
    for trial_id, result in resumed.results().items():
        for key in ("status", "curve", "schedule", "best", "episodes"):
            assert result[key] == results[trial_id][key], (trial_id, key)


def _wait_for_an_adoption(tune: Tune) -> int:
    """Waits until a trial has taken over another's weights; how many scores there are then."""
    return _scores(
        _wait_for(tune, lambda results: any(len(r["schedule"]) > 1 for r in results.values()))
    )


def _process_of_a_trial(tune: Tune, marker: str) -> int:
    """Waits until a trial trains, and finds its process."""
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        found = pids(marker, "ray::", str(tune.sweep_dir / "trials"))
        if found:
            return found[0]
        time.sleep(0.01)
    raise TimeoutError("no trial trains")


def _wait_for(tune: Tune, condition: Callable[[Any], bool]) -> dict[str, dict[str, Any]]:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        assert tune.process.poll() is None, tune.process.communicate()
        with contextlib.suppress(ValueError, OSError):
            results = tune.results()
            if condition(results):
                return results
        time.sleep(0.05)
    raise TimeoutError("the population does not get on")


def _scores(results: dict[str, dict[str, Any]]) -> int:
    return sum(len(result["curve"]) for result in results.values())


def _check_adoption(tune: Tune, result: dict[str, Any], folder: Path) -> None:
    """A plain training that goes on from the donor's checkpoint ends in the same state."""
    newest = result["schedule"][-1]
    (donated,) = (
        path
        for path in tune.sweep_dir.glob(f"logs/ray_tune_*/{newest['from']}/*/origin.json")
        if json.loads(path.read_text())["step"] == newest["step"]
    )
    epoch = newest["step"] // STEPS
    CheckpointStore(str(folder), None).adopt((donated.parent / "model.pth").read_bytes(), epoch)
    spec = SweepSpec.from_dict(json.loads((tune.sweep_dir / "sweep.json").read_text()))
    trial = Trial(result["setting_id"], newest["setting"], result["seed"])
    train_at(trial_config(spec, trial), str(folder), TrackerGroup([]), 0.0)
    ours = CheckpointStore(result["run_dir"], None).load_last()
    again = CheckpointStore(str(folder), None).load_last()
    assert ours is not None
    assert again is not None
    assert _tensors(ours["model"]) == pytest.approx(_tensors(again["model"]), abs=0.0)
    config = json.loads(ours["config"])
    assert config["algo"]["alpha"] == newest["setting"]["algo.alpha"]
    before = torch.load(donated.parent / "model.pth", weights_only=True)
    for name, path in (("actor", ACTOR), ("critic", CRITIC)):
        for state, old in _pairs(ours, before, name):
            assert state["param_groups"][0]["lr"] == newest["setting"][path]
            # The moments' steps count the donor's too.
            steps = {float(s["step"]) for s in state["state"].values()}
            since = {float(s["step"]) for s in old["state"].values()}
            assert len(steps) == len(since) == 1
            assert steps.pop() > since.pop() > 0


def _pairs(one: Any, other: Any, name: str) -> list[tuple[Any, Any]]:
    """The states of an optimizer, or of several of that name, in two checkpoints."""
    a, b = (ckpt["model"]["optimizers"][name] for ckpt in (one, other))
    return list(zip(a, b, strict=True)) if isinstance(a, list) else [(a, b)]


def _tensors(state: Any, prefix: str = "") -> dict[str, Any]:
    """All numbers of a nested state, by path."""
    if isinstance(state, dict):
        return {k: v for key in state for k, v in _tensors(state[key], f"{prefix}/{key}").items()}
    if isinstance(state, list | tuple):
        return _tensors(dict(enumerate(state)), prefix)
    if isinstance(state, torch.Tensor):
        return {f"{prefix}[{i}]": v for i, v in enumerate(state.flatten().tolist())}
    return {prefix: state} if isinstance(state, int | float) else {}
