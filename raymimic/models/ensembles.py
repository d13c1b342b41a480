"""Networks of one shape, computed together."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models.base_nets import MLP
from raymimic.models.obs_nets import MIMO_MLP, ObsDict, ObservationDecoder

# Multiply-adds of a member's largest product up to which one batched product for all is faster
# on CPU, where larger ones are better left to oneDNN (benchmarks/results/critic_ensembles.json).
_BATCHED_UP_TO = 2**20


def can_be_batched(nets: Sequence[MIMO_MLP]) -> bool:
    """Tells whether :func:`forward_batched` applies: several networks that see the same features.

    Encoders that learn would give each its own.
    """
    return len(nets) > 1 and not any(True for _ in nets[0].nets["encoder"].parameters())


def rows_worth_batching(nets: Sequence[MIMO_MLP]) -> int:
    """Returns the largest batch for which :func:`forward_batched` beats a loop on CPU."""
    return _BATCHED_UP_TO // max(p.numel() for p in nets[0].parameters())


def forward_batched(nets: Sequence[MIMO_MLP], **groups: ObsDict | None) -> dict[str, Tensor]:
    """Maps observations through all members of an ensemble, layer by layer.

    The same numbers and gradients as member by member, up to rounding, by one product of matrices
    for each layer. Weights are stacked on the way: parameters and optimizers stay each member's.

    Args:
        nets: networks of one shape, see :func:`can_be_batched`.
        **groups: as :class:`~raymimic.models.obs_nets.MIMO_MLP` takes them.

    Returns:
        ``{output: [n, B, *shape]}``.
    """
    first = nets[0]
    x: Tensor = first.nets["encoder"](**groups)
    mlps = [cast("MLP", net.nets["mlp"]) for net in nets]
    for members in zip(*(mlp._model for mlp in mlps), strict=True):
        x = _linear(x, members) if isinstance(members[0], nn.Linear) else members[0](x)
    decoders = [cast("ObservationDecoder", net.nets["decoder"]) for net in nets]
    outputs: dict[str, Tensor] = {}
    for key, shape in decoders[0].shapes.items():
        y = _linear(x, [decoder.nets[key] for decoder in decoders])
        outputs[key] = y.view(*y.shape[:-1], *shape)
    return outputs


def _linear(x: Tensor, layers: Sequence[nn.Module]) -> Tensor:
    """Maps ``[B, D]``, the same for all, or ``[n, B, D]`` to ``[n, B, E]`` by n linear layers."""
    weights = [cast("Tensor", layer.weight) for layer in layers]
    biases = [cast("Tensor", layer.bias) for layer in layers]
    if x.dim() == 2:  # one product serves all
        y = F.linear(x, torch.cat(weights), torch.cat(biases))
        return y.view(len(x), len(layers), -1).transpose(0, 1)
    return torch.baddbmm(torch.stack(biases).unsqueeze(1), x, torch.stack(weights).mT)
