"""Causal layers that run over a whole recording or over pieces of it, with equal results.

Convolutional layout: `(batch, channels, time)`. The last axis of everything that is remembered is time.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import LEAKY_SLOPE, SnakeBeta
from .daam import DensityAdaptiveAttention


class CausalMemory:
    """What causal layers remember of the past of a stream, one tensor for each use, in order of use.

    A forward pass takes a memory and calls `extend` wherever a layer looks back. `present` is then the past of the
    next piece. Without a past, a stream begins: what lies before it is zero.

    Args:
        past: `present` of the memory of the piece before; empty at the beginning of a stream.
    """

    def __init__(self, past: Sequence[Tensor] = ()):
        self._past = tuple(past)
        self.present: list[Tensor] = []

    def extend(self, x: Tensor, length: int) -> Tensor:
        """Put the last `length` positions of the past before `x`, and remember as many for the next piece.

        Args:
            x: `(..., time)`.
            length: Positions to look back, at least 0.

        Returns:
            `(..., length + time)`.

        Raises:
            ValueError: If the past is of another model, or was cut.
        """
        if self._past:
            place = len(self.present)
            expected = (*x.shape[:-1], length)
            if place >= len(self._past) or self._past[place].shape != expected:
                raise ValueError(
                    f"`memory` must be of a stream of this model: at place {place} it needs a tensor of shape "
                    f"{expected}, got {tuple(self._past[place].shape) if place < len(self._past) else 'none'}"
                )
            past = self._past[place].to(x)
        else:
            past = x.new_zeros(*x.shape[:-1], length)
        extended = torch.cat([past, x], dim=-1)
        self.present.append(extended[..., extended.shape[-1] - length :])
        return extended


class CausalConv1d(nn.Conv1d):
    """Convolution whose output sees no later input; with a stride, output `t` ends at the last input of step `t`."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation=dilation, groups=groups)
        self.reach = dilation * (kernel_size - 1) - (stride - 1)
        """Inputs before the first one of a step that its output depends on."""

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:  # type: ignore[override]
        """`(batch, channels, steps * stride)` -> `(batch, channels, steps)`."""
        return super().forward(memory.extend(x, self.reach))


class CausalResidualBlock(nn.Module):
    """`ResidualBlock` of causal convolutions.

    Args:
        channels: Channels of input and output.
        kernel_size: Kernel size of every convolution.
        dilations: Dilation of the first convolution of each pair.
        branch_gain: Initial scale of what each pair adds.
    """

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int], branch_gain: float = 1.0):
        super().__init__()
        self.dilated = nn.ModuleList(CausalConv1d(channels, channels, kernel_size, dilation=d) for d in dilations)
        self.plain = nn.ModuleList(CausalConv1d(channels, channels, kernel_size) for _ in dilations)
        for conv in self.plain:
            conv.init_gain = branch_gain  # type: ignore[assignment]

    def forward(self, x: Tensor, memory: CausalMemory) -> Tensor:
        """`(batch, channels, time)` -> the same shape."""
        for dilated, plain in zip(self.dilated, self.plain, strict=True):
            hidden = dilated(F.leaky_relu(x, LEAKY_SLOPE), memory)
            x = x + plain(F.leaky_relu(hidden, LEAKY_SLOPE), memory)
        return x


class CausalEncoderStage(nn.Module):
    """`EncoderStage` of causal layers: strided convolution, SnakeBeta, residual blocks, DAAM gate.

    Args:
        config: `JepaDaamConfig`.
        stage: Number of the stage, after those that the spectral features replace.
    """

    def __init__(self, config, stage: int):
        super().__init__()
        channels = config.encoder_channels[stage + 1]
        ratio = config.downsampling_ratios[config.encoder_stft_stages + stage]
        num_blocks = config.encoder_residual_blocks[stage]
        self.downsample = CausalConv1d(config.encoder_channels[stage], channels, 2 * ratio, ratio)
        self.activation = SnakeBeta(channels)
        branch_gain = (max(1, num_blocks) * len(config.residual_dilations)) ** -0.5
        self.residual_blocks = nn.ModuleList(
            CausalResidualBlock(channels, config.encoder_kernel_sizes[stage], config.residual_dilations, branch_gain)
            for _ in range(num_blocks)
        )
        self.daam = DensityAdaptiveAttention(channels, config.daam_num_gaussians, config.daam_alpha)

    def forward(self, x: Tensor, memory: CausalMemory, daam_window: int) -> tuple[Tensor, Tensor]:
        """Downsample by the stage's stride.

        Args:
            x: `(batch, channels, time)`.
            memory: Past of the stream.
            daam_window: Positions, at the output's rate, over which the gate's statistics run.

        Returns:
            `(batch, channels, time / stride)`, and the gate, `(batch, time / stride)`.
        """
        x = self.activation(self.downsample(x, memory))
        for block in self.residual_blocks:
            x = block(x, memory)
        return self.daam(x, window=daam_window, memory=memory)
