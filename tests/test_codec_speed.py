"""Speed and memory of codecs: the bookkeeping, and one real run of a small configuration."""

import json

import numpy as np
import pytest

from modeling_jepa_daam.framing import num_frames
from training import codec_speed
from training.codec_speed import Measured, Row, Task, compare, load, main, table

from .conftest import SPEECH


def test_a_report_has_encoding_and_decoding(tiny_folder, tmp_path, capsys):
    numbers = ["--seconds", "0.5", "--rounds", "1", "--batches", "2"]
    main([f"jepa:{tiny_folder}", *numbers, "--output", str(tmp_path / "speed.json")])
    report = json.loads((tmp_path / "speed.json").read_text())
    assert [(row["direction"], row["batch"]) for row in report["rows"]] == [("encode", 2), ("decode", 2)]
    for row in report["rows"]:
        assert row["times_real_time"] == pytest.approx(row["batch"] * 0.5 / row["seconds"][0])
        assert 1e5 < row["peak_bytes"] < 1e9
    assert (report["seconds"], report["rounds"], report["recording"]) == (0.5, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["speed.json", "speed.md"]
    cell = f"{report['rows'][0]['times_real_time']:.1f} / "
    assert cell in capsys.readouterr().out
    assert f"| 2 | {cell}" in (tmp_path / "speed.md").read_text()


def test_rounds_are_interleaved_and_medians_taken(monkeypatch):
    pools, asked, seconds = [], [], iter([1.0, 2.0, 3.0, 4.0] + [9.0] * 4 + [2.0, 3.0, 4.0, 5.0])

    class Pool:
        def __init__(self, *arguments):
            pools.append(self)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, task):
            asked.append((task.spec, task.direction))
            self.result = lambda: Measured(next(seconds), None)
            return self

    monkeypatch.setattr(codec_speed, "ProcessPoolExecutor", Pool)
    rows = compare(["codec2:1200", "opus:6"], seconds=12.0, rounds=3)
    once = [(spec, direction) for spec in ("codec2:1200", "opus:6") for direction in ("encode", "decode")]
    assert asked == once * 3
    assert len(pools) == len(asked)  # each in a process of its own
    assert [row.times_real_time for row in rows] == [12 / 2, 12 / 3, 12 / 4, 12 / 5]
    assert rows[0].seconds == [1.0, 9.0, 2.0]
    assert all(row.peak_bytes is None and row.batch == 1 for row in rows)


def test_what_is_not_measured_is_a_dash():
    rows = [Row("opus:6", direction, 1, 50.0, [0.1], None) for direction in ("encode", "decode")]
    cells = [column._cells[0] for column in table(rows, "title").columns]
    assert cells == ["opus:6", "1", "50.0 / 50.0", "- / -"]


def test_clips_are_noise_or_a_recording(tmp_path):
    task = Task("opus:6", "encode", 3, 0.5, 1, None, tmp_path / "encoded")
    noise = codec_speed._clips(task, 16000)
    assert noise.shape == (3, 8000)
    assert not np.array_equal(noise[0], noise[1])
    speech = codec_speed._clips(Task("opus:6", "encode", 2, 9.0, 1, str(SPEECH), tmp_path / "encoded"), 24000)
    assert speech.shape == (2, 9 * 24000)
    length = len(codec_speed.load_audio(SPEECH, None, 24000))
    np.testing.assert_array_equal(speech.flatten()[:100], speech.flatten()[length : length + 100])


def test_our_batches_go_through_the_model_at_once(tiny_folder, tiny_model):
    config = tiny_model.config
    for spec in (f"jepa:{tiny_folder}", f"config:{tiny_folder}"):
        coder = load(spec)
        assert (coder.sampling_rate, coder.in_process) == (config.sampling_rate, True)
        encoded = coder.encode(np.zeros((3, 1000), np.float32))
        frames = num_frames(1000, config.hop_length)
        assert encoded["audio_codes"].shape == (3, config.tokens_per_frame, frames)
        assert coder.decode(encoded).audio_values.shape == (3, 1, frames * config.hop_length)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("original", "nothing to time"),
        ("model:vall-e", "one of mimi, encodec, dac"),
        ("config:absent", "no config.json"),
        ("jepa:absent", "no config.json"),
        ("opus:1", "Opus needs"),
    ],
)
def test_what_cannot_be_timed_is_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        load(spec)


def test_numbers_must_be_positive():
    for wrong in ({"seconds": 0.0}, {"rounds": 0}, {"batches": (0,)}, {"batches": ()}):
        with pytest.raises(ValueError, match="must be positive"):
            compare(["opus:6"], **wrong)


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["opus:6", "--output", str(tmp_path / "absent" / "speed.json")])
    assert "--output: no folder" in capsys.readouterr().err
