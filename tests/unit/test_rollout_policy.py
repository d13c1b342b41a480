"""From raw observations to actions."""

from typing import Any

import numpy as np
import pytest
import torch

from raymimic.algo import PolicyAlgo, RolloutPolicy, ValueAlgo, algo_factory
from raymimic.config import config_factory
from raymimic.config.templates import config_named
from raymimic.errors import ConfigError, EnvError

torch.set_num_threads(1)
OBS_DIM, ACTION_DIM = 17, 6
RNG = np.random.default_rng(0)


def make_algo(layer_dims: tuple[int, ...] = (256, 256), **train: Any) -> PolicyAlgo:
    torch.manual_seed(0)
    config = config_factory("td3_bc")
    config.algo.actor.layer_dims = layer_dims
    config.train.update(train)
    algo = algo_factory("td3_bc", config, {"flat": [OBS_DIM]}, ACTION_DIM, "cpu")
    assert isinstance(algo, PolicyAlgo)
    return algo


def test_observations_are_normalised_and_actions_scaled_back():
    algo = make_algo()
    obs_stats = {
        "flat": {"offset": RNG.normal(size=(1, OBS_DIM)), "scale": RNG.uniform(1, 2, (1, OBS_DIM))}
    }
    action_stats = {
        "actions": {
            "offset": RNG.normal(size=(1, ACTION_DIM)),
            "scale": RNG.uniform(1, 2, (1, ACTION_DIM)),
        }
    }
    policy = RolloutPolicy(algo, obs_stats, action_stats)
    policy.start_episode()
    obs = RNG.normal(size=(3, OBS_DIM))
    actions = policy({"flat": obs}, batched_ob=True)

    scaled = (obs - obs_stats["flat"]["offset"]) / obs_stats["flat"]["scale"]
    plain = algo.get_action({"flat": torch.tensor(scaled, dtype=torch.float32)}).detach().numpy()
    expected = plain * action_stats["actions"]["scale"] + action_stats["actions"]["offset"]
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy({"flat": obs[1]}), expected[1], rtol=1e-5, atol=1e-6)


def test_action_keys_are_scaled_each_by_its_own_in_their_order():
    keys = {"action/gripper": {"normalization": "min_max"}, "action/arm": {"normalization": None}}
    algo = make_algo(action_keys=["action/arm", "action/gripper"], action_config=keys)
    stats = {
        "action/gripper": {"offset": [[5.0]], "scale": [[0.0]]},
        "action/arm": {"offset": [[0.0] * 5], "scale": [[1.0] * 5]},
    }
    obs = {"flat": RNG.normal(size=OBS_DIM)}
    action, plain = RolloutPolicy(algo, None, stats)(obs), RolloutPolicy(algo)(obs)
    assert action[5] == 5.0
    np.testing.assert_array_equal(action[:5], plain[:5])


def test_episodes_of_a_batch_reset_by_mask():
    algo = make_algo(layer_dims=(8, 8))
    masks: list[Any] = []
    algo.reset = lambda mask=None: masks.append(mask)  # type: ignore[method-assign]
    policy = RolloutPolicy(algo)
    policy.start_episode()
    policy.start_episode(mask=np.array([True, True]))
    policy.start_episode(mask=np.array([False, True]))
    assert masks[:2] == [None, None]
    assert masks[2].tolist() == [False, True]
    assert not algo.nets.training


def test_seeds_make_the_random_numbers_of_each_row() -> None:
    algo = make_algo(layer_dims=(8, 8))
    algo.get_action = lambda obs, goal=None: torch.randn(len(obs["flat"]), ACTION_DIM)  # type: ignore[method-assign]
    policy = RolloutPolicy(algo)
    obs = {"flat": np.zeros((3, OBS_DIM))}

    def act(n: int) -> Any:
        return np.stack([policy(obs, batched_ob=True) for _ in range(n)])

    policy.start_episode(seeds=[4, 5, 6])
    first = act(2)
    policy.start_episode(np.array([False, True, False]), [0, 5, 0])
    second = act(2)
    np.testing.assert_array_equal(second[:, 1], first[:, 1])
    assert not np.isin(second[:, [0, 2]], first).any()  # the others drew on

    policy.start_episode(seeds=[6])
    np.testing.assert_array_equal(policy({"flat": np.zeros(OBS_DIM)}), first[0, 2])

    policy.start_episode()
    torch.manual_seed(0)
    expected = torch.randn(3, ACTION_DIM)
    torch.manual_seed(0)
    np.testing.assert_array_equal(act(1)[0], expected)  # without seeds: torch's own


