"""Conformer block that sees a window of past frames and none that come later. Layout: `(batch, frames, dim)`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal import CausalConv1d, CausalMemory
from .conformer import ConformerFeedForward


class CausalAttention(nn.Module):
    """Multi-head self-attention over the last `window` frames, the current one included."""

    def __init__(self, dim: int, num_heads: int, window: int):
        super().__init__()
        self.num_heads, self.window = num_heads, window
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """`(batch, frames, dim)` -> the same shape."""
        batch, frames, dim = x.shape
        query = self.q_proj(x)
        # Key, value and whether there is a frame, remembered as one: (B, 2 dim + 1, window - 1 + T)
        seen = torch.cat([self.k_proj(x), self.v_proj(x), torch.ones_like(x[..., :1])], dim=-1)
        seen = memory.extend(seen.transpose(1, 2), self.window - 1).transpose(1, 2)
        key, value, valid = seen.split([dim, dim, 1], dim=-1)
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in (query, key, value)
        )  # (B, T, D) -> (B, heads, T, head_dim)
        place = torch.arange(frames, device=x.device)[:, None]
        other = torch.arange(frames + self.window - 1, device=x.device)
        near = (other >= place) & (other < place + self.window)  # (T, window - 1 + T)
        mask = near & (valid[:, None, None, :, 0] > 0.5)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, frames, dim))


class CausalConvolution(nn.Module):
    """`ConformerConvolution` with a depthwise convolution that looks back."""

    def __init__(self, dim: int, kernel_size: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.expand = nn.Linear(dim, 2 * dim)
        self.depthwise = CausalConv1d(dim, dim, kernel_size, groups=dim)
        self.depthwise_norm = nn.LayerNorm(dim, eps=eps)
        self.project = nn.Linear(dim, dim)

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """`(batch, frames, dim)` -> the same shape."""
        x = F.glu(self.expand(self.norm(x)), dim=-1).transpose(1, 2)  # (B, T, D) -> (B, D, T)
        x = self.depthwise(x, memory).transpose(1, 2)  # (B, D, T) -> (B, T, D)
        return self.project(F.silu(self.depthwise_norm(x)))


class CausalConformerBlock(nn.Module):
    """`ConformerBlock` that looks back only.

    Args:
        config: `JepaDaamConfig`.
        window: Frames that attention sees, the current one included.
        kernel_size: Frames that the depthwise convolution sees.
    """

    def __init__(self, config, window: int, kernel_size: int):
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.feed_forward_in = ConformerFeedForward(config, dim, config.intermediate_size)
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.attention = CausalAttention(dim, config.num_attention_heads, window)
        self.convolution = CausalConvolution(dim, kernel_size, eps)
        self.feed_forward_out = ConformerFeedForward(config, dim, config.intermediate_size)
        self.norm = nn.LayerNorm(dim, eps=eps)

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """`(batch, frames, dim)` -> the same shape."""
        x = x + 0.5 * self.feed_forward_in(x)
        x = x + self.attention(self.attention_norm(x), memory)
        x = x + self.convolution(x, memory)
        x = x + 0.5 * self.feed_forward_out(x)
        return self.norm(x)
