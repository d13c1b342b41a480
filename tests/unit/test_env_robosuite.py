"""robosuite's environments: controllers, states, images, and files of other packages' forms."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymimic.envs.env_base import EnvBase
from raymimic.envs.kinds import UnknownEnvError, env_from_metadata
from raymimic.errors import EnvError

pytestmark = pytest.mark.slow

# As robosuite 1.4 wrote it, and robomimic's datasets hold it.
OSC_POSE = {
    "type": "OSC_POSE",
    "input_max": 1,
    "input_min": -1,
    "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
    "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5],
    "kp": 120,
    "damping": 0.8,
    "impedance_mode": "fixed",
    "kp_limits": [0, 300],
    "damping_limits": [0, 7],
    "position_limits": None,
    "orientation_limits": None,
    "uncouple_pos_ori": True,
    "control_delta": True,
    "interpolation": None,
    "ramp_ratio": 0.2,
}


def described(name: str, render: Any = None, delta: bool = True, **env_kwargs: Any) -> Any:
    """`env_args` of the form that robomimic's datasets of robosuite 1.4 have."""
    kwargs = {
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_object_obs": True,
        "use_camera_obs": False,
        "control_freq": 20,
        "controller_configs": {**OSC_POSE, "control_delta": delta},
        "robots": ["Panda"],
        "camera_depths": False,
        "camera_heights": 84,
        "camera_widths": 84,
        "render_gpu_device_id": 0,
        "reward_shaping": False,
        **env_kwargs,
    }
    meta = {"env_name": name, "env_version": "1.4.1", "type": 1, "env_kwargs": kwargs}
    return meta if render is None else {**meta, "render": render}


def far_apart(one: Any, other: Any) -> float:
    """The greatest difference of two observations."""
    assert set(one) == set(other)
    return max(float(np.abs(one[key].astype(float) - other[key]).max()) for key in one)


@pytest.fixture(scope="module")
def can(renderer: None) -> Iterator[EnvBase]:
    """Picking a can, seen by two cameras."""
    render = {"cameras": ["agentview", "robot0_eye_in_hand"], "depth": True}
    render |= {
        "height": 40,
        "width": 48,
        "shadows": False,
        "reflections": False,
        "multisampling": 0,
    }
    env = env_from_metadata(described("PickPlaceCan", render))
    yield env
    env.close()


def test_a_recorded_state_gives_the_observation_of_its_step(can: EnvBase) -> None:
    first = can.reset(seed=3)
    assert not any(key.endswith("proprio-state") for key in first)
    assert first["object"].shape == (14,)
    assert first["robot0_joint_pos"].shape == (7,)
    for _ in range(8):
        seen, reward, done, info = can.step(np.array([0.4, 0.2, -0.6, 0.1, 0, 0.3, 1]))
    assert (reward, done, info["is_success"]) == (0.0, False, {"task": False})
    assert far_apart(first, seen) > 0.1
    state = can.get_state()
    assert far_apart(can.reset(seed=4), seen) > 0.1
    # Its form in a dataset: the scene is an attribute of the demo, and its paths another machine's.
    import robosuite

    here = str(Path(robosuite.__file__).parent)
    assert here in state["model"]
    elsewhere = state["model"].replace(here, "/home/someone/robosuite")
    again = can.reset_to({"states": state["states"], "model_file": elsewhere})
    bodies = {key: value for key, value in seen.items() if not key.endswith(("_image", "_depth"))}
    assert far_apart(bodies, {key: again[key] for key in bodies}) < 1e-3
    for key in set(seen) - set(bodies):
        assert np.abs(again[key].astype(float) - seen[key]).mean() < 0.1
    with pytest.raises(EnvError, match=r"has states of shape \(71,\), not \(70,\)"):
        can.reset_to({"states": state["states"][1:]})
    with pytest.raises(EnvError, match=r"cannot load the scene .* 1.4.1, and 1.5.1 is installed"):
        can.reset_to({**state, "model": "<mujoco/>"})
    # Episodes follow from their seeds, and leave NumPy's generator to others.
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    assert far_apart(can.reset(seed=3), first) == 0
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # type: ignore[index]


def test_images_are_those_of_robosuites_own_renderer(can: EnvBase) -> None:
    import mujoco
    from robosuite.utils.binding_utils import MjRenderContextOffscreen

    seen, sim = can.reset(seed=5), can.base_env.sim  # type: ignore[attr-defined]
    theirs = MjRenderContextOffscreen(sim, device_id=-1)
    theirs.vopt.geomgroup[:2] = 0, 1  # as robosuite sets them for its observations
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        theirs.scn.flags[flag] = 0
    extent, planes = sim.model.stat.extent, sim.model.vis.map
    near, far = planes.znear * extent, planes.zfar * extent
    for camera in ("agentview", "robot0_eye_in_hand"):
        image, depth = sim.render(48, 40, camera_name=camera, depth=True)
        np.testing.assert_array_equal(seen[f"{camera}_image"], image[::-1])
        metres = near / (1 - depth[::-1].astype(np.float64) * (1 - near / far))
        np.testing.assert_allclose(seen[f"{camera}_depth"][..., 0], metres, rtol=1e-4)
    assert seen["agentview_image"].shape == (40, 48, 3)
    assert can.render().shape == (240, 2 * 288, 3)
    with pytest.raises(EnvError, match=r"the camera 'agentveiw', .*did you mean 'agentview'"):
        env_from_metadata(described("Lift", {"cameras": ["agentveiw"]})).reset(seed=0)


