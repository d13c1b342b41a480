"""Networks that predict the noise in a sequence of actions, for Diffusion Policy.

Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion" (2023),
https://arxiv.org/abs/2303.04137. The U-Net's parameters carry the names of
`robomimic/models/diffusion_policy_nets.py`; the transformer is not in robomimic.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raymimic.errors import ConfigError
from raymimic.models.base_nets import Linear
from raymimic.models.transformers import CausalSelfAttention, feed_forward, init_gpt_weights


class SinusoidalPosEmb(nn.Module):
    """Sines, then cosines of a number, in wavelengths from 2π to 20000π. It has no state.

    Args:
        dim: size of the embedding, even.
    """

    frequency: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        frequency = torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
        self.register_buffer("frequency", frequency, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B]` to `[B, dim]`."""
        angle = x[:, None] * self.frequency
        return torch.cat([angle.sin(), angle.cos()], dim=-1)


def _diffusion_steps(timestep: Tensor | int, like: Tensor) -> Tensor:
    """Returns the steps `[B]` of several samples, or the one step `[1]` of all."""
    return torch.as_tensor(timestep, device=like.device).reshape(-1)


class Downsample1d(nn.Module):
    """Halves the length of a sequence.

    Args:
        dim: number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim, dim, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, T / 2]`."""
        y: Tensor = self.conv(x)
        return y


class Upsample1d(nn.Module):
    """Doubles the length of a sequence.

    Args:
        dim: number of channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose1d(dim, dim, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C, 2 T]`."""
        y: Tensor = self.conv(x)
        return y


