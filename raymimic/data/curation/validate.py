"""Finds every fault of a dataset, while a training stops at the first one.

The checks are those of a training (`layout.py`, `columns.py`), made for each demo and each array.
Faults with which a training still runs are warnings.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from raymimic.data.columns import (
    Column,
    ColumnRequest,
    FloatType,
    column_group,
    cut_off_fault,
    read_column,
    room_for,
)
from raymimic.data.curation.summary import ObservationForm
from raymimic.data.hdf5 import DatasetFile, DatasetReader, DemoReader, open_dataset
from raymimic.data.images import fitting_modality, frame_faults, is_picture
from raymimic.data.layout import checked_column, disagreement, known_length, wanted_arrays
from raymimic.data.metadata import demo_order, env_meta_of, filter_keys, is_of_robosuite
from raymimic.data.reads import NEXT_OBS
from raymimic.data.training_data import ROUNDING
from raymimic.envs.kinds import read_env_meta
from raymimic.errors import DatasetError, RaymimicError
from raymimic.observations.shapes import LANG_EMB_KEY

_MOST_NAMES = 6  # of a gap in the numbers of demos


@dataclass(frozen=True)
class Fault:
    """A fault of a dataset.

    Attributes:
        kind: its sort in a word or two, the same for the same fault of other demos.
        text: the fault and its remedy.
        is_error: whether a training is refused; otherwise the fault is a warning.
        demo: the demo; empty where it concerns the file.
        key: the array, such as `obs/flat`; empty where it concerns none.
    """

    kind: str
    text: str
    is_error: bool
    demo: str = ""
    key: str = ""


@dataclass(frozen=True)
class Validation:
    """The faults of a dataset.

    Attributes:
        path: the file.
        faults: all of them, those of the file first.
        demos: names of all demos, in order of demo number.
        rows: the transitions of each demo that can be told, counted in its arrays.
    """

    path: Path
    faults: tuple[Fault, ...]
    demos: tuple[str, ...] = ()
    rows: dict[str, int] | None = None

    @property
    def errors(self) -> list[Fault]:
        """The faults for which a training is refused."""
        return [fault for fault in self.faults if fault.is_error]

    def to_dict(self) -> dict[str, Any]:
        """The faults as plain values."""
        return {
            "path": str(self.path),
            "trains": not self.errors,
            "demos": len(self.demos),
            "faults": [vars(fault) for fault in self.faults],
        }


@dataclass(frozen=True)
class Demand:
    """The use that a training makes of a file.

    Attributes:
        request: the quantities that it reads.
        filter_keys: the masks whose demos it reads; none: all demos.
        dtype: type of everything that is not an image.
        bounded_actions: whether it is refused for actions beyond [-1, 1].
    """

    request: ColumnRequest
    filter_keys: tuple[str, ...] = ()
    dtype: FloatType = np.float32
    bounded_actions: bool = False


def validate(
    path: str | Path | DatasetFile,
    allow_links: Sequence[str | Path] = (),
    demand: Demand | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Validation:
    """Finds every fault of a dataset; all of its values are read, a demo at a time.

    Args:
        path: local path or URI, or the file that `DatasetFile.locate` found there.
        allow_links: folders besides the file's own that its links may lead into.
        demand: the use that a training makes of it. None: a training is refused if an algorithm
            that reads all of the file's arrays would refuse it; an array that no modality takes,
            and groups that no demo has, are warnings.
        progress: called with the number of demos done and of all demos.

    Raises:
        DatasetError: the file cannot be opened, or holds no demos.
    """
    file = path if isinstance(path, DatasetFile) else DatasetFile.locate(path, allow_links)
    with open_dataset(file) as reader:
        return _Validator(file, reader, demand).validate(progress)


def demo_digest(arrays: Iterable[tuple[str, NDArray[Any]]]) -> bytes:
    """Digest of a demo's arrays, by which copies are found.

    Args:
        arrays: each with its name, in an order that does not depend on the demo.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, values in arrays:
        digest.update(f"{name} {values.shape} {values.dtype.str} ".encode(errors="replace"))
        digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


