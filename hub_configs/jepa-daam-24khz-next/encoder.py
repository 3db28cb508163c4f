"""The JEPA encoder (Figure 2): strided convolutional stages with DAAM gates, a bottleneck, Conformer blocks."""

import math

from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from .conformer import ConformerBlock
from .convolution import ResidualBlock, SnakeBeta, downsampling_conv
from .daam import DensityAdaptiveAttention
from .framing import stretch_mask, zero_padding
from .stft_front_end import StftFrontEnd
from .transform_path import AnalysisTransform

INPUT_KERNEL_SIZE = 7
WAVEFORM_INIT_GAIN = 10.0


class EncoderStage(nn.Module):
    """Strided convolution, SnakeBeta, residual blocks, DAAM gate. Layout: `(batch, channels, time)`."""

    def __init__(self, config, stage: int):
        super().__init__()
        channels = config.encoder_channels[stage + 1]
        ratio = config.downsampling_ratios[config.encoder_stft_stages + stage]
        num_blocks = config.encoder_residual_blocks[stage]
        self.downsample = downsampling_conv(config.encoder_channels[stage], channels, ratio)
        self.activation = SnakeBeta(channels)
        # Every pair adds to the signal; this keeps the stage's output near its input's size at initialisation.
        branch_gain = (max(1, num_blocks) * len(config.residual_dilations)) ** -0.5
        self.residual_blocks = nn.ModuleList(
            ResidualBlock(channels, config.encoder_kernel_sizes[stage], config.residual_dilations, branch_gain)
            for _ in range(num_blocks)
        )
        self.daam = (
            DensityAdaptiveAttention(channels, config.daam_num_gaussians, config.daam_alpha)
            if config.daam_in_encoder
            else None
        )

    def forward(self, x: Tensor, in_mask: Tensor | None, out_mask: Tensor | None) -> Tensor:
        """Downsample by the stage's stride; masks are `(batch, 1, time)`, bool, or `None`."""
        x = self.activation(self.downsample(zero_padding(x, in_mask)))
        for block in self.residual_blocks:
            x = block(x, out_mask)
        return x if self.daam is None else self.daam(x, out_mask)[0]


class JepaDaamEncoder(nn.Module):
    """Waveform to latents: 24 kHz samples to 2.5 Hz frames of 128 dimensions, in the paper's configuration.

    With `config.encoder_stft_stages` an STFT stands in for the first stages, and with `config.transform_bands` a linear
    transform of its spectra joins what the Conformer makes.

    Args:
        config: `JepaDaamConfig`.
        transform: Whether the linear transform is there if the configuration has one: it is the codec's, not Stage 1's.
    """

    def __init__(self, config, transform: bool = True):
        super().__init__()
        self.config = config
        self.downsampling_ratios = tuple(config.downsampling_ratios[config.encoder_stft_stages :])
        channels = config.encoder_channels[0]
        if config.encoder_stft_stages > 0:
            self.stft_front_end = StftFrontEnd(channels, config.hop_length // math.prod(self.downsampling_ratios))
        else:
            self.input_conv = nn.Conv1d(1, channels, INPUT_KERNEL_SIZE, padding=INPUT_KERNEL_SIZE // 2)
            # Speech has a small amplitude (about 0.1): scaled up once, the energy envelope reaches the low rates.
            self.input_conv.init_gain = WAVEFORM_INIT_GAIN  # type: ignore[assignment]
        self.stages = nn.ModuleList(EncoderStage(config, stage) for stage in range(len(self.downsampling_ratios)))
        self.bottleneck = nn.Conv1d(config.encoder_channels[-1], config.hidden_size, kernel_size=1)
        self.conformer = nn.ModuleList(
            ConformerBlock(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.intermediate_size,
                daam=config.daam_in_conformer,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.transform = None
        if transform and config.transform_bands > 0:
            self.transform = AnalysisTransform(config, math.prod(self.downsampling_ratios))

    def extract_frames(self, input_values: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The convolutional half: waveform to frames that have not yet attended to each other.

        Args:
            input_values: `(batch, 1, samples)`, a whole number of frames.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.

        Returns:
            `(batch, frames, hidden_size)`.
        """
        x = zero_padding(input_values, stretch_mask(frame_mask, self.config.hop_length))
        x = self.stft_front_end(x) if self.config.encoder_stft_stages > 0 else self.input_conv(x)
        return self._convolve(x, frame_mask)

    def _convolve(self, x: Tensor, frame_mask: Tensor | None) -> Tensor:
        # Features at the rate of the first stage's input to frames.
        factor = math.prod(self.downsampling_ratios)
        mask = stretch_mask(frame_mask, factor)
        for stage, ratio in zip(self.stages, self.downsampling_ratios, strict=True):
            factor //= ratio
            in_mask, mask = mask, stretch_mask(frame_mask, factor)
            x = stage(x, in_mask, mask)
        return self.bottleneck(x).transpose(1, 2)  # (B, C, T) -> (B, T, C)

    def mix_frames(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """The Conformer half: `(batch, frames, hidden_size)` -> the same shape."""
        attention_mask = create_bidirectional_mask(self.config, frames, frame_mask)
        for block in self.conformer:
            frames = block(frames, attention_mask, frame_mask)
        return frames

    def forward(self, input_values: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Encode.

        Args:
            input_values: `(batch, 1, samples)`, a whole number of frames.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.

        Returns:
            Latents, `(batch, frames, hidden_size)`. At padded frames they mean nothing.
        """
        if self.transform is None:
            return self.mix_frames(self.extract_frames(input_values, frame_mask), frame_mask)
        return self.forward_with_rows(input_values, frame_mask)[0]

    def forward_with_rows(self, input_values: Tensor, frame_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` makes with a transform, and the rows that the transform cuts patches from, for training.

        Returns:
            Latents, `(batch, frames, hidden_size)`, and `(batch, rows, spectra)`.
        """
        assert self.transform is not None
        heard = zero_padding(input_values, stretch_mask(frame_mask, self.config.hop_length))
        power = self.stft_front_end.power(heard)  # which both ways read
        frames = self._convolve(self.stft_front_end.features(power), frame_mask)
        rows = self.transform.rows(power)
        return self.transform.latents(rows, self.mix_frames(frames, frame_mask)), rows
