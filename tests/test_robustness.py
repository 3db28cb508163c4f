import json

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.packing import pack_frames
from training import robustness
from training.disturbances import standard_disturbances
from training.metrics.codec_quality.clip_quality import MAX_SI_SDR_DB
from training.reconstruction import Clip
from training.robustness import (
    list_recordings,
    load_clips,
    measure_all,
    measure_baselines,
    measure_disturbances,
    measure_shifts,
    moved,
    shift_name,
    summarize,
)

from .conftest import ROOT, SPEECH, TINY, noise

# A second in one chunk, 400 frames.
LONG_CHUNKS = TINY | {"chunk_frames": 440}
# No attention and no gate: a frame hears only what is near.
LOCAL = LONG_CHUNKS | {"num_hidden_layers": 0, "daam_in_encoder": False, "encoder_residual_blocks": (1, 0, 0)}
HOP = 60
NOTHING = {"tokens_changed": 0.0, "digits_changed": 0.0, "digit_steps": 0.0}


def codec_of(config: dict) -> JepaDaamModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return JepaDaamModel(JepaDaamConfig(**config)).eval()


@pytest.fixture(scope="module")
def codec() -> JepaDaamModel:
    return codec_of(LONG_CHUNKS)


@pytest.fixture(scope="module")
def local_codec() -> JepaDaamModel:
    return codec_of(LOCAL)


@pytest.fixture
def clip(speech) -> Clip:
    return Clip("speech", speech[24000:48000], 8000.0)


def test_moved_by_hand():
    config = JepaDaamConfig(**TINY | {"hidden_size": 4, "num_attention_heads": 2, "group_size": 2})
    digits = torch.tensor([[0, 1, 2, 3], [3, 3, 0, 0]])
    other = torch.tensor([[0, 1, 2, 1], [0, 2, 0, 0]])  # by 2 levels; by 3 and 1
    tokens, other_tokens = (pack_frames(each, config.levels, 2) for each in (digits, other))
    assert moved(tokens, other_tokens, config) == {
        "tokens_changed": 2 / 4,
        "digits_changed": 3 / 8,
        "digit_steps": 6 / 8,
    }
    assert moved(tokens, tokens, config) == NOTHING
    with pytest.raises(ValueError, match=r"as many frames of both, at least one, got \(2, 2\), \(1, 2\)"):
        moved(tokens, tokens[:1], config)
    with pytest.raises(ValueError, match="at least one"):
        moved(tokens[:0], tokens[:0], config)


