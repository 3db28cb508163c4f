"""Floating point types below and above float32: tokens stay in range, and what they change is known."""

import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamEncoderModel, JepaDaamModel, save_checkpoint
from tests.conftest import STFT, TINY, noise

SIGNALS = {
    "noise": np.random.default_rng(0).normal(0.0, 0.3, 2400).astype(np.float32),
    "silence": np.zeros(2400, np.float32),
    "full-scale square": np.sign(np.sin(np.arange(2400) * 0.05)).astype(np.float32),
    "click": np.eye(1, 2400, 100, dtype=np.float32)[0],
    "speech beyond full scale": 4 * noise(2400),
}


@pytest.fixture(scope="module", params=[TINY, STFT], ids=["waveform", "STFT"])
def loud_folder(request, tmp_path_factory):
    """A model whose first stages reach values of 10^8, as those of a trained one reach 10^5."""
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**request.param))
    with torch.no_grad():
        first = model.encoder.stft_front_end.project if request.param is STFT else model.encoder.input_conv
        first.weight.mul_(1e8)
    return save_checkpoint(model, tmp_path_factory.mktemp("loud") / "model")


def test_no_token_changes_in_float16(loud_folder):
    full = JepaAudioTokenizer.from_pretrained(loud_folder)
    half = JepaAudioTokenizer.from_pretrained(loud_folder).to(dtype="float16")
    for name, samples in SIGNALS.items():
        ids = half(samples, 24000)["input_ids"]
        assert ids == full(samples, 24000)["input_ids"], name
        assert np.isfinite(half.decode_audio(ids)).all(), name


@pytest.mark.parametrize("narrow", [lambda m: m.half(), lambda m: m.to(torch.float16),
                                    lambda m: torch.nn.Sequential(m).half()[0]])  # fmt: skip
def test_a_model_that_is_made_float16_keeps_what_leads_to_its_tokens(loud_folder, narrow):
    model = JepaDaamModel.from_pretrained(loud_folder)
    values = torch.from_numpy(SIGNALS["noise"])[None, None]
    codes = model.encode(values).audio_codes
    model = narrow(model)
    assert model.dtype == torch.float16
    assert torch.equal(model.encode(values).audio_codes, codes)
    assert model.decode(codes).audio_values.dtype == torch.float16


@torch.no_grad()
def test_autocast_to_float16_changes_no_token(loud_folder):
    model = JepaDaamModel.from_pretrained(loud_folder)
    encoder = JepaDaamEncoderModel.from_pretrained(loud_folder)
    values = torch.from_numpy(SIGNALS["noise"])[None, None]
    codes, features = model.encode(values).audio_codes, encoder(values).last_hidden_state
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(model.encode(values).audio_codes, codes)
        assert torch.equal(encoder(values).last_hidden_state, features)


def test_bfloat16_has_the_range(loud_folder):
    tokenizer = JepaAudioTokenizer.from_pretrained(loud_folder).to(dtype="bfloat16")
    for samples in SIGNALS.values():
        assert len(tokenizer(samples, 24000)["input_ids"]) == 40 * tokenizer.tokens_per_frame


def test_weights_that_are_not_finite_are_named(tiny_folder):
    model = JepaDaamModel.from_pretrained(tiny_folder)
    with torch.no_grad():
        model.encoder.bottleneck.bias[0] = torch.nan
    with pytest.raises(ValueError, match="latents that are not finite, in torch.float32: its weights are damaged"):
        model.encode(torch.zeros(1, 1, 600))
    with pytest.raises(ValueError, match="latents that are not finite"):
        model(torch.zeros(1, 1, 600))
