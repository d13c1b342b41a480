"""Joins datasets into one file."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raymimic.data.curation.copying import check_new, copy_demo
from raymimic.data.curation.masks import put_mask
from raymimic.data.hdf5 import DatasetFile, DemoReader, open_dataset
from raymimic.data.metadata import DatasetMeta, read_metadata
from raymimic.data.writer import DatasetWriter, writing_file
from raymimic.errors import ConfigError, DatasetError, did_you_mean
from raymimic.storage import file_names

_COMPARED = ("actions", "rewards", "dones")
_MOST_NAMES = 6

_Form = tuple[tuple[int, ...], bool]  # shape of a row, and whether it is an image of bytes


@dataclass(frozen=True)
class MergedDataset:
    """A dataset that was made of several.

    Attributes:
        path: of the new file.
        num_demos: its demos.
        num_transitions: their steps.
        filter_keys: number of demos of each.
        notes: what was left out, a sentence each.
    """

    path: Path
    num_demos: int
    num_transitions: int
    filter_keys: dict[str, int]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """A dataset to be joined.

    Attributes:
        file: where it lies.
        name: in filter keys.
        meta: its statements about itself.
    """

    file: DatasetFile
    name: str
    meta: DatasetMeta


def merge(
    paths: Sequence[str],
    out: str | Path,
    allow_links: Sequence[str | Path] = (),
    env_from: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergedDataset:
    """Joins datasets whose demos have the same arrays.

    Demos get new numbers, file by file. Filter keys: `<file>` has all demos of a file,
    `<file>_<key>` those of its filter key, and `<key>` all of that key, where each file has it.
    Attributes of `data` are kept where all files agree. Links become the arrays that they lead to.

    Args:
        paths: local paths or URIs, at least two.
        out: the new file; it appears once it is complete.
        allow_links: folders besides the files' own that their links may lead into.
        env_from: the one of `paths` whose environment (`env_args`) is kept; None: they agree.
        progress: called with the number of demos done and of all demos.

    Raises:
        ConfigError: the paths are too few, repeat each other, or `env_from` is none of them.
        DatasetError: a file cannot be read, or its demos have other arrays or another environment.
        OutputError: the new file exists, or cannot be written.
    """
    check_new(out)
    if len(paths) < 2:
        raise ConfigError("merging takes two datasets or more")
    if env_from is not None and env_from not in paths:
        raise ConfigError(
            f"--env-from names '{env_from}', which is none of the datasets"
            + did_you_mean(env_from, paths)
        )
    sources = _sources(paths, allow_links)
    names = dict(zip(paths, sources, strict=True))
    env_args = _environment(sources, None if env_from is None else names[env_from])
    attrs, notes = _attributes(sources)
    total = sum(source.meta.num_demos for source in sources)
    members: dict[str, list[str]] = {}
    with writing_file(out, replace=False) as (new, check):
        data = new.create_group("data")
        done = 0
        for source in sources:
            copies: dict[str, str] = {}
            with open_dataset(source.file) as reader:
                for name in source.meta.demos:
                    demo = reader.demo(name)
                    if demo is None:
                        raise DatasetError(
                            f"{reader}: demo '{name}' is gone, as the file was changed: start "
                            "again when nothing writes it any more"
                        )
                    copies[name] = f"demo_{done}"
                    group, lost = copy_demo(demo, data, copies[name])
                    group.attrs["num_samples"] = demo.length()
                    notes += [f"{source.meta.path}: {complaint}" for complaint in lost]
                    done += 1
                    if progress is not None:
                        progress(done, total)
            _collect(members, source, copies)
        shared = set.intersection(*(set(source.meta.filter_keys) for source in sources))
        for key in sorted(shared - members.keys()):
            members[key] = [name for source in sources for name in members[_key(source, key)]]
        writer = DatasetWriter(data, check)
        writer.attrs, writer.num_transitions = attrs, sum(s.meta.num_transitions for s in sources)
        writer.finish(env_args, new)
        for key in [key for key, chosen in members.items() if not chosen]:
            notes.append(f"left out filter key '{key}', which holds no demos")
            del members[key]
        for key, chosen in sorted(members.items()):
            put_mask(new.require_group("mask"), key, chosen)
    return MergedDataset(
        Path(out),
        done,
        writer.num_transitions,
        {key: len(chosen) for key, chosen in sorted(members.items())},
        tuple(notes),
    )


def _key(source: _Source, key: str) -> str:
    return f"{source.name}_{key}"


def _collect(members: dict[str, list[str]], source: _Source, copies: Mapping[str, str]) -> None:
    """Takes up the filter keys of a file."""
    members[source.name] = list(copies.values())
    for key, names in source.meta.filter_keys.items():
        absent = [name for name in names if name not in copies]
        if absent:
            raise DatasetError(
                f"dataset '{source.meta.path}': filter key '{key}' names demo '{absent[0]}', which"
                " is not in the file: raymimic dataset repair writes a file without it"
            )
        members[_key(source, key)] = [copies[name] for name in names]


def _sources(paths: Sequence[str], allow_links: Sequence[str | Path]) -> list[_Source]:
    """Looks at all files, and makes sure that their demos have the same arrays."""
    comparison = _Comparison()
    sources = []
    files = [DatasetFile.locate(path, allow_links) for path in paths]
    if len({file.path.resolve() for file in files}) < len(files):
        raise ConfigError("a dataset is named twice: name each once")
    stems = Counter(file.path.stem for file in files)
    # Files of one name in several folders are told apart by their place among the arguments.
    own = [
        file.path.stem if stems[file.path.stem] == 1 else f"{file.path.stem}-{number}"
        for number, file in enumerate(files, 1)
    ]
    for file, name in zip(files, file_names(own).values(), strict=True):
        meta = read_metadata(file.path, allow_links, comparison.look)
        if meta.problems or not meta.demos:
            problem = meta.problems[0] if meta.problems else f"dataset '{file.path}' has no demos"
            raise DatasetError(f"{problem} (raymimic dataset validate lists all that is wrong)")
        if comparison.fault is not None:
            raise comparison.fault
        sources.append(_Source(file, name, meta))
    return sources


class _Comparison:
    """Compares the arrays of demos, as far as trainings read them.

    Attributes:
        fault: the first difference.
    """

    def __init__(self) -> None:
        self.fault: DatasetError | None = None
        self._first: dict[str, _Form] | None = None
        self._where = ""

    def look(self, demo: DemoReader, length: int, items: dict[str, h5py.Dataset]) -> None:
        """Compares a demo with the first one."""
        if self.fault is None:
            try:
                self._look(demo, items)
            except DatasetError as error:
                self.fault = error

    def _look(self, demo: DemoReader, items: dict[str, h5py.Dataset]) -> None:
        found: dict[str, _Form] = {}
        for name, item in items.items():
            if name.startswith(("obs/", "next_obs/")) or name in _COMPARED:
                shape, dtype, _ = demo.reader.row_of(item, f"{demo}: '{name}'")
                found[name] = (shape, len(shape) == 3 and dtype == np.uint8)
        if self._first is None:
            self._first, self._where = found, str(demo)
            return
        lacking, more = self._first.keys() - found.keys(), found.keys() - self._first.keys()
        if lacking or more:
            clauses = [f"lacks {_listed(lacking)}"] if lacking else []
            clauses += [f"has {_listed(more)} besides"] if more else []
            raise DatasetError(
                f"{demo} {' and '.join(clauses)}, compared with {self._where}: all demos of a file"
                " must have the same arrays; add them, or leave them out of both"
            )
        for name, form in found.items():
            if form != self._first[name]:
                raise DatasetError(
                    f"{demo}: rows of '{name}' are {_shown(form)}, and"
                    f" {_shown(self._first[name])} in {self._where}: convert one"
                )


def _listed(names: set[str]) -> str:
    shown = [f"'{name}'" for name in sorted(names)]
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more


def _shown(form: _Form) -> str:
    return f"{list(form[0])}{' of uint8' if form[1] else ''}"


def _environment(sources: Sequence[_Source], chosen: _Source | None) -> dict[str, Any]:
    """The environment of all files.

    Raises:
        DatasetError: they differ, and none is chosen.
    """
    first = chosen or sources[0]
    for source in sources:
        difference = _difference(first.meta.env_meta, source.meta.env_meta)
        if chosen is None and difference is not None:
            key, one, other = difference
            raise DatasetError(
                f"dataset '{source.meta.path}' was recorded in another environment: {key} of"
                f" env_args is {other!r:.200}, and {one!r:.200} in '{first.meta.path}';"
                " --env-from FILE says whose environment to keep"
            )
    return first.meta.env_meta


def _difference(one: Any, other: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first entry in which two nested objects differ, and both values."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return None if one == other else (f"'{key}'" if key else "all", one, other)
    for name in sorted({*one, *other}):
        inner = f"{key}.{name}".lstrip(".")
        found = _difference(one.get(name), other.get(name), inner)
        if found is not None:
            return found
    return None


def _attributes(sources: Sequence[_Source]) -> tuple[dict[str, Any], list[str]]:
    """The attributes of `data` in which all files agree, and a sentence about the others."""
    attrs = [source.meta.attrs for source in sources]
    agreed = {
        key: value
        for key, value in attrs[0].items()
        if all(key in other and other[key] == value for other in attrs)
    }
    rest = sorted({key for other in attrs for key in other} - agreed.keys())
    notes = [f"left out attributes in which the files differ: {', '.join(rest)}"] if rest else []
    return agreed, notes
