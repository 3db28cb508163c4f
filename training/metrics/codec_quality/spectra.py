"""Spectral distances of a clip and its reconstruction, in numpy: log-mel, and short-time spectra of many resolutions.

They equal, number for number but for rounding, what a codec of this project is trained with (`training/losses.py`), and
need neither it nor PyTorch. Clips are `(samples,)`, float32, mono; spectra `(frames, bins)`. Frame `n` is centred on
samples `n * hop_length` to `(n + 1) * hop_length`; beyond its ends a clip is zero.
"""

import functools
import math
import warnings

import numpy as np
from transformers.audio_utils import hertz_to_mel, mel_filter_bank, mel_to_hertz

FFT_SIZE = 1024  # of the log-mel spectrogram; its hop is 10 ms
NUM_BANDS = 80
MEL_FLOOR = 1e-5
STFT_RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (256, 64), (128, 32))  # FFT size and hop, in samples
POWER_FLOOR = 1e-8  # of an STFT bin
SILENCE_RMS = 1e-2  # -40 dB of full scale: the spectral convergence of quieter clips is relative to this level


def mel_distance(
    original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, bandwidth_hz: float | None = None
) -> float:
    """Mean absolute difference of natural-log mel magnitudes, over the bands centred up to `bandwidth_hz`."""
    difference = np.abs(log_mel(original, sampling_rate) - log_mel(reconstructed, sampling_rate))
    return float(difference[:, bands_below(sampling_rate, bandwidth_hz)].mean(dtype=np.float64))


def log_mel(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Natural logarithm of the magnitudes of 80 bands every 10 ms, at least log(1e-5): `(frames, NUM_BANDS)`."""
    magnitude = np.sqrt(_power(samples, FFT_SIZE, sampling_rate // 100))
    return np.log((magnitude @ _mel_filters(sampling_rate)).clip(min=MEL_FLOOR))


def bands_below(sampling_rate: int, bandwidth_hz: float | None) -> np.ndarray:
    """Which bands are centred up to a bandwidth (all if None), on Slaney's scale: `(NUM_BANDS,)`, bool.

    Raises:
        ValueError: If there are none.
    """
    edges = np.linspace(0.0, hertz_to_mel(sampling_rate / 2, mel_scale="slaney"), NUM_BANDS + 2)
    centres = np.asarray(mel_to_hertz(edges, mel_scale="slaney"))[1:-1]
    bands = centres <= (math.inf if bandwidth_hz is None else bandwidth_hz)
    if not bands.any():
        raise ValueError(f"`bandwidth_hz` must lie above the centre of the lowest band, got {bandwidth_hz}")
    return bands


def mr_stft_distance(
    original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, bandwidth_hz: float | None = None
) -> float:
    """Multi-resolution STFT distance: mean over five resolutions of spectral convergence + log-magnitude distance.

    With S and R the magnitudes of the original and of the reconstruction, the one is |S - R| / |S| (Frobenius norms),
    the other the mean of |log S - log R|. Bins above `bandwidth_hz` do not count. 0 for a perfect copy, no upper bound.

    Deviation: a clip below -40 dB of full scale is measured against a clip of that level, or silence would divide by 0.

    Source: Yamamoto et al. 2020, "Parallel WaveGAN", eq. 4-6; the resolutions and the floor are those of our training.
    """
    total = 0.0
    for fft_size, hop_length in STFT_RESOLUTIONS:
        bins = round(fft_size * min(bandwidth_hz or math.inf, sampling_rate / 2) / sampling_rate) + 1
        power, other = (
            _power(side, fft_size, hop_length)[:, :bins].astype(np.float64).clip(min=POWER_FLOOR)
            for side in (original, reconstructed)
        )
        # Parseval: a frame of white noise has N / 2 * sum(window^2) in its bins, and sum(window^2) is 3/8 N.
        energy = max(power.sum(), len(power) * 3 / 16 * fft_size**2 * SILENCE_RMS**2)
        convergence = math.sqrt(np.square(np.sqrt(power) - np.sqrt(other)).sum() / energy)
        total += convergence + 0.5 * float(np.abs(np.log(other / power)).mean())
    return total / len(STFT_RESOLUTIONS)


def _power(samples: np.ndarray, fft_size: int, hop_length: int) -> np.ndarray:
    """`(samples,)` -> `(ceil(samples / hop_length), fft_size // 2 + 1)`, float32."""
    frames = -(-len(samples) // hop_length)
    before = (fft_size - hop_length) // 2
    after = max(0, (frames - 1) * hop_length + fft_size - before - len(samples))
    padded = np.pad(samples.astype(np.float32), (before, after))
    framed = np.lib.stride_tricks.sliding_window_view(padded, fft_size)[::hop_length][:frames]
    spectrum = np.fft.rfft(framed * _hann(fft_size))
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _hann(fft_size: int) -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _mel_filters(sampling_rate: int) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of equal area, from 0 Hz to the Nyquist frequency: `(bins, NUM_BANDS)`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands between two bins are empty: they get no weight
        top_hz = sampling_rate / 2
        filters = mel_filter_bank(FFT_SIZE // 2 + 1, NUM_BANDS, 0.0, top_hz, sampling_rate, "slaney", "slaney")
    return np.asarray(filters, dtype=np.float32)
