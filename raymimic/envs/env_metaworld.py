"""Meta-World's tasks behind robomimic's interface."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from copy import deepcopy
from importlib.metadata import version
from typing import Any

import metaworld
import mujoco
import numpy as np
import numpy.typing as npt

from raymimic.envs.cameras import Cameras, quiet_mujoco
from raymimic.envs.env_base import Array, EnvBase, Observation
from raymimic.envs.kinds import UnknownEnvError
from raymimic.envs.render_settings import RenderSettings, described
from raymimic.errors import EnvError, did_you_mean

_STATE = mujoco.mjtState.mjSTATE_INTEGRATION

# Parts of Meta-World's observation, whose components 18 to 35 are those of the step before.
_PARTS = {
    "hand_pos": slice(0, 3),
    "gripper": slice(3, 4),
    "object": slice(4, 18),
    "goal": slice(36, 39),
    "flat": slice(0, 39),
}
_BEFORE = slice(18, 36)


class EnvMetaworld(EnvBase):
    """One of Meta-World's tasks, with its goal in sight.

    Observations are `hand_pos` `[3]` and `goal` `[3]` [m], `gripper` `[1]` (0 closed, 1 open),
    `object` `[14]`, the positions and quaternions of two objects (0 where a task has none), `flat`
    `[39]`, all of them together and those of the step before, as Meta-World's scripted policies
    take them; and the images of `render_settings`.

    Objects and goal are drawn again for each episode, from its seed alone; Meta-World's benchmarks
    choose among fifty of them in advance. An episode is truncated after 500 steps.

    Args:
        env_name: such as `push-v3`.
        render_settings: cameras, and how they draw.
        reads: keys of the observations that are read, see `Cameras`.
        **env_kwargs: for the task's class.

    Raises:
        UnknownEnvError: there is no such task.
    """

    def __init__(
        self,
        env_name: str,
        render_settings: RenderSettings | None = None,
        reads: Collection[str] | None = None,
        **env_kwargs: Any,
    ) -> None:
        tasks = metaworld.env_dict.ENV_CLS_MAP
        if env_name not in tasks:
            raise UnknownEnvError(
                f"Meta-World has no task '{env_name}'{did_you_mean(env_name, tasks)}"
            )
        quiet_mujoco()
        self._name = env_name
        self._env_kwargs = deepcopy(env_kwargs)
        self._settings = render_settings
        self._cameras = Cameras(render_settings or RenderSettings(), reads)
        self.env: Any = tasks[env_name](**env_kwargs)
        _draw_every_episode(self.env)
        self._flat = np.zeros(39)
        self._obs: Observation = {}
        self._reward = 0.0
        self._done = self._solved = False

    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode; see `EnvBase.reset`."""
        if seed is not None:
            self.env.seed(seed)
        return self._started(_reset_anew(self.env))

    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action; see `EnvBase.step`.

        Args:
            action: `[4]` in [-1, 1]: the hand's displacement [cm], and the gripper's effort.
        """
        flat, reward, terminated, truncated, info = self.env.step(np.asarray(action, np.float64))
        self._reward = float(reward)
        self._done = bool(terminated or truncated)
        self._solved = bool(info["success"])
        self._observe(flat)
        info = {**info, "terminated": bool(terminated), "truncated": bool(truncated)}
        return self.get_observation(), self._reward, self._done, info

    def get_observation(self) -> Observation:
        """The last observation."""
        return dict(self._obs)

    def get_reward(self) -> float:
        """The last reward; 0 before the first step."""
        return self._reward

    def is_done(self) -> bool:
        """Whether the 500 steps are over."""
        return self._done

    def is_success(self) -> dict[str, bool]:
        """Success according to the last `info`."""
        return {"task": self._solved}

    @property
    def judges_states(self) -> bool:
        """False: Meta-World gives rewards and success of steps."""
        return False

    def get_goal(self) -> Observation:
        """The goal of this episode: `goal` `[3]` [m]."""
        return {"goal": self._obs["goal"]}

    def get_state(self) -> dict[str, Array]:
        """MuJoCo's state, and the episode's.

        Returns:
            `{"states": [S]}`: the number of steps, the last 18 components of the step before,
            MuJoCo's integration state, and the random numbers that objects and goal follow from.
        """
        model, data = self.env.model, self.env.data
        physics = np.empty(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, physics, _STATE)
        steps = [float(self.env.curr_path_length)]
        parts = (steps, self._flat[_BEFORE], physics, _drawn(self.env))
        return {"states": np.concatenate(parts)}

    def reset_to(self, state: Mapping[str, Any]) -> Observation:
        """Starts an episode in a state; see `EnvBase.reset_to`.

        Raises:
            EnvError: the state is of another task.
        """
        states = np.asarray(state["states"], np.float64)
        model, data = self.env.model, self.env.data
        size = mujoco.mj_stateSize(model, _STATE)
        fixed, random = 1 + 18 + size, _drawn(self.env).size
        if states.shape != (fixed + random,):
            raise EnvError(
                f"'{self._name}' has states of shape ({fixed + random},), not {states.shape}"
            )
        _reset_with(self.env, states[fixed:])
        mujoco.mj_setState(model, data, states[19:fixed], _STATE)
        mujoco.mj_forward(model, data)
        self.env.curr_path_length = int(states[0])
        return self._started(_observation_after(self.env, states[1:19]))

    def render(
        self,
        mode: str = "rgb_array",
        height: int | None = None,
        width: int | None = None,
        camera_name: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Draws the cameras of `render_settings` side by side, or the model's free camera.

        `camera_name` names the only camera to draw.
        """
        return self._cameras.picture(self.env.model, self.env.data, height, width, camera_name)

    def serialize(self) -> dict[str, Any]:
        """The `env_args` of a dataset."""
        meta = {"env_name": self._name, "type": self.type, "env_kwargs": deepcopy(self._env_kwargs)}
        return described(meta, self._settings)

    def close(self) -> None:
        """Frees simulator and renderer."""
        self._cameras.close()
        self.env.close()

    @property
    def name(self) -> str:
        """The task."""
        return self._name

    @property
    def type(self) -> str:
        """`metaworld`."""
        return "metaworld"

    @property
    def version(self) -> str:
        """Meta-World's version."""
        return version("metaworld")

    @property
    def action_dimension(self) -> int:
        """4."""
        return 4

    @property
    def action_bounds(self) -> tuple[Array, Array]:
        """-1 and 1."""
        return self.env.action_space.low, self.env.action_space.high

    @property
    def base_env(self) -> Any:
        """Meta-World's environment."""
        return self.env

    def _started(self, flat: Array) -> Observation:
        self._reward, self._done, self._solved = 0.0, False, False
        self._observe(flat)
        return self.get_observation()

    def _observe(self, flat: Array) -> None:
        self._flat = np.array(flat, np.float64)
        images = self._cameras.observe(self.env.model, self.env.data)
        self._obs = {key: self._flat[part].copy() for key, part in _PARTS.items()} | images


