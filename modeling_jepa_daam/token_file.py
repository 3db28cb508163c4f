"""`.jepa` token files: a safetensors container with one fixed-width integer a frame.

A frame's indices, first dimension most significant, make one mixed-radix integer, stored big-endian: 32 bytes for
the paper's 128 dimensions of 4 levels. The header always takes 512 bytes, so a file of `n` frames has
`512 + 32 n` bytes, and 640 bit/s is what it costs.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy
import torch
from safetensors import SafetensorError

from .audio import to_numpy
from .configuration_jepa_daam import JepaDaamConfig
from .files import replacing
from .framing import check_integer, num_frames
from .packing import check_tokens, group_vocabulary_sizes

FORMAT = "jepa-daam tokens"
FORMAT_VERSION = "1"
HEADER_BYTES = 512
MAX_HEADER_BYTES = 65_536  # that are read; another safetensors file may have more
COUNT = re.compile("[0-9]{1,18}")


class TokenFileError(ValueError):
    """A token file that is truncated, corrupted, foreign, or of another configuration."""


@dataclass(frozen=True)
class TokenFile:
    """What a token file holds.

    Args:
        input_ids: `(frames * tokens_per_frame,)`, int64, frame by frame.
        num_samples: True length of the recording, in samples at `sampling_rate`.
        sampling_rate: Rate (Hz) of the model.
        config_digest: `JepaDaamConfig.digest` of the model.
    """

    input_ids: np.ndarray
    num_samples: int
    sampling_rate: int
    config_digest: str


def bytes_per_frame(config: JepaDaamConfig) -> int:
    """Bytes that hold every value of a frame: 32 for the paper's levels."""
    return (math.prod(config.levels) - 1).bit_length() + 7 >> 3


def write_token_file(
    path: str | os.PathLike, input_ids: Sequence[int] | np.ndarray, num_samples: int, config: JepaDaamConfig
) -> None:
    """Write one recording's tokens; the file appears whole or not at all.

    Args:
        path: Where to.
        input_ids: `(frames * tokens_per_frame,)`, audio tokens without special tokens.
        num_samples: True length of the recording, in samples at the model's rate.
        config: Configuration of the model that made the tokens.

    Raises:
        ValueError: If the tokens are no whole number of frames or out of range, or `num_samples` does not fit.
    """
    num_samples = check_integer(num_samples, "num_samples")
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    ids = to_numpy(input_ids, "input_ids")
    if ids.ndim != 1 or ids.size == 0 or ids.size % len(sizes) or ids.dtype.kind not in "iu":
        raise ValueError(
            f"`input_ids` must be integers, a whole number of frames of {len(sizes)} tokens, "
            f"got shape {ids.shape} of {ids.dtype}"
        )
    frames = ids.reshape(-1, len(sizes))
    check_tokens(torch.from_numpy(frames.astype(np.int64)), config.levels, config.group_size, "input_ids")
    if num_frames(num_samples, config.hop_length) != len(frames):
        raise ValueError(f"`num_samples` must lie in the last of {len(frames)} frames, got {num_samples}")
    width = bytes_per_frame(config)
    payload = b"".join(_frame_integer(frame, sizes).to_bytes(width, "big") for frame in frames.tolist())
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config_digest": config.digest,
        "sampling_rate": str(config.sampling_rate),
        "num_samples": str(num_samples),
        "crc32": f"{zlib.crc32(payload):08x}",
    }
    metadata["metadata_crc32"] = _metadata_crc32(metadata)
    tensor = np.frombuffer(payload, np.uint8).reshape(len(frames), width)
    data = _with_header_size(safetensors.numpy.save({"frames": tensor}, metadata), HEADER_BYTES)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def read_token_file(path: str | os.PathLike, config: JepaDaamConfig) -> TokenFile:
    """Read a token file, refusing what is not whole.

    Args:
        path: Where from.
        config: Configuration of the model that is to decode the tokens.

    Raises:
        FileNotFoundError: If there is no such file.
        TokenFileError: If it is truncated, corrupted, no token file, of a later version, or of another configuration.
    """
    path = Path(path)
    with open(path, "rb") as file:
        metadata, num_samples = _checked_header(path, file, config)
        file.seek(0)
        data = file.read()
    try:
        tensors = safetensors.numpy.load(data)
    except SafetensorError as error:
        raise TokenFileError(f"{path}: truncated or corrupted: {error}") from error
    width, frames = bytes_per_frame(config), tensors.get("frames")
    if frames is None or len(tensors) != 1 or frames.dtype != np.uint8 or frames.ndim != 2 or frames.shape[1] != width:
        raise TokenFileError(f"{path}: corrupted: expected one tensor 'frames' of {width} bytes a frame")
    payload = frames.tobytes()
    if f"{zlib.crc32(payload):08x}" != metadata["crc32"]:
        raise TokenFileError(f"{path}: corrupted: CRC-32 is {zlib.crc32(payload):08x}, not {metadata['crc32']}")
    if num_frames(num_samples, config.hop_length) != len(frames):
        raise TokenFileError(f"{path}: corrupted: {num_samples} samples in {len(frames)} frames")
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    limit = math.prod(sizes)
    values = [int.from_bytes(frame.tobytes(), "big") for frame in frames]
    if any(value >= limit for value in values):
        raise TokenFileError(f"{path}: corrupted: a frame's value is out of range")
    ids = np.array([token for value in values for token in _frame_tokens(value, sizes)], dtype=np.int64)
    return TokenFile(ids, num_samples, config.sampling_rate, metadata["config_digest"])


