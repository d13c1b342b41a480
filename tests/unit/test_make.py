"""Datasets that raymimic makes: schema, masks, termination, replay of states."""

import json

import h5py
import numpy as np
import pytest
from checks import assert_refused

from raymimic.envs.kinds import env_from_metadata
from raymimic.errors import ConfigError, OutputError
from raymimic.recording.make import make_dataset, play_demo
from raymimic.recording.source_policy import SourcePolicy
from raymimic.recording.train_policies import choose


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "hopper.hdf5"
    made = make_dataset("hopper_medium_expert", path, 11_000, 2_500, num_actors=0, progress=False)
    with h5py.File(path) as file:
        yield made, file


def demos(file, mask):
    return [file["data"][name.decode()] for name in file[f"mask/{mask}"]]


def test_schema_and_sizes(made):
    result, file = made
    data = file["data"]
    assert json.loads(data.attrs["env_args"]) == {
        "env_name": "Hopper-v5",
        "type": 2,
        "env_kwargs": {},
    }
    lengths = [demo.attrs["num_samples"] for demo in data.values()]
    assert data.attrs["total"] == sum(lengths) == sum(result.transitions.values())
    assert 11_000 <= result.transitions["expert"] < 12_000
    assert 2_500 <= result.transitions["medium"] < 3_500
    for demo in data.values():
        t = demo.attrs["num_samples"]
        shapes = {
            "obs/flat": (t, 11),
            "next_obs/flat": (t, 11),
            "actions": (t, 3),
            "rewards": (t,),
            "dones": (t,),
            "states": (t, 13),
        }
        assert {key: demo[key].shape for key in shapes} == shapes
        assert np.abs(demo["actions"]).max() <= 1.0


def test_masks_divide_the_demos(made):
    _, file = made
    names = {key: set(np.array(file["mask"][key]).tolist()) for key in file["mask"]}
    everything = {name.encode() for name in file["data"]}
    assert set(names) == {"expert", "medium", "train", "valid"}
    assert names["expert"] | names["medium"] == names["train"] | names["valid"] == everything
    assert not names["expert"] & names["medium"]
    assert not names["train"] & names["valid"]
    assert names["valid"] & names["expert"]
    assert sum(d.attrs["num_samples"] for d in demos(file, "expert")) >= 11_000


def test_done_only_where_the_task_terminated(made):
    _, file = made
    ends = []
    for demo in file["data"].values():
        dones = demo["dones"][:]
        assert not dones[:-1].any()
        assert bool(dones[-1]) == (len(dones) < 1000)
        ends.append(len(dones) < 1000)
    assert any(ends)
    assert not all(ends)  # the expert's episodes reach the time limit


def test_next_obs_is_the_next_row(made):
    _, file = made
    for demo in file["data"].values():
        np.testing.assert_array_equal(demo["next_obs/flat"][:-1], demo["obs/flat"][1:])
        assert not np.array_equal(demo["next_obs/flat"][-1], demo["obs/flat"][-1])


def test_states_replay_to_the_observations_and_rewards(made):
    _, file = made
    env = env_from_metadata(json.loads(file["data"].attrs["env_args"]))
    demo = file["data/demo_0"]
    for t in (0, 1, 50, len(demo["rewards"]) - 1):
        obs = env.reset_to({"states": demo["states"][t]})
        np.testing.assert_allclose(obs["flat"], demo["obs/flat"][t], rtol=1e-6, atol=1e-6)
        obs, reward, _, _ = env.step(demo["actions"][t])
        np.testing.assert_allclose(obs["flat"], demo["next_obs/flat"][t], rtol=1e-4, atol=1e-4)
        assert reward == pytest.approx(demo["rewards"][t], abs=1e-4)


