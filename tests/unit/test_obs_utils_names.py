"""robomimic's functions of observations, and the one table that they share."""

import numpy as np
import pytest
import torch
from tiny import small_config

from raymimic.algo import algo_factory
from raymimic.config import config_factory
from raymimic.errors import ConfigError
from raymimic.observations.modality import modality_named
from raymimic.utils import env_utils, obs_utils

MAPPING = {"low_dim": ["flat"], "rgb": ["camera"], "depth": ["distance"], "scan": ["laser"]}
IMAGE = np.random.default_rng(0).integers(0, 256, (2, 6, 5, 3), np.uint8)


@pytest.fixture(autouse=True)
def _own_table():
    obs_utils.initialize_obs_modality_mapping_from_dict(MAPPING)


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
def test_observations_are_prepared_by_key_or_by_modality(kind):
    for given in ({"obs_key": "camera"}, {"obs_modality": "rgb"}):
        seen = obs_utils.process_obs(kind(IMAGE), **given)
        assert isinstance(seen, type(kind(IMAGE)))
        wanted = IMAGE.astype(np.float32).transpose(0, 3, 1, 2) / 255
        np.testing.assert_allclose(np.asarray(seen), wanted, rtol=1e-6)
        assert np.asarray(seen).dtype == np.float32
        back = obs_utils.unprocess_obs(seen, **given)
        np.testing.assert_allclose(np.asarray(back), IMAGE, atol=1)
    # As trainings prepare them.
    ours = modality_named("rgb").process(torch.as_tensor(IMAGE))
    np.testing.assert_allclose(np.asarray(obs_utils.process_obs(IMAGE, "rgb")), ours, rtol=1e-6)


def test_a_dict_is_prepared_by_the_table():
    raw = {"camera": IMAGE, "flat": np.ones(3), "laser": np.zeros((7, 2))}
    seen = obs_utils.process_obs_dict(raw)
    assert [list(x.shape) for x in seen.values()] == [[2, 3, 6, 5], [3], [2, 7]]
    back = obs_utils.unprocess_obs_dict(seen)
    assert [x.shape for x in back.values()] == [x.shape for x in raw.values()]
    assert back["camera"].dtype == np.uint8


def test_the_table_is_filled_by_specs_and_configs():
    obs_utils.initialize_obs_utils_with_obs_specs(
        [
            {"obs": {"low_dim": ["a"], "rgb": ["b"]}, "goal": {"rgb": ["b"]}},
            {"obs": {"scan": ["c"]}},
        ]
    )
    assert dict(obs_utils.OBS_KEYS_TO_MODALITIES) == {"a": "low_dim", "b": "rgb", "c": "scan"}
    assert obs_utils.OBS_MODALITIES_TO_KEYS["rgb"] == ["b"]
    with pytest.raises(ConfigError, match="'a' is listed as low_dim and as rgb"):
        obs_utils.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["a"], "rgb": ["a"]}})
    assert obs_utils.key_is_obs_modality("b", "rgb")  # a mistake changes nothing
    config = config_factory("hbc")
    config.observation.planner.modalities.obs.low_dim = ["state"]
    config.observation.actor.modalities.obs.rgb = ["eye"]
    obs_utils.initialize_obs_utils_with_config(config)
    assert obs_utils.has_modality("rgb", ["state", "eye"])
    assert not obs_utils.has_modality("depth", ["state", "eye"])
    assert obs_utils.DEFAULT_ENCODER_KWARGS["rgb"].core_class == "VisualCore"
    assert obs_utils.DEFAULT_ENCODER_KWARGS["rgb"].obs_randomizer_kwargs == {}


def test_a_key_that_was_never_named_is_low_dim(caplog: pytest.LogCaptureFixture):
    assert obs_utils.key_is_obs_modality("latent", "low_dim")
    assert "'latent' has no modality yet" in caplog.text
    obs_utils.OBS_KEYS_TO_MODALITIES.clear()
    with pytest.raises(ConfigError, match="initialize_obs_utils_with_config"):
        obs_utils.process_obs(np.ones(3), obs_key="flat")
    with pytest.raises(ConfigError, match="its key"):
        obs_utils.process_obs(np.ones(3))


