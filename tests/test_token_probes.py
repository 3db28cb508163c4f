import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.packing import unpack_frames
from training import token_probes
from training.frozen import load_frozen
from training.probes import ProbeClip, encoder_features, probe_outcomes
from training.token_probes import HASHED, KINDS, codec_features, digit_shares, hashed_tokens, summarize

from .conftest import TINY, noise
from .test_probes import labels, speakers_an_octave_apart, tone_clips, write_shard


@pytest.fixture(scope="module")
def codec(tiny_folder) -> JepaDaamModel:
    return load_frozen(JepaDaamModel, tiny_folder)


@pytest.fixture
def clips(speech) -> list[ProbeClip]:
    starts = (5000, 30000, 60000)
    return [ProbeClip(str(start), "an4", "a", "en", "", speech[start : start + 400]) for start in starts]


def test_latents_are_what_encoders_are_probed_by(codec, clips, tiny_folder):
    encoder = load_frozen(token_probes.JepaDaamEncoderModel, tiny_folder)
    np.testing.assert_allclose(codec_features(codec, clips)["latents"], encoder_features(encoder, clips), atol=1e-5)


def test_digits_are_those_that_the_codec_sends(codec, clips):
    features = codec_features(codec, clips)
    for row, clip in enumerate(clips):
        with torch.no_grad():
            tokens = codec.encode(torch.from_numpy(clip.samples)[None, None]).audio_codes[0].T
        indices = unpack_frames(tokens, codec.config.levels, codec.config.group_size)
        np.testing.assert_array_equal(features["digits"][row], digit_shares(indices, codec.config.levels))
        np.testing.assert_array_equal(features["token ids"][row], hashed_tokens(tokens))
        values = codec.quantizer.indices_to_values(indices)
        expected = torch.cat([values.mean(0), values.std(0, correction=0)])
        np.testing.assert_allclose(features["quantized"][row], expected, atol=1e-6)


def test_shares_of_digits_by_hand():
    indices = torch.tensor([[0, 2], [0, 1], [1, 1], [0, 1]])
    np.testing.assert_array_equal(digit_shares(indices, (2, 4)), [0.75, 0.25, 0, 0.75, 0.25, 0])


def test_hashed_tokens_count_ids_at_their_places():
    one, twice, swapped, other = (
        hashed_tokens(torch.tensor(frames)) for frames in ([[5, 9]], [[5, 9], [5, 9]], [[9, 5]], [[5, 9], [7, 7]])
    )
    assert one.shape == (HASHED,)
    np.testing.assert_array_equal(one, twice)  # a mean over frames
    assert (np.abs(one).sum(), np.count_nonzero(one)) == (2, 2)
    assert (one != swapped).any()
    np.testing.assert_allclose(2 * other - one, hashed_tokens(torch.tensor([[7, 7]])))


def test_a_codec_of_another_rate_is_refused(clips):
    with pytest.raises(ValueError, match="`codec` must take the clips' 24000 Hz, got 16000 Hz"):
        codec_features(JepaDaamModel(JepaDaamConfig(**TINY | {"sampling_rate": 16000})).eval(), clips)


def test_differences_are_on_the_same_draws():
    chosen = tone_clips()
    rng = np.random.default_rng(0)
    told = (np.array([int(c.text[-1]) for c in chosen])[:, None] == np.arange(1, 5)) + rng.normal(0, 0.6, (200, 4))
    weak, strong = probe_outcomes(told + rng.normal(0, 1, told.shape), chosen), probe_outcomes(told, chosen)
    outcomes = {
        "clip length": weak,
        **{f"a: {kind}": weak for kind in KINDS},
        **{f"b: {kind}": strong for kind in KINDS},
        **{f"c: {kind}": weak for kind in KINDS},
    }
    result = summarize(outcomes, ["a", "b", "c"])
    assert result["tested"]["tone_unseen_speaker"] == {"clips": 40, "units": 10}
    difference = result["differences"]["b: digits"]["tone"]
    weak_figure, strong_figure = (result["figures"][f"{name}: digits"]["tone"] for name in "ab")
    assert difference["figure"] == pytest.approx(strong_figure["figure"] - weak_figure["figure"])
    assert 0 < difference["interval"][0] < difference["figure"] < difference["interval"][1]
    same = result["differences"]["c: digits"]["tone"]
    assert (same["figure"], same["interval"]) == (0.0, (0.0, 0.0))  # which independent draws would not give


def test_without_pypinyin_tones_are_named_and_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(token_probes, "PYPINYIN_MISSING", "no tones")
    shard = write_shard(tmp_path / "a.tar", {"an4/x/1": (noise(4800), labels("an4", "x", "go"))})
    clips, left_out = token_probes.load_clips([shard], tmp_path / "not read")
    assert ([clip.source for clip in clips], left_out) == (["an4"], ["no tones"])


def test_the_command_writes_tables(tiny_folder, tmp_path):
    """Speakers are sines an octave apart: log-mel tells them, a constant cannot."""
    members = speakers_an_octave_apart(9600)
    app = token_probes.typer.Typer()
    app.command()(token_probes.command)
    arguments = [str(write_shard(tmp_path / "a.tar", members)), "--output", str(tmp_path / "out")]
    models = ["--checkpoint", f"mine={tiny_folder}", "--untrained", f"{tiny_folder}:3", "--encoder", f"e={tiny_folder}"]
    result = CliRunner().invoke(app, [*arguments, *models])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "token_probes.json").read_text())
    trained, drawn = ([f"{name}: {kind}" for kind in KINDS] for name in ("mine", "checkpoint, untrained 3"))
    assert list(found["figures"]) == ["a constant", "clip length", "log-mel", "e: encoder", *trained, *drawn]
    assert list(found["differences"]) == drawn
    assert found["figures"]["log-mel"]["speaker_librispeech"] == {"figure": 1.0, "interval": [1.0, 1.0]}
    assert found["figures"]["a constant"]["speaker_librispeech"]["figure"] == 0.25
    assert found["figures"]["e: encoder"] == found["figures"]["mine: latents"]
    assert found["tested"] == {"speaker_librispeech": {"clips": 4, "units": 4}}
    assert any("words_an4, language" in reason for reason in found["left_out"])
    text = (tmp_path / "out" / "token_probes.md").read_text()
    assert "| log-mel | 1.000 (1.000 to 1.000) |" in text
    assert "higher than mine by" in text
    result = CliRunner().invoke(app, [*arguments, "--checkpoint", "nowhere"])
    assert result.exit_code == 2
    assert "got nowhere" in result.output
