"""The HiFi-GAN decoder (Figure 5): latents to waveform. Layout: `(batch, channels, time)`."""

import itertools
import math

import torch
from torch import Tensor, nn

from .convolution import ResidualBlock, SnakeBeta, upsampling_conv
from .daam import DensityAdaptiveAttention
from .framing import stretch_mask, zero_padding
from .istft_head import OVERLAP, InverseStftHead
from .source_filter_head import SourceFilterHead, Sources
from .transform_path import SynthesisTransform

OUTPUT_KERNEL_SIZE = 7
OUTPUT_INIT_GAIN = 0.05  # begins about as loud as speech, far from where tanh is flat


class DecoderStage(nn.Module):
    """SnakeBeta, transposed convolution, mean of residual blocks with different kernels [, DAAM gate]."""

    def __init__(self, config, stage: int):
        super().__init__()
        channels = config.decoder_channels[stage + 1]
        self.activation = SnakeBeta(config.decoder_channels[stage])
        self.upsample = upsampling_conv(config.decoder_channels[stage], channels, config.upsampling_ratios[stage])
        branch_gain = len(config.residual_dilations) ** -0.5
        blocks = [
            ResidualBlock(channels, kernel_size, config.residual_dilations, branch_gain)
            for kernel_size in config.decoder_kernel_sizes[stage]
        ]
        self.residual_blocks = nn.ModuleList(blocks)
        self.radius = max(block.radius for block in blocks)
        """Output samples to either side that one output sample depends on, past the transposed convolution."""
        self.daam = (
            DensityAdaptiveAttention(channels, config.daam_num_gaussians, config.daam_alpha)
            if config.daam_in_decoder
            else None
        )

    def forward(
        self, x: Tensor, in_mask: Tensor | None, out_mask: Tensor | None, transformed: Tensor | None = None
    ) -> Tensor:
        """Upsample by the stage's stride; masks are `(batch, 1, time)`, bool, or `None`.

        What the transform path has made, if it joins here, is added before the residual blocks.
        """
        x = self.upsample(zero_padding(self.activation(x), in_mask))
        x = x if transformed is None else x + transformed
        x = sum(block(x, out_mask) for block in self.residual_blocks) / len(self.residual_blocks)
        return x if self.daam is None else self.daam(x, out_mask)[0]


