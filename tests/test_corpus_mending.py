"""A corpus that something happened to: damaged after it was finished, begun twice at once, of less than a shard."""

import json
import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from typer.testing import CliRunner

from modeling_jepa_daam.cli import app
from modeling_jepa_daam.corpus import run as corpus_run
from modeling_jepa_daam.corpus.finished import read_manifest, shard_paths, verify_corpus
from modeling_jepa_daam.corpus.run import (
    DONE,
    ENTRIES,
    PLAN,
    SETTINGS,
    WORK,
    CorpusJob,
    CorpusRunError,
    Meters,
    ShardWorker,
    complete_corpus,
    prepare,
)
from modeling_jepa_daam.corpus.shard import read_rows
from modeling_jepa_daam.corpus.sources import Source

from .conftest import SPEECH

CLIPS = [SPEECH.with_name(f"1688-142285-{number}.flac") for number in ("0002", "0003")]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> Path:
    """A plain folder: two recordings, and one that is none."""
    folder = tmp_path_factory.mktemp("corpus") / "plain"
    folder.mkdir()
    for clip in CLIPS:
        shutil.copy(clip, folder)
    (folder / "bad.flac").write_bytes(b"no sound")
    return folder


@pytest.fixture
def job(recordings, nano_folder, tmp_path) -> CorpusJob:
    return CorpusJob(Source(str(recordings)), str(tmp_path / "out"), str(nano_folder), shard_bytes=1)


def tokenize(job: CorpusJob) -> list[int]:
    """Run a job in this process; the shards that it made."""
    made: list[int] = []

    def make_shards(settings, plan, missing):
        worker = ShardWorker(job, settings, plan)
        for shard in missing:
            made.append(shard.index)
            worker(shard.index)

    assert complete_corpus(job, make_shards) is not None
    return made


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "found", "made"),
    [
        (lambda out: shard_paths(out)[1].unlink(), "train-00001-of-00003.parquet: missing", [1]),
        (lambda out: cut(shard_paths(out)[2]), "train-00002-of-00003.parquet: damaged", [2]),
        (lambda out: shutil.rmtree(out / "data"), "train-00000-of-00003.parquet: missing", [0, 1, 2]),
        (lambda out: (out / "rejected.jsonl").unlink(), "rejected.jsonl: missing", [2]),
        (lambda out: cut(out / "rejected.jsonl"), "rejected.jsonl: damaged", [2]),
    ],
    ids=["a shard is gone", "a shard is cut", "all shards are gone", "no rejected.jsonl", "rejected.jsonl is cut"],
)
def test_the_same_command_makes_what_a_finished_corpus_lost_and_nothing_else(job, damage, found, made):
    assert tokenize(job) == [0, 1, 2]
    out, before = Path(job.output), contents(job.output)
    assert tokenize(job) == []
    damage(out)
    assert any(found in problem for problem in verify_corpus(out))
    assert tokenize(job) == made
    assert verify_corpus(out) == []
    assert contents(out) == before


