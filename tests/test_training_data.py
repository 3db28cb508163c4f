import collections
import dataclasses
import itertools
import json
import os
import shutil
import tarfile

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import soundfile
import soxr
import torch

from modeling_jepa_daam.audio_container import FileWindow
from tests.librilight import make_librilight
from training.config import DataConfig
from training.data import (
    MIN_RECORDINGS_TO_JUDGE,
    BatchLoader,
    SegmentStream,
    UnreadableRecordingsError,
    cut_into_batches,
    judge_unreadable,
    read_segment,
)
from training.recordings import is_held_out, open_corpus, stream_recordings

RATE = 24000
SMALL = DataConfig(
    sources=("unused",), segment_s=2.0, batch_size=3, recordings_per_round=5, bucket_batches=2, num_workers=0
)


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    """Six speakers with two chapters of 5 and 10 s each, as `small/` and as `small.tar`."""
    return make_librilight(tmp_path_factory.mktemp("librilight"), chapter_s=5.0)


@pytest.fixture(scope="module")
def rows(librilight):
    return open_corpus(dataclasses.replace(SMALL, sources=(str(librilight.with_suffix(".tar")),)))


def stream(rows, data=SMALL, seed=0, **options):
    return SegmentStream(stream_recordings(rows), data, RATE, seed, **options)


def same(batch, other):
    return (
        batch.segments == other.segments
        and torch.equal(batch.samples, other.samples)
        and torch.equal(batch.lengths, other.lengths)
    )


def interrupted_after_each(make, num_batches):
    """The first batches of a stream that is made anew after each of them, from its position as a file keeps it."""
    position = None
    for _ in range(num_batches):
        batch = next(iter(make(position)))
        position = json.loads(json.dumps(batch.position))
        yield batch


def expected_segments(rows, segment_s=2.0):
    expected = collections.Counter()
    for row in rows:
        duration_s = 5.0 if "chapter_00" in row["name"] else 10.0 + 7 / 16000
        num_segments = int(np.ceil(duration_s / segment_s))
        expected.update((row["name"], index, num_segments) for index in range(num_segments))
    return expected


def delivered(batches):
    return collections.Counter(segment for batch in batches for segment in batch.segments)


def test_a_tar_lists_what_the_folder_lists(librilight, rows):
    folder = open_corpus(dataclasses.replace(SMALL, sources=(str(librilight),)))
    assert len(rows) == 12
    assert [(row["name"], row["speaker"]) for row in folder] == [(row["name"], row["speaker"]) for row in rows]
    assert {row["speaker"] for row in rows} == {"533", "1688", "1998", "2414", "2609", "3005"}
    for packed, plain in zip(rows, folder, strict=True):
        with FileWindow(packed["path"], packed["offset"], packed["size"]) as window:
            assert window.read() == (librilight.parent / packed["name"]).read_bytes()
        np.testing.assert_array_equal(read_segment(packed, 1, 3, RATE)[0], read_segment(plain, 1, 3, RATE)[0])


def test_the_speaker_comes_from_the_path_without_metadata(librilight, tmp_path):
    shutil.copytree(librilight, tmp_path / "small", ignore=shutil.ignore_patterns("*.json"))
    rows = open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),)))
    assert {row["speaker"] for row in rows} == {"533", "1688", "1998", "2414", "2609", "3005"}


def test_a_recordings_bandwidth_is_half_its_rate_or_what_its_metadata_says(librilight, rows, tmp_path):
    assert all(batch.bandwidth_hz.tolist() == [8000.0] * len(batch.lengths) for batch in stream(rows, max_epochs=1))
    sound = next(iter(sorted(librilight.rglob("*.flac"))))
    lines = [{"path": str(sound), "bandwidth_hz": limit, "speaker": str(limit)} for limit in (3400, 20000.0, None)]
    for number, line in enumerate(lines):  # another file each: no recording may come twice
        line["path"] = str(shutil.copy(sound, tmp_path / f"{number}.flac"))
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    listed = open_corpus(dataclasses.replace(SMALL, format="manifest", sources=(str(manifest),)))
    assert [read_segment(row, 0, 3, RATE)[1] for row in listed] == [3400.0, 8000.0, 8000.0]
    manifest.write_text(json.dumps({"path": str(sound), "bandwidth_hz": -1}))
    with pytest.raises(ValueError, match="`bandwidth_hz` of .* must be a positive number, got -1"):
        open_corpus(dataclasses.replace(SMALL, format="manifest", sources=(str(manifest),)))


