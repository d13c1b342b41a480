"""Losses: functions of predictions and targets that know nothing of networks or logging."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """One minus the cosine of the angle between vectors ``[..., D]``, averaged (0-d)."""
    return 1.0 - F.cosine_similarity(predictions, targets, dim=-1).mean()


def regression_loss(predictions: Tensor, targets: Tensor, use_huber: bool) -> Tensor:
    """Mean squared error, or the Huber loss with its corner at 1 (0-d)."""
    return F.smooth_l1_loss(predictions, targets) if use_huber else F.mse_loss(predictions, targets)


# ----------------------------------------------------------------------- temporal differences


def td_target(rewards: Tensor, dones: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """Bellman's backup r + discount (1 - done) V(s').

    Args:
        rewards: ``[B, 1]``, of one step or discounted sums of n.
        dones: ``[B, 1]``, 1 where nothing follows.
        next_values: ``[B, 1]``, or ``[B, K]`` for K values of each state.
        discount: of the next value, discount^n after n steps.

    Returns:
        Targets of the shape of ``next_values``.
    """
    return rewards + discount * (1.0 - dones) * next_values


def ensemble_mix(values: Tensor, weight: float) -> Tensor:
    """Mixes an ensemble's estimates: weight * minimum + (1 - weight) * maximum.

    With weight 1 clipped double Q-learning (TD3, https://arxiv.org/abs/1802.09477), with less the
    soft version of BCQ (https://arxiv.org/abs/1812.02900, eq. 13).

    Args:
        values: ``[n, *shape]``, of n members.
        weight: of the minimum, 0 to 1.

    Returns:
        ``[*shape]``.
    """
    low, high = values.aminmax(dim=0)
    return torch.lerp(high, low, weight)


def project_onto_atoms(values: Tensor, probs: Tensor, atoms: Tensor) -> Tensor:
    """Moves the probability of each value onto its two neighbours among evenly spaced atoms.

    In proportion to their nearness; what lies beyond the outermost atoms goes onto these (C51's
    projection Φ, https://arxiv.org/abs/1707.06887, eq. 7).

    Args:
        values: ``[B, K]``.
        probs: their probabilities ``[B, K]``.
        atoms: ``[N]``, ascending, at least two.

    Returns:
        Probabilities of the atoms ``[B, N]``.
    """
    low, high, intervals = atoms[0], atoms[-1], len(atoms) - 1
    position = (values.clamp(low, high) - low) * (intervals / (high - low))
    below = position.floor().clamp(max=intervals - 1)
    share_above = position - below
    index = below.long()
    projected = probs.new_zeros(len(probs), len(atoms))
    projected.scatter_add_(1, index, probs * (1.0 - share_above))
    return projected.scatter_add_(1, index + 1, probs * share_above)


def categorical_loss(log_probs: Tensor, target_probs: Tensor) -> Tensor:
    """Kullback-Leibler divergence of predicted from target probabilities, averaged (0-d).

    Its gradient is the cross-entropy's, C51's loss; at the target it is zero.

    Args:
        log_probs: predicted log-probabilities ``[B, N]``.
        target_probs: ``[B, N]``.
    """
    return F.kl_div(log_probs, target_probs, reduction="batchmean")
