"""Rotations of six numbers, against scipy's."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from demo_files import write_demos
from scipy.spatial.transform import Rotation

from raymimic.config import BaseConfig, config_factory
from raymimic.data.reads import one_window
from raymimic.data.rotations import as_played
from raymimic.data.training_data import inspect_data, make_loaders
from raymimic.envs.fit import PolicyInterface
from raymimic.errors import DatasetError

RNG = np.random.default_rng(0)


def six_of(rotations: Rotation) -> np.ndarray:
    """Six numbers as robomimic's: the first two rows of the matrix."""
    return rotations.as_matrix()[:, :2].reshape(-1, 6)


def hard_rotations() -> Rotation:
    """Random ones; none, tiny ones, and half turns, at which quaternions change their sign."""
    axes = np.concatenate([np.eye(3), -np.eye(3), RNG.normal(size=(20, 3))])
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    angles = [0.0, 1e-9, 1e-5, np.pi / 2, np.pi - 1e-7, np.pi]
    hard = Rotation.from_rotvec(np.concatenate([axes * angle for angle in angles]))
    return Rotation.concatenate([hard, Rotation.random(200, rng=RNG)])


def played_as(form: str, six: np.ndarray) -> np.ndarray:
    return as_played(six, {"rot": 6}, {"rot": form})


def test_six_numbers_come_back_as_the_rotation() -> None:
    rotations = hard_rotations()
    six = six_of(rotations)
    vectors = played_as("rot_axis_angle", six)
    assert (Rotation.from_rotvec(vectors).inv() * rotations).magnitude().max() < 1e-7
    assert np.linalg.norm(vectors, axis=1).max() < np.pi + 1e-7
    some = rotations.magnitude() < np.pi - 1e-3  # a half turn has two vectors
    np.testing.assert_allclose(vectors[some], rotations.as_rotvec()[some], atol=1e-7)
    turned = Rotation.from_euler("XYZ", played_as("rot_euler", six))
    assert (turned.inv() * rotations).magnitude().max() < 1e-7


def test_euler_angles_are_around_the_moving_axes() -> None:
    angles = RNG.uniform([-3, -1.5, -3], [3, 1.5, 3], (100, 3))
    six = six_of(Rotation.from_euler("XYZ", angles))
    np.testing.assert_allclose(played_as("rot_euler", six), angles, atol=1e-9)


def test_six_numbers_of_a_network_need_not_be_orthonormal() -> None:
    six = RNG.normal(size=(50, 6))
    # Gram and Schmidt's rows are those of a QR decomposition with a positive diagonal.
    q, r = np.linalg.qr(six.reshape(-1, 2, 3).transpose(0, 2, 1))
    expected = (q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None]).transpose(0, 2, 1)
    matrices = Rotation.from_rotvec(played_as("rot_axis_angle", six)).as_matrix()
    np.testing.assert_allclose(matrices[:, :2], expected, atol=1e-9)
    for form in ("rot_axis_angle", "rot_euler"):
        np.testing.assert_allclose(played_as(form, six * 7), played_as(form, six), atol=1e-9)
        assert np.isfinite(played_as(form, np.zeros((2, 6)))).all()
        assert np.isfinite(played_as(form, np.ones((2, 6)))).all()


def test_only_the_named_keys_are_converted_in_their_order() -> None:
    rotations = Rotation.random(5, rng=RNG)
    pos, grip = RNG.normal(size=(5, 3)), RNG.normal(size=(5, 1))
    actions = np.hstack([grip, six_of(rotations), pos]).astype(np.float32)
    widths = {"grip": 1, "rot": 6, "pos": 3}
    played = as_played(actions, widths, {"rot": "rot_axis_angle"})
    expected = np.hstack([grip, rotations.as_rotvec(), pos])
    np.testing.assert_allclose(played, expected, atol=1e-5)
    assert played.dtype == np.float32
    sequences = as_played(actions.reshape(5, 1, 10), widths, {"rot": "rot_axis_angle"})
    np.testing.assert_array_equal(sequences[:, 0], played)
    assert as_played(actions, widths, {}) is actions


def config_for(path: Path) -> BaseConfig:
    config = config_factory("bc")
    config.train.data = str(path)
    config.train.action_keys = ["action_dict/rel_pos", "action_dict/rel_rot_6d"]
    config.train.action_config = {
        "action_dict/rel_pos": {"normalization": "min_max"},
        "action_dict/rel_rot_6d": {"normalization": "gaussian", "format": "rot_6d"},
    }
    config.train.batch_size = 10
    config.experiment.rollout.enabled = False
    config.observation.modalities.obs.low_dim = ["flat"]
    return config


def test_a_training_learns_six_numbers_and_knows_the_range_of_three(tmp_path: Path) -> None:
    path = write_demos(tmp_path / "demos.hdf5", (30, 20))
    vectors = []
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            n = demo.attrs["num_samples"]
            vectors.append(RNG.uniform(-1, 1, (n, 3)))
            demo["action_dict/rel_pos"] = RNG.normal(size=(n, 3))
            demo["action_dict/rel_rot_6d"] = six_of(Rotation.from_rotvec(vectors[-1]))
    config = config_for(path)
    data = make_loaders(config, one_window(config.train, frozenset()), torch.device("cpu"))
    assert data.shape_meta["ac_dim"] == 9
    assert PolicyInterface.of(config, data.shape_meta).action_dim == 6
    low, high = data.action_range
    np.testing.assert_allclose(low[3:], np.concatenate(vectors).min(0), atol=1e-6)
    np.testing.assert_allclose(high[3:], np.concatenate(vectors).max(0), atol=1e-6)
    stats = data.action_normalization_stats["action_dict/rel_rot_6d"]
    six = six_of(Rotation.from_rotvec(np.concatenate(vectors)))
    np.testing.assert_allclose(stats["offset"][0], six.mean(0), atol=1e-6)
    np.testing.assert_allclose(stats["scale"][0], six.std(0), atol=1e-6)

    config.train.action_config["action_dict/rel_pos"]["format"] = "rot_6d"
    with pytest.raises(DatasetError, match=r"'action_dict/rel_pos' has 3 components, but .* has 6"):
        inspect_data(config, one_window(config.train, frozenset()))
