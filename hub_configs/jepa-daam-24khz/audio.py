"""Recorded sound to mono float32 samples at a wanted rate: arrays, files, `datasets` examples.

One rule for all: channels are averaged, integers are read as PCM, soxr resamples at its default (high) quality.
soxr gives the same samples whether it sees a recording at once or in blocks, and so do the functions below.
"""

import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .files import replacing

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

AUDIO_SUFFIXES = (".aif", ".aiff", ".au", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".w64", ".wav")  # in lower case
BLOCK_S = 10  # seconds read from a file at a time; what fits into a cache is read faster
MAX_CHANNELS = 2  # of an array's two axes, channels are the one that is at most this long
MAX_AMPLITUDE = 16.0  # full scale is 1; a louder sample is integer PCM that was made floating point without scaling
MAX_SAMPLING_RATE = 10_000_000


def check_sampling_rate(sampling_rate: Any, name: str = "sampling_rate") -> int:
    """Return the rate (Hz) as an int.

    Raises:
        ValueError: If it is missing or not positive.
        TypeError: If it is not a whole number.
    """
    if sampling_rate is None:
        raise ValueError(f"`{name}` is missing: say at how many Hz the audio was recorded")
    if getattr(sampling_rate, "ndim", None) == 0:  # as `datasets` gives it in numpy and torch formats
        sampling_rate = sampling_rate.item()
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, (int, float)):
        raise TypeError(f"`{name}` must be a whole number of Hz, got {sampling_rate!r}")
    if not 0 < sampling_rate <= MAX_SAMPLING_RATE or sampling_rate % 1:
        raise ValueError(f"`{name}` must be a whole, positive number of Hz up to 10 MHz, got {sampling_rate!r}")
    return int(sampling_rate)


