"""Paints rows of small pictures with labels: the looks of a contact sheet, and nothing else."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from raymimic.errors import printable
from raymimic.tracking.figures import COLOURS, INK

Box = tuple[int, int, int, int]

_PAPER, _FAINT, _LINE, _ALARM = "white", "#777777", "#dddddd", COLOURS[1]
_MARGIN, _GAP, _LABELS = 24, 14, 150  # pixels; `_LABELS` is the width of the names of rows
_SMALLEST, _LARGEST = 192, 320  # the longer side of a picture, where whole factors allow it
_LEAST_COLUMN = 120
_LINE_HEIGHT = 1.35
_LONGEST_TEXT = 400  # letters; names of strangers' keys may have thousands
_SCAN_SIZE = (256, 160)
_MOST_POINTS = 2000  # of a curve


def picture(values: NDArray[np.generic]) -> tuple[Image.Image, tuple[float, float] | None]:
    """Turns an image or a scan of a file into a picture.

    Args:
        values: `[H, W, 3]` or `[H, W, 1]`, shown as they are where they are bytes of colour, else
            from the least value, black, to the greatest, white; or `[L, C]`, drawn as C curves.

    Returns:
        The picture, enlarged or reduced by a whole factor, and the range of values between black
        and white, or between the lower and the upper end of the curves; None: 0 to 255.
    """
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return _scaled(Image.fromarray(np.ascontiguousarray(values))), None
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    share = np.nan_to_num((numbers - low) / ((high - low) or 1.0), posinf=1.0, neginf=0.0)
    if values.ndim == 2:
        return _curves(share), (low, high)
    grey = np.round(255 * share).astype(np.uint8)
    grey = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey
    return _scaled(Image.fromarray(np.ascontiguousarray(grey))), (low, high)


def _scaled(image: Image.Image) -> Image.Image:
    """Repeats the pixels of a small picture, and takes means over those of a large one."""
    side = max(image.size)
    if side > _LARGEST:
        return image.reduce(math.ceil(side / _LARGEST))
    factor = max(1, _SMALLEST // side)
    width, height = image.size
    return image.resize((factor * width, factor * height), Image.Resampling.NEAREST)


def _curves(share: NDArray[np.float64]) -> Image.Image:
    """Draws the columns of `[L, C]`, 0 to 1, as curves over their rows."""
    fine = 3  # for smooth lines, the picture is drawn larger
    width, height = fine * _SCAN_SIZE[0], fine * _SCAN_SIZE[1]
    image = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(image)
    rows = np.unique(np.linspace(0, len(share) - 1, _MOST_POINTS).astype(int))
    x = rows * (width - 1) / max(1, len(share) - 1)
    for curve, colour in zip(share.T, COLOURS, strict=False):
        y = (height - 1) * (0.95 - 0.9 * curve[rows])
        draw.line(list(zip(x, y, strict=True)), fill=colour, width=fine * 2, joint="curve")
    draw.rectangle((0, 0, width - 1, height - 1), outline=_LINE, width=fine)
    return image.reduce(fine)


@dataclass
class Tile:
    """One picture of a sheet.

    Attributes:
        image: the picture; None: an empty place.
        captions: lines below it.
        notes: faults, below these.
    """

    image: Image.Image | None
    captions: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


@dataclass
class Row:
    """The pictures of one demo.

    Attributes:
        label: name of the demo.
        detail: a few words on it.
        tiles: from left to right.
        fault: why there are no pictures; empty otherwise.
    """

    label: str
    detail: str = ""
    tiles: list[Tile] = field(default_factory=list)
    fault: str = ""


@dataclass
class Section:
    """The pictures of one camera.

    Attributes:
        title: its name.
        detail: a few words on it.
        columns: titles of the columns.
        rows: from top to bottom.
        notes: faults of the whole camera.
    """

    title: str
    detail: str
    columns: list[str]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)


_Font = ImageFont.FreeTypeFont


@cache
def _font(size: int, bold: bool = False) -> _Font:
    """A font of many alphabets, which matplotlib brings along."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


