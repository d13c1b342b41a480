import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from raymimic.sweep.outcome.stats import estimate, expected_online_performance, importances, ranks


def test_estimate_of_seeds_alone_is_their_exact_bootstrap() -> None:
    # Two seeds: the mean of a resample is 10, 20 or 15 with probabilities 1/4, 1/4, 1/2.
    found = estimate([10.0, 20.0])
    assert (found.mean, found.iqm, found.low, found.high) == (15.0, 15.0, 10.0, 20.0)
    # Six seeds, of which one is lucky: the quarter at each end (6 // 4 = 1) is cut.
    found = estimate([1.0, 2.0, 3.0, 4.0, 5.0, 600.0])
    assert found.mean == 102.5
    assert found.iqm == 3.5
    one = estimate([7.0])
    assert (one.mean, one.iqm, one.low, one.high) == (7.0, 7.0, 7.0, 7.0)


def test_estimate_of_seeds_alone_has_the_ends_of_all_resamples_counted_out() -> None:
    scores = [3.0, 8.0, 1.0, 4.0, 30.0]
    means = [float(np.mean(drawn)) for drawn in itertools.product(scores, repeat=5)]
    found = estimate(scores, resamples=100_000)
    assert found.low == pytest.approx(np.quantile(means, 0.025), abs=0.2)
    assert found.high == pytest.approx(np.quantile(means, 0.975), abs=0.2)


@pytest.mark.parametrize(
    ("seeds", "noise", "covered"),
    [
        *((2, 0.0, 0.50), (3, 0.0, 0.73), (4, 0.0, 0.80), (5, 0.0, 0.83), (10, 0.0, 0.90)),
        (3, 3.0, 0.89),
    ],
)
def test_intervals_hold_the_true_mean_as_often_as_the_docs_say(
    seeds: int, noise: float, covered: float
) -> None:
    rng = np.random.default_rng(seeds)
    held = 0
    for repeat in range(800):
        true_means = rng.normal(size=seeds)
        episodes = true_means[:, None] + noise * rng.normal(size=(seeds, 20))
        scores = episodes.mean(axis=1).tolist()
        found = estimate(scores, episodes.tolist() if noise else (), resamples=300, seed=repeat)
        held += found.low <= 0.0 <= found.high
    assert held / 800 == pytest.approx(covered, abs=0.05)


def test_interval_over_seeds_and_episodes_has_the_width_that_theory_gives() -> None:
    rng = np.random.default_rng(3)
    episodes = [(rng.normal(100.0 * k, 30.0, 50)).tolist() for k in range(20)]
    scores = [float(np.mean(of_seed)) for of_seed in episodes]
    found = estimate(scores, episodes)
    # Var = (variance of the seeds' means + mean variance of an episode / 50) / 20.
    variance = (np.var(scores) + np.mean([np.var(e) for e in episodes]) / 50) / 20
    assert found.high - found.low == pytest.approx(2 * 1.96 * math.sqrt(variance), rel=0.03)
    assert found.mean == pytest.approx(np.mean(scores))
    assert found.iqm == pytest.approx(reference.trim_mean(np.concatenate(episodes), 0.25))


def test_one_seed_has_the_interval_of_its_episodes_and_it_shrinks_with_their_number() -> None:
    rng = np.random.default_rng(0)
    many = rng.normal(50.0, 10.0, 400)
    found = estimate([float(many.mean())], [many.tolist()])
    assert found.high - found.low == pytest.approx(2 * 1.96 * many.std() / 20.0, rel=0.03)
    few = estimate([float(many[:25].mean())], [many[:25].tolist()])
    assert few.high - few.low > 3 * (found.high - found.low)


def test_episodes_of_only_some_seeds_are_left_aside() -> None:
    assert estimate([1.0, 3.0], [[0.0, 2.0], []]) == estimate([1.0, 3.0])
    assert estimate([1.0, 3.0], [[0.0, 2.0], [3.0, math.nan]]) == estimate([1.0, 3.0])


def test_a_score_that_is_not_the_episodes_mean_stays_the_middle() -> None:
    found = estimate([100.0], [[1.0, 2.0, 3.0, 4.0]])
    assert found.low < 100.0 < found.high
    assert found.high - found.low < 3.0


def test_expected_online_performance_by_hand() -> None:
    budget = expected_online_performance([4.0, 0.0, 2.0])
    # One draw: the mean. Two: weights 1/9, 3/9, 5/9. Three: 1/27, 7/27, 19/27.
    assert budget.expected == pytest.approx([2.0, 26 / 9, 90 / 27])
    assert budget.deviation[0] == pytest.approx(math.sqrt(8 / 3))
    assert budget.deviation[1] == pytest.approx(math.sqrt((3 * 4 + 5 * 16) / 9 - (26 / 9) ** 2))


