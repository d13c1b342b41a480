"""Videos of episodes: finds a way to render, and makes mp4 files of frames."""

import functools
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic import storage
from raymimic.envs.rendering import adopt, choose, run_probe
from raymimic.errors import EnvError

Picture = npt.NDArray[np.uint8]

FPS = 20
"""robomimic's frame rate."""

# Rows below which a picture is enlarged, so that its caption is readable.
_LEAST_HEIGHT = 240

_PROBE = """
import importlib, json, sys
env_meta, imports = json.loads(sys.argv[1])
for module in imports:
    importlib.import_module(module)
from raymimic.envs.kinds import env_from_metadata
env = env_from_metadata(env_meta, render=True)
env.reset(seed=0)
env.render()
"""


def enable_rendering(env_meta: Mapping[str, Any], imports: Sequence[str] = ()) -> None:
    """Finds an OpenGL backend that renders this environment, and makes this process draw with it.

    Each candidate is tried in another process, since a failed one leaves the OpenGL bindings
    unusable or ends the process. If `MUJOCO_GL` is set already, it is the only candidate.

    Args:
        env_meta: the environment to render.
        imports: modules to import first, which register it.

    Raises:
        EnvError: no backend renders it; the line names the missing parts.
    """
    request = json.dumps([dict(env_meta), list(imports)])
    try:
        adopt(choose(functools.partial(_renders, request)))
    except EnvError as error:
        name = env_meta.get("env_name")
        raise EnvError(f"'{name}' cannot be rendered here ({error})") from error


@functools.cache  # the answer holds for all evaluations on this machine
def _renders(request: str, backend: str) -> str | None:
    """Why this backend does not render; None if it does."""
    return run_probe(_PROBE, [request], backend)


def captioned(picture: Picture, *lines: str) -> Picture:
    """Writes lines of text into a picture's upper left corner.

    Args:
        picture: `[H, W, 3]`. One of fewer than 240 rows is enlarged, by a whole number.
        lines: of text, from the top.

    Returns:
        a new picture `[kH, kW, 3]`.
    """
    from PIL import Image, ImageDraw

    scale = max(1, math.ceil(_LEAST_HEIGHT / len(picture)))
    image = Image.fromarray(picture.repeat(scale, axis=0).repeat(scale, axis=1))
    size = image.height // 16
    corner = (size // 2, size // 2)
    ImageDraw.Draw(image).multiline_text(
        corner,
        "\n".join(lines),
        fill="white",
        font=_font(size),
        stroke_width=max(1, size // 8),
        stroke_fill="black",  # so that it is readable on any ground
    )
    return np.asarray(image)


@functools.cache  # to read it takes longer than to draw a caption
def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def encode_mp4(frames: Sequence[Picture], fps: int = FPS) -> bytes:
    """Makes an mp4 file (H.264).

    Args:
        frames: `[H, W, 3]` pictures of one size, at least one.
        fps: frames per second.

    Returns:
        the file's content, see `writing_mp4`.

    Raises:
        ValueError: the pictures have several sizes.
    """
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError("they are of several sizes")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        with writing_mp4(path, fps) as add:
            for frame in frames:
                add(frame)
        return path.read_bytes()


@contextmanager
def writing_mp4(path: Path, fps: int = FPS) -> Iterator[Callable[[Picture], None]]:
    """Writes an mp4 file (H.264) frame by frame; it appears once the block is complete.

    Args:
        path: of the file; an existing one is replaced.
        fps: frames per second.

    Yields:
        a function that adds a picture `[H, W, 3]`. It raises ValueError if the picture is of
        another size than the first. H.264 takes even sizes only: the last row or column is
        repeated.

    Raises:
        OSError: the file cannot be written.
    """
    import imageio

    shapes: set[tuple[int, ...]] = set()
    with storage.writing_file(path, ".part.mp4") as part:
        opened: Any = imageio.get_writer(part, fps=fps, macro_block_size=2)
        with opened as writer:

            def add(frame: Picture) -> None:
                shapes.add(frame.shape)
                if len(shapes) > 1:
                    raise ValueError("they are of several sizes")
                height, width, *rest = frame.shape
                edges = [(0, height % 2), (0, width % 2), *((0, 0) for _ in rest)]
                writer.append_data(np.pad(frame, edges, mode="edge"))

            yield add
