"""Statistics of episodes: averages and their intervals."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from raymimic.rollout.episodes import Episode

Values = Sequence[float] | npt.NDArray[np.floating]


def interquartile_mean(values: Values) -> float:
    """Mean without the lowest and the highest quarter.

    As in Agarwal et al. 2021 (arXiv:2108.13264): `n // 4` values are cut at each end.

    Args:
        values: `[N]`, N at least 1.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    cut = len(ordered) // 4
    return float(ordered[cut : len(ordered) - cut].mean())


def bootstrap_interval(
    values: Values, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    Args:
        values: `[N]`, N at least 1.
        confidence: probability that the interval holds the mean.
        resamples: number of samples drawn with replacement.
        seed: of the draws.

    Returns:
        `(low, high)`; for N = 1 both are the value itself.
    """
    data = np.asarray(values, np.float64)
    draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(data[draws].mean(axis=1), [tail, 1.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a success rate (Wilson 1927), which holds at 0 and 1 too.

    Args:
        successes: at most `trials`.
        trials: at least 1.
        confidence: probability that the interval holds the rate.

    Returns:
        `(low, high)` within [0, 1].
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * np.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def failures(episodes: Sequence[Episode]) -> str | None:
    """The failed episodes in one line, with the first one's reason; None where none failed."""
    errors = [e.error for e in episodes if e.error is not None]
    if not errors:
        return None
    number = f"all {len(errors)}" if len(errors) == len(episodes) else f"{len(errors)} of"
    if len(errors) < len(episodes):
        number += f" {len(episodes)}"
    return f"{number} episodes failed ({errors[0]})"


def normalized_score(value: float, random_return: float, expert_return: float) -> float:
    """The return on a scale where a random policy scores 0 and the expert 100."""
    return 100.0 * (value - random_return) / (expert_return - random_return)


def summarize(episodes: Sequence[Episode]) -> dict[str, float]:
    """The metrics of an evaluation.

    A failed episode (`Episode.error`) counts as not solved. Its return and length are unknown, so
    averages leave it out.

    Args:
        episodes: at least one.

    Returns:
        the number of `Failed_Episodes`. Unless all have failed, robomimic's names too, each a
        mean over episodes: `Return`, `Horizon` (length), `Success_Rate` and
        `<criterion>_Success_Rate`, `time` (seconds per episode), and their sum
        `Time_Episode` (minutes). Also `Return_Median`, `Return_IQM`,
        `Return_Std`, and the ends of 95 % intervals, `Return_CI_Low`, `Return_CI_High`
        (bootstrap), `Success_Rate_CI_Low`, `Success_Rate_CI_High` (Wilson).
    """
    ended = [e for e in episodes if e.error is None]
    failed = {"Failed_Episodes": float(len(episodes) - len(ended))}
    if not ended:
        return failed
    returns = np.array([e.episode_return for e in ended])
    seconds = np.array([e.seconds for e in ended])
    successes = sum(e.success for e in episodes)
    low, high = bootstrap_interval(returns)
    success_low, success_high = wilson_interval(successes, len(episodes))
    log = failed | {
        "Return": float(returns.mean()),
        "Return_Median": float(np.median(returns)),
        "Return_IQM": interquartile_mean(returns),
        "Return_Std": float(returns.std()),
        "Return_CI_Low": low,
        "Return_CI_High": high,
        "Horizon": float(np.mean([e.length for e in ended])),
        "Success_Rate": successes / len(episodes),
        "Success_Rate_CI_Low": success_low,
        "Success_Rate_CI_High": success_high,
        "time": float(seconds.mean()),
        "Time_Episode": float(seconds.sum() / 60.0),
    }
    for name in sorted({name for e in episodes for name in e.successes}):
        rate = np.mean([e.successes.get(name, False) for e in episodes])
        log[f"{name}_Success_Rate"] = float(rate)
    return log
