"""Networks whose inputs are dicts of observations and whose outputs are dicts of tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from raymimic.errors import ConfigError
from raymimic.models.base_nets import MLP, Module, RNN_Base, RNNState
from raymimic.models.layer_chain import LayerChain
from raymimic.models.obs_coders import (
    EncoderKwargs,
    ObsDict,
    ObservationDecoder,
    ObservationEncoder,
    ObservationGroupEncoder,
    obs_encoder_args_from_config,
    states_for,
)
from raymimic.models.obs_core import EncoderCore, register_encoder_core
from raymimic.observations.shapes import ObsShapes

__all__ = [
    "MIMO_MLP",
    "RNN_MIMO_MLP",
    "EncoderCore",
    "EncoderKwargs",
    "ObsDict",
    "ObservationDecoder",
    "ObservationEncoder",
    "ObservationGroupEncoder",
    "obs_and_goal_groups",
    "obs_encoder_args_from_config",
    "register_encoder_core",
    "states_for",
]


class NoLayersError(ConfigError):
    """A network without a hidden layer."""


class MIMO_MLP(Module):
    """Observation groups in, a dict of tensors out: encoder, MLP, decoder.

    Args:
        input_obs_group_shapes: the groups of observations.
        output_shapes: the outputs and their shapes.
        layer_dims: sizes of the hidden layers, each followed by the activation.
        activation: makes the activation.
        encoder_kwargs: see `ObservationEncoder`.
        layer_norm: whether each hidden layer is normalised.

    Raises:
        NoLayersError: if there is no hidden layer.
    """

    _layer_chain: LayerChain | None = None

    def __init__(
        self,
        input_obs_group_shapes: Mapping[str, ObsShapes],
        output_shapes: Mapping[str, Sequence[int]],
        layer_dims: Sequence[int],
        activation: Callable[[], nn.Module] = nn.ReLU,
        encoder_kwargs: EncoderKwargs | None = None,
        layer_norm: bool = False,
    ) -> None:
        super().__init__()
        if not layer_dims:
            raise NoLayersError("a network needs at least one hidden layer: layer_dims is empty")
        encoder = ObservationGroupEncoder(input_obs_group_shapes, encoder_kwargs=encoder_kwargs)
        *hidden_dims, last_dim = layer_dims
        self.nets = nn.ModuleDict(
            {
                "encoder": encoder,
                "mlp": MLP(
                    encoder.output_dim,
                    last_dim,
                    hidden_dims,
                    activation=activation,
                    output_activation=activation,
                    layer_norm=layer_norm,
                ),
                "decoder": ObservationDecoder(output_shapes, last_dim),
            }
        )

    def output_shape(self, input_shape: Sequence[int] | None = None) -> dict[str, list[int]]:
        """Returns the shape of each output."""
        return cast("ObservationDecoder", self.nets["decoder"]).output_shape()

    def forward(self, **groups: ObsDict | None) -> dict[str, Tensor]:
        """Maps observations of each group to `{output: [B, *shape]}`."""
        if torch.compiler.is_compiling():  # it would compile anew whenever a hook is registered
            features = self.nets["mlp"](self.nets["encoder"](**groups))
            outputs: dict[str, Tensor] = self.nets["decoder"](features)
            return outputs
        return self.layer_chain()(groups)

    def layer_chain(self) -> LayerChain:
        """Returns the chain of the layers that the network has at present."""
        if self._layer_chain is None or not self._layer_chain.holds(self):
            self._layer_chain = LayerChain(self)
        return self._layer_chain


class RNN_MIMO_MLP(Module):
    """Sequences of observation groups in, sequences of tensors out: encoder, RNN, MLP, decoder.

    Args:
        input_obs_group_shapes: the groups of observations.
        output_shapes: the outputs and their shapes.
        mlp_layer_dims: sizes of the hidden layers after the RNN; there may be none.
        rnn_hidden_dim: size of the hidden state.
        rnn_num_layers: number of recurrent layers.
        rnn_type: `"LSTM"` or `"GRU"`.
        rnn_kwargs: see `RNN_Base`.
        mlp_activation: makes the activation after each hidden layer.
        mlp_layer_func: makes a hidden layer, see `MLP`.
        per_step: whether MLP and decoder see each step; False: the last one alone.
        encoder_kwargs: see `ObservationEncoder`.
    """

    def __init__(
        self,
        input_obs_group_shapes: Mapping[str, ObsShapes],
        output_shapes: Mapping[str, Sequence[int]],
        mlp_layer_dims: Sequence[int],
        rnn_hidden_dim: int,
        rnn_num_layers: int,
        rnn_type: str = "LSTM",
        rnn_kwargs: Mapping[str, Any] | None = None,
        mlp_activation: Callable[[], nn.Module] = nn.ReLU,
        mlp_layer_func: Callable[..., nn.Module] | None = None,
        per_step: bool = True,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__()
        self.per_step = per_step
        encoder = ObservationGroupEncoder(input_obs_group_shapes, encoder_kwargs=encoder_kwargs)
        self.nets = nn.ModuleDict({"encoder": encoder})
        # MLP and decoder are registered twice, as in robomimic, whose checkpoints hold both names.
        if mlp_layer_dims:
            *hidden_dims, last_dim = mlp_layer_dims
            self.nets["mlp"] = MLP(
                rnn_hidden_dim,
                last_dim,
                hidden_dims,
                layer_func=mlp_layer_func,
                activation=mlp_activation,
                output_activation=mlp_activation,
            )
            self.nets["decoder"] = ObservationDecoder(output_shapes, last_dim)
            per_step_net: nn.Module = nn.Sequential(self.nets["mlp"], self.nets["decoder"])
        else:
            per_step_net = ObservationDecoder(output_shapes, rnn_hidden_dim)
            self.nets["decoder"] = per_step_net
        self.nets["rnn"] = RNN_Base(
            input_dim=encoder.output_dim,
            rnn_hidden_dim=rnn_hidden_dim,
            rnn_num_layers=rnn_num_layers,
            rnn_type=rnn_type,
            rnn_kwargs=rnn_kwargs,
            per_step_net=per_step_net,
        )

    def get_rnn_init_state(self, batch_size: int, device: torch.device | str) -> RNNState:
        """Returns the state before the first step, see `RNN_Base`."""
        return cast("RNN_Base", self.nets["rnn"]).get_rnn_init_state(batch_size, device)

    def output_shape(self, input_shape: Sequence[int] | None = None) -> dict[str, list[int]]:
        """Returns the shape of each output, without time."""
        return cast("ObservationDecoder", self.nets["decoder"]).output_shape()

    def forward(
        self,
        rnn_init_state: RNNState | None = None,
        return_state: bool = False,
        **groups: ObsDict | None,
    ) -> Any:
        """Maps sequences of each group to sequences of outputs.

        Args:
            rnn_init_state: state before the first step; None: zeros.
            return_state: return the state after the last step too.
            groups: `{key: [B, T, *shape]}`; a goal `[B, *shape]` holds at every step.

        Returns:
            `{output: [B, T, *shape]}`, without `per_step` `{output: [B, *shape]}`, and the state
            if asked.
        """
        encoder = cast("ObservationGroupEncoder", self.nets["encoder"])
        features = encoder.encode_sequence(**groups)
        outputs, state = self.nets["rnn"](features, rnn_init_state, return_state=True)
        if not self.per_step:
            outputs = {key: x[:, -1] for key, x in outputs.items()}
        return (outputs, state) if return_state else outputs

    def forward_step(self, *args: Any, **groups: Any) -> tuple[Any, RNNState]:
        """Maps one step of each group `{key: [B, *shape]}` to its outputs, and the state after it.

        The argument `rnn_state` is the state before it.
        """
        rnn_state = args[0] if args else groups.pop("rnn_state")
        sequences = {
            group: None if obs is None else {k: x[:, None] for k, x in obs.items()}
            for group, obs in groups.items()
        }
        outputs, state = RNN_MIMO_MLP.forward(self, rnn_state, return_state=True, **sequences)
        return {k: x[:, -1] if self.per_step else x for k, x in outputs.items()}, state


def obs_and_goal_groups(
    obs_shapes: Mapping[str, Sequence[int]], goal_shapes: Mapping[str, Sequence[int]] | None
) -> dict[str, ObsShapes]:
    """Returns the observation groups of a network that may be conditioned on a goal."""
    groups = {"obs": ObsShapes(obs_shapes)}
    if goal_shapes:
        groups["goal"] = ObsShapes(goal_shapes)
    return groups
