"""Images in files: checks that an observation's rows fit the modality that the config names.

Files hold images as robomimic does, channels last: colour as bytes of 0 to 255, distances as
floating-point numbers. Other forms would be read without a complaint, and train a policy on noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic.observations.modality import RGB, Depth, registered_modalities, takes

CHANNELS = {"rgb": RGB.channels, "depth": Depth.channels}
"""Channels of an image, by modality."""

_DARK = 5  # of 255: no camera that sees anything shows less everywhere
_SMALLEST_SIDE = 16  # of distances under `low_dim`: fewer are a table, not a picture


def objection(shape: Sequence[int], dtype: npt.DTypeLike, modality: str) -> str | None:
    """The reason why an observation does not fit the modality that the config lists it under.

    Args:
        shape: of a row.
        dtype: of the file.
        modality: its name; those that are not robomimic's take everything.

    Returns:
        The fault and its remedy, to follow "is listed as …, but"; None where there is none.
    """
    shape, dtype = tuple(shape), np.dtype(dtype)
    if modality == "low_dim":
        return _picture_objection(shape, dtype)
    if modality not in CHANNELS:
        return None
    channels = CHANNELS[modality]
    form = f"{modality} images are [H, W, {channels}]"
    if len(shape) != 3:
        rows = f"its rows have shape {list(shape)}, and {form}"
        if len(shape) == 2:
            return f"{rows}: write {_grown('x[..., None]', channels)}"
        return rows if len(shape) == 1 else f"{rows}: write one image a row"
    if _channels_first(shape):
        return _turn(shape)
    if shape[2] != channels:
        count = "one channel" if shape[2] == 1 else f"{shape[2]} channels"
        fault = f"its images {list(shape)} have {count}, and {form}"
        if fitting_modality(shape, dtype) is not None:
            return fault
        if shape[2] == 1:
            return f"{fault}: write {_grown('x', channels)}"
        return f"{fault}: " + (
            f"write x[..., :{channels}]" if shape[2] > channels else "leave it out"
        )
    if modality == "rgb" and dtype != np.uint8:
        return f"holds {dtype.name}, and colours are uint8, 0 to 255: write {_as_bytes(dtype)}"
    if modality == "depth" and dtype.kind != "f":
        return (
            f"holds {dtype.name}, and distances are floating-point numbers: write"
            " x.astype(np.float32), in a unit in which they are 0 to 1"
        )
    return None


def fitting_modality(shape: Sequence[int], dtype: npt.DTypeLike) -> str | None:
    """The modality that an observation fits; None where it fits none that raymimic knows.

    Args:
        shape: of a row.
        dtype: of the file.
    """
    if len(shape) == 2 and np.dtype(dtype) == np.uint8:
        return None  # a picture without an axis of channels
    fits = [
        name
        for name in registered_modalities()
        if takes(shape, name) and objection(shape, dtype, name) is None
    ]
    return min(fits, key=lambda name: (name not in CHANNELS, name), default=None)


def better_modality(shape: Sequence[int], dtype: npt.DTypeLike, listed: str) -> str | None:
    """The modality under which an observation is to be listed; None where it stays.

    Args:
        shape: of a row.
        dtype: of the file.
        listed: the modality under which it is listed.
    """
    if objection(shape, dtype, listed) is None or (listed in CHANNELS and len(shape) == 2):
        return None  # a row [H, W] of an image is no scan
    return fitting_modality(shape, dtype)


def likely_modality(shape: Sequence[int]) -> str | None:
    """The modality that images of this shape were probably meant for; None for other rows."""
    if len(shape) != 3:
        return None
    return "depth" if 1 in (shape[0], shape[2]) else "rgb"


def is_picture(shape: Sequence[int], modality: str | None) -> bool:
    """Whether an observation can be drawn for a person: an image, or a scan as curves.

    Args:
        shape: of a row.
        modality: its name, which may be the user's own; None: it has none.
    """
    if modality in (None, "low_dim", "lang"):
        return False
    is_scan = modality == "scan" and len(shape) == 2
    return is_scan or (len(shape) == 3 and shape[2] in CHANNELS.values())


def frame_faults(values: npt.NDArray[Any]) -> list[str]:
    """Says why a frame is of no use.

    Args:
        values: an image `[H, W, C]`, or a scan `[L, C]`.

    Returns:
        Its faults, to follow "is"; none of a frame that shows something.
    """
    faults = []
    numbers = values
    if values.dtype.kind == "f":
        numbers = values[np.isfinite(values)]
        if numbers.size < values.size:
            faults.append("not finite")
    if not numbers.size:
        return faults
    if numbers.dtype == np.uint8 and numbers.max() <= _DARK:
        faults.append("black")
    elif values.ndim == 3 and bool((values == values[:1, :1]).all()):
        faults.append("of one colour" if values.shape[2] == 3 else "constant")
    elif numbers.min() == numbers.max():
        faults.append("constant")
    return faults


def _picture_objection(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> str | None:
    """Why rows are no low-dimensional observation, but images."""
    if len(shape) != 3:
        return None
    if dtype == np.uint8 and _channels_first(shape):
        return f"holds images, and {_turn(shape)}"
    is_colour = dtype == np.uint8 and shape[2] == CHANNELS["rgb"]
    is_depth = dtype.kind == "f" and shape[2] == 1 and min(shape[:2]) >= _SMALLEST_SIDE
    if is_colour or is_depth:
        return f"holds images {list(shape)} of {dtype.name}"
    return None


def _grown(array: str, channels: int) -> str:
    """The expression that repeats the one channel of an array."""
    return array if channels == 1 else f"np.repeat({array}, {channels}, axis=-1)"


def _channels_first(shape: tuple[int, ...]) -> bool:
    counts = CHANNELS.values()
    return shape[0] in counts and shape[2] not in counts


def _turn(shape: tuple[int, ...]) -> str:
    return (
        f"its images {list(shape)} have the channels first, and files hold them last: write"
        " np.moveaxis(x, 1, -1)"
    )


def _as_bytes(dtype: np.dtype[np.generic]) -> str:
    if dtype.kind == "f":
        return "(255 * x).astype(np.uint8) if they are 0 to 1"
    if dtype == np.uint16:
        return "(x >> 8).astype(np.uint8) if they are 0 to 65535"
    return "x.astype(np.uint8)"
