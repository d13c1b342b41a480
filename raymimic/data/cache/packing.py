"""Compresses blocks of rows without loss, and measures whether that makes them faster to read.

A block is compressed by Zstandard at its lowest level. Four consecutive frames of a camera have
much in common: together they take half to two thirds of the space that they take one by one.
"""

import os
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np

from raymimic.data.memory import workers_here
from raymimic.terminal import readable_bytes

ROWS = 4
"""Of a block."""

THREADS = 8
"""Reads at a time where the data do not fit into memory."""

LEAST_ROW_BYTES = 1 << 10
"""Shorter rows are vectors of numbers, which hardly get smaller."""

_TRIED_BYTES = 1 << 26
_READ_BYTES = 1 << 17
# How much quicker it must be, as the processor works for it.
_LEAST_GAIN = 1.2
# The other cores work for the training itself.
_SHARE_OF_CORES = 0.5


@cache
def _codec() -> Any:
    import pyarrow  # takes a while to import; comes with Ray Train

    return pyarrow.Codec("zstd", compression_level=1)


def pack(rows: memoryview) -> bytes:
    """The bytes of a block; those of the rows themselves if they do not get smaller."""
    packed: bytes = _codec().compress(rows, asbytes=True)
    return packed if len(packed) < len(rows) else bytes(rows)


def unpack(block: bytes | memoryview, size: int, crc32: int) -> memoryview:
    """The rows of a block.

    Args:
        block: it.
        size: bytes of its rows.
        crc32: of the block: of 300 flipped bits Zstandard itself noticed 2.

    Raises:
        OSError: it is damaged.
    """
    if zlib.crc32(block) != crc32:
        raise OSError("its checksum is wrong")
    if len(block) == size:
        return memoryview(block)
    return memoryview(_codec().decompress(block, size)).cast("B")


class Gain(NamedTuple):
    """Compares compressed rows with uncompressed ones.

    Attributes:
        ratio: bytes of the rows by those of their blocks.
        unpacked: bytes of rows that one core unpacks in a second.
        disk: bytes that the disk reads in a second.
        cores: that are free to unpack.
        window: consecutive rows that are wanted at a time.
    """

    ratio: float
    unpacked: float
    disk: float
    cores: float
    window: int

    @property
    def pays(self) -> bool:
        """Whether the rows of windows are read faster from compressed blocks."""
        unpacked = min(self.disk * self.ratio, self.unpacked * self.cores)
        # The blocks of a window hold so many rows on average.
        wanted = self.window / (self.window + ROWS - 1)
        return wanted * unpacked > _LEAST_GAIN * self.disk

    def __str__(self) -> str:
        disk, unpacked = readable_bytes(int(self.disk)), readable_bytes(int(self.unpacked))
        return f"the disk reads {disk}/s and a core unpacks {unpacked}/s"


def gain(sample: np.ndarray, disk: float, window: int) -> Gain:
    """Compresses some rows `[n, ...]` of a column, and measures.

    Args:
        sample: the rows, consecutive.
        disk: see `disk_rate`.
        window: consecutive rows that are wanted at a time.
    """
    blocks = [sample[i : i + ROWS] for i in range(0, len(sample), ROWS)]
    packed = [pack(block.reshape(-1).view(np.uint8).data) for block in blocks]
    sums = [zlib.crc32(block) for block in packed]
    begin = time.thread_time()
    for block, rows, crc32 in zip(packed, blocks, sums, strict=True):
        unpack(block, rows.nbytes, crc32)
    seconds = max(time.thread_time() - begin, 1e-9)
    cores = _SHARE_OF_CORES * len(os.sched_getaffinity(0)) / workers_here()
    ratio = sample.nbytes / sum(map(len, packed))
    return Gain(ratio, sample.nbytes / seconds, disk, cores, window)


@cache
def disk_rate(folder: Path) -> float:
    """Bytes per second that the disk of a folder gives to all threads, at random places.

    It is measured once in a process, before anything is built.

    Raises:
        OSError: it takes no file.
    """
    with TemporaryFile(dir=folder) as file:
        for _ in range(_TRIED_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        places = np.random.default_rng(0).permutation(_TRIED_BYTES // _READ_BYTES) * _READ_BYTES

        def read(places: Sequence[int]) -> None:
            for place in places:
                os.pread(file.fileno(), _READ_BYTES, place)

        begin = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(read, np.array_split(places, THREADS)))
        return _TRIED_BYTES / (time.perf_counter() - begin)
