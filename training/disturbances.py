"""What recordings meet before they reach a codec: noise, other sounds, a narrow band, clipping, gain.

Sounds are `(samples,)`, float32; what comes out is as long as what went in, and as loud as it becomes: not clipped.
A signal-to-noise ratio is that of the mean powers over the whole sound, pauses included.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import soxr

from .metrics.codec_quality.alignment import remove_lag

SNRS_DB = (20, 10, 0)  # of noise
MIXED_SNR_DB = 10  # of babble and music
BABBLE_VOICES = 6
PINK_FROM_HZ = 20.0  # below it pink noise is flat
TELEPHONE_RATE = 8000  # Hz
CLIPPED_PEAK = 0.25  # of the peak
GAINS_DB = (-20, 20)

Rng = np.random.Generator


def standard_disturbances(
    sampling_rate: int, others: Sequence[np.ndarray] = (), music: Sequence[np.ndarray] = ()
) -> dict[str, Callable[[np.ndarray, Rng], np.ndarray]]:
    """Everything below at its usual strength, by name: functions of a sound and a generator of random numbers.

    Args:
        sampling_rate: Of all sounds (Hz).
        others: Voices for babble; with fewer than `BABBLE_VOICES` there is none.
        music: Without any there is no music.
    """
    found: dict[str, Callable[[np.ndarray, Rng], np.ndarray]] = {}
    for snr_db in SNRS_DB:
        found[f"white noise, {snr_db} dB"] = functools.partial(add_white_noise, snr_db=snr_db)
    for snr_db in SNRS_DB:
        found[f"pink noise, {snr_db} dB"] = functools.partial(
            add_pink_noise, snr_db=snr_db, sampling_rate=sampling_rate
        )
    if len(others) >= BABBLE_VOICES:
        found[f"babble, {MIXED_SNR_DB} dB"] = functools.partial(add_babble, snr_db=MIXED_SNR_DB, voices=others)
    if music:
        found[f"music, {MIXED_SNR_DB} dB"] = functools.partial(add_music, snr_db=MIXED_SNR_DB, recordings=music)
    found["telephone band"] = functools.partial(narrow_to_telephone, sampling_rate=sampling_rate)
    found["clipped at peak / 4"] = clip_peaks
    for gain_db in GAINS_DB:
        found[f"gain {gain_db:+d} dB"] = functools.partial(change_gain, gain_db=gain_db)
    return found


def rng_of(name: str) -> Rng:
    """A generator that depends on a name alone: the same noise for a clip, whatever else is measured."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]))


def mix(samples: np.ndarray, added: np.ndarray, snr_db: float) -> np.ndarray:
    """Add a sound at a signal-to-noise ratio.

    Raises:
        ValueError: If `added` is silent: no factor makes it loud.
    """
    powers = [np.mean(sound.astype(np.float64) ** 2) for sound in (samples, added)]
    if powers[1] == 0.0:
        raise ValueError("`added` must not be silent")
    return (samples + np.sqrt(powers[0] / powers[1] / 10 ** (snr_db / 10)) * added).astype(np.float32)


def add_white_noise(samples: np.ndarray, rng: Rng, snr_db: float) -> np.ndarray:
    """Gaussian noise, the same power at every frequency up to half the sampling rate."""
    return mix(samples, rng.standard_normal(len(samples)), snr_db)


def add_pink_noise(samples: np.ndarray, rng: Rng, snr_db: float, sampling_rate: int) -> np.ndarray:
    """Gaussian noise with power 1/f, the same in every octave above `PINK_FROM_HZ`."""
    spectrum = np.fft.rfft(rng.standard_normal(len(samples)))
    frequencies = np.fft.rfftfreq(len(samples), 1 / sampling_rate)
    spectrum /= np.sqrt(np.maximum(frequencies, PINK_FROM_HZ))
    return mix(samples, np.fft.irfft(spectrum, len(samples)), snr_db)


def add_babble(samples: np.ndarray, rng: Rng, snr_db: float, voices: Sequence[np.ndarray]) -> np.ndarray:
    """`BABBLE_VOICES` of the voices at once, each equally loud."""
    chosen = rng.choice(len(voices), BABBLE_VOICES, replace=False)
    parts = [excerpt(voices[i], len(samples), rng) for i in chosen]
    return mix(samples, sum(part / np.sqrt(np.mean(part**2)) for part in parts), snr_db)


def add_music(samples: np.ndarray, rng: Rng, snr_db: float, recordings: Sequence[np.ndarray]) -> np.ndarray:
    """An excerpt of one of the recordings."""
    return mix(samples, excerpt(recordings[int(rng.integers(len(recordings)))], len(samples), rng), snr_db)


def excerpt(samples: np.ndarray, length: int, rng: Rng) -> np.ndarray:
    """So many samples from a random place, float64; a sound that is too short starts over.

    Raises:
        ValueError: If there are no samples that are not zero from there on.
    """
    start = rng.integers(len(samples))
    part = np.take(samples, np.arange(start, start + length), mode="wrap").astype(np.float64)
    if not part.any():
        raise ValueError(f"{length} samples from sample {start} on are silent: there is nothing to add")
    return part


def narrow_to_telephone(samples: np.ndarray, rng: Rng, sampling_rate: int) -> np.ndarray:
    """Resample to 8 kHz and back: nothing is left above 4 kHz."""
    narrow = soxr.resample(soxr.resample(samples, sampling_rate, TELEPHONE_RATE), TELEPHONE_RATE, sampling_rate)
    return remove_lag(narrow, 0, len(samples))


def clip_peaks(samples: np.ndarray, rng: Rng) -> np.ndarray:
    """Limit to a quarter of the peak, without making up for it."""
    limit = CLIPPED_PEAK * np.abs(samples).max()
    return samples.clip(-limit, limit)


def change_gain(samples: np.ndarray, rng: Rng, gain_db: float) -> np.ndarray:
    """Multiply; beyond full scale nothing is cut, which 24-bit PCM could not hold but float32 can."""
    return samples * np.float32(10 ** (gain_db / 20))
