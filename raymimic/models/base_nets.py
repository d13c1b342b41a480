"""Blocks that networks are built from."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from raymimic.errors import ConfigError, did_you_mean

# Multiply-adds of one matrix product from which oneDNN pays. On an AMD EPYC with AVX-512 (torch
# 2.13, one and two threads) its forward product is 1.4 to 2.4 times as fast as MKL's from 2**26 on.
# At 2**25 both take the same time, and a gradient that Python computes costs more than torch's own.
_ONEDNN_FROM = 2**25


def onednn_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Multiplies float32 matrices on CPU by oneDNN, which torch uses for lower precisions only.

    The one place that calls torch's private operator for it.

    Args:
        x: `[B, D]`; may be a transposed view.
        weight: `[E, D]`; likewise.
        bias: `[E]`.
        relu: apply a ReLU in the same pass.

    Returns:
        `x @ weight.T + bias`, `[B, E]`.
    """
    then = "relu" if relu else "none"
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return y


def has_hooks(module: nn.Module) -> bool:
    """Tells whether a call of the module does more than its `forward`."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer, with a ReLU after it if wanted, by oneDNN's products."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
        y = onednn_product(x, weight, bias, relu)
        ctx.save_for_backward(x, weight, y if relu else None)  # type: ignore[arg-type]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, after_relu = ctx.saved_tensors
        if after_relu is not None:
            grad = torch.ops.aten.threshold_backward(grad, after_relu, 0)
        # Gradients of gradients (`create_graph`) need products that torch can differentiate.
        product = F.linear if torch.is_grad_enabled() else onednn_product
        for_x, for_weight, for_bias, _ = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if for_x else None,
            product(grad.t(), x.t()) if for_weight else None,
            grad.sum(0) if for_bias else None,
            None,
        )


class Linear(nn.Linear):
    """`nn.Linear`, with large products by oneDNN on CPU.

    Torch multiplies float32 matrices by MKL, which leaves AVX-512 unused on AMD's processors.
    Results differ by rounding.
    """

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`, through a ReLU if wanted."""
        if (
            x.numel() * self.out_features >= _ONEDNN_FROM
            and x.device.type == "cpu"
            and x.dtype == torch.float32
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        ):
            flat = x.reshape(-1, self.in_features)
            y: Tensor = _OneDNNLinear.apply(flat, self.weight, self.bias, relu)  # type: ignore[no-untyped-call]
            return y.view(*x.shape[:-1], self.out_features)
        y = F.linear(x, self.weight, self.bias)
        # In place: the layer's gradient needs its input alone, and a second output costs a fifth of
        # the forward pass.
        return y.relu_() if relu else y


class MLP(nn.Module):
    """Linear layers with an activation after each hidden one.

    The parameters are those of robomimic's `MLP`: `_model.<i>.{weight,bias}`.

    Args:
        input_dim: size of the input.
        output_dim: size of the output.
        layer_dims: sizes of the hidden layers.
        activation: makes the module that follows each hidden layer.
        output_activation: makes the module that follows the last layer, if any.
        layer_norm: whether a LayerNorm stands before each activation (robomimic's
            `normalization`, which leaves out the last layer).
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        layer_dims: Sequence[int] = (),
        activation: Callable[[], nn.Module] = nn.ReLU,
        output_activation: Callable[[], nn.Module] | None = None,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()

        def norm(dim: int) -> list[nn.Module]:
            return [nn.LayerNorm(dim)] if layer_norm else []

        layers: list[nn.Module] = []
        dim = input_dim
        for hidden in layer_dims:
            layers += [Linear(dim, hidden), *norm(hidden), activation()]
            dim = hidden
        layers.append(Linear(dim, output_dim))
        if output_activation is not None:
            layers += [*norm(output_dim), output_activation()]
        self._model = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., input_dim]` to `[..., output_dim]`."""
        activated = False  # the linear layer before has applied the ReLU
        for layer, following in pairwise([*self._model, None]):
            if activated:
                activated = False
            elif type(layer) is Linear and type(following) is nn.ReLU:
                activated = not has_hooks(layer) and not has_hooks(following)
                x = layer(x, activated)
            else:
                x = layer(x)
        return x


