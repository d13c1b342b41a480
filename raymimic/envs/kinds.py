"""The kinds of environments: which class plays an environment that a dataset describes.

To add a kind, write a class that extends `EnvBase` and list it in `_KINDS`, or, in a module of your
own that `--import` names, put `@register_env_kind("my kind")` before it.
"""

import inspect
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any, TypeVar

from raymimic.envs.env_base import EnvBase, EnvType
from raymimic.envs.render_settings import DEPTH, IMAGE, RenderSettings
from raymimic.envs.rendering import use_renderer
from raymimic.errors import ConfigError, EnvError, perhaps, pip_install
from raymimic.user_modules import check_imported, module_of, own_reason

Kind = int | str
EnvClass = TypeVar("EnvClass", bound=type[EnvBase])

DEFAULT_KIND = EnvType.GYM_TYPE
"""The kind of an environment whose description has no `type`."""


@dataclass(frozen=True)
class OwnKind:
    """A kind that comes with raymimic.

    Attributes:
        place: `module:class`, to import once an environment of the kind is needed.
        package: the simulator, which is an extra of the same name; empty: it is always there.
        too_new: the version of MuJoCo from which on the simulator is known to fail.
    """

    place: str
    package: str = ""
    too_new: tuple[int, ...] = ()


_KINDS: dict[Kind, OwnKind | type[EnvBase]] = {
    EnvType.ROBOSUITE_TYPE: OwnKind(
        "raymimic.envs.env_robosuite:EnvRobosuite", "robosuite", (3, 10)
    ),
    EnvType.GYM_TYPE: OwnKind("raymimic.envs.env_gym:EnvGym"),
    "metaworld": OwnKind("raymimic.envs.env_metaworld:EnvMetaworld", "metaworld", (3, 12)),
}

# Names, for messages, of numbers of robomimic without a class here.
_NAMES = {EnvType.IG_MOMART_TYPE: "iGibson"}

# Entries of `env_kwargs` that say how the recorder ran its environment: raymimic decides that.
_RECORDERS_OWN = {
    *("self", "id", "env_name", "render", "render_offscreen", "render_mode"),
    *("use_image_obs", "use_depth_obs", "render_settings", "reads", "disable_env_checker"),
}


class UnknownEnvError(EnvError):
    """No environment of this name, or no kind of this type, is registered in this process."""


def register_env_kind(kind: Kind) -> Callable[[EnvClass], EnvClass]:
    """Registers the decorated class as a kind of environments.

    An environment is made by `cls(env_name, render_offscreen=…, **env_kwargs)`.

    Args:
        kind: the `type` in `env_args` of datasets: robomimic's number, or a name.

    Raises:
        ConfigError: the class does not extend `EnvBase`, or another class has that kind.
    """

    def register(cls: EnvClass) -> EnvClass:
        name = _place(cls)
        if not (isinstance(cls, type) and issubclass(cls, EnvBase)):
            raise ConfigError(f"environment kind {kind!r}: {name} does not extend EnvBase")
        known = _KINDS.get(kind, cls)
        other = known.place if isinstance(known, OwnKind) else _place(known)
        if other != name:  # the same module may be imported again
            raise ConfigError(
                f"environment kind {kind!r} of {name} is taken by {other}: choose another name"
            )
        _KINDS[kind] = cls
        return cls

    return register


