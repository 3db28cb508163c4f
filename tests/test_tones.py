import json

import pytest
import soundfile

from training import tones

from .conftest import noise
from .test_probes import labels, write_shard


def test_characters_of_one_reading_have_its_tone():
    pytest.importorskip("pypinyin")
    assert tones.syllable_of("茶") == "cha2"
    assert tones.syllable_of("驴") == "lü2"
    assert tones.syllable_of("长") is None  # cháng, zhǎng
    assert tones.syllable_of("吗") is None  # several, and neutral as a rule
    assert tones.syllable_of("喝茶") is None
    assert tones.syllable_of("") is None
    assert tones.syllable_of("a") is None


def test_single_syllables_of_shards_are_read(tmp_path):
    pytest.importorskip("pypinyin")
    members = {
        f"{source}/v/{name}": (noise(2400), labels(source, "v", text))
        for source, name, text in (
            ("audiocmn", "b", "茶"),
            ("audiocmn", "a", "刚"),
            ("audiocmn", "c", "喝茶"),
            ("audiocmn", "d", None),
            ("an4", "e", "茶"),
        )
    }
    found = tones.load_tone_clips([write_shard(tmp_path / "a.tar", members)])
    assert [(clip.name, clip.text, clip.source) for clip in found] == [
        ("audiocmn/v/a", "gang1", "tones"),
        ("audiocmn/v/b", "cha2", "tones"),
    ]
    assert len(found[0].samples) == 2400


def test_another_voice_is_read_from_a_manifest(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(4800), 24000)
    rows = [
        {"file": "a.wav", "language": "cmn", "speaker": "x", "text": "nü3"},
        {"file": "gone.wav", "language": "cmn", "speaker": "x", "text": "ba5"},  # neutral
        {"file": "gone.wav", "language": "cmn", "speaker": "x", "text": None},
        {"file": "gone.wav", "language": "en", "speaker": "x", "text": "go2"},
    ]
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (clip,) = tones.load_unseen_speakers(manifest)
    assert (clip.text, clip.speaker, clip.source, len(clip.samples)) == ("nü3", "x", "tones_unseen_speaker", 4800)
    manifest.write_text(json.dumps(rows[1]))
    with pytest.raises(ValueError, match="`tones`: .* has no Mandarin syllables with a tone from 1 to 4"):
        tones.load_unseen_speakers(manifest)
