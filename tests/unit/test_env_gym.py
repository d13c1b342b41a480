"""EnvGym is gymnasium under robomimic's interface."""

import logging
import os
import sys
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from raymimic.envs.env_base import EnvType
from raymimic.envs.env_gym import EnvGym, current_name
from raymimic.envs.fit import read
from raymimic.envs.kinds import env_from_metadata
from raymimic.envs.seeds import Purpose, episode_seeds, evaluation_seeds, final_seeds
from raymimic.errors import ConfigError, EnvError, RaymimicError
from raymimic.rollout.video import captioned, enable_rendering, encode_mp4

HOPPER = {"env_name": "Hopper-v5", "type": 2, "env_kwargs": {}}


class CountingEnv(gymnasium.Env):
    """Counts actions up; solved at 3; terminates at ``end``; nested dictionary observations."""

    observation_space = gymnasium.spaces.Dict(
        {
            "count": gymnasium.spaces.Box(-np.inf, np.inf, (1,)),
            "robot": gymnasium.spaces.Dict({"arm": gymnasium.spaces.Box(-1, 1, (2,))}),
        }
    )
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def __init__(self, end=5, render_mode=None):
        self.end, self.render_mode = end, render_mode

    def _obs(self):
        return {"count": np.array([self.count]), "robot": {"arm": np.array([0.5, -0.5])}}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0.0
        return self._obs(), {}

    def step(self, action):
        self.count += float(action[0])
        return self._obs(), 2.0, self.count >= self.end, False, {"is_success": self.count == 3}


@pytest.fixture(autouse=True)
def _counting_env():
    gymnasium.register("Counting-v0", entry_point=CountingEnv, max_episode_steps=4)
    yield
    gymnasium.registry.pop("Counting-v0")


def test_termination_and_time_limit_are_kept_apart():
    env = EnvGym("Counting-v0", end=2)
    env.reset(seed=0)
    _, reward, done, info = env.step(np.ones(1))
    assert (reward, done, info["terminated"], info["truncated"]) == (2.0, False, False, False)
    _, _, done, info = env.step(np.ones(1))
    assert (done, info["terminated"], info["truncated"]) == (True, True, False)
    assert env.is_done()

    env = EnvGym("Counting-v0")
    env.reset(seed=0)
    for _ in range(4):
        _, _, done, info = env.step(np.ones(1))
    assert (done, info["terminated"], info["truncated"]) == (True, False, True)


def test_dict_observations_keep_their_keys_and_are_copies():
    env = EnvGym("Counting-v0")
    first = env.reset(seed=0)
    second, *_ = env.step(np.ones(1))
    assert set(first) == {"count", "robot/arm"}
    assert first["count"] == 0.0
    assert second["count"] == 1.0
    np.testing.assert_array_equal(env.get_observation()["robot/arm"], [0.5, -0.5])


def test_array_observations_are_flat():
    env = EnvGym("Hopper-v5")
    obs = env.reset(seed=3)
    raw, _ = gymnasium.make("Hopper-v5").reset(seed=3)
    assert set(obs) == {"flat"}
    np.testing.assert_array_equal(obs["flat"], raw)
    assert env.action_dimension == 3


def test_success_comes_from_info_of_the_last_step():
    env = EnvGym("Counting-v0")
    env.reset(seed=0)
    seen = []
    for _ in range(4):
        env.step(np.ones(1))
        seen.append(env.is_success()["task"])
    assert seen == [False, False, True, False]
    env.reset()
    assert env.is_success() == {"task": False}


@pytest.mark.parametrize(
    ("old", "current"),
    [
        ("Walker2d-v2", "Walker2d-v5"),
        ("Hopper-v3", "Hopper-v5"),
        ("walker2d-medium-expert-v2", "Walker2d-v5"),
        ("halfcheetah-random-v0", "HalfCheetah-v5"),
    ],
)
def test_old_names_map_to_the_current_version_with_a_warning(old, current, caplog):
    current_name.cache_clear()  # another test may have been told already
    with caplog.at_level(logging.WARNING, "raymimic"):
        assert current_name(old) == current
    assert f"'{old}' is played as '{current}'" in caplog.text


def test_current_names_stay_without_a_warning(caplog):
    assert current_name("Walker2d-v5") == "Walker2d-v5"
    assert current_name("Pendulum-v1") == "Pendulum-v1"
    assert not caplog.records
    assert EnvGym("Hopper-v2").serialize()["env_name"] == "Hopper-v5"


