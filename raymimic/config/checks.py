"""Checks of a whole config, before anything runs: mistakes, and settings without effect."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

from raymimic.config.base_config import BaseConfig, sections_named
from raymimic.config.config import UnknownKeyError
from raymimic.config.limits import limits_of, range_problems, shown, type_problems
from raymimic.config.names import label_problem, name_problem
from raymimic.credentials import holds_login, masked
from raymimic.errors import ConfigError, did_you_mean
from raymimic.observations.shapes import language_keys

# Keys of robomimic without effect here, and the reason.
NO_EFFECT: dict[str, str] = {
    "experiment.logging.log_wandb": "metrics go to MLflow (mlflow.tracking_uri)",
    "experiment.logging.wandb_proj_name": "the project's name in MLflow is mlflow.experiment_name",
    "experiment.mse": "robomimic does not read it either",
    "experiment.render": "evaluation runs without a screen; experiment.render_video records it",
    "train.num_data_workers": "batches are gathered without further processes",
    "train.hdf5_use_swmr": "the file is read once and closed",
}

# Keys of an entry of `train.data`, with their types.
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
# Keys of an action of `train.action_config`.
ACTION_KEYS = ("normalization", "format", "convert_at_runtime")
# The forms in which an action of format "rot_6d" is played.
PLAYED_ROTATIONS = ("rot_axis_angle", "rot_euler")


def check_config(config: BaseConfig) -> None:
    """Finds every mistake that shows in the config alone.

    Raises:
        ConfigError: one sentence for each mistake, naming the key and the remedy.
    """
    messages = problems(config)
    if len(messages) == 1:
        raise ConfigError(messages[0])
    if messages:
        raise ConfigError("\n  ".join([f"the config has {len(messages)} mistakes:", *messages]))


def problems(config: BaseConfig) -> list[str]:
    """Returns one sentence for each mistake in a config.

    Values of a wrong type are reported alone, because the other checks would fail on them.
    """
    wrong_types = [*type_problems(config), *_dataset_problems(config)]
    if wrong_types:
        return wrong_types
    out_of_range = range_problems(config)
    messages = [
        *_login_problems(config),
        *out_of_range,
        *_name_problems(config),
        *_rollout_problems(config),
        *_validation_problems(config),
        *_batch_problems(config),
        *_observation_problems(config),
        *_action_problems(config),
    ]
    if not out_of_range:  # these checks divide by numbers that are in range
        messages += _algo_problems(config)
    return messages


def warnings_for(config: BaseConfig) -> list[str]:
    """Returns one sentence for each setting without effect, or with a surprising one."""
    defaults = type(config)()
    messages = [
        f"'{key}' has no effect: {reason}"
        for key, reason in NO_EFFECT.items()
        if config.get_path(key) != defaults.get_path(key) and config.get_path(key) != {}
    ]
    epochs, save, rollout = (
        config.train.num_epochs,
        config.experiment.save,
        config.experiment.rollout,
    )
    if rollout.enabled and max(rollout.rate, rollout.warmstart + 1) > epochs:
        messages.append(
            f"'experiment.rollout' asks for no evaluation in {epochs} epochs: lower its 'rate' "
            f"({rollout.rate}) or 'warmstart' ({rollout.warmstart})"
        )
    if save.on_best_validation and not config.experiment.validate:
        messages.append(
            "'experiment.save.on_best_validation' has no effect without 'experiment.validate'"
        )
    told = [entry for entry in _entries(config.train.data) if entry.get("lang")]
    if told and not language_keys(config.all_modalities):
        messages.append(
            "'train.data[].lang' has no effect, as the networks see no instruction: list "
            "'lang_emb' under 'observation.modalities.obs.lang'"
        )
    if config.train.text_encoder is not None and not told:
        messages.append("'train.text_encoder' has no effect without 'train.data[].lang'")
    late = [epoch for epoch in save.epochs if epoch > epochs]
    if late:
        messages.append(
            f"'experiment.save.epochs' names {late}, after the last epoch ('train.num_epochs' is "
            f"{epochs})"
        )
    messages += config.warnings()
    for part in config.parts():
        messages += _of_keys_there(part.warnings())
    for section in config.shared_sections():
        if section.get("enabled", True):
            messages += section.warnings(config)
    return messages


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
            elif key != "path" and not _is_a(value, DATASET_KEYS[key]):
                yield f"'{name}.{key}' cannot be {shown(value)}: remove or correct it"
        if isinstance(entry.get("weight"), int | float) and not entry["weight"] > 0:
            yield f"'{name}.weight' is {shown(entry['weight'])}: it must be greater than 0"
        if isinstance(entry.get("demo_limit"), int) and entry["demo_limit"] < 1:
            yield f"'{name}.demo_limit' is {entry['demo_limit']}: it must be at least 1"


def _is_a(value: Any, types: Any) -> bool:
    """Whether a value is of a type; true and false are no numbers."""
    return (
        isinstance(value, bool)
        if types is bool
        else (isinstance(value, types) and not isinstance(value, bool))
    )


def _name_problems(config: BaseConfig) -> Iterator[str]:
    """Looks at names of folders, of metrics and in MLflow."""
    name, mlflow = config.experiment.name, config.mlflow
    if reason := name_problem(name):
        yield f"'experiment.name' is {shown(name)}: {reason} (--name)"
    for i, entry in enumerate(_entries(config.train.data)):
        if entry.get("key") is not None and (reason := name_problem(entry["key"])):
            yield f"'train.data[{i}].key' is {shown(entry['key'])}: {reason}"
    for key in ("experiment_name", "run_name"):
        if mlflow[key] is not None and (reason := label_problem(mlflow[key])):
            yield f"'mlflow.{key}' is {shown(mlflow[key])}: {reason}"
    for tag, value in mlflow.tags.items():
        if not isinstance(value, str | int | float):
            yield f"'mlflow.tags' gives '{tag}' the value {shown(value)}: it must be a text"
        if reason := label_problem(tag):
            yield f"'mlflow.tags' has the tag {shown(tag)}: {reason}"
    texts = {
        "train.action_keys": config.train.action_keys,
        "train.dataset_keys": config.train.dataset_keys,
        "observation.modalities": config.all_obs_keys,
        "experiment.additional_envs": config.experiment.additional_envs or (),
    }
    for path, names in texts.items():
        for text in names:
            if reason := label_problem(text):
                yield f"'{path}' names {shown(text)}: {reason}"


def _rollout_problems(config: BaseConfig) -> Iterator[str]:
    """Looks at keys that a config need not have, whose types follow from no default."""
    rollout = config.experiment.rollout
    if not (rollout.batched is None or isinstance(rollout.batched, bool)):
        yield f"'experiment.rollout.batched' is {shown(rollout.batched)}: set it to true or false"
    number = rollout.num_batch_envs
    if number is not None and (type(number) is not int or number < 1):
        yield f"'experiment.rollout.num_batch_envs' is {shown(number)}: set it to at least 1"


def _login_problems(config: BaseConfig) -> Iterator[str]:
    """Looks for logins in URIs: every checkpoint and record would repeat them."""
    places = {
        "ray.address": config.ray.address,
        "ray.storage_path": config.ray.storage_path,
        "train.output_dir": config.train.output_dir,
        "experiment.ckpt_path": config.experiment.ckpt_path,
    }
    for i, entry in enumerate(_entries(config.train.data)):
        places[f"train.data[{i}].path"] = entry["path"]
    for key, uri in places.items():
        if isinstance(uri, str) and holds_login(uri):
            scheme = uri.partition("://")[0].rpartition("::")[2]
            remedy = f"FSSPEC_{scheme.upper()}_… variables or ~/.config/fsspec/, which fsspec reads"
            yield (
                f"'{key}' is '{masked(uri)}', with a login that every checkpoint would repeat: "
                f"give it apart from the address{f', in {remedy}' if key != 'ray.address' else ''}"
            )


def _validation_problems(config: BaseConfig) -> Iterator[str]:
    train, validate = config.train, config.experiment.validate
    if train.hdf5_validation_filter_key is not None and not validate:
        yield (
            f"'train.hdf5_validation_filter_key' is '{train.hdf5_validation_filter_key}', but "
            "'experiment.validate' is false: set the one to null or the other to true"
        )
    fraction = train.validation_fraction
    if fraction is not None and not validate:
        yield (
            f"'train.validation_fraction' is {fraction}, but 'experiment.validate' is false: set "
            "the one to null or the other to true"
        )
    if not validate:
        return
    for entry in _entries(train.data):
        training = entry.get("filter_key", train.hdf5_filter_key)
        validation = entry.get("validation_filter_key", train.hdf5_validation_filter_key)
        if fraction is not None:
            if validation is not None:
                yield (
                    f"the demos of {entry['path']} to validate on are named twice: "
                    f"'train.validation_fraction' ({fraction}) draws them, and "
                    f"'train.hdf5_validation_filter_key' is '{validation}'; set one to null"
                )
        elif validation is None:
            yield (
                "'experiment.validate' needs held-out demos: set 'train.validation_fraction' to "
                "0.1, which needs no mask, or 'train.hdf5_validation_filter_key' to a mask of "
                f"{entry['path']}, or 'experiment.validate' to false"
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


def _observation_problems(config: BaseConfig) -> Iterator[str]:
    for path, groups in sections_named(config.observation, "modalities"):
        for group, content in (("obs", "observations"), ("subgoal", "parts of a subgoal")):
            if group in groups and not any(groups[group].values()):
                name = f"observation.{path}.{group}"
                yield (
                    f"'{name}' names no {content}: list them by modality, such as "
                    f'{name}.low_dim=["flat"]'
                )
    if config.use_goals and config.train.goal_mode is None:
        yield (
            f"'observation.{_goal_group(config)}' names goals, but 'train.goal_mode' is null: set "
            "it to 'last' or remove the goals"
        )
    # Modalities import torch, and this module must not.
    from raymimic.observations.modality import registered_modalities

    yield from _sharing_problems(config)
    modality_of: dict[str, str] = {}
    for path, groups in sections_named(config.observation, "modalities"):
        encoder = path.removesuffix("modalities") + "encoder"
        encoders = config.observation.get_path(encoder)
        seen = {m for group in groups.values() for m, keys in group.items() if keys}
        yield from _randomizer_problems(config, encoder, sorted(seen & {*encoders}))
        for name, group in groups.items():
            for modality, keys in group.items():
                known = {*encoders, *registered_modalities()}
                if keys and modality not in known:
                    yield (
                        f"modality '{modality}' of {', '.join(keys)} has no encoder: add "
                        f"'observation.{encoder}.{modality}'{did_you_mean(modality, known)}"
                    )
                for key in dict.fromkeys(keys):
                    if list(keys).count(key) > 1:
                        yield (
                            f"'observation.{path}.{name}.{modality}' names '{key}' twice: list "
                            "each observation once"
                        )
                    other = modality_of.setdefault(key, modality)
                    if other != modality:
                        yield (
                            f"observation '{key}' is both {other} and {modality} in "
                            "'observation.modalities': keep one"
                        )


def _sharing_problems(config: BaseConfig) -> Iterator[str]:
    """Looks at `share_net_from`. A key may be in one group and lack in another, such as a goal."""
    listed: dict[str, set[str]] = {}
    for _, groups in sections_named(config.observation, "modalities"):
        for group in groups.values():
            for modality, keys in group.items():
                listed.setdefault(modality, set()).update(keys)
    for path, encoders in sections_named(config.observation, "encoder"):
        for modality, encoder in encoders.items():
            name, known = f"observation.{path}.{modality}.share_net_from", listed.get(modality, ())
            if not isinstance(encoder, dict):
                yield f"'observation.{path}.{modality}' is {shown(encoder)}: it must be a section"
                continue
            sharing = encoder.get("share_net_from") or {}
            if not isinstance(sharing, dict):
                yield f"'{name}' is {shown(sharing)}: it must be a section, {{key: another key}}"
                continue
            for key, source in sharing.items():
                if not isinstance(source, str):
                    yield f"'{name}.{key}' is {shown(source)}: it must be the name of another key"
                if key not in known:
                    yield (
                        f"'{name}' names '{key}', which is no observation of modality "
                        f"'{modality}'{did_you_mean(key, known)}"
                    )


def _randomizer_problems(
    config: BaseConfig, encoder: str, modalities: Iterable[str]
) -> Iterator[str]:
    """Looks for randomizers of images of 0 to 1 where images are normalised to other values.

    Args:
        config: the whole config.
        encoder: path of the encoders below `observation`.
        modalities: those that are seen.
    """
    for modality in modalities:
        section = config.observation.get_path(encoder)[modality]
        names = section.get("obs_randomizer_class")
        names = names if isinstance(names, list | tuple) else [names]
        if config.train.hdf5_normalize_obs and "ColorRandomizer" in names:
            yield (
                f"'observation.{encoder}.{modality}.obs_randomizer_class' names ColorRandomizer, "
                "which takes images of 0 to 1, and 'train.hdf5_normalize_obs' is true, which gives "
                "them other values: remove the one or set the other to false"
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
    for key in dict.fromkeys(train.action_keys):
        if list(train.action_keys).count(key) > 1:
            yield f"'train.action_keys' names '{key}' twice: list each key once"
        if key not in train.action_config:
            yield (
                f"'train.action_keys' names '{key}', which 'train.action_config' lacks"
                f"{did_you_mean(key, train.action_config)}"
            )
    for action, options in train.action_config.items():
        if not isinstance(options, dict):
            yield f"'train.action_config.{action}' must be a section, such as {{}}"
            continue
        form = options.get("convert_at_runtime")
        if options.get("format") == "rot_6d" and form not in (None, *PLAYED_ROTATIONS):
            yield (
                f"'train.action_config.{action}.convert_at_runtime' is {shown(form)}: it must be "
                f"{' or '.join(map(repr, PLAYED_ROTATIONS))}"
            )
        if isinstance(options.get("normalization"), dict):
            key = f"train.action_config.{action}.normalization"
            yield f"'{key}' must be {limits_of(type(config), key).in_words()}"
        for key in options:
            if key not in ACTION_KEYS:
                yield (
                    f"unknown key 'train.action_config.{action}.{key}'"
                    f"{did_you_mean(key, ACTION_KEYS)}"
                )


def _algo_problems(config: BaseConfig) -> Iterator[str]:
    """Asks the algorithm, its parts and all sections with rules of their own."""
    switch = config.SEES_STACKS
    sees_stacks = config.get_path(switch) if isinstance(switch, str) else switch
    if config.train.frame_stack > 1 and sees_stacks is False:
        yield (
            f"'train.frame_stack' is {config.train.frame_stack}, but this policy sees one "
            "observation at a time: set it to 1"
            + (f", or '{switch}' to true" if isinstance(switch, str) else "")
        )
    yield from config.problems()
    for part in config.parts():
        yield from _of_keys_there(part.problems())
    for section in config.shared_sections():
        if section.get("enabled", True):
            yield from section.problems(config)


def _of_keys_there(sentences: Iterable[str]) -> Iterator[str]:
    """Leaves out rules about keys of a part that the config around it has deleted."""
    with contextlib.suppress(UnknownKeyError):
        yield from sentences


def _entries(data: Any) -> list[Any]:
    """Returns `train.data` as a list, for a path a list of one entry."""
    return data if isinstance(data, list | tuple) else [{"path": data}]  # type: ignore[return-value]
