"""robomimic's `torch_utils`: optimizers, gradient steps, targets."""

from raymimic.algo.optimization import (
    TargetNetwork,
    backprop_for_loss,
    backprop_for_losses,
    get_state_dict,
    hard_update,
    initial_learning_rates,
    load_state_dict,
    lr_scheduler_from_optim_params,
    optimizer_from_optim_params,
    set_initial_learning_rates,
    soft_update,
)
from raymimic.ranks import GradSync, synchronized
from raymimic.tensors import evaluating, frozen, get_torch_device, maybe_no_grad

__all__ = [
    "GradSync",
    "TargetNetwork",
    "backprop_for_loss",
    "backprop_for_losses",
    "evaluating",
    "frozen",
    "get_state_dict",
    "get_torch_device",
    "hard_update",
    "initial_learning_rates",
    "load_state_dict",
    "lr_scheduler_from_optim_params",
    "maybe_no_grad",
    "optimizer_from_optim_params",
    "set_initial_learning_rates",
    "soft_update",
    "synchronized",
]
