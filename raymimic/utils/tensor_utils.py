"""Operations on nested dicts, lists and tuples of tensors."""

from collections.abc import Callable
from typing import Any

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


def repeat_rows(x: Any, n: int) -> Any:
    """Repeats each row of tensors ``[B, ...]`` n times, side by side: ``[B * n, ...]``.

    Args:
        x: tensors in any nesting, see :func:`map_tensor`.
        n: how often.
    """
    return map_tensor(x, lambda rows: rows.repeat_interleave(n, dim=0))
