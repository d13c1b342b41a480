"""One process beside this one that plays episodes for a dataset, without Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
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

    def prepare(self) -> Any:
        """Returns the answer of `Player.prepare` in a process of its own.

        Raises:
            RaymimicError: it raised one, or ended its process.
        """
        child = ChildProcess()
        try:
            child.call(_prepared, self._player, self._imports)
            child.finished(timeout=None)
            if child.crashed:
                raise EnvError(f"the environment ended its process ({child.story()}) at its start")
            return child.records[0]
        finally:
            child.close()

    def play(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Yields the outcome of each job, or its `Crash`, in the order of the jobs."""
        done = retried = 0
        while done < len(jobs):
            child, begun = ChildProcess(), done
            try:
                child.call(_played, self._player, jobs[done:], self._imports)
                while True:
                    over = child.finished()
                    while child.records:  # the pipe holds the other process back
                        done += 1
                        yield child.records.pop(0)
                    if over:
                        break
                    time.sleep(_POLL_S)
                retried = retried + 1 if begun == done else 1
                if child.crashed and retried > RETRIES:
                    done, retried = done + 1, 0
                    yield Crash(f"its process ended with {child.story()}")
            finally:
                child.close()


def _prepared(player: Player, imports: tuple[str, ...]) -> Iterator[Any]:
    import_modules(imports)
    yield player.prepare()
    player.close()


def _played(player: Player, jobs: Sequence[Any], imports: tuple[str, ...]) -> Iterator[Any]:
    import_modules(imports)
    for job in jobs:
        yield attempt(player, job)