class HifiGanDecoder(nn.Module):
    """Quantized latents to waveform: 2.5 Hz frames to 24 kHz samples, in the paper's configuration.

    Deviation: the paper lists kernels [3, 7, 11, 15, 23, 32] and 8 blocks a stage; only three kernels give its own
    parameter count (69.2M, Table 3), and an even kernel cannot keep the length.

    With `config.decoder_istft_stages` an inverse STFT stands in for the last stages, where most of the work is. With
    `config.transform_bands` a linear transform joins at the rate of the encoder's spectra; with
    `config.harmonic_source`, the inverse STFT takes its phases from harmonics and noise, and only magnitudes from here.

    Args:
        config: `JepaDaamConfig`.
    """

    def __init__(self, config):
        super().__init__()
        self.upsampling_ratios = config.upsampling_ratios[: len(config.decoder_kernel_sizes)]
        self.channels = tuple(config.decoder_channels)
        """Channels of the features after the first layer and after each stage."""
        self.bottleneck = nn.Conv1d(config.hidden_size, config.decoder_channels[0], kernel_size=1)
        stages = [DecoderStage(config, stage) for stage in range(len(self.upsampling_ratios))]
        self.stages = nn.ModuleList(stages)
        self.radii = [stage.radius for stage in stages]
        self.transform, self.transform_stage = None, None
        if config.transform_bands > 0:
            convolved = len(config.downsampling_ratios) - config.encoder_stft_stages
            self.transform_stage = convolved - 1
            patch = math.prod(self.upsampling_ratios[:convolved])
            self.transform = SynthesisTransform(config, config.decoder_channels[convolved], patch)
        self.istft_head: SourceFilterHead | InverseStftHead | None = None
        if config.decoder_istft_stages > 0:
            hop_length = math.prod(config.upsampling_ratios[len(self.stages) :])
            if config.harmonic_source:
                self.istft_head = SourceFilterHead(
                    config.decoder_channels[-1], hop_length, config.sampling_rate, config.decoder_istft_spectra
                )
            else:
                self.istft_head = InverseStftHead(config.decoder_channels[-1], hop_length)
            self.output_ratio, self.output_radius = hop_length, OVERLAP // 2
        else:
            self.output_conv = nn.Conv1d(
                config.decoder_channels[-1], 1, OUTPUT_KERNEL_SIZE, padding=OUTPUT_KERNEL_SIZE // 2
            )
            self.output_conv.init_gain = OUTPUT_INIT_GAIN  # type: ignore[assignment]
            self.output_ratio, self.output_radius = 1, OUTPUT_KERNEL_SIZE // 2

    @property
    def context_frames(self) -> tuple[int, int]:
        """Frames before and after a stretch that its samples depend on."""
        return self.margins()[0], self.margins()[0]

    def margins(self) -> list[int]:
        """Neighbouring samples that each stage's input needs on either side; the first entry counts latent frames.

        Walked backwards from the waveform. A transposed convolution with kernel `2 * stride` reads one input sample
        further than the stretch of outputs that is wanted.
        """
        needed = self.output_radius
        margins = [needed]
        for radius, ratio in zip(reversed(self.radii), reversed(self.upsampling_ratios), strict=True):
            needed = math.ceil((needed + radius) / ratio) + 1
            margins.append(needed)
        return margins[::-1]

    def forward(self, latents: Tensor, frame_mask: Tensor | None = None, context: tuple[int, int] = (0, 0)) -> Tensor:
        """Synthesize the waveform of the frames between the context frames.

        Args:
            latents: `(batch, hidden_size, frames)`, context frames included.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
            context: Frames at the left and at the right that are there to be read, not to be synthesized. Where
                audio goes on to a side, `margins()[0]` of them make the result equal to decoding everything at once.

        Returns:
            `(batch, 1, (frames - context) * hop_length)`, in [-1, 1].
        """
        x, mask, (left, right) = self.upsample(latents, frame_mask, context)
        sources = self.sources(latents, frame_mask, context[0], left, x.shape[-1])
        return self.synthesize(x, mask, (left, right), sources)

    def sources(
        self, latents: Tensor, frame_mask: Tensor | None, context: int, left: int, length: int
    ) -> Sources | None:
        """What the head is to shape, if it shapes sources, beside the features that `upsample` made of the latents.

        Args:
            latents: `(batch, hidden_size, frames)`, context frames included.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
            context: Frames of context at the left.
            left: How much of that the features have.
            length: Of the features.
        """
        if not isinstance(self.istft_head, SourceFilterHead):
            return None
        assert self.transform is not None
        # Nothing is to be learned through phases: the pitch has a loss of its own, in training/codec.py.
        pitch, voiced = (track.detach() for track in self.transform.pitch(latents))
        whole = self.istft_head.spectra(pitch, voiced, latents, frame_mask)
        start = (context * pitch.shape[2] - left) * self.istft_head.num_spectra
        end = start + length * self.istft_head.num_spectra
        return Sources(*(part[..., start:end] for part in whole))

    def upsample(
        self,
        latents: Tensor,
        frame_mask: Tensor | None = None,
        context: tuple[int, int] = (0, 0),
        num_stages: int | None = None,
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        """The first stages, all of them by default; arguments as `forward`.

        Returns:
            Features `(batch, channels, time)`, their mask `(batch, 1, time)`, and how much at either end is context.
        """
        x = self.bottleneck(latents)
        left, right = context
        mask = None if frame_mask is None else frame_mask[:, None]
        steps = zip(self.stages, self.upsampling_ratios, self.margins()[1:], strict=True)
        for number, (stage, ratio, margin) in enumerate(itertools.islice(steps, num_stages)):
            in_mask, mask = mask, stretch_mask(None if mask is None else mask[:, 0], ratio)
            transformed = None
            if self.transform is not None and number == self.transform_stage:
                start = context[0] * math.prod(self.upsampling_ratios[: number + 1]) - left * ratio
                transformed = self.transform(latents)[..., start : start + x.shape[-1] * ratio]
            x = stage(x, in_mask, mask, transformed)
            # Drop context that no later layer reads: the high rates, where the work is, hardly see it.
            drop_left, drop_right = max(0, left * ratio - margin), max(0, right * ratio - margin)
            end = x.shape[-1] - drop_right
            x, left, right = x[..., drop_left:end], left * ratio - drop_left, right * ratio - drop_right
            mask = None if mask is None else mask[..., drop_left:end]
        return x, mask, (left, right)

    def synthesize(
        self, x: Tensor, mask: Tensor | None, context: tuple[int, int], sources: Sources | None = None
    ) -> Tensor:
        """What `upsample` returned to `(batch, 1, samples)`, less the context, of sources if the head shapes them."""
        left, right = context
        if self.istft_head is not None:
            x = self.istft_head(x, mask) if sources is None else self.istft_head(x, mask, sources)
        else:
            with torch.autocast(x.device.type, enabled=False):  # 8 bits of a bfloat16 waveform would be noise
                x = zero_padding(x, mask).to(self.output_conv.weight.dtype)
                x = torch.tanh(self.output_conv(x))
        left, right = left * self.output_ratio, right * self.output_ratio
        return x[..., left : x.shape[-1] - right]
