"""How well held-out clips are reconstructed: what training needs beside the figures of one clip.

Those figures, and the statistics of tokens, are in `metrics/`, so that others can use them too.

Shapes: a clip is `(samples,)`, float32 numpy, mono; a reconstruction is as long as its original, sample for sample.
"""

from collections.abc import Sequence

import numpy as np

from .metrics.codec_quality.clip_quality import PESQ_MISSING, reconstruction_quality, si_sdr_db
from .metrics.codec_quality.spectra import NUM_BANDS, bands_below, log_mel
from .metrics.token_statistics.frame_statistics import token_statistics

__all__ = [
    "PESQ_MISSING",
    "best_constant_mel_distance",
    "mean_quality",
    "reconstruction_quality",
    "si_sdr_db",
    "spectrogram_figure",
    "token_statistics",
]


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
        spectra.append(log_mel(clip, sampling_rate))
        counted = np.broadcast_to(bands_below(sampling_rate, limit), spectra[-1].shape)
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
    spectra = [log_mel(samples, sampling_rate).T for samples in (original, reconstructed)]
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
