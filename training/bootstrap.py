"""Intervals of a figure without an assumption about its distribution (Efron 1979)."""

from collections.abc import Callable

import numpy as np

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], num_units: int, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of a figure, had other units of the same kind been drawn.

    Args:
        statistic: Gives the figure of `(num_units,)` positions of units, int64, which come with replacement.
        num_units: Units that were drawn independently: clips, or speakers where clips of one are alike.
        resamples: How often to draw.
        seed: Of the draws: one seed and as many units give the same draws, whatever is measured.

    Raises:
        ValueError: If there are fewer than 2 units, for they have no interval.
    """
    if num_units < 2:
        raise ValueError(f"`num_units` must be at least 2, got {num_units}")
    rng = np.random.default_rng(seed)
    figures = [statistic(rng.integers(num_units, size=num_units)) for _ in range(resamples)]
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
