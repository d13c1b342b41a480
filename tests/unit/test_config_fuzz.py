"""Any value at any key is taken, or one sentence names its fault."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from tiny import small_config

from raymimic.algo import algo_factory
from raymimic.config import BaseConfig, config_factory, get_all_registered_configs
from raymimic.config.checks import problems, warnings_for
from raymimic.errors import ConfigError, RaymimicError
from raymimic.training.worker import fill_in_schedule_lengths

BUILT_IN = ["td3_bc", "bc", "bcq", "cql", "diffusion_policy", "gl", "hbc", "iql", "iris"]
VALUES: list[Any] = [
    *(math.nan, math.inf, -math.inf, -1, 0, -0.5, 10**30, -(10**30), True, False, None),
    *("", "x", "..", "a\0b", "\udcff", "x" * 300),
    *([], [None], ["x"], [-1], [0], [math.nan], [[1]], [10**30], [True], ["a\0"]),
    *({}, {"a": 1}, {"": None}, {"a": math.inf}),
]
NEVER = ("nan", "inf", "000000", "\\x00", "\\udcff")
# Handed on to the environment, or read by nobody.
FREE = ("experiment.env_meta_update_dict", "experiment.mse", "meta.hp_values")


def leaves_of_all() -> dict[str, list[str]]:
    """Keys by algorithm; of those that have the same last two names, in any algorithm, one."""
    seen: set[Any] = set()
    found: dict[str, list[str]] = {}
    for algo in BUILT_IN:
        for path, _ in config_factory(algo).leaves(optional=True):
            names = tuple(path.split(".")[-2:]) if path.startswith(("algo.", "obs")) else path
            if path != "algo_name" and names not in seen:
                seen.add(names)
                found.setdefault(algo, []).append(path)
    return found


LEAVES = leaves_of_all()


def with_value(config: BaseConfig, path: str, value: Any) -> list[str]:
    """The sentence on a value."""
    try:
        config.set_path(path, copy.deepcopy(value))
    except ConfigError as error:
        return [str(error)]
    return problems(config)


def may_be(value: Any, default: Any) -> bool:
    """Whether a value is of the kind that the default shows; null shows nothing."""
    if default is None or value is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    kinds = (int, float), str, (list, tuple), dict
    return any(isinstance(value, kind) and isinstance(default, kind) for kind in kinds)


@pytest.mark.parametrize("algo", LEAVES)
def test_every_value_at_every_key(algo: str) -> None:
    assert set(BUILT_IN) <= set(get_all_registered_configs())
    base = config_factory(algo)
    base.train.data = "demos.hdf5"
    defaults = dict(base.leaves(optional=True))
    saved = pickle.dumps(base)  # a copy takes several times as long
    for path in LEAVES[algo]:
        for value in VALUES:
            config = pickle.loads(saved)
            found = with_value(config, path, value)
            for sentence in found:
                assert path.partition(".")[0] in sentence, sentence
                assert len(sentence) < 600
                assert "\n" not in sentence
                sentence.encode()  # can be printed
            if found or path.startswith(FREE):
                continue
            warnings_for(config)
            assert not any(word in repr(value) for word in NEVER), (path, value)
            either = path == "algo.actor.target_entropy" or path == "train.data"
            assert either or may_be(value, defaults[path]), (path, value)


@pytest.mark.parametrize("algo", BUILT_IN)
def test_what_is_accepted_can_be_made(algo: str) -> None:
    """An algorithm with any accepted settings is made, or says in one sentence why not."""
    base = small_config(algo)
    base.train.data = "demos.hdf5"
    fill_in_schedule_lengths(base, 10)
    assert problems(base) == []
    made, refused = 0, []
    for path, _ in base.algo.leaves():
        if "optim_params" in path and not path.endswith("L2"):
            continue
        for value in (0, -1, [], None, True):
            config = base.deepcopy()
            if with_value(config, f"algo.{path}", value) != []:
                continue
            try:
                torch.manual_seed(0)
                algo_factory(algo, config, {"flat": [3]}, 2, "cpu")
                made += 1
            except RaymimicError as error:
                refused.append(str(error))
    assert made > 10
    assert "\n" not in "".join(refused)


@pytest.mark.parametrize("size", [2**40, 2**62])
def test_networks_that_no_memory_holds(size: int) -> None:
    config = small_config("td3_bc")
    config.algo.critic.layer_dims = [8, size]
    with pytest.raises(ConfigError, match="do not fit into memory"):
        algo_factory("td3_bc", config, {"flat": [3]}, 2, "cpu")
