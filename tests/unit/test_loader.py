"""The data layer does as the config says."""

import time

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.config.base_config import config_factory
from raymimic.data.reads import one_window
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.errors import ConfigError, DatasetError

CPU = torch.device("cpu")
OFFLINE_RL = frozenset({"next_obs", "rewards", "dones"})


def config_for(data):
    config = config_factory("td3_bc")
    config.train.data = data if isinstance(data, list) else str(data)
    config.train.batch_size = 4
    config.observation.modalities.obs.low_dim = ["flat"]
    return config


def shapes(batch):
    return {
        key: shapes(value) if isinstance(value, dict) else tuple(value.shape)
        for key, value in batch.items()
    }


def test_batches(tmp_path):
    config = config_for(write_demos(tmp_path / "demos.hdf5"))
    config.train.seq_length, config.train.goal_mode = 3, "last"
    batch, n, total = next(
        make_loaders(config, one_window(config.train, OFFLINE_RL), CPU).train.epoch(1)
    )
    assert (n, total) == (4, 4)
    assert shapes(batch) == {
        "obs": {"flat": (4, 3, 3)},
        "next_obs": {"flat": (4, 3, 3)},
        "goal_obs": {"flat": (4, 3)},
        "actions": (4, 3, 2),
        "rewards": (4, 3),
        "dones": (4, 3),
        "index": (4,),
        "position": (4,),
    }
    assert batch["obs"]["flat"].dtype == torch.float32


def hierarchy_config(path):
    """Each part of an IRIS sees other keys; the actor's goal is a subgoal."""
    config = config_factory("iris")
    config.train.data, config.train.batch_size = str(path), 4
    config.train.seq_length = config.algo.value_planner.planner.subgoal_horizon = 3
    parts = config.observation
    parts.value_planner.planner.modalities.obs.low_dim = ["flat"]
    parts.value_planner.planner.modalities.subgoal.low_dim = ["ahead"]
    parts.value_planner.value.modalities.obs.low_dim = ["ahead"]
    parts.actor.modalities.obs.low_dim = ["flat"]
    parts.actor.modalities.obs.rgb = ["camera"]
    parts.actor.modalities.goal.low_dim = ["ahead"]
    return config


def write_hierarchys_demos(path):
    write_demos(path)
    with h5py.File(path, "r+") as handle:
        for demo in handle["data"].values():
            n = demo.attrs["num_samples"]
            for group in ("obs", "next_obs"):
                demo[f"{group}/ahead"] = np.full((n, 2), 5.0)
                demo[f"{group}/camera"] = np.zeros((n, 8, 6, 3), dtype=np.uint8)
                demo[f"{group}/unused"] = np.zeros((n, 1))
    return path


def test_batches_hold_the_keys_of_all_parts(tmp_path):
    config = hierarchy_config(write_hierarchys_demos(tmp_path / "demos.hdf5"))
    data = make_loaders(config, one_window(config.train, OFFLINE_RL), CPU)
    assert data.shape_meta["all_shapes"] == {"ahead": [2], "camera": [3, 8, 6], "flat": [3]}
    assert data.shape_meta["all_obs_keys"] == ["ahead", "camera", "flat"]
    batch, _, _ = next(data.train.epoch(1))
    keys = {"ahead": (4, 3, 2), "camera": (4, 3, 8, 6, 3), "flat": (4, 3, 3)}
    assert shapes(batch)["obs"] == shapes(batch)["next_obs"] == keys
    assert "goal_obs" not in batch
    assert batch["obs"]["camera"].dtype == torch.uint8


def test_statistics_are_of_the_keys_of_all_parts(tmp_path):
    config = hierarchy_config(write_hierarchys_demos(tmp_path / "demos.hdf5"))
    config.train.hdf5_normalize_obs = True
    stats = make_loaders(config, one_window(config.train, OFFLINE_RL), CPU).obs_normalization_stats
    assert set(stats) == {"ahead", "camera", "flat"}
    np.testing.assert_allclose(stats["ahead"]["offset"], [[5.0, 5.0]])
    assert stats["camera"]["offset"].shape == (1, 3, 8, 6)  # of its modality: channel first


def test_a_subgoal_that_is_not_in_the_data_is_named(tmp_path):
    config = hierarchy_config(write_demos(tmp_path / "demos.hdf5"))
    with pytest.raises(DatasetError, match=r"'(ahead|camera)'"):
        inspect_data(config, one_window(config.train, OFFLINE_RL))


