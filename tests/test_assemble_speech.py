import io
import json
import re
import tarfile

import av
import numpy as np
import pytest
import soundfile
import soxr
import typer
from typer.testing import CliRunner

from training import assemble_speech
from training.assembly import shards
from training.assembly.recipes import RECIPES, SPEECH_SOURCES, Clip, corpus_of, find_clips, load_sources, slug
from training.assembly.sound_files import bandwidth_hz, cut, encode_opus, is_silent, read_sound
from training.assembly.spectral_fingerprint import FingerprintIndex, fingerprint

from .conftest import ROOT, SPEECH

OTHER = next((ROOT / "tests" / "audio" / "librispeech" / "1998").rglob("*.flac"))
RECIPE = """
readers:
  title: Readers
  licence: '{licence}'
  url: https://example.org
  language: mul
  obtain: git clone https://example.org/readers
  files: ['(?P<language>[a-zA-Z_]+)/(?P<file>(?P<id>[^/]+)\\.(wav|flac|ogg))']
  speaker: '{language}_{author}'
  speech_language: '{language}'
  text: '{text}'
  text_replace: {'[+]': ''}
  lowercase_text: true
  defaults: {author: unknown}
  joins:
    - file: LICENSE
      section: '\\./(?P<section>.+):'
      line: '(?P<listed>\\S+)\\s+(?:(?P<author>\\w.*?)\\s*/\\s*)?(?P<licence>[^/]+)'
      key: '{section}/{listed}'
      match: '{language}/{file}'
      required: true
    - {file: texts.csv, line: '(?P<listed>[^|]+)\\|(?P<text>.+)', key: '{listed}', match: '{id}'}
"""


@pytest.fixture(scope="module")
def speech():
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    return soxr.resample(samples, rate, 24000)[: 24000 * 3]


@pytest.fixture(scope="module")
def other_speech():
    samples, rate = soundfile.read(OTHER, dtype="float32")
    return soxr.resample(samples, rate, 24000)[: 24000 * 3]


@pytest.fixture
def corpus(tmp_path, speech, other_speech):
    """A corpus of two languages and three readers, with two damaged files, a copy, a short and a silent one."""
    folder = tmp_path / "readers"
    (folder / "pt_BR").mkdir(parents=True)
    (folder / "en").mkdir()
    soundfile.write(folder / "pt_BR" / "a.wav", speech, 24000)
    soundfile.write(folder / "en" / "b.flac", other_speech, 24000)
    soundfile.write(folder / "en" / "c.ogg", speech[30000:], 24000)
    soundfile.write(folder / "en" / "short.wav", speech[: int(24000 * 0.39)], 24000)
    soundfile.write(folder / "en" / "silent.wav", speech * 1e-5, 24000, subtype="FLOAT")
    (folder / "en" / "copy.flac").write_bytes((folder / "en" / "b.flac").read_bytes())
    (folder / "en" / "cut.wav").write_bytes((folder / "pt_BR" / "a.wav").read_bytes()[:-1000])
    (folder / "en" / "cut.ogg").write_bytes((folder / "en" / "c.ogg").read_bytes()[:-100])
    (folder / "en" / "unlisted.wav").write_bytes((folder / "pt_BR" / "a.wav").read_bytes())
    listed = "\n".join(f"{name}  Zoë Réader / CC0" for name in ("short.wav", "silent.wav", "copy.flac", "cut.wav"))
    (folder / "LICENSE").write_text(
        f"./pt_BR:\na.wav  GPL V3+\n./en:\nb.flac  Ann Other / CC BY\nc.ogg  Zoë Réader / CC0\n{listed}\ncut.ogg  CC0\n"
    )
    (folder / "texts.csv").write_text("b|A T+EXT\n")
    return folder


@pytest.fixture
def recipes(tmp_path):
    path = tmp_path / "recipes.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def run(recipes):
    app = typer.Typer()
    app.command()(assemble_speech.command)

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--recipes", str(recipes)])

    return run


