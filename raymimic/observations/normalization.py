"""Normalisation of observations, and of actions, by statistics of the training data."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = TypeVar("Array", Tensor, NDArray[Any])


def stats_to_tensors(
    stats: Mapping[str, Mapping[str, Any]], device: torch.device, dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """Puts normalisation statistics (arrays, lists or tensors) onto a device."""
    return {
        key: {
            name: torch.as_tensor(np.asarray(x), dtype=dtype, device=device)
            for name, x in entry.items()
        }
        for key, entry in stats.items()
    }


def normalize_dict(
    values: Mapping[str, Array], normalization_stats: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Normalises: `(x - offset) / scale`.

    Args:
        values: arrays or tensors `[..., *shape]`.
        normalization_stats: for each key `offset` and `scale`, `[1, *shape]`.

    Returns:
        A new dict, with the shapes of `values`.
    """
    return {
        k: (x - normalization_stats[k]["offset"][0]) / normalization_stats[k]["scale"][0]
        for k, x in values.items()
    }


def unnormalize_dict(
    values: Mapping[str, Array], normalization_stats: Mapping[str, Mapping[str, Array]]
) -> dict[str, Array]:
    """Undoes `normalize_dict`: `x * scale + offset`."""
    return {
        k: x * normalization_stats[k]["scale"][0] + normalization_stats[k]["offset"][0]
        for k, x in values.items()
    }
