"""Reads untrusted HDF5 files; an error is one sentence with the reason.

The HDF5 library opens other files of the machine by itself: the targets of external links, the
sources of virtual datasets, and any file as external raw storage. This module does it instead.
It follows links step by step and assembles virtual datasets from their sources, only within the
folders of a `DatasetFile`, and refuses external raw storage. A missing target or source is an
error: HDF5 would skip the link, and fill the virtual dataset with zeros.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raymimic import storage
from raymimic.data.fetch import is_remote, local_path
from raymimic.data.in_place import journal_of
from raymimic.data.memory import free_memory
from raymimic.errors import (
    ConfigError,
    DatasetError,
    RaymimicError,
    did_you_mean,
    nearest,
    reason,
)
from raymimic.observations.shapes import LANG_EMB_KEY

Item = Any  # h5py has no types: a group, a dataset or a named data type

HDF5_ENDINGS = (".hdf5", ".h5")
"""Of the names of HDF5 files."""

_METADATA_CACHE_BYTES = 1 << 18
_MAX_TEXT_BYTES = 1 << 28
_MAX_ROW_BYTES = 1 << 28  # that are read in order to have one row
_CHECKED_BYTES = 1 << 26  # of one array; smaller ones always fit
_MAX_LINKED_FILES = 64  # open at a time
_MAX_STEPS = 200  # of one look-up, those through links included
_MAX_NESTED_VIRTUAL = 4
_CONVERT = "; raymimic dataset convert makes it of other formats"


@dataclass(frozen=True)
class DatasetFile:
    """A dataset on this machine, and how far its links may lead.

    Attributes:
        path: the file.
        folders: where other files may be read, resolved: the dataset's own folder (where `path` is
            a symbolic link, the folders of the link and of its target) and those that the user
            allows. A copy of a URI has no folder of its own: its neighbours in the cache are
            other datasets.
    """

    path: Path
    folders: tuple[Path, ...] = ()

    @classmethod
    def locate(cls, path: str | Path, allow_links: Sequence[str | Path] = ()) -> DatasetFile:
        """Finds a dataset.

        Args:
            path: local path, or a URI, which is fetched.
            allow_links: further folders that its links may lead into.

        Raises:
            DatasetError: there is no such file.
            ConfigError: there is no such folder.
        """
        file = local_path(path)
        own = () if is_remote(path) else (file.absolute().parent, file.resolve().parent)
        allowed = [storage.expanded(folder) for folder in allow_links]
        for folder in allowed:
            if not folder.is_dir():
                raise ConfigError(
                    f"train.allow_links (--allow-links) names '{folder}', which is not a folder"
                    " here: correct or remove it"
                )
        folders = [folder.resolve() for folder in (*own, *allowed)]
        return cls(file, tuple(dict.fromkeys(folders)))


@contextmanager
def open_hdf5(
    dataset: DatasetFile | str | Path, allow_links: Sequence[str | Path] = ()
) -> Iterator[DatasetReader]:
    """Opens an HDF5 file of any layout for reading.

    Args:
        dataset: as for `open_dataset`.
        allow_links: as for `DatasetFile.locate`.

    Yields:
        The open file.

    Raises:
        DatasetError: the file is missing, empty, truncated or not HDF5.
    """
    if not isinstance(dataset, DatasetFile):
        dataset = DatasetFile.locate(dataset, allow_links)
    with ExitStack() as stack:
        reader = DatasetReader(dataset, stack.enter_context(_opened(dataset.path)))
        stack.callback(reader.close_linked_files)
        yield reader


@contextmanager
def open_dataset(
    dataset: DatasetFile | str | Path, allow_links: Sequence[str | Path] = ()
) -> Iterator[DatasetReader]:
    """Opens a dataset for reading.

    Args:
        dataset: its path, its URI, or the file that `DatasetFile.locate` found there.
        allow_links: as for `DatasetFile.locate`.

    Yields:
        The open dataset, whose group `data` has at least one member.

    Raises:
        DatasetError: the file is missing, empty, truncated, not HDF5 or has no demos.
    """
    with open_hdf5(dataset, allow_links) as reader:
        if not reader.names(reader.data):
            raise DatasetError(
                f"{reader} holds no demos: its group 'data' is empty; record or convert the"
                " demonstrations again"
            )
        yield reader


class DatasetReader:
    """An open dataset, together with the files that its links and virtual datasets lead into.

    Args:
        file: the dataset.
        handle: the same, open.

    Attributes:
        path: of the dataset.
        root: its root group.
        linked: other files that were read from so far, resolved.
    """

    def __init__(self, file: DatasetFile, handle: h5py.File) -> None:
        self.path = file.path
        self.linked: set[Path] = set()
        self._folders = file.folders
        self.root = h5py.Group(handle.id)
        self._main = file.path.resolve()
        self._others: dict[Path, h5py.File] = {}

    def __str__(self) -> str:
        return f"dataset '{self.path}'"

    # -- finding --

    @cached_property
    def data(self) -> h5py.Group:
        """The group of all demos."""
        data = self.find(None, "data", str(self))
        if isinstance(data, h5py.Group):
            return data
        there = ", ".join(self.names(self.root)[:8])
        raise DatasetError(
            f"{self} has no group 'data': it is HDF5{there and f' (of {there})'}, but not in"
            f" robomimic's format (data/<demo>/obs, data/<demo>/actions, …){_CONVERT}"
        )

    def demo(self, name: str) -> DemoReader | None:
        """A demo; None if `data` has no group of that name.

        Objects of demos that were opened before may not be used any more.
        """
        if len(self._others) > _MAX_LINKED_FILES:
            self.close_linked_files()
        if name in ("", ".") or "/" in name:
            return None
        group = self.find(self.data, name, str(self), "data")
        return DemoReader(self, name, group) if isinstance(group, h5py.Group) else None

    def known_demo(self, name: str) -> DemoReader:
        """A demo, see `demo`.

        Raises:
            DatasetError: there is none of that name.
        """
        demo = self.demo(name)
        if demo is None:
            raise DatasetError(f"{self} holds no demo '{name}' (a group of that name in 'data')")
        return demo

    def find(self, group: h5py.Group | None, name: str, where: str, above: str = "") -> Item | None:
        """Finds an object by its name in a group, through links.

        Args:
            group: where to start; None is the file's root.
            name: path below the group.
            where: the group as a user knows it, for complaints.
            above: path from there to `group`, where they are not the same.

        Returns:
            The object; None if there is no such name.

        Raises:
            DatasetError: a link leads nowhere, in a circle, or out of the allowed folders, or the
                file is damaged.
        """
        start = self.root if group is None else group
        try:
            return self._walk(start, name, where, iter(range(_MAX_STEPS)), above)
        except _CircleError:
            path = f"{above}/{name}".lstrip("/")
            raise DatasetError(
                f"{where}: '{path}' is a link that leads in a circle: remove it"
            ) from None

    def names(self, group: h5py.Group) -> list[str]:
        """Names of a group's members, links included, sorted."""
        with reading(f"{self}: names of a group"):
            return sorted(_text(name) for name in group.id)

    def _links(self, group: h5py.Group) -> dict[str, int]:
        """Names of a group's members with the kinds of their links, one of `h5py.h5l.TYPE_…`."""
        found: dict[str, int] = {}

        def note(name: bytes, info: Any) -> None:
            found[_text(name)] = info.type

        with reading(f"{self}: names of a group"):
            group.id.links.iterate(note, info=True)
        return found

    def keys(
        self, group: h5py.Group, where: str, problems: list[str] | None = None
    ) -> dict[str, h5py.Dataset]:
        """All datasets below a group, at any depth and through links, by name.

        Args:
            group: where to start; groups that are met again are left out.
            where: as for `find`.
            problems: collects the faults of links and virtual datasets; None raises the first.
        """
        found: dict[str, h5py.Dataset] = {}
        seen: set[int] = set()
        waiting: list[tuple[h5py.Group, str, str, int | None]] = [(group, "", "", None)]
        while waiting:
            parent, above, last, kind = waiting.pop()  # a group, its path, and a link in it
            name = f"{above}/{last}" if above else last
            try:
                if kind == h5py.h5l.TYPE_HARD:
                    with reading(f"{where}: '{name}'"):
                        item = _wrapped(h5py.h5o.open(parent.id, _encoded(last)))
                else:
                    item = self.find(parent, last, where, above) if last else parent
                if isinstance(item, h5py.Dataset):
                    if problems is not None:
                        self.check_place(item, f"{where}: '{name}'")
                    found[name] = item
                elif isinstance(item, h5py.Group):
                    with reading(f"{where}: '{name}'"):
                        identity = hash(item.id)
                    if identity not in seen:
                        seen.add(identity)
                        links = self._links(item)
                        waiting += [(item, name, below, links[below]) for below in sorted(links)]
            except DatasetError as error:
                if problems is None:
                    raise
                problems.append(str(error))
        return dict(sorted(found.items()))

    def _walk(
        self, group: h5py.Group, name: str, where: str, steps: Iterator[int], above: str = ""
    ) -> Item | None:
        here: Item = group
        passed: list[str] = [above] if above else []
        for part in name.split("/"):
            if part in ("", "."):
                continue
            if not isinstance(here, h5py.Group):
                return None
            passed.append(part)
            what = f"{where}: '{'/'.join(passed)}'"
            if next(steps, None) is None:
                raise _CircleError
            following = self._step(here, part, what, steps)
            if following is None:
                return None
            here = following
        return here

    def _step(self, group: h5py.Group, name: str, what: str, steps: Iterator[int]) -> Item | None:
        """Opens a member of a group; follows it if it is a link."""
        with reading(what):
            key, links = _encoded(name), group.id.links
            if b"\0" in key or not links.exists(key):
                return None
            kind = links.get_info(key).type
            if kind == h5py.h5l.TYPE_HARD:
                return _wrapped(h5py.h5o.open(group.id, key))
            target = links.get_val(key)
        if kind == h5py.h5l.TYPE_SOFT:
            path = _text(target)
            leads = f"{what} is a link to '{path}'"
            start = _root_of(group, leads) if path.startswith("/") else group
        elif kind == h5py.h5l.TYPE_EXTERNAL:
            filename, path = (_text(part) for part in target)
            leads = f"{what} is a link to '{path}' in file '{filename}'"
            start = self._other_root(group, filename, leads)
        else:
            raise DatasetError(f"{what} is a user-defined link, which is not followed: remove it")
        found = self._walk(start, path, leads, steps)
        if found is None:
            raise DatasetError(f"{leads}, where there is no such object: fix or remove the link")
        return found

    # -- other files --

    def _other_root(self, origin: h5py.Group | h5py.Dataset, name: str, leads: str) -> h5py.Group:
        """The root of a file that a link or a virtual dataset names.

        Args:
            origin: an object of the file that names it.
            name: as it is written there.
            leads: beginning of a complaint.
        """
        with reading(leads):
            named_in = Path(_text(h5py.h5f.get_name(origin.id)))
        path = self._place(named_in, name, leads)
        if path == self._main:
            return self.root
        self.linked.add(path)
        if path not in self._others:
            try:
                self._others[path] = _open(path)
            except DatasetError as error:
                raise DatasetError(f"{leads}, but {error}") from error
        return h5py.Group(self._others[path].id)

    def _place(self, origin: Path, name: str, leads: str) -> Path:
        """Where such a file lies, resolved.

        Looked for where HDF5 looks (an absolute path; then, by the last part of that or by the
        relative path, beside the file that names it) and in the allowed folders, but neither in
        the current folder nor where environment variables say: all processes find the same.
        """
        below = Path(name).name if Path(name).is_absolute() else name
        beside = origin.absolute().parent
        for place in (Path(name), *(folder / below for folder in (beside, *self._folders))):
            if not place.is_absolute():
                continue
            try:
                path = place.resolve(strict=True)
            except (OSError, RuntimeError, ValueError):  # not there, or not a file name at all
                continue
            if not any(path.is_relative_to(folder) for folder in self._folders):
                raise DatasetError(
                    f"{leads} ('{path}'), which is outside the dataset's folder: if you trust the"
                    f" dataset, allow it by --allow-links {path.parent} (train.allow_links)"
                )
            if not path.is_file():
                raise DatasetError(f"{leads} ('{path}'), which is not a file: remove the link")
            return path
        raise DatasetError(
            f"{leads}, but there is no such file in the dataset's folder: put it there, or name its"
            " folder by --allow-links (train.allow_links)"
            if self._folders
            else f"{leads}, but a dataset of a URI is fetched without the files that it leads to:"
            " copy them all into one folder, and name the dataset there"
        )

    def close_linked_files(self) -> None:
        """Closes all other files; objects of theirs may not be used any more."""
        for handle in self._others.values():
            handle.close()
        self._others.clear()

    # -- attributes and texts --

    def attribute(self, item: Item, name: str, what: str) -> Any:
        """Value of an attribute as a plain Python value; None if there is none.

        An array of one element is that element.
        """
        with reading(f"{what}: attribute '{name}'"):
            if name not in item.attrs:
                return None
            return _plain(item.attrs[name])

    def attributes(self, item: Item) -> dict[str, Any]:
        """All attributes as plain values; an attribute that cannot be read is a text about it."""
        found: dict[str, Any] = {}
        with reading(f"{self}: attributes"):
            names = [_text(name) for name in item.attrs]
        for name in names:
            try:
                found[name] = self.attribute(item, name, str(self))
            except DatasetError as error:
                found[name] = f"cannot be read ({error.__cause__})"
        return found

    def texts(self, item: h5py.Dataset, what: str) -> list[str]:
        """Elements of a dataset of texts, of any kind and shape."""
        self.check(item, what)
        with reading(what):
            if not item.size:
                return []
            if item.dtype.kind != "S" and h5py.check_string_dtype(item.dtype) is None:
                raise DatasetError(f"{what} holds {_kind_of(item)}, not texts: write it again")
            if item.size * item.dtype.itemsize > _MAX_TEXT_BYTES:
                raise DatasetError(f"{what} claims {item.size} texts: write it again")
        return [_text(value) for value in np.ravel(self.values(item, what))]

    # -- numbers --

    def check(self, item: h5py.Dataset, what: str, depth: int = 0) -> None:
        """Checks that all values of a dataset are there and may be read, without reading them.

        Args:
            item: the dataset.
            what: the same as a user knows it, for complaints.
            depth: virtual datasets on the way here.

        Raises:
            DatasetError: see `check_place`; or a filter is not installed that they are
                compressed by.
        """
        self.check_place(item, what, depth)
        with reading(what):
            if item.chunks is None:  # only chunks are filtered
                return
            settings = item.id.get_create_plist()
            filters = [settings.get_filter(i) for i in range(settings.get_nfilters())]
        for code, _, _, name in filters:
            if not h5py.h5z.filter_avail(code):
                raise DatasetError(
                    f"{what} is compressed by HDF5 filter {code} ('{_text(name)}'), which is not"
                    " installed: pip install hdf5plugin, and add --import hdf5plugin"
                )

    def form_of(
        self, item: h5py.Dataset, what: str
    ) -> tuple[tuple[int, ...] | None, np.dtype[Any]]:
        """Shape (None: an empty dataspace) and type of a dataset.

        Args:
            item: the dataset.
            what: the same as a user knows it, for complaints.
        """
        with reading(what):
            return (None if item.shape is None else tuple(item.shape)), item.dtype

    def row_of(self, item: h5py.Dataset, what: str) -> tuple[tuple[int, ...], np.dtype[Any], int]:
        """Shape and type of a dataset's rows, and the bytes that all of it takes in the file.

        Args:
            item: the dataset; one number per step is a row of one.
            what: the same as a user knows it, for complaints.
        """
        with reading(what):
            shape = tuple((item.shape or ())[1:]) or (1,)
            return shape, item.dtype, int(item.id.get_storage_size())

    def check_place(self, item: h5py.Dataset, what: str, depth: int = 0) -> None:
        """Checks that the values of a dataset lie where they may be read.

        Args:
            item: the dataset.
            what: the same as a user knows it, for complaints.
            depth: virtual datasets on the way here.

        Raises:
            DatasetError: they lie in external raw storage, or belong to a virtual dataset whose
                sources are not complete.
        """
        with reading(what):
            # h5py knows these since it opened the dataset.
            virtual, raw = item.is_virtual, item.external
        if raw:
            raise DatasetError(
                f"{what} keeps its values in another file, '{_text(raw[0][0])}', as external raw"
                " storage, which may be any file of this machine and is never read: copy the values"
                " into the dataset"
            )
        if virtual:
            points = sum(points for points, *_ in self._sources(item, what, depth))
            with reading(what):
                size = item.size
            if size is not None and points < size:
                raise DatasetError(
                    f"{what} is a virtual dataset whose sources give {points} of its {size} values;"
                    " the others would be made up: write it again"
                )

    def _sources(
        self, item: h5py.Dataset, what: str, depth: int
    ) -> Iterator[tuple[int, Any, h5py.Dataset, Any]]:
        """Number of values, place in a virtual dataset, source, and place there, of each part."""
        if depth == _MAX_NESTED_VIRTUAL:
            raise DatasetError(
                f"{what} is a virtual dataset of virtual datasets, more than"
                f" {_MAX_NESTED_VIRTUAL} deep: write its values into the file"
            )
        with reading(what):
            settings = item.id.get_create_plist()
            count = settings.get_virtual_count()
        for i in range(count):
            with reading(what):
                filename = _text(settings.get_virtual_filename(i)).replace("%%", "%")
                name = _text(settings.get_virtual_dsetname(i))
                space = settings.get_virtual_vspace(i)
                source_space = settings.get_virtual_srcspace(i)
            leads = f"{what} is a virtual dataset of '{name}' in file '{filename}'"
            try:
                points = int(space.get_select_npoints())
            except RuntimeError as error:
                raise DatasetError(
                    f"{leads}, without a fixed number of rows: write its values into the file"
                ) from error
            start = _root_of(item, leads)
            if filename != ".":
                start = self._other_root(item, filename, leads)
            source = self.find(start, name, leads)
            if not isinstance(source, h5py.Dataset):
                raise DatasetError(
                    f"{leads}, where there is no such dataset: put it there, or write the virtual"
                    " dataset again"
                )
            self.check(source, leads, depth + 1)
            with reading(leads):
                fits = space.get_simple_extent_dims() == item.shape
                place = _placed(source_space, source.shape)
                fits = fits and place is not None and place.get_select_npoints() == points
                shape = source.shape
            if not fits:
                raise DatasetError(
                    f"{leads}, whose shape {_shown(shape)} is no longer that of which it was made:"
                    " write the virtual dataset again"
                )
            yield points, space, source, place

    def fill(
        self, item: h5py.Dataset, out: np.ndarray, what: str, rows: slice | None = None
    ) -> None:
        """Reads a dataset that was checked (`check`), or some of its rows.

        Args:
            item: numbers.
            out: an array of as many elements, which are converted to its type.
            what: the dataset as a user knows it, for complaints.
            rows: consecutive rows; None: all. Of a virtual dataset all are read for them.

        Raises:
            DatasetError: it cannot be read.
        """
        with reading(what):
            virtual = bool(item.is_virtual)
            shape = item.shape if rows is None else (rows.stop - rows.start, *item.shape[1:])
            direct = out.flags.c_contiguous and out.shape == shape and item.dtype.kind != "b"
            if direct and not virtual:
                # Converts on the way, without a copy of the whole.
                item.read_direct(out, None if rows is None else np.s_[rows])
                return
            part = None if virtual or rows is None else np.asarray(item[rows])
        if part is None:
            part = self.values(item, what)[slice(None) if rows is None else rows]
        with reading(what):
            out[...] = part.reshape(out.shape)

    def values(self, item: h5py.Dataset, what: str, depth: int = 0) -> np.ndarray:
        """All values of a dataset that was checked (`check`), in its own type.

        Raises:
            DatasetError: they cannot be read, or do not fit into memory.
        """
        with reading(what):
            _check_size(item, item.size or 0, what)
            if not item.is_virtual:
                values: np.ndarray = np.asarray(item[()])
                return values
            values = np.zeros(item.shape, item.dtype)
            if values.dtype.kind == "f":
                values.fill(np.nan)  # shows where sources that overlap leave a gap
        for _, space, source, source_space in self._sources(item, what, depth):
            with reading(what):
                if not source.is_virtual:
                    source.id.read(space, source_space, values)
                    continue
            inner = self.values(source, what, depth + 1)
            with reading(what), h5py.File(io.BytesIO(), "w") as memory:
                memory["values"] = inner
                memory["values"].id.read(space, source_space, values)
        return values

    def rows(self, item: h5py.Dataset, start: int, stop: int | None, what: str) -> np.ndarray:
        """Rows `start` to `stop` of a dataset that was checked (`check`), in its own type.

        A virtual dataset is read whole.
        """
        with reading(what):
            if not item.is_virtual:
                count = len(range(*slice(start, stop).indices(item.shape[0])))
                _check_size(item, count * math.prod(item.shape[1:]), what)
                values: np.ndarray = np.asarray(item[start:stop])
                return values
        return self.values(item, what)[start:stop]

    def copy(self, item: h5py.Dataset, target: h5py.Group, name: str, what: str) -> None:
        """Copies a dataset of any type into another file, as it is stored, with its attributes.

        Args:
            item: the dataset; a virtual one is copied value by value.
            target: group of a file that is open for writing.
            name: path below it.
            what: the dataset as a user knows it, for complaints.

        Raises:
            DatasetError: it cannot be read.
        """
        self.check_place(item, what)
        if item.is_virtual:
            target[name] = self.values(item, what)
            return
        try:
            target.copy(item, target, name=name)
        except Exception as error:
            raise _damaged(what, error) from error

    def row(self, item: h5py.Dataset, index: int, what: str) -> np.ndarray:
        """One row of a dataset that was checked (`check`), in its own type.

        Args:
            item: the dataset.
            index: number of the row, from 0.
            what: the same as a user knows it, for complaints.

        Raises:
            DatasetError: it cannot be read, or more than 256 MiB would be read for it. Chunks and
                virtual datasets are read whole.
        """
        with reading(what):
            virtual = bool(item.is_virtual)
            size = item.dtype.itemsize * math.prod(item.shape if virtual else item.shape[1:])
            if item.chunks is not None and size:
                # All chunks that the row lies in are read whole.
                rows, *cells = item.chunks
                covered = (n + -n % cell for n, cell in zip(item.shape[1:], cells, strict=True))
                size = item.dtype.itemsize * rows * math.prod(covered)
            if size <= _MAX_ROW_BYTES and not virtual:
                values: np.ndarray = np.asarray(item[index])
                return values
        if size > _MAX_ROW_BYTES:
            raise DatasetError(
                f"{what}: to read one row is to read {size:,} bytes, which is too many"
            )
        row: np.ndarray = self.values(item, what)[index]
        return row


