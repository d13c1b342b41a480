"""Normalisation statistics: right, finite, the same for every placement of the data."""

from functools import partial

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos

from raymimic.config.base_config import config_factory
from raymimic.data.reads import one_window
from raymimic.data.stats import action_normalization_stats, moments, obs_normalization_stats
from raymimic.data.training_data import make_loaders
from raymimic.errors import ConfigError
from raymimic.observations.modality import modality_named

CPU = torch.device("cpu")


def config_for(path, normalization=None, shard=False):
    config = config_factory("td3_bc")
    config.train.data = str(path)
    config.train.batch_size = 4
    config.train.hdf5_normalize_obs = True
    config.train.action_config = {"actions": {"normalization": normalization}}
    config.observation.modalities.obs.low_dim = ["flat"]
    config.ray.data_placement = "shard" if shard else "replicate"
    return config


def rewrite(path, key, values):
    """Replaces ``key`` of every demo by ``values(number of rows)``."""
    with h5py.File(path, "r+") as handle:
        for demo in handle["data"].values():
            del demo[key]
            demo[key] = values(demo.attrs["num_samples"])


def normal(rng, mean, std, width, rows):
    return rng.normal(mean, std, (rows, width)).astype(np.float32)


def test_moments_of_blocks_are_those_of_the_whole():
    # Far from zero, where summing squares would cancel; of one block, many and uneven pieces.
    rows = np.random.default_rng(0).normal(1e4, 1.0, size=(40_000, 3)).astype(np.float32)
    pieces = [torch.from_numpy(part) for part in np.split(rows, [1, 100, 7777])]
    found = moments(pieces)
    exact = rows.astype(np.float64)
    assert found.count == 40_000
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(0), rtol=1e-9)
    np.testing.assert_array_equal(found.low, exact.min(0))
    np.testing.assert_array_equal(found.high, exact.max(0))


