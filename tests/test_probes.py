import io
import json
import tarfile

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel
from training import probes
from training.probes import ProbeClip, encoder_features, load_probe_clips, log_mel_features, probe_all, probe_outcomes

from .conftest import TINY, noise

SPEAKERS = 24
WORDS = ("one", "two", "go", "stop")
LANGUAGES = {"nathalie": "nl", "fleursdumal": "fr", "audiocmn": "cmn"}


def clip(name, source="an4", speaker="a", text="", language="en", piece=0, samples=None):
    return ProbeClip(name, source, speaker, language, text, noise(480) if samples is None else samples, piece)


@pytest.fixture(scope="module")
def clips() -> list[ProbeClip]:
    """Clips of all sources, without sound: each word in about half of the clips of an4."""
    texts = np.random.default_rng(0).integers(0, 2, (SPEAKERS * 10, len(WORDS))).astype(bool)
    spoken = [" ".join(word for word, said in zip(WORDS, row, strict=True) if said) for row in texts]
    speakers = [f"speaker{i}" for i in range(SPEAKERS)]
    return [
        *(clip(f"l/{s}", "librispeech", s, piece=piece) for s in speakers for piece in range(probes.PIECES)),
        *(clip(f"o/{s}/{i}", "speechocean762", s) for s in speakers for i in range(10)),
        *(clip(f"a/{i}", "an4", speakers[i % SPEAKERS], text) for i, text in enumerate(spoken)),
        *(clip(f"{s}/{i}", s, s, language=language) for s, language in LANGUAGES.items() for i in range(40)),
    ]


def one_hot(values) -> np.ndarray:
    return (np.array(values)[:, None] == np.unique(values)).astype(np.float32)


def test_features_that_contain_the_label_are_read(clips):
    labels = [
        one_hot([c.speaker for c in clips]),
        one_hot([c.language for c in clips]),
        np.array([[word in c.text.split() for word in WORDS] for c in clips], np.float32),
    ]
    rng = np.random.default_rng(0)
    features = np.concatenate([*labels, rng.normal(size=(len(clips), 8))], axis=1)
    figures = probe_all(features, clips)
    assert set(figures) == {*probes.PROBES, "digits_an4"} - {"tone", "tone_unseen_speaker"}
    assert min(figures.values()) > 0.97


def test_features_that_are_noise_stay_at_chance(clips):
    figures = probe_all(np.random.default_rng(1).normal(size=(len(clips), 16)), clips)
    assert figures["speaker_librispeech"] < 0.25
    assert figures["speaker_speechocean"] < 0.2
    assert 0.35 < figures["words_an4"] < 0.65
    assert figures["language"] < 0.4


def test_constant_features_stay_at_chance(clips):
    figures = probe_all(np.ones((len(clips), 4), np.float32), clips)
    assert figures["words_an4"] == 0.5
    assert figures["language"] == 0.25


@pytest.mark.parametrize(("probe", "source"), [("words_an4", "an4"), ("language", "speechocean762")])
def test_no_speaker_is_in_two_parts(clips, probe, source):
    chosen = [c for c in clips if c.source == source]
    part = probes.parts(probe, chosen)
    speakers = [{c.speaker for c, one in zip(chosen, part, strict=True) if one == name} for name in probes.PARTS]
    assert all(speakers)
    assert sum(map(len, speakers)) == SPEAKERS


@pytest.mark.parametrize("probe", ["speaker_librispeech", "speaker_speechocean"])
def test_every_speaker_to_recognise_is_trained_and_tested(clips, probe):
    chosen = [c for c in clips if c.source in probes.PROBES[probe]]
    part = probes.parts(probe, chosen)
    assert len({c.speaker for c, one in zip(chosen, part, strict=True) if one != "test"}) == SPEAKERS
    # A speaker has no clip in the test part with a chance of 0.7 ** 10.
    assert len({c.speaker for c, one in zip(chosen, part, strict=True) if one == "test"}) >= SPEAKERS - 2


def test_the_last_piece_is_tested(clips):
    chosen = clips[: 2 * probes.PIECES]
    assert probes.parts("speaker_librispeech", chosen).tolist() == 2 * ["train", "train", "validation", "test"]


def tone_clips() -> list[ProbeClip]:
    """40 syllables in four tones by one voice, and ten of them by another."""
    return [
        clip(f"{source}/{i}{tone}", source, source, f"{'x' * (1 + i)}{tone}", "cmn")
        for source, syllables in (("tones", 40), ("tones_unseen_speaker", 10))
        for i in range(syllables)
        for tone in (1, 2, 3, 4)
    ]


