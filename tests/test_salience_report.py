"""Gates against energy and words: known correlations, words where they are said, a report that says what it lacks."""

import itertools
import json

import numpy as np
import pytest
from scipy.stats import spearmanr
from typer.testing import CliRunner

from training import salience
from training.alignment import Word
from training.salience import (
    Correlations,
    clip_correlations,
    correlate,
    markdown,
    partial_spearman,
    spearman,
    summarize,
    word_positions,
)


def test_words_on_a_grid():
    words = [Word("a", 0.1, 0.5), Word("b", 0.5, 0.6), Word("c", 1.1, 9.0)]
    share, onsets = word_positions(words, 3, 0.4)
    np.testing.assert_allclose(share, [0.75, 0.5, 0.25], atol=1e-12)
    assert onsets.tolist() == [1, 1, 1]


def test_correlations_are_those_of_scipy_and_of_residuals(rng):
    energy = rng.normal(size=200)
    gate, word = energy + rng.normal(size=200), np.round(energy + rng.normal(size=200))
    assert spearman(gate, word) == pytest.approx(spearmanr(gate, word).statistic)
    assert spearman(gate, word) > 0.3
    assert abs(partial_spearman(gate, word, energy)) < 0.15
    ranks = [np.argsort(np.argsort(each)) for each in (gate, energy + 0.5 * gate, energy)]
    residuals = [each - np.polyval(np.polyfit(ranks[2], each, 1), ranks[2]) for each in ranks[:2]]
    assert partial_spearman(*ranks) == pytest.approx(np.corrcoef(residuals)[0, 1])


def test_what_is_not_defined_is_missing(rng):
    gate, energy = rng.normal(size=(2, 20))
    assert set(correlate(gate, energy, None)) == {"gate with energy"}
    assert set(correlate(gate, energy, (np.ones(20), np.arange(20) % 2))) == {
        "gate with energy", "gate with onset", "energy with onset", "gate with onset, given energy",
    }  # fmt: skip
    assert correlate(gate[:5], energy[:5], None) == {}
    assert partial_spearman(gate, energy, energy) is None


def test_each_gate_in_frames_and_at_its_own_rate(nano_tokenizer, speech):
    figures = clip_correlations(nano_tokenizer.model, speech, None)
    rates = ["2.5 Hz", "3000 Hz", "2.5 Hz", "375 Hz", "2.5 Hz", "75 Hz", "2.5 Hz", "15 Hz", "2.5 Hz"]
    assert [name.split(", ")[1] for name in figures] == rates
    assert all(-1 <= each["gate with energy"] <= 1 for each in figures.values())


def test_speakers_are_the_units_and_clips_the_weights():
    clips = [
        Correlations(f"{speaker}{clip}", speaker, {"gate 1, 2.5 Hz": {"gate with energy": value}})
        for speaker, values in {"a": [0.0] * 3, "b": [1.0]}.items()
        for clip, value in enumerate(values)
    ]
    row = summarize(clips)["gate 1, 2.5 Hz"]["gate with energy"]
    assert (row["mean"], row["clips"], row["units"]) == (0.25, 4, 2)
    assert row["interval"] == (0.0, 1.0)
    unknown = [Correlations(clip.name, None, clip.figures) for clip in clips]
    assert summarize(unknown)["gate 1, 2.5 Hz"]["gate with energy"]["units"] == 4
    text = markdown({"model": summarize(clips)}, ["a.flac: broken"])
    assert "| gate with energy | +0.25 (+0.00 to +1.00) |" in text
    assert "gate with word" not in text
    assert "Left out: a.flac: broken" in text


@pytest.fixture
def manifest(tmp_path, speech):
    import soundfile

    soundfile.write(tmp_path / "a.flac", speech, 24000)
    (tmp_path / "broken.flac").write_bytes(b"no sound")
    texts = {"a": "i really liked that account of himself better than anything else he said", "broken": "no"}
    lines = [json.dumps({"file": f"{name}.flac", "text": text}) for name, text in texts.items()]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    return tmp_path / "manifest.jsonl"


def report(*arguments, code: int = 0) -> str:
    import typer

    app = typer.Typer()
    app.command()(salience.command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output


def test_without_the_package_words_are_left_out_by_name(manifest, nano_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(salience, "ALIGNMENT_MISSING", "they need pocketsphinx")
    output = report(nano_folder, manifest, "--output", tmp_path / "out")
    assert "Left out: all words: they need pocketsphinx" in output
    assert "Left out: broken.flac: " in output
    assert "gate with word" not in output
    assert (tmp_path / "out" / "salience.md").read_text() in output
    assert "`recordings`" in report(nano_folder, tmp_path / "nowhere", "--output", tmp_path / "o", code=2)


def test_words_are_aligned_where_texts_are(manifest, nano_folder, tmp_path, speech):
    pytest.importorskip("pocketsphinx")
    from training.alignment import Aligner

    words = Aligner().align(speech, 24000, "I really liked that account of himself, better than anything else he said.")
    assert [word.word for word in words[:3]] == ["i", "really", "liked"]
    assert 0.3 < words[0].start_s < 0.8
    assert 4.0 < words[-1].end_s < 5.06
    assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(words))
    pause = next(b.start_s - a.end_s for a, b in itertools.pairwise(words) if b.word == "better")
    assert pause > 0.2
    with pytest.raises(ValueError, match="not in the dictionary: 5, xyzzy"):
        Aligner().align(speech, 24000, "xyzzy 5")
    output = report(nano_folder, manifest, "--output", tmp_path / "out")
    assert "gate with word, given energy" in output
