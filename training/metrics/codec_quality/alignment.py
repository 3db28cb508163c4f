"""The delay of a reconstruction: found by correlation (of one clip), or by STOI (of a codec), and taken away.

A lag is in samples, positive if the reconstruction comes late. Clips are `(samples,)`, float32 numpy, mono.
"""

from collections.abc import Sequence

import numpy as np

from .intelligibility import stoi_scores

MAX_LAG_S = 0.03
STEP_S = 0.0025  # of the lags that a codec's reconstructions are tried with
CLIPS = 3  # that decide on a codec's lag


def correlation_lag(original: np.ndarray, reconstructed: np.ndarray, max_lag: int) -> int:
    """The lag of the greatest absolute cross-correlation, within +-`max_lag` samples."""
    original, reconstructed = (
        side.astype(np.float64) - side.mean(dtype=np.float64) for side in (original, reconstructed)
    )
    size = len(original) + max_lag  # with so many zeros, a circular correlation is a linear one
    correlation = np.fft.irfft(np.fft.rfft(reconstructed, size) * np.fft.rfft(original, size).conj(), size)
    lags = np.arange(-max_lag, max_lag + 1)
    return int(lags[np.abs(correlation[lags]).argmax()])


def constant_lag(
    originals: Sequence[np.ndarray],
    reconstructions: Sequence[np.ndarray],
    sampling_rate: int,
    max_lag_s: float = MAX_LAG_S,
) -> int:
    """The one lag of all reconstructions of a codec: that of the greatest mean STOI over the first three clips.

    Tried are the lags every 2.5 ms, for codecs that do not keep the waveform, and those of the greatest
    cross-correlation of each clip, for codecs that do. Among equals, the smallest wins. Clips without STOI do not
    decide; if none has it, the lag is 0.

    Args:
        originals: Clips.
        reconstructions: Of these clips, each as long as its original.
        sampling_rate: Of all (Hz).
        max_lag_s: Greatest lag to either side (s).
    """
    max_lag = round(max_lag_s * sampling_rate)
    pairs = list(zip(originals, reconstructions, strict=True))[:CLIPS]
    steps = int(max_lag_s / STEP_S + 1e-9)
    tried = {round(step * STEP_S * sampling_rate) for step in range(-steps, steps + 1)}
    tried |= {correlation_lag(original, reconstructed, max_lag) for original, reconstructed in pairs}

    def mean_stoi(lag: int) -> float:
        scores = [stoi_scores(a, remove_lag(b, lag, len(a)), sampling_rate, ["stoi"]) for a, b in pairs]
        return sum(score.get("stoi", 0.0) for score in scores)

    return max(sorted(tried, key=abs), key=mean_stoi)


def remove_lag(samples: np.ndarray, lag: int, length: int) -> np.ndarray:
    """Take a lag off (put one on, if negative), and cut, or fill with zeros, to `length` samples. Always a copy."""
    shifted = samples[lag:] if lag >= 0 else np.pad(samples, (-lag, 0))
    return np.pad(shifted[:length], (0, max(0, length - len(shifted))))
