"""The command line as a user runs it, in its own process where exit codes and interruptions matter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, __version__, read_token_file
from modeling_jepa_daam.cli import app
from tests.conftest import ROOT, SPEECH, noise

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def run(*arguments, code: int = 0) -> str:
    """Run the command in this process; return everything it printed."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr + str(result.exception)
    return result.stdout + result.stderr


@pytest.fixture
def recordings(tmp_path) -> Path:
    """A folder of recordings at two depths, some of them hopeless."""
    folder = tmp_path / "in put [1] ü"
    (folder / "speaker").mkdir(parents=True)
    shutil.copy(SPEECH, folder / "speaker" / "sentence.flac")
    soundfile.write(folder / "stereo.wav", np.stack([noise(30001), noise(30001, 1)], axis=1), 44100)
    (folder / "notes.txt").write_text("not audio by its name, so left alone")
    return folder


def test_it_runs_as_a_command():
    program = [sys.executable, "-m", "modeling_jepa_daam.cli"]
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"jepa-audio {__version__}\n"
    assert subprocess.run([*program, "nonsense"], capture_output=True, check=False, cwd=ROOT).returncode == 2


def test_info_prints_the_rates(nano_folder):
    output = run("info", nano_folder)
    for fact in (
        "24000 Hz",
        "2.5 frames/s",
        "19 a frame",
        "47.5 tokens/s",
        "16384 ids",
        "640 bit/s",
        "untrained, seed 0",
    ):
        assert fact in output
    assert "no such folder: nowhere" in run("info", "nowhere", code=2)
    assert "a configuration only" in run("info", ROOT / "hub_configs" / "jepa-daam-24khz")


def test_files_become_tokens_become_files(nano_folder, recordings, tmp_path):
    output = run("encode", recordings, "-m", nano_folder, "-o", tmp_path / "tokens")
    assert "2 done, 0 kept, 0 failed" in output
    assert "untrained" in output
    config, tokenizer = JepaDaamConfig.from_pretrained(nano_folder), JepaAudioTokenizer.from_pretrained(nano_folder)
    tokens = read_token_file(tmp_path / "tokens" / "speaker" / "sentence.jepa", config)
    assert tokens.input_ids.tolist() == tokenizer(SPEECH)["input_ids"]
    assert tokens.num_samples == soundfile.info(SPEECH).frames

    run("decode", tmp_path / "tokens", "-m", nano_folder, "-o", tmp_path / "audio", "--format", "flac")
    samples, rate = soundfile.read(tmp_path / "audio" / "speaker" / "sentence.flac", dtype="float32")
    expected = tokenizer.decode_audio(tokens.input_ids, num_samples=tokens.num_samples)
    assert rate == 24000
    np.testing.assert_allclose(samples, expected, atol=1 / 32000)

    run("reconstruct", recordings, "-m", nano_folder, "-o", tmp_path / "again")
    again, _ = soundfile.read(tmp_path / "again" / "speaker" / "sentence.wav", dtype="float32")
    np.testing.assert_array_equal(again, samples)
    assert soundfile.info(tmp_path / "again" / "stereo.wav").frames == round(30001 * 24000 / 44100)


def test_what_is_there_is_kept_unless_told_otherwise(nano_folder, recordings, tmp_path):
    arguments = ("encode", recordings, "-m", nano_folder, "-o", tmp_path / "tokens")
    run(*arguments)
    (tmp_path / "tokens" / "stereo.jepa").write_bytes(b"mine")
    output = run(*arguments, code=1)  # a good one is kept, another is named, neither is touched
    assert "0 done, 1 kept, 1 failed" in output
    assert "--overwrite replaces it" in output
    assert (tmp_path / "tokens" / "stereo.jepa").read_bytes() == b"mine"
    assert "2 done, 0 kept, 0 failed" in run(*arguments, "--overwrite")
    assert (tmp_path / "tokens" / "stereo.jepa").read_bytes() != b"mine"


def test_a_bad_file_is_named_and_the_others_are_done(nano_folder, recordings, tmp_path):
    (recordings / "broken.flac").write_bytes(SPEECH.read_bytes()[:200])
    (recordings / "empty.wav").write_bytes(b"")
    soundfile.write(recordings / "silent.wav", np.zeros(0), 8000)
    output = run("encode", recordings, "-m", nano_folder, "-o", tmp_path / "tokens", code=1)
    assert "2 done, 0 kept, 3 failed" in output
    for name in ("broken.flac", "empty.wav", "silent.wav"):
        assert f"failed: {recordings / name}" in output
    assert sorted(p.name for p in (tmp_path / "tokens").rglob("*") if p.is_file()) == ["sentence.jepa", "stereo.jepa"]

    (tmp_path / "tokens" / "cut.jepa").write_bytes((tmp_path / "tokens" / "stereo.jepa").read_bytes()[:-1])
    output = run("decode", tmp_path / "tokens", "-m", nano_folder, "-o", tmp_path / "audio", code=1)
    assert "2 done, 0 kept, 1 failed" in output
    assert "truncated" in output