def test_float64(tmp_path):
    config = config_for(write_demos(tmp_path / "demos.hdf5"))
    config.train.dtype = "float64"
    batch, _, _ = next(
        make_loaders(config, one_window(config.train, OFFLINE_RL), CPU).train.epoch(1)
    )
    assert batch["obs"]["flat"].dtype == batch["actions"].dtype == torch.float64


@pytest.mark.parametrize(
    ("asked", "needed", "there", "served"),
    [
        (True, False, True, True),
        (True, False, False, False),  # nobody needs it: it is not derived
        (False, False, True, False),
        (False, True, True, True),
        (False, True, False, True),
    ],
)
def test_when_next_obs_is_served(tmp_path, asked, needed, there, served):
    config = config_for(write_demos(tmp_path / "demos.hdf5", next_obs=there))
    config.train.hdf5_load_next_obs = asked
    needs = frozenset({"next_obs"}) if needed else frozenset()
    batch, _, _ = next(make_loaders(config, one_window(config.train, needs), CPU).train.epoch(1))
    assert ("next_obs" in batch) == served


def test_goal_without_next_obs_is_the_last_observation(tmp_path):
    config = config_for(write_demos(tmp_path / "demos.hdf5", next_obs=False))
    config.train.hdf5_load_next_obs, config.train.goal_mode = False, "last"
    loader = make_loaders(config, one_window(config.train, frozenset()), CPU).train
    batch = loader.dataset.gather(torch.tensor([0, 4, 5, 15]))
    assert batch["goal_obs"]["flat"][:, 0].tolist() == [4, 4, 11, 15]
    assert "next_obs" not in batch


def test_a_list_of_datasets(tmp_path):
    a = write_demos(tmp_path / "a.hdf5", (5, 7), masks={"first": ["demo_0"]})
    b = write_demos(tmp_path / "b.hdf5", (4, 6))
    entries = [
        {"path": str(a), "filter_key": "first", "key": "A", "eval": False},
        {"path": str(b), "demo_limit": 1, "weight": 2.0},
    ]
    data = make_loaders(config_for(entries), one_window(config_for(entries).train, OFFLINE_RL), CPU)
    assert data.train.num_samples == 5 + 4
    assert [(env.key, env.evaluate) for env in data.eval_envs] == [("A", False), ("b", True)]
    assert data.digest.count("sha256:") == 2


def test_environments_as_the_config_changes_them(tmp_path):
    config = config_for(write_demos(tmp_path / "demos.hdf5"))
    config.experiment.additional_envs = ["Hopper-v5"]
    config.experiment.env_meta_update_dict = {"env_kwargs": {"frame_skip": 2}}
    envs = inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs
    assert [env.key for env in envs] == ["Walker2d-v5", "Hopper-v5"]
    assert [env.meta for env in envs] == [
        {"env_name": name, "type": 2, "env_kwargs": {"frame_skip": 2}}
        for name in ("Walker2d-v5", "Hopper-v5")
    ]
    config.experiment.env = "HalfCheetah-v5"
    assert [
        e.key for e in inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs
    ] == [
        "HalfCheetah-v5",
        "Hopper-v5",
    ]
    config.experiment.additional_envs = ["HalfCheetah-v5"]
    with pytest.raises(ConfigError, match="two evaluation environments are called 'HalfCheetah"):
        inspect_data(config, one_window(config.train, OFFLINE_RL))


