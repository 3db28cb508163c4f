"""Samples come from what was decoded: a header is never believed, and every input is accounted for."""

import dataclasses
import io
import json
import os
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from modeling_jepa_daam.audio import MAX_BLOCK_VALUES, AudioFile, load_audio, read_blocks
from modeling_jepa_daam.audio_container import TruncatedAudioError, _MpegFrame, _ogg_checksum, read_up_to
from modeling_jepa_daam.cli import app
from modeling_jepa_daam.corpus import read_manifest
from modeling_jepa_daam.corpus.listing import list_files
from modeling_jepa_daam.corpus.run import CorpusJob, ShardWorker, finish, prepare
from modeling_jepa_daam.corpus.sources import Census, Source, list_entries, open_recordings
from tests.conftest import SPEECH, noise
from training.data import open_sound, read_segment

RATE = 24000
FORMATS = [
    ("WAV", "PCM_16"),
    ("WAV", "PCM_U8"),
    ("WAV", "MS_ADPCM"),
    ("RF64", "PCM_24"),
    ("W64", "PCM_16"),
    ("AIFF", "PCM_16"),
    ("AU", "PCM_16"),
    ("CAF", "PCM_16"),
    ("NIST", "PCM_16"),
    ("FLAC", "PCM_16"),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
    ("MP3", "MPEG_LAYER_III"),
]


def sound(samples: np.ndarray, form: str, subtype: str, rate: int = RATE, **options) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, subtype=subtype, **options)
    return file.getvalue()


def run(*arguments, code: int) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output + result.stderr + str(result.exception)
    return result.stdout + result.stderr