class MissingObservationError(DatasetError):
    """A demo lacks an observation.

    Attributes:
        known: row shape of each observation that it has.
    """

    def __init__(self, message: str, known: Mapping[str, tuple[int, ...]] | None = None) -> None:
        super().__init__(message)
        self.known = dict(known or {})


class MislistedObservationError(DatasetError):
    """An observation is listed under a modality that it cannot be.

    Attributes:
        key: the observation.
        fits: the modality that each observation of the demo fits which is listed under another.
    """

    def __init__(self, message: str, key: str = "", fits: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.fits = dict(fits or {})


@dataclass(frozen=True)
class NumberArray:
    """Numbers of a demo that can be read.

    Attributes:
        item: the dataset.
        shape: of all of it, one row per transition; no axis but the first is empty.
        dtype: as in the file.
        written: whether any value was ever written; if not, all are made up.
    """

    item: h5py.Dataset
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    written: bool

    @property
    def rows_at_once(self) -> int:
        """Rows that are read together, since they share a chunk or a virtual dataset."""
        if self.item.is_virtual:
            return self.shape[0]
        return int(self.item.chunks[0]) if self.item.chunks else 1


@dataclass(frozen=True)
class DemoReader:
    """A demo of an open dataset.

    Attributes:
        reader: the dataset.
        name: of the demo.
        group: the demo.
    """

    reader: DatasetReader
    name: str
    group: h5py.Group

    def __str__(self) -> str:
        return f"{self.reader}: demo '{self.name}'"

    def find(self, name: str) -> Item | None:
        """As `DatasetReader.find`."""
        return self.reader.find(self.group, name, str(self))

    def has(self, name: str) -> bool:
        """Whether there is an object of that name."""
        return self.find(name) is not None

    def datasets(
        self, name: str = "", problems: list[str] | None = None
    ) -> dict[str, h5py.Dataset]:
        """Each dataset at any depth of a group of the demo, by its name in the group.

        Args:
            name: of the group; none is the demo itself.
            problems: collects faults; None raises the first.
        """
        group = self.find(name) if name else self.group
        if not isinstance(group, h5py.Group):
            return {}
        return self.reader.keys(group, f"{self}: in '{name}'" if name else str(self), problems)

    def shapes(
        self, name: str = "", problems: list[str] | None = None
    ) -> dict[str, tuple[int, ...]]:
        """Row shape of each dataset at any depth of a group of the demo, as networks see it.

        Args:
            name: of the group; none is the demo itself.
            problems: collects faults; None raises the first.
        """
        shapes: dict[str, tuple[int, ...]] = {}
        for key, item in self.datasets(name, problems).items():
            with reading(f"{self}: '{f'{name}/{key}'.lstrip('/')}'"):
                if shape := item.shape:
                    shapes[key] = tuple(shape[1:]) or (1,)
        return shapes

    def length(self) -> int | None:
        """Number of transitions: `num_samples`, or the rows of `actions`; None without both."""
        stated = self.reader.attribute(self.group, "num_samples", str(self))
        if stated is not None:
            if isinstance(stated, int | float) and float(stated).is_integer():
                return int(stated)
            raise DatasetError(
                f"{self}: attribute 'num_samples' is {stated!r}, not a whole number: correct it"
            )
        actions = self.find("actions")
        if not isinstance(actions, h5py.Dataset):
            return None
        self.reader.check(actions, f"{self}: 'actions'")
        with reading(f"{self}: 'actions'"):
            return int(actions.shape[0]) if actions.shape else None

    def numbers(self, name: str) -> NumberArray:
        """A dataset that holds numbers, one row per transition.

        Raises:
            DatasetError: there is none, or it cannot be read.
        """
        item = self.find(name)
        if item is None:
            raise self._missing(name)
        if isinstance(item, h5py.Group):
            below = name.partition("/")[2] or name
            members = ", ".join(f"{below}/{key}" for key in self.reader.names(item))
            raise DatasetError(
                f"{self}: '{name}' is a group"
                + (f": name its members, such as {members}" if members else " without members")
            )
        what = f"{self}: '{name}'"
        if not isinstance(item, h5py.Dataset):
            raise DatasetError(f"{what} is a data type, not an array: leave the key out")
        self.reader.check(item, what)
        with reading(what):
            shape, dtype = item.shape, item.dtype
            written = bool(item.is_virtual or item.id.get_storage_size())
        if dtype.kind not in "biuf":
            raise DatasetError(
                f"{what} is not an array of numbers, but of {_kind_of(item)}: leave the key out"
            )
        if not shape:
            raise DatasetError(
                f"{what} is not an array of numbers with one row per transition, but"
                f" {'a single number' if shape == () else 'empty'}: leave the key out"
            )
        if 0 in shape[1:]:
            raise DatasetError(
                f"{what} has shape {_shown(shape)}, so that its rows are empty: leave the key out"
            )
        return NumberArray(item, tuple(shape), dtype, written)

    def read(self, name: str, out: np.ndarray, rows: slice | None = None) -> None:
        """Reads a dataset of numbers into an array of as many elements, in that array's type.

        Args:
            name: of the dataset.
            out: the array.
            rows: consecutive rows to read; None: all.
        """
        self.reader.fill(self.numbers(name).item, out, f"{self}: '{name}'", rows)

    def row(self, name: str, index: int) -> np.ndarray:
        """One row of a dataset of numbers, in its own type, see `DatasetReader.row`."""
        return self.reader.row(self.numbers(name).item, index, f"{self}: '{name}'")

    def _missing(self, name: str) -> DatasetError:
        group, _, key = name.partition("/")
        if group not in ("obs", "next_obs") or not key:
            known_names = self.shapes(problems=[])
            return DatasetError(f"{self} has no '{name}'{did_you_mean(name, known_names)}")
        known = self.shapes(group, problems=[])
        if not known and self.has("states"):
            return DatasetError(
                f"{self} holds simulator states but no observations: extract them with raymimic"
                " dataset extract-obs (after robomimic's convert_robosuite.py, if robosuite"
                " recorded the file)"
            )
        near = did_you_mean(key, known) if nearest(key, known) else ""
        if key == LANG_EMB_KEY and not near:
            near = (
                ", the embedding of its instruction: set train.data[].lang to the instruction and"
                " train.text_encoder, or write the embedding into each demo, one row for each step"
            )
        return MissingObservationError(
            f"{self} has no observation '{key}'{near} (see observation.modalities)",
            {key: shape for key, shape in known.items() if self._is_numbers(f"obs/{key}")},
        )

    def _is_numbers(self, name: str) -> bool:
        try:
            self.numbers(name)
        except DatasetError:
            return False
        return True


class _CircleError(Exception):
    """A name that is not found within many steps."""


# -- opening --


@contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    handle = _open(path)
    try:
        yield handle
    finally:
        handle.close()


def _open(path: Path) -> h5py.File:
    """Opens a file for reading.

    Raises:
        DatasetError: it cannot be opened.
    """
    named = f"dataset '{path}'"
    try:
        if path.is_dir():
            raise DatasetError(f"{named} is a folder: name the .hdf5 file in it{_CONVERT}")
        if not path.is_file():
            raise DatasetError(f"{named} is not a file: name the .hdf5 file itself")
        if path.stat().st_size == 0:
            raise DatasetError(f"{named} is empty (0 bytes): make or download it again")
        with path.open("rb") as stream:
            start = stream.read(256)
        if not h5py.is_hdf5(path):
            raise DatasetError(f"{named} is not an HDF5 file{_not_hdf5(start)}")
        handle = h5py.File(path, "r", locking="best-effort")
        if journal_of(path).exists():  # its writer would hold the lock
            handle.close()
            raise _half_changed(named)
        _limit_metadata_cache(handle)
        return handle
    except PermissionError as error:
        raise DatasetError(f"{named} may not be read: check its permissions") from error
    except DatasetError as error:
        if journal_of(path).exists():
            raise _half_changed(named) from error
        raise
    except Exception as error:  # h5py raises any error of its bindings
        if "unable to lock" not in str(error) and journal_of(path).exists():
            raise _half_changed(named) from error
        if "truncated" in str(error):
            raise DatasetError(
                f"{named} is truncated (an interrupted copy or recording): copy or make it again"
            ) from error
        if "h5clear" in str(error):
            raise DatasetError(
                f"{named} was left open by a writer that was killed, or is still being written:"
                f" when nothing writes it any more, h5clear -s {path} (of HDF5's tools) closes it"
            ) from error
        if "unable to lock" in str(error):
            raise DatasetError(
                f"{named} is locked: wait until nothing writes it, or, where its file system has no"
                " locks, set HDF5_USE_FILE_LOCKING=FALSE"
            ) from error
        raise _damaged(named, error) from error


def _half_changed(named: str) -> DatasetError:
    return DatasetError(
        f"{named} was being changed when a process was killed: give that command (raymimic dataset"
        " split or filter) again, which completes the change"
    )


def _not_hdf5(start: bytes) -> str:
    """Guesses the kind of a file that is not HDF5 by its first bytes, to end a complaint."""
    if storage.is_lfs_pointer(start):
        return f" but {storage.LFS_POINTER}"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return " but a web page: the download went wrong, fetch it again"
    return f": it must be robomimic's HDF5 format{_CONVERT}"


def _limit_metadata_cache(handle: h5py.File) -> None:
    """Keeps HDF5's own memory small: left alone it takes 15 kB for each demo, and keeps it."""
    limits = handle.id.get_mdc_config()
    limits.set_initial_size = True
    limits.initial_size = limits.min_size = limits.max_size = _METADATA_CACHE_BYTES
    handle.id.set_mdc_config(limits)


class reading:
    """Scope in which all that a library raises about a damaged file becomes one sentence.

    It is entered dozens of times for each demo: a generator would take thrice as long.

    Args:
        what: the file, and the part of it.

    Raises:
        DatasetError: the block raised anything; a `RaymimicError` stays as it is.
    """

    __slots__ = ("_what",)

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Of damaged files it may be anything.
        if isinstance(error, Exception) and not isinstance(error, RaymimicError):
            raise _damaged(self._what, error) from error


def _check_size(item: h5py.Dataset, count: int, what: str) -> None:
    """Refuses claims of a file before any memory is taken for them.

    Args:
        item: a dataset.
        count: of its elements, which are to be read.
        what: the dataset as a user knows it, for complaints.

    Raises:
        DatasetError: they are more bytes than are free, or many and none was ever written.
    """
    size = item.dtype.itemsize * count
    if size <= _CHECKED_BYTES:
        return
    if size > free_memory():
        raise DatasetError(
            f"{what} claims {size:,} bytes, more than are free on this machine: use a larger one,"
            " or write the dataset again"
        )
    if not item.is_virtual and not item.id.get_storage_size():
        raise DatasetError(
            f"{what} claims {size:,} bytes, of which none was ever written: write it again"
        )


def _damaged(what: str, error: Exception) -> DatasetError:
    if isinstance(error, MemoryError):
        return DatasetError(f"{what} does not fit into memory: read fewer demos, or use more nodes")
    why = reason(error).removeprefix("OSError: ")
    return DatasetError(
        f"{what} cannot be read ({why}): it is damaged or truncated, or in use; copy or make it"
        " again"
    )


# -- h5py's objects and values --


def _wrapped(identifier: Any) -> Item:
    if isinstance(identifier, h5py.h5g.GroupID):
        return h5py.Group(identifier)
    if isinstance(identifier, h5py.h5d.DatasetID):
        return h5py.Dataset(identifier)
    return h5py.Datatype(identifier)


def _placed(space: Any, shape: tuple[int, ...]) -> Any:
    """A selection in a dataset of that shape; None if it does not fit.

    A virtual dataset keeps a selection of each source, which does not know the source's shape.
    """
    whole = space.get_select_type() == h5py.h5s.SEL_ALL
    if not whole:
        _, last = space.get_select_bounds()
        if len(last) != len(shape) or any(
            end >= size for end, size in zip(last, shape, strict=True)
        ):
            return None
    placed = space.copy()
    placed.set_extent_simple(shape)
    return placed


def _root_of(item: h5py.Group | h5py.Dataset, what: str) -> h5py.Group:
    """The root of the file in which an object lies."""
    with reading(what):
        return h5py.Group(h5py.h5o.open(item.id, b"/"))


def _encoded(name: str) -> bytes:
    """Undoes `_text`."""
    return name.encode("utf-8", "surrogateescape")


def _text(value: object) -> str:
    """A text; bytes that are not UTF-8 are kept as Python keeps them in file names."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def _plain(value: Any) -> Any:
    """An attribute's value without numpy's types; of an array of one element, that element."""
    if isinstance(value, h5py.Empty):
        return None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return _text(value) if isinstance(value, bytes) else value


def _kind_of(item: h5py.Dataset) -> str:
    """Names the type of a dataset's elements in words."""
    if h5py.check_string_dtype(item.dtype) is not None:
        return "texts"
    if item.dtype.names:
        return "records"
    if h5py.check_vlen_dtype(item.dtype) is not None:
        return "lists of varying length"
    kinds = {"c": "complex numbers", "S": "texts", "O": "references", "V": "opaque values"}
    return kinds.get(item.dtype.kind, "numbers")


def _shown(shape: Sequence[int] | None) -> str:
    return "empty" if shape is None else str(list(shape))
