"""The workers that train one model together, as its networks and losses see them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from torch import Tensor, nn


class GradSync(Protocol):
    """Makes several workers take one and the same gradient step.

    Attributes:
        world_size: how many workers there are.
        weight: this rank's share of the global batch, `n_r / B`; its loss is a mean over `n_r`
            samples. 0: its one row does not count.
    """

    world_size: int
    weight: float

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Replaces each `.grad` by its mean over the global batch, on all ranks alike."""

    def mean(self, x: Tensor) -> Tensor:
        """Returns the global batch's mean, detached, from the mean over this rank's share."""

    def gather(self, x: Tensor) -> Tensor:
        """Returns the tensors of all ranks, detached, in their order: `[world_size, *x.shape]`."""


# The workers that train together, within one call of `synchronized`.
_SYNC: ContextVar[GradSync | None] = ContextVar("grad_sync", default=None)


@contextmanager
def synchronized(sync: GradSync | None) -> Iterator[None]:
    """Inside, networks and steps are those of the global batch.

    `backprop_for_loss` steps on its gradients, and BatchNorm normalises by its statistics. The
    training loop enters it, so that an algorithm which takes its steps by itself needs to know
    nothing of other workers.

    Args:
        sync: the other workers; None: this process trains alone.
    """
    token = _SYNC.set(sync)
    try:
        yield
    finally:
        _SYNC.reset(token)


def current_sync() -> GradSync | None:
    """Returns the workers of the innermost `synchronized`."""
    return _SYNC.get()
