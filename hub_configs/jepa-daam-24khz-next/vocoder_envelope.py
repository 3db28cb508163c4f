"""Spectral envelopes: mel bands of spectra without harmonics, as loudness, and pitch and voicing as two more rows.

Layout: power spectra `(batch, bins, spectra)`, rows `(batch, rows, spectra)`.
"""

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.audio_utils import mel_filter_bank

from .pitch import finest_dtype

SILENCE = 1e-3  # a bin's magnitude below which nothing is told apart: rooms' noise would take bits from speech
EXPONENT = 0.15  # of magnitudes: see `loudness`
LOUDNESS_MEAN, LOUDNESS_SCALE = 0.67, 0.225  # of speech
MIN_LOUDNESS, LOUDNESS_SLOPE = 0.25, 25.0  # of what is decoded: a magnitude of 1e-4; how sharply it ends there
MIN_WIDTH_HZ = 100.0  # over which a spectrum is smoothed, whatever the pitch
PITCH_SCALE, VOICING_SCALE = 20.0, 1.5  # of octaves and of a probability, beside loudness of variance 1
VOICING_SLOPE = 16.0  # of a voice's amplitude over the probability of one, at 0.5


@functools.lru_cache(maxsize=16)
def mel_filters(bins: int, num_bands: int, sampling_rate: int) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of equal area, from 0 Hz to the Nyquist frequency: `(bins, bands)`."""
    # Not a buffer: outside the checkpoint it would come back as zeros from `from_pretrained`. Not a tensor: the cache
    # outlives the call that fills it, which may be one under `torch.export`.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands between two bins are empty
        return mel_filter_bank(bins, num_bands, 0.0, sampling_rate / 2, sampling_rate, "slaney", "slaney")


@torch.compiler.assume_constant_result
def mel_matrix(bins: int, num_bands: int, sampling_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`mel_filters`, `(bands, bins)`: a constant for `torch.compile`."""
    return torch.tensor(mel_filters(bins, num_bands, sampling_rate).T, dtype=dtype, device=device)


def smoothed(power: Tensor, pitch: Tensor) -> Tensor:
    """Power spectra, averaged around each bin over as many Hz as a harmonic is wide: what is left is their envelope.

    Harmonics are as far apart as the pitch says, so that any stretch of that width holds one of them. The average is a
    product with a sinc on the other side of a Fourier transform, of the autocorrelation; a cosine there, which averages
    three neighbours, keeps loud harmonics from being heard in all other bins.

    Args:
        power: `(batch, bins, spectra)`.
        pitch: `(batch, spectra)`, as a share of the sampling rate.

    Returns:
        `(batch, bins, spectra)`, at least 0.

    Source: Morise 2015, CheapTrick, a spectral envelope estimator for high-quality speech synthesis (its first step).
    """
    dtype = finest_dtype(power.device)  # the loudest bin may have 10^12 times the power of another
    spectrum = power.transpose(1, 2).to(dtype)  # (B, spectra, bins)
    size = 2 * (spectrum.shape[-1] - 1)
    correlation = torch.fft.irfft(torch.complex(spectrum, torch.zeros_like(spectrum)), n=size, dim=-1)
    places = torch.arange(size, dtype=dtype, device=power.device)
    lags = torch.minimum(places, size - places)
    half_turn = torch.tensor(torch.pi, dtype=dtype, device=power.device)  # as a number it would be float32 in ONNX
    angles = half_turn * pitch[..., None].to(dtype) * lags.clamp(min=1e-6)
    window = angles.sin() / angles * (0.5 + 0.5 * (half_turn * lags / (size // 2)).cos())
    return torch.fft.rfft(correlation * window, dim=-1).real.transpose(1, 2).clamp(min=0.0).to(power.dtype)


def to_rows(octaves: Tensor, voiced: Tensor) -> Tensor:
    """Octaves above 150 Hz and probability of a voice, `(batch, spectra)`, as two rows: `(batch, 2, spectra)`."""
    return torch.stack([PITCH_SCALE * octaves, VOICING_SCALE * (voiced - 0.5)], dim=1)


def from_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `to_rows` has put together."""
    return rows[:, 0] / PITCH_SCALE, rows[:, 1] / VOICING_SCALE + 0.5


def loudness(power: Tensor) -> Tensor:
    """A small power of magnitudes, scaled to about mean 0 and variance 1 of speech.

    Between the logarithm, for which an error in what is hardly heard is as bad as one in a vowel, and the magnitudes
    themselves.

    Source: Stevens 1957, On the psychophysical law (with a larger exponent).
    """
    return ((power + SILENCE**2) ** (0.5 * EXPONENT) - LOUDNESS_MEAN) / LOUDNESS_SCALE


def log_magnitudes(rows: Tensor) -> Tensor:
    """The way back from `loudness`: natural logarithm of magnitudes."""
    louder = LOUDNESS_MEAN + LOUDNESS_SCALE * rows - MIN_LOUDNESS
    return (MIN_LOUDNESS + F.softplus(louder, beta=LOUDNESS_SLOPE)).log() / EXPONENT