def test_segments_add_up_to_the_recording(librilight, rows):
    row = rows[0]
    original, rate = soundfile.read(librilight.parent / row["name"], dtype="float32")
    assert (rate, len(original)) == (16000, 80000)
    whole = soxr.resample(original, rate, RATE)
    for index, start in enumerate(range(0, 120000, 24000)):  # a second each
        part, _ = read_segment(row, index, 5, RATE)
        assert len(part) == 24000
        # Each part is resampled on its own, so that its ends ring.
        np.testing.assert_allclose(part[500:-500], whole[start : start + 24000][500:-500], atol=2e-3)
    odd = [read_segment(rows[1], index, 6, RATE)[0] for index in range(6)]
    assert abs(sum(map(len, odd)) - (10 * RATE + 10.5)) <= 3
    assert max(map(len, odd)) <= 2 * RATE


@pytest.mark.parametrize("num_streams", [1, 2, 3, 5])
def test_every_segment_comes_once_an_epoch_whatever_the_number_of_streams(rows, num_streams):
    batches = [
        batch for i in range(num_streams) for batch in stream(rows, stream=i, num_streams=num_streams, max_epochs=1)
    ]
    assert delivered(batches) == expected_segments(rows)
    assert all(1 <= len(batch.segments) <= 3 for batch in batches)
    twice = [b for i in range(num_streams) for b in stream(rows, stream=i, num_streams=num_streams, max_epochs=2)]
    assert set(delivered(twice).values()) == {2}


def test_every_segment_comes_once_across_two_processes_of_two_workers(rows):
    data = dataclasses.replace(SMALL, num_workers=2)
    loaders = [BatchLoader(stream_recordings(rows), data, RATE, 0, rank, 2, max_epochs=1) for rank in (0, 1)]
    batches = [batch for loader in loaders for batch in loader]
    assert delivered(batches) == expected_segments(rows)
    assert sum(loader.counts()["opened"] for loader in loaders) == len(rows)
    assert loaders[0].counts().keys() == {"opened", "unreadable", "too_short"}


def test_orders_differ_between_epochs_and_seeds_and_mix_speakers(rows):
    epochs = list(stream(rows, max_epochs=2))
    first, second = epochs[: len(epochs) // 2], epochs[len(epochs) // 2 :]
    assert [batch.segments for batch in first] != [batch.segments for batch in second]
    assert [b.segments for b in stream(rows, seed=1, max_epochs=1)] != [b.segments for b in first]
    speakers = [{name.split("/")[1] for name, _, _ in batch.segments} for batch in first if len(batch.segments) == 3]
    assert np.mean([len(found) > 1 for found in speakers]) > 0.7


def test_a_stream_goes_on_after_any_batch_as_if_nothing_had_happened(rows):
    def make(position):
        return stream(rows, stream=1, num_streams=2, position=position)

    whole = list(itertools.islice(make(None), 30))
    assert whole[-1].position["epoch"] == 2
    assert all(same(*pair) for pair in zip(interrupted_after_each(make, 30), whole, strict=True))


@pytest.mark.parametrize("num_workers", [0, 3])
def test_a_loader_goes_on_at_the_right_worker(rows, num_workers):
    data = dataclasses.replace(SMALL, num_workers=num_workers)

    def loader():
        return BatchLoader(stream_recordings(rows), data, RATE, 0)

    whole = list(itertools.islice(loader(), 12))
    for done in (1, 5, 9):
        first = loader()
        list(itertools.islice(first, done))
        second = loader()
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert all(same(*pair) for pair in zip(itertools.islice(second, 12 - done), whole[done:], strict=True))
    other = BatchLoader(stream_recordings(rows), data, RATE, 0, rank=1, world_size=2)
    with pytest.raises(ValueError, match="the data position is of 1 processes"):
        other.load_state_dict(first.state_dict())


@pytest.fixture
def damaged(librilight, tmp_path):
    """Rows of a copy in which one chapter is cut short, one is text and one is missing, and the names of these."""
    shutil.copytree(librilight, tmp_path / "small")
    rows = open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),)))
    cut, text, missing = (rows[index]["name"] for index in (1, 4, 7))
    (tmp_path / cut).write_bytes((librilight.parent / cut).read_bytes()[:60000])
    (tmp_path / text).write_text("this is no sound")
    (tmp_path / missing).unlink()
    return rows, [cut, text, missing]


