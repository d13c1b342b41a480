"""Statistics of episodes against numbers from the literature, by hand, or from scipy."""

import numpy as np
import pytest

from raymimic.rollout.episodes import Episode
from raymimic.rollout.stats import (
    bootstrap_interval,
    interquartile_mean,
    normalized_score,
    summarize,
    wilson_interval,
)


def episode(seed, value, *, length=10, success=False, seconds=1.0, **successes):
    return Episode(seed, value, length, success, False, seconds, successes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 3.0], 2.0),  # nothing to cut
        ([100.0, 2.0, 4.0, -50.0], 3.0),  # one cut at each end
        ([0, 0, 1, 2, 3, 4, 90, 90], 2.5),  # two cut at each end
    ],
)
def test_interquartile_mean_by_hand(values, expected):
    assert interquartile_mean(values) == expected


def test_bootstrap_agrees_with_scipy():
    scipy_stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(1).gamma(2.0, 500.0, size=30)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=50_000, random_state=2
    ).confidence_interval
    low, high = bootstrap_interval(values)
    width = theirs.high - theirs.low
    assert abs(low - theirs.low) < 0.03 * width
    assert abs(high - theirs.high) < 0.03 * width


def test_bootstrap_of_two_values_by_hand():
    # Means of resamples of {0, 1}: 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_interval([0.0, 1.0], confidence=0.95) == (0.0, 1.0)
    assert bootstrap_interval([0.0, 1.0], confidence=0.40) == (0.5, 0.5)


def test_bootstrap_is_seeded_and_degenerate_for_one_value():
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval([5.0]) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson_interval_against_published_numbers(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_normalized_score():
    assert normalized_score(20.0, random_return=20.0, expert_return=4020.0) == 0.0
    assert normalized_score(4020.0, random_return=20.0, expert_return=4020.0) == 100.0
    assert normalized_score(3020.0, random_return=20.0, expert_return=4020.0) == 75.0


def test_summary_has_robomimics_names_and_intervals():
    episodes = [
        episode(0, 1.0, length=10, success=True, grasp=True),
        episode(1, 2.0, length=20, seconds=2.0, grasp=True),
        episode(2, 3.0, length=30, seconds=3.0, grasp=False),
        episode(3, 100.0, length=40, seconds=6.0, grasp=True),
    ]
    log = summarize(episodes)
    assert log["Return"] == 26.5
    assert log["Return_Median"] == 2.5
    assert log["Return_IQM"] == 2.5
    assert log["Return_Std"] == pytest.approx(np.std([1, 2, 3, 100]))
    assert (log["Return_CI_Low"], log["Return_CI_High"]) == bootstrap_interval([1, 2, 3, 100])
    assert log["Horizon"] == 25.0
    assert log["Success_Rate"] == 0.25
    assert (log["Success_Rate_CI_Low"], log["Success_Rate_CI_High"]) == wilson_interval(1, 4)
    assert log["grasp_Success_Rate"] == 0.75
    assert log["time"] == 3.0
    assert log["Time_Episode"] == pytest.approx(12.0 / 60.0)
