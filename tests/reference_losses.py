"""The losses of stage 2 once more: slow, obvious, in float64 numpy and loops, one clip at a time."""

import functools
import math

import numpy as np

STFT_RESOLUTIONS = [(2048, 512), (1024, 256), (512, 128), (256, 64), (128, 32)]
MEL_RESOLUTIONS = [(32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320)]


def gain(frequency: float, bandwidth: float | None, gain_above: float) -> float:
    """1 below the bandwidth, `gain_above` from 200 Hz above it."""
    if bandwidth is None or frequency <= bandwidth:
        return 1.0
    if frequency >= bandwidth + 200:
        return gain_above
    return gain_above + (1 - gain_above) * (1 + math.cos(math.pi * (frequency - bandwidth) / 200)) / 2


def magnitudes(clip: np.ndarray, fft_size: int, hop: int) -> np.ndarray:
    """Frame n is centred on the middle of hop n; zeros surround the clip: `(frames, bins)`."""
    window = [0.5 - 0.5 * math.cos(2 * math.pi * i / fft_size) for i in range(fft_size)]
    zeros = np.zeros(fft_size)
    padded = np.concatenate([zeros, clip, zeros])
    frames = []
    for n in range(math.ceil(len(clip) / hop)):
        start = fft_size + n * hop + hop // 2 - fft_size // 2
        frames.append(np.abs(np.fft.rfft(padded[start : start + fft_size] * window)))
    return np.array(frames)


def bin_gains(fft_size: int, rate: int, bandwidth: float | None, gain_above: float) -> np.ndarray:
    return np.array([gain(k * rate / fft_size, bandwidth, gain_above) for k in range(fft_size // 2 + 1)])


def spectral_convergence(generated, real, rate, bandwidth=None, gain_above=0.0, resolutions=STFT_RESOLUTIONS) -> float:
    """Eq. 23, summed, with a floor: what white noise of -40 dB would have in the denominator."""
    total = 0.0
    for fft_size, hop in resolutions:
        gains = bin_gains(fft_size, rate, bandwidth, gain_above)
        a = magnitudes(generated, fft_size, hop) * gains
        b = magnitudes(real, fft_size, hop) * gains
        floor = 0.01 * math.sqrt(len(b) * fft_size / 2 * 0.375 * fft_size)
        total += math.sqrt(((a - b) ** 2).sum()) / max(math.sqrt((b**2).sum()), floor)
    return total


def log_magnitude(generated, real, rate, bandwidth=None, gain_above=0.0, resolutions=STFT_RESOLUTIONS) -> float:
    """Eq. 24, summed."""
    total = 0.0
    for fft_size, hop in resolutions:
        gains = bin_gains(fft_size, rate, bandwidth, gain_above)
        a = np.log(np.maximum(magnitudes(generated, fft_size, hop), 1e-4))
        b = np.log(np.maximum(magnitudes(real, fft_size, hop), 1e-4))
        total += np.average(np.abs(a - b).mean(axis=0), weights=gains)
    return total


def hertz(mel: float) -> float:
    """Slaney's scale: linear up to 1000 Hz, which is 15 mel; 27 mel for every factor of 6.4 above it."""
    return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)


@functools.cache
def triangles(fft_size: int, bands: int, rate: int) -> np.ndarray:
    """Mel filters whose area over frequency is one: `(bins, bands)`."""
    top = 15 + 27 * math.log(rate / 2 / 1000) / math.log(6.4)
    corners = [hertz(top * i / (bands + 1)) for i in range(bands + 2)]
    filters = np.zeros((fft_size // 2 + 1, bands))
    for k in range(fft_size // 2 + 1):
        frequency = k * rate / fft_size
        for m in range(bands):
            low, centre, high = corners[m : m + 3]
            rise, fall = (frequency - low) / (centre - low), (high - frequency) / (high - centre)
            filters[k, m] = max(0.0, min(rise, fall)) * 2 / (high - low)
    return filters


def log_mel(clip, rate, fft_size, hop, bands, gains=1.0) -> np.ndarray:
    return np.log(np.maximum((magnitudes(clip, fft_size, hop) * gains) @ triangles(fft_size, bands, rate), 1e-5))


def band_gains(fft_size, bands, rate, bandwidth, gain_above) -> np.ndarray:
    """The mean gain of each band's bins, 0 for a band without bins."""
    filters = triangles(fft_size, bands, rate)
    gains = bin_gains(fft_size, rate, bandwidth, gain_above)
    return np.array([filter_ @ gains / filter_.sum() if filter_.any() else 0.0 for filter_ in filters.T])


def mel_loss(generated, real, rate, bandwidth=None, gain_above=0.0) -> float:
    total = 0.0
    for fft_size, bands in MEL_RESOLUTIONS:
        gains = bin_gains(fft_size, rate, bandwidth, gain_above)
        a = log_mel(generated, rate, fft_size, fft_size // 4, bands, gains) / math.log(10)
        b = log_mel(real, rate, fft_size, fft_size // 4, bands, gains) / math.log(10)
        weights = band_gains(fft_size, bands, rate, bandwidth, gain_above)
        total += np.average(np.abs(a - b).mean(axis=0), weights=weights)
    return total


def shape_bandwidth(clip, bandwidth, rate, gain_above) -> np.ndarray:
    """With so many zeros after the clip that nothing can wrap round."""
    size = 8 * len(clip)
    gains = [gain(k * rate / size, bandwidth, gain_above) for k in range(size // 2 + 1)]
    return np.fft.irfft(np.fft.rfft(clip, size) * gains, size)[: len(clip)]