class Sheet:
    """A page of pictures.

    Args:
        title: of the page.
        lines: below the title.
        sections: from top to bottom.

    Attributes:
        size: width and height, in pixels.
        places: left, top, right and bottom of each picture, by section, row and column.
    """

    def __init__(self, title: str, lines: Sequence[str], sections: Sequence[Section]) -> None:
        self.places: dict[tuple[int, int, int], Box] = {}
        self._images: list[tuple[Image.Image, Box]] = []
        self._texts: list[tuple[tuple[int, int], str, _Font, str]] = []
        self._frames: list[tuple[Box, str, Literal["line", "box"]]] = []
        self._widths = [_column_widths(section) for section in sections]
        columns = max((sum(w) + _GAP * len(w) for w in self._widths), default=0)
        self._width = 2 * _MARGIN + max(_LABELS + columns, 600)
        y = _MARGIN + self._text(_MARGIN, _MARGIN, title, _font(20, bold=True))
        for line in lines:
            y += self._text(_MARGIN, y, line, _font(13), _FAINT)
        for number, section in enumerate(sections):
            y = self._section(number, section, y + _GAP)
        self.size = (self._width, y + _MARGIN)

    def _section(self, number: int, section: Section, y: int) -> int:
        """Places a section below y, and returns where it ends."""
        right = self._width - _MARGIN
        self._frames.append(((_MARGIN, y, right, y), _LINE, "line"))
        y += _GAP // 2
        title = _fitting(section.title, _font(16, bold=True), (right - _MARGIN) // 2)
        self._text(_MARGIN, y, title, _font(16, bold=True))
        beside = _MARGIN + math.ceil(_font(16, bold=True).getlength(title)) + _GAP
        y += self._text(beside, y + 3, section.detail, _font(13), _FAINT) + 6
        for note in section.notes:
            y += self._paragraph(_MARGIN, y, note, right - _MARGIN)
        lefts, x = [], _MARGIN + _LABELS
        for width, column in zip(self._widths[number], section.columns, strict=True):
            lefts.append(x)
            shown = _fitting(column, _font(12, bold=True), width)
            self._text(x, y, shown, _font(12, bold=True), _FAINT)
            x += width + _GAP
        y += 20
        for i, row in enumerate(section.rows):
            y = self._row((number, i), row, lefts, y) + _GAP
        return y

    def _row(self, where: tuple[int, int], row: Row, lefts: Sequence[int], y: int) -> int:
        name = _fitting(row.label, _font(13, bold=True), _LABELS - _GAP)
        bottom = y + self._text(_MARGIN, y, name, _font(13, bold=True))
        if row.detail:
            bottom += self._text(_MARGIN, bottom, row.detail, _font(12), _FAINT)
        if row.fault:
            left = _MARGIN + _LABELS
            room = self._width - _MARGIN - left
            return max(bottom, y + self._paragraph(left, y, row.fault, room))
        top = max((tile.image.height for tile in row.tiles if tile.image), default=0)
        for column, (tile, x) in enumerate(zip(row.tiles, lefts, strict=False)):
            width = self._widths[where[0]][column]
            below = y + top + 4
            if tile.image is not None:
                box = (x, y, x + tile.image.width, y + tile.image.height)
                self.places[(*where, column)] = box
                self._images.append((tile.image, box))
                self._frames.append((box, _ALARM if tile.notes else _LINE, "box"))
                below = box[3] + 4
            for caption in tile.captions:
                below += self._text(x, below, _fitting(caption, _font(12), width), _font(12))
            for note in tile.notes:
                below += self._paragraph(x, below, note, width)
            bottom = max(bottom, below)
        return bottom

    def _text(self, x: int, y: int, text: str, font: _Font, colour: str = INK) -> int:
        """Places a line of text, and returns its height."""
        shown = _fitting(text, font, self._width - _MARGIN - x)
        self._texts.append(((x, y), shown, font, colour))
        return math.ceil(_LINE_HEIGHT * font.size)

    def _paragraph(self, x: int, y: int, text: str, width: int) -> int:
        """Places a fault on as many lines as it takes, and returns their height."""
        height = 0
        for line in _lines(text, _font(12), width):
            height += self._text(x, y + height, line, _font(12), _ALARM)
        return height

    def paint(self) -> Image.Image:
        """The page."""
        page = Image.new("RGB", self.size, _PAPER)
        draw = ImageDraw.Draw(page)
        for box, colour, kind in self._frames:
            if kind == "line":
                draw.line(box, fill=colour)
            else:
                left, top, right, bottom = box
                thick = 2 if colour == _ALARM else 1
                outer = (left - thick, top - thick, right + thick - 1, bottom + thick - 1)
                draw.rectangle(outer, outline=colour, width=thick)
        for image, box in self._images:
            page.paste(image, box[:2])
        for place, text, font, colour in self._texts:
            draw.text(place, text, fill=colour, font=font)
        return page


def _column_widths(section: Section) -> list[int]:
    widths = [
        max(_LEAST_COLUMN, min(_LARGEST, math.ceil(_font(12, bold=True).getlength(title))))
        for title in section.columns
    ]
    for row in section.rows:
        for i, tile in enumerate(row.tiles):
            if tile.image is not None:
                widths[i] = max(widths[i], tile.image.width)
    return widths


def _fitting(text: str, font: _Font, width: float) -> str:
    """As much of a text as is not wider than some pixels."""
    text = printable(text[:_LONGEST_TEXT])
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def _lines(text: str, font: _Font, width: float) -> Iterator[str]:
    """Breaks a text into lines of a width; a word that is wider is cut off."""
    line = ""
    for word in printable(text[:_LONGEST_TEXT]).split():
        longer = f"{line} {word}".lstrip()
        if line and font.getlength(longer) > width:
            yield _fitting(line, font, width)
            longer = word
        line = longer
    yield _fitting(line, font, width)
