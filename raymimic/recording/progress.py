"""Shows how much of a dataset has been recorded."""

from __future__ import annotations

import sys

from tqdm import tqdm  # type: ignore[import-untyped]

_MANY = 9999  # from then on thousands are counted


class ProgressBar(tqdm):  # type: ignore[misc] # tqdm has no types
    """A progress bar; without a terminal, a line for each quarter.

    Args:
        name: of the dataset.
        total: of the things that are counted.
        unit: their name.
        show: whether anything is shown.
    """

    def __init__(self, name: str, total: int, unit: str, show: bool) -> None:
        self._lines = show and not sys.stderr.isatty()
        disable = not show or self._lines
        many = total > _MANY
        super().__init__(total=total, disable=disable, desc=name, unit=f" {unit}", unit_scale=many)
        self._name, self._unit, self._done, self._all = name, unit, 0, max(total, 1)

    def update(self, n: float | None = 1) -> bool | None:
        """Counts further things."""
        before, self._done = self._done, self._done + int(n or 0)
        if self._lines and 4 * before // self._all != 4 * self._done // self._all:
            print(
                f"{self._name}: {self._done:,} of {self._all:,} {self._unit}",
                file=sys.stderr,
                flush=True,
            )
        shown: bool | None = super().update(n)
        return shown
