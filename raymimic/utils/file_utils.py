"""robomimic's `file_utils`: checkpoints and filter keys."""

from collections.abc import Sequence

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
from raymimic.data.masks import write_masks

__all__ = [
    "algo_from_checkpoint",
    "algo_name_from_checkpoint",
    "config_from_checkpoint",
    "create_hdf5_filter_key",
    "load_dict_from_checkpoint",
    "maybe_dict_from_checkpoint",
    "policy_from_checkpoint",
]


def create_hdf5_filter_key(hdf5_path: str, demo_keys: Sequence[str], key_name: str) -> list[int]:
    """Writes a filter key into a dataset; one that exists is replaced.

    Args:
        hdf5_path: local path of the dataset.
        demo_keys: names of the demos; each must be in the file.
        key_name: name of the filter key.

    Returns:
        The number of steps of each demo, in order of the demos' names.
    """
    return write_masks(hdf5_path, {key_name: list(demo_keys)}).lengths[key_name]
