"""Decodes pictures of JPEG, as `Pillow` does, into arrays whose shape is known."""

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raymimic.errors import DatasetError


def decoded(
    pictures: Iterable[bytes], count: int, shape: tuple[int, ...], where: str
) -> NDArray[np.uint8]:
    """Decodes pictures.

    Args:
        pictures: each a file of JPEG.
        count: of them.
        shape: of each, `[H, W]` or `[H, W, 3]`. A picture of another size is refused before its
            pixels are decoded.
        where: their name, for complaints.

    Returns:
        `[count, H, W]` or `[count, H, W, 3]`.

    Raises:
        DatasetError: one is no JPEG of that shape.
    """
    out = np.empty((0, 0, 0), np.uint8)
    for i, picture in enumerate(pictures):
        try:
            with Image.open(io.BytesIO(picture), formats=["JPEG"]) as image:
                if (image.height, image.width) != shape[:2]:
                    raise ValueError(f"it is {image.height}x{image.width}")
                if not i:
                    out = np.empty((count, *shape), np.uint8)
                out[i] = np.asarray(image)
        except Exception as error:  # of damaged files Pillow raises anything
            raise DatasetError(
                f"{where}: row {i} is no picture (JPEG) of shape {list(shape)} ({error}): it is"
                " damaged; copy or make it again"
            ) from error
    return out
