"""The entry `render` of `env_args`."""

from typing import Any

import pytest

from raymimic.envs.kinds import read_env_meta
from raymimic.envs.render_settings import RenderSettings, difference, settings_of
from raymimic.errors import EnvError


def test_settings_are_read_and_written_without_those_of_the_simulator() -> None:
    given = {"cameras": ["front", "wrist"], "depth": True, "shadows": False, "multisampling": 0}
    settings = RenderSettings.read(given)
    assert settings.serialize() == {**given, "height": 84, "width": 84}
    assert RenderSettings.read(settings.serialize()) == settings
    assert settings.quality == {"shadows": False, "multisampling": 0}
    assert settings.cameras_for({"wrist_depth": "depth", "front": "low_dim"}) == ("wrist",)
    assert settings.cameras_for(None) == ("front", "wrist")


@pytest.mark.parametrize(
    ("render", "said"),
    [
        ({"camera": ["front"]}, r"unknown key 'camera'; did you mean 'cameras'\?"),
        ({"cameras": "front"}, r"'render.cameras' .* is 'front': it must be a list of different"),
        ({"cameras": ["a", "a"]}, "a list of different names"),
        ({"height": 0}, "'render.height' .* is 0: it must be a whole number from 1 to 4096"),
        ({"width": 84.5}, "'render.width' .* is 84.5: it must be a whole number"),
        ({"height": 10**9}, "from 1 to 4096"),
        ({"shadows": 1}, "'render.shadows' .* is 1: it must be true or false"),
        ({"multisampling": True}, "a whole number from 0 to 64"),
        (["front"], "'render' of 'env_args' is .*: it must be an object"),
    ],
)
def test_a_wrong_setting_is_named(render: Any, said: str) -> None:
    with pytest.raises(EnvError, match=said) as refused:
        read_env_meta({"env_name": "Hopper-v5", "render": render})
    assert "\n" not in str(refused.value)


def test_a_difference_to_the_data_is_said_setting_by_setting() -> None:
    data = {"env_name": "Lift", "type": 1, "env_kwargs": {"camera_names": ["agentview"]}}
    same = {"cameras": ["agentview"], "height": 256, "width": 256}
    assert difference(data, {**data, "render": same}) is None
    played = {**data, "render": {**same, "height": 84, "shadows": False}}
    assert (
        difference(data, played) == "height 84, not 256, shadows false, not as the simulator has it"
    )
    assert difference({}, {"render": {"cameras": ["front"]}}) == "cameras front, not none"
    sizes = {"type": 1, "env_kwargs": {"camera_heights": [84, 128]}}
    with pytest.raises(EnvError, match=r"'camera_heights' of .* cameras of one size"):
        settings_of(sizes)
