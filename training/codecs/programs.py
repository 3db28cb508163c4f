"""Codecs that are programs of their own: Codec2, Opus, Speex, MP3. Files in a temporary folder, 16-bit, in and out."""

import shutil
import subprocess
import tempfile
from abc import abstractmethod
from pathlib import Path

import numpy as np
import soundfile

from .base import Encoded, WaveformCodec

RAW = {"format": "RAW", "subtype": "PCM_16", "endian": "LITTLE"}
OGG_HEADERS = 2  # packets before the sound: identification and comments


class ProgramCodec(WaveformCodec):
    """A codec whose encoder and decoder read and write files.

    Attributes:
        package: Debian's package of the programs.
        programs: Their names.

    Raises:
        ValueError: If a program is not installed.
    """

    package: str
    programs: tuple[str, ...]
    suffixes: tuple[str, str, str]  # of the sound, the encoded file and the decoded sound

    def __init__(self) -> None:
        missing = [program for program in self.programs if shutil.which(program) is None]
        if missing:
            raise ValueError(f"`spec`: no program {', '.join(missing)} here: apt-get install {self.package}")

    @abstractmethod
    def encoder(self, sound: Path, encoded: Path) -> list[str]:
        """The command that encodes."""

    @abstractmethod
    def decoder(self, encoded: Path, sound: Path) -> list[str]:
        """The command that decodes."""

    def payload_bits(self, data: bytes) -> int:
        """Bits of a file that hold sound."""
        return 8 * len(data)

    def encode(self, samples: np.ndarray) -> Encoded:
        with tempfile.TemporaryDirectory() as folder:
            sound, encoded = (Path(folder) / f"clip{suffix}" for suffix in self.suffixes[:2])
            self._write(sound, samples)
            _call(self.encoder(sound, encoded))
            data = encoded.read_bytes()
        return Encoded(data, self.payload_bits(data))

    def decode(self, data: bytes) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            encoded, sound = (Path(folder) / f"clip{suffix}" for suffix in self.suffixes[1:])
            encoded.write_bytes(data)
            _call(self.decoder(encoded, sound))
            return self._read(sound)

    def _write(self, path: Path, samples: np.ndarray) -> None:
        soundfile.write(path, samples, self.sampling_rate, subtype="PCM_16")

    def _read(self, path: Path) -> np.ndarray:
        samples, sampling_rate = soundfile.read(path, dtype="float32")
        if sampling_rate != self.sampling_rate:
            raise ValueError(f"{self.name} decoded to {sampling_rate} Hz, expected {self.sampling_rate} Hz")
        return samples


class Codec2(ProgramCodec):
    """Codec2 at 8 kHz. Headerless files, so that all bits are payload.

    Bits: of the file, in which each frame is rounded up to bytes; 700C then takes 800 bit/s, not 700. The clip is
    padded to whole frames that hold its delayed end, which costs a frame or two more.
    Delay: 20 ms, of 700C 30 ms, where STOI is highest (waveforms do not correlate: no phase is sent).

    Args:
        mode: One of `frame_lengths`.
    """

    package = "codec2"
    programs = ("c2enc", "c2dec")
    suffixes = (".raw", ".bin", ".out.raw")
    sampling_rate = 8000
    frame_lengths = {"3200": 160, "2400": 160, "1600": 320, "1400": 320, "1300": 320, "1200": 320, "700C": 320}

    def __init__(self, mode: str):
        if mode not in self.frame_lengths:
            raise ValueError(f"`spec`: Codec2 has modes {', '.join(self.frame_lengths)}, got {mode!r}")
        super().__init__()
        self.mode = mode
        self.name = f"Codec2 {mode}"
        self.nominal_bps = float(mode.removesuffix("C"))
        self.delay = 240 if mode == "700C" else 160

    def encoder(self, sound: Path, encoded: Path) -> list[str]:
        return ["c2enc", self.mode, str(sound), str(encoded)]

    def decoder(self, encoded: Path, sound: Path) -> list[str]:
        return ["c2dec", self.mode, str(encoded), str(sound)]

    def _write(self, path: Path, samples: np.ndarray) -> None:
        padding = self.delay + -(len(samples) + self.delay) % self.frame_lengths[self.mode]
        soundfile.write(path, np.pad(samples, (0, padding)), self.sampling_rate, **RAW)

    def _read(self, path: Path) -> np.ndarray:
        return soundfile.read(path, dtype="float32", samplerate=self.sampling_rate, channels=1, **RAW)[0]


class OggCodec(ProgramCodec):
    """A codec at a rate of one's choice, in an Ogg stream, whose decoder takes its delay off by itself.

    Bits: of the packets, without Ogg's pages and headers.

    Attributes:
        title: The codec's name, without its rate.
        rates: Lowest and highest (kbit/s).
    """

    title: str
    rates: tuple[float, float]

    def __init__(self, kbps: str):
        self.kbps = _number(kbps, self.title, *self.rates)
        super().__init__()
        self.name = f"{self.title} {self.kbps:g} kbit/s"
        self.nominal_bps = 1000 * self.kbps

    def payload_bits(self, data: bytes) -> int:
        return 8 * sum(ogg_packet_sizes(data)[OGG_HEADERS:])


