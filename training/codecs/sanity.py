"""What is no codec, and shows what figures are worth: the clip itself, noise, and the clip come late.

The original gives every figure its best, noise its floor. The late clip sounds the same and holds the same: a figure
that falls with it measures the delay.
"""

import zlib

import numpy as np

from ..metrics.codec_quality.alignment import remove_lag
from .base import Codec, Coded, check_clip


class Original(Codec):
    """The clip itself: what a perfect codec would give."""

    name = "original"
    nominal_bps = None

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        return Coded(samples.copy(), None)


class Noise(Codec):
    """White Gaussian noise of the clip's root mean square, the same for the same name and length."""

    name = "noise"
    nominal_bps = None

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        noise = np.random.default_rng(zlib.crc32((name or "").encode())).standard_normal(len(samples))
        loudness = np.sqrt(np.square(samples, dtype=np.float64).mean() / np.square(noise).mean())
        return Coded((loudness * noise).astype(np.float32), None)


class Shifted(Codec):
    """The clip, some samples late (early, if negative), at the clip's own rate; what that uncovers is silent.

    Args:
        samples: How many, a whole number as text.

    Raises:
        ValueError: If it is none.
    """

    nominal_bps = None

    def __init__(self, samples: str):
        try:
            self.lag = int(samples)
        except ValueError:
            raise ValueError(f"`spec` must be shifted:SAMPLES, a whole number, got shifted:{samples}") from None
        self.name = f"shifted by {self.lag} samples"

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        return Coded(remove_lag(samples, -self.lag, len(samples)), None)
