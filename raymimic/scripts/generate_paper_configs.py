"""Settings of the experiments of robomimic's paper, under robomimic's names.

Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations for Robot
Manipulation" (2021), https://arxiv.org/abs/2108.03298.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from raymimic.config import BaseConfig
from raymimic.config.base_config import sections_named
from raymimic.data.robomimic_datasets import DATASET_REGISTRY
from raymimic.errors import ConfigError, did_you_mean

C = TypeVar("C", bound=BaseConfig)

_ARM = ("eef_pos", "eef_quat", "gripper_qpos")


def _proprioception(arms: int = 1) -> list[str]:
    return [f"robot{arm}_{name}" for arm in range(arms) for name in _ARM]


def _set(config: BaseConfig, settings: dict[str, Any]) -> None:
    with config.values_unlocked():
        for path, value in settings.items():
            config.set_path(path, value)


def _schedule(every: int, steps: int, epochs: int, batch_size: int) -> dict[str, Any]:
    """Settings of a training that is evaluated and saved together."""
    return {
        "experiment.save.enabled": True,
        "experiment.save.every_n_epochs": every,
        "experiment.epoch_every_n_steps": steps,
        "experiment.validation_epoch_every_n_steps": steps // 10,
        "experiment.rollout.enabled": True,
        "experiment.rollout.n": 50,
        "experiment.rollout.horizon": 400,
        "experiment.rollout.rate": every,
        "experiment.rollout.warmstart": 0,
        "experiment.rollout.terminate_on_success": True,
        "train.batch_size": batch_size,
        "train.num_epochs": epochs,
    }


def modify_config_for_default_low_dim_exp(config: C) -> C:
    """Gives a config the settings of the paper's experiments on low-dimensional observations.

    Args:
        config: changed in place.

    Returns:
        The config.
    """
    _set(config, _schedule(every=50, steps=100, epochs=2000, batch_size=100))
    _set(config, {"train.num_data_workers": 0, "train.hdf5_cache_mode": "all"})
    _set_low_dim(config, [*_proprioception(), "object"])
    return config


def _set_low_dim(config: BaseConfig, keys: Sequence[str]) -> None:
    """Has all networks see these keys, and planners of hierarchies plan them."""
    with config.observation.values_unlocked():
        for _, modalities in sections_named(config.observation, "modalities"):
            groups = [modalities.obs]
            if config.algo_name in ("hbc", "iris") and "subgoal" in modalities:
                groups.append(modalities.subgoal)
            for group in groups:
                group.low_dim, group.rgb = list(keys), []


def modify_config_for_default_image_exp(config: C) -> C:
    """Gives a config the settings of the paper's experiments on images.

    Args:
        config: changed in place.

    Returns:
        The config.

    Raises:
        ConfigError: for HBC and IRIS, which have none.
    """
    if config.algo_name in ("hbc", "iris"):
        raise ConfigError(f"robomimic's paper trains no {config.algo_name} on images")
    _set(config, _schedule(every=20, steps=500, epochs=600, batch_size=16))
    _set(config, {"train.num_data_workers": 2, "train.hdf5_cache_mode": "low_dim"})
    core, crop = "observation.encoder.rgb.core_kwargs", "observation.encoder.rgb.obs_randomizer"
    _set(
        config,
        {
            "observation.modalities.obs.low_dim": _proprioception(),
            "observation.modalities.obs.rgb": ["agentview_image", "robot0_eye_in_hand_image"],
            "observation.modalities.goal.low_dim": [],
            "observation.modalities.goal.rgb": [],
            "observation.encoder.rgb.core_class": "VisualCore",
            f"{core}.feature_dimension": 64,
            f"{core}.backbone_class": "ResNet18Conv",
            f"{core}.backbone_kwargs.pretrained": False,
            f"{core}.backbone_kwargs.input_coord_conv": False,
            f"{core}.pool_class": "SpatialSoftmax",
            f"{core}.pool_kwargs.num_kp": 32,
            f"{core}.pool_kwargs.learnable_temperature": False,
            f"{core}.pool_kwargs.temperature": 1.0,
            f"{core}.pool_kwargs.noise_std": 0.0,
            f"{crop}_class": "CropRandomizer",
            f"{crop}_kwargs.crop_height": 76,
            f"{crop}_kwargs.crop_width": 76,
            f"{crop}_kwargs.num_crops": 1,
            f"{crop}_kwargs.pos_enc": False,
        },
    )
    return config


def _known(name: str, names: Sequence[str], kind: str) -> str:
    if name not in names:
        raise ConfigError(f"there is no {kind} '{name}' of robomimic{did_you_mean(name, names)}")
    return name


def modify_config_for_dataset(
    config: C,
    task_name: str,
    dataset_type: str,
    hdf5_type: str,
    base_dataset_dir: str | Path,
    filter_key: str | None = None,
) -> C:
    """Gives a config the settings of one of robomimic's data sets.

    Args:
        config: changed in place.
        task_name: such as `lift`, see `raymimic.DATASET_REGISTRY`.
        dataset_type: such as `ph`.
        hdf5_type: such as `low_dim`.
        base_dataset_dir: folder of the data sets, which lie in `<task>/<type>/` there.
        filter_key: trains on these demos; it has a `<key>_train` and a `<key>_valid`.

    Returns:
        The config.

    Raises:
        ConfigError: there is no such data set, or the paper does not train on it.
    """
    types = DATASET_REGISTRY[_known(task_name, [*DATASET_REGISTRY], "task")]
    files = types[_known(dataset_type, [*types], "type of data")]
    file = files[_known(hdf5_type, [*files], "file")]
    is_real, has_images = "real" in task_name, hdf5_type.startswith("image")
    if is_real and config.algo_name != "bc":
        raise ConfigError("robomimic's paper trains bc alone on a real robot's data")
    if hdf5_type == "raw" and not is_real:
        raise ConfigError("raw demonstrations hold no observations to train on: extract them first")
    # Files with images are extracted, under this name in robomimic.
    name = file["url"].split("/")[-1] if file["url"] else f"{hdf5_type}_v141.hdf5"
    validate = dataset_type != "mg"
    part = "" if filter_key is None else f"{filter_key}_"
    settings = {
        "experiment.rollout.horizon": file["horizon"],
        "experiment.validate": validate,
        "train.data": str(Path(base_dataset_dir) / task_name / dataset_type / name),
        "train.hdf5_filter_key": f"{part}train" if validate else filter_key,
        "train.hdf5_validation_filter_key": f"{part}valid" if validate else None,
    }
    if is_real:
        settings["experiment.rollout.enabled"] = False
    _set(config, settings)
    _set_observations(config, task_name, is_real, has_images)
    return config


def _set_observations(config: BaseConfig, task_name: str, is_real: bool, has_images: bool) -> None:
    """Names the observations of a data set, where they are not those of the default experiments."""
    obs = "observation.modalities.obs"
    size = None
    if is_real:
        hangs = task_name == "tool_hang_real"
        first = "image_side" if hangs else "image"
        cameras, size = [first, "image_wrist"], 216 if hangs else 108
        _set(config, {f"{obs}.low_dim": ["ee_pose", "gripper_position"], f"{obs}.rgb": cameras})
    elif task_name == "transport" and has_images:
        views = ["shouldercamera0_image", "robot0_eye_in_hand_image"]
        views += ["shouldercamera1_image", "robot1_eye_in_hand_image"]
        _set(config, {f"{obs}.low_dim": _proprioception(2), f"{obs}.rgb": views})
    elif task_name == "tool_hang" and has_images:
        size = 216
        _set(config, {f"{obs}.rgb": ["sideview_image", "robot0_eye_in_hand_image"]})
    elif task_name == "transport":
        _set_low_dim(config, [*_proprioception(2), "object"])
    if size is not None:
        crop = "observation.encoder.rgb.obs_randomizer_kwargs"
        _set(config, {f"{crop}.crop_height": size, f"{crop}.crop_width": size})
