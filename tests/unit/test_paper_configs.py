"""Settings of robomimic's paper: all configs, and the functions that other projects call."""

import hashlib
import json
import shlex
from pathlib import Path

import pytest
import torch

from raymimic.algo import algo_factory
from raymimic.config import config_factory, config_from_file
from raymimic.config.checks import problems
from raymimic.errors import ConfigError
from raymimic.scripts.generate_paper_configs import (
    experiments,
    generate_paper_configs,
    modify_config_for_dataset,
    modify_config_for_default_image_exp,
    modify_config_for_default_low_dim_exp,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "paper_configs.json"


@pytest.mark.slow
def test_all_configs_are_those_that_robomimic_writes(tmp_path: Path):
    """`GOLDEN` has the first 16 digits of each file's SHA-256, of sorted JSON without line ends.

    robomimic 0.5 wrote the files: `generate_paper_configs.py --dataset_dir /data --output_dir
    /out`.
    """
    written = generate_paper_configs(tmp_path, "/data", "/out")
    digests = {}
    for path in written:
        content = json.dumps(json.loads(path.read_text()), sort_keys=True)
        name = path.relative_to(tmp_path).as_posix()
        digests[name] = hashlib.sha256(content.encode()).hexdigest()[:16]
    assert len(written) == 531
    assert digests == json.loads(GOLDEN.read_text())
    for path in written[::10]:
        assert problems(config_from_file(path)) == []
    lines = [line for script in tmp_path.glob("*.sh") for line in script.read_text().splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("python ")]
    assert {words[-1] for words in commands} == {str(path) for path in written}
    assert len(commands) == 531


def test_datasets_and_results_may_lie_behind_a_uri():
    config = next(experiments()).config("s3://bucket/data", "s3://bucket/out")
    assert config.train.data == "s3://bucket/data/lift/ph/low_dim_v15.hdf5"
    assert config.train.output_dir == "s3://bucket/out/core/bc/lift/ph/low_dim/trained_models"


@pytest.mark.parametrize("name", ["bc", "bcq", "cql", "hbc", "iris"])
@pytest.mark.parametrize(
    ("task", "source"), [("square", "mh"), ("transport", "ph"), ("lift", "mg")]
)
def test_low_dimensional_experiments(name: str, task: str, source: str):
    config = modify_config_for_default_low_dim_exp(config_factory(name))
    kind = "low_dim_dense" if source == "mg" else "low_dim"
    config = modify_config_for_dataset(
        config=config,
        task_name=task,
        dataset_type=source,
        hdf5_type=kind,
        base_dataset_dir="/data",
        filter_key=None,
    )
    assert config.train.data == f"/data/{task}/{source}/{kind}_v15.hdf5"
    assert (config.train.batch_size, config.train.num_epochs) == (100, 2000)
    assert config.experiment.validate == (source != "mg")
    assert config.train.hdf5_validation_filter_key == (None if source == "mg" else "valid")
    horizons = {"square": 500, "transport": 700, "lift": 400}
    assert config.experiment.rollout.horizon == horizons[task]
    arms = 2 if task == "transport" else 1
    assert len(config.all_obs_keys) == 3 * arms + 1
    if name == "hbc":
        assert len(config.observation.planner.modalities.subgoal.low_dim) == 3 * arms + 1
    assert problems(config) == []


@pytest.mark.parametrize(
    ("task", "crop", "keys"),
    [
        ("can", 76, {"agentview_image", "robot0_eye_in_hand_image"}),
        ("tool_hang", 216, {"sideview_image", "robot0_eye_in_hand_image"}),
    ],
)
def test_experiments_on_images(task: str, crop: int, keys: set[str]):
    config = modify_config_for_default_image_exp(config_factory("bc"))
    config = modify_config_for_dataset(
        config, task, "ph", "image", "/data", filter_key="20_percent"
    )
    assert set(config.observation.modalities.obs.rgb) == keys
    assert config.observation.encoder.rgb.obs_randomizer_kwargs.crop_height == crop
    assert config.train.hdf5_filter_key == "20_percent_train"
    assert (config.experiment.epoch_every_n_steps, config.train.batch_size) == (500, 16)
    assert problems(config) == []


def test_diffusion_policys_calls():
    config = modify_config_for_default_image_exp(config_factory(algo_name="bc"))
    config = modify_config_for_dataset(config, "square", "ph", "image", "null", filter_key=None)
    with config.unlocked():
        config.observation.modalities.obs = {
            "low_dim": ["robot0_eef_pos"],
            "rgb": ["agentview_image"],
            "depth": [],
            "scan": [],
        }
        for modality in config.observation.encoder.values():
            if modality.obs_randomizer_class == "CropRandomizer":
                modality["obs_randomizer_class"] = None
    shapes = {"agentview_image": [3, 64, 64], "robot0_eef_pos": [3]}
    model = algo_factory(config.algo_name, config, shapes, ac_dim=10, device="cpu")
    model.set_eval()
    obs = {key: torch.zeros(2, *shape) for key, shape in shapes.items()}
    assert model.get_action(obs).shape == (2, 10)
    batch = {"obs": {k: x[:, None] for k, x in obs.items()}, "actions": torch.zeros(2, 1, 10)}
    model.set_train()
    info = model.train_on_batch(model.process_batch_for_training(batch), epoch=1, validate=False)
    assert torch.isfinite(info["loss"])
    assert "policy" in model.optimizers


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("bc", "lfit", "ph", "low_dim"), "no task 'lfit'.*'lift'"),
        (("bc", "lift", "pp", "low_dim"), "no type of data 'pp'"),
        (("bc", "lift", "ph", "low_dims"), "no file 'low_dims'"),
        (("bc", "lift", "ph", "raw"), "raw demonstrations"),
        (("cql", "lift_real", "ph", "raw"), "bc alone"),
    ],
)
def test_data_sets_that_are_none(arguments: tuple[str, ...], said: str):
    name, *rest = arguments
    with pytest.raises(ConfigError, match=said):
        modify_config_for_dataset(config_factory(name), *rest, "/data")
    with pytest.raises(ConfigError, match="no hbc on images"):
        modify_config_for_default_image_exp(config_factory("hbc"))
