"""Where the columns of a training lie: on the GPU, in memory, or in files of the cache."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from raymimic.data.columns import Column, DemoRef, FloatType
from raymimic.data.memory import free_memory, total_memory
from raymimic.terminal import readable_bytes

Parts = Sequence[tuple[Sequence[DemoRef], Mapping[str, Column]]]
"""Demos and their columns, of the training and of the validation."""

_MAX_GPU_SHARE = 0.5
# The rest is for networks, other processes, and the copies of files that make reading quick.
_MAX_MEMORY_SHARE = 0.5


@dataclass(frozen=True)
class Placement:
    """Where the columns of a worker lie.

    Attributes:
        cached: names of those in files of the cache; the others are in memory or on the GPU.
        line: the choice and its reason, for the user.
    """

    cached: frozenset[str]
    line: str


def gpu_room(device: torch.device, gpus_per_worker: float | None) -> int:
    """Bytes that data may take of a GPU; 0 of a CPU.

    Args:
        device: of the worker.
        gpus_per_worker: workers that share a GPU see the same free memory.
    """
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(_MAX_GPU_SHARE * min(1.0, gpus_per_worker or 1.0) * free)


def place(mode: str | None, parts: Parts, dtype: FloatType, workers: int, room: int) -> Placement:
    """Chooses the place of each column.

    Args:
        mode: `train.hdf5_cache_mode`: `all` is in memory or on the GPU; `low_dim` keeps rows that
            are no vectors, such as images, in the cache, and None everything; `auto` measures.
        parts: the worker's.
        dtype: type of everything that is not an image.
        workers: of this training on this machine.
        room: see `gpu_room`.
    """
    sizes: Counter[str] = Counter()
    for demos, columns in parts:
        rows = sum(demo.length for demo in demos)
        sizes.update({key: rows * column.row_bytes(dtype) for key, column in columns.items()})
    every = frozenset(sizes)
    images = frozenset(k for _, columns in parts for k, x in columns.items() if len(x.shape) > 1)
    total, free, whole = sizes.total(), free_memory(), total_memory()
    takes, reason = f"the data take {readable_bytes(total)}", ""
    if mode == "auto":
        if total <= min(room, free):
            return Placement(frozenset(), f"{takes}: on the GPU")
        vectors = total - sum(sizes[key] for key in images)
        each = f" for each of {workers} workers" if workers > 1 else ""
        reason = f", as memory has {readable_bytes(free)} free of {readable_bytes(whole)}"
        if _fits(total, free, whole, workers):
            return Placement(frozenset(), f"{takes}{each}: in memory{reason}")
        mode = "low_dim" if images and _fits(vectors, free, whole, workers) else None
    if mode == "all" or not (cached := images if mode == "low_dim" else every):
        where = "on the GPU" if total <= room else "in memory"
        return Placement(frozenset(), f"{takes}: {where}")
    held = sum(sizes[key] for key in cached)
    rest = "" if cached == every else f" and {readable_bytes(total - held)} in memory"
    return Placement(cached, f"{takes}: {readable_bytes(held)} in the cache file{rest}{reason}")


def _fits(size: int, free: int, whole: int, workers: int) -> bool:
    return size <= _MAX_MEMORY_SHARE * free and workers * size <= _MAX_MEMORY_SHARE * whole
