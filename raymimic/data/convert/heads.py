"""Looks at the heads of files, to recognise their formats; whatever is wrong with a file is no."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from raymimic.data.hdf5 import open_hdf5
from raymimic.errors import RaymimicError
from raymimic.storage import parse_json

# The bounds of spaces of images are written number by number.
_MOST_JSON_BYTES = 1 << 28


@dataclass(frozen=True)
class Demo:
    """The first demo of an HDF5 file in robomimic's form.

    Attributes:
        names: of its members.
        attrs: of the demo.
        data_attrs: of the group `data`.
    """

    names: Collection[str]
    attrs: dict[str, Any]
    data_attrs: dict[str, Any]


def demo_of(source: str) -> Demo | None:
    """The first demo of an HDF5 file; None if it is no such file, or has none."""
    if not is_file(source):
        return None
    try:
        with open_hdf5(source) as reader:
            if "data" not in reader.names(reader.root):
                return None
            for name in reader.names(reader.data):
                if (demo := reader.demo(name)) is not None:
                    return Demo(
                        reader.names(demo.group),
                        reader.attributes(demo.group),
                        reader.attributes(reader.data),
                    )
    except RaymimicError:
        pass
    return None


def hdf5_members(source: str) -> dict[str, bool]:
    """Members of an HDF5 file's root, and whether each is a group; empty if it is no such file."""
    if not is_file(source):
        return {}
    try:
        with open_hdf5(source) as reader:
            found = {
                name: reader.find(None, name, str(reader)) for name in reader.names(reader.root)
            }
            return {name: isinstance(item, h5py.Group) for name, item in found.items()}
    except RaymimicError:
        return {}


def json_of(path: Path) -> dict[str, Any]:
    """The JSON object of a small file; an empty one if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
            return {}
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def is_file(source: str) -> bool:
    """Whether a source is a local file."""
    try:
        return Path(source).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def is_folder(source: str) -> bool:
    """Whether a source is a local folder."""
    try:
        return Path(source).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False
