"""The samples of each gradient step: pure functions of seed and epoch.

No generator is carried along: an epoch's order follows from `(seed, epoch)` alone, so that a
resumed run sees the samples of an unbroken one, and every worker computes the same global
batches and takes its own part of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raymimic.errors import ConfigError

_PERMUTATION, _WEIGHTED, _VALIDATION = range(3)  # keep the streams of one seed apart


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed % 2**63, stream, number))


@dataclass(frozen=True)
class Batches:
    """An epoch's batches, or one worker's parts of them.

    Attributes:
        indices: samples, one batch after the other, int64 `[sum(sizes)]`.
        positions: places of the samples in the global batch, from 0, int64 `[sum(sizes)]`.
        sizes: samples of each batch that are in `indices`, int64 `[num_steps]`.
        totals: samples of each global batch, over all workers, int64 `[num_steps]`.
    """

    indices: Tensor
    positions: Tensor
    sizes: np.ndarray
    totals: np.ndarray

    @classmethod
    def of_all(cls, indices: Tensor, sizes: np.ndarray) -> Batches:
        """Global batches, of these sizes `[num_steps]`."""
        return cls(indices, torch.from_numpy(_numbered(sizes)), sizes, sizes)

    def cut(self, rank: int, world_size: int) -> Batches:
        """One worker's contiguous part of each batch, as even as can be.

        Args:
            rank: which worker, in `[0, world_size)`.
            world_size: number of workers; their parts together are the whole, for any number.
        """
        share, extra = np.divmod(self.sizes, world_size)
        begins = np.cumsum(self.sizes) - self.sizes + rank * share + np.minimum(rank, extra)
        sizes = share + (rank < extra)
        # Row numbers of all parts: each part's begin, plus 0, 1, 2, … within the part.
        rows = torch.from_numpy(np.repeat(begins, sizes) + _numbered(sizes))
        return Batches(self.indices[rows], self.positions[rows], sizes, self.totals)

    def keep(self, mask: Tensor, indices: Tensor) -> Batches:
        """Only some samples of each batch, under other numbers.

        Args:
            mask: which to keep, bool `[sum(sizes)]`.
            indices: the numbers to give to all samples, `[sum(sizes)]`.
        """
        step = np.repeat(np.arange(len(self.sizes)), self.sizes)
        sizes = np.bincount(step[mask.numpy()], minlength=len(self.sizes))
        return Batches(indices[mask], self.positions[mask], sizes, self.totals)


def _numbered(sizes: np.ndarray) -> np.ndarray:
    """Numbers the samples of each batch from 0: int64 `[sum(sizes)]`."""
    numbers: np.ndarray = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return numbers


class Sampler(Protocol):
    """Says which samples an epoch's batches hold."""

    @property
    def num_steps(self) -> int:
        """Batches of an epoch."""
        ...

    def epoch(self, epoch: int) -> Batches:
        """All global batches of an epoch (the first is epoch 1)."""
        ...


class EpochSampler:
    """Training batches.

    One dataset: without `steps_per_epoch` an epoch is as many whole batches as a fresh
    permutation of the samples holds. With it, epochs are cut from an endless stream of
    permutations, so that all samples are seen equally often however short an epoch is. Several
    datasets with weights: drawn with replacement.

    Args:
        sizes: samples of each dataset; their samples are numbered one dataset after the other.
        batch_size: samples of one global batch.
        seed: any integer.
        steps_per_epoch: batches of an epoch; None for ⌊N/B⌋.
        weights: of a sample of each dataset, relative; a dataset's probability is its weight times
            its size. None draws without replacement.

    Raises:
        ConfigError: a batch is larger than the data, or weights are not positive.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        batch_size: int,
        seed: int,
        steps_per_epoch: int | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.size = sum(sizes)
        if not 1 <= batch_size <= self.size:
            raise ConfigError(
                f"train.batch_size is {batch_size}, but the training data has {self.size} samples:"
                " make it smaller"
            )
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ConfigError(
                f"experiment.epoch_every_n_steps is {steps_per_epoch}: it must be at least 1, or"
                " null for one pass over the data"
            )
        if weights is not None and (min(weights) < 0 or sum(weights) <= 0):
            raise ConfigError(
                f"weights of the datasets in train.data are {list(weights)}: they must not be"
                " negative, and one must be positive"
            )
        self.batch_size = batch_size
        self.seed = seed
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._steps = steps_per_epoch
        self._weights = None if weights is None else np.asarray(weights, dtype=np.float64)
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def num_steps(self) -> int:
        """Batches of an epoch."""
        return self._steps or self.size // self.batch_size

    def epoch(self, epoch: int) -> Batches:
        """All global batches of an epoch (the first is epoch 1)."""
        count = self.num_steps * self.batch_size
        if self._weights is not None:
            indices = self._weighted(epoch, count)
        elif self._steps is None:
            indices = self._permutation(epoch)[:count]
        else:
            indices = self._stream((epoch - 1) * count, count)
        sizes = np.full(self.num_steps, self.batch_size, dtype=np.int64)
        return Batches.of_all(torch.from_numpy(indices), sizes)

    def _permutation(self, number: int) -> np.ndarray:
        # A permutation is a function of its number; the latest is kept only because short epochs
        # share one.
        if self._latest[0] != number:
            generator = _generator(self.seed, _PERMUTATION, number)
            self._latest = (number, generator.permutation(self.size))
        return self._latest[1]

    def _stream(self, begin: int, count: int) -> np.ndarray:
        """`count` samples from position `begin` of permutations 0, 1, … put in a row."""
        parts = []
        while count > 0:
            number, offset = divmod(begin, self.size)
            part = self._permutation(number)[offset : offset + count]
            parts.append(part)
            begin, count = begin + len(part), count - len(part)
        return np.concatenate(parts)

    def _weighted(self, epoch: int, count: int) -> np.ndarray:
        assert self._weights is not None
        generator = _generator(self.seed, _WEIGHTED, epoch)
        mass = self._weights * self._sizes
        dataset = generator.choice(len(mass), size=count, p=mass / mass.sum())
        first = np.cumsum(self._sizes) - self._sizes
        return first[dataset] + generator.integers(self._sizes[dataset])


class ValidationSampler:
    """Validation batches: each sample once, in an order that is the same at every epoch.

    The last batch holds the rest. The order is shuffled once, so that a capped validation sees
    an even choice of the samples, and the same one each time.

    Args:
        size: samples.
        batch_size: samples of one global batch.
        seed: any integer.
        max_steps: the most batches; None for all.
    """

    def __init__(self, size: int, batch_size: int, seed: int, max_steps: int | None = None) -> None:
        steps = -(-size // batch_size)
        self._steps = steps if max_steps is None else min(steps, max_steps)
        count = min(size, self._steps * batch_size)
        indices = _generator(seed, _VALIDATION, 0).permutation(size)[:count]
        sizes = np.full(self._steps, batch_size, dtype=np.int64)
        sizes[-1] = count - batch_size * (self._steps - 1)
        self._batches = Batches.of_all(torch.from_numpy(indices), sizes)

    @property
    def num_steps(self) -> int:
        """Batches of a validation."""
        return self._steps

    def epoch(self, epoch: int) -> Batches:
        """All global batches; the same at every epoch."""
        del epoch
        return self._batches
