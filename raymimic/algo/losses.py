"""Losses: functions of predictions and targets that know nothing of networks or logging."""

import torch.nn.functional as F
from torch import Tensor


def cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """One minus the cosine of the angle between vectors ``[..., D]``, averaged (0-d)."""
    return 1.0 - F.cosine_similarity(predictions, targets, dim=-1).mean()


def regression_loss(predictions: Tensor, targets: Tensor, use_huber: bool) -> Tensor:
    """Mean squared error, or the Huber loss with its corner at 1 (0-d)."""
    return F.smooth_l1_loss(predictions, targets) if use_huber else F.mse_loss(predictions, targets)
