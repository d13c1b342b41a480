"""BatchNorm over the samples of all workers.

Ioffe & Szegedy, "Batch Normalization" (2015), https://arxiv.org/abs/1502.03167, algorithm 1 and the
gradients of its section 3, with the batch being the global one.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from raymimic.errors import ConfigError
from raymimic.ranks import GradSync, current_sync


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose mean and variance, in training, are those of the global batch.

    Its state and its numbers are those of `nn.BatchNorm2d` on one worker that sees the whole batch,
    for any number of workers (of `raymimic.ranks.synchronized`), however many samples each has. A
    worker without a sample, whose row does not count, and one without rows take part too. All ranks
    run the same forward and backward passes, with one exchange in each. In evaluation mode, and on
    one worker, nothing is exchanged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `[B, C, H, W]`, this rank's rows of a batch, per channel.

        Raises:
            ConfigError: in training, each channel has a single number, which has no variance.
        """
        sync = current_sync()
        if not self.training or sync is None or sync.world_size == 1:
            if self.training and x.numel() == self.num_features:
                raise ConfigError(
                    "BatchNorm takes the variance of a batch, and here each channel has a single "
                    "number (one sample, a map of 1 x 1): raise train.batch_size to at least 2, or "
                    "take larger images or crops"
                )
            return super().forward(x)
        self._check_input_dim(x)
        mean, var, count = _statistics(x.detach(), sync)
        if self.track_running_stats:
            self._follow(mean, var, count)
        args = x, self.weight, self.bias, mean, var, count, self.eps, sync
        return cast("Tensor", _Normalize.apply(*args))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Moves the running statistics towards those of a batch, as torch does."""
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        share: float | Tensor = 1.0 / self.num_batches_tracked
        if self.momentum is not None:
            share = self.momentum
        unbiased = var * (count / (count - 1.0).clamp(min=1.0))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.add_((new - running).mul_(share))


def _statistics(x: Tensor, sync: GradSync) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance `[C]` of each channel over the rows of all ranks, and their number (0-d).

    The ranks' own are joined by the formula of Chan et al. (1979), which, unlike sums of squares,
    loses no digits where the mean is large. At least in float32.

    Args:
        x: `[B, C, H, W]`, this rank's rows.
        sync: the ranks.
    """
    channels = x.shape[1]
    dtype = torch.promote_types(x.dtype, torch.float32)
    own = x.new_zeros(2 * channels + 1, dtype=dtype)
    if sync.weight > 0.0 and x.numel() > 0:
        own_var, own_mean = torch.var_mean(x.to(dtype), dim=(0, 2, 3), correction=0)
        own = torch.cat([own_mean, own_var, own.new_full((1,), x.numel() // channels)])
    ranks = sync.gather(own)
    means, variances, counts = torch.split(ranks, [channels, channels, 1], dim=1)
    count = counts.sum()
    shares = counts / count
    mean = (shares * means).sum(dim=0)
    var = (shares * (variances + (means - mean).square())).sum(dim=0)
    return mean, var, count


class _Normalize(torch.autograd.Function):
    """`(x - mean) / sqrt(var + eps) * weight + bias`, of which mean and variance depend on x.

    The loss of rank r is a mean over its own n_r samples, and its gradients will be weighted by
    w_r = n_r / B and added to those of the others. Let h be the gradient of rank r's loss with
    respect to its outputs, so that w_r h is that of the global loss; x̂ the normalised inputs, and M
    the rows of all ranks. Then that of the global loss with respect to x is

        weight / std * (w_r h - (S1 + x̂ S2) / M),    S1 = Σ_r w_r Σ h,    S2 = Σ_r w_r Σ h x̂,

    and rank r returns it divided by w_r, as it is weighted later. The gradients of weight and bias
    are sums over a rank's own rows, weighted and added with the rest.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
        sync: GradSync,
    ) -> Tensor:
        """Normalises with the statistics of the global batch."""
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps), count)
        # A backward pass on a GPU runs in a thread of its own, without the context of this one.
        ctx.sync, ctx.share = sync, sync.weight
        if x.numel() == 0:
            return torch.empty_like(x)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of x, weight and bias."""
        x, weight, mean, scale, count = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        per_channel = (1, -1, 1, 1)
        h = grad.to(mean.dtype)
        normalized = (x.to(mean.dtype) - mean.view(per_channel)) * scale.view(per_channel)
        sums = torch.stack([h.sum(dim=(0, 2, 3)), (h * normalized).sum(dim=(0, 2, 3))])
        grad_x = None
        if needs_x:
            # Rows that do not count flow into no statistics, and their gradient counts for nothing.
            inverse = 1.0 / ctx.share if ctx.share > 0.0 else 0.0
            s1, s2 = ctx.sync.gather(sums * ctx.share).sum(dim=0) * (inverse / count)
            if weight is not None:
                scale = scale * weight
            flowing = h - s1.view(per_channel) - normalized * s2.view(per_channel)
            grad_x = (flowing * scale.view(per_channel)).to(x.dtype)
        grad_weight = sums[1].to(weight.dtype) if weight is not None and needs_weight else None
        grad_bias = sums[0].to(weight.dtype) if weight is not None and needs_bias else None
        return grad_x, grad_weight, grad_bias, None, None, None, None, None