def test_mending_that_is_killed_goes_on(job, monkeypatch):
    tokenize(job)
    out, before = Path(job.output), contents(job.output)
    shard_paths(out)[1].unlink()

    def die(*arguments, **named):
        raise KeyboardInterrupt

    for step in ("write_plan", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(corpus_run, step, die)
            with pytest.raises(KeyboardInterrupt):
                prepare(job)
    prepare(job)  # and killed before the first shard
    assert tokenize(job) == [1]
    assert contents(out) == before


def test_the_command_says_how_a_damaged_corpus_is_mended(job, recordings, nano_folder):
    arguments = ["tokenize-corpus", str(recordings), job.output, "-m", str(nano_folder), "--shard-mb", "0.001"]
    arguments += ["--jobs", "1"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output  # one recording is rejected
    shard_paths(job.output)[0].unlink()
    done = CliRunner().invoke(app, ["tokenize-corpus", job.output, "--verify"])
    assert done.exit_code == 1
    assert "the command that made the corpus makes what is damaged again" in " ".join(done.output.split())
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 1, done.output
    assert verify_corpus(job.output) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "[" * 100_000,
        lambda text: "[]",
        lambda text: text.replace('"rows": 1', '"rows": "1"'),
        lambda text: text.replace("data/train-00001", "../train-00001"),
        lambda text: text.replace('"hop_length": 9600', '"hop_length": 0'),
        lambda text: json.dumps({**json.loads(text), "settings": 1}),
    ],
    ids=["nested", "a list", "a count as text", "a path outside", "no hop", "no settings"],
)
def test_a_manifest_edited_by_hand_is_refused_with_one_error(job, change):
    tokenize(job)
    manifest = Path(job.output, "manifest.json")
    manifest.write_text(change(manifest.read_text()))
    for use in (read_manifest, verify_corpus):
        with pytest.raises(ValueError, match=r"manifest.json is damaged: "):
            use(job.output)
    with pytest.raises(ValueError, match=r"manifest.json is damaged: "):
        tokenize(job)


@pytest.mark.parametrize("left", ["file", "folder", "empty settings", "empty plan", "cut entries", "damaged record"])
def test_what_a_loss_of_power_left_does_not_stop_the_next_run(job, left):
    undisturbed = CorpusJob(job.source, job.output + "2", job.model, shard_bytes=1)
    tokenize(undisturbed)
    out, work = Path(job.output), Path(job.output, WORK)
    out.mkdir()
    if left == "file":
        work.touch()
    elif left == "folder":
        work.mkdir()
    else:
        settings, plan = prepare(job)
        assert plan is not None
        ShardWorker(job, settings, plan)(0)
        file = {"empty settings": SETTINGS, "empty plan": PLAN, "cut entries": ENTRIES}.get(left, f"{DONE}/00000.json")
        (work / file).write_bytes(b"" if left.startswith("empty") else (work / file).read_bytes()[:-2])
    assert tokenize(job) == ([1, 2] if left in ("empty plan", "cut entries") else [0, 1, 2])
    assert contents(out) == contents(undisturbed.output)


def test_of_two_commands_that_start_at_once_the_second_is_refused(job, monkeypatch):
    """The second starts while the first lists the corpus: before there is any plan."""
    its_own = corpus_run.list_entries

    def listing(source, census):
        monkeypatch.undo()
        with pytest.raises(CorpusRunError, match="another process is at work in .*out"):
            tokenize(job)
        return its_own(source, census)

    monkeypatch.setattr(corpus_run, "list_entries", listing)
    assert tokenize(job) == [0, 1, 2]
    assert verify_corpus(job.output) == []