def test_expected_online_performance_equals_every_draw_counted_out() -> None:
    scores = [3.0, 3.0, -1.0, 10.0]
    draws = np.stack(np.meshgrid(*[scores] * 3)).reshape(3, -1)
    budget = expected_online_performance(scores)
    assert budget.expected[2] == pytest.approx(draws.max(axis=0).mean())
    assert budget.deviation[2] == pytest.approx(draws.max(axis=0).std())
    least = expected_online_performance(scores, "min")
    assert least.expected[2] == pytest.approx(draws.min(axis=0).mean())
    assert least.deviation[2] == pytest.approx(draws.min(axis=0).std())


def test_ranks_equal_those_of_scipy() -> None:
    values = [3.0, 1.0, 3.0, 2.0, 3.0, -5.0]
    assert ranks(values).tolist() == reference.rankdata(values).tolist()


def test_importance_of_a_grid_by_hand() -> None:
    # 2 x 2 settings, twice: `a` sorts all of them, `b` says nothing.
    settings = [{"a": a, "b": b} for a in (1.0, 2.0) for b in ("x", "y") for _ in range(2)]
    scores = [1.0, 4.0, 2.0, 3.0, 5.0, 8.0, 6.0, 7.0]
    first, second = importances(settings, scores)
    assert (first.path, second.path) == ("a", "b")
    # Ranks 1..8: SS total 42, between the halves 32; within (42 - 32) / 6.
    assert first.share == pytest.approx((32 - 10 / 6) / 42)
    assert first.trend == pytest.approx(reference.spearmanr([1] * 4 + [2] * 4, scores)[0])
    assert second.share == 0.0
    assert second.trend is None
    # Of 70 ways to choose a half, 2 are as clear.
    assert first.p_value == pytest.approx(2 / 70, abs=0.01)
    assert second.p_value == pytest.approx(1.0, abs=0.02)


def test_importance_finds_the_numbers_that_matter_and_the_bent_ones() -> None:
    rng = np.random.default_rng(1)
    settings = [
        {"bent": float(rng.uniform(-1, 1)), "noise": float(rng.uniform()), "size": [8, 8]}
        for _ in range(60)
    ]
    scores = [-(s["bent"] ** 2) + 0.05 * float(rng.normal()) for s in settings]
    found = {one.path: one for one in importances(settings, scores)}
    assert list(found) == ["bent", "noise"]  # a constant has no importance
    assert found["bent"].share > 0.6
    assert found["bent"].p_value < 0.001
    assert found["noise"].share < 0.15
    assert abs(found["bent"].trend) < 0.4  # a trend alone would have missed it


def test_importance_is_the_effect_size_of_kruskal_and_wallis() -> None:
    rng = np.random.default_rng(4)
    kinds = ["a"] * 5 + ["b"] * 9 + ["c"] * 4
    scores = rng.integers(0, 12, 18) + np.repeat([0, 6, 3], [5, 9, 4])  # with ties
    (one,) = importances([{"kind": kind} for kind in kinds], scores.tolist())
    groups = [scores[[k == kind for k in kinds]] for kind in "abc"]
    assert one.share == pytest.approx((reference.kruskal(*groups).statistic - 2) / (18 - 3))
    shuffled = reference.permutation_test(
        groups,
        lambda *parts: reference.kruskal(*parts).statistic,
        n_resamples=1000,
        alternative="greater",
        rng=rng,
    )
    assert one.p_value == pytest.approx(shuffled.pvalue, abs=0.05)


def test_numbers_that_some_settings_lack_are_grouped_among_themselves() -> None:
    rng = np.random.default_rng(5)
    settings: list[dict[str, object]] = [{"on": False} for _ in range(10)]
    settings += [{"on": True, "width": float(w)} for w in rng.uniform(1, 9, 30)]
    scores = [float(s.get("width", 5.0)) + 0.1 * rng.normal() for s in settings]
    found = {one.path: one for one in importances(settings, scores)}
    assert found["width"].share > 0.6
    assert found["width"].trend > 0.95
    assert found["on"].share < 0.1


def test_importance_of_nothing_is_nothing_on_average() -> None:
    rng = np.random.default_rng(2)
    significant = 0
    for seed in range(100):
        settings = [{"a": float(rng.uniform())} for _ in range(12)]
        scores = rng.normal(size=12).tolist()
        (one,) = importances(settings, scores, shuffles=200, seed=seed)
        significant += one.p_value < 0.05
    assert significant <= 12  # 5 are to be expected


def test_importance_of_too_few_settings_is_not_invented() -> None:
    settings = [{"a": "x", "b": 1}, {"a": "y", "b": 2}, {"a": "z", "b": 3}]
    found = {one.path: one for one in importances(settings, [1.0, 2.0, 3.0])}
    assert found["a"].share is None
    assert found["b"].share is None
    assert found["b"].trend == pytest.approx(1.0)


def test_a_value_that_some_settings_lack_is_a_group() -> None:
    settings: list[dict[str, object]] = [{"k": "a"}] * 4 + [{"k": "b", "only_b": 1}] * 4
    scores = [1.0, 2.0, 3.0, 4.0, 11.0, 12.0, 13.0, 14.0]
    found = {one.path: one for one in importances(settings, scores)}
    assert found["only_b"].share == found["k"].share
    assert found["only_b"].share > 0.7
