"""What every codec of a comparison does: a clip in, its reconstruction and the bits it took out.

A clip is `(samples,)`, float32 numpy, mono, in [-1, 1].
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import soxr

from ..metrics.codec_quality.alignment import remove_lag


@dataclass(frozen=True)
class Encoded:
    """A clip as a codec stores it.

    Args:
        data: The whole file, headers and all.
        bits: Of it, those that hold the clip: without the container's and the file's own headers.
        tokens: `(frames, tokens_per_frame)`, int64, of a codec that has them.
    """

    data: bytes
    bits: int
    tokens: np.ndarray | None = None


@dataclass(frozen=True)
class Coded:
    """A clip after a codec.

    Args:
        samples: `(samples,)`, float32: the reconstruction, at the clip's rate, as long as the clip and aligned to it.
        bits: Spent on the clip, without headers; see each codec for what they count. None where nobody knows.
        file_bits: Of the whole file that was written, headers and all. None where there is none.
        tokens: `(frames, tokens_per_frame)`, int64, of a codec that has them.
    """

    samples: np.ndarray
    bits: float | None
    file_bits: float | None = None
    tokens: np.ndarray | None = None


class Codec(ABC):
    """One system of a comparison.

    Attributes:
        name: For tables and pictures.
        nominal_bps: The bit rate that it is known by (bit/s); None if it has none.
    """

    name: str
    nominal_bps: float | None

    @abstractmethod
    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        """Send one clip through the codec.

        Args:
            samples: `(samples,)`, float32, in [-1, 1].
            sampling_rate: Of the clip and of its reconstruction (Hz).
            name: The clip's path within its source, without its ending: "read/0001". A folder of reconstructions needs
                it, and noise is drawn by it.

        Raises:
            ValueError: If the clip is not mono, empty or not finite, or the codec cannot do it.
        """


class WaveformCodec(Codec):
    """A codec that encodes and decodes here: resampled to its own rate and back, its constant delay taken off.

    Attributes:
        sampling_rate: The codec's own rate (Hz).
        delay: How late its output comes (samples at its own rate), a constant.
    """

    sampling_rate: int
    delay: int = 0

    @abstractmethod
    def encode(self, samples: np.ndarray) -> Encoded:
        """Encode `(samples,)` at the codec's own rate."""

    @abstractmethod
    def decode(self, data: bytes) -> np.ndarray:
        """Decode a file's bytes to `(samples,)`, float32, at the codec's own rate, delay and padding included."""

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        at_own_rate = soxr.resample(samples, sampling_rate, self.sampling_rate)
        if len(at_own_rate) == 0:
            raise ValueError(f"`samples`: {len(samples)} at {sampling_rate} Hz are none at {self.sampling_rate} Hz")
        encoded = self.encode(at_own_rate)
        decoded = remove_lag(self.decode(encoded.data), self.delay, len(at_own_rate))
        decoded = remove_lag(soxr.resample(decoded, self.sampling_rate, sampling_rate), 0, len(samples))
        return Coded(decoded, encoded.bits, 8 * len(encoded.data), encoded.tokens)


def check_clip(samples: np.ndarray) -> None:
    """Raise ValueError unless it is one mono clip of finite samples."""
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.ndim != 1 or len(samples) == 0:
        got = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else type(samples).__name__
        raise ValueError(f"`samples` must be a mono clip, a float32 array of shape (samples,), got {got}")
    if not np.isfinite(samples).all():
        raise ValueError("`samples` must be finite")
