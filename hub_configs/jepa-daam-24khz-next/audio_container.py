"""Containers of sound files: where their samples lie, how many they declare, and whether the file holds all of them.

libsndfile believes a header: it clips a WAV that was cut short without a word, reads the first stream of a chained Ogg
file only, and estimates the length of an MP3. So the bytes are checked here first. Only formats whose end can be
checked are read.
"""

import functools
import io
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

SCAN_BYTES = 2**20  # read at a time when a whole file is walked
MAX_CHUNKS = 10_000  # of a RIFF-like file, before its samples
UNKNOWN_SIZES = (
    0x7FFFF000,
    0x7FFFFFDB,
    0x7FFFFFFF,
    0x80000000,
)  # what programs write into a pipe, which has no end yet
PYAV_FORMATS = {  # FFmpeg's demuxer by what a file begins with; a demuxer that opens other files is not among them
    "MP4": "mp4",
    "Matroska": "matroska",
    "ASF": "asf",
    "AMR": "amr",
    "AAC": "aac",
    "Ogg": "ogg",
}
READABLE = "WAV, RF64, W64, AIFF, AU, CAF, NIST SPHERE, FLAC, Ogg (Vorbis, Opus), MPEG audio (MP3)"


class TruncatedAudioError(ValueError):
    """A sound file that ends before its header says."""


class FileWindow(io.RawIOBase):
    """A part of a file, as a file: a member of a tar file, say.

    Args:
        path: The file.
        offset: Position of the part's first byte.
        size: Bytes of the part; -1 for all to the end.
    """

    def __init__(self, path: str | os.PathLike, offset: int = 0, size: int = -1):
        self.path, self.offset, self._position = path, offset, 0
        self._file = open(path, "rb")  # noqa: SIM115 closed with this object
        self.size = size if size >= 0 else os.fstat(self._file.fileno()).st_size - offset

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence])
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self.size - self._position))
        self._file.seek(self.offset + self._position)
        read = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += read
        return read

    @property
    def identity(self) -> tuple[str, int, int, int, int]:
        """What the file is, as far as the system knows: path, place and size of the part, size and time of the file."""
        status = os.fstat(self._file.fileno())
        return os.path.abspath(self.path), self.offset, self.size, status.st_size, status.st_mtime_ns


class Part(io.RawIOBase):
    """Some bytes, then some stretches of a file: what libsndfile is given as a file.

    soundfile's callbacks swallow what a read raises, and a disk that fails would pass for the end of a file. It is
    kept in `error`.
    """

    def __init__(self, file: BinaryIO, pieces: tuple[bytes | tuple[int, int], ...]):
        self._file, self._position = file, 0
        self.error: OSError | None = None
        self._pieces: list[tuple[int, int, bytes | int]] = []  # start, end, bytes or position in the file
        end = 0
        for piece in pieces:
            start, length = end, len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
            end = start + length
            self._pieces.append((start, end, piece if isinstance(piece, bytes) else piece[0]))
        self._size = end

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer) -> int:
        view, done = memoryview(buffer).cast("B"), 0
        for start, end, content in self._pieces:
            if not start <= self._position < end or done == len(view):
                continue
            wanted = min(len(view) - done, end - self._position)
            if isinstance(content, bytes):
                data = content[self._position - start :][:wanted]
            else:
                try:
                    self._file.seek(content + self._position - start)
                    data = read_up_to(self._file, wanted)
                except OSError as error:
                    self.error = error
                    raise
            view[done : done + len(data)] = data
            done += len(data)
            self._position += len(data)
            if len(data) < wanted:
                break
        return done


@dataclass(frozen=True)
class PartLayout:
    """A stretch of a file that is a recording by itself.

    Args:
        pieces: Bytes, or first and last position in the file.
        num_samples: How many samples come of it, a channel; `None` if libsndfile's count is right.
    """

    pieces: tuple[bytes | tuple[int, int], ...]
    num_samples: int | None = None


@dataclass(frozen=True)
class Layout:
    """What a file holds.

    Args:
        format: Name of the container.
        parts: What is read, one after the other; none if PyAV has to.
        problem: Why the file is not whole, if so.
        missing: How many samples a channel are missing at least; `None` if that cannot be known.
    """

    format: str
    parts: tuple[PartLayout, ...]
    problem: str | None = None
    missing: int | None = None


