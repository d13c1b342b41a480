"""Policies that are given goals: from the data's last observations to an environment's own."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import reach_env
from tiny import Ran

from raymimic.envs.kinds import env_from_metadata
from raymimic.errors import EnvError

TRAIN = [
    *("train", "--workers", "0", "--name", "reach", "--set"),
    'observation.modalities.obs.low_dim=["observation"]',
    'observation.modalities.goal.low_dim=["achieved_goal"]',
    "train.goal_mode=last",
    "train.num_epochs=2",
    "train.batch_size=64",
    "train.cuda=false",
    "experiment.epoch_every_n_steps=200",
    "experiment.rollout.rate=2",
    "experiment.rollout.n=12",
    "experiment.rollout.horizon=40",
    "experiment.render_video=false",
    "experiment.logging.log_tb=false",
    "mlflow.enabled=false",
    "ray.threads_per_worker=1",
]


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    reach_env.write_demos(tmp_path / "reach.hdf5")
    return tmp_path / "reach.hdf5"


@pytest.mark.slow
def test_a_policy_learns_to_reach_the_goals_of_its_environment(
    cli: Callable[..., Ran], demos: Path, tmp_path: Path
) -> None:
    settings = [
        "algo.actor_layer_dims=[64,64]",
        "algo.optim_params.policy.learning_rate.initial=0.003",
    ]
    ran = cli(*TRAIN, *settings, "--algo", "bc", "--dataset", str(demos), "--json")
    assert ran.status == 0, ran.err
    best = ran.result["best_checkpoint"]
    # Other seeds, by one and by more environments at a time: the goals are each episode's own.
    ran = cli("evaluate", best, "--episodes", "12", "--actors", "0", "--json", "out.json")
    assert ran.status == 0, ran.err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["summary"]["Success_Rate"] == 1.0
    assert len({e["episode_return"] for e in report["episodes"]}) == 12


def test_an_algorithm_with_values_is_given_goals_too(cli: Callable[..., Ran], demos: Path) -> None:
    settings = ["algo.actor.layer_dims=[8]", "algo.critic.layer_dims=[8]"]
    settings += ["experiment.epoch_every_n_steps=5", "experiment.rollout.n=2"]
    ran = cli(*TRAIN, *settings, "--algo", "td3_bc", "--dataset", str(demos), "--json")
    assert ran.status == 0, ran.err


def test_an_environment_without_goals_is_found_before_training(
    cli: Callable[..., Ran], demos: Path
) -> None:
    import h5py

    with h5py.File(demos, "a") as file:
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Reacher-v5", "type": 2})
    ran = cli(*TRAIN, "--algo", "bc", "--dataset", str(demos))
    assert ran.status == 2
    assert "'Reacher-v5' has no goals for the policy" in ran.err
    assert "experiment.rollout.enabled=false" in ran.err


def test_the_goal_is_there_under_both_names(demos: Path) -> None:
    env = env_from_metadata({"env_name": "reach_env:Reach-v0", "type": 2})
    obs = env.reset(seed=3)
    goal = env.get_goal()
    assert set(goal) == {"achieved_goal", "desired_goal"}
    np.testing.assert_array_equal(goal["achieved_goal"], obs["desired_goal"])
    np.testing.assert_array_equal(goal["desired_goal"], obs["desired_goal"])
    env.step(np.ones(2))
    np.testing.assert_array_equal(env.get_goal()["achieved_goal"], obs["desired_goal"])
    hopper = env_from_metadata({"env_name": "Hopper-v5", "type": 2})
    hopper.reset(seed=0)
    with pytest.raises(EnvError, match="has no goals"):
        hopper.get_goal()
