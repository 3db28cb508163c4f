"""Conformer block (Gulati et al. 2020) as the paper uses it: no position embedding. Layout: `(batch, frames, dim)`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .daam import DensityAdaptiveAttention
from .framing import zero_padding


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Scaled dot-product attention, spelled out; heads come as `(batch, heads, frames, head_dim)`."""
    weights = query @ key.transpose(-1, -2) * scaling  # (B, H, T, T)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, H, T, D) -> (B, T, H, D)


class ConformerAttention(nn.Module):
    """Multi-head self-attention over frames, through transformers' attention interface."""

    is_causal = False

    def __init__(self, config, dim: int, num_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """`(batch, frames, dim)` -> the same shape, and the attention weights where the implementation has them."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = self.q_proj(x).view(heads).transpose(1, 2)  # (B, T, H, D) -> (B, H, T, D)
        key = self.k_proj(x).view(heads).transpose(1, 2)
        value = self.v_proj(x).view(heads).transpose(1, 2)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attention(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.o_proj(mixed.reshape(x.shape)), weights


class ConformerFeedForward(nn.Module):
    """LayerNorm, expansion, GELU, projection."""

    def __init__(self, config, dim: int, intermediate_size: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.expand = nn.Linear(dim, intermediate_size)
        self.project = nn.Linear(intermediate_size, dim)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """`(batch, frames, dim)` -> the same shape."""
        return self.dropout(self.project(self.dropout(F.gelu(self.expand(self.norm(x))))))


class ConformerConvolution(nn.Module):
    """LayerNorm, pointwise expansion, GLU, depthwise convolution over frames, LayerNorm, SiLU, pointwise projection.

    Deviation: the authors' code normalises with a GroupNorm over time and channels together, so that padding and
    neighbours in a batch change a recording's features; here each frame is normalised on its own.
    """

    def __init__(self, config, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.expand = nn.Linear(dim, 2 * dim)
        kernel_size = config.conv_kernel_size
        self.depthwise = nn.Conv1d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.project = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, x: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """`(batch, frames, dim)` -> the same shape; `frame_mask` is `(batch, frames)`, bool, or `None`."""
        x = F.glu(self.expand(self.norm(x)), dim=-1).transpose(1, 2)  # (B, T, D) -> (B, D, T)
        x = self.depthwise(zero_padding(x, None if frame_mask is None else frame_mask[:, None]))
        x = F.silu(self.depthwise_norm(x.transpose(1, 2)))  # (B, D, T) -> (B, T, D)
        return self.dropout(self.project(x))


class ConformerBlock(nn.Module):
    """Half a feed-forward step, attention, convolution, half a feed-forward step, LayerNorm [, DAAM gate]."""

    def __init__(self, config, dim: int, num_heads: int, intermediate_size: int, daam: bool = False):
        super().__init__()
        self.feed_forward_in = ConformerFeedForward(config, dim, intermediate_size)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.attention = ConformerAttention(config, dim, num_heads)
        self.attention_out_dropout = nn.Dropout(config.hidden_dropout)
        self.convolution = ConformerConvolution(config, dim)
        self.feed_forward_out = ConformerFeedForward(config, dim, intermediate_size)
        self.norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.daam = DensityAdaptiveAttention(dim, config.daam_num_gaussians, config.daam_alpha) if daam else None

    def forward(self, x: Tensor, attention_mask: Tensor | None = None, frame_mask: Tensor | None = None) -> Tensor:
        """Mix frames.

        Args:
            x: `(batch, frames, dim)`.
            attention_mask: Mask of the attention implementation, or `None` when every frame is valid.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.

        Returns:
            `(batch, frames, dim)`.
        """
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.attention_out_dropout(self.attention(self.attention_norm(x), attention_mask)[0])
        x = x + self.convolution(x, frame_mask)
        x = x + 0.5 * self.feed_forward_out(x)
        x = self.norm(x)
        if self.daam is not None:
            mask = None if frame_mask is None else frame_mask[:, None]
            x = self.daam(x.transpose(1, 2), mask)[0].transpose(1, 2)  # (B, T, D) -> (B, D, T) -> (B, T, D)
        return x
