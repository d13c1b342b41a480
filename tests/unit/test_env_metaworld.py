"""Meta-World's tasks: their episodes, states and observations, and their cameras."""

import numpy as np
import pytest

from raymimic.envs.kinds import UnknownEnvError, env_from_metadata


def task(name: str = "dial-turn-v3", **render: object) -> dict[str, object]:
    return {"env_name": name, "type": "metaworld", "env_kwargs": {}, **render}


def test_an_episode_follows_from_its_seed_and_can_be_continued_from_a_state() -> None:
    rng = np.random.default_rng(0)
    env, other = env_from_metadata(task()), env_from_metadata(task())
    first = env.reset(seed=3)
    other.reset(seed=5)
    other.step(np.ones(4))
    again = other.reset(seed=3)
    for key, value in first.items():
        np.testing.assert_array_equal(again[key], value)
    assert np.abs(other.reset(seed=4)["object"] - first["object"]).max() > 0.01
    for action in rng.uniform(-1, 1, (7, 4)):
        env.step(action)
    state, seen = env.get_state(), env.get_observation()
    np.testing.assert_array_equal(other.reset_to(state)["flat"], seen["flat"])
    for action in rng.uniform(-1, 1, (7, 4)):  # dial-turn's reward remembers where the dial began
        (obs, *one), (same, *two) = env.step(action), other.step(action)
        np.testing.assert_array_equal(obs["flat"], same["flat"])
        assert one[:2] == two[:2]


def test_a_scripted_policy_solves_the_task_that_it_sees() -> None:
    from metaworld.policies import ENV_POLICY_MAP

    env, policy = env_from_metadata(task("push-v3")), ENV_POLICY_MAP["push-v3"]()
    obs = env.reset(seed=1)
    assert {key: value.shape for key, value in obs.items()} == {
        "hand_pos": (3,),
        "gripper": (1,),
        "object": (14,),
        "goal": (3,),
        "flat": (39,),
    }
    steps = 0
    while not env.is_success()["task"] and steps < 200:
        obs, _, _, info = env.step(env.clip(policy.get_action(obs["flat"])))
        assert bool(info["success"]) == env.is_success()["task"]
        steps += 1
    assert steps < 200
    assert np.linalg.norm(obs["object"][:3] - obs["goal"]) < 0.05


def test_an_unknown_task_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownEnvError, match=r"no task 'push-v2'; did you mean 'push-v3'\?"):
        env_from_metadata(task("push-v2"))


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_cameras_draw_what_meta_worlds_own_renderer_draws() -> None:
    from metaworld.env_dict import ENV_CLS_MAP

    render = {"cameras": ["corner", "gripperPOV"], "height": 24, "width": 24}
    env = env_from_metadata(task("push-v3", render=render))
    obs = env.reset(seed=2)
    theirs = ENV_CLS_MAP["push-v3"](
        render_mode="rgb_array", camera_name="corner", height=24, width=24
    )
    theirs.set_state(env.base_env.data.qpos, env.base_env.data.qvel)  # type: ignore[attr-defined]
    theirs.model.site("goal").pos = env.base_env.model.site("goal").pos  # type: ignore[attr-defined]
    theirs.set_state(env.base_env.data.qpos, env.base_env.data.qvel)  # type: ignore[attr-defined]
    assert np.abs(obs["corner_image"].astype(int) - theirs.render()).mean() < 0.5
    assert obs["gripperPOV_image"].shape == (24, 24, 3)
    assert env.serialize()["render"] == {**render, "depth": False}
    theirs.close()
    env.close()


@pytest.mark.usefixtures("renderer")
def test_the_first_image_shows_the_goal_where_it_is() -> None:
    plain = {"shadows": False, "reflections": False, "multisampling": 0}
    render = {"cameras": ["corner"], "height": 64, "width": 64, **plain}
    env = env_from_metadata(task("faucet-open-v3", render=render))
    first = env.reset(seed=2)["corner_image"]
    np.testing.assert_array_equal(env.reset_to(env.get_state())["corner_image"], first)
    env.close()
