"""Losses: functions of predictions and targets that know nothing of networks or logging.

Those of variational autoencoders, which networks compute themselves, are in
`raymimic.models.vae_losses`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_loss(preds: Tensor, labels: Tensor) -> Tensor:
    """One minus the cosine of the angle between vectors `[..., D]`, averaged (0-d)."""
    return 1.0 - F.cosine_similarity(preds, labels, dim=-1).mean()


def regression_loss(predictions: Tensor, targets: Tensor, use_huber: bool) -> Tensor:
    """Mean squared error, or the Huber loss with its corner at 1 (0-d)."""
    return F.smooth_l1_loss(predictions, targets) if use_huber else F.mse_loss(predictions, targets)


# ----------------------------------------------------------------------- temporal differences


def td_target(rewards: Tensor, dones: Tensor, next_values: Tensor, discount: float) -> Tensor:
    """Bellman's backup r + discount (1 - done) V(s').

    Args:
        rewards: `[B, 1]`, of one step or discounted sums of n.
        dones: `[B, 1]`, 1 where nothing follows.
        next_values: `[B, 1]`, or `[B, K]` for K values of each state.
        discount: of the next value, discount^n after n steps.

    Returns:
        Targets of the shape of `next_values`.
    """
    return rewards + discount * (1.0 - dones) * next_values


def ensemble_mix(values: Tensor, weight: float) -> Tensor:
    """Mixes an ensemble's estimates: weight * minimum + (1 - weight) * maximum.

    With weight 1 clipped double Q-learning (TD3, https://arxiv.org/abs/1802.09477), with less the
    soft version of BCQ (https://arxiv.org/abs/1812.02900, eq. 13).

    Args:
        values: `[n, *shape]`, of n members.
        weight: of the minimum, 0 to 1.

    Returns:
        `[*shape]`.
    """
    if weight == 1.0:  # to the bit the same
        return values.amin(dim=0)
    low, high = values.aminmax(dim=0)
    return torch.lerp(high, low, weight)


def project_onto_atoms(values: Tensor, probs: Tensor, atoms: Tensor) -> Tensor:
    """Moves the probability of each value onto its two neighbours among evenly spaced atoms.

    In proportion to their nearness; values beyond the outermost atoms go onto these (C51's
    projection Φ, https://arxiv.org/abs/1707.06887, eq. 7).

    Args:
        values: `[B, K]`.
        probs: their probabilities `[B, K]`.
        atoms: `[N]`, ascending, at least two.

    Returns:
        Probabilities of the atoms `[B, N]`.
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
        log_probs: predicted log-probabilities `[B, N]`.
        target_probs: `[B, N]`.
    """
    return F.kl_div(log_probs, target_probs, reduction="batchmean")


# -------------------------------------------------------------------- conservative Q-learning


def conservative_gap(sampled_values: Tensor, log_densities: Tensor, data_values: Tensor) -> Tensor:
    """How far the soft maximum of Q over all actions lies above Q of the data's: CQL(H).

    log ∫ exp Q(s, a) da is estimated from samples of several distributions, each weighed by the
    inverse of its density (https://arxiv.org/abs/2006.04779, eq. 4 and appendix F). As in
    `robomimic/algo/cql.py` samples are summed, not averaged: with M of them the result is log M
    larger than the paper's.

    Args:
        sampled_values: Q `[B, M]` of M actions sampled in each state.
        log_densities: `[B, M]`, of these actions under the distribution that each comes from.
        data_values: Q `[B]` of the dataset's actions.

    Returns:
        The mean over states (0-d).
    """
    return torch.logsumexp(sampled_values - log_densities, dim=1).mean() - data_values.mean()


# ------------------------------------------------------------------------ implicit Q-learning


def expectile_loss(predictions: Tensor, targets: Tensor, expectile: float) -> Tensor:
    """Mean of |τ - 1(target < prediction)| (target - prediction)² (0-d).

    Its minimum is the τ-expectile of the targets: their mean for τ = 0.5, towards their maximum
    for τ near 1 (https://arxiv.org/abs/2110.06169, eq. 5).
    """
    error = targets - predictions
    weight = (expectile - (error < 0).to(error.dtype)).abs()
    return (weight * error.square()).mean()


def advantage_weights(
    advantages: Tensor,
    temperature: float,
    max_advantage: float | None = None,
    max_weight: float | None = None,
) -> Tensor:
    """Weights exp(advantage / temperature) of an advantage-weighted regression.

    https://arxiv.org/abs/2110.06169, eq. 7, whose β is the inverse of this temperature.

    Args:
        advantages: of any shape.
        temperature: the smaller, the more do good actions count.
        max_advantage: greater advantages count as this.
        max_weight: greater weights are cut to this.

    Returns:
        Weights of the same shape.
    """
    if max_advantage is not None:
        advantages = advantages.clamp(max=max_advantage)
    weights = (advantages / temperature).exp()
    return weights if max_weight is None else weights.clamp(max=max_weight)
