"""Paints rows of small pictures with labels: the layout of a contact sheet, and nothing else."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

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
_LEAST_COLUMN, _LEAST_WIDTH = 120, 600
_BETWEEN = 40  # of two sections
_ASPECT = 1.4  # width by height of a page
_LINE_HEIGHT = 1.35
_LONGEST_TEXT = 400  # letters; names of strangers' keys may have thousands
_SCAN_SIZE = (256, 160)
_MOST_POINTS = 2000  # of a curve


def picture(
    values: NDArray[np.generic], side: int | None = None
) -> tuple[Image.Image, tuple[float, float] | None]:
    """Turns an image or a scan of a file into a picture.

    Args:
        values: `[H, W, 3]` or `[H, W, 1]`, shown as they are where they are bytes of colour, else
            from the least value, black, to the greatest, white; or `[L, C]`, drawn as C curves.
        side: the longer side of an image with which this one is compared, so that pixels of both
            become equally large; None: its own.

    Returns:
        The picture, enlarged or reduced by a whole factor, and the range of values between black
        and white, or between the lower and the upper end of the curves; None: 0 to 255.
    """
    if values.ndim == 3 and values.shape[2] == 3 and values.dtype == np.uint8:
        return _scaled(Image.fromarray(np.ascontiguousarray(values)), side), None
    numbers = values.astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    share = np.nan_to_num((numbers - low) / ((high - low) or 1.0), posinf=1.0, neginf=0.0)
    if values.ndim == 2:
        return _curves(share), (low, high)
    grey = np.round(255 * share).astype(np.uint8)
    grey = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey
    return _scaled(Image.fromarray(np.ascontiguousarray(grey)), side), (low, high)


def _scaled(image: Image.Image, side: int | None) -> Image.Image:
    """Repeats the pixels of a small picture, and takes means over those of a large one."""
    side = side or max(image.size)
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
class CameraPictures:
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


class _Block:
    """A part of a page: pictures and texts at places within it.

    Args:
        width: of the part, in pixels.

    Attributes:
        height: of all that was placed so far.
        images: by section, row and column, with left, top, right and bottom.
    """

    def __init__(self, width: int) -> None:
        self.width, self.height = width, 0
        self.images: dict[tuple[int, int, int], tuple[Tile, Box]] = {}
        self._texts: list[tuple[int, int, str, _Font, str]] = []

    def text(self, x: int, y: int, text: str, font: _Font, colour: str = INK) -> int:
        """Places a line of text, and returns where it ends below."""
        self._texts.append((x, y, _fitting(text, font, self.width - x), font, colour))
        self.height = max(self.height, y + math.ceil(_LINE_HEIGHT * font.size))
        return y + math.ceil(_LINE_HEIGHT * font.size)

    def fault(self, x: int, y: int, text: str, width: int) -> int:
        """Places a fault on as many lines as it takes, and returns where they end below."""
        for line in _lines(text, _font(12), width):
            y = self.text(x, y, line, _font(12), _ALARM)
        return y

    def tile(self, where: tuple[int, int, int], tile: Tile, x: int, y: int, width: int) -> None:
        """Places a picture and the words below it."""
        if tile.image is not None:
            box = (x, y, x + tile.image.width, y + tile.image.height)
            self.images[where] = tile, box
            y = box[3] + 4
        for caption in tile.captions:
            y = self.text(x, y, _fitting(caption, _font(12), width), _font(12))
        for note in tile.notes:
            y = self.fault(x, y, note, width)
        self.height = max(self.height, y)

    def paint(self, page: Image.Image, left: int, top: int) -> None:
        """Paints everything onto a page."""
        draw = ImageDraw.Draw(page)
        for tile, box in self.images.values():
            x, y, right, bottom = _moved(box, left, top)
            thick = 2 if tile.notes else 1
            outer = (x - thick, y - thick, right + thick - 1, bottom + thick - 1)
            draw.rectangle(outer, outline=_ALARM if tile.notes else _LINE, width=thick)
            assert tile.image is not None
            page.paste(tile.image, (x, y))
        for x, y, text, font, colour in self._texts:
            draw.text((left + x, top + y), text, fill=colour, font=font)


def _moved(box: Box, left: int, top: int) -> Box:
    return box[0] + left, box[1] + top, box[2] + left, box[3] + top


def _section_block(number: int, section: CameraPictures) -> _Block:
    """Places the pictures of a camera, a row for each demo."""
    widths = _column_widths(section)
    block = _Block(max(_LABELS + sum(widths) + _GAP * (len(widths) - 1), _LEAST_WIDTH))
    bold, title = _font(12, bold=True), _font(16, bold=True)
    name = _fitting(section.title, title, block.width * 0.6)
    block.text(math.ceil(title.getlength(name)) + _GAP, 3, section.detail, _font(13), _FAINT)
    y = block.text(0, 0, name, title) + 6
    for note in section.notes:
        y = block.fault(0, y, note, block.width)
    lefts = [_LABELS + sum(widths[:i]) + _GAP * i for i in range(len(widths))]
    for x, width, column in zip(lefts, widths, section.columns, strict=True):
        block.text(x, y, _fitting(column, bold, width), bold, _FAINT)
    y += 20
    for i, row in enumerate(section.rows):
        below = block.text(0, y, _fitting(row.label, bold, _LABELS - _GAP), bold)
        if row.detail:
            block.text(0, below, row.detail, _font(12), _FAINT)
        if row.fault:
            block.fault(_LABELS, y, row.fault, block.width - _LABELS)
        for j, tile in enumerate(row.tiles):
            block.tile((number, i, j), tile, lefts[j], y, widths[j])
        y = block.height + _GAP
    return block


class Sheet:
    """A page of pictures.

    Args:
        title: of the page.
        lines: below the title.
        sections: one below the other, in as many columns as make the page neither long nor wide.

    Attributes:
        size: width and height, in pixels.
        places: left, top, right and bottom of each picture, by section, row and column.
    """

    def __init__(
        self, title: str, lines: Sequence[str], sections: Sequence[CameraPictures]
    ) -> None:
        blocks = [_section_block(i, section) for i, section in enumerate(sections)]
        columns = _columns(blocks)
        width = sum(max(block.width for block in column) for column in columns)
        width += _BETWEEN * (len(columns) - 1)
        head = _Block(width)
        y = head.text(0, 0, title, _font(20, bold=True))
        for line in lines:
            y = head.text(0, y, line, _font(13), _FAINT)
        self._blocks = [(head, _MARGIN, _MARGIN)]
        self.places: dict[tuple[int, int, int], Box] = {}
        left, bottom = _MARGIN, 0
        for column in columns:
            top = _MARGIN + head.height + _BETWEEN // 2
            for block in column:
                self._blocks.append((block, left, top))
                for where, (_, box) in block.images.items():
                    self.places[where] = _moved(box, left, top)
                top += block.height + _BETWEEN
            bottom = max(bottom, top - _BETWEEN)
            left += max(block.width for block in column) + _BETWEEN
        self.size = (width + 2 * _MARGIN, bottom + _MARGIN)

    def paint(self) -> Image.Image:
        """The page."""
        page = Image.new("RGB", self.size, _PAPER)
        draw = ImageDraw.Draw(page)
        for i, (block, left, top) in enumerate(self._blocks):
            if i:
                y = top - _BETWEEN // 4
                draw.line((left, y, left + block.width, y), fill=_LINE)
            block.paint(page, left, top)
        return page


def _columns(blocks: Sequence[_Block]) -> list[list[_Block]]:
    """Deals blocks out to columns, in order, so that the page has about the shape of a screen."""
    options = []
    for count in range(1, len(blocks) + 1):
        room = max(sum(b.height for b in blocks) / count, *(b.height for b in blocks), 0)
        columns: list[list[_Block]] = [[]]
        for block in blocks:
            if columns[-1] and sum(b.height for b in columns[-1]) + block.height > room:
                columns.append([])
            columns[-1].append(block)
        width = sum(max(b.width for b in column) for column in columns)
        height = max(sum(b.height for b in column) for column in columns)
        options.append((abs(math.log(width / height / _ASPECT)), columns))
    return min(options, key=lambda option: option[0])[1]


def _column_widths(section: CameraPictures) -> list[int]:
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
