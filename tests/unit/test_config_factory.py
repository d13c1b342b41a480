"""Algorithm configs: registry, files, robomimic's JSONs, templates, descriptions."""

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from raymimic.checkpoints.reading import load_dict_from_checkpoint
from raymimic.config import (
    BaseConfig,
    BCConfig,
    Config,
    GLConfig,
    HBCConfig,
    TD3_BCConfig,
    config_factory,
    config_from_file,
    get_all_registered_configs,
    import_modules,
    parse_set,
)
from raymimic.config.base_config import REGISTERED_CONFIGS
from raymimic.config.checks import ACTION_KEYS, DATASET_KEYS, NO_EFFECT, check_config, warnings_for
from raymimic.config.describe import comments, describe
from raymimic.config.templates import config_named
from raymimic.errors import ConfigError, RaymimicError
from raymimic.scripts import generate_config_templates
from raymimic.sweep.spec.sweep_file import _base_config, read_yaml

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/data/configs"
BC_CONFIGS = ["bc", "bc_rnn_gmm", "bc_transformer_supervise_all", "bc_image_crop"]
BC_CONFIGS += ["bc_vae_gmm_prior_obs_dependent_weights_learned"]

BUILT_IN = ["bc", "bcq", "cql", "diffusion_policy", "gl", "hbc", "iql", "iris", "td3_bc"]

# As a robomimic tutorial prints it, apart from the name.
USERS_MODULE = """
from raymimic.config.base_config import BaseConfig

class TD3_BCConfig(BaseConfig):
    ALGO_NAME = "own_td3_bc"

    def algo_config(self):
        # optimization parameters
        self.algo.optim_params.critic.learning_rate.initial = 3e-4      # critic learning rate
        self.algo.optim_params.critic.learning_rate.decay_factor = 0.1  # factor to decay LR by
        self.algo.optim_params.critic.learning_rate.epoch_schedule = [] # epochs where it decays
        self.algo.optim_params.critic.regularization.L2 = 0.00
        self.algo.optim_params.critic.start_epoch = -1
        self.algo.optim_params.critic.end_epoch = -1

        # alpha value - for weighting critic loss vs. BC loss
        self.algo.alpha = 2.5
        self.algo.critic.value_bounds = None
        self.algo.critic.layer_dims = (256, 256, 256)
"""