def test_dtype_is_the_trainings():
    policy = RolloutPolicy(make_algo(dtype="float64"))
    assert policy({"flat": np.zeros(OBS_DIM, np.float32)}).dtype == np.float64


def test_missing_observation_names_the_nearest():
    with pytest.raises(EnvError, match=r"needs observation 'flat'.*did you mean 'flat_obs'"):
        RolloutPolicy(make_algo())({"flat_obs": np.zeros(OBS_DIM)})


@pytest.mark.parametrize(
    ("ob", "batched", "message"),
    [
        ({"flat": np.zeros(16)}, False, r"'flat' has shape \[16\], and the policy reads \[17\]$"),
        ({"flat": np.zeros((3, 16))}, True, r"shape \[3, 16\], and the policy reads \[B, 17\]$"),
        ({"flat": np.zeros((3, 17))}, False, r"reads \[17\]: pass batched_ob=True for a batch"),
        ({"flat": np.zeros(17)}, True, r"reads \[B, 17\]: leave batched_ob out"),
        (
            {"flat": {"a": np.zeros(17)}},
            False,
            "'flat' is no array of numbers, but dict with keys a",
        ),
        ({"flat": "text"}, False, "'flat' is no array of numbers, but str"),
        ({"state": {"flat": np.zeros(17)}}, False, "needs observation 'flat'.*content of 'state'"),
        (np.zeros(17), False, r"by its key \(flat\), in a dict, and is given ndarray"),
        (({"flat": np.zeros(17)}, {}), False, "in a dict, and is given tuple"),
    ],
)
@pytest.mark.parametrize("name", ["td3_bc", "bc_rnn"])
def test_wrong_observations_are_named(name, ob, batched, message):
    config = config_named(name)
    config.observation.modalities.obs.low_dim = ["flat"]
    shapes = {"flat": [OBS_DIM]}
    policy = RolloutPolicy(algo_factory(config.algo_name, config, shapes, ACTION_DIM, "cpu"))
    policy.start_episode()
    with pytest.raises(EnvError, match=message):
        policy(ob, batched_ob=batched)
    assert policy({"flat": torch.zeros(OBS_DIM)}).shape == (ACTION_DIM,)


def test_a_nested_dict_is_read_by_the_path_of_its_keys():
    config = config_factory("td3_bc")
    config.observation.modalities.obs.low_dim = ["robot/eef"]
    policy = RolloutPolicy(algo_factory("td3_bc", config, {"robot/eef": [3]}, ACTION_DIM, "cpu"))
    plain = policy({"robot/eef": [1.0, 2.0, 3.0]})
    np.testing.assert_array_equal(policy({"robot": {"eef": [1.0, 2.0, 3.0]}}), plain)


def test_what_cannot_act_is_no_policy():
    algo = make_algo(layer_dims=(8, 8))
    algo.__class__ = type("Critic", (ValueAlgo,), {})
    with pytest.raises(ConfigError, match="Critic is no policy"):
        RolloutPolicy(algo)


def test_rotations_that_would_need_conversion_are_refused():
    keys = {"actions": {"normalization": None, "format": "rot_6d"}}
    algo = make_algo(action_config=keys)
    with pytest.raises(ConfigError, match="rot_6d"):
        RolloutPolicy(algo, None, {"actions": {"offset": [[0.0] * 6], "scale": [[1.0] * 6]}})


def test_a_policy_with_goals_asks_for_one():
    torch.manual_seed(0)
    config = config_factory("bc")
    config.observation.modalities.obs.low_dim = ["flat"]
    config.observation.modalities.goal.low_dim = ["goal"]
    algo = algo_factory("bc", config, {"flat": [OBS_DIM], "goal": [2]}, ACTION_DIM, "cpu")
    policy, obs = RolloutPolicy(algo), {"flat": RNG.normal(size=OBS_DIM)}
    policy.start_episode()
    with pytest.raises(EnvError, match=r"pursues goals \(goal\) and is given none"):
        policy(obs)
    near, far = (policy(obs, goal={"goal": np.full(2, x)}) for x in (0.0, 5.0))
    assert np.abs(near - far).max() > 0.01
