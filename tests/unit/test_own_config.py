"""Rules that a user's own config class brings, and rules that hold for it in any case."""

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import robomimic_idiom  # noqa: F401 # registers its configs

from raymimic.config import BaseConfig, config_factory, parse_set
from raymimic.config.base_config import REGISTERED_CONFIGS, config_from_file
from raymimic.config.bc_config import BCConfig
from raymimic.config.checks import check_config, problems
from raymimic.config.describe import describe
from raymimic.errors import ConfigError

_numbers = itertools.count()


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Forgets the classes of a test."""
    before = dict(REGISTERED_CONFIGS)
    yield
    REGISTERED_CONFIGS.clear()
    REGISTERED_CONFIGS.update(before)


def own_config(base: type[BaseConfig] = BaseConfig, **members: Any) -> type[BaseConfig]:
    """A config class in a module of its own, with the keys `algo.beta`, `log_std` and `mode`."""

    def algo_config(self: Any) -> None:
        base.algo_config(self)
        self.algo.beta = 3.0
        self.algo.log_std = -2.0
        self.algo.clip = math.inf
        self.algo.mode = "fast"

    name = f"own_{next(_numbers)}"
    body = {"ALGO_NAME": name, "algo_config": algo_config, "__module__": name, **members}
    return type(name, (base,), body)


def said(cls: type[BaseConfig], *assignments: str) -> list[str]:
    config = cls()
    config.train.data = "demos.hdf5"
    for assignment in assignments:
        config.set_path(*parse_set(assignment))
    return problems(config)


OWN = {
    "RANGES": {"algo.beta": (0, math.inf), "algo.log_std": (-10, 2)},
    "CHOICES": {"algo.mode": ("fast", "exact")},
}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("algo.beta=-5", "'algo.beta' is -5: it must be at least 0"),
        ("algo.beta=Infinity", "'algo.beta' is Infinity: it must be a finite number"),
        ("algo.beta=NaN", "'algo.beta' is NaN: it must be a finite number"),
        ("algo.beta=1e999", "'algo.beta' is Infinity: it must be a finite number"),
        ("algo.beta=big", "'algo.beta' is 'big': it must be a number"),
        ("algo.log_std=3", "'algo.log_std' is 3: it must be between -10 and 2"),
        ("algo.log_std=-3", None),
        ("algo.clip=Infinity", None),  # as its default
        ("algo.clip=5", None),
        ("algo.mode=slow", "'algo.mode' is 'slow': it must be one of 'fast', 'exact'"),
        ("algo.mode=exact", None),
    ],
)
def test_ranges_and_choices_of_a_users_own(assignment, message):
    found = said(own_config(**OWN), assignment)
    assert found == [] if message is None else found == [message]


def test_a_subclass_has_the_ranges_of_its_bases_and_may_change_them():
    parent = own_config(**OWN)
    child = type("child", (parent,), {"ALGO_NAME": "child", "RANGES": {"algo.beta": (-9, 9)}})
    assert said(child, "algo.beta=-5") == []
    assert said(child, "algo.log_std=3") == ["'algo.log_std' is 3: it must be between -10 and 2"]


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("RANGES", {"beta": (0, 1)}, "RANGES names 'beta'; did you mean 'algo.beta'?"),
        ("RANGES", {"algo.beta": 5}, "RANGES['algo.beta'] is 5: it must be a tuple"),
        ("RANGES", {"algo.beta": (1, 0)}, "['algo.beta'] is (1, 0): give (least, greatest)"),
        ("RANGES", {"algo.beta": ("a", 0)}, "give (least, greatest)"),
        ("RANGES", 5, "RANGES is 5: it must be a dict, or a tuple of keys"),
        ("CHOICES", {"algo.mode": "fast"}, "CHOICES['algo.mode'] is 'fast': it must be a tuple"),
        ("EXAMPLES", {"algo.bteta": 1}, "EXAMPLES names 'algo.bteta'; did you mean 'algo.beta'?"),
        ("PERTURBABLE", ("algo.alpha",), "PERTURBABLE names 'algo.alpha'"),
        ("PERTURBABLE", ("algo.beta"), "is 'algo.beta': it must be a dict, or a tuple of keys"),
    ],
)
def test_a_table_that_says_nothing_is_a_mistake(name, table, message):
    cls = own_config(**{name: table})
    found = said(cls)
    assert len(found) == 1
    with pytest.raises(ConfigError, match=name):
        describe(cls.ALGO_NAME)
    assert message in found[0]


def test_a_part_may_lack_keys_that_its_own_class_has():
    def algo_config(self: Any) -> None:
        self.algo.sampler = BCConfig().algo
        del self.algo.sampler.loss  # of which BC's own rules speak

    cls = own_config(algo_config=algo_config)
    assert said(cls) == []
    both = ["algo.sampler.gmm.enabled=true", "algo.sampler.gaussian.enabled=true"]
    assert "exclude each other" in said(cls, *both)[0]


def test_goals_of_a_hierarchy_are_those_of_the_parts_that_plan():
    config = config_factory("idiom_hierarchy")
    config.observation.actor.modalities.goal.low_dim = ["subgoal"]
    assert config.goals_from_env == {}
    config.observation.planner.modalities.goal.rgb = ["end"]
    assert config.goals_from_env == {"end": "rgb"}


def test_a_key_that_is_called_like_one_of_ours_may_be_something_else():
    """The rules of a built-in algorithm hold for its own keys alone."""

    def algo_config(self: Any) -> None:
        self.algo.discount = -3  # between 0 and 1, where it is ours
        self.algo.value_bounds = "wide"  # two numbers, where they are ours
        self.algo.alpha = 0.5

    cls = own_config(algo_config=algo_config)
    assert said(cls) == []
    assert said(cls, "algo.discount=-4", "algo.value_bounds=narrow") == []
    assert said(cls, "algo.value_bounds=5") == ["'algo.value_bounds' is 5: it must be a text"]
    assert said(cls, "algo.alpha=-1") == []


def test_contradictions_of_a_users_own():
    def find(self: Any) -> Iterator[str]:
        if self.algo.beta > 10 and self.algo.mode == "fast":
            yield "'algo.beta' above 10 needs 'algo.mode' exact"

    cls = own_config(problems=find, **OWN)
    assert said(cls, "algo.beta=11") == ["'algo.beta' above 10 needs 'algo.mode' exact"]
    assert said(cls, "algo.beta=11", "algo.mode=exact") == []


@pytest.mark.parametrize(
    ("assignments", "refused"),
    [
        (["train.frame_stack=2"], True),
        (["train.frame_stack=2", "algo.transformer.enabled=true"], False),
        ([], False),
    ],
)
def test_a_subclass_of_bc_sees_what_bc_sees(assignments, refused):
    own = own_config(BCConfig)
    context = ["algo.transformer.context_length=2"]
    messages = [said(cls, *assignments, *context) for cls in (own, BCConfig)]
    assert messages[0] == messages[1]
    assert any("sees one observation at a time" in m for m in messages[0]) == refused


def test_a_users_own_says_itself_what_it_sees():
    assert said(own_config(), "train.frame_stack=2") == []  # its algorithm knows
    assert "set it to 1" in said(own_config(SEES_STACKS=False), "train.frame_stack=2")[0]
    assert said(own_config(BCConfig, SEES_STACKS=True), "train.frame_stack=2") == []


# ------------------------------------------------------------------------------------ names

NAMES = {
    "..": False,
    ".": False,
    "": False,
    "/abs": False,
    "../../esc": False,
    "a/../../b": False,
    "a//b": False,
    "a/": False,
    "s3://bucket": False,
    "a\0b": False,
    "a\nb": False,
    "a\u2028b": False,
    "\udcff": False,
    "x" * 300: False,
    "ß" * 200: False,
    "trailing ": False,
    " leading": False,
    "run": True,
    "project/run": True,
    "-x": True,
    "...": True,
    "..a": True,
    "läuft gut (2)": True,
    "gym_pusht/PushT-v0": True,
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_runs_and_datasets_stay_in_their_folder(name):
    config = config_factory("td3_bc")
    config.train.data = "demos.hdf5"
    config.experiment.name = name
    found = problems(config)
    assert (found == []) == NAMES[name]
    config.experiment.name = "run"
    config.train.data = [{"path": "demos.hdf5", "key": name}]
    also_found = problems(config)
    assert (also_found == []) == NAMES[name]
    for sentences, key in ((found, "'experiment.name'"), (also_found, "'train.data")):
        assert len(sentences) <= 1
        assert all(key in s and "\n" not in s and s.isprintable() for s in sentences)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("mlflow.experiment_name", "a\nb", "'mlflow.experiment_name' is 'a\\nb': it holds a line"),
        ("mlflow.experiment_name", "x" * 300, "it has 300 bytes, more than 250"),
        ("mlflow.experiment_name", "/Shared/lab/ünder", None),
        ("mlflow.run_name", " ", "it is empty"),
        ("mlflow.tags", {"": "a"}, "it is empty"),
        ("mlflow.tags", {"a": {"b": 1}}, "gives 'a' the value"),
        ("mlflow.tags", {"a": None}, "gives 'a' the value null: it must be a text"),
        ("mlflow.tags", {"mlflow.note.content": "two\nlines"}, None),
        ("train.output_dir", "a\0b", "'train.output_dir' is 'a\\x00b': a text cannot hold"),
        ("train.data", "a\0b.hdf5", "a text cannot hold the character NUL"),
        ("train.data", [{"path": "\udcff.hdf5"}], "it is not valid UTF-8"),
        ("observation.modalities.obs.low_dim", ["flat", "flat"], "names 'flat' twice"),
        ("observation.modalities.obs.low_dim", [""], "'observation.modalities' names ''"),
        ("observation.modalities.obs.low_dim", ["robot/pos"], None),
        ("train.action_keys", ["actions", "actions"], "names 'actions' twice"),
        ("train.action_config.actions.normalization", {"a": 1}, "must be one of null, 'min_max'"),
        ("experiment.env", "", "'experiment.env' is an empty text: give one, or null"),
        ("experiment.additional_envs", [""], "'experiment.additional_envs' names '': it is empty"),
        ("experiment.env_meta_update_dict", {"env_kwargs": {"range": [0.7, math.inf]}}, None),
        ("train.max_grad_norm", 0, "'train.max_grad_norm' is 0: it must be greater than 0"),
        ("algo.alpha", math.inf, "'algo.alpha' is Infinity: it must be a finite number"),
        ("algo.alpha", math.nan, "'algo.alpha' is NaN: it must be a finite number"),
        ("algo.critic.layer_dims", [10**30], "whole numbers have at most 64 bits"),
        ("algo.critic.value_bounds", [-math.inf, 1.0], "it must be a finite number"),
    ],
)
def test_texts_and_numbers(path, value, message):
    config = config_factory("td3_bc")
    config.train.data = "demos.hdf5"
    config.set_path(path, value)
    found = problems(config)
    if message is None:
        assert found == []
    else:
        assert len(found) == 1
        assert message in found[0]


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000], ids=["digits", "brackets"])
def test_json_that_python_does_not_read(tmp_path, text):
    config = config_factory("td3_bc")
    config.train.data = "demos.hdf5"
    config.set_path(*parse_set(f"algo.alpha={text}"))
    with pytest.raises(ConfigError, match=r"'algo.alpha' is '.*': it must be a number"):
        check_config(config)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"algo_name": "td3_bc"})[:-1] + f', "train": {text}')
    with pytest.raises(ConfigError, match=r"config\.json"):
        config_from_file(file)
