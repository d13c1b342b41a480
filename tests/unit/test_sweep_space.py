"""Search spaces: what their kinds draw, which settings they hold, what is refused."""

import json
import math

import numpy as np
import pytest
from ray import tune

from raymimic.errors import ConfigError
from raymimic.sweep.spec.space import (
    KINDS,
    draw_setting,
    grid_settings,
    parse_space,
    perturb,
    sample,
    to_optuna,
    value_name,
)

MIXED = {
    "algo.alpha": {"loguniform": [0.5, 10]},
    "algo.target_tau": {"uniform": [0, 0.1]},
    "algo.discount": {"quniform": [0.9, 1.0, 0.05]},
    "train.batch_size": {"randint": [64, 67]},
    "algo.critic.layer_dims": {"choice": [[256, 256], [512]]},
}


def values(space, path, n=400):
    rng = np.random.default_rng(0)
    return [draw_setting(space, rng)[path] for _ in range(n)]


def test_a_grid_holds_every_combination_the_last_path_fastest():
    space = parse_space({"a": {"grid": [1, 2]}, "b": {"grid": ["x", "y", "z"]}})
    assert [tuple(s.values()) for s in grid_settings(space)] == [
        *((1, "x"), (1, "y"), (1, "z"), (2, "x"), (2, "y"), (2, "z")),
    ]


def test_whole_numbers_and_steps_are_a_grid_too():
    space = parse_space({"a": {"randint": [3, 6]}, "b": {"quniform": [0.1, 0.4, 0.1]}})
    settings = grid_settings(space)
    assert len(settings) == 12
    assert [s["a"] for s in settings[::4]] == [3, 4, 5]  # the upper end is left out
    assert [s["b"] for s in settings[:4]] == [0.1, 0.2, 0.3, 0.4]  # both ends, no 0.30000000000004


def test_a_continuum_is_no_grid():
    space = parse_space({"a": {"grid": [1]}, "b": {"loguniform": [1, 2]}})
    with pytest.raises(ConfigError, match=r"'space.b' is loguniform, a continuum that no grid"):
        grid_settings(space)


def test_a_condition_leaves_the_path_out_where_it_does_not_hold():
    space = parse_space(
        {
            "width": {"grid": [10, 20], "when": {"kind": ["rnn", "gru"]}},
            "kind": {"grid": ["mlp", "rnn", "gru"]},
            "depth": {"grid": [1, 2], "when": {"width": 20}},
        }
    )
    assert grid_settings(space) == [
        {"kind": "mlp"},
        {"width": 10, "kind": "rnn"},
        {"width": 20, "kind": "rnn", "depth": 1},
        {"width": 20, "kind": "rnn", "depth": 2},
        {"width": 10, "kind": "gru"},
        {"width": 20, "kind": "gru", "depth": 1},
        {"width": 20, "kind": "gru", "depth": 2},
    ]


def test_members_of_a_group_go_together():
    space = parse_space(
        {
            "a": {"grid": [1, 1, 2], "together": "g"},
            "b": {"grid": [10, 20, 30], "together": "g"},
            "c": {"grid": [True, False]},
        }
    )
    assert {tuple(s.values()) for s in grid_settings(space)} == {
        *((a, b, c) for a, b in ((1, 10), (1, 20), (2, 30)) for c in (True, False)),
    }
    drawn = parse_space(
        {
            "a": {"choice": [1, 2, 3], "together": "g"},
            "b": {"choice": [10, 20, 30], "together": "g"},
        }
    )
    assert {tuple(s.values()) for s in sample(drawn, 3, seed=0)} == {(1, 10), (2, 20), (3, 30)}


def test_each_kind_draws_from_its_distribution():
    space = parse_space(MIXED)
    alpha = np.array(values(space, "algo.alpha", 4000))
    assert 0.5 <= alpha.min() < 0.51 < 9.8 < alpha.max() <= 10
    # Log-uniform: the median is the geometric mean of the ends, 2.236.
    assert np.median(alpha) == pytest.approx(math.sqrt(5), rel=0.1)
    tau = np.array(values(space, "algo.target_tau", 4000))
    assert tau.mean() == pytest.approx(0.05, rel=0.05)
    assert set(values(space, "algo.discount")) == {0.9, 0.95, 1.0}
    assert set(values(space, "train.batch_size")) == {64, 65, 66}
    assert {tuple(v) for v in values(space, "algo.critic.layer_dims")} == {(256, 256), (512,)}


def test_samples_follow_from_the_seed_and_go_on_where_fewer_end():
    space = parse_space(MIXED)
    assert sample(space, 4, seed=3) == sample(space, 9, seed=3)[:4]
    assert sample(space, 4, seed=3) != sample(space, 4, seed=4)


def test_no_two_samples_are_alike_and_a_small_space_says_so():
    space = parse_space({"a": {"choice": [1, 2]}, "b": {"randint": [0, 3]}})
    assert len({json.dumps(s) for s in sample(space, 6, seed=0)}) == 6
    with pytest.raises(ConfigError, match=r"holds no 7 different settings, only about 6"):
        sample(space, 7, seed=0)


