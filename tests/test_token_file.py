import json
import os
import zlib

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam import JepaDaamConfig, TokenFileError, read_token_file, write_token_file
from modeling_jepa_daam.packing import group_vocabulary_sizes
from modeling_jepa_daam.token_file import HEADER_BYTES, _metadata_crc32, bytes_per_frame
from tests.conftest import TINY

CONFIG = JepaDaamConfig()


def _ids(config, frames, seed=0) -> np.ndarray:
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    return np.random.default_rng(seed).integers(0, sizes, (frames, len(sizes))).flatten()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.jepa"
    write_token_file(path, _ids(CONFIG, 13), 121_440, CONFIG)
    return path


@pytest.mark.parametrize("frames", [1, 13, 9000])
def test_a_file_is_a_fixed_header_and_32_bytes_a_frame(tmp_path, frames):
    write_token_file(tmp_path / "a.jepa", _ids(CONFIG, frames), frames * 9600, CONFIG)
    assert bytes_per_frame(CONFIG) == 32
    assert (tmp_path / "a.jepa").stat().st_size == HEADER_BYTES + 32 * frames
    assert 32 * 8 * CONFIG.frame_rate == CONFIG.bitrate_bps == 640


def test_what_was_written_is_read(path):
    tokens = read_token_file(path, CONFIG)
    np.testing.assert_array_equal(tokens.input_ids, _ids(CONFIG, 13))
    assert (tokens.num_samples, tokens.sampling_rate, tokens.config_digest) == (121_440, 24000, CONFIG.digest)
    assert os.listdir(path.parent) == ["a.jepa"]


def test_it_is_a_safetensors_file_with_the_indices_as_one_big_endian_integer(path):
    with safetensors.safe_open(path, "np") as file:
        frames, metadata = file.get_tensor("frames"), file.metadata()
    assert metadata["crc32"] == f"{zlib.crc32(frames.tobytes()):08x}"
    value = int.from_bytes(frames[0].tobytes(), "big")
    digits = []
    for _ in range(128):
        value, digit = divmod(value, 4)
        digits.append(digit)
    first = sum(digit * 4 ** (6 - place) for place, digit in enumerate(digits[::-1][:7]))
    assert value == 0
    assert first == _ids(CONFIG, 13)[0]


@given(st.lists(st.integers(2, 300), min_size=1, max_size=9), st.integers(1, 7), st.integers(1, 5), st.integers(0, 99))
def test_any_levels_and_groups_round_trip(tmp_path_factory, levels, group_size, frames, seed):
    config = JepaDaamConfig(**{**TINY, "fsq_levels": levels, "group_size": group_size})
    path = tmp_path_factory.mktemp("levels") / "a.jepa"
    ids = _ids(config, frames, seed)
    write_token_file(path, ids, frames * 60 - 59, config)
    np.testing.assert_array_equal(read_token_file(path, config).input_ids, ids)


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 100, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, len(data) - 32, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(TokenFileError, match=r"a.jepa: (truncated|not a token file)"):
            read_token_file(path, CONFIG)


def test_every_flipped_bit_is_refused_or_harmless(path):
    """Spaces that fill the header may change; nothing else may without being noticed."""
    data = path.read_bytes()
    original = read_token_file(path, CONFIG)
    end_of_json = len(data[8:HEADER_BYTES].rstrip()) + 8
    for position in [*range(end_of_json), *range(HEADER_BYTES, len(data), 5)]:
        for bit in (0, 3, 7):
            broken = bytearray(data)
            broken[position] ^= 1 << bit
            path.write_bytes(broken)
            try:
                tokens = read_token_file(path, CONFIG)
            except TokenFileError:
                pass
            else:
                assert tokens.num_samples == original.num_samples
                np.testing.assert_array_equal(tokens.input_ids, original.input_ids)


def test_appended_bytes_are_refused(path):
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(TokenFileError, match="corrupted: .* samples take .* bytes, the file has"):
        read_token_file(path, CONFIG)


