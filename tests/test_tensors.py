"""Tensors of uncommon types, layouts and devices work, or are refused by a sentence that says what to pass."""

import numpy as np
import pytest
import torch

from modeling_jepa_daam import (
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamFeatureExtractor,
    JepaDaamForPreTraining,
    JepaDaamModel,
    model_cache,
)
from tests.conftest import STFT, TINY, noise

VALUES = torch.tensor(noise(600))[None, None]
NEGATED = torch.complex(torch.zeros(1, 1, 600), VALUES).conj().imag  # a view: minus the values, not yet computed


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.uint64])
def test_codes_of_any_integer_type_decode(tiny_model, dtype):
    codes = torch.randint(0, 16, (1, 3, 5))
    expected = tiny_model.decode(codes).audio_values
    assert torch.equal(tiny_model.decode(codes.to(dtype), torch.ones(1, 5, dtype=dtype)).audio_values, expected)
    wrong = torch.full((1, 3, 5), 255).to(dtype)
    with pytest.raises(ValueError, match=r"`audio_codes` must lie in \[0, 16\) at place 2"):
        tiny_model.decode(wrong)


def test_a_pending_negation_is_carried_out(tiny_model, tiny_tokenizer):
    assert NEGATED.is_neg()
    expected = tiny_model.encode(-VALUES).audio_codes
    assert torch.equal(tiny_model.encode(NEGATED).audio_codes, expected)
    assert tiny_tokenizer(NEGATED[0, 0], 24000) == tiny_tokenizer(-VALUES[0, 0], 24000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.to("meta"), ValueError, "is on the meta device and has no values"),
        (lambda t: t.to_sparse(), TypeError, r"must be a dense tensor, got layout torch.sparse_coo: pass `.*to_dense"),
        (lambda t: torch.complex(t, t).conj(), TypeError, "must (be floating point|hold real numbers)"),
    ],
    ids=["meta", "sparse", "conj"],
)
def test_tensors_without_plain_values_are_refused_by_name(tiny_model, tiny_tokenizer, change, error, message):
    with pytest.raises(error, match=f"`input_values` {message}"):
        tiny_model.encode(change(VALUES))
    with pytest.raises(error, match=f"`audio` {message}"):
        tiny_tokenizer(change(VALUES[0, 0]), 24000)
    with pytest.raises(error, match=f"`raw_audio` {message}"):
        JepaDaamFeatureExtractor()(change(VALUES[0, 0]), 24000)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.to("meta"), ValueError, "is on the meta device and has no values"),
        (lambda t: t.to_sparse(), TypeError, "must be a dense tensor"),
    ],
    ids=["meta", "sparse"],
)
def test_codes_and_masks_without_plain_values_are_refused_by_name(tiny_model, tiny_tokenizer, change, error, message):
    codes = torch.ones(1, 3, 5, dtype=torch.int64)
    with pytest.raises(error, match=f"`audio_codes` {message}"):
        tiny_model.decode(change(codes))
    with pytest.raises(error, match=f"`audio_codes_mask` {message}"):
        tiny_model.decode(codes, change(torch.ones(1, 5)))
    with pytest.raises(error, match=f"`padding_mask` {message}"):
        tiny_model.encode(VALUES, change(torch.ones(1, 600)))
    with pytest.raises(error, match=f"`input_ids` {message}"):
        tiny_tokenizer.decode_audio(change(codes.flatten()))


def test_the_default_device_is_not_the_models(tiny_tokenizer, monkeypatch):
    ids = tiny_tokenizer(noise(600), 24000)["input_ids"]
    audio = tiny_tokenizer.decode_audio(ids)
    salience = tiny_tokenizer.salience(noise(600), 24000)
    monkeypatch.setattr(model_cache, "_models", {})  # loaded again, under another default
    torch.set_default_device("meta")
    try:
        assert tiny_tokenizer(noise(600), 24000)["input_ids"] == ids
        np.testing.assert_array_equal(tiny_tokenizer.decode_audio(ids), audio)
        np.testing.assert_array_equal(tiny_tokenizer.salience(noise(600), 24000), salience)
        stream = tiny_tokenizer.decode_stream()
        assert len(np.concatenate([stream.push(ids), stream.close()])) == len(audio)
        assert tiny_tokenizer.pack(tiny_tokenizer.unpack(ids)) == ids
    finally:
        torch.set_default_device(None)


@torch.no_grad()
@pytest.mark.parametrize("settings", [TINY, STFT], ids=["waveform", "STFT"])
def test_float64(settings, tmp_path):
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**settings)).eval()
    model.save_pretrained(tmp_path)
    single = model.encode(VALUES)
    audio = model.decode(single.audio_codes).audio_values
    for double in (JepaDaamModel.from_pretrained(tmp_path, dtype=torch.float64), model.double()):
        assert {parameter.dtype for parameter in double.parameters()} == {torch.float64}
        for values in (VALUES, VALUES.double()):
            encoded = double.encode(values)
            torch.testing.assert_close(encoded.latents.float(), single.latents, rtol=1e-3, atol=1e-4)
            assert (encoded.audio_codes == single.audio_codes).float().mean() > 0.95
        decoded = double.decode(single.audio_codes).audio_values
        assert decoded.dtype == torch.float64
        torch.testing.assert_close(decoded.float(), audio, rtol=1e-3, atol=1e-4)
    for other in (JepaDaamEncoderModel, JepaDaamForPreTraining):
        other.from_pretrained(tmp_path, dtype=torch.float64)(VALUES)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_moving_average_moves_in_every_type(dtype, tmp_path):
    torch.manual_seed(0)
    JepaDaamForPreTraining(JepaDaamConfig(**TINY)).save_pretrained(tmp_path)
    models = [JepaDaamForPreTraining.from_pretrained(tmp_path, dtype=dtype)]
    models.append(JepaDaamForPreTraining.from_pretrained(tmp_path).to(dtype))
    for model in models:
        assert model(VALUES).loss.isfinite()
        before = [parameter.clone() for parameter in model.target_encoder.parameters()]
        assert {parameter.dtype for parameter in before} == {torch.float32}
        for parameter in model.encoder.parameters():
            parameter.mul_(1.02)
        for _ in range(100):
            model.update_target()
        kept = 0.996**100
        for old, new, online in zip(before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
            torch.testing.assert_close(new, kept * old + (1 - kept) * online.float(), rtol=1e-3, atol=1e-6)
        model.target_encoder.to(torch.bfloat16)
        with pytest.raises(ValueError, match="`target_encoder` must be float32 .*, got torch.bfloat16"):
            model.update_target()
