"""Damaged and hostile checkpoints: one clear error each, whatever reads them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.cli import app

from .conftest import SPEECH, TINY

NESTED = b"[" * 100_000


def header(content: bytes) -> bytes:
    return len(content).to_bytes(8, "little") + content


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "damaged")


HUGE = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
WEIGHTS = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:500],
    "cut in half": lambda data: data[: len(data) // 2],
    "more behind": lambda data: data + b"\0" * 8,
    "a header of 1e18 bytes": lambda data: (10**18).to_bytes(8, "little") + data[8:],
    "nested": lambda data: header(b'{"a":' + NESTED),
    "a tensor of 1e12 values": lambda data: header(HUGE),
    "a size beyond 64 bits": lambda data: header(HUGE.replace(b"[1000000000000]", b"[" + b"9" * 30 + b"]")),
    "an LFS pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
}


@pytest.mark.parametrize("damage", WEIGHTS.values(), ids=WEIGHTS)
def test_damaged_weights_are_refused_by_name(folder, damage):
    weights = folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    for load in (JepaDaamModel.from_pretrained, AutoModel.from_pretrained, JepaAudioTokenizer.from_pretrained):
        with pytest.raises(
            ValueError, match=r"model.safetensors is (damaged or not a safetensors file: |a pointer of Git LFS)"
        ):
            load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("content", [NESTED, b"[]", b"3", b"{", b"\xff\xfe{}"])
def test_damaged_json_is_refused_by_name(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged: "):
        JepaAudioTokenizer.from_pretrained(folder)
    if name == "config.json":
        for load in (JepaDaamConfig.from_pretrained, JepaDaamModel.from_pretrained):
            with pytest.raises(ValueError, match=r"config.json is damaged: "):
                load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fsq_levels": 5}, "`fsq_levels` must be a list of integers, got 5"),
        ({"fsq_levels": "4444"}, "`fsq_levels` must be a list of integers, got '4444'"),
        ({"hop_length": "9600"}, "`hop_length` must be an integer"),
        ({"added_tokens_decoder": [1]}, r"`added_tokens_decoder` must map ids to tokens, got \[1\]"),
        ({"added_tokens_decoder": {"x": {}}}, "`added_tokens_decoder` must map ids to tokens"),
        ({"added_tokens_decoder": {"1": 5}}, "`added_tokens_decoder` must map ids to tokens"),
        ({"pad_token": 5}, "`pad_token` must be a text, got 5"),
        ({"extra_special_tokens": 5}, "`extra_special_tokens` must be a list"),
    ],
)
def test_a_tokenizer_edited_by_hand_is_refused_with_the_key(folder, changes, message):
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    for load in (JepaAudioTokenizer.from_pretrained, AutoTokenizer.from_pretrained):
        with pytest.raises((ValueError, TypeError), match=message):
            load(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"hidden_size": 10**12},
        {"encoder_residual_blocks": [10**6, 1, 1]},
        {"residual_dilations": [1] * 1001},
        {"decoder_kernel_sizes": [[10**12 + 1], [3], [3]]},
        {"hidden_size": 10**6, "group_size": 10**6, "fsq_levels": [1000]},
        {"group_size": 10**12},
    ],
)
def test_sizes_that_would_fill_the_memory_are_refused(changes):
    with pytest.raises(
        ValueError, match=rf"`{next(reversed(changes)) if len(changes) == 1 else 'group_size'}` must be"
    ):
        JepaDaamConfig(**{**TINY, **changes})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:5000])),
        ("config.json", lambda file: file.write_bytes(NESTED)),
        ("config.json", lambda file: edit(file, attn_implementation="evil/kernel")),
        ("tokenizer_config.json", lambda file: file.write_text("[]")),
        ("tokenizer_config.json", lambda file: edit(file, added_tokens_decoder=[1])),
    ],
)
@pytest.mark.parametrize("command", ["encode", "tokenize-corpus"])
def test_commands_end_with_one_message(folder, tmp_path, command, name, change):
    change(folder / name)
    output = ["--output"] if command == "encode" else []
    arguments = [command, str(SPEECH.parent), *output, str(tmp_path / "out"), "--model", str(folder)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit)
    assert "error: " in done.output
    assert not (tmp_path / "out").exists()


def test_what_transformers_lacks_for_a_checkpoint_is_a_message(folder, tmp_path):
    edit(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    arguments = ["encode", str(SPEECH), "--output", str(tmp_path / "out"), "--model", str(folder)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert "ImportError: Using `bitsandbytes`" in done.output


@pytest.mark.parametrize("index", [NESTED, b"{}", b'{"weight_map": 5}', b'{"weight_map": {"a": 5}}'])
def test_a_damaged_index_of_shards_is_refused_by_name(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(index)
    for load in (JepaDaamModel.from_pretrained, JepaAudioTokenizer.from_pretrained):
        with pytest.raises(ValueError, match="model.safetensors.index.json is damaged: "):
            load(folder)


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_what_is_whole_still_loads(folder):
    assert len(load_file(folder / "model.safetensors")) > 10
    assert JepaAudioTokenizer.from_pretrained(folder).model.config.digest == JepaDaamConfig(**TINY).digest
