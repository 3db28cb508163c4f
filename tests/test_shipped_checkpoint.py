"""What lies in the folder of the weights that ship."""

import hashlib
import json
import re

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.files import sha256_of
from training.model_card import render

from .conftest import ROOT, SPEECH

FOLDER = ROOT / "hub_configs" / "jepa-daam-24khz-small"
WEIGHTS = FOLDER / "model.safetensors"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason="issue 6: the weights are not in the repository yet")
needs_card = pytest.mark.skipif(not (FOLDER / "README.md").exists(), reason="issue 6: the card is not written yet")


def test_rates_are_the_papers():
    config = JepaDaamConfig.from_pretrained(FOLDER)
    assert (config.frame_rate, config.tokens_per_frame, config.vocab_size) == (2.5, 19, 16384)
    assert (config.token_rate, config.bitrate_bps, config.sampling_rate) == (47.5, 640.0, 24000)


@needs_weights
def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 40e6


@needs_weights
def test_the_configuration_names_these_weights_as_trained_ones():
    config = JepaDaamConfig.from_pretrained(FOLDER)
    assert config.weights_sha256 == sha256_of(WEIGHTS)
    assert config.untrained_seed is None


@needs_weights
def test_weights_are_float16_but_for_the_statistics_of_the_quantizer():
    with safe_open(WEIGHTS, "pt") as file:
        dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it is no dict)
    statistics = {name for name in dtypes if name.startswith("quantizer.")}
    assert statistics
    assert {dtypes[name] for name in statistics} == {"F32"}
    assert {dtypes[name] for name in dtypes.keys() - statistics} == {"F16"}


@needs_weights
def test_the_recorded_sentence_has_the_tokens_that_were_noted():
    ids = JepaAudioTokenizer.from_pretrained(FOLDER)(str(SPEECH))["input_ids"]
    noted = json.loads((FOLDER / "tokens.json").read_text())[SPEECH.name]
    assert hashlib.sha256(np.array(ids, dtype="<i8").tobytes()).hexdigest() == noted


@needs_weights
@needs_card
def test_the_card_is_what_its_files_say():
    assert render(FOLDER) == (FOLDER / "README.md").read_text()
    for path in [FOLDER / "README.md", *FOLDER.rglob("*.json")]:
        text = path.read_text()
        assert not [root for root in ("/tmp/", "/home/", "/root/") if root in text], path.name
        assert not re.search(r"(?<![\w.~/<-])/[A-Za-z]\w*/", text), path.name  # any other absolute path


@needs_card
def test_every_file_that_the_card_names_is_there():

    links = re.findall(r"\]\(([^)#]+)\)", (FOLDER / "README.md").read_text())
    for link in links:
        assert "://" in link or (FOLDER / link).is_file(), link


@needs_weights
@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.001), ("bfloat16", 0.01)])
def test_half_precision_changes_hardly_a_digit(dtype, share):
    """As on most accelerators. A waveform or a transform in bfloat16 would change a quarter of all digits."""
    tokenizer = JepaAudioTokenizer.from_pretrained(FOLDER)
    digits = tokenizer.unpack(tokenizer(str(SPEECH))["input_ids"])
    tokenizer.to(dtype=dtype)
    assert (tokenizer.unpack(tokenizer(str(SPEECH))["input_ids"]) != digits).mean() <= share


@needs_weights
@pytest.mark.xfail(reason="the shipped tokens come from a transform code: its network decides no token", strict=True)
@pytest.mark.parametrize("part", ["stft_front_end", "stages", "bottleneck", "conformer"])
def test_a_randomized_part_of_the_encoder_changes_half_of_the_tokens(part):
    model = JepaDaamModel.from_pretrained(FOLDER, dtype=torch.float32).eval()
    samples = torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0])[None, None]
    with torch.no_grad():
        before = model.encode(samples).audio_codes
        generator = torch.Generator().manual_seed(0)
        for parameter in getattr(model.encoder, part).parameters():
            scale = parameter.std() if parameter.numel() > 1 else parameter.abs()
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
        after = model.encode(samples).audio_codes
    assert (after != before).float().mean() >= 0.5
