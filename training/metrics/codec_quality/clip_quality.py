"""How well one clip is reconstructed: figures that need no trained model and little time.

Shapes: a clip is `(samples,)`, float32 numpy, mono; a reconstruction is as long as its original, sample for sample.
A figure that a clip does not have (the PESQ of silence, say) is left out of its dict; none is NaN.
"""

import importlib.util
import math
from collections.abc import Collection

import numpy as np
import soxr

from .alignment import correlation_lag
from .intelligibility import stoi_scores
from .spectra import mel_distance, mr_stft_distance

FIGURES = ("pesq", "stoi", "estoi", "si_sdr_db", "mel_distance", "mr_stft_distance")
# PESQ is optional, for its package is built with a C compiler. Empty, or what should be said once.
PESQ_MISSING = (
    ""
    if importlib.util.find_spec("pesq")
    else "no PESQ figures: the package pesq is not installed (pip install pesq, which needs a C compiler)"
)
PESQ_RATE = 16000  # Hz
PESQ_FLOOR = 1.0  # of a silent reconstruction; the mapping of P.862.2 falls to 0.999
# The package crashes on more than 50 utterances in a clip; one with its pause takes at least 0.4 s.
PESQ_MAX_CLIP_S = 20.0
MIN_CLIP_S = 0.1
MAX_LAG_S = 0.02
MAX_SI_SDR_DB = 100.0  # of a perfect copy; of silence, its negative: a mean over clips stays finite
SILENCE = 2**-23  # a step of 24-bit PCM: what never strays so far from its mean is silent


def reconstruction_quality(
    original: np.ndarray,
    reconstructed: np.ndarray,
    sampling_rate: int,
    bandwidth_hz: float | None = None,
    figures: Collection[str] = FIGURES,
) -> dict[str, float]:
    """The figures of one clip.

    - `pesq`: wide band, 1 to 4.64, at 16 kHz. Of a clip longer than 20 s it is the mean over equal pieces, as few as
      are no longer. None if the original is silent, no utterance is found in it, it is shorter than 1/4 s or the
      package `pesq` is not installed (`PESQ_MISSING`); 1 if only the reconstruction is silent.
    - `stoi`, `estoi`: up to 1. None if the original has less than 0.4 s that are not silent.
    - `si_sdr_db`: see there. None if the original is silent.
    - `mel_distance`: mean absolute difference of natural-log mel spectrograms (80 bands, hop of 10 ms).
    - `mr_stft_distance`: see there.

    PESQ and SI-SDR align the two themselves; the others take them as they are.

    Args:
        original: `(samples,)`, float32.
        reconstructed: `(samples,)`, float32.
        sampling_rate: Of both (Hz).
        bandwidth_hz: Where the original's own spectrum ends: what lies above it is left out of the spectral distances.
        figures: Which of `FIGURES` to take.

    Raises:
        ValueError: If the two are not equally long mono clips of at least 0.1 s and finite values, or a figure is
            unknown.

    Source: ITU-T P.862.2 (PESQ); Taal et al. 2011 (STOI); Jensen and Taal 2016 (ESTOI).
    """
    if unknown := sorted(set(figures) - set(FIGURES)):
        raise ValueError(f"`figures` must be among {', '.join(FIGURES)}, got {', '.join(unknown)}")
    check_pair(original, reconstructed, sampling_rate)
    scores = {}
    if "mel_distance" in figures:
        scores["mel_distance"] = mel_distance(original, reconstructed, sampling_rate, bandwidth_hz)
    if "mr_stft_distance" in figures:
        scores["mr_stft_distance"] = mr_stft_distance(original, reconstructed, sampling_rate, bandwidth_hz)
    if _is_silent(original):
        return scores
    if "si_sdr_db" in figures:
        scores["si_sdr_db"] = si_sdr_db(original, reconstructed, sampling_rate)
    if "pesq" in figures:
        scores |= _pesq(original, reconstructed, sampling_rate)
    return scores | stoi_scores(original, reconstructed, sampling_rate, figures)


def check_pair(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> None:
    """Refuse what is no clip with its reconstruction.

    Raises:
        ValueError: If the two are not equally long mono clips of at least 0.1 s and finite values.
    """
    for samples, name in ((original, "original"), (reconstructed, "reconstructed")):
        if samples.shape != (len(original),) or len(samples) < MIN_CLIP_S * sampling_rate:
            raise ValueError(f"`{name}` must be mono, as long as `original`, at least 0.1 s, got {samples.shape}")
        if not np.isfinite(samples).all():
            raise ValueError(f"`{name}` must be finite")


def si_sdr_db(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio after alignment (dB, within +-`MAX_SI_SDR_DB`).

    With s the original, e the reconstruction, both without their mean, and a = <e, s> / <s, s>:
    10 log10(|a s|^2 / |e - a s|^2). The lag is that of the greatest absolute cross-correlation within +-20 ms; only
    what the two then share counts. A flipped polarity costs nothing, for a may be negative.

    Source: Le Roux et al. 2019, "SDR - half-baked or well done?", eq. 4.
    """
    lag = correlation_lag(original, reconstructed, round(MAX_LAG_S * sampling_rate))
    s, e = original.astype(np.float64), reconstructed.astype(np.float64)
    s, e = (s[: len(s) - lag], e[lag:]) if lag >= 0 else (s[-lag:], e[:lag])
    s, e = s - s.mean(), e - e.mean()
    target = (e @ s) / max(s @ s, np.finfo(np.float64).tiny) * s
    signal, distortion = target @ target, (e - target) @ (e - target)
    limit = 10 ** (MAX_SI_SDR_DB / 10)
    ratio = signal / distortion if distortion > signal / limit else limit * (signal > 0)
    return 10 * math.log10(max(ratio, 1 / limit))


def _pesq(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> dict[str, float]:
    if PESQ_MISSING:
        return {}
    sides = [soxr.resample(samples, sampling_rate, PESQ_RATE) for samples in (original, reconstructed)]
    pieces = math.ceil(len(sides[0]) / (PESQ_MAX_CLIP_S * PESQ_RATE))
    scores = [_pesq_of_piece(*piece) for piece in zip(*(np.array_split(side, pieces) for side in sides), strict=True)]
    found = [score for score in scores if score is not None]
    return {"pesq": sum(found) / len(found)} if found else {}


def _pesq_of_piece(original: np.ndarray, reconstructed: np.ndarray) -> float | None:
    """None if the original has none even beside itself."""
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    if _is_silent(original):
        return None
    try:
        if not _is_silent(reconstructed):
            return float(pesq(PESQ_RATE, original, reconstructed, "wb"))
        pesq(PESQ_RATE, original, original, "wb")
    except (BufferTooShortError, NoUtterancesError):
        return None
    return PESQ_FLOOR


def _is_silent(samples: np.ndarray) -> bool:
    return bool(np.abs(samples - samples.mean()).max() < SILENCE)
