"""Operations on nested dicts, lists and tuples of tensors and arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def map_tensor(x: Any, func: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor of a nested structure; what is none stays.

    Args:
        x: tensors in any nesting of dicts, lists and tuples.
        func: what to apply.

    Returns:
        A structure nested like ``x``.
    """
    if isinstance(x, Tensor):
        return func(x)
    if isinstance(x, dict):
        return {k: map_tensor(v, func) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map_tensor(v, func) for v in x)
    return x


def detach(x: Any) -> Any:
    """Detaches every tensor from its graph."""
    return map_tensor(x, Tensor.detach)


def to_device(x: Any, device: torch.device | str) -> Any:
    """Moves every tensor to a device."""
    return map_tensor(x, lambda t: t.to(device))


def to_float(x: Any) -> Any:
    """Converts every tensor to float32."""
    return map_tensor(x, Tensor.float)


def to_tensor(x: Any) -> Any:
    """Turns every array and number of a nested structure into a tensor; None stays."""
    if x is None or isinstance(x, Tensor):
        return x
    if isinstance(x, dict):
        return {k: to_tensor(v) for k, v in x.items()}
    if isinstance(x, list | tuple) and not np.isscalar(x[0] if x else None):
        return type(x)(to_tensor(v) for v in x)
    return torch.as_tensor(np.asarray(x))


def to_numpy(x: Any) -> Any:
    """Turns every tensor into an array on the CPU."""
    return map_tensor(x, lambda t: t.detach().cpu().numpy())
