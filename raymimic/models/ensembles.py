"""Networks of one shape, computed together."""

from collections.abc import Hashable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.models.base_nets import Step, is_altered
from raymimic.models.obs_coders import ObsDict
from raymimic.models.obs_nets import MIMO_MLP

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
    if not isinstance(net, MIMO_MLP) or is_altered(net):
        return None
    chain = net.layer_chain()
    steps = tuple(_step_shape(step) for step in (*chain.steps, *chain.outputs.values()))
    if not chain.inputs or not chain.outputs or None in steps:
        return None
    return type(net), tuple(chain.inputs), steps, tuple(chain.decoder.shapes.items())


def _step_shape(step: Step) -> Hashable:
    """Returns the shape of a linear layer with a bias, or an activation's name; else None."""
    if step.params is None:
        plain = type(step.layer) in _ELEMENTWISE and not is_altered(step.layer)
        return type(step.layer).__name__ if plain else None
    weight, bias = step.params["weight"], step.params["bias"]
    return None if weight is None or bias is None else (weight.shape, step.relu)


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
    chains = [net.layer_chain() for net in nets]
    first = chains[0]
    x = first.features(groups)
    for steps in zip(*(chain.steps for chain in chains), strict=True):
        x = _together(x, steps)
    return {
        key: first.decoder.shaped(key, _together(x, [chain.outputs[key] for chain in chains]))
        for key in first.outputs
    }


def _together(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Maps `[B, D]`, the same for all, or `[n, B, D]` to `[n, B, E]` by n steps of one shape."""
    params = [step.params for step in steps if step.params is not None]
    if not params:
        y: Tensor = steps[0].layer(x)
        return y
    weights, biases = ([cast("Tensor", own[name]) for own in params] for name in ("weight", "bias"))
    if x.dim() == 2:  # one product serves all
        y = F.linear(x, torch.cat(weights), torch.cat(biases))
        y = y.view(len(x), len(steps), -1).transpose(0, 1)
    else:
        y = torch.baddbmm(torch.stack(biases).unsqueeze(1), x, torch.stack(weights).mT)
    return y.relu() if steps[0].relu else y
