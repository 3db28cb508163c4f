"""The causal decoder: quantized values at 2.5 Hz to spectral features at 75 Hz, and these to a waveform.

Layout: values and frames `(batch, frames, dim)`, features `(batch, rows, time)`.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .causal import CausalMemory
from .causal_conformer import CausalConformerBlock
from .float64_copy import in_float64
from .framing import stretch_mask, zero_padding
from .istft_head import OVERLAP
from .pitch import pitch_hz
from .source_filter_head import SourceFilterHead, Sources
from .vocoder_envelope import VOICING_SLOPE, from_rows

EXPANSION = 3  # of the pointwise layers
EXPANDED_CHANNELS = 16  # of each feature vector, that come from its frame beside the features
KERNEL_SIZE = 7
MAX_VALUE = 0.99  # of a quantized value whose atanh is taken


class FrameDecoder(nn.Module):
    """Quantized values to features: Conformer blocks over past frames, and a linear path back beside them.

    A frame's features depend on `lookahead` later frames, on `reach` earlier ones, and on none beyond.

    Args:
        config: `JepaDaamConfig` with `feature_bands`.
    """

    def __init__(self, config):
        super().__init__()
        dimensions, width = len(config.levels), config.hidden_size
        self.patch_size, self.num_rows = config.patch_size, config.feature_rows
        self.lookahead = config.decoder_lookahead_frames
        window, kernel_size = config.decoder_attention_window, config.decoder_conv_kernel_size
        self.reach = config.decoder_num_hidden_layers * (window - 1 + kernel_size - 1)
        self.embed = nn.Conv1d(dimensions, width, kernel_size=self.lookahead + 1)
        self.conformer = nn.ModuleList(
            CausalConformerBlock(config, window, kernel_size) for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.project = nn.Linear(width, width)
        self.linear_path = nn.Linear(dimensions, width)
        self.patches = nn.Linear(width, self.num_rows * self.patch_size)

    def forward(self, values: Tensor, memory: CausalMemory | None = None) -> tuple[Tensor, Tensor]:
        """Decode.

        Args:
            values: `(batch, frames + lookahead, dimensions)`, quantized, zero after the end of the recording.
            memory: Past of the stream; `None` at its beginning.

        Returns:
            Coefficients of the patches, `(batch, frames, width)`, in the precision of the weights, and the Conformer's
            output, `(batch, frames, width)`.
        """
        memory = CausalMemory() if memory is None else memory
        hidden = self.embed(values.transpose(1, 2)).transpose(1, 2)  # (B, T, C) -> (B, C, T) -> (B, T, D)
        for block in self.conformer:
            hidden = block(hidden, memory)
        with torch.autocast(hidden.device.type, enabled=False):
            dtype = self.project.weight.dtype
            hidden = self.norm(hidden.to(dtype))
            values = values[:, : hidden.shape[1]].to(dtype)
            linear = self.linear_path(values.clamp(-MAX_VALUE, MAX_VALUE).atanh())
            return linear + self.project(hidden), hidden

    def features(self, coefficients: Tensor) -> Tensor:
        """Patches, put one after the other: `(batch, frames, width)` -> `(batch, rows, frames * patch_size)`."""
        patches = self.patches(coefficients).unflatten(-1, (self.num_rows, self.patch_size))
        return patches.transpose(1, 2).flatten(2)  # (B, T, rows, patch) -> (B, rows, T * patch)

    def pad(self, values: Tensor) -> Tensor:
        """Append zeros for the frames after the end of a recording, as many as `forward` looks ahead."""
        return F.pad(values, (0, 0, 0, self.lookahead))


class FeatureBlock(nn.Module):
    """ConvNeXt block: depthwise convolution, LayerNorm, two pointwise layers.

    Source: Liu et al. 2022 (ConvNeXt); Siuzdak 2023 (Vocos).
    """

    def __init__(self, channels: int, kernel_size: int, eps: float):
        super().__init__()
        self.depthwise = nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=eps)
        self.expand = nn.Linear(channels, EXPANSION * channels)
        self.project = nn.Linear(EXPANSION * channels, channels)
        self.project.init_gain = 0.5  # type: ignore[assignment]

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """`(batch, channels, time)` -> the same shape; `mask` is `(batch, 1, time)`, bool, or `None`."""
        hidden = self.norm(self.depthwise(zero_padding(x, mask)).transpose(1, 2))  # (B, C, T) -> (B, T, C)
        return x + self.project(F.gelu(self.expand(hidden))).transpose(1, 2)


class VocoderDecoder(nn.Module):
    """Quantized values to waveform: features of frames, a network at the features' rate, harmonics and noise.

    Deviation: the paper's decoder makes waveforms by transposed convolutions. Here the frames' features are decoded
    first, a convolutional network adds to them what they lack, and a source-filter head speaks both.

    Args:
        config: `JepaDaamConfig` with `feature_bands`.
    """

    def __init__(self, config):
        super().__init__()
        self.patch_size, self.num_bands = config.patch_size, config.feature_bands
        self.hop_length = config.hop_length
        rows, channels = config.feature_rows, config.decoder_channels[0]
        self.frames = FrameDecoder(config)
        self.expand = nn.Linear(config.hidden_size, EXPANDED_CHANNELS * config.patch_size)
        self.input = nn.Conv1d(rows + EXPANDED_CHANNELS, channels, KERNEL_SIZE, padding=KERNEL_SIZE // 2)
        self.blocks = nn.ModuleList(
            FeatureBlock(channels, KERNEL_SIZE, config.layer_norm_eps) for _ in range(config.decoder_num_blocks)
        )
        self.norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        feature_hop = config.hop_length // config.patch_size
        self.istft_head = SourceFilterHead(
            rows + channels, feature_hop, config.sampling_rate, config.decoder_istft_spectra, dynamic_share=True
        )
        reach = (KERNEL_SIZE // 2) * (1 + config.decoder_num_blocks) + OVERLAP
        self.edge = -(-reach // config.patch_size)
        """Frames to either side that the network at the features' rate and the head read."""

    @property
    def context_frames(self) -> tuple[int, int]:
        """Frames before and after a stretch that its samples depend on."""
        return self.frames.reach + self.edge, self.frames.lookahead + self.edge

    def forward(self, latents: Tensor, frame_mask: Tensor | None = None, context: tuple[int, int] = (0, 0)) -> Tensor:
        """Synthesize the waveform of the frames between the context frames.

        Args:
            latents: `(batch, dimensions, frames)`, quantized, context frames included.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
            context: Frames at the left and at the right that are there to be read, not to be synthesized. Where
                audio continues to a side, `context_frames` make the result equal to decoding everything at once.

        Returns:
            `(batch, 1, (frames - context) * hop_length)`, in [-1, 1].
        """
        return self.decode(latents, frame_mask, context)[0]

    def decode(
        self, latents: Tensor, frame_mask: Tensor | None = None, context: tuple[int, int] = (0, 0)
    ) -> tuple[Tensor, Tensor]:
        """As `forward`; returns the features, `(batch, rows, time)`, of the frames and `edge` context frames, too."""
        # In training in the weights' precision. Else in float64: phases are sums of pitch, and rounding would decide
        # now and then how many periods a frame has.
        frames = self.frames if self.training else cast(FrameDecoder, in_float64(self.frames))
        values = zero_padding(latents, None if frame_mask is None else frame_mask[:, None]).transpose(1, 2)
        coefficients, hidden = frames(frames.pad(values.to(frames.project.weight.dtype)))
        # What only the Conformer reads is dropped here.
        left, right = min(context[0], self.edge), min(context[1], self.edge)
        kept = slice(context[0] - left, values.shape[1] - (context[1] - right))
        features = frames.features(coefficients[:, kept])
        mask = None if frame_mask is None else frame_mask[:, kept]
        octaves, voiced = from_rows(features[:, self.num_bands :].unflatten(2, (-1, self.patch_size)))
        voiced = (VOICING_SLOPE * (voiced - 0.5)).sigmoid().float()
        # Nothing is learned through phases: pitch is a row of the features, which have a loss of their own.
        sources = self.istft_head.spectra(
            pitch_hz(octaves).detach(), voiced.detach(), latents[..., kept].to(voiced.dtype), mask
        )
        waveform = self.speak(features, hidden[:, kept], sources, mask)
        return waveform[..., left * self.hop_length : waveform.shape[-1] - right * self.hop_length], features

    def speak(self, features: Tensor, hidden: Tensor, sources: Sources, frame_mask: Tensor | None) -> Tensor:
        """Features and the frames they come from to a waveform, `(batch, 1, frames * hop_length)`."""
        mask = stretch_mask(frame_mask, self.patch_size)
        dtype = self.input.weight.dtype
        features = features.to(dtype)
        expanded = self.expand(hidden.to(dtype)).unflatten(-1, (EXPANDED_CHANNELS, self.patch_size))
        expanded = expanded.transpose(1, 2).flatten(2)  # (B, T, C, patch) -> (B, C, T * patch)
        x = self.input(zero_padding(torch.cat([features, expanded], dim=1), mask))
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return self.istft_head(torch.cat([features, x], dim=1), mask, sources)
