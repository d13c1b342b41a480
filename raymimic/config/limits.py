"""What a single setting may be: its type, its range, its choices.

A default shows the type of its key; the tables below say what defaults cannot. Keys are dotted
paths in which ``*`` stands for anything, so that they hold in a user's own algorithm too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from math import inf
from typing import Any, TypeVar

from raymimic.config.base_config import BaseConfig
from raymimic.config.config import UnknownKeyError
from raymimic.errors import ConfigError

T = TypeVar("T")


class AnyOf(tuple[Any, ...]):
    """Examples of a value that may be of several types."""


# An example of a value, where the default is null or an empty list.
_EXAMPLES: dict[str, Any] = {
    "experiment.save.every_n_seconds": 1.0,
    "experiment.save.epochs": [1],
    "experiment.env": "Walker2d-v5",
    "experiment.additional_envs": ["Walker2d-v5"],
    "experiment.rollout.seed": 1,
    "experiment.ckpt_path": "model.pth",
    "train.imports": ["module"],
    "train.hdf5_filter_key": "train",
    "train.hdf5_validation_filter_key": "valid",
    "train.goal_mode": "last",
    "train.max_grad_norm": 1.0,
    "observation.*modalities.*": ["flat"],
    "observation.*core_class": "VisualCore",
    "observation.*obs_randomizer_class": "CropRandomizer",
    "meta.hp_keys": ["train.seed"],
    "meta.hp_base_config_file": "base.json",
    "algo.*epoch_schedule": [1],
    "algo.*num_train_batches": 1,
    "algo.*num_epochs": 1,
    "algo.*max_gradient_norm": 1.0,
    "algo.*value_bounds": [-1.0, 1.0],
    "algo.*latent_clip": 1.0,
    "algo.*clip_adv_value": 1.0,
    "algo.*target_entropy": AnyOf(("default", -1.0)),
    "ray.address": "auto",
    "ray.gpus_per_worker": 1.0,
    "ray.threads_per_worker": 1,
    "ray.storage_path": "s3://bucket",
    "mlflow.tracking_uri": "http://server",
    "mlflow.experiment_name": "raymimic",
    "mlflow.run_name": "run",
}

# May be null although the default is not.
_NULLABLE = (
    "experiment.save.every_n_epochs",
    "experiment.epoch_every_n_steps",
    "experiment.validation_epoch_every_n_steps",
    "train.hdf5_cache_mode",
    "observation.*core_class",
    "algo.*target_entropy",
    "algo.*target_q_gap",
    "algo.*init_last_fc_weight",
)

# Least and greatest value; for a list, of each element.
_RANGES: dict[str, tuple[float, float]] = {
    "experiment.save.every_n_seconds": (0, inf),
    "experiment.save.every_n_epochs": (1, inf),
    "experiment.save.epochs": (1, inf),
    "experiment.epoch_every_n_steps": (1, inf),
    "experiment.validation_epoch_every_n_steps": (1, inf),
    "experiment.video_skip": (1, inf),
    "experiment.rollout.n": (1, inf),
    "experiment.rollout.horizon": (1, inf),
    "experiment.rollout.rate": (1, inf),
    "experiment.rollout.warmstart": (0, inf),
    "experiment.rollout.seed": (0, inf),
    "train.num_data_workers": (0, inf),
    "train.seq_length": (1, inf),
    "train.frame_stack": (1, inf),
    "train.batch_size": (1, inf),
    "train.num_epochs": (1, inf),
    "train.seed": (0, inf),
    "train.max_grad_norm": (0, inf),
    "ray.num_workers": (0, inf),
    "ray.cpus_per_worker": (0.001, inf),
    "ray.gpus_per_worker": (0, inf),
    "ray.threads_per_worker": (1, inf),
    "ray.commit_interval_s": (0, inf),
    "ray.max_failures": (-1, inf),
    "ray.placement_timeout_s": (0, inf),
    "ray.rollout_actors": (1, inf),
    "ray.envs_per_actor": (1, inf),
    "ray.cpus_per_actor": (0, inf),
    "algo.*learning_rate.initial": (0, inf),
    "algo.*learning_rate.decay_factor": (0, inf),
    "algo.*learning_rate.epoch_schedule": (1, inf),
    "algo.*learning_rate.warmup_steps": (0, inf),
    "algo.*learning_rate.num_cycles": (0, inf),
    "algo.*regularization.L2": (0, inf),
    "algo.*optim_params.*.start_epoch": (-1, inf),
    "algo.*optim_params.*.end_epoch": (-1, inf),
    "algo.*layer_dims": (1, inf),
    "algo.*max_gradient_norm": (0, inf),
    "algo.*discount": (0, 1),
    "algo.*n_step": (1, inf),
    "algo.*subgoal_horizon": (1, inf),
    "algo.*subgoal_update_interval": (1, inf),
    "algo.*num_samples": (1, inf),
    "algo.*target_tau": (0, 1),
    "algo.*ensemble.n": (1, inf),
    "algo.*ensemble.weight": (0, 1),
    "algo.*update_freq": (1, inf),
    "algo.*noise_std": (0, inf),
    "algo.*noise_clip": (0, inf),
    "algo.*alpha": (0, inf),
    "algo.*perturbation_scale": (0, inf),
    "algo.*num_action_samples*": (1, inf),
    "algo.*num_random_actions": (1, inf),
    "algo.*num_atoms": (2, inf),
    "algo.*freeze_encoder_epoch": (-1, inf),
    "algo.*bc_start_steps": (0, inf),
    "algo.*cql_weight": (0, inf),
    "algo.*min_q_weight": (0, inf),
    "algo.*init_last_fc_weight": (0, inf),
    "algo.*adv.beta": (1e-6, inf),
    "algo.*vf_quantile": (0, 1),
    "algo.*loss.*_weight": (0, inf),
    "algo.*kl_weight": (0, inf),
    "algo.*_std": (0, inf),
    "algo.*num_modes": (1, inf),
    "algo.*latent_dim": (1, inf),
    "algo.*categorical_dim": (1, inf),
    "algo.*categorical_init_temp": (1e-6, inf),
    "algo.*categorical_min_temp": (1e-6, inf),
    "algo.*categorical_temp_anneal_step": (0, inf),
    "algo.*rnn.horizon": (1, inf),
    "algo.*rnn.hidden_dim": (1, inf),
    "algo.*rnn.num_layers": (1, inf),
    "algo.*transformer.context_length": (1, inf),
    "algo.*transformer.embed_dim": (1, inf),
    "algo.*transformer.num_layers": (1, inf),
    "algo.*transformer.num_heads": (1, inf),
    "algo.*transformer.*dropout": (0, 1),
    "algo.horizon.*": (1, inf),
    "algo.unet.diffusion_step_embed_dim": (4, inf),
    "algo.unet.down_dims": (1, inf),
    "algo.unet.kernel_size": (1, inf),
    "algo.unet.n_groups": (1, inf),
    "algo.ema.power": (0, inf),
    "algo.dd?m.num_*_timesteps": (1, inf),
    "algo.ddim.steps_offset": (0, inf),
}

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "algo.mode": ("separate", "cascade", "planner_only", "actor_only"),
    "train.dtype": ("float32", "float64"),
    "train.goal_mode": (None, "last"),
    "train.hdf5_cache_mode": (None, "all", "low_dim"),
    "train.action_config.*.normalization": (None, "min_max", "gaussian"),
    "ray.data_placement": ("replicate", "shard"),
    "algo.*optim_params.*.optimizer_type": ("adam", "adamw"),
    "algo.*learning_rate.scheduler_type": ("multistep", "linear", "cosine"),
    "algo.*std_activation": ("softplus", "exp"),
    "algo.*rnn.rnn_type": ("LSTM", "GRU"),
    "algo.*transformer.activation": ("gelu", "geglu"),
    "algo.dd?m.beta_schedule": ("squaredcos_cap_v2", "linear", "scaled_linear"),
    "algo.dd?m.prediction_type": ("epsilon", "sample", "v_prediction"),
}


def type_problems(config: BaseConfig) -> list[str]:
    """Finds the values whose type is not their key's, one sentence each."""
    problems = []
    for path, default in type(config)().leaves(optional=True):
        try:
            value = config.get_path(path)
        except UnknownKeyError:
            continue  # a section that this config does without
        except ConfigError as error:  # a value where a section should be
            problems.append(str(error))
            continue
        example = _lookup(_EXAMPLES, path, default)
        nullable = default is None or any(fnmatchcase(path, key) for key in _NULLABLE)
        if example is None or (value is None and nullable) or _alike(value, example):
            continue
        null = " or null" if nullable else ""
        problems.append(f"'{path}' is {_shown(value)}: it must be {_kind(example)}{null}")
    return problems


