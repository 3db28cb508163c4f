"""The codec with what only its training needs: windows, the moving average of its weights, log-mel patch heads.

Layout: latents `(batch, frames, dimensions)`, waveforms `(batch, samples)`.
"""

import copy
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.framing import lengths_to_mask

from .losses import mel_patches

PATCH_STEPS = 40  # mel spectra of a patch: one each 10 ms at 2.5 frames a second
PATCH_BANDS = 80


@dataclass
class CodecResult:
    """A batch through the codec.

    Args:
        generated: `(batch, samples)`, the reconstructed window of each segment, zero after its end.
        real: `(batch, samples)`, the same window of the segment itself.
        lengths: `(batch,)`, int64, samples of each window.
        patches: `(batch, frames, steps * bands)`, log-mel patches of all frames, less the mean of each band.
        predicted: What the heads make of the `latents` and of the `quantized` ones, each as `patches`; or nothing.
        frame_mask: `(batch, frames)`, bool, valid frames.
        indices: `(batch, frames, dimensions)`, int64, the quantizer's digits.
        normalized: `(batch, frames, dimensions)`, float32, what the quantizer bounds and rounds.
    """

    generated: Tensor
    real: Tensor
    lengths: Tensor
    patches: Tensor
    predicted: dict[str, Tensor]
    frame_mask: Tensor
    indices: Tensor
    normalized: Tensor


class CodecForTraining(nn.Module):
    """Encoder, quantizer and decoder on windows, beside the moving average of all their weights.

    The encoder hears whole segments, as in use; a random window of the latents is decoded, with as many neighbouring
    frames as it takes to make the very samples that decoding everything would make (but for gates of
    `daam_in_decoder`, whose statistics are then the window's).

    Args:
        codec: To train.
        freeze_encoder: Whether the encoder stays as it is.
        patch_heads: Whether linear heads tell each frame's log-mel patch from its latents and from its digits.
    """

    def __init__(self, codec: JepaDaamModel, freeze_encoder: bool = False, patch_heads: bool = True):
        super().__init__()
        self.codec = codec
        self.config: JepaDaamConfig = codec.config
        self.freeze_encoder = freeze_encoder
        codec.encoder.requires_grad_(not freeze_encoder)
        self.average = copy.deepcopy(codec).requires_grad_(False)
        self.batch_mean = torch.zeros(self.config.hidden_size)  # of the latents of the last batch
        self.batch_var = torch.ones(self.config.hidden_size)
        self.patch_steps = math.gcd(self.config.hop_length, PATCH_STEPS)
        self.patch_heads = nn.ModuleDict(
            {
                name: nn.Linear(self.config.hidden_size, self.patch_steps * PATCH_BANDS)
                for name in (("latents", "quantized") if patch_heads else ())
            }
        )
        self.train()

    def train(self, mode: bool = True):
        """Set training mode, but for the moving average and a frozen encoder: these have no dropout."""
        super().train(mode)
        self.average.eval()
        if self.freeze_encoder:
            self.codec.encoder.eval()
        return self

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """After a step: move the average towards the weights.

        The statistics of its quantizer move at the same pace towards those of the last batch: the averaged encoder is
        behind by some steps, and they have to be behind by as many.
        """
        for average, current in zip(self.average.parameters(), self.codec.parameters(), strict=True):
            average.lerp_(current, 1.0 - decay)
        if self.config.normalize_latents:
            self.average.quantizer.running_mean.lerp_(self.batch_mean, 1.0 - decay)
            self.average.quantizer.running_var.lerp_(self.batch_var, 1.0 - decay)

    def forward(
        self, samples: Tensor, lengths: Tensor, window_frames: int | None, generator: torch.Generator
    ) -> CodecResult:
        """Reconstruct a random window of each segment.

        Args:
            samples: `(batch, samples)`, at the model's rate, zero after each segment's end.
            lengths: `(batch,)`, int64, samples of each segment.
            window_frames: Longest window; `None` for whole segments.
            generator: Source of the windows' places, on CPU.
        """
        hop = self.config.hop_length
        samples = F.pad(samples, (0, -samples.shape[-1] % hop))
        frames = samples.shape[-1] // hop
        segment_frames = -(-lengths // hop)
        frame_mask = lengths_to_mask(segment_frames, frames)
        mask = None if bool(frame_mask.all()) else frame_mask
        latents = self.codec.encoder(samples[:, None], mask)
        quantized, indices, normalized = self.codec.quantizer.quantize(latents, mask)
        if self.training:
            self.batch_var, self.batch_mean = torch.var_mean(latents[frame_mask].detach().float(), dim=0)

        size = frames if window_frames is None else min(window_frames, frames)
        room = (segment_frames - size).clamp(min=0)
        starts = (torch.rand(len(samples), generator=generator).to(room.device) * (room + 1)).long()
        generated = self.decode_windows(quantized, segment_frames, starts, size)
        window_lengths = (lengths - starts * hop).clamp(max=size * hop)
        positions = starts[:, None] * hop + torch.arange(size * hop, device=samples.device)
        inside = lengths_to_mask(window_lengths, size * hop)
        real = samples.gather(1, positions.clamp(max=samples.shape[-1] - 1)).masked_fill(~inside, 0.0)

        patches = mel_patches(samples, hop, self.patch_steps, PATCH_BANDS, self.config.sampling_rate)
        bands = patches.unflatten(-1, (-1, PATCH_BANDS))
        mean = bands[frame_mask].mean(dim=(0, 1))  # left out, or the heads would be long in learning just that
        heard = {"latents": normalized, "quantized": quantized}
        return CodecResult(
            generated=generated.float().masked_fill(~inside, 0.0),
            real=real,
            lengths=window_lengths,
            patches=(bands - mean).flatten(-2),
            predicted={name: head(heard[name]) for name, head in self.patch_heads.items()},
            frame_mask=frame_mask,
            indices=indices,
            normalized=normalized,
        )

    def decode_windows(self, quantized: Tensor, segment_frames: Tensor, starts: Tensor, size: int) -> Tensor:
        """The part of each waveform that belongs to `size` frames from `starts` on.

        Args:
            quantized: `(batch, frames, dimensions)`.
            segment_frames: `(batch,)`, valid frames of each segment.
            starts: `(batch,)`, first frame of each window.
            size: Frames of a window.

        Returns:
            `(batch, size * hop_length)`.
        """
        decoder = self.codec.decoder
        context = decoder.margins()[0] if size < quantized.shape[1] else 0
        places = starts[:, None] + torch.arange(-context, size + context, device=quantized.device)
        valid = (places >= 0) & (places < segment_frames[:, None])
        places = places.clamp(0, quantized.shape[1] - 1)[..., None].expand(-1, -1, quantized.shape[2])
        frames = quantized.gather(1, places).transpose(1, 2)  # (B, T, C) -> (B, C, T)
        mask = None if bool(valid.all()) else valid
        return decoder(frames, mask, context=(context, context))[:, 0]
