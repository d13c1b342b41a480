"""robomimic's `env_utils`: makes environments."""

from collections.abc import Mapping, Sequence
from typing import Any

from raymimic.config import BaseConfig
from raymimic.envs.env_base import EnvBase, EnvType
from raymimic.envs.kinds import Kind, env_class, env_from_metadata
from raymimic.envs.render_settings import DEPTH, IMAGE, settings_of
from raymimic.envs.wrappers import EnvWrapper, FrameStackWrapper
from raymimic.errors import EnvError
from raymimic.utils import obs_utils
from raymimic.utils.log_utils import log_warning

AnyEnv = EnvBase | EnvWrapper


def get_env_type(
    env_meta: Mapping[str, Any] | None = None,
    env_type: Kind | None = None,
    env: AnyEnv | None = None,
) -> Kind:
    """Returns the kind of an environment.

    Args:
        env_meta: its description, as `env_args` of a dataset.
        env_type: the kind itself instead.
        env: the environment instead.

    Raises:
        EnvError: not exactly one is given.
    """
    if sum(given is not None for given in (env_meta, env_type, env)) != 1:
        raise EnvError("the kind of an environment follows from one of env_meta, env_type and env")
    if env_meta is not None:
        env_type = env_meta.get("type")
    elif env is not None:
        env_type = env.type
    return EnvType.GYM_TYPE if env_type is None else env_type


def get_env_class(
    env_meta: Mapping[str, Any] | None = None,
    env_type: Kind | None = None,
    env: AnyEnv | None = None,
) -> type[EnvBase]:
    """Returns the class of an environment; for the arguments see `get_env_type`.

    Raises:
        EnvError: no class plays that kind.
    """
    return env_class(get_env_type(env_meta, env_type, env))


def check_env_type(
    type_to_check: Kind,
    env_meta: Mapping[str, Any] | None = None,
    env_type: Kind | None = None,
    env: AnyEnv | None = None,
) -> bool:
    """Whether an environment is of a kind; for the other arguments see `get_env_type`."""
    return get_env_type(env_meta, env_type, env) == type_to_check


def is_robosuite_env(
    env_meta: Mapping[str, Any] | None = None,
    env_type: Kind | None = None,
    env: AnyEnv | None = None,
) -> bool:
    """Whether an environment is robosuite's; for the arguments see `get_env_type`."""
    return check_env_type(EnvType.ROBOSUITE_TYPE, env_meta, env_type, env)


def check_env_version(env: AnyEnv, env_meta: Mapping[str, Any]) -> None:
    """Warns if data come from another version of the simulator, or do not say from which."""
    recorded = env_meta.get("env_version")
    if recorded is None and env.version is not None:
        log_warning("the dataset does not say which version of the simulator it comes from")
    elif recorded is not None and recorded != env.version:
        log_warning(
            f"the dataset comes from version {recorded} of the simulator, and {env.version} is "
            "installed"
        )


def create_env(
    env_type: Kind,
    env_name: str,
    render: bool = False,
    render_offscreen: bool = False,
    use_image_obs: bool = False,
    use_depth_obs: bool = False,
    lang: str | None = None,
    **kwargs: Any,
) -> EnvBase:
    """Makes an environment.

    Args:
        env_type: its kind.
        env_name: its name.
        render: whether to show a window; not every kind can.
        render_offscreen: whether its `render` will be called.
        use_image_obs: whether observations hold images.
        use_depth_obs: whether they hold distances.
        lang: the instruction; policies are told it, and the environment is not.
        **kwargs: for its class.

    Raises:
        EnvError: it cannot be made.
    """
    env_meta = {"type": env_type, "env_name": env_name, "env_kwargs": kwargs, "lang": lang}
    return _made(env_meta, None, render, render_offscreen, use_image_obs, use_depth_obs)


def create_env_from_metadata(
    env_meta: Mapping[str, Any],
    env_name: str | None = None,
    render: bool = False,
    render_offscreen: bool = False,
    use_image_obs: bool = False,
    use_depth_obs: bool = False,
) -> EnvBase:
    """Makes the environment that a dataset or a checkpoint describes.

    Args:
        env_meta: as `env_args` of a dataset.
        env_name: another environment of the same kind with the same arguments.
        render: see `create_env`, as the others.
        render_offscreen: see `create_env`.
        use_image_obs: see `create_env`.
        use_depth_obs: see `create_env`.

    Raises:
        EnvError: it cannot be made.
    """
    env = _made(env_meta, env_name, render, render_offscreen, use_image_obs, use_depth_obs)
    check_env_version(env, env_meta)
    return env


