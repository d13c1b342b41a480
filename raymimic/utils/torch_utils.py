"""Small pieces that training steps are made of: updates of parameters and of targets."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, MultiStepLR

from raymimic.errors import CheckpointError, ConfigError, did_you_mean


class GradSync(Protocol):
    """What makes several workers take one and the same gradient step.

    An optimizer that carries one as its attribute ``grad_sync`` steps on the gradient of
    the global batch, see :func:`backprop_for_loss`.
    """

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Replaces each ``.grad`` by its mean over the global batch, on all ranks alike."""

    def mean(self, x: Tensor) -> Tensor:
        """Returns the global batch's mean, detached, from the mean over this rank's share."""


def get_torch_device(try_to_use_cuda: bool) -> torch.device:
    """Returns the first GPU if it is wanted and there is one, else the CPU."""
    if try_to_use_cuda and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda:0")
    return torch.device("cpu")


def maybe_no_grad(no_grad: bool) -> AbstractContextManager[Any]:
    """Returns ``torch.no_grad()`` if asked, else a context in which nothing changes."""
    return torch.no_grad() if no_grad else nullcontext()


@contextmanager
def frozen(net: nn.Module) -> Iterator[None]:
    """Takes a network's parameters out of the graphs that are built inside.

    For a critic through which an actor's loss flows: its weight gradients, which nobody needs,
    are then not computed.
    """
    learning = [p for p in net.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)


@torch.no_grad()
def soft_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """Moves target parameters towards the source's: ``target += tau * (source - target)``.

    Buffers, such as BatchNorm's running statistics, are copied. (robomimic's targets keep their
    own, which belong to no weights that ever were.)

    Args:
        source: the network that is learned.
        target: the slow copy of it, with the same parameters in the same order.
        tau: length of the move, 0 (stay) to 1 (copy).
    """
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
    _copy_buffers(source, target)


@torch.no_grad()
def hard_update(source: nn.Module, target: nn.Module) -> None:
    """Copies the source's parameters and buffers into the target."""
    torch._foreach_copy_(list(target.parameters()), list(source.parameters()))
    _copy_buffers(source, target)


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    for own, other in zip(target.buffers(), source.buffers(), strict=True):
        own.copy_(other)


