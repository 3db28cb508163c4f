"""Sound files of corpora: reading that refuses damage, bandwidth, cutting at quiet places, Ogg Opus."""

import io
import itertools
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr

from ..ogg import pages, with_serial_number

SAMPLING_RATE = 24000
BIT_RATE = 32000
OPUS_OPTIONS: dict[str, object] = {"application": "audio", "compression_level": "5", "vbr": "constrained"}
SILENCE_DB = -60.0  # RMS of the loudest 20 ms, re full scale; below it a clip is silent
QUIET_S = 0.05  # length of a place to cut at
LEAST_REST_S = 2.0  # shortest last clip of a recording that is cut
BANDWIDTH_FFT = 512
BANDWIDTH_DB = -80.0  # loud level of a frequency, re that of the strongest one
FULL_SHARE = 0.96  # of half the sampling rate; above it an anti-aliasing filter has set the limit
FLOOR_DB = -115.0  # level of a frequency, re full scale, below which there is rounding noise only


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Read a sound file as `(samples,)`, float32, the mean of its channels, and its sampling rate.

    Raises:
        ValueError: If the file is damaged: not readable, cut short, without samples, or with NaN or infinity.
    """
    samples, rate = _read_g722(path) if path.suffix == ".g722" else _read_soundfile(path)
    if not len(samples):
        raise ValueError(f"{path}: damaged: no samples")
    if not np.isfinite(samples).all():
        raise ValueError(f"{path}: damaged: NaN or infinite samples")
    return samples, rate


def _read_soundfile(path: Path) -> tuple[np.ndarray, int]:
    try:
        content = path.read_bytes()
        if content[:4] == b"OggS":
            for _ in pages(content):  # a stream that ends inside a page is decoded without an error
                pass
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            if _is_cut_wav(content):
                raise ValueError("the `data` chunk is longer than the file")
            samples = file.read(dtype="float32", always_2d=True)
            if len(samples) < file.frames and file.format in ("WAV", "WAVEX", "FLAC"):
                raise ValueError(f"{len(samples)} samples, expected {file.frames}")
            return samples.mean(axis=1), file.samplerate
    except (soundfile.LibsndfileError, ValueError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error


def _is_cut_wav(content: bytes) -> bool:
    if content[:4] != b"RIFF":
        return False
    position = 12
    while position + 8 <= len(content):
        size = int.from_bytes(content[position + 4 : position + 8], "little")
        if content[position : position + 4] == b"data":
            return position + 8 + size > len(content)
        position += 8 + size + size % 2
    return True


def _read_g722(path: Path) -> tuple[np.ndarray, int]:
    try:
        with av.open(str(path), format="g722") as container:
            frames = [frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)]
            rate = container.streams.audio[0].rate
    except av.FFmpegError as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    samples = np.concatenate(frames) if frames else np.zeros(0, np.int16)
    return samples.astype(np.float32) / 32768, rate


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """Resample `(samples,)` float32 to 24 kHz and clip it to full scale."""
    return (soxr.resample(samples, rate, SAMPLING_RATE, "HQ") if rate != SAMPLING_RATE else samples).clip(-1.0, 1.0)


def is_silent(samples: np.ndarray, rate: int) -> bool:
    """Whether the loudest 20 ms lie below `SILENCE_DB`."""
    return _short_powers(samples, max(1, round(0.02 * rate))).max() < 10 ** (SILENCE_DB / 10)


def _short_powers(samples: np.ndarray, size: int) -> np.ndarray:
    padded = np.pad(samples.astype(np.float64), (0, -len(samples) % size))
    return (padded.reshape(-1, size) ** 2).mean(axis=1)


def bandwidth_hz(samples: np.ndarray, source_rate: int) -> int:
    """Highest frequency (Hz) of a recording at 24 kHz that is neither 80 dB below the strongest one nor rounding noise.

    The level of a frequency is its 95th percentile over time, so fricatives count although they are rare.

    Args:
        samples: `(samples,)` at 24 kHz.
        source_rate: Sampling rate of the original (Hz). Half of it is the most that is returned.
    """
    window = np.hanning(BANDWIDTH_FFT)
    padded = np.pad(samples.astype(np.float64), (0, max(0, BANDWIDTH_FFT - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, BANDWIDTH_FFT)[:: BANDWIDTH_FFT // 2]
    powers = np.abs(np.fft.rfft(frames * window)) ** 2 / (window.sum() / 2) ** 2
    levels = 10 * np.log10(np.percentile(powers, 95, axis=0) + 1e-20)
    heard = np.flatnonzero(levels > max(levels.max() + BANDWIDTH_DB, FLOOR_DB))
    highest = (heard[-1] + 1) * SAMPLING_RATE / BANDWIDTH_FFT if len(heard) else 0.0
    most = min(source_rate, SAMPLING_RATE) / 2
    return max(1, round(most if highest > FULL_SHARE * most else highest))


def cut(samples: np.ndarray, rate: int, longest_s: float | None) -> list[np.ndarray]:
    """Cut a recording into clips of at most `longest_s` seconds at its quietest places; together they are all of it."""
    if longest_s is None or len(samples) <= longest_s * rate:
        return [samples]
    size = round(QUIET_S * rate)
    powers = _short_powers(samples, size)
    edges = [0]
    while len(samples) - edges[-1] > longest_s * rate:
        latest = min(edges[-1] + longest_s * rate, len(samples) - LEAST_REST_S * rate)
        first, last = int((edges[-1] + 0.6 * longest_s * rate) // size), int(latest // size)
        first = min(first, last - 1)
        edges.append((first + int(powers[first:last].argmin())) * size + size // 2)
    return [samples[start:end] for start, end in itertools.pairwise([*edges, len(samples)])]


def encode_opus(samples: np.ndarray) -> bytes:
    """Encode `(samples,)` float32 at 24 kHz as Ogg Opus, 32 kbit/s; equal samples give equal bytes.

    libsndfile sets neither complexity nor mode of libopus: its files take ten times as long, and their waveforms are
    8 dB further from the original.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="ogg", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libopus", rate=SAMPLING_RATE, layout="mono")
        stream.bit_rate = BIT_RATE
        stream.options = OPUS_OPTIONS
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = SAMPLING_RATE, 0
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return with_serial_number(file.getvalue(), 1)