@pytest.mark.parametrize("recordings_per_round", [1, 5, 20])
def test_unreadable_files_are_counted_named_and_left_out(damaged, recordings_per_round):
    rows, bad = damaged
    data = dataclasses.replace(SMALL, recordings_per_round=recordings_per_round)
    batches = list(itertools.islice(stream(rows, data, max_epochs=2), 200))
    once = [batch for batch in batches if batch.position["epoch"] == 0]
    reported = [name for batch in batches for name, _ in batch.unreadable]
    assert set(reported) == set(bad)
    assert len(reported) in (5, 6)  # twice each, unless the very last ones had no batch after them
    assert once[-1].position["unreadable"] <= 3
    assert {reason for batch in batches for name, reason in batch.unreadable if name == bad[2]} <= {
        f"{bad[2]}: no such file: {rows[7]['path']}"
    }
    good = expected_segments([row for row in rows if row["name"] not in bad])
    got = delivered(once)
    assert good <= got
    assert {name for name, _, _ in got - good} <= {bad[0]}  # the cut one, as far as it goes
    again = interrupted_after_each(lambda position: stream(rows, data, position=position), len(batches))
    assert all(same(*pair) for pair in zip(again, batches, strict=True))


def test_a_share_of_unreadable_files_ends_the_run():
    judge_unreadable(opened=10, unreadable=1, max_share=0.01)  # one of a hundred, so far
    judge_unreadable(opened=1000, unreadable=10, max_share=0.01)
    for opened, unreadable in ((10, 2), (MIN_RECORDINGS_TO_JUDGE, 2), (1000, 11)):
        with pytest.raises(UnreadableRecordingsError, match=f"{unreadable} of {opened} recordings are unreadable"):
            judge_unreadable(opened, unreadable, max_share=0.01)


def test_recordings_that_changed_meanwhile_end_the_run(librilight, tmp_path):
    shutil.copytree(librilight, tmp_path / "small")
    rows = open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),), recordings_per_round=20))
    data = dataclasses.replace(SMALL, recordings_per_round=20)
    position = next(iter(stream(rows, data))).position
    shutil.copy(rows[0]["path"], rows[1]["path"])
    with pytest.raises(ValueError, match="cannot go on exactly: recordings have been replaced"):
        next(iter(stream(rows, data, position=position)))
    (tmp_path / rows[0]["name"]).unlink()
    with pytest.raises(ValueError, match=f"cannot go on exactly: {rows[0]['name']} could be read before"):
        next(iter(stream(rows, data, position=position)))


def test_nothing_to_read_is_an_error_and_not_a_wait(rows, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(8000, np.float32), 16000)
    short = {**rows[0], "name": "short", "path": str(tmp_path / "short.wav"), "offset": 0, "size": -1}
    missing = {**short, "path": str(tmp_path / "missing.wav")}
    for few, place, message in (
        ([], {}, "to stream 0 in 10 epoch.*: 0 recordings"),
        (rows[:1], {"stream": 1, "num_streams": 2}, "to stream 1 in 10 epoch.*: 0 recordings"),
        ([short], {}, "to stream 0 in 1 epoch.*: 1 recordings, 0 of them unreadable, 1 too short"),
        ([missing], {}, "to stream 0 in 1 epoch.*: 1 recordings, 1 of them unreadable, 0 too short"),
    ):
        with pytest.raises(ValueError, match=f"no segment came {message}"):
            next(iter(stream(few, **place)))
        assert list(stream(few, max_epochs=1, **place)) == []


def test_loud_and_broken_samples_are_left_out(rows, tmp_path):
    for name, samples in (("nan", np.full(32000, np.nan)), ("loud", np.sign(np.sin(np.arange(32000) ** 2)) * 15.9)):
        soundfile.write(tmp_path / f"{name}.wav", samples.astype(np.float32), 16000, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.zeros((80000, 2), np.float32), 44100)
    listed = open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path),)))
    batches = list(itertools.islice(stream(listed), 4))
    assert {name.split("/")[-1] for batch in batches for name, _, _ in batch.segments} == {"stereo.wav"}
    assert {name.split("/")[-1] for batch in batches for name, _ in batch.unreadable} == {"nan.wav", "loud.wav"}


