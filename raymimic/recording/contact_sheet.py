"""Contact sheets: frames of a dataset's cameras on one page, for a person to look at.

A training does not notice a camera that is flipped or has the name of another one. A person sees it
on a sheet at once. Black, constant and equal frames are also found, and become warnings.
"""

import hashlib
import io
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raymimic.config.base_config import BaseConfig
from raymimic.data.hdf5 import DatasetFile, DatasetReader, DemoReader, open_dataset
from raymimic.data.images import frame_faults, is_picture, objection
from raymimic.errors import DatasetError, printable
from raymimic.recording.augmented import Augmentations, Augmented
from raymimic.recording.painting import CameraPictures, Row, Sheet, Tile, picture
from raymimic.storage import file_names, write_bytes

_DEMOS = 3
_COLUMNS = ("first", "middle", "last")
_MOST_CAMERAS = 32
_MOST_PIXELS = 16_000_000  # of a sheet of several cameras


@dataclass(frozen=True)
class ContactSheets:
    """The pages of a dataset: one, or one for each camera where that would be too large.

    Attributes:
        sheets: the pages by the camera; the name of a page of all cameras is empty.
        warnings: what is wrong with cameras, a sentence each.
        keys: the cameras of each page.
    """

    sheets: dict[str, Sheet]
    warnings: list[str]
    keys: dict[str, list[str]]

    def write(self, path: str) -> list[str]:
        """Writes the pages as PNG, each in one step.

        Args:
            path: path or URI of the only page, ending in `.png`; those of several have the names
                of their cameras in addition.

        Returns:
            The files.

        Raises:
            OutputError: one cannot be written.
        """
        written = []
        names = file_names(self.sheets)
        for key, sheet in self.sheets.items():
            content = io.BytesIO()
            sheet.paint().save(content, format="png")
            written.append(f"{path.removesuffix('.png')}_{names[key]}.png" if key else path)
            write_bytes(written[-1], content.getvalue())
        return written


