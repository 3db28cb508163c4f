import sys
import types

import pytest

from tests.conftest import noise
from training.evaluation.phones import PhoneJudge, phone_recognizer_file
from training.judges import missing_judges


def scripted(monkeypatch, *results: str) -> PhoneJudge:
    """A judge whose recognizer gives these phones, call by call."""
    pytest.importorskip("jiwer")
    rest = iter(results)

    class ASRModel:
        def __call__(self, samples, sampling_rate):
            assert (samples.dtype, sampling_rate, len(samples)) == ("float32", 16000, 16000)
            return types.SimpleNamespace(phonemes=next(rest).split())

    hama = types.ModuleType("hama")
    hama.ASRModel = ASRModel
    monkeypatch.setitem(sys.modules, "hama", hama)
    return PhoneJudge()


def test_edits_are_counted_by_phone(monkeypatch):
    judge = scripted(monkeypatch, "t͡ʃ ɪ l d ɹ ə n", "ʃ ɪ l ɹ ə n z")
    assert judge(noise(24000), noise(24000), 24000) == {"phone_errors": 3, "phones": 7}


def test_nothing_recognized_is_one_error_a_phone(monkeypatch):
    assert scripted(monkeypatch, "ð ə", "")(noise(24000), noise(24000), 24000) == {"phone_errors": 2, "phones": 2}


def test_an_original_without_phones_has_no_figures(monkeypatch):
    assert scripted(monkeypatch, "", "ð ə")(noise(24000), noise(24000), 24000) == {}


def test_the_package_recognizes_speech_and_not_noise(speech):
    if "phones" in missing_judges(["phones"]):
        pytest.skip("hama, which ships the weights, is not installed")
    assert phone_recognizer_file().is_file()
    judge = PhoneJudge()
    copied = judge(speech, speech.copy(), 24000)
    assert copied["phone_errors"] == 0
    assert 30 < copied["phones"] < 200
    assert judge(speech, speech.copy(), 24000) == copied
    assert judge(speech, noise(len(speech)), 24000)["phone_errors"] > 0.7 * copied["phones"]
