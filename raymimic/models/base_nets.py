"""Blocks that networks are built from."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn.modules import module as torch_module

from raymimic.errors import ConfigError, did_you_mean
from raymimic.tensors import map_tensor


def onednn_pays_from(cpuinfo: Path = Path("/proc/cpuinfo")) -> float:
    """Returns the multiply-adds of one matrix product from which oneDNN is faster than torch's MKL.

    On an AMD EPYC, whose AVX-512 MKL leaves unused, a large layer's pass, forward and backward, is
    1.5 times as fast with one thread, and 1.2 times with two (`benchmarks/linear_layers.py`). It
    gains less on smaller products, as its gradient, which Python computes, costs more than torch's
    own. On an Intel Xeon MKL is faster by a quarter.

    Args:
        cpuinfo: where Linux describes the processor.
    """
    try:
        with cpuinfo.open() as file:
            first = file.read(256)
    except OSError:  # not Linux
        return math.inf
    return 2**23 if "AuthenticAMD" in first else math.inf


_ONEDNN_FROM = onednn_pays_from()
_HOOKS_OF_ALL_MODULES = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)


def onednn_product(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False
) -> Tensor:
    """Multiplies float32 matrices on CPU by oneDNN, which torch uses for lower precisions only.

    The one place that calls torch's private operator for it.

    Args:
        x: `[B, D]`; may be a transposed view.
        weight: `[E, D]`; may be a transposed view.
        bias: `[E]`.
        relu: apply a ReLU in the same pass.

    Returns:
        `x @ weight.T + bias`, `[B, E]`.
    """
    then = "relu" if relu else "none"
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "")
    return y


Net = TypeVar("Net", bound=type[nn.Module])
_KNOWN_FORWARDS: dict[type[nn.Module], Any] = {}


def computed_without_calls(cls: Net) -> Net:
    """Notes the `forward` of a class whose modules are computed without a call (`is_altered`)."""
    _KNOWN_FORWARDS[cls] = cls.forward
    return cls


for _known in (nn.Linear, nn.ReLU, nn.Sequential):
    computed_without_calls(_known)


def is_altered(module: nn.Module) -> bool:
    """Tells whether a call of the module does something else than its class's `forward`.

    There are hooks, of the module or of all modules; or it is compiled, or it or its class was
    given another `forward`: some libraries add to a network that way.
    """
    own, forward = vars(module), type(module).forward
    return bool(
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or any(_HOOKS_OF_ALL_MODULES)
        or "forward" in own
        or "_compiled_call_impl" in own
        or _KNOWN_FORWARDS.get(type(module), forward) is not forward
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """Computes a linear layer, with large products by oneDNN on AMD's processors.

    Torch multiplies float32 matrices by MKL, see `onednn_pays_from`. Results differ by rounding.

    Args:
        x: `[..., D]`.
        weight: `[E, D]`.
        bias: `[E]`, if there is one.
        relu: apply a ReLU too.

    Returns:
        `[..., E]`.
    """
    if (
        x.numel() * len(weight) >= _ONEDNN_FROM
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    ):
        flat = x.reshape(-1, x.shape[-1])
        y: Tensor = _OneDNNLinear.apply(flat, weight, bias, relu)  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], len(weight))
    y = F.linear(x, weight, bias)
    # In place: the layer's gradient needs its input alone, and a second output costs a fifth of
    # the forward pass.
    return y.relu_() if relu else y


@computed_without_calls
class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor, relu: bool = False) -> Tensor:
        """Maps `[..., in_features]` to `[..., out_features]`, through a ReLU if wanted."""
        return linear(x, self.weight, self.bias, relu)


class Step(NamedTuple):
    """A layer of a network.

    Attributes:
        layer: the module.
        params: of a plain linear layer, its parameters `weight` and `bias`; None: the module is
            called.
        relu: whether the ReLU after a linear layer is a part of the step.
    """

    layer: nn.Module
    params: Mapping[str, Any] | None = None
    relu: bool = False


def step_of(layer: nn.Module) -> Step:
    """Makes a step of one layer.

    Weight normalisation, pruning and the like put something else in a parameter's place: such
    layers are called.
    """
    plain = type(layer) in (Linear, nn.Linear) and not is_altered(layer)
    known = plain and layer._parameters.keys() >= {"weight", "bias"}
    return Step(layer, layer._parameters if known else None)


def steps_of(layers: nn.Module) -> list[Step]:
    """Makes steps of layers in a row, of a linear layer and the ReLU after it one."""
    if type(layers) is not nn.Sequential or is_altered(layers):
        return [Step(layers)]
    steps: list[Step] = []
    for layer in layers:
        last = steps[-1] if steps else None
        activates = type(layer) is nn.ReLU and not is_altered(layer)
        if activates and last is not None and last.params is not None and not last.relu:
            steps[-1] = last._replace(relu=True)
        else:
            steps.append(step_of(layer))
    return steps


def through(steps: Iterable[Step], x: Any) -> Any:
    """Maps an input through layers in a row."""
    for layer, params, relu in steps:
        x = layer(x) if params is None else linear(x, params["weight"], params["bias"], relu)
    return x


class Module(nn.Module):
    """Base of networks that know the shape of their outputs, as robomimic's."""

    def output_shape(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the shape of an output, without batch dimensions.

        Its argument `input_shape`, the shape of an input, may be left out where the output's shape
        does not depend on it.
        """
        raise NotImplementedError(f"{type(self).__name__} has no output_shape")


class Sequential(nn.Sequential):
    """`nn.Sequential` of networks that know the shape of their outputs.

    Args:
        *args: the networks.
        has_output_shape: whether they are such.
    """

    def __init__(self, *args: nn.Module, has_output_shape: bool = True) -> None:
        super().__init__(*args)
        self.fixed = False
        self.has_output_shape = has_output_shape

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns the shape of the last network's output."""
        if not self.has_output_shape:
            raise NotImplementedError("these networks do not know the shape of their outputs")
        shape: Any = input_shape
        for module in self:
            shape = cast("Module", module).output_shape(shape)
        return [*shape]

    def freeze(self) -> None:
        """Keeps the networks in evaluation mode from now on."""
        self.fixed = True

    def train(self, mode: bool = True) -> Self:
        """Sets the mode, see `nn.Module`; after `freeze` it is evaluation."""
        return super().train(mode and not self.fixed)


@computed_without_calls
class MLP(Module):
    """Linear layers with an activation after each hidden one.

    The parameters are those of robomimic's `MLP`: `_model.<i>.{weight,bias}`.

    Args:
        input_dim: size of the input.
        output_dim: size of the output.
        layer_dims: sizes of the hidden layers.
        layer_func: makes a layer of its two sizes; None: a linear one.
        layer_func_kwargs: further arguments of it, of hidden layers.
        activation: makes the module that follows each hidden layer.
        dropouts: share of each hidden layer's outputs that training sets to 0; None: none.
        normalization: whether a LayerNorm stands before each hidden layer's activation.
        output_activation: makes the module that follows the last layer, if any.
        layer_norm: as `normalization`, and before the last layer's activation too.

    Raises:
        ConfigError: `dropouts` has not one number for each hidden layer.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        layer_dims: Sequence[int] = (),
        layer_func: Callable[..., nn.Module] | None = None,
        layer_func_kwargs: Mapping[str, Any] | None = None,
        activation: Callable[[], nn.Module] = nn.ReLU,
        dropouts: Sequence[float] | None = None,
        normalization: bool = False,
        output_activation: Callable[[], nn.Module] | None = None,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if dropouts is not None and len(dropouts) != len(layer_dims):
            raise ConfigError(
                f"dropouts has {len(dropouts)} numbers: give one for each of the "
                f"{len(layer_dims)} hidden layers"
            )
        make = Linear if layer_func is None else layer_func
        layers: list[nn.Module] = []
        dim = input_dim
        for i, hidden in enumerate(layer_dims):
            layers.append(make(dim, hidden, **(layer_func_kwargs or {})))
            layers += [nn.LayerNorm(hidden)] if normalization or layer_norm else []
            layers.append(activation())
            layers += [nn.Dropout(dropouts[i])] if dropouts is not None and dropouts[i] > 0 else []
            dim = hidden
        layers.append(make(dim, output_dim))
        if output_activation is not None:
            layers += [nn.LayerNorm(output_dim)] if layer_norm else []
            layers.append(output_activation())
        self._model = nn.Sequential(*layers)
        self._output_dim = output_dim

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns `[output_dim]`."""
        return [self._output_dim]

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., input_dim]` to `[..., output_dim]`."""
        y: Tensor = through(steps_of(self._model), x)
        return y


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


class RNN_Base(Module):
    """Recurrent layers, with a network on top that sees each step by itself.

    The parameters are those of robomimic's `RNN_Base`: `per_step_net.*` and `nets.*`.

    Args:
        input_dim: size of each step's input.
        rnn_hidden_dim: size of the hidden state.
        rnn_num_layers: number of recurrent layers.
        rnn_type: `"LSTM"` or `"GRU"`.
        rnn_kwargs: further arguments of torch's module: `bias`, `dropout`.
        per_step_net: maps `[N, rnn_hidden_dim]` to a dict of `[N, ...]`, or to a tensor; None: the
            hidden states themselves come out.

    Raises:
        ConfigError: for another `rnn_type`, for `bidirectional` (robomimic trains such
            policies), and for unknown arguments.
    """

    def __init__(
        self,
        input_dim: int,
        rnn_hidden_dim: int,
        rnn_num_layers: int,
        rnn_type: str = "LSTM",
        rnn_kwargs: Mapping[str, Any] | None = None,
        per_step_net: nn.Module | None = None,
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
        self,
        inputs: Tensor,
        rnn_init_state: RNNState | None = None,
        return_state: bool = False,
    ) -> Any:
        """Maps a sequence to the top network's output at each step.

        Args:
            inputs: `[B, T, D]`.
            rnn_init_state: state before the first step; None: zeros.
            return_state: return the state after the last step too.

        Returns:
            `{output: [B, T, *shape]}`, or a tensor where the top network gives one, and the state
            if asked.
        """
        hidden, state = self.nets(inputs, rnn_init_state)
        outputs: Any = hidden
        if self.per_step_net is not None:
            outputs = map_tensor(
                self.per_step_net(hidden.flatten(0, 1)),
                lambda x: x.reshape(*hidden.shape[:2], *x.shape[1:]),
            )
        return (outputs, state) if return_state else outputs

    def forward_step(self, inputs: Tensor, rnn_state: RNNState | None) -> tuple[Any, RNNState]:
        """Maps one step `[B, D]`; returns its outputs, and the state after it."""
        outputs, state = self(inputs[:, None], rnn_state, return_state=True)
        return map_tensor(outputs, lambda x: x[:, 0]), state


class Parameter(Module):
    """One tensor that is learned, such as a Lagrange multiplier, under robomimic's key `param`.

    Args:
        init: where it starts.
    """

    def __init__(self, init: Tensor) -> None:
        super().__init__()
        self.param = nn.Parameter(init)

    def output_shape(self, input_shape: Sequence[int] | None = None) -> list[int]:
        """Returns the tensor's shape."""
        return list(self.param.shape)

    def forward(self, inputs: Any = None) -> Tensor:
        """Returns the tensor."""
        return self.param
