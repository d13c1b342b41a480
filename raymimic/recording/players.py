"""The contract of processes that play many episodes and return them in order."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raymimic.errors import EnvError, RaymimicError
from raymimic.user_modules import own_reason

RETRIES = 1
"""How often an episode is played again after its process ended: a machine may have been lost."""


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

    def play(self, jobs: Sequence[Any]) -> Generator[Any, None, None]:
        """Yields the outcome of each job, or its `Crash`, in the order of the jobs.

        Close the generator when you have enough: the rest is not played.

        Raises:
            RaymimicError: no episode can be played any more.
        """


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
        return Crash(own_reason(error))