def test_reference_returns_are_those_of_the_policies(made):
    result, file = made
    expert = [demo["rewards"][:].sum() for demo in demos(file, "expert")]
    assert file["data"].attrs["expert_return"] == pytest.approx(np.mean(expert))
    assert result.returns["expert"] == pytest.approx(expert)
    assert len(result.returns["random"]) == 50
    random = file["data"].attrs["random_return"]
    assert random == pytest.approx(np.mean(result.returns["random"]))
    assert 5 < random < 40  # D4RL's reference for a random Hopper is -20 … 20 + healthy reward


@pytest.mark.ray
def test_contents_do_not_depend_on_the_number_of_actors(made, tmp_path):
    _, file = made
    path = tmp_path / "one.hdf5"
    make_dataset("hopper-medium-expert", path, 2_500, 0, num_actors=1, progress=False)
    with h5py.File(path) as one:
        for name in ("demo_0", "demo_2"):
            for key in ("actions", "rewards", "states"):
                np.testing.assert_array_equal(one["data"][name][key], file["data"][name][key])


def test_noise_is_what_was_asked_for():
    env = env_from_metadata({"env_name": "Hopper-v5", "type": 2})
    policy = SourcePolicy.shipped("hopper", "expert")
    exact = play_demo(env, policy, seed=1, noise=0.0)
    np.testing.assert_allclose(exact.actions, np.clip(policy(exact.obs["flat"]), -1, 1), atol=1e-4)
    noisy = play_demo(env, policy, seed=1, noise=0.1)
    means = policy(noisy.obs["flat"])
    inside = np.abs(means) < 0.6
    assert np.std((noisy.actions - means)[inside]) == pytest.approx(0.1, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "expert_least"), [("walker2d", 4000), ("halfcheetah", 4000), ("hopper", 3000)]
)
def test_shipped_policies_are_what_they_are_called(task, expert_least):
    env_name = {"walker2d": "Walker2d-v5", "halfcheetah": "HalfCheetah-v5", "hopper": "Hopper-v5"}
    env = env_from_metadata({"env_name": env_name[task], "type": 2})

    def median_return(level):
        policy = SourcePolicy.shipped(task, level)
        demos = [play_demo(env, policy, seed, noise=0.0) for seed in range(9)]
        return np.median([demo.rewards.sum() for demo in demos])

    # Of few episodes, some of which end early: on another processor the same seeds go other ways.
    expert = median_return("expert")
    assert expert >= expert_least
    assert 0.25 <= median_return("medium") / expert <= 0.75


def test_policy_file_round_trip(tmp_path):
    policy = SourcePolicy.shipped("walker2d", "expert")
    policy.save(tmp_path / "p.npz")
    again = SourcePolicy.load(tmp_path / "p.npz")
    obs = np.random.default_rng(0).normal(size=(5, 17))
    np.testing.assert_array_equal(policy(obs), again(obs))
    np.testing.assert_allclose(policy(obs)[3], policy(obs[3]), atol=1e-6)


def test_choice_of_snapshots():
    returns = np.array([[100, 100], [450, 350], [400, 300], [1500, 500], [1000, 980], [400, 400]])
    # Steady 1000 beats a mean of 1000 that falls; of the two near half, the steadier earlier one
    # by standard deviation, and never one that came after the expert.
    assert choose(returns.astype(float)) == (4, 1)


def test_unknown_names_and_unwritable_places_are_explained(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'walker2d-medium-expert'"):
        make_dataset("walker-medium-expert", tmp_path / "x.hdf5")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .* Not a directory"):
        make_dataset("hopper-medium-expert", tmp_path / "file" / "x.hdf5", 1, 1, progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_command_replaces_no_file(cli, tmp_path):
    (tmp_path / "there.hdf5").write_bytes(b"precious")
    for name in ("hopper-medium-expert", "robosuite-lift"):
        ran = cli("dataset", "make", name, "--out", "there.hdf5")
        assert_refused(ran, "'there.hdf5' exists already")
    assert (tmp_path / "there.hdf5").read_bytes() == b"precious"