def range_problems(config: BaseConfig) -> list[str]:
    """Finds the values outside their range or choices, one sentence each."""
    problems = []
    for path, value in config.leaves():
        choices = _lookup(_CHOICES, path, ())
        if choices and value not in choices:
            listed = ", ".join("null" if c is None else f"'{c}'" for c in choices)
            problems.append(f"'{path}' is {_shown(value)}: it must be one of {listed}")
        low, high = _lookup(_RANGES, path, (-inf, inf))
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and not low <= number <= high:
                bounds = f"at least {low:g}" if high == inf else f"between {low:g} and {high:g}"
                problems.append(f"'{path}' is {_shown(value)}: it must be {bounds}")
                break
    return problems


def _lookup(table: dict[str, T], path: str, default: T) -> T:
    return next((entry for key, entry in table.items() if fnmatchcase(path, key)), default)


def _alike(value: Any, example: Any) -> bool:
    if isinstance(example, AnyOf):
        return any(_alike(value, one) for one in example)
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, int | float)
    if isinstance(example, str):
        return isinstance(value, str | os.PathLike)
    if isinstance(example, list | tuple):
        if not isinstance(value, list | tuple):
            return False
        return not example or all(_alike(element, example[0]) for element in value)
    if isinstance(example, Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, type(example))


def _kind(example: Any) -> str:
    if isinstance(example, AnyOf):
        return " or ".join(_kind(one) for one in example)
    if isinstance(example, list | tuple):
        kinds = {bool: "truth values", int: "whole numbers", float: "numbers", str: "texts"}
        return f"a list of {kinds.get(type(example[0]), 'values')}" if example else "a list"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return kinds.get(type(example), "a section of keys")


def _shown(value: Any) -> str:
    """Writes a value as the user would, in JSON's words."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else repr(value)
