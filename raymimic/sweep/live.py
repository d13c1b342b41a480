"""What a person sees of a sweep while it runs."""

import os
import sys
import time
from collections import Counter
from collections.abc import Collection
from typing import IO

from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.table import number, table, table_lines
from raymimic.training.progress import duration

# Between two drawings on a terminal.
_INTERVAL_S = 1.0
# Between two lines of progress in a log.
_PLAIN_INTERVAL_S = 30.0
# Running trials of which such a line tells.
_NAMED = 4
_ROWS = 12
_RESAMPLES = 200


class LiveTable:
    """How far a sweep is: a table below all other lines of a terminal, lines in a log.

    The cursor rests above the table, on an empty line. So whatever another logger or process prints
    stays, and the next drawing begins below it.

    Args:
        spec: the sweep.
        quiet: print nothing.
        stream: where lines are printed.
    """

    def __init__(self, spec: SweepSpec, quiet: bool, stream: IO[str] | None = None) -> None:
        self._spec, self._quiet = spec, quiet
        self._stream = stream or sys.stdout
        self._live = not quiet and self._stream.isatty()
        self._drawn = False
        self._begin = self._time = time.monotonic()
        self._epochs: dict[str, int] = {}  # that a trial has behind it
        self._before: dict[str, int] = {}  # of these, what it had when its process started

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            self.clear()
            print(text, file=self._stream, flush=True)

    def began(self, result: TrialResult) -> None:
        """Says in a log that a trial has a process, perhaps again; the table shows it anyway."""
        if not self._live:
            self.line(f"{'going on' if result.curve else 'started'}: {self._name(result)}")

    def reached(self, trial_id: str, epoch: int, new: bool) -> None:
        """Notes how far a trial is.

        Args:
            trial_id: the trial.
            epoch: the last one that it has told of.
            new: whether it was trained since the trial's process started, rather than read from a
                checkpoint.
        """
        self._epochs[trial_id] = max(epoch, self._epochs.get(trial_id, 0))
        if not new:
            self._before[trial_id] = epoch

    def ended(self, result: TrialResult) -> None:
        """Says how a trial ended."""
        best = "no score" if result.best is None else f"best {number(result.best)}"
        if result.last is not None:
            best += f", last {number(result.last)}"
        text = f"{result.status}: {self._name(result)}, {best}"
        self.line(f"{text} ({result.error})" if result.error else text)

    def show(self, results: Collection[TrialResult]) -> None:
        """Draws the table, or prints a line of progress; not more often than anyone can read it."""
        interval = _INTERVAL_S if self._live else _PLAIN_INTERVAL_S
        if self._quiet or time.monotonic() - self._time < interval:
            return
        self._time = time.monotonic()
        running = [result for result in results if result.status == "running"]
        if not self._live:
            self.line(" | ".join([self._progress(results), *map(self._of_one, running[:_NAMED])]))
            return
        columns, rows = os.get_terminal_size(self._stream.fileno())
        columns, rows = columns or 80, rows or 24  # some terminals do not tell
        lines = [self._progress(results), *map(self._of_one, running[: rows // 3])]
        settings = table(results, self._spec.mode, self._spec.seeds, resamples=_RESAMPLES)
        # One line each for the cursor, the table's head and the number of settings left out.
        limit = max(1, min(_ROWS, rows - len(lines) - 3))
        lines += table_lines(self._spec, settings, limit)
        lines = [_cut(line, columns - 1) for line in lines[: rows - 1]]
        # Each line erases the rest of the one that it replaces: erasing all first would flicker.
        drawn = "".join(f"\x1b[K\n{line}" for line in lines)
        self._stream.write(f"{drawn}\x1b[J\r\x1b[{len(lines)}A")
        self._stream.flush()
        self._drawn = True

    def clear(self) -> None:
        """Takes the table off the terminal."""
        if self._drawn:
            self._stream.write("\x1b[J")
            self._stream.flush()
            self._drawn = False

    def _name(self, result: TrialResult) -> str:
        return f"{self._spec.name_of(result.setting)}, seed {result.seed}"

    def _of_one(self, result: TrialResult) -> str:
        """How far a running trial is."""
        epoch = self._epochs.get(result.trial_id, 0)
        return f"{self._name(result)}: epoch {epoch}/{self._num_epochs(result)}"

    def _progress(self, results: Collection[TrialResult]) -> str:
        """How far all is, and how long it will take if trials go on as fast."""
        count = Counter(result.status for result in results)
        known = [f"{count[status]} {status}" for status in sorted({*count, "running"})]
        waiting = self._spec.num_trials - len(results)
        spent = time.monotonic() - self._begin
        parts = [f"{', '.join(known)} of {self._spec.num_trials} trials", duration(spent)]
        trained = sum(self._epochs.values()) - sum(self._before.values())
        if trained > 0:
            left = waiting * int(self._spec.base_config["train"]["num_epochs"]) + sum(
                self._num_epochs(result) - self._epochs.get(result.trial_id, 0)
                for result in results
                if result.status == "running"
            )
            parts.append(f"{duration(spent / trained * left)} left")
        return " | ".join(parts)

    def _num_epochs(self, result: TrialResult) -> int:
        whole: int = self._spec.base_config["train"]["num_epochs"]
        return int(result.setting.get("train.num_epochs", whole))


def _cut(line: str, width: int) -> str:
    """A line that takes no second row of the terminal."""
    return line if len(line) <= width else line[: max(width - 1, 0)] + "…"