def test_observation_statistics():
    rows = np.random.default_rng(0).normal(3.0, 2.0, size=(500, 4)).astype(np.float32)
    stats = obs_normalization_stats({"flat": moments([torch.from_numpy(rows)])})["flat"]
    assert stats["offset"].shape == stats["scale"].shape == (1, 4)
    assert stats["offset"].dtype == stats["scale"].dtype == np.float32
    np.testing.assert_allclose(stats["offset"][0], rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(stats["scale"][0], rows.std(0) + 1e-3, rtol=1e-5)


def test_images_are_normalised_as_networks_see_them():
    image = np.random.default_rng(0).integers(0, 256, size=(10, 5, 4, 3), dtype=np.uint8)
    found = moments([torch.from_numpy(image)], modality_named("rgb"))
    stats = obs_normalization_stats({"camera": found})
    expected = (image / 255.0).transpose(0, 3, 1, 2).mean(0)
    assert stats["camera"]["offset"].shape == (1, 3, 5, 4)
    np.testing.assert_allclose(stats["camera"]["offset"][0], expected, rtol=1e-5)


def test_constant_columns_do_not_divide_by_zero():
    constant = moments([torch.full((50, 2), 7.3)])
    stats = [obs_normalization_stats({"x": constant})["x"]]
    for method in (None, "min_max", "gaussian"):
        stats.append(
            action_normalization_stats({"x": constant}, {"x": {"normalization": method}})["x"]
        )
    for entry in stats:
        normalised = (np.full((1, 2), 7.3, np.float32) - entry["offset"]) / entry["scale"]
        assert np.isfinite(normalised).all()
    assert stats[0]["scale"] == pytest.approx(1e-3)
    assert all((entry["scale"] == 1).all() for entry in stats[1:])
    assert all(entry["offset"] == pytest.approx(7.3) for entry in stats[2:])


def all_actions(loader):
    """Every sample's action, in order."""
    return loader.dataset.gather(torch.arange(len(loader.dataset)))["actions"][:, 0]


def test_none_leaves_the_actions_bits(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    data = make_loaders(config_for(path), one_window(config_for(path).train, frozenset()), CPU)
    with h5py.File(path) as handle:
        raw = np.concatenate([demo["actions"][()] for demo in handle["data"].values()])
    actions = all_actions(data.train).numpy()
    np.testing.assert_array_equal(actions, raw.astype(np.float32))


@pytest.mark.parametrize("method", ["min_max", "gaussian"])
def test_actions_are_normalised_and_come_back(tmp_path, method):
    path = write_demos(tmp_path / "demos.hdf5", (50, 70))
    rewrite(path, "actions", lambda n: np.random.default_rng(n).normal([5, -3], [2, 0.1], (n, 2)))
    data = make_loaders(
        config_for(path, method), one_window(config_for(path, method).train, frozenset()), CPU
    )
    actions = all_actions(data.train).numpy()
    if method == "min_max":
        np.testing.assert_allclose(actions.min(0), -0.999999, atol=2e-6)
        np.testing.assert_allclose(actions.max(0), 0.999999, atol=2e-6)
    else:
        np.testing.assert_allclose(actions.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(actions.std(0), 1, atol=1e-5)
    with h5py.File(path) as handle:
        raw = np.concatenate([demo["actions"][()] for demo in handle["data"].values()])
    entry = data.action_normalization_stats["actions"]
    np.testing.assert_allclose(actions * entry["scale"] + entry["offset"], raw, atol=1e-5)


def test_action_keys_are_normalised_each_in_its_way(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", (40, 30))
    with h5py.File(path, "r+") as handle:
        for demo in handle["data"].values():
            demo["action_dict/grip"] = np.linspace(-4, 8, demo.attrs["num_samples"])
    config = config_for(path)
    config.train.action_keys = ["action_dict/grip", "actions"]
    config.train.action_config = {
        "action_dict/grip": {"normalization": "min_max"},
        "actions": {"normalization": None},
    }
    data = make_loaders(config, one_window(config.train, frozenset()), CPU)
    assert list(data.action_normalization_stats) == ["action_dict/grip", "actions"]
    actions = all_actions(data.train)
    assert actions.shape == (70, 3)
    assert actions[:, 0].aminmax() == pytest.approx((-0.999999, 0.999999), abs=1e-6)
    assert data.shape_meta["ac_dim"] == 3


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize("method", ["min_max", "gaussian"])
def test_statistics_of_several_datasets_are_those_of_their_demos_together(tmp_path, method, shard):
    files = {
        "a.hdf5": ({"filter_key": "few", "weight": 5.0}, ["demo_0", "demo_2"], (0, 1)),
        "b.hdf5": ({"demo_limit": 1}, ["demo_0"], (50, 20)),
        "c.hdf5": ({"weight": 0.1}, ["demo_0", "demo_1", "demo_2"], (-3, 0.01)),
    }
    entries, observed, acted = [], [], []
    for number, (name, (options, names, (mean, std))) in enumerate(files.items()):
        path = write_demos(tmp_path / name, (20, 30, 10), masks={"few": ["demo_0", "demo_2"]})
        rewrite(path, "obs/flat", partial(normal, np.random.default_rng(number), mean, std, 3))
        rewrite(path, "actions", partial(normal, np.random.default_rng(number), -mean, std, 2))
        with h5py.File(path) as handle:
            observed += [handle[f"data/{demo}/obs/flat"][()] for demo in names]
            acted += [handle[f"data/{demo}/actions"][()] for demo in names]
        entries.append({"path": str(path), **options})
    config = config_for("", method, shard=shard)
    config.train.data = entries
    reads = one_window(config.train, frozenset())
    parts = [make_loaders(config, reads, CPU, rank, 2) for rank in range(2)]
    obs, actions = (np.concatenate(x).astype(np.float64) for x in (observed, acted))
    for data in parts:
        found = data.obs_normalization_stats["flat"]
        np.testing.assert_allclose(found["offset"][0], obs.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found["scale"][0], obs.std(0) + 1e-3, rtol=1e-6)
        found = data.action_normalization_stats["actions"]
        if method == "gaussian":
            expected = actions.mean(0), actions.std(0)
        else:
            half = (actions.max(0) - actions.min(0)) / (2 * 0.999999)
            expected = actions.min(0) + 0.999999 * half, half
        np.testing.assert_allclose(found["offset"][0], expected[0], rtol=1e-6)
        np.testing.assert_allclose(found["scale"][0], expected[1], rtol=1e-6)
    whole = np.concatenate([all_actions(data.train) for data in (parts if shard else parts[:1])])
    scaled = whole * expected[1] + expected[0]
    order = [np.lexsort(x.round(3).T) for x in (scaled, actions)]
    np.testing.assert_allclose(scaled[order[0]], actions[order[1]], atol=1e-2)


def test_unknown_method(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5")
    with pytest.raises(ConfigError, match=r"normalization is 'minmax': it must be null, 'min_max'"):
        make_loaders(
            config_for(path, "minmax"),
            one_window(config_for(path, "minmax").train, frozenset()),
            CPU,
        )


def test_validation_uses_the_training_statistics(tmp_path):
    masks = {"t": ["demo_0", "demo_1"], "v": ["demo_2"]}
    path = write_demos(tmp_path / "demos.hdf5", (20, 30, 10), masks=masks)
    config = config_for(path, "gaussian")
    config.experiment.validate = True
    config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = "t", "v"
    data = make_loaders(config, one_window(config.train, frozenset()), CPU)
    with h5py.File(path) as handle:
        raw = handle["data/demo_2/actions"][()]
        train = np.concatenate([handle[f"data/demo_{i}/obs/flat"][()] for i in range(2)])
    entry = data.action_normalization_stats["actions"]
    np.testing.assert_allclose(
        all_actions(data.valid).numpy(),
        (raw.astype(np.float32) - entry["offset"]) / entry["scale"],
        rtol=1e-6,
    )
    offset = data.obs_normalization_stats["flat"]["offset"][0]
    np.testing.assert_allclose(offset, train.mean(0), rtol=1e-6)


def test_shards_have_the_statistics_of_all_demos(tmp_path):
    path = write_demos(tmp_path / "demos.hdf5", (60, 12, 7, 4))
    whole = make_loaders(
        config_for(path, "gaussian"),
        one_window(config_for(path, "gaussian").train, frozenset()),
        CPU,
    )
    for rank in range(2):
        part = make_loaders(
            config_for(path, "gaussian", shard=True),
            one_window(config_for(path, "gaussian", shard=True).train, frozenset()),
            CPU,
            rank,
            2,
        )
        assert part.train.dataset.store.is_shard
        for name in ("offset", "scale"):
            np.testing.assert_array_equal(
                part.obs_normalization_stats["flat"][name],
                whole.obs_normalization_stats["flat"][name],
            )
            np.testing.assert_array_equal(
                part.action_normalization_stats["actions"][name],
                whole.action_normalization_stats["actions"][name],
            )
