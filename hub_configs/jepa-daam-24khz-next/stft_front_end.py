"""STFT front end: the encoder's first stages as one transform. Layout: `(batch, channels, frames)`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OVERLAP = 4  # transforms that cover one sample
MIN_LOG_MAGNITUDE = math.log(1e-3)  # below the noise floor of recordings, where levels would be random
LOG_MAGNITUDE_SCALE = 0.3  # speech comes out with a standard deviation of about 1


class StftFrontEnd(nn.Module):
    """Waveform to features of its log magnitude spectrogram: what `InverseStftHead` is to the decoder.

    Deviation: the paper's encoder learns its filters from the waveform. Here a fixed transform does the work of the
    highest rates, which costs next to nothing, and shows the energy of each frequency from the first step on.

    Args:
        channels: Channels of the features.
        hop_length: Samples that a feature frame stands for.
    """

    def __init__(self, channels: int, hop_length: int):
        super().__init__()
        self.hop_length = hop_length
        self.fft_size = OVERLAP * hop_length
        self.project = nn.Conv1d(self.fft_size // 2 + 1, channels, kernel_size=1)

    def forward(self, waveform: Tensor) -> Tensor:
        """Analyse: `(batch, 1, frames * hop_length)` -> `(batch, channels, frames)`, each window centred on its frame.

        The transform runs in float32 at least.
        """
        return self.features(self.power(waveform))

    def features(self, power: Tensor) -> Tensor:
        """What `forward` makes, of what `power` has made."""
        return self.project(self.log_magnitude(power).to(self.project.weight.dtype))

    @staticmethod
    def log_magnitude(power: Tensor) -> Tensor:
        """Scaled natural logarithm of the magnitudes, at least 0."""
        return LOG_MAGNITUDE_SCALE * (0.5 * power.clamp(min=math.exp(2 * MIN_LOG_MAGNITUDE)).log() - MIN_LOG_MAGNITUDE)

    def power(self, waveform: Tensor) -> Tensor:
        """Power of the transforms: `(batch, fft_size // 2 + 1, frames)`."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = stft(waveform[:, 0].to(torch.promote_types(waveform.dtype, torch.float32)), self.hop_length)
            return spectrum.real.square() + spectrum.imag.square()  # a complex `abs` is slow


def stft(waveform: Tensor, hop_length: int) -> Tensor:
    """Spectra of Hann windows of four hops, one centred on each hop: `(batch, samples)` -> `(batch, bins, frames)`."""
    fft_size = OVERLAP * hop_length
    margin = fft_size - hop_length
    padded = F.pad(waveform, (margin // 2, margin - margin // 2))
    window = torch.hann_window(fft_size, dtype=waveform.dtype, device=waveform.device)
    pieces = padded.unfold(-1, fft_size, hop_length) * window  # (B, frames, fft_size)
    return torch.fft.rfft(pieces, dim=-1).transpose(1, 2)
