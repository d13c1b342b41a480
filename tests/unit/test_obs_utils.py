"""Modalities, preparation and normalisation of observations."""

import numpy as np
import pytest
import torch

from raymimic.errors import ConfigError
from raymimic.observations import modality as obs_utils
from raymimic.observations import normalization
from raymimic.observations.shapes import ObsShapes
from raymimic.tensors import map_tensor


def test_shapes_carry_modalities_through_copies():
    shapes = ObsShapes({"camera": [3, 84, 84], "flat": [2]}, {"camera": "rgb"})
    copy = ObsShapes(shapes)
    copy["action"] = (1,)
    assert copy == {"camera": (3, 84, 84), "flat": (2,), "action": (1,)}
    assert [copy.modality(k) for k in copy] == ["rgb", "low_dim", "low_dim"]
    assert "action" not in shapes


def test_images_become_channel_first_in_0_to_1():
    image = torch.arange(2 * 3 * 3, dtype=torch.float32).reshape(1, 2, 3, 3) * 15
    shapes = ObsShapes({"camera": [3, 2, 3], "flat": [2]}, {"camera": "rgb"})
    flat = torch.tensor([[300.0, -1.0]])
    prepared = obs_utils.process_obs_dict({"camera": image, "flat": flat}, shapes)
    assert prepared["camera"].shape == (1, 3, 2, 3)
    assert prepared["camera"][0, 1, 0, 2] == image[0, 0, 2, 1] / 255
    assert torch.equal(prepared["flat"], flat)
    depth = obs_utils.process_obs(torch.full((4, 2, 3, 1), 7.0), "depth")
    assert depth.shape == (4, 1, 2, 3)
    assert depth.max() == 1.0  # as in robomimic
    with pytest.raises(ConfigError, match="'rgbd' is unknown; did you mean 'rgb'"):
        obs_utils.process_obs(depth, "rgbd")


def test_normalising_and_back():
    stats = {"flat": {"offset": np.array([[1.0, 2.0]]), "scale": np.array([[2.0, 4.0]])}}
    x = {"flat": np.array([[[3.0, 2.0]], [[1.0, 6.0]]])}
    normalised = normalization.normalize_dict(x, stats)
    assert normalised["flat"].tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]
    assert normalization.unnormalize_dict(normalised, stats)["flat"].tolist() == x["flat"].tolist()


def test_map_tensor_keeps_the_nesting():
    nested = {"a": torch.ones(1), "b": [torch.ones(2), (torch.ones(3), None)], "c": "text"}
    doubled = map_tensor(nested, lambda x: x * 2)
    assert doubled["b"][1][0].tolist() == [2.0, 2.0, 2.0]
    assert doubled["b"][1][1] is None
    assert doubled["c"] == "text"
    assert doubled["a"].item() == 2 * nested["a"].item()