def members(tar):
    with tarfile.open(tar) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_a_corpus_becomes_shards_with_metadata(corpus, tmp_path, run, speech, other_speech):
    result = run(f"readers={corpus}", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    files = members(tmp_path / "out" / "readers-000.tar")
    by_stem = {re.search(r"/(\w+)-[0-9a-f]{8}\.", name)[1]: name for name in files if name.endswith(".json")}
    assert set(by_stem) == {"a", "b", "c"}
    assert by_stem["a"].startswith("readers/readers_pt_br_unknown/a-")
    assert by_stem["c"].startswith("readers/readers_en_zoe_reader/c-")
    metadata = json.loads(files[by_stem["b"]])
    assert metadata.pop("bandwidth_hz") == pytest.approx(8000, abs=150)
    assert metadata.pop("duration_s") == round(len(other_speech) / 24000, 3)
    assert metadata == {
        "source": "readers",
        "speaker": "readers_en_ann_other",
        "language": "en",
        "text": "a text",
        "source_rate": 24000,
        "licence": "CC BY",
    }
    assert json.loads(files[by_stem["a"]])["language"] == "pt-BR"
    assert json.loads(files[by_stem["a"]])["text"] is None
    opus = files[by_stem["a"].replace(".json", ".opus")]
    decoded, rate = soundfile.read(io.BytesIO(opus), dtype="float32")
    assert (rate, len(decoded)) == (24000, len(speech)), "nothing is trimmed"
    assert np.corrcoef(decoded, speech)[0, 1] > 0.98
    assert 2000 < len(opus) / 3 < 8000, "16 to 64 kbit/s"


def test_what_is_left_out_is_named_with_the_reason(corpus, tmp_path, run):
    result = run(f"readers={corpus}", "--output", tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "readers.manifest.json").read_text())
    reasons = {each["path"]: each["reason"] for each in manifest["left_out"]}
    assert reasons.keys() == {
        f"en/{name}" for name in ("short.wav", "silent.wav", "unlisted.wav", "cut.wav", "cut.ogg")
    } | {"en/copy.flac"}
    assert reasons["en/short.wav"] == "shorter than 0.4 s"
    assert reasons["en/silent.wav"] == "silent"
    assert reasons["en/unlisted.wav"] == "no line in LICENSE"
    assert reasons["en/copy.flac"] == "a copy of en/b.flac"
    assert reasons["en/cut.wav"] == "damaged: the `data` chunk is longer than the file"
    assert reasons["en/cut.ogg"].startswith("damaged: `data`: the Ogg stream ends inside a page")
    assert f"refused: {corpus}/en/cut.wav: damaged" in result.output
    assert (manifest["clips"], manifest["speakers"]) == (3, 3)
    assert manifest["hours_by_licence"] == {"CC BY": 0.001, "CC0": 0.0, "GPL V3+": 0.001}


@pytest.mark.parametrize("content", [b"", b"RIFF", b"fLaC" + bytes(100), b"OggS" + bytes(100)])
def test_a_file_without_sound_is_refused_by_name(tmp_path, content):
    path = tmp_path / "x.wav"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.wav: damaged"):
        read_sound(path)


def test_samples_that_are_not_finite_are_refused(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.array([0.0, np.nan]), 24000, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"x\.wav: damaged: NaN"):
        read_sound(tmp_path / "x.wav")


def test_equal_recordings_give_equal_bytes(corpus, tmp_path, run):
    for name in ("one", "two"):
        assert run(f"readers={corpus}", "--output", tmp_path / name).exit_code == 0
    for file in ("readers-000.tar", "readers-000.json", "readers.manifest.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_an_interrupted_run_resumes_with_the_same_bytes(corpus, tmp_path, run, monkeypatch):
    monkeypatch.setattr(shards, "RECORDINGS_PER_SHARD", 2)
    assert run(f"readers={corpus}", "--output", tmp_path / "whole").exit_code == 0
    encoded = []

    def interrupted(samples):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(samples)
        return encode_opus(samples)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "encode_opus", interrupted)
        assert run(f"readers={corpus}", "--output", tmp_path / "parts").exit_code != 0
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.tar")}
    whole = sorted((tmp_path / "whole").iterdir())
    assert 0 < len(there) < sum(path.suffix == ".tar" for path in whole)
    assert run(f"readers={corpus}", "--output", tmp_path / "parts").exit_code == 0
    assert [path.name for path in sorted((tmp_path / "parts").iterdir())] == [path.name for path in whole]
    for path in whole:
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
        assert there.get(path.name) in (None, (tmp_path / "parts" / path.name).stat().st_mtime_ns)


def test_shards_of_other_recordings_or_damaged_ones_are_refused(corpus, tmp_path, run):
    output = tmp_path / "out"
    assert run(f"readers={corpus}", "--output", output).exit_code == 0
    tar = output / "readers-000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-1])
    result = run(f"readers={corpus}", "--output", output)
    assert result.exit_code == 2
    assert "readers-000.tar is damaged" in result.output
    tar.write_bytes(content)
    (corpus / "texts.csv").write_text("b|another text\n")
    result = run(f"readers={corpus}", "--output", output)
    assert result.exit_code == 2
    assert "holds other recordings" in result.output


