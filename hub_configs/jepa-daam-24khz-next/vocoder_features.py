"""Spectral features of a waveform: mel bands of its envelope, pitch and voicing, 75 a second.

Layout: waveforms `(batch, samples)`, features `(batch, rows, time)`.
"""

import torch
from torch import Tensor, nn

from .istft_head import OVERLAP
from .pitch import PitchTracker, pitch_hz
from .vocoder_envelope import MIN_WIDTH_HZ, loudness, mel_matrix, smoothed, to_rows


class SpectralFeatures(nn.Module):
    """Waveform to features: an STFT, a pitch tracker, and the loudness of mel bands without harmonics.

    Only the tracker has weights. The features of a frame depend on the frame's samples and on `margin` to either side.

    Args:
        config: `JepaDaamConfig` with `feature_bands`.
    """

    def __init__(self, config):
        super().__init__()
        self.sampling_rate, self.num_bands = config.sampling_rate, config.feature_bands
        self.patch_size = config.patch_size
        self.hop_length = config.hop_length // config.patch_size
        self.fft_size = OVERLAP * self.hop_length
        self.margin = (self.fft_size - self.hop_length) // 2
        """Samples before and after a stretch that its features depend on."""
        self.tracker = PitchTracker(self.fft_size, config.sampling_rate)

    def power(self, samples: Tensor) -> Tensor:
        """Power spectra of Hann windows: `(batch, margin + time * hop + margin)` -> `(batch, bins, time)`."""
        window = torch.hann_window(self.fft_size, dtype=samples.dtype, device=samples.device)
        spectrum = torch.fft.rfft(samples.unfold(-1, self.fft_size, self.hop_length) * window)
        return (spectrum.real.square() + spectrum.imag.square()).transpose(1, 2)  # a complex `abs` is slow

    def forward(self, samples: Tensor) -> Tensor:
        """Analyze, in float32 at least.

        Args:
            samples: `(batch, margin + frames * patch_size * hop_length + margin)`; zero outside of the recording.

        Returns:
            `(batch, bands + 2, frames * patch_size)`.
        """
        with torch.autocast(samples.device.type, enabled=False):
            power = self.power(samples.to(torch.promote_types(samples.dtype, torch.float32)))
            # The tracker sees one frame at a time.
            frames = power.unflatten(2, (-1, self.patch_size)).transpose(1, 2)  # (B, frames, bins, patch)
            octaves, voiced = (
                track.unflatten(0, frames.shape[:2]).flatten(1) for track in self.tracker(frames.flatten(0, 1))
            )
            filters = mel_matrix(power.shape[1], self.num_bands, self.sampling_rate, power.dtype, power.device)
            filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)  # the mean of a band's bins
            envelope = smoothed(power, pitch_hz(octaves).clamp(min=MIN_WIDTH_HZ) / self.sampling_rate)
            return torch.cat([loudness(filters @ envelope), to_rows(octaves, voiced)], dim=1)
