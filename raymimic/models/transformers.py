"""Causal transformers over sequences of observations, and the policies made of them.

After `robomimic/models/transformers.py` (a GPT), `MIMO_Transformer` of its `obs_nets.py` and
`TransformerActorNetwork` of its `policy_nets.py`, with their parameters' names.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Distribution

from raymimic.errors import ConfigError
from raymimic.models.base_nets import Linear
from raymimic.models.distributions import GMMHead
from raymimic.models.obs_coders import (
    EncoderKwargs,
    ObsDict,
    ObservationDecoder,
    ObservationGroupEncoder,
)
from raymimic.models.obs_nets import obs_and_goal_groups
from raymimic.observations.shapes import ObsShapes


def transformer_args_from_config(transformer_config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.algo.transformer` as keyword arguments of the transformer policies."""
    names = (
        "context_length",
        "embed_dim",
        "num_layers",
        "num_heads",
        "emb_dropout",
        "attn_dropout",
        "block_output_dropout",
        "sinusoidal_embedding",
        "activation",
        "nn_parameter_for_timesteps",
    )
    return {f"transformer_{name}": transformer_config[name] for name in names}


class GEGLU(nn.Module):
    """Halves its input: one half times the GELU of the other (https://arxiv.org/abs/2002.05202)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., 2 D]` to `[..., D]`."""
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class PositionalEncoding(nn.Module):
    """Sines and cosines of the position, in wavelengths from 2π to 20000π.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5. It has no state.

    Args:
        embed_dim: size of the embedding.
        max_length: number of positions, whose embeddings are computed once; None: any, computed at
            each call.
    """

    table: Tensor | None

    def __init__(self, embed_dim: int, max_length: int | None = None) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        table = None if max_length is None else self._embedded(torch.arange(max_length))
        self.register_buffer("table", table, persistent=False)

    def _embedded(self, positions: Tensor) -> Tensor:
        steps = torch.arange(0, self.embed_dim, 2, device=positions.device)
        angle = positions[..., None] * torch.exp(steps * (-math.log(10000.0) / self.embed_dim))
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., : self.embed_dim]

    def forward(self, positions: Tensor) -> Tensor:
        """Maps positions `[...]` to embeddings `[..., D]`."""
        return self._embedded(positions) if self.table is None else self.table[positions]


class CausalSelfAttention(nn.Module):
    """Multi-head attention of each step to itself and the steps before it.

    Args:
        embed_dim: size of each step's features.
        num_heads: number of heads; it divides `embed_dim`.
        context_length: the longest sequence.
        attn_dropout: dropout of the attention weights.
        output_dropout: dropout of the outputs.

    Raises:
        ConfigError: if the heads do not divide the features.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        context_length: int,
        attn_dropout: float = 0.1,
        output_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ConfigError(f"{num_heads} attention heads do not divide embed_dim={embed_dim}")
        self.num_heads = num_heads
        self.attn_dropout = attn_dropout
        self.nets = nn.ModuleDict(
            {
                "qkv": Linear(embed_dim, 3 * embed_dim, bias=False),
                "output": Linear(embed_dim, embed_dim),
                "output_dropout": nn.Dropout(output_dropout),
            }
        )
        # The kernel below makes its own causal mask; robomimic's checkpoints hold one.
        mask = torch.ones(1, 1, context_length, context_length).tril()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        qkv = self.nets["qkv"](x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, T, D / heads]
        dropout = self.attn_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        y = self.nets["output"](y.transpose(1, 2).flatten(2))
        out: Tensor = self.nets["output_dropout"](y)
        return out


class SelfAttentionBlock(nn.Module):
    """Attention, then an MLP on each step, each on normalised input and added to it.

    Args:
        embed_dim: size of each step's features.
        num_heads: number of heads.
        context_length: the longest sequence.
        attn_dropout: dropout of the attention weights.
        output_dropout: dropout of both outputs.
        activation: `"gelu"` or `"geglu"`, of the MLP.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        context_length: int,
        attn_dropout: float = 0.1,
        output_dropout: float = 0.1,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                "attention": CausalSelfAttention(
                    embed_dim, num_heads, context_length, attn_dropout, output_dropout
                ),
                "mlp": feed_forward(embed_dim, output_dropout, activation),
                "ln1": nn.LayerNorm(embed_dim),
                "ln2": nn.LayerNorm(embed_dim),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        x = x + self.nets["attention"](self.nets["ln1"](x))
        y: Tensor = x + self.nets["mlp"](self.nets["ln2"](x))
        return y


def feed_forward(embed_dim: int, dropout: float, activation: str = "gelu") -> nn.Sequential:
    """Returns a transformer block's MLP, whose hidden layer is four times as wide.

    Raises:
        ConfigError: if the activation is neither `"gelu"` nor `"geglu"`.
    """
    if activation not in ("gelu", "geglu"):
        raise ConfigError(f"transformer activation '{activation}': choose 'gelu' or 'geglu'")
    gated = activation == "geglu"
    return nn.Sequential(
        Linear(embed_dim, (8 if gated else 4) * embed_dim),
        GEGLU() if gated else nn.GELU(),
        Linear(4 * embed_dim, embed_dim),
        nn.Dropout(dropout),
    )


