import json
import shutil

import pytest
import soundfile
from typer.testing import CliRunner

from tests.conftest import SPEECH
from training import targets
from training.evaluation.targets import (
    FIFTEEN,
    NONNATIVE,
    READ,
    TARGETS,
    information_outcomes,
    outcome_table,
    quality_outcomes,
    size_outcome,
    speed_outcomes,
    verdict_of,
)
from training.report import FIGURES

CLIPS = ("1688-142285-0002", "1688-142285-0003")


def figures(value, clips=15):
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "clips": clips}


@pytest.fixture
def fifteen(tmp_path):
    """A folder of originals, `texts.json` beside it, as the published reconstructions have them."""
    folder = tmp_path / "rivals" / "original"
    folder.mkdir(parents=True)
    for name in CLIPS:
        shutil.copy(SPEECH.with_name(f"{name}.flac"), folder)
    (folder.parent / "texts.json").write_text(json.dumps(dict.fromkeys(CLIPS, "a text")))
    return folder


@pytest.fixture
def no_judges(monkeypatch):
    monkeypatch.setattr(targets, "JUDGES_OF_SETS", dict.fromkeys((FIFTEEN, READ, NONNATIVE), ()))


def run(model, fifteen, *arguments):
    words = [str(model), "--clips", str(fifteen), "--output", str(fifteen.parents[1] / "out"), *map(str, arguments)]
    return CliRunner().invoke(targets.app, words)


def lines_of(done, start):
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.output.splitlines() if start in line]


def test_a_target_is_easier_to_reach_than_its_aim_and_better_than_before():
    better = {figure.numerator: figure.better for figure in FIGURES}
    assert len({(target.where, target.key) for target in TARGETS}) == len(TARGETS) == 10
    for target in TARGETS:
        sign = better[target.key]
        assert sign * target.before < sign * target.must < sign * target.aim


def test_a_verdict_is_of_the_value_before_rounding():
    assert verdict_of(12.0, 12.0, 7.0, -1) == "met"
    assert verdict_of(12.04, 12.0, 7.0, -1) == "not met"
    assert verdict_of(7.0, 12.0, 7.0, -1) == "aim met"
    assert verdict_of(0.8999, 0.9, 0.95, 1) == "not met"
    assert verdict_of(0.96, 0.9, 0.95, 1) == "aim met"
    assert verdict_of(0.96, 0.9, None, 1) == "met"


def test_outcomes_have_original_and_model_side_by_side():
    sets = {
        FIFTEEN: {
            "original": {"moonshine_word_errors": figures(4.8)},
            "ours": {"moonshine_word_errors": figures(11.0), "stoi": figures(0.8)},
        },
        READ: {"ours": {"dnsmos": figures(3.1, clips=59)}},
    }
    outcomes = quality_outcomes(sets, "ours", {FIFTEEN: 15, READ: 60})
    found = {(each.where, each.figure): each for each in outcomes}
    words = found[FIFTEEN, "WER, Moonshine (%)"]
    assert (words.original, words.value, words.verdict) == ("4.8 [4.7, 4.9]", "11.0 [10.9, 11.1]", "met")
    assert (words.before, words.must, words.aim) == ("16.6", "12.0", "7.0")
    assert found[FIFTEEN, "STOI"].verdict == "not met"
    assert found[READ, "DNSMOS"].verdict == "not measured: 59 of 60 clips"
    assert found[NONNATIVE, "WER (%)"].verdict == "not measured"
    assert [each.met for each in outcomes].count(True) == 1
    assert len(outcome_table(outcomes).splitlines()) == 2 + len(TARGETS)


def test_information_is_a_share_of_what_the_levels_allow():
    mean, least = information_outcomes([3.6, 5.1, 1.4, 1.9], [16, 64, 4, 4])
    assert (mean.value, mean.verdict) == ("85.7", "met")  # 12 of 14 bits
    assert (least.value, least.verdict) == ("70.0", "met")
    mean, least = information_outcomes([4.0, 6.0, 1.1, 0.5], [16, 64, 4, 4])
    assert (mean.value, mean.verdict, least.value, least.verdict) == ("82.9", "not met", "25.0", "not met")
    assert [each.verdict for each in information_outcomes(None, [4])] == ["not measured", "not measured"]
    with pytest.raises(ValueError, match="`entropies` must be 2, one of each FSQ index, got 1"):
        information_outcomes([1.0], [4, 4])


