"""The messages between training loop and driver: events one way, finished evaluations back.

`ray.train.report` is not used for this: its queue holds one report and the controller looks at it
every two seconds, which would throttle epochs that last a tenth of one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from raymimic.checkpoints.records import EpochRecord, Evaluation, KeptCheckpoint


@dataclass(frozen=True)
class Placed:
    """The workers' processes run, and begin to load data and model."""


@dataclass(frozen=True)
class Loading:
    """A sign of life of the first rank while it loads data.

    Attributes:
        text: how far it is.
    """

    text: str


@dataclass(frozen=True)
class Started:
    """The workers have loaded data and model; training begins after `epoch`.

    Attributes:
        epoch: the last epoch of the checkpoint that they have loaded; 0 without one.
        info: facts about model and data, for the user.
        history: all epochs up to that one.
        evaluations: all that were settled.
        pending: checkpoints that wait for their evaluation, by epoch.
        has_evaluation_log: the driver records evaluations in `evaluations.jsonl`; runs of 0.1.0
            have none.
    """

    epoch: int
    info: dict[str, Any]
    history: list[EpochRecord]
    evaluations: list[Evaluation]
    pending: dict[int, str]
    has_evaluation_log: bool = True


@dataclass(frozen=True)
class Progress:
    """A sign of life within an epoch.

    Attributes:
        epoch: the epoch's number.
        step: gradient steps done so far.
        steps_per_s: gradient steps per second in this epoch.
    """

    epoch: int
    step: int
    steps_per_s: float


@dataclass(frozen=True)
class Committed:
    """A checkpoint exists; the epochs since the one before may be logged now.

    Attributes:
        epoch: the last epoch that it contains.
        checkpoint: its path or URI.
        records: the epochs since the checkpoint before.
        evaluate: whether it is to be evaluated.
        kept: all checkpoints that are kept for a reason.
    """

    epoch: int
    checkpoint: str
    records: list[EpochRecord]
    evaluate: bool
    kept: list[KeptCheckpoint] = field(default_factory=list)


@dataclass(frozen=True)
class MachineLoad:
    """The load of a worker's machine, which is not the driver's.

    Attributes:
        metrics: name to value; see `raymimic.tracking.tracker.Tracker.log_system`.
    """

    metrics: dict[str, float]


@dataclass(frozen=True)
class Mishap:
    """A warning of a worker, whose training goes on.

    Attributes:
        message: its sentence.
    """

    message: str


@dataclass(frozen=True)
class Fatal:
    """An error that a restart would meet again.

    Attributes:
        kind: name of its class in `raymimic.errors`.
        message: its sentence.
        traceback: where it was raised.
    """

    kind: str
    message: str
    traceback: str


Event = Placed | Loading | Started | Progress | Committed | MachineLoad | Mishap | Fatal


class Link(Protocol):
    """The training loop's end."""

    def send(self, event: Event) -> None:
        """Passes an event to the driver; returns when it has arrived, unless it is `Progress`."""

    def evaluations(self) -> list[Evaluation]:
        """Returns the evaluations that have finished since the last call."""

    def stopped(self) -> str | None:
        """Why the driver has stopped the training; None if it has not."""

    def may_begin(self) -> bool:
        """Whether the driver lets training begin: no environment is still being tried."""


class LocalLink:
    """A link within one process: the driver handles each event as it is sent.

    Args:
        handle: the driver's answer to an event.
        may_begin: whether training may begin; raises an error if it never will.
    """

    def __init__(
        self, handle: Callable[[Event], None], may_begin: Callable[[], bool] = lambda: True
    ) -> None:
        self._handle = handle
        self._may_begin = may_begin
        self._evaluations: list[Evaluation] = []

    def send(self, event: Event) -> None:
        """Hands the event to the driver, which evaluates before it returns."""
        self._handle(event)

    def post(self, evaluation: Evaluation) -> None:
        """Stores a finished evaluation for the training loop."""
        self._evaluations.append(evaluation)

    def evaluations(self) -> list[Evaluation]:
        """Returns the evaluations that have finished since the last call."""
        taken, self._evaluations = self._evaluations, []
        return taken

    def stopped(self) -> str | None:
        """Always None: the driver in the same process raises instead."""
        return None

    def may_begin(self) -> bool:
        """Whether the driver lets training begin; raises an error if it never will."""
        return self._may_begin()


class Mailbox:
    """The Ray actor between workers and driver; the driver owns it, so it ends with the driver.

    It may be lost with its messages: then the workers fail, and after their restart send the
    content of their checkpoint to a new mailbox.

    Args:
        node: Ray's id of the driver's node.
    """

    def __init__(self, node: str = "") -> None:
        self._nodes = {node}
        self._events: list[Event] = []
        self._evaluations: list[Evaluation] = []
        self._stopped: str | None = None
        self._may_begin = False

    def send(self, event: Event) -> None:
        """Stores an event for the driver."""
        if isinstance(event, Fatal):
            self._stopped = event.message
        self._events.append(event)

    def drain(self, may_begin: bool = True) -> list[Event]:
        """Returns all events since the last call, in order.

        Args:
            may_begin: whether the driver lets training begin.
        """
        self._may_begin = may_begin
        taken, self._events = self._events, []
        return taken

    def post(self, evaluation: Evaluation) -> None:
        """Stores a finished evaluation for the training loop."""
        self._evaluations.append(evaluation)

    def evaluations(self) -> list[Evaluation]:
        """Returns the evaluations that have finished since the last call."""
        taken, self._evaluations = self._evaluations, []
        return taken

    def stop(self, reason: str) -> None:
        """Asks the workers to end."""
        self._stopped = reason

    def stopped(self) -> str | None:
        """Why the workers should end; None if they should not."""
        return self._stopped

    def may_begin(self) -> bool:
        """Whether the driver lets training begin."""
        return self._may_begin

    def is_first_of(self, node: str) -> bool:
        """Whether no worker of a node has asked before; the driver is the first of its own.

        Ray Train's local ranks would tell nodes apart by their addresses alone.

        Args:
            node: Ray's id of the worker's node.
        """
        first = node not in self._nodes
        self._nodes.add(node)
        return first


class RayLink:
    """A worker's end of a mailbox. It alone needs Ray, which `--workers 0` never imports.

    Args:
        mailbox: handle of a `Mailbox` actor.
    """

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox
        self._under_way: Any = None

    def send(self, event: Event) -> None:
        """Passes an event to the driver; waits for its arrival unless it is `Progress`.

        Raises:
            RayActorError: the mailbox is lost.
        """
        import ray

        reference = self._mailbox.send.remote(event)
        if isinstance(event, Progress):
            # A lost mailbox shows within the epoch, at the next such event.
            self._under_way, reference = reference, self._under_way
            if reference is None or not ray.wait([reference], timeout=0)[0]:
                return
        ray.get(reference)

    def evaluations(self) -> list[Evaluation]:
        """Returns the evaluations that have finished since the last call."""
        import ray

        taken: list[Evaluation] = ray.get(self._mailbox.evaluations.remote())
        return taken

    def stopped(self) -> str | None:
        """Why the driver has stopped the training; None if it has not."""
        import ray

        reason: str | None = ray.get(self._mailbox.stopped.remote())
        return reason

    def may_begin(self) -> bool:
        """Whether the driver lets training begin."""
        import ray

        allowed: bool = ray.get(self._mailbox.may_begin.remote())
        return allowed

    def is_first_of(self, node: str) -> bool:
        """Whether no worker of a node has asked before; the driver is the first of its own."""
        import ray

        first: bool = ray.get(self._mailbox.is_first_of.remote(node))
        return first
