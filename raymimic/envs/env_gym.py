"""Gymnasium environments behind robomimic's interface."""

from __future__ import annotations

import functools
import logging
import math
import re
import signal
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from numbers import Real
from typing import Any

import gymnasium
import mujoco
import numpy as np
import numpy.typing as npt

from raymimic.envs.cameras import DEFAULT, Cameras, quiet_mujoco
from raymimic.envs.env_base import (
    FLAT_KEY,
    SUCCESS_KEYS,
    Array,
    EnvBase,
    EnvType,
    Observation,
)
from raymimic.envs.global_numbers import GlobalNumbers
from raymimic.envs.kinds import UnknownEnvError
from raymimic.envs.render_settings import IMAGE, RenderSettings, described
from raymimic.errors import EnvError, did_you_mean, pip_install
from raymimic.user_modules import own_reason, place_in_own_code

logger = logging.getLogger(__name__)

GOAL = "desired_goal"

_MODERNISE = "bring it to gymnasium's interface, or wrap it by the package shimmy"

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


@functools.cache  # so that a translation is logged once
def current_name(env_name: str) -> str:
    """Translates D4RL's and old gym's names to gymnasium's present ones.

    Args:
        env_name: such as `Walker2d-v2` or `walker2d-medium-expert-v2`.

    Returns:
        `Walker2d-v5`, for example; other names as they are. A translation is logged as a warning,
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


def _seed_action_space(base: Any, seed: int) -> None:
    """Seeds the action space of an unwrapped environment, from which OGBench draws in its reset.

    OGBench makes it again each time it is asked for, with new random numbers: so it gets one that
    stays.
    """
    space, cls = getattr(base, "action_space", None), type(base)
    if not isinstance(space, gymnasium.Space):
        return
    if space is not base.action_space:
        kept = {"action_space": space, "__module__": cls.__module__}
        base.__class__ = type(cls.__name__, (cls,), kept)
    space.seed(seed)


def _present(base: Any) -> Any:
    """The observation of the present state, by gymnasium's and OGBench's names of the method."""
    for name in ("_get_obs", "compute_observation", "get_ob"):
        if hasattr(base, name):
            return getattr(base, name)()
    raise EnvError(f"'{type(base).__name__}' has no method that gives the observation of a state")


def _simulated(env: gymnasium.Env[Any, Any]) -> tuple[Any, Any] | None:
    """The model and data of an environment that MuJoCo simulates."""
    base: Any = env.unwrapped
    with suppress(Exception):  # properties of an environment may raise anything
        if isinstance(base.model, mujoco.MjModel) and isinstance(base.data, mujoco.MjData):
            return base.model, base.data
    return None


def _own_view(env: gymnasium.Env[Any, Any], model: Any, data: Any) -> mujoco.MjvCamera | None:
    """The camera of gymnasium's own pictures; None for another package's environment."""
    renderer = getattr(env.unwrapped, "mujoco_renderer", None)
    if renderer is None:
        return None
    camera = mujoco.MjvCamera()
    number = getattr(renderer, "camera_id", None)
    if number is not None and number >= 0:
        camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        return camera
    camera.lookat[:] = np.median(data.geom_xpos, axis=0)
    camera.distance = model.stat.extent
    for key, value in (getattr(renderer, "default_cam_config", None) or {}).items():
        if key != "type":
            setattr(camera, key, value)
    camera.type = mujoco.mjtCamera.mjCAMERA_FREE
    return camera


def _as_dict(obs: Any, prefix: str = "") -> Observation:
    """Copies a gymnasium observation into `{key: array}`; nested keys are joined by `/`.

    A value that is no array of numbers (text, None, parts of several lengths) becomes an array of
    one object: it matters only to a policy that reads it.
    """
    if not isinstance(obs, Mapping):
        return {prefix or FLAT_KEY: _as_array(obs)}
    flat: Observation = {}
    for key, value in obs.items():
        flat |= _as_dict(value, f"{prefix}/{key}" if prefix else str(key))
    return flat


def _as_array(value: Any) -> Array:
    parts = isinstance(value, tuple) and any(np.ndim(part) for part in value)
    if not parts:  # an array would hide that they are several
        with suppress(Exception):  # the conversion may raise anything, of a tensor on a GPU perhaps
            return np.array(value)
    boxed = np.empty((), object)
    boxed[()] = value
    return boxed


class EnvGym(EnvBase):
    """A gymnasium environment with continuous actions.

    An array observation is `{"flat": [D]}`, a dictionary observation keeps its keys, images
    included. `render_settings` add images: of the cameras of an environment that MuJoCo simulates,
    and of any other's own picture, which is called `default`.

    Unlike robomimic's, `step` keeps termination and time limit apart, and success is read from
    `info["is_success"]` or `info["success"]`.

    Args:
        env_name: gymnasium id, one of D4RL's names (`current_name`), or `module:id`, where
            the module that registers it is imported already.
        render: shows a window.
        render_offscreen: lets `render` return frames.
        use_image_obs: ignored, as in robomimic: `render_settings` name the cameras.
        use_depth_obs: ignored, as `use_image_obs`.
        render_settings: cameras, and how they draw.
        reads: keys of the observations that are read, see `Cameras`.
        **env_kwargs: for `gymnasium.make`.

    Raises:
        EnvError: the environment cannot be made.
    """

    def __init__(
        self,
        env_name: str,
        render: bool = False,
        render_offscreen: bool = False,
        use_image_obs: bool = False,
        use_depth_obs: bool = False,
        render_settings: RenderSettings | None = None,
        reads: Collection[str] | None = None,
        **env_kwargs: Any,
    ) -> None:
        self._name = current_name(env_name)
        self._env_kwargs = deepcopy(env_kwargs)
        self._settings, self._reads = render_settings, reads
        self._drawn = render_settings.cameras_for(reads) if render_settings else ()
        pictures = render_offscreen or DEFAULT in self._drawn
        mode = "human" if render else "rgb_array" if pictures else None
        # Not every environment takes a render mode.
        self.env = _make(self._name, {**env_kwargs, **({"render_mode": mode} if mode else {})})
        self._cameras: Cameras | None = None  # found in the first reset: some have no model before
        self._obs: Observation = {}
        self._reward = 0.0
        self._done = False
        self._success: dict[str, bool] = {}
        self._numbers = GlobalNumbers()
        self._seed: int | None = None  # of the episode
        self._has_goal = False

    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode; see `EnvBase.reset`.

        Raises:
            EnvError: the environment does not return the values of gymnasium's interface, or
                `render_settings` ask for more than its own picture where MuJoCo does not simulate
                it.
        """
        return self._started(*self._begun(seed))

    def _begun(self, seed: int | None) -> tuple[Observation, Mapping[str, Any]]:
        """Resets the environment; its observation is without images of cameras."""
        with self._of_gymnasium("reset"), self._numbers.drawn(seed):
            if seed is not None:
                _seed_action_space(self.env.unwrapped, seed)
            answer = self.env.reset(seed=seed)
        self._seed = seed
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise EnvError(
                f"environment '{self._name}' returns from its reset {_kind(answer)}, as old gym's "
                f"do, and not (observation, info): {_MODERNISE}"
            )
        obs, info = _as_dict(answer[0]), self._info(answer[1])
        self._has_goal = "goal" in info or any(key.split("/")[0] == GOAL for key in obs)
        return obs, info

    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action; see `EnvBase.step`.

        Raises:
            EnvError: the environment does not return the values of gymnasium's interface.
        """
        with self._of_gymnasium("step"), self._numbers.drawn():
            answer: Any = self.env.step(action)
        if not isinstance(answer, tuple) or len(answer) != 5:
            raise EnvError(
                f"environment '{self._name}' returns from its step {_kind(answer)}, and not "
                f"(observation, reward, terminated, truncated, info): {_MODERNISE}"
            )
        obs, reward, terminated, truncated, info = answer
        self._obs = self._with_images(_as_dict(obs))
        self._reward = self._number("reward", reward)
        terminated = self._flag("terminated", terminated)
        truncated = self._flag("truncated", truncated)
        self._done = terminated or truncated
        info = self._info(info)
        self._success = self._solved(info)
        info = {**info, "terminated": terminated, "truncated": truncated}
        return self.get_observation(), self._reward, self._done, info

    def get_observation(self, obs: Any = None) -> Observation:
        """The last observation, or `obs`, one of gymnasium's, in the form of observations here."""
        return dict(self._obs) if obs is None else _as_dict(obs)

    def get_reward(self) -> float:
        """The last reward; 0 before the first step."""
        return self._reward

    def is_done(self) -> bool:
        """Whether the episode terminated or was truncated."""
        return self._done

    def is_success(self) -> dict[str, bool]:
        """Success according to the last `info`, under `is_success` or `success`.

        Returns:
            `{"task": …}`, False if `info` has neither; and the further criteria of an `info` that
            holds several by name, as robomimic's `is_success` does.
        """
        return {"task": False, **self._success}

    @property
    def knows_success(self) -> bool:
        """Whether the last `info` says if the task is solved."""
        return "task" in self._success

    @property
    def judges_states(self) -> bool:
        """False: gymnasium gives rewards and success of steps."""
        return False

    def get_goal(self) -> Observation:
        """The goal of this episode, by gymnasium's convention for goals.

        The observation of such an environment (`GoalEnv` of Gymnasium-Robotics) also has an
        `achieved_goal` and a `desired_goal` of the same form.

        Returns:
            The desired goal under both names: a policy may read the `achieved_goal` to reach, as in
            data whose goals are last observations, or `desired_goal`.

        Raises:
            EnvError: observations have no `desired_goal`.
        """
        goal: Observation = {}
        for key, value in self._obs.items():
            if key.split("/")[0] == GOAL:
                goal |= {key: value, key.replace("desired", "achieved", 1): value}
        if not goal:
            raise EnvError(
                f"environment '{self._name}' has no goals for the policy: its observations "
                f"({', '.join(self._obs)}) have no 'desired_goal'"
            )
        return goal

    def get_state(self) -> dict[str, Any]:
        """MuJoCo's full physics state.

        Returns:
            `states` `[S]`: time, positions, velocities and actuator activations, as robomimic's
            flattened states begin; `seed` of the episode, if it has one: its goal follows from it.

        Raises:
            EnvError: this is no MuJoCo environment.
        """
        base = self._simulator()
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        state = np.empty(mujoco.mj_stateSize(base.model, kind))
        mujoco.mj_getState(base.model, base.data, state, kind)
        return {"states": state} if self._seed is None else {"states": state, "seed": self._seed}

    def reset_to(self, state: Mapping[str, Any]) -> Observation:
        """Starts an episode in a MuJoCo state.

        The steps that follow depend on the state and the actions alone. They repeat those after the
        original state only up to the contact solver's tolerance, since the solver's warm start is
        no part of the state. A goal is none either: it is that of the episode's seed.

        Args:
            state: from `get_state` or a dataset: `states` `[S]` and, optionally, the `seed` of the
                episode; without it the present episode's counts.

        Raises:
            EnvError: this is no MuJoCo environment, the state is of another model, or the
                environment draws a goal and there is no seed.
        """
        seed = state.get("seed", self._seed)
        seed = None if seed is None else int(seed)  # an attribute of a demo is a number of NumPy's
        self._begun(seed)  # clears the time limit, the warm start and all forces
        base = self._simulator()
        states = np.asarray(state["states"], np.float64)
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        size = mujoco.mj_stateSize(base.model, kind)
        if states.shape != (size,):
            raise EnvError(f"'{self._name}' has states of shape ({size},), not {states.shape}")
        if self._has_goal and seed is None:
            raise EnvError(
                f"a state of '{self._name}' does not hold the goal of its episode, which follows "
                "from the seed: give it as 'seed' of the state, or reset(seed=…) before"
            )
        mujoco.mj_setState(base.model, base.data, states, kind)
        mujoco.mj_forward(base.model, base.data)
        return self._started(_as_dict(_present(base)), {})

    def render(
        self,
        mode: str = "rgb_array",
        height: int | None = None,
        width: int | None = None,
        camera_name: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Returns a picture of the current state: the cameras of `render_settings` side by side.

        Args:
            mode: `rgb_array`; a window (`human`) is drawn by `step` itself.
            height: pixels; None is the environment's own size (MuJoCo: 480, or the one in
                `env_kwargs`), any other is reached by repeating or dropping pixels.
            width: pixels; None as for `height`.
            camera_name: draw this camera alone; an environment that was made without
                `render_settings`, or that MuJoCo does not simulate, ignores it, as in robomimic.

        Returns:
            `[H, W, 3]`.

        Raises:
            EnvError: the environment was not made for rendering, or this machine cannot render, or
                there is no such camera.
        """
        if self._cameras is not None:
            return self._cameras.picture(*self._model_and_data(), height, width, camera_name)
        return self._own_picture(mode, height, width)

    def _own_picture(
        self, mode: str = "rgb_array", height: int | None = None, width: int | None = None
    ) -> npt.NDArray[np.uint8]:
        if mode != "rgb_array" or self.env.render_mode != "rgb_array":
            raise EnvError(f"'{self._name}' renders to arrays only when made with render_offscreen")
        try:
            with _no_exit("it"):
                frame = np.asarray(self.env.render())
        except Exception as error:  # OpenGL may raise anything, ImportError to AttributeError
            fault = f"cannot be rendered here: {own_reason(error)}"
            raise EnvError(f"'{self._name}' {fault}") from error
        if frame.dtype.kind not in "iu" or frame.ndim not in (2, 3):
            raise EnvError(
                f"'{self._name}' renders {_kind(frame)} of {frame.dtype}, and not a picture "
                "[H, W, 3] of whole numbers from 0 to 255"
            )
        frame = frame.astype(np.uint8)
        return _resized(frame, height or frame.shape[0], width or frame.shape[1])

    def serialize(self) -> dict[str, Any]:
        """The `env_args` of a dataset."""
        kwargs = deepcopy(self._env_kwargs)
        meta = {"env_name": self._name, "type": self.type, "env_kwargs": kwargs}
        return described(meta, self._settings)

    def close(self) -> None:
        """Frees simulator and renderer."""
        if self._cameras is not None:
            self._cameras.close()
        with _no_exit("it"):
            self.env.close()

    @property
    def name(self) -> str:
        """The gymnasium id."""
        return self._name

    @property
    def type(self) -> int:
        """`EnvType.GYM_TYPE`."""
        return EnvType.GYM_TYPE

    @property
    def action_dimension(self) -> int:
        """Number of action components A."""
        return int(self._action_space.shape[0])

    @property
    def action_bounds(self) -> tuple[Array, Array]:
        """Limits of the action space, a `Box`."""
        return self._action_space.low, self._action_space.high

    def clip(self, action: Array) -> Array:
        """Moves an action into the `Box`, and gives it the type of the `Box`.

        Components are rounded to whole numbers if the `Box` holds whole numbers or flags.
        """
        clipped, kind = super().clip(action), self._action_space.dtype
        return (clipped if np.issubdtype(kind, np.floating) else np.rint(clipped)).astype(kind)

    @property
    def base_env(self) -> gymnasium.Env[Any, Any]:
        """The gymnasium environment."""
        return self.env

    @property
    def _action_space(self) -> gymnasium.spaces.Box:
        space = self.env.action_space
        assert isinstance(space, gymnasium.spaces.Box)  # checked when it was made
        return space

    def _started(self, obs: Observation, info: Mapping[str, Any]) -> Observation:
        if self._settings is not None and self._cameras is None:
            simulated = _simulated(self.env)
            if simulated is None:
                self._check_own_picture(self._settings)
            else:
                self._cameras = Cameras(self._settings, self._reads)
                self._cameras.default = _own_view(self.env, *simulated)
        self._obs, self._reward, self._done = self._with_images(obs), 0.0, False
        self._success = self._solved(info)
        return self.get_observation()

    def _check_own_picture(self, settings: RenderSettings) -> None:
        """Makes sure that settings ask for no more than an environment's own picture."""
        others = [name for name in settings.cameras if name != DEFAULT]
        asked = [f"the camera '{name}'" for name in others]
        asked += ["depth"] * settings.depth + list(settings.quality)
        if asked:
            raise EnvError(
                f"environment '{self._name}' is not simulated by MuJoCo, and 'render' of its "
                f"'env_args' asks for {asked[0]}: it has one camera, '{DEFAULT}', of any size"
            )

    def _model_and_data(self) -> tuple[Any, Any]:
        simulated = _simulated(self.env)
        assert simulated is not None  # else there are no cameras
        return simulated

    def _with_images(self, obs: Observation) -> Observation:
        """An observation with the images of `render_settings`."""
        if not self._drawn or self._settings is None:
            return obs
        if self._cameras is not None:
            return obs | self._cameras.observe(*self._model_and_data())
        size = self._settings.height, self._settings.width
        return obs | {DEFAULT + IMAGE: _averaged(self._own_picture(), *size)}

    @contextmanager
    def _of_gymnasium(self, method: str) -> Iterator[None]:
        """Explains old gym's forms, on which gymnasium's own wrappers fail."""
        try:
            with _no_exit(f"environment '{self._name}' fails in its {method}: it"):
                yield
        except (TypeError, ValueError) as error:
            text = str(error)
            if "values to unpack (expected 5" in text:
                form = "returns from its step other values than gymnasium's five"
            elif "unexpected keyword argument 'seed'" in text or (
                "unexpected keyword argument 'options'" in text
            ):
                form = "has a reset without gymnasium's arguments 'seed' and 'options'"
            else:
                raise
            raise EnvError(
                f"environment '{self._name}' {form}, as old gym's do: {_MODERNISE}"
            ) from error

    def _info(self, value: Any) -> Mapping[str, Any]:
        """Checks the info of an environment; None is an empty one."""
        if value is None or isinstance(value, Mapping):
            return value or {}
        raise EnvError(
            f"environment '{self._name}' gives info as {_kind(value)}: it must be a dictionary"
        )

    def _solved(self, info: Mapping[str, Any]) -> dict[str, bool]:
        """The success criteria in an info, by name; None is no criterion."""
        solved: dict[str, bool] = {}
        for key in SUCCESS_KEYS:
            value = info.get(key)
            if value is None:
                continue
            criteria = value if isinstance(value, Mapping) else {"task": value}
            if "task" not in criteria:
                raise EnvError(
                    f"environment '{self._name}' gives info['{key}'] as criteria "
                    f"({', '.join(map(str, criteria)) or 'none'}) without 'task', which says "
                    "whether the task is solved: add it"
                )
            for name, flag in criteria.items():
                if flag is None:
                    continue
                part = f"['{name}']" if criteria is value else ""
                met = self._flag(f"info['{key}']{part}", flag)
                solved[str(name)] = solved.get(str(name), False) or met
        return solved

    def _flag(self, name: str, value: Any) -> bool:
        """A flag as true or false; it may be 0 or 1, or an array of one."""
        with suppress(Exception):
            array = np.asarray(value)
            if array.size == 1 and array.dtype.kind in "biuf" and array.item() in (0, 1):
                return bool(array.item())
        raise EnvError(
            f"environment '{self._name}' gives {name} as {_kind(value)}: it must be true or false"
        )

    def _number(self, name: str, value: Any) -> float:
        """A finite number; it may be an array of one."""
        with suppress(Exception):
            number = np.asarray(value).item()
            if isinstance(number, Real | Decimal) and math.isfinite(number):
                return float(number)
        raise EnvError(
            f"environment '{self._name}' gives {name} as {_kind(value)}: it must be one finite "
            "number"
        )

    def _simulator(self) -> Any:
        base = _mujoco(self.env)
        if base is None:
            raise EnvError(f"'{self._name}' is no MuJoCo environment: its state cannot be kept")
        return base


