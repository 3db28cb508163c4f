"""Spectral fingerprints: they find a recording again after a lossy codec, a resampler, a change of level or a cut.

A frame of 0.256 s, every 8 ms, has 32 bits: the signs of the differences, along time and frequency, of the levels of 33
bands. Two recordings of the same sound differ in few bits (0.05 to 0.18 after Opus at 32 kbit/s), others in half.

Source: Haitsma and Kalker, A Highly Robust Audio Fingerprinting System, ISMIR 2002, section 4.
Deviation: for clips of single words, frames are shorter, differences are of levels instead of energies and span 64 ms
instead of one frame, and the largest error rate grows with the length.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import soxr

RATE = 8000
WINDOW, HOP = 2048, 64
BITS = 32
LAG = 8  # frames between the two whose levels are compared; a steady vowel hardly changes from one to the next
LEVEL_FLOOR = 1e-4  # energy that is added to each band, re the largest
BANDS_HZ = np.geomspace(300, 2000, BITS + 2)
HEARD_DB = -50.0  # re the loudest frame; quieter ones count neither for nor against
FRAMES_PER_S = RATE / HOP
LEAST_S = 1.0  # of both recordings that must be equal, unless one is shorter
LEAST_SHARE = 0.8  # of the shorter recording, if it is shorter than `LEAST_S`
MAX_ERROR_RATE = 0.25  # of the bits, up to which stretches of `LEAST_S` are the same sound; copies 0.18, others 0.33
MAX_ERROR_RATE_SHORT = 0.19  # the same for stretches of `SHORT_S`; in between it is linear
SHORT_S = 0.4
FLIPPED_S = 2.0  # shorter queries, of few frames, are also looked up with any one bit flipped
COMMON = 64  # frames of equal bits in an index; more of them single out nothing
CANDIDATES = 16  # alignments that are compared
BLOCK = 4096  # frames at a time


@dataclass(frozen=True)
class SpectralFingerprint:
    """`bits`: (frames,), uint32; `heard`: (frames,), bool, whether a frame is loud enough to count."""

    bits: np.ndarray
    heard: np.ndarray


@dataclass(frozen=True)
class Match:
    """Name of the recording that was found, the length of the equal stretch (s), and the share of bits that differ."""

    name: str
    seconds: float
    error_rate: float


def _band_sums() -> np.ndarray:
    frequencies = np.arange(WINDOW // 2 + 1) * RATE / WINDOW
    band = np.searchsorted(BANDS_HZ, frequencies, side="right") - 1
    return (band[:, None] == np.arange(BITS + 1)).astype(np.float32)


_SUMS, _HANN = _band_sums(), np.hanning(WINDOW).astype(np.float32)
_POWERS = (1 << np.arange(BITS, dtype=np.uint64)).astype(np.uint64)


def fingerprint(samples: np.ndarray, rate: int) -> SpectralFingerprint:
    """SpectralFingerprint of `(samples,)`, float32."""
    narrow = soxr.resample(samples, rate, RATE, "HQ") if rate != RATE else samples
    padded = np.pad(narrow, WINDOW // 2).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    energies = np.concatenate(
        [
            (np.abs(np.fft.rfft(frames[start : start + BLOCK] * _HANN)) ** 2).astype(np.float32) @ _SUMS
            for start in range(0, len(frames), BLOCK)
        ]
    )
    levels = np.log(energies + max(LEVEL_FLOOR * energies.max(), 1e-12))
    slopes = np.diff(levels, axis=1)
    loudness = energies.sum(axis=1)[LAG:]
    bits = ((slopes[LAG:] > slopes[:-LAG]) * _POWERS).sum(axis=1).astype(np.uint32)
    return SpectralFingerprint(bits, loudness > max(loudness.max(initial=0.0) * 10 ** (HEARD_DB / 10), 1e-6))


class FingerprintIndex:
    """Fingerprints of many recordings, to look others up in.

    Args:
        names: Names of the recordings.
        fingerprints: Their fingerprints.
    """

    def __init__(self, names: Sequence[str], fingerprints: Sequence[SpectralFingerprint]):
        self._names = list(names)
        self._starts = np.cumsum([0, *(len(each.bits) for each in fingerprints)])
        self._bits = np.concatenate([each.bits for each in fingerprints] or [np.zeros(0, np.uint32)])
        self._heard = np.concatenate([each.heard for each in fingerprints] or [np.zeros(0, bool)])
        heard = np.flatnonzero(self._heard)
        self._order = heard[np.argsort(self._bits[heard], kind="stable")]
        self._sorted = self._bits[self._order]

    def sha256(self) -> str:
        """SHA-256 of all fingerprints, in their order."""
        return hashlib.sha256(self._bits.tobytes() + self._starts.tobytes()).hexdigest()

    def find(self, query: SpectralFingerprint) -> Match | None:
        """The recording that has a stretch of `query`; the best one, or None."""
        frames = np.flatnonzero(query.heard)
        match = self._best(query, frames, query.bits[frames])
        if match is None and len(frames) < FLIPPED_S * FRAMES_PER_S:
            flipped = query.bits[frames] ^ _POWERS.astype(np.uint32)[:, None]
            match = self._best(query, np.tile(frames, BITS), flipped.reshape(-1))
        return match

    def _best(self, query: SpectralFingerprint, frames: np.ndarray, bits: np.ndarray) -> Match | None:
        first = np.searchsorted(self._sorted, bits, "left")
        counts = np.searchsorted(self._sorted, bits, "right") - first
        counts[counts > COMMON] = 0
        if not counts.sum():
            return None
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        places = self._order[np.repeat(first, counts) + within]
        clips = np.searchsorted(self._starts, places, "right") - 1
        shifts = places - self._starts[clips] - np.repeat(frames, counts)
        alignments, votes = np.unique(np.stack([clips, shifts]), axis=1, return_counts=True)
        best: Match | None = None
        for which in np.argsort(-votes, kind="stable")[:CANDIDATES]:
            match = self._compare(query, *map(int, alignments[:, which]))
            if match and (best is None or match.error_rate < best.error_rate):
                best = match
        return best

    def _compare(self, query: SpectralFingerprint, clip: int, shift: int) -> Match | None:
        start, end = int(self._starts[clip]), int(self._starts[clip + 1])
        first, last = max(0, -shift), min(len(query.bits), end - start - shift)
        other = slice(start + first + shift, start + last + shift)
        both = query.heard[first:last] & self._heard[other]
        shorter = min(query.heard.sum(), self._heard[start:end].sum())
        if both.sum() < min(LEAST_S * FRAMES_PER_S, LEAST_SHARE * shorter):
            return None
        different = (query.bits[first:last] ^ self._bits[other])[both]
        error_rate = float(np.unpackbits(different.view(np.uint8)).mean())
        seconds = float(both.sum() / FRAMES_PER_S)
        allowed = np.interp(seconds, [SHORT_S, LEAST_S], [MAX_ERROR_RATE_SHORT, MAX_ERROR_RATE])
        return Match(self._names[clip], seconds, error_rate) if error_rate <= allowed else None