def test_an_absolute_controller_of_1_4_stays_absolute_and_a_delta_a_delta() -> None:
    from scipy.spatial.transform import Rotation

    absolute = env_from_metadata(described("Lift", delta=False))
    obs = absolute.reset(seed=0)
    assert not any(key.endswith("_image") for key in obs)
    arm = absolute.base_env.robots[0].part_controllers["right"]  # type: ignore[attr-defined]
    place = obs["robot0_eef_pos"] + [0.05, 0.08, 0.1]
    assert place[2] > 1  # beyond the controller's inputs, which are those of deltas
    pose = Rotation.from_matrix(arm.ref_ori_mat).as_rotvec()
    action = np.concatenate([place, pose, [-1]])
    np.testing.assert_array_equal(absolute.clip(action), action)
    for _ in range(50):
        obs, *_ = absolute.step(action)
    np.testing.assert_allclose(obs["robot0_eef_pos"], place, atol=2e-3)
    assert arm.damping_ratio_max[0] == 7
    np.testing.assert_allclose(arm.kd, 2 * np.sqrt(120) * 0.8)
    assert absolute.base_env.lite_physics is False  # type: ignore[attr-defined]
    absolute.close()

    # A robot that stands turned: 1.4's deltas are along the axes of the world.
    delta = env_from_metadata(
        described("TwoArmLift", robots=["Panda", "Panda"], env_configuration="single-arm-opposed")
    )
    start = delta.reset(seed=0)
    for _ in range(10):
        obs, *_ = delta.step(np.array([1, 0, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0, 0, -1.0]))
    for robot, axis in ((0, 0), (1, 1)):
        moved = obs[f"robot{robot}_eef_pos"] - start[f"robot{robot}_eef_pos"]
        assert moved[axis] > 0.05
        assert np.abs(np.delete(moved, axis)).max() < 0.03
    low, high = delta.action_bounds
    np.testing.assert_array_equal([low, high], [[-1] * 14, [1] * 14])
    delta.close()


MIMICGEN = """
from robosuite.environments.manipulation.lift import Lift

class Lift_D1(Lift):
    '''Takes its objects from the episode, as robocasa's environments do.'''

    def __init__(self, *args, layout_ids=None, **kwargs):
        self.layout_ids, self.layouts = layout_ids, []
        super().__init__(*args, **kwargs)

    def _load_model(self):
        super()._load_model()
        self.layouts.append(self._ep_meta.get("layout_id"))
"""


def test_a_file_of_the_form_of_mimicgen_or_robocasa_plays_where_its_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = described("Lift_D1", layout_ids=[2, 3])
    with pytest.raises(UnknownEnvError, match=r"no environment 'Lift_D1'; did you mean 'Lift'\?"):
        env_from_metadata(meta)
    (tmp_path / "mimicgen.py").write_text(MIMICGEN)
    monkeypatch.syspath_prepend(tmp_path)
    env = env_from_metadata(meta)
    monkeypatch.delitem(sys.modules, "mimicgen")
    env.reset(seed=1)
    task = env.base_env
    assert task.layout_ids == [2, 3]  # type: ignore[attr-defined]
    state = {**env.get_state(), "ep_meta": json.dumps({"layout_id": 3, "lang": "lift the cube"})}
    seen = env.get_observation()
    task.layouts.clear()  # type: ignore[attr-defined]
    assert far_apart(env.reset_to(state), seen) < 1e-6
    assert json.loads(env.get_state()["ep_meta"])["lang"] == "lift the cube"
    env.reset(seed=2)
    assert task.layouts == [3, None]  # type: ignore[attr-defined]
    assert env.serialize() == meta
    env.close()


def test_reward_and_success_of_a_step_agree_when_the_cube_rises_in_its_last_substep() -> None:
    # One substep a step: the last substep of each is the only one.
    env = env_from_metadata(described("Lift", control_freq=500))
    try:
        env.reset(seed=0)
        state = env.get_state()
        joint = env.base_env.cube.joints[0]
        up = env.base_env.sim.model.get_joint_qvel_addr(joint)[0] + 2
        state["states"][1 + env.base_env.sim.model.nq + up] = 1.0  # metres per second
        env.reset_to(state)
        assert (env.get_reward(), env.is_success()) == (0.0, {"task": False})
        steps = []
        while len(steps) < 100 and not env.is_success()["task"]:
            _, reward, _, info = env.step(np.zeros(7))
            assert info["is_success"] == env.is_success()
            assert env.get_reward() == reward
            steps.append((reward, env.is_success()["task"]))
        assert steps[-1] == (1.0, True)
        assert set(steps[:-1]) == {(0.0, False)}
        env.reset_to(env.get_state())
        assert (env.get_reward(), env.is_success()) == (1.0, {"task": True})
    finally:
        env.close()
