"""Changes that users make to the layers of an MLP: other modules, hooks, other parameters."""

import warnings

import torch
from torch import nn
from torch.nn.utils import prune


class Bend(nn.Module):
    """A layer of a user's own, whose parameter differs from member to member."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.rand(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.p * torch.sin(x)


def layer_norm(layers: nn.Sequential) -> None:
    layers[1] = nn.Sequential(nn.LayerNorm(8), nn.ReLU())
    nn.init.normal_(layers[1][0].weight)


def batch_norm(layers: nn.Sequential) -> None:
    layers[1] = nn.BatchNorm1d(8)
    nn.init.normal_(layers[1].weight)


def prelu(layers: nn.Sequential) -> None:
    layers[1] = nn.PReLU(8)
    nn.init.normal_(layers[1].weight)


def leaky(layers: nn.Sequential) -> None:
    layers[1] = nn.LeakyReLU(float(torch.rand(())))


def softmax_over_the_batch(layers: nn.Sequential) -> None:
    layers[1] = nn.Softmax(dim=0)


def own_module(layers: nn.Sequential) -> None:
    layers[1] = Bend()


def frozen_first_layer(layers: nn.Sequential) -> None:
    layers[0].requires_grad_(False)


def without_bias(layers: nn.Sequential) -> None:
    layers[0] = nn.Linear(9, 8, bias=False)


def weight_norm(layers: nn.Sequential) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layers[0])
    nn.init.normal_(layers[0].weight_g)


def parametrized(layers: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(layers[0])
    nn.init.normal_(layers[0].parametrizations.weight.original0)


def pruned(layers: nn.Sequential) -> None:
    prune.random_unstructured(layers[0], "weight", amount=0.5)
    nn.init.normal_(layers[0].weight_orig)


def hooked_layer(layers: nn.Sequential) -> None:
    factor = float(torch.rand(()))
    layers[0].register_forward_hook(lambda module, inputs, output: output * factor - 0.1)


def hooked_activation(layers: nn.Sequential) -> None:
    layers[1].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 0.3,))


def hooked_layers(layers: nn.Sequential) -> None:
    factor = float(torch.rand(()))
    layers.register_forward_hook(lambda module, inputs, output: output * factor - 0.1)


def tanh(layers: nn.Sequential) -> None:
    layers[1] = nn.Tanh()


def patched_layer(layers: nn.Sequential) -> None:
    factor, forward = float(torch.rand(())), layers[0].forward
    layers[0].forward = lambda x: forward(x) * factor - 0.1


def patched_activation(layers: nn.Sequential) -> None:
    layers[1].forward = lambda x: x.sin()


def plain_tensor(layers: nn.Sequential) -> None:
    weight = torch.randn_like(layers[0].weight)
    del layers[0].weight
    layers[0].weight = weight


def another_parameter(layers: nn.Sequential) -> None:
    layers[0].weight = nn.Parameter(torch.randn_like(layers[0].weight))


def one_activation_less(layers: nn.Sequential) -> None:
    del layers[1]


def one_layer_more(layers: nn.Sequential) -> None:
    layers.insert(2, nn.Linear(8, 8, dtype=layers[0].weight.dtype))


CHANGES = [layer_norm, batch_norm, prelu, leaky, softmax_over_the_batch, own_module]
CHANGES += [frozen_first_layer, without_bias, weight_norm, parametrized, pruned]
CHANGES += [hooked_layer, hooked_activation, hooked_layers, patched_layer]
CHANGES += [patched_activation, tanh, plain_tensor]
CHANGES += [another_parameter, one_activation_less, one_layer_more]
