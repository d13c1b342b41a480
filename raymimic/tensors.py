"""Operations on nested dicts, lists and tuples of tensors."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def map_tensor(x: Any, func: Callable[[Tensor], Any]) -> Any:
    """Applies a function to every tensor of a nested structure; other values stay.

    Args:
        x: tensors in any nesting of dicts, lists and tuples.
        func: the function.

    Returns:
        A structure nested like `x`.
    """
    if isinstance(x, Tensor):
        return func(x)
    if isinstance(x, dict):
        return {k: map_tensor(v, func) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(map_tensor(v, func) for v in x)
    return x


def repeat_rows(x: Any, n: int) -> Any:
    """Repeats each row of tensors `[B, ...]` n times, side by side: `[B * n, ...]`.

    Args:
        x: tensors in any nesting, see `map_tensor`.
        n: number of repetitions.
    """
    return map_tensor(x, lambda rows: rows.repeat_interleave(n, dim=0))


def get_torch_device(try_to_use_cuda: bool) -> torch.device:
    """Returns the first GPU if it is wanted and exists, else the CPU."""
    if try_to_use_cuda and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda:0")
    return torch.device("cpu")


def maybe_no_grad(no_grad: bool) -> AbstractContextManager[Any]:
    """Returns `torch.no_grad()` or a context that does nothing."""
    return torch.no_grad() if no_grad else nullcontext()


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Scope in which graphs leave out a network's parameters.

    It is for a critic through which an actor's loss flows: it saves the critic's weight gradients,
    which are not needed. Where no graph is made there is nothing to leave out.
    """
    learning = [p for p in net.parameters() if p.requires_grad] if torch.is_grad_enabled() else []
    for p in learning:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad = True


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Scope in which a network is in evaluation mode."""
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(was_training)


# The functions below are all that calls torch's private operators on lists of tensors. One call for
# a list takes a fraction of the time of a call for each tensor.


def copy_each(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copies each source into its target, which has the same shape."""
    torch._foreach_copy_(targets, sources)


def move_each(targets: list[Tensor], sources: list[Tensor], share: float) -> None:
    """Moves each target towards its source: `target += share * (source - target)`."""
    torch._foreach_lerp_(targets, sources, share)


def norm_of_each(tensors: list[Tensor]) -> Tensor:
    """Returns the L2 norm of each of at least one tensor, `[len(tensors)]`."""
    return torch.stack(torch._foreach_norm(tensors))
