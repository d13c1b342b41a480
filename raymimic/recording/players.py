"""Plays many episodes, in Ray actors or in a process beside this one, and gives them in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from raymimic.config import config_factory, import_modules
from raymimic.errors import EnvError, RaymimicError, reason
from raymimic.rollout.child import ChildProcess

RETRIES = 1
"""How often an episode is played again after its process ended: a machine may have been lost."""

_POLL_S = 0.01


class Player(Protocol):
    """Plays episodes, each of which follows from its job alone; pickled before its first one."""

    def prepare(self) -> Any:
        """Makes the environment and tries it.

        Returns:
            the facts that the driver asks for.

        Raises:
            RaymimicError: it cannot be made.
        """

    def play(self, job: Any) -> Any:
        """Plays an episode, after making the environment unless it is there."""

    def close(self) -> None:
        """Frees the environment."""


@dataclass(frozen=True)
class Crash:
    """An episode without an outcome.

    Attributes:
        reason: in one line.
    """

    reason: str


class Players(Protocol):
    """Processes that play."""

    def prepare(self) -> Any:
        """Returns the answer of `Player.prepare` in one of the processes.

        Raises:
            RaymimicError: it raised one, or ended its process.
        """

    def play(self, jobs: Sequence[Any]) -> Iterator[Any]:
        """Yields the outcome of each job, or its `Crash`, in the order of the jobs.

        Raises:
            RaymimicError: no episode can be played any more.
        """


@contextmanager
def playing(
    player: Player, num_actors: int | None, imports: Sequence[str] = ()
) -> Iterator[Players]:
    """Scope in which processes play.

    Args:
        player: each process has a copy.
        num_actors: Ray actors; 0: one process beside this one, without Ray; None: one actor for
            each CPU of the cluster.
        imports: modules that each process imports first.

    Raises:
        ClusterError: the cluster does not answer.
    """
    if num_actors == 0:
        yield _Beside(player, tuple(imports))
        return
    from raymimic.cluster.session import ray_session
    from raymimic.recording.actors import ActorPlayers

    with ray_session(config_factory("bc")) as cluster:
        players = ActorPlayers(player, num_actors, tuple(imports), cluster)
        try:
            yield players
        finally:
            players.close()


def attempt(player: Player, job: Any) -> Any:
    """Plays a job; an exception of the simulator becomes a `Crash`."""
    try:
        return player.play(job)
    except Exception as error:  # a simulator may raise anything
        try:
            if isinstance(error, RaymimicError) and not isinstance(error, EnvError):
                raise
        finally:
            player.close()  # its state is unknown
        return Crash(reason(error))


class _Beside:
    """One process beside this one."""

    def __init__(self, player: Player, imports: tuple[str, ...]) -> None:
        self._player, self._imports = player, imports

    def prepare(self) -> Any:
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
