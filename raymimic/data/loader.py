"""Batches for the training loop: on the device, in the order that seed and epoch determine."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from raymimic.data.sampler import Batches, Sampler
from raymimic.data.sequence import Batch, SequenceDataset

_Chunk = tuple[Batch, list[int], Tensor]
_CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 25}


class ShardIndex:
    """The samples, in the global numbering, that a worker of a sharded training holds.

    Args:
        dataset: this worker's samples.
    """

    def __init__(self, dataset: SequenceDataset) -> None:
        sizes = torch.from_numpy(dataset.layout_sizes)
        self._mine = torch.zeros(len(sizes), dtype=torch.bool)
        self._mine[torch.from_numpy(dataset.store.owned)] = True
        held = torch.where(self._mine, sizes, 0)
        self._ends = sizes.cumsum(0)
        # From global to own numbers: own samples before a demo, less all samples before it.
        self._shift = (held.cumsum(0) - held) - (self._ends - sizes)

    def keep(self, batches: Batches) -> Batches:
        """The samples of each global batch that this worker holds, under its own numbers."""
        demos = torch.searchsorted(self._ends, batches.indices, right=True)
        return batches.keep(self._mine[demos], batches.indices + self._shift[demos])


class Loader:
    """One worker's part of each batch.

    With replicated data each worker takes a contiguous cut of the global batch. With sharded data
    (a shard index) it takes those samples of the same global batch that it holds: the union over
    workers is the very batch that one worker would have taken, so each transition is exactly as
    likely as any other, however unequal the shards are; only the number of samples per worker
    varies from step to step.

    A worker that has no sample in a batch gets one row of its data with weight zero, so that all
    workers take the same steps and nothing is ever empty.

    Args:
        dataset: this worker's samples.
        sampler: global batches.
        rank: this worker.
        world_size: number of workers.
        device: where batches go.
        shard: which samples this worker holds; None when every worker holds all.
    """

    def __init__(
        self,
        dataset: SequenceDataset,
        sampler: Sampler,
        rank: int,
        world_size: int,
        device: torch.device,
        shard: ShardIndex | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = sampler
        self.rank = rank
        self.world_size = world_size
        self.device = device
        self._shard = shard
        self._chunk_rows = max(_CHUNK_BYTES[device.type] // dataset.sample_bytes, 1)

    @property
    def num_steps(self) -> int:
        """Batches of an epoch, the same number on every worker."""
        return self.sampler.num_steps

    @property
    def num_samples(self) -> int:
        """Samples of the whole data, those that other workers hold included."""
        return int(self.dataset.layout_sizes.sum())

    def epoch(self, epoch: int) -> Iterator[tuple[Batch, int, int]]:
        """Serves an epoch.

        Args:
            epoch: number of the epoch; the first is 1. The order is a function of it.

        Yields:
            `(batch, n, total)`: this worker's rows, on the device, as
            `raymimic.data.sequence.SequenceDataset.gather` describes them; how many of them
            count, so that a mean over them weighs `n / total` in the global batch (0: the
            batch holds one row which does not count); and the size of the global batch.
            `position` `[B]`, on the CPU, holds the places of the rows in the global batch.
        """
        batches = self.sampler.epoch(epoch)
        if self._shard is None:
            batches = batches.cut(self.rank, self.world_size)
        else:
            batches = self._shard.keep(batches)
        weights = batches.sizes.tolist()
        totals = batches.totals.tolist()
        indices, positions, rows = _fill_empty(batches)
        indices = indices.to(self.dataset.store.device)
        chunks = self._chunks(indices, positions, rows)
        step = 0
        store = self.dataset.store
        # Rows to wait for, or to copy to the device, are gathered while the step before runs.
        ahead = store.is_cached or store.device != self.device
        with closing(_ahead(chunks) if ahead else chunks) as chunks:
            for chunk, sizes, places in chunks:
                chunk = self._moved(chunk)
                chunk["position"] = places
                for batch in _split(chunk, sizes):
                    yield batch, weights[step], totals[step]
                    step += 1

    def _chunks(self, indices: Tensor, positions: Tensor, rows: list[int]) -> Generator[_Chunk]:
        """Gathers several steps at once.

        One gather per key serves them all, and in Python a step only takes views of it.

        Args:
            indices: samples of all steps.
            positions: their places in the global batches.
            rows: samples of each step.

        Yields:
            The samples of some steps, on the store's device or ready to be copied from there; the
            numbers of each step's samples; and their places.
        """
        step = begin = 0
        while step < len(rows):
            end, stop = begin + rows[step], step + 1
            while stop < len(rows) and end - begin + rows[stop] <= self._chunk_rows:
                end, stop = end + rows[stop], stop + 1
            chunk = self.dataset.gather(indices[begin:end])
            if self.dataset.store.device != self.device:
                chunk = _pinned(chunk)
            yield chunk, rows[step:stop], positions[begin:end]
            step, begin = stop, end

    def _moved(self, batch: Batch) -> Batch:
        """A batch on the device."""
        if self.dataset.store.device == self.device:
            return batch
        return {
            key: self._moved(value)
            if isinstance(value, dict)
            else value.to(self.device, non_blocking=True)
            for key, value in batch.items()
        }


def _pinned(batch: Batch) -> Batch:
    """A batch in memory from which a GPU copies by itself."""
    return {
        key: _pinned(value)
        if isinstance(value, dict)
        else (value if value.is_pinned() else value.pin_memory())
        for key, value in batch.items()
    }


def _ahead(chunks: Iterator[_Chunk]) -> Generator[_Chunk]:
    """Gathers each chunk on a thread while the one before is used."""
    with ThreadPoolExecutor(1, "raymimic-loader") as thread:
        following = thread.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = thread.submit(next, chunks, None)
            yield chunk


def _fill_empty(batches: Batches) -> tuple[Tensor, Tensor, list[int]]:
    """Puts sample 0, at place 0, into batches that have none."""
    if batches.sizes.all():
        return batches.indices, batches.positions, batches.sizes.tolist()
    rows = np.maximum(batches.sizes, 1)
    real = torch.from_numpy(np.repeat(batches.sizes > 0, rows))

    def filled(values: Tensor) -> Tensor:
        out = torch.zeros(len(real), dtype=torch.int64)
        out[real] = values
        return out

    return filled(batches.indices), filled(batches.positions), rows.tolist()


def _split(chunk: Batch, rows: list[int]) -> Iterator[Batch]:
    """Views of consecutive batches in a chunk of them."""
    if len(rows) == 1:
        yield chunk
        return
    ends = list(accumulate(rows))[:-1]
    flat = {
        key: value.tensor_split(ends) for key, value in chunk.items() if isinstance(value, Tensor)
    }
    groups = {
        key: {name: tensor.tensor_split(ends) for name, tensor in value.items()}
        for key, value in chunk.items()
        if isinstance(value, dict)
    }
    for i in range(len(rows)):
        batch: Batch = {key: parts[i] for key, parts in flat.items()}
        for key, group in groups.items():
            batch[key] = {name: parts[i] for name, parts in group.items()}
        yield batch
