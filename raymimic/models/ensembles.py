"""Networks of one shape, computed together."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models.obs_nets import MIMO_MLP, ObsDict

# Multiply-adds of a member's largest product up to which one batched product for all is faster
# on CPU, where larger ones are better left to oneDNN (benchmarks/results/critic_ensembles.json).
_BATCHED_UP_TO = 2**20


def batching_pays(nets: Sequence[MIMO_MLP], x: Tensor) -> bool:
    """Tells whether :func:`forward_batched` applies to these networks and is faster than a loop.

    It applies where encoders learn nothing, so that all members see the same features. It is
    faster for small products, and on GPUs, whose time goes into launching them.

    Args:
        nets: networks of one shape.
        x: ``[B, ...]``, one of the inputs.
    """
    if len(nets) == 1 or any(True for _ in nets[0].nets["encoder"].parameters()):
        return False
    largest = max(p.numel() for p in nets[0].parameters())
    return x.is_cuda or x.shape[0] * largest <= _BATCHED_UP_TO


def forward_batched(nets: Sequence[MIMO_MLP], **groups: ObsDict | None) -> dict[str, Tensor]:
    """Maps observations through all members of an ensemble, layer by layer.

    The same numbers and gradients as member by member, up to rounding, by one product of matrices
    for each layer. Weights are stacked on the way: parameters and optimizers stay each member's.

    Args:
        nets: networks of one shape, see :func:`batching_pays`.
        **groups: as :class:`~raymimic.models.obs_nets.MIMO_MLP` takes them.

    Returns:
        ``{output: [n, B, *shape]}``.
    """
    first = nets[0]
    x = first.nets["encoder"](**groups)
    layers = [cast("nn.Sequential", cast("nn.Module", net.nets["mlp"])._model) for net in nets]
    for members in zip(*layers, strict=True):
        x = _linear(x, members) if isinstance(members[0], nn.Linear) else members[0](x)
    decoder = first.nets["decoder"]
    outputs: dict[str, Tensor] = {}
    for key, shape in decoder.shapes.items():
        y = _linear(x, [net.nets["decoder"].nets[key] for net in nets])
        outputs[key] = y if len(shape) == 1 else y.unflatten(-1, shape)
    return outputs


def _linear(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Maps ``[B, D]``, the same for all, or ``[n, B, D]`` to ``[n, B, E]`` by n linear layers."""
    if x.dim() == 2:  # one product serves all
        weight = torch.cat([cast("Tensor", layer.weight) for layer in layers])
        bias = torch.cat([cast("Tensor", layer.bias) for layer in layers])
        return F.linear(x, weight, bias).unflatten(-1, (len(layers), -1)).transpose(0, 1)
    weight = torch.stack([cast("Tensor", layer.weight) for layer in layers])
    bias = torch.stack([cast("Tensor", layer.bias) for layer in layers])
    return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
