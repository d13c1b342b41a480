"""Config: dotted access, locks, updates, copies."""

import copy
import json
import pickle
from pathlib import Path

import pytest

from raymimic.config import Config, config_factory
from raymimic.errors import ConfigError


@pytest.fixture
def config() -> Config:
    config = Config()
    config.train.batch_size = 100
    config.train.layers = (256, 256)
    config.algo.actor.update_freq = 2
    config.algo.kwargs.bidirectional = False
    config.algo.kwargs.do_not_lock_keys()
    config.lock_keys()
    return config


def test_sections_start_when_something_is_set_in_them():
    config = Config()
    assert config.a.b.c == {}  # reading alone leaves no trace
    assert config == {}
    config.a.b.c = 1
    assert config == {"a": {"b": {"c": 1}}}
    assert config["a"]["b"]["c"] == config.a.b.c == 1


def test_nested_mappings_become_sections():
    config = Config({"a": {"b": 1}}, c={"d": {"e": 2}})
    assert config.a.b == 1
    assert config.c.d.e == 2
    config.f = {"g": {"h": 3}}
    assert config.f.g.h == 3


def test_unknown_keys_name_the_nearest_and_the_full_path(config):
    with pytest.raises(ConfigError, match=r"'train.batchsize'; did you mean 'batch_size'\?"):
        config.train.batchsize = 5
    with pytest.raises(ConfigError, match=r"'algo.actor.update_frq'; did you mean 'update_freq'\?"):
        _ = config.algo.actor.update_frq
    with pytest.raises(ConfigError, match=r"'algo.actor.update_frq'"):
        config["algo"]["actor"]["update_frq"] = 5
    with pytest.raises(ConfigError, match=r"'train.xyz'; known are: batch_size, layers"):
        config.update({"train": {"xyz": 1}})
    assert config.train == {"batch_size": 100, "layers": (256, 256)}


def test_hasattr_answers_for_locked_keys(config):
    assert hasattr(config.train, "batch_size")
    assert not hasattr(config.train, "batchsize")
    assert config.train.get("batchsize", 7) == 7


def test_key_lock_leaves_values_free(config):
    config.train.batch_size = 32
    config.update({"algo": {"actor": {"update_freq": 4}}})
    assert (config.train.batch_size, config.algo.actor.update_freq) == (32, 4)


def test_free_sections_take_any_key_under_a_key_lock(config):
    config.algo.kwargs.dropout = 0.1
    config.update({"algo": {"kwargs": {"nested": {"deep": 1}}}})
    config.algo.kwargs.nested.deeper = 2  # all keys in a free section are free
    config.lock_keys()
    config.algo.kwargs.nested.deepest = 3
    assert config.algo.kwargs == {
        "bidirectional": False,
        "dropout": 0.1,
        "nested": {"deep": 1, "deeper": 2, "deepest": 3},
    }


def test_an_empty_free_section_exists():
    config = Config()
    config.a.kwargs.do_not_lock_keys()
    config.lock_keys()
    assert config == {"a": {"kwargs": {}}}
    config.a.kwargs.new = 1
    assert config.a.kwargs.new == 1


def test_an_assigned_dict_is_free():
    config = Config()
    config.tags = {}
    config.lock_keys()
    config.tags["owner"] = "me"
    assert config == {"tags": {"owner": "me"}}


def test_optional_keys_read_as_their_default_until_they_are_set(config):
    with config.unlocked():
        config.train.optional_keys(scheduler="multistep")
    assert config.train.scheduler == "multistep"
    assert config.get_path("train.scheduler") == "multistep"
    assert "scheduler" not in config.train
    assert "scheduler" not in json.loads(config.dump())["train"]
    config.set_path("train.scheduler", "cosine")
    assert config.train["scheduler"] == "cosine"
    with pytest.raises(ConfigError, match=r"did you mean 'scheduler'\?"):
        config.train.schedular = "cosine"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: setattr(c.train, "batch_size", 1),
        lambda c: c.train.__setitem__("batch_size", 1),
        lambda c: c.update({"train": {"batch_size": 1}}),
        lambda c: c.set_path("train.batch_size", 1),
        lambda c: c.train.__ior__({"batch_size": 1}),
        lambda c: c.train.__delitem__("batch_size"),
        lambda c: delattr(c.train, "batch_size"),
        lambda c: c.train.pop("batch_size"),
        lambda c: c.train.popitem(),
        lambda c: c.train.clear(),
        lambda c: c.train.setdefault("new", 1),
        lambda c: setattr(c.algo.kwargs, "new", 1),
    ],
)
def test_a_locked_config_refuses_every_change(config, change):
    config.lock()
    before = config.to_dict()
    with pytest.raises(ConfigError, match=r"config is locked|unknown config key"):
        change(config)
    assert config.to_dict() == before


