"""Random numbers of networks: where they come from can be set from outside.

A network that draws in training (a randomizer, keypoints with noise) is a `DrawingModule` and takes
all its random numbers from its attribute `draws`. By default that is torch's global generator. A
training sets another source, which gives a sample of the global batch the same numbers on any
number of workers:

    for name, module in drawing_modules(algo.nets):
        module.draws = MyDraws(name, ...)

The first dimension of all that is drawn counts rows. The rows of a rank's batch come in the order
of its samples, and each sample has equally many, side by side: its time steps, its crops, the
copies for which an algorithm draws actions. A module draws in training mode only, and each of its
forward passes draws the same number of times on every rank.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class Draws(Protocol):
    """A source of random numbers."""

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draws parameters, such as the place of a crop.

        Args:
            shape: `[rows, ...]`, a few numbers for each row.

        Returns:
            float32 in [0, 1), on the CPU: the same numbers on every device.
        """

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draws noise from N(0, 1).

        Args:
            shape: `[rows, ...]`, as many numbers as a row has pixels.
            like: has the device and the floating-point type of the result.
        """


class GlobalDraws:
    """Draws from torch's global generators."""

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """See `Draws`."""
        return torch.rand(tuple(shape), dtype=torch.float32, device="cpu")

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """See `Draws`."""
        return torch.randn(tuple(shape), dtype=like.dtype, device=like.device)


class DrawingModule(nn.Module):
    """Base of modules that draw random numbers in training.

    Attributes:
        draws: where they come from.
    """

    draws: Draws = GlobalDraws()


def drawing_modules(net: nn.Module) -> Iterator[tuple[str, DrawingModule]]:
    """Yields each module of a network that draws, once, with its name in the network."""
    for name, module in net.named_modules():
        if isinstance(module, DrawingModule):
            yield name, module
