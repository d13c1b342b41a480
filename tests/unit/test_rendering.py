"""The OpenGL backend of a process."""

import os
from pathlib import Path

import pytest
from tiny import run_process

from raymimic.envs import rendering
from raymimic.errors import EnvError


def test_missing_libraries_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setattr(rendering.ctypes.util, "find_library", lambda name: None)
    rendering._missing_library.cache_clear()
    try:
        with pytest.raises(EnvError, match="images cannot be rendered here") as refused:
            rendering.use_renderer()
    finally:
        rendering._missing_library.cache_clear()
    assert "libEGL is missing (Debian: libegl1 libegl-mesa0 libgl1-mesa-dri)" in str(refused.value)
    assert "libOSMesa is missing (Debian: libosmesa6)" in str(refused.value)


def test_the_first_backend_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(rendering.sys, "platform", "linux")
    monkeypatch.setattr(rendering, "_missing_library", lambda backend: None)
    assert rendering.choose(lambda backend: None) == "egl"
    assert rendering.choose(lambda backend: "broken" if backend == "egl" else None) == "osmesa"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")  # the user's choice is the only one
    with pytest.raises(EnvError, match=r"^osmesa: broken$"):
        rendering.choose(lambda backend: "broken" if backend == "osmesa" else None)


def test_the_reason_is_the_error_that_ended_the_process_in_one_line() -> None:
    class_of_context = (
        "class Context:\n"
        "    def __init__(self): raise ImportError('Cannot initialize a display')\n"
        "    def __del__(self): self.handle\n"
    )
    reason = rendering.run_probe(f"{class_of_context}Context()", [], "osmesa")
    assert reason == "ImportError: Cannot initialize a display"
    reason = rendering.run_probe(
        "class EGLError(Exception): pass\n"
        "raise EGLError('EGLError(\\n\\terr = EGL_NOT_INITIALIZED,\\n\\tresult = 0\\n)')",
        [],
        "osmesa",
    )
    assert reason == "EGLError: EGLError( err = EGL_NOT_INITIALIZED, result = 0 )"
    assert rendering.run_probe("import os; os._exit(3)", [], "osmesa") == (
        "the process ended with status 3"
    )


@pytest.mark.usefixtures("renderer")
def test_a_library_without_its_driver_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.environ["MUJOCO_GL"] != "egl":
        pytest.skip("this machine draws without EGL")
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/none.json")
    reason = rendering.works.__wrapped__("egl")
    assert "Error" in reason
    assert "_context" not in reason
    assert reason.endswith("(Debian: libegl1 libegl-mesa0 libgl1-mesa-dri)")


def test_egl_draws_on_the_gpu_that_the_process_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_EGL_DEVICE_ID", raising=False)
    monkeypatch.setattr(rendering, "_cuda_numbers", lambda: [None, 3, 1])
    for visible, device in (("1,3", "2"), ("3", "1"), ("0", None), ("", None), ("GPU-6b", None)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert rendering._variables("egl").get("MUJOCO_EGL_DEVICE_ID") == device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "MUJOCO_EGL_DEVICE_ID" not in rendering._variables("osmesa")
    monkeypatch.setenv("MUJOCO_EGL_DEVICE_ID", "7")  # the user's
    assert "MUJOCO_EGL_DEVICE_ID" not in rendering._variables("egl")


FORKED = """
import os
import mujoco, mujoco.renderer  # with the backend of a window
os.environ.pop("MUJOCO_GL", None)
from raymimic.envs.kinds import env_from_metadata
from raymimic.errors import EnvError
env = env_from_metadata({"env_name": "Hopper-v5", "render": {"cameras": ["track"]}})
print(env.reset(seed=0)["track_image"].std() > 1)
renderer = mujoco.Renderer(env.env.unwrapped.model, 8, 8)  # as OGBench draws
renderer.close()
env.close()
if os.fork() == 0:
    try:
        env.reset(seed=0)
    except EnvError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.slow
@pytest.mark.usefixtures("renderer")
def test_a_process_draws_after_mujocos_import_and_its_fork_does_not_wait(tmp_path: Path) -> None:
    ran = run_process("-c", FORKED, cwd=tmp_path)
    assert ran.status == 0, ran.err
    drawn, refused = ran.out.splitlines()
    assert drawn == "True"
    assert refused.startswith("this process was forked from one that had rendered")


@pytest.mark.usefixtures("renderer")
def test_the_cuda_numbers_of_egls_devices_are_asked_of_the_library() -> None:
    if os.environ["MUJOCO_GL"] != "egl":
        pytest.skip("this machine draws without EGL")
    numbers = rendering._cuda_numbers()
    assert len(numbers) >= 1  # one of them has drawn
    assert all(number is None or number >= 0 for number in numbers)
