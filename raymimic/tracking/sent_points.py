"""The steps at which a metric was sent, in little memory however long a run is."""

from bisect import bisect_right
from collections.abc import Iterable


class SentSteps:
    """A set of steps. Steps at equal distances, as of epochs, take the room of one.

    Args:
        steps: the first members.
    """

    def __init__(self, steps: Iterable[int] = ()) -> None:
        self._rows: list[tuple[int, int, int]] = []  # first, distance, last; ascending, apart
        self._odd: set[int] = set()  # those that came out of order
        for step in sorted(steps):
            self.add(step)

    def __contains__(self, step: int) -> bool:
        at = bisect_right(self._rows, step, key=lambda row: row[0]) - 1
        if at >= 0:
            first, distance, last = self._rows[at]
            if step <= last and (step - first) % distance == 0:
                return True
        return step in self._odd

    def add(self, step: int) -> None:
        """Adds a step."""
        if step in self:
            return
        first, distance, last = self._rows[-1] if self._rows else (step, 1, step - 1)
        if step < last:
            self._odd.add(step)
        elif self._rows and (first == last or step == last + distance):
            self._rows[-1] = (first, step - last, step)
        else:
            self._rows.append((step, 1, step))

    def __len__(self) -> int:
        return len(self._odd) + sum((last - a) // distance + 1 for a, distance, last in self._rows)

    @property
    def rows(self) -> int:
        """How many numbers of equal distance it holds, and others: a measure of its memory."""
        return len(self._rows) + len(self._odd)
