"""Population based training for real: adoptions, also over a kill."""

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import RATE, STEPS, SWEEP, Tune
from waiting import pids, wait_for

from raymimic.checkpoints.store import CheckpointStore
from raymimic.sweep.spec.sweep_file import sweep_from_dict
from raymimic.sweep.spec.sweep_spec import Trial
from raymimic.sweep.trials.trial import trial_config
from raymimic.tracking.tracker import TrackerGroup
from raymimic.training.trainer import train_in_folder

pytestmark = pytest.mark.ray

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
    "final_episodes": 0,
}


def test_the_weakest_go_on_from_the_strongest(
    tune: Callable[..., Tune], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = tune("undisturbed", POPULATION, "--max-concurrent", "2")
    undisturbed.outcome()
    results = undisturbed.results()
    assert sorted(r["status"] for r in results.values()) == ["failed"] + 3 * ["finished"]
    adopted = _adopted(results)
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
    killed = tune("killed", POPULATION, "--max-concurrent", "1")
    begun = _scores(killed.wait_for(_adopted, "a trial to take over another's weights"))

    def kill_one() -> bool:
        assert killed.process.poll() is None, killed.process.communicate()
        for pid in pids(marker, "ray::", str(killed.sweep_dir / "trials")):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.kill(pid, signal.SIGKILL)
                return True
        return False

    wait_for(kill_one, "a trial to train", interval_s=0.01)
    killed.wait_for(lambda results: _scores(results) > begun, "another score")
    killed.kill()
    resumed = tune("killed", POPULATION, "--max-concurrent", "1", "--resume")
    resumed.outcome()
    for trial_id, result in resumed.results().items():
        for key in ("status", "curve", "schedule", "best", "episodes"):
            assert result[key] == results[trial_id][key], (trial_id, key)


def _adopted(results: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of the trials that took over another's weights."""
    return [result for result in results.values() if len(result["schedule"]) > 1]


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
    model, epochs = (donated.parent / name for name in ("model.pth", "epochs.jsonl"))
    CheckpointStore(str(folder), None).adopt(model.read_bytes(), epochs.read_bytes(), epoch)
    spec = sweep_from_dict(json.loads((tune.sweep_dir / "sweep.json").read_text()))
    trial = Trial(result["setting_id"], newest["setting"], result["seed"])
    train_in_folder(trial_config(spec, trial), str(folder), TrackerGroup([]), 0.0)
    ours = CheckpointStore(result["run_dir"], None).load_last()
    again = CheckpointStore(str(folder), None).load_last()
    assert ours is not None
    assert again is not None
    assert _tensors(ours.model) == pytest.approx(_tensors(again.model), abs=0.0)
    config = json.loads(ours.config)
    assert config["algo"]["alpha"] == newest["setting"]["algo.alpha"]
    records = [json.loads(line) for line in (folder / "epochs.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
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
    a, b = (model["optimizers"][name] for model in (one.model, other["model"]))
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
