"""Terms of a variational autoencoder's loss (Kingma & Welling 2014), as functions of tensors.

They stand beside the networks, which compute them, and not in `raymimic.algo.losses`, as
networks know nothing of algorithms. All of them are means over the batch (0-d).
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


def standard_normal_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of diagonal Gaussians `[B, D]`."""
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).sum(dim=-1).mean()


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor, prior_logvar: Tensor) -> Tensor:
    """KL of the diagonal Gaussian of `mean` and `logvar` `[B, D]` from the prior's.

    Args:
        mean: means of the posterior.
        logvar: logarithms of its variances.
        prior_mean: `[B, D]` or `[1, D]`.
        prior_logvar: `[B, D]` or `[1, D]`.
    """
    difference = logvar - prior_logvar
    distance = (mean - prior_mean).square() / prior_logvar.exp()
    return 0.5 * (distance + difference.exp() - 1.0 - difference).sum(dim=-1).mean()


def gaussian_log_prob(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Log-density `[...]` of diagonal Gaussians at points `[..., D]`."""
    squares = (x - mean).square() / logvar.exp()
    return -0.5 * (squares + logvar + math.log(2.0 * math.pi)).sum(dim=-1)


def mixture_log_prob(x: Tensor, means: Tensor, logvars: Tensor, logits: Tensor) -> Tensor:
    """Log-density `[B]` of Gaussian mixtures at points `[B, D]`.

    Args:
        x: the points.
        means: `[B, M, D]` or `[1, M, D]`, of the M modes.
        logvars: logarithms of the modes' variances, `[B, M, D]` or `[1, M, D]`.
        logits: `[B, M]` or `[1, M]`, logarithms of the modes' weights up to a constant.
    """
    log_probs = gaussian_log_prob(x.unsqueeze(1), means, logvars) + logits.log_softmax(dim=-1)
    return log_probs.logsumexp(dim=-1)


def categorical_kl(logits: Tensor, prior_logits: Tensor) -> Tensor:
    """KL between independent categorical variables, summed over them.

    Args:
        logits: `[B, D, C]`: D variables of C classes.
        prior_logits: `[B, D, C]` or `[1, D, C]`.
    """
    log_probs = logits.log_softmax(dim=-1)
    ratio = log_probs - prior_logits.log_softmax(dim=-1)
    return (log_probs.exp() * ratio).sum(dim=(-2, -1)).mean()


def reconstruction_loss(
    predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor], sum_elements: bool = False
) -> Tensor:
    """Squared error of reconstructions `{key: [B, *shape]}`.

    Args:
        predictions: of the decoder.
        targets: the true values; may hold more keys.
        sum_elements: add up the errors of all elements of a sample, as the evidence lower bound
            has it; else each key's error is averaged, and then the keys'.
    """
    errors = [(x - targets[key]).square() for key, x in predictions.items()]
    if sum_elements:
        return torch.stack([error.sum() / len(error) for error in errors]).sum()
    return torch.stack([error.mean() for error in errors]).mean()
