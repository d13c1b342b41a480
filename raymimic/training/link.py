"""How the training loop and the driver talk: events one way, finished evaluations the other.

`ray.train.report` is not used for this: its queue holds one report and the controller looks at it
every two seconds, which would throttle epochs that last a tenth of one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from raymimic.training.checkpoint import Outcome


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch of training gave.

    Attributes:
        epoch: its number, from 1.
        step: gradient steps done at its end.
        metrics: by full name, such as `Train/Loss`.
        time: when it ended, seconds since 1970.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    time: float


@dataclass(frozen=True)
class Started:
    """The workers are placed and hold data and model; training begins after `epoch`.

    Attributes:
        epoch: the last epoch of the checkpoint that they hold, or 0.
        info: what to tell the user of them.
        history: all epochs up to that one.
        outcomes: all evaluations that were settled.
        pending: checkpoints that wait for their evaluation, by epoch.
    """

    epoch: int
    info: dict[str, Any]
    history: list[EpochRecord]
    outcomes: list[Outcome]
    pending: dict[int, str]


@dataclass(frozen=True)
class Progress:
    """A sign of life from within an epoch."""

    epoch: int
    step: int
    steps_per_s: float


@dataclass(frozen=True)
class Committed:
    """A checkpoint exists; the epochs since the one before may be logged now."""

    epoch: int
    checkpoint: str
    records: list[EpochRecord]
    evaluate: bool


@dataclass(frozen=True)
class Fatal:
    """An error that a restart would only meet again, in one sentence."""

    kind: str
    message: str
    traceback: str


Event = Started | Progress | Committed | Fatal


class Link(Protocol):
    """The training loop's end."""

    def send(self, event: Event) -> None:
        """Passes an event to the driver; returns when it has arrived, unless it is `Progress`."""

    def outcomes(self) -> list[Outcome]:
        """Evaluations that have finished since the last call."""

    def stopped(self) -> str | None:
        """Why the driver wants no more training, if it does not."""


class LocalLink:
    """A link within one process: the driver handles each event as it is sent."""

    def __init__(self, handle: Callable[[Event], None]) -> None:
        self._handle = handle
        self._outcomes: list[Outcome] = []

    def send(self, event: Event) -> None:
        """Hands the event to the driver, which evaluates before it returns."""
        self._handle(event)

    def post(self, outcome: Outcome) -> None:
        """Takes a finished evaluation from the driver."""
        self._outcomes.append(outcome)

    def outcomes(self) -> list[Outcome]:
        """Evaluations that have finished since the last call."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def stopped(self) -> str | None:
        """Never: the driver in the same process raises instead."""
        return None


class Mailbox:
    """The Ray actor between workers and driver; owned by the driver, so it ends with it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._outcomes: list[Outcome] = []
        self._stopped: str | None = None

    def send(self, event: Event) -> None:
        """Takes an event from a worker."""
        if isinstance(event, Fatal):
            self._stopped = event.message
        self._events.append(event)

    def drain(self) -> list[Event]:
        """Gives the driver all events since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    def post(self, outcome: Outcome) -> None:
        """Takes a finished evaluation from the driver."""
        self._outcomes.append(outcome)

    def outcomes(self) -> list[Outcome]:
        """Gives the workers the evaluations that finished since the last call."""
        taken, self._outcomes = self._outcomes, []
        return taken

    def stop(self, reason: str) -> None:
        """Asks the workers to end."""
        self._stopped = reason

    def stopped(self) -> str | None:
        """Why the workers should end, if they should."""
        return self._stopped


class RayLink:
    """A worker's end of a mailbox.

    Args:
        mailbox: handle of a `Mailbox` actor.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def send(self, event: Event) -> None:
        """Passes an event to the driver; waits for its arrival unless it is `Progress`."""
        import ray

        reference = self._mailbox.send.remote(event)
        if not isinstance(event, Progress):
            ray.get(reference)

    def outcomes(self) -> list[Outcome]:
        """Evaluations that have finished since the last call."""
        import ray

        taken: list[Outcome] = ray.get(self._mailbox.outcomes.remote())
        return taken

    def stopped(self) -> str | None:
        """Why the driver wants no more training, if it does not."""
        import ray

        reason: str | None = ray.get(self._mailbox.stopped.remote())
        return reason