def test_size_and_speed():
    assert (size_outcome(37_755_886).value, size_outcome(37_755_886).verdict) == ("37.8", "met")
    assert size_outcome(40_100_000).verdict == "not met"
    assert size_outcome(None).verdict == "not measured"
    assert [each.verdict for each in speed_outcomes({"encode": 9.9, "decode": 12.0})] == ["not met", "met"]
    assert [each.verdict for each in speed_outcomes({})] == ["not measured"] * 2


def test_a_checkpoint_is_measured_once(fifteen, no_judges, nano_folder, tmp_path):
    folder = shutil.copytree(nano_folder, tmp_path / "nano")
    first = run(folder, fifteen)
    assert first.exit_code == 0, first.output
    assert "# Targets: nano" in first.output
    (stoi,) = lines_of(first, "| librispeech_15 | STOI |")
    assert stoi[2] == "1.000"
    assert float(stoi[4].split()[0]) < 0.6  # untrained
    assert stoi[5:] == ["0.890", "0.920", "not met"]
    assert lines_of(first, "size of the weights")[0][-1] == "met"
    caches = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("clips.jsonl")}
    assert len(caches) == 2
    for path in caches:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(row | {"stoi": 0.9}) + "\n" for row in rows))
    assert lines_of(run(folder, fifteen), "| librispeech_15 | STOI |")[0][-1] == "met", "figures of the first call"
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config + "\n")  # other content, other figures
    assert lines_of(run(folder, fifteen), "| librispeech_15 | STOI |")[0][-1] == "not met"
    found = json.loads((tmp_path / "out" / "nano.json").read_text())
    assert found["system"] == f"jepa:{folder}"
    assert {each["figure"] for each in found["outcomes"]} >= {"STOI", "PESQ-WB", "size of the weights (MB)"}


def test_a_folder_of_reconstructions_may_lack_clips(fifteen, no_judges, tmp_path):
    wavs = tmp_path / "wavs"
    wavs.mkdir()
    for name in CLIPS:
        samples, rate = soundfile.read(fifteen / f"{name}.flac")
        soundfile.write(wavs / f"{name}.wav", samples, rate)
    whole = run(wavs, fifteen)
    assert whole.exit_code == 0, whole.output
    assert lines_of(whole, "| librispeech_15 | STOI |")[0][4:] == ["1.000", "0.890", "0.920", "aim met"]
    (wavs / f"{CLIPS[0]}.wav").unlink()
    assert lines_of(run(wavs, fifteen), "| librispeech_15 | STOI |")[0][-1] == "not measured: 1 of 2 clips"
    shutil.move(wavs / f"{CLIPS[1]}.wav", wavs / "another.wav")
    done = run(wavs, fifteen)
    assert done.exit_code == 0, done.output
    assert lines_of(done, "| librispeech_15 | STOI |")[0][-1] == "not measured"


def test_texts_come_from_a_manifest_or_from_texts_json(fifteen):
    found = targets.fifteen_clips(fifteen)
    assert [(each.name, each.fields["set"], each.fields["text"]) for each in found] == [
        (f"{name}.flac", FIFTEEN, "a text") for name in CLIPS
    ]
    row = {"file": f"original/{CLIPS[0]}.flac", "text": "another", "set": "x"}
    (fifteen.parent / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (only,) = targets.fifteen_clips(fifteen.parent / "manifest.jsonl")
    assert (only.fields["set"], only.fields["text"]) == (FIFTEEN, "another")
    (fifteen.parent / "texts.json").unlink()
    with pytest.raises(ValueError, match=f"`clips`: no text of {CLIPS[0]}.flac"):
        targets.fifteen_clips(fifteen)


def test_wrong_usage(fifteen, tmp_path):
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([tmp_path / "empty", fifteen], "has neither config.json nor reconstructions"),
        (["vorbis:6", fifteen], "`spec` must be one of"),
        (["original", fifteen, "--sets", "music"], "`sets` must be among"),
        (["original", tmp_path / "empty"], "`recordings`: no sound files"),
    ):
        done = run(*words)
        assert done.exit_code == 2, done.output
        assert message in done.output
    done = CliRunner().invoke(targets.app, ["original", "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert "nothing to measure: give --clips" in done.output
