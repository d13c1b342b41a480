"""Finds the algorithms and configs that a dataset can train, by the arrays that each reads."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from raymimic.algo import algo_class
from raymimic.config import BaseConfig, get_all_registered_configs
from raymimic.config.checks import check_config, problems
from raymimic.config.templates import config_named
from raymimic.data.curation.summary import DatasetSummary
from raymimic.data.curation.validate import Demand, Fault, Validation
from raymimic.data.observation_keys import observation_settings
from raymimic.data.reads import BOUNDED_ACTIONS, NEXT_ACTIONS, NEXT_OBS, PAD_MASK
from raymimic.data.training_data import ROUNDING, column_request, inspect_data, settle_depth
from raymimic.errors import RaymimicError

# Made of the rest of a file where it lacks them.
_MADE = {BOUNDED_ACTIONS, NEXT_ACTIONS, NEXT_OBS, PAD_MASK}


def obstacles(summary: DatasetSummary) -> dict[str, str]:
    """Says of each algorithm why the dataset cannot train it.

    Each is tried with its default config and the file's own observations.

    Returns:
        A clause by the algorithm's name; empty where it can be trained.
    """
    return {name: _obstacle(name, summary) for name in sorted(get_all_registered_configs())}


def _obstacle(name: str, summary: DatasetSummary) -> str:
    meta = summary.meta
    config = config_named(name)
    with config.values_unlocked():
        config.train.data = str(meta.path)
        for path, keys in observation_settings(config, summary.usable).items():
            config.set_path(path, keys)
    if not set(config.all_obs_keys) <= summary.usable.keys():
        return "the file has no observations that it takes by default"
    if found := problems(config):
        return found[0]
    reads = algo_class(name, config).reads(config)
    for key in ["actions", *sorted(reads.required - _MADE)]:
        lacking = meta.num_demos - summary.held[key]
        if lacking:
            if lacking == meta.num_demos:
                return f"it reads '{key}', and no demo has any"
            return f"it reads '{key}', and {lacking} of {meta.num_demos} demos have none"
    reach = summary.extents["actions"].greatest_magnitude if "actions" in summary.extents else 0.0
    if reads.bounded_actions and reach > 1 + ROUNDING:
        return (
            f"its actions lie in [-1, 1], and the file's reach {reach:.4g}: "
            "--set train.action_config.actions.normalization=min_max"
        )
    return ""


def demand_of(config: BaseConfig, path: str, allow_links: Sequence[str] = ()) -> Demand:
    """The use that a training by a config would make of a file.

    Args:
        config: of the training; its own data are replaced by the file.
        path: the file.
        allow_links: further folders that its links may lead into.

    Raises:
        ConfigError: the config is wrong.
        DatasetError: the file is of another format, and cannot be read.
    """
    name_data(config, path, allow_links)
    check_config(config)
    settle_depth(config)
    reads = algo_class(config.algo_name, config).reads(config)
    train = config.train
    keys = [train.hdf5_filter_key]
    if config.experiment.validate and train.validation_fraction is None:
        keys.append(train.hdf5_validation_filter_key)
    normalization = (train.action_config.get("actions") or {}).get("normalization")
    return Demand(
        request=column_request(config, reads),
        filter_keys=() if keys[0] is None else tuple(filter(None, keys)),
        dtype=np.float64 if train.dtype == "float64" else np.float32,
        bounded_actions=reads.bounded_actions and normalization != "min_max",
    )


def refusal(
    config: BaseConfig, path: str, allow_links: Sequence[str], found: Validation
) -> Validation:
    """Adds the reason for which a training is refused although no fault of the file is an error.

    Args:
        config: see `demand_of`.
        path: the file.
        allow_links: further folders that its links may lead into.
        found: the file's faults.
    """
    try:
        inspect_data(config, algo_class(config.algo_name, config).reads(config))
    except RaymimicError as error:
        return replace(found, faults=(Fault("config", str(error), True), *found.faults))
    return found


def name_data(config: BaseConfig, path: str, allow_links: Sequence[str]) -> None:
    """Replaces a config's data by a file; see `demand_of` for the arguments."""
    with config.values_unlocked():
        config.train.data = path
        if allow_links:
            config.train.allow_links = list(allow_links)