class Conv1dBlock(nn.Module):
    """Convolution, group norm, Mish.

    Args:
        inp_channels: channels that come in.
        out_channels: channels that go out.
        kernel_size: odd.
        n_groups: of the norm.
    """

    def __init__(
        self, inp_channels: int, out_channels: int, kernel_size: int, n_groups: int
    ) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv1d(inp_channels, out_channels, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(n_groups, out_channels),
            nn.Mish(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[B, C, T]` to `[B, C', T]`."""
        y: Tensor = self.block(x)
        return y


class ConditionalResidualBlock1D(nn.Module):
    """Two convolutions, the first one's output scaled and shifted by the condition (FiLM).

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer" (2017),
    https://arxiv.org/abs/1709.07871.

    Args:
        in_channels: channels that come in.
        out_channels: channels that go out.
        cond_dim: size of the condition.
        kernel_size: odd.
        n_groups: of the norms.
    """

    def __init__(
        self, in_channels: int, out_channels: int, cond_dim: int, kernel_size: int, n_groups: int
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [
                Conv1dBlock(in_channels, out_channels, kernel_size, n_groups),
                Conv1dBlock(out_channels, out_channels, kernel_size, n_groups),
            ]
        )
        self.cond_encoder = nn.Sequential(nn.Mish(), Linear(cond_dim, 2 * out_channels))
        self.residual_conv = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv1d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """Maps `[B, C, T]` and the condition `[B, D]` to `[B, C', T]`."""
        scale, shift = self.cond_encoder(cond)[..., None].chunk(2, dim=1)
        y = self.blocks[1](torch.addcmul(shift, scale, self.blocks[0](x)))
        out: Tensor = y + self.residual_conv(x)
        return out


class ConditionalUnet1D(nn.Module):
    """The paper's temporal U-Net: convolutions over time, conditioned by FiLM (section 4.1).

    Args:
        input_dim: number of action dimensions.
        global_cond_dim: size of the condition, all observed steps together.
        diffusion_step_embed_dim: size of the embedding of the diffusion step.
        down_dims: channels of each level; each but the last halves the sequence.
        kernel_size: of the convolutions, odd.
        n_groups: of the norms; they divide each of `down_dims`. In robomimic the last norm has
            always 8.

    Raises:
        ConfigError: if these do not go together.
    """

    def __init__(
        self,
        input_dim: int,
        global_cond_dim: int,
        diffusion_step_embed_dim: int = 256,
        down_dims: Sequence[int] = (256, 512, 1024),
        kernel_size: int = 5,
        n_groups: int = 8,
    ) -> None:
        super().__init__()
        step_dim = diffusion_step_embed_dim
        _check_unet(step_dim, down_dims, kernel_size, n_groups)
        self.shrinks_by = 2 ** (len(down_dims) - 1)

        def two_blocks(before: int, after: int) -> list[nn.Module]:
            cond_dim = step_dim + global_cond_dim
            return [
                ConditionalResidualBlock1D(before, after, cond_dim, kernel_size, n_groups),
                ConditionalResidualBlock1D(after, after, cond_dim, kernel_size, n_groups),
            ]

        dims = [input_dim, *down_dims]
        last = len(down_dims) - 1
        step_encoder = nn.Sequential(
            SinusoidalPosEmb(step_dim),
            Linear(step_dim, 4 * step_dim),
            nn.Mish(),
            Linear(4 * step_dim, step_dim),
        )
        mid = nn.ModuleList(two_blocks(dims[-1], dims[-1]))
        down = nn.ModuleList(
            nn.ModuleList(
                [
                    *two_blocks(dims[i], dims[i + 1]),
                    Downsample1d(dims[i + 1]) if i < last else nn.Identity(),
                ]
            )
            for i in range(len(down_dims))
        )
        up = nn.ModuleList(
            nn.ModuleList([*two_blocks(2 * dims[i + 1], dims[i]), Upsample1d(dims[i])])
            for i in range(last, 0, -1)
        )
        # In robomimic's order, by which optimizers number their states in checkpoints; it makes
        # them in the order above, so that a seed gives its weights.
        self.mid_modules = mid
        self.diffusion_step_encoder = step_encoder
        self.up_modules = up
        self.down_modules = down
        self.final_conv = nn.Sequential(
            Conv1dBlock(dims[1], dims[1], kernel_size, n_groups),
            nn.Conv1d(dims[1], input_dim, 1),
        )

    def forward(self, sample: Tensor, timestep: Tensor | int, global_cond: Tensor) -> Tensor:
        """Predicts the noise in actions.

        Args:
            sample: noisy actions `[B, T, A]`.
            timestep: the diffusion step, one for all or `[B]`.
            global_cond: features of the observations, `[B, ..., D]`.

        Returns:
            `[B, T, A]`.
        """
        step = self.diffusion_step_encoder(_diffusion_steps(timestep, sample))
        cond = torch.cat([step.expand(len(sample), -1), global_cond.flatten(1)], dim=-1)

        x = sample.transpose(1, 2)
        skipped = []
        for level in self.down_modules:
            block1, block2, downsample = cast("nn.ModuleList", level)
            x = block2(block1(x, cond), cond)
            skipped.append(x)
            x = downsample(x)
        for block in self.mid_modules:
            x = block(x, cond)
        for level in self.up_modules:
            block1, block2, upsample = cast("nn.ModuleList", level)
            x = torch.cat([x, skipped.pop()], dim=1)
            x = upsample(block2(block1(x, cond), cond))
        y: Tensor = self.final_conv(x).transpose(1, 2)
        return y


def _check_unet(step_dim: int, down_dims: Sequence[int], kernel_size: int, n_groups: int) -> None:
    """Complains about sizes that do not go together."""
    if step_dim < 4 or step_dim % 2:
        raise ConfigError(
            f"algo.unet.diffusion_step_embed_dim={step_dim} must be even and at least 4"
        )
    if len(down_dims) < 2:
        raise ConfigError(f"algo.unet.down_dims={list(down_dims)} needs two levels at least")
    if kernel_size % 2 == 0:
        raise ConfigError(f"algo.unet.kernel_size={kernel_size} must be odd")
    for dim in down_dims:
        if dim % n_groups:
            raise ConfigError(
                f"algo.unet.n_groups={n_groups} does not divide {dim} of algo.unet.down_dims"
            )


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence to another.

    Args:
        embed_dim: size of the features of both.
        num_heads: number of heads; it divides `embed_dim`.
        attn_dropout: dropout of the attention weights.
        output_dropout: dropout of the outputs.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, attn_dropout: float, output_dropout: float
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attn_dropout = attn_dropout
        self.nets = nn.ModuleDict(
            {
                "query": Linear(embed_dim, embed_dim, bias=False),
                "key_value": Linear(embed_dim, 2 * embed_dim, bias=False),
                "output": Linear(embed_dim, embed_dim),
                "output_dropout": nn.Dropout(output_dropout),
            }
        )

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Attends.

        Args:
            x: `[B, T, D]`.
            memory: `[B, S, D]`.
            visible: `[T, S]` bool, which steps of the memory a step sees.

        Returns:
            `[B, T, D]`.
        """
        q = self.nets["query"](x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        key_value = self.nets["key_value"](memory).unflatten(-1, (2, self.num_heads, -1))
        k, v = key_value.permute(2, 0, 3, 1, 4)
        dropout = self.attn_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout)
        y = self.nets["output"](y.transpose(1, 2).flatten(2))
        out: Tensor = self.nets["output_dropout"](y)
        return out


class DecoderBlock(nn.Module):
    """Causal self-attention, cross-attention, MLP; each on normalised input and added to it.

    Args:
        embed_dim: size of the features.
        num_heads: number of heads.
        length: the longest sequence.
        dropout: of attention weights and outputs.
    """

    def __init__(self, embed_dim: int, num_heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                "attention": CausalSelfAttention(embed_dim, num_heads, length, dropout, dropout),
                "cross_attention": CrossAttention(embed_dim, num_heads, dropout, dropout),
                "mlp": feed_forward(embed_dim, dropout),
                "ln1": nn.LayerNorm(embed_dim),
                "ln2": nn.LayerNorm(embed_dim),
                "ln3": nn.LayerNorm(embed_dim),
            }
        )

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor) -> Tensor:
        """Maps `[B, T, D]` to `[B, T, D]`; see `CrossAttention.forward`."""
        x = x + self.nets["attention"](self.nets["ln1"](x))
        x = x + self.nets["cross_attention"](self.nets["ln2"](x), memory, visible)
        y: Tensor = x + self.nets["mlp"](self.nets["ln3"](x))
        return y


class DiffusionTransformer(nn.Module):
    """The paper's time-series diffusion transformer (section 4.1).

    The tokens of the condition, the diffusion step and then the observed steps, go through one
    MLP. The noisy actions attend causally to themselves, and each to the diffusion step and to
    the observations up to its own step.

    Args:
        input_dim: number of action dimensions.
        cond_dim: size of one observed step's features.
        horizon: number of actions.
        cond_steps: number of observed steps; the last of them is that of action
            `cond_steps - 1`.
        embed_dim: size of the tokens.
        num_layers: number of blocks.
        num_heads: number of heads; it divides `embed_dim`.
        emb_dropout: dropout of the tokens.
        attn_dropout: dropout inside the blocks.
    """

    visible: Tensor

    def __init__(
        self,
        input_dim: int,
        cond_dim: int,
        horizon: int,
        cond_steps: int,
        embed_dim: int = 256,
        num_layers: int = 8,
        num_heads: int = 4,
        emb_dropout: float = 0.0,
        attn_dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                "embed_action": Linear(input_dim, embed_dim),
                "embed_cond": Linear(cond_dim, embed_dim),
                "embed_step": SinusoidalPosEmb(embed_dim),
                "embed_drop": nn.Dropout(emb_dropout),
                "cond_encoder": nn.Sequential(
                    Linear(embed_dim, 4 * embed_dim), nn.Mish(), Linear(4 * embed_dim, embed_dim)
                ),
                "decoder": nn.ModuleList(
                    DecoderBlock(embed_dim, num_heads, horizon, attn_dropout)
                    for _ in range(num_layers)
                ),
                "output_ln": nn.LayerNorm(embed_dim),
                "output": Linear(embed_dim, input_dim),
            }
        )
        self.params = nn.ParameterDict(
            {
                "action_positions": torch.empty(1, horizon, embed_dim),
                "cond_positions": torch.empty(1, 1 + cond_steps, embed_dim),
            }
        )
        self.apply(init_gpt_weights)
        for positions in self.params.values():
            nn.init.normal_(positions, std=0.02)
        # Token 0 of the condition is the diffusion step, token s the observation of step s - 1.
        visible = torch.arange(horizon)[:, None] >= torch.arange(1 + cond_steps) - 1
        self.register_buffer("visible", visible, persistent=False)

    def forward(self, sample: Tensor, timestep: Tensor | int, cond: Tensor) -> Tensor:
        """Predicts the noise in actions.

        Args:
            sample: noisy actions `[B, T, A]`.
            timestep: the diffusion step, one for all or `[B]`.
            cond: features of the observations, `[B, To, D]`.

        Returns:
            `[B, T, A]`.
        """
        nets, drop = self.nets, self.nets["embed_drop"]
        step = nets["embed_step"](_diffusion_steps(timestep, sample)).expand(len(sample), -1)
        memory = torch.cat([step[:, None], nets["embed_cond"](cond)], dim=1)
        memory = nets["cond_encoder"](drop(memory + self.params["cond_positions"]))
        x = drop(nets["embed_action"](sample) + self.params["action_positions"])
        for block in cast("nn.ModuleList", nets["decoder"]):
            x = block(x, memory, self.visible)
        y: Tensor = nets["output"](nets["output_ln"](x))
        return y
