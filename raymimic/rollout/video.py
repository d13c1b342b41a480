"""Videos of episodes: what can render here, and mp4 files from frames."""

from __future__ import annotations

import ctypes.util
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic.errors import EnvError

Frame = npt.NDArray[np.uint8]

FPS = 20
"""robomimic's frame rate."""

_PROBE = """
import importlib, json, sys
env_meta, imports = json.loads(sys.argv[1])
for module in imports:
    importlib.import_module(module)
from raymimic.envs.env_base import env_from_metadata
env = env_from_metadata(env_meta, render=True)
env.reset(seed=0)
env.render()
"""
_PROBE_TIMEOUT_S = 60.0

# What each of MuJoCo's OpenGL backends loads, and the Debian packages that bring it.
_LIBRARIES = {
    "egl": ("EGL", "libegl1 libegl-mesa0 libgl1-mesa-dri"),
    "osmesa": ("OSMesa", "libosmesa6"),
}


def enable_rendering(env_meta: Mapping[str, Any], imports: Sequence[str] = ()) -> None:
    """Finds an OpenGL backend that renders this environment and chooses it for this process.

    Each candidate is tried in a process of its own, since a failed one leaves the OpenGL bindings
    unusable or ends the process. ``MUJOCO_GL``, when set, is the only candidate, and is what this
    function sets otherwise.

    Args:
        env_meta: the environment to render.
        imports: modules to import first (that register it).

    Raises:
        EnvError: nothing renders it; one line that names what is missing.
    """
    given = os.environ.get("MUJOCO_GL")
    reasons = []
    for backend in [given] if given else _candidates():
        library, packages = _LIBRARIES.get(backend, (None, ""))
        if library and ctypes.util.find_library(library) is None:
            reasons.append(f"{backend}: library lib{library} is missing (Debian: {packages})")
            continue
        failure = _probe(json.dumps([dict(env_meta), list(imports)]), backend)
        if failure is None:
            os.environ["MUJOCO_GL"] = backend
            return
        reasons.append(f"{backend}: {failure}")
    name = env_meta.get("env_name")
    raise EnvError(f"'{name}' cannot be rendered here ({'; '.join(reasons)})")


def _candidates() -> list[str]:
    if sys.platform != "linux":
        return ["glfw"]
    windowed = ["glfw"] if os.environ.get("DISPLAY") else []
    return ["egl", "osmesa", *windowed]


@functools.cache  # what this machine can do does not change from one evaluation to the next
def _probe(request: str, backend: str) -> str | None:
    """Why this backend does not render; None when it does."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE, request],
            env={**os.environ, "MUJOCO_GL": backend, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=_PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame after {_PROBE_TIMEOUT_S:.0f} s"
    if probe.returncode == 0:
        return None
    errors = [line for line in probe.stderr.splitlines() if "Error" in line]
    return errors[-1].strip() if errors else f"the process ended with status {probe.returncode}"


def encode_mp4(frames: Sequence[Frame], fps: int = FPS) -> bytes:
    """Makes an mp4 file (H.264).

    Args:
        frames: ``[H, W, 3]`` pictures of one size, at least one.
        fps: frames per second.

    Returns:
        The file's contents.
    """
    import imageio

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        imageio.mimwrite(path, list(frames), fps=fps)
        return path.read_bytes()
