"""Data parallelism by averaging gradients: N workers compute the step of one.

One flat all-reduce per optimizer, between backward and clipping. Unlike a wrapper around each
network it covers any call path (custom methods, several networks in one loss) and keeps state-dict
keys.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist

# Imported before a process group exists: otherwise default arguments of its functions would hold
# the group, whose threads would outlive `destroy_process_group` and sometimes abort the
# interpreter's exit.
import torch.distributed.nn
from torch import Tensor, nn

from raymimic.errors import OutputError, TrainingError
from raymimic.tensors import copy_each


class GradientSync:
    """The ranks that train one model together, a `raymimic.ranks.GradSync`.

    Rank r has `n_r` samples of a global batch of `B`, and its loss is a mean over these. So the
    global mean weights rank r by `n_r / B`.

    Attributes:
        world_size: number of ranks.
        weight: `n_r / B` of the current step; the training loop sets it before each step.
    """

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.weight = 1.0

    def average_gradients(self, params: Iterable[nn.Parameter]) -> None:
        """Replaces every gradient by its weighted mean over the ranks, in place.

        Parameters without a gradient are skipped. They are the same on all ranks, which run the
        same program.
        """
        if self.world_size == 1:
            return
        grads = [p.grad for p in params if p.grad is not None]
        if not grads:
            return
        flat = torch.cat([g.reshape(-1) for g in grads])
        flat.mul_(self.weight)
        dist.all_reduce(flat)
        pieces = torch.split(flat, [g.numel() for g in grads])
        copy_each(grads, [p.view_as(g) for p, g in zip(pieces, grads, strict=True)])

    def mean(self, x: Tensor) -> Tensor:
        """The global batch's mean, from this rank's mean over its samples; detached."""
        mean = x.detach().mean()
        if self.world_size > 1:
            mean = mean * self.weight
            dist.all_reduce(mean)
        return mean

    def gather(self, x: Tensor) -> Tensor:
        """The tensors of all ranks, of one shape, in the ranks' order; detached."""
        ranks = x.new_empty(self.world_size, *x.shape)
        if self.world_size > 1:
            dist.all_gather(list(ranks.unbind()), x.detach().contiguous())
        else:
            ranks[0] = x.detach()
        return ranks

    def broadcast_state(self, nets: nn.Module) -> None:
        """Gives every rank the first rank's parameters and buffers."""
        if self.world_size > 1:
            for tensor in nets.state_dict().values():
                dist.broadcast(tensor, src=0)

    def check_same_start(self, epoch: int, run_dir: str) -> None:
        """Makes sure that all ranks start from the same checkpoint.

        Raises:
            OutputError: they do not, as they see different folders.
        """
        if self.world_size == 1:
            return
        epochs: list[int] = [0] * self.world_size
        dist.all_gather_object(epochs, epoch)
        if len(set(epochs)) > 1:
            raise OutputError(
                f"the workers do not see the same run at '{run_dir}' (their last checkpoints are "
                f"of epochs {epochs}); ray.storage_path must be a folder that all nodes share, or "
                "a URI"
            )

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (all ranks must call it)."""
        if self.world_size == 1:
            return flag
        flags: list[bool] = [False] * self.world_size
        dist.all_gather_object(flags, flag)
        return any(flags)

    def check_replicas(self, nets: nn.Module, epoch: int) -> None:
        """Compares the parameters of all ranks, by a checksum of each parameter's bits.

        Raises:
            TrainingError: the replicas differ; the sentence names the first such parameter.
        """
        if self.world_size == 1:
            return
        named = dict(nets.named_parameters())
        sums = torch.stack([_checksum(p.detach()) for p in named.values()])
        low, high = sums.clone(), sums.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        differing = (low != high).nonzero().flatten().tolist()
        if differing:
            key = list(named)[differing[0]]
            raise TrainingError(
                f"the workers' copies of '{key}' differ after epoch {epoch} "
                f"({len(differing)} of {len(named)} parameters do): this algorithm updates it "
                "without TorchUtils.backprop_for_loss, which averages gradients over the workers"
            )


def _checksum(x: Tensor) -> Tensor:
    """Sum of a tensor's bit patterns as integers (`[]`, int64); wraps, and is exact."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(x.element_size(), torch.uint8)
    return x.contiguous().reshape(-1).view(bits).sum(dtype=torch.int64)
