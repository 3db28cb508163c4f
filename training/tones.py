"""Mandarin syllables with the tone that they are spoken in, as clips to probe.

A single character that has one reading alone has one tone: pypinyin's dictionary says which. Characters with several
readings, and those of the neutral tone, are left out; so are longer words, whose pooled features are of several tones.
"""

import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from modeling_jepa_daam.audio import load_audio

from .probes import SAMPLING_RATE, ProbeClip, read_shards

SOURCE = "audiocmn"  # Chinese words (HSK) by one voice, in characters
SYLLABLE = re.compile(r"[a-zü]+[1-4]")
PYPINYIN_MISSING = "" if importlib.util.find_spec("pypinyin") else "no tones: the package pypinyin is not installed"


def syllable_of(word: str) -> str | None:
    """Pinyin of a word of one character and one reading, as `ma3`; `None` of any other.

    Raises:
        ImportError: If pypinyin is not installed.
    """
    from pypinyin import Style, pinyin

    if len(word) != 1:
        return None
    readings = pinyin(word, style=Style.TONE3, heteronym=True, v_to_u=True)[0]
    return readings[0] if len(readings) == 1 and SYLLABLE.fullmatch(readings[0]) else None


def load_tone_clips(shards: Sequence[str | Path]) -> list[ProbeClip]:
    """The single syllables in `SOURCE`, with `text` as `ma3`, sorted by name; maybe none.

    Raises:
        ImportError: If pypinyin is not installed.
        ValueError: If a sound has no `.json` beside it.
    """
    clips = []
    for name, sound, labels in read_shards(shards, lambda name: name.startswith(f"{SOURCE}/")):
        syllable = syllable_of(labels["text"] or "")
        if syllable is not None:
            samples = load_audio(sound, None, SAMPLING_RATE, name)
            clips.append(ProbeClip(name, "tones", labels["speaker"], labels["language"], syllable, samples))
    return sorted(clips, key=lambda clip: clip.name)


def load_unseen_speakers(manifest: str | Path) -> list[ProbeClip]:
    """The Mandarin syllables of a manifest, JSON lines with `file`, `speaker`, `language` cmn and `text` as `ma3`.

    Raises:
        ValueError: If there are none.
        FileNotFoundError: If the manifest or a file of it does not exist.
    """
    clips = []
    for line in Path(manifest).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["language"] == "cmn" and SYLLABLE.fullmatch(row["text"] or ""):
            samples = load_audio(Path(manifest).parent / row["file"], None, SAMPLING_RATE)
            clips.append(ProbeClip(row["file"], "tones_unseen_speaker", row["speaker"], "cmn", row["text"], samples))
    if not clips:
        raise ValueError(f"`tones`: {manifest} has no Mandarin syllables with a tone from 1 to 4")
    return clips
