"""Actions that are learned as rotations of six numbers, and played as three.

Six numbers have no jumps, which angles have (Zhou et al. 2019, arXiv:1812.07035). They are the
first two rows of the rotation matrix, as in robomimic's datasets (`action_dict/rel_rot_6d`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

_TINY = 1e-12


def matrix(six: Array) -> NDArray[np.float64]:
    """The rotation matrix `[..., 3, 3]` of six numbers `[..., 6]`, made orthonormal.

    The second row loses its part along the first; the third is perpendicular to both.
    """
    six = np.asarray(six, np.float64)
    first = _unit(six[..., :3])
    second = six[..., 3:]
    second = _unit(second - (first * second).sum(-1, keepdims=True) * first)
    return np.stack([first, second, np.cross(first, second)], axis=-2)


def axis_angle(six: Array) -> NDArray[np.float64]:
    """The axis times the angle [rad], `[..., 3]`; the angle is in [0, pi].

    Args:
        six: `[..., 6]`.
    """
    m = matrix(six)
    x, y, z = m[..., 0, 0], m[..., 1, 1], m[..., 2, 2]
    # Four times the product of the unit quaternion (w, x, y, z) with itself: each row is a multiple
    # of it, and the one with the greatest diagonal is the most exact.
    products = np.empty((*m.shape[:-2], 4, 4))
    for i, diagonal in enumerate((1 + x + y + z, 1 + x - y - z, 1 - x + y - z, 1 - x - y + z)):
        products[..., i, i] = diagonal
    for i, j, k in ((1, 2, 3), (2, 3, 1), (3, 1, 2)):
        upper, lower = m[..., k - 1, j - 1], m[..., j - 1, k - 1]
        products[..., 0, i] = products[..., i, 0] = upper - lower
        products[..., j, k] = products[..., k, j] = upper + lower
    greatest = np.argmax(np.diagonal(products, axis1=-2, axis2=-1), axis=-1)
    quaternion = _unit(np.take_along_axis(products, greatest[..., None, None], axis=-2)[..., 0, :])
    quaternion = np.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    sine = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., :1])
    scale = np.where(sine > _TINY, angle / np.maximum(sine, _TINY), 2.0)
    return np.asarray(quaternion[..., 1:] * scale)


def euler(six: Array) -> NDArray[np.float64]:
    """The angles [rad] around x, then the new y, then the new z, `[..., 3]`.

    Args:
        six: `[..., 6]`.
    """
    m = matrix(six)
    angles = [
        np.arctan2(-m[..., 1, 2], m[..., 2, 2]),
        np.arcsin(np.clip(m[..., 0, 2], -1, 1)),
        np.arctan2(-m[..., 0, 1], m[..., 0, 0]),
    ]
    return np.stack(angles, axis=-1)


_CONVERSIONS: Mapping[str, Callable[[Array], NDArray[np.float64]]] = {
    "rot_axis_angle": axis_angle,
    "rot_euler": euler,
}


def as_played(actions: Array, widths: Mapping[str, int], conversions: Mapping[str, str]) -> Array:
    """Actions as an environment takes them, of those that a policy learns.

    Args:
        actions: `[..., A]`, the action keys side by side, not normalised.
        widths: components of each action key, in order.
        conversions: the form of each rotation that is to be converted: `rot_axis_angle` or
            `rot_euler`, see `BaseConfig.converted_actions`.

    Returns:
        `[..., A']`, of the same type: three components of each converted key.

    Source: robomimic/algo/algo.py, `RolloutPolicy.__call__`.
    """
    if not conversions:
        return actions
    ends = np.cumsum(list(widths.values()))[:-1]
    parts = dict(zip(widths, np.split(actions, ends, axis=-1), strict=True))
    for key, form in conversions.items():
        parts[key] = _CONVERSIONS[form](parts[key]).astype(actions.dtype)
    return np.concatenate(list(parts.values()), axis=-1)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, _TINY))
