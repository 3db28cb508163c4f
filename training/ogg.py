"""The number of an Ogg stream: encoders draw it at random, and files that are committed shall not change by it."""

import struct
from collections.abc import Iterator

HEADER_BYTES = 27  # of a page, without its table of segments
SERIAL, CHECKSUM = slice(14, 18), slice(22, 26)
POLYNOMIAL = 0x04C11DB7


def _checksum_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte << 24
        for _ in range(8):
            value = (value << 1) ^ (POLYNOMIAL if value & 0x80000000 else 0)
        table.append(value & 0xFFFFFFFF)
    return table


_TABLE = _checksum_table()


def checksum(page: bytes | bytearray) -> int:
    """CRC-32 of a page whose own checksum is zero: most significant bit first, from 0, not inverted."""
    value = 0
    for byte in page:
        value = ((value << 8) & 0xFFFFFFFF) ^ _TABLE[(value >> 24) ^ byte]
    return value


def pages(data: bytes) -> Iterator[bytes]:
    """The pages of an Ogg file, whole.

    Raises:
        ValueError: If it is no Ogg file, or is cut short.
    """
    position = 0
    while position < len(data):
        if data[position : position + 4] != b"OggS" or len(data) < position + HEADER_BYTES:
            raise ValueError(f"`data`: no Ogg page at byte {position}")
        segments = data[position + HEADER_BYTES : position + HEADER_BYTES + data[position + 26]]
        end = position + HEADER_BYTES + len(segments) + sum(segments)
        if end > len(data):
            raise ValueError(f"`data`: the Ogg stream ends inside a page, at byte {len(data)}")
        yield data[position:end]
        position = end


def with_serial_number(data: bytes, number: int) -> bytes:
    """An Ogg file of one stream, numbered anew.

    Raises:
        ValueError: If it is no Ogg file, is cut short, or has more than one stream.

    Source: RFC 3533, section 6.
    """
    written, streams = [], set()
    for page in map(bytearray, pages(data)):
        streams.add(bytes(page[SERIAL]))
        page[SERIAL] = struct.pack("<I", number)
        page[CHECKSUM] = bytes(4)
        page[CHECKSUM] = struct.pack("<I", checksum(page))
        written.append(bytes(page))
    if len(streams) > 1:
        raise ValueError(f"`data` must hold one stream, got {len(streams)}")
    return b"".join(written)
