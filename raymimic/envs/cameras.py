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
from raymimic.envs.rendering import gl_context, use_renderer
from raymimic.errors import EnvError, did_you_mean, reason

logger = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]

DEFAULT = "default"
"""The name of the view that an environment has of its own, which is no camera of its model."""

_MOST_GEOMETRIES = 10_000  # as many as robosuite draws

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
        self._options = options or mujoco.MjvOption()
        self._canvases: dict[tuple[int, int], _Canvas] = {}
        self._free = functools.partial(_free, self._canvases)
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
            image, depth = self._draw(model, data, name, *size)
            if self._reads is None or name + IMAGE in self._reads:
                images[name + IMAGE] = image
            if self._settings.depth and (self._reads is None or name + DEPTH in self._reads):
                images[name + DEPTH] = depth[..., None]
        return images

    def picture(
        self,
        model: Any,
        data: Any,
        height: int | None = None,
        width: int | None = None,
        camera: str | None = None,
    ) -> Picture:
        """Draws a picture for people: the views of all cameras side by side.

        Args:
            model: an `MjModel`.
            data: its `MjData`.
            height: of each view; the observations' by default, times the least whole number that
                makes it at least 240.
            width: of each view; in the observations' proportion by default.
            camera: the only one to draw.

        Returns:
            `[H, W, 3]`.
        """
        settings = self._settings
        height = height or settings.height * max(1, -(-FILM_HEIGHT // settings.height))
        width = width or max(1, round(settings.width * height / settings.height))
        views = settings.cameras or (DEFAULT,) if camera is None else (camera,)
        drawn = [self._draw(model, data, name, height, width)[0] for name in views]
        return np.concatenate(drawn, axis=1)

    def _draw(
        self, model: Any, data: Any, name: str, height: int, width: int
    ) -> tuple[Picture, npt.NDArray[np.float32]]:
        return self._canvas(model, height, width).draw(
            data, self._camera(model, name), self._options, self._settings
        )

    def _camera(self, model: Any, name: str) -> mujoco.MjvCamera:
        camera = mujoco.MjvCamera()
        number: int = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if number >= 0:
            camera.type, camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, number
        elif name != DEFAULT:
            raise EnvError(
                f"'render.cameras' names the camera '{name}', which this environment lacks"
                f"{did_you_mean(name, [*camera_names(model), DEFAULT])}"
            )
        elif self.default is not None:
            return self.default
        else:
            mujoco.mjv_defaultFreeCamera(model, camera)
        return camera

    def _canvas(self, model: Any, height: int, width: int) -> _Canvas:
        if model is not self._model:  # some simulators make a new one for each episode
            self.close()
            self._model = model
        canvas = self._canvases.get((height, width))
        if canvas is None:
            use_renderer()
            try:
                canvas = _Canvas(model, height, width, self._settings.multisampling)
            except Exception as error:  # OpenGL may raise anything
                raise EnvError(f"images cannot be rendered here: {reason(error)}") from error
            self._canvases[height, width] = canvas
            atexit.unregister(self._free)
            atexit.register(self._free)  # before MuJoCo ends OpenGL
        return canvas

    def close(self) -> None:
        """Frees the renderers; the next image makes new ones."""
        atexit.unregister(self._free)
        self._free()
        self._model = None

    def __del__(self) -> None:
        self.close()


def _free(canvases: dict[Any, _Canvas]) -> None:
    for canvas in canvases.values():
        canvas.close()
    canvases.clear()


class _Canvas:
    """An OpenGL context for images of one size.

    MuJoCo's own `Renderer` draws a scene again for its depth, without transparency: what robosuite
    hides by transparency would be in the depth.

    Args:
        model: an `MjModel`.
        height: in pixels.
        width: in pixels.
        samples: of a pixel; None: the model's own number.
    """

    def __init__(self, model: Any, height: int, width: int, samples: int | None) -> None:
        self._gl: Any = None
        size, quality = model.vis.global_, model.vis.quality
        size.offheight, size.offwidth = max(size.offheight, height), max(size.offwidth, width)
        if samples is not None:
            quality.offsamples = samples
        self._model, self._size = model, (height, width)
        self._gl = gl_context(width, height)
        self._gl.make_current()
        self._scene = mujoco.MjvScene(model, maxgeom=_MOST_GEOMETRIES)
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR  # of greater precision

    def draw(
        self,
        data: Any,
        camera: mujoco.MjvCamera,
        options: mujoco.MjvOption,
        settings: RenderSettings,
    ) -> tuple[Picture, npt.NDArray[np.float32]]:
        """Draws an image `[H, W, 3]` and its depth `[H, W]` [m]."""
        self._gl.make_current()
        every = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, options, None, camera, every, self._scene)
        flags = mujoco.mjtRndFlag
        if settings.shadows is not None:
            self._scene.flags[flags.mjRND_SHADOW] = settings.shadows
        if settings.reflections is not None:
            self._scene.flags[flags.mjRND_REFLECTION] = settings.reflections
        height, width = self._size
        rectangle = mujoco.MjrRect(0, 0, width, height)
        image, depth = np.empty((height, width, 3), np.uint8), np.empty(self._size, np.float32)
        mujoco.mjr_render(rectangle, self._scene, self._context)
        mujoco.mjr_readPixels(image, depth if settings.depth else None, rectangle, self._context)
        return image[::-1].copy(), self._metres(depth[::-1]) if settings.depth else depth

    def _metres(self, depth: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The distance along the camera's axis of depths, which are 1 near and 0 far away."""
        extent, planes = self._model.stat.extent, self._model.vis.map
        near, far = planes.znear * extent, planes.zfar * extent
        metres: npt.NDArray[np.float32] = (far * near / (near + depth * (far - near))).astype(
            np.float32
        )
        return metres

    def close(self) -> None:
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None


def camera_names(model: Any) -> list[str]:
    """Names of a model's cameras."""
    names = (
        mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_CAMERA, number) for number in range(model.ncam)
    )
    return [name for name in names if name]
