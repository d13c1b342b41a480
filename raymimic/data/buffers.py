"""Memory of batches, which is used again once no batch refers to it."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# Those of two batches: observations, the following ones, and goals may be of one column.
_MOST_FREE = 6


class Buffers:
    """Gives memory for the rows of one column, again and again.

    The system clears each page of new memory before a program may write it. For a batch of images
    that takes several times as long as to gather it.
    """

    def __init__(self) -> None:
        # The system gets the memory of further ones back.
        self._free: deque[np.ndarray] = deque(maxlen=_MOST_FREE)

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()  # a copy, such as that of another process, begins with no memory

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor on the CPU, whose values are those of an earlier one.

        Its memory is given away again when neither it nor a view of it exists any more.
        """
        size = math.prod(shape) * dtype.itemsize
        try:
            block = self._free.pop()
        except IndexError:  # another thread may have taken the last one just now
            block = np.empty(0, np.uint8)
        if len(block) < size:
            # Torch's memory begins at a multiple of 64 bytes, on which the last bit of a matrix
            # product may depend; NumPy's does not.
            block = torch.empty(size, dtype=torch.uint8).numpy()
        lent = block[:size]
        # Torch keeps the array, this very object, as long as any tensor uses its memory.
        weakref.finalize(lent, self._free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(*shape)
