"""Sweeps: read from files, checked, cut into trials with a config each."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import yaml
from tiny import write_hopper

from raymimic.config import config_factory, parse_set
from raymimic.config.checks import check_config
from raymimic.envs.fit import TriedEnv
from raymimic.errors import ConfigError, DatasetError
from raymimic.sweep.spec.checks import check_data
from raymimic.sweep.spec.config_folder import configs_in
from raymimic.sweep.spec.sweep_file import KEYS, sweep_from_dict, sweep_from_file
from raymimic.sweep.spec.sweep_spec import TrialResources, setting_id
from raymimic.sweep.trials.rehearsal import ranking_warnings

SHIPPED = sorted((Path(__file__).parents[2] / "tune_configs").glob("*.yaml"))
ALPHA, TAU = "algo.alpha", "algo.target_tau"
ACTOR_LR = "algo.optim_params.actor.learning_rate.initial"
CRITIC_LR = "algo.optim_params.critic.learning_rate.initial"


def sweep(**changes):
    """The content of a sweep file, with some keys changed."""
    content = {
        "name": "sweep",
        "algo": "td3_bc",
        "dataset": "demos.hdf5",
        "set": {"train.num_epochs": 4, "experiment.epoch_every_n_steps": 10},
        "space": {ALPHA: {"grid": [0.5, 2.5]}, TAU: {"grid": [0.005, 0.01, 0.05]}},
        "seeds": [1, 2],
    }
    return content | changes


def spec(**changes):
    return sweep_from_dict(sweep(**changes))


def test_a_grid_has_each_setting_with_each_seed_seed_by_seed():
    trials = spec().trials()
    assert len(trials) == spec().num_trials == 12
    assert spec().num_settings == 6
    assert [t.seed for t in trials] == [1] * 6 + [2] * 6
    assert [t.setting for t in trials[:6]] == [t.setting for t in trials[6:]]
    assert trials[1].setting == {ALPHA: 0.5, TAU: 0.01}
    assert len({t.trial_id for t in trials}) == 12
    assert len({t.setting_id for t in trials}) == 6


def test_a_setting_has_the_same_id_in_every_session_and_order():
    # sha256 of '{"algo.alpha": 0.5, "algo.target_tau": 0.01}'
    expected = "2914ec70"
    assert setting_id({TAU: 0.01, ALPHA: 0.5}) == setting_id({ALPHA: 0.5, TAU: 0.01}) == expected


def test_a_trial_s_config_is_the_base_with_setting_seed_and_resources():
    made = spec(
        resources={"workers": 2, "cpus_per_worker": 0.5},
        set={"train.num_epochs": 4, "algo": {"discount": 0.98}},
    )
    trial = made.trials()[-1]
    config = made.config_for(trial)
    check_config(config)
    assert (config.algo.alpha, config.algo.target_tau, config.algo.discount) == (2.5, 0.05, 0.98)
    assert (config.train.seed, config.train.num_epochs) == (2, 4)
    assert (config.ray.num_workers, config.ray.cpus_per_worker) == (2, 0.5)
    assert config.experiment.name == "alpha_2.5_target_tau_0.05_seed2"
    assert config.meta.hp_keys == ["alpha", "target_tau"]
    assert config.meta.hp_values == [2.5, 0.05]
    assert config.train.data == str(Path("demos.hdf5").absolute())  # trials run elsewhere
    assert made.dataset == config.train.data
    assert made.base_config["algo"]["alpha"] == config_factory("td3_bc").algo.alpha


def test_a_sweep_is_written_as_it_is_read():
    made = spec(
        search="random",
        seeds=[3],
        space={ALPHA: {"loguniform": [0.5, 10]}, CRITIC_LR: {"choice": [1e-3, 1e-4]}},
        scheduler={"asha": {"reduction_factor": 4}},
        budget={"trials": 5, "hours": 1.5, "episodes": 900},
        max_concurrent=2,
        final_episodes=20,
        search_seed=7,
        metric="Rollout/Return/Walker2d-v5",
    )
    again = sweep_from_dict(json.loads(json.dumps(made.to_dict())))
    assert again == made
    assert again.trials() == made.trials()


def test_what_a_file_leaves_open_has_a_default():
    made = sweep_from_dict(
        {"algo": "td3_bc", "dataset": "d.hdf5", "space": {ALPHA: {"grid": [1, 2]}}}
    )
    assert (made.seeds, made.search, made.scheduler, made.mode) == ((1,), "grid", "none", "max")
    assert (made.metric, made.num_trials) == ("Rollout/Return", 2)
    assert made.resources == TrialResources(workers=1, cpus_per_worker=1.0, gpus_per_worker=None)
    assert (made.hours, made.episodes, made.max_concurrent) == (None, None, None)


def test_random_search_draws_settings_that_the_seeds_share():
    made = spec(search="random", space={ALPHA: {"loguniform": [0.5, 10]}}, budget={"trials": 8})
    alphas = [t.setting[ALPHA] for t in made.trials()]
    assert len(alphas) == 8
    assert alphas[:4] == alphas[4:]
    assert len(set(alphas)) == 4
    assert replace(made, search_seed=1).trials()[0].setting[ALPHA] != alphas[0]


def test_schedulers_count_steps_of_an_evaluation_unless_told():
    early = {"seeds": [1], "search": "random", "budget": {"trials": 6}}
    changes = {"experiment.epoch_every_n_steps": 10, "experiment.rollout.rate": 3}
    made = spec(**early, scheduler="asha", set=changes)
    assert made.scheduler_options == {"grace_steps": 30, "reduction_factor": 3}
    made = spec(**early, scheduler={"median": {"grace_steps": 5}}, set=changes)
    assert made.scheduler_options == {"grace_steps": 5, "min_samples": 3}
    made = spec(**early, scheduler="pbt", set=changes)
    assert made.scheduler_options == {"interval_steps": 30, "quantile": 0.25, "resample": 0.25}
    changes["experiment.epoch_every_n_steps"] = None
    with pytest.raises(ConfigError, match=r"'experiment.epoch_every_n_steps' leaves to the data"):
        spec(**early, scheduler="asha", set=changes)


def test_names_say_what_varies():
    space = {ACTOR_LR: {"grid": [1e-3]}, CRITIC_LR: {"grid": [3e-4]}, ALPHA: {"grid": [1]}}
    made = spec(space=space)
    assert list(made.labels.values()) == ["actor.learning_rate", "critic.learning_rate", "alpha"]
    assert made.name_of(made.trials()[0].setting) == (
        "actor.learning_rate_0.001_critic.learning_rate_0.0003_alpha_1"
    )
    assert list(spec(space={CRITIC_LR: {"grid": [1e-3]}}).labels.values()) == ["learning_rate"]
    labelled = {
        ALPHA: {"grid": [0.5, 2], "label": "a", "value_names": ["low/er", "high"]},
        TAU: {"grid": [0.1], "hidden": True},
    }
    made = spec(space=labelled)
    assert [made.name_of(s) for s in made.settings] == ["a_low-er", "a_high"]


def test_overrides_reach_the_sweep_and_the_config():
    pairs = ["seeds=[5]", "budget.hours=2", "algo.discount=0.9", f"space.{ALPHA}={{}}"]
    pairs[-1] = f'space.{ALPHA}={{"grid": [7]}}'
    made = sweep_from_dict(sweep(), [parse_set(p) for p in pairs] + [("dataset", "/x.hdf5")])
    assert made.seeds == (5,)
    assert made.hours == 2
    assert made.base_config["algo"]["discount"] == 0.9
    assert {s[ALPHA] for s in made.settings} == {7}
    assert made.dataset == "/x.hdf5"
    with pytest.raises(ConfigError, match=r"'algo.alpha' is both set and varied"):
        sweep_from_dict(sweep(), [parse_set("algo.alpha=1")])


def test_files_mean_numbers_by_1e_3_and_name_themselves(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"algo: td3_bc\ndataset: d.hdf5\nspace:\n  {TAU}: {{grid: [1e-3, 5E-3]}}\n")
    made = sweep_from_file(path)
    assert made.name == "mine"
    assert [s[TAU] for s in made.settings] == [0.001, 0.005]
    path.write_text("algo: td3_bc\nalgo: bc\n")
    with pytest.raises(
        ConfigError, match=r"mine.yaml, line 2, column 1: not valid YAML \(key 'algo' comes twice\)"
    ):
        sweep_from_file(path)
    path.write_text("algo: [")
    with pytest.raises(ConfigError, match=r"mine.yaml, line 1, column 8: not valid YAML"):
        sweep_from_file(path)
    path.write_text("algo: td3_bc\nspase: {}\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: unknown key 'spase'; did you mean 'space'"):
        sweep_from_file(path)
    with pytest.raises(
        ConfigError,
        match=r"cannot read sweep .*none.yaml: No such file or directory; check the path",
    ):
        sweep_from_file(tmp_path / "none.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"cannot read sweep .*pipe.yaml: it is a pipe"):
        sweep_from_file(tmp_path / "pipe.yaml")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("2026-13-01", "'2026-13-01' is no timestamp"),
        ("!!timestamp x", "'x' is no timestamp"),
        ("!!int x", "'x' is no int"),
        ("!!float x", "'x' is no float"),
        ("!!bool x", "'x' is no bool"),
        ("9" * 5000, "is no int"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_place(tmp_path, value, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"algo: td3_bc\nname: {value}\n")
    with pytest.raises(ConfigError, match=r"line 2, column 7: not valid YAML") as refused:
        sweep_from_file(path)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "grid", "space": {"algo.alpha": {"randint": [1, 10**12]}}}, "'randint: "),
        ({"search": "grid", "space": {"algo.alpha": {"quniform": [1, 2, 1e-300]}}}, "'quniform: "),
        (
            {
                "search": "grid",
                "space": {
                    "algo.alpha": {"randint": [1, 1000]},
                    "algo.n_step": {"randint": [1, 1000]},
                },
            },
            "the grid of 'space' has more than 100,000 settings",
        ),
        (
            {"search": "random", "budget": {"trials": 10**12}},
            "'budget.trials' is 1000000000000: it must be a whole number from 0 to 100,000",
        ),
        ({"final_episodes": 10**6}, "'final_episodes' is 1000000: it must be a whole number"),
    ],
)
def test_a_sweep_without_end_is_refused_at_once(changes, message):
    with pytest.raises(ConfigError, match=message):
        sweep_from_dict(sweep() | changes)


def test_a_base_config_lies_beside_the_sweep(tmp_path):
    config = config_factory("td3_bc")
    config.train.data, config.algo.discount = "d.hdf5", 0.5
    config.dump(tmp_path / "base.json")
    path = tmp_path / "sweep.yaml"
    path.write_text(f"config: base.json\nspace:\n  {TAU}: {{grid: [0.001]}}\n")
    made = sweep_from_file(path)
    assert (made.algo, made.base_config["algo"]["discount"]) == ("td3_bc", 0.5)
    path.write_text(f"config: base.json\nalgo: bc\nspace:\n  {TAU}: {{grid: [0.001]}}\n")
    with pytest.raises(ConfigError, match="'algo' is 'bc', but 'config' is for td3_bc"):
        sweep_from_file(path)


EARLY = {"search": "random", "budget": {"trials": 4}}
CONTINUUM = {ALPHA: {"uniform": [1, 2]}}
WRONG = {
    "unknown path": (
        {"space": {"algo.alhpa": {"grid": [1]}}},
        "'algo.alhpa'; did you mean 'alpha'",
    ),
    "no algo": ({"algo": None}, "nothing to train: give"),
    "unknown algo": ({"algo": "td4"}, "unknown algorithm 'td4'"),
    "no data": ({"dataset": None}, r"^'train.data' names no dataset"),
    "wrong type": ({"space": {ALPHA: {"grid": [1, "much"]}}}, "'algo.alpha' is 'much'"),
    "out of range": ({"space": {TAU: {"grid": [0.5, 2]}}}, "'algo.target_tau' is 2: it must be"),
    "range's end": (
        EARLY | {"space": {TAU: {"uniform": [0.5, 2]}}},
        "'algo.target_tau' is 2.0: it must be between 0 and 1",
    ),
    "no integers": (
        EARLY | {"space": {"train.batch_size": {"uniform": [1, 9]}}},
        "'train.batch_size' is 1.0: it must be a whole number",
    ),
    "parts that do not fit": (
        {"space": {"ray": {"grid": [1]}}},
        "'ray' is a section and cannot be set to 1",
    ),
    "together wrong": (
        {"space": {"train.batch_size": {"grid": [1, 100]}}, "resources": {"workers": 2}},
        "with train.batch_size=1: 'train.batch_size' is 1, which leaves nothing",
    ),
    "section": ({"space": {"algo": {"grid": [5]}}}, "'algo' is a section and cannot be set to 5"),
    "seed in space": ({"space": {"train.seed": {"grid": [1]}}}, "'seeds' lists the seeds"),
    "rollouts": (
        {"space": {"experiment.rollout.n": {"grid": [1, 2]}}},
        "scores of different evaluations cannot be compared",
    ),
    "resources in space": ({"space": {"ray.num_workers": {"grid": [1]}}}, "'resources' sets"),
    "unlike metric": (
        {"metric": "Train/Loss"},
        r"'metric' cannot be 'Train/Loss' \(did you mean 'Valid/Loss'\?\): a sweep ranks by",
    ),
    "mistyped metric": ({"metric": "Rollout/Retrun"}, r"\(did you mean 'Rollout/Return'\?\)"),
    "unkept metric": (
        {"metric": "Rollout/Return_IQM"},
        "a sweep ranks by the metric of a training's best",
    ),
    "no metric": ({"metric": 5}, "'metric' cannot be 5"),
    "validation": ({"metric": "Valid/Loss"}, "'experiment.validate' is false"),
    "more loss": (
        {"metric": "Valid/Loss", "mode": "max"},
        "'mode' is max, but of 'Valid/Loss' the min is best",
    ),
    "less return": ({"mode": "min"}, "'mode' is min, but of 'Rollout/Return' the max is best"),
    "no evaluation": (
        {"set": {"train.num_epochs": 2, "experiment.rollout.rate": 3}},
        r"asks for no evaluation in 2 epochs: lower its 'rate' \(3\)",
    ),
    "no rollouts": ({"set": {"experiment.rollout.enabled": False}}, "no run reports"),
    "mode": ({"mode": "most"}, "'mode' cannot be 'most'"),
    "search": ({"search": "radnom"}, "did you mean 'random'"),
    "scheduler": ({"scheduler": "hyperband"}, "'scheduler' cannot be 'hyperband'"),
    "option": (
        EARLY | {"seeds": [1], "scheduler": {"asha": {"grace": 1}}},
        "unknown key 'scheduler.asha.grace'; did you mean 'grace_steps'",
    ),
    "option's value": (
        EARLY | {"seeds": [1], "scheduler": {"asha": {"reduction_factor": 1}}},
        "'scheduler.asha.reduction_factor' is 1: it must be a whole number from 2",
    ),
    "seeds with asha": (EARLY | {"scheduler": "asha"}, "would stop a setting's unlucky seeds"),
    "seeds with median": (EARLY | {"scheduler": "median"}, "would stop a setting's unlucky"),
    "seeds with pbt": (EARLY | {"scheduler": "pbt"}, "no two seeds share one"),
    "pbt of sizes": (
        EARLY
        | {"seeds": [1], "scheduler": "pbt", "space": {"train.batch_size": {"choice": [8, 16]}}},
        "cannot change in an algorithm that runs",
    ),
    "pbt of one": (
        {"search": "random", "seeds": [1], "scheduler": "pbt", "budget": {"trials": 1}}
        | {"space": CONTINUUM},
        "needs a population",
    ),
    "lengths with asha": (
        EARLY
        | {"seeds": [1], "scheduler": "asha", "space": {"train.num_epochs": {"choice": [2, 4]}}}
        | {"set": {}},
        "those of different length are at different points",
    ),
    "continuous grid": ({"space": CONTINUUM}, "'space.algo.alpha' is uniform, a continuum"),
    "small budget": ({"budget": {"trials": 11}}, r"the grid has 12 trials \(6 settings with 2"),
    "no budget": ({"search": "random", "space": CONTINUUM}, "'budget.trials' is missing"),
    "odd budget": (
        {"search": "random", "space": CONTINUUM, "budget": {"trials": 5}},
        "does not divide over 2 seeds: make it 4 or 6",
    ),
    "no seeds": ({"seeds": []}, "'seeds' is empty"),
    "a seed twice": ({"seeds": [1, 1]}, "list each once"),
    "no seed": ({"seeds": ["one"]}, r"'seeds' has 'one': list whole numbers from 0"),
    "no time": ({"budget": {"hours": 0}}, "'budget.hours' is 0: it must be a number from 0.001"),
    "endless": ({"resources": {"cpus_per_worker": float("inf")}}, "'resources.cpus_per_worker' is"),
    "no base": (
        {"set": {"experiment.epoch_every_n_steps": "x"}, "scheduler": "asha", "seeds": [1]},
        "^'experiment.epoch_every_n_steps' is 'x': it must be a whole number or null",
    ),
    "imports": ({"set": {"train.imports": "mine"}}, "'train.imports' is 'mine': it must be a list"),
    "broken base": ({"algo": None, "config": {"train": 5}}, "unknown algorithm"),
    "late asha": (
        {"seeds": [1], "scheduler": {"asha": {"grace_steps": 40}}},
        "first compares trials after 40 gradient steps .'grace_steps'., but they take only 40",
    ),
    "late pbt": (
        EARLY | {"seeds": [1], "scheduler": {"pbt": {"interval_steps": 100}}, "space": CONTINUUM},
        "first compares trials after 100 gradient steps",
    ),
    "pbt of one point": (
        {"space": {ALPHA: {"grid": [1]}}, "seeds": [1], "scheduler": "pbt"},
        "needs a population",
    ),
    "hours": ({"budget": {"hours": "two"}}, "'budget.hours' is 'two': it must be a number"),
    "minutes": ({"budget": {"minutes": 2}}, "unknown key 'budget.minutes'"),
    "workers": ({"resources": {"workers": 0}}, "'resources.workers' is 0"),
    "gpus": (
        {"resources": {"gpus_per_worker": 1}, "set": {"train.cuda": False}},
        "'resources.gpus_per_worker' is 1, but 'train.cuda' is false",
    ),
    "name": ({"name": "a/b"}, "a sweep's folder has this name"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_in_words(name):
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        spec(**changes)


def test_optuna_goes_with_seeds_but_not_with_grids_or_populations():
    pytest.importorskip("optuna")
    optuna = {"search": "optuna", "space": CONTINUUM, "budget": {"trials": 6}}
    made = spec(**optuna)
    assert made.num_settings == 3
    assert made.trials() == []  # it chooses as the sweep goes on
    assert 1 <= made.example().setting[ALPHA] <= 2
    with pytest.raises(ConfigError, match="Optuna chooses values itself: make it a choice"):
        spec(**optuna | {"space": {ALPHA: {"grid": [1, 2]}}})
    with pytest.raises(ConfigError, match="holds no 3 different settings"):
        spec(**optuna | {"space": {ALPHA: {"choice": [1, 2]}}})
    with pytest.raises(ConfigError, match="scheduler pbt searches by itself"):
        spec(**optuna | {"seeds": [1], "scheduler": "pbt"})


VALIDATED = {
    "experiment.validate": True,
    "train.hdf5_filter_key": "train",
    "train.hdf5_validation_filter_key": "valid",
}


def test_a_metric_may_name_its_environment():
    assert spec().environment is None
    assert spec(metric="Rollout/Return/Walker2d-v5").environment == "Walker2d-v5"
    assert spec(metric="Rollout/Success_Rate/ns/Env-v0").environment == "ns/Env-v0"
    assert spec(metric="Valid/Loss", set=VALIDATED).environment is None


def test_what_is_best_follows_from_the_metric():
    assert spec(metric="Rollout/Success_Rate/Walker2d-v5").mode == "max"
    made = spec(metric="Valid/Loss", set=VALIDATED)
    assert (made.metric, made.mode) == ("Valid/Loss", "min")
    assert sweep_from_dict(made.to_dict()) == made


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_sweep_is_valid(path):
    pytest.importorskip("optuna")
    made = sweep_from_file(path)
    assert made.name == path.stem
    check_config(made.config_for(made.example()))


def test_six_sweeps_are_shipped():
    algos = [sweep_from_file(path).algo for path in SHIPPED if path.stem != "cql"]
    assert sorted(algos) == ["bc", "diffusion_policy", "iql", "td3_bc", "td3_bc"]
    assert "cql" in {path.stem for path in SHIPPED}


def test_the_documented_file_is_valid():
    text = (Path(__file__).parents[2] / "docs" / "sweeps.md").read_text()
    content = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    made = sweep_from_dict(content)
    assert (made.num_settings, made.seeds, made.search) == (8, (1, 2, 3), "random")
    assert set(content) <= set(KEYS)


def test_the_shipped_script_is_the_shipped_file():
    path = next(path for path in SHIPPED if path.stem == "td3_bc_alpha_tau")
    script = path.with_suffix(".py")
    assert len(script.read_text().splitlines()) < 40
    written = runpy.run_path(str(script))["SWEEP"]
    assert sweep_from_dict(written) == sweep_from_file(path)


# -- a folder of configs --


def write(folder, name, **changes):
    config = config_factory("td3_bc")
    config.train.data = "demos.hdf5"
    config.experiment.name = name
    for path, value in changes.items():
        config.set_path(path.replace("__", "."), value)
    config.dump(folder / f"{name}.json")


def test_a_folder_of_configs_is_a_sweep_by_their_names(tmp_path):
    write(tmp_path, "lo", algo__alpha=0.5, algo__target_tau=0.1)
    write(tmp_path, "hi", algo__alpha=5.0, algo__target_tau=0.2)
    made = configs_in(tmp_path)
    assert made.name == tmp_path.name
    assert {made.name_of(s): s for s in made.settings} == {
        "lo": {ALPHA: 0.5, TAU: 0.1},
        "hi": {ALPHA: 5.0, TAU: 0.2},
    }
    assert configs_in(tmp_path, [("seeds", [1, 2])]).num_trials == 4


def test_configs_that_differ_in_the_seed_are_one_setting(tmp_path):
    for seed in (3, 4):
        write(tmp_path, f"lo_{seed}", algo__alpha=0.5, train__seed=seed)
        write(tmp_path, f"hi_{seed}", algo__alpha=5.0, train__seed=seed)
    made = configs_in(tmp_path)
    assert (made.seeds, made.num_settings) == ((3, 4), 2)
    (tmp_path / "hi_4.json").unlink()
    with pytest.raises(ConfigError, match=r"'train.seed' \[3, 4\].*\[3\]|\[3\].*\[3, 4\]"):
        configs_in(tmp_path)


def test_sections_of_free_keys_are_compared_whole(tmp_path):
    kwargs = "observation.encoder.rgb.core_kwargs"
    write(tmp_path, "a", **{kwargs: {"feature_dimension": 8}})
    write(tmp_path, "b", **{kwargs: {"pool_class": "SpatialSoftmax"}})
    made = configs_in(tmp_path)
    configs = [made.config_for(trial) for trial in made.trials()]
    assert [c.get_path(kwargs) for c in configs] == [
        {"feature_dimension": 8},
        {"pool_class": "SpatialSoftmax"},
    ]


def test_folders_that_are_no_sweep_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no JSON configs"):
        configs_in(tmp_path)
    write(tmp_path, "a")
    with pytest.raises(ConfigError, match="differ in nothing that a sweep compares"):
        configs_in(tmp_path)
    write(tmp_path, "b")
    with pytest.raises(ConfigError, match=r"b.json and .*a.json train the same: remove one"):
        configs_in(tmp_path)
    other = config_factory("bc")
    other.dump(tmp_path / "b.json")
    with pytest.raises(ConfigError, match=r"b.json is for bc, and .*a.json for td3_bc"):
        configs_in(tmp_path)
    with pytest.raises(ConfigError, match="there is no such folder"):
        configs_in(tmp_path / "none")


# -- the data --


def test_scores_come_from_the_environments_of_the_data(hopper, tmp_path):
    assert check_data(spec(dataset=str(hopper))) == ("Hopper-v5",)
    with pytest.raises(ConfigError, match=r"'Rollout/Return/Walker2d-v5': .* in Hopper-v5"):
        check_data(spec(dataset=str(hopper), metric="Rollout/Return/Walker2d-v5"))
    with pytest.raises(DatasetError, match=r"none.hdf5' does not exist"):
        check_data(spec(dataset=str(tmp_path / "none.hdf5")))


def test_without_an_environment_nothing_is_played(tmp_path):
    data = write_hopper(tmp_path / "nowhere.hdf5")
    with h5py.File(data, "r+") as file:
        del file["data"].attrs["env_args"]
    with pytest.raises(ConfigError, match=r"no run reports 'Rollout/Return': the data name no"):
        check_data(spec(dataset=str(data)))
    validated = {"dataset": str(data), "set": VALIDATED, "metric": "Valid/Loss"}
    with pytest.raises(ConfigError, match=r"'final_episodes' is 50, which the winner could not"):
        check_data(spec(**validated))
    assert check_data(spec(**validated, final_episodes=0)) == ()


def test_a_sweep_set_a_name_has_that_name(tmp_path):
    content = sweep(set={"experiment.name": "mine", **sweep()["set"]})
    del content["name"]
    file = tmp_path / "of_the_file.yaml"
    file.write_text(yaml.safe_dump(content))
    assert sweep_from_file(file).name == "mine"
    assert sweep_from_file(file, [("experiment.name", "other")]).name == "other"
    assert sweep_from_file(file).base_config["experiment"]["name"] == "mine"
    assert sweep_from_dict(content | {"name": "mine"}).name == "mine"
    del content["set"]["experiment.name"]
    file.write_text(yaml.safe_dump(content))
    assert sweep_from_file(file).name == "of_the_file"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("experiment.name", "other", "'name' is 'sweep'"),
        ("experiment", {"name": "other"}, "'name' is 'sweep'"),
        ("train.data", "other.hdf5", "'dataset' is 'demos.hdf5'"),
        ("train.seed", 3, "'seeds' lists the seeds"),
        ("ray.num_workers", 3, "'resources.workers' is 2"),
        ("ray.cpus_per_worker", 3.0, "'resources.cpus_per_worker' is 0.5"),
        ("experiment.logging.log_tb", True, "a sweep writes no TensorBoard files"),
        ("experiment.render_video", True, "trials make no videos"),
        ("experiment.save", {"every_n_epochs": 5}, "its best and its last checkpoint"),
        ("experiment.save.epochs", [5], "its best and its last checkpoint"),
        ("meta.hp_keys", ["a"], "notes its varied settings there"),
    ],
)
def test_nothing_that_is_set_is_overruled_in_silence(path, value, message):
    content = sweep(resources={"workers": 2, "cpus_per_worker": 0.5})
    content["set"] = content["set"] | {path: value}
    with pytest.raises(ConfigError, match=message) as refused:
        sweep_from_dict(content)
    assert str(refused.value).startswith("'set' has '")
    assert str(refused.value).endswith(("remove it", "remove one of them"))


def test_a_sweep_that_ranks_by_return_where_success_is_known_is_warned_of():
    bounds = [-1.0], [1.0]
    tried = {"walk": TriedEnv(*bounds), "push": TriedEnv(*bounds, knows_success=True)}
    (warning,) = ranking_warnings(spec(), tried)
    assert "success is known (push)" in warning
    assert "'metric: Rollout/Success_Rate'" in warning
    (warning,) = ranking_warnings(spec(metric="Rollout/Return/push"), tried)
    assert "'metric: Rollout/Success_Rate/push'" in warning
    for metric in ("Rollout/Success_Rate", "Rollout/Return/walk"):
        assert ranking_warnings(spec(metric=metric), tried) == []
