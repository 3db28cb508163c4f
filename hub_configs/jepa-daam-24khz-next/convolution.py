"""Convolutional parts that the encoder and the decoder share. Layout: `(batch, channels, time)`.

Every convolution here takes a mask of valid positions, so that padding in a batch never reaches valid positions.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .framing import zero_padding

LEAKY_SLOPE = 0.1


class SnakeBeta(nn.Module):
    """Periodic activation `x + sin^2(beta x) / beta` with one learned frequency a channel.

    Source: Ziyin et al. 2020. One parameter a channel, as the authors' code and the paper's parameter counts have it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.raw_beta = nn.Parameter(torch.zeros(channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        beta = F.softplus(self.raw_beta) + 1e-2  # positive, and bounded away from a division by zero
        return x + torch.sin(beta * x).square() / beta


class ResidualBlock(nn.Module):
    """Pairs of convolutions, the first of each pair dilated, LeakyReLU before each; every pair adds to its input.

    Source: HiFi-GAN's first residual block (Kong et al. 2020), which the paper takes over in encoder and decoder.

    Deviation: the authors' code lets dilations grow to 5^7 = 78125 in the encoder, far past the signal; here they
    cycle through `dilations` in every block.

    Args:
        channels: Channels of input and output.
        kernel_size: Odd kernel size of every convolution.
        dilations: Dilation of the first convolution of each pair.
        branch_gain: Initial scale of what each pair adds.
    """

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], branch_gain: float = 1.0):
        super().__init__()
        self.dilated = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=d, padding=d * (kernel_size // 2)) for d in dilations
        )
        self.plain = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in dilations
        )
        for conv in self.plain:
            conv.init_gain = branch_gain  # type: ignore[assignment]
        self.radius = sum((d + 1) * (kernel_size // 2) for d in dilations)
        """Samples to either side that one output sample depends on."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`(batch, channels, time)` -> the same shape; `mask` is `(batch, 1, time)`, bool, or `None`."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            hidden = dilated(zero_padding(F.leaky_relu(x, LEAKY_SLOPE), mask))
            x = x + plain(zero_padding(F.leaky_relu(hidden, LEAKY_SLOPE), mask))
        return x


def downsampling_conv(in_channels: int, out_channels: int, stride: int) -> nn.Conv1d:
    """Strided convolution, kernel `2 * stride`, that turns `n * stride` samples into exactly `n`.

    Deviation: the authors' code pads odd strides by `stride // 2` and loses a frame (12 s become 29 frames, not 30).
    """
    return nn.Conv1d(in_channels, out_channels, kernel_size=2 * stride, stride=stride, padding=(stride + 1) // 2)


def upsampling_conv(in_channels: int, out_channels: int, stride: int) -> nn.ConvTranspose1d:
    """Transposed convolution, kernel `2 * stride`, that turns `n` samples into exactly `n * stride`."""
    return nn.ConvTranspose1d(
        in_channels,
        out_channels,
        kernel_size=2 * stride,
        stride=stride,
        padding=(stride + 1) // 2,
        output_padding=stride % 2,
    )
