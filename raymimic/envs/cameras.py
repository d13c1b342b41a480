"""Images of a MuJoCo simulation, for all kinds of environments that MuJoCo simulates."""

from __future__ import annotations

import atexit
import functools
import logging
from collections.abc import Collection
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt

from raymimic.envs.env_base import Observation
from raymimic.envs.render_settings import DEPTH, IMAGE, RenderSettings
from raymimic.envs.rendering import check_not_forked, use_renderer
from raymimic.errors import EnvError, did_you_mean, reason

logger = logging.getLogger(__name__)

DEFAULT = "default"
"""The name of the view that an environment has of its own, which is no camera of its model."""

FILM_HEIGHT = 240
"""Least height of a picture for people, in pixels."""


def quiet_mujoco() -> None:
    """Sends MuJoCo's warnings to the log: it would write them to a file MUJOCO_LOG.TXT."""
    mujoco.set_mju_user_warning(lambda message: logger.debug("MuJoCo: %s", message))


class Cameras:
    """Draws a MuJoCo simulation through its cameras.

    Every kind of simulator draws with these, and not with a renderer of its own: so size, shadows,
    reflections and multisampling mean the same everywhere. An image is what the simulator's own
    renderer draws with the same settings.

    Args:
        settings: cameras and quality.
        reads: keys of the observations that are read; the other images are not drawn. None: all.
        options: the groups of geometries to draw; None: MuJoCo's own.
    """

    def __init__(
        self,
        settings: RenderSettings,
        reads: Collection[str] | None = None,
        options: mujoco.MjvOption | None = None,
    ) -> None:
        self._settings = settings
        self._reads = reads
        self._options = options
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._free = functools.partial(_free, self._renderers)
        self._model: Any = None
        self.default: mujoco.MjvCamera | None = None

    def observe(self, model: Any, data: Any) -> Observation:
        """Draws the observations that are read.

        Args:
            model: an `MjModel`.
            data: its `MjData`; positions are up to date.

        Returns:
            `<camera>_image` `[H, W, 3]` uint8, top row first, and `<camera>_depth` `[H, W, 1]`
            float32, the distance along the camera's axis in metres.

        Raises:
            EnvError: there is no such camera, or no renderer.
        """
        images: Observation = {}
        size = self._settings.height, self._settings.width
        for name in self._settings.cameras_for(self._reads):
            if self._reads is None or name + IMAGE in self._reads:
                images[name + IMAGE] = self._draw(model, data, name, *size)
            if self._settings.depth and (self._reads is None or name + DEPTH in self._reads):
                images[name + DEPTH] = self._draw(model, data, name, *size, depth=True)[..., None]
        return images

    def picture(
        self, model: Any, data: Any, height: int | None = None, width: int | None = None
    ) -> npt.NDArray[np.uint8]:
        """Draws a picture for people: the views of all cameras side by side.

        Args:
            model: an `MjModel`.
            data: its `MjData`.
            height: of each view; the observations' by default, times the least whole number that
                makes it at least 240.
            width: of each view; in the observations' proportion by default.

        Returns:
            `[H, W, 3]`.
        """
        settings = self._settings
        height = height or settings.height * max(1, -(-FILM_HEIGHT // settings.height))
        width = width or max(1, round(settings.width * height / settings.height))
        views = settings.cameras or (DEFAULT,)
        drawn = [self._draw(model, data, name, height, width) for name in views]
        return np.concatenate(drawn, axis=1)

    def _draw(
        self, model: Any, data: Any, name: str, height: int, width: int, depth: bool = False
    ) -> Any:
        camera = self._camera(model, name)
        renderer = self._renderer(model, height, width)
        renderer.update_scene(data, camera, self._options)
        if depth:
            renderer.enable_depth_rendering()
        else:
            renderer.disable_depth_rendering()
        flags, draws = renderer.scene.flags, mujoco.mjtRndFlag
        if self._settings.shadows is not None:
            flags[draws.mjRND_SHADOW] = self._settings.shadows
        if self._settings.reflections is not None:
            flags[draws.mjRND_REFLECTION] = self._settings.reflections
        return renderer.render()

    def _camera(self, model: Any, name: str) -> int | mujoco.MjvCamera:
        number: int = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if number >= 0:
            return number
        if name == DEFAULT:
            return -1 if self.default is None else self.default
        raise EnvError(
            f"'render.cameras' names the camera '{name}', which this environment has not got"
            f"{did_you_mean(name, [*camera_names(model), DEFAULT])}"
        )

    def _renderer(self, model: Any, height: int, width: int) -> mujoco.Renderer:
        if model is not self._model:  # some simulators make a new one for each episode
            self.close()
            self._model = model
        renderer = self._renderers.get((height, width))
        if renderer is None:
            check_not_forked()
            use_renderer()
            size, quality = model.vis.global_, model.vis.quality
            size.offheight, size.offwidth = max(size.offheight, height), max(size.offwidth, width)
            if self._settings.multisampling is not None:
                quality.offsamples = self._settings.multisampling
            try:
                renderer = mujoco.Renderer(model, height, width)
            except Exception as error:  # OpenGL may raise anything
                raise EnvError(f"images cannot be rendered here: {reason(error)}") from error
            self._renderers[height, width] = renderer
            atexit.unregister(self._free)
            atexit.register(self._free)  # before MuJoCo ends OpenGL
        return renderer

    def close(self) -> None:
        """Frees the renderers; the next image makes new ones."""
        atexit.unregister(self._free)
        self._free()
        self._model = None

    def __del__(self) -> None:
        self.close()


def _free(renderers: dict[Any, mujoco.Renderer]) -> None:
    for renderer in renderers.values():
        renderer.close()
    renderers.clear()


def camera_names(model: Any) -> list[str]:
    """Names of a model's cameras."""
    names = (
        mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, number) for number in range(model.ncam)
    )
    return [name for name in names if name]