def optimizer_from_optim_params(
    net_optim_params: Mapping[str, Any], net: nn.Module
) -> torch.optim.Adam:
    """Makes the optimizer of one network.

    The fused kernels update all parameters in one call, on CPU too, where they are several
    times faster than torch's default.

    Args:
        net_optim_params: a section of ``config.algo.optim_params``: ``optimizer_type``
            (``"adam"``, the default, or ``"adamw"``), ``learning_rate.initial`` and
            ``regularization.L2``.
        net: the network whose parameters are to be optimized.

    Raises:
        ConfigError: for an unknown ``optimizer_type``.
    """
    types: dict[str, type[torch.optim.Adam]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    name = net_optim_params.get("optimizer_type", "adam")
    if name not in types:
        raise ConfigError(f"optimizer_type '{name}' is unknown{did_you_mean(name, types)}")
    return types[name](
        net.parameters(),
        lr=net_optim_params["learning_rate"]["initial"],
        weight_decay=net_optim_params["regularization"]["L2"],
        fused=True,
    )


def lr_scheduler_from_optim_params(
    net_optim_params: Mapping[str, Any], optimizer: Optimizer
) -> LRScheduler | None:
    """Makes the learning-rate schedule of one optimizer.

    ``learning_rate.scheduler_type`` is one of

    - ``"multistep"`` (the default): times ``decay_factor`` at each epoch of ``epoch_schedule``;
    - ``"linear"``: down to ``decay_factor`` times the initial rate at the one epoch of
      ``epoch_schedule``;
    - ``"cosine"``: up over ``warmup_steps``, then down to zero at the last of
      ``num_train_batches * num_epochs`` gradient steps, in ``num_cycles`` (0.5) cycles.

    Args:
        net_optim_params: a section of ``config.algo.optim_params``.
        optimizer: the optimizer whose learning rate is scheduled.

    Returns:
        The scheduler, or None where the learning rate stays as it is.

    Raises:
        ConfigError: for an unknown type, or settings that contradict it.
    """
    settings = net_optim_params["learning_rate"]
    name = settings.get("scheduler_type", "multistep")
    epochs = list(settings.get("epoch_schedule", ()))
    if name == "multistep":
        return MultiStepLR(optimizer, epochs, settings["decay_factor"]) if epochs else None
    if name == "linear":
        if len(epochs) > 1:
            raise ConfigError(
                "learning_rate.epoch_schedule of the scheduler_type 'linear' takes one epoch, "
                f"the last of the decay, but has {len(epochs)}"
            )
        return LinearLR(optimizer, 1.0, settings["decay_factor"], epochs[0]) if epochs else None
    if name == "cosine":
        if not settings.get("step_every_batch", False):
            raise ConfigError(
                "the scheduler_type 'cosine' counts gradient steps: set "
                "learning_rate.step_every_batch=true"
            )
        batches, num_epochs = (net_optim_params.get(k) for k in ("num_train_batches", "num_epochs"))
        if batches is None or num_epochs is None:
            raise ConfigError(
                "the scheduler_type 'cosine' needs num_train_batches and num_epochs in "
                "algo.optim_params; training sets them"
            )
        warmup = settings.get("warmup_steps", 0)
        total = batches * num_epochs
        cycles = settings.get("num_cycles", 0.5)

        def factor(step: int) -> float:
            if step < warmup:
                return float(step / warmup)
            progress = (step - warmup) / max(1, total - warmup)
            return max(0.0, 0.5 * (1.0 + math.cos(2.0 * math.pi * cycles * progress)))

        return LambdaLR(optimizer, factor)
    known = ("multistep", "linear", "cosine")
    raise ConfigError(f"scheduler_type '{name}' is unknown{did_you_mean(name, known)}")


def initial_learning_rates(optimizer: Optimizer) -> list[float]:
    """The rates from which an optimizer's schedule begins, one for each group of parameters."""
    return [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]


def set_initial_learning_rates(
    optimizer: Optimizer, scheduler: LRScheduler | None, rates: Sequence[float]
) -> None:
    """Has a schedule that is under way go on as if it had begun from other rates.

    Args:
        optimizer: whose present rates are scaled; rates that are as they were stay, to the bit.
        scheduler: its schedule, if it has one.
        rates: one for each group of parameters.
    """
    before = initial_learning_rates(optimizer)
    for group, old, new in zip(optimizer.param_groups, before, rates, strict=True):
        if new != old:
            group["lr"] = group["lr"] * new / old if old else new
            if scheduler is not None:
                group["initial_lr"] = new
    if scheduler is not None:
        scheduler.base_lrs = list(rates)


def backprop_for_loss(
    net: nn.Module,
    optim: Optimizer,
    loss: Tensor,
    max_grad_norm: float | None = None,
    retain_graph: bool = False,
) -> Tensor:
    """Takes one gradient step on a loss.

    Where the optimizer carries a :class:`GradSync`, gradients are averaged over the ranks
    before they are clipped.

    Args:
        net: the network to update, for the reader: ``optim`` holds its parameters.
        optim: the network's optimizer.
        loss: scalar, the mean over this rank's samples.
        max_grad_norm: the longest that the gradient may be, in the L2 norm.
        retain_graph: keep the graph for another backward pass.

    Returns:
        The squared L2 norm of the gradient that was applied, as robomimic logs it: a 0-d
        tensor, left on the device.
    """
    return backprop_for_losses([optim], [loss], max_grad_norm, retain_graph)[0]


def backprop_for_losses(
    optims: Sequence[Optimizer],
    losses: Sequence[Tensor],
    max_grad_norm: float | None = None,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Takes one gradient step on each of several losses whose networks share no parameter.

    The same as :func:`backprop_for_loss` for one after the other, in one backward pass and one
    exchange of gradients: the members of an ensemble.

    Args:
        optims: an optimizer for each loss.
        losses: scalars, means over this rank's samples.
        max_grad_norm: see :func:`backprop_for_loss`; each network's gradient is clipped by itself.
        retain_graph: keep the graph for another backward pass.

    Returns:
        The squared norm of each network's gradient.
    """
    params: list[list[nn.Parameter]] = [
        [p for group in optim.param_groups for p in group["params"]] for optim in optims
    ]
    for param in chain.from_iterable(params):
        param.grad = None  # what zero_grad() does, at a tenth of its time
    total = sum(losses[1:], start=losses[0])
    total.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    sync: GradSync | None = getattr(optims[0], "grad_sync", None)
    if sync is not None:
        sync.average_gradients(chain.from_iterable(params))
    return [
        _clip_and_step(optim, own, max_grad_norm) for optim, own in zip(optims, params, strict=True)
    ]


def _clip_and_step(
    optim: Optimizer, params: Sequence[nn.Parameter], max_grad_norm: float | None
) -> Tensor:
    """Steps on the gradients that there are; returns the squared norm of what was applied."""
    # Without a copy of the gradient: one of 65 million numbers takes longer than the update.
    norms = torch.stack(torch._foreach_norm([p.grad for p in params if p.grad is not None]))
    squared_norm = norms.dot(norms)
    if max_grad_norm is not None:
        norm = squared_norm.sqrt()
        nn.utils.clip_grads_with_norm_(params, max_grad_norm, norm)
        squared_norm = squared_norm * (max_grad_norm / (norm + 1e-6)).clamp(max=1.0).square()
    optim.step()
    return squared_norm


def get_state_dict(obj: Any) -> Any:
    """Returns the state of nested dicts and lists of stateful objects, nested alike.

    Args:
        obj: anything with ``state_dict()``, None, or dicts and lists of those.
    """
    if isinstance(obj, Mapping):
        return {k: get_state_dict(v) for k, v in obj.items()}
    if isinstance(obj, list):
        return [get_state_dict(v) for v in obj]
    return None if obj is None else obj.state_dict()


def load_state_dict(obj: Any, state_dict: Any) -> None:
    """Loads what :func:`get_state_dict` returned for objects of the same structure.

    Raises:
        CheckpointError: if the structure differs.
    """
    if isinstance(obj, Mapping):
        if not isinstance(state_dict, Mapping) or set(obj) != set(state_dict):
            raise CheckpointError(
                f"the checkpoint holds states of {list(state_dict or ())}, not of {list(obj)}"
            )
        for k, v in obj.items():
            load_state_dict(v, state_dict[k])
    elif isinstance(obj, list):
        if not isinstance(state_dict, list) or len(obj) != len(state_dict):
            raise CheckpointError(f"the checkpoint holds another number of states than {len(obj)}")
        for v, state in zip(obj, state_dict, strict=True):
            load_state_dict(v, state)
    elif (obj is None) != (state_dict is None):
        raise CheckpointError("the checkpoint's schedulers are not those of this config")
    elif obj is not None:
        obj.load_state_dict(state_dict)
