"""Gymnasium environments behind robomimic's interface."""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from raymimic.envs.env_base import Array, EnvBase, EnvType, Observation
from raymimic.errors import EnvError, did_you_mean

logger = logging.getLogger(__name__)

FLAT_KEY = "flat"
SUCCESS_KEYS = ("is_success", "success")

# D4RL's names of MuJoCo data sets, and versions of gym that needed mujoco-py.
_D4RL_DATASET = re.compile(r"(ant|halfcheetah|hopper|walker2d)-[a-z-]+-v\d+")
_OLD_MUJOCO = re.compile(
    r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|InvertedPendulum"
    r"|Pusher|Reacher|Swimmer|Walker2d)-v[123]"
)
_CURRENT = {
    "ant": "Ant-v5",
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
}


@functools.cache  # so that it is said once, however many environments are made
def current_name(env_name: str) -> str:
    """Translates D4RL's and old gym's names to what gymnasium has now.

    Args:
        env_name: such as ``Walker2d-v2`` or ``walker2d-medium-expert-v2``.

    Returns:
        Such as ``Walker2d-v5``; other names as they are. A translation is logged as a warning,
        since dynamics and rewards of the versions differ slightly.
    """
    if match := _D4RL_DATASET.fullmatch(env_name):
        current = _CURRENT[match[1]]
    elif match := _OLD_MUJOCO.fullmatch(env_name):
        current = f"{match[1]}-v5"
    else:
        return env_name
    logger.warning("environment '%s' is played as '%s'", env_name, current)
    return current


def _mujoco(env: gymnasium.Env[Any, Any]) -> Any | None:
    """The unwrapped environment if it is one of gymnasium's MuJoCo family."""
    base = env.unwrapped
    return base if hasattr(base, "model") and hasattr(base, "set_state") else None


def _as_dict(obs: Any, prefix: str = "") -> Observation:
    """Copies a gymnasium observation into ``{key: array}``; nested keys are joined by ``/``."""
    if not isinstance(obs, Mapping):
        return {prefix or FLAT_KEY: np.array(obs)}
    flat: Observation = {}
    for key, value in obs.items():
        flat |= _as_dict(value, f"{prefix}/{key}" if prefix else str(key))
    return flat


