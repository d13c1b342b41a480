"""How an algorithm learns: losses apart from the steps that they lead to.

`Algo.updates` names the networks to update and the function from a batch to their losses.
`Algo.train_on_batch` does the rest for every algorithm, in one place: gates by epoch, backward,
exchange between workers, clipping, optimizer, targets.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Batch = dict[str, Any]


@dataclass(frozen=True)
class Losses:
    """The outcome of a forward pass.

    Attributes:
        of: the loss of each learner (0-d, the mean over this rank's samples); where a network is a
            `ModuleList`, a list with a loss for each member.
        info: metrics, as `Algo.log_info` takes them. They stay on the device.
    """

    of: Mapping[str, Tensor | Sequence[Tensor]]
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Learner:
    """A network that takes gradient steps.

    Attributes:
        name: of its optimizer, and of its section of `algo.optim_params`. Without such a section it
            learns whenever the first learner of its update does.
        grad_norms: the metric that reports the squared norm of its gradient. A `ModuleList` reports
            one for each member: `{}` stands for the member's number, from 1.
        max_grad_norm: the longest that its gradient may be, in the L2 norm.
        then: called after each of its steps; for targets, averages and counters.
    """

    name: str
    grad_norms: str
    max_grad_norm: float | None = None
    then: Callable[[], None] | None = None


@dataclass(frozen=True)
class Update:
    """One gradient step of the networks whose losses come from one forward pass.

    All of them share one backward pass and one exchange of gradients, and step from where they all
    stood before.

    Attributes:
        learners: the networks.
        losses: from a processed batch and the epoch's number to the learners' losses. It changes no
            parameter.
        when: whether the step is due, asked after the updates before it; None: always. A step that
            is not due computes the losses alone.
    """

    learners: tuple[Learner, ...]
    losses: Callable[[Batch, int], Losses]
    when: Callable[[], bool] | None = None
