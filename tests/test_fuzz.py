"""Thousands of random inputs at the public surface: a valid answer or a documented error, nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamFeatureExtractor
from modeling_jepa_daam.framing import num_frames
from tests.conftest import TINY

HOP = 60
DOCUMENTED = (ValueError, TypeError)

DTYPES = st.one_of(
    npst.floating_dtypes(), npst.integer_dtypes(), npst.unsigned_integer_dtypes(), npst.boolean_dtypes(),
    npst.complex_number_dtypes(), npst.unicode_string_dtypes(max_len=3), st.just(np.dtype(object)),
)  # fmt: skip
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=400).filter(lambda s: np.prod(s) <= 900)


@st.composite
def any_array(draw):
    """Small arrays of anything, large ones of zeros."""
    dtype, shape = draw(DTYPES), draw(SHAPES)
    if np.prod(shape) < 30 and dtype.kind != "O":
        return draw(npst.arrays(dtype, shape))
    return np.zeros(shape, dtype)


ANY_ARRAY = any_array()
SOUND = npst.arrays(np.float32, st.integers(1, 900), elements=st.floats(-1, 1, width=32), fill=st.just(0.25))
JUNK = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=9),
                 st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.lists(st.floats(), max_size=4),
                 st.lists(st.text(max_size=3), max_size=2))  # fmt: skip
RATES = st.one_of(st.sampled_from([24000, 16000, 8000, 44100, 10**7]), st.integers(-10, 0), JUNK).filter(
    lambda rate: not isinstance(rate, (int, float)) or not 0 < rate < 8000  # legal, and hours of audio
)


def _try(function, *arguments, **keywords):
    """The answer, or `None` after a documented error that names an argument or says what is wrong."""
    try:
        return function(*arguments, **keywords)
    except FileNotFoundError:
        return None
    except DOCUMENTED as error:
        message = str(error)
    assert "`" in message, f"names no argument: {message}"
    return None


@settings(max_examples=800)
@given(st.one_of(ANY_ARRAY, SOUND, JUNK, st.lists(SOUND, max_size=3), st.lists(JUNK, max_size=3)), RATES)
def test_feature_extractor(audio, rate):
    features = _try(JepaDaamFeatureExtractor(hop_length=HOP), audio, rate, return_tensors="np")
    if features is not None:
        values, mask = features["input_values"], features["padding_mask"]
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.shape[0] == mask.shape[0]
        assert values.shape[1:] == (1, mask.shape[1])
        assert mask.shape[1] % HOP == 0
        assert (mask.sum(axis=1) > 0).all()


@settings(max_examples=800)
@given(st.one_of(ANY_ARRAY, SOUND, JUNK, st.lists(SOUND, min_size=1, max_size=3)), RATES)
def test_tokenizer(tiny_folder, audio, rate):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
    encoding = _try(tokenizer, audio, rate)
    if encoding is not None:
        ids = encoding["input_ids"]
        waveforms = tokenizer.decode_audio(ids)
        for row, waveform in zip(ids, waveforms, strict=True) if isinstance(ids[0], list) else [(ids, waveforms)]:
            assert len(waveform) == len(row) // 3 * HOP
            assert np.abs(waveform).max() <= 1


TOKENS = st.one_of(
    st.lists(st.integers(-2, 16400), max_size=12),
    st.lists(st.lists(st.integers(0, 16), max_size=6), max_size=3),
    st.integers(1, 5).flatmap(lambda n: st.tuples(st.integers(0, 16383), st.integers(0, 16383), st.integers(0, 15)).map(
        lambda frame: list(frame) * n)),
    ANY_ARRAY, JUNK,
)  # fmt: skip


@settings(max_examples=800)
@given(TOKENS, st.one_of(st.none(), st.integers(-5, 400), st.lists(st.integers(0, 400), max_size=3)))
def test_decoding(tiny_folder, ids, num_samples):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
    waveforms = _try(tokenizer.decode_audio, ids, num_samples=num_samples)
    if waveforms is not None:
        for waveform in waveforms if isinstance(waveforms, list) else [waveforms]:
            assert waveform.dtype == np.float32
            assert np.isfinite(waveform).all()
    digits = _try(tokenizer.unpack, ids)
    if digits is not None:
        assert tokenizer.pack(digits) == [i for i in np.asarray(ids).tolist() if i < tokenizer.vocab_size]


@settings(max_examples=600)
@given(ANY_ARRAY)
def test_packing(tiny_folder, digits):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
    ids = _try(tokenizer.pack, digits)
    if ids is not None:
        np.testing.assert_array_equal(tokenizer.unpack(ids), digits)


TENSORS = st.tuples(
    st.sampled_from(
        [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8]
    ),
    npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=300).filter(lambda s: np.prod(s) <= 900),
    st.sampled_from([0.0, 0.5, -1.0, 20.0, float("nan"), float("inf")]),
)


def _tensor(case) -> torch.Tensor:
    dtype, shape, value = case
    value = value if dtype.is_floating_point else 1
    return torch.full(shape, value, dtype=dtype)


@settings(max_examples=800)
@given(TENSORS, st.one_of(st.none(), TENSORS), st.booleans())
def test_model(tiny_model, values, mask, match):
    values = _tensor(values)
    if mask is not None:
        mask = torch.ones(values.shape[0], values.shape[-1]) if match and values.ndim == 3 else _tensor(mask)
    with torch.inference_mode():
        output = _try(tiny_model.encode, values, mask)
        if output is not None:
            assert output.audio_codes.shape[-1] == num_frames(values.shape[-1], HOP)
            whole = _try(tiny_model, values, mask)
            assert whole.audio_values.shape == values.shape
            assert whole.audio_values.isfinite().all()
        _try(tiny_model.decode, values, mask)


@settings(max_examples=500)
@given(st.integers(1, 3), st.integers(0, 9), st.lists(st.integers(-1, 16384), min_size=3, max_size=3))
def test_codes(tiny_model, batch, frames, column):
    codes = torch.tensor(column)[None, :, None].expand(batch, 3, frames)
    with torch.inference_mode():
        output = _try(tiny_model.decode, codes)
    legal = frames > 0 and all(0 <= t < s for t, s in zip(column, (16384, 16384, 16), strict=True))
    assert (output is not None) == legal


FIELDS = sorted(TINY)


@settings(max_examples=600)
@example({"downsampling_ratios": [8, 9, 9, 9, 9], "encoder_channels": [1]})  # a chunk of too many seconds
@given(st.dictionaries(st.sampled_from(FIELDS), st.one_of(JUNK, st.lists(st.integers(-1, 9), max_size=6)), max_size=2))
def test_configuration(changes):
    try:
        config = JepaDaamConfig(**{**TINY, **changes})
    except ValueError as error:
        message = str(error)
        assert any(name in message for name in [*changes, "downsampling_ratios"])
    else:
        assert config.vocab_size >= 2
        assert config.tokens_per_frame >= 1


@pytest.mark.parametrize("samples", [1, 24000])
@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 16.0, 1e-30])
def test_extreme_but_legal_sound(tiny_folder, samples, level):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
    ids = tokenizer(np.full(samples, level, np.float32), 24000)["input_ids"]
    assert np.isfinite(tokenizer.decode_audio(ids)).all()