def _with_metadata(path, **changes):
    data = path.read_bytes()
    header = json.loads(data[8:HEADER_BYTES])
    header["__metadata__"] = {k: v for k, v in {**header["__metadata__"], **changes}.items() if v is not None}
    if "metadata_crc32" not in changes:  # a forger's header, not a flipped bit
        header["__metadata__"]["metadata_crc32"] = _metadata_crc32(header["__metadata__"])
    packed = json.dumps(header).encode().ljust(HEADER_BYTES - 8)
    path.write_bytes(len(packed).to_bytes(8, "little") + packed + data[HEADER_BYTES:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "pt"}, "not a token file"),
        ({"format": None}, "not a token file"),
        ({"format_version": "2"}, "of format version 2, this package reads 1"),
        ({"config_digest": "0" * 16}, "made by a model of another configuration"),
        ({"crc32": "00000000"}, "corrupted: CRC-32"),
        ({"crc32": None}, "corrupted: 'crc32' is ''"),
        ({"num_samples": "115201", "metadata_crc32": None}, "corrupted: the CRC-32 of its metadata"),
        ({"num_samples": "many"}, "corrupted: 'num_samples'"),
        ({"num_samples": "5"}, "corrupted: 5 samples"),
        ({"sampling_rate": "8000"}, "corrupted: .* 8000 Hz"),
        ({"num_samples": 115200}, "corrupted: 'num_samples' must be a text in its header, got 115200"),
        ({"num_samples": [[[]]]}, "corrupted: 'num_samples' must be a text"),
        ({"num_samples": "9" * 5000}, "corrupted: 'num_samples' is '99999"),
        ({"num_samples": "٣"}, "corrupted: 'num_samples' is '٣'"),
        ({"num_samples": "0"}, "corrupted: 0 samples"),
        ({"num_samples": "9" * 18}, "truncated: 9{18} samples take"),
        ({"crc32": "0" * 70_000}, "not a token file: its header takes 70"),
    ],
)
def test_what_the_header_says_is_checked(path, changes, message):
    _with_metadata(path, **changes)
    with pytest.raises(TokenFileError, match=f"a.jepa: {message}"):
        read_token_file(path, CONFIG)


@pytest.mark.parametrize("data", [b"RIFF....WAVEfmt " * 40, b"{}", b"\x80\x04pickle" * 100, b"\0" * 600])
def test_foreign_files_are_refused(tmp_path, data):
    (tmp_path / "a.jepa").write_bytes(data)
    with pytest.raises(TokenFileError, match="a.jepa: (not a token file|truncated|corrupted)"):
        read_token_file(tmp_path / "a.jepa", CONFIG)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path, nano_folder):
    with pytest.raises(TokenFileError, match="not a token file"):
        read_token_file(nano_folder / "model.safetensors", CONFIG)


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_token_file(tmp_path / "a.jepa", CONFIG)


@pytest.mark.parametrize(
    ("ids", "num_samples", "message"),
    [
        ([], 1, "`input_ids` must be integers, a whole number of frames"),
        ([1] * 18, 5, "`input_ids` must be integers, a whole number of frames of 19"),
        ([0.5] * 19, 5, "`input_ids` must be integers"),
        ([16384] + [0] * 18, 5, "`input_ids` must lie in"),
        ([0] * 18 + [16], 5, "`input_ids` must lie in"),
        ([0] * 18 + [-1], 5, "`input_ids` must lie in"),
        ([0] * 19, 9601, "`num_samples` must lie in the last of 1 frames, got 9601"),
    ],
)
def test_nothing_wrong_is_written(tmp_path, ids, num_samples, message):
    with pytest.raises(ValueError, match=message):
        write_token_file(tmp_path / "a.jepa", ids, num_samples, CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_token_file(path, _ids(CONFIG, 2), 19200, CONFIG)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["a.jepa"]
