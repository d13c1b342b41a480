"""Networks of one shape, computed together."""

from collections.abc import Hashable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models.base_nets import MLP, Linear, is_altered
from raymimic.models.obs_nets import (
    MIMO_MLP,
    ObsDict,
    ObservationDecoder,
    ObservationEncoder,
    ObservationGroupEncoder,
)

# Multiply-adds of a member's largest product up to which one batched product for all is faster
# on CPU, where larger ones are better left to oneDNN (benchmarks/results/critic_ensembles.json).
_BATCHED_UP_TO = 2**20

# Activations that map each element by itself, have nothing to learn and no settings: for all
# members at once they compute the same as for one.
_ELEMENTWISE = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softsign, nn.Identity)


def can_be_batched(nets: Sequence[nn.Module]) -> bool:
    """Tells whether `forward_batched` computes the same as each member alone.

    That is so of several networks of one shape, encoders without parameters, linear layers and
    plain activations between them. A layer with parameters or settings of another kind (LayerNorm,
    PReLU, dropout, an encoder that learns, a layer of the user's own), or a module that was altered
    (`is_altered`), is left to each member. Looked up at each call, as members may be changed at any
    time.
    """
    shapes = {_shape(net) for net in nets}
    return len(nets) > 1 and len(shapes) == 1 and None not in shapes


def _shape(net: nn.Module) -> Hashable:
    """Returns the structure that a network shares with those it can be batched with, or None."""
    if not isinstance(net, MIMO_MLP) or is_altered(net) or len(net.nets) != 3:
        return None
    encoder, mlp, decoder = (net.nets[name] for name in ("encoder", "mlp", "decoder"))
    if type(encoder) is not ObservationGroupEncoder or is_altered(encoder):
        return None
    if type(mlp) is not MLP or is_altered(mlp):
        return None
    if type(mlp._model) is not nn.Sequential or is_altered(mlp._model):
        return None
    if type(decoder) is not ObservationDecoder or is_altered(decoder):
        return None
    inputs = [(group, _encoder_shape(net)) for group, net in encoder.nets.items()]
    layers = [_layer_shape(layer) for layer in mlp._model]
    outputs = [_linear_shape(layer) for layer in decoder.nets.values()]
    if None in layers or None in outputs or any(keys is None for _, keys in inputs):
        return None
    return type(net), tuple(inputs), tuple(layers), tuple(outputs), tuple(decoder.shapes.items())


def _encoder_shape(encoder: nn.Module) -> Hashable:
    if type(encoder) is not ObservationEncoder or is_altered(encoder):
        return None
    if len(encoder.obs_nets) or len(encoder.obs_randomizers):
        return None
    return tuple(encoder.obs_shapes)


def _layer_shape(layer: nn.Module) -> Hashable:
    if type(layer) in _ELEMENTWISE:
        return None if is_altered(layer) else type(layer).__name__
    return _linear_shape(layer)


def _linear_shape(layer: nn.Module) -> Hashable:
    """Returns the shape of a plain linear layer; None of any other."""
    if type(layer) not in (Linear, nn.Linear) or is_altered(layer):
        return None
    # Weight normalisation, pruning and the like put something else in a parameter's place.
    if not (isinstance(layer.weight, nn.Parameter) and isinstance(layer.bias, nn.Parameter)):
        return None
    return layer.weight.shape


def rows_worth_batching(nets: Sequence[MIMO_MLP]) -> int:
    """Returns the largest batch for which `forward_batched` beats a loop on CPU."""
    return _BATCHED_UP_TO // max(p.numel() for p in nets[0].parameters())


def forward_batched(nets: Sequence[MIMO_MLP], **groups: ObsDict | None) -> dict[str, Tensor]:
    """Maps observations through all members of an ensemble, layer by layer.

    The same numbers and gradients as member by member, up to rounding, by one product of matrices
    for each layer. Weights are stacked on the way: parameters and optimizers stay each member's.

    Args:
        nets: networks of one shape, see `can_be_batched`.
        **groups: as `MIMO_MLP` takes them.

    Returns:
        `{output: [n, B, *shape]}`.
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
    """Maps `[B, D]`, the same for all, or `[n, B, D]` to `[n, B, E]` by n linear layers."""
    weights = [cast("Tensor", layer.weight) for layer in layers]
    biases = [cast("Tensor", layer.bias) for layer in layers]
    if x.dim() == 2:  # one product serves all
        y = F.linear(x, torch.cat(weights), torch.cat(biases))
        return y.view(len(x), len(layers), -1).transpose(0, 1)
    return torch.baddbmm(torch.stack(biases).unsqueeze(1), x, torch.stack(weights).mT)
