"""Gain and equalization of spectral features, exact up to rounding: loudness back to power, and forth."""

import math

import torch
from torch import Tensor

from modeling_jepa_daam.transform_path import EXPONENT, LOUDNESS_MEAN, LOUDNESS_SCALE, SILENCE, loudness

NUM_COSINES = 6  # of a random equalizer, over the mel bands


def power_of(rows: Tensor) -> Tensor:
    """Inverse of `loudness`: power of mel bands, at least 0."""
    base = (LOUDNESS_MEAN + LOUDNESS_SCALE * rows).clamp(min=0.0)
    return (base.pow(2.0 / EXPONENT) - SILENCE**2).clamp(min=0.0)


def change_gain(features: Tensor, gain_db: Tensor, num_bands: int) -> Tensor:
    """Features as of louder or softer sound.

    Args:
        features: `(batch, rows, time)`.
        gain_db: `(batch, 1 or bands, 1)`, dB.
        num_bands: First rows, which are bands.
    """
    bands, rest = features[:, :num_bands], features[:, num_bands:]
    return torch.cat([loudness(power_of(bands) * 10.0 ** (0.1 * gain_db)), rest], dim=1)


def random_gains_db(
    batch: int, num_bands: int, gain_db: tuple[float, float], equalizer_db: float, generator: torch.Generator
) -> Tensor:
    """A gain and a smooth random equalizer for each window: `(batch, bands, 1)`, dB.

    Args:
        batch: Windows.
        num_bands: Mel bands.
        gain_db: Range of the gain, uniform.
        equalizer_db: Standard deviation of the equalizer's slowest cosine; faster ones have less.
        generator: Source of randomness, on CPU.
    """
    low, high = gain_db
    gain = low + (high - low) * torch.rand(batch, 1, generator=generator)
    numbers = torch.arange(1, NUM_COSINES + 1)
    cosines = torch.cos(math.pi * numbers[:, None] * (torch.arange(num_bands) + 0.5) / num_bands)
    weights = torch.randn(batch, NUM_COSINES, generator=generator) * equalizer_db / (1.0 + 0.5 * (numbers - 1))
    return (gain + weights @ cosines)[..., None]
