"""The OpenGL backend of this process: EGL, else OSMesa, on the GPU that the process has.

MuJoCo, PyOpenGL and robosuite read environment variables when they are imported. So a process
chooses its backend before it imports a simulator, wherever that process runs.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module, reload
from typing import Any

from raymimic.errors import EnvError

PROBE_TIMEOUT_S = 180.0
"""The first frame of a process takes seconds, and far longer on a busy machine."""

# The library of each of MuJoCo's headless backends, and the Debian packages that contain it.
_LIBRARIES = {
    "egl": ("EGL", "libegl1 libegl-mesa0 libgl1-mesa-dri"),
    "osmesa": ("OSMesa", "libosmesa6"),
}

# The modules of MuJoCo that hold the backend, which they choose when they are imported.
_HOLDS_BACKEND = ("mujoco.rendering.classic.gl_context", "mujoco.gl_context")

_PROBE = """
import mujoco
model = mujoco.MjModel.from_xml_string("<mujoco><worldbody><geom size='1'/></worldbody></mujoco>")
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(mujoco.MjData(model))
assert renderer.render().shape == (16, 16, 3)
"""


def use_renderer() -> None:
    """Chooses the OpenGL backend of this process, unless the user did: `MUJOCO_GL`.

    Each candidate draws a picture in another process first, since one that fails leaves PyOpenGL
    unusable, or ends the process.

    Raises:
        EnvError: none draws; the sentence names the missing parts. Or a parent of this process has
            rendered before it forked this one.
    """
    _check_not_forked()
    try:
        adopt(choose(works))
    except EnvError as error:
        raise EnvError(f"images cannot be rendered here ({error})") from error


def gl_context(width: int, height: int) -> Any:
    """Makes an OpenGL context of the chosen backend.

    MuJoCo's `GLContext` is that of the backend at the time of its import.
    """
    return import_module(f"mujoco.{os.environ['MUJOCO_GL']}").GLContext(width, height)


def choose(failure: Callable[[str], str | None]) -> str:
    """Returns the first backend that works.

    Args:
        failure: tells why one does not work; None if it does.

    Raises:
        EnvError: none works; it lists the reasons.
    """
    reasons = []
    for backend in _candidates():
        if reason := _missing_library(backend) or failure(backend):
            reasons.append(f"{backend}: {reason}")
        else:
            return backend
    raise EnvError("; ".join(reasons))


@functools.cache
def _missing_library(backend: str) -> str | None:
    library, _ = _LIBRARIES.get(backend, (None, ""))
    if library is None or ctypes.util.find_library(library) is not None:
        return None
    return f"library lib{library} is missing{_packages(backend)}"


def _packages(backend: str) -> str:
    """The Debian packages of a backend, since a library without its driver fails too."""
    return f" (Debian: {_LIBRARIES[backend][1]})" if backend in _LIBRARIES else ""


def _candidates() -> list[str]:
    if given := os.environ.get("MUJOCO_GL"):
        return [given]
    if sys.platform != "linux":
        return ["cgl" if sys.platform == "darwin" else "glfw"]
    return ["egl", "osmesa", *(["glfw"] if os.environ.get("DISPLAY") else [])]


@functools.cache  # the answer holds as long as this process
def works(backend: str) -> str | None:
    """Returns why a backend draws no picture; None if it does."""
    reason = run_probe(_PROBE, [], backend)
    return None if reason is None else f"{reason}{_packages(backend)}"


def run_probe(code: str, arguments: list[str], backend: str) -> str | None:
    """Runs Python code with a backend, in another process.

    Args:
        code: for Python's `-c`.
        arguments: of the code.
        backend: for MuJoCo.

    Returns:
        why it failed, in one line; None if it did not.
    """
    folders = [folder or os.getcwd() for folder in sys.path]  # noqa: PTH109 # text for Python
    try:
        probe = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            env={**os.environ, **_variables(backend), "PYTHONPATH": os.pathsep.join(folders)},
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame after {PROBE_TIMEOUT_S:.0f} s"
    if probe.returncode == 0:
        return None
    error = _last_error(probe.stderr)
    if error is None:
        return f"the process ended with status {probe.returncode}"
    return error.removeprefix(f"{EnvError.__module__}.{EnvError.__name__}: ")


def _last_error(stderr: str) -> str | None:
    """The exception that ended a process, in one line.

    Those of destructors, which Python ignores, often follow it: a half-made context has no parts
    to free.

    Args:
        stderr: of the process.
    """
    last, is_ignored, is_open = None, False, False
    for line in stderr.splitlines():
        if is_open and last is not None:  # PyOpenGL's errors take several lines
            last, is_open = f"{last} {line.strip()}", line.strip() != ")"
        elif line.startswith("Exception ignored"):
            is_ignored = True
        elif "Error" in line and not line[:1].isspace():
            if not is_ignored:
                last, is_open = line.strip(), line.endswith("(")
            is_ignored = False
    return last


def adopt(backend: str) -> None:
    """Makes this process draw with a backend, on its own GPU."""
    os.environ.update(_variables(backend))
    for name in _HOLDS_BACKEND:
        module = sys.modules.get(name)
        if module is not None and not _is_held(module, backend):
            reload(module)


def _is_held(module: object, backend: str) -> bool:
    """Whether a module of MuJoCo that chooses a backend on import has chosen this one."""
    context = getattr(module, "GLContext", None)
    return context is None or context.__module__ == f"mujoco.{backend}"


def _variables(backend: str) -> dict[str, str]:
    """The environment variables of a backend."""
    variables = {"MUJOCO_GL": backend}
    if backend in _LIBRARIES:
        variables["PYOPENGL_PLATFORM"] = backend
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
    if backend == "egl" and "MUJOCO_EGL_DEVICE_ID" not in os.environ and gpu.isdigit():
        devices = _cuda_numbers()
        if int(gpu) in devices:
            variables["MUJOCO_EGL_DEVICE_ID"] = str(devices.index(int(gpu)))
    return variables


@functools.cache  # drivers keep what they have found
def _cuda_numbers() -> list[int | None]:
    """The CUDA number of each of EGL's devices, in EGL's order; None for one without CUDA.

    EGL lists devices in an order of its own (extensions EGL_EXT_device_enumeration,
    EGL_EXT_device_query and EGL_NV_device_cuda).
    """
    try:
        egl = ctypes.CDLL(ctypes.util.find_library("EGL"))
    except (OSError, TypeError):
        return []
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    list_devices = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    query = egl.eglGetProcAddress(b"eglQueryDeviceAttribEXT")
    if not list_devices or not query:
        return []
    devices, count = (ctypes.c_void_p * 64)(), ctypes.c_int()
    pointer = ctypes.c_void_p
    if not ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, pointer, pointer)(list_devices)(
        len(devices), ctypes.byref(devices), ctypes.byref(count)
    ):
        return []
    attribute = ctypes.CFUNCTYPE(ctypes.c_uint, pointer, ctypes.c_int, pointer)(query)
    numbers: list[int | None] = []
    for device in devices[: count.value]:
        number = ctypes.c_ssize_t()
        found = attribute(device, _EGL_CUDA_DEVICE_NV, ctypes.byref(number))
        numbers.append(number.value if found else None)
    return numbers


_EGL_CUDA_DEVICE_NV = 0x323A


def _check_not_forked() -> None:
    """Makes sure that no parent of this process has rendered before it forked this one.

    Its copy of the renderer would wait for threads that a fork does not copy, for ever.

    Raises:
        EnvError: one has.
    """
    if _first_process() != os.getpid():
        raise EnvError(
            "this process was forked from one that had rendered, so it cannot render: start it "
            "with multiprocessing's 'spawn', or use a Ray actor"
        )


@functools.cache  # a forked process inherits the answer
def _first_process() -> int:
    return os.getpid()