def test_every_point_of_a_grid_gets_as_many_draws():
    space = parse_space({"a": {"grid": [1, 2, 3]}, "b": {"uniform": [0, 1]}})
    drawn = sample(space, 6, seed=0)
    assert [s["a"] for s in drawn] == [1, 2, 3, 1, 2, 3]
    assert len({s["b"] for s in drawn}) == 6
    with pytest.raises(ConfigError, match=r"7 settings do not divide over the 3 points"):
        sample(space, 7, seed=0)


def test_a_grid_cannot_depend_on_a_draw():
    space = parse_space({"a": {"choice": [1, 2]}, "b": {"grid": [1, 2], "when": {"a": 1}}})
    with pytest.raises(ConfigError, match=r"'space.b' is a grid that depends on 'a'"):
        sample(space, 2, seed=0)


def test_optuna_chooses_inside_the_space():
    optuna = pytest.importorskip("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = parse_space(
        {
            **MIXED,
            "x": {"choice": [None, 5.0]},
            "y": {"loguniform": [1, 2], "when": {"x": [None]}},
            "p": {"choice": [1, 2], "together": "g"},
            "q": {"choice": ["one", "two"], "together": "g"},
        }
    )
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    settings = []
    for _ in range(50):
        asked = study.ask()
        settings.append(to_optuna(space, asked))
        assert to_optuna(space, asked) == settings[-1]  # asked again, the same answer
        study.tell(asked, 0.0)
    assert {s["algo.discount"] for s in settings} == {0.9, 0.95, 1.0}
    assert {s["train.batch_size"] for s in settings} == {64, 65, 66}
    assert {tuple(s["algo.critic.layer_dims"]) for s in settings} == {(256, 256), (512,)}
    assert all(0.5 <= s["algo.alpha"] <= 10 for s in settings)
    assert all(("y" in s) == (s["x"] is None) for s in settings)
    assert {(s["p"], s["q"]) for s in settings} == {(1, "one"), (2, "two")}


PERTURBED = {
    "alpha": ({"loguniform": [0.5, 10]}, 2.5, {2.0, 3.0}),
    "ends": ({"loguniform": [0.5, 2.6]}, 2.5, {2.0, 2.6}),
    "lower end": ({"uniform": [0.009, 1]}, 0.01, {0.009, 0.012}),
    "step": ({"quniform": [0, 2, 0.1]}, 1.0, {0.8, 1.2}),
    "small step": ({"quniform": [0, 2, 0.1]}, 0.2, {0.1, 0.3}),
    "last step": ({"quniform": [0, 2, 0.1]}, 2.0, {1.6, 2.0}),
    "whole": ({"randint": [1, 100]}, 10, {8, 12}),
    "small": ({"randint": [1, 100]}, 2, {1, 3}),
    "largest": ({"randint": [1, 100]}, 99, {79, 99}),
    "list": ({"choice": [1, 2, 5]}, 2, {1, 5}),
    "first": ({"choice": [1, 2, 5]}, 1, {1, 2}),
    "last": ({"grid": ["a", "b"]}, "b", {"a", "b"}),
}


@pytest.mark.parametrize("name", PERTURBED)
def test_a_perturbation_moves_up_or_down_and_stays_inside(name):
    entry, value, expected = PERTURBED[name]
    space, rng = parse_space({"x": entry}), np.random.default_rng(0)
    moved = [perturb(space, {"x": value}, rng, resample=0.0)["x"] for _ in range(200)]
    assert set(moved) == expected
    assert all(60 < moved.count(one) < 140 for one in expected)


