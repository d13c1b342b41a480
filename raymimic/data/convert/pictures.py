"""Decodes untrusted pictures into arrays of a known shape."""

import io
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raymimic.data.writer import Array
from raymimic.errors import DatasetError


def decoded(
    pictures: Iterable[bytes | None],
    count: int,
    shape: tuple[int, ...],
    where: str,
    formats: Sequence[str] = ("JPEG",),
) -> Array:
    """Decodes pictures.

    Args:
        pictures: each the content of a file; None is missing.
        count: of them.
        shape: of each, `[H, W]`, `[H, W, 1]` or `[H, W, 3]`. A picture of another size is refused
            before its pixels are decoded.
        where: their name, for complaints.
        formats: that they may have, by Pillow's names.

    Returns:
        `[count, *shape]`: bytes; of depth, that is one number for each pixel, the type of the file.

    Raises:
        DatasetError: one is no picture of that shape.
    """
    out: NDArray[np.generic] = np.empty((0, *shape), np.uint8)
    for i, picture in enumerate(pictures):
        try:
            if picture is None:
                raise ValueError("it is not in the file itself")
            with Image.open(io.BytesIO(picture), formats=list(formats)) as image:
                if (image.height, image.width) != shape[:2]:
                    raise ValueError(f"it is {image.height}x{image.width}")
                is_depth = image.mode.startswith("I") or image.mode == "F"
                colours = "RGB" if shape[2:] == (3,) else "L"
                x = np.asarray(image if is_depth else image.convert(colours))
            if not i:
                out = np.empty((count, *shape), x.dtype)
            if x.dtype != out.dtype:
                raise ValueError(f"it holds {x.dtype}, and the first one {out.dtype}")
            out[i] = x.reshape(shape)
        except Exception as error:  # of damaged files Pillow raises anything
            raise DatasetError(
                f"{where}: row {i} is no picture ({', '.join(formats)}) of shape {list(shape)}"
                f" ({error}): it is damaged; copy or make it again"
            ) from error
    return out
