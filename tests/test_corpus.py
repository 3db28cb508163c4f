"""A corpus tokenized: the same bytes however it is interrupted, every recording once, nothing half done."""

import dataclasses
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

from modeling_jepa_daam import JepaAudioTokenizer, make_untrained_checkpoint
from modeling_jepa_daam.corpus import command as corpus_command
from modeling_jepa_daam.corpus import encoding, read_manifest, read_tokens, shard_paths
from modeling_jepa_daam.corpus import run as corpus_run
from modeling_jepa_daam.corpus.encoding import _batches, tokenize_recordings
from modeling_jepa_daam.corpus.finished import decode_sample, verify_corpus
from modeling_jepa_daam.corpus.plan import Plan, read_entries, write_plan
from modeling_jepa_daam.corpus.ray_engine import MAX_TRIES, TRIES, _Actor, tokenize_corpus_with_ray
from modeling_jepa_daam.corpus.run import DONE, WORK, CorpusJob, CorpusRunError, ShardWorker, finish, prepare
from modeling_jepa_daam.corpus.shard import Row, encode_shard, read_rows, write_shard
from modeling_jepa_daam.corpus.sources import Recording, Source, guess_format, list_entries, open_recordings
from tests.conftest import ROOT, SPEECH, noise
from tests.librilight import make_librilight

