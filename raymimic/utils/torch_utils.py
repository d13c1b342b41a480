"""robomimic's `torch_utils`: optimizers, gradient steps, targets, rotations."""

from contextlib import nullcontext

from raymimic.algo.optimization import (
    EMAModel,
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
from raymimic.models.vae_priors import reparameterize
from raymimic.ranks import GradSync, synchronized
from raymimic.rotations import (
    axis_angle_to_matrix,
    axis_angle_to_rot_6d,
    euler_angles_to_matrix,
    euler_angles_to_rot_6d,
    matrix_to_axis_angle,
    matrix_to_euler_angles,
    matrix_to_quaternion,
    matrix_to_rotation_6d,
    quaternion_to_matrix,
    rot_6d_to_axis_angle,
    rot_6d_to_euler_angles,
    rotation_6d_to_matrix,
)
from raymimic.tensors import evaluating, frozen, get_torch_device, maybe_no_grad

__all__ = [
    "EMAModel",
    "GradSync",
    "TargetNetwork",
    "axis_angle_to_matrix",
    "axis_angle_to_rot_6d",
    "backprop_for_loss",
    "backprop_for_losses",
    "dummy_context_mgr",
    "euler_angles_to_matrix",
    "euler_angles_to_rot_6d",
    "evaluating",
    "frozen",
    "get_state_dict",
    "get_torch_device",
    "hard_update",
    "initial_learning_rates",
    "load_state_dict",
    "lr_scheduler_from_optim_params",
    "matrix_to_axis_angle",
    "matrix_to_euler_angles",
    "matrix_to_quaternion",
    "matrix_to_rotation_6d",
    "maybe_no_grad",
    "optimizer_from_optim_params",
    "quaternion_to_matrix",
    "reparameterize",
    "rot_6d_to_axis_angle",
    "rot_6d_to_euler_angles",
    "rotation_6d_to_matrix",
    "set_initial_learning_rates",
    "soft_update",
    "synchronized",
]

dummy_context_mgr = nullcontext
