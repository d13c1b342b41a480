"""The random numbers that simulators take from NumPy's global generator."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

# `numpy.random` has them, too, but not its stubs.
from numpy.random.mtrand import get_bit_generator, set_bit_generator


class GlobalNumbers:
    """One environment's own stream of NumPy's global generator.

    robosuite and OGBench draw places and tasks from it. With a stream of its own, an episode
    follows from its seed, whatever other environments and the training draw in between.
    """

    def __init__(self) -> None:
        self._bits: np.random.BitGenerator = np.random.MT19937()

    @contextmanager
    def drawn(self, seed: int | None = None) -> Iterator[None]:
        """Scope in which the global generator is this environment's.

        Args:
            seed: starts the stream; None: it continues. Python's own generator, which is slow to
                exchange, is seeded too, and shared.
        """
        outside = get_bit_generator()
        set_bit_generator(self._bits)
        try:
            if seed is not None:
                np.random.seed(np.random.SeedSequence(seed).generate_state(4))
                random.seed(seed)
            yield
        finally:
            set_bit_generator(outside)
