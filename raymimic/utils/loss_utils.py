"""robomimic's `loss_utils`."""

import math

import torch
from torch import Tensor

from raymimic.algo.losses import cosine_loss, project_onto_atoms
from raymimic.models.vae_losses import gaussian_kl, standard_normal_kl

__all__ = [
    "KLD_0_1_loss",
    "KLD_gaussian_loss",
    "cosine_loss",
    "log_mean_exp",
    "log_normal",
    "log_normal_mixture",
    "log_sum_exp",
    "project_values_onto_atoms",
]


def KLD_0_1_loss(mu: Tensor, logvar: Tensor) -> Tensor:  # noqa: N802 # robomimic's name
    """Kullback-Leibler divergence of N(mu, exp(logvar)) `[B, D]` from N(0, 1), averaged (0-d)."""
    return standard_normal_kl(mu, logvar)


def KLD_gaussian_loss(  # noqa: N802 # robomimic's name
    mu_1: Tensor, logvar_1: Tensor, mu_2: Tensor, logvar_2: Tensor
) -> Tensor:
    """Likewise of the first Gaussian `[B, D]` from the second."""
    return gaussian_kl(mu_1, logvar_1, mu_2, logvar_2)


def log_normal(x: Tensor, m: Tensor, v: Tensor) -> Tensor:
    """Log-likelihood `[...]` of `x [..., D]` under means `m` and variances `v` of its shape."""
    elements = (x - m).square() / v + v.log() + math.log(2.0 * math.pi)
    return -0.5 * elements.sum(-1)


def log_sum_exp(x: Tensor, dim: int = 0) -> Tensor:
    """Logarithm of the sum of exponentials along a dimension."""
    return torch.logsumexp(x, dim)


def log_mean_exp(x: Tensor, dim: int) -> Tensor:
    """Logarithm of the mean of exponentials along a dimension."""
    return torch.logsumexp(x, dim) - math.log(x.shape[dim])


def log_normal_mixture(
    x: Tensor, m: Tensor, v: Tensor, w: Tensor | None = None, log_w: Tensor | None = None
) -> Tensor:
    """Log-likelihood under a mixture of M Gaussians.

    Args:
        x: `[B, D]`.
        m: means `[B, M, D]` or `[1, M, D]`.
        v: variances `[B, M, D]` or `[1, M, D]`.
        w: weights `[B, M]` or `[1, M]`; None: all are equal.
        log_w: their logarithms instead.

    Returns:
        `[B]`.

    Raises:
        ValueError: both `w` and `log_w` are given.
    """
    if w is not None and log_w is not None:
        raise ValueError("the weights of a mixture are given as w or as log_w, not as both")
    components = log_normal(x[:, None], m, v)
    if w is not None:
        log_w = w.log()
    return log_mean_exp(components, 1) if log_w is None else log_sum_exp(components + log_w, 1)


def project_values_onto_atoms(values: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Moves probabilities onto evenly spaced atoms.

    Args:
        values: `[B, K]`.
        probabilities: of the values `[B, K]`.
        atoms: `[N]` or `[1, N]`, ascending.

    Returns:
        Probabilities of the atoms `[B, N]`. (robomimic cuts the values to the first two atoms;
        here they reach the last, as published: see `raymimic.algo.losses.project_onto_atoms`.)
    """
    return project_onto_atoms(values, probabilities, atoms.reshape(-1))
