"""robomimic's `test_utils`: short trainings that try an algorithm out.

Its files lie in a folder of this user below the machine's folder for temporary ones.
"""

import gc
import os
import shutil
import tempfile
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from raymimic.config import BaseConfig, config_factory
from raymimic.config.config import Config
from raymimic.config.templates import TEMPLATES
from raymimic.data.fetch import cache_dir
from raymimic.data.robomimic_datasets import HF_REPO_ID
from raymimic.errors import CheckpointError
from raymimic.storage import read_json
from raymimic.tensors import get_torch_device
from raymimic.training.trainer import train
from raymimic.utils.file_utils import (
    download_file_from_hf,
    download_url,
    env_from_checkpoint,
    policy_from_checkpoint,
)
from raymimic.utils.log_utils import colored

# robomimic keeps its files for tests beside the package; one that lies there is taken.
_ASSETS = Path(__file__).parents[2] / "tests" / "assets"
_MOMART = "http://downloads.cs.stanford.edu/downloads/rt_mm/sample/test_momart.hdf5"


def maybe_remove_dir(dir_to_remove: str | Path) -> None:
    """Removes a folder, if there is such."""
    if Path(dir_to_remove).exists():
        shutil.rmtree(dir_to_remove)


def maybe_remove_file(file_to_remove: str | Path) -> None:
    """Removes a file, if there is such."""
    Path(file_to_remove).unlink(missing_ok=True)


def _asset(name: str, fetch: Callable[[Path], None]) -> str:
    """The path of a file for tests, which is downloaded once."""
    folder = cache_dir() / "robomimic"
    for place in (_ASSETS / name, folder / name):
        if place.exists():
            return str(place)
    fetch(folder)
    return str(folder / name)


def example_dataset_path() -> str:
    """Path of robomimic's small data set, of robosuite's task Lift; it is downloaded once.

    Raises:
        DatasetError: it cannot be downloaded.
    """
    name = "test_v15.hdf5"
    return _asset(
        name, lambda folder: download_file_from_hf(HF_REPO_ID, f"test/{name}", str(folder))
    )


def example_momart_dataset_path() -> str:
    """Path of robomimic's sample of MOMART (0.6 GB); it is downloaded once.

    Raises:
        DatasetError: it cannot be downloaded.
    """
    return _asset("test_momart.hdf5", lambda folder: download_url(_MOMART, folder))


def _temporary(name: str) -> str:
    folder = Path(tempfile.gettempdir()) / f"raymimic-tests-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return str(folder / name)


def temp_model_dir_path() -> str:
    """Folder of the short trainings."""
    return _temporary("tmp_model_dir")


def temp_dataset_path() -> str:
    """A data set to write to."""
    return _temporary("tmp.hdf5")


def temp_video_path() -> str:
    """A film to write to."""
    return _temporary("tmp.mp4")


def get_base_config(algo_name: str) -> Config:
    """Returns the template of an algorithm, for three steps on `example_dataset_path`.

    It validates, plays an episode of ten steps, films it and saves the model, all in this process.
    Nothing is logged to MLflow. Earlier short trainings are removed.

    Args:
        algo_name: such as `bc`.
    """
    config = Config(read_json(TEMPLATES / f"{algo_name}.json"))
    maybe_remove_dir(temp_model_dir_path())
    config.train.data = example_dataset_path()
    config.train.output_dir = temp_model_dir_path()
    config.train.num_epochs = 1
    config.train.hdf5_filter_key, config.train.hdf5_validation_filter_key = "train", "valid"
    config.train.cuda = True
    config.ray.num_workers = 0
    config.mlflow.enabled = False
    experiment = config.experiment
    experiment.name = "test"
    experiment.validate = True
    experiment.epoch_every_n_steps = experiment.validation_epoch_every_n_steps = 3
    experiment.save.enabled, experiment.save.every_n_epochs = True, 1
    experiment.rollout.enabled, experiment.rollout.rate = True, 1
    experiment.rollout.n, experiment.rollout.horizon = 1, 10
    experiment.rollout.warmstart = 0
    experiment.render_video = True
    experiment.logging.terminal_output_to_txt = False
    return config


def config_from_modifier(
    base_config: Mapping[str, Any], config_modifier: Callable[[BaseConfig], BaseConfig]
) -> BaseConfig:
    """Changes a config by a function, and locks it.

    Args:
        base_config: of `get_base_config`, perhaps changed.
        config_modifier: takes and returns the config.
    """
    config = config_factory(base_config["algo_name"])
    with config.unlocked():
        config.update(base_config)
        config = config_modifier(config)
    config.lock()
    return config


def checkpoint_path_from_test_run() -> str:
    """Path of a checkpoint of the one short training that there is.

    Raises:
        CheckpointError: there is none.
    """
    found = sorted(Path(temp_model_dir_path(), "test").glob("*/models/model*.pth"))
    if not found:
        raise CheckpointError(f"'{temp_model_dir_path()}' holds no checkpoint of a training")
    return str(found[0])


def test_eval_agent_from_checkpoint(ckpt_path: str, device: torch.device) -> None:
    """Plays fifteen steps with the policy of a checkpoint.

    Args:
        ckpt_path: the checkpoint.
        device: where the policy runs.
    """
    policy, ckpt_dict = policy_from_checkpoint(device, ckpt_path)
    env, _ = env_from_checkpoint(ckpt_dict=ckpt_dict)
    with closing(env):
        obs = env.reset()
        policy.start_episode()
        for _ in range(15):
            obs, *_ = env.step(policy(ob=obs))


def test_run(
    base_config: Mapping[str, Any], config_modifier: Callable[[BaseConfig], BaseConfig]
) -> str:
    """Trains by a config, and plays the policy.

    Args:
        base_config: see `config_from_modifier`.
        config_modifier: see `config_from_modifier`.

    Returns:
        `passed!`, or `failed with error:` and the traceback.
    """
    try:
        config = config_from_modifier(base_config, config_modifier)
        device = get_torch_device(try_to_use_cuda=config.train.cuda)
        train(config)
        test_eval_agent_from_checkpoint(checkpoint_path_from_test_run(), device)
        return colored("passed!", "green")
    except Exception as error:  # as a test reports any
        return colored(f"failed with error:\n{error}\n\n{traceback.format_exc()}", "red")
    finally:
        maybe_remove_dir(temp_model_dir_path())
        gc.collect()  # simulators are freed before the next test: dozens would fill the memory


# pytest would take them for tests where a test module imports them.
test_run.__test__ = False  # type: ignore[attr-defined]
test_eval_agent_from_checkpoint.__test__ = False  # type: ignore[attr-defined]