def read_up_to(file: BinaryIO | Any, size: int) -> bytes:
    """`size` bytes, or fewer at the end of the file only, which one `read` does not promise."""
    data = file.read(size)
    while data and len(data) < size:
        more = file.read(size - len(data))
        if not more:
            break
        data += more
    return data or b""


def check_regular_file(path: str | os.PathLike[str], label: str) -> None:
    """Refuse what is no regular file before it is opened: a pipe would block, a device has no end.

    Raises:
        FileNotFoundError: If there is nothing, or a link to nothing.
        ValueError: If it is something else.
    """
    path = os.fspath(path)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        if os.path.islink(path):
            raise FileNotFoundError(f"{label}: broken link to {os.readlink(os.fsdecode(path))}") from error
        raise FileNotFoundError(f"{label}: no such file: {os.fspath(path)}") from error
    except (OSError, ValueError) as error:  # a name too long, a loop of links, a zero byte
        raise FileNotFoundError(f"{label}: no such file: {os.fspath(path)!r}: {error}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise ValueError(f"{label}: {os.fspath(path)} is {kind}, not a regular file")


def layout_of(file: BinaryIO | FileWindow) -> Layout:
    """Find out what a file holds.

    Args:
        file: Binary, seekable.

    Raises:
        ValueError: If it is no sound file that can be read, or is damaged.
    """
    if isinstance(file, FileWindow):
        return _layout_of_window(*file.identity)
    return _layout_of(file)


@functools.lru_cache(maxsize=1024)
def _layout_of_window(path: str, offset: int, size: int, file_size: int, mtime_ns: int) -> Layout:
    # Training opens a file once for each of its segments.
    with FileWindow(path, offset, size) as file:
        return _layout_of(file)  # type: ignore[arg-type]


def _layout_of(file: BinaryIO) -> Layout:
    size = file.seek(0, os.SEEK_END)
    start = _skip_id3(file, 0)
    head = _at(file, start, 36)
    name = _format_of(head)
    if name is None:
        raise ValueError(f"Format not recognised: {READABLE} are read, with PyAV also MP4, WebM, WMA, AMR and AAC")
    if name in PYAV_FORMATS and name != "Ogg":
        return Layout(name, ())
    walk = {
        "WAV": _walk_riff,
        "W64": _walk_w64,
        "AIFF": _walk_aiff,
        "AU": _walk_au,
        "CAF": _walk_caf,
        "NIST SPHERE": _walk_nist,
        "FLAC": _walk_flac,
        "Ogg": _walk_ogg,
        "MPEG audio": _walk_mpeg,
    }[name]
    return walk(file, start, size)


def _format_of(head: bytes) -> str | None:
    if head[:4] in (b"RIFF", b"RIFX", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF"
    if head[4:8] == b"ftyp":
        return "MP4"
    for magic, name in (
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00", "W64"),
        (b".snd", "AU"),
        (b"dns.", "AU"),
        (b"caff", "CAF"),
        (b"NIST_1A", "NIST SPHERE"),
        (b"fLaC", "FLAC"),
        (b"OggS", "Ogg"),
        (b"\x1a\x45\xdf\xa3", "Matroska"),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF"),
        (b"#!AMR", "AMR"),
        (b"\xff\xf1", "AAC"),
        (b"\xff\xf9", "AAC"),
    ):
        if head.startswith(magic):
            return name
    return "MPEG audio" if len(head) > 3 and _MpegFrame.of(head) is not None else None


def _is_for_libsndfile(page: bytes) -> bool:
    """Whether the first page of an Ogg file begins a Vorbis or Opus stream; of FLAC, it fails on some encoders'."""
    packet = page[27 + page[26] :] if len(page) > 27 else b""
    return packet.startswith((b"\x01vorbis", b"OpusHead"))


def _at(file: BinaryIO, position: int, size: int) -> bytes:
    file.seek(position)
    return read_up_to(file, size)


def _skip_id3(file: BinaryIO, position: int) -> int:
    """The position after ID3v2 tags, if there are any."""
    while (
        (head := _at(file, position, 10))[:3] == b"ID3"
        and len(head) == 10
        and not any(byte & 0x80 for byte in head[6:])
    ):
        size = functools.reduce(lambda value, byte: value << 7 | byte, head[6:10], 0)
        position += 10 + size + (10 if head[5] & 0x10 else 0)
    return position


# Chunks: a name, a size, content


def _cut(name: str, part: PartLayout, found: int, declared: int, unit: int) -> Layout:
    """Of a file of `declared` bytes of samples, of which `found` are there; a sample of all channels takes `unit`."""
    if found >= declared:
        return Layout(name, (part,))
    percent = 100 * (declared - found) / declared
    problem = f"it is cut short: {declared - found} of {declared} bytes of samples ({percent:.1f} %) are missing"
    return Layout(name, (part,), problem, -(-(declared - found) // unit) if unit else None)


def _refuse_second(file: BinaryIO, end: int, size: int) -> None:
    """Refuse a file behind whose recording another one lies."""
    if end + 12 <= size and _format_of(_at(file, end, 36)) not in (None, "MPEG audio", "AAC", "MP4", "AMR"):
        raise ValueError(f"it holds a second recording, from byte {end} on: split the file")


def _walk_riff(file: BinaryIO, start: int, size: int) -> Layout:
    """WAV and RF64. Source: RIFF of 1991; EBU Tech 3306."""
    head = _at(file, start, 12)
    order = ">" if head[:4] == b"RIFX" else "<"
    riff_size, sizes64 = struct.unpack(order + "I", head[4:8])[0], None
    position, code, align, fact, per_block = start + 12, 1, 0, None, 0
    for _ in range(MAX_CHUNKS):
        chunk = _at(file, position, 8)
        if len(chunk) < 8:
            break
        name, length = chunk[:4], struct.unpack(order + "I", chunk[4:])[0]
        content = position + 8
        if name == b"ds64":
            sizes64 = struct.unpack("<QQQ", _exactly(file, content, 24))
        elif name == b"fmt ":
            fields = _exactly(file, content, 16)
            code, _, _, _, align = struct.unpack(order + "HHIIH", fields[:14])
            extra = _at(file, content + 16, 4) if length >= 20 else b""
            per_block = struct.unpack(order + "H", extra[2:])[0] if len(extra) == 4 and code != 0xFFFE else 0
        elif name == b"fact" and length >= 4:
            fact = struct.unpack(order + "I", _exactly(file, content, 4))[0]
        elif name == b"data":
            return _wav_data(file, start, size, content, length, riff_size, sizes64, code, align, fact, per_block)
        position = content + length + length % 2
    raise ValueError("it is cut short, or no WAV: there is no chunk of samples in it")


def _wav_data(file, start, size, content, length, riff_size, sizes64, code, align, fact, per_block) -> Layout:
    if sizes64 is not None and length == 0xFFFFFFFF:
        riff_size, length = sizes64[:2]
        unknown = length in (0, 2**64 - 1)
    else:
        unknown = length in UNKNOWN_SIZES or length >= 0xFFFFFF00
    there = size - content
    if length == 0 and there > 0 and riff_size + 8 < size - start:
        unknown = True  # a recorder that was stopped before it could write the size
    block = code not in (1, 3, 6, 7, 0xFFFE)  # a compressed format, in blocks
    part = PartLayout(((start, size),))
    if block and per_block and align and not unknown and length <= there:
        # libsndfile decodes what comes after the chunk, and pads the last block.
        whole = -(-length // align) * per_block
        part = PartLayout(((start, size),), fact if fact and 0 <= whole - fact < per_block else whole)
    if unknown:
        return Layout("WAV", (part,))
    if length == 0:
        raise ValueError("it is empty: it holds no samples")
    if length <= there:
        _refuse_second(file, content + length + length % 2, size)
    return _cut("WAV", part, there, length, 0 if block else align)


def _exactly(file: BinaryIO, position: int, size: int) -> bytes:
    data = _at(file, position, size)
    if len(data) < size:
        raise ValueError(f"it is cut short in its header, at byte {position + len(data)}")
    return data


def _walk_w64(file: BinaryIO, start: int, size: int) -> Layout:
    """Sony Wave64: GUIDs and 64-bit sizes, which count their own header."""
    position, align = start + 40, 0
    for _ in range(MAX_CHUNKS):
        chunk = _at(file, position, 24)
        if len(chunk) < 24:
            break
        name, length = chunk[:4], struct.unpack("<Q", chunk[16:])[0]
        if length < 24:
            raise ValueError(f"it is damaged: a chunk of {length} bytes at byte {position}")
        if name == b"fmt ":
            align = struct.unpack("<H", _exactly(file, position + 36, 2))[0]
        elif name == b"data":
            _refuse_second(file, position + -(-length // 8) * 8, size)
            return _cut("W64", PartLayout(((start, size),)), size - position - 24, length - 24, align)
        position += -(-length // 8) * 8
    raise ValueError("it is cut short, or no W64: there is no chunk of samples in it")


def _walk_aiff(file: BinaryIO, start: int, size: int) -> Layout:
    position, unit = start + 12, 0
    layout = None
    for _ in range(MAX_CHUNKS):
        chunk = _at(file, position, 8)
        if len(chunk) < 8 or (layout is not None and chunk[:4] == b"FORM"):
            break
        name, length = chunk[:4], struct.unpack(">I", chunk[4:])[0]
        if name == b"COMM":
            channels, _, bits = struct.unpack(">HIH", _exactly(file, position + 8, 8))
            unit = channels * -(-bits // 8)
        elif name == b"SSND":
            layout = _cut("AIFF", PartLayout(((start, size),)), size - position - 8, length, unit)
        position += 8 + length + length % 2
    if layout is None:
        raise ValueError("it is cut short, or no AIFF: there is no chunk of samples in it")
    _refuse_second(file, position, size)
    return layout


def _walk_au(file: BinaryIO, start: int, size: int) -> Layout:
    head = _exactly(file, start, 24)
    order = ">" if head[:4] == b".snd" else "<"
    offset, length, encoding, _, channels = struct.unpack(order + "5I", head[4:])
    part = PartLayout(((start, size),))
    if length == 0xFFFFFFFF:
        return Layout("AU", (part,))
    if length == 0:
        raise ValueError("it is empty: it holds no samples")
    _refuse_second(file, start + offset + length, size)
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(encoding, 0)
    return _cut("AU", part, size - start - offset, length, width * channels)


def _walk_caf(file: BinaryIO, start: int, size: int) -> Layout:
    position, unit = start + 8, 0
    for _ in range(MAX_CHUNKS):
        chunk = _at(file, position, 12)
        if len(chunk) < 12:
            break
        name, length = chunk[:4], struct.unpack(">q", chunk[4:])[0]
        if name == b"desc":
            unit = struct.unpack(">I", _exactly(file, position + 12 + 16, 4))[0]
        elif name == b"data":
            part = PartLayout(((start, size),))
            if length == -1:
                return Layout("CAF", (part,))
            if position + 12 + length > size:  # libsndfile does not read it as it is
                there = struct.pack(">q", size - position - 12)
                part = PartLayout(((start, position + 4), there, (position + 12, size)))
            return _cut("CAF", part, size - position - 12, length, unit)
        if length < 0:
            raise ValueError(f"it is damaged: a chunk of {length} bytes at byte {position}")
        position += 12 + length
    raise ValueError("it is cut short, or no CAF: there is no chunk of samples in it")


def _walk_nist(file: BinaryIO, start: int, size: int) -> Layout:
    head = _exactly(file, start, 1024)
    lines = [line.split() for line in head.decode("latin-1").split("\n")]
    fields = {line[0]: line[2] for line in lines if len(line) > 2}
    try:
        offset = int(head[8:16])
        count, channels, width = (
            int(fields.get(key, 1)) for key in ("sample_count", "channel_count", "sample_n_bytes")
        )
    except ValueError as error:
        raise ValueError(f"it is damaged: its header cannot be read: {error}") from error
    part = PartLayout(((start, size),))
    return _cut("NIST SPHERE", part, size - start - offset, count * channels * width, channels * width)


# FLAC: frames, each with a checksum of its own


def _crc_table(bits: int, polynomial: int) -> tuple[int, ...]:
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(8, 0x07), _crc_table(16, 0x8005)
_FLAC_BLOCKS = {1: 192, **{2 + k: 576 << k for k in range(4)}, **{8 + k: 256 << k for k in range(8)}}


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value = _CRC8[value ^ byte]
    return value


def _crc16(data: bytes) -> int:
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFF) ^ _CRC16[value >> 8 ^ byte]
    return value


def _walk_flac(file: BinaryIO, start: int, size: int) -> Layout:
    """Source: RFC 9639."""
    info = _exactly(file, start, 42)
    if info[4] & 0x7F or info[5:8] != b"\0\0\x22":
        raise ValueError("it is damaged: its header does not begin with STREAMINFO")
    fixed_block = struct.unpack(">H", info[8:10])[0]
    largest = int.from_bytes(info[15:18], "big")
    total = int.from_bytes(info[21:26], "big") & (1 << 36) - 1
    position, last = start + 4, False
    while not last:
        head = _exactly(file, position, 4)
        last, position = bool(head[0] & 0x80), position + 4 + int.from_bytes(head[1:], "big")
    if position > size:
        raise ValueError("it is cut short in its header")
    last_frame = _last_flac_frame(file, position, size, fixed_block, largest)
    if last_frame is None and total == 0:
        raise ValueError("it is cut short or damaged: it does not say how long it is, and no whole frame ends it")
    bits = ((info[20] & 1) << 4 | info[21] >> 4) + 1
    raw_bytes = total * ((info[20] >> 1 & 7) + 1) * -(-bits // 8)
    if total and size - position > 2 * raw_bytes + SCAN_BYTES:  # a sparse file, say, that would be read for hours
        raise ValueError(f"it is damaged: {size} bytes are too many for {total} samples")
    second = _find(file, b"fLaC\0\0\0\x22", position, size), _find(file, b"fLaC\x80\0\0\x22", position, size)
    if any(place is not None for place in second):
        first = min(place for place in second if place is not None)
        raise ValueError(f"it holds a second recording, from byte {first} on: split the file")
    if last_frame is None:  # bytes behind the last frame, or damage: decoding finds that out
        return Layout("FLAC", (PartLayout(((start, size),), total),))
    end, whole, found = last_frame
    streaminfo = (
        info[:21] + (int.from_bytes(info[21:26], "big") & ~((1 << 36) - 1) | found).to_bytes(5, "big") + bytes(16)
    )
    known = PartLayout(((start, size),), total)
    patched = PartLayout((streaminfo, (start + 42, end)), found)
    if total == 0:
        problem = None if whole else "it is cut short inside a frame, and does not say how long it was"
        return Layout("FLAC", (patched,), problem)
    if found >= total:
        return Layout("FLAC", (known,))
    percent = 100 * (total - found) / total
    problem = f"it is cut short: {total - found} of {total} samples ({percent:.1f} %) are missing"
    return Layout("FLAC", (patched,), problem, total - found)


def _last_flac_frame(
    file: BinaryIO, first: int, size: int, fixed_block: int, largest: int
) -> tuple[int, bool, int] | None:
    """End of the last whole frame, whether the file ends there, and how many samples there are up to it."""
    reach = 2 * (largest or 2**16) + 4096
    begin = max(first, size - reach)
    tail = _at(file, begin, size - begin)
    if len(tail) > 128 and tail[-128:-125] == b"TAG":  # an ID3v1 tag
        tail = tail[:-128]
    headers = []
    place = tail.find(b"\xff")
    while place >= 0:
        if (header := _flac_header(tail[place : place + 16], fixed_block)) is not None:
            headers.append((place, header))
        place = tail.find(b"\xff", place + 1)
    ends = [place for place, _ in headers[1:]] + [len(tail)]
    for number in range(len(headers) - 1, -1, -1):
        place, samples = headers[number]
        for end in reversed(ends[number : number + 3]):  # a header may be seen by chance inside a frame
            if _crc16(tail[place:end]) == 0:
                return begin + end, end == len(tail), samples
    return None


def _flac_header(data: bytes, fixed_block: int) -> int | None:
    """How many samples there are up to the end of the frame that begins here, if one does."""
    if len(data) < 6 or data[0] != 0xFF or data[1] & 0xFE != 0xF8:
        return None
    block_code, rate_code = data[2] >> 4, data[2] & 15
    if block_code == 0 or rate_code == 15 or data[3] & 1:
        return None
    ones = 8 - (~data[4] & 0xFF).bit_length()  # UTF-8's way, up to 36 bits
    if ones == 1 or ones > 7:
        return None
    number = data[4] & 0x7F >> ones
    place = 5
    for byte in data[5 : 4 + max(1, ones)]:
        if byte & 0xC0 != 0x80:
            return None
        number, place = number << 6 | byte & 0x3F, place + 1
    extra = {6: 1, 7: 2}.get(block_code, 0)
    block = _FLAC_BLOCKS.get(block_code) or int.from_bytes(data[place : place + extra], "big") + 1
    place += extra + {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if place >= len(data) or _crc8(data[:place]) != data[place]:
        return None
    return (number if data[1] & 1 else number * fixed_block) + block


def _find(file: BinaryIO, pattern: bytes, start: int, size: int) -> int | None:
    """Where some bytes come first, from a position on."""
    file.seek(start)
    rest, position = b"", start
    while position < size:
        data = rest + read_up_to(file, SCAN_BYTES)
        if len(data) == len(rest):
            return None
        place = data.find(pattern)
        if place >= 0:
            return position - len(rest) + place
        position += len(data) - len(rest)
        rest = data[-len(pattern) + 1 :]
    return None


# Ogg: pages, each with a checksum and a number


def _walk_ogg(file: BinaryIO, start: int, size: int) -> Layout:
    """Source: RFC 3533."""
    links: list[list] = []  # of chained streams: first byte, end, and of each stream the next page's number and its end
    position, problem, header_pages = start, None, False
    while position < size:
        head = _at(file, position, 27)
        segments = read_up_to(file, head[26]) if len(head) == 27 else b""
        length = 27 + len(segments) + sum(segments)
        if head[:4] != b"OggS"[: len(head)]:
            raise ValueError(f"it is damaged: there is no Ogg page at byte {position}")
        if len(head) < 27 or len(segments) < head[26] or position + length > size:
            problem = f"it is cut short inside a page, at byte {size}"
            break
        page = head + segments + read_up_to(file, length - 27 - len(segments))
        flags, (serial, number, checksum) = head[5], struct.unpack("<III", head[14:26])
        if _ogg_checksum(page[:22] + bytes(4) + page[26:]) != checksum:
            raise ValueError(f"it is damaged: the checksum of the page at byte {position} is another")
        if flags & 2:
            if not header_pages:
                links.append([position, position, {}, 0])
            links[-1][2][serial] = [number, False]
            links[-1][3] += _is_for_libsndfile(page)
        if not links or serial not in links[-1][2]:
            raise ValueError(f"it is damaged: the page at byte {position} is of no stream that has begun")
        stream = links[-1][2][serial]
        if number != stream[0]:
            raise ValueError(f"it is damaged: pages are missing before byte {position}")
        stream[:] = [number + 1, bool(flags & 4)]
        header_pages = bool(flags & 2)
        position += length
        links[-1][1] = position
    open_links = [link for link in links if not all(ended for _, ended in link[2].values())]
    if problem is None and open_links:
        problem = f"it is cut short: a stream has no end by byte {open_links[0][1]}"
    if all(link[3] == 0 for link in links) and len(links) == 1:
        return Layout("Ogg", (), problem)
    if any(link[3] != 1 for link in links):
        raise ValueError("it must hold one Vorbis or Opus stream at a time")
    return Layout("Ogg", tuple(PartLayout(((first, end),)) for first, end, _, _ in links), problem)


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _ogg_checksum(page: bytes) -> int:
    """CRC-32 of a page, most significant bit first, from 0, not inverted: zlib's of the bits in reverse."""
    value = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{value:032b}"[::-1], 2)


# MPEG audio: frames without a container


_MPEG_RATES = (44100, 48000, 32000)
_MPEG_KBPS = {  # by layer, of MPEG-1 and of MPEG-2 and 2.5
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class _MpegFrame:
    """Header of a frame: version (1, or 2 for 2 and 2.5), layer, rate (Hz), size (bytes), samples, side information."""

    layer: int
    rate: int
    size: int
    samples: int
    side: int

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of_word(cls, word: bytes) -> "_MpegFrame | None":
        version_code, layer_code = word[1] >> 3 & 3, word[1] >> 1 & 3
        rate_code, bitrate_code = word[2] >> 2 & 3, word[2] >> 4
        if word[0] != 0xFF or word[1] < 0xE0 or version_code == 1 or layer_code == 0:
            return None
        if rate_code == 3 or bitrate_code in (0, 15):  # a rate of its own (0) is not followed
            return None
        version, layer = 1 if version_code == 3 else 2, 4 - layer_code
        rate = _MPEG_RATES[rate_code] >> {3: 0, 2: 1, 0: 2}[version_code]
        kbps, padding = _MPEG_KBPS[version, layer][bitrate_code - 1], word[2] >> 1 & 1
        samples = 384 if layer == 1 else 1152 if layer == 2 or version == 1 else 576
        size = (12000 * kbps // rate + padding) * 4 if layer == 1 else samples * 125 * kbps // rate + padding
        mono = word[3] >> 6 == 3
        side = (17 if mono else 32) if version == 1 else (9 if mono else 17)
        return cls(layer, rate, size, samples, side)

    @classmethod
    def of(cls, data: bytes) -> "_MpegFrame | None":
        return cls.of_word(bytes(data[:4])) if len(data) >= 4 else None


class _Bytes:
    """Any few bytes of a file that is walked from front to back, read in large pieces."""

    def __init__(self, file: BinaryIO, size: int):
        self._file, self._data, self._start, self.size = file, b"", 0, size

    def get(self, position: int, length: int) -> bytes:
        if position < self._start or position + length > self._start + len(self._data):
            self._start, self._data = position, _at(self._file, position, max(length, SCAN_BYTES))
        return self._data[position - self._start :][:length]


def _walk_mpeg(file: BinaryIO, start: int, size: int) -> Layout:
    """Count frames; a Xing, Info or VBRI frame begins a recording and says how many there should be.

    libsndfile gets each recording with the number of frames that are there, as it would get from such a frame.
    """
    bytes_ = _Bytes(file, size)
    recordings: list[_Mpeg] = []
    position, problem = start, None
    while position < size:
        word = bytes_.get(position, 4)
        frame = _MpegFrame.of(word)
        if frame is None:
            after = _after_tags(file, bytes_, position, size)
            if after == position:
                problem = f"it is damaged or cut short: there is no frame at byte {position} of {size}"
                break
            position = after
            continue
        if position + frame.size > size:
            problem = f"it is cut short inside a frame, at byte {size}"
            break
        if recordings and (frame.rate, frame.layer) != (recordings[-1].frame.rate, recordings[-1].frame.layer):
            recordings.append(_Mpeg(frame, position))
        info = _info_of(bytes_.get(position, frame.size), frame)
        if info is not None or not recordings:
            recordings.append(_Mpeg(frame, position, info))
        if info is None:
            recordings[-1].count += 1
        recordings[-1].extend(position, position + frame.size)
        position += frame.size
    recordings = [each for each in recordings if each.count or each.declared]
    if not recordings:
        raise ValueError(problem or "it is empty: it holds no samples")
    missing = 0
    for each in recordings:
        if each.declared is not None and each.count < each.declared:
            missing += (each.declared - each.count) * each.frame.samples
            percent = 100 * (each.declared - each.count) / each.declared
            problem = (
                f"it is cut short: {each.declared - each.count} of {each.declared} frames ({percent:.1f} %) are missing"
            )
    parts = tuple(each.layout(bytes_) for each in recordings if each.count)
    if not parts:
        raise ValueError(problem or "it is empty: it holds no samples")
    return Layout("MPEG audio", parts, problem, missing or None)


def _after_tags(file: BinaryIO, bytes_: _Bytes, position: int, size: int) -> int:
    """The position after a tag or zeros that are there instead of a frame."""
    head = bytes_.get(position, 32)
    if head.startswith(b"ID3"):
        return min(size, _skip_id3(file, position))
    if head.startswith(b"TAG") and size - position >= 128:
        return position + 128
    if head.startswith(b"APETAGEX") and len(head) == 32:
        length, flags = struct.unpack("<I", head[12:16])[0], struct.unpack("<I", head[20:24])[0]
        return min(size, position + length + (32 if flags & 1 << 29 else 0))
    if head.startswith(b"LYRICSBEGIN"):
        end = bytes_.get(position, min(size - position, 2**16)).find(b"LYRICS200")
        return position + end + 9 if end >= 0 else position
    zeros = 0
    while zeros < SCAN_BYTES and (data := bytes_.get(position + zeros, 4096)):
        rest = data.lstrip(b"\0")
        zeros += len(data) - len(rest)
        if rest:
            break
    after = position + zeros
    return after if after == size or _MpegFrame.of(bytes_.get(after, 4)) is not None else position


def _info_of(data: bytes, frame: _MpegFrame) -> tuple[int | None, int, int] | None:
    """Of a frame that holds no sound but a count: frames, where the count stands, and where LAME's delay stands."""
    if frame.layer != 3:
        return None
    place = 4 + frame.side
    if data[36:40] == b"VBRI":
        return struct.unpack(">I", data[50:54])[0], 0, 0
    if data[place : place + 4] not in (b"Xing", b"Info"):
        return None
    flags = struct.unpack(">I", data[place + 4 : place + 8])[0]
    delay = place + 8 + 4 * (flags & 1) + 2 * (flags & 2) + 25 * (flags & 4) + (flags & 8) // 2 + 21
    return (struct.unpack(">I", data[place + 8 : place + 12])[0] if flags & 1 else None), place + 8, delay


class _Mpeg:
    """A recording in a file of MPEG frames, while its frames are counted."""

    def __init__(self, frame: _MpegFrame, start: int, info: tuple[int | None, int, int] | None = None):
        self.frame, self.start, self.info, self.count = frame, start, info, 0
        self.pieces: list[list[int]] = []

    @property
    def declared(self) -> int | None:
        return None if self.info is None else self.info[0]

    def extend(self, start: int, end: int) -> None:
        if self.pieces and self.pieces[-1][1] == start:
            self.pieces[-1][1] = end
        else:
            self.pieces.append([start, end])

    def layout(self, bytes_: _Bytes) -> PartLayout:
        """What libsndfile is given: the frames behind a Xing frame with their number."""
        pieces: list[bytes | tuple[int, int]] = [(start, end) for start, end in self.pieces]
        if self.frame.layer != 3:  # no such frame; libsndfile counts by the size of the first
            return PartLayout(tuple(pieces), self.count * self.frame.samples)
        if self.info is not None:
            pieces[0] = (self.pieces[0][0] + self.frame.size, self.pieces[0][1])
        if self.info is not None and self.info[0] is not None and self.info[1]:
            tag = bytearray(bytes_.get(self.start, self.frame.size))
            _, place, delay = self.info
            struct.pack_into(">I", tag, place, self.count)
            if tag[place - 1] & 2:
                num_bytes = len(tag) + sum(end - start for start, end in self.pieces) - self.frame.size
                struct.pack_into(">I", tag, place + 4, num_bytes)
            if self.count < self.info[0]:  # the end that LAME would have cut off is missing
                tag[delay + 1 : delay + 3] = bytes((tag[delay + 1] & 0xF0, 0)) if len(tag) >= delay + 3 else b""
        else:
            # A frame of the recording's version, rate and channels, without a checksum, of enough bytes.
            candidates = [(word, _MpegFrame.of(word)) for word in _without_checksum(bytes_.get(self.start, 4))]
            word, size = next((w, f.size) for w, f in candidates if f and f.size >= 4 + f.side + 12)
            tag = bytearray(word + bytes(self.frame.side) + b"Xing" + struct.pack(">II", 1, self.count))
            tag += bytes(size - len(tag))
        return PartLayout((bytes(tag), *(piece for piece in pieces if piece[1] > piece[0])))


def _without_checksum(word: bytes) -> Iterator[bytes]:
    """Headers as this one, of every bit rate."""
    for code in range(1, 15):
        yield bytes((word[0], word[1] | 1, code << 4 | word[2] & 0x0C, word[3]))