def test_unlocked_relocks_even_after_an_exception(config):
    config.lock()

    def grow() -> None:
        with config.unlocked():
            config.train.new = 1
            config.new.section.key = 2
            raise ValueError

    with pytest.raises(ValueError, match=r"^$"):
        grow()
    assert config.train.new == 1
    assert config.is_locked
    assert config.is_key_locked
    for section in (config.train, config.new, config.new.section):
        with pytest.raises(ConfigError, match=r"locked"):
            section["key"] = 3


def test_values_unlocked_allows_values_but_no_keys(config):
    config.lock()
    with config.values_unlocked():
        config.train.batch_size = 8
        with pytest.raises(ConfigError, match=r"unknown config key 'train.new'"):
            config.train.new = 1
        config.algo.kwargs.free = 1
    assert config.train.batch_size == 8
    with pytest.raises(ConfigError, match=r"locked"):
        config.train.batch_size = 9


def test_scopes_restore_each_section_as_it_was(config):
    config.train.lock()
    with config.unlocked():
        config.train.batch_size = 1
    config.algo.actor.update_freq = 3  # only the keys were locked here
    with pytest.raises(ConfigError, match=r"locked"):
        config.train.batch_size = 2


def test_unlock_keys_and_unlock(config):
    config.unlock_keys()
    config.train.new = 1
    config.lock()
    config.unlock()
    config.train.newer = 2
    assert (config.train.new, config.train.newer) == (1, 2)


def test_a_section_cannot_become_a_value_under_a_key_lock(config):
    with pytest.raises(ConfigError, match=r"'algo.actor' is a section .* its keys: update_freq"):
        config.algo.actor = True
    with pytest.raises(ConfigError, match=r"unknown config key 'algo.actor.x'"):
        config.algo.actor = {"x": 1}
    config.algo.actor = {"update_freq": 9}
    assert config.algo.actor.update_freq == 9


def test_method_names_are_no_keys(config):
    with pytest.raises(ConfigError, match=r"'train.update' is the name of a method"):
        config.train.update = 1


def test_paths(config):
    config.set_path("algo.actor.update_freq", 5)
    assert config.get_path("algo.actor.update_freq") == 5
    config.set_path("algo", {"actor": {"update_freq": 6}})
    assert config.algo.actor.update_freq == 6
    with pytest.raises(ConfigError, match=r"did you mean 'algo.actor.update_freq'\?"):
        config.set_path("update_freq", 1)
    with pytest.raises(ConfigError, match=r"'algo.acto'; did you mean 'actor'\?"):
        config.set_path("algo.acto.update_freq", 1)
    with pytest.raises(ConfigError, match=r"'train.batch_size' holds the value 100"):
        config.set_path("train.batch_size.x", 1)
    with pytest.raises(ConfigError, match=r"'algo.actor.up'"):
        config.set_path("algo.actor", {"up": 1})
    with pytest.raises(ConfigError, match=r"unknown config key 'algo.nothing'"):
        config.get_path("algo.nothing")


def test_paths_in_errors_follow_a_section_that_moves(config):
    with config.unlocked():
        config.outer.inner = config.algo
    with pytest.raises(ConfigError, match=r"'outer.inner.actor.x'"):
        config.outer.inner.actor.x = 1


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, Config.copy, Config.deepcopy])
def test_copies_keep_locks_and_content(config, duplicate):
    config.lock()
    other = duplicate(config)
    assert other == config
    assert type(other) is type(config)
    with pytest.raises(ConfigError, match=r"locked: cannot set 'train.batch_size'"):
        other.train.batch_size = 1


def test_deep_copies_are_independent(config):
    other = config.deepcopy()
    other.train.batch_size = 1
    assert config.train.batch_size == 100


def test_pickles_keep_class_locks_and_optional_keys():
    config = config_factory("td3_bc")
    config.lock()
    other = pickle.loads(pickle.dumps(config))
    assert other == config
    assert type(other) is type(config)
    assert other.is_locked
    assert other.algo.optim_params.actor.learning_rate.scheduler_type == "multistep"
    with other.values_unlocked():
        other.observation.encoder.rgb.core_kwargs.feature_dimension = 64
        with pytest.raises(ConfigError, match=r"unknown config key 'algo.alfa'"):
            other.algo.alfa = 1


def test_json_round_trip(config, tmp_path: Path):
    path = tmp_path / "config.json"
    text = config.dump(path)
    assert json.loads(path.read_text()) == json.loads(text)
    again = Config(json.loads(text))
    assert again.dump() == text
    assert again.train.layers == [256, 256]


def test_dump_names_a_value_that_json_cannot_express(config):
    config.train.layers = {1, 2}
    with pytest.raises(ConfigError, match=r"'train.layers' holds a set"):
        config.dump()


def test_dump_writes_paths_as_text(config):
    config.train.layers = Path("demos.hdf5")
    assert json.loads(config.dump())["train"]["layers"] == "demos.hdf5"


def test_leaves(config):
    assert dict(config.leaves()) == {
        "train.batch_size": 100,
        "train.layers": (256, 256),
        "algo.actor.update_freq": 2,
        "algo.kwargs.bidirectional": False,
    }
