"""Small pieces that training steps are made of: updates of parameters and of targets."""

import inspect
import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam
from torch.optim.lr_scheduler import LambdaLR, LinearLR, LRScheduler, MultiStepLR

from raymimic.errors import CheckpointError, ConfigError, did_you_mean
from raymimic.ranks import GradSync, current_sync
from raymimic.tensors import copy_each, move_each, norm_of_each

_COMPILABLE = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def _eager(optimizer: type[torch.optim.Adam]) -> type[torch.optim.Adam]:
    """A class of optimizers without torch's preparations for `torch.compile`.

    The decorators of its methods import the compiler at their first call, which takes as long as
    the import of torch itself, and pass through it at each later one. The methods below them are
    found by `__wrapped__`, which `functools.wraps` sets; `step` needs no gradients of its own.
    """
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _COMPILABLE}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), methods)


Adam, AdamW = _eager(torch.optim.Adam), _eager(torch.optim.AdamW)
_ADAMS_SETTINGS = (
    *("lr", "eps", "weight_decay", "decoupled_weight_decay", "amsgrad", "maximize"),
    *("foreach", "capturable", "differentiable", "fused"),
)


class TargetNetwork:
    """A slow copy of a network.

    The lists of parameters are made once: to walk the modules takes longer than the update.

    Args:
        source: the network that learns.
        target: its copy, with the same parameters in the same order.
    """

    def __init__(self, source: nn.Module, target: nn.Module) -> None:
        self._source: list[Tensor] = list(source.parameters())
        self._target: list[Tensor] = list(target.parameters())
        # Not the buffers themselves: `Module.to` replaces them.
        self._with_buffers = [
            (own, other)
            for own, other in zip(target.modules(), source.modules(), strict=True)
            if next(own.buffers(recurse=False), None) is not None
        ]

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """Moves parameters a share of the way: `target += tau * (source - target)`.

        Buffers, such as BatchNorm's running statistics, are copied. (robomimic's targets keep their
        own, which belong to no weights that ever were.)

        Args:
            tau: length of the move, 0 (stay) to 1 (copy).
        """
        if tau == 1.0:
            copy_each(self._target, self._source)
        else:
            move_each(self._target, self._source, tau)
        for own, other in self._with_buffers:
            pairs = zip(own.buffers(recurse=False), other.buffers(recurse=False), strict=True)
            for buffer, value in pairs:
                buffer.copy_(value)


def soft_update(source: nn.Module, target: nn.Module, tau: float) -> None:
    """Moves a target network towards its source once, see `TargetNetwork.follow`."""
    TargetNetwork(source, target).follow(tau)


def hard_update(source: nn.Module, target: nn.Module) -> None:
    """Copies the source's parameters and buffers into the target."""
    TargetNetwork(source, target).follow(1.0)


class EMAModel:
    """A moving average of a model's weights.

    Its decay grows as 1 - step^-power up to 0.9999, so that the average forgets the start. It is a
    copy of the weights at steps 0 and 1. After `diffusers.training_utils.EMAModel` 0.11, which
    robomimic uses; later versions have another constructor and no `averaged_model`.

    Attributes:
        averaged_model: has the averaged weights; in evaluation mode.
        optimization_step: number of steps that it has seen.

    Args:
        model: whose copy is the first average.
        power: of the decay.
    """

    def __init__(self, model: nn.Module, power: float = 2 / 3) -> None:
        self.averaged_model = deepcopy(model).requires_grad_(False).eval()
        self.power = power
        self.optimization_step = 0

    def get_decay(self, optimization_step: int) -> float:
        """Returns the share of itself that the average keeps at a step, counted from 0."""
        if optimization_step < 2:
            return 0.0
        return float(min(1.0 - optimization_step**-self.power, 0.9999))

    def step(self, new_model: nn.Module) -> None:
        """Moves the average towards weights; buffers are copied."""
        decay = self.get_decay(self.optimization_step)
        soft_update(new_model, self.averaged_model, tau=1.0 - decay)
        self.optimization_step += 1


