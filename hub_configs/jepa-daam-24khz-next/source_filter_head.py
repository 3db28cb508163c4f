"""Source-filter head: harmonics and noise, and the magnitudes that shape them. Layout: `(batch, channels, time)`."""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .istft_head import OVERLAP, inverse_stft
from .pitch import finest_dtype
from .stft_front_end import stft
from .vocoder_envelope import log_magnitudes

HIGHEST_HARMONIC = 0.36  # of the sampling rate: above, the noise is enough
NOISE_SAMPLES, NOISE_SEED = 1 << 16, 0
MAX_LOG_MAGNITUDE = 7.0  # at the shipped rates, a full-scale sine has 5.8


class Sources(NamedTuple):
    """What a head shapes: spectra of equal power, and how much of a voice there is."""

    voice: Tensor
    """`(batch, 2, bins, spectra)`, real and imaginary part of harmonics, float32 at least."""
    noise: Tensor
    """`(batch, 2, bins, spectra)`, of noise."""
    voiced: Tensor
    """`(batch, 1, spectra)`, in [0, 1]."""


class SourceFilterHead(nn.Module):
    """Features to the loudness of a filter's bins, through which harmonics and noise go, mixed.

    Deviation: the paper's decoder makes waveforms by convolution. The harmonics of a voice follow from its pitch, noise
    is any: only their envelope is left to learn, and for each bin the share of harmonics in a voice.

    The noise is cut from a table that is stored with the weights: white, until `training/even_noise.py` makes it as
    loud at any time and frequency as at any other. Noise of chance is not, and whatever it is louder or softer by is an
    error of the reconstruction.

    Sources: Wang et al. 2019 (neural source-filter models); Engel et al. 2020 (DDSP).

    Args:
        channels: Channels of the features.
        hop_length: Samples that a feature frame stands for.
        sampling_rate: Of the waveform (Hz).
        num_spectra: That each feature frame tells of: with more, windows are shorter, and what is sudden is told apart
            from what was before.
    """

    noise: Tensor

    def __init__(
        self, channels: int, hop_length: int, sampling_rate: int, num_spectra: int = 1, dynamic_share: bool = False
    ):
        super().__init__()
        self.hop_length, self.sampling_rate, self.num_spectra = hop_length // num_spectra, sampling_rate, num_spectra
        self.register_buffer("noise", torch.from_numpy(white_noise().copy()))
        self.fft_size = OVERLAP * self.hop_length
        bins = self.fft_size // 2 + 1
        self.project = nn.Conv1d(channels, num_spectra * bins, kernel_size=1)
        self.share = nn.Parameter(torch.zeros(bins, 1))  # of harmonics in a voice, as a logit
        self.project_share = nn.Conv1d(channels, num_spectra * bins, kernel_size=1) if dynamic_share else None

    def forward(self, x: Tensor, mask: Tensor | None, sources: Sources) -> Tensor:
        """Shape the sources.

        Args:
            x: `(batch, channels, frames)`.
            mask: `(batch, 1, frames)`, bool, valid frames; `None` if all are.
            sources: Of these frames, as `spectra` makes them.

        Returns:
            `(batch, 1, samples)`, in [-1, 1]; in training mode not clipped, for what is clipped has no
            gradient.
        """
        voice, noise, voiced = sources
        loudness = self._by_bins(self.project(x)).to(voiced.dtype)
        logit = self.share if self.project_share is None else self.share + self._by_bins(self.project_share(x))
        mask = None if mask is None else mask.repeat_interleave(self.num_spectra, dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            share = (logit.to(voiced.dtype).sigmoid() * voiced).clamp(1e-8, 1.0 - 1e-6)  # roots with a gradient
            mixed = share[:, None].sqrt() * voice + (1.0 - share)[:, None].sqrt() * noise
            # A bound with a gradient. Loudness is that in a window of four features; in a shorter one there is less.
            loudest = MAX_LOG_MAGNITUDE - 0.5 * math.log(self.num_spectra)
            log_magnitude = loudest - F.softplus(MAX_LOG_MAGNITUDE - log_magnitudes(loudness))
            filtered = log_magnitude.exp()[:, None] * mixed
            spectrum = torch.complex(filtered[:, 0], filtered[:, 1])
            waveform = inverse_stft(spectrum, self.hop_length, mask).to(self.project.weight.dtype)
        return waveform if self.training else waveform.clamp(-1.0, 1.0)

    def _by_bins(self, projected: Tensor) -> Tensor:
        """`(batch, spectra of a feature * bins, frames)` -> `(batch, bins, spectra)`."""
        return projected.unflatten(1, (self.num_spectra, -1)).permute(0, 2, 3, 1).flatten(2)

    def spectra(self, pitch: Tensor, voiced: Tensor, latents: Tensor, frame_mask: Tensor | None) -> Sources:
        """Spectra of harmonics and of noise, of equal power, and how much of a voice there is.

        Args:
            pitch: `(batch, frames, patch)`, Hz, of each feature of each latent frame.
            voiced: `(batch, frames, patch)`, in [0, 1].
            latents: `(batch, dimensions, frames)`, quantized, of which the noise is a function.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
        """
        hop_length = pitch.shape[2] * self.num_spectra * self.hop_length
        with torch.autocast(pitch.device.type, enabled=False):
            voice = harmonics(pitch, hop_length, self.sampling_rate)
            sources = torch.stack([voice, noise_of(latents, hop_length, self.noise)], dim=1).to(voiced.dtype)
            if frame_mask is not None:
                sources = sources * frame_mask[:, None, :, None]
            spectrum = stft(sources.flatten(0, 1).flatten(1), self.hop_length).unflatten(0, (-1, 2))
            parts = torch.stack([spectrum.real, spectrum.imag], dim=2)  # (B, 2, 2, bins, spectra)
            window = torch.hann_window(self.fft_size, dtype=voiced.dtype, device=voiced.device)
            scale = window.square().sum().rsqrt()  # to a power of 1
            # A cosine has a power of 1/2, and there is one in every `pitch` Hz.
            density = (4.0 * pitch.to(voiced) / self.sampling_rate).sqrt()
            density, voiced = (
                track.flatten(1).repeat_interleave(self.num_spectra, dim=1)[:, None] for track in (density, voiced)
            )
            return Sources(parts[:, 0] * (scale * density)[:, None], parts[:, 1] * scale, voiced)


def harmonics(pitch: Tensor, hop_length: int, sampling_rate: int) -> Tensor:
    """Sum of cosines at all multiples of a pitch: `(batch, frames, hop_length)`, float32.

    Each frame has a whole number of periods, for which its pitch is raised or lowered by a percent or so: then phases
    go on from frame to frame, and yet no frame has to know of those before it.

    Args:
        pitch: `(batch, frames, patch)`, Hz, best in float64: phases are sums of it.
        hop_length: Samples a frame.
        sampling_rate: Of the waveform (Hz).
    """
    at_samples = F.interpolate(pitch.to(finest_dtype(pitch.device)), size=hop_length, mode="linear")
    periods = (at_samples / sampling_rate).cumsum(dim=-1)
    total = periods[..., -1:].round().clamp(min=1.0)
    turns = periods * (total / periods[..., -1:])
    phase = (torch.pi * (turns - turns.round())).float()  # half of the angle; the sum has its period
    count = torch.floor(HIGHEST_HARMONIC * hop_length / total).float()  # of harmonics
    # sum of cos(2 k phase) for k = 1..count, in closed form (Lagrange); at whole periods, its limit
    sine = phase.sin()
    whole = sine.abs() < 1e-6
    summed = (count * phase).sin() * ((count + 1.0) * phase).cos() / torch.where(whole, torch.ones_like(sine), sine)
    return torch.where(whole, count.expand_as(summed), summed)


def noise_of(latents: Tensor, hop_length: int, table: Tensor) -> Tensor:
    """Pieces of a table, another one for other latents: `(batch, frames, hop_length)`, float32.

    Args:
        latents: `(batch, dimensions, frames)`, quantized.
        hop_length: Samples a frame.
        table: `(NOISE_SAMPLES,)`, of variance 1.
    """
    whole = (16.0 * latents.detach().float()).round()
    factors = place_factors(latents.shape[1], whole.device)
    starts = (factors * whole).sum(dim=1)  # exact, for it stays below 2^24: the same on any machine
    places = (starts.long()[..., None] + torch.arange(hop_length, device=whole.device)) % NOISE_SAMPLES
    return table.float()[places]


@torch.compiler.assume_constant_result
def place_factors(dimensions: int, device: torch.device) -> Tensor:
    """What each dimension counts in the place where a piece begins, `(dimensions, 1)`, float32."""
    return torch.from_numpy(_random_numbers(dimensions)[1]).to(device)[:, None]


def white_noise() -> np.ndarray:
    """`(NOISE_SAMPLES,)`, float32, of variance 1: what a head begins with."""
    return _random_numbers(0)[0]


@functools.lru_cache(maxsize=4)
def _random_numbers(dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.RandomState(NOISE_SEED)  # the one whose numbers NumPy promises to keep
    table = generator.standard_normal(NOISE_SAMPLES).astype(np.float32)
    return table, generator.randint(0, 4096, dimensions).astype(np.float32)
