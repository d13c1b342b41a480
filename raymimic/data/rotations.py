"""Actions that are learned as rotations of six numbers, and played as three.

Six numbers have no jumps, which angles have (Zhou et al. 2019, arXiv:1812.07035). They are the
first two rows of the rotation matrix, as in robomimic's datasets (`action_dict/rel_rot_6d`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raymimic.rotations import rot_6d_to_axis_angle, rot_6d_to_euler_angles

Array = NDArray[Any]

_CONVERSIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "rot_axis_angle": rot_6d_to_axis_angle,
    "rot_euler": rot_6d_to_euler_angles,
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
        six = torch.from_numpy(np.asarray(parts[key], np.float64))
        parts[key] = _CONVERSIONS[form](six).numpy().astype(actions.dtype)
    return np.concatenate(list(parts.values()), axis=-1)
