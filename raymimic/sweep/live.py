"""What a person sees of a sweep while it runs."""

import sys
import time
from collections import Counter
from collections.abc import Collection
from typing import IO

from raymimic.sweep.result import TrialResult
from raymimic.sweep.spec import SweepSpec
from raymimic.sweep.table import number, table, table_lines

# Between two drawings on a terminal.
_INTERVAL_S = 0.5
_ROWS = 12
_RESAMPLES = 200


class LiveTable:
    """A table of settings that is drawn over itself on a terminal; elsewhere a line a trial.

    Args:
        spec: the sweep.
        quiet: print nothing.
        stream: where lines are printed.
    """

    def __init__(self, spec: SweepSpec, quiet: bool, stream: IO[str] | None = None) -> None:
        self._spec, self._quiet = spec, quiet
        self._stream = stream or sys.stdout
        self._live = not quiet and self._stream.isatty()
        self._drawn = 0
        self._time = float("-inf")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        if not self._quiet:
            self._clear()
            print(text, file=self._stream, flush=True)

    def ended(self, result: TrialResult) -> None:
        """Says how a trial ended."""
        best = "no score" if result.best is None else f"best {number(result.best)}"
        if result.last is not None:
            best += f", last {number(result.last)}"
        text = f"{result.status}: {self._spec.name_of(result.setting)}, seed {result.seed}, {best}"
        self.line(f"{text} ({result.error})" if result.error else text)

    def show(self, results: Collection[TrialResult]) -> None:
        """Draws the table, at most twice a second."""
        if not self._live or time.monotonic() - self._time < _INTERVAL_S:
            return
        self._time = time.monotonic()
        lines = self._lines(results)
        self._clear()
        self._stream.write("".join(f"{line}\n" for line in lines))
        self._stream.flush()
        self._drawn = len(lines)

    def clear(self) -> None:
        """Takes the table off the terminal."""
        self._clear()

    def _lines(self, results: Collection[TrialResult]) -> list[str]:
        count = Counter(result.status for result in results)
        known = ", ".join(f"{many} {status}" for status, many in sorted(count.items()))
        lines = [f"{known} of {self._spec.num_trials} trials"]
        rows = table(results, self._spec.mode, self._spec.seeds, resamples=_RESAMPLES)
        return lines + table_lines(rows, self._spec.labels, _ROWS)

    def _clear(self) -> None:
        if self._drawn:
            self._stream.write(f"\x1b[{self._drawn}A\x1b[J")
            self._drawn = 0
