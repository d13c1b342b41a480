"""Blocks that networks are built from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

# Multiply-adds of one matrix product from which oneDNN's start-up is worth its speed.
_ONEDNN_FROM = 2**20


def _onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns ``x @ weight.T + bias`` by oneDNN; operands may be transposed views."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer whose products, forward and backward, are oneDNN's."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _onednn_product(grad, weight.t()) if for_x else None,
            _onednn_product(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
        )


class Linear(nn.Linear):
    """``nn.Linear``, up to three times as fast on processors that are not Intel's.

    Torch multiplies float32 matrices on CPU by MKL, which leaves AVX-512 unused on AMD's; oneDNN,
    which ships with torch too, uses what the processor has. Results differ by rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., in_features]`` to ``[..., out_features]``."""
        rows = x.numel() // self.in_features
        if (
            x.device.type == "cpu"
            and x.dtype == torch.float32
            and rows * self.weight.numel() >= _ONEDNN_FROM
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        ):
            flat = x.reshape(rows, self.in_features)
            y: Tensor = _OneDNNLinear.apply(flat, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return y.view(*x.shape[:-1], self.out_features)
        return F.linear(x, self.weight, self.bias)


class MLP(nn.Module):
    """Linear layers with an activation after each hidden one.

    The parameters are those of robomimic's ``MLP``: ``_model.<i>.{weight,bias}``.

    Args:
        input_dim: size of the input.
        output_dim: size of the output.
        layer_dims: sizes of the hidden layers.
        activation: makes the module that follows each hidden layer.
        output_activation: makes the module that follows the last layer, if any.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        layer_dims: Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        output_activation: Callable[[], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        dim = input_dim
        for hidden in layer_dims:
            layers += [Linear(dim, hidden), activation()]
            dim = hidden
        layers.append(Linear(dim, output_dim))
        if output_activation is not None:
            layers.append(output_activation())
        self._model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[..., input_dim]`` to ``[..., output_dim]``."""
        y: Tensor = self._model(x)
        return y