def test_recordings_and_speakers_of_an_evaluation_stay_out(corpus, tmp_path, run, speech, other_speech):
    evaluation = tmp_path / "eval"
    evaluation.mkdir()
    quiet = soxr.resample(other_speech[12000:48000], 24000, 16000) * 0.1  # a cut, at another rate and level
    (evaluation / "x.opus").write_bytes(encode_opus(soxr.resample(quiet, 16000, 24000)))
    soundfile.write(evaluation / "y.wav", np.roll(speech[::-1], 999), 24000)
    rows = [
        {"file": "x.opus", "source": "else", "speaker": "else_1"},
        {"file": "y.wav", "source": "readers", "speaker": "readers_en_zoe_reader"},
    ]
    (evaluation / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(f"readers={corpus}", "--output", tmp_path / "out", "--held-out", evaluation / "manifest.jsonl")
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "out" / "readers.manifest.json").read_text())
    reasons = {each["path"]: each["reason"] for each in manifest["left_out"]}
    assert reasons["en/b.flac"] == "kept out: x.opus"
    assert reasons["en/c.ogg"] == "speaker of the evaluation: en_zoe_reader"
    assert manifest["clips"] == 1


def test_recordings_that_are_there_stay_out_and_their_speakers_do_not(corpus, tmp_path, run):
    assert run(f"readers={corpus}", "--output", tmp_path / "one").exit_code == 0
    tar = tmp_path / "one" / "readers-000.tar"
    (corpus / "en" / "b.flac").unlink()
    soundfile.write(corpus / "en" / "b.flac", soundfile.read(SPEECH)[0][-40000:], 16000)
    result = run(f"readers={corpus}", "--output", tmp_path / "two", "--already", tar)
    assert result.exit_code == 0, result.output
    manifest = json.loads((tmp_path / "two" / "readers.manifest.json").read_text())
    assert manifest["clips"] == 1
    assert [each for each in members(tmp_path / "two" / "readers-000.tar") if "/b-" in each]


def test_a_recording_is_cut_at_quiet_places_without_loss(speech):
    silence = np.zeros(4800, np.float32)
    samples = np.concatenate([speech, silence, speech, silence, speech])
    parts = cut(samples, 24000, 4.0)
    assert np.array_equal(np.concatenate(parts), samples)
    assert len(parts) > 2
    assert all(0.4 * 24000 < len(part) <= 4 * 24000 for part in parts)
    for part in parts[:-1]:
        assert np.abs(part[-600:]).max() < 0.02, "the end of a clip is quiet"
    assert cut(samples, 24000, None)[0] is samples


def test_bandwidth_is_where_the_spectrum_ends(speech):
    assert bandwidth_hz(speech, 16000) == 8000
    narrow = soxr.resample(soxr.resample(speech, 24000, 8000), 8000, 24000)
    assert bandwidth_hz(narrow, 24000) == pytest.approx(4000, abs=150)
    noise = np.random.default_rng(0).normal(0, 0.05, 24000).astype(np.float32)
    assert bandwidth_hz(noise, 48000) == 12000


def test_silence_is_judged_by_the_loudest_moment(speech):
    click = np.zeros(24000, np.float32)
    assert is_silent(click, 24000)
    click[10000:10480] = 0.01
    assert not is_silent(click, 24000)
    assert is_silent(speech * 1e-4, 24000)


def test_a_fingerprint_finds_a_recording_after_codec_resampler_level_and_cut(speech, other_speech):
    index = FingerprintIndex(["speech", "other"], [fingerprint(each, 24000) for each in (speech, other_speech)])
    opus, _ = soundfile.read(io.BytesIO(encode_opus(speech * 0.2)), dtype="float32")
    telephone = soxr.resample(speech, 24000, 8000)
    for samples, rate in ((opus, 24000), (telephone, 8000), (speech[20007:50000], 24000)):
        match = index.find(fingerprint(samples, rate))
        assert match is not None
        assert match.name == "speech"
        assert match.error_rate < 0.2
    assert index.find(fingerprint(other_speech[30000:], 24000)).name == "other"


def test_other_sounds_have_no_match(speech, other_speech):
    index = FingerprintIndex(["speech"], [fingerprint(speech, 24000)])
    noise = np.random.default_rng(0).normal(0, 0.1, 48000).astype(np.float32)
    for samples in (other_speech, noise, np.zeros(24000, np.float32), speech[::-1].copy()):
        assert index.find(fingerprint(samples, 24000)) is None
    assert FingerprintIndex([], []).find(fingerprint(speech, 24000)) is None


