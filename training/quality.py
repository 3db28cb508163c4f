"""How well held-out clips are reconstructed: figures that are quick enough to be taken during training.

Shapes: a clip is `(samples,)`, float32 numpy, mono; a reconstruction is as long as its original, sample for sample.
A figure that a clip does not have (the PESQ of silence, say) is left out of its dict; none is NaN.
"""

import importlib.util
import math
import warnings
from collections.abc import Sequence

import numpy as np
import soxr
import torch
from pystoi import stoi
from torch import Tensor
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from modeling_jepa_daam.packing import check_tokens

from .losses import log_mel

# PESQ is optional, for its package is built with a C compiler. Empty, or what a run should say once.
PESQ_MISSING = "" if importlib.util.find_spec("pesq") else "no PESQ figures: the package pesq is not installed"
PESQ_RATE = 16000  # Hz
STOI_TOO_SHORT = 1e-5  # what pystoi returns for less than 30 frames
FFT_SIZE = 1024
NUM_BANDS = 80
MIN_CLIP_S = 0.1
MAX_LAG_S = 0.02
MAX_SI_SDR_DB = 100.0  # of a perfect copy; of silence, its negative: a mean over clips stays finite
SILENCE = 2**-23  # a step of 24-bit PCM: what never strays so far from its mean is silent


def reconstruction_quality(
    original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, bandwidth_hz: float | None = None
) -> dict[str, float]:
    """All figures of one clip.

    - `pesq`: wide band, 1 to 4.64, at 16 kHz. None if a side is silent, no utterance is found, the clip is shorter
      than 1/4 s or the package `pesq` is not installed (`PESQ_MISSING`).
    - `stoi`, `estoi`: up to 1. None if the original has less than 0.4 s that are not silent.
    - `mel_distance`: mean absolute difference of natural-log mel spectrograms (80 bands, hop of 10 ms).
    - `si_sdr_db`: see there. None if the original is silent.

    PESQ aligns the two itself; STOI and mel distance take them as they are.

    Args:
        original: `(samples,)`, float32.
        reconstructed: `(samples,)`, float32.
        sampling_rate: Of both (Hz).
        bandwidth_hz: Where the original's own spectrum ends: bands centred above it are left out of `mel_distance`.

    Raises:
        ValueError: If the two are not equally long mono clips of at least 0.1 s and finite values.

    Source: ITU-T P.862.2 (PESQ); Taal et al. 2011 (STOI); Jensen and Taal 2016 (ESTOI).
    """
    for samples, name in ((original, "original"), (reconstructed, "reconstructed")):
        if samples.shape != (len(original),) or len(samples) < MIN_CLIP_S * sampling_rate:
            raise ValueError(f"`{name}` must be mono, as long as `original`, at least 0.1 s, got {samples.shape}")
        if not np.isfinite(samples).all():
            raise ValueError(f"`{name}` must be finite")
    difference = np.abs(_log_mel(original, sampling_rate) - _log_mel(reconstructed, sampling_rate))
    figures = {"mel_distance": float(difference[:, _bands(sampling_rate, bandwidth_hz)].mean())}
    if _is_silent(original):
        return figures
    figures["si_sdr_db"] = si_sdr_db(original, reconstructed, sampling_rate)
    return figures | _stoi(original, reconstructed, sampling_rate) | _pesq(original, reconstructed, sampling_rate)