def init_gpt_weights(module: nn.Module) -> None:
    """Draws a layer's weights from N(0, 0.02²), as GPT does; biases become 0, norms identities."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
        nn.init.zeros_(module.bias)


class GPT_Backbone(nn.Module):
    """Blocks of causal self-attention, then a layer norm.

    Args:
        embed_dim: size of each step's features.
        context_length: the longest sequence.
        attn_dropout: dropout of the attention weights.
        block_output_dropout: dropout of each block's outputs.
        num_layers: number of blocks.
        num_heads: number of heads.
        activation: `"gelu"` or `"geglu"`.
    """

    def __init__(
        self,
        embed_dim: int,
        context_length: int,
        attn_dropout: float = 0.1,
        block_output_dropout: float = 0.1,
        num_layers: int = 6,
        num_heads: int = 8,
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        blocks = (
            SelfAttentionBlock(
                embed_dim,
                num_heads,
                context_length,
                attn_dropout,
                block_output_dropout,
                activation,
            )
            for _ in range(num_layers)
        )
        self.nets = nn.ModuleDict(
            {"transformer": nn.Sequential(*blocks), "output_ln": nn.LayerNorm(embed_dim)}
        )
        self.apply(init_gpt_weights)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`."""
        y: Tensor = self.nets["output_ln"](self.nets["transformer"](x))
        return y


class MIMO_Transformer(nn.Module):
    """Sequences of observation groups in, sequences of tensors out.

    Args:
        input_obs_group_shapes: the groups of observations.
        output_shapes: the outputs and their shapes.
        transformer_embed_dim: size of each step's features.
        transformer_num_layers: number of blocks.
        transformer_num_heads: number of heads.
        transformer_context_length: the longest sequence.
        transformer_emb_dropout: dropout of the embeddings.
        transformer_attn_dropout: dropout of the attention weights.
        transformer_block_output_dropout: dropout of each block's outputs.
        transformer_sinusoidal_embedding: positions are sines and cosines, else they are learned.
        transformer_activation: `"gelu"` or `"geglu"`.
        transformer_nn_parameter_for_timesteps: learned positions start at 0 and are one
            parameter, else they are an embedding table, drawn from N(0, 1).
        encoder_kwargs: see `ObservationEncoder`.
    """

    def __init__(
        self,
        input_obs_group_shapes: Mapping[str, ObsShapes],
        output_shapes: Mapping[str, Sequence[int]],
        transformer_embed_dim: int,
        transformer_num_layers: int,
        transformer_num_heads: int,
        transformer_context_length: int,
        transformer_emb_dropout: float = 0.1,
        transformer_attn_dropout: float = 0.1,
        transformer_block_output_dropout: float = 0.1,
        transformer_sinusoidal_embedding: bool = False,
        transformer_activation: str = "gelu",
        transformer_nn_parameter_for_timesteps: bool = False,
        encoder_kwargs: EncoderKwargs | None = None,
    ) -> None:
        super().__init__()
        dim, length = transformer_embed_dim, transformer_context_length
        encoder = ObservationGroupEncoder(
            input_obs_group_shapes, feature_activation=None, encoder_kwargs=encoder_kwargs
        )
        # In robomimic's order, by which optimizers number their states in checkpoints.
        self.nets = nn.ModuleDict(
            {"encoder": encoder, "embed_encoder": Linear(encoder.output_dim, dim)}
        )
        self.params = nn.ParameterDict()
        if transformer_sinusoidal_embedding:
            self.nets["embed_timestep"] = PositionalEncoding(dim, length)
        elif transformer_nn_parameter_for_timesteps:
            self.params["embed_timestep"] = nn.Parameter(torch.zeros(1, length, dim))
        else:
            self.nets["embed_timestep"] = nn.Embedding(length, dim)
        self.nets["embed_ln"] = nn.LayerNorm(dim)
        self.nets["embed_drop"] = nn.Dropout(transformer_emb_dropout)
        self.nets["transformer"] = GPT_Backbone(
            embed_dim=dim,
            context_length=length,
            attn_dropout=transformer_attn_dropout,
            block_output_dropout=transformer_block_output_dropout,
            num_layers=transformer_num_layers,
            num_heads=transformer_num_heads,
            activation=transformer_activation,
        )
        self.nets["decoder"] = ObservationDecoder(output_shapes, dim)
        self.context_length = length

    def _positions(self, length: int) -> Tensor:
        """Returns the embeddings of the first positions, broadcastable to `[B, T, D]`."""
        embeddings: Tensor
        if "embed_timestep" in self.params:
            embeddings = self.params["embed_timestep"][:, :length]
        else:
            device = next(self.parameters()).device
            embeddings = self.nets["embed_timestep"](torch.arange(length, device=device))
        return embeddings

    def forward(self, **groups: ObsDict | None) -> dict[str, Tensor]:
        """Maps sequences of each group to sequences of outputs.

        Args:
            groups: `{key: [B, T, *shape]}`, T at most the context's length; a
                goal `[B, *shape]` holds at every step.

        Returns:
            `{output: [B, T, *shape]}`.

        Raises:
            ConfigError: if the sequence is longer than the context.
        """
        encoder = cast("ObservationGroupEncoder", self.nets["encoder"])
        x = self.nets["embed_encoder"](encoder.encode_sequence(**groups))
        batch, length = x.shape[:2]
        if length > self.context_length:
            raise ConfigError(
                f"the transformer's context is {self.context_length} steps long, the observations "
                f"are {length}: set algo.transformer.context_length and train.frame_stack alike"
            )
        x = self.nets["embed_drop"](self.nets["embed_ln"](x + self._positions(length)))
        outputs = self.nets["decoder"](self.nets["transformer"](x).flatten(0, 1))
        return {name: y.unflatten(0, (batch, length)) for name, y in outputs.items()}