def test_a_perturbation_draws_some_values_anew():
    space = parse_space({"a": {"uniform": [0, 100]}, "b": {"uniform": [0, 100]}})
    rng, start = np.random.default_rng(0), {"a": 50.0, "b": 50.0}
    settings = [perturb(space, start, rng, resample=0.25) for _ in range(2000)]
    anew = {path: [s[path] not in (40.0, 60.0) for s in settings] for path in "ab"}
    assert np.mean(anew["a"]) == pytest.approx(0.25, abs=0.03)
    # Each path by itself: both in a sixteenth.
    assert np.mean(np.logical_and(anew["a"], anew["b"])) == pytest.approx(0.0625, abs=0.02)
    drawn = [perturb(space, start, rng, resample=1.0)["a"] for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(50, abs=2)
    assert len(set(drawn)) == 2000


def test_a_space_is_written_as_it_is_read():
    content = MIXED | {
        "data": {
            "grid": ["a.hdf5", "b.hdf5"],
            "together": "g",
            "value_names": ["A", "B"],
            "label": "ds",
        },
        "c": {"grid": [1], "when": {"data": ["a.hdf5"]}, "hidden": True},
    }
    space = parse_space(content)
    written = {path: dimension.to_dict() for path, dimension in space.items()}
    assert parse_space(json.loads(json.dumps(written))) == space
    assert written["data"] == content["data"]
    assert value_name(space, "data", {"data": "b.hdf5"}) == "B"
    assert space["algo.critic.layer_dims"].name_of([256, 256]) == "256_256"
    assert space["algo.alpha"].name_of(0.123456) == "0.1235"


TUNE = {
    "uniform": (tune.uniform(0, 1), {"uniform": [0, 1]}),
    "loguniform": (tune.loguniform(1e-4, 1e-2), {"loguniform": [1e-4, 1e-2]}),
    "quniform": (tune.quniform(0.1, 0.4, 0.1), {"quniform": [0.1, 0.4, 0.1]}),
    "randint": (tune.randint(3, 6), {"randint": [3, 6]}),
    "choice": (tune.choice([[64], [64, 64]]), {"choice": [[64], [64, 64]]}),
    "grid": (tune.grid_search([1, 2]), {"grid": [1, 2]}),
}


@pytest.mark.parametrize("name", TUNE)
def test_domains_of_ray_tune_are_dimensions(name):
    domain, entry = TUNE[name]
    (dimension,) = parse_space({"x": domain}).values()
    assert dimension == parse_space({"x": entry})["x"]
    json.dumps(dimension.to_dict())


def test_ends_are_those_that_ray_tune_draws():
    for domain in (tune.randint(3, 6), tune.quniform(0.1, 0.4, 0.1)):
        drawn = {round(value, 9) for value in domain.sample(size=500)}
        assert drawn == set(parse_space({"x": domain})["x"].values)


def test_other_domains_of_ray_tune_are_refused():
    strange = (
        *(tune.randn(0, 1), tune.lograndint(1, 9), tune.qrandint(0, 9, 3)),
        *(tune.qloguniform(1, 9, 1), tune.sample_from(lambda _: 1)),
    )
    for domain in strange:
        with pytest.raises(ConfigError, match=r"'space.x' is a domain of Ray Tune that sweeps do"):
            parse_space({"x": domain})


def test_lists_of_numpy_are_lists():
    space = parse_space({"a": {"grid": np.arange(3)}, "b": {"choice": [np.float32(0.5), 1.0]}})
    assert json.dumps([d.values for d in space.values()]) == "[[0, 1, 2], [0.5, 1.0]]"


WRONG = {
    "nothing": ({}, "'space' is empty"),
    "a list": (["a"], r"'space' is \['a'\]: write how each path varies"),
    "nested": ({"a": {"b": {"grid": [1]}}}, "write each path in one, such as a.b"),
    "no mapping": ({"a": 5}, "'space.a' is 5: write how it varies"),
    "unknown kind": ({"a": {"logunifrom": [1, 2]}}, "did you mean 'loguniform'"),
    "no kind": ({"a": {"when": {}}}, "needs one of choice, grid, uniform"),
    "two kinds": ({"a": {"grid": [1], "choice": [1]}}, "it has 2"),
    "no values": ({"a": {"choice": []}}, "'choice' needs a list"),
    "a value twice": ({"a": {"choice": [1, 2, 1]}}, "lists 1 twice"),
    "true is not 1": ({"a": {"choice": [1, True, True]}}, "lists True twice"),
    "three ends": ({"a": {"uniform": [1, 2, 3]}}, r"write \[lowest, highest\]"),
    "text ends": ({"a": {"uniform": ["1", "2"]}}, r"write \[lowest, highest\]"),
    "endless": ({"a": {"uniform": [0, math.inf]}}, r"write \[lowest, highest\]"),
    "wrong way": ({"a": {"uniform": [2, 1]}}, "put the lower first"),
    "zero": ({"a": {"loguniform": [0, 1]}}, "must be greater than 0"),
    "half": ({"a": {"randint": [0.5, 3]}}, "whole numbers"),
    "crooked": ({"a": {"quniform": [0.1, 1, 0.3]}}, "must be multiples of its step"),
    "names": ({"a": {"grid": [1, 2], "value_names": ["x"]}}, "one name for each of the 2 values"),
    "a range's names": ({"a": {"uniform": [1, 2], "value_names": ["x"]}}, "has 'value_names'"),
    "group": (
        {"a": {"grid": [1, 2], "together": "g"}, "b": {"grid": [1], "together": "g"}},
        "give both the same kind and number",
    ),
    "stranger": ({"a": {"grid": [1], "when": {"c": 1}}}, "'c', which the space does not vary"),
    "never": (
        {"a": {"grid": [1], "when": {"b": 3}}, "b": {"grid": [1, 2]}},
        "being 3, which it never is: its values are 1, 2",
    ),
    "continuum": (
        {"a": {"grid": [1], "when": {"b": 3}}, "b": {"uniform": [1, 2]}},
        "only single values can be a condition",
    ),
    "circle": (
        {"a": {"grid": [1], "when": {"b": 1}}, "b": {"grid": [1], "when": {"a": 1}}},
        "a and b depend on each other",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_words(name):
    content, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        parse_space(content)


def test_every_kind_has_a_test():
    kinds = {next(iter(d)) for d in MIXED.values()} | {"grid"}
    assert kinds == set(KINDS)
