"""Source-filter head: harmonics of a pitch, and noise, shaped by magnitudes. Layout: `(batch, channels, time)`."""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .istft_head import OVERLAP, inverse_stft
from .stft_front_end import stft

HIGHEST_HARMONIC = 0.36  # of the sampling rate: above, the noise is enough
NOISE_SAMPLES, NOISE_SEED = 1 << 16, 0
MAX_LOG_GAIN = 7.0  # no bin of a full-scale signal reaches it


class SourceFilterHead(nn.Module):
    """Features to gains of two sources' spectra, and the sum of these to the waveform.

    Deviation: the paper's decoder makes waveforms by convolution. Phases of a voice follow from its pitch, noise has
    any phase: only magnitudes are left to learn.

    Sources: Wang et al. 2019 (neural source-filter models); Engel et al. 2020 (DDSP).

    Args:
        channels: Channels of the features.
        hop_length: Samples that a feature frame stands for.
        sampling_rate: Of the waveform (Hz).
    """

    radius = OVERLAP // 2
    """Feature frames to either side that one sample depends on."""

    def __init__(self, channels: int, hop_length: int, sampling_rate: int):
        super().__init__()
        self.hop_length, self.sampling_rate = hop_length, sampling_rate
        self.fft_size = OVERLAP * hop_length
        self.project = nn.Conv1d(channels, 2 * (self.fft_size // 2 + 1), kernel_size=1)

    def forward(self, x: Tensor, mask: Tensor | None, sources: Tensor) -> Tensor:
        """Shape the sources.

        Args:
            x: `(batch, channels, frames)`.
            mask: `(batch, 1, frames)`, bool, valid frames; `None` if all are.
            sources: `(batch, 2, bins, frames)`, complex, as `spectra` makes them.

        Returns:
            `(batch, 1, frames * hop_length)`, in [-1, 1]; in training mode not clipped, for what is clipped has no
            gradient.
        """
        gains = self.project(x).to(sources.real.dtype).unflatten(1, (2, -1))
        with torch.autocast(x.device.type, enabled=False):
            gains = (MAX_LOG_GAIN - F.softplus(MAX_LOG_GAIN - gains)).exp()  # a soft bound, which has a gradient
            spectrum = torch.complex((gains * sources.real).sum(dim=1), (gains * sources.imag).sum(dim=1))
            waveform = inverse_stft(spectrum, self.hop_length, mask).to(self.project.weight.dtype)
        return waveform if self.training else waveform.clamp(-1.0, 1.0)

    def spectra(self, pitch: Tensor, voiced: Tensor, latents: Tensor, frame_mask: Tensor | None) -> Tensor:
        """Spectra of harmonics and of noise, whose magnitudes are about 1: `(batch, 2, bins, frames * patch)`, complex.

        Args:
            pitch: `(batch, frames, patch)`, Hz, of each spectrum of each latent frame.
            voiced: `(batch, frames, patch)`, in [0, 1], how much of the harmonics there is.
            latents: `(batch, dimensions, frames)`, quantized, of which the noise is a function.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
        """
        hop_length = pitch.shape[2] * self.hop_length
        with torch.autocast(pitch.device.type, enabled=False):
            voice = harmonics(pitch, hop_length, self.sampling_rate)
            voice = voice * F.interpolate(voiced, size=hop_length, mode="linear")
            sources = torch.stack([voice, noise(latents, hop_length)], dim=1)
            if frame_mask is not None:
                sources = sources * frame_mask[:, None, :, None]
            hann = torch.hann_window(self.fft_size)
            scale = torch.stack([hann.sum() / 2.0, 0.886 * hann.square().sum().sqrt()])  # of a cosine; of noise: mean
            spectrum = stft(sources.flatten(0, 1).flatten(1), self.hop_length)
            return spectrum.unflatten(0, (-1, 2)) / scale[:, None, None].to(pitch)


def harmonics(pitch: Tensor, hop_length: int, sampling_rate: int) -> Tensor:
    """Sum of cosines at all multiples of a pitch: `(batch, frames, hop_length)`.

    Each frame has a whole number of periods, for which its pitch is raised or lowered by a percent or so: then phases
    go on from frame to frame, and yet no frame has to know of those before it.

    Args:
        pitch: `(batch, frames, patch)`, Hz.
        hop_length: Samples a frame.
        sampling_rate: Of the waveform (Hz).
    """
    at_samples = F.interpolate(pitch.double(), size=hop_length, mode="linear")
    periods = (at_samples / sampling_rate).cumsum(dim=-1)
    total = periods[..., -1:].round().clamp(min=1.0)
    phase = torch.pi * (periods * (total / periods[..., -1:]))  # half of the angle
    count = torch.floor(HIGHEST_HARMONIC * hop_length / total)  # of harmonics
    # sum of cos(2 k phase) for k = 1..count, in closed form (Lagrange); at whole periods, its limit
    sine = phase.sin()
    whole = sine.abs() < 1e-6
    summed = (count * phase).sin() * ((count + 1.0) * phase).cos() / torch.where(whole, torch.ones_like(sine), sine)
    return torch.where(whole, count.expand_as(summed), summed).to(pitch.dtype)


def noise(latents: Tensor, hop_length: int) -> Tensor:
    """White noise of variance 1, another one for other latents: `(batch, frames, hop_length)`.

    Args:
        latents: `(batch, dimensions, frames)`, quantized.
        hop_length: Samples a frame.
    """
    table, factors = noise_table(latents.shape[1])
    whole = (16.0 * latents.detach().float()).round().double()
    starts = torch.tensor(factors, dtype=whole.dtype, device=whole.device) @ whole  # exact, and so the same anywhere
    places = (starts.long()[..., None] + torch.arange(hop_length, device=whole.device)) % NOISE_SAMPLES
    return torch.tensor(table, dtype=torch.float32, device=whole.device)[places]


@functools.lru_cache(maxsize=4)
def noise_table(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise to cut pieces from, and what each dimension counts in the place where a piece begins."""
    generator = np.random.RandomState(NOISE_SEED)  # the one whose numbers NumPy promises to keep
    return generator.standard_normal(NOISE_SAMPLES).astype(np.float32), generator.randint(0, 4096, dimensions)
