"""Demos held out for validation by `train.validation_fraction`."""

import shutil

import pytest
import torch
from demo_files import write_demos

from raymimic.algo import BC
from raymimic.checkpoints.export import _robomimic_config
from raymimic.config import config_factory
from raymimic.config.checks import problems
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.errors import DatasetError


def config_for(*paths, fraction=0.2, seed=1, **entry):
    config = config_factory("bc")
    config.train.data = [{"path": str(path), **entry} for path in paths]
    config.train.validation_fraction = fraction
    config.train.seed = seed
    config.train.batch_size = 4
    config.train.cuda = False
    config.experiment.validate = True
    config.experiment.rollout.enabled = False
    config.observation.modalities.obs.low_dim = ["flat"]
    return config


def split(config):
    info = inspect_data(config, BC.reads(config))
    assert info.valid is not None
    return [[(d.path.name, d.name) for d in layout.demos] for layout in (info.train, info.valid)]


@pytest.fixture
def path(tmp_path):
    return write_demos(tmp_path / "a.hdf5", [4] * 20, masks={"few": ["demo_0", "demo_1"]})


def test_whole_demos_drawn_by_the_seed(path):
    train, valid = split(config_for(path))
    assert len(valid) == 4
    assert sorted(train + valid) == sorted(("a.hdf5", f"demo_{i}") for i in range(20))
    assert split(config_for(path)) == [train, valid]
    assert split(config_for(path, seed=2))[1] != valid


def test_a_file_that_was_moved_has_the_same_split(path, tmp_path):
    before = split(config_for(path))
    (tmp_path / "there").mkdir()
    assert split(config_for(shutil.move(path, tmp_path / "there"))) == before


def test_each_file_gives_its_share(path, tmp_path):
    other = write_demos(tmp_path / "b.hdf5", [3] * 10)
    for seed in range(5):
        config = config_for(path, other, seed=seed)
        _, valid = split(config)
        from_a = sum(name == "a.hdf5" for name, _ in valid)
        assert len(valid) == 6
        assert from_a in (3, 4, 5)
    data = make_loaders(config, BC.reads(config), torch.device("cpu"))
    assert data.train.num_samples + data.valid.num_samples == 20 * 4 + 10 * 3
    assert data.info.split.startswith("validating on 6 of 30 demos, drawn by seed 4: demo_")


def test_one_demo_stays_on_each_side(path, tmp_path):
    assert [len(part) for part in split(config_for(path, fraction=0.99))] == [1, 19]
    assert [len(part) for part in split(config_for(path, fraction=0.001))] == [19, 1]
    single = write_demos(tmp_path / "single.hdf5", [5])
    for seed in range(5):
        train, _ = split(config_for(single, path, fraction=0.9, seed=seed))
        assert ("single.hdf5", "demo_0") in train
    with pytest.raises(DatasetError, match="has 1 demos to train on and none to spare"):
        split(config_for(single))


def test_a_demo_of_two_entries_lies_on_one_side(path):
    config = config_for(path, fraction=0.5)
    config.train.data = [*config.train.data, {"path": str(path), "filter_key": "few"}]
    for seed in range(5):
        config.train.seed = seed
        train, valid = split(config)
        assert not set(train) & set(valid)


def test_it_draws_from_a_mask_and_within_a_limit(path):
    assert [len(part) for part in split(config_for(path, filter_key="few"))] == [1, 1]
    assert [len(part) for part in split(config_for(path, demo_limit=5))] == [4, 1]


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_no_share(path, fraction):
    (message,) = problems(config_for(path, fraction=fraction))
    assert "'train.validation_fraction' is" in message
    assert "greater than 0 and less than 1" in message


def test_contradictions(path):
    config = config_for(path, fraction=0.1)
    config.experiment.validate = False
    assert "'train.validation_fraction' is 0.1, but 'experiment.validate' is false" in str(
        problems(config)
    )
    config = config_for(path, fraction=0.1)
    config.train.hdf5_validation_filter_key = "few"
    assert "are named twice: 'train.validation_fraction' (0.1) draws them" in str(problems(config))
    config = config_for(path, fraction=None)
    assert "set 'train.validation_fraction' to 0.1, which needs no mask" in str(problems(config))


def test_robomimic_gets_no_fraction(path, caplog):
    exported = _robomimic_config(config_for(path))
    assert "validation_fraction" not in exported["train"]
    assert exported["experiment"]["validate"] is False
    assert "robomimic has no 'train.validation_fraction' (0.2)" in caplog.text