RNNState = Tensor | tuple[Tensor, Tensor]

# The keys that algo.rnn.kwargs may have, besides "bidirectional": false.
_RNN_KWARGS = ("bias", "dropout")


def rnn_args_from_config(rnn_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.algo.rnn` as keyword arguments of the recurrent policies."""
    return {
        "rnn_hidden_dim": rnn_config["hidden_dim"],
        "rnn_num_layers": rnn_config["num_layers"],
        "rnn_type": rnn_config["rnn_type"],
        "rnn_kwargs": dict(rnn_config["kwargs"]),
    }


class RNN_Base(nn.Module):
    """Recurrent layers, with a network on top that sees each step by itself.

    The parameters are those of robomimic's `RNN_Base`: `per_step_net.*` and `nets.*`.

    Args:
        input_dim: size of each step's input.
        rnn_hidden_dim: size of the hidden state.
        rnn_num_layers: number of recurrent layers.
        rnn_type: `"LSTM"` or `"GRU"`.
        rnn_kwargs: further arguments of torch's module: `bias`, `dropout`.
        per_step_net: maps `[N, rnn_hidden_dim]` to a dict of `[N, ...]`.

    Raises:
        ConfigError: for another `rnn_type`, for `bidirectional` (robomimic trains such
            policies), and for unknown arguments.
    """

    def __init__(
        self,
        input_dim: int,
        rnn_hidden_dim: int,
        rnn_num_layers: int,
        per_step_net: nn.Module,
        rnn_type: str = "LSTM",
        rnn_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        types: dict[str, type[nn.LSTM | nn.GRU]] = {"LSTM": nn.LSTM, "GRU": nn.GRU}
        if rnn_type not in types:
            raise ConfigError(f"rnn_type '{rnn_type}' is unknown{did_you_mean(rnn_type, types)}")
        kwargs = dict(rnn_kwargs or {})
        if kwargs.pop("bidirectional", False):
            raise ConfigError(
                "algo.rnn.kwargs.bidirectional: a policy that also reads the sequence backwards "
                "learns from observations of the future, which it does not have when it acts: set "
                "it to false"
            )
        for key in kwargs:
            if key not in _RNN_KWARGS:
                hint = did_you_mean(key, _RNN_KWARGS)
                raise ConfigError(f"algo.rnn.kwargs.{key}: there is no such argument{hint}")
        self.per_step_net = per_step_net
        self.nets = types[rnn_type](
            input_dim, rnn_hidden_dim, rnn_num_layers, batch_first=True, **kwargs
        )

    def get_rnn_init_state(self, batch_size: int, device: torch.device | str) -> RNNState:
        """Returns the state before the first step: zeros `[L, B, H]`, of an LSTM two of them."""
        size = (self.nets.num_layers, batch_size, self.nets.hidden_size)
        dtype = next(self.nets.parameters()).dtype
        zeros = torch.zeros(size, dtype=dtype, device=device)
        return (zeros, zeros.clone()) if isinstance(self.nets, nn.LSTM) else zeros

    def forward(
        self, inputs: Tensor, rnn_init_state: RNNState | None = None
    ) -> tuple[dict[str, Tensor], RNNState]:
        """Maps a sequence to the top network's output at each step.

        Args:
            inputs: `[B, T, D]`.
            rnn_init_state: state before the first step; None: zeros.

        Returns:
            `{output: [B, T, *shape]}` and the state after the last step.
        """
        hidden, state = self.nets(inputs, rnn_init_state)
        outputs = self.per_step_net(hidden.flatten(0, 1))
        leading = hidden.shape[:2]
        return {k: x.unflatten(0, leading) for k, x in outputs.items()}, state


class Parameter(nn.Module):
    """One tensor that is learned, such as a Lagrange multiplier, under robomimic's key `param`.

    Args:
        init: where it starts.
    """

    def __init__(self, init: Tensor) -> None:
        super().__init__()
        self.param = nn.Parameter(init)

    def forward(self) -> Tensor:
        """Returns the tensor."""
        return self.param