class Opus(OggCodec):
    """Opus by opus-tools, in packets of 60 ms (the least overhead), variable rate: it may take less than the target.

    Args:
        kbps: Target (kbit/s), 6 to 256.
    """

    title, rates = "Opus", (6, 256)
    package = "opus-tools"
    programs = ("opusenc", "opusdec")
    suffixes = (".wav", ".opus", ".out.wav")
    sampling_rate = 48000

    def encoder(self, sound: Path, encoded: Path) -> list[str]:
        options = [
            "--quiet",
            "--discard-comments",
            "--padding",
            "0",
            "--framesize",
            "60",
            "--bitrate",
            f"{self.kbps:g}",
        ]
        return ["opusenc", *options, str(sound), str(encoded)]

    def decoder(self, encoded: Path, sound: Path) -> list[str]:
        return ["opusdec", "--quiet", "--float", "--rate", "48000", str(encoded), str(sound)]  # 16 bits would dither


class Speex(OggCodec):
    """Wide-band Speex, in frames of 20 ms, constant rate.

    Args:
        kbps: Most that it may take (kbit/s), at least 3.95: it takes the next lower of its eleven rates.
    """

    title, rates = "Speex", (3.95, 45)
    package = "speex"
    programs = ("speexenc", "speexdec")
    suffixes = (".wav", ".spx", ".out.wav")
    sampling_rate = 16000

    def encoder(self, sound: Path, encoded: Path) -> list[str]:
        return ["speexenc", "--wideband", "--bitrate", f"{1000 * self.kbps:.0f}", str(sound), str(encoded)]

    def decoder(self, encoded: Path, sound: Path) -> list[str]:
        return ["speexdec", str(encoded), str(sound)]


class Mp3(ProgramCodec):
    """MPEG Layer III by LAME, constant rate, mono, no information tag: all bits are frames with their own headers.

    Delay: the encoder's 576 samples at the rate that LAME goes down to (the decoder takes its own off).

    Args:
        kbps: One of `sampling_rates`.
    """

    package = "lame"
    programs = ("lame",)
    suffixes = (".wav", ".mp3", ".out.wav")
    delay = 576
    sampling_rates = {8: 8000, 16: 16000, 24: 16000, 32: 24000, 40: 24000, 48: 24000, 56: 24000, 64: 24000}

    def __init__(self, kbps: str):
        if kbps not in map(str, self.sampling_rates):
            raise ValueError(f"`spec`: MP3 has rates of {list(self.sampling_rates)} kbit/s, got {kbps!r}")
        super().__init__()
        self.kbps = int(kbps)
        self.name = f"MP3 {kbps} kbit/s"
        self.nominal_bps = 1000 * self.kbps
        self.sampling_rate = self.sampling_rates[self.kbps]

    def encoder(self, sound: Path, encoded: Path) -> list[str]:
        rate = f"{self.sampling_rate / 1000:g}"
        return ["lame", "--quiet", "-t", "-m", "m", "-b", str(self.kbps), "--resample", rate, str(sound), str(encoded)]

    def decoder(self, encoded: Path, sound: Path) -> list[str]:
        return ["lame", "--quiet", "--decode", str(encoded), str(sound)]


def ogg_packet_sizes(data: bytes) -> list[int]:
    """Bytes of each packet of an Ogg stream.

    Raises:
        ValueError: If it is no Ogg stream, or is cut short.

    Source: RFC 3533, section 6.
    """
    sizes, size, position = [], 0, 0
    while position < len(data):
        if data[position : position + 4] != b"OggS" or len(data) < position + 27:
            raise ValueError(f"`data`: no Ogg page at byte {position}")
        segments = data[position + 27 : position + 27 + data[position + 26]]
        for segment in segments:
            size += segment
            if segment < 255:  # a packet ends
                sizes.append(size)
                size = 0
        position += 27 + len(segments) + sum(segments)
    if position != len(data) or size:
        raise ValueError(f"`data`: the Ogg stream ends inside a page or packet, at byte {len(data)}")
    return sizes


def _number(text: str, codec: str, low: float, high: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise ValueError(f"`spec`: {codec} needs a rate of {low:g} to {high:g} kbit/s, got {text!r}")
    return number


def _call(command: list[str]) -> None:
    """Run a program; what it wrote goes into the ValueError of its failure."""
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if result.returncode:
        output = (result.stderr + result.stdout).strip()[-400:]
        raise ValueError(f"`{' '.join(command)}` failed with status {result.returncode}: {output}")