def optimizer_from_optim_params(
    net_optim_params: Mapping[str, Any], net: nn.Module
) -> torch.optim.Adam:
    """Makes the optimizer of one network.

    The fused kernels update all parameters in one call, on CPU too, where they are several
    times faster than torch's default.

    Args:
        net_optim_params: a section of `config.algo.optim_params`: `optimizer_type`
            (`"adam"`, the default, or `"adamw"`), `learning_rate.initial` and
            `regularization.L2`.
        net: the network whose parameters are to be optimized.

    Raises:
        ConfigError: for an unknown `optimizer_type`.
    """
    types: dict[str, type[torch.optim.Adam]] = {"adam": Adam, "adamw": AdamW}
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
    net_optim_params: Mapping[str, Any],
    net: nn.Module | Optimizer | None = None,
    optimizer: Optimizer | None = None,
) -> LRScheduler | None:
    """Makes the learning-rate schedule of one optimizer.

    `learning_rate.scheduler_type` is one of

    - `"multistep"` (the default): times `decay_factor` at each epoch of `epoch_schedule`;
    - `"linear"`: down to `decay_factor` times the initial rate at the one epoch of
      `epoch_schedule`;
    - `"cosine"`: up over `warmup_steps`, then down to zero at the last of
      `num_train_batches * num_epochs` gradient steps, in `num_cycles` (0.5) cycles.

    Args:
        net_optim_params: a section of `config.algo.optim_params`.
        net: the network, as in robomimic, which does not read it either; or the optimizer.
        optimizer: the optimizer whose learning rate is scheduled.

    Returns:
        The scheduler, or None where the learning rate stays as it is.

    Raises:
        ConfigError: for an unknown type, or settings that contradict it.
        TypeError: there is no optimizer.
    """
    optimizer = net if isinstance(net, Optimizer) else optimizer
    if optimizer is None:
        raise TypeError("lr_scheduler_from_optim_params takes the optimizer")
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

    Inside `synchronized` gradients are averaged over the ranks before they are clipped.

    Args:
        net: the network to update, for the reader: `optim` holds its parameters.
        optim: the network's optimizer.
        loss: scalar, the mean over this rank's samples.
        max_grad_norm: the longest that the gradient may be, in the L2 norm.
        retain_graph: keep the graph for another backward pass.

    Returns:
        The squared L2 norm of the gradient that was applied, as robomimic logs it: a 0-d
        tensor, left on the device.
    """
    return backprop_for_losses([optim], [loss], [max_grad_norm], current_sync(), retain_graph)[0]


def backprop_for_losses(
    optims: Sequence[Optimizer],
    losses: Sequence[Tensor],
    max_grad_norms: Sequence[float | None],
    sync: GradSync | None = None,
    retain_graph: bool = False,
) -> list[Tensor]:
    """Takes one gradient step on each of several losses whose networks share no parameter.

    The same as one step after the other, in one backward pass and one exchange of gradients.

    Args:
        optims: an optimizer for each loss.
        losses: scalars, means over this rank's samples.
        max_grad_norms: the longest that each network's gradient may be; None: any length.
        sync: the other workers, if there are any.
        retain_graph: keep the graph for another backward pass.

    Returns:
        The squared norm of each network's gradient.
    """
    params: list[list[nn.Parameter]] = [
        [p for group in optim.param_groups for p in group["params"]] for optim in optims
    ]
    for param in chain.from_iterable(params):
        param.grad = None  # as zero_grad() does, at a tenth of its time
    total = sum(losses[1:], start=losses[0])
    total.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
    if sync is not None:
        sync.average_gradients(chain.from_iterable(params))
    squared_norms = _squared_gradient_norms(params)
    for i, limit in enumerate(max_grad_norms):
        if limit is not None:
            norm = squared_norms[i].sqrt()
            nn.utils.clip_grads_with_norm_(params[i], limit, norm)
            squared_norms[i] *= (limit / (norm + 1e-6)).clamp(max=1.0).square()
    _step(optims)
    return squared_norms


@torch.no_grad()
def _step(optims: Sequence[Optimizer]) -> None:
    """Steps optimizers: this module's, if their settings are the same, by one call of the kernel.

    The same numbers as one `step` after the other, which takes several times as long as the kernel.
    An ensemble has an optimizer for each member, as in robomimic's checkpoints.
    """
    due = [
        (p, p.grad, optim.state.get(p, {}))
        for optim in optims
        for p in optim.param_groups[0]["params"]
        if p.grad is not None
    ]
    settings = [
        _settings(optim.param_groups[0]) for optim in optims if type(optim) in (Adam, AdamW)
    ]
    if (
        len(settings) == sum(len(optim.param_groups) for optim in optims)
        and all(other == settings[0] for other in settings)
        and not settings[0]["amsgrad"]
        and all(state for *_, state in due)  # the first step makes it
    ):
        params, grads = [p for p, *_ in due], [grad for _, grad, _ in due]
        names = ("exp_avg", "exp_avg_sq", "step")
        averages, squares, steps = ([state[name] for *_, state in due] for name in names)
        adam(params, grads, averages, squares, [], steps, **settings[0])
        return
    for optim in optims:
        optim.step()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a group of Adam's parameters, named as `adam` takes them."""
    beta1, beta2 = group["betas"]
    return {"beta1": beta1, "beta2": beta2, **{name: group[name] for name in _ADAMS_SETTINGS}}


