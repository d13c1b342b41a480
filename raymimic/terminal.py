"""Lines and numbers for people: written to streams that may be closed, as wide as the terminal."""

import contextlib
import errno
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Between two lines about long work in a log [s].
_LOG_PAUSE_S = 30.0


def duration(seconds: float) -> str:
    """A time span for people, such as `2 h 05 min`, `3 min 07 s` or `12 s`."""
    seconds = round(max(seconds, 0.0))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


def readable(value: float | None) -> str:
    """A return, a loss or another score for people, with the decimals that matter at its size.

    Args:
        value: None, NaN and infinities are `-`.
    """
    if value is None or not math.isfinite(value):
        return "-"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.3g}"


def counted(number: int, thing: str) -> str:
    """Writes a number of things, such as `1 demo` and `1,000 demos`.

    Args:
        number: at least 0.
        thing: the name of one, whose plural ends in an s.
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def readable_bytes(size: int) -> str:
    """A number of bytes for people, such as `1.5 GB`."""
    unit, name = next((u for u in ((1e9, "GB"), (1e6, "MB")) if size >= u[0]), (1e3, "kB"))
    return f"{size / unit:,.1f} {name}"


def shown(path: str | Path) -> str:
    """A path for people: relative if it lies in the current folder; URIs stay as they are."""
    text = str(path)
    if "://" in text:
        return text
    try:
        return str(Path(text).relative_to(Path.cwd()))
    except (OSError, ValueError):  # the current folder may be gone
        return text


def write(stream: IO[str], text: str) -> None:
    """Writes to a stream and flushes it; ignores a terminal that has been closed.

    Args:
        stream: such as a terminal.
        text: the text.
    """
    try:
        stream.write(text)
        stream.flush()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        write_to_nowhere(stream.fileno())


def write_to_nowhere(fd: int) -> None:
    """Discards everything that is written to a file descriptor from now on."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), fd)


def size_of(stream: IO[str]) -> tuple[int, int]:
    """Columns and rows of a terminal, as the user has sized it by now."""
    try:
        columns, rows = os.get_terminal_size(stream.fileno())
    except OSError:  # closed, or no real terminal
        columns = rows = 0
    usual = shutil.get_terminal_size()  # some terminals have no size
    return columns or usual.columns, rows or usual.lines


def cut(line: str, width: int) -> str:
    """Cuts a line, so that it takes one row of the terminal."""
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"


class LiveLine:
    """The last line of a terminal, replaced again and again; nothing elsewhere.

    Args:
        stream: where it is shown, if that is a terminal.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shows = stream.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        """Replaces the line; a text wider than the terminal is cut."""
        if self._shows:
            text = cut(text, size_of(self._stream)[0] - 1)
            write(self._stream, "\r" + text.ljust(self._width))
            self._width = len(text)

    def clear(self) -> None:
        """Takes the line off the terminal, and the cursor to its beginning."""
        if self._width:
            write(self._stream, "\r" + " " * self._width + "\r")
            self._width = 0


class Counting:
    """Tells how far long work is: by a live line after a second, elsewhere by a line now and then.

    Args:
        verb: such as `looked at`.
        things: the name of the things that are counted.
    """

    def __init__(self, verb: str, things: str) -> None:
        self._verb, self._things = verb, things
        self._line = LiveLine(sys.stderr)
        self._pause = 1.0 if sys.stderr.isatty() else _LOG_PAUSE_S
        self._next = time.monotonic() + self._pause

    def __call__(self, done: int, total: int | None) -> None:
        """Counts.

        Args:
            done: things that are done.
            total: of so many; None: not known.
        """
        if done == total:
            self._line.clear()
        elif time.monotonic() > self._next:
            self._next = time.monotonic() + self._pause
            of = f" of {total:,}" if total is not None else ""
            text = f"{self._verb} {done:,}{of} {self._things}"
            if sys.stderr.isatty():
                self._line.show(text)
            else:
                write(sys.stderr, f"{text}\n")

    def clear(self) -> None:
        """Takes the live line off the terminal."""
        self._line.clear()


@contextlib.contextmanager
def doing(text: str) -> Iterator[None]:
    """Names a task on the terminal while it lasts.

    Args:
        text: such as `reading the config`.
    """
    line = LiveLine(sys.stderr)
    line.show(f"{text} …")
    try:
        yield
    finally:
        line.clear()


class Once(logging.Filter):
    """Lets each message of a log pass once: several parts of a run may find the same fault."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tells whether the message is new."""
        text = record.getMessage()
        new = text not in self._passed
        self._passed.add(text)
        return new
