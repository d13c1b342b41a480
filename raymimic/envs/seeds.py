"""The seeds of episodes, disjoint by construction.

A seed is `((base * 3 + purpose) * 2**20 + stage) * 2**16 + index`, so two episodes of different
purpose, base seed, stage (the epoch of an evaluation, say) or index never share one, and
consecutive episodes have consecutive seeds.
"""

from enum import IntEnum

STAGES = 2**20
EPISODES = 2**16


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
        stage: below `2**20`; the epoch, or the number of another batch of episodes.
        n: at most `2**16`.

    Returns:
        `n` distinct, consecutive, non-negative integers (they may exceed 32 bits).

    Raises:
        ValueError: an argument is out of range.
    """
    if base_seed < 0 or not 0 <= stage < STAGES or not 0 <= n <= EPISODES:
        raise ValueError(f"no seeds for base seed {base_seed}, stage {stage}, {n} episodes")
    first = ((base_seed * len(Purpose) + purpose) * STAGES + stage) * EPISODES
    return list(range(first, first + n))


def evaluation_seeds(base_seed: int, epoch: int, n: int) -> list[int]:
    """Seeds of the evaluation of one epoch; see `episode_seeds`."""
    return episode_seeds(Purpose.EVALUATION, base_seed, epoch, n)


def final_seeds(base_seed: int, n: int) -> list[int]:
    """Seeds that are neither in the data nor in any evaluation while training."""
    return episode_seeds(Purpose.FINAL, base_seed, 0, n)
