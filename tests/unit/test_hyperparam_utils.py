"""robomimic's ConfigGenerator: the sweep that it makes, and the files that it writes."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from raymimic.config import config_factory, config_from_file
from raymimic.errors import ConfigError
from raymimic.scripts import train
from raymimic.sweep.spec.config_folder import configs_in
from raymimic.sweep.spec.config_generator import ConfigGenerator

RATE = "algo.optim_params.policy.learning_rate.initial"


@pytest.fixture
def base(tmp_path):
    config = config_factory("bc")
    config.experiment.name, config.train.data = "base", "lift.hdf5"
    config.dump(tmp_path / "base.json")
    return tmp_path / "base.json"


def generator(base, **kwargs):
    """Two groups: dataset with batch size, and learning rate."""
    made = ConfigGenerator(base_config_file=str(base), **kwargs)
    made.add_param(
        key="train.data",
        name="ds",
        group=0,
        values=["/data/lift.hdf5", "/data/can.hdf5"],
        value_names=["lift", "can"],
    )
    made.add_param(key="train/batch_size", name="", group=0, values=[16, 64])
    made.add_param(key=RATE, name="lr", group=1, values=[1e-3, 1e-4, 1e-5])
    return made


def test_groups_go_together_and_combine_with_each_other(base):
    sweep = generator(base).sweep()
    assert (sweep.name, sweep.algo, sweep.num_trials) == ("base", "bc", 6)
    assert [tuple(s.values()) for s in sweep.settings] == [
        ("/data/lift.hdf5", 16, 1e-3),
        ("/data/lift.hdf5", 16, 1e-4),
        ("/data/lift.hdf5", 16, 1e-5),
        ("/data/can.hdf5", 64, 1e-3),
        ("/data/can.hdf5", 64, 1e-4),
        ("/data/can.hdf5", 64, 1e-5),
    ]
    assert list(map(sweep.name_of, sweep.settings))[:2] == ["ds_lift_lr_0.001", "ds_lift_lr_0.0001"]
    config = sweep.config_for(sweep.trials()[3])
    assert (config.train.data, config.train.batch_size) == ("/data/can.hdf5", 64)


def test_seeds_are_a_parameter_of_their_own(base):
    made = generator(base)
    made.add_param(key="train.seed", name="seed", group=2, values=[1, 2])
    sweep = made.sweep(name="mine", metric="Rollout/Success_Rate")
    assert (sweep.name, sweep.seeds, sweep.num_settings) == ("mine", (1, 2), 6)
    assert sweep.metric == "Rollout/Success_Rate"
    with pytest.raises(ConfigError, match=r"'train.seed' needs a group of its own"):
        made.sweep(seeds=[3])
    tied = ConfigGenerator(base)
    tied.add_param("train.seed", "seed", 0, [1, 2])
    tied.add_param("train.batch_size", "bs", 0, [16, 32])
    with pytest.raises(ConfigError, match=r"'train.seed' needs a group of its own"):
        tied.sweep()


def test_files_are_named_and_noted_as_robomimic_does(base, tmp_path):
    made = generator(
        base,
        generated_config_dir=tmp_path / "out",
        script_file=str(tmp_path / "all.sh"),
        wandb_proj_name="proj",
    )
    paths = made.generate()
    assert [Path(p).name for p in paths] == [
        f"base_ds_{ds}_lr_{lr}.json"
        for ds in ("lift", "can")
        for lr in ("0.001", "0.0001", "1e-05")
    ]
    content = json.loads(Path(paths[-1]).read_text())
    assert content["experiment"]["name"] == "base_ds_can_lr_1e-05"
    assert content["meta"] == {
        "hp_base_config_file": str(base),
        "hp_keys": ["ds", "lr"],
        "hp_values": ["can", 1e-5],
    }
    assert content["experiment"]["logging"]["wandb_proj_name"] == "proj"
    config = config_from_file(paths[-1])
    assert (config.train.data, config.train.batch_size) == ("/data/can.hdf5", 64)
    assert config.get_path(RATE) == 1e-5
    assert config.mlflow.experiment_name == "proj"
    lines = (tmp_path / "all.sh").read_text().splitlines()
    assert len(lines) == 8
    python, script, *words = shlex.split(lines[2])
    assert (python, words) == ("python", ["--config", paths[0]])
    assert Path(script).samefile(train.__file__)


def test_files_beside_the_base_config_run_as_the_same_sweep(base):
    made = generator(base)
    made.add_param(key="train.seed", name="seed", group=2, values=[1, 2])
    assert len(made.generate()) == 12
    sweep = configs_in(base.parent)  # the base config itself is no setting
    assert (sweep.num_trials, sweep.seeds) == (12, (1, 2))
    direct = made.sweep()
    assert {json.dumps(s, sort_keys=True) for s in sweep.settings} == {
        json.dumps(s, sort_keys=True) for s in direct.settings
    }
    assert {sweep.name_of(s) for s in sweep.settings} == {
        f"base_ds_{ds}_lr_{lr}" for ds in ("lift", "can") for lr in ("0.001", "0.0001", "1e-05")
    }


def test_names_can_be_hidden_and_begin_elsewhere(base, tmp_path):
    made = ConfigGenerator(base, base_exp_name="exp", generated_config_dir=tmp_path / "out")
    made.add_param("train.batch_size", "bs", 0, [16], hidename=True)
    made.add_param("algo.actor_layer_dims", "size", 1, [[256, 256]], prepend=True)
    assert list(made.parameters) == ["algo.actor_layer_dims", "train.batch_size"]
    assert Path(made.generate()[0]).stem == "exp_size_256_256"
    made.add_param("train.batch_size", "bs", 0, [32], hidename=True, prepend=True)
    assert list(made.parameters) == ["train.batch_size", "algo.actor_layer_dims"]
    assert config_from_file(made.generate()[0]).train.batch_size == 32
    assert Path(made.generate(override_base_name=True)[0]).stem == "size_256_256"


def test_attributes_are_assigned_until_the_files_are_written(base, tmp_path):
    made = ConfigGenerator(str(base), script_file="")
    made.add_param("train.batch_size", "bs", 0, [16, 32], value_names=[None, "many"])
    (tmp_path / "out").mkdir()
    moved = tmp_path / "out" / base.name
    base.rename(moved)
    made.base_config_file, made.base_exp_name = str(moved), "run"
    made.script_file = str(tmp_path / "run.sh")
    assert made.generate() == [str(tmp_path / f"out/run_bs_{n}.json") for n in ("16", "many")]
    assert (tmp_path / "run.sh").read_text().count("\npython ") == 2
    assert not list(tmp_path.glob("*.json"))


def test_the_files_hold_what_the_base_holds_and_the_values(tmp_path):
    base = {"algo_name": "bc", "observation": {"encoder": {"rgb": {"core_class": "ScanCore"}}}}
    (tmp_path / "base.json").write_text(json.dumps(base))
    made = ConfigGenerator(tmp_path / "base.json")
    encoder = {"obs_randomizer_class": "CropRandomizer"}
    made.add_param("observation.encoder.rgb", "", 0, [encoder])
    made.add_param("experiment.rollout.batched", "b", 0, [True])
    content = json.loads(Path(made.generate()[0]).read_text())
    meta = {
        "hp_keys": ["b"],
        "hp_values": [True],
        "hp_base_config_file": str(tmp_path / "base.json"),
    }
    assert content == {
        "algo_name": "bc",
        "observation": {"encoder": {"rgb": encoder}},  # the value alone, as in robomimic
        "experiment": {"name": "test_b_True", "rollout": {"batched": True}},
        "meta": meta,
    }


def test_a_base_of_another_program_is_not_checked(tmp_path):
    base = tmp_path / "base.json"
    base.write_text('{"name": "threading", "experiment": {"name": "demo", "task": {}}}')
    made = ConfigGenerator(base, wandb_proj_name="proj")
    made.add_param("experiment.task.robot", "robot", 0, ["Panda", "UR5e"])
    made.add_param("obs.collect_obs", "", 1, [True])
    paths = made.generate()
    assert [Path(path).name for path in paths] == ["demo_robot_Panda.json", "demo_robot_UR5e.json"]
    content = json.loads(Path(paths[1]).read_text())
    assert content["experiment"]["task"] == {"robot": "UR5e"}
    assert content["obs"] == {"collect_obs": True}
    assert content.keys() == {"name", "experiment", "obs", "meta"}
    with pytest.raises(ConfigError, match="'algo_name' is missing"):
        made.sweep()
    made.add_param("name.of", "", 2, [1])
    with pytest.raises(ConfigError, match=r"'name' of 'name.of' is no section"):
        made.generate()
    base.write_text("{}")
    with pytest.raises(ConfigError, match=r"base.json has no 'experiment.name'.*base_exp_name"):
        made.generate()


def test_settings_of_one_name_are_refused_before_a_file_is_lost(base, tmp_path):
    made = ConfigGenerator(base, generated_config_dir=tmp_path / "out")
    made.add_param("train.batch_size", "bs", 0, [16, 32], hidename=True)
    with pytest.raises(ConfigError, match="two settings have the name 'base'"):
        made.generate()
    assert not (tmp_path / "out").exists()


def test_a_dataset_beside_varied_ones_is_refused(base):
    generator(base).generate()
    with pytest.raises(ConfigError, match=r"'dataset' is given, but 'train.data' is varied"):
        configs_in(base.parent, [("dataset", "other.hdf5")])


def test_arrays_are_lists_of_values(base):
    made = ConfigGenerator(base)
    made.add_param(RATE, "lr", 0, np.logspace(-4, -2, 3))
    made.add_param("train.batch_size", "bs", 0, [np.int64(16), np.int64(32), 64])
    made.add_param("algo.actor_layer_dims", "mlp", 1, [np.array([8, 8])])
    configs = [json.loads(Path(path).read_text()) for path in made.generate()]
    assert [config["train"]["batch_size"] for config in configs] == [16, 32, 64]
    assert [config["algo"]["actor_layer_dims"] for config in configs] == [[8, 8]] * 3
    assert Path(made.generate()[0]).name == "base_lr_0.0001_bs_16_mlp_8_8.json"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ("abc", "must be a list, not 'abc'"),
        (3, "must be a list, not 3"),
        ([1 + 2j], "holds a complex, which JSON cannot express"),
        (["/a/demos.hdf5"], "'base_d_/a/demos.hdf5' of a setting holds '/'.*value_names"),
    ],
)
def test_values_that_no_config_or_file_can_have(base, tmp_path, values, said):
    def generate():
        made = ConfigGenerator(base, generated_config_dir=tmp_path / "out")
        made.add_param("train.data", "d", 0, values)
        made.generate()

    with pytest.raises(ConfigError, match=said):
        generate()
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_is_refused_in_words(base):
    made = ConfigGenerator(base)
    with pytest.raises(ConfigError, match="call add_param first"):
        made.sweep()
    with pytest.raises(ConfigError, match=r"'train.batch_size' has no values"):
        made.add_param("train.batch_size", "bs", 0, [])
    with pytest.raises(ConfigError, match="has 2 values but 1 value_names"):
        made.add_param("train.batch_size", "bs", 0, [1, 2], value_names=["one"])
    made.add_param("train.batch_size", "bs", 0, [16, 32])
    with pytest.raises(
        ConfigError, match=r"has 1 values and 'train.batch_size', which is of group"
    ):
        made.add_param("train.seq_length", "sl", 0, [1])
    made.add_param("train.bach_size", "bs", 1, [1])
    with pytest.raises(ConfigError, match=r"'train.bach_size'; did you mean 'batch_size'"):
        made.generate()
    with pytest.raises(ConfigError, match=r"'train.bach_size'; did you mean 'batch_size'"):
        made.sweep()