def test_a_file_without_env_args_has_no_environment_of_its_own(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as handle:
        del handle["data"].attrs["env_args"]
    config = config_for(path)
    assert inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs == []
    config.experiment.env = "Walker2d-v5"
    assert (
        inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs[0].meta["env_name"]
        == "Walker2d-v5"
    )


def write_env_args(path, env_args):
    with h5py.File(path, "r+") as handle:
        handle["data"].attrs["env_args"] = env_args
    return path


@pytest.mark.parametrize("env_args", ["{}", "", "null"])
def test_empty_env_args_are_none(tmp_path, caplog, env_args):
    config = config_for(write_env_args(write_demos(tmp_path / "demos.hdf5"), env_args))
    assert inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs == []
    assert "nothing is evaluated; set experiment.env" in caplog.text
    config.experiment.env = "Walker2d-v5"
    (env,) = inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs
    assert env.meta == {"env_name": "Walker2d-v5", "type": 2, "env_kwargs": {}}


@pytest.mark.parametrize("env_args", ["Walker2d-v5", b"\xff", '{"type": 1}', '{"env_name": 5}'])
def test_env_args_matter_only_where_episodes_are_played(tmp_path, env_args):
    config = config_for(write_env_args(write_demos(tmp_path / "demos.hdf5"), env_args))
    with pytest.raises(DatasetError, match="env_args"):
        inspect_data(config, one_window(config.train, OFFLINE_RL))
    config.experiment.rollout.enabled = False
    assert inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs == []
    config.experiment.rollout.enabled = True
    config.experiment.env = "Walker2d-v5"
    if "{" in str(env_args):
        assert (
            inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs[0].key
            == "Walker2d-v5"
        )


def test_datasets_of_one_file_name(tmp_path):
    paths = []
    for place in ("lift/ph", "lift/mh", "can/mh"):
        (tmp_path / place).mkdir(parents=True)
        paths.append(write_demos(tmp_path / place / "low_dim.hdf5"))

    def keys(*chosen, **options):
        config = config_for([{"path": str(path), **options} for path in chosen])
        return [
            env.key for env in inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs
        ]

    assert keys(*paths[:2]) == ["ph-low_dim", "mh-low_dim"]
    assert keys(*paths) == ["lift-ph-low_dim", "lift-mh-low_dim", "can-mh-low_dim"]
    assert keys(paths[0], paths[0]) == ["Walker2d-v5"]  # one environment, played once
    with pytest.raises(ConfigError, match="two evaluation environments are called 'A'"):
        keys(*paths, key="A")
    assert keys(*paths, key="A", eval=False) == ["A", "A", "A"]


def test_one_file_twice_is_played_if_either_entry_says_so(tmp_path):
    path = str(write_demos(tmp_path / "demos.hdf5"))
    for flags in ((False, True), (True, False), (False, False)):
        config = config_for([{"path": path, "eval": flag} for flag in flags])
        (env,) = inspect_data(config, one_window(config.train, OFFLINE_RL)).eval_envs
        assert env.evaluate == any(flags)


def test_validation_demos_may_lack_what_is_not_needed(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", masks={"t": ["demo_0"], "v": ["demo_1"]})
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/rewards"][2] = np.nan
        del handle["data/demo_1/dones"]
    config = config_for(path)
    config.experiment.validate = True
    config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = "t", "v"
    data = make_loaders(config, one_window(config.train, frozenset()), CPU)
    train, valid = (next(loader.epoch(1))[0] for loader in (data.train, data.valid))
    assert ("rewards" in train, "dones" in train) == (False, True)
    assert ("rewards" in valid, "dones" in valid) == (True, False)


@pytest.mark.parametrize("data", [None, [], [{"weight": 1.0}]])
def test_no_dataset_named(data):
    config = config_for("")
    config.train.data = data
    with pytest.raises(ConfigError, match=r"train\.data"):
        inspect_data(config, one_window(config.train, OFFLINE_RL))


def test_structure_is_checked_before_any_data_is_read(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/actions"][0, 0] = np.nan
        del handle["data/demo_2/dones"]
    with pytest.raises(DatasetError, match=r"'demo_2' .* has no 'dones'"):
        inspect_data(config_for(path), one_window(config_for(path).train, OFFLINE_RL))
    assert (
        inspect_data(config_for(path), one_window(config_for(path).train, frozenset())).shape_meta[
            "ac_dim"
        ]
        == 2
    )


def test_a_batch_costs_little(tmp_path):
    torch.set_num_threads(1)
    config = config_for(write_demos(tmp_path / "demos.hdf5", (1000,) * 20))
    config.train.batch_size = 256
    config.experiment.epoch_every_n_steps = 400
    loader = make_loaders(config, one_window(config.train, OFFLINE_RL), CPU).train
    best = np.inf
    for epoch in range(1, 6):
        start = time.process_time()
        for _ in loader.epoch(epoch):
            pass
        best = min(best, (time.process_time() - start) / 400)
    assert best < 0.3e-3  # 0.03 ms on an idle machine; one gather per key and step takes 0.1
