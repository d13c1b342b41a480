"""Statistics of scores, by setting, by budget and by hyperparameter."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raymimic.rollout.stats import interquartile_mean

Floats = npt.NDArray[np.float64]

# Most groups of a hyperparameter's values: with more values than this, quarters are compared.
_MOST_GROUPS = 4
# Fewest settings of a group: the spread within a smaller one is unknown.
_LEAST_PER_GROUP = 2


@dataclass(frozen=True)
class Estimate:
    """A setting's score and its uncertainty.

    Attributes:
        mean: mean over seeds.
        iqm: interquartile mean of the episodes of all seeds, or of the seeds' scores where the
            episodes are unknown.
        low: lower end of the mean's 95% interval.
        high: upper end of the interval.
    """

    mean: float
    iqm: float
    low: float
    high: float


def estimate(
    scores: Sequence[float],
    episodes: Sequence[Sequence[float]] = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """Sums up the trainings of one setting.

    The interval is a percentile bootstrap in two levels: it draws seeds with replacement, and for
    each drawn seed its episodes with replacement. (Agarwal et al. 2021, arXiv:2108.13264, draw the
    trainings of each task; here is one task.) With one seed it covers the randomness of episodes
    alone. Like every bootstrap of few values it is too narrow: if seeds are normally distributed
    and differ by more than their episodes do, 95% intervals hold the true mean in 50, 73, 80, 83,
    90% of cases with 2, 3, 4, 5, 10 seeds; the noise of episodes brings that nearer to 95.

    Args:
        scores: `[S]`, one for each seed, S at least 1.
        episodes: for each seed the scores of its episodes; where they are missing for any seed,
            seeds alone are drawn.
        resamples: number of bootstrap samples.
        seed: seed of their draws.
    """
    values = np.asarray(scores, np.float64)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(values), size=(resamples, len(values)))
    if len(episodes) == len(values) and all(map(_known, episodes)):
        pool = np.concatenate([np.asarray(of_seed, np.float64) for of_seed in episodes])
        means = np.empty((resamples, len(values)))
        for index, of_seed in enumerate(episodes):
            data = np.asarray(of_seed, np.float64)
            # A seed may be drawn several times, each time with other episodes.
            places = np.nonzero(drawn == index)
            picks = rng.integers(len(data), size=(len(places[0]), len(data)))
            # A score need not be the mean of its episodes (a rate, a median): these add spread.
            means[places] = values[index] + data[picks].mean(axis=1) - data.mean()
    else:
        pool, means = values, values[drawn]
    low, high = np.quantile(means.mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), interquartile_mean(pool), float(low), float(high))


def _known(episodes: Sequence[float]) -> bool:
    return len(episodes) > 0 and bool(np.isfinite(episodes).all())


@dataclass(frozen=True)
class OnlineBudget:
    """Expected online performance by the number of settings tried.

    Attributes:
        expected: `[N]`, expected best score of 1, 2, ... N settings.
        deviation: `[N]`, its standard deviation.
    """

    expected: list[float]
    deviation: list[float]


def expected_online_performance(scores: Sequence[float], mode: str = "max") -> OnlineBudget:
    """The expected score of the best among n settings drawn at random.

    Of N scores in rising order, the i-th is the greatest of n draws with replacement with
    probability (i / N)^n - ((i - 1) / N)^n (Dodge et al. 2019, arXiv:1909.03004, equation 5;
    Kurenkov and Kolesnikov 2022, arXiv:2110.04156, for policies that are tried online). N settings
    stand for the whole space, so towards n = N the estimate is too low (Tang et al. 2020).

    Args:
        scores: `[N]`, each setting's mean over seeds, N at least 1.
        mode: "max", or "min" where less is better.
    """
    sign = 1.0 if mode == "max" else -1.0
    values = np.sort(sign * np.asarray(scores, np.float64))
    count = len(values)
    budget = np.arange(1, count + 1)[:, None]
    below = np.arange(count + 1) / count
    weights = np.diff(below[None, :] ** budget, axis=1)
    expected = weights @ values
    spread = (weights * (values[None, :] - expected[:, None]) ** 2).sum(axis=1)
    return OnlineBudget((sign * expected).tolist(), np.sqrt(spread).tolist())


@dataclass(frozen=True)
class Importance:
    """The main effect of one hyperparameter on the score.

    Attributes:
        path: config path of the hyperparameter.
        share: share of the variance of the scores' ranks, between 0 and 1; None where the settings
            are too few to tell.
        p_value: how often shuffled scores show at least this share.
        trend: Spearman's correlation of a number with the score, over the settings that have it;
            None for anything else.
    """

    path: str
    share: float | None
    p_value: float | None
    trend: float | None


def importances(
    settings: Sequence[Mapping[str, Any]],
    scores: Sequence[float],
    shuffles: int = 2000,
    seed: int = 0,
) -> list[Importance]:
    """Each hyperparameter's main effect, the greatest first.

    Settings are grouped by the hyperparameter's value (numbers of more than four values by
    quarters), and the share is Kelley's epsilon squared of a one-way analysis of variance on
    ranks: (SS_between - (k - 1) MS_within) / SS_total, which is 0 on average without an
    effect (Kelley 1935; on ranks it is Kruskal and Wallis's test). Ranks are used, as one diverged
    training would otherwise dominate the variance. Interactions have no bar, unlike in fANOVA
    (Hutter et al. 2014): a dozen settings are too few to estimate them.

    Args:
        settings: value by config path; a missing path counts as a value.
        scores: each setting's mean over seeds.
        shuffles: number of permutations for the p-value.
        seed: seed of the permutations.
    """
    paths = list(dict.fromkeys(path for setting in settings for path in setting))
    rng = np.random.default_rng(seed)
    by_rank = ranks(scores)
    effects = []
    for path in paths:
        column = [setting.get(path) for setting in settings]
        if len({_key(value) for value in column}) < 2:
            continue
        there = [place for place, setting in enumerate(settings) if path in setting]
        numbers = [setting[path] for setting in settings if path in setting]
        trend = None
        if all(map(is_number, numbers)):
            trend = _correlation(numbers, by_rank[there])
        groups = _groups(column)
        if groups is None:
            effects.append(Importance(path, None, None, trend))
            continue
        share = _epsilon_squared(groups, by_rank)
        shuffled = [_epsilon_squared(groups, rng.permutation(by_rank)) for _ in range(shuffles)]
        # The real order counts too, so that no p-value is 0 (Phipson and Smyth 2010).
        p_value = (1 + sum(other >= share - 1e-12 for other in shuffled)) / (1 + shuffles)
        effects.append(Importance(path, max(0.0, share), p_value, trend))
    return sorted(effects, key=lambda e: -1.0 if e.share is None else e.share, reverse=True)


def ranks(values: Sequence[float] | Floats) -> Floats:
    """Ranks from 1 up; equal values share the mean of their ranks."""
    data = np.asarray(values, np.float64)
    _, inverse, counts = np.unique(data, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[inverse], np.float64)


def is_number(value: object) -> bool:
    """Whether a hyperparameter's value lies on a scale."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _groups(column: Sequence[Any]) -> npt.NDArray[np.intp] | None:
    """Number of each setting's group; None where groups would be too small to compare."""
    keys = [_key(value) for value in column]
    numbers = [key for key in keys if isinstance(key, float)]
    if len(set(numbers)) > _MOST_GROUPS:
        count = min(_MOST_GROUPS, len(numbers) // _LEAST_PER_GROUP)
        order = dict(zip(numbers, ranks(numbers), strict=True))
        # Equal values have equal ranks, so they stay together.
        keys = [
            int((order[key] - 0.5) * count / len(numbers)) if isinstance(key, float) else key
            for key in keys
        ]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2 or len(keys) < _LEAST_PER_GROUP * len(distinct):
        return None
    return np.array([distinct.index(key) for key in keys], np.intp)


def _epsilon_squared(groups: npt.NDArray[np.intp], values: Floats) -> float:
    total = float(((values - values.mean()) ** 2).sum())
    if total == 0.0:
        return 0.0
    sizes = np.bincount(groups)
    means = np.bincount(groups, weights=values) / sizes
    between = float((sizes * (means - values.mean()) ** 2).sum())
    within = (total - between) / (len(values) - len(sizes))
    return (between - (len(sizes) - 1) * within) / total


def _correlation(first: Sequence[float], second: Floats) -> float | None:
    a, b = ranks(first), ranks(second)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else None


def _key(value: Any) -> Hashable:
    """A value that can be compared, also where it is a list (layer sizes); 1 is not True."""
    return float(value) if is_number(value) else repr(value)
