"""A training's messages to the user: one live line on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from pathlib import Path
from typing import IO

from raymimic.credentials import masked
from raymimic.errors import OutputError
from raymimic.terminal import LiveLine, duration, readable, write

# Least time between two plain lines about epochs, and between signs of life within one.
_PLAIN_INTERVAL_S = 5.0
_SIGN_OF_LIFE_S = 60.0


class ProgressReporter:
    """Prints a training's progress.

    Args:
        num_epochs: epochs of the whole training.
        log_file: gets every line too, with its time; None for no log.
        stream: where lines are printed; standard output unless given.
        quiet: print nothing; the log file is written all the same.
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
        self._quiet = quiet
        self._live = LiveLine(self._stream) if not quiet and self._stream.isatty() else None
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
        self._last_plain = float("-inf")
        self._phase = ""
        self._phase_begin = self._phase_shown = 0.0
        self._begin: tuple[float, int] | None = None
        self._steps_per_epoch = self._step = 0
        self._losses: dict[str, float] = {}
        self._last_return = ""
        self._steps_per_s = 0.0
        self._warned: set[str] = set()

    def line(self, text: str) -> None:
        """Prints a line that stays, without credentials of URIs."""
        text = masked(text)
        self._write_log(text)
        self._print(text)

    def warn(self, text: str) -> None:
        """Prints a warning, unless it was printed before."""
        if text not in self._warned:
            self._warned.add(text)
            self.line(f"warning: {text}")

    def phase(self, text: str, state: str = "") -> None:
        """Names the task that lasts until training begins; call it again while it lasts.

        On a terminal the live line counts its seconds. Elsewhere it is one line, and another one
        each minute.

        Args:
            text: such as `starting Ray`.
            state: how far the task is.
        """
        now = time.monotonic()
        if text != self._phase:
            self._phase, self._phase_begin, self._phase_shown = text, now, float("-inf")
        spent = now - self._phase_begin
        if now - self._phase_shown < (1.0 if self._live else _SIGN_OF_LIFE_S):
            return
        self._phase_shown = now
        line = f"{text}{state and f' ({state})'} …"
        line += f" {duration(spent)}" if spent >= 1.0 else ""
        if self._live is not None:
            self._live.show(line)
        else:
            self.line(line)

    def started(self, epoch: int, steps_per_epoch: int) -> None:
        """Notes that training goes on after an epoch, to estimate the remaining time."""
        self._steps_per_epoch = steps_per_epoch
        self._step = epoch * steps_per_epoch
        self._begin = (time.monotonic(), self._step)
        self._last_plain = float("-inf")

    @property
    def begun(self) -> bool:
        """Whether the workers have loaded data and model, and training has begun."""
        return self._begin is not None

    def epoch(
        self,
        epoch: int,
        step: int,
        losses: dict[str, float],
        steps_per_s: float,
        told: bool = False,
    ) -> None:
        """Shows that an epoch is done.

        Args:
            epoch: its number.
            step: gradient steps since the start of the training.
            losses: by a short name, such as `loss` and `validation`.
            steps_per_s: gradient steps per second.
            told: whether an earlier process has shown it.
        """
        self._losses, self._steps_per_s = losses, steps_per_s
        if told:
            return
        text = self._describe(epoch, step)
        self._write_log(text)
        if self._live is not None:
            self._live.show(text)
        elif self._is_due(_PLAIN_INTERVAL_S) or epoch == self._num_epochs:
            self._print_plain(text)

    def within(self, epoch: int, step: int, steps_per_s: float) -> None:
        """Shows a sign of life within an epoch: at once on a terminal, each minute elsewhere.

        Args:
            epoch: its number.
            step: gradient steps since the start of the training.
            steps_per_s: gradient steps per second.
        """
        self._steps_per_s = steps_per_s
        text = self._describe(epoch, step)
        if self._live is not None:
            self._live.show(text)
        elif self._last_plain == float("-inf"):
            self._last_plain = time.monotonic()
        elif self._is_due(_SIGN_OF_LIFE_S):
            self._write_log(text)
            self._print_plain(text)

    def evaluated(self, epoch: int, summary: str, told: bool = False) -> None:
        """Shows the result of an evaluation, unless an earlier process has."""
        self._last_return = summary
        if told:
            return
        self.line(f"evaluated epoch {epoch}: {summary}")

    def close(self) -> None:
        """Ends the live line and the log."""
        if self._live is not None:
            self._live.clear()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _describe(self, epoch: int, step: int) -> str:
        parts = [f"epoch {epoch}/{self._num_epochs}", f"step {step}"]
        parts.append(f"{self._steps_per_s:.0f} steps/s")
        # Epochs arrive with their commit, when the steps may be further on.
        self._step = max(self._step, step)
        if self._begin is not None and self._step > self._begin[1]:
            rate = (time.monotonic() - self._begin[0]) / (self._step - self._begin[1])
            left = self._num_epochs * self._steps_per_epoch - self._step
            parts.append(f"{duration(rate * left)} left")
        parts += [f"{name} {readable(value)}" for name, value in self._losses.items()]
        if self._last_return:
            parts.append(self._last_return)
        return " | ".join(parts)

    def _is_due(self, interval_s: float) -> bool:
        return time.monotonic() - self._last_plain >= interval_s

    def _print_plain(self, text: str) -> None:
        self._last_plain = time.monotonic()
        self._print(text)

    def _print(self, text: str) -> None:
        if not self._quiet:
            if self._live is not None:
                self._live.clear()
            write(self._stream, f"{text}\n")

    def _write_log(self, text: str) -> None:
        if self._log is None:
            return
        try:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        except OSError as error:
            full, self._log = self._log, None
            with contextlib.suppress(OSError):
                full.close()
            raise OutputError(
                f"cannot write the log '{full.name}': {error.strerror or error}; make room there"
            ) from error