# Meta-World has no public way to draw a task from a seed: its public classes freeze the numbers
# that objects and goal follow from. The functions below are all that reads its private parts.


def _draw_every_episode(env: Any) -> None:
    """Lets a task of Meta-World draw its objects and goal in each reset, and shows its goal."""
    env._partially_observable = False
    env.__dict__.pop("sawyer_observation_space", None)  # a cached space without the goal
    env.seeded_rand_vec = True
    env._set_task_called = True
    _reset_anew(env)


def _reset_anew(env: Any) -> Array:
    """Starts an episode with new random numbers, and returns its observation.

    Meta-World's reset places the objects twice, and some rewards remember the first place: so both
    are those of the same numbers.
    """
    env._freeze_rand_vec = False
    env.reset_model()
    return _reset_with(env, _drawn(env))


def _drawn(env: Any) -> Array:
    """The random numbers of the present episode."""
    return np.array(env._last_rand_vec, np.float64)


def _reset_with(env: Any, drawn: Array) -> Array:
    """Starts an episode with known random numbers, and returns its observation."""
    env._last_rand_vec, env._freeze_rand_vec = drawn.copy(), True
    flat: Array = env.reset()[0]
    # Meta-World moves the mark of the goal without computing its place, which the first image would
    # show where an earlier episode left it.
    mujoco.mj_forward(env.model, env.data)
    return flat


def _observation_after(env: Any, before: Array) -> Array:
    """The observation of the present state, which follows one with these components."""
    env._prev_obs = before.copy()
    space = env.sawyer_observation_space
    flat: Array = np.clip(env._get_obs(), space.low, space.high)
    return flat
