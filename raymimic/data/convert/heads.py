"""Reads the beginnings of files to recognise their formats; an unreadable file has no format."""

import contextlib
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py

from raymimic import storage
from raymimic.data.hdf5 import DatasetReader, open_hdf5
from raymimic.errors import RaymimicError
from raymimic.storage import parse_json

# The bounds of spaces of images are written number by number.
_MOST_JSON_BYTES = 1 << 28


@dataclass(frozen=True)
class FirstDemo:
    """The first demo of an HDF5 file in robomimic's form.

    Attributes:
        names: of its members.
        attrs: of the demo.
        data_attrs: of the group `data`.
    """

    names: Collection[str]
    attrs: dict[str, Any]
    data_attrs: dict[str, Any]


class Head:
    """The head of a dataset, which all formats look at; a file is opened once.

    Args:
        source: where the dataset lies, as the user names it; it may be anything, or not be there.

    Attributes:
        source: the same.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    @cached_property
    def is_file(self) -> bool:
        """Whether it is a local file."""
        return is_file(self.source)

    @cached_property
    def is_folder(self) -> bool:
        """Whether it is a local folder."""
        return is_folder(self.source)

    @property
    def demo(self) -> FirstDemo | None:
        """The first demo of an HDF5 file; None if it is no such file, or has none."""
        return self._hdf5[0]

    @property
    def hdf5_members(self) -> dict[str, bool]:
        """Members of an HDF5 file's root, and whether each is a group; empty if it is none."""
        return self._hdf5[1]

    @cached_property
    def _hdf5(self) -> tuple[FirstDemo | None, dict[str, bool]]:
        demo, members = None, {}
        with contextlib.suppress(RaymimicError):
            if self.is_file:
                with open_hdf5(self.source) as reader:
                    names = reader.names(reader.root)
                    demo = _first_demo(reader) if "data" in names else None
                    found = {name: reader.find(None, name, str(reader)) for name in names}
                    members = {name: isinstance(x, h5py.Group) for name, x in found.items()}
        return demo, members


def _first_demo(reader: DatasetReader) -> FirstDemo | None:
    for name in reader.names(reader.data):
        if (demo := reader.demo(name)) is not None:
            names, attrs = reader.names(demo.group), reader.attributes(demo.group)
            return FirstDemo(names, attrs, reader.attributes(reader.data))
    return None


def json_of(path: Path) -> dict[str, Any]:
    """The JSON object of a small file; an empty one if there is none."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_JSON_BYTES:
            return {}
        value = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def zip_members(path: Path) -> list[str]:
    """Names of the files of a zip archive; none if it is something else."""
    try:
        if not path.is_file():
            return []
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []


def is_file(source: str) -> bool:
    """Whether a source is a local file."""
    try:
        return storage.expanded(source).is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def is_folder(source: str) -> bool:
    """Whether a source is a local folder."""
    try:
        return storage.expanded(source).is_dir()
    except (OSError, RuntimeError, ValueError):
        return False
