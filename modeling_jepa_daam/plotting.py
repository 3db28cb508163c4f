"""Pictures of a recording: its tokens, its gates and its reconstruction; its salience."""

import itertools
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .audio import levels_db
from .files import replacing

GATE_COLUMNS = 500
LEVELS_HZ = 50  # of the energy contour


def plot_recording(
    path: str | os.PathLike,
    title: str,
    sampling_rate: int,
    hop_length: int,
    original: np.ndarray,
    reconstruction: np.ndarray,
    tokens: np.ndarray | Tensor,
    gates: Sequence[np.ndarray],
) -> None:
    """Draw waveform, both spectrograms, token matrix and DAAM gates over one time axis, and write a PNG.

    Args:
        path: Where to.
        title: Title of the picture.
        sampling_rate: Rate (Hz) of both waveforms.
        hop_length: Samples a frame.
        original: `(samples,)`, float32.
        reconstruction: `(samples,)`, float32.
        tokens: `(tokens_per_frame, frames)`, integer.
        gates: Gates of the encoder's stages, each `(time,)`.
    """
    duration_s = len(original) / sampling_rate
    covered_s = tokens.shape[1] * hop_length / sampling_rate  # the last frame may reach past the end
    figure = Figure(figsize=(12, 13), layout="constrained")
    axes = figure.subplots(5, 1, sharex=True, height_ratios=(1, 2, 2, 2, 1.5))
    figure.suptitle(title, parse_math=False)

    axes[0].plot(np.arange(len(original)) / sampling_rate, original, linewidth=0.4, color="black")
    axes[0].set_ylabel("amplitude")
    axes[0].set_title("original", loc="left")
    for axis, samples, name in ((axes[1], original, "original"), (axes[2], reconstruction, "reconstruction")):
        _draw_spectrogram(axis, samples, sampling_rate)
        axis.set_title(f"{name}, spectrogram (dB below its peak)", loc="left")
    _draw_tokens(figure, axes[3], np.asarray(tokens), covered_s)
    if gates:
        rows = np.stack([_resized(gate, GATE_COLUMNS) for gate in gates])
        image = axes[4].imshow(
            rows,
            aspect="auto",
            origin="upper",
            interpolation="nearest",
            extent=(0, covered_s, len(gates) + 0.5, 0.5),
            cmap="cividis",
        )
        figure.colorbar(image, ax=axes[4], pad=0.01)
    axes[4].yaxis.set_major_locator(MaxNLocator(integer=True))
    axes[4].set_ylabel("encoder stage")
    axes[4].set_xlabel("time (s)")
    axes[4].set_title("DAAM gates G(x), local means", loc="left")
    axes[4].set_xlim(0, duration_s)
    _save(figure, path)


def _save(figure: Figure, path: str | os.PathLike) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)


def plot_decoded(
    path: str | os.PathLike,
    title: str,
    sampling_rate: int,
    hop_length: int,
    samples: np.ndarray,
    tokens: np.ndarray | Tensor,
) -> None:
    """Draw the spectrogram of decoded audio and its token matrix over one time axis, and write a PNG.

    Args:
        path: Where to.
        title: Title of the picture.
        sampling_rate: Rate (Hz) of the audio.
        hop_length: Samples a frame.
        samples: `(samples,)`, float32.
        tokens: `(tokens_per_frame, frames)`, integer.
    """
    figure = Figure(figsize=(12, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title, parse_math=False)
    _draw_spectrogram(axes[0], samples, sampling_rate)
    axes[0].set_title("decoded, spectrogram (dB below its peak)", loc="left")
    _draw_tokens(figure, axes[1], np.asarray(tokens), tokens.shape[1] * hop_length / sampling_rate)
    axes[1].set_xlabel("time (s)")
    axes[1].set_xlim(0, len(samples) / sampling_rate)
    _save(figure, path)


def plot_salience(
    path: str | os.PathLike,
    title: str,
    sampling_rate: int,
    hop_length: int,
    samples: np.ndarray,
    salience: np.ndarray,
) -> None:
    """Draw waveform with its energy, and below it the salience of each gate, over one time axis, and write a PNG.

    Args:
        path: Where to.
        title: Title of the picture.
        sampling_rate: Rate (Hz) of the waveform.
        hop_length: Samples a frame.
        samples: `(samples,)`, float32.
        salience: `(frames, gates)`, of `JepaAudioTokenizer.salience`.
    """
    duration_s, frames, gates = len(samples) / sampling_rate, *salience.shape
    figure = Figure(figsize=(12, 3 + 1.5 * gates), layout="constrained")
    axes = figure.subplots(1 + gates, 1, sharex=True, height_ratios=(2, *[1] * gates))
    figure.suptitle(title, parse_math=False)
    axes[0].plot(np.arange(len(samples)) / sampling_rate, samples, linewidth=0.4, color="black")
    axes[0].set_ylabel("amplitude")
    level_hop = sampling_rate // LEVELS_HZ
    levels = levels_db(samples, level_hop)
    energy = axes[0].twinx()
    energy.plot((np.arange(len(levels)) + 0.5) * level_hop / sampling_rate, levels, color="tab:orange")
    energy.set_ylabel("energy (dB of full scale)", color="tab:orange")
    edges = np.arange(frames + 1) * hop_length / sampling_rate
    for number, axis in enumerate(axes[1:]):
        axis.stairs(salience[:, number], edges, fill=True, color="tab:blue")
        axis.set_ylabel(f"gate {number + 1}")
    axes[1].set_title("salience: mean of each DAAM gate G(x) in each frame", loc="left")
    axes[-1].set_xlabel("time (s)")
    axes[-1].set_xlim(0, duration_s)
    _save(figure, path)


def _resized(gate: np.ndarray, columns: int) -> np.ndarray:
    """`(time,)` -> `(columns,)`: means of what falls into each column, or the nearest value."""
    edges = np.linspace(0, len(gate), columns + 1)
    return np.array([gate[int(a) : max(int(a) + 1, int(b))].mean() for a, b in itertools.pairwise(edges)])


def _draw_tokens(figure: Figure, axis: Axes, tokens: np.ndarray, covered_s: float) -> None:
    image = axis.imshow(
        tokens,
        aspect="auto",
        origin="upper",
        interpolation="nearest",
        extent=(0, covered_s, tokens.shape[0] - 0.5, -0.5),
        cmap="viridis",
    )
    axis.set_ylabel("place in the frame")
    axis.set_title("tokens", loc="left")
    figure.colorbar(image, ax=axis, pad=0.01)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_spectrogram(axis, samples: np.ndarray, sampling_rate: int) -> None:
    n_fft, hop = 1024, 256
    padded = np.pad(samples, (n_fft // 2, n_fft // 2 + hop))
    windows = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * np.hanning(n_fft)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(windows)) + 1e-7).T
    peak = decibels.max()
    axis.imshow(
        decibels - peak,
        aspect="auto",
        origin="lower",
        extent=(0, len(samples) / sampling_rate, 0, sampling_rate / 2000),
        vmin=-80,
        vmax=0,
        cmap="magma",
    )
    axis.set_ylabel("frequency (kHz)")
