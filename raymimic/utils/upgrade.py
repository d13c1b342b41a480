"""Checkpoints of older versions of robomimic in the form that version 0.5 gives them.

What they lack has defaults that mean what those versions did; what follows is the rest. (Models
without optimizers, from before 0.5, are :meth:`raymimic.algo.Algo.deserialize`'s business.)
"""

import json
from collections.abc import Mapping
from typing import Any


def upgrade_checkpoint(ckpt: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint with today's config and statistics; the same if it has them.

    Args:
        ckpt: of robomimic 0.2 or later, or of raymimic.
    """
    upgraded = dict(ckpt)
    config = json.loads(ckpt["config"])
    if _name_held_out_demos(config):
        upgraded["config"] = json.dumps(config, indent=4)
    stats = ckpt.get("obs_normalization_stats")
    if stats is not None:
        upgraded["obs_normalization_stats"] = {
            key: _offset_and_scale(entry) for key, entry in stats.items()
        }
    return upgraded


def _name_held_out_demos(config: dict[str, Any]) -> bool:
    """Names the filter keys that 0.2 did not have to be told; whether there are any.

    It trained on the demos of ``mask/train`` and validated on those of ``mask/valid``, or, where
    there was a filter key, on ``<key>_train`` and ``<key>_valid``.
    """
    train = config["train"]
    if "hdf5_validation_filter_key" in train or not config["experiment"].get("validate", False):
        return False
    key = train.get("hdf5_filter_key")
    prefix = f"{key}_" if key else ""
    train["hdf5_filter_key"] = f"{prefix}train"
    train["hdf5_validation_filter_key"] = f"{prefix}valid"
    return True


def _offset_and_scale(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Names of a key's statistics: before 0.5 they were ``mean`` and ``std``."""
    names = {"mean": "offset", "std": "scale"}
    return {names.get(name, name): value for name, value in entry.items()}