def test_serialize_round_trip():
    env = EnvGym("Hopper-v5", terminate_when_unhealthy=False)
    meta = env.serialize()
    assert meta == {
        "env_name": "Hopper-v5",
        "type": EnvType.GYM_TYPE,
        "env_kwargs": {"terminate_when_unhealthy": False},
    }
    again = env_from_metadata(meta)
    assert again.serialize() == meta
    np.testing.assert_array_equal(env.reset(seed=1)["flat"], again.reset(seed=1)["flat"])


def test_metadata_without_kwargs_and_another_name():
    env = env_from_metadata({"env_name": "Hopper-v5", "type": 2}, env_name="Walker2d-v5")
    assert env.name == "Walker2d-v5"


def test_reset_to_reproduces_a_state_and_what_follows():
    env = EnvGym("Walker2d-v5")
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(7):
        env.step(rng.uniform(-1, 1, 6))
    state, obs = env.get_state(), env.get_observation()
    assert state["states"].shape == (1 + 9 + 9,)
    actions = rng.uniform(-1, 1, (5, 6))
    original = [env.step(action)[0]["flat"] for action in actions]

    np.testing.assert_array_equal(env.reset_to(state)["flat"], obs["flat"])
    first = [env.step(action)[0]["flat"] for action in actions]
    env.reset(seed=5)
    env.reset_to(state)
    second = [env.step(action)[0]["flat"] for action in actions]
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, original, rtol=1e-5, atol=1e-5)


def test_states_of_another_model_are_refused():
    with pytest.raises(EnvError, match=r"'Hopper-v5' has states of shape \(13,\), not \(19,\)"):
        EnvGym("Hopper-v5").reset_to({"states": np.zeros(19)})
    with pytest.raises(EnvError, match="no MuJoCo environment"):
        EnvGym("Counting-v0").get_state()


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"env_name": "Waker2d-v5", "type": 2}, "did you mean 'Walker2d-v5'"),
        ({"env_name": "Hopper-v5", "type": 2, "env_kwargs": {"nonsense": 1}}, "cannot be made"),
        ({"env_name": "CartPole-v1", "type": 2}, "only vectors can be played"),
        ({"env_name": "Lift", "type": 3}, "is of type 3"),
        ({"type": 2}, "lacks 'env_name'"),
        ({"env_name": "no_such_module_x:Foo-v0"}, "no_such_module_x"),
    ],
)
def test_what_cannot_be_made_is_explained(meta, message):
    with pytest.raises(RaymimicError, match=message):
        env_from_metadata(meta)


def test_frames_need_an_environment_made_for_rendering():
    env = EnvGym("Hopper-v5")
    env.reset(seed=0)
    with pytest.raises(EnvError, match="render_offscreen"):
        env.render()


