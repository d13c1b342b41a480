"""The estimated cost of a sweep, and the measured speed of a machine."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
import pytest
from tiny import Ran, write_hopper

from raymimic.algo.td3_bc import TD3_BC
from raymimic.config import parse_set
from raymimic.sweep import cost as plan
from raymimic.sweep.cost import Speed, cost_of
from raymimic.sweep.spec.sweep_file import sweep_from_dict, sweep_from_file
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.sweep.trials.messages import SCORE, TuneTracker
from raymimic.sweep.trials.trial import trial_config
from raymimic.training.prepare import prepare
from raymimic.training.trainer import train_in_folder

SHIPPED = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))
SPEED = Speed("CPU", steps_per_s=10.0, env_steps_per_s={"Hopper-v5": 200.0}, samples=1000)


def spec(dataset: Path | str = "demos.hdf5", **changes: Any) -> SweepSpec:
    settings = {
        "observation.modalities.obs.low_dim": ["flat"],
        "train.num_epochs": 7,
        "train.batch_size": 16,
        "train.cuda": False,
        "experiment.epoch_every_n_steps": 10,
        "experiment.rollout.n": 3,
        "experiment.rollout.horizon": 20,
        "experiment.rollout.rate": 2,
        "experiment.rollout.warmstart": 2,
    }
    content = {
        "algo": "td3_bc",
        "dataset": str(dataset),
        "set": settings | changes.pop("set", {}),
        "space": {"algo.alpha": {"grid": [0.5, 2.5]}},
        "seeds": [1, 2, 3],
        "final_episodes": 4,
    }
    return sweep_from_dict(content | changes)


def test_a_cost_is_the_sum_over_trials():
    cost = cost_of(spec(), SPEED)
    # 70 steps at 10/s; epochs 4 and 6 are evaluated, 3 episodes each of 20 steps at 200/s.
    assert (cost.trials, cost.gradient_steps, cost.episodes) == (6, 6 * 70, 6 * 2 * 3)
    assert cost.trial_s == pytest.approx((7.6, 7.6))
    assert cost.total_s == pytest.approx(6 * 7.6 + 3 * 4 * 0.1)


def test_each_setting_has_its_own_length():
    changes = {"space": {"train.num_epochs": {"grid": [4, 7]}}, "final_episodes": 0}
    made = sweep_from_dict(spec().to_dict() | {"budget": {}} | changes)
    cost = cost_of(made, SPEED)
    assert cost.trial_s == pytest.approx((4 + 0.3, 7 + 0.6))
    assert cost.gradient_steps == 3 * (40 + 70)
    assert cost.total_s == pytest.approx(3 * (4.3 + 7.6))


def test_an_epoch_may_be_a_pass_over_the_data():
    passes = {"experiment.epoch_every_n_steps": None, "train.batch_size": 300}
    assert cost_of(spec(set=passes), SPEED).gradient_steps == 6 * 7 * (1000 // 300)


def test_every_environment_costs():
    two = Speed("CPU", 10.0, {"a": 200.0, "b": 50.0}, 1000)
    assert cost_of(spec(), two).trial_s[0] == pytest.approx(7 + 6 * (0.1 + 0.4))


def test_optuna_s_trials_are_reckoned_by_an_example():
    pytest.importorskip("optuna")
    space = {"algo.alpha": {"uniform": [1, 2]}}
    made = spec(search="optuna", space=space, budget={"trials": 12})
    assert cost_of(made, SPEED).gradient_steps == 12 * 70


class Slow(gymnasium.Env):
    """An environment that looks like Hopper and takes a hundredth of a second a step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (11,))
    action_space = gymnasium.spaces.Box(-1, 1, (3,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(11, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        return np.zeros(11, np.float32), 0.0, False, False, {}


gymnasium.register("Slow-v0", Slow)


def test_the_measured_speed_is_that_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_TRY_S", 0.5)
    data = write_hopper(tmp_path / "hopper.hdf5")
    with h5py.File(data, "r+") as file:
        args = {"env_name": "Slow-v0", "type": 2, "env_kwargs": {}}
        file["data"].attrs["env_args"] = json.dumps(args)
    prepared = prepare(trial_config(made := spec(data), made.trials()[0]))

    train = TD3_BC.train_on_batch

    def slowly(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.02)
        return train(*args, **kwargs)

    monkeypatch.setattr(TD3_BC, "train_on_batch", slowly)
    speed = plan.measure(prepared.config, prepared.envs)
    # One environment after the other; a busy machine may be slower, but not faster.
    assert 1 < speed.env_steps_per_s["Slow-v0"] <= 100
    assert 1 < speed.steps_per_s <= 50
    assert (speed.device, speed.samples) == ("CPU", 120)


def test_a_dry_run_says_it_in_words_and_in_json(
    cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "_TRY_S", 0.1)
    data = write_hopper(tmp_path / "hopper.hdf5")
    made = spec(data)
    (tmp_path / "s.yaml").write_text(json.dumps(made.to_dict() | {"budget": {"hours": 2}}))
    ran = cli("tune", "s.yaml", "--dry-run", "--max-concurrent", "3")
    assert ran.status == 0, ran.err
    said = ran.out
    for trial in made.trials():
        assert f"{trial.trial_id}: alpha {trial.setting['algo.alpha']}\n" in said
    assert "6 trials, each with 1 worker of 1 CPU: 420 gradient steps, 36 evaluation ep" in said
    assert "measured here on the CPU, one worker, with one of the settings: " in said
    assert " with 3 trials at a time, evaluation included; the budget ends it after 2" in said
    lines = cli("tune", "--dry-run", "--json", "--set", "seeds=[4]", "s.yaml").out.splitlines()
    told = json.loads(lines[-1])
    assert len(lines) == 1
    assert [t["trial_id"] for t in told["trials"]] == [
        made.trial(setting, 4).trial_id for setting in made.settings
    ]
    speed = told["measured"]
    trial_s = 70 / speed["steps_per_s"] + 6 * 20 / speed["env_steps_per_s"]["Hopper-v5"]
    assert told["cost"]["trial_s"] == pytest.approx([trial_s, trial_s])
    assert not (tmp_path / "td3_bc_trained_models").exists()


# -- shipped sweeps --

SMALL = (
    *("train.num_epochs=2", "experiment.epoch_every_n_steps=2", "train.batch_size=16"),
    *("experiment.rollout.rate=1", "experiment.rollout.n=2", "experiment.rollout.horizon=10"),
)


SMALLER = {
    "td3_bc_pbt": ['scheduler={"pbt": {"interval_steps": 2}}'],
    "bc_rnn_gmm_lr_size": [
        'scheduler={"asha": {"grace_steps": 2}}',
        'space.algo.rnn.hidden_dim={"choice": [8, 16]}',
    ],
    "diffusion_policy": [
        'space.algo.unet.down_dims={"choice": [[8, 16], [16, 32]]}',
        "algo.unet.diffusion_step_embed_dim=8",
        "algo.ddim.num_inference_timesteps=3",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_runs_dry_and_trains(
    path: Path, cli: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    pytest.importorskip("diffusers")
    monkeypatch.setattr(plan, "_TRY_S", 0.1)
    data = write_hopper(tmp_path / "hopper.hdf5")
    with h5py.File(data, "r+") as file:
        file["mask/expert"] = file["mask/train"][:]
    changes = [*SMALL, *SMALLER.get(path.stem, ())]
    said = cli("tune", str(path), "--dataset", str(data), "--dry-run", "--json", "--set", *changes)
    assert said.status == 0, said.err
    assert json.loads(said.out.splitlines()[-1])["cost"]["gradient_steps"] > 0

    made = sweep_from_file(path, [("dataset", str(data)), *map(parse_set, changes)])
    heard: list[dict[str, Any]] = []
    config = trial_config(made, made.example())
    reports = TuneTracker(made.metric, config.experiment.rollout.n, heard.append)
    result = train_in_folder(config, str(tmp_path / "trial"), reports, 0.0)
    assert [report["gradient_steps"] for report in heard] == [2, 4]
    assert all(np.isfinite(report[SCORE]) for report in heard)
    assert result.best_checkpoint is not None


# -- mistakes --

MISTAKES = {
    "nothing": ((), "nothing to tune: give either a sweep's YAML file or --configs FOLDER"),
    "no file": (
        ("none.yaml",),
        "cannot read sweep none.yaml: No such file or directory; check the path",
    ),
    "no folder": (("--configs", "none"), "--configs none: there is no such folder; check the path"),
    "no value": (("s.yaml", "--set", "seeds"), "--set takes key=value"),
    "no key": (
        ("s.yaml", "--set", "algo.alhpa=1"),
        "unknown config key 'algo.alhpa'; did you mean",
    ),
    "no module": (("s.yaml", "--import", "nowhere_to_be_found"), "is not on the Python path"),
    "no data": (("s.yaml", "--dataset", "none.hdf5"), "none.hdf5' does not exist"),
    "no seed": (("s.yaml", "--dry-run", "--set", "seeds=[-1]"), "'seeds' has -1"),
    "both": (("s.yaml", "--resume", "--dry-run"), "--dry-run: not allowed with argument --resume"),
    "no number": (("s.yaml", "--max-concurrent", "0"), "'0' is not a whole number from 1"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(
    name: str, cli: Callable[..., Ran], tmp_path: Path, hopper: Path
) -> None:
    args, message = MISTAKES[name]
    (tmp_path / "s.yaml").write_text(json.dumps(spec(hopper).to_dict()))
    ran = cli("tune", *args)
    assert (ran.status, ran.out) == (2, "")
    assert ran.err.startswith("raymimic: error: ")
    assert ran.err.count("\n") == 1
    assert message in ran.err