@pytest.mark.parametrize(("form", "subtype"), FORMATS)
def test_a_whole_file_is_read_whole_and_a_cut_one_is_refused_or_taken_as_far_as_it_goes(form, subtype, speech):
    data = sound(speech, form, subtype)
    whole = load_audio(data, None, RATE)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    assert 0 <= len(expected) - len(speech) < 1100  # a codec may pad its last block
    np.testing.assert_allclose(whole, expected[: len(whole)], atol=1e-6)  # MP3: a bit, whether one seeks before
    assert len(speech) <= len(whole) <= len(expected)
    cut = data[: len(data) * 6 // 10]
    with pytest.raises(TruncatedAudioError, match="`audio`: cannot read audio bytes: it is cut short"):
        load_audio(cut, None, RATE)
    problems: list[str] = []
    taken = np.concatenate(list(read_blocks(cut, RATE, on_truncated=problems.append)))
    assert len(problems) == 1
    assert "cut short" in problems[0]
    assert 0.3 * len(speech) < len(taken) < 0.7 * len(speech)
    np.testing.assert_allclose(taken[: len(taken) // 2], whole[: len(taken) // 2], atol=1e-6)


def test_how_much_is_missing_is_said(speech):
    for form, subtype, share in (
        ("WAV", "PCM_16", "40.0 %"),
        ("MP3", "MPEG_LAYER_III", "frames"),
        ("FLAC", "PCM_16", "of 121440 samples"),
    ):
        data = sound(speech, form, subtype)
        with pytest.raises(TruncatedAudioError, match=f"{share}.* missing"):
            load_audio(data[: len(data) * 6 // 10], None, RATE)


def test_a_cut_mp3_never_holds_the_memory_of_another_recording(speech):
    """It did: soundfile's `blocks` returns what it has not written."""
    data = sound(np.zeros(10 * RATE), "MP3", "MPEG_LAYER_III")
    cut, other = data[: len(data) // 3], sound(np.resize(noise(RATE), 10 * RATE), "FLAC", "PCM_16")
    for _ in range(3):
        load_audio(other, None, RATE)
        taken = np.concatenate(list(read_blocks(cut, RATE, on_truncated=lambda problem: None)))
        assert 0 < len(taken) < 5 * RATE
        assert np.abs(taken).max() == 0


def test_a_variable_bit_rate_needs_no_xing_header(speech):
    data = sound(speech, "MP3", "MPEG_LAYER_III", bitrate_mode="VARIABLE", compression_level=0.9)
    first = _MpegFrame.of(data).size
    assert b"Xing" in data[:first]
    without = load_audio(data[first:], None, RATE)
    assert len(speech) <= len(without) < len(speech) + 4 * 576
    lag = int(np.argmax([without[lag : lag + 48000] @ speech[:48000] for lag in range(0, 2000)]))
    assert np.corrcoef(without[lag : lag + 48000], speech[:48000])[0, 1] > 0.99
    assert len(load_audio(data, None, RATE)) == len(speech)


def test_concatenated_mp3s_and_chained_ogg_are_read_to_the_end(speech):
    for form, subtype in (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS")):
        parts = [sound(samples, form, subtype) for samples in (speech[:60000], speech[60000:])]
        alone = [load_audio(part, None, RATE) for part in parts]
        np.testing.assert_array_equal(load_audio(b"".join(parts), None, RATE), np.concatenate(alone))
    tag = b"ID3\x04\0\0\0\0\0\x0a" + bytes(10)
    mp3 = sound(speech, "MP3", "MPEG_LAYER_III")
    np.testing.assert_array_equal(load_audio(tag + mp3 + b"TAG" + bytes(125), None, RATE), load_audio(mp3, None, RATE))


@pytest.mark.parametrize(
    ("form", "subtype"), [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("AU", "PCM_16")]
)
def test_a_second_recording_behind_the_first_is_not_dropped(form, subtype, speech):
    data = sound(speech, form, subtype)
    with pytest.raises(ValueError, match="it holds a second recording, from byte [0-9]+ on"):
        load_audio(data + data, None, RATE)


def test_a_piped_flac_and_a_piped_wav_are_read_to_their_end(speech):
    flac = bytearray(sound(speech, "FLAC", "PCM_16"))
    flac[21], flac[22:26] = flac[21] & 0xF0, bytes(4)  # the number of samples that a pipe does not know
    np.testing.assert_array_equal(load_audio(bytes(flac), None, RATE), speech)
    with pytest.raises(TruncatedAudioError, match="inside a frame"):
        load_audio(bytes(flac[:60000]), None, RATE)
    wav = bytearray(sound(speech, "WAV", "PCM_16"))
    place = wav.index(b"data")
    wav[place + 4 : place + 8] = b"\xff" * 4
    np.testing.assert_array_equal(load_audio(bytes(wav), None, RATE), speech)


def test_gsm_is_read_without_what_libsndfile_makes_of_the_chunks_behind_it(speech):
    data = sound(speech[::3], "WAV", "GSM610", 8000)
    padded = bytearray(data) + b"LIST" + struct.pack("<I", 200) + bytes(200)
    padded[4:8] = struct.pack("<I", len(padded) - 8)
    alone, behind = (load_audio(bytes(each), None, 8000) for each in (data, padded))
    assert len(speech) / 3 <= len(alone) < len(speech) / 3 + 320
    np.testing.assert_array_equal(behind, alone)
    with AudioFile(data) as file:  # libsndfile cannot seek in it
        file.seek(20000)
        np.testing.assert_array_equal(file.read(5000), alone[20000:25000])


def test_a_sparse_file_of_100_gb_is_refused_at_once(speech, tmp_path):
    starts = {
        "zeros.wav": b"",
        "a.flac": sound(speech, "FLAC", "PCM_16"),
        "a.mp3": sound(speech, "MP3", "MPEG_LAYER_III"),
    }
    for name, data in starts.items():
        (tmp_path / name).write_bytes(data)
        os.truncate(tmp_path / name, 100 * 10**9)
        with pytest.raises(ValueError, match=r"Format not recognised|bytes are too many|there is no frame at byte"):
            load_audio(tmp_path / name, None, RATE)


def test_damage_inside_an_ogg_file_is_found(speech):
    data = bytearray(sound(speech, "OGG", "VORBIS"))
    pages = [place for place in range(len(data)) if data[place : place + 4] == b"OggS"]
    flipped = data.copy()
    flipped[pages[-2] + 200] ^= 1
    with pytest.raises(ValueError, match=f"checksum of the page at byte {pages[-2]}"):
        load_audio(bytes(flipped), None, RATE)
    with pytest.raises(ValueError, match="pages are missing"):
        load_audio(bytes(data[: pages[-2]] + data[pages[-1] :]), None, RATE)
    page = data[pages[0] : pages[1]]
    assert _ogg_checksum(bytes(page[:22] + bytes(4) + page[26:])) == int.from_bytes(page[22:26], "little")


def test_every_read_checks_what_it_returned():
    class Slow(io.RawIOBase):
        def __init__(self, data):
            self.data = data

        def readable(self):
            return True

        def readinto(self, buffer):
            buffer[: min(3, len(self.data))] = taken = self.data[: min(3, len(buffer))]
            self.data = self.data[len(taken) :]
            return len(taken)

    assert read_up_to(Slow(b"0123456789"), 7) == b"0123456"
    assert read_up_to(Slow(b"01234"), 7) == b"01234"


def test_training_reads_with_the_same_reader(speech, tmp_path):
    def row(name: str, data: bytes) -> dict:
        return {"name": name, "path": "", "offset": 0, "size": -1, "content": data, "bandwidth_hz": None}

    two = sound(speech[:60000], "OGG", "VORBIS") + sound(speech[60000:], "OGG", "VORBIS")
    whole = load_audio(two, None, RATE)
    parts = [read_segment(row("two", two), index, 3, RATE)[0] for index in range(3)]
    np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-6)
    wav = sound(speech, "WAV", "PCM_16")
    for data in (wav[:-1000], wav + wav):
        with pytest.raises(ValueError, match="a.wav: it "), open_sound(row("a.wav", data)):
            pass
    os.mkfifo(tmp_path / "pipe.wav")
    pipe = {**row("pipe.wav", b""), "content": None, "path": str(tmp_path / "pipe.wav")}
    with pytest.raises(ValueError, match="is a pipe, not a regular file"), open_sound(pipe):
        pass


def test_a_rate_of_one_hertz_is_refused_and_no_header_sizes_a_block(speech):
    data = bytearray(sound(speech, "WAV", "PCM_16"))
    data[24:28] = struct.pack("<I", 1)  # 50,000 such samples would be 4.8 GB at 24 kHz
    with pytest.raises(
        ValueError, match="`its sampling rate` must be a whole number of Hz from 1000 to 1000000, got 1"
    ):
        load_audio(bytes(data), None, RATE)
    with pytest.raises(ValueError, match="`sampling_rate` must be a whole number of Hz from 1000 to 1000000, got 999"):
        load_audio(speech, 999, RATE)
    wide = sound(np.zeros((20, 1000)), "WAV", "PCM_16")
    with AudioFile(wide) as file:
        assert file.max_block == MAX_BLOCK_VALUES // 1000
        assert len(file.read(10**9)) == 20


def test_mp4_is_read_through_pyav(speech, monkeypatch):
    av = pytest.importorskip("av")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=RATE)
        frame = av.AudioFrame.from_ndarray(speech[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    decoded = load_audio(target.getvalue(), None, RATE)
    assert abs(len(decoded) - len(speech)) < 2048
    scores = [decoded[lag : lag + 96000] @ speech[:96000] for lag in range(0, 1200)]
    lag = int(np.argmax(scores))
    assert np.corrcoef(decoded[lag : lag + 96000], speech[:96000])[0, 1] > 0.95
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_audio(target.getvalue()[:5000], None, RATE)
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ValueError, match=r"MP4 is read through PyAV only: pip install 'jepa-daam\[av\]'"):
        load_audio(target.getvalue(), None, RATE)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two recordings, five that are none, and four files that are skipped."""
    place = tmp_path / "in"
    (place / "sub").mkdir(parents=True)
    shutil.copy(SPEECH, place / "a.flac")
    soundfile.write(place / "sub" / "b.wav", noise(RATE), RATE)
    (place / "sub" / "b.json").write_text('{"speaker": "s"}')  # its metadata, and so accounted for
    (place / "c.m4a").write_bytes(b"no sound")
    (place / "d.wav").symlink_to(tmp_path / "gone.wav")
    os.mkfifo(place / "e.wav")
    (place / "f.mp3").symlink_to("/dev/zero")
    (place / "g.flac").write_bytes(SPEECH.read_bytes()[:50000])
    for name in ("notes.txt", "lonely.json", ".hidden", "sub/more.TXT"):
        (place / name).write_text("{}")
    return place


def test_every_file_of_a_folder_is_tokenized_failed_or_skipped(folder, nano_folder, tmp_path):
    output = run("encode", folder, "-m", nano_folder, "-o", tmp_path / "out", code=1)
    assert "2 done, 0 kept, 5 failed, 4 skipped (2 .txt, 1 hidden" not in output  # the sidecar is a .json of its own
    assert "2 done, 0 kept, 5 failed, 5 skipped (2 .json, 2 .txt, 1 hidden)" in output
    for name, reason in {
        "c.m4a": "Format not recognised",
        "d.wav": f"broken link to {tmp_path / 'gone.wav'}",
        "e.wav": "is a pipe, not a regular file",
        "f.mp3": "is a device, not a regular file",
        "g.flac": "cut short",
    }.items():
        assert reason in next(line for line in output.splitlines() if line.startswith(f"failed: {folder / name}"))
    assert f"skipped: {folder / 'notes.txt'}" in output
    output = run("encode", folder / "g.flac", "-m", nano_folder, "-o", tmp_path / "cut", "--allow-truncated", code=0)
    assert f"truncated: {folder / 'g.flac'}: it is cut short: " in output


def test_a_broken_link_among_files_does_not_stop_the_others(folder, nano_folder, tmp_path):
    output = run("encode", folder / "a.flac", folder / "d.wav", "-m", nano_folder, "-o", tmp_path / "out", code=1)
    assert "1 done, 0 kept, 1 failed" in output
    assert "no such file or folder" in run("encode", tmp_path / "nowhere", "-m", nano_folder, "-o", tmp_path, code=2)


def test_a_corpus_accounts_for_every_file_and_exits_with_1(folder, nano_folder, tmp_path):
    job = CorpusJob(Source(str(folder)), str(tmp_path / "out"), str(nano_folder))
    settings, plan = prepare(job)
    assert plan is not None
    ShardWorker(job, settings, plan)(0)
    manifest = finish(job.output)
    assert manifest is not None
    assert (manifest.total("rows"), manifest.total("rejected")) == (2, 5)
    assert manifest.settings["corpus"]["skipped"] == {".json": 1, ".txt": 2, "hidden": 1}
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert [each["id"] for each in rejected] == [
        f"in/{name}" for name in ("c.m4a", "d.wav", "e.wav", "f.mp3", "g.flac")
    ]
    skipped = [json.loads(line)["id"] for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert sorted(skipped) == ["in/.hidden", "in/lonely.json", "in/notes.txt", "in/sub/more.TXT"]
    shard_mb = job.shard_bytes / 1e6
    output = run(
        "tokenize-corpus", folder, job.output, "-m", nano_folder, "--shard-mb", shard_mb, "--device", "cpu", code=1
    )
    assert "2 recordings" in output
    assert "5 rejected, 4 skipped (1 .json, 2 .txt, 1 hidden)" in output
    assert "rejected: in/d.wav: broken link to" in output
    assert read_manifest(job.output) == manifest


def test_a_file_that_changed_at_the_same_size_is_noticed(folder, nano_folder, tmp_path):
    job = CorpusJob(Source(str(folder)), str(tmp_path / "out"), str(nano_folder))
    prepare(job)
    assert prepare(job) == prepare(dataclasses.replace(job))
    data = bytearray((folder / "sub" / "b.wav").read_bytes())
    data[-100] ^= 1
    (folder / "sub" / "b.wav").write_bytes(data)
    os.utime(folder / "sub" / "b.wav", ns=(1, 1))
    with pytest.raises(ValueError, match="the times of the recordings' files .one was changed at the same size"):
        prepare(job)


def test_a_sparse_member_of_a_tar_file_is_refused_by_name(tmp_path):
    data = SPEECH.read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        content = b"1\n0\n512\n".ljust(512, b"\0") + data[:512]  # its map: 512 bytes, then a hole
        member = tarfile.TarInfo("sparse/a.flac")
        member.size = len(content)
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "in/a.flac",
            "GNU.sparse.realsize": str(len(data)),
        }
        tar.addfile(member, io.BytesIO(content))
        member = tarfile.TarInfo("in/b.flac")
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("in/c.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "b.flac"
        tar.addfile(link)
    source, census = Source(str(tmp_path / "s.tar")), Census()
    sparse, plain = open_recordings(source, list_entries(source, census))
    assert (sparse.id, sparse.audio) == ("in/a.flac", None)
    assert sparse.problem == "a sparse member of a tar file: archive it without --sparse, or unpack it"
    assert (plain.id, plain.audio) == ("in/b.flac", data)
    assert census.skipped == ["in/c.flac"]
    assert [each["name"] for each in list_files(tmp_path / "s.tar", (), "`IN`")] == ["in/a.flac", "in/b.flac"]