def si_sdr_db(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> float:
    """Scale-invariant signal-to-distortion ratio after alignment (dB, within +-`MAX_SI_SDR_DB`).

    With s the original, e the reconstruction, both without their mean, and a = <e, s> / <s, s>:
    10 log10(|a s|^2 / |e - a s|^2). The lag is that of the greatest absolute cross-correlation within +-20 ms; only
    what the two then share counts. A flipped polarity costs nothing, for a may be negative.

    Source: Le Roux et al. 2019, "SDR - half-baked or well done?", eq. 4.
    """
    s, e = original.astype(np.float64), reconstructed.astype(np.float64)
    max_lag = round(MAX_LAG_S * sampling_rate)
    size = len(s) + max_lag  # with so many zeros, a circular correlation is a linear one
    correlation = np.fft.irfft(np.fft.rfft(e - e.mean(), size) * np.fft.rfft(s - s.mean(), size).conj(), size)
    lags = np.arange(-max_lag, max_lag + 1)  # positive if the reconstruction comes late
    lag = int(lags[np.abs(correlation[lags]).argmax()])
    s, e = (s[: len(s) - lag], e[lag:]) if lag >= 0 else (s[-lag:], e[:lag])
    s, e = s - s.mean(), e - e.mean()
    target = (e @ s) / max(s @ s, np.finfo(np.float64).tiny) * s
    signal, distortion = target @ target, (e - target) @ (e - target)
    limit = 10 ** (MAX_SI_SDR_DB / 10)
    ratio = signal / distortion if distortion > signal / limit else limit * (signal > 0)
    return 10 * math.log10(max(ratio, 1 / limit))


def best_constant_mel_distance(
    originals: Sequence[np.ndarray], sampling_rate: int, bandwidths: Sequence[float | None] | None = None
) -> float:
    """Mean `mel_distance` of the best constant: one spectrum for every frame of every clip.

    A codec that scores no better carries nothing but the average. The best constant is, in each band, the median of
    the frames, each weighted as in a mean of the clips' `mel_distance`, so that the two figures compare.
    `bandwidths` are the `bandwidth_hz` of each clip, Hz.
    """
    limits = [None] * len(originals) if bandwidths is None else bandwidths
    spectra, weights = [], []  # each (frames, bands)
    for clip, limit in zip(originals, limits, strict=True):
        spectra.append(_log_mel(clip, sampling_rate))
        counted = np.broadcast_to(_bands(sampling_rate, limit), spectra[-1].shape)
        weights.append(counted / counted.sum() / len(originals))
    frames, weight = np.concatenate(spectra), np.concatenate(weights)
    order = frames.argsort(axis=0)
    cumulative = np.take_along_axis(weight, order, axis=0).cumsum(axis=0)
    middle = (cumulative >= cumulative[-1] / 2).argmax(axis=0)
    median = np.take_along_axis(np.take_along_axis(frames, order, axis=0), middle[None], axis=0)
    return float((np.abs(frames - median) * weight).sum())


def mean_quality(clips: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each figure over the clips that have it, and under `clips/<figure>` how many those are."""
    found = {key: [clip[key] for clip in clips if key in clip] for key in sorted(set().union(*clips))}
    means = {key: sum(values) / len(values) for key, values in found.items()}
    return means | {f"clips/{key}": float(len(values)) for key, values in found.items()}


def token_statistics(
    indices: np.ndarray | Tensor, levels: Sequence[int], tokens: np.ndarray | Tensor, vocab_sizes: Sequence[int]
) -> dict[str, float]:
    """How much of the quantizer's values some frames use.

    - `digit_entropy_bits`, `digit_entropy_bits_min`: mean and least, over dimensions, of the empirical entropy of
      the index. At most the binary logarithm of the levels.
    - `digits_never_change`: number of dimensions with a single value.
    - `digit_change_share`: share of indices that differ from the frame before (where clips are joined, from the
      other clip's last). None for a single frame.
    - `token_entropy_bits`: mean, over the places of a frame, of the empirical entropy of the token. At most the
      binary logarithm of the number of frames: compare it over equally many frames only.
    - `vocab_used_share`: distinct tokens in full groups (the last may be shorter), as a share of their vocabulary.
      At most the number of these tokens over its size.

    Args:
        indices: `(frames, dimensions)`, int64.
        levels: Number of values of each dimension.
        tokens: `(frames, tokens_per_frame)`, int64.
        vocab_sizes: Number of values of each token of a frame: `packing.group_vocabulary_sizes`.

    Raises:
        ValueError: If there are no frames, the shapes do not fit together, or a value is out of range.
    """
    indices, tokens = torch.as_tensor(indices).cpu(), torch.as_tensor(tokens).cpu()
    check_tokens(indices, levels, 1, "indices")
    check_tokens(tokens, vocab_sizes, 1)
    if indices.ndim != 2 or tokens.ndim != 2 or not 0 < len(indices) == len(tokens):
        raise ValueError(f"need as many frames of both, got {tuple(indices.shape)} and {tuple(tokens.shape)}")
    digit_bits = [_entropy_bits(digit) for digit in indices.T]
    full = torch.tensor(vocab_sizes) == max(vocab_sizes)
    figures = {
        "digit_entropy_bits": sum(digit_bits) / len(digit_bits),
        "digit_entropy_bits_min": min(digit_bits),
        "digits_never_change": float((indices == indices[0]).all(dim=0).sum()),
        "token_entropy_bits": sum(map(_entropy_bits, tokens.T)) / len(vocab_sizes),
        "vocab_used_share": len(tokens[:, full].unique()) / max(vocab_sizes),
    }
    if len(indices) > 1:
        figures["digit_change_share"] = float((indices[1:] != indices[:-1]).double().mean())
    return figures


def spectrogram_figure(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, title: str) -> np.ndarray:
    """Log-mel spectrograms of a clip and of its reconstruction below, both in the range of colours of the clip.

    Returns:
        `(height, width, 3)`, uint8: an image for a tracker.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, layout="constrained")  # no pyplot: nothing shared, nothing to close
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False)
    axes = figure.subplots(2, 1, sharex=True)
    spectra = [_log_mel(samples, sampling_rate).T for samples in (original, reconstructed)]
    for axis, spectrum, name in zip(axes, spectra, ("original", "reconstruction"), strict=True):
        image = axis.imshow(
            spectrum,
            aspect="auto",
            origin="lower",
            extent=(0, len(original) / sampling_rate, -0.5, NUM_BANDS - 0.5),
            vmin=spectra[0].min(),
            vmax=spectra[0].max(),
            cmap="magma",
        )
        axis.set_title(name, loc="left")
        axis.set_ylabel("mel band")
    axes[1].set_xlabel("time (s)")
    figure.colorbar(image, ax=axes, label="log magnitude")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _log_mel(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """`(samples,)` -> `(frames, NUM_BANDS)`, at a hop of 10 ms (240 samples at 24 kHz)."""
    waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))[None]
    with torch.inference_mode():
        return log_mel(waveform, sampling_rate, FFT_SIZE, sampling_rate // 100, NUM_BANDS)[0].numpy()


def _bands(sampling_rate: int, bandwidth_hz: float | None) -> np.ndarray:
    """Which bands are centred below a bandwidth, `(NUM_BANDS,)`, bool: on Slaney's scale up to half the rate."""
    edges = np.linspace(0.0, hertz_to_mel(sampling_rate / 2, mel_scale="slaney"), NUM_BANDS + 2)
    bands = np.asarray(mel_to_hertz(edges, mel_scale="slaney"))[1:-1] <= (
        math.inf if bandwidth_hz is None else bandwidth_hz
    )
    if not bands.any():
        raise ValueError(f"`bandwidth_hz` must lie above the centre of the lowest band, got {bandwidth_hz}")
    return bands


def _stoi(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> dict[str, float]:
    state = np.random.get_state()  # pystoi draws from the global generator: training shall not notice
    np.random.seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Not enough STFT frames", category=RuntimeWarning)
        scores = [stoi(original, reconstructed, sampling_rate, extended=extended) for extended in (False, True)]
    np.random.set_state(state)
    return {} if STOI_TOO_SHORT in scores else {"stoi": float(scores[0]), "estoi": float(scores[1])}


def _pesq(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> dict[str, float]:
    if PESQ_MISSING or _is_silent(reconstructed):
        return {}
    from pesq import BufferTooShortError, NoUtterancesError, pesq

    at_16_khz = [soxr.resample(samples, sampling_rate, PESQ_RATE) for samples in (original, reconstructed)]
    try:
        return {"pesq": float(pesq(PESQ_RATE, *at_16_khz, "wb"))}
    except (BufferTooShortError, NoUtterancesError):
        return {}


def _is_silent(samples: np.ndarray) -> bool:
    return bool(np.abs(samples - samples.mean()).max() < SILENCE)


def _entropy_bits(values: Tensor) -> float:
    counts = values.unique(return_counts=True)[1].double()
    return float((counts / counts.sum() * (counts.sum() / counts).log2()).sum())
