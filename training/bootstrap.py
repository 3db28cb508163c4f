"""Intervals of a figure without an assumption about its distribution (Efron 1979)."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_draws(num_units: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Positions of units, drawn with replacement: `(resamples, num_units)`, int64."""
    return np.random.default_rng(seed).integers(num_units, size=(resamples, num_units))


def bootstrap_figures(
    statistic: Callable[[np.ndarray], float], num_units: int, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """What a figure could have been, had other units of the same kind been drawn: `(resamples,)`.

    One seed and as many units give the same draws, whatever is measured: the difference of two results is that of two
    systems on the same units.

    Args:
        statistic: Gives the figure of `(num_units,)` positions of units, int64, which come with replacement.
        num_units: Units that were drawn independently: clips, or speakers where clips of one are alike.
        resamples: How often to draw.
        seed: Of the draws.

    Raises:
        ValueError: If there are fewer than 2 units: nothing can vary.
    """
    if num_units < 2:
        raise ValueError(f"`num_units` must be at least 2, got {num_units}")
    return np.array([statistic(positions) for positions in bootstrap_draws(num_units, resamples, seed)])


def interval_of(figures: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of what `bootstrap_figures` gives."""
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], num_units: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a figure; arguments and errors are those of `bootstrap_figures`."""
    return interval_of(bootstrap_figures(statistic, num_units, resamples, seed))