@pytest.fixture
def users_algorithm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of the user's on the path, forgotten afterwards."""
    (tmp_path / "own_td3_bc.py").write_text(USERS_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_td3_bc"
    REGISTERED_CONFIGS.pop("own_td3_bc", None)
    sys.modules.pop("own_td3_bc", None)


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def contains(whole: dict, part: dict) -> bool:
    return all(
        contains(whole[key], value) if isinstance(value, dict) else whole[key] == value
        for key, value in part.items()
    )


def test_defaults_are_robomimics():
    td3_bc, bc = config_factory("td3_bc"), config_factory("bc")
    assert (type(td3_bc), type(bc)) == (TD3_BCConfig, BCConfig)
    assert td3_bc.algo.alpha == 2.5
    assert td3_bc.train.batch_size == 256
    assert td3_bc.train.num_epochs == 200
    assert td3_bc.experiment.epoch_every_n_steps == 5000
    assert td3_bc.experiment.rollout.horizon == 1000
    assert td3_bc.train.hdf5_normalize_obs is True
    assert td3_bc.observation.modalities.obs.low_dim == ["flat"]
    assert bc.algo.optim_params.policy.learning_rate.initial == 1e-4
    assert bc.train.hdf5_load_next_obs is False
    assert bc.train.num_epochs == 2000


@pytest.mark.parametrize("name", [*BC_CONFIGS, "td3_bc"])
def test_robomimic_configs_load_with_every_value(name):
    content = golden(name)
    config = config_factory(content["algo_name"], content)
    assert contains(config.to_dict(), content)
    check_config(config)
    again = config_factory(content["algo_name"], json.loads(config.dump()))
    assert again.dump() == config.dump()


def test_key_structure_is_robomimics_and_ours():
    """No key of robomimic is missing, and all further keys are known to be ours."""
    for name in ("bc", "td3_bc"):
        theirs = {p for p, _ in Config(golden(name)).leaves()}
        ours = dict(config_factory(name).leaves(optional=True))
        absent = {p for p in theirs - set(ours) if not p.startswith("observation.encoder.")}
        assert absent == set()
        new = {
            path
            for path in set(dict(config_factory(name).leaves())) - theirs
            if not path.startswith(("ray.", "mlflow."))
        }
        own = {"experiment.rollout.seed", "train.dtype", "train.imports", "train.allow_links"}
        own |= {"train.text_encoder", "train.validation_fraction", "train.cut_depth"}
        assert new == own


def test_older_robomimic_configs_load():
    """0.3's shape: the dataset a string, and without the keys that came later."""
    content = golden("td3_bc")
    content["train"]["data"] = "walker2d.hdf5"
    content["train"]["hdf5_filter_key"] = content["train"]["hdf5_validation_filter_key"] = None
    content["experiment"]["validate"] = False
    for key in ("action_keys", "action_config", "normalize_weights_by_ds_size", "max_grad_norm"):
        del content["train"][key]
    del content["experiment"]["env_meta_update_dict"], content["experiment"]["ckpt_path"]
    content["experiment"]["logging"]["log_wandb"] = True
    config = config_factory("td3_bc", content)
    check_config(config)
    assert config.train.data == "walker2d.hdf5"
    assert config.train.action_keys == ["actions"]
    assert config.train.action_config.actions.normalization is None
    assert config.algo.optim_params.actor.num_train_batches == 3
    assert warnings_for(config) == [
        "'experiment.logging.log_wandb' has no effect: metrics go to MLflow (mlflow.tracking_uri)"
    ]


def test_robomimics_way_of_loading():
    """``config.update`` of a parsed file inside ``values_unlocked``, as its train.py does."""
    content = golden("bc_rnn_gmm")
    config = config_factory(content["algo_name"])
    config.lock()
    with config.values_unlocked():
        config.update(content)
    assert contains(config.to_dict(), content)
    assert config.is_locked


def test_unknown_keys_are_refused():
    content = golden("td3_bc")
    content["algo"]["alhpa"] = 1
    with pytest.raises(ConfigError, match=r"'algo.alhpa'; did you mean 'alpha'\?"):
        config_factory("td3_bc", content)
    with pytest.raises(ConfigError, match=r"learning_rate.decay'; did you mean 'decay_factor'"):
        config_factory(
            "bc", {"algo": {"optim_params": {"policy": {"learning_rate": {"decay": 1}}}}}
        )


def test_algorithms_that_do_not_exist(tmp_path: Path):
    file = tmp_path / "config.json"
    file.write_text('{"algo_name": "gail"}')
    with pytest.raises(ConfigError, match=r"'gail' \(did you mean 'gl'\?\): known are bc,"):
        config_from_file(file)
    with pytest.raises(ConfigError, match=r"'algo_name' is 'bc' in a config for 'td3_bc'"):
        config_factory("td3_bc", {"algo_name": "bc"})


def test_a_duplicate_name_is_refused():
    with pytest.raises(ConfigError, match=r"ALGO_NAME 'bc' .* taken by raymimic.config.bc_config"):

        class MyConfig(BaseConfig):
            ALGO_NAME = "bc"

    assert get_all_registered_configs()["bc"] is BCConfig


def test_a_subclass_without_a_name_is_not_registered():
    class Tuned(TD3_BCConfig):
        def algo_config(self) -> None:
            super().algo_config()
            self.algo.alpha = 5.0

    assert Tuned().algo.alpha == 5.0
    assert Tuned().algo_name == "td3_bc"
    assert config_factory("td3_bc").algo.alpha == 2.5


def test_a_users_config_class(users_algorithm, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"algo_name": "own_td3_bc", "train": {"imports": ["own_td3_bc"]}}))
    config = config_from_file(path)  # imports the module that defines it
    assert config.algo.critic.layer_dims == (256, 256, 256)
    config.set_path("algo.optim_params.critic.learning_rate.scheduler_type", "linear")
    config.set_path("algo.optim_params.critic.optimizer_type", "adamw")
    config.set_path("observation.modalities.obs.low_dim", ["flat"])
    config.set_path("train.data", "walker2d.hdf5")
    check_config(config)
    config.algo.alpha = "much"
    with pytest.raises(ConfigError, match=r"'algo.alpha' is 'much': it must be a number"):
        check_config(config)
    described = describe("own_td3_bc")
    assert "algo.alpha = 2.5" in described
    assert "# alpha value - for weighting critic loss vs. BC loss" in described
    assert "train.batch_size = 100" in described


