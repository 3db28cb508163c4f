"""Recorded sound to mono float32 samples at a wanted rate: arrays, files, `datasets` examples.

One rule for all: channels are averaged, integers are read as PCM, soxr resamples at its default (high) quality.
soxr gives the same samples whether it sees a recording at once or in blocks, and so do the functions below.
Samples and length of a file are what was decoded. A file that ends before its header says is refused.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .audio_container import (
    PYAV_FORMATS,
    FileWindow,
    Part,
    PartLayout,
    TruncatedAudioError,
    check_regular_file,
    layout_of,
)
from .files import replacing

try:
    import soundfile
except ImportError:
    soundfile = None
try:
    import soxr
except ImportError:
    soxr = None

# In lower case. Files of other formats in a folder are no recordings.
SOUNDFILE_SUFFIXES = (
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph",
    ".w64", ".wav", ".wave",
)  # fmt: skip
PYAV_SUFFIXES = (".3gp", ".aac", ".amr", ".m4a", ".m4b", ".mka", ".mkv", ".mov", ".mp4", ".webm", ".wma")
AUDIO_SUFFIXES = SOUNDFILE_SUFFIXES + PYAV_SUFFIXES
BLOCK_S = 10  # seconds read from a file at a time; what fits into a cache is read faster
MAX_BLOCK_VALUES = 2**23  # of all channels that are read at a time, whatever a header says: 32 MB
MAX_CHANNELS = 2  # of an array's two axes, channels are the one that is at most this long
MAX_AMPLITUDE = 16.0  # full scale is 1; a louder sample is integer PCM that was made floating point without scaling
MIN_SAMPLING_RATE, MAX_SAMPLING_RATE = 1_000, 1_000_000
PYAV_TOLERANCE_S = 0.1  # of a length that a container says in its own clock, and codecs keep in whole frames


def check_sampling_rate(sampling_rate: Any, name: str = "sampling_rate") -> int:
    """Return the rate (Hz) as an int.

    Raises:
        ValueError: If it is missing, not whole, or not between 1 kHz and 1 MHz.
        TypeError: If it is not a whole number.
    """
    if sampling_rate is None:
        raise ValueError(f"`{name}` is missing: say at how many Hz the audio was recorded")
    if getattr(sampling_rate, "ndim", None) == 0:  # as `datasets` gives it in numpy and torch formats
        sampling_rate = sampling_rate.item()
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, (int, float)):
        raise TypeError(f"`{name}` must be a whole number of Hz, got {sampling_rate!r}")
    if not MIN_SAMPLING_RATE <= sampling_rate <= MAX_SAMPLING_RATE or sampling_rate % 1:
        raise ValueError(
            f"`{name}` must be a whole number of Hz from {MIN_SAMPLING_RATE} to {MAX_SAMPLING_RATE}, "
            f"got {sampling_rate!r}"
        )
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


class AudioFile:
    """A sound file, read as mono float32 samples at its own rate: the one reader of tokenizer, corpus and training.

    The parts of a chained Ogg file and of concatenated MP3 files follow one another.

    Args:
        source: Path or bytes of a sound file, or a binary file that is open and seekable.
        label: What it is called in error messages; its path if `None`.
        allow_truncated: Whether to read what there is of a file that ends before its header says.

    Attributes:
        sampling_rate: Rate (Hz).
        num_samples: Length in samples; `None` if only decoding finds it out.
        problem: In what way the file is cut short, if it is.

    Raises:
        FileNotFoundError: If there is no such file.
        TruncatedAudioError: If the file is cut short; a ValueError.
        ValueError: If it is no sound file, is damaged, or its rate is out of bounds.
        ImportError: If soundfile is not installed.
    """

    def __init__(self, source: Any, label: str | None = None, allow_truncated: bool = False):
        if soundfile is None:
            raise ImportError("reading audio files needs soundfile: pip install soundfile")
        self.allow_truncated, self._closing, self._position = allow_truncated, contextlib.ExitStack(), 0
        is_path = isinstance(source, (str, os.PathLike))
        self.label = label or (os.fspath(source) if is_path else "audio bytes")
        if is_path:
            check_regular_file(source, "`audio`")
            source = self._closing.enter_context(FileWindow(source))
        elif not hasattr(source, "read"):
            source = io.BytesIO(source)
        self._file = source
        try:
            if source.seek(0, os.SEEK_END) == 0:
                raise ValueError(f"`audio`: {self.label} is empty: it holds no bytes")
            with self._named():
                layout = layout_of(source)
            self.problem = layout.problem
            if self.problem is not None and not allow_truncated:
                raise TruncatedAudioError(f"`audio`: cannot read {self.label}: {self.problem}")
            with self._named():
                self._decoders: list[_SoundFile | _PyAV] = [
                    _SoundFile(source, part, allow_truncated) for part in layout.parts
                ] or [_PyAV(source, layout.format)]
                rates = {decoder.sampling_rate for decoder in self._decoders}
                if len(rates) > 1:
                    raise ValueError(f"its parts are of different sampling rates: {sorted(rates)} Hz")
                self.sampling_rate = check_sampling_rate(rates.pop(), "its sampling rate")
                lengths = [decoder.num_samples for decoder in self._decoders]
                self.num_samples = None if None in lengths else sum(length or 0 for length in lengths)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "AudioFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what this object has opened."""
        for decoder in getattr(self, "_decoders", []):
            decoder.close()
        self._closing.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: a headerless format (.raw)
            self._raise_of_disk(error)
            reason = getattr(error, "error_string", error)
            raise ValueError(f"`audio`: cannot read {self.label}: {reason}") from error
        except TruncatedAudioError as error:
            self._raise_of_disk(error)
            raise TruncatedAudioError(f"`audio`: cannot read {self.label}: {error}") from error
        except ValueError as error:
            self._raise_of_disk(error)
            raise ValueError(f"`audio`: cannot read {self.label}: {error}") from error

    def _raise_of_disk(self, error: Exception) -> None:
        for decoder in getattr(self, "_decoders", []):
            if (cause := decoder.disk_error()) is not None:
                raise cause from error

    @property
    def max_block(self) -> int:
        """Samples that may be read at a time, whatever the number of channels."""
        return max(1, MAX_BLOCK_VALUES // max(decoder.channels for decoder in self._decoders))

    def read(self, count: int) -> np.ndarray:
        """Read on: `(samples,)`, float32, `count` of them, or fewer at the end of the file only.

        Raises:
            ValueError: If the file is damaged, or a sample is not finite or too loud.
            TruncatedAudioError: If the file ends before its header says.
        """
        taken: list[np.ndarray] = []
        with self._named():
            for decoder in self._decoders:
                while count and (block := decoder.read(min(count, self.max_block))) is not None:
                    count -= len(block)
                    self._position += len(block)
                    taken.append(block)
                if decoder.problem is not None and not self.allow_truncated:
                    raise TruncatedAudioError(decoder.problem)
                self.problem = self.problem or decoder.problem
        return _checked(np.concatenate([np.zeros(0, np.float32), *taken]), self.label)

    def seek(self, position: int) -> None:
        """Go to a sample: the next that is read."""
        with self._named():
            for decoder in self._decoders:
                length = decoder.num_samples
                decoder.seek(position if length is None else min(position, length))
                position -= position if length is None else min(position, length)

    def count(self) -> int:
        """Length in samples, of a file that does not say how long it is, too: by decoding all of it."""
        if self.num_samples is None:
            self.seek(0)
            total = 0
            while block := len(self.read(self.max_block)):
                total += block
            self.seek(0)
            self.num_samples = total
        return self.num_samples


class _SoundFile:
    """A part of a file through libsndfile."""

    def __init__(self, file: Any, layout: PartLayout, allow_truncated: bool):
        self._allow_truncated, self._layout = allow_truncated, layout
        self._part, self._position = Part(file, layout.pieces), 0
        self.problem: str | None = None
        try:
            self._sound = soundfile.SoundFile(self._part)
        except soundfile.LibsndfileError:
            if self._part.error is not None:
                raise self._part.error from None
            raise
        self.sampling_rate, self.channels = self._sound.samplerate, self._sound.channels
        self._expected = self._sound.frames if layout.num_samples is None else layout.num_samples
        self.num_samples: int | None = self._expected
        if not 0 <= self._expected < 2**40:
            raise ValueError(f"it says that it holds {self._expected} samples")

    def read(self, count: int) -> np.ndarray | None:
        count = min(count, self._expected - self._position)
        if count <= 0:
            return None
        block = self._sound.read(count, dtype="float32", always_2d=True)
        if self._part.error is not None:
            raise self._part.error
        self._position += len(block)
        if len(block) < count:
            problem = f"it ends at sample {self._position} of {self._expected}"
            if not self._allow_truncated:
                raise TruncatedAudioError(problem)
            self.problem, self._expected = problem, self._position
        return block.mean(axis=1, dtype=np.float64).astype(np.float32) if len(block) else None

    def seek(self, position: int) -> None:
        if self._sound.seekable():
            self._sound.seek(position)
        elif position != self._position:  # GSM: from the beginning on
            self._sound.close()
            self._part.seek(0)
            self._sound, self._position = soundfile.SoundFile(self._part), 0
            while self._position < position and self.read(min(position - self._position, 2**16)) is not None:
                pass
        self._position = position

    def disk_error(self) -> OSError | None:
        return self._part.error

    def close(self) -> None:
        self._sound.close()


class _PyAV:
    """A file through PyAV, which brings FFmpeg."""

    num_samples: int | None = None

    def __init__(self, file: Any, name: str):
        try:
            self._av = importlib.import_module("av")
        except ImportError as error:
            raise ValueError(f"{name} is read through PyAV only: pip install 'jepa-daam[av]'") from error
        self._file, self._format = file, PYAV_FORMATS[name]
        self.problem: str | None = None
        self._container: Any = None
        self._open()
        self.sampling_rate, self.channels = self._stream.rate, max(1, self._stream.channels)

    def _open(self) -> None:
        self.close()
        self._file.seek(0)
        try:
            self._container = self._av.open(self._file, format=self._format)
        except (self._av.FFmpegError, ValueError) as error:
            raise ValueError(f"it is damaged or cut short: {_reason(error)}") from error
        if not self._container.streams.audio:
            raise ValueError("it holds no sound")
        if len(self._container.streams.audio) > 1:
            raise ValueError(f"it holds {len(self._container.streams.audio)} streams of sound, not one")
        self._stream = self._container.streams.audio[0]
        self._blocks, self._rest, self._position = self._decode(), np.zeros(0, np.float32), 0

    def _declared_s(self) -> float | None:
        if self._stream.duration is not None and self._stream.time_base is not None:
            return float(self._stream.duration * self._stream.time_base)
        return None if self._container.duration is None else self._container.duration / self._av.time_base

    def _decode(self) -> Iterator[np.ndarray]:
        rate = self._stream.rate
        resampler = self._av.AudioResampler(format="fltp")  # the kind of sample alone is changed
        samples = 0
        try:
            for frame in self._container.decode(self._stream):
                if frame.sample_rate != rate:
                    raise ValueError(f"its sampling rate changes from {rate} to {frame.sample_rate} Hz")
                for piece in resampler.resample(frame):
                    block = piece.to_ndarray().mean(axis=0, dtype=np.float64).astype(np.float32)
                    samples += len(block)
                    yield block
        except self._av.FFmpegError as error:
            raise ValueError(f"it is damaged at sample {samples}: {_reason(error)}") from error
        declared_s = self._declared_s()
        if declared_s is not None and samples / rate < declared_s - PYAV_TOLERANCE_S:
            self.problem = f"it is cut short: it ends at {samples / rate:.2f} of {declared_s:.2f} s"

    def read(self, count: int) -> np.ndarray | None:
        while len(self._rest) < count and (block := next(self._blocks, None)) is not None:
            self._rest = np.concatenate([self._rest, block])
        taken, self._rest = self._rest[:count], self._rest[count:]
        self._position += len(taken)
        return taken if len(taken) else None

    def seek(self, position: int) -> None:
        if position < self._position:
            self._open()
        while self._position < position and self.read(min(position - self._position, 2**16)) is not None:
            pass

    def disk_error(self) -> OSError | None:
        return None

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
            self._container = None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def read_blocks(
    source: Any,
    sampling_rate: int,
    block_s: float = BLOCK_S,
    on_truncated: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """Read an audio file block by block, mono, resampled.

    Args:
        source: Path, bytes or open binary file; of WAV, RF64, W64, AIFF, AU, CAF, NIST SPHERE, FLAC, Ogg (Vorbis, Opus)
            or MP3, with PyAV also MP4, WebM, WMA, AMR, AAC.
        sampling_rate: Wanted rate (Hz).
        block_s: Seconds of the file read at a time.
        on_truncated: A file that ends before its header says is refused, unless this is given: then what there is of
            it is read, and this is called with what is missing.

    Yields:
        `(samples,)`, float32; concatenated, the whole recording.

    Raises:
        FileNotFoundError: If there is no such file.
        TruncatedAudioError: If the file ends before its header says; a ValueError.
        ValueError: If the file is no audio, is damaged or holds no samples.
        OSError: If it cannot be read from its disk.
        ImportError: If soundfile is not installed.
    """
    num_samples = 0
    with AudioFile(source, allow_truncated=on_truncated is not None) as file:
        resampler = Resampler(file.sampling_rate, sampling_rate)
        size = min(max(1, int(block_s * file.sampling_rate)), file.max_block)
        while len(block := file.read(size)):
            samples = resampler.push(block)
            num_samples += len(samples)
            yield samples
        samples = resampler.close()
        num_samples += len(samples)
        yield samples
        if num_samples == 0:
            raise ValueError(f"`audio`: {file.label} is empty: it holds no samples at {sampling_rate} Hz")
        if file.problem is not None and on_truncated is not None:
            on_truncated(file.problem)


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
