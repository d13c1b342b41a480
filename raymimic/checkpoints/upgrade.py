"""Checkpoints of older versions of robomimic in the form that version 0.5 gives them.

Settings that older checkpoints lack have the behaviour of those versions as defaults. This module
brings the rest into today's form, and writes down the settings that robomimic's configs leave open.
(`raymimic.algo.Algo.deserialize` reads models without optimizers, from before 0.5.)
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from raymimic.checkpoints.content import CheckpointContent
from raymimic.envs.env_base import EnvType


def upgrade_checkpoint(ckpt: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's dictionary with today's config and statistics.

    Args:
        ckpt: of robomimic 0.2 or later, or of raymimic.
    """
    upgraded = upgrade(CheckpointContent.from_dict(ckpt)).to_dict()
    return {key: upgraded.get(key, value) for key, value in ckpt.items()}


def upgrade(content: CheckpointContent) -> CheckpointContent:
    """Returns a checkpoint with today's config and statistics; the same if it has them."""
    config = json.loads(content.config)
    changed = [_move_into_core(encoder) for encoder in _encoders(config.get("observation", {}))]
    changed += [_name_held_out_demos(config), _keep_depth_whole(config, content)]
    if any(changed):
        content = replace(content, config=json.dumps(config, indent=4))
    stats = content.obs_normalization_stats
    if stats is not None:
        stats = {key: _offset_and_scale(entry) for key, entry in stats.items()}
        content = replace(content, obs_normalization_stats=stats)
    return content


def _name_held_out_demos(config: dict[str, Any]) -> bool:
    """Names the filter keys that 0.2 chose by itself; returns whether there are any.

    It trained on the demos of `mask/train` and validated on those of `mask/valid`, or, where
    there was a filter key, on `<key>_train` and `<key>_valid`.
    """
    train = config["train"]
    if "hdf5_validation_filter_key" in train or not config["experiment"].get("validate", False):
        return False
    key = train.get("hdf5_filter_key")
    prefix = f"{key}_" if key else ""
    train["hdf5_filter_key"] = f"{prefix}train"
    train["hdf5_validation_filter_key"] = f"{prefix}valid"
    return True


def _keep_depth_whole(config: dict[str, Any], content: CheckpointContent) -> bool:
    """Says that robomimic did not cut depth off, in trainings on data of robosuite since 0.4.

    Only from then on does `shape_metadata` say whether a policy sees depth. Returns whether it is
    one of those. (robomimic does cut where it plays a checkpoint without having opened its
    dataset: `scripts/run_trained_agent.py`. The policy has learned from whole depth.)
    """
    env_type = (content.env_metadata or {}).get("type")
    sees_depth = content.shape_metadata.get("use_depths")
    if content.of_raymimic or env_type != EnvType.ROBOSUITE_TYPE or not sees_depth:
        return False
    config["train"]["cut_depth"] = False
    return True


def _encoders(section: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the encoder settings of each modality, in all parts of an algorithm."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield from value.values() if key == "encoder" else _encoders(value)


def _move_into_core(encoder: dict[str, Any]) -> bool:
    """Puts settings of 0.2's templates where they belong; returns whether there are any.

    They stand beside `core_class` there, and mean arguments of it.
    """
    found = {
        key: encoder.pop(key)
        for key in ("feature_dimension", "pool_class", "pool_kwargs")
        if key in encoder
    }
    if encoder.get("core_class") is not None:
        encoder["core_kwargs"] = {**found, **encoder.get("core_kwargs", {})}
    return bool(found)


def _offset_and_scale(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Names of a key's statistics: before 0.5 they were `mean` and `std`."""
    names = {"mean": "offset", "std": "scale"}
    return {names.get(name, name): value for name, value in entry.items()}