@contextmanager
def _no_exit(subject: str) -> Iterator[None]:
    """Turns an exception that would end this process, such as `SystemExit`, into an `EnvError`.

    Exceptions that a signal's handler raises pass: they are meant for the process.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception | KeyboardInterrupt) or _of_signal(error):
            raise
        ends = isinstance(error, SystemExit)
        place = f" ({own})" if (own := place_in_own_code(error)) else ""
        failure = f"calls sys.exit({error}){place}" if ends else f"raises {own_reason(error)}"
        raise EnvError(f"{subject} {failure}") from error


def _of_signal(error: BaseException) -> bool:
    """Whether a signal's handler raised an exception, at any depth."""
    handlers = map(signal.getsignal, signal.valid_signals())
    codes = [code for handler in handlers if (code := getattr(handler, "__code__", None))]
    return any(frame.f_code in codes for frame, _ in traceback.walk_tb(error.__traceback__))


def _make(name: str, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Calls `gymnasium.make`, with errors of one sentence."""
    env_id = name.rpartition(":")[2]
    quiet_mujoco()
    _register(env_id)
    try:
        # The checker warns about things that a user of a dataset cannot change.
        with _no_exit("it"):
            env: gymnasium.Env[Any, Any] = gymnasium.make(
                env_id, disable_env_checker=True, **kwargs
            )
    except gymnasium.error.UnregisteredEnv as error:
        known = gymnasium.registry.keys()
        raise UnknownEnvError(
            f"no environment '{name}' is registered{_near(env_id, known)}{_package(env_id)}"
        ) from error
    except Exception as error:  # a constructor may raise anything
        raise EnvError(f"environment '{name}' cannot be made: {own_reason(error)}") from error
    space = getattr(env, "action_space", None)
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        env.close()
        raise EnvError(f"environment '{name}' has actions {space}, and only vectors can be played")
    return env


# Beginnings of ids, the package that has them, and its module that registers them. The packages of
# raymimic's extras are imported where they are installed.
_OGBENCH = (
    *("antmaze", "antsoccer", "humanoidmaze", "pointmaze", "powderworld"),
    *("cube", "puzzle", "scene", "visual"),
)
_PACKAGES = {
    **{f"{start}-": ("ogbench", "ogbench") for start in _OGBENCH},
    "Isaac-": ("Isaac Lab", "isaaclab_tasks"),
    "ALE/": ("ale-py", "ale_py"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "Meta-World/": ("metaworld", "metaworld"),
    **dict.fromkeys(
        ("Fetch", "HandManipulate", "HandReach", "AntMaze", "PointMaze", "Adroit", "FrankaKitchen"),
        ("gymnasium-robotics", "gymnasium_robotics"),
    ),
    "gym_hil/": ("gym-hil", "gym_hil"),
    "gym_aloha/": ("gym-aloha", "gym_aloha"),
    "gym_pusht/": ("gym-pusht", "gym_pusht"),
    "gym_xarm/": ("gym-xarm", "gym_xarm"),
}


_EXTRAS = ("ogbench", "metaworld")


def _register(env_id: str) -> None:
    """Imports the package of an id, if it is one of raymimic's extras."""
    for start, (package, module) in _PACKAGES.items():
        if package not in _EXTRAS or not env_id.startswith(start):
            continue
        known = env_id in gymnasium.registry or module in sys.modules
        if not known and find_spec(module) is not None:
            import_module(module)


def _package(env_id: str) -> str:
    """Names the package to install, where ids of that kind are known to come from one."""
    for start, (package, module) in _PACKAGES.items():
        if env_id.startswith(start):
            if package in _EXTRAS:
                installed = find_spec(module) is not None
                return "" if installed else f": {pip_install(package)}"
            return f": install {package}, and name its module (--import {module})"
    return ": install its package, and name the module that registers it (--import MODULE)"


def _near(name: str, known: Any) -> str:
    """The nearest known name, or nothing: hundreds of ids do not help in an error message."""
    hint = did_you_mean(name, known)
    return f" ({hint.removeprefix('; ')})" if "did you mean" in hint else ""


def _kind(value: Any) -> str:
    """A value in a few words, for an error message."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} values"
    if isinstance(value, np.ndarray) and value.size != 1:
        return f"an array of shape {list(value.shape)}"
    if isinstance(value, str | int | float | np.ndarray | None):
        return f"{value!r:.60}"
    return f"a value of type {type(value).__name__}"


def _averaged(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Resizes `[H, W, 3]` by averages over areas."""
    from PIL import Image

    if frame.shape[:2] == (height, width):
        return frame
    size = (width, height)
    return np.array(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _resized(frame: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Nearest-neighbour resize of `[H, W, 3]`."""
    rows = np.arange(height) * frame.shape[0] // height
    columns = np.arange(width) * frame.shape[1] // width
    resized: npt.NDArray[np.uint8] = frame[rows[:, None], columns]
    return resized