def test_wrong_usage_exits_with_2(nano_folder, recordings, tmp_path):
    common = ("-m", nano_folder, "-o", tmp_path / "out")
    assert "no such file or folder" in run("encode", tmp_path / "nowhere", *common, code=2)
    (tmp_path / "bare").mkdir()
    assert "nothing to do" in run("encode", tmp_path / "bare", *common, code=2)
    assert "nowhere" in run("encode", recordings, "-m", "nowhere", "-o", tmp_path / "out", code=2)
    bare = ROOT / "hub_configs" / "jepa-daam-24khz-fast"
    assert "`jepa-audio init" in run("encode", recordings, "-m", bare, "-o", tmp_path / "out", code=2)
    shutil.copy(recordings / "stereo.wav", recordings / "stereo.ogg")
    assert "would both become" in run("encode", recordings, *common, code=2)
    run("encode", recordings, *common, "--dtype", "int8", code=2)
    assert "--output must be a folder" in run("encode", SPEECH, "-m", nano_folder, "-o", tmp_path / "a.jepa", code=2)
    assert "no such file" in run("plot", tmp_path / "no.wav", "-m", nano_folder, "-o", tmp_path / "a.png", code=2)
    assert not (tmp_path / "out").exists()


def test_a_plot_is_a_png(nano_folder, tmp_path):
    run("plot", SPEECH, "-m", nano_folder, "-o", tmp_path / "deep" / "a.png", "--seconds", "3")
    assert (tmp_path / "deep" / "a.png").read_bytes().startswith(PNG_SIGNATURE)
    run("plot", __file__, "-m", nano_folder, "-o", tmp_path / "b.png", code=1)
    assert not (tmp_path / "b.png").exists()


def test_bench_prints_both_ways(nano_folder):
    output = run("bench", "-m", nano_folder, "--seconds", "0.8", "--runs", "1")
    assert "encode" in output
    assert "decode" in output


def test_init_refuses_a_folder_that_holds_something(nano_folder, tmp_path):
    config = ROOT / "hub_configs" / "jepa-daam-24khz-nano"
    run("init", config, tmp_path / "a", "--seed", "5")
    run("init", config, tmp_path / "b", "--seed", "5")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert "is there already" in run("init", config, tmp_path / "a", code=2)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_a_recording_is_never_replaced_by_its_reconstruction(nano_folder, tmp_path):
    shutil.copy(SPEECH, tmp_path / "a.flac")
    for overwrite in ((), ("--overwrite",)):
        output = run("reconstruct", tmp_path, "-m", nano_folder, "-o", tmp_path, "--format", "flac", *overwrite, code=1)
        assert "would take the place of the recording" in output
    assert (tmp_path / "a.flac").read_bytes() == SPEECH.read_bytes()


def test_results_below_the_input_are_not_taken_for_input(nano_folder, tmp_path):
    shutil.copy(SPEECH, tmp_path / "a.flac")
    for _ in range(2):
        run("reconstruct", tmp_path, "-m", nano_folder, "-o", tmp_path / "out", "--overwrite")
    assert [path.name for path in (tmp_path / "out").rglob("*")] == ["a.wav"]


def test_results_may_go_above_the_input(nano_folder, tmp_path):
    (tmp_path / "in" / ".a.wav.tmp").mkdir(parents=True)
    shutil.copy(SPEECH, tmp_path / "in" / "a.flac")
    shutil.copy(SPEECH, tmp_path / "in" / ".a.wav.tmp" / "half.flac")  # as an interrupted run leaves it
    assert "1 done" in run("encode", tmp_path / "in", "-m", nano_folder, "-o", tmp_path)
    assert [path.name for path in tmp_path.glob("*.jepa")] == ["a.jepa"]


def test_an_unusable_device_is_named(nano_folder, tmp_path):
    assert "`device` nonsense cannot be used here" in run(
        "encode", SPEECH, "-m", nano_folder, "-o", tmp_path, "--device", "nonsense", code=2
    )


def test_a_full_disk_leaves_no_half_file(nano_folder, recordings, tmp_path, monkeypatch):
    def fail(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", fail)
    output = run("reconstruct", recordings, "-m", nano_folder, "-o", tmp_path / "out", code=1)
    assert "No space left" in output
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
