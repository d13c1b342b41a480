"""Settings of rendered observations: the entry `render` of a dataset's `env_args`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from raymimic.envs.env_base import EnvType
from raymimic.errors import EnvError, did_you_mean

IMAGE, DEPTH = "_image", "_depth"
"""Endings of the observations of a camera, after its name."""

_LARGEST = {"height": 4096, "width": 4096, "multisampling": 64}


@dataclass(frozen=True)
class RenderSettings:
    """How an environment draws its observations; None is the simulator's own way.

    Attributes:
        cameras: names of cameras, each of which gives an observation `<camera>_image`
            `[height, width, 3]` of bytes, top row first.
        height: of an image, in pixels.
        width: of an image, in pixels.
        depth: adds `<camera>_depth` `[height, width, 1]`, float32 metres.
        shadows: whether lights cast shadows.
        reflections: whether surfaces reflect.
        multisampling: samples of a pixel; 0 does not smooth edges.
    """

    cameras: tuple[str, ...] = ()
    height: int = 84
    width: int = 84
    depth: bool = False
    shadows: bool | None = None
    reflections: bool | None = None
    multisampling: int | None = None

    @classmethod
    def read(cls, given: Any) -> RenderSettings:
        """Reads and checks the entry `render` of `env_args`.

        Args:
            given: an object with any of the attributes.

        Raises:
            EnvError: it has another key, or a value of another type or size.
        """
        if not isinstance(given, Mapping):
            raise EnvError(
                f"'render' of 'env_args' is {given!r:.60}: it must be an object of settings, such "
                'as {"cameras": ["agentview"], "height": 84, "width": 84}'
            )
        known = [field.name for field in fields(cls)]
        values = {}
        for key, value in given.items():
            if key not in known:
                raise EnvError(
                    f"'render' of 'env_args' has an unknown key {key!r:.60}"
                    f"{did_you_mean(str(key), known)}"
                )
            if value is not None:
                values[key] = _checked(key, value)
        return cls(**values)

    @classmethod
    def of_arguments(
        cls, env_kwargs: Mapping[str, Any], quality: RenderSettings | None = None
    ) -> RenderSettings:
        """The cameras and the size in robosuite's arguments, in a given quality.

        Args:
            env_kwargs: `camera_names`, `camera_heights`, `camera_widths` and `camera_depths`, each
                a value or a list, with robosuite's defaults.
            quality: shadows, reflections and multisampling; None: the simulator's own.

        Raises:
            EnvError: the cameras are of several sizes.
        """
        names = env_kwargs.get("camera_names") or "agentview"
        settings = {
            **(quality.quality if quality else {}),
            "cameras": [names] if isinstance(names, str) else list(names),
            "height": _common(env_kwargs, "camera_heights", 256),
            "width": _common(env_kwargs, "camera_widths", 256),
            "depth": _common(env_kwargs, "camera_depths", False),
        }
        return cls.read(settings)

    @property
    def arguments(self) -> dict[str, Any]:
        """Cameras and size as robosuite's arguments, which robomimic plays with."""
        return {
            "camera_names": list(self.cameras),
            "camera_heights": self.height,
            "camera_widths": self.width,
            "camera_depths": self.depth,
        }

    @property
    def quality(self) -> dict[str, bool | int]:
        """The settings of shadows, reflections and edges that are not the simulator's own."""
        chosen = ("shadows", "reflections", "multisampling")
        return {key: value for key in chosen if (value := getattr(self, key)) is not None}

    def cameras_for(self, keys: Collection[str] | None) -> tuple[str, ...]:
        """Returns the cameras that observations of these keys need.

        Args:
            keys: observations; None: all.
        """
        if keys is None:
            return self.cameras
        return tuple(c for c in self.cameras if c + IMAGE in keys or c + DEPTH in keys)

    def serialize(self) -> dict[str, Any]:
        """The settings as JSON values, without those that are the simulator's own."""
        values = {key: value for key, value in asdict(self).items() if value is not None}
        return {**values, "cameras": list(self.cameras)}


def _common(env_kwargs: Mapping[str, Any], key: str, default: Any) -> Any:
    given = env_kwargs.get(key, default)
    values = given if isinstance(given, list | tuple) else [given]
    if any(value != values[0] for value in values):
        raise EnvError(
            f"'{key}' of 'env_kwargs' is {given}: cameras of one size are played; "
            "give it in 'render' of 'env_args'"
        )
    return values[0] if values else default


def _checked(key: str, value: Any) -> Any:
    if key == "cameras":
        names = isinstance(value, list | tuple) and all(
            isinstance(name, str) and name and name.isprintable() for name in value
        )
        if names and len(set(value)) == len(value):
            return tuple(value)
        expected = "a list of different names"
    elif key in ("height", "width", "multisampling"):
        least = 0 if key == "multisampling" else 1
        whole = isinstance(value, int) and not isinstance(value, bool)
        if whole and least <= value <= _LARGEST[key]:
            return value
        expected = f"a whole number from {least} to {_LARGEST[key]}"
    else:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    raise EnvError(f"'render.{key}' of 'env_args' is {value!r:.60}: it must be {expected}")


def settings_of(env_meta: Mapping[str, Any]) -> RenderSettings:
    """The settings that an environment draws with.

    Args:
        env_meta: `env_args`. Without `render`, or without cameras in it, those of robosuite are in
            its `env_kwargs`.

    Raises:
        EnvError: they cannot be read.
    """
    settings = RenderSettings.read(env_meta.get("render") or {})
    if settings.cameras or env_meta.get("type") != EnvType.ROBOSUITE_TYPE:
        return settings
    return RenderSettings.of_arguments(env_meta.get("env_kwargs") or {}, settings)


def described(env_meta: Mapping[str, Any], settings: RenderSettings | None) -> dict[str, Any]:
    """Adds the entry `render` to `env_args`, if there are settings."""
    return dict(env_meta) if settings is None else {**env_meta, "render": settings.serialize()}


def difference(data: Mapping[str, Any], played: Mapping[str, Any]) -> str | None:
    """Describes how images of an evaluation differ from those of the data.

    Args:
        data: `env_args` of the dataset.
        played: `env_args` of the evaluation.

    Returns:
        the settings that differ, such as `shadows false, not true`; None if none does.

    Raises:
        EnvError: settings cannot be read.
    """
    old, new = settings_of(data), settings_of(played)
    if old == new:
        return None
    return ", ".join(
        f"{field.name} {_said(getattr(new, field.name))}, not {_said(getattr(old, field.name))}"
        for field in fields(RenderSettings)
        if getattr(new, field.name) != getattr(old, field.name)
    )


def _said(value: Any) -> str:
    if value is None:
        return "as the simulator has it"
    if isinstance(value, tuple):
        return " and ".join(value) or "none"
    return str(value).lower()