def test_render_and_encode_or_say_what_is_missing(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    try:
        enable_rendering(HOPPER)
    except EnvError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert "libEGL" in str(error) or "egl:" in str(error)  # noqa: PT017
        pytest.skip(str(error))
    env = env_from_metadata(HOPPER, render=True)
    env.reset(seed=0)
    frame = env.render()
    assert frame.shape == (480, 480, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 5  # a picture, not a blank
    small = env.render(height=48, width=96)
    np.testing.assert_array_equal(small, frame[::10, ::5])
    mp4 = encode_mp4([frame, frame, frame])
    assert mp4[4:8] == b"ftyp"


@pytest.mark.usefixtures("renderer")
def test_cameras_draw_what_gymnasium_draws_and_depth_is_in_metres():
    render = {"cameras": ["track", "default"], "height": 20, "width": 30, "depth": True}
    env = env_from_metadata({**HOPPER, "render": render})
    theirs = {
        mode: gymnasium.make("Hopper-v5", render_mode=mode, width=30, height=20)
        for mode in ("rgb_array", "depth_array")
    }
    tracked = gymnasium.make(
        "Hopper-v5", render_mode="rgb_array", width=30, height=20, camera_name="track"
    )
    for each in (*theirs.values(), tracked):
        each.reset(seed=4)
    obs = env.reset(seed=4)
    picture = env.render(mode="rgb_array", height=20, width=30, camera_name="track")
    np.testing.assert_array_equal(picture, tracked.render())
    for _ in range(3):
        np.testing.assert_array_equal(obs["default_image"], theirs["rgb_array"].render())
        np.testing.assert_array_equal(obs["track_image"], tracked.render())
        model, depth = env.env.unwrapped.model, theirs["depth_array"].render()
        near, far = (
            plane * model.stat.extent for plane in (model.vis.map.znear, model.vis.map.zfar)
        )
        metres = near / (1 - depth.astype(np.float64) * (1 - near / far))
        close = metres < 20
        assert obs["default_depth"].dtype == np.float32
        np.testing.assert_allclose(obs["default_depth"][..., 0][close], metres[close], rtol=1e-3)
        assert 0 < close.sum() < close.size
        action = np.full(3, 0.5)
        obs, *_ = env.step(action)
        for each in (*theirs.values(), tracked):
            each.step(action)
    state, last = env.get_state(), env.get_observation()
    env.reset(seed=9)
    again = env.reset_to(state)
    assert np.abs(again["track_image"].astype(int) - last["track_image"]).mean() < 3
    assert env.render().shape == (240, 2 * 360, 3)
    assert env.serialize() == {**HOPPER, "render": render}
    for each in (*theirs.values(), tracked, env):
        each.close()


@pytest.mark.usefixtures("renderer")
def test_settings_change_images_and_only_images_that_are_read_are_drawn():
    render = {"cameras": ["track", "default"], "height": 32, "width": 32}
    plain = {"shadows": False, "reflections": False, "multisampling": 0}
    meta = {**HOPPER, "env_name": "Walker2d-v5"}
    drawn = []
    for settings in ({}, plain, {"shadows": False}):
        reads = {"track_image": "rgb", "flat": "low_dim"}
        env = env_from_metadata({**meta, "render": {**render, **settings}}, reads=reads)
        obs = env.reset(seed=0)
        assert set(obs) == {"flat", "track_image"}
        drawn.append(obs["track_image"].astype(int))
        env.close()
    assert 0 < np.abs(drawn[0] - drawn[2]).mean() < np.abs(drawn[0] - drawn[1]).mean() < 20
    env = env_from_metadata({**meta, "render": render}, reads={"flat": "low_dim"})
    assert set(env.reset(seed=0)) == {"flat"}
    with pytest.raises(EnvError, match=r"names the camera 'trak', .*did you mean 'track'") as error:
        env_from_metadata({**meta, "render": {"cameras": ["trak"]}}).reset(seed=0)
    assert "\n" not in str(error.value)


def test_a_picture_of_ones_own_is_an_image_of_any_size():
    halves = np.zeros((8, 12, 3), np.uint8)
    halves[:, 6:] = 200

    class Drawing(CountingEnv):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}

        def render(self):
            return halves

    gymnasium.register("Drawing-v0", entry_point=Drawing)
    meta = {"env_name": "Drawing-v0", "type": 2}
    try:
        env = env_from_metadata(
            {**meta, "render": {"cameras": ["default"], "height": 2, "width": 3}}
        )
        image = env.reset(seed=0)["default_image"]
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image[..., 0], [[0, 100, 200]] * 2)
        assert set(env.step(np.ones(1))[0]) == {"count", "robot/arm", "default_image"}
        for wrong in ({"cameras": ["front"]}, {"cameras": ["default"], "depth": True}):
            with pytest.raises(EnvError, match=r"is not simulated by MuJoCo, .* of any size"):
                env_from_metadata({**meta, "render": wrong}).reset(seed=0)
    finally:
        gymnasium.registry.pop("Drawing-v0")


def test_an_image_that_no_camera_gives_is_explained():
    with pytest.raises(EnvError, match=r"'track_image', which .* \{\"cameras\": \[\"track\"\]"):
        read({"flat": np.zeros(3)}, "track_image")


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="OGBench needs Python below 3.13")
def test_ogbenchs_ids_are_known_where_it_is_installed():
    env = env_from_metadata({"env_name": "pointmaze-medium-v0", "type": 2})
    assert env.reset(seed=0)["flat"].shape == (2,)
    state = env.get_state()
    moved, *_ = env.step(np.ones(2))
    assert np.abs(env.reset_to(state)["flat"] - moved["flat"]).max() > 0.01
    with pytest.raises(EnvError, match=r"'cube-sngle-v0' .*did you mean 'cube-single-v0'"):
        env_from_metadata({"env_name": "cube-sngle-v0", "type": 2})


