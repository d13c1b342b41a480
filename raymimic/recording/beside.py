"""One process beside this one that plays episodes for a dataset, without Ray."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from raymimic.config import import_modules
from raymimic.errors import EnvError
from raymimic.recording.players import RETRIES, Crash, Player, attempt
from raymimic.rollout.child import ChildProcess

_POLL_S = 0.01


class ProcessPlayers:
    """One process, started again after a crash; see `raymimic.recording.players.Players`.

    Args:
        player: the process has a copy.
        imports: modules that it imports first.
    """

    def __init__(self, player: Player, imports: tuple[str, ...]) -> None:
        self._player, self._imports = player, imports
        self._child = ChildProcess()

    def prepare(self) -> Any:
        """Returns the answer of `Player.prepare` in the process.

        Raises:
            RaymimicError: it raised one, or ended its process.
        """
        self._child.call(_prepared, self._player, self._imports)
        self._child.finished(timeout=None)
        if self._child.crashed:
            raise EnvError(f"the environment ended its process ({self._child.story()})")
        return self._child.records[0]

    def play(self, jobs: Sequence[Any]) -> Generator[Any, None, None]:
        """Yields the outcome of each job, or its `Crash`, in the order of the jobs."""
        done = crashes = 0  # of the job that comes next
        over = True
        try:
            while done < len(jobs):
                child = self._child
                child.call(_played, self._player, jobs[done:], self._imports)
                over = False
                while not over:
                    over = child.finished()
                    while child.records:  # the pipe holds the other process back
                        done, crashes = done + 1, 0
                        yield child.records.pop(0)
                    if not over:
                        time.sleep(_POLL_S)
                if child.crashed:
                    story = child.story()
                    self._start_anew()
                    crashes += 1
                    if crashes > RETRIES:
                        done, crashes = done + 1, 0
                        yield Crash(f"its process ended with {story}")
        finally:
            if not over:  # the caller has enough, and the process would go on with these jobs
                self._start_anew()

    def close(self) -> None:
        """Ends the process."""
        self._child.close()

    def _start_anew(self) -> None:
        self._child.close()
        self._child = ChildProcess()


def _prepared(player: Player, imports: tuple[str, ...]) -> Iterator[Any]:
    import_modules(imports)
    yield player.prepare()
    player.close()


def _played(player: Player, jobs: Sequence[Any], imports: tuple[str, ...]) -> Iterator[Any]:
    import_modules(imports)
    for job in jobs:
        yield attempt(player, job)
