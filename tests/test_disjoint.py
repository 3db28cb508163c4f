import io
import json
import shutil
import tarfile

import pytest
import soundfile
import typer
from typer.testing import CliRunner

from training import disjoint
from training.disjoint import Voice, common_speakers, digests_of, evaluation_voice, sample_digest, speakers_of
from training.recordings import list_rows

from .conftest import ROOT, SPEECH

AUDIO = ROOT / "tests" / "audio"
RECORDINGS = ROOT / "hub_configs" / "jepa-daam-24khz-small" / "recordings.json"


@pytest.fixture
def compare(tmp_path):
    """The command: its result, and what it wrote."""
    app = typer.Typer()
    app.command()(disjoint.command)

    def run(training, evaluation):
        output = tmp_path / "recordings.json"
        result = CliRunner().invoke(app, [str(training), "--against", str(evaluation), "--output", str(output)])
        return result, json.loads(output.read_text()) if output.exists() else None

    return run


def write_manifest(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_the_same_speech_is_found_under_another_name_speaker_and_container(tmp_path, compare):
    samples, rate = soundfile.read(SPEECH, dtype="int16")
    evaluated = tmp_path / "eval"
    evaluated.mkdir()
    soundfile.write(evaluated / "renamed.wav", samples, rate, subtype="PCM_24")
    manifest = write_manifest(evaluated / "manifest.jsonl", {"file": "renamed.wav", "speaker": "x", "source": "other"})
    training = tmp_path / "training" / "corpus" / "corpus_1688"
    training.mkdir(parents=True)
    shutil.copy(SPEECH, training / "0001.flac")
    result, written = compare(tmp_path / "training", manifest)
    assert result.exit_code == 1
    assert "overlap: recording renamed.wav is training/corpus/corpus_1688/0001.flac" in result.output.replace("\n", " ")
    assert written["evaluation"]["other"]["speakers"]["x"] == sample_digest(SPEECH)[0]


@pytest.mark.parametrize("speaker", ["librispeech_1998", "1998"])
def test_the_same_speaker_is_found_in_tar_files_with_other_recordings(tmp_path, compare, speaker):
    content = next((AUDIO / "librispeech" / "1998").rglob("*.flac")).read_bytes()
    sidecar = json.dumps({"source": "librispeech", "speaker": "librispeech_1998"}).encode()
    name = "librispeech/librispeech_1998/a"
    tar = write_tar(tmp_path / "train.tar", {f"{name}.flac": content, f"{name}.json": sidecar})
    row = {"file": str(SPEECH), "speaker": speaker, "source": "librispeech"}
    result, _ = compare(tar, write_manifest(tmp_path / "eval.jsonl", row))
    assert result.exit_code == 1
    assert "overlap: speaker 1998 of librispeech" in result.output
    assert "overlap: recording" not in result.output
    row["source"] = "vctk"
    row["speaker"] = "vctk_1998"
    result, _ = compare(tar, write_manifest(tmp_path / "eval.jsonl", row))
    assert result.exit_code == 0, "the same number in another corpus is another speaker"


def test_a_lossy_copy_is_found_by_its_sound(tmp_path, compare):
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    evaluated = tmp_path / "eval"
    evaluated.mkdir()
    soundfile.write(evaluated / "copy.ogg", 0.3 * samples[8000:], rate, subtype="VORBIS")
    training = tmp_path / "training"
    training.mkdir()
    shutil.copy(SPEECH, training / "0001.flac")
    result, _ = compare(training, evaluated)
    assert result.exit_code == 1
    assert "overlap: recording copy.ogg sounds like" in result.output


def test_the_same_voice_in_two_languages_of_a_corpus_is_found(tmp_path, compare):
    """Asterisk's English and Spanish sounds have one speaker, and their sources have names that differ."""
    content = next((AUDIO / "librispeech" / "1998").rglob("*.flac")).read_bytes()
    name = "asterisk_es/asterisk_es_allison/a"
    sidecar = json.dumps({"source": "asterisk_es", "speaker": "asterisk_es_allison"}).encode()
    tar = write_tar(tmp_path / "train.tar", {f"{name}.flac": content, f"{name}.json": sidecar})
    row = {"file": str(SPEECH), "speaker": "asterisk8k_allison", "source": "asterisk8k"}
    result, _ = compare(tar, write_manifest(tmp_path / "eval.jsonl", row))
    assert result.exit_code == 1
    assert "overlap: speaker allison of asterisk" in result.output


def test_a_speaker_of_an_unknown_corpus_is_held_against_all(tmp_path, compare):
    """LibriLight's folders say who speaks, but not in which corpus."""
    row = {"file": str(SPEECH), "speaker": "librispeech_2414", "source": "librispeech"}
    result, _ = compare(AUDIO / "librispeech", write_manifest(tmp_path / "eval.jsonl", row))
    assert result.exit_code == 1
    assert "overlap: speaker 2414 of librispeech" in result.output


def test_speakers_compare_by_corpus():
    def table(source, speaker):
        return {source: {"hours": 1.0, "speakers": {speaker: "0123456789ab"}}}

    assert evaluation_voice({"source": "an4", "speaker": "an4_fash"}) == Voice("an4", "fash")
    assert common_speakers(table("audiocmn", "yuetan"), table("audiocmn_syllables", "yuetan"))
    assert common_speakers(table("unknown", "yuetan"), table("audiocmn_syllables", "yuetan"))
    assert common_speakers(table("an4", "fash"), table("unknown", "fash"))
    assert not common_speakers(table("an4", "fash"), table("vctk", "fash"))
    assert not common_speakers(table("picovoice", "unknown"), table("unknown", "unknown"))


def test_nothing_in_common_is_no_failure(tmp_path, compare):
    row = {"file": str(SPEECH), "speaker": "librispeech_1688", "source": "librispeech"}
    result, written = compare(AUDIO / "librispeech", write_manifest(tmp_path / "eval.jsonl", row))
    assert result.exit_code == 0, result.output
    assert {side: len(digests_of(table)) for side, table in written.items()} == {"training": 5, "evaluation": 1}


def test_an_unreadable_recording_is_named(tmp_path, compare):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "broken.flac").write_bytes(b"fLaC")
    result, written = compare(tmp_path / "training", AUDIO)
    assert result.exit_code == 2
    assert "broken.flac" in result.output
    assert written is None