class TransformerActorNetwork(MIMO_Transformer):
    """A deterministic policy that maps a sequence of observations to one of actions.

    Args:
        obs_shapes: shapes of the observation keys.
        ac_dim: number of action dimensions.
        goal_shapes: shapes of the goal's keys; None or empty: no goal.
        **transformer_args: further arguments of `MIMO_Transformer`.
    """

    bounded_actions: ClassVar[bool] = True  # to [-1, 1]

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        goal_shapes: Mapping[str, Sequence[int]] | None = None,
        **transformer_args: Any,
    ) -> None:
        self.ac_dim = ac_dim
        super().__init__(
            input_obs_group_shapes=obs_and_goal_groups(obs_shapes, goal_shapes),
            output_shapes=self._output_shapes(),
            **transformer_args,
        )

    def _output_shapes(self) -> Mapping[str, Sequence[int]]:
        """Names and shapes of the last layer's predictions."""
        return {"action": (self.ac_dim,)}

    def forward(  # type: ignore[override]
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        *,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Maps `{key: [B, T, *shape]}` to actions `[B, T, A]` in [-1, 1].

        It does not see `actions`, nor does robomimic's, whose algorithm gives None.
        """
        return torch.tanh(super().forward(obs=obs_dict, goal=goal_dict)["action"])


class TransformerGMMActorNetwork(TransformerActorNetwork):
    """A policy whose actions follow a mixture of Gaussians at each step of a sequence.

    Args:
        obs_shapes: see `TransformerActorNetwork`.
        ac_dim: see `TransformerActorNetwork`.
        num_modes: see `GMMHead`.
        min_std: see `GMMHead`.
        std_activation: see `GMMHead`.
        low_noise_eval: act by (nearly) the mean of a mode in evaluation mode.
        use_tanh: see `GMMHead`.
        **args: further arguments of `TransformerActorNetwork`.
    """

    def __init__(
        self,
        obs_shapes: Mapping[str, Sequence[int]],
        ac_dim: int,
        num_modes: int = 5,
        min_std: float = 0.01,
        std_activation: str = "softplus",
        low_noise_eval: bool = True,
        use_tanh: bool = False,
        **args: Any,
    ) -> None:
        self.head = GMMHead(ac_dim, num_modes, min_std, std_activation, use_tanh)
        self.low_noise_eval = low_noise_eval
        super().__init__(obs_shapes, ac_dim, **args)

    def _output_shapes(self) -> Mapping[str, Sequence[int]]:
        return self.head.output_shapes

    def forward_train(
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        low_noise: bool = False,
        last_only: bool = False,
        *,
        actions: Tensor | None = None,
        low_noise_eval: bool | None = None,
    ) -> Distribution:
        """Returns the distributions over actions `[B, T, A]`, with batch shape `[B, T]`.

        Args:
            obs_dict: `{key: [B, T, *shape]}`.
            goal_dict: `{key: [B, *shape]}`, if there is a goal.
            low_noise: nearly no noise in place of the learned one.
            last_only: the distribution of the last step's action `[B, A]` alone.
            actions: not seen, see `TransformerActorNetwork.forward`.
            low_noise_eval: robomimic's name of `low_noise`.
        """
        outputs = MIMO_Transformer.forward(self, obs=obs_dict, goal=goal_dict)
        if last_only:
            outputs = {name: y[:, -1] for name, y in outputs.items()}
        return self.head(outputs, low_noise or bool(low_noise_eval))

    def forward(  # type: ignore[override]
        self,
        obs_dict: ObsDict,
        goal_dict: ObsDict | None = None,
        *,
        actions: Tensor | None = None,
    ) -> Tensor:
        """Samples actions `[B, T, A]` for `{key: [B, T, *shape]}`; it does not see `actions`."""
        low_noise = self.low_noise_eval and not self.training
        return self.forward_train(obs_dict, goal_dict, low_noise).sample()
