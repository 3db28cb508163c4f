"""The codec with what only its training needs: windows, and the moving average of its weights.

Layout: latents `(batch, frames, dimensions)`, waveforms `(batch, samples)`.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.framing import lengths_to_mask, stretch_mask, zero_padding
from modeling_jepa_daam.transform_path import from_rows

from .moving_average import move_average
from .spectrogram_head import SpectrogramHead


class CodecResult(NamedTuple):
    """A batch through the codec."""

    generated: Tensor
    """`(batch, samples)`, float32, the reconstructed window of each segment, zero after its end; or, if spectrograms
    were wanted, `(batch, spectra, bands)`: what `SpectrogramHead` predicts."""
    real: Tensor
    """`(batch, samples)`, the same window of the segment itself."""
    lengths: Tensor
    """`(batch,)`, int64, samples of each window."""
    semantic: Tensor | None = None
    """`(batch, spectra, features)`, float32, if there is a teacher to compare them with."""
    pitch: Tensor | None = None
    """Scalar, how far the decoder's pitch is from what the encoder tracked, if they have a source of harmonics."""
    envelope: Tensor | None = None
    """`(batch, spectra, bands)`, loudness, what is to be predicted then instead of a spectrogram of `real`."""
    predicted: Tensor | None = None
    """What is, of the same shape, beside a waveform, if there is a head that predicts it."""
    features: Tensor | None = None
    """Scalar, weighted squared error of the decoded features as a share of their variance, of a causal codec."""


@torch.no_grad()
def transform_rows(codec: JepaDaamModel, samples: Tensor) -> Tensor:
    """What the encoder's transform cuts patches from, of `(batch, samples)`: `(batch, rows, spectra)`."""
    transform = codec.encoder.transform
    assert transform is not None
    return transform.rows(codec.encoder.stft_front_end.power(samples[:, None]))