def test_importing_a_module_again_is_no_duplicate(users_algorithm):
    import_modules([users_algorithm])
    del sys.modules[users_algorithm]
    import_modules([users_algorithm])
    assert config_factory("own_td3_bc").algo.alpha == 2.5


def test_a_module_that_is_not_there():
    with pytest.raises(ConfigError, match=r"module 'no_such_module' .* is not on the Python path"):
        import_modules(["no_such_module"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "algo_name": "bc",\n  "train": {,}\n}', "line 3, column 13: not valid JSON"),
        ('{"train": {}}', "'algo_name' is missing"),
        ("[1, 2]", "'algo_name' is missing"),
        ('{"algo_name": "bc", "trian": {}}', "unknown config key 'trian'; did you mean 'train'"),
        ('{"algo_name": "bc", "train": 5}', "'train' is a section"),
    ],
)
def test_files_with_mistakes_are_named(tmp_path: Path, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        config_from_file(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_missing_and_binary_files(tmp_path: Path):
    with pytest.raises(
        ConfigError,
        match=r"cannot read config .*none.json: No such file or directory; check the path",
    ):
        config_from_file(tmp_path / "none.json")
    (tmp_path / "data.json").write_bytes(b"\x89HDF\xff\xfe")
    with pytest.raises(ConfigError, match=r"not a text file"):
        config_from_file(tmp_path / "data.json")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("algo.alpha=5", ("algo.alpha", 5)),
        ("algo.alpha=2.5", ("algo.alpha", 2.5)),
        ("train.cuda=false", ("train.cuda", False)),
        ("train.cuda=False", ("train.cuda", False)),
        ("train.cuda=True", ("train.cuda", True)),
        ("train.goal_mode=null", ("train.goal_mode", None)),
        ("train.goal_mode=None", ("train.goal_mode", None)),
        ("train.goal_mode=last", ("train.goal_mode", "last")),
        ('mlflow.run_name="5"', ("mlflow.run_name", "5")),
        ("train.data=a=b.hdf5", ("train.data", "a=b.hdf5")),
        (
            'observation.modalities.obs.low_dim=["flat"]',
            ("observation.modalities.obs.low_dim", ["flat"]),
        ),
        ('mlflow.tags={"a": 1}', ("mlflow.tags", {"a": 1})),
        ("a=[flat, robot/eef]", ("a", ["flat", "robot/eef"])),
        ("a=['b', 2, None]", ("a", ["b", 2, None])),
        ("a=[[b],c]", ("a", "[[b],c]")),
        ("a=[b", ("a", "[b")),
    ],
)
def test_parse_set(assignment, expected):
    path, value = parse_set(assignment)
    assert (path, value, type(value)) == (*expected, type(expected[1]))


@pytest.mark.parametrize("assignment", ["algo.alpha", "=5", " =5"])
def test_parse_set_refuses_what_is_no_assignment(assignment):
    with pytest.raises(ConfigError, match=r"--set takes key=value"):
        parse_set(assignment)


