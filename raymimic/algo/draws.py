"""Random numbers of networks in training, which follow from a sample's place in the global batch.

`share_draws` gives all modules of a network that draw (`raymimic.models.vision.draws`) one
`SampleDraws`. The training loop passes it the step and the samples that this worker holds.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from raymimic.errors import RaymimicError
from raymimic.models.vision.draws import drawing_modules

_STREAM = 0x647261  # keeps these streams apart from others of the same seed
_BLOCK = defaultdict(lambda: 2**40, cpu=2**14)  # on a CPU, as many as stay in its cache


class SampleDraws:
    """Numbers that are functions of seed, epoch, step, call, and place in the global batch.

    Each call draws numbers for the whole global batch and returns those of this worker's rows: so a
    sample gets the same ones for any number of workers, and after a resume. Calls are distinguished
    by their order within the step, which is the same on all workers.

    The generator is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number
    generators", 2014), of which number i is a hash of a key and i. So no worker computes the
    numbers of others, and pixels have a stream per sample.

    The first dimension of a draw has one row for each sample of this worker, in their order, or
    several adjacent rows for each (the steps of a sequence), each with numbers of its own.

    Args:
        seed: any integer.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed % 2**63
        self._step = (0, 0)
        self._calls = 0
        self._positions = torch.zeros(1, dtype=torch.int64)

    def begin(self, epoch: int, step: int, positions: Tensor) -> None:
        """Starts a step.

        Args:
            epoch: number of the epoch.
            step: number of the step within it.
            positions: places of this worker's samples in the global batch, int64 `[n]`.
        """
        self._step, self._calls, self._positions = (epoch, step), 0, positions

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """Draws from [0, 1), in steps of 2^-24.

        Args:
            shape: `[rows, ...]`.

        Returns:
            float32, on the CPU.

        Raises:
            RaymimicError: the rows are not those of the samples.
        """
        return self._draw(shape, torch.device("cpu"), _fraction)

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Draws from a standard normal distribution (by Box and Muller).

        Args:
            shape: `[rows, ...]`.
            like: has the device and the floating-point type of the numbers.

        Raises:
            RaymimicError: the rows are not those of the samples.
        """
        return self._draw(shape, like.device, _normal).to(like.dtype)

    def _draw(
        self, shape: Sequence[int], device: torch.device, convert: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Draws 64 bits for each element, int64, and converts them."""
        rows, *inner = shape
        samples = len(self._positions)
        per_sample, rest = divmod(rows, samples)
        if rest:
            raise RaymimicError(
                f"a network draws random numbers for {rows} rows of a batch of {samples} samples: "
                "the first dimension of a draw must be the batch's, or a multiple of it with each "
                "sample's own rows next to each other"
            )
        width = per_sample * torch.Size(inner).numel()
        entropy = np.random.SeedSequence([_STREAM, self._seed, *self._step, self._calls])
        key = int(entropy.generate_state(1, np.uint64).view(np.int64)[0])
        self._calls += 1
        begins = self._positions.to(device, non_blocking=True) * width
        numbers = begins[:, None] + torch.arange(1, width + 1, device=device)
        blocks = torch.split(numbers.mul_(_GAMMA).add_(key).view(-1), _BLOCK[device.type])
        return torch.cat([convert(_mixed(block)) for block in blocks]).view(rows, *inner)


def _signed(x: int) -> int:
    return x - 2**64


# Torch has no arithmetic on unsigned 64 bits; products of signed ones wrap to the same bits.
_GAMMA = _signed(0x9E3779B97F4A7C15)
_FACTORS = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def _mixed(z: Tensor) -> Tensor:
    """The output function of SplitMix64, in place."""
    z ^= (z >> 30) & (2**34 - 1)  # the shift of a signed number repeats its sign
    z *= _FACTORS[0]
    z ^= (z >> 27) & (2**37 - 1)
    z *= _FACTORS[1]
    z ^= (z >> 31) & (2**33 - 1)
    return z


def _fraction(bits: Tensor, lowest: int = 40) -> Tensor:
    """24 bits, from the lowest of them up, as a number in [0, 1), exact in float32."""
    return ((bits >> lowest) & (2**24 - 1)).to(torch.float32).mul_(2.0**-24)


def _normal(bits: Tensor) -> Tensor:
    """Two numbers of 24 bits as a normal one."""
    length = _fraction(bits).neg_().log1p_().mul_(-2.0).sqrt_()
    return length.mul_(_fraction(bits, 16).mul_(2.0 * torch.pi).cos_())


def share_draws(net: nn.Module, draws: SampleDraws) -> bool:
    """Gives draws to all modules of a network that draw.

    Returns:
        Whether there are any.
    """
    drawing = [module for _, module in drawing_modules(net)]
    for module in drawing:
        module.draws = draws
    return bool(drawing)
