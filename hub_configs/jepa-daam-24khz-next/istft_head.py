"""Inverse STFT head: the decoder's last upsampling stages as one transform. Layout: `(batch, channels, frames)`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OVERLAP = 4  # transforms that cover one sample
MIN_LOG_MAGNITUDE = -20.0  # nothing to be heard, and far from where `exp` is 0 and has no gradient


class InverseStftHead(nn.Module):
    """Features to magnitude and phase of a spectrogram, and the spectrogram to the waveform.

    Source: Kaneko et al. 2022 (iSTFTNet) and Siuzdak 2023 (Vocos).

    Args:
        channels: Channels of the features.
        hop_length: Samples that a feature frame stands for.
    """

    def __init__(self, channels: int, hop_length: int):
        super().__init__()
        self.hop_length = hop_length
        self.fft_size = OVERLAP * hop_length
        self.project = nn.Conv1d(channels, 2 * (self.fft_size // 2 + 1), kernel_size=1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict a spectrogram, and synthesize it.

        Args:
            x: `(batch, channels, frames)`.
            mask: `(batch, 1, frames)`, bool, valid frames; `None` if all are.

        Returns:
            `(batch, 1, frames * hop_length)`, in [-1, 1]; in training mode not clipped, for what is clipped has no
            gradient: too loud once, it would stay so. For the same reason the magnitude's bound is a soft one.
        """
        log_magnitude, phase = self.project(x).chunk(2, dim=1)
        loudest = math.log(self.fft_size)  # no bin of a full-scale signal reaches it
        log_magnitude = loudest - F.softplus(loudest - log_magnitude)
        waveform = self.synthesize(log_magnitude, phase, mask).to(self.project.weight.dtype)  # float32 under autocast
        return waveform if self.training else waveform.clamp(-1.0, 1.0)

    def synthesize(self, log_magnitude: Tensor, phase: Tensor, mask: Tensor | None = None) -> Tensor:
        """Inverse STFT of a spectrogram, in float32 at least.

        Args:
            log_magnitude: `(batch, fft_size // 2 + 1, frames)`, natural logarithm.
            phase: `(batch, fft_size // 2 + 1, frames)`, radians.
            mask: `(batch, 1, frames)`, bool, valid frames; `None` if all are.

        Returns:
            `(batch, 1, frames * hop_length)`.
        """
        dtype, device = torch.promote_types(phase.dtype, torch.float32), phase.device
        log_magnitude, phase = log_magnitude.to(dtype), phase.to(dtype)
        with torch.autocast(device.type, enabled=False):
            magnitude = log_magnitude.clamp(min=MIN_LOG_MAGNITUDE).exp()
            spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
            return inverse_stft(spectrum, self.hop_length, mask)


def inverse_stft(spectrum: Tensor, hop_length: int, mask: Tensor | None = None) -> Tensor:
    """Waveform of spectra of Hann windows of four hops, each centred on its hop.

    Overlapping windows are divided by the sum of their squares, so that the ends are as loud as the middle, and a
    recording in a padded batch sounds as it does alone.

    Args:
        spectrum: `(batch, bins, frames)`, complex.
        hop_length: Samples between windows.
        mask: `(batch, 1, frames)`, bool, valid frames; `None` if all are.

    Returns:
        `(batch, 1, frames * hop_length)`.
    """
    fft_size, dtype = OVERLAP * hop_length, spectrum.real.dtype
    window = torch.hann_window(fft_size, dtype=dtype, device=spectrum.device)[:, None]
    pieces = torch.fft.irfft(spectrum, n=fft_size, dim=1) * window
    valid = torch.ones_like(pieces[:1, :1]) if mask is None else mask.to(dtype)
    if mask is not None:
        pieces = pieces * valid
    envelope = _overlap_add(window.square() * valid, hop_length)
    return _overlap_add(pieces, hop_length) / envelope.clamp(min=1e-8)


def _overlap_add(pieces: Tensor, hop_length: int) -> Tensor:
    """`(batch, fft_size, frames)` -> `(batch, 1, frames * hop_length)`, each piece centred on its frame."""
    fft_size, frames = pieces.shape[1:]
    whole = (frames - 1) * hop_length + fft_size
    summed = F.fold(pieces, (1, whole), kernel_size=(1, fft_size), stride=(1, hop_length))[:, :, 0]
    start = (fft_size - hop_length) // 2
    return summed[..., start : start + frames * hop_length]