def test_tones_are_told_on_syllables_and_voices_that_were_not_trained_on():
    chosen = tone_clips()
    part = probes.parts("tone", chosen[:160])
    syllables = [{c.text[:-1] for c, one in zip(chosen, part, strict=False) if one == name} for name in probes.PARTS]
    assert all(syllables)
    assert sum(map(len, syllables)) == 40
    unseen = probes.parts("tone_unseen_speaker", chosen)
    assert [c.source for c, one in zip(chosen, unseen, strict=True) if one == "test"] == 40 * ["tones_unseen_speaker"]
    told = one_hot([c.text[-1] for c in chosen])
    assert probe_all(told, chosen) == {"tone": 1.0, "tone_unseen_speaker": 1.0}
    syllable_alone = probe_all(one_hot([len(c.text) for c in chosen]), chosen)
    assert syllable_alone["tone"] == 0.25
    of_one_voice = np.where(np.arange(200) < 160, 1.0, -1.0)[:, None] * told  # the other voice has all tones reversed
    figures = probe_all(of_one_voice, chosen)
    assert figures["tone"] == 1.0
    assert figures["tone_unseen_speaker"] < 0.1


def test_intervals_hold_the_figure_and_are_wide_for_few_units(clips):
    told = one_hot([c.speaker for c in clips])
    outcomes = probe_outcomes(told + np.random.default_rng(0).normal(0, 0.4, told.shape), clips)
    for outcome in outcomes.values():
        low, high = np.quantile(outcome.resampled(), [0.025, 0.975])
        assert low <= outcome.figure() <= high
    words = outcomes["words_an4"]
    assert set(words.units) == {c.speaker for c in clips if c.source == "an4"} & set(words.units)
    assert len(words.units) > len(set(words.units))  # drawn by speaker, not by clip
    speakers = outcomes["speaker_speechocean"]
    spread = np.std(speakers.resampled())
    binomial = np.sqrt(speakers.figure() * (1 - speakers.figure()) / len(speakers.units))
    assert spread == pytest.approx(binomial, rel=0.15)


def test_scores_by_hand():
    labels, answers = np.array(list("aabc")), np.array(list("abbd"))
    assert probes.score("speaker_librispeech", labels, answers, np.ones(4)) == 0.5
    assert probes.score("language", labels, answers, np.ones(4)) == 0.5  # recalls 1/2, 1, 0
    assert probes.score("tone", labels[:3], answers[:3], np.ones(3)) == 0.75


@pytest.mark.parametrize("probe", list(probes.PROBES))
def test_parts_depend_on_names_alone(clips, probe):
    chosen = [c for c in [*clips, *tone_clips()] if c.source in probes.PROBES[probe]]
    whole = probes.parts(probe, chosen)
    assert probes.parts(probe, chosen[::-1]).tolist() == whole[::-1].tolist()
    assert probes.parts(probe, chosen[::7]).tolist() == whole[::7].tolist()


def test_shares_are_the_same_everywhere_and_even():
    assert probes.share_of("a") == 0xCA978112CA1B / 2**48  # SHA-256 of "a" is ca978112ca1bbdca...
    shares = np.sort([probes.share_of(str(i)) for i in range(1000)])
    assert np.abs(shares - np.arange(1000) / 1000).max() < 0.06  # Kolmogorov-Smirnov, 0.1 %


def test_figures_do_not_depend_on_the_run(clips):
    features = np.random.default_rng(2).normal(size=(len(clips), 8))
    assert probe_all(features, clips) == probe_all(features, clips)


def test_matched_area_by_hand():
    margins = np.array([3.0, 1.0, 2.0, 1.0, 0.0])
    labels = np.array([True, True, False, False, False])
    lengths = np.array([100, 100, 100, 105, 300])
    # Pairs of like lengths: 3 > 2, 3 > 1, 1 < 2, 1 = 1. The last clip is too long to be compared.
    assert probes.matched_area(margins, labels, lengths) == 2.5 / 4


def test_length_alone_tells_no_words():
    rng = np.random.default_rng(0)
    lengths = rng.integers(10_000, 100_000, 4000)
    said = rng.random(4000) < lengths / 100_000  # the longer the likelier
    assert probes.matched_area(lengths.astype(float), said, lengths) < 0.55
    assert probes.matched_area(lengths.astype(float), said, np.ones(4000)) > 0.75


def test_probes_without_clips_are_left_out(clips):
    chosen = [c for c in clips if c.source == "librispeech"]
    assert set(probe_all(np.ones((len(chosen), 2)), chosen)) == {"speaker_librispeech"}


def test_features_are_checked(clips):
    with pytest.raises(
        ValueError, match=r"`features` must have shape \(clips, channels\) with \d+ clips, got \(3, 2\)"
    ):
        probe_all(np.ones((3, 2)), clips)
    with pytest.raises(ValueError, match="`features` must be finite, got 1 "):
        probe_all(np.append(np.ones(2 * len(clips) - 1), np.nan).reshape(-1, 2), clips)