def _made(
    env_meta: Mapping[str, Any],
    env_name: str | None,
    render: bool,
    render_offscreen: bool,
    use_image_obs: bool,
    use_depth_obs: bool,
) -> EnvBase:
    reads: dict[str, str] = {}
    if use_image_obs or use_depth_obs:
        settings = settings_of(env_meta)
        if use_image_obs:
            reads |= {name + IMAGE: "rgb" for name in settings.cameras}
        if use_depth_obs:
            reads |= {name + DEPTH: "depth" for name in settings.cameras}
            env_meta = {**env_meta, "render": {**settings.serialize(), "depth": True}}
    return env_from_metadata(env_meta, env_name, render_offscreen, reads, window=render)


def create_env_for_data_processing(
    env_meta: Mapping[str, Any],
    camera_names: Sequence[str],
    camera_height: int,
    camera_width: int,
    reward_shaping: bool,
    env_class: type[Any] | None = None,
    render: bool | None = None,
    render_offscreen: bool | None = None,
    use_image_obs: bool | None = None,
    use_depth_obs: bool | None = None,
) -> EnvBase:
    """Makes an environment in order to extract observations and rewards.

    Args:
        env_meta: as `env_args` of a dataset.
        camera_names: the cameras to draw.
        camera_height: of their images, in pixels.
        camera_width: of their images, in pixels.
        reward_shaping: robosuite's dense rewards, instead of sparse ones.
        env_class: makes it by its own `create_for_data_processing`.
        render: see `create_env`; None: False.
        render_offscreen: see `create_env`; None: whether there are cameras.
        use_image_obs: see `create_env`.
        use_depth_obs: see `create_env`; None: False.

    Raises:
        EnvError: it cannot be made.
    """
    sight = bool(camera_names)
    choices = {
        "render": bool(render),
        "render_offscreen": sight if render_offscreen is None else render_offscreen,
        "use_image_obs": sight if use_image_obs is None else use_image_obs,
        "use_depth_obs": bool(use_depth_obs),
    }
    kwargs = dict(env_meta.get("env_kwargs") or {})
    if env_class is not None:
        for own in ("env_name", "camera_names", "camera_height", "camera_width", "reward_shaping"):
            kwargs.pop(own, None)
        env: EnvBase = env_class.create_for_data_processing(
            env_name=env_meta["env_name"],
            camera_names=camera_names,
            camera_height=camera_height,
            camera_width=camera_width,
            reward_shaping=reward_shaping,
            **choices,
            **{key: value for key, value in kwargs.items() if key not in choices},
        )
    else:
        if is_robosuite_env(env_meta):
            kwargs["reward_shaping"] = reward_shaping
        described: dict[str, Any] = {**env_meta, "env_kwargs": kwargs}
        if sight:
            described["render"] = {
                **(env_meta.get("render") or {}),
                "cameras": list(camera_names),
                "height": camera_height,
                "width": camera_width,
            }
        env = _made(described, None, **choices)
    obs_utils.initialize_obs_utils_with_obs_specs(
        {
            "obs": {
                "low_dim": [],
                "rgb": [name + IMAGE for name in camera_names],
                "depth": [name + DEPTH for name in camera_names],
            }
        }
    )
    check_env_version(env, env_meta)
    return env


def set_env_specific_obs_processing(
    env_meta: Mapping[str, Any] | None = None,
    env_type: Kind | None = None,
    env: AnyEnv | None = None,
) -> None:
    """Has functions of `obs_utils` leave robosuite's distances, which are in metres, as they are.

    For the arguments see `get_env_type`.
    """
    if is_robosuite_env(env_meta, env_type, env):
        obs_utils.take_depth_as_it_is()


def wrap_env_from_config(env: EnvBase, config: BaseConfig) -> AnyEnv:
    """Has an environment stack its observations where `train.frame_stack` says so."""
    frames = config.train.frame_stack
    return FrameStackWrapper(env, frames) if frames > 1 else env