class EnvGym(EnvBase):
    """A gymnasium environment with continuous actions.

    An array observation is ``{"flat": [D]}``, a dictionary observation keeps its keys. Unlike
    robomimic's, ``step`` keeps termination and time limit apart, and success is read from
    ``info["is_success"]`` or ``info["success"]``.

    Args:
        env_name: gymnasium id, one of D4RL's names (:func:`current_name`), or ``module:id`` to
            import the module that registers it.
        render: shows a window.
        render_offscreen: lets :meth:`render` return frames.
        **env_kwargs: for ``gymnasium.make``.

    Raises:
        EnvError: the environment cannot be made.
    """

    def __init__(
        self,
        env_name: str,
        render: bool = False,
        render_offscreen: bool = False,
        **env_kwargs: Any,
    ) -> None:
        self._name = current_name(env_name)
        self._env_kwargs = deepcopy(env_kwargs)
        mode = "human" if render else "rgb_array" if render_offscreen else None
        self.env = _make(self._name, {"render_mode": mode, **env_kwargs})
        self._obs: Observation = {}
        self._reward = 0.0
        self._done = False
        self._success = False

    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode; see :meth:`EnvBase.reset`."""
        obs, info = self.env.reset(seed=seed)
        return self._started(_as_dict(obs), info)

    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action; see :meth:`EnvBase.step`."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._obs, self._reward = _as_dict(obs), float(reward)
        self._done = bool(terminated or truncated)
        self._success = _success(info)
        info = {**info, "terminated": bool(terminated), "truncated": bool(truncated)}
        return self.get_observation(), self._reward, self._done, info

    def get_observation(self) -> Observation:
        """The last observation."""
        return dict(self._obs)

    def get_reward(self) -> float:
        """The last reward; 0 before the first step."""
        return self._reward

    def is_done(self) -> bool:
        """Whether the episode terminated or was truncated."""
        return self._done

    def is_success(self) -> dict[str, bool]:
        """``{"task": …}``: what the last ``info`` said; False where it says nothing."""
        return {"task": self._success}

    def get_goal(self) -> Observation:
        """The goal of this episode, by gymnasium's convention for goals.

        The observation of such an environment (``GoalEnv`` of Gymnasium-Robotics) has, beside the
        rest, an ``achieved_goal`` and a ``desired_goal`` of the same form.

        Returns:
            The desired goal, under both names: so a policy is told what ``achieved_goal`` is to
            be, as in data whose goals are last observations, or sees ``desired_goal`` as it is.

        Raises:
            EnvError: observations have no ``desired_goal``.
        """
        goal: Observation = {}
        for key, value in self._obs.items():
            if key.split("/")[0] == "desired_goal":
                goal |= {key: value, key.replace("desired", "achieved", 1): value}
        if not goal:
            raise EnvError(
                f"environment '{self._name}' has no goals for the policy: its observations "
                f"({', '.join(self._obs)}) have no 'desired_goal'; to train without playing, set "
                "experiment.rollout.enabled=false"
            )
        return goal

    def get_state(self) -> dict[str, Array]:
        """MuJoCo's full physics state.

        Returns:
            ``{"states": [S]}``: time, positions, velocities and actuator activations, as
            robomimic's flattened states begin.

        Raises:
            EnvError: this is no MuJoCo environment.
        """
        base = self._simulator()
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(mujoco.mj_stateSize(base.model, kind))
        mujoco.mj_getState(base.model, base.data, state, kind)
        return {"states": state}

    def reset_to(self, state: Mapping[str, Array]) -> Observation:
        """Starts an episode in a MuJoCo state.

        What follows depends on the state and the actions alone; it repeats what followed on the
        original only up to the contact solver's tolerance, since the solver's warm start is no
        part of the state.

        Args:
            state: ``{"states": [S]}`` from :meth:`get_state` or a dataset.

        Raises:
            EnvError: this is no MuJoCo environment, or the state is of another model.
        """
        base = self._simulator()
        states = np.asarray(state["states"], np.float64)
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        size = mujoco.mj_stateSize(base.model, kind)
        if states.shape != (size,):
            raise EnvError(f"'{self._name}' has states of shape ({size},), not {states.shape}")
        self.env.reset()  # clears the time limit, the warm start and all forces
        mujoco.mj_setState(base.model, base.data, states, kind)
        mujoco.mj_forward(base.model, base.data)
        return self._started(_as_dict(base._get_obs()), {})

    def render(
        self, mode: str = "rgb_array", height: int | None = None, width: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Returns a picture of the current state.

        Args:
            mode: ``rgb_array``; a window (``human``) is drawn by ``step`` itself.
            height: pixels; None is the environment's own size (MuJoCo: 480, or what ``env_kwargs``
                says), any other is reached by repeating or dropping pixels.
            width: likewise.

        Returns:
            ``[H, W, 3]``.

        Raises:
            EnvError: the environment was not made for rendering, or nothing can render here.
        """
        if mode != "rgb_array" or self.env.render_mode != "rgb_array":
            raise EnvError(f"'{self._name}' renders to arrays only when made with render_offscreen")
        try:
            frame = np.asarray(self.env.render(), np.uint8)
        except (
            Exception
        ) as error:  # whatever the OpenGL stack raises, ImportError to AttributeError
            raise EnvError(f"'{self._name}' cannot be rendered here: {error}") from error
        return _resized(frame, height or frame.shape[0], width or frame.shape[1])

    def serialize(self) -> dict[str, Any]:
        """What a dataset keeps as ``env_args``."""
        kwargs = deepcopy(self._env_kwargs)
        return {"env_name": self._name, "type": self.type, "env_kwargs": kwargs}

    def close(self) -> None:
        """Frees simulator and renderer."""
        self.env.close()

    @property
    def name(self) -> str:
        """The gymnasium id."""
        return self._name

    @property
    def type(self) -> int:
        """``EnvType.GYM_TYPE``."""
        return EnvType.GYM_TYPE

    @property
    def action_dimension(self) -> int:
        """Number of action components A."""
        space = self.env.action_space
        assert isinstance(space, gymnasium.spaces.Box)  # checked when it was made
        return int(space.shape[0])

    @property
    def base_env(self) -> gymnasium.Env[Any, Any]:
        """The gymnasium environment."""
        return self.env

    def _started(self, obs: Observation, info: Mapping[str, Any]) -> Observation:
        self._obs, self._reward, self._done = obs, 0.0, False
        self._success = _success(info)
        return self.get_observation()

    def _simulator(self) -> Any:
        base = _mujoco(self.env)
        if base is None:
            raise EnvError(f"'{self._name}' is no MuJoCo environment: its state cannot be kept")
        return base


def _make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """``gymnasium.make`` with one-sentence errors."""
    module, _, env_id = name.rpartition(":")
    # Or MuJoCo prints what it thinks of gymnasium's models and leaves a MUJOCO_LOG.TXT behind.
    mujoco.set_mju_user_warning(lambda message: logger.debug("MuJoCo: %s", message))
    try:
        if module:
            importlib.import_module(module)
        # The checker warns about what a user of a dataset cannot change.
        env: gymnasium.Env[Any, Any] = gymnasium.make(env_id, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        known = gymnasium.registry.keys()
        raise EnvError(f"no environment '{name}' is registered{_near(env_id, known)}") from error
    except Exception as error:  # a constructor may raise anything
        reason = str(error).strip().split("\n")[0]
        raise EnvError(f"environment '{name}' cannot be made: {reason}") from error
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        env.close()
        raise EnvError(f"environment '{name}' has actions {space}, and only vectors can be played")
    return env


def _near(name: str, known: Any) -> str:
    """The nearest known name, or nothing: hundreds of ids do not help in an error message."""
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else ""


def _success(info: Mapping[str, Any]) -> bool:
    return any(bool(info.get(key, False)) for key in SUCCESS_KEYS)


def _resized(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Nearest-neighbour resize of ``[H, W, 3]``."""
    rows = np.arange(height) * frame.shape[0] // height
    columns = np.arange(width) * frame.shape[1] // width
    resized: npt.NDArray[np.uint8] = frame[rows[:, None], columns]
    return resized