def test_short_recordings_are_counted_and_left_out(rows, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(8000, np.float32), 16000)
    short = {**rows[0], "name": "short", "path": str(tmp_path / "short.wav"), "offset": 0, "size": -1}
    batches = list(stream([rows[0], short], max_epochs=1))
    assert delivered(batches) == expected_segments(rows[:1])
    assert batches[-1].position["too_short"] == 1


def test_held_out_speakers_are_kept_from_training(rows):
    assert 0 < sum(is_held_out(str(speaker), 0.1) for speaker in range(1000)) < 200
    shares = {}
    for held_out in (False, True):
        batches = SegmentStream(stream_recordings(rows, 0.4, held_out), SMALL, RATE, 0, max_epochs=1)
        shares[held_out] = delivered(batches)
    speakers = [{name.split("/")[1] for name, _, _ in shares[held_out]} for held_out in (False, True)]
    assert all(speakers)
    assert not speakers[0] & speakers[1]
    assert shares[False] + shares[True] == expected_segments(rows)


def test_a_manifest_names_files_from_its_own_folder(librilight, rows, tmp_path):
    manifest = librilight.parent / "manifest.jsonl"
    lines = [{"path": row["name"], "speaker": row["speaker"], "language": "en"} for row in rows]
    lines[0]["language"] = "fr"
    lines[1]["path"] = str(librilight.parent / rows[1]["name"])  # an absolute one
    lines[2]["speaker"] = 0
    manifest.write_text("\ufeff" + "".join(json.dumps(line) + "\r\n" for line in lines))
    data = dataclasses.replace(SMALL, sources=(str(manifest),), format="manifest", where={"language": "en"})
    listed = open_corpus(data)
    assert sorted(row["path"] for row in listed) == [str(librilight.parent / row["name"]) for row in rows[1:]]
    assert "0" in {row["speaker"] for row in listed}
    assert sum(delivered(stream(listed, max_epochs=1)).values()) == sum(expected_segments(rows[1:]).values())
    for line in (b'{"speaker": "1"}\n', b'{"path": 5}\n', b'{"path": "\xe9"}\n', b"path\n"):
        manifest.write_bytes(line)
        with pytest.raises(ValueError, match=r"manifest.jsonl, line 1, (must have a path|is not JSON)"):
            open_corpus(data)


def test_a_damaged_or_cut_tar_is_refused(librilight, tmp_path):
    whole = librilight.with_suffix(".tar").read_bytes()
    with tarfile.open(librilight.with_suffix(".tar")) as tar:
        seventh = tar.getmembers()[6].offset
    flipped = bytearray(whole)
    flipped[seventh + 200] ^= 1
    for damaged in (bytes(flipped), whole[:seventh], whole[: seventh + 100], whole[: seventh + 5000]):
        (tmp_path / "small.tar").write_bytes(damaged)
        with pytest.raises(ValueError, match="small.tar is (damaged|no tar file, or damaged)"):
            open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small.tar"),)))


def test_a_folder_is_listed_through_links_and_without_hidden_files(librilight, rows, tmp_path):
    (tmp_path / "small").mkdir()
    for speaker in librilight.iterdir():
        (tmp_path / "small" / speaker.name).symlink_to(speaker)
    (tmp_path / "small" / "again").symlink_to(tmp_path / "small")  # a circle
    (tmp_path / "small" / "._chapter.flac").write_bytes(b"what macOS leaves")
    (tmp_path / "small" / "._chapter.json").write_bytes(b"\xb0")
    listed = open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),)))
    assert [row["name"] for row in listed] == [row["name"] for row in rows]
    with pytest.raises(ValueError, match="the same recordings more than once"):
        open_corpus(dataclasses.replace(SMALL, sources=(str(librilight), str(librilight))))
    (tmp_path / "small" / os.fsdecode(b"b\xe9.wav")).touch()
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_corpus(dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),)))