def test_a_recipe_joins_lists_and_names_speakers(corpus, recipes):
    clips, left_out = find_clips(load_sources(recipes)["readers"], corpus)
    assert Clip("en/b.flac", "en_ann_other", "en", "a text", "CC BY") in clips
    assert [(each.path, each.reason) for each in left_out] == [("en/unlisted.wav", "no line in LICENSE")]
    assert slug("Михаило") == slug("Михаило") != slug("Мария")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  url:", "  uri:", "unknown keys uri, missing keys url"),
        ("'{language}_{author}'", "'{reader}'", "`speaker`: '{reader}' has fields reader, expected some of author"),
        ("(?P<id>[^/]+)", "(?P<id>[^/]+", "`files`: .* is no regular expression"),
        ("match: '{id}'", "match: '{number}'", "`joins: match`: '{number}' has fields number"),
        ("readers:", "Readers!:", "small letters"),
    ],
)
def test_a_wrong_recipe_is_refused(tmp_path, old, new, message):
    assert old in RECIPE
    path = tmp_path / "recipes.yaml"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(ValueError, match=message):
        load_sources(path)


def test_a_folder_without_recordings_or_lists_is_refused(tmp_path, recipes, corpus):
    recipe = load_sources(recipes)["readers"]
    with pytest.raises(ValueError, match="has no LICENSE, which the recipe needs"):
        find_clips(recipe, tmp_path)
    (corpus / "LICENSE").write_text("nothing\n")
    with pytest.raises(ValueError, match="no recordings in .* match"):
        find_clips(recipe, corpus)


@pytest.mark.parametrize("argument", ["readers", "writers=x", "readers="])
def test_a_source_without_a_folder_or_recipe_is_refused(run, argument):
    result = run(argument)
    assert result.exit_code == 2
    assert f"expected SOURCE=FOLDER with SOURCE of readers, got '{argument}'" in result.output


def test_shipped_recipes_say_how_to_fetch_them_with_ordinary_clients(run):
    text = RECIPES.read_text()
    assert not re.search(r"/work|/opt|/root|/tmp", text)
    usable = {name: source for name, source in SPEECH_SOURCES.items() if source.files}
    assert len(usable) > 15
    for name, source in usable.items():
        assert re.match(r"git clone https://|apt-get download |pip download ", source.obtain), name
    assert "git clone https://example.org/readers" in run("--list").output


def test_the_spanish_voice_of_asterisk_is_the_evaluated_one():
    """Allison Smith speaks the English and the Spanish sounds."""
    assert corpus_of("asterisk_es") == corpus_of("asterisk8k") == corpus_of("asterisk_fr") == "asterisk"
    path = "usr/share/asterisk/sounds/es_MX_f_Allison/hello.g722"
    expressions = [expression for source in SPEECH_SOURCES.values() for expression in source.files]
    assert not [each for each in expressions if re.fullmatch(each, path)]
    assert [each for each in expressions if re.fullmatch(each, path.replace("es_MX_f_Allison", "fr_CA_f_June"))]


def test_g722_is_read(tmp_path, speech):
    path = tmp_path / "x.g722"
    wide = (soxr.resample(speech, 24000, 16000) * 32767).astype(np.int16)
    with av.open(str(path), "w", format="g722") as container:
        stream = container.add_stream("g722", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wide[None, :], format="s16", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    samples, rate = read_sound(path)
    assert rate == 16000
    assert abs(len(samples) - len(wide)) <= 320
    index = FingerprintIndex(["speech"], [fingerprint(speech, 24000)])
    assert index.find(fingerprint(samples, rate)).name == "speech"


def test_a_fingerprint_finds_a_steady_vowel_after_a_codec():
    """Its levels hardly change from frame to frame, so differences over one frame would be the codec's noise."""
    time = np.arange(24000 * 4 // 5) / 24000
    levels = 1 / (1 + ((np.arange(1, 30) * 210 - 700) / 300) ** 2)
    phases = np.cumsum(210 + 4 * np.sin(2 * np.pi * 1.3 * time)) / 24000
    vowel = sum(level * np.sin(2 * np.pi * (k + 1) * phases) for k, level in enumerate(levels))
    vowel = (0.1 * vowel * np.hanning(len(time)) ** 0.3).astype(np.float32)
    index = FingerprintIndex(["vowel"], [fingerprint(vowel, 24000)])
    coded, _ = soundfile.read(io.BytesIO(encode_opus(vowel)), dtype="float32")
    assert index.find(fingerprint(coded, 24000)) is not None