def test_observation_keys_and_goals():
    config = config_factory("bc")
    state = ["object", "robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos"]
    assert config.all_obs_keys == state
    assert not config.use_goals
    config.observation.modalities.goal.low_dim = ["goal", "object"]
    config.observation.modalities.obs.tactile = ["skin"]
    assert config.use_goals
    assert {"goal", "skin"} < set(config.all_obs_keys)
    assert config.all_obs_keys.count("object") == 1


def test_custom_modalities_may_be_added():
    config = config_factory("bc")
    config.observation.encoder.tactile.core_class = "MyCore"
    assert config.to_dict()["observation"]["encoder"]["tactile"] == {"core_class": "MyCore"}
    with pytest.raises(ConfigError, match=r"rgb.core_clas'; did you mean 'core_class'\?"):
        config.observation.encoder.rgb.core_clas = "VisualCore"


def test_templates_are_generated_from_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(generate_config_templates, "TEMPLATES", tmp_path)
    generate_config_templates.main()
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = (ROOT / "raymimic/exps/templates").iterdir()
    assert made == {path.name: path.read_text() for path in committed}
    assert set(BUILT_IN) <= {name.removesuffix(".json") for name in made}


@pytest.mark.parametrize("name", generate_config_templates.templates())
def test_templates_are_right(name):
    config = config_from_file(ROOT / "raymimic/exps/templates" / f"{name}.json")
    config.train.data = "demos.hdf5"
    check_config(config)
    assert warnings_for(config) == []


@pytest.mark.parametrize("name", ["bc", "hbc", "iris", "td3_bc"])
def test_every_key_is_described(name):
    lines = describe(name).splitlines()
    keys = {line.lstrip("# ").split(" = ")[0]: line for line in lines if " = " in line}
    leaves = dict(config_factory(name).leaves(optional=True))
    others = {f"experiment.{key}" for key in ("mse", "rollout.batched", "rollout.num_batch_envs")}
    assert set(keys) == set(leaves) - {"algo_name"} - others
    assert [line for line in keys.values() if "  # " not in line] == []
    for line in keys.values():
        setting = line.removeprefix("# ").split("  # ")[0].strip()
        path, value = parse_set(setting)
        default = leaves[path]
        assert value == (list(default) if isinstance(default, tuple) else default)


def test_a_parts_keys_are_described_as_those_of_its_algorithm():
    said, gl = comments(HBCConfig), comments(GLConfig)
    key = "vae.prior.categorical_min_temp"
    assert said[f"algo.planner.{key}"] == gl[f"algo.{key}"]
    assert said["algo.planner.vae.enabled"] == "sample subgoals; else predict one"  # its own
    assert said["observation.actor.encoder.rgb.core_class"].startswith("class that encodes")


def test_a_hierarchy_has_its_parts_keys_with_their_locks():
    config = config_factory("iris", {"algo": {"value_planner": {"num_samples": 3}}})
    assert config.algo.value_planner.num_samples == 3
    assert config.algo.value_planner.value.critic.ensemble.n == 2
    with pytest.raises(ConfigError, match=r"'algo.actor.gmm'"):
        config.algo.actor.gmm = {"enabled": True}
    with pytest.raises(ConfigError, match=r"'algo.value_planner.planner.vae.latent_dmi'; did you"):
        config.set_path("algo.value_planner.planner.vae.latent_dmi", 3)
    config.algo.actor.rnn.kwargs.dropout = 0.1  # a free section stays one
    config.algo.value_planner.value.optim_params.critic.learning_rate.scheduler_type = "cosine"
    assert BCConfig().algo.gmm.enabled is False  # parts are copies