def test_an_example_without_path_or_speaker_is_known_by_its_sound(librilight, rows, tmp_path):
    """Whether it is held out must not depend on the epoch or on the number of streams."""
    features = datasets.Features({"audio": datasets.Audio(), "reader": datasets.Value("string")})
    sounds = [{"bytes": (librilight.parent / row["name"]).read_bytes(), "path": None} for row in rows]
    readers = [None if index % 2 else rows[index]["speaker"] for index in range(len(rows))]
    examples = [{"audio": sound, "reader": reader} for sound, reader in zip(sounds, readers, strict=True)]
    for shard in range(3):
        table = pyarrow.Table.from_pylist(examples[shard::3], schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, tmp_path / f"train-{shard}.parquet")
    data = dataclasses.replace(SMALL, sources=(str(tmp_path),), format="dataset")
    seen = set()
    for num_streams in (1, 3):
        streams = [
            SegmentStream(stream_recordings(open_corpus(data), 0.5, True), data, RATE, 0, i, num_streams, max_epochs=3)
            for i in range(num_streams)
        ]
        counts = collections.Counter(segment for one in streams for batch in one for segment in batch.segments)
        assert set(counts.values()) == {3}
        seen.add(frozenset(counts))
    assert len(seen) == 1
    speakers = {example["speaker"] for example in open_corpus(data)}
    assert len(speakers) == len({reader for reader in readers if reader}) + readers.count(None)


def test_a_dataset_streams_with_its_own_shards(librilight, rows, tmp_path):
    features = datasets.Features({"audio": datasets.Audio(), "speaker_id": datasets.Value("int64")})
    for shard in range(3):
        examples = [
            {
                "audio": {"bytes": (librilight.parent / row["name"]).read_bytes(), "path": row["name"]},
                "speaker_id": int(row["speaker"]),
            }
            for row in rows[shard::3]
        ]
        table = pyarrow.Table.from_pylist(examples, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, tmp_path / f"train-{shard}.parquet", row_group_size=2)
    data = dataclasses.replace(SMALL, sources=(str(tmp_path),), format="dataset")
    loaders = [BatchLoader(open_corpus(data), data, RATE, 0, rank, 2, max_epochs=1) for rank in (0, 1)]
    assert delivered([batch for loader in loaders for batch in loader]) == expected_segments(rows)

    def make(position):
        return SegmentStream(open_corpus(data), data, RATE, 0, position=position)

    whole = list(itertools.islice(make(None), 30))
    assert len({batch.position["epoch"] for batch in whole}) > 1
    assert all(same(*pair) for pair in zip(interrupted_after_each(make, 30), whole, strict=True))
    held_out = [
        delivered(SegmentStream(stream_recordings(open_corpus(data), 0.4, which), data, RATE, 0, max_epochs=1))
        for which in (False, True)
    ]
    assert all(held_out)
    assert held_out[0] + held_out[1] == expected_segments(rows)
    with pytest.raises(ValueError, match="has no columns lang"):
        open_corpus(dataclasses.replace(data, where={"lang": "en"}))


def test_a_folder_of_sound_files_is_a_dataset_too(librilight, rows, tmp_path):
    shutil.copytree(librilight, tmp_path / "small", ignore=shutil.ignore_patterns("*.json"))
    data = dataclasses.replace(SMALL, sources=(str(tmp_path / "small"),), format="dataset")
    batches = SegmentStream(open_corpus(data), data, RATE, 0, max_epochs=1)
    assert sorted(delivered(batches).values()) == sorted(expected_segments(rows).values())


@pytest.mark.parametrize(
    ("source", "format_", "message"),
    [
        ("nowhere", "files", "no such tar file or folder: .*nowhere"),
        ("nowhere", "manifest", "no such manifest: .*nowhere"),
        ("text.tar", "files", "is no tar file"),
        ("empty", "files", "no recordings in .*empty"),
    ],
)
def test_sources_that_cannot_be_are_refused(tmp_path, source, format_, message):
    (tmp_path / "text.tar").write_text("text" * 500)
    (tmp_path / "empty").mkdir()
    data = dataclasses.replace(SMALL, sources=(str(tmp_path / source),), format=format_)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_corpus(data)


def test_batches_are_even_whole_and_of_like_lengths(rng):
    segments = [(length, index) for index, length in enumerate(rng.random(100))]
    batches = cut_into_batches(segments, 8, 13, rng)
    assert sorted(itertools.chain(*batches)) == sorted(segments)
    assert {len(batch) for batch in batches} <= {7, 8}
    spread = np.mean([np.ptp([length for length, _ in batch]) for batch in batches])
    mixed = np.mean([np.ptp([length for length, _ in batch]) for batch in cut_into_batches(segments, 8, 1, rng)])
    assert spread < 0.2 * mixed
    assert cut_into_batches([], 8, 13, rng) == []