def _squared_gradient_norms(params: Sequence[Sequence[nn.Parameter]]) -> list[Tensor]:
    """Returns the squared norm (0-d) of each network's gradient; 0 where there is none.

    Without a copy of the gradient: one of 65 million numbers takes longer than the update.
    """
    grads = [[p.grad for p in own if p.grad is not None] for own in params]
    flat = list(chain.from_iterable(grads))
    if len({own[0].device for own in grads if own}) > 1:
        return [_squared_gradient_norms([own])[0] for own in params]
    norms = norm_of_each(flat) if flat else params[0][0].new_zeros(0)
    ends = list(accumulate(map(len, grads)))[:-1]
    return [part.dot(part) for part in norms.tensor_split(ends)]


def get_state_dict(obj: Any) -> Any:
    """Returns the state of nested dicts and lists of stateful objects, nested alike.

    Args:
        obj: anything with `state_dict()`, None, or dicts and lists of those.
    """
    if isinstance(obj, Mapping):
        return {k: get_state_dict(v) for k, v in obj.items()}
    if isinstance(obj, list):
        return [get_state_dict(v) for v in obj]
    return None if obj is None else obj.state_dict()


def load_state_dict(obj: Any, state_dict: Any) -> None:
    """Loads the result of `get_state_dict` into objects of the same structure.

    Raises:
        CheckpointError: if the structure differs, or a state is not one of such an object.
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
        kind = type(obj).__name__
        if isinstance(obj, Optimizer) and not _is_optimizers(obj, state_dict):
            raise CheckpointError(f"the checkpoint's state of {kind} does not fit the networks")
        if isinstance(obj, LRScheduler) and not _is_schedulers(obj, state_dict):
            raise CheckpointError(f"the checkpoint's state of {kind} is not one of a schedule")
        obj.load_state_dict(state_dict)


def _is_optimizers(optimizer: Optimizer, state: Any) -> bool:
    """Whether a state has a group of settings for each of the optimizer's, and fitting tensors."""
    own = optimizer.state_dict()["param_groups"]
    groups, tensors = (
        (state.get("param_groups"), state.get("state"))
        if isinstance(state, Mapping)
        else (None, None)
    )
    if not isinstance(groups, list) or not isinstance(tensors, Mapping) or len(groups) != len(own):
        return False
    if not all(
        isinstance(group, Mapping)
        and group.keys() >= {"params", "lr"}
        and all(_alike(ours[key], value) for key, value in group.items() if key in ours)
        for ours, group in zip(own, groups, strict=True)
    ):
        return False
    params = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [n for group in groups for n in group["params"]]
    shape_of = dict(zip(numbers, (p.shape for p in params), strict=True))
    return all(
        number in shape_of
        and isinstance(values, Mapping)
        and all(
            isinstance(x, Tensor) and (x.shape == shape_of[number] or x.dim() == 0)
            if name != "step"
            else isinstance(x, Tensor | int | float)
            for name, x in values.items()
        )
        for number, values in tensors.items()
    )


def _is_schedulers(scheduler: LRScheduler, state: Any) -> bool:
    """Whether a state has values of the kinds that the schedule has, and none for its methods."""
    own = vars(scheduler)
    return isinstance(state, Mapping) and all(
        _alike(own[key], value)
        if key in own
        else isinstance(key, str) and not hasattr(scheduler, key)
        for key, value in state.items()
    )


def _alike(own: Any, given: Any) -> bool:
    """Whether a value may take the place of one's own."""
    if own is None or isinstance(own, bool):
        return given is None or isinstance(given, bool)
    if isinstance(own, int | float):
        number = isinstance(given, int | float) and not isinstance(given, bool)
        return number and math.isfinite(given)
    if isinstance(own, list | tuple):
        same = isinstance(given, list | tuple) and len(given) == len(own)
        return same and all(map(_alike, own, given))
    if callable(own):
        return given is None
    return isinstance(given, type(own))