def test_shapes_and_channels():
    assert obs_utils.get_processed_shape("rgb", [6, 5, 3]) == [3, 6, 5]
    assert obs_utils.get_processed_shape("low_dim", [4]) == [4]
    assert obs_utils.get_processed_shape("lang", [4]) == [4]
    np.testing.assert_array_equal(obs_utils.center_crop(IMAGE, 4, 3), IMAGE[:, 1:5, 1:4])
    with pytest.raises(ConfigError, match="does not fit"):
        obs_utils.center_crop(IMAGE, 7, 3)
    with pytest.raises(ConfigError, match="has 3 channels"):
        obs_utils.process_obs(IMAGE, "depth")


def test_crops_by_index():
    images = torch.arange(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).float()
    places = torch.tensor([[[0, 0], [2, 1]], [[1, 2], [2, 2]]])
    crops = obs_utils.crop_image_from_indices(images, places, 4, 3)
    for row in range(2):
        for number, (y, x) in enumerate(places[row].tolist()):
            assert torch.equal(crops[row, number], images[row, :, y : y + 4, x : x + 3])
    one = obs_utils.crop_image_from_indices(images, places[:, 0], 4, 3)
    assert torch.equal(one, crops[:, 0])
    with pytest.raises(ConfigError, match="leaves its image"):
        obs_utils.crop_image_from_indices(images, places + 1, 4, 3)
    torch.manual_seed(0)
    drawn, where = obs_utils.sample_random_image_crops(images[None], 4, 3, 5, pos_enc=True)
    assert drawn.shape == (1, 2, 5, 5, 4, 3)
    again = obs_utils.crop_image_from_indices(images[None], where, 4, 3)
    assert torch.equal(drawn[..., :3, :, :], again)
    np.testing.assert_allclose(drawn[0, 1, 2, 3, :, 0] * 6, where[0, 1, 2, 0] + np.arange(4))


def test_dicts_are_normalised_in_place():
    stats = {"a": {"offset": np.full((1, 2), 1.0), "scale": np.full((1, 2), 4.0)}}
    values = {"a": np.array([[5.0, 9.0]])}
    assert obs_utils.normalize_dict(values, stats) is values
    assert values["a"].tolist() == [[1.0, 2.0]]
    assert obs_utils.unnormalize_dict(values, normalization_stats=stats)["a"].tolist() == [[5, 9]]


def test_another_way_to_prepare_is_not_that_of_trainings(caplog: pytest.LogCaptureFixture):
    obs_utils.DepthModality.set_obs_processor(lambda obs: obs + 1)
    assert "not trainings" in caplog.text
    far = np.full((2, 2, 1), 3.0, np.float32)
    assert obs_utils.process_obs(far, obs_key="distance").max() == 4
    assert modality_named("depth").process(torch.as_tensor(far)).max() == 1
    obs_utils.DepthModality.set_obs_processor(None)
    assert obs_utils.process_obs(far, obs_key="distance").max() == 1
    env_utils.set_env_specific_obs_processing(env_type=2)
    assert obs_utils.process_obs(far, obs_key="distance").max() == 1
    env_utils.set_env_specific_obs_processing(env_meta={"type": 1})  # robosuite's are metres
    assert obs_utils.process_obs(far, obs_key="distance").max() == 3


def test_rows_are_repeated():
    rows = obs_utils.repeat_and_stack_observation({"a": torch.tensor([[1], [2]])}, 2)
    assert rows["a"].flatten().tolist() == [1, 1, 2, 2]


def test_an_algorithm_that_is_made_adds_its_keys():
    obs_utils.initialize_obs_modality_mapping_from_dict({"rgb": ["eye"], "scan": ["flat"]})
    config = small_config("bc", keys=["flat", "arm"])
    algo_factory("bc", config, {"flat": [3], "arm": [2]}, 2, "meta")
    table = {"eye": "rgb", "flat": "low_dim", "arm": "low_dim"}
    assert dict(obs_utils.OBS_KEYS_TO_MODALITIES) == table
    assert obs_utils.OBS_MODALITIES_TO_KEYS["low_dim"] == ["flat", "arm"]
