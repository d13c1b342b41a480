"""What a person sees of a training: one live line on a terminal, plain lines in a log."""

import sys
import time
from pathlib import Path
from typing import IO

from raymimic.errors import OutputError

# Between two plain lines of a training whose epochs are short.
_PLAIN_INTERVAL_S = 5.0


def duration(seconds: float) -> str:
    """A time span for people, such as `2 h 05 min`, `3 min 07 s` or `12 s`."""
    seconds = round(max(seconds, 0.0))
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


class ProgressReporter:
    """Prints a training's progress.

    Args:
        num_epochs: epochs of the whole training.
        log_file: where every line goes too, with its time; nowhere when `None`.
        stream: where lines are printed.
        quiet: print nothing (the log file is written all the same).
    """

    def __init__(
        self,
        num_epochs: int,
        log_file: Path | None = None,
        stream: IO[str] | None = None,
        quiet: bool = False,
    ) -> None:
        self._num_epochs = num_epochs
        self._stream = stream or sys.stdout
        self._live = not quiet and self._stream.isatty()
        self._quiet = quiet
        self._log: IO[str] | None = None
        if log_file is not None:
            try:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                self._log = log_file.open("a", buffering=1)
            except OSError as error:
                raise OutputError(
                    f"cannot write the log '{log_file}': {error.strerror or error}; check its "
                    "permissions"
                ) from error
        self._live_width = 0
        self._last_plain = float("-inf")
        self._begin: tuple[float, int] | None = None
        self._loss: float | None = None
        self._last_return: str = ""
        self._steps_per_s = 0.0

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self._write_log(text)
        if not self._quiet:
            self._clear_live()
            print(text, file=self._stream, flush=True)

    def started(self, epoch: int) -> None:
        """Notes that training goes on after an epoch, which the remaining time is reckoned from."""
        self._begin = (time.monotonic(), epoch)

    def epoch(self, epoch: int, step: int, loss: float | None, steps_per_s: float) -> None:
        """Shows that an epoch is done."""
        self._loss, self._steps_per_s = loss, steps_per_s
        text = self._describe(epoch, step)
        self._write_log(text)
        due = time.monotonic() - self._last_plain >= _PLAIN_INTERVAL_S
        if self._live:
            self._show_live(text)
        elif not self._quiet and (due or epoch == self._num_epochs):
            self._last_plain = time.monotonic()
            print(text, file=self._stream, flush=True)

    def within(self, epoch: int, step: int, steps_per_s: float) -> None:
        """Shows a sign of life from within an epoch (on a terminal only)."""
        self._steps_per_s = steps_per_s
        if self._live:
            self._show_live(self._describe(epoch, step))

    def evaluated(self, epoch: int, summary: str) -> None:
        """Shows what an evaluation found."""
        self._last_return = summary
        self.line(f"evaluated epoch {epoch}: {summary}")

    def close(self) -> None:
        """Ends the live line and the log."""
        self._clear_live()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _describe(self, epoch: int, step: int) -> str:
        parts = [f"epoch {epoch}/{self._num_epochs}", f"step {step}"]
        parts.append(f"{self._steps_per_s:.0f} steps/s")
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4g}")
        if self._last_return:
            parts.append(self._last_return)
        if self._begin is not None and epoch > self._begin[1]:
            spent = time.monotonic() - self._begin[0]
            left = spent / (epoch - self._begin[1]) * (self._num_epochs - epoch)
            parts.append(f"{duration(left)} left")
        return " | ".join(parts)

    def _write_log(self, text: str) -> None:
        if self._log is not None:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _show_live(self, text: str) -> None:
        self._stream.write("\r" + text.ljust(self._live_width))
        self._stream.flush()
        self._live_width = len(text)

    def _clear_live(self) -> None:
        if self._live_width:
            self._stream.write("\r" + " " * self._live_width + "\r")
            self._stream.flush()
            self._live_width = 0
