"""STOI and ESTOI, without a trace in numpy's global random numbers."""

import warnings
from collections.abc import Collection

import numpy as np
from pystoi import stoi

TOO_SHORT = 1e-5  # what pystoi returns for less than 30 frames


def stoi_scores(
    original: np.ndarray,
    reconstructed: np.ndarray,
    sampling_rate: int,
    figures: Collection[str] = ("stoi", "estoi"),
) -> dict[str, float]:
    """`stoi` and `estoi`, up to 1, as far as they are asked for; empty if too little of the original is not silent."""
    state = np.random.get_state()  # pystoi draws from the global generator: training shall not notice
    np.random.seed(0)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Not enough STFT frames", category=RuntimeWarning)
            scores = {
                name: float(stoi(original, reconstructed, sampling_rate, extended=name == "estoi"))
                for name in ("stoi", "estoi")
                if name in figures
            }
    finally:
        np.random.set_state(state)
    return {} if TOO_SHORT in scores.values() else scores
