"""The multi-period and multi-scale discriminators that Stage 2 trains against (section 3.4.1).

Layout: scales `(batch, channels, time)`; periods `(batch, channels, rows, period)`, one column for each phase.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from modeling_jepa_daam.convolution import LEAKY_SLOPE

PERIOD_KERNEL_SIZE = 5
PERIOD_LAYERS = ((32, 3), (128, 3), (512, 3), (1024, 3), (1024, 1))  # channels, stride
SCALE_LAYERS = (  # channels, kernel size, stride, groups
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)
SCORE_KERNEL_SIZE = 3
CHANNEL_UNIT = 16  # channels come in multiples of it, so that every number of groups divides them


class DiscriminatorOutput(NamedTuple):
    """What the sub-discriminators say of a batch of waveforms, periods first, then scales from fine to coarse.

    With autocast, all tensors have its dtype.
    """

    scores: list[Tensor]
    """For each sub-discriminator `(batch, positions)`: trained towards 1 for recordings, 0 for syntheses."""
    feature_maps: list[list[Tensor]]
    """For each sub-discriminator the output of every layer, activated, and as the last one the score."""


def scaled_channels(channels: int, width: float) -> int:
    """The multiple of `CHANNEL_UNIT` nearest to `channels * width`, and never zero."""
    if width <= 0:
        raise ValueError(f"width must be positive, not {width}")
    return CHANNEL_UNIT * max(1, round(channels * width / CHANNEL_UNIT))


def judge(x: Tensor, layers: nn.ModuleList, score_layer: nn.Module) -> tuple[Tensor, list[Tensor]]:
    """Run a stack of convolutions; returns scores `(batch, positions)` and the outputs of all layers."""
    feature_maps = []
    for layer in layers:
        x = F.leaky_relu(layer(x), LEAKY_SLOPE)
        feature_maps.append(x)
    x = score_layer(x)
    return x.flatten(1), [*feature_maps, x]


class PeriodDiscriminator(nn.Module):
    """Judges the `period` interleaved subsequences of a waveform, each alone, all with the same weights.

    Sample `row * period + column` lies in `column`; no convolution looks across columns.

    Source: Kong et al. 2020 (HiFi-GAN), section 2.3; sizes as in the authors' code.

    Deviation: zeros fill the last row, where the authors' code reflects the waveform, which needs more samples than
    it adds (https://github.com/jik876/hifi-gan/blob/33beb7d18d68cf04ec163abe3e1c99bd2264af28/models.py).

    Args:
        period: Samples of a row.
        width: Factor on the published numbers of channels.
    """

    def __init__(self, period: int, width: float = 1.0):
        super().__init__()
        self.period = period
        self.layers = nn.ModuleList()
        in_channels, padding = 1, (PERIOD_KERNEL_SIZE // 2, 0)
        for channels, stride in PERIOD_LAYERS:
            out_channels = scaled_channels(channels, width)
            conv = nn.Conv2d(in_channels, out_channels, (PERIOD_KERNEL_SIZE, 1), (stride, 1), padding)
            self.layers.append(weight_norm(conv))
            in_channels = out_channels
        self.score_layer = weight_norm(
            nn.Conv2d(in_channels, 1, (SCORE_KERNEL_SIZE, 1), padding=(SCORE_KERNEL_SIZE // 2, 0))
        )

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`(batch, samples)` -> scores `(batch, rows' * period)`, row by row, and the outputs of all layers."""
        x = F.pad(waveform, (0, -waveform.shape[-1] % self.period))
        x = x.unflatten(-1, (-1, self.period))  # (B, T) -> (B, T / P, P)
        return judge(x[:, None], self.layers, self.score_layer)


class ScaleDiscriminator(nn.Module):
    """Judges a waveform, or a smoothed one, by long and grouped convolutions.

    Source: Kumar et al. 2019 (MelGAN), with the sizes of Kong et al. 2020 (HiFi-GAN).

    Deviation: HiFi-GAN has spectral normalisation in the first scale. Here weights are normalised alike in all, as
    in MelGAN, which the paper cites: spectral normalisation keeps buffers that every forward pass in training changes,
    several times a step and apart in each process, for `DistributedDataParallel` to overwrite and a resume to restore.

    Args:
        width: Factor on the published numbers of channels.
    """

    def __init__(self, width: float = 1.0):
        super().__init__()
        self.layers = nn.ModuleList()
        in_channels = 1
        for channels, kernel_size, stride, groups in SCALE_LAYERS:
            out_channels = scaled_channels(channels, width)
            conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups)
            self.layers.append(weight_norm(conv))
            in_channels = out_channels
        self.score_layer = weight_norm(
            nn.Conv1d(in_channels, 1, SCORE_KERNEL_SIZE, padding=SCORE_KERNEL_SIZE // 2),
        )

    def forward(self, waveform: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`(batch, samples)` -> scores `(batch, positions)`, one for 64 samples, and the outputs of all layers."""
        return judge(waveform[:, None], self.layers, self.score_layer)


class Discriminators(nn.Module):
    """All sub-discriminators: 70.7M parameters at width 1, 41.1M of periods and 29.6M of scales.

    There are no buffers and no randomness: outputs are a function of parameters and input, in training mode too.

    Source: HiFi-GAN (Kong et al. 2020), section 2.3; the losses on top are Eqs. (25), (26) and (28) of the paper.

    Args:
        periods: One `PeriodDiscriminator` each.
        num_scales: Number of `ScaleDiscriminator`; each sees the waveform of the last one smoothed and halved.
        width: Factor on the published numbers of channels, for small budgets: 0.125 leaves 1.1M parameters.
    """

    def __init__(self, periods: Sequence[int] = (2, 3, 5, 7, 11), num_scales: int = 3, width: float = 1.0):
        super().__init__()
        self.periods = nn.ModuleList(PeriodDiscriminator(period, width) for period in periods)
        self.scales = nn.ModuleList(ScaleDiscriminator(width) for _ in range(num_scales))
        self.pool = nn.AvgPool1d(kernel_size=4, stride=2, padding=2)

    def forward(self, waveform: Tensor) -> DiscriminatorOutput:
        """Judge waveforms of one length, which may be any; there is no mask: silence after a short one is judged too.

        Args:
            waveform: `(batch, samples)`, in [-1, 1].

        Returns:
            Scores and feature maps of every sub-discriminator.

        Raises:
            ValueError: If `waveform` is not `(batch, samples)`, or has no samples.
        """
        if waveform.ndim != 2 or waveform.shape[-1] == 0:
            raise ValueError(f"waveform must be (batch, samples), with samples, not {tuple(waveform.shape)}")
        outputs = [discriminator(waveform) for discriminator in self.periods]
        for index, discriminator in enumerate(self.scales):
            if index > 0:
                waveform = self.pool(waveform[:, None])[:, 0]
            outputs.append(discriminator(waveform))
        return DiscriminatorOutput([scores for scores, _ in outputs], [maps for _, maps in outputs])