WAIT_S = 600  # on a busy machine
COMMAND = ["modeling_jepa_daam.cli", "tokenize-corpus"]
SHARD_BYTES = 100_000  # about one recording
ACCELERATE = ["accelerate.commands.launch", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def librilight(tmp_path_factory) -> Path:
    """Twelve recordings, and four that are none, as a folder and as `small.tar` beside it (which has the twelve)."""
    small = make_librilight(tmp_path_factory.mktemp("librilight"), chapter_s=5.0)
    book = small / "533" / "broken"
    book.mkdir()
    (book / "empty.flac").touch()
    (book / "noise.wav").write_bytes(bytes(range(256)) * 20)
    soundfile.write(book / "no_samples.wav", np.zeros(0), 16000)
    soundfile.write(book / "metadata.wav", noise(16000), 16000)
    (book / "metadata.json").write_text("{")
    return small


@pytest.fixture
def job(librilight, nano_folder, tmp_path) -> CorpusJob:
    return CorpusJob(Source(str(librilight)), str(tmp_path / "out"), str(nano_folder), shard_bytes=SHARD_BYTES)


def tokenize(job: CorpusJob, order=lambda indices: indices, stop_after: int | None = None):
    """All of a run but its processes."""
    settings, plan = prepare(job)
    if plan is None:
        return read_manifest(job.output)
    worker = ShardWorker(job, settings, plan)
    missing = [shard.index for shard in corpus_run._missing(Path(job.output), plan, 0, 1)]
    for index in list(order(missing))[:stop_after]:
        worker(index)
    return finish(job.output)


def contents(folder: str | Path) -> dict[str, bytes | None]:
    """Every file and folder of a corpus, hidden ones too."""
    paths = Path(folder).rglob("*")
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def undisturbed(librilight, nano_folder, tmp_path_factory) -> Path:
    job = CorpusJob(
        Source(str(librilight)), str(tmp_path_factory.mktemp("undisturbed") / "out"), str(nano_folder), "cpu",
        shard_bytes=SHARD_BYTES,
    )  # fmt: skip
    tokenize(job)
    return Path(job.output)


def test_every_recording_has_the_tokens_that_the_tokenizer_gives_it(undisturbed, librilight, nano_tokenizer):
    rows = [row for path in shard_paths(undisturbed) for row in read_rows(path)[0]]
    assert [row.id for row in rows] == sorted(f"small/{path.relative_to(librilight)}" for path in good(librilight))
    assert len(rows) == 12
    for row in rows[::5]:
        ids, num_samples = nano_tokenizer.encode_file(librilight.parent / row.id)
        assert (row.tokens.tolist(), row.num_samples, row.duration_s) == (ids, num_samples, num_samples / 24000)
        assert (row.source, row.speaker, row.text) == ("small", row.id.split("/")[1], None)
    manifest = read_manifest(undisturbed)
    assert len(manifest.shards) > 3
    assert (manifest.total("rows"), manifest.total("rejected")) == (12, 4)
    assert not (undisturbed / WORK).exists()


def good(librilight: Path) -> list[Path]:
    return [path for path in librilight.rglob("*.flac") if "broken" not in path.parts]


def test_unreadable_and_empty_recordings_are_listed_with_the_reason(undisturbed):
    lines = [json.loads(line) for line in (undisturbed / "rejected.jsonl").read_text().splitlines()]
    assert {Path(line["id"]).name: line["reason"] for line in lines} == {
        "empty.flac": "empty: the file has no bytes",
        "metadata.wav": "metadata.json is not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        "no_samples.wav": "cannot read small/533/broken/no_samples.wav: it is empty: it holds no samples",
        "noise.wav": "cannot read small/533/broken/noise.wav: Format not recognised: WAV, RF64, W64, AIFF, AU, CAF, "
        "NIST SPHERE, FLAC, Ogg (Vorbis, Opus), MPEG audio (MP3) are read, with PyAV also MP4, WebM, WMA, AMR and AAC",
    }


def test_any_reader_of_parquet_has_the_tokens(undisturbed):
    for path in shard_paths(undisturbed):
        table = pq.read_table(path)
        assert table.schema.field("tokens").type.value_type == pa.uint16()
        tokens = read_tokens(table)
        assert [row.tolist() for row in tokens] == table.column("tokens").to_pylist()
        assert [row.tolist() for row in read_tokens(table.slice(1))] == [row.tolist() for row in tokens[1:]]
        facts = json.loads(table.schema.metadata[b"jepa-daam"])
        assert facts["token_values"] == [16384] * 18 + [16]


def test_a_tar_has_the_rows_of_its_folder(job, librilight, undisturbed):
    manifest = tokenize(dataclasses.replace(job, source=Source(str(librilight.with_suffix(".tar")))))
    assert (manifest.total("rows"), manifest.total("rejected")) == (12, 0)
    rows = [
        {row.id: row.tokens.tolist() for path in shard_paths(corpus) for row in read_rows(path)[0]}
        for corpus in (job.output, undisturbed)
    ]
    assert rows[0] == rows[1]


def test_tars_in_a_folder_may_hold_the_same_names(tmp_path):
    for name in ("a.tar", "b.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, content in (("0.flac", SPEECH.read_bytes()), ("0.json", b'{"text": "it", "source": "s"}')):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    source = Source(str(tmp_path))
    recordings = list(open_recordings(source, list_entries(source)))
    assert [each.id for each in recordings] == [f"{tmp_path.name}/{name}/0.flac" for name in ("a.tar", "b.tar")]
    assert {(each.text, each.source, each.audio) for each in recordings} == {("it", "s", SPEECH.read_bytes())}


def test_a_manifest_may_name_files_that_are_not_there_but_none_twice(job, tmp_path):
    manifest = tmp_path / "corpus.jsonl"
    lines = [{"audio_filepath": str(SPEECH), "text": "ein Satz, größer", "speaker": 7}, {"path": "gone.flac"}]
    manifest.write_text("\n".join(map(json.dumps, lines)))
    job = dataclasses.replace(job, source=Source(str(manifest), "manifest"))
    assert guess_format(str(manifest)) == "manifest"
    tokenize(job)
    (row,) = read_rows(shard_paths(job.output)[0])[0]
    its_id = os.path.relpath(SPEECH, tmp_path)  # relative to the manifest, whose line has an absolute path
    assert (row.id, row.text, row.speaker, row.source) == (its_id, "ein Satz, größer", "7", "corpus")
    rejected = Path(job.output, "rejected.jsonl").read_text()
    assert json.loads(rejected) == {"id": "gone.flac", "reason": "no such file"}
    manifest.write_text("\n".join(map(json.dumps, [*lines, lines[0]])))
    with pytest.raises(ValueError, match="names .* more than once"):
        tokenize(dataclasses.replace(job, output=str(tmp_path / "other")))


def test_a_dataset_is_read_by_row_groups(job, tmp_path, nano_tokenizer):
    pytest.importorskip("datasets")
    sounds = [SPEECH.read_bytes(), b"no sound", SPEECH.with_name("1688-142285-0002.flac").read_bytes()] * 2
    table = pa.table(
        {
            "audio": [{"bytes": sound, "path": f"{number}.flac"} for number, sound in enumerate(sounds)],
            "speaker_id": [1, 2, 3] * 2,
            "text": ["a", "b", None] * 2,
        }
    )
    (tmp_path / "dataset").mkdir()
    pq.write_table(table, tmp_path / "dataset" / "train.parquet", row_group_size=2)
    source = Source(str(tmp_path / "dataset"), "dataset")
    manifest = tokenize(dataclasses.replace(job, source=source, parts_per_shard=2))
    assert [shard.rows + shard.rejected for shard in manifest.shards] == [4, 2]
    rows = [row for path in shard_paths(job.output) for row in read_rows(path)[0]]
    assert [row.id.split("/")[-1] for row in rows] == ["0.flac", "2.flac", "3.flac", "5.flac"]
    assert [(row.speaker, row.text) for row in rows] == [("1", "a"), ("3", None)] * 2
    assert rows[2].tokens.tolist() == nano_tokenizer(SPEECH)["input_ids"]
    assert verify_corpus(job.output) == []


def test_shards_do_not_depend_on_the_order_they_are_made_in(job, undisturbed):
    tokenize(job, order=reversed)
    assert contents(job.output) == contents(undisturbed)


def test_tokens_do_not_depend_on_neighbours(nano_tokenizer, librilight):
    source = Source(str(librilight))
    recordings = list(open_recordings(source, list_entries(source)))
    together = {row.id: row.tokens.tolist() for row in tokenize_recordings(recordings, nano_tokenizer)[0]}
    alone = tokenize_recordings(recordings[3:4], nano_tokenizer)[0][0]
    assert together[alone.id] == alone.tokens.tolist()


def test_an_interrupted_run_goes_on_from_every_step_to_the_same_bytes(job, tmp_path, monkeypatch):
    """Dies before and after each file that a run writes, and leaves what was half written."""
    (tmp_path / "in").mkdir()
    shutil.copy(SPEECH.with_name("1688-142285-0002.flac"), tmp_path / "in" / "a.flac")
    (tmp_path / "in" / "b.flac").write_bytes(b"no sound")
    job = dataclasses.replace(job, source=Source(str(tmp_path / "in")), shard_bytes=1)
    undisturbed = dataclasses.replace(job, output=str(tmp_path / "undisturbed"))
    tokenize(undisturbed)
    steps = 0
    while True:
        shutil.rmtree(job.output, ignore_errors=True)
        with monkeypatch.context() as patch:
            die_at_write(patch, steps)
            try:
                tokenize(job)
            except Died:
                pass
            else:
                break
        tokenize(job)
        assert contents(job.output) == contents(undisturbed.output), f"killed at step {steps}"
        steps += 1
    # Before and after each of the plan, the skipped files, the plan's index, the settings, two shards, two records, the
    # three lists at the end; and before the folder of the run is removed.
    assert steps == 2 * 11 + 1


class Died(BaseException):
    """In place of a SIGKILL: nothing catches it."""


def die_at_write(patch, steps: int) -> None:
    """Die at the given number of steps: each file that appears is two, before and after it does."""
    replace, left = os.replace, [steps]

    def step():
        left[0] -= 1
        if left[0] < 0:
            raise Died

    def dying(source, target):
        step()
        replace(source, target)
        step()

    def rmtree(folder, ignore_errors=False):
        if Path(folder).name == WORK:  # else it is what a killed process does not remove
            step()

    patch.setattr(os, "replace", dying)
    patch.setattr(shutil, "rmtree", rmtree)


def start(job: CorpusJob, *more: str, launcher: Sequence[str] = (), **options) -> subprocess.Popen:
    """The command of a job in a process group of its own, as a user starts it."""
    command = [sys.executable, "-m", *launcher, *COMMAND, job.source.location, job.output, "--model", job.model]
    environment = {"PYTHONPATH": str(ROOT), "RAY_worker_niceness": "0"}  # not behind all else that runs here
    return subprocess.Popen(
        [*command, "--shard-mb", str(SHARD_BYTES / 1e6), *more], env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options,
    )  # fmt: skip


def finished(process: subprocess.Popen, code: int = 1) -> str:
    """What a command that comes to its end says; it exits with 1, as four recordings are rejected."""
    output = process.communicate(timeout=WAIT_S)[0]
    assert process.returncode == code, output
    assert "stopped:" not in output
    return output


def kill_at_random(job: CorpusJob, victim: str, rng: random.Random, *options: str) -> None:
    """Start the command, and once it has made a shard, SIGKILL all of it at any moment of the next ones, or a part.

    A command whose worker alone was killed goes on to the end; one that a quick machine ends first cannot be killed.
    """
    done = Path(job.output) / WORK / DONE
    before = len(list(done.glob("*.json")))
    process = start(job, *options)
    try:
        while len(list(done.glob("*.json"))) <= before:
            code = process.poll()
            if code in (0, 1):  # the rest was made between two looks
                assert "stopped:" not in process.communicate()[0]
                return
            assert code is None, process.communicate()[0]
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        if victim == "all":
            os.killpg(process.pid, signal.SIGKILL)
        elif victim == "command":
            os.kill(process.pid, signal.SIGKILL)
        elif workers := workers_of(process.pid, job):
            os.kill(rng.choice(workers), signal.SIGKILL)
        output = process.communicate(timeout=WAIT_S)[0]
    finally:
        process.kill()
    finished = not (Path(job.output) / WORK).exists()  # and perhaps killed on its way out
    expected = [1] if victim == "worker" else [1, -signal.SIGKILL] if finished else [-signal.SIGKILL]  # 4 are rejected
    assert process.returncode in expected, output


def workers_of(pid: int, job: CorpusJob) -> list[int]:
    """The processes that make shards for a command: its children, or the actors that have told of a try."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for path in (Path(job.output) / WORK / TRIES).glob("*"):
        found += [line.split()[-1] for line in path.read_text().splitlines()]
    return sorted(process for process in {*map(int, found)} if is_worker(process))


def is_worker(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended
        return False
    return b"spawn_main" in command or command.startswith(b"ray::")


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_killed_at_random_it_ends_with_the_bytes_of_an_undisturbed_run(job, undisturbed):
    """SIGKILL to the whole command, to its first process and to one of its two workers, one after another."""
    rng = random.Random(0)
    for victim in ("all", "command", "worker"):
        kill_at_random(job, victim, rng, "--jobs", "2")
    assert contents(job.output) == contents(undisturbed)
    assert verify_corpus(job.output) == []


@pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")
def test_killed_at_random_ray_ends_with_the_same_bytes(job, undisturbed):
    """SIGKILL to the whole command, then to one of its two actors."""
    rng = random.Random(0)
    for victim in ("all", "worker"):
        kill_at_random(job, victim, rng, "--engine", "ray", "--workers", "2")
    assert contents(job.output) == contents(undisturbed)


def actor_says(job: CorpusJob) -> dict:
    return json.loads(_Actor(job)({"shard": np.array([0])})["outcome"][0])


def test_an_actor_of_ray_says_why_it_cannot_go_on(job, tmp_path, nano_tokenizer):
    assert "must lie in storage that all nodes share" in actor_says(job)["stopped"]
    prepare(job)
    (Path(job.output) / WORK / TRIES).mkdir()
    other = make_untrained_checkpoint(nano_tokenizer.model.config, tmp_path / "other", seed=1)
    assert "model.weights_sha256 was" in actor_says(dataclasses.replace(job, model=str(other)))["refused"]
    assert actor_says(job)["record"]["rows"] > 0
    for _ in range(2, MAX_TRIES):
        assert actor_says(job)["shard"] == 0
    assert f"ended its process {MAX_TRIES} times" in actor_says(job)["stopped"]


def test_ray_that_is_not_installed_is_asked_for(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'jepa-daam\[ray\]'"):
        tokenize_corpus_with_ray(job)


def test_two_ranks_share_the_shards_and_the_last_writes_the_manifest(job, undisturbed):
    launcher = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m"]
    output = finished(start(job, "--device", "cpu", launcher=launcher), code=0)
    assert "12 recordings" in output
    assert contents(job.output) == contents(undisturbed)


@pytest.mark.parametrize(
    "names",
    [
        ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),  # torchrun, and Accelerate by it
        ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH
    ],
)
def test_a_process_knows_its_rank_from_any_launcher(names, monkeypatch):
    for name, value in zip(names, ("3", "4", "1", "2"), strict=True):
        monkeypatch.setenv(name, value)
    assert [corpus_command._launched(what, -1) for what in corpus_command.LAUNCHED] == [3, 4, 1, 2]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    assert corpus_command._jobs(("cpu",)) == 4


@pytest.mark.parametrize("step", ["list_entries", "_lock", "finish"])
def test_a_rank_does_not_mind_that_another_finishes_while_it_begins(job, undisturbed, monkeypatch, step):
    """All shards were made, then all ranks killed: whoever comes first clears up what the other still reads."""
    settings, plan = prepare(job)
    worker = ShardWorker(job, settings, plan)
    for shard in plan.shards:
        worker(shard.index)

    def complete(rank: int):
        return corpus_run.complete_corpus(job, lambda settings, plan, missing: None, rank, 2)

    its_own = getattr(corpus_run, step)

    def after_the_other(*arguments):
        monkeypatch.undo()
        assert complete(rank=1) == read_manifest(undisturbed)
        return its_own(*arguments)

    monkeypatch.setattr(corpus_run, step, after_the_other)
    assert complete(rank=0) == read_manifest(undisturbed)
    assert contents(job.output) == contents(undisturbed)


def test_a_full_disk_stops_it_with_a_message_and_it_goes_on_later(job, undisturbed):
    limit = max(len(path.read_bytes()) for path in shard_paths(undisturbed)) - 1
    limited = start(
        job,
        "--jobs",
        "1",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)),
    )
    output = limited.communicate(timeout=WAIT_S)[0]
    assert limited.returncode == 1, output
    assert "stopped:" in output
    assert "File too large" in output
    assert "the same command goes on" in output
    assert "Traceback" not in output
    shards = list(Path(job.output, "data").rglob("*"))
    assert [path.name for path in shards if path.suffix != ".parquet"] == []
    tokenize(job)
    assert contents(job.output) == contents(undisturbed)


def test_another_checkpoint_setting_or_corpus_is_refused(job, tmp_path, tiny_config, librilight, nano_tokenizer):
    tokenize(job, stop_after=1)
    other = make_untrained_checkpoint(nano_tokenizer.model.config, tmp_path / "other", seed=1)
    wrong = {
        "model.weights_sha256": dataclasses.replace(job, model=str(other)),
        "model.dtype": dataclasses.replace(job, dtype="bfloat16"),
        "corpus.shard_bytes": dataclasses.replace(job, shard_bytes=400_000),
        "corpus.name": dataclasses.replace(job, source=Source(str(librilight.with_suffix(".tar")))),
    }
    for finished in (False, True):
        for key, changed in wrong.items():
            with pytest.raises(ValueError, match=f"other settings: .*{key} was .*, is .*; choose another"):
                prepare(changed)
        added = librilight / "added.wav"
        soundfile.write(added, noise(1000), 16000)
        try:
            with pytest.raises(ValueError, match="other settings: the list of recordings was"):
                prepare(job)
        finally:
            added.unlink()
        assert ((tokenize(job) is not None) and not finished) or finished
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ValueError, match="holds something else"):
        prepare(dataclasses.replace(job, output=str(tmp_path / "mine")))


def test_a_finished_corpus_is_left_as_it_is(job, undisturbed):
    shutil.copytree(undisturbed, job.output)
    before = {path: path.stat().st_mtime_ns for path in Path(job.output).rglob("*") if path.is_file()}
    assert tokenize(job) == read_manifest(undisturbed)
    assert {path: path.stat().st_mtime_ns for path in Path(job.output).rglob("*") if path.is_file()} == before


def test_a_listed_recording_that_is_gone_or_changed_stops_the_run(job, tmp_path, nano_tokenizer):
    (tmp_path / "in").mkdir()
    for name in ("a.flac", "b.flac"):
        shutil.copy(SPEECH, tmp_path / "in" / name)
    source = Source(str(tmp_path / "in"))
    entries = list(list_entries(source))
    (tmp_path / "in" / "b.flac").write_bytes(SPEECH.read_bytes()[:-1])
    with pytest.raises(OSError, match="has changed since it was listed"):
        tokenize_recordings(open_recordings(source, entries), nano_tokenizer)
    shutil.rmtree(tmp_path / "in")
    with pytest.raises(FileNotFoundError):
        tokenize_recordings(open_recordings(source, entries), nano_tokenizer)


def test_a_second_command_of_the_same_rank_is_refused(job):
    prepare(job)
    with (
        corpus_run._lock(Path(job.output, WORK, "lock-0-of-1")),
        pytest.raises(CorpusRunError, match="another process is at work"),
    ):
        corpus_run.tokenize_corpus(job)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_verifying_finds_what_is_not_as_it_was_written(undisturbed, tmp_path, monkeypatch):
    def damaged(damage) -> str:
        corpus = tmp_path / "damaged"
        shutil.rmtree(corpus, ignore_errors=True)
        shutil.copytree(undisturbed, corpus)
        damage(corpus, shard_paths(corpus)[1])
        return " | ".join(verify_corpus(corpus))

    assert damaged(lambda corpus, shard: None) == ""
    assert "00001-of-" in damaged(lambda corpus, shard: flip(shard))
    assert "missing" in damaged(lambda corpus, shard: shard.unlink())
    assert "rejected.jsonl: damaged" in damaged(lambda corpus, shard: flip(corpus / "rejected.jsonl"))
    assert "more.parquet: not in the manifest" in damaged(
        lambda corpus, shard: shutil.copy(shard, corpus / "data" / "more.parquet")
    )

    def rewritten(change):
        """A shard with other rows under the digests of the old ones, and a manifest that has its hash."""

        def damage(corpus, shard):
            rows, digests, facts = read_rows(shard)
            changed = change(rows)
            by_id = {row.id: digest for row, digest in zip(rows, digests, strict=True)}
            with monkeypatch.context() as patch:
                patch.setattr("modeling_jepa_daam.corpus.shard.row_digest", lambda row: by_id[row.id])
                sha256, size = write_shard(shard, changed, facts)
            text = json.loads((corpus / "manifest.json").read_text())
            record = text["shards"][1]
            text["totals"]["bytes"] += size - record["bytes"]
            record |= {"sha256": sha256, "bytes": size}
            (corpus / "manifest.json").write_text(json.dumps(text))

        return damaged(damage)

    assert rewritten(lambda rows: rows) == ""
    text = [lambda row: dataclasses.replace(row, text="another")]
    assert "its digest is another" in rewritten(lambda rows: [text[0](rows[0]), *rows[1:]])
    other = [lambda row: dataclasses.replace(row, tokens=row.tokens ^ np.uint16(1))]
    assert "its digest is another" in rewritten(lambda rows: [other[0](rows[0]), *rows[1:]])
    assert "comes more than once" in rewritten(lambda rows: [rows[0], *rows])
    assert "its counts" in rewritten(lambda rows: rows[1:])


def test_decoding_gives_what_the_tokenizer_gives(undisturbed, nano_folder, tmp_path, tiny_folder):
    written = decode_sample(undisturbed, str(nano_folder), 3, tmp_path / "sound")
    assert [path.name.split("_")[0] for path in written] == ["00000000", "00000004", "00000008"]
    rows = [row for path in shard_paths(undisturbed) for row in read_rows(path)[0]]
    expected = JepaAudioTokenizer.from_pretrained(nano_folder).decode_audio(rows[4].tokens, rows[4].num_samples)
    samples, rate = soundfile.read(written[1], dtype="float32")
    assert rate == 24000
    np.testing.assert_allclose(samples, expected, atol=0.51 / 32768)
    with pytest.raises(ValueError, match="not the checkpoint that made the corpus"):
        decode_sample(undisturbed, str(tiny_folder), 3, tmp_path / "other")


def test_tokens_take_less_than_5_percent_above_640_bits_a_second():
    """Of uniform tokens, which nothing can compress; 12 s and 2 s a recording."""
    rng = np.random.default_rng(0)
    for frames in (30, 5):
        rows = []
        for number in range(2000):
            tokens = rng.integers(0, 16384, (frames, 19))
            tokens[:, 18] %= 16
            rows.append(Row(str(number), tokens.ravel().astype(np.uint16), frames * 9600, frames * 0.4, "", "", None))
        metadata = pq.ParquetFile(io.BytesIO(encode_shard(rows, {}))).metadata
        size = sum(
            metadata.row_group(group).column(1).total_compressed_size for group in range(metadata.num_row_groups)
        )
        assert metadata.row_group(0).column(1).path_in_schema == "tokens.list.element"
        assert 640 * 0.99 < 8 * size / (len(rows) * frames * 0.4) < 640 * 1.05


def test_an_accelerators_batches_hold_every_chunk_once_with_others_of_like_length():
    rng = np.random.default_rng(0)
    chunks = [(n, 0, np.zeros(length, np.float32)) for n, length in enumerate(rng.integers(1, 1000, 700))]
    batches = list(_batches(chunks, alone=False))
    assert sorted(chunk[0] for batch in batches for chunk in batch) == list(range(700))
    assert max(map(len, batches)) == 32
    padded = sum(max(len(chunk[2]) for chunk in batch) * len(batch) for batch in batches)
    assert padded < 1.2 * sum(len(chunk[2]) for chunk in chunks)
    assert list(_batches(chunks, alone=True)) == [[chunk] for chunk in chunks]


def test_what_runs_in_a_batch_comes_back_to_its_recording(nano_tokenizer, librilight, monkeypatch):
    source = Source(str(librilight))
    recordings = list(open_recordings(source, list_entries(source)))
    alone = tokenize_recordings(recordings, nano_tokenizer)[0]
    monkeypatch.setattr(encoding, "_batches", lambda chunks, alone: _batches(chunks, False))
    together = tokenize_recordings(recordings, nano_tokenizer)[0]
    assert [(row.id, row.tokens.tolist()) for row in together] == [(row.id, row.tokens.tolist()) for row in alone]


def test_a_recording_longer_than_a_block_is_cut_as_the_model_cuts_it(nano_tokenizer):
    samples = np.resize(noise(24000 * 3), 24000 * 70)  # 60 s are read at a time, 12 s encoded
    sound = io.BytesIO()
    soundfile.write(sound, samples, 24000, format="WAV", subtype="FLOAT")
    threads = torch.get_num_threads()
    rows, rejected = tokenize_recordings([Recording("a", sound.getvalue(), "", "")], nano_tokenizer)
    assert rejected == []
    assert rows[0].tokens.tolist() == nano_tokenizer(samples, 24000)["input_ids"]
    assert torch.get_num_threads() == threads


def test_a_plan_cuts_by_bytes_and_finds_each_shards_entries(tmp_path):
    entries = [{"id": str(number), "size": number} for number in range(10)]
    plan = write_plan(iter(entries), tmp_path / "plan.jsonl", 10, 1)
    assert [[entry["size"] for entry in read_entries(tmp_path / "plan.jsonl", shard)] for shard in plan.shards] == [
        [0, 1, 2, 3, 4], [5, 6], [7, 8], [9],
    ]  # fmt: skip
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with pytest.raises(ValueError, match="no recordings"):
        write_plan(iter([]), tmp_path / "other.jsonl", 10, 1)


def test_the_command_verifies_decodes_and_says_what_is_wrong(undisturbed, nano_folder, tmp_path):
    from tests.test_cli import run

    corpus = tmp_path / "corpus"
    shutil.copytree(undisturbed, corpus)
    assert "12 recordings" in run("tokenize-corpus", corpus, "--verify")
    output = run("tokenize-corpus", corpus, "--decode", 2, "-m", nano_folder, "--decode-to", tmp_path / "sound")
    assert "2 rows as sound" in output
    assert len(list((tmp_path / "sound").glob("*.flac"))) == 2
    flip(shard_paths(corpus)[0])
    assert "damaged: its SHA-256 is another" in run("tokenize-corpus", corpus, "--verify", code=1)
    assert "must be given" in run("tokenize-corpus", corpus, code=2)
    assert "no such file or folder" in run("tokenize-corpus", "/no/where", tmp_path / "o", "-m", nano_folder, code=2)
    assert "no finished corpus" in run("tokenize-corpus", tmp_path, "--verify", code=2)
    assert "holds something else" in run("tokenize-corpus", undisturbed, tmp_path, "-m", nano_folder, code=2)
