"""How much each band of an envelope counts, when bits are given and errors are summed up."""

import numpy as np
import torch
from torch import Tensor

from modeling_jepa_daam.transform_path import mel_filters

FREQUENCIES_HZ = (0.0, 100.0, 300.0, 1000.0, 4000.0, 7800.0, 8200.0, 12000.0)
WEIGHTS = (0.5, 1.2, 1.3, 1.2, 0.8, 0.5, 0.1, 0.1)  # found by trial: see RESULTS.md, 2026-11-28


def band_weights(bins: int, num_bands: int, sampling_rate: int) -> Tensor:
    """Weights of errors of loudness in mel bands, interpolated at their middles: `(bands,)`, about 1."""
    filters = mel_filters(bins, num_bands, sampling_rate)  # (bins, bands)
    frequencies = np.linspace(0.0, sampling_rate / 2, bins)
    middles = frequencies @ filters / np.maximum(filters.sum(axis=0), 1e-12)
    return torch.from_numpy(np.interp(middles, FREQUENCIES_HZ, WEIGHTS)).float()
