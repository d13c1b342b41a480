"""robosuite's environments behind robomimic's interface."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic.envs.env_base import Array, EnvBase, EnvType, Observation
from raymimic.envs.global_numbers import GlobalNumbers
from raymimic.envs.kinds import UnknownEnvError
from raymimic.envs.render_settings import RenderSettings, described
from raymimic.errors import EnvError, did_you_mean, reason

# Packages that add environments to robosuite once they are imported; robomimic imports the same.
# (The names stand here: a file of a stranger chooses none.)
_ADDITIONS = ("mimicgen", "mimicgen_envs", "robocasa", "mimiclabs.mimiclabs.envs")

# Arguments that raymimic sets: robomimic's forced ones, and those of robosuite's own renderer.
_FORCED: dict[str, Any] = {
    "has_renderer": False,
    "has_offscreen_renderer": False,
    "use_camera_obs": False,
    "ignore_done": True,
    "use_object_obs": True,
    "renderer": "mujoco",  # "mjviewer" would wait for a window
}
_OF_CAMERAS = ("camera_names", "camera_heights", "camera_widths", "camera_depths")
_IGNORED = (*_OF_CAMERAS, "camera_segmentations", "render_gpu_device_id", "render_camera")

# The group of geometries that robosuite's argument shows.
_MESHES = (("render_collision_mesh", 0, False), ("render_visual_mesh", 1, True))

# Names of robosuite 1.4 and their successors in 1.5.
_RENAMED_ARGUMENTS = {"mount_types": "base_types"}
_RENAMED_OF_CONTROLLERS = {"damping": "damping_ratio", "damping_limits": "damping_ratio_limits"}
_OSC = ("OSC_POSE", "OSC_POSITION")


@contextmanager
def _environment_as_it_is() -> Iterator[None]:
    """Hides variables from robosuite's import, which refuses some and sets `MUJOCO_GL` itself."""
    names = ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID")
    before = {name: os.environ.get(name) for name in names}
    os.environ.pop("MUJOCO_EGL_DEVICE_ID", None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# It advises to install packages that nothing here needs, and tells of each controller it loads.
logging.getLogger("robosuite_logs").addFilter(lambda record: record.levelno >= logging.ERROR)
with _environment_as_it_is():
    import robosuite
    from robosuite.controllers import load_composite_controller_config
    from robosuite.controllers.composite.composite_controller_factory import (
        refactor_composite_controller_config,
    )

from raymimic.envs.cameras import Cameras, quiet_mujoco  # noqa: E402 # MuJoCo, once hidden


class EnvRobosuite(EnvBase):
    """A robosuite environment, made from the `env_args` of a robomimic dataset.

    Observations are robomimic's: `object`, and all of each robot (`robot0_eef_pos`, …) but
    `*_proprio-state`; joint positions are among them. They are those of the present state. So a
    policy sees in an episode what robomimic's `dataset_states_to_obs` computed from the states of
    its data. (robosuite itself samples observations within the control step, and robomimic plays
    with those, up to a step old.)

    Images come from `render_settings`; without them, `camera_names`, `camera_heights`,
    `camera_widths` and `camera_depths` of `env_kwargs` name cameras and size, as in robomimic, and
    they are drawn if `reads` names them, or if `use_camera_obs` is true and nothing says which are
    read. Segmentation is not drawn.

    Controllers in the form of robosuite 1.4 keep their meaning in 1.5: a lone arm controller is
    put into a composite one, with `damping` and `damping_limits` renamed, `control_delta` as
    `input_type`, and the world as its frame. Data of a robosuite before 1.5 are played without
    `lite_physics`, as robosuite advises.

    An episode has no end: the horizon of the evaluation ends it. Reward and success of a step are
    robosuite's and robomimic's: both are of positions that are one substep of the simulation old.

    Args:
        env_name: such as `PickPlaceCan`. mimicgen, robocasa and mimiclabs are imported for theirs
            if they are installed.
        render: no window is shown.
        render_offscreen: `render` draws in any case.
        use_image_obs: draws the cameras, also where `env_kwargs` say otherwise.
        use_depth_obs: draws their depth too.
        lang: is not used; policies are told their instruction.
        render_settings: cameras, and how they draw.
        reads: keys of the observations that are read, see `Cameras`.
        env_version: version of robosuite that recorded the data.
        **env_kwargs: for `robosuite.make`.

    Raises:
        UnknownEnvError: there is no such environment.
        EnvError: `env_kwargs` hold cameras of several sizes, or a window is asked for.
    """

    def __init__(
        self,
        env_name: str,
        render: bool = False,
        render_offscreen: bool = False,
        use_image_obs: bool = False,
        use_depth_obs: bool = False,
        lang: str | None = None,
        render_settings: RenderSettings | None = None,
        reads: Collection[str] | None = None,
        env_version: str | None = None,
        **env_kwargs: Any,
    ) -> None:
        if render:
            raise EnvError(
                f"'{env_name}' shows no window: leave 'render' out, and draw pictures by render()"
            )
        quiet_mujoco()
        _find(env_name)
        self._name = env_name
        self._version = env_version or robosuite.__version__
        self._env_kwargs = deepcopy(env_kwargs)
        self._settings = render_settings
        settings, asked = render_settings, True
        if settings is None or not settings.cameras:
            asked = use_image_obs or bool(env_kwargs.get("use_camera_obs")) or reads is not None
            settings = RenderSettings.of_arguments(env_kwargs, settings)
        if use_depth_obs:
            settings = replace(settings, depth=True)
        self._cameras = Cameras(settings, reads if asked else (), _visible(env_kwargs))
        # robosuite 1.5.1 draws from NumPy's global generator, 1.5.2 from the environment's own.
        self._numbers = GlobalNumbers()
        with self._numbers.drawn():
            self.env = robosuite.make(env_name, **_arguments(env_kwargs, self._version))
        self._absolute = _any_absolute(self.env)
        for name in self.env.observation_names:
            if "joint_pos" in name or "eef_vel" in name:  # as robomimic does
                self.env.modify_observable(name, "active", True)
        self._obs: Observation = {}
        self._judged: tuple[float, dict[str, bool]] | None = None

    def reset(self, seed: int | None = None) -> Observation:
        """Starts an episode; see `EnvBase.reset`."""
        self.env.unset_ep_meta()
        return self._reset(seed)

    def _reset(self, seed: int | None = None) -> Observation:
        if seed is not None and hasattr(self.env, "rng"):
            fresh = np.random.default_rng(seed)
            self.env.rng.bit_generator.state = fresh.bit_generator.state
        with self._numbers.drawn(seed):
            self.env.reset()
        self._judged = None
        return self._observed()

    def step(self, action: Array) -> tuple[Observation, float, bool, dict[str, Any]]:
        """Plays one action; see `EnvBase.step`. `done` is never true."""
        with self._numbers.drawn():
            _, reward, _, info = self.env.step(action)
        # robosuite's reward is of positions one substep old, so success is of these, too.
        success = _success(self.env)
        self._judged = float(reward), success
        info = {**info, "is_success": dict(success), "terminated": False, "truncated": False}
        return self._observed(), float(reward), False, info

    def get_observation(self) -> Observation:
        """The last observation."""
        return dict(self._obs)

    def get_reward(self) -> float:
        """The last step's reward; that of the present state after `reset` and `reset_to`."""
        return float(self.env.reward()) if self._judged is None else self._judged[0]

    def is_done(self) -> bool:
        """False: an episode has no end of its own."""
        return False

    def is_success(self) -> dict[str, bool]:
        """Whether the last step solved the task, and further criteria of the environment.

        After `reset` and `reset_to` it is of the present state.
        """
        return _success(self.env) if self._judged is None else dict(self._judged[1])

    def get_state(self) -> dict[str, Any]:
        """The scene and its state.

        Returns:
            `states` `[S]`: time, positions and velocities; `model`: the scene as XML; `ep_meta`:
            JSON of the episode's objects and textures (robocasa's).
        """
        return {
            "model": self.env.sim.model.get_xml(),
            "states": np.array(self.env.sim.get_state().flatten()),
            "ep_meta": json.dumps(self.env.get_ep_meta(), indent=4),
        }

    def reset_to(self, state: Mapping[str, Any]) -> Observation:
        """Starts an episode in a state that `get_state` returned or a dataset holds.

        Args:
            state: `states` `[S]`; optionally `model` (or `model_file`, the name in datasets), the
                scene as XML, and `ep_meta`, JSON. Without a scene it is a state of the present one.

        Returns:
            The observation in that state. (robomimic takes it after one update of robosuite's
            observables, some of which are computed from others of the update before. It leaves the
            controllers where they were, so that the first action after a state aims from
            elsewhere; here they aim from the state.)

        Raises:
            EnvError: the scene or the state are of another environment or robosuite.
        """
        model = state.get("model", state.get("model_file"))
        if model is not None:
            try:
                self.env.set_ep_meta(json.loads(state.get("ep_meta") or "{}"))
                self._reset()
                with self._numbers.drawn():
                    self.env.reset_from_xml_string(self.env.edit_model_xml(model))
                    self.env.sim.reset()
            except Exception as error:  # XML and robosuite may raise anything
                raise EnvError(
                    f"'{self._name}' cannot load the scene of the state (data of robosuite "
                    f"{self._version}, and {robosuite.__version__} is installed): {reason(error)}"
                ) from error
        states = np.asarray(state["states"], np.float64)
        size = self.env.sim.get_state().flatten().shape
        if states.shape != size:
            raise EnvError(f"'{self._name}' has states of shape {size}, not {states.shape}")
        self.env.sim.set_state_from_flattened(states)
        self.env.sim.forward()
        _aim_from_here(self.env)
        self._judged = None
        return self._observed()

    def render(
        self,
        mode: str = "rgb_array",
        height: int | None = None,
        width: int | None = None,
        camera_name: str | None = None,
    ) -> npt.NDArray[np.uint8]:
        """Draws the cameras of the observations side by side, or one camera."""
        return self._cameras.picture(*_simulation(self.env), height, width, camera_name)

    def serialize(self) -> dict[str, Any]:
        """The `env_args` of a dataset."""
        meta = {
            "env_name": self._name,
            "env_version": self._version,
            "type": self.type,
            "env_kwargs": deepcopy(self._env_kwargs),
        }
        return described(meta, self._settings)

    def close(self) -> None:
        """Frees simulator and renderer."""
        self._cameras.close()
        self.env.close()

    @property
    def name(self) -> str:
        """The environment's name."""
        return self._name

    @property
    def type(self) -> int:
        """`EnvType.ROBOSUITE_TYPE`."""
        return EnvType.ROBOSUITE_TYPE

    @property
    def version(self) -> str:
        """The version of robosuite that is installed."""
        return str(robosuite.__version__)

    @property
    def action_dimension(self) -> int:
        """Number of action components A."""
        return len(self.env.action_spec[0])

    @property
    def action_bounds(self) -> tuple[Array, Array]:
        """Limits of the controllers' inputs; none for absolute ones, which are positions."""
        return super().action_bounds if self._absolute else self.env.action_spec

    @property
    def base_env(self) -> Any:
        """The environment of robosuite."""
        return self.env

    def _observed(self) -> Observation:
        given = _observations(self.env)
        prefixes = tuple(robot.robot_model.naming_prefix for robot in self.env.robots)
        obs = {
            key: np.array(value)
            for key, value in given.items()
            if key.startswith(prefixes) and not key.endswith("proprio-state")
        }
        if "object-state" in given:
            obs["object"] = np.array(given["object-state"])
        self._obs = obs | self._cameras.observe(*_simulation(self.env))
        return self.get_observation()


def _find(name: str) -> None:
    """Makes sure that robosuite knows an environment."""
    for package in _ADDITIONS:
        if name in robosuite.ALL_ENVIRONMENTS:
            return
        if find_spec(package.partition(".")[0]) is not None:
            try:
                import_module(package)
            except Exception as error:  # an import may raise anything
                raise EnvError(
                    f"robosuite has no environment '{name}', and {package}, which may have it, "
                    f"cannot be imported: {reason(error)}"
                ) from error
    if name not in robosuite.ALL_ENVIRONMENTS:
        raise UnknownEnvError(
            f"robosuite {robosuite.__version__} has no environment '{name}'"
            f"{did_you_mean(name, robosuite.ALL_ENVIRONMENTS)}; mimicgen's and robocasa's need "
            "their packages"
        )


def _visible(env_kwargs: Mapping[str, Any]) -> Any:
    """MuJoCo's choice of the geometries to draw, as robosuite makes it."""
    import mujoco

    options = mujoco.MjvOption()
    for argument, group, default in _MESHES:
        options.geomgroup[group] = bool(env_kwargs.get(argument, default))
    return options


def _arguments(env_kwargs: Mapping[str, Any], version: str) -> dict[str, Any]:
    """The arguments of the installed robosuite, from those of the robosuite of some data."""
    kept = {key: deepcopy(value) for key, value in env_kwargs.items() if key not in _IGNORED}
    kwargs = {_RENAMED_ARGUMENTS.get(key, key): value for key, value in kept.items()}
    kwargs.update(_FORCED)
    if _before_1_5(version):
        kwargs.setdefault("lite_physics", False)
    robots = kwargs.get("robots")
    robots = [robots] if isinstance(robots, str) else robots
    configs = kwargs.get("controller_configs")
    if isinstance(robots, Sequence) and configs is not None:
        each = configs if isinstance(configs, list) else [configs] * len(robots)
        kwargs["controller_configs"] = [
            _composite(config, robot) for config, robot in zip(each, robots, strict=True)
        ]
    return kwargs


def _before_1_5(version: str) -> bool:
    try:
        return tuple(map(int, version.split(".")[:2])) < (1, 5)
    except ValueError:
        return False


def _composite(config: Any, robot: str) -> Any:
    """Translates a controller's config of robosuite 1.4 to 1.5; leaves one of 1.5 unchanged."""
    if not isinstance(config, Mapping) or "body_parts" in config or "type" not in config:
        return config
    part = {_RENAMED_OF_CONTROLLERS.get(key, key): value for key, value in config.items()}
    if part["type"] in _OSC:
        delta = part.pop("control_delta", True)
        part.setdefault("input_type", "delta" if delta else "absolute")
        part.setdefault("input_ref_frame", "world")
    parts = load_composite_controller_config(robot=robot)["body_parts"]
    arms = [arm for arm in ("right", "left") if arm in parts] or ["right"]
    return refactor_composite_controller_config(part, robot, arms)


# The functions below are all that reads private parts of robosuite.


def _observations(env: Any) -> dict[str, Array]:
    """The observations of the present state.

    Some are computed from others, of the update before: so there are two updates. After a step,
    MuJoCo's positions of bodies are those before it; to update them moves the solver's starting
    point, which is put back, so that the simulation goes on as robosuite's does.
    """
    start = env.sim.data.qacc_warmstart.copy()
    env.sim.forward()
    env.sim.data.qacc_warmstart[:] = start
    env._get_observations(force_update=True)
    observations: dict[str, Array] = env._get_observations(force_update=True)
    return observations


def _success(env: Any) -> dict[str, bool]:
    """Whether the task is solved, and further criteria, by name."""
    success = env._check_success()
    criteria = success if isinstance(success, Mapping) else {"task": success}
    return {str(name): bool(met) for name, met in criteria.items()}


def _simulation(env: Any) -> tuple[Any, Any]:
    """MuJoCo's model and data, which robosuite wraps."""
    return env.sim.model._model, env.sim.data._data


def _aim_from_here(env: Any) -> None:
    """Lets the controllers know a state that was set, from which the next action is relative."""
    for robot in env.robots:
        for controller in robot.part_controllers.values():
            controller.update(force=True)
            if hasattr(controller, "reset_goal"):
                controller.reset_goal()


def _any_absolute(env: Any) -> bool:
    """Whether an arm's controller takes positions, and not changes."""
    controllers = (
        controller for robot in env.robots for controller in robot.part_controllers.values()
    )
    return any(getattr(part, "input_type", "delta") == "absolute" for part in controllers)