def _place(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def env_from_metadata(
    env_meta: Mapping[str, Any],
    env_name: str | None = None,
    render: bool = False,
    reads: Mapping[str, str] | None = None,
    window: bool = False,
) -> EnvBase:
    """Makes the environment that a dataset or a checkpoint describes.

    Its class is given those of these arguments that its constructor names: `render` (whether to
    show a window), `render_offscreen` (whether pictures will be asked for), `use_image_obs` and
    `use_depth_obs` (whether images or depth are read), `render_settings` (`RenderSettings`; None
    without the entry `render`), `reads` (the keys that are read; None: any) and `env_version`.

    Args:
        env_meta: `env_name`, `type` and, optionally, `env_kwargs` and `render`, as in `env_args`.
        env_name: another environment of the same kind with the same keyword arguments.
        render: whether `EnvBase.render` will be called.
        reads: the modality of each observation that will be read, so that no other image is drawn;
            None: any may be.
        window: whether to show the episodes on the screen.

    Raises:
        EnvError: the description is incomplete, the environment cannot be made, or it is to show a
            window and cannot.
    """
    name, kwargs = read_env_meta(env_meta, env_name)
    settings = render_settings(env_meta)
    version = env_meta.get("env_version")
    images, depth = _drawn(settings, reads)
    if images or depth or render:
        with suppress(EnvError):  # not all need OpenGL; those that do say what is missing
            use_renderer()  # before the simulator is imported
    offered = {
        "render": window,
        "render_offscreen": render,
        "use_image_obs": images,
        "use_depth_obs": depth,
        "render_settings": settings,
        "reads": reads,
        "env_version": version if isinstance(version, str) else None,
    }
    try:
        cls = env_class(_kind(env_meta))
        named = inspect.signature(cls).parameters
        if window and "render" not in named:
            raise EnvError(
                f"environment '{name}' shows no window: leave 'render' out, and draw its pictures "
                "(render_offscreen)"
            )
        if settings is not None and "render_settings" not in named:
            raise EnvError(
                f"environment '{name}' has settings 'render' in its 'env_args', and its class takes"
                " none: give its constructor the argument 'render_settings', or remove them"
            )
        make: Callable[..., EnvBase] = cls  # its arguments are its own
        return make(name, **{key: offered[key] for key in offered if key in named}, **kwargs)
    except EnvError:
        raise
    except Exception as error:  # an import or a constructor may raise anything
        raise EnvError(f"environment '{name}' {_failure(_kind(env_meta), error)}") from error


def render_settings(env_meta: Mapping[str, Any]) -> RenderSettings | None:
    """Reads the entry `render` of a description; None without one.

    Raises:
        EnvError: it is wrong.
    """
    given = env_meta.get("render")
    return None if given is None else RenderSettings.read(given)


def _drawn(settings: RenderSettings | None, reads: Mapping[str, str] | None) -> tuple[bool, bool]:
    """Whether images, and whether depth, will be read."""
    if reads is None:
        images = settings is not None and bool(settings.cameras)
        return images, images and settings is not None and settings.depth
    return (
        "rgb" in reads.values() or any(key.endswith(IMAGE) for key in reads),
        "depth" in reads.values() or any(key.endswith(DEPTH) for key in reads),
    )


def _failure(kind: Kind, error: Exception) -> str:
    """Why an environment of a kind cannot be made."""
    entry = _KINDS[kind]
    package, too_new = (entry.package, entry.too_new) if isinstance(entry, OwnKind) else ("", ())
    if isinstance(error, ImportError):
        if package and error.name == package:
            return f"needs {package}, which is not installed: {pip_install(package)}"
        return f"needs a package that cannot be imported: {own_reason(error)}"
    failure = f"cannot be made: {own_reason(error)}"
    if package:
        mujoco = metadata.version("mujoco")
        if tuple(map(int, mujoco.split(".")[:2])) >= too_new:
            newest = ".".join(map(str, too_new))
            return (
                f"{failure}; {package} {metadata.version(package)} is not known to run on MuJoCo "
                f"{mujoco}: pip install 'mujoco<{newest}'"
            )
    return failure


def env_class(kind: Kind | None) -> type[EnvBase]:
    """The class that plays environments of a kind, with its simulator imported.

    Args:
        kind: the `type` in `env_args`; None: gymnasium's.

    Raises:
        UnknownEnvError: no class plays that kind.
        ImportError: the simulator is not installed.
    """
    entry = _KINDS[_known(DEFAULT_KIND if kind is None else kind, "an environment")]
    if not isinstance(entry, OwnKind):
        return entry
    module, _, name = entry.place.partition(":")
    cls: type[EnvBase] = getattr(import_module(module), name)
    return cls


def _kind(env_meta: Mapping[str, Any]) -> Any:
    kind = env_meta.get("type")
    return DEFAULT_KIND if kind is None else kind


def _known(kind: Any, environment: str) -> Kind:
    """Makes sure that a kind of environments is registered.

    Raises:
        UnknownEnvError: it is not.
    """
    if isinstance(kind, bool) or not isinstance(kind, int | float | str) or kind not in _KINDS:
        called = f" ({_NAMES[kind]})" if type(kind) is int and kind in _NAMES else ""
        near = (
            perhaps(kind, [k for k in _KINDS if isinstance(k, str)])
            if isinstance(kind, str)
            else ""
        )
        raise UnknownEnvError(
            f"{environment} is of type {kind!r:.60}{called}{near}, and the known types are "
            f"{', '.join(map(repr, _KINDS))}: train with experiment.rollout.enabled=false, or name "
            "with --import a module that registers the type (raymimic.envs.kinds.register_env_kind)"
        )
    return kind  # type: ignore[return-value] # a float that equals a number is that number


def read_env_meta(
    env_meta: Mapping[str, Any], env_name: str | None = None
) -> tuple[str, dict[str, Any]]:
    """Reads the description of an environment, without making it.

    Args:
        env_meta: see `env_from_metadata`.
        env_name: replaces the description's own.

    Returns:
        Its name and its keyword arguments. Those that raymimic sets itself are left out: a name
        among them (robosuite stores one there), how to render, and gymnasium's checker.

    Raises:
        EnvError: the description is incomplete, or no environment that can be played, or its
            settings `render` are wrong.
        ModuleNotImportedError: its name asks for a module that is not imported.
    """
    name = env_meta.get("env_name") if env_name is None else env_name
    if name is None or name == "":
        raise EnvError("the environment has no name: 'env_args' of the dataset lacks 'env_name'")
    if not isinstance(name, str) or not name.isprintable():
        raise EnvError(f"the environment's name ('env_name' of 'env_args') is no text: {name!r}")
    if module := module_of(name):
        check_imported([module], f"environment '{name}'")
    _known(_kind(env_meta), f"environment '{name}'")
    kwargs = env_meta.get("env_kwargs")
    kwargs = {} if kwargs is None else kwargs
    if not isinstance(kwargs, Mapping) or not all(isinstance(key, str) for key in kwargs):
        raise EnvError(
            f"'env_kwargs' of environment '{name}' are {kwargs!r:.100}: they must be an object "
            "of arguments by name; experiment.env_meta_update_dict corrects them"
        )
    render_settings(env_meta)
    return name, {key: value for key, value in kwargs.items() if key not in _RECORDERS_OWN}