def test_what_was_trained_on_is_disjoint_from_what_is_evaluated():
    assert RECORDINGS.stat().st_size < 250_000
    training, evaluation = (json.loads(RECORDINGS.read_text())[side] for side in ("training", "evaluation"))
    assert "librispeech" in training
    assert "librispeech" in evaluation
    digests = {
        name: [digest for source in side.values() for text in source["speakers"].values() for digest in text.split()]
        for name, side in (("training", training), ("evaluation", evaluation))
    }
    assert len(digests["training"]) > 8000
    assert len(digests["evaluation"]) > 200
    assert not set(digests["training"]) & set(digests["evaluation"])
    for source in evaluation.keys() & training.keys():
        assert not training[source]["speakers"].keys() & evaluation[source]["speakers"].keys(), source
    assert not common_speakers(training, evaluation)


def test_recordings_of_the_tests_and_their_speakers_were_not_trained_on():
    table = json.loads(RECORDINGS.read_text())
    trained = set(digests_of(table["training"]))
    files = sorted(AUDIO.rglob("*.flac"))
    digests = {sample_digest(file)[0] for file in files}
    assert not digests & trained
    assert digests & set(digests_of(table["evaluation"])), "they come from the evaluation: so digests do compare"
    speakers = {row["speaker"] for row in list_rows(str(AUDIO / "librispeech"), {})} | {"1688"}
    assert not {Voice("librispeech", speaker) for speaker in speakers} & speakers_of(table["training"])