def to_numpy(values: Any, name: str) -> np.ndarray:
    """Arrays, tensors of any dtype and nested lists as an array.

    Raises:
        ValueError: If the parts differ in length, or a tensor is on the meta device.
        TypeError: If a tensor is sparse or nested.
    """
    if hasattr(values, "detach") and hasattr(values, "cpu"):  # a torch tensor; bfloat16 has no numpy counterpart
        from .precision import with_values  # torch is there, as `values` is a tensor

        values = with_values(values.detach(), name).cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` must be an array; its parts differ in length") from error


def mix_down(audio: Any, name: str = "audio", channel_axis: int | None = None) -> np.ndarray:
    """Bring one recording to mono float32.

    Args:
        audio: `(samples,)`, `(channels, samples)` or `(samples, channels)`: array, tensor or nested list. Floating
            point in [-1, 1] with some headroom, or 8-, 16- or 32-bit integer PCM, which is scaled to it.
        name: The argument's name in error messages.
        channel_axis: Which of two axes the channels are on; the one of at most 2 entries (the first, where both
            are) if `None`.

    Returns:
        `(samples,)`, float32.

    Raises:
        ValueError: If it is empty, has a wrong shape, or holds samples that are not finite or beyond 16.
        TypeError: If it does not hold real numbers.
    """
    array = to_numpy(audio, name)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"`{name}` must hold real numbers, got dtype {array.dtype} ({type(audio).__name__})")
    if array.ndim not in (1, 2):
        raise ValueError(
            f"`{name}` must have shape (samples,), (channels, samples) or (samples, channels), got {array.shape}"
        )
    if array.size == 0:
        raise ValueError(f"`{name}` is empty: shape {array.shape}")
    if array.dtype.kind in "iu" and not isinstance(audio, (list, tuple)):
        array = _from_pcm(array, name)
    if array.ndim == 2:
        if channel_axis is None:
            channel_axis = 0 if array.shape[0] <= MAX_CHANNELS else 1
        if array.shape[channel_axis] > MAX_CHANNELS:
            raise ValueError(
                f"`{name}` must have at most {MAX_CHANNELS} channels on one of its two axes, got shape {array.shape}; "
                "a batch is a list of recordings"
            )
        array = array.mean(axis=channel_axis, dtype=np.float64)
    return _checked(array, name)


def _from_pcm(array: np.ndarray, name: str) -> np.ndarray:
    bits = 8 * array.dtype.itemsize
    if bits > 32:
        raise ValueError(
            f"`{name}` must be floating point or 8-, 16- or 32-bit PCM, got {array.dtype}: "
            "cast it to the width that it was recorded with"
        )
    offset = 0.0 if array.dtype.kind == "i" else 2.0 ** (bits - 1)
    return (array.astype(np.float64) - offset) / 2.0 ** (bits - 1)


def _checked(samples: np.ndarray, name: str) -> np.ndarray:
    """Float32 samples, all finite and of a sane loudness."""
    with np.errstate(over="ignore"):
        samples = np.ascontiguousarray(samples, dtype=np.float32)
    sane = np.abs(samples) <= MAX_AMPLITUDE  # false for NaN
    if not sane.all():
        position = int(np.argmin(sane))
        raise ValueError(
            f"`{name}` must be finite and within full scale [-1, 1] (at most {MAX_AMPLITUDE:g}), "
            f"got {samples[position]} at sample {position}"
        )
    return samples


class Resampler:
    """Change the rate of mono audio that comes in pieces; pieces of any size add up to the same samples.

    Args:
        from_rate: Rate (Hz) of the pieces.
        to_rate: Wanted rate (Hz).

    Raises:
        ImportError: If soxr is needed and not installed.
    """

    def __init__(self, from_rate: int, to_rate: int):
        self._stream = None
        if from_rate != to_rate:
            if soxr is None:
                raise ImportError("resampling needs soxr: pip install soxr")
            self._stream = soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")

    def push(self, samples: np.ndarray) -> np.ndarray:
        """`(samples,)`, float32, in and out; maybe none yet."""
        return samples if self._stream is None else self._stream.resample_chunk(samples)

    def close(self) -> np.ndarray:
        """What is left at the end, `(samples,)`, float32."""
        rest = np.zeros(0, np.float32)
        return rest if self._stream is None else self._stream.resample_chunk(rest, last=True)


def read_blocks(source: Any, sampling_rate: int, block_s: float = BLOCK_S) -> Iterator[np.ndarray]:
    """Read an audio file block by block, mono, resampled.

    Args:
        source: Path or bytes of a file of any format that libsndfile reads.
        sampling_rate: Wanted rate (Hz).
        block_s: Seconds of the file read at a time.

    Yields:
        `(samples,)`, float32; concatenated, the whole recording.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no audio, is damaged or holds no samples.
        ImportError: If soundfile is not installed.
    """
    if soundfile is None:
        raise ImportError("reading audio files needs soundfile: pip install soundfile")
    label = "audio bytes"
    if isinstance(source, (str, os.PathLike)):
        label = os.fspath(source)
        if not os.path.isfile(source):
            raise FileNotFoundError(f"`audio`: no such file: {label}")
        num_bytes = os.path.getsize(source)
    else:
        num_bytes = len(source)
        source = io.BytesIO(source)
    if num_bytes == 0:  # libsndfile would say that it does not know the format
        raise ValueError(f"`audio`: {label} is empty: it holds no bytes")
    num_samples = 0
    try:
        with soundfile.SoundFile(source) as file:
            resampler = Resampler(file.samplerate, sampling_rate)
            for block in file.blocks(max(1, int(block_s * file.samplerate)), dtype="float32", always_2d=True):
                samples = resampler.push(_checked(block.mean(axis=1, dtype=np.float64), label))
                num_samples += len(samples)
                yield samples
        samples = resampler.close()
        num_samples += len(samples)
        yield samples
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless format (.raw)
        reason = getattr(error, "error_string", error)
        raise ValueError(f"`audio`: cannot read {label}: {reason}") from error
    if num_samples == 0:
        raise ValueError(f"`audio`: {label} is empty: it holds no samples at {sampling_rate} Hz")


def load_audio(audio: Any, sampling_rate: int | None, to_rate: int, name: str = "audio") -> np.ndarray:
    """Bring one recording of any kind to mono float32 at a wanted rate.

    Args:
        audio: Array, tensor or nested list (see `mix_down`); path or bytes of an audio file; a `datasets` example,
            decoded (`array`, `sampling_rate`) or not (`path`, `bytes`); a torchcodec `AudioDecoder`.
        sampling_rate: Rate (Hz) of an array. A decoded example must agree with it; files say their own.
        to_rate: Wanted rate (Hz).
        name: The argument's name in error messages.

    Returns:
        `(samples,)`, float32.

    Raises:
        ValueError: If it is empty, unreadable or not finite, or its rate is missing or contradicts `sampling_rate`.
        TypeError: If it is none of the above.
        FileNotFoundError: If a path names no file.
    """
    source = file_source(audio, name)
    if source is not None:
        return np.concatenate(list(read_blocks(source, to_rate)))
    if isinstance(audio, Mapping):
        own_rate = check_sampling_rate(audio.get("sampling_rate"), f"{name}['sampling_rate']")
        if sampling_rate is not None and own_rate != sampling_rate:
            raise ValueError(f"`sampling_rate` is {sampling_rate} Hz, but `{name}` says {own_rate} Hz")
        audio, sampling_rate = audio["array"], own_rate
    elif hasattr(audio, "get_all_samples"):
        decoded = audio.get_all_samples()
        audio, sampling_rate = decoded.data, decoded.sample_rate
    samples = mix_down(audio, name)
    resampler = Resampler(check_sampling_rate(sampling_rate), to_rate)
    resampled = np.concatenate([resampler.push(samples), resampler.close()])
    if len(resampled) == 0:
        raise ValueError(f"`{name}` is empty: {len(samples)} samples at {sampling_rate} Hz fill none at {to_rate} Hz")
    return resampled


def levels_db(samples: np.ndarray, hop_length: int) -> np.ndarray:
    """Energy over time: root mean square of every `hop_length` samples, in dB of full scale, at least -100.

    Args:
        samples: `(samples,)`, float; the last value may be of fewer than `hop_length`.
        hop_length: Samples a value.

    Returns:
        `(ceil(samples / hop_length),)`, float64.
    """
    power = samples.astype(np.float64) ** 2
    starts = np.arange(0, len(samples), hop_length)
    means = np.add.reduceat(power, starts) / np.diff([*starts, len(samples)])
    return 10 * np.log10(np.maximum(means, 1e-10))


def file_source(audio: Any, name: str = "audio") -> Any:
    """The path or bytes of `audio` if it is a file (or an open one) or an undecoded `datasets` example, else `None`."""
    if hasattr(audio, "read") and not isinstance(audio, np.ndarray):
        content = audio.read()
        if not isinstance(content, bytes):
            raise TypeError(f"`{name}` must be open in binary mode, but gives {type(content).__name__}")
        return content
    if isinstance(audio, (str, os.PathLike, bytes, bytearray)):
        return audio
    if isinstance(audio, Mapping) and "array" not in audio:
        source = audio.get("bytes") or audio.get("path")
        if source is None:
            raise ValueError(
                f"`{name}` must hold 'array' and 'sampling_rate', or 'bytes' or 'path', "
                f"got keys {sorted(map(str, audio))}"
            )
        return source
    return None


def write_audio(path: str | os.PathLike, pieces: Iterator[np.ndarray], num_samples: int, sampling_rate: int) -> None:
    """Write audio piece by piece as 16-bit PCM; the file appears whole or not at all.

    Args:
        path: File of any format that libsndfile writes, by its suffix.
        pieces: `(samples,)` each, in [-1, 1].
        num_samples: Length of the file; what comes after is cut off.
        sampling_rate: Rate (Hz).

    Raises:
        OSError: If it cannot be written.
    """
    left = num_samples
    try:
        with (
            replacing(path) as temporary,
            soundfile.SoundFile(temporary, "w", sampling_rate, channels=1, subtype="PCM_16") as out,
        ):
            for piece in pieces:
                pcm = np.clip(np.rint(piece[:left] * 32768), -32768, 32767)  # libsndfile rounds by format
                out.write(pcm.astype(np.int16))
                left -= min(left, len(piece))
    except soundfile.LibsndfileError as error:
        raise OSError(f"cannot write {path}: {error}") from error
