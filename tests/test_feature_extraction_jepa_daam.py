import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor

from modeling_jepa_daam import JepaDaamConfig, JepaDaamFeatureExtractor
from tests.conftest import SPEECH, noise


@pytest.fixture
def extractor():
    return JepaDaamFeatureExtractor()


def test_a_batch_is_padded_to_whole_frames(extractor):
    features = extractor([noise(9601), noise(5)], sampling_rate=24000, return_tensors="pt")
    assert features["input_values"].shape == (2, 1, 19200)
    assert features["input_values"].dtype == torch.float32
    assert features["padding_mask"].sum(dim=-1).tolist() == [9601, 5]
    assert torch.equal(features["input_values"][0, 0, :9601], torch.tensor(noise(9601)))
    assert not features["input_values"][1, 0, 5:].any()


def test_without_padding_recordings_keep_their_lengths(extractor):
    features = extractor([noise(9601), noise(5)], sampling_rate=24000, padding=False)
    assert [values.shape for values in features["input_values"]] == [(1, 9601), (1, 5)]


def test_truncation_and_padding_to_a_length(extractor):
    features = extractor(
        [noise(30000), noise(5)], 24000, padding="max_length", truncation=True, max_length=10000, return_tensors="np"
    )
    assert features["input_values"].shape == (2, 1, 19200)
    assert features["padding_mask"].sum(axis=-1).tolist() == [10000, 5]


def test_one_recording_or_many(extractor, speech):
    single = extractor(speech, 24000, return_tensors="np")
    example = {"array": speech, "sampling_rate": 24000}
    stereo = np.stack([speech, speech])
    for batch in ([speech], (speech,), [SPEECH], str(SPEECH), [example], speech.tolist(), [speech.tolist()], stereo):
        assert np.array_equal(extractor(batch, 24000, return_tensors="np")["input_values"], single["input_values"])


def test_any_rate_is_resampled(extractor):
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    values = extractor(tone, sampling_rate=16000, padding=False, return_tensors="np")["input_values"][0, 0]
    expected = np.sin(2 * np.pi * 440 * np.arange(24000) / 24000)
    assert values.shape == (24000,)
    assert np.abs(values - expected)[500:-500].max() < 1e-3


def test_saving_and_the_auto_class(tmp_path):
    JepaDaamFeatureExtractor.from_config(JepaDaamConfig(sampling_rate=16000, chunk_frames=20)).save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert isinstance(loaded, JepaDaamFeatureExtractor)
    assert (loaded.sampling_rate, loaded.hop_length) == (16000, 9600)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"raw_audio": noise(5)}, ValueError, "`sampling_rate` is missing"),
        ({"raw_audio": []}, ValueError, "`raw_audio` is empty"),
        ({"raw_audio": [np.zeros(0)]}, ValueError, "`raw_audio` is empty"),
        ({"raw_audio": np.zeros((1, 1, 5)), "sampling_rate": 24000}, ValueError, "`raw_audio` must have shape"),
        ({"raw_audio": [0.1, np.nan], "sampling_rate": 24000}, ValueError, "`raw_audio` must be finite"),
        ({"raw_audio": object(), "sampling_rate": 24000}, TypeError, "`raw_audio` must hold real numbers"),
        ({"raw_audio": noise(5), "sampling_rate": "fast"}, TypeError, "`sampling_rate` must be"),
        ({"raw_audio": noise(5), "sampling_rate": 24000, "truncation": True}, ValueError, "`max_length` must be given"),
        (
            {"raw_audio": noise(5), "sampling_rate": 24000, "max_length": 0},
            ValueError,
            "`max_length` must be at least 1",
        ),
        ({"raw_audio": "nowhere.wav"}, FileNotFoundError, "no such file: nowhere.wav"),
    ],
)
def test_bad_input_is_refused_by_name(extractor, arguments, error, message):
    with pytest.raises(error, match=message):
        extractor(**arguments)


def test_bad_settings_are_refused_by_name():
    with pytest.raises(ValueError, match="`feature_size` must be 1"):
        JepaDaamFeatureExtractor(feature_size=2)
    with pytest.raises(ValueError, match="`padding_side` must be 'right'"):
        JepaDaamFeatureExtractor(padding_side="left")