def contact_sheets(
    file: DatasetFile,
    demos: Sequence[str],
    keys: Mapping[str, str],
    config: BaseConfig | None = None,
    patience_s: float = math.inf,
) -> ContactSheets:
    """Draws the first, middle and last frame of a few demos, for each camera.

    Only these frames are read. The fault of an unreadable frame stands in its place.

    Args:
        file: the dataset.
        demos: names of its demos, of which a few are chosen evenly.
        keys: modality of each observation that is drawn (`is_picture`).
        config: shows the middle frames after each of its randomizers too.
        patience_s: how long to read; frames that come later are left out [s].

    Raises:
        DatasetError: the file cannot be opened, or there is nothing to draw.
    """
    if not keys or not demos:
        raise DatasetError(f"dataset '{file.path}' holds no images")
    last = max(1, min(_DEMOS, len(demos)) - 1)
    chosen = list(dict.fromkeys(demos[i * (len(demos) - 1) // last] for i in range(last + 1)))
    deadline = time.monotonic() + patience_s
    with open_dataset(file) as reader:
        cameras = [
            _Camera(reader, chosen, key, keys[key], config, deadline)
            for key in list(keys)[:_MOST_CAMERAS]
        ]
    _note_equal(cameras)
    warnings = [f"obs/{camera.key} {text}" for camera in cameras for text in camera.warnings()]
    if len(keys) > _MOST_CAMERAS:
        warnings.append(f"{len(keys)} observations are images; {_MOST_CAMERAS} are drawn")
    title = Path(file.path).name
    lines = [f"{len(chosen)} of {len(demos):,} demos, each with its first, middle and last frame"]
    if config is not None:
        lines.append(
            f"the middle frame also after the randomizers of '{config.experiment.name}' "
            f"({config.algo_name}, seed {config.train.seed}), one after the other"
        )
    whole = Sheet(title, lines, [camera.section for camera in cameras])
    found = [printable(warning) for warning in warnings]
    names = [camera.key for camera in cameras]
    if len(cameras) == 1 or math.prod(whole.size) <= _MOST_PIXELS:
        return ContactSheets({"": whole}, found, {"": names})
    sheets = {c.key: Sheet(title, lines, [c.section]) for c in cameras}
    return ContactSheets(sheets, found, {key: [key] for key in names})


@dataclass
class _DrawnFrame:
    """A frame that was drawn.

    Attributes:
        tile: its picture.
        digest: of its values.
        faults: why it is of no use.
        twin: the camera of which it is a copy.
    """

    tile: Tile
    digest: bytes
    faults: list[str]
    twin: str | None = None

    @property
    def notes(self) -> list[str]:
        """All that is wrong with it."""
        return self.faults if self.twin is None else [*self.faults, f"equal to obs/{self.twin}"]


class _Camera:
    """The frames of one observation.

    Args:
        reader: the open dataset.
        demos: names of the demos.
        key: the observation.
        modality: its modality.
        config: names its randomizers; None: there are none.
        deadline: when reading ends.

    Attributes:
        section: of the sheet.
        seen: the frames by demo and number.
    """

    def __init__(
        self,
        reader: DatasetReader,
        demos: Sequence[str],
        key: str,
        modality: str,
        config: BaseConfig | None,
        deadline: float,
    ) -> None:
        self.key, self._modality = key, modality
        self.seen: dict[tuple[str, int], _DrawnFrame] = {}
        self._reader, self._config, self._deadline = reader, config, deadline
        self._augmentations: Augmentations | None = None
        self._lost: list[str] = []
        self.section = CameraPictures(f"obs/{key}", "", list(_COLUMNS), [])
        for number, name in enumerate(demos):
            row = Row(name)
            try:
                self._fill(row, number)
            except DatasetError as error:
                row.fault = self._lose(error)
            self.section.rows.append(row)

    def _fill(self, row: Row, number: int) -> None:
        """Draws the frames of a demo.

        Raises:
            DatasetError: the demo has no such images.
        """
        demo = self._reader.demo(row.label)
        if demo is None:
            raise DatasetError(f"demo '{row.label}' is gone")
        found = demo.numbers(f"obs/{self.key}")
        count, shape = found.shape[0], found.shape[1:]
        row.detail = f"{count:,} frames"
        fault = objection(shape, found.dtype, self._modality)
        if fault or not is_picture(shape, self._modality):
            raise DatasetError(f"{demo}: no {self._modality}: {fault or f'rows {list(shape)}'}")
        if not count:
            raise DatasetError(f"{demo}: no frames")
        if not self.section.detail:
            self._describe(shape, found.dtype)
        middle: NDArray[Any] | None = None
        for index in (0, count // 2, count - 1):
            if (row.label, index) in self.seen:  # of a demo of one or two steps
                row.tiles.append(Tile(None))
                continue
            values, tile = self._frame(demo, index)
            if not found.written:
                tile.notes.append("never written")
            row.tiles.append(tile)
            middle = values if index == count // 2 else middle
        if middle is not None and self._augmentations is not None:
            for result in self._augmentations.apply(middle, number):
                row.tiles.append(_augmented_tile(result, middle.shape))
                self._lost += row.tiles[-1].notes

    def _describe(self, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        """Notes modality, shape and type of the camera, and makes its randomizers."""
        self.section.detail = f"{self._modality} {list(shape)} {dtype.name}"
        if self._config is None:
            return
        if self.key not in self._config.all_modalities:
            self.section.detail += ", not listed in the config"
        self._augmentations = Augmentations(self._config, self.key, shape)
        self.section.columns += self._augmentations.titles
        if self._augmentations.fault:
            self._lost.append(self._augmentations.fault)
            self.section.notes.append(self._augmentations.fault)

    def _lose(self, error: DatasetError) -> str:
        """Notes that a demo or a frame cannot be drawn."""
        text = str(error).removeprefix(f"{self._reader}: ")
        self._lost.append(f"cannot be drawn: {text}")
        return text

    def _frame(self, demo: DemoReader, index: int) -> tuple[NDArray[Any] | None, Tile]:
        caption = f"frame {index:,}"
        if time.monotonic() > self._deadline:
            late = "reading takes too long"
            self._lost.append(f"is not drawn whole: {late}")
            return None, Tile(None, (caption,), [f"left out: {late}"])
        try:
            values = demo.row(f"obs/{self.key}", index)
        except DatasetError as error:
            return None, Tile(None, (caption,), [self._lose(error)])
        values = values.astype(values.dtype.newbyteorder("="))
        image, extent = picture(values)
        captions = (caption,) if extent is None else (caption, _range(extent))
        faults = frame_faults(values)
        tile = Tile(image, captions, list(faults))
        digest = hashlib.sha256(f"{values.shape}{values.dtype}".encode() + values.tobytes())
        self.seen[demo.name, index] = _DrawnFrame(tile, digest.digest(), faults)
        return values, tile

    def warnings(self) -> list[str]:
        """The faults of the camera, a sentence each."""
        counts = Counter(note for seen in self.seen.values() for note in seen.notes)
        told = [f"is {note} in {n} of {len(self.seen)} frames" for note, n in counts.items()]
        if self._is_frozen():
            told.append("is the same in all frames of each demo")
        if lost := list(dict.fromkeys(self._lost)):
            more = f" (the first of {len(lost)} faults)" if len(lost) > 1 else ""
            told.append(f"{lost[0]}{more}")
        return told

    def _is_frozen(self) -> bool:
        """Whether no demo has two frames that differ, though some have several."""
        kinds: dict[str, set[bytes]] = {}
        for (demo, _), seen in self.seen.items():
            kinds.setdefault(demo, set()).add(seen.digest)
        several = len(self.seen) > len(kinds)
        spoiled = any(seen.faults for seen in self.seen.values())
        return several and not spoiled and all(len(digests) == 1 for digests in kinds.values())


def _note_equal(cameras: Sequence[_Camera]) -> None:
    """Notes frames that are those of another camera."""
    first: dict[tuple[str, int, bytes], str] = {}
    for camera in cameras:
        for where, seen in camera.seen.items():
            other = first.setdefault((*where, seen.digest), camera.key)
            if other != camera.key and not seen.faults:
                seen.twin = other
                seen.tile.notes += seen.notes


def _augmented_tile(result: Augmented | str, before: Sequence[int]) -> Tile:
    if isinstance(result, str):
        return Tile(None, (), [result])
    try:
        image, extent = picture(result.values, max(before[:2]))
    except Exception as error:  # the user's own randomizers may make anything of an image
        return Tile(None, (), [f"no picture: {error}"])
    captions = []
    size = result.values.shape[:2]
    if tuple(size) != tuple(before[:2]):
        captions.append(f"{size[0]} × {size[1]}")
    if extent is not None:
        captions.append(_range(extent))
    if result.variants > 1:
        captions.append(f"1 of {result.variants} variants")
    return Tile(image, tuple(captions))


def _range(extent: tuple[float, float]) -> str:
    return f"{extent[0]:.4g} to {extent[1]:.4g}"