@dataclass
class _SoundColumns:
    """The columns of a demo that were found sound.

    Attributes:
        columns: by name.
        faulty: names of the others.
    """

    columns: dict[str, Column]
    faulty: set[str]


class _Validator:
    """Looks at all of an open dataset.

    Args:
        file: the dataset.
        reader: the same, open.
        demand: see `validate`.
    """

    def __init__(self, file: DatasetFile, reader: DatasetReader, demand: Demand | None) -> None:
        self._file, self._reader, self._demand = file, reader, demand
        self._faults: list[Fault] = []
        self._seen: dict[str, _SoundColumns] = {}
        self._rows: dict[str, int] = {}
        self._copies: dict[bytes, str] = {}
        self._dtype: FloatType = np.float32 if demand is None else demand.dtype

    def validate(self, progress: Callable[[int, int], None] | None) -> Validation:
        """Looks at the file, then at each demo, then compares them."""
        reader = self._reader
        names = sorted(reader.names(reader.data), key=demo_order)
        demos = []
        for number, name in enumerate(names, 1):
            if progress is not None:
                progress(number, len(names))
            try:
                demo = reader.demo(name)
            except DatasetError as error:
                demos.append(name)
                self._note("link", error, True, name)
                continue
            if demo is None:
                self._note("no demo", f"'data/{name}' is no group, and no demo", False)
                continue
            demos.append(name)
            try:
                self._look(demo)
            except DatasetError as error:
                self._note("demo", error, True, name)
        self._compare()
        of_demos, self._faults = self._faults, []
        self._look_at_file(demos)
        return Validation(
            path=self._file.path,
            faults=tuple(self._restricted([*self._faults, *of_demos])),
            demos=tuple(demos),
            rows=self._rows,
        )

    def _note(
        self, kind: str, text: str | DatasetError, is_error: bool, demo: str = "", key: str = ""
    ) -> None:
        """Takes up a fault; the names of file and demo are left out of its text."""
        plain = str(text).removeprefix(f"{self._reader}: ")
        if demo:
            plain = plain.removeprefix(f"demo '{demo}': ").removeprefix(f"demo '{demo}' ")
            plain = plain.replace(f"lengths differ in demo '{demo}': ", "lengths differ: ")
        self._faults.append(Fault(kind, plain, is_error, demo, key))

    # -- one demo --

    def _look(self, demo: DemoReader) -> None:
        problems: list[str] = []
        items = demo.datasets(problems=problems)
        for problem in problems:
            self._note("link", DatasetError(problem), True, demo.name)
        length = self._length(demo, items)
        if length is None:
            return
        self._rows[demo.name] = length
        seen = self._seen[demo.name] = _SoundColumns({}, set())
        request = self._request(items)
        digest = []
        for key, names in wanted_arrays(request).items():
            values = self._column(demo, key, names, length, request, seen, items)
            if values is not None and key.startswith(("obs/", "actions")):
                digest.append((key, demo_digest([(key, values)])))
        self._look_at_states(demo, items, length)
        self._look_for_copies(demo.name, b"".join(part for _, part in sorted(digest)))

    def _length(self, demo: DemoReader, items: dict[str, h5py.Dataset]) -> int | None:
        """The demo's rows; None where there are none that could be looked at."""
        told = self._reader.attribute(demo.group, "num_samples", str(demo))
        counts = Counter(
            item.shape[0]
            for name, item in items.items()
            if name.startswith(("obs/", "next_obs/")) or name in ("actions", "rewards", "dones")
            if item.shape
        )
        if told is None and counts:
            self._note(
                "num_samples missing",
                "has no attribute 'num_samples', which robomimic needs: write the number of rows"
                " (raymimic dataset repair does)",
                False,
                demo.name,
            )
        whole = isinstance(told, int | float) and float(told).is_integer()
        if len(counts) == 1 and told is not None and (not whole or int(told) not in counts):
            (rows,) = counts
            if not rows:
                raise DatasetError(f"{demo} has no samples; remove it")
            self._note(
                "num_samples wrong",
                f"attribute 'num_samples' is {told!r}, and all arrays have {rows} rows: correct it"
                " (raymimic dataset repair does)",
                True,
                demo.name,
            )
            return int(rows)
        return known_length(demo)

    def _request(self, items: dict[str, h5py.Dataset]) -> ColumnRequest:
        """The quantities that are read of a demo: all that it has, unless a training is meant."""
        if self._demand is not None:
            return self._demand.request
        keys = sorted({n.partition("/")[2] for n in items if n.startswith(("obs/", "next_obs/"))})
        groups = {column_group(name) for name in items} & {"rewards", "dones", NEXT_OBS}
        modalities = {}
        for key in keys:
            item = items.get(f"obs/{key}")
            if item is not None and item.shape:
                shape = tuple(item.shape[1:]) or (1,)
                modalities[key] = fitting_modality(shape, item.dtype) or ""
        return ColumnRequest(
            obs_keys=tuple(keys),
            dataset_keys=("actions", *sorted(groups - {NEXT_OBS})),
            needs=frozenset(groups),
            modalities={key: modality for key, modality in modalities.items() if modality},
            cut_depth=not is_of_robosuite(self._reader),
        )

    def _column(
        self,
        demo: DemoReader,
        key: str,
        names: tuple[str, ...],
        length: int,
        request: ColumnRequest,
        seen: _SoundColumns,
        items: dict[str, h5py.Dataset],
    ) -> NDArray[Any] | None:
        """Looks at one column of a demo; returns its values, if there are any that can be read."""
        own = key.partition("/")[2]
        is_needed = column_group(key) not in {"rewards", "dones", NEXT_OBS} - request.needs
        if not any(name in items for name in names) and (
            column_group(key) in ("rewards", "dones", NEXT_OBS)
            or self._demand is None
            or own == LANG_EMB_KEY  # the training may have it of an instruction
        ):
            if key == "actions":
                text = "has no 'actions': record it again, or remove it"
                self._note("no actions", text, True, demo.name, key)
                seen.faulty.add(key)
            return None
        if key.startswith(f"{NEXT_OBS}/") and f"obs/{own}" not in seen.columns:
            seen.faulty.add(key)  # as its observation is, which may be missing
            return None
        try:
            column, never = checked_column(demo, key, names, length, request, seen.columns)
        except DatasetError as error:
            seen.faulty.add(key)
            is_text = key in items and items[key].dtype.kind not in "biuf"
            self._note("no numbers" if is_text else "array", error, is_needed, demo.name, key)
            return None
        seen.columns[key] = column
        for name in never:
            text = f"'{name}' was never written: it is read as the fill value"
            self._note("never written", text, False, demo.name, name)
        self._look_at_form(demo.name, key, column, items)
        try:
            values = room_for(demo, key, column, length, self._dtype)
            read_column(demo, column, values)
        except DatasetError as error:
            seen.faulty.add(key)
            self._note("values", error, is_needed, demo.name, key)
            return None
        self._look_at_values(demo.name, key, column, values, request)
        return values

    def _look_at_form(
        self, demo: str, key: str, column: Column, items: dict[str, h5py.Dataset]
    ) -> None:
        """Notes images in a form that no modality takes."""
        if key.startswith("obs/") and key in items:
            fault = ObservationForm(column.shape, items[key].dtype).fault
            if fault:
                self._note("image form", f"'{key}' is {fault}", False, demo, key)

    def _look_at_values(
        self,
        demo: str,
        key: str,
        column: Column,
        values: NDArray[Any],
        request: ColumnRequest,
    ) -> None:
        """Notes values that a training reads, but should perhaps not."""
        if key == "actions":
            reach = float(np.abs(values).max())
            if reach > 1 + ROUNDING:
                self._note(
                    "action range",
                    f"'actions' reach {reach:.4g}, and several algorithms act in [-1, 1] alone:"
                    " --set train.action_config.actions.normalization=min_max, or raymimic dataset"
                    " repair --rescale-actions (--clip-actions)",
                    self._demand is not None and self._demand.bounded_actions,
                    demo,
                    key,
                )
        extent = float(values.min()), float(values.max())
        if fault := cut_off_fault(key, column, extent):
            self._note("cut off", fault, False, demo, key)
        modality = request.modalities.get(key.partition("/")[2])
        if not key.startswith("obs/") or not is_picture(column.shape, modality):
            return
        blank = Counter(fault for frame in values for fault in frame_faults(frame))
        for fault, number in blank.items():
            text = f"'{key}' is {fault} in {number} of {len(values)} frames: look at the camera"
            self._note(f"frames {fault}", text, False, demo, key)
        if not blank and len(values) > 1 and bool((values == values[:1]).all()):
            text = f"'{key}' is the same in all {len(values)} frames: look at the camera"
            self._note("frozen", text, False, demo, key)

    def _look_at_states(
        self, demo: DemoReader, items: dict[str, h5py.Dataset], length: int
    ) -> None:
        states = items.get("states")
        if states is not None and states.shape and states.shape[0] != length:
            text = (
                f"'states' has {states.shape[0]} rows, the demo {length} samples: the demo cannot"
                " be played back"
            )
            self._note("states", text, False, demo.name, "states")

    def _look_for_copies(self, demo: str, digest: bytes) -> None:
        first = self._copies.setdefault(digest, demo)
        if first != demo and not self._seen[demo].faulty:
            text = f"has the observations and actions of demo '{first}': remove one"
            self._note("copy", text, False, demo)

    # -- all demos --

    def _compare(self) -> None:
        """Notes columns in which demos differ: the greater part is right."""
        held: dict[str, dict[str, Column]] = {}
        for demo, seen in self._seen.items():
            for key, column in seen.columns.items():
                held.setdefault(key, {})[demo] = column
        for key, columns in sorted(held.items()):
            is_needed = self._is_needed(key)
            forms = Counter((column.shape, column.image) for column in columns.values())
            usual = forms.most_common(1)[0][0]
            there = next(d for d, c in columns.items() if (c.shape, c.image) == usual)
            for demo, column in columns.items():
                where = f"demo '{there}'"
                fault = disagreement(key, column, f"demo '{demo}'", columns[there], where)
                if fault:
                    self._note("form", fault, is_needed, demo, key)
            lacking = [
                demo
                for demo, seen in self._seen.items()
                if key not in seen.columns and key not in seen.faulty
            ]
            if not lacking or (self._demand is not None and key.startswith("obs/")):
                continue
            if 2 * len(columns) > len(self._seen):
                for demo in lacking:
                    text = f"has no '{key}', which other demos have: add it, or remove the demo"
                    self._note("missing", text, is_needed, demo, key)
            else:
                text = (
                    f"'{key}' is in {len(columns)} of {len(self._seen)} demos alone"
                    f" ({_listed(columns)}): add it to the others, or remove it"
                )
                self._note("rare", text, is_needed, key=key)
        if self._demand is None:
            self._faults = [
                replace(fault, is_error=fault.is_error and not self._is_other(fault, held))
                for fault in self._faults
            ]
            if self._seen:
                self._look_for_groups(held)

    @staticmethod
    def _is_other(fault: Fault, held: Collection[str]) -> bool:
        """Whether an array is an observation in no demo, such as texts, which nobody need read."""
        is_observation = fault.key.startswith(("obs/", "next_obs/"))
        return fault.kind == "no numbers" and is_observation and fault.key not in held

    def _is_needed(self, key: str) -> bool:
        """Whether a training is refused if a demo lacks a column."""
        group = column_group(key)
        if self._demand is None or group not in ("rewards", "dones", NEXT_OBS):
            return True
        return group in self._demand.request.needs - {NEXT_OBS}

    def _look_for_groups(self, held: dict[str, dict[str, Column]]) -> None:
        """Notes parts that no demo has."""
        known = {*held, *(key for seen in self._seen.values() for key in seen.faulty)}
        for key in {"rewards", "dones"} - known:
            self._note(
                f"no {key}",
                f"no demo has '{key}', which algorithms that learn from rewards need (bc does not)",
                False,
                key=key,
            )
        if not any(key.startswith("obs/") for key in known):
            demo = self._reader.demo(next(iter(self._seen)))
            has_states = demo is not None and demo.has("states")
            remedy = (
                "they hold simulator states: extract observations from these"
                if has_states
                else "record the demos again"
            )
            self._note("no obs", f"no demo has observations (group 'obs'); {remedy}", True)

    # -- the file --

    def _look_at_file(self, demos: Sequence[str]) -> None:
        reader = self._reader
        self._look_at_environment()
        stated = reader.attribute(reader.data, "total", str(reader))
        total = sum(self._rows.values())
        if stated is None:
            text = "data has no attribute 'total': write the number of transitions"
            self._note("total missing", f"{text} (raymimic dataset repair does)", False)
        elif stated != total:
            text = f"data.attrs['total'] is {stated!r}, and the demos hold {total} transitions"
            self._note("total wrong", f"{text}: correct it (raymimic dataset repair does)", False)
        self._look_at_names(demos)
        self._look_at_masks(demos)
        for path in sorted(reader.linked):
            text = f"reads linked file '{path}': keep it beside this one"
            self._note("linked file", f"{text} (raymimic dataset repair writes one file)", False)
        if not self._seen:
            self._note("no demos", "no demo can be read: record the demos again", True)

    def _look_at_environment(self) -> None:
        where = "data.attrs['env_args']"
        try:
            meta = env_meta_of(self._reader)
            if not meta:
                text = f"{where} is missing: nothing is evaluated unless experiment.env is set"
                self._note("no environment", text, False)
                return
        except DatasetError as error:
            self._note("env_args", error, True)
            return
        try:
            read_env_meta(meta)
        except RaymimicError as error:
            self._note("environment", f"{where}: {error}", False)

    def _look_at_names(self, demos: Sequence[str]) -> None:
        odd = [name for name in demos if not re.fullmatch(r"demo_\d+", name)]
        if odd:
            text = f"names of demos are not of the form demo_0 ({_listed(odd)}): robomimic's tools"
            self._note("names", f"{text} need them so", False)
        numbers = {int(name[5:]) for name in demos if name not in odd and len(name) < 20}
        if numbers and len(numbers) < 1 + max(numbers):
            gaps: list[str] = []
            for number in sorted(numbers):
                if number and number - 1 not in numbers:
                    gaps.append(f"demo_{number - 1}")
            missing = 1 + max(numbers) - len(numbers)
            text = f"{missing} numbers of demos are left out (such as {_listed(gaps)})"
            self._note("gaps", f"{text}: this harms nothing", False)

    def _look_at_masks(self, demos: Sequence[str]) -> None:
        problems: list[str] = []
        masks = filter_keys(self._reader, problems)
        for problem in problems:
            self._note("mask", DatasetError(problem), True)
        known = set(demos)
        for key, names in masks.items():
            what = f"filter key '{key}'"
            if absent := [name for name in names if name not in known]:
                text = f"{what} names {_listed(absent)}, which the file does not hold"
                self._note("mask names", f"{text}: write it again", True, key=f"mask/{key}")
            if not names:
                text = f"{what} holds no demos: remove it"
                self._note("mask empty", text, False, key=f"mask/{key}")
            repeated = [name for name, number in Counter(names).items() if number > 1]
            if repeated:
                text = f"{what} names {_listed(repeated)} more than once: write it again"
                self._note("mask repeats", text, False, key=f"mask/{key}")
            if key == "train" or key.endswith("_train"):
                other = f"{key.removesuffix('train')}valid"
                if both := sorted(set(names) & set(masks.get(other, ())), key=demo_order):
                    text = f"{what} and '{other}' share {_listed(both)}: split the demos again"
                    self._note("masks overlap", text, False, key=f"mask/{key}")

    def _restricted(self, faults: Iterable[Fault]) -> list[Fault]:
        """The faults as they concern the training: those of demos it does not read are warnings."""
        if self._demand is None or not self._demand.filter_keys:
            return list(faults)
        masks = filter_keys(self._reader, [])
        keys = self._demand.filter_keys
        chosen: Collection[str] = {name for key in keys for name in masks.get(key, ())}
        return [
            fault
            if fault.demo in chosen or not (fault.demo or fault.key.startswith("mask/"))
            else replace(fault, is_error=not fault.demo and fault.key.removeprefix("mask/") in keys)
            for fault in faults
        ]


def _listed(names: Iterable[str]) -> str:
    """Some names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
