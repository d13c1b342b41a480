"""robomimic's `SequenceDataset` by its own constructor, against its own batches."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from raymimic.config import config_factory
from raymimic.errors import ConfigError, DatasetError
from raymimic.utils import train_utils
from raymimic.utils.dataset import MetaDataset, SequenceDataset

DATA = Path(__file__).parents[1] / "golden" / "data" / "dataset"
CASES = json.loads((DATA / "cases.json").read_text())
FILE = DATA / "golden_low_dim.hdf5"


def dataset(**kwargs) -> SequenceDataset:
    given = {
        "hdf5_path": FILE,
        "obs_keys": ["object"],
        "action_keys": ["actions"],
        "dataset_keys": ["actions", "rewards", "dones"],
        "action_config": {"actions": {"normalization": None}},
    }
    return SequenceDataset(**{**given, **kwargs})


def flatten(batch, prefix=""):
    flat = {}
    for key, value in batch.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[prefix + key] = value.numpy()
    return flat


@pytest.mark.parametrize("case", CASES)
def test_items_are_robomimics(case: str):
    expected = dict(np.load(DATA / f"{case}.npz"))
    train, indices = CASES[case]["train"], CASES[case]["idx"]
    data = dataset(
        obs_keys=[key.removeprefix("obs/") for key in expected if key.startswith("obs/")],
        dataset_keys=train["dataset_keys"],
        frame_stack=train["frame_stack"],
        seq_length=train["seq_length"],
        pad_frame_stack=train["pad_frame_stack"],
        pad_seq_length=train["pad_seq_length"],
        goal_mode=train["goal_mode"],
        load_next_obs=train["hdf5_load_next_obs"],
        filter_by_attribute="train",
    )
    assert isinstance(data[0]["actions"], np.ndarray)
    items = flatten(default_collate([data[i] for i in indices]))
    assert items.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(items[key].astype(np.float32), value.astype(np.float32), key)


def test_observation_statistics_are_robomimics():
    expected = json.loads((DATA / "obs_normalization_stats.json").read_text())
    data = dataset(obs_keys=list(expected), hdf5_normalize_obs=True, filter_by_attribute="train")
    stats = data.get_obs_normalization_stats()
    for key, entry in expected.items():
        for name in ("offset", "scale"):
            np.testing.assert_allclose(stats[key][name], entry[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="hdf5_normalize_obs"):
        dataset().get_obs_normalization_stats()


def raw_actions(filter_key: str | None = None) -> np.ndarray:
    with h5py.File(FILE) as file:
        names = file[f"mask/{filter_key}"][:].astype(str) if filter_key else list(file["data"])
        return np.concatenate([file[f"data/{name}/actions"][:] for name in names])


def test_actions_are_normalised_by_their_config():
    data = dataset(action_config={"actions": {"normalization": "gaussian"}})
    actions = np.concatenate([data[i]["actions"] for i in range(len(data))])
    std = raw_actions().std(axis=0)
    varying = std > 1e-3
    np.testing.assert_allclose(actions.mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(actions.std(axis=0)[varying], 1.0, atol=1e-4)
    whole = data.get_trajectory_at_index(1)
    assert whole["ep"] == data.demos[1]
    with h5py.File(FILE) as file:
        np.testing.assert_allclose(whole["actions"], file[f"data/{whole['ep']}/actions"][:])
        np.testing.assert_array_equal(
            whole["obs"]["object"], file[f"data/{whole['ep']}/obs/object"][:].astype(np.float32)
        )


def test_a_data_loader_serves_it_and_it_tells_of_itself():
    data = dataset(seq_length=3, get_pad_mask=True, demo_limit=2)
    batch = next(iter(DataLoader(data, batch_size=4, shuffle=True, num_workers=0)))
    assert batch["obs"]["object"].shape[:2] == (4, 3)
    assert batch["pad_mask"].shape == batch["obs"]["pad_mask"].shape == (4, 3, 1)
    assert data.n_demos == len(data.demos) == 2
    assert data.total_num_sequences == len(data)
    assert "num_demos=2" in repr(data)
    assert data.get_dataset_sampler() is None
    assert not data[len(data) - 1]["pad_mask"][-1]


def test_several_datasets_share_statistics_and_are_drawn_by_weight():
    config = {"actions": {"normalization": "min_max"}}
    parts = [dataset(filter_by_attribute=key, action_config=config) for key in ("train", "valid")]
    alone = parts[0].get_action_normalization_stats()["actions"]["scale"]
    both = MetaDataset(parts, [1.0, 3.0], normalize_weights_by_ds_size=True)
    rows = np.concatenate([raw_actions("train"), raw_actions("valid")])
    span = np.maximum(rows.max(axis=0) - rows.min(axis=0), 0)
    shared = both.get_action_normalization_stats()["actions"]["scale"][0]
    varying = span > 1e-3
    np.testing.assert_allclose(shared[varying], span[varying] / 2 / 0.999999, rtol=1e-5)
    assert not np.allclose(alone, shared)
    assert len(both) == sum(map(len, parts))
    last = both[len(both) - 1]
    np.testing.assert_array_equal(last["actions"], parts[1][len(parts[1]) - 1]["actions"])
    assert last["index"] == len(both) - 1
    torch.manual_seed(0)
    drawn = np.array(list(both.get_dataset_sampler()))
    torch.manual_seed(0)
    assert list(both.get_dataset_sampler()) == drawn.tolist()
    share = np.mean(np.array(list(both.get_dataset_sampler())) >= len(parts[0]))
    assert 0.6 < share < 0.9
    with pytest.raises(IndexError):
        both[len(both)]


def test_data_of_a_config():
    config = config_factory("bc")
    config.train.data = [{"path": str(FILE)}]
    config.train.seq_length = 2
    config.experiment.validate = True
    with pytest.raises(ConfigError, match="hdf5_filter_key"):
        train_utils.load_data_for_training(config, ["object"])
    config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = "train", "valid"
    training, validation = train_utils.load_data_for_training(config, ["object"])
    assert not set(training.demos) & set(validation.demos)
    assert training[0]["obs"]["object"].shape[0] == 2
    config.train.hdf5_validation_filter_key = "train"
    with pytest.raises(ConfigError, match="is among the training demos"):
        train_utils.load_data_for_training(config, ["object"])
    config.experiment.validate = False
    with pytest.raises(ConfigError, match=r"experiment\.validate is false"):
        train_utils.load_data_for_training(config, ["object"])
    config.train.data = [{"path": str(FILE), "weight": 2.0}, {"path": str(FILE)}]
    assert isinstance(train_utils.dataset_factory(config, ["object"], "train"), MetaDataset)
    other = train_utils.dataset_factory(config, ["object"], dataset_path=str(FILE))
    assert isinstance(other, SequenceDataset)


def test_images_stay_bytes_and_a_missing_next_obs_follows(tmp_path: Path):
    file = tmp_path / "images.hdf5"
    images = np.random.default_rng(0).integers(0, 255, (4, 6, 5, 3), np.uint8)
    with h5py.File(file, "w") as handle:
        demo = handle.create_group("data/demo_0")
        demo.attrs["num_samples"] = 4
        demo["obs/camera"] = images
        demo["actions"] = np.zeros((4, 2))
    data = dataset(hdf5_path=file, obs_keys=["camera"], dataset_keys=[])
    assert data[1]["obs"]["camera"].dtype == np.uint8
    np.testing.assert_array_equal(data[1]["obs"]["camera"][0], images[1])
    np.testing.assert_array_equal(data[1]["next_obs"]["camera"][0], images[2])
    with pytest.raises(DatasetError, match="no_such"):
        dataset(hdf5_path=file, obs_keys=["no_such"])
