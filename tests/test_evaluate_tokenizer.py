import hashlib
import json
import re
import shutil
from dataclasses import replace

import pytest
import soundfile
import soxr
from typer.testing import CliRunner

from modeling_jepa_daam import JepaDaamConfig, make_untrained_checkpoint
from modeling_jepa_daam.cli import app as jepa_audio
from tests.conftest import SPEECH, TINY
from training.evaluate_tokenizer import (
    Evaluator,
    Judging,
    Results,
    common_settings,
    evaluate_systems,
    list_recordings,
    named_systems,
    system_settings,
)

NO_JUDGES, ORIGINAL_ONLY = Judging(names=()), {"original": "original"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_untrained_checkpoint(JepaDaamConfig(**TINY), tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    (folder / "read").mkdir(parents=True)
    shutil.copy(SPEECH, folder / "read" / "a.flac")
    shutil.copy(SPEECH.with_name("1688-142285-0002.flac"), folder / "read" / "b.flac")
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_folder_is_searched_at_every_depth_and_its_folders_are_the_sets(recordings):
    shutil.copy(SPEECH, recordings / "c.flac")
    found = list_recordings(recordings)
    assert [each.name for each in found] == ["c.flac", "read/a.flac", "read/b.flac"]
    assert [each.fields["set"] for each in found] == ["recordings", "read", "read"]


def test_a_manifest_in_the_folder_tells_more(recordings):
    row = {"file": "read/a.flac", "set": "clean", "speaker": "s", "text": "hello", "bandwidth_hz": 8000, "gender": None}
    (recordings / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (only,) = list_recordings(recordings)
    assert only.path == recordings / "read" / "a.flac"
    assert only.fields == {"set": "clean", "speaker": "s", "text": "hello", "bandwidth_hz": 8000}
    assert list_recordings(recordings / "manifest.jsonl") == [only]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no sound files"),
        ('{"set": "read"}\n', 'line 1: need `file` or `path`, got {"set": "read"}'),
        ('{"file": "a.flac"}\n\n{"path": "a.flac"}\n', "names a file more than once"),
        ('{"file": "a.flac"}\n{"path": "../a.flac"}\n', "names a file more than once"),
        ('{"file": \n', "line 1: not JSON"),
        ("[1]\n", "line 1: need `file` or `path`"),
        ('{"file": "a.flac", "bandwidth_hz": "8000"}\n', "line 1: `bandwidth_hz` must be int or float, got '8000'"),
        ('{"file": "a.flac", "speeker": "s"}\n', "line 1: `speeker` is no field that counts: do you mean `speaker`?"),
    ],
)
def test_a_manifest_that_is_none(tmp_path, text, message):
    (tmp_path / "manifest.jsonl").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        list_recordings(tmp_path)


def test_systems_have_names_of_their_own():
    assert named_systems(["runs/codec/model", "low=codec2:700C", "opus:6"]) == {
        "original": "original",
        "runs-codec-model": "jepa:runs/codec/model",
        "low": "codec2:700C",
        "opus-6": "opus:6",
    }
    assert named_systems(["runs/lr=3/model"])["runs-lr=3-model"] == "jepa:runs/lr=3/model"
    for doubled in (["a=opus:6", "a=opus:8"], ["original=opus:6"], ["..=opus:6"]):
        with pytest.raises(ValueError, match="need a name of its own"):
            named_systems(doubled)


def test_real_speech_through_tokens_and_the_original_beside_it(recordings, checkpoint, tmp_path):
    found = list_recordings(recordings)
    systems = named_systems([f"ours={checkpoint}"])
    clips, failures = evaluate_systems(found, systems, tmp_path / "out", NO_JUDGES, keep_audio=True)
    assert failures == []
    assert [(clip["system"], clip["clip"]) for clip in clips] == [
        (system, name) for system in ("original", "ours") for name in ("read/a.flac", "read/b.flac")
    ]
    for original, ours in zip(clips[:2], clips[2:], strict=True):
        assert original["stoi"] == pytest.approx(1.0)
        assert original["mel_distance"] == 0.0
        assert original["bits"] is None
        assert ours["stoi"] < 0.6  # untrained
        config = JepaDaamConfig(**TINY)
        frames = -(-round(ours["seconds"] * 24000) // config.hop_length)
        assert len(ours["tokens"]) == frames
        assert ours["bits"] >= frames * config.bitrate_bps / config.frame_rate
    assert (tmp_path / "out" / "ours" / "audio" / "read" / "a.flac.flac").is_file()


def test_started_again_it_goes_on_where_it_was(recordings, checkpoint, tmp_path):
    found, systems = list_recordings(recordings), {"ours": f"jepa:{checkpoint}"}
    whole, _ = evaluate_systems(found, systems, tmp_path, NO_JUDGES, 0)
    path = tmp_path / "ours" / "clips.jsonl"
    kept, lost = lines(path)
    path.write_text(json.dumps(kept | {"stoi": 0.123}) + "\n" + json.dumps(lost)[:-20])  # killed while it wrote
    again, _ = evaluate_systems(found, systems, tmp_path, NO_JUDGES, 0)
    by_name = {clip["clip"]: clip for clip in whole}
    assert {clip["clip"]: clip for clip in again} == by_name | {kept["clip"]: kept | {"stoi": 0.123}}
    assert len(lines(path)) == 2


def test_figures_of_other_weights_are_not_mixed(recordings, checkpoint, tmp_path):
    other = shutil.copytree(checkpoint, tmp_path / "model")
    found, systems = list_recordings(recordings)[:1], {"ours": f"jepa:{other}"}
    evaluate_systems(found, systems, tmp_path / "out", NO_JUDGES, 0)
    (other / "README.md").write_text("a card")
    (other / "samples").mkdir()
    shutil.copy(SPEECH, other / "samples")
    evaluate_systems(found, systems, tmp_path / "out", NO_JUDGES, 0)  # these are no weights
    for name in ("config.json", "model.safetensors"):
        content = (other / name).read_bytes()
        (other / name).write_bytes(content + b"\n")
        with pytest.raises(ValueError, match=r"made with other settings \(system_files\)"):
            Results(tmp_path / "out" / "ours", system_settings(systems["ours"]) | common_settings(NO_JUDGES))
        (other / name).write_bytes(content)


def test_figures_of_another_recording_of_that_name_are_not_taken(recordings, tmp_path):
    (first, second), systems = list_recordings(recordings), ORIGINAL_ONLY
    (before,), _ = evaluate_systems([first], systems, tmp_path / "out", NO_JUDGES, 0)
    shutil.copy(second.path, first.path)
    (after,), _ = evaluate_systems([first], systems, tmp_path / "out", NO_JUDGES, 0)
    assert after["seconds"] != before["seconds"]
    (told,), _ = evaluate_systems([replace(first, fields={"set": "other"})], systems, tmp_path / "out", NO_JUDGES, 0)
    assert told["recording"]["set"] == "other"


class Reader:
    """A judge of words in one language."""

    def __init__(self, language):
        self.language = language

    def __call__(self, original, reconstructed, sampling_rate, text=None):
        return {f"read_in_{self.language}": text}


@pytest.mark.parametrize(
    ("fields", "read"),
    [
        ({"text": "so", "language": "en-US"}, {"read_in_en": "so", "read_in_None": "so"}),
        ({"text": "zo", "language": "nl"}, {"read_in_nl": "zo", "read_in_None": "zo"}),
        ({"text": "zo"}, {"read_in_nl": "zo", "read_in_None": "zo"}),
        ({"language": "en"}, {"read_in_None": None}),
    ],
)
def test_each_judge_reads_its_own_language(recordings, monkeypatch, fields, read):
    """Moonshine reads English alone, whatever language the other recognizer is told."""
    judges = {language: Reader(language) for language in ("en", "nl", None)}
    monkeypatch.setattr(Judging, "make", lambda self: judges)
    recording = replace(list_recordings(recordings)[0], fields={"set": "read"} | fields)
    row = Evaluator(Judging(language="nl"), None)("original", "original", recording, "")
    assert {key: value for key, value in row.items() if key.startswith("read_in")} == read


def test_the_weights_of_judges_are_noted(tmp_path):
    pytest.importorskip("onnxruntime")
    names = ("encoder_model.onnx", "decoder_model_merged.onnx", "tokenizer.json")
    for name in names:
        (tmp_path / name).write_text(name)
    (tmp_path / "voice.pt").write_text("weights")
    judging = Judging(("moonshine", "voice"), voice_encoder=str(tmp_path / "voice.pt"), moonshine=str(tmp_path))
    before = common_settings(judging)
    assert before["voice_encoder_files"] == hashlib.sha256(b"weights").hexdigest()
    assert before["phone_recognizer_files"] is None
    (tmp_path / "tokenizer.json").write_text("another")
    after = common_settings(judging)
    assert {key for key in before if before[key] != after[key]} == {"moonshine_files"}


def test_weights_that_are_not_there_are_named_with_their_option(recordings, tmp_path):
    pytest.importorskip("onnxruntime")
    arguments = ["--system", "o=original", "--judges", "moonshine", "--moonshine", str(tmp_path)]
    done = CliRunner().invoke(jepa_audio, ["evaluate", str(recordings), "--output", str(tmp_path / "out"), *arguments])
    assert done.exit_code == 2
    assert "moonshine has no weights here: give --moonshine, or leave it out of --judges" in done.output


def test_audio_is_kept_where_the_manifest_points_elsewhere(recordings, tmp_path):
    row = {"file": str(recordings / "read" / "a.flac")}
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    content = (recordings / "read" / "a.flac").read_bytes()
    found, out = list_recordings(tmp_path / "manifest.jsonl"), tmp_path / "out"
    evaluate_systems(found, ORIGINAL_ONLY, out, NO_JUDGES, 0)
    evaluate_systems(found, ORIGINAL_ONLY, out, NO_JUDGES, 0, keep_audio=True)
    assert (recordings / "read" / "a.flac").read_bytes() == content
    assert len(list((out / "original" / "audio").rglob("*.flac"))) == 1


def test_what_a_manifest_says_is_no_figure(recordings, tmp_path):
    row = {"file": "read/a.flac", "dnsmos": 5.0, "system": "other", "tokens": 3}
    (recordings / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    (clip,), _ = evaluate_systems(list_recordings(recordings), ORIGINAL_ONLY, tmp_path / "out", NO_JUDGES, 0)
    assert "dnsmos" not in clip
    assert clip["system"] == "original"


def test_nothing_counts_above_half_the_rate_of_the_file(recordings, tmp_path):
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(recordings / "narrow.wav", soxr.resample(samples, rate, 8000), 8000)
    (clip,), _ = evaluate_systems(list_recordings(recordings)[:1], ORIGINAL_ONLY, tmp_path / "out", NO_JUDGES, 0)
    assert clip["clip"] == "narrow.wav"
    assert clip["recording"]["bandwidth_hz"] == 4000


def test_what_fails_is_listed_and_the_rest_is_done(recordings, checkpoint, tmp_path):
    (recordings / "read" / "broken.flac").write_bytes(b"fLaC, they say")
    arguments = [str(recordings), "--system", f"ours={checkpoint}", "--judges", "", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(jepa_audio, ["evaluate", *arguments, "--jobs", "1"])
    assert done.exit_code == 1
    assert "failed: ours, read/broken.flac: ValueError: " in done.output
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## read: " in report
    assert "| ours | 2 |" in report
    assert "read/broken.flac" in report
    assert "digits never change" in report
    told = json.loads((tmp_path / "out" / "summary.json").read_text())
    levels = JepaDaamConfig(**TINY).levels
    assert len(told["tokens"]["ours"]["read"]["digit_entropy_bits_by_place"]) == len(levels)


def test_originals_need_not_be_judged(recordings, tmp_path):
    arguments = [str(recordings), "--system", "late=shifted:9", "--judges", "", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(jepa_audio, ["evaluate", *arguments, "--jobs", "1", "--no-original"])
    assert done.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["late"]
    assert "| late |" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--system", "nothing"], "no checkpoint"),
        (["--system", "vorbis:6"], "`spec` must be one of"),
        (["--system", "original2=original", "--judges", "taste"], "must be among"),
        (["--system", "o=original", "--judges", "", "--sets", "music,read"], "`sets`: no recordings of music"),
    ],
)
def test_wrong_usage(recordings, tmp_path, arguments, message):
    done = CliRunner().invoke(jepa_audio, ["evaluate", str(recordings), "--output", str(tmp_path), *arguments])
    assert done.exit_code == 2
    assert message in done.output
