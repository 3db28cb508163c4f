import importlib.util
import os
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from training import ecapa, judges
from training.ecapa import SpeakerEncoder, load_speaker_encoder
from training.judges import JUDGES, make_judges, missing_judges
from training.metrics.codec_quality.alignment import remove_lag

from .conftest import ROOT, noise

RATE = 24000
SENTENCES = {  # of two speakers; Whisper base makes no error in them
    "librispeech/3005/163389/3005-163389-0004": "the average man's a coward",
    "1688-142285-0002": "you don't mean that you thought me so silly",
}
# A folder with `ecapa/embedding_model.ckpt` and `whisper-base-ct2`, for whoever has the weights.
WEIGHTS = os.environ.get("JEPA_DAAM_JUDGE_WEIGHTS")
needs_weights = pytest.mark.skipif(not WEIGHTS, reason="JEPA_DAAM_JUDGE_WEIGHTS names no folder of weights")


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    folder = ROOT / "tests" / "audio"
    return [soundfile.read(folder / f"{name}.flac", dtype="float32")[0] for name in SENTENCES]


@pytest.fixture(scope="module")
def pitch() -> judges.Judge:
    pytest.importorskip("swift_f0")
    return make_judges(["pitch"])["pitch"]


@pytest.fixture(scope="module")
def opinion() -> judges.Judge:
    pytest.importorskip("speechmos")
    pytest.importorskip("onnxruntime")
    return make_judges(["opinion"])["opinion"]


def write_speaker_encoder(folder: Path) -> Path:
    """A checkpoint of random weights, named as SpeechBrain names them."""
    torch.manual_seed(0)
    file = folder / ecapa.WEIGHTS_FILE
    wrapped = {}
    for name, value in SpeakerEncoder().state_dict().items():
        layer, parameter = name.rsplit(".", 1)
        kind = "norm" if re.search(r"(norm|bn)$", layer) else "conv"
        wrapped[f"{layer}.{kind}.{parameter}"] = value
    torch.save(wrapped, file)
    return file


@pytest.fixture(scope="module")
def untrained_weights(tmp_path_factory) -> Path:
    return write_speaker_encoder(tmp_path_factory.mktemp("ecapa"))


def test_a_clip_against_itself_has_no_pitch_error(pitch, speech):
    assert pitch(speech, speech.copy(), RATE) == {"voicing_error": 0.0, "f0_rmse_cents": 0.0}


def test_a_clip_played_faster_is_so_many_cents_higher(pitch):
    seconds = np.arange(2 * RATE) / RATE
    low, high = (
        sum(0.2 / k * np.sin(2 * np.pi * k * f0 * seconds) for k in range(1, 9)).astype(np.float32)
        for f0 in (150.0, 150.0 * 2 ** (1 / 12))
    )
    figures = pitch(low, high, RATE)
    assert figures["f0_rmse_cents"] == pytest.approx(100.0, abs=10.0)
    assert figures["voicing_error"] < 0.05


def test_noise_and_silence_are_unvoiced(pitch, speech):
    silent = pitch(speech, np.zeros_like(speech), RATE)
    assert silent.keys() == {"voicing_error"}
    assert 0.3 < silent["voicing_error"] < 0.9  # the share of the sentence that is voiced
    assert pitch(speech, noise(len(speech)), RATE)["voicing_error"] > 0.3


def test_a_shuffled_pairing_has_a_wrong_pitch(pitch, sentences):
    other = remove_lag(sentences[1], 0, len(sentences[0]))
    figures = pitch(sentences[0], other, RATE)
    assert figures["voicing_error"] > 0.2
    assert figures["f0_rmse_cents"] > 200


def test_dnsmos_prefers_speech_to_noise(opinion, speech):
    clean = opinion(speech, speech, RATE)
    noisy = opinion(speech, speech + noise(len(speech)), RATE)
    assert clean.keys() == {"dnsmos", "dnsmos_sig", "dnsmos_bak"}
    assert clean["dnsmos"] > 2.5 > 1.7 > noisy["dnsmos"] > 1.0
    assert opinion(noise(len(speech)), speech, RATE) == clean  # the original is not listened to
    assert opinion(speech, noise(len(speech)), RATE)["dnsmos"] < 1.2


@pytest.mark.parametrize("seconds", [0.2, 2.835, 3.0, 9.0, 10.5, 12.0, 18.3])
def test_dnsmos_is_that_of_its_package(opinion, speech, seconds, monkeypatch):
    if importlib.util.find_spec("librosa") is None:  # which P.808 alone needs
        monkeypatch.setitem(sys.modules, "librosa", types.ModuleType("librosa"))
    from speechmos import dnsmos

    monkeypatch.setattr(dnsmos.DNSMOS, "audio_melspec", lambda self, audio: np.zeros((900, 120)))
    clip = np.resize(speech, round(seconds * 16000)) * 4
    expected = dnsmos.run(clip.clip(-1, 1), 16000)
    figures = opinion(clip, clip, 16000)
    for ours, theirs in (("dnsmos", "ovrl_mos"), ("dnsmos_sig", "sig_mos"), ("dnsmos_bak", "bak_mos")):
        assert figures[ours] == pytest.approx(expected[theirs], abs=1e-4)


def test_similarity_with_itself_is_one_and_weights_have_speechbrains_names(untrained_weights, speech):
    for weights in (untrained_weights, untrained_weights.parent):
        judge = make_judges(["speaker"], speaker_encoder=weights)["speaker"]
        assert judge(speech, speech.copy(), RATE) == {"speaker_similarity": pytest.approx(1.0, abs=1e-5)}
        assert judge(speech, noise(len(speech)), RATE)["speaker_similarity"] < 0.999


