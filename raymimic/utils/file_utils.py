"""robomimic's `file_utils`: checkpoints."""

from raymimic.checkpoints.policy import (
    algo_from_checkpoint,
    config_from_checkpoint,
    policy_from_checkpoint,
)
from raymimic.checkpoints.reading import (
    algo_name_from_checkpoint,
    load_dict_from_checkpoint,
    maybe_dict_from_checkpoint,
)

__all__ = [
    "algo_from_checkpoint",
    "algo_name_from_checkpoint",
    "config_from_checkpoint",
    "load_dict_from_checkpoint",
    "maybe_dict_from_checkpoint",
    "policy_from_checkpoint",
]
