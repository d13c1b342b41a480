"""Copies demos from one dataset into another, with all that they hold and in the file's types."""

from collections.abc import Collection
from pathlib import Path, PurePosixPath

import h5py

from raymimic.data.hdf5 import DatasetReader, DemoReader, Item
from raymimic.storage import check_local, exists_already


def check_new(path: str | Path) -> None:
    """Makes sure, before long work, that a dataset can be written and replaces no file.

    Raises:
        OutputError: there is one, or a link of that name, or the place cannot be written.
    """
    if Path(path).exists() or Path(path).is_symlink():
        raise exists_already(path)
    check_local(path)


def copy_demo(
    demo: DemoReader, data: h5py.Group, name: str, leave_out: Collection[str] = ()
) -> tuple[h5py.Group, list[str]]:
    """Copies a demo. Links become the arrays that they lead to.

    Args:
        demo: the demo.
        data: group of all demos in the new file.
        name: of the copy.
        leave_out: arrays that are not copied.

    Returns:
        The copy, and a complaint about each attribute that could not be copied.

    Raises:
        DatasetError: an array cannot be read.
    """
    group = data.create_group(name)
    lost = copy_attributes(demo.reader, demo.group, group)
    above: set[str] = set()
    for key, item in demo.datasets().items():
        if key not in leave_out:
            demo.reader.copy(item, group, key, f"{demo}: '{key}'")
            above.update(str(parent) for parent in PurePosixPath(key).parents if parent.name)
    for path in sorted(above):
        found = demo.find(path)
        if found is not None:
            lost += copy_attributes(demo.reader, found, group[path])
    return group, [f"demo '{demo.name}': {complaint}" for complaint in lost]


def copy_attributes(
    reader: DatasetReader, source: Item, target: Item, leave_out: Collection[str] = ()
) -> list[str]:
    """Copies attributes, in their own types.

    Args:
        reader: the dataset to copy from.
        source: an object of it.
        target: an object of another file.
        leave_out: attributes that are not copied.

    Returns:
        A complaint about each that could not be copied.
    """
    lost = []
    for name in reader.attributes(source):
        if name in leave_out:
            continue
        try:
            target.attrs[name] = source.attrs[name]
        except (KeyError, OSError, RuntimeError, TypeError, ValueError):
            lost.append(f"attribute '{name}' cannot be copied")
    return lost
