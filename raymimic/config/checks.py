"""What must hold between settings, and which settings have no effect: said before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from raymimic.config.algo_checks import algo_problems, algo_warnings
from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.limits import range_problems, type_problems
from raymimic.errors import ConfigError, did_you_mean

# Keys of robomimic that change nothing here, and why.
NO_EFFECT: dict[str, str] = {
    "experiment.logging.log_wandb": "metrics go to MLflow (mlflow.tracking_uri)",
    "experiment.logging.wandb_proj_name": "the project's name in MLflow is mlflow.experiment_name",
    "experiment.mse": "robomimic does not read it either",
    "experiment.render": "evaluation runs without a screen; experiment.render_video records it",
    "train.num_data_workers": "batches are gathered from memory, without further processes",
    "train.hdf5_cache_mode": "what a training uses is loaded once, to the GPU or to memory",
    "train.hdf5_use_swmr": "the file is read once and closed",
}

# What an entry of train.data may hold, and of which type.
DATASET_KEYS: dict[str, Any] = {
    "path": str,
    "weight": (int, float),
    "filter_key": (str, type(None)),
    "validation_filter_key": (str, type(None)),
    "demo_limit": (int, type(None)),
    "eval": bool,
    "key": (str, type(None)),
    "lang": (str, type(None)),
}
# What an action of train.action_config may hold.
ACTION_KEYS = ("normalization", "format", "convert_at_runtime")


def check_config(config: BaseConfig) -> None:
    """Finds every mistake that shows in the config alone.

    Raises:
        ConfigError: one sentence for each mistake, naming the key and the remedy.
    """
    found = problems(config)
    if len(found) == 1:
        raise ConfigError(found[0])
    if found:
        raise ConfigError("\n  ".join([f"the config has {len(found)} mistakes:", *found]))


def problems(config: BaseConfig) -> list[str]:
    """Returns one sentence for each mistake in a config.

    Values of a wrong type are reported alone, as the other checks would stumble over them.
    """
    wrong_types = [*type_problems(config), *_dataset_problems(config)]
    if wrong_types:
        return wrong_types
    return [
        *range_problems(config),
        *_validation_problems(config),
        *_batch_problems(config),
        *_observation_problems(config),
        *_action_problems(config),
        *_schedule_problems(config),
        *algo_problems(config),
    ]


def warnings_for(config: BaseConfig) -> list[str]:
    """Returns one sentence for each setting that will not do what it seems to."""
    defaults = type(config)()
    found = [
        f"'{key}' has no effect: {why}"
        for key, why in NO_EFFECT.items()
        if config.get_path(key) != defaults.get_path(key) and config.get_path(key) != {}
    ]
    epochs, save, rollout = (
        config.train.num_epochs,
        config.experiment.save,
        config.experiment.rollout,
    )
    if rollout.enabled and max(rollout.rate, rollout.warmstart + 1) > epochs:
        found.append(
            f"'experiment.rollout' asks for no evaluation in {epochs} epochs: lower its 'rate' "
            f"({rollout.rate}) or 'warmstart' ({rollout.warmstart})"
        )
    if save.on_best_validation and not config.experiment.validate:
        found.append(
            "'experiment.save.on_best_validation' has no effect without 'experiment.validate'"
        )
    late = [epoch for epoch in save.epochs if epoch > epochs]
    if late:
        found.append(
            f"'experiment.save.epochs' names {late}, after the last epoch ('train.num_epochs' is "
            f"{epochs})"
        )
    return [*found, *algo_warnings(config)]


def _dataset_problems(config: BaseConfig) -> Iterator[str]:
    data = config.train.data
    if data is None or data == "" or data == []:
        yield "'train.data' names no dataset: give the path of an HDF5 file (--dataset)"
        return
    if not isinstance(data, str | os.PathLike | list | tuple) or not all(
        isinstance(entry, dict) for entry in _entries(data)
    ):
        yield (
            "'train.data' must be the path of an HDF5 file or a list of such entries: "
            '[{"path": "demos.hdf5"}]'
        )
        return
    for i, entry in enumerate(_entries(data)):
        name = f"train.data[{i}]"
        if not entry.get("path") or not isinstance(entry["path"], str | os.PathLike):
            yield f"'{name}.path' is missing: give the path of an HDF5 file"
        for key, value in entry.items():
            if key not in DATASET_KEYS:
                yield f"unknown key '{name}.{key}'{did_you_mean(key, DATASET_KEYS)}"
            elif key != "path" and not isinstance(value, DATASET_KEYS[key]):
                yield f"'{name}.{key}' cannot be {value!r}: remove or correct it"
        if isinstance(entry.get("weight"), int | float) and not entry["weight"] > 0:
            yield f"'{name}.weight' is {entry['weight']}: it must be greater than 0"
        if isinstance(entry.get("demo_limit"), int) and entry["demo_limit"] < 1:
            yield f"'{name}.demo_limit' is {entry['demo_limit']}: it must be at least 1"


def _validation_problems(config: BaseConfig) -> Iterator[str]:
    train, validate = config.train, config.experiment.validate
    if train.hdf5_validation_filter_key is not None and not validate:
        yield (
            f"'train.hdf5_validation_filter_key' is '{train.hdf5_validation_filter_key}', but "
            "'experiment.validate' is false: set the one to null or the other to true"
        )
    if not validate:
        return
    for entry in _entries(train.data):
        training = entry.get("filter_key", train.hdf5_filter_key)
        validation = entry.get("validation_filter_key", train.hdf5_validation_filter_key)
        if validation is None:
            yield (
                "'experiment.validate' needs held-out demos: set "
                f"'train.hdf5_validation_filter_key' to a mask of {entry['path']}, or "
                "'experiment.validate' to false"
            )
        elif training is None:
            yield (
                "'experiment.validate' needs 'train.hdf5_filter_key' too: without it training "
                f"takes all demos of {entry['path']}, the held-out ones included"
            )
        elif training == validation:
            yield (
                f"training and validation use the same demos of {entry['path']}: "
                f"'train.hdf5_filter_key' and 'train.hdf5_validation_filter_key' are '{training}'; "
                "choose two masks"
            )


def _batch_problems(config: BaseConfig) -> Iterator[str]:
    ray, train = config.ray, config.train
    if 1 <= train.batch_size < ray.num_workers:
        yield (
            f"'train.batch_size' is {train.batch_size}, which leaves nothing for some of the "
            f"{ray.num_workers} workers: raise it or lower 'ray.num_workers' (--workers)"
        )
    if ray.gpus_per_worker and not train.cuda:
        yield (
            f"'ray.gpus_per_worker' is {ray.gpus_per_worker}, but 'train.cuda' is false: set the "
            "one to null or the other to true"
        )
    if not config.experiment.name.strip():
        yield "'experiment.name' is empty: give the experiment a name (--name)"


def _observation_problems(config: BaseConfig) -> Iterator[str]:
    for path, groups in sections_named(config.observation, "modalities"):
        for group, what in (("obs", "observations"), ("subgoal", "parts of a subgoal")):
            if group in groups and not any(groups[group].values()):
                name = f"observation.{path}.{group}"
                yield (
                    f"'{name}' names no {what}: list them by modality, such as "
                    f'{name}.low_dim=["flat"]'
                )
    if config.use_goals and config.train.goal_mode is None:
        yield (
            f"'observation.{_goal_group(config)}' names goals, but 'train.goal_mode' is null: set "
            "it to 'last' or remove the goals"
        )
    if "lang_emb" in config.all_obs_keys:
        yield (
            "'lang_emb' (robomimic's language embedding) is not available: remove it from "
            "'observation.modalities'"
        )
    modality_of: dict[str, str] = {}
    for path, groups in sections_named(config.observation, "modalities"):
        encoder = path.removesuffix("modalities") + "encoder"
        encoders = config.observation.get_path(encoder)
        for group in groups.values():
            for modality, keys in group.items():
                if keys and modality not in encoders:
                    yield (
                        f"modality '{modality}' of {', '.join(keys)} has no encoder: add "
                        f"'observation.{encoder}.{modality}'{did_you_mean(modality, encoders)}"
                    )
                for key in keys:
                    other = modality_of.setdefault(key, modality)
                    if other != modality:
                        yield (
                            f"observation '{key}' is both {other} and {modality} in "
                            "'observation.modalities': keep one"
                        )


def _goal_group(config: BaseConfig) -> str:
    """Returns the path of the first group of goals that is not empty."""
    return next(
        f"{path}.goal"
        for path, groups in sections_named(config.observation, "modalities")
        if any(groups.get("goal", {}).values())
    )


def _action_problems(config: BaseConfig) -> Iterator[str]:
    train = config.train
    if not train.action_keys:
        yield "'train.action_keys' is empty: list the action keys, such as [\"actions\"]"
    for key in train.action_keys:
        if key not in train.action_config:
            yield (
                f"'train.action_keys' names '{key}', which 'train.action_config' lacks"
                f"{did_you_mean(key, train.action_config)}"
            )
    for action, options in train.action_config.items():
        if not isinstance(options, dict):
            yield f"'train.action_config.{action}' must be a section, such as {{}}"
            continue
        if options.get("format") == "rot_6d":
            yield (
                f"'train.action_config.{action}.format' is 'rot_6d', which is not available: store "
                "this action in the format that the environment takes"
            )
        for key in options:
            if key not in ACTION_KEYS:
                yield (
                    f"unknown key 'train.action_config.{action}.{key}'"
                    f"{did_you_mean(key, ACTION_KEYS)}"
                )


def _schedule_problems(config: BaseConfig) -> Iterator[str]:
    for path, optim_params in sections_named(config, "optim_params"):
        for net, params in optim_params.items():
            rate, name = params.learning_rate, f"{path}.{net}.learning_rate"
            schedule = list(rate.epoch_schedule)
            if schedule != sorted(schedule):
                yield f"'{name}.epoch_schedule' is {schedule}: list the epochs in order"
            if rate.scheduler_type == "linear" and len(schedule) > 1:
                yield (
                    f"'{name}.epoch_schedule' is {schedule}: a linear schedule takes one epoch, "
                    "the one at which it ends"
                )
            if rate.scheduler_type == "cosine" and not rate.step_every_batch:
                yield (
                    f"'{name}.scheduler_type' is 'cosine', which counts gradient steps: set "
                    f"'{name}.step_every_batch' to true"
                )
            start, end = params.get("start_epoch", -1), params.get("end_epoch", -1)
            if -1 < end < start:
                yield f"'{path}.{net}' ends (end_epoch {end}) before it starts ({start})"


def _entries(data: Any) -> list[Any]:
    """Returns ``train.data`` as a list, for a path a list of one entry."""
    return data if isinstance(data, list | tuple) else [{"path": data}]  # type: ignore[return-value]
