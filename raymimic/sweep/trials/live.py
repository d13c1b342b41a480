"""The progress of a sweep on the terminal, or in a log."""

import sys
import time
from collections import Counter
from collections.abc import Collection
from typing import IO

from raymimic.sweep.outcome.result import TrialResult
from raymimic.sweep.outcome.table import table, table_lines
from raymimic.sweep.spec.sweep_spec import SweepSpec
from raymimic.terminal import cut, duration, readable, size_of, write

# Interval between two drawings on a terminal.
_INTERVAL_S = 1.0
# Interval between two lines of progress in a log.
_PLAIN_INTERVAL_S = 30.0
# Most running trials that such a line names.
_NAMED = 4
_ROWS = 12
_RESAMPLES = 200


class LiveTable:
    """Shows progress: a table below all other lines of a terminal, or lines in a log.

    The cursor rests above the table, on an empty line. So the lines that other loggers or processes
    print stay, and the next drawing begins below them.

    Args:
        spec: the sweep.
        quiet: print nothing.
        stream: gets the lines; None: standard output.
    """

    def __init__(self, spec: SweepSpec, quiet: bool, stream: IO[str] | None = None) -> None:
        self._spec, self._quiet = spec, quiet
        self._stream = stream or sys.stdout
        self._live = not quiet and self._stream.isatty()
        self._drawn = False
        self._begin = self._time = time.monotonic()
        self._epochs: dict[str, int] = {}  # epochs done, by trial
        self._before: dict[str, int] = {}  # epochs done before the trial's process started

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            self.clear()
            write(self._stream, f"{text}\n")

    def began(self, result: TrialResult) -> None:
        """Logs that a trial (re)started; on a terminal the table shows it."""
        if not self._live:
            self.line(f"{'going on' if result.curve else 'started'}: {self._name(result)}")

    def reached(self, trial_id: str, epoch: int, new: bool) -> None:
        """Notes how far a trial is.

        Args:
            trial_id: the trial.
            epoch: the last epoch that it reported.
            new: whether the present process trained this epoch; else it comes from a checkpoint.
        """
        self._epochs[trial_id] = max(epoch, self._epochs.get(trial_id, 0))
        if not new:
            self._before[trial_id] = epoch

    def ended(self, result: TrialResult) -> None:
        """Prints how a trial ended."""
        best = "no score" if result.best is None else f"best {readable(result.best)}"
        if result.last is not None:
            best += f", last {readable(result.last)}"
        text = f"{result.status}: {self._name(result)}, {best}"
        self.line(f"{text} ({result.error})" if result.error else text)

    def show(self, results: Collection[TrialResult]) -> None:
        """Draws the table, or prints a line of progress, at most once an interval."""
        interval = _INTERVAL_S if self._live else _PLAIN_INTERVAL_S
        if self._quiet or time.monotonic() - self._time < interval:
            return
        self._time = time.monotonic()
        running = [result for result in results if result.status == "running"]
        if not self._live:
            trials = map(self._trial_progress, running[:_NAMED])
            self.line(" | ".join([self._progress(results), *trials]))
            return
        columns, rows = size_of(self._stream)
        lines = [self._progress(results), *map(self._trial_progress, running[: rows // 3])]
        settings = table(results, self._spec.mode, self._spec.seeds, resamples=_RESAMPLES)
        # One line each for the cursor, the table's head and the count of omitted settings.
        limit = max(1, min(_ROWS, rows - len(lines) - 3))
        lines += table_lines(self._spec, settings, limit)
        lines = [cut(line, columns - 1) for line in lines[: rows - 1]]
        # Each line erases the rest of the line it replaces: erasing all first would flicker.
        drawn = "".join(f"\x1b[K\n{line}" for line in lines)
        write(self._stream, f"{drawn}\x1b[J\r\x1b[{len(lines)}A")
        self._drawn = True

    def clear(self) -> None:
        """Takes the table off the terminal."""
        if self._drawn:
            write(self._stream, "\x1b[J")
            self._drawn = False

    def _name(self, result: TrialResult) -> str:
        return f"{self._spec.name_of(result.setting)}, seed {result.seed}"

    def _trial_progress(self, result: TrialResult) -> str:
        """How far a running trial is."""
        epoch = self._epochs.get(result.trial_id, 0)
        return f"{self._name(result)}: epoch {epoch}/{self._num_epochs(result)}"

    def _progress(self, results: Collection[TrialResult]) -> str:
        """How far the sweep is, and the time left if trials go on as fast."""
        count = Counter(result.status for result in results)
        states = [f"{count[status]} {status}" for status in sorted({*count, "running"})]
        waiting = self._spec.num_trials - len(results)
        spent = time.monotonic() - self._begin
        parts = [f"{', '.join(states)} of {self._spec.num_trials} trials", duration(spent)]
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
