"""Writes a copy of a dataset without the faults for which a training is refused."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raymimic.data.curation.copying import check_new, copy_attributes, copy_demo
from raymimic.data.curation.masks import put_mask
from raymimic.data.curation.validate import Validation, validate
from raymimic.data.hdf5 import DatasetFile, DatasetReader, DemoReader, open_dataset
from raymimic.data.metadata import filter_keys
from raymimic.data.writer import writing_file
from raymimic.errors import DatasetError

_MENDED = {"num_samples wrong"}  # faults of a demo that do not cost it


@dataclass(frozen=True)
class RepairedDataset:
    """The repaired copy of a dataset.

    Attributes:
        path: of the new file.
        num_demos: its demos.
        num_transitions: their steps.
        changes: the differences from the source, a sentence each.
        left: faults of the new file, none of them an error.
    """

    path: Path
    num_demos: int
    num_transitions: int
    changes: tuple[str, ...]
    left: Validation


def repair(
    path: str | Path,
    out: str | Path,
    allow_links: Sequence[str | Path] = (),
    actions: Literal["clip", "rescale"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RepairedDataset:
    """Writes a copy of a dataset that trains.

    Demos with an error (`validate`) are left out, and arrays that at most half of them have. The
    attributes `num_samples` and `total` are written, filter keys name the demos that are left, and
    links become the arrays that they lead to. Demos keep their names. Nothing else is changed.

    Args:
        path: local path or URI.
        out: the new file; it appears once it is complete.
        allow_links: folders besides the file's own that its links may lead into.
        actions: `clip` puts them into [-1, 1]; `rescale` divides each component that leaves
            [-1, 1] by its greatest magnitude, which the attribute `action_scale` of `data` keeps.
        progress: called with the number of demos done and of all demos.

    Raises:
        DatasetError: the file cannot be opened, or nothing of it trains.
        OutputError: the new file exists, or cannot be written.
    """
    check_new(out)
    file = DatasetFile.locate(path, allow_links)
    found = validate(file, progress=progress)
    dropped: dict[str, str] = {}
    for fault in found.errors:
        if fault.demo and fault.kind not in _MENDED:
            dropped.setdefault(fault.demo, fault.text.partition("; ")[0])
    kept = [name for name in found.demos if name not in dropped]
    if not kept:
        name, reason = next(iter(dropped.items()), ("", found.errors[0].text))
        what = f"demo '{name}': {reason}" if name else reason
        raise DatasetError(f"dataset '{file.path}' cannot be repaired, no demo is sound: {what}")
    changes = [f"left out demo '{name}': {reason}" for name, reason in dropped.items()]
    with open_dataset(file) as reader, writing_file(out, replace=False) as (new, _):
        total = _Copying(reader, found, kept, changes).write(new, actions, progress)
    left = validate(out, progress=progress)
    if left.errors:
        Path(out).unlink()
        fault = left.errors[0]
        raise DatasetError(
            f"dataset '{file.path}' cannot be repaired: {fault.demo and f'demo {fault.demo!r}: '}"
            f"{fault.text}"
        )
    return RepairedDataset(Path(out), len(kept), total, tuple(changes), left)


class _Copying:
    """Copies the sound demos of a dataset.

    Args:
        reader: the dataset.
        found: its faults.
        kept: names of the demos that are copied.
        changes: takes up the differences.
    """

    def __init__(
        self, reader: DatasetReader, found: Validation, kept: list[str], changes: list[str]
    ) -> None:
        self._reader, self._found, self._kept, self._changes = reader, found, kept, changes
        self._rows = found.rows or {}

    def write(
        self, new: Any, actions: str | None, progress: Callable[[int, int], None] | None
    ) -> int:
        """Writes the new file; returns its number of transitions."""
        rare = [fault.key for fault in self._found.errors if fault.kind == "rare"]
        self._changes += [f"left out '{key}', which few demos have" for key in rare]
        data = new.create_group("data")
        scale = self._scale() if actions == "rescale" else None
        clipped: list[str] = []
        for number, name in enumerate(self._kept, 1):
            if progress is not None:
                progress(number, len(self._kept))
            demo = self._demo(name)
            group, lost = copy_demo(demo, data, name, rare)
            self._changes += lost
            if demo.reader.attribute(demo.group, "num_samples", str(demo)) != self._rows[name]:
                self._changes.append(f"demo '{name}': num_samples is {self._rows[name]}")
            group.attrs["num_samples"] = self._rows[name]
            if actions is not None:
                old = self._actions(demo)
                values = np.clip(old, -1, 1) if scale is None else old / scale
                if not np.array_equal(values, old):
                    clipped.append(name)
                    kind = old.dtype if scale is None or old.dtype.kind == "f" else np.float32
                    del group["actions"]
                    group["actions"] = values.astype(kind)
        if clipped:
            how = "clipped to [-1, 1]" if scale is None else "divided by action_scale"
            self._changes.append(f"actions are {how} in {len(clipped)} demos: {', '.join(clipped)}")
        self._write_attributes(data, scale if clipped else None)
        self._write_masks(new)
        return sum(self._rows[name] for name in self._kept)

    def _demo(self, name: str) -> DemoReader:
        demo = self._reader.demo(name)
        if demo is None:
            raise DatasetError(
                f"{self._reader}: demo '{name}' is gone, as the file was changed: start again when "
                "nothing writes it any more"
            )
        return demo

    def _actions(self, demo: DemoReader) -> NDArray[Any]:
        values: NDArray[Any] = self._reader.values(
            demo.numbers("actions").item, f"{demo}: 'actions'"
        )
        return values

    def _scale(self) -> NDArray[np.float64]:
        """Greatest magnitude of each component of the actions `[A]`, at least 1."""
        scale = np.ones(())
        for name in self._kept:
            magnitudes = np.abs(self._actions(self._demo(name)).astype(np.float64))
            scale = np.maximum(scale, magnitudes.max(axis=0))
        return scale

    def _write_attributes(self, data: Any, scale: NDArray[np.float64] | None) -> None:
        reader = self._reader
        total = sum(self._rows[name] for name in self._kept)
        bad = [fault.text for fault in self._found.errors if fault.kind == "env_args"]
        self._changes += [f"left out env_args: {text}" for text in bad]
        leave_out = ["env_args"] if bad else []
        self._changes += copy_attributes(reader, reader.data, data, leave_out)
        stated = reader.attribute(reader.data, "total", str(reader))
        if stated != total:
            self._changes.append(f"total is {total} (was {stated})")
        data.attrs["total"] = total
        if scale is not None:
            before = np.asarray(data.attrs.get("action_scale", 1.0), np.float64)
            data.attrs["action_scale"] = before * scale
            shown = ", ".join(f"{value:.6g}" for value in scale)
            self._changes.append(f"data.attrs['action_scale'] holds the divisors {shown}")

    def _write_masks(self, new: Any) -> None:
        problems: list[str] = []
        masks = filter_keys(self._reader, problems)
        self._changes += [f"left out a filter key: {problem}" for problem in problems]
        kept = set(self._kept)
        for key, names in masks.items():
            left = [name for name in dict.fromkeys(names) if name in kept]
            if len(left) < len(names):
                gone = len(names) - len(left)
                self._changes.append(f"filter key '{key}': {gone} of {len(names)} names left out")
            if left:
                put_mask(new.require_group("mask"), key, left)
            else:
                self._changes.append(f"left out filter key '{key}', which holds no demos")