def test_a_command_that_opened_the_lock_of_a_run_that_ended_takes_the_new_one(job, monkeypatch):
    import fcntl

    lock, its_own = Path(job.output, WORK, "lock-0-of-1"), fcntl.flock

    def flock(file, operation):
        monkeypatch.undo()
        shutil.rmtree(lock.parent)
        its_own(file, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with corpus_run._lock(lock, True):
        assert lock.exists()
        with pytest.raises(CorpusRunError, match="another process"), corpus_run._lock(lock, True):
            pass


def test_a_run_that_cannot_begin_leaves_nothing(job, tmp_path):
    (tmp_path / "empty").mkdir()
    empty = CorpusJob(Source(str(tmp_path / "empty")), job.output, job.model)
    with pytest.raises(ValueError, match="no recordings"):
        tokenize(empty)
    assert not Path(job.output).exists()
    tokenize(job)
    before = contents(job.output)
    with pytest.raises(ValueError, match="made with other settings"):
        tokenize(CorpusJob(job.source, job.output, job.model, shard_bytes=2))
    assert contents(job.output) == before
    assert not Path(job.output, WORK).exists()


def test_processes_share_the_recordings_of_one_shard(job, monkeypatch, tmp_path):
    monkeypatch.setattr(corpus_run, "MIN_PART_BYTES", 1)
    job = CorpusJob(job.source, job.output, job.model)
    alone = CorpusJob(job.source, str(tmp_path / "alone"), job.model)
    tokenize(alone)
    given: list[tuple] = []

    def in_this_process(tasks, jobs, make_worker, arguments):
        given.extend(tasks)
        worker = make_worker(*arguments)
        for task in reversed(tasks):  # in any order
            yield task, worker(*task), None

    monkeypatch.setattr(corpus_run, "run_in_processes", in_this_process)
    meters = Meters()
    manifest = corpus_run.tokenize_corpus(job, jobs=3, meters=meters)
    assert given == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
    assert manifest is not None
    assert (len(manifest.shards), manifest.total("rows"), manifest.total("rejected")) == (1, 2, 1)
    assert contents(job.output) == contents(alone.output)


def test_parts_of_a_shard_are_of_like_size_and_none_is_tiny(job):
    _, plan = prepare(CorpusJob(job.source, job.output, job.model))
    assert plan is not None
    (shard,) = plan.shards

    def parts(jobs: int, device: str = "cpu") -> list[tuple[int, int, int]]:
        return corpus_run._parts(CorpusJob(job.source, job.output, job.model, device), plan, [shard], jobs)

    assert parts(8) == [(0, 0, 3)]  # all of it is less than a megabyte
    assert parts(1) == [(0, 0, 3)]
    assert corpus_run._parts(job, plan, [], 4) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_run, "MIN_PART_BYTES", 1)
        assert parts(2) == [(0, 0, 2), (0, 2, 3)]
        assert parts(8) == [(0, 0, 1), (0, 1, 2), (0, 2, 3)]
        assert parts(8, "cuda") == [(0, 0, 3)]


def test_ids_are_relative_to_the_manifest_and_one_file_is_named_once(job, recordings, tmp_path):
    manifest = tmp_path / "lists" / "corpus.jsonl"
    manifest.parent.mkdir()
    shutil.copy(CLIPS[0], manifest.parent)
    lines = [{"path": str(recordings / CLIPS[1].name)}, {"path": str(manifest.parent / CLIPS[0].name)}]
    lines.append({"path": str(recordings / "bad.flac")})
    manifest.write_text("\n".join(map(json.dumps, lines)))
    job = CorpusJob(Source(str(manifest), "manifest"), job.output, job.model)
    tokenize(job)
    rows = [row for path in shard_paths(job.output) for row in read_rows(path)[0]]
    elsewhere = os.path.relpath(recordings, manifest.parent)
    assert [row.id for row in rows] == [f"{elsewhere}/{CLIPS[1].name}", CLIPS[0].name]
    rejected = Path(job.output, "rejected.jsonl").read_text()
    assert f"{elsewhere}/bad.flac" in rejected
    assert str(tmp_path) not in rejected
    assert str(tmp_path) not in json.dumps(read_manifest(job.output).settings)
    manifest.write_text("\n".join(map(json.dumps, [*lines, {"path": CLIPS[0].name}])))
    with pytest.raises(ValueError, match="names 1688-142285-0002.flac more than once"):
        tokenize(CorpusJob(job.source, str(tmp_path / "other"), job.model))


def test_the_speaker_of_a_plain_folder_is_its_name_and_of_deeper_ones_the_folder_above_the_last(job, tmp_path):
    """As the README says; as LibriLight has it."""
    from modeling_jepa_daam.corpus.sources import list_entries

    for name in ("a.flac", "ann/b.flac", "ann/book/c.flac"):
        (tmp_path / "voices" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(SPEECH, tmp_path / "voices" / name)
    entries = list_entries(Source(str(tmp_path / "voices")))
    assert {Path(entry["id"]).name: entry["speaker"] for entry in entries} == {
        "a.flac": "voices", "b.flac": "voices", "c.flac": "ann",
    }  # fmt: skip