def test_other_weights_are_refused(tmp_path):
    torch.save({"fc.conv.weight": torch.zeros(1)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="`weights` must be those of SpeechBrain's ECAPA-TDNN"):
        load_speaker_encoder(tmp_path / "other.ckpt")


def test_the_speaker_encoder_is_speechbrains(untrained_weights, speech):
    try:
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
    except (ImportError, OSError) as error:  # torchaudio does not load beside every PyTorch
        pytest.skip(f"speechbrain: {error}")
    theirs = ECAPA_TDNN(
        80, channels=[1024] * 4 + [3072], kernel_sizes=[5, 3, 3, 3, 1], dilations=[1, 2, 3, 4, 1], lin_neurons=192
    ).eval()
    theirs.load_state_dict(torch.load(untrained_weights, weights_only=True))
    clips = torch.from_numpy(np.stack([speech[:40000], noise(40000)]))
    with torch.inference_mode():
        features = Fbank(n_mels=80)(clips)
        expected = theirs(features - features.mean(dim=1, keepdim=True))[:, 0]
        torch.testing.assert_close(ecapa.filterbank(clips), features, atol=2e-3, rtol=0)
        torch.testing.assert_close(load_speaker_encoder(untrained_weights)(clips), expected, atol=1e-4, rtol=1e-3)


class Segment:
    def __init__(self, text: str):
        self.text = text


class Recognizer:
    """Hears what it is told, clip by clip."""

    heard: list[str] = []

    def __init__(self, name: str, **settings):
        assert settings == {"device": "cpu", "compute_type": "int8", "cpu_threads": 1}

    def transcribe(self, samples, language, **settings):
        assert samples.dtype == np.float32
        return (Segment(text) for text in self.heard.pop(0).split("|")), None


@pytest.fixture
def words(monkeypatch):
    faster_whisper = pytest.importorskip("faster_whisper")
    pytest.importorskip("jiwer")
    monkeypatch.setattr(faster_whisper, "WhisperModel", Recognizer)

    def judge(heard: list[str], text: str | None, **settings) -> judges.Figures:
        Recognizer.heard = heard
        clip = np.zeros(RATE, np.float32)
        return make_judges(["words"], **settings)["words"](clip, clip, RATE, text)

    return judge


def test_errors_are_counted_after_normalization(words):
    figures = words([" The dose, for| an adult is 10 minims!"], "the dose for an adult is ten minims.")
    assert figures == {
        "transcript": "the dose for an adult is 10 minims",
        "word_errors": 1,
        "words": 8,
        "character_errors": 3,
        "characters": 35,
    }


def test_nothing_heard_is_one_error_a_word(words):
    figures = words([""], "when churchyards yawn")
    assert figures == {
        "transcript": "",
        "word_errors": 3,
        "words": 3,
        "character_errors": 21,
        "characters": 21,
    }


@pytest.mark.parametrize("text", [None, "", " ... "])
def test_a_clip_without_text_is_not_listened_to(words, text):
    assert words([], text) == {}
    with pytest.raises(IndexError):  # nothing left to hear: so it is with a text
        words([], "so")


@needs_weights
def test_with_the_public_weights_a_copy_is_perfect_and_noise_is_not(sentences):
    pytest.importorskip("faster_whisper")
    pytest.importorskip("jiwer")
    found = make_judges(
        ["speaker", "words"], speaker_encoder=f"{WEIGHTS}/ecapa", recognizer=f"{WEIGHTS}/whisper-base-ct2"
    )
    for clip, text in zip(sentences, SENTENCES.values(), strict=True):
        figures = found["words"](clip, clip, RATE, text)
        assert (figures["word_errors"], figures["character_errors"], figures["transcript"]) == (
            0,
            0,
            text.replace("'", " "),
        )
        assert found["words"](clip, clip, RATE, text) == figures
        heard = found["words"](clip, noise(len(clip)), RATE, text)
        assert heard["word_errors"] >= heard["words"]
        assert found["speaker"](clip, clip, RATE)["speaker_similarity"] == pytest.approx(1.0, abs=1e-5)
        assert found["speaker"](clip, noise(len(clip)), RATE)["speaker_similarity"] < 0.2
    other = remove_lag(sentences[1], 0, len(sentences[0]))
    assert found["speaker"](sentences[0], other, RATE)["speaker_similarity"] < 0.4
    assert found["words"](sentences[0], other, RATE, next(iter(SENTENCES.values())))["word_errors"] >= 3


def test_a_missing_package_is_named_and_its_judge_left_out(monkeypatch):
    find_spec = judges.importlib.util.find_spec
    monkeypatch.setattr(
        judges.importlib.util, "find_spec", lambda name: None if name in ("swift_f0", "jiwer") else find_spec(name)
    )
    missing = missing_judges(["pitch", "speaker"])
    assert missing == {"pitch": "no f0_rmse_cents, voicing_error: not installed: swift-f0 (pip install swift-f0)"}
    assert "jiwer" in missing_judges()["words"]
    assert make_judges(["pitch"]) == {}
    everyone = "pitch, opinion, speaker, words, voice, moonshine, phones"
    with pytest.raises(ValueError, match=f"`names` must be among {everyone}, got 'visqol'"):
        missing_judges(["visqol"])


def test_figures_have_one_judge_each():
    figures = [figure for judge in JUDGES.values() for figure in judge.figures]
    assert len(figures) == len(set(figures))


def test_what_is_no_clip_is_refused(pitch, speech):
    with pytest.raises(ValueError, match="`reconstructed` must be mono, as long as"):
        pitch(speech, speech[:-1], RATE)