def ogbench_goal(env):
    """The task, the observation of its goal, and where the goal is drawn."""
    base = env.env.unwrapped
    places = base.data.mocap_pos if hasattr(base, "compute_ob_info") else base.cur_goal_xy
    return [base.cur_task_id, *np.ravel(base._cur_goal_ob), *np.ravel(places)]


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="OGBench needs Python below 3.13")
@pytest.mark.parametrize("name", ["cube-single-v0", "scene-v0", "puzzle-3x3-v0"])
def test_the_goal_of_ogbench_follows_from_the_seed_and_comes_back_with_a_state(name):
    env = env_from_metadata({"env_name": name, "type": 2})
    first = env.reset(seed=5)["flat"]
    goal = ogbench_goal(env)
    for _ in range(5):
        env.step(np.ones(env.action_dimension))
    state = env.get_state()
    others = []
    for seed in (6, 7, 8, 9, 10):
        np.random.seed(seed)  # of the process: the episode does not depend on it
        before = np.random.get_state()[1].copy()
        env.reset(seed=seed)
        np.testing.assert_array_equal(np.random.get_state()[1], before)
        others.append(ogbench_goal(env))
    assert len({other[0] for other in others}) > 1  # the seed chooses among the tasks
    assert goal not in others
    other = env_from_metadata({"env_name": name, "type": 2})
    state_alone = {"states": state["states"]}
    for each in (env, other):
        each.reset_to({**state, "seed": np.int64(state["seed"])})
        np.testing.assert_array_equal(each.get_state()["states"], state["states"])
        assert ogbench_goal(each) == goal
        each.reset_to(state_alone)  # the present episode goes on
        assert ogbench_goal(each) == goal
    np.testing.assert_array_equal(other.reset(seed=5)["flat"], first)
    other.reset()
    with pytest.raises(EnvError, match=r"does not hold the goal .* give it as 'seed'"):
        other.reset_to(state_alone)


def test_a_backend_that_cannot_work_is_named(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(EnvError, match=r"'Hopper-v5' cannot be rendered here \(nonsense: .*") as e:
        enable_rendering(HOPPER)
    assert "\n" not in str(e.value)
    assert os.environ["MUJOCO_GL"] == "nonsense"


def test_seeds_of_different_purposes_never_coincide():
    groups = [
        episode_seeds(purpose, base, stage, 50)
        for purpose in Purpose
        for base in (0, 1, 44_739_241, 44_739_242, 2**31, 2**63 - 1)
        for stage in (0, 1, 2**20 - 1)
    ]
    assert len(set().union(*groups)) == sum(len(g) for g in groups) == 54 * 50
    assert evaluation_seeds(3, 7, 5)[:3] == evaluation_seeds(3, 7, 3)
    assert not set(evaluation_seeds(0, 0, 2**16)) & set(final_seeds(0, 2**16))
    assert evaluation_seeds(0, 2**20 + 4, 1) == evaluation_seeds(0, 4, 1)
    with pytest.raises(ConfigError, match="65,537 episodes are too many: ask for at most 65,536"):
        evaluation_seeds(0, 0, 2**16 + 1)
    with pytest.raises(ValueError, match="no seeds"):
        evaluation_seeds(-1, 0, 1)


@pytest.mark.parametrize("base", [0, 44_739_241, 44_739_242, 1_700_000_000, 2**63 - 1, 10**30])
def test_seeds_are_taken_by_generators_of_torch(base: int) -> None:
    seeds = [*final_seeds(base, 2), *evaluation_seeds(base, 2**20 - 1, 2**16)[-1:]]
    drawn = [torch.rand((), generator=torch.Generator().manual_seed(s)).item() for s in seeds]
    assert len(set(drawn)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_video_of_odd_size_keeps_its_picture(capfd: pytest.CaptureFixture[str]) -> None:
    import imageio

    frame = np.full((31, 45, 3), 200, np.uint8)
    film = imageio.mimread(encode_mp4([frame, frame]), "mp4")
    assert film[0].shape == (32, 46, 3)
    assert np.abs(film[0].astype(int) - 200).max() < 8
    with pytest.raises(ValueError, match="of several sizes"):
        encode_mp4([frame, frame[:16]])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("ground", "size"), [(255, 84), (0, 84), (255, 31), (0, 480)])
def test_a_caption_is_readable_on_any_ground_and_leaves_the_rest(ground: int, size: int) -> None:
    frame = np.full((size, size, 3), ground, np.uint8)
    one, other = (
        captioned(frame, "return 12.5", "step 7"),
        captioned(frame, "return 12.5", "step 8"),
    )
    assert len(one) >= 240
    assert len(one) % size == 0
    changed = (one != ground).any(axis=-1)
    assert {0, 255} <= set(np.unique(one))
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert 20 < np.ptp(rows) < len(one) / 4
    assert 50 < np.ptp(columns) < len(one) / 2
    assert (one != other).any()
    assert (frame == ground).all()


@pytest.mark.parametrize("picture", [None, np.ones((4, 4, 3)), [np.zeros((4, 4, 3), np.uint8)]])
def test_what_is_no_picture_is_refused(picture: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    env = EnvGym("Pendulum-v1", render_offscreen=True)
    env.reset(seed=0)
    monkeypatch.setattr(type(env.env.unwrapped), "render", lambda self: picture)
    with pytest.raises(EnvError, match=r"'Pendulum-v1' renders .*, and not a picture \[H, W, 3\]"):
        env.render()