def read_num_samples(path: str | os.PathLike, config: JepaDaamConfig) -> int:
    """The length of a token file's recording, in samples; reads nothing but the header.

    Args:
        path: Where from.
        config: Configuration of the model that is to decode the tokens.

    Raises:
        FileNotFoundError: If there is no such file.
        TokenFileError: If the header is not that of a token file of this configuration, or the file's size is not what
            the header says.
    """
    path = Path(path)
    with open(path, "rb") as file:
        return _checked_header(path, file, config)[1]


def _checked_header(path: Path, file: BinaryIO, config: JepaDaamConfig) -> tuple[dict[str, str], int]:
    """Metadata and number of samples, which fit the configuration and the file's size."""
    metadata, header_bytes = _metadata(path, file)
    if metadata["config_digest"] != config.digest:
        raise TokenFileError(
            f"{path}: made by a model of another configuration "
            f"({metadata['config_digest']}, this one is {config.digest})"
        )
    num_samples, size = int(metadata["num_samples"]), os.fstat(file.fileno()).st_size
    if metadata["sampling_rate"] != str(config.sampling_rate) or num_samples < 1:
        raise TokenFileError(f"{path}: corrupted: {num_samples} samples at {metadata['sampling_rate']} Hz")
    expected = header_bytes + num_frames(num_samples, config.hop_length) * bytes_per_frame(config)
    if size != expected:
        what = "truncated" if size < expected else "corrupted"
        raise TokenFileError(f"{path}: {what}: {num_samples} samples take {expected} bytes, the file has {size}")
    return metadata, num_samples


def _frame_integer(tokens: Sequence[int], sizes: Sequence[int]) -> int:
    value = 0
    for token, size in zip(tokens, sizes, strict=True):
        value = value * size + token
    return value


def _frame_tokens(value: int, sizes: Sequence[int]) -> list[int]:
    tokens = []
    for size in reversed(sizes):
        value, token = divmod(value, size)
        tokens.append(token)
    return tokens[::-1]


def _with_header_size(data: bytes, size: int) -> bytes:
    """Widen a safetensors header with spaces, as its format allows."""
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].ljust(size - 8, b" ")
    if len(header) != size - 8:
        raise AssertionError(f"token file header of {len(header)} bytes")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _metadata_crc32(metadata: dict[str, str]) -> str:
    values = {key: value for key, value in metadata.items() if key != "metadata_crc32"}
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _metadata(path: Path, file: BinaryIO) -> tuple[dict[str, str], int]:
    """The checked metadata of a token file, and the bytes of its header; reads no more than these."""
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 8 or start[8:] != b"{":
        raise TokenFileError(f"{path}: not a token file" if start else f"{path}: truncated: the file is empty")
    size = os.fstat(file.fileno()).st_size
    if size < 8 + length:
        raise TokenFileError(f"{path}: truncated: {size} bytes, the header alone takes {8 + length}")
    if length > MAX_HEADER_BYTES:
        raise TokenFileError(f"{path}: not a token file: its header takes {length} bytes")
    try:
        header = json.loads(start[8:] + file.read(length - 1))
        metadata = header.get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise TokenFileError(f"{path}: corrupted: the header is not JSON") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise TokenFileError(f"{path}: not a token file (no '{FORMAT}' in its header)")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise TokenFileError(f"{path}: corrupted: '{key}' must be a text in its header, got {str(value)[:40]}")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise TokenFileError(
            f"{path}: of format version {metadata.get('format_version')}, this package reads {FORMAT_VERSION}"
        )
    if metadata.get("metadata_crc32") != _metadata_crc32(metadata):
        raise TokenFileError(f"{path}: corrupted: the CRC-32 of its metadata does not fit")
    for key in ("config_digest", "sampling_rate", "num_samples", "crc32"):
        value = metadata.get(key, "")
        if not value or (key in ("sampling_rate", "num_samples") and not COUNT.fullmatch(value)):
            raise TokenFileError(f"{path}: corrupted: '{key}' is {value[:40]!r} in its header")
    return metadata, 8 + length
