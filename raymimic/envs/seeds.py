"""The seeds of episodes, disjoint by construction.

A seed is `((base * 3 + purpose) * 2**20 + stage) * 2**16 + index`, so two episodes of different
purpose, base seed, stage (the epoch of an evaluation, say) or index never share one, and
consecutive episodes have consecutive seeds. Simulators and torch's generators take seeds below
`2**63`, so a base seed from 44,739,242 on is replaced by a hash below that. Two such base seeds
might share a hash; episodes of one base seed never share a seed.
"""

import hashlib
from enum import IntEnum

from raymimic.errors import ConfigError

STAGES = 2**20
EPISODES = 2**16
_LIMIT = 2**63


class Purpose(IntEnum):
    """The reason for playing an episode."""

    DEMONSTRATION = 0
    EVALUATION = 1
    FINAL = 2


def episode_seeds(purpose: Purpose, base_seed: int, stage: int, n: int) -> list[int]:
    """The seeds of `n` episodes.

    Args:
        purpose: the reason for playing them.
        base_seed: non-negative; the user's seed.
        stage: the epoch, or the number of another batch of episodes. Those that differ by `2**20`
            have the same seeds.
        n: at most `2**16`.

    Returns:
        `n` distinct, consecutive integers from 0, below `2**63`.

    Raises:
        ConfigError: there are not so many.
        ValueError: an argument is negative.
    """
    if base_seed < 0 or stage < 0 or n < 0:
        raise ValueError(f"no seeds for base seed {base_seed}, stage {stage}, {n} episodes")
    if n > EPISODES:
        raise ConfigError(f"{n:,} episodes are too many: ask for at most {EPISODES:,}")
    first = ((_small(base_seed) * len(Purpose) + purpose) * STAGES + stage % STAGES) * EPISODES
    return list(range(first, first + n))


def _small(base_seed: int) -> int:
    """The base seed, or a hash of one whose episodes would leave the range of seeds."""
    bases = _LIMIT // (len(Purpose) * STAGES * EPISODES)
    if base_seed < bases:
        return base_seed
    digest = hashlib.sha256(str(base_seed).encode()).digest()
    return int.from_bytes(digest[:8], "big") % bases


def evaluation_seeds(base_seed: int, epoch: int, n: int) -> list[int]:
    """Seeds of the evaluation of one epoch; see `episode_seeds`."""
    return episode_seeds(Purpose.EVALUATION, base_seed, epoch, n)


def final_seeds(base_seed: int, n: int) -> list[int]:
    """Seeds that are neither in the data nor in any evaluation while training."""
    return episode_seeds(Purpose.FINAL, base_seed, 0, n)
