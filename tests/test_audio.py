import io

import numpy as np
import pytest
import soundfile
import torch

from modeling_jepa_daam.audio import check_sampling_rate, load_audio, mix_down, read_blocks
from tests.conftest import SPEECH, noise


def _wav_bytes(samples, rate, **kwargs) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format="WAV", **kwargs)
    return buffer.getvalue()


def test_channels_are_averaged_whichever_axis_they_are_on():
    left, right = noise(100, 1), noise(100, 2)
    expected = ((left.astype(np.float64) + right) / 2).astype(np.float32)
    assert np.array_equal(mix_down(np.stack([left, right])), expected)
    assert np.array_equal(mix_down(np.stack([left, right], axis=1)), expected)
    assert np.array_equal(mix_down(left[None]), left)
    assert np.array_equal(mix_down(left[:, None]), left)


@pytest.mark.parametrize(
    ("pcm", "expected"),
    [
        (np.array([-32768, 0, 16384], np.int16), [-1.0, 0.0, 0.5]),
        (np.array([-(2**31), 2**30], np.int32), [-1.0, 0.5]),
        (np.array([0, 128, 192], np.uint8), [-1.0, 0.0, 0.5]),
        (torch.tensor([16384], dtype=torch.int16), [0.5]),
    ],
)
def test_integers_are_pcm(pcm, expected):
    assert mix_down(pcm).tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_tensors_of_any_float_dtype(dtype):
    assert mix_down(torch.tensor([0.5, -0.25], dtype=dtype, requires_grad=True)).tolist() == [0.5, -0.25]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_blocks_of_a_file_are_the_samples_of_the_array(rate, tmp_path):
    samples = noise(rate * 2 + 17)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    whole = load_audio(samples, rate, 24000)
    for block_s in (0.013, 0.5, 60):
        assert np.array_equal(np.concatenate(list(read_blocks(tmp_path / "a.wav", 24000, block_s))), whole)


def test_every_way_to_give_the_same_recording(speech):
    data = SPEECH.read_bytes()

    class Decoder:  # what torchcodec and `datasets` with it give
        def get_all_samples(self):
            return type("AudioSamples", (), {"data": torch.tensor(speech)[None], "sample_rate": 24000})

    for audio, rate in (
        (speech, 24000),
        (speech.tolist(), 24000),
        (torch.tensor(speech), 24000),
        (SPEECH, None),
        (str(SPEECH), None),
        (data, None),
        ({"array": speech, "sampling_rate": 24000}, None),
        ({"array": speech, "sampling_rate": 24000, "path": None}, 24000),
        ({"path": str(SPEECH), "bytes": None}, None),
        ({"path": "elsewhere.flac", "bytes": data}, None),
        (Decoder(), None),
    ):
        assert np.array_equal(load_audio(audio, rate, 24000), speech)


def test_five_channels_of_a_file_are_averaged():
    channels = np.stack([noise(50, seed) for seed in range(5)], axis=1)
    samples = load_audio(_wav_bytes(channels, 24000, subtype="FLOAT"), None, 24000)
    np.testing.assert_allclose(samples, channels.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize(
    ("audio", "error", "message"),
    [
        ([], ValueError, "`audio` is empty"),
        (np.zeros((2, 0)), ValueError, "`audio` is empty"),
        (np.zeros((2, 3, 4)), ValueError, r"`audio` must have shape .* got \(2, 3, 4\)"),
        (np.zeros((40, 50)), ValueError, "`audio` must have at most 2 channels"),
        (np.float32(1), ValueError, "`audio` must have shape"),
        ([0.0, float("nan")], ValueError, "`audio` must be finite .* got nan at sample 1"),
        ([float("-inf")], ValueError, "`audio` must be finite"),
        ([1e300], ValueError, "`audio` must be finite"),
        ([0.1, 20000.0], ValueError, r"within full scale \[-1, 1\] .* got 20000.0 at sample 1"),
        ([[1.0], [2.0, 3.0]], ValueError, "`audio` must be an array"),
        ([1j], TypeError, "`audio` must hold real numbers"),
        ([True], TypeError, "`audio` must hold real numbers"),
        ([None], TypeError, "`audio` must hold real numbers"),
        (None, TypeError, "`audio` must hold real numbers"),
        (np.array([0, 30000]), ValueError, "`audio` must be floating point or 8-, 16- or 32-bit PCM, got int64"),
        ({"a": 1}, ValueError, "`audio` must hold 'array' and 'sampling_rate', or 'bytes' or 'path'"),
        ({"array": [0.1]}, ValueError, r"`audio\['sampling_rate'\]` is missing"),
        ({"array": [0.1], "sampling_rate": 8000}, ValueError, "`sampling_rate` is 24000 Hz, but `audio` says 8000 Hz"),
        ("/no/such/file.wav", FileNotFoundError, "`audio`: no such file: /no/such/file.wav"),
        (b"this is no audio", ValueError, "`audio`: cannot read audio bytes"),
        (b"", ValueError, "`audio`: audio bytes is empty: it holds no bytes"),
        (__file__, ValueError, "`audio`: cannot read .*test_audio.py"),
        (_wav_bytes(np.zeros(0), 24000), ValueError, "cannot read audio bytes: it is empty: it holds no samples"),
        (_wav_bytes(np.array([0.0, np.nan]), 8000, subtype="FLOAT"), ValueError, "must be finite"),
    ],
    ids=lambda value: "bytes" if isinstance(value, bytes) else None,  # not the time in them
)
def test_bad_audio_is_refused_by_name(audio, error, message):
    with pytest.raises(error, match=message):
        load_audio(audio, 24000, 24000)


def test_too_little_to_fill_a_sample_is_empty():
    with pytest.raises(ValueError, match="`audio` is empty: 1 samples at 96000 Hz fill none at 24000 Hz"):
        load_audio([0.5], 96000, 24000)


@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (None, ValueError, "`sampling_rate` is missing"),
        (0, ValueError, "`sampling_rate` must be a whole number of Hz from 1000 to 1000000"),
        (-8000, ValueError, "`sampling_rate` must be a whole number of Hz from 1000 to 1000000"),
        (8000.5, ValueError, "`sampling_rate` must be a whole number of Hz from 1000 to 1000000"),
        (float("nan"), ValueError, "`sampling_rate` must be a whole number of Hz from 1000 to 1000000"),
        (10**12, ValueError, "`sampling_rate` must be a whole number of Hz from 1000 to 1000000"),
        ("8000", TypeError, "`sampling_rate` must be a whole number of Hz"),
        (True, TypeError, "`sampling_rate` must be a whole number of Hz"),
        ([8000], TypeError, "`sampling_rate` must be a whole number of Hz"),
    ],
)
def test_bad_rates_are_refused_by_name(rate, error, message):
    with pytest.raises(error, match=message):
        check_sampling_rate(rate)


def test_whole_rates_of_any_number_type():
    for rate in (16000, 16000.0, np.int64(16000), np.float32(16000), np.array(16000), torch.tensor(16000)):
        assert check_sampling_rate(rate) == 16000
