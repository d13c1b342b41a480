"""Takes actions of a robot's arm apart, into position, rotation and gripper."""

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np
import torch

from raymimic.data.columns import DemoSource, read_array
from raymimic.data.curation.masks import local_file, own_group
from raymimic.data.hdf5 import DatasetReader, open_dataset
from raymimic.data.in_place import changing, complete_change
from raymimic.data.layout import selected_demos
from raymimic.data.writer import Array
from raymimic.errors import DatasetError
from raymimic.rotations import axis_angle_to_rot_6d

_SOURCES = {"actions": "rel_", "actions_abs": "abs_"}
_ARM = 7


def write_action_dict(path: str | Path, absolute: bool = True) -> list[str]:
    """Writes the group `action_dict` of each demo, in place; keys that exist are replaced.

    Actions `[T, 7]` are a position, a rotation as axis and angle, and the gripper; those `[T, 8]`
    have the mode of a mobile base too. They become `rel_pos` `[T, 3]`, `rel_rot_axis_angle`
    `[T, 3]`, `rel_rot_6d` `[T, 6]`, `gripper` `[T, 1]` and `base_mode` `[T, 1]`, all of float32;
    those of `actions_abs`, where demos have it, begin with `abs_`.

    Args:
        path: local path.
        absolute: whether `actions_abs` is taken apart too.

    Returns:
        the keys.

    Raises:
        DatasetError: actions are not of one arm, or another process reads the file.
        OutputError: it cannot be written.

    Source: robomimic/scripts/extract_action_dict.py; there the first arm's components of two arms
    are taken.
    """
    place = local_file(path)
    complete_change(place)
    with open_dataset(place) as reader:
        names = selected_demos(reader, DemoSource(str(place)))
        parts = {name: _parts(reader, name, absolute) for name in names}
    with changing(place) as file:
        data = own_group(file, "data", place)
        for name, arrays in parts.items():
            group = own_group(own_group(data, name, place), "action_dict", place)
            for key, values in arrays.items():
                _put(group, key, values)
    return list(dict.fromkeys(key for arrays in parts.values() for key in arrays))


def _parts(reader: DatasetReader, name: str, absolute: bool) -> Mapping[str, Array]:
    """The arrays of a demo, by key."""
    demo = reader.known_demo(name)
    parts: dict[str, Array] = {}
    for key, prefix in _SOURCES.items():
        if key == "actions_abs" and not (absolute and demo.has(key)):
            continue
        actions = read_array(demo, key).astype(np.float32)
        if actions.ndim != 2 or actions.shape[1] not in (_ARM, _ARM + 1):
            raise DatasetError(
                f"{demo}: '{key}' is {list(actions.shape)}: an arm's position, rotation and gripper"
                f" have {_ARM} components, or {_ARM + 1} with the mode of a mobile base"
            )
        rotation = actions[:, 3:6]
        parts |= {
            f"{prefix}pos": actions[:, :3],
            f"{prefix}rot_axis_angle": rotation,
            f"{prefix}rot_6d": axis_angle_to_rot_6d(torch.from_numpy(rotation.copy())).numpy(),
            "gripper": actions[:, 6:7],
        }
        if actions.shape[1] > _ARM:
            parts["base_mode"] = actions[:, _ARM:]
    return parts


def _put(group: h5py.Group, key: str, values: Array) -> None:
    if group.id.links.exists(key.encode()):
        del group[key]
    group.create_dataset(key, data=np.ascontiguousarray(values, np.float32))
