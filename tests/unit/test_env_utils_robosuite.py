"""robosuite's environments as robomimic's `env_utils` makes them."""

from typing import Any

import pytest

from raymimic.envs.env_base import EnvBase
from raymimic.errors import EnvError
from raymimic.utils import env_utils

pytestmark = pytest.mark.slow

LIFT: dict[str, Any] = {
    "env_name": "Lift",
    "type": 1,
    "env_version": "1.5.1",
    "env_kwargs": {
        "robots": "Panda",
        "camera_names": ["agentview"],
        "camera_heights": 32,
        "camera_widths": 28,
        "use_camera_obs": False,
        "reward_shaping": False,
    },
}


def images(env: EnvBase) -> dict[str, tuple[int, ...]]:
    obs = env.reset(seed=0)
    env.close()
    return {k: v.shape for k, v in obs.items() if k.endswith(("_image", "_depth"))}


def test_images_and_distances_are_drawn_if_asked_for(renderer: None):
    image, depth = {"agentview_image": (32, 28, 3)}, {"agentview_depth": (32, 28, 1)}
    for asked, drawn in (
        ({}, {}),
        ({"use_image_obs": True}, image),
        ({"use_image_obs": True, "use_depth_obs": True}, {**image, **depth}),
    ):
        assert images(env_utils.create_env_from_metadata(LIFT, **asked)) == drawn
    with pytest.raises(EnvError, match="no window"):
        env_utils.create_env_from_metadata(LIFT, render=True)


def test_an_environment_to_extract_observations(renderer: None):
    env = env_utils.create_env_for_data_processing(
        LIFT, ["frontview"], camera_height=24, camera_width=20, reward_shaping=True
    )
    assert env.serialize()["env_kwargs"]["reward_shaping"]
    assert not LIFT["env_kwargs"]["reward_shaping"]
    assert env.version.startswith("1.5.")
    env.reset(seed=0)
    assert env.render(height=40, width=30, camera_name="birdview").shape == (40, 30, 3)
    with pytest.raises(EnvError, match="birdvew"):
        env.render(height=40, width=30, camera_name="birdvew")
    assert images(env) == {"frontview_image": (24, 20, 3)}