def test_log_mel_of_a_tone_peaks_at_its_band():
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(24000) / 24000).astype(np.float32)
    silence = np.zeros(1000, np.float32)
    features = log_mel_features([clip("tone", samples=tone), clip("silence", samples=silence)])
    assert features.shape == (2, 160)
    assert features.dtype == np.float32
    # 200 / 3 Hz per mel up to 1 kHz (15 mel), logarithmic above; band i has its peak at step i + 1.
    step = (15 + 27 * np.log(12) / np.log(6.4)) / 81
    assert features[0, :80].argmax() == round(15 / step) - 1
    assert features[0, 80:].max() < 3.0  # steady but for the ends
    assert (features[1, :80] == np.log(np.float32(1e-5))).all()
    assert (features[1, 80:] == 0).all()


def test_padding_does_not_change_pooled_features(monkeypatch):
    torch.manual_seed(0)
    model = JepaDaamEncoderModel(JepaDaamConfig(**TINY))
    lengths = (700, 30, 1201, 60)
    batch = [clip(str(n), samples=noise(n, seed=n)) for n in lengths]
    together = encoder_features(model.train(), batch)
    assert model.training
    assert together.shape == (4, 32)
    for row, one in zip(together, batch, strict=True):
        np.testing.assert_allclose(encoder_features(model, [one])[0], row, atol=1e-5)
        with torch.no_grad():
            latents = model.eval()(torch.from_numpy(one.samples)[None, None]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(row, np.concatenate([latents.mean(0), latents.std(0)]), atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 0.01
    monkeypatch.setattr(probes, "BATCH_S", 0.0)  # a clip that is longer than a batch is one of its own
    np.testing.assert_allclose(encoder_features(model, batch), together, atol=1e-5)


def write_shard(path, members):
    """A tar of `{name: (samples or None, labels or None)}`, sound as Opus."""
    with tarfile.open(path, "w") as tar:
        for name, (samples, labels) in members.items():
            contents = {}
            if samples is not None:
                sound = io.BytesIO()
                soundfile.write(sound, samples, 24000, format="OGG", subtype="OPUS")
                contents["opus"] = sound.getvalue()
            if labels is not None:
                contents["json"] = json.dumps(labels).encode()
            for suffix, content in contents.items():
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def labels(source, speaker, text=None):
    return {"source": source, "speaker": speaker, "language": "en", "text": text}


def test_shards_are_read(tmp_path):
    shard = write_shard(
        tmp_path / "a.tar",
        {
            "librispeech/x/1": (noise(24000), labels("librispeech", "x")),
            "an4/y/2": (noise(12000), labels("an4", "y", "Go ONE")),
            "speechocean762/z/3": (noise(24000 * 5), labels("speechocean762", "z")),
            "kathleen/k/4": (noise(12000), labels("kathleen", "k")),  # no probe uses it
        },
    )
    loaded = load_probe_clips([shard])
    assert [(c.name, c.piece) for c in loaded] == [
        ("an4/y/2", 0),
        *(("librispeech/x/1", piece) for piece in range(4)),
        ("speechocean762/z/3", 0),
    ]
    assert [len(c.samples) for c in loaded] == [12000, 6000, 6000, 6000, 6000, 96000]
    assert loaded[0].text == "go one"
    assert (loaded[0].source, loaded[0].speaker, loaded[0].language) == ("an4", "y", "en")


def test_shards_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match="`shards` must hold clips of librispeech, .*; got none in 1 files"):
        load_probe_clips([write_shard(tmp_path / "empty.tar", {})])
    with pytest.raises(ValueError, match=r"lonely.tar has an4/x/1.opus, but no an4/x/1.json"):
        load_probe_clips([write_shard(tmp_path / "lonely.tar", {"an4/x/1": (noise(4800), None)})])


def speakers_an_octave_apart(samples):
    """Members of a shard: four speakers that are sines, which log-mel tells apart."""
    phases = 2 * np.pi * 300 * np.arange(samples) / 24000
    return {
        f"librispeech/{i}/0": ((0.3 * np.sin(2**i * phases)).astype(np.float32), labels("librispeech", str(i)))
        for i in range(4)
    }


def test_the_command_writes_a_table(tiny_folder, tmp_path):
    members = speakers_an_octave_apart(4800)
    app = probes.typer.Typer()
    app.command()(probes.command)
    arguments = [str(write_shard(tmp_path / "a.tar", members)), "--output", str(tmp_path / "table.json")]
    arguments += ["--checkpoint", f"mine={tiny_folder}", "--untrained", f"{tiny_folder}:3"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads((tmp_path / "table.json").read_text())
    assert list(figures) == ["clip length", "log-mel mean/std", "mine", "checkpoint, untrained 3"]
    assert figures["log-mel mean/std"] == {"speaker_librispeech": 1.0}  # four tones an octave apart
    assert "| log-mel mean/std | 1.000 |" in result.output
    result = CliRunner().invoke(app, [*arguments, "--checkpoint", "nowhere"])
    assert result.exit_code == 2
    assert "got nowhere" in result.output