def test_a_whole_frame_later_a_local_encoder_gives_the_same_tokens(local_codec, clip):
    config = local_codec.config
    figures = measure_shifts(local_codec, clip.samples)
    assert figures[shift_name(HOP, config)] == NOTHING
    assert figures[shift_name(HOP // 2, config)]["digits_changed"] > 0.1  # the grid of frames does matter


def test_attention_hears_a_shift_by_a_whole_frame(codec, clip):
    assert measure_shifts(codec, clip.samples)[shift_name(HOP, codec.config)]["digits_changed"] > 0


def test_a_small_shift_moves_less_than_a_large_one(codec, clip):
    figures = measure_shifts(codec, clip.samples)
    assert list(figures) == [shift_name(shift, codec.config) for shift in (1, 3, 15, 30, 60)]
    small, large = (figures[shift_name(shift, codec.config)]["digits_changed"] for shift in (1, 30))
    assert 0 < small < large


def test_shifts_of_the_papers_model_are_round():
    config = JepaDaamConfig()
    assert robustness.shifts(config) == [1, 10, 100, 600, 2400, 4800, 9600]
    assert shift_name(1, config) == "shifted by 1 sample (0.0417 ms)"
    assert shift_name(600, config) == "shifted by 600 samples (25 ms)"
    assert shift_name(9600, config) == "shifted by one frame (9600 samples)"


def test_unrelated_random_digits_agree_by_chance(tiny_config):
    rng = torch.Generator().manual_seed(0)
    clips = [
        pack_frames(
            torch.randint(4, (400, tiny_config.hidden_size), generator=rng), tiny_config.levels, tiny_config.group_size
        )
        for _ in range(2)
    ]
    for figures in measure_baselines(clips, tiny_config):
        for row in ("unrelated recording", "next frame"):
            assert figures[row]["digits_changed"] == pytest.approx(0.75, abs=0.02)  # of 4 levels
            assert figures[row]["digit_steps"] == pytest.approx(1.25, abs=0.04)  # 20 steps in 16 pairs
    assert set(measure_baselines(clips[:1], tiny_config)[0]) == {"next frame"}


def test_baselines_pair_clips_half_the_list_apart(tiny_config):
    digits = torch.tensor([0, 1, 0, 3])[:, None, None].expand(4, 5, tiny_config.hidden_size)
    clips = [pack_frames(each, tiny_config.levels, tiny_config.group_size) for each in digits]
    unrelated = [figures["unrelated recording"]["digit_steps"] for figures in measure_baselines(clips, tiny_config)]
    assert unrelated == [0.0, 2.0, 0.0, 2.0]


def test_what_changes_nothing_moves_nothing(codec, clip, monkeypatch):
    monkeypatch.setattr(robustness, "standard_disturbances", lambda *_: {"gain 0 dB": lambda samples, rng: samples})
    figures = measure_disturbances(codec, clip)
    same = figures["gain 0 dB"]
    assert {name: same[name] for name in NOTHING} == NOTHING
    assert same["input/mel_distance"] == 0.0
    assert same["input/si_sdr_db"] == MAX_SI_SDR_DB
    assert same["clean/mel_distance"] == same["disturbed/mel_distance"] > 0
    for name, value in figures["undisturbed"].items():
        assert same[name] == value


def test_disturbances_move_tokens_and_more_noise_moves_more(codec, clip):
    figures = measure_disturbances(codec, clip, [noise(24000, seed) for seed in range(6)], [noise(9000)])
    silences = {"silence before, 0.0075 s", "silence after, 0.0075 s"}
    assert set(figures) == {"undisturbed", *silences, *standard_disturbances(1, [clip.samples] * 6, [clip.samples])}
    assert all(row["digits_changed"] > 0 for name, row in figures.items() if name not in {"undisturbed", *silences})
    for colour in ("white", "pink"):
        rows = [figures[f"{colour} noise, {snr_db} dB"] for snr_db in (20, 10, 0)]
        assert rows[0]["digits_changed"] < rows[1]["digits_changed"] < rows[2]["digits_changed"]
        assert [row["input/si_sdr_db"] for row in rows] == pytest.approx([20, 10, 0], abs=0.5)
    assert figures["gain -20 dB"]["input/stoi"] == pytest.approx(1.0, abs=1e-3)


def test_silence_is_compared_where_the_clip_is(local_codec, clip):
    quiet_ends = np.pad(clip.samples[: 100 * HOP], 4 * HOP)
    figures = measure_disturbances(local_codec, Clip("quiet ends", quiet_ends, 8000.0))
    for where in ("before", "after"):
        row = figures[f"silence {where}, 0.0075 s"]
        # Without biases zeros become zeros, so that silence is what a local encoder meets at an end anyway.
        assert {name: row[name] for name in NOTHING} == NOTHING
        assert row["input/mel_distance"] == 0.0
        assert row["clean/mel_distance"] == pytest.approx(figures["undisturbed"]["clean/mel_distance"], abs=0.01)


def test_figures_of_a_clip_do_not_depend_on_the_others(codec, clip):
    clip, other = Clip("speech", clip.samples[:9600], 8000.0), Clip("other", noise(9600), 12000.0)
    forth, back = measure_all(codec, [clip, other]), measure_all(codec, [other, clip])
    assert forth == back
    alone = measure_all(codec, [clip])["speech"]
    assert forth["speech"] == {"unrelated recording": forth["speech"]["unrelated recording"], **alone}
    with pytest.raises(ValueError, match="names that differ"):
        measure_all(codec, [clip, clip])


def test_means_are_over_the_clips_that_have_the_figure(monkeypatch):
    monkeypatch.setattr(robustness, "MIN_CLIPS", 3)
    clips = [{"a": {"x": 1.0, "y": 5.0}}, {"a": {"x": 2.0}}, {"a": {"x": 3.0}, "b": {"x": 4.0}}]
    table = summarize(clips)
    assert table["a"]["x"]["mean"] == 2.0
    low, high = table["a"]["x"]["interval"]
    assert 1.0 <= low < 2.0 < high <= 3.0
    assert table["a"]["y"] == {"mean": 5.0, "clips": 1}
    assert table["b"]["x"] == {"mean": 4.0, "clips": 1}


def test_clips_are_whole_frames_and_what_cannot_be_used_is_named(tmp_path):
    config = JepaDaamConfig(**LONG_CHUNKS)
    sounds = {
        "good": noise(1000),
        "long": noise(48000),
        "loud": 20 * noise(1000),
        "short": noise(7 * HOP - 1),
        "silent": np.zeros(1000, np.float32),
    }
    for name, samples in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", samples, 24000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("no sound")
    clips, left_out = load_clips(list_recordings([tmp_path]), config, max_s=0.5)
    folder = tmp_path.name
    assert [(clip.name, len(clip.samples)) for clip in clips] == [
        (f"{folder}/good.wav", 960),
        (f"{folder}/long.wav", 12000 + HOP),
    ]
    assert (clips[1].samples == sounds["long"][: 12000 + HOP]).all()
    assert [reason.split(":")[0] for reason in left_out] == [
        f"{folder}/{name}.wav" for name in ("loud", "short", "silent", "text")
    ]
    assert left_out[0].endswith("its peak is above 1.6, 20 dB more are too loud")
    assert left_out[1].endswith("shorter than 0.0175 s")
    whole_chunk, _ = load_clips(list_recordings([tmp_path]), config)
    assert len(whole_chunk[1].samples) == (440 - 3 + 1) * HOP  # with the silence it still is one chunk
    with pytest.raises(ValueError, match="`max_s` and the model's chunks must hold 6 frames and 3 of silence"):
        load_clips([], JepaDaamConfig(**TINY))


def test_of_many_recordings_as_many_are_taken_as_can_be_used(tmp_path):
    config = JepaDaamConfig(**LONG_CHUNKS)
    lines = [json.dumps({"file": f"{i}.wav", "speaker": "a", "set": "even" if i % 2 == 0 else "odd"}) for i in range(9)]
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    for i in range(9):
        soundfile.write(tmp_path / f"{i}.wav", noise(1000 if i in (1, 4, 5, 8) else HOP), 24000)
    rows = list_recordings([tmp_path])
    assert len(rows) == len(list_recordings([tmp_path / "manifest.jsonl"])) == 9
    assert [row["name"] for row in list_recordings([tmp_path], {"set": "odd"})] == [f"{i}.wav" for i in (1, 3, 5, 7)]
    assert [clip.name for clip in load_clips(rows, config, max_clips=4)[0]] == [f"{i}.wav" for i in (1, 4, 5, 8)]
    some = [clip.name for clip in load_clips(rows, config, max_clips=2)[0]]
    assert len(some) == 2
    assert some == [clip.name for clip in load_clips(rows[::-1], config, max_clips=2)[0]]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`recordings`: no sound files in .*empty"):
        list_recordings([tmp_path / "empty"])


def test_the_command_writes_tables_and_names_what_is_left_out(tmp_path, codec):
    codec.save_pretrained(tmp_path / "model")
    app = robustness.typer.Typer()
    app.command()(robustness.command)
    arguments = [str(tmp_path / "model"), str(ROOT / "tests" / "audio"), "--max-clips", "2", "--max-s", "0.6"]
    output = tmp_path / "a" / "b"
    result = CliRunner().invoke(app, [*arguments, "--output", str(output), "--music", str(SPEECH.parent)])
    assert result.exit_code == 0, result.output
    found = json.loads((output / "robustness.json").read_text())
    assert found["left_out"][0] == "babble: needs 7 recordings, got 2"
    assert len(found["clips"]) == 2
    assert set(found["table"]) >= {"unrelated recording", "undisturbed", "music, 10 dB", "telephone band"}
    mean = found["table"]["telephone band"]["digits_changed"]["mean"]
    assert mean == np.mean([clip["telephone band"]["digits_changed"] for clip in found["clips"].values()])
    text = (output / "robustness.md").read_text()
    assert f"{100 * mean:.1f}" in next(line for line in text.splitlines() if line.startswith("| telephone band"))
    assert "Left out: babble" in text
    again = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "again")])
    assert again.exit_code == 0
    without = json.loads((tmp_path / "again" / "robustness.json").read_text())
    assert "music: no --music was given" in without["left_out"]
    for name, rows in without["clips"].items():  # to the last digit
        assert rows == {row: found["clips"][name][row] for row in rows}
    wrong = CliRunner().invoke(app, [*arguments, "--where", "set", "--output", str(output)])
    assert wrong.exit_code == 2
    assert "`where` must be KEY=VALUE, got 'set'" in wrong.output
    missing = CliRunner().invoke(app, [str(tmp_path / "nowhere"), *arguments[1:], "--output", str(output)])
    assert missing.exit_code == 2
    assert "nowhere" in missing.output