class CodecForTraining(nn.Module):
    """Encoder, quantizer and decoder on windows, beside the moving average of all their weights.

    The encoder hears whole segments, as in use; a random window of the latents is decoded, with as many neighbouring
    frames as it takes to make the very samples that decoding everything would make (except with
    `daam_in_decoder`, whose statistics are then the window's).

    Args:
        codec: To train.
        freeze_encoder: Whether the encoder stays as it is.
        freeze_transform: Whether its linear transform does, if it has one, and the quantizer's statistics with it.
        spectrogram_head: Whether there is one, to begin with: see `SpectrogramHead`.
        semantic_features: Features of a teacher that are to be predicted beside spectrograms, if any.
        freeze_reading: Whether the decoder's layers that put digits together stay as they are. Their gradient is
            many times that of others, and a step as large as elsewhere blurs what fine digits tell.
    """

    def __init__(
        self,
        codec: JepaDaamModel,
        freeze_encoder: bool = False,
        freeze_transform: bool = False,
        spectrogram_head: bool = False,
        semantic_features: int = 0,
        freeze_reading: bool = False,
    ):
        super().__init__()
        self.codec = codec
        self.config: JepaDaamConfig = codec.config
        self.freeze_encoder = freeze_encoder
        codec.encoder.requires_grad_(not freeze_encoder)
        transform = codec.encoder.transform
        self.freeze_transform = freeze_transform and transform is not None
        if freeze_transform and transform is not None:
            transform.requires_grad_(False)
        if transform is not None and transform.tracker is not None:
            transform.tracker.requires_grad_(False)  # it is what the decoder's pitch is compared with
        if freeze_reading and codec.decoder.transform is not None:
            for layer in (codec.decoder.transform.expand, codec.decoder.transform.reduce):
                layer.requires_grad_(False)
        self.average = copy.deepcopy(codec).requires_grad_(False)
        rate, hop = self.config.sampling_rate, self.config.hop_length
        self.spectrogram_head = SpectrogramHead(codec.decoder, rate, hop) if spectrogram_head else None
        self.average_head = copy.deepcopy(self.spectrogram_head)
        if self.average_head is not None:
            self.average_head.requires_grad_(False)
        self.semantic_head = None
        if self.spectrogram_head is not None and semantic_features > 0:
            self.semantic_head = nn.Conv1d(self.spectrogram_head.project.in_channels, semantic_features, kernel_size=1)
        self.batch_mean = torch.zeros(self.config.hidden_size)  # of the latents of the last batch
        self.batch_var = torch.ones(self.config.hidden_size)
        self.train()

    def train(self, mode: bool = True):
        """Set training mode, except for the moving average and a frozen encoder: these have no dropout."""
        super().train(mode)
        self.average.eval()
        self.codec.encoder.train(mode and not self.freeze_encoder)  # `JepaDaamModel.train` leaves it in evaluation mode
        return self

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """After a step: move the average towards the weights.

        The statistics of its quantizer move at the same pace towards those of the last batch: the averaged encoder is
        behind by some steps, and they have to be behind by as many.
        """
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.average, self.codec)]
        if self.average_head is not None and self.spectrogram_head is not None:
            pairs.append((self.average_head, self.spectrogram_head))
        for averaged, trained in pairs:
            move_average(averaged, trained, decay)
        if self.config.normalize_latents and not self.freeze_transform:
            self.average.quantizer.running_mean.lerp_(self.batch_mean, 1.0 - decay)
            self.average.quantizer.running_var.lerp_(self.batch_var, 1.0 - decay)

    def forward(
        self,
        samples: Tensor,
        lengths: Tensor,
        window_frames: int | None,
        generator: torch.Generator,
        spectrogram: bool = False,
    ) -> CodecResult:
        """Reconstruct a random window of each segment.

        Args:
            samples: `(batch, samples)`, at the model's rate, zero after each segment's end.
            lengths: `(batch,)`, int64, samples of each segment.
            window_frames: Longest window; `None` for whole segments.
            generator: Source of the windows' places, on CPU.
            spectrogram: Whether to predict the window's spectrogram, and leave it at that.
        """
        hop = self.config.hop_length
        samples = F.pad(samples, (0, -samples.shape[-1] % hop))
        frames = samples.shape[-1] // hop
        segment_frames = -(-lengths // hop)
        frame_mask = lengths_to_mask(segment_frames, frames)
        mask = None if bool(frame_mask.all()) else frame_mask
        rows = None
        if self.config.harmonic_source:
            latents, rows = self.codec.encoder.forward_with_rows(samples[:, None], mask)
        else:
            latents = self.codec.encoder(samples[:, None], mask)
        quantized, _ = self.codec.quantizer(latents, mask, self.training and not self.freeze_transform)
        if self.training:
            self.batch_var, self.batch_mean = torch.var_mean(latents[frame_mask].detach().float(), dim=0)

        size = frames if window_frames is None else min(window_frames, frames)
        room = (segment_frames - size).clamp(min=0)
        starts = (torch.rand(len(samples), generator=generator).to(room.device) * (room + 1)).long()
        semantic = predicted = None
        if spectrogram:
            generated, semantic = self.predict_windows(quantized, segment_frames, starts, size)
        else:
            generated, predicted = self.decode_windows(quantized, segment_frames, starts, size)
        window_lengths = (lengths - starts * hop).clamp(max=size * hop)
        positions = starts[:, None] * hop + torch.arange(size * hop, device=samples.device)
        inside = lengths_to_mask(window_lengths, size * hop)
        real = samples.gather(1, positions.clamp(max=samples.shape[-1] - 1)).masked_fill(~inside, 0.0)

        if not spectrogram:
            generated = generated.float().masked_fill(~inside, 0.0)
        pitch = envelope = None
        if rows is not None:
            rows = rows.detach()
            pitch = self.pitch_distance(rows[:, self.config.transform_bands :], quantized, frame_mask)
            if spectrogram or predicted is not None:
                patch = rows.shape[2] // frames
                places = starts[:, None] * patch + torch.arange(size * patch, device=rows.device)
                places = places.clamp(max=rows.shape[2] - 1)[:, None].expand(-1, self.config.transform_bands, -1)
                envelope = rows.gather(2, places).transpose(1, 2)
        return CodecResult(generated, real, window_lengths, semantic, pitch, envelope, predicted)

    def pitch_distance(self, tracked: Tensor, quantized: Tensor, frame_mask: Tensor) -> Tensor:
        """Mean absolute difference of the rows that carry pitch and voicing, of pitch where there is a voice."""
        synthesis = self.codec.decoder.transform
        assert synthesis is not None
        with torch.no_grad():
            _, voiced = from_rows(tracked)
            weights = torch.stack([voiced, torch.ones_like(voiced)], dim=1)
            weights = zero_padding(weights, stretch_mask(frame_mask, tracked.shape[2] // quantized.shape[1]))
        distance = (synthesis.pitch_rows(quantized.transpose(1, 2)) - tracked).abs()
        return (weights * distance).sum() / weights[:, 1].sum()

    def decode_windows(
        self, quantized: Tensor, segment_frames: Tensor, starts: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """The part of each waveform that belongs to `size` frames from `starts` on, and of its envelope.

        Args:
            quantized: `(batch, frames, dimensions)`.
            segment_frames: `(batch,)`, valid frames of each segment.
            starts: `(batch,)`, first frame of each window.
            size: Frames of a window.

        Returns:
            `(batch, size * hop_length)`, and `(batch, spectra, bands)`, loudness, of the same features, if both heads
            read the same.
        """
        decoder = self.codec.decoder
        latents, mask, context = self._cut(quantized, segment_frames, starts, size)
        x, x_mask, (left, right) = decoder.upsample(latents, mask, context)
        sources = decoder.sources(latents, mask, context[0], left, x.shape[-1])
        waveform = decoder.synthesize(x, x_mask, (left, right), sources)[:, 0]
        if self.spectrogram_head is None or sources is None:
            return waveform, None
        return waveform, self.spectrogram_head(x[..., left : x.shape[-1] - right])

    def predict_windows(
        self, quantized: Tensor, segment_frames: Tensor, starts: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None]:
        """As `decode_windows`, but spectrograms, `(batch, spectra, bands)`, and what a teacher would make of
        each, `(batch, spectra, features)`, if there is one."""
        assert self.spectrogram_head is not None
        cut = self._cut(quantized, segment_frames, starts, size)
        x, _, (left, right) = self.codec.decoder.upsample(*cut, num_stages=self.spectrogram_head.num_stages)
        x = x[..., left : x.shape[-1] - right]
        semantic = None if self.semantic_head is None else self.semantic_head(x).float().transpose(1, 2)
        return self.spectrogram_head(x), semantic

    def _cut(
        self, quantized: Tensor, segment_frames: Tensor, starts: Tensor, size: int
    ) -> tuple[Tensor, Tensor | None, tuple[int, int]]:
        # What the decoder takes to make the windows: latents, their mask, and the frames of context at either end.
        decoder = self.codec.decoder
        context = decoder.margins()[0] if size < quantized.shape[1] else 0
        places = starts[:, None] + torch.arange(-context, size + context, device=quantized.device)
        valid = (places >= 0) & (places < segment_frames[:, None])
        places = places.clamp(0, quantized.shape[1] - 1)[..., None].expand(-1, -1, quantized.shape[2])
        frames = quantized.gather(1, places).transpose(1, 2)  # (B, T, C) -> (B, C, T)
        mask = None if bool(valid.all()) else valid
        return frames, mask, (context, context)
