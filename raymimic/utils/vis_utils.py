"""robomimic's `vis_utils`: looks at images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from raymimic.utils.obs_utils import unprocess_obs
from raymimic.utils.tensor_utils import to_numpy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = npt.NDArray[np.uint8]


def image_tensor_to_numpy(image: Tensor) -> Picture:
    """Turns images as networks see them `[..., 3, H, W]` into bytes `[..., H, W, 3]`."""
    picture: Picture = to_numpy(unprocess_obs(image, "rgb"))
    return picture


def image_to_disk(image: Picture, fname: str | Path) -> None:
    """Writes a picture `[H, W, 3]` to a file, in the format of its ending."""
    from PIL import Image

    Image.fromarray(image).save(fname)


def image_tensor_to_disk(image: Tensor, fname: str | Path) -> None:
    """Writes the first of the images `[..., 3, H, W]` to a file."""
    image_to_disk(image_tensor_to_numpy(image.reshape(-1, *image.shape[-3:])[0]), fname)


def depth_to_rgb(
    depth_map: npt.NDArray[Any], depth_min: float | None = None, depth_max: float | None = None
) -> Picture:
    """Colours distances, from black (near) over red to white (far).

    Args:
        depth_map: `[H, W]` or `[H, W, 1]`.
        depth_min: the distance that is black; None: the least.
        depth_max: the distance that is white; None: the greatest.

    Returns:
        `[H, W, 3]`.
    """
    from matplotlib import colormaps

    depth = np.asarray(depth_map, np.float64)
    depth = depth[..., 0] if depth.ndim == 3 else depth
    low = depth.min() if depth_min is None else depth_min
    high = depth.max() if depth_max is None else depth_max
    share = (depth - low) / (high - low) if high > low else np.zeros_like(depth)
    picture: Picture = colormaps["hot"](share, bytes=True)[..., :3]
    return picture


def visualize_image_randomizer(
    original_image: npt.NDArray[Any],
    randomized_image: npt.NDArray[Any],
    randomizer_name: str | None = None,
) -> Figure:
    """Shows images beside their randomized variants.

    Args:
        original_image: `[B, H, W, 3]`.
        randomized_image: `[B, N, H, W, 3]`.
        randomizer_name: the title.

    Returns:
        The figure, which is shown where matplotlib has windows.
    """
    from matplotlib import pyplot

    rows, variants = randomized_image.shape[:2]
    figure, axes = pyplot.subplots(
        rows, variants + 1, squeeze=False, figsize=(2 * variants + 2, 2 * rows)
    )
    for row in range(rows):
        pictures = [original_image[row], *randomized_image[row]]
        for axis, picture in zip(axes[row], pictures, strict=True):
            axis.imshow(picture)
            axis.axis("off")
    axes[0, 0].set_title("Original")
    figure.suptitle(randomizer_name or "Randomized")
    pyplot.show()  # nothing where matplotlib has no windows
    return figure