def test_keys_and_goals_of_a_hierarchy_are_those_of_all_parts():
    config = config_factory("iris")
    planner = config.observation.value_planner
    planner.planner.modalities.obs.low_dim = ["d"]
    planner.planner.modalities.subgoal.low_dim = ["c"]
    planner.value.modalities.obs.low_dim = ["c", "b"]
    config.observation.actor.modalities.obs.low_dim = ["a"]
    config.observation.actor.modalities.goal.low_dim = ["c"]
    assert config.all_obs_keys == ["a", "b", "c", "d"]
    assert not config.use_goals  # the actor's goal is a subgoal
    planner.planner.modalities.goal.rgb = ["e"]
    assert config.use_goals
    assert config.all_obs_keys == ["a", "b", "c", "d", "e"]

    config = config_factory("hbc")
    config.observation.actor.modalities.goal.low_dim = ["latent_subgoal"]
    assert "latent_subgoal" not in config.all_obs_keys  # not in the data
    assert not config.use_goals
    config.observation.planner.modalities.goal.low_dim = ["object"]
    assert config.use_goals


def test_comments_of_a_subclass_override_and_inherit():
    said = comments(TD3_BCConfig)
    assert said["algo.alpha"] == "weight of the Q term against imitation (eq. 5)"
    assert said["train.seed"] == "seed of all random draws"


def test_config_imports_nothing_heavy():
    code = (
        "import sys, raymimic.config, raymimic.config.checks, raymimic.config.describe;"
        "print([m for m in ('torch', 'ray', 'mlflow', 'numpy', 'h5py') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert run.stdout.strip() == "[]"


def table_rows() -> dict[str, str]:
    """``{key: status}`` of all tables of configs in docs/from_robomimic.md."""
    rows: dict[str, str] = {}
    _, _, text = (ROOT / "docs/from_robomimic.md").read_text().partition("\n## Configs\n")
    for line in text.splitlines():
        if line.startswith("| `"):
            key, status, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
            assert key.strip("`") not in rows
            rows[key.strip("`")] = status
    return rows


def test_the_table_for_robomimic_users_has_every_key_once():
    rows = table_rows()
    nested = {k for k in rows if k.startswith(("train.data[]", "train.action_config."))}
    patterns = set(rows) - nested
    unused = set(patterns)
    keys = {path for name in ("bc", "td3_bc") for path, _ in Config(golden(name)).leaves()}
    keys |= {p for n in BUILT_IN for p, _ in config_factory(n).leaves(optional=True)}
    for key in keys - {"algo_name"}:
        key = "train.data" if key.startswith("train.data.") else key
        key = "train.action_config" if key.startswith("train.action_config") else key
        key = key.split("core_kwargs.")[0] + "core_kwargs" if "core_kwargs." in key else key
        matching = {p for p in patterns if fnmatchcase(key, p)}
        assert len(matching) == 1, f"{key}: {matching}"
        unused -= matching
    assert unused == set()
    assert nested == {f"train.data[].{key}" for key in DATASET_KEYS} | {
        f"train.action_config.*.{key}" for key in ACTION_KEYS
    }


def test_the_table_says_which_keys_have_no_effect():
    rows = table_rows()
    assert {key for key, status in rows.items() if status == "no effect"} == set(NO_EFFECT)
    assert set(rows.values()) == {"honoured", "mapped", "no effect", "new"}


def test_templates_are_named_like_algorithms():
    assert config_named("bc_rnn").algo.rnn.enabled
    assert config_named("bc") == config_factory("bc")
    assert "algo.rnn.enabled = true" in describe("bc_rnn")
    with pytest.raises(ConfigError, match=r"'bcrnn' \(did you mean 'bc_rnn'\?\): known are bc, "):
        config_named("bcrnn")
    with pytest.raises(ConfigError, match=r"algorithm '42': known .*templates bc_rnn, bc_trans"):
        config_named("42")
    assert sweep_algo("bc_rnn").algo.rnn.enabled


def sweep_algo(name):
    return _base_config({"algo": name}, {}, Path())


def test_the_stand_in_of_git_lfs(tmp_path):
    file = tmp_path / "file"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    for read in (config_from_file, load_dict_from_checkpoint, read_yaml):
        with pytest.raises(RaymimicError, match="git lfs pull fetches it"):
            read(file)
