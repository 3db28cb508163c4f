import importlib.util

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import ROOT, noise
from training.evaluation.ge2e import (
    VoiceEncoder,
    VoiceJudge,
    at_level,
    load_voice_encoder,
    mel_filters,
    mel_power,
    voice_encoder_file,
)

RATE = 16000


def plain_mel_power(samples: np.ndarray) -> np.ndarray:
    """The definition, by loops: DFT of each Hann-windowed frame, its power under each triangle of Slaney's scale."""

    def to_hz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * 6.4 ** ((mel - 15) / 27)

    top = 15 + 27 * np.log(8000 / 1000) / np.log(6.4)
    edges = [to_hz(top * number / 41) for number in range(42)]
    padded = np.concatenate([np.zeros(200), samples.astype(np.float64), np.zeros(200)])
    times = np.arange(400)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * times / 400)
    rows = []
    for start in range(0, len(padded) - 400 + 1, 160):
        frame = padded[start : start + 400] * window
        power = [abs(np.sum(frame * np.exp(-2j * np.pi * k * times / 400))) ** 2 for k in range(201)]
        row = []
        for low, center, high in zip(edges, edges[1:], edges[2:], strict=False):
            total = 0.0
            for k in range(201):
                hz = 40 * k
                if low < hz <= center:
                    total += power[k] * (hz - low) / (center - low)
                elif center < hz < high:
                    total += power[k] * (high - hz) / (high - center)
            row.append(total * 2 / (high - low))
        rows.append(row)
    return np.array(rows)


@pytest.fixture
def weights(tmp_path):
    """Random weights, named as Resemblyzer names them."""
    torch.manual_seed(0)
    state = dict(VoiceEncoder().state_dict())
    state |= {"similarity_weight": torch.ones(1), "similarity_bias": torch.zeros(1)}
    torch.save({"step": 1, "model_state": state, "optimizer_state": {}}, tmp_path / "pretrained.pt")
    return tmp_path / "pretrained.pt"


def test_the_front_end_is_the_plain_one(speech):
    clip = speech[:5000]
    expected = plain_mel_power(clip)
    assert expected.shape == (1 + 5000 // 160, 40)
    np.testing.assert_allclose(mel_power(clip), expected, rtol=1e-5, atol=1e-9 * expected.max())


def test_a_band_of_mel_filters_has_unit_area_at_40_hz_a_bin():
    areas = 40 * mel_filters().sum(axis=0)
    assert mel_filters().shape == (201, 40)
    np.testing.assert_allclose(areas[-20:], 1, atol=0.02)  # wide bands: many bins


def test_an_embedding_is_the_unit_mean_of_windows_that_overlap_by_half(weights):
    encoder = load_voice_encoder(weights)
    clip = noise(RATE * 4)  # 401 frames: windows from 0, 80, 160, 240; what follows is no whole window
    power = torch.from_numpy(mel_power(clip))
    windows = torch.stack([power[start : start + 160] for start in (0, 80, 160, 240)])
    with torch.inference_mode():
        _, (hidden, _) = encoder.lstm(windows)
        rows = torch.relu(encoder.linear(hidden[-1]))
    rows = rows / rows.norm(dim=1, keepdim=True)
    expected = rows.mean(dim=0) / rows.mean(dim=0).norm()
    torch.testing.assert_close(encoder.embed(clip), expected)


def test_a_clip_shorter_than_a_window_is_one_window(weights):
    encoder = load_voice_encoder(weights)
    embedding = encoder.embed(noise(RATE // 2))
    assert embedding.shape == (256,)
    assert float(embedding.norm()) == pytest.approx(1)


def test_quiet_clips_are_raised_and_loud_ones_stay():
    clip = noise(RATE)
    level = 10 ** (-30 / 20)
    assert at_level(clip) is clip
    quiet = clip * np.float32(1e-3)
    assert np.sqrt(np.mean(at_level(quiet) ** 2)) == pytest.approx(level, rel=1e-4)
    silent = np.zeros(RATE, np.float32)
    assert (at_level(silent) == 0).all()


def test_similarity_is_one_of_a_copy_and_finite_of_silence(weights, speech):
    for place in (weights, weights.parent, str(weights)):
        judge = VoiceJudge(place)
        assert judge(speech, speech.copy(), 24000) == {"voice_similarity": 1.0}
    assert 0 <= judge(speech, np.zeros_like(speech), 24000)["voice_similarity"] <= 1
    with pytest.raises(ValueError, match="`reconstructed` must be mono, as long as"):
        judge(speech, speech[:-1], 24000)


def test_other_weights_are_refused(tmp_path):
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(
        ValueError, match=r"`weights` must be those of Resemblyzer's voice encoder, .* no `model_state`"
    ):
        load_voice_encoder(tmp_path / "other.pt")
    torch.save({"model_state": {"linear.weight": torch.zeros(2, 2)}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"`weights` must be those of Resemblyzer's voice encoder, got .*other.pt"):
        load_voice_encoder(tmp_path / "other.pt")
    with pytest.raises(FileNotFoundError, match=r"`weights`: no file .*pretrained.pt"):
        voice_encoder_file(tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("resemblyzer") is None, reason="Resemblyzer, which ships the weights")
def test_with_the_public_weights_a_speaker_is_closer_to_herself():
    folder = ROOT / "tests" / "audio"
    names = ("1688-142285-0002", "1688-142285-0003", "librispeech/3005/163389/3005-163389-0004")
    clips = [soundfile.read(folder / f"{name}.flac", dtype="float32")[0] for name in names]
    length = min(map(len, clips))
    one, same, other = (clip[:length] for clip in clips)
    judge = VoiceJudge()
    assert judge(one, same, 24000)["voice_similarity"] > 0.7 > judge(one, other, 24000)["voice_similarity"]
