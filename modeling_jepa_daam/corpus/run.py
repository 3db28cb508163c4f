"""A whole corpus, shard by shard, in as many processes as there are; interrupted anywhere, it goes on where it was.

The folder of a corpus:

    data/train-00000-of-00042.parquet ...   shards; each appears whole or not at all
    rejected.jsonl                          recordings without tokens, and why
    manifest.json                           settings, counts and the SHA-256 of every file; written last
    .work/                                  the plan, and a record of each shard that is done; gone at the end

What a shard holds depends only on the plan and the settings, which a run writes down before it begins and later runs
must share. A shard is done when its record is there and its bytes are those that the record names; anything else is
made again, to the same bytes. So nothing needs to be agreed on between processes: each takes every n-th shard, and
whoever finds all records there writes the manifest, which is the same whoever does.
"""

import contextlib
import errno
import importlib.metadata
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from ..configuration_jepa_daam import JepaDaamConfig
from ..files import replacing, sha256_of, weights_sha256, write_json
from ..packing import group_vocabulary_sizes
from ..processes import run_in_processes
from ..tokenization_jepa_daam import JepaAudioTokenizer
from .encoding import tokenize_recordings
from .finished import FORMAT, MANIFEST, REJECTED, CorpusRunError, Manifest, ShardRecord, read_manifest, shard_name
from .plan import Plan, PlannedShard, entries_sha256, read_entries, write_plan
from .shard import GATES_KEY, MAX_VOCABULARY, pyarrow, write_shard
from .sources import Source, dataset_digest, list_entries, open_recordings

WORK, SETTINGS, PLAN, ENTRIES, DONE = ".work", "settings.json", "plan.json", "plan.jsonl", "done"
PACKAGES = ("torch", "numpy", "soundfile", "soxr", "pyarrow")  # a change of these may change tokens or bytes
POLL_S = 0.5  # between looks for the plan that another process makes
GO_ON = "nothing that was done is lost; once this is mended, the same command goes on"
MAX_BROKEN_SHARDS = 3  # that end their process: then the fault is not in a recording


@dataclass(frozen=True)
class CorpusJob:
    """What to tokenize, with what, and where to.

    Args:
        source: The corpus.
        output: Folder of the result.
        model: Checkpoint folder or Hub id.
        device: `"cpu"` or `"cuda"`.
        dtype: Precision of the model.
        shard_bytes: Bytes of sound files that fill a shard.
        parts_per_shard: Row groups of a dataset that fill a shard.
        salience: Whether shards have the column `salience`: the encoder's gates in each frame.
    """

    source: Source
    output: str
    model: str
    device: str = "cpu"
    dtype: str = "float32"
    shard_bytes: int = 500_000_000
    parts_per_shard: int = 8
    salience: bool = False


class Meters:
    """How far all processes of this run are, and whether they shall stop."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self.seconds = spawn.Value("d", 0.0)
        self.size = spawn.Value("q", 0)
        self.rejected = spawn.Value("q", 0)
        self.stop = spawn.Value("b", 0)
        self.workers = spawn.Value("i", 0)

    def add(self, seconds: float, size: int, rejected: int) -> None:
        """Count what is done.

        Raises:
            InterruptedError: If the run is to stop.
        """
        for value, more in ((self.seconds, seconds), (self.size, size), (self.rejected, rejected)):
            if more:
                with value.get_lock():
                    value.value += more
        if self.stop.value:
            raise InterruptedError("stopped")


def prepare(job: CorpusJob, lead: bool = True) -> tuple[dict, Plan | None]:
    """Settings and plan of a job: new ones, or those of an interrupted run, which must be of the same settings.

    Args:
        job: The job.
        lead: Whether this process lists the corpus and makes the plan; others wait until it is there.

    Returns:
        The settings, and the plan; none if the corpus is finished.

    Raises:
        ValueError: If the folder holds something else, or what other settings made; if there are no recordings.
        FileNotFoundError: If the corpus is not there.
    """
    output = Path(job.output)
    work = output / WORK
    settings = _settings(job)
    if lead:
        _check_folder(output)
        known = _known_settings(output)
        if known is None:
            work.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(work)
            plan = write_plan(list_entries(job.source), work / ENTRIES, job.shard_bytes, job.parts_per_shard)
            settings["corpus"]["sha256"] = plan.sha256
            (work / DONE).mkdir(exist_ok=True)
            write_json(work / PLAN, plan.to_dict())
            write_json(work / SETTINGS, settings)
            return settings, plan
        settings["corpus"]["sha256"] = entries_sha256(list_entries(job.source))
    else:
        while (known := _known_settings(output)) is None:
            time.sleep(POLL_S)
        settings["corpus"]["sha256"] = known["corpus"]["sha256"]
    if settings != known:
        raise ValueError(f"`OUT` {output} was made with other settings: {_difference(known, settings)}; choose another")
    if (output / MANIFEST).exists():
        _clear_up(output)
        return settings, None
    return settings, Plan.from_dict(json.loads((work / PLAN).read_text()))


def _settings(job: CorpusJob) -> dict:
    """All that decides what the shards hold; the digest of the list of recordings is still missing."""
    tokenizer = JepaAudioTokenizer.from_pretrained(job.model)
    reference, revision = tokenizer.codec_reference, tokenizer.codec_revision or "main"
    config = JepaDaamConfig.from_pretrained(reference, revision=revision)
    if config.vocab_size > MAX_VOCABULARY:
        raise ValueError(f"`model`: its {config.vocab_size} ids do not fit 16 bits")
    if job.salience and config.num_encoder_gates == 0:
        raise ValueError("`salience`: the model's encoder has no DAAM gates")
    corpus: dict[str, Any] = {"format": job.source.format}
    if job.source.format == "dataset":
        corpus |= {
            "name": job.source.dataset_name,
            "config": job.source.name,
            "split": job.source.split,
            "files_sha256": dataset_digest(job.source),
            "parts_per_shard": job.parts_per_shard,
        }
    else:
        corpus |= {"name": Path(job.source.location).absolute().name, "shard_bytes": job.shard_bytes}
    pyarrow()  # or a message on how to install it
    return {
        "model": {
            "weights_sha256": weights_sha256(reference, revision=revision),
            "config_digest": config.digest,
            "sampling_rate": config.sampling_rate,
            "hop_length": config.hop_length,
            "token_values": group_vocabulary_sizes(config.levels, config.group_size),
            "device": job.device,
            "dtype": job.dtype,
            **({GATES_KEY: config.num_encoder_gates} if job.salience else {}),
        },
        "corpus": corpus,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"`OUT` must be a folder, got {output}")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).exists() for name in (WORK, MANIFEST)):
        raise ValueError(f"`OUT` must be new, empty, or of an interrupted run, but {output} holds something else")


def _known_settings(output: Path) -> dict | None:
    """What an earlier run wrote down, if there was one."""
    try:
        return json.loads((output / WORK / SETTINGS).read_text())
    except FileNotFoundError:
        return read_manifest(output).settings if (output / MANIFEST).exists() else None


def _difference(before: dict, now: dict) -> str:
    """Which settings differ, and how."""
    parts = []
    for group in sorted(before.keys() | now.keys()):
        old, new = before.get(group, {}), now.get(group, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                label = "the list of recordings" if (group, key) == ("corpus", "sha256") else f"{group}.{key}"
                parts.append(f"{label} was {old.get(key)}, is {new.get(key)}")
    return "; ".join(parts)


class ShardWorker:
    """Makes shards, one after another, with one model; what a process of a run, or an actor of a cluster, holds.

    Args:
        job: The job, prepared.
        settings: Of `prepare`.
        plan: Of `prepare`.
        device: Such as `"cuda:1"`; the job's if `None`.
        on_progress: As for `tokenize_recordings`.
    """

    def __init__(
        self,
        job: CorpusJob,
        settings: dict,
        plan: Plan,
        device: str | None = None,
        on_progress: Callable[[float, int, int], None] = lambda seconds, size, rejected: None,
    ):
        self.job, self.settings, self.plan = job, settings, plan
        self.device, self.on_progress = device or job.device, on_progress
        self._tokenizer: JepaAudioTokenizer | None = None

    def __call__(self, index: int) -> ShardRecord:
        """Make a shard, and the record that says so.

        Raises:
            OSError: If a recording that was listed is gone, or the shard cannot be written.
        """
        if self._tokenizer is None:  # not before: what fails here is told as what fails in a shard
            transformers_logging.disable_progress_bar()
            self._tokenizer = JepaAudioTokenizer.from_pretrained(self.job.model).to(self.device, self.job.dtype)
        output, shard = Path(self.job.output), self.plan.shards[index]
        recordings = open_recordings(self.job.source, read_entries(output / WORK / ENTRIES, shard))
        rows, rejections = tokenize_recordings(recordings, self._tokenizer, self.on_progress, self.job.salience)
        path = output / shard_name(index, len(self.plan.shards))
        path.parent.mkdir(exist_ok=True)
        _remove_leftovers(path.parent, path.name)
        sha256, size = write_shard(path, rows, self.settings["model"])
        record = ShardRecord(
            file=shard_name(index, len(self.plan.shards)),
            sha256=sha256,
            bytes=size,
            rows=len(rows),
            tokens=sum(len(row.tokens) for row in rows),
            num_samples=sum(row.num_samples for row in rows),
            rejected=len(rejections),
        )
        done = output / WORK / DONE
        _remove_leftovers(done, f"{index:05d}.json")
        write_json(done / f"{index:05d}.json", asdict(record) | {"rejections": list(map(asdict, rejections))})
        return record


def _make_worker(
    job: CorpusJob, settings: dict, plan: Plan, devices: tuple[str, ...], meters: Meters
) -> Callable[[int], ShardRecord]:
    """The worker of a new process."""
    with meters.workers.get_lock():
        number = meters.workers.value
        meters.workers.value += 1
    return ShardWorker(job, settings, plan, devices[number % len(devices)], meters.add)


def tokenize_corpus(
    job: CorpusJob,
    jobs: int = 1,
    devices: tuple[str, ...] | None = None,
    rank: int = 0,
    world_size: int = 1,
    meters: Meters | None = None,
    on_shard: Callable[[PlannedShard, ShardRecord | None], None] = lambda shard, record: None,
    on_start: Callable[[list[PlannedShard], int], None] = lambda shards, total: None,
) -> Manifest | None:
    """Tokenize a corpus, or what is left of it.

    Args:
        job: The job.
        jobs: Worker processes of this machine, or of this rank.
        devices: Where their models run, in turn; the job's device if `None`.
        rank: Which of `world_size` commands that run at the same time, over one shared folder, this is.
        world_size: Number of these commands.
        meters: Where to count progress.
        on_shard: Told of each shard that is done.
        on_start: Told of the shards that are left to this command, and the number of all.

    Returns:
        The manifest; `None` if shards of other ranks are still missing.

    Raises:
        ValueError: If the folder was begun with other settings, or holds something else; if there are no recordings.
        FileNotFoundError: If the corpus is not there.
        CorpusRunError: If the disk is full, a listed recording is gone, or processes die again and again.
    """
    meters = meters or Meters()

    def make_shards(settings: dict, plan: Plan, missing: list[PlannedShard]) -> None:
        on_start(missing, len(plan.shards))
        _run_shards(job, settings, plan, missing, jobs, devices or (job.device,), meters, on_shard)

    return complete_corpus(job, make_shards, rank, world_size)


def complete_corpus(
    job: CorpusJob,
    make_shards: Callable[[dict, Plan, list[PlannedShard]], None],
    rank: int = 0,
    world_size: int = 1,
) -> Manifest | None:
    """Tokenize a corpus, or what is left of it, by whatever makes shards.

    Args:
        job: The job.
        make_shards: An engine: called with settings and plan of `prepare` and the shards that are left to this rank.
        rank: As for `tokenize_corpus`, which also says what is returned and raised.
        world_size: Likewise.
    """
    output = Path(job.output)
    was_finished = (output / MANIFEST).exists()
    plan: Plan | None = None
    try:
        settings, plan = prepare(job, lead=rank == 0)
        if plan is None:
            return read_manifest(output)
        with _lock(output / WORK / f"lock-{rank}-of-{world_size}"):
            make_shards(settings, plan, list(_missing(output, plan, rank, world_size)))
            return finish(output)
    except OSError as error:
        if not was_finished and (output / MANIFEST).exists():  # another rank was first, and has cleared up
            return read_manifest(output)
        if plan is None and isinstance(error, FileNotFoundError):
            raise
        raise CorpusRunError(_explained(error, job)) from error


def _explained(error: OSError, job: CorpusJob) -> str:
    place = "" if error.filename else f"in {job.output}: "  # what fails in writing does not say where
    return f"{place}{error}: {GO_ON}"


def _run_shards(
    job: CorpusJob,
    settings: dict,
    plan: Plan,
    missing: list[PlannedShard],
    jobs: int,
    devices: tuple[str, ...],
    meters: Meters,
    on_shard: Callable[[PlannedShard, ShardRecord | None], None],
) -> None:
    broken: list[PlannedShard] = []
    tasks = [(shard.index,) for shard in missing]
    outcomes = run_in_processes(
        tasks, max(1, min(jobs, len(tasks))), _make_worker, (job, settings, plan, devices, meters)
    )
    with contextlib.closing(outcomes):  # type: ignore[type-var]
        try:
            for (index,), record, error in outcomes:
                if isinstance(error, BrokenProcessPool):
                    broken.append(plan.shards[index])
                    if len(broken) >= MAX_BROKEN_SHARDS:
                        raise CorpusRunError(f"{len(broken)} shards ended their process, alone: too little memory?")
                elif error is not None:
                    raise error
                else:
                    on_shard(plan.shards[index], record)
        except BaseException:
            meters.stop.value = 1  # or the others would finish their shards first
            raise
    if broken:
        names = ", ".join(shard_name(shard.index, len(plan.shards)) for shard in broken)
        raise CorpusRunError(f"{names}: making it ends the process (a crash in a decoder, or too little memory)")


def _missing(output: Path, plan: Plan, rank: int, world_size: int) -> Iterator[PlannedShard]:
    """The shards of this rank that are not done."""
    for shard in plan.shards[rank::world_size]:
        record = _read_record(output, shard.index)
        path = output / shard_name(shard.index, len(plan.shards))
        if record is None or not path.is_file() or sha256_of(path) != record["sha256"]:
            yield shard


def _read_record(output: Path, index: int) -> dict | None:
    try:
        return json.loads((output / WORK / DONE / f"{index:05d}.json").read_text())
    except FileNotFoundError:
        return None


def finish(output: str | os.PathLike) -> Manifest | None:
    """Write the manifest if every shard is done; the same whoever does it, and if several do at once.

    Returns:
        The manifest; `None` if a shard is missing.
    """
    output = Path(output)
    try:
        plan = Plan.from_dict(json.loads((output / WORK / PLAN).read_text()))
        settings = json.loads((output / WORK / SETTINGS).read_text())
        records = [_read_record(output, shard.index) for shard in plan.shards]
    except FileNotFoundError:
        if (output / MANIFEST).exists():  # another rank was first
            return read_manifest(output)
        raise
    if (output / MANIFEST).exists():
        return read_manifest(output)
    if None in records:
        return None
    whole = [record for record in records if record is not None]
    rejections = [rejection for record in whole for rejection in record.pop("rejections")]
    with replacing(output / REJECTED) as temporary:
        temporary.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in rejections), "utf-8")
    manifest = Manifest(
        format=FORMAT,
        settings=settings,
        shards=[ShardRecord(**record) for record in whole],
        rejected_sha256=sha256_of(output / REJECTED),
    )
    write_json(output / MANIFEST, manifest.to_dict())
    _clear_up(output)
    return manifest


def _clear_up(output: Path) -> None:
    """Remove what only an unfinished corpus needs, and what killed processes left."""
    shutil.rmtree(output / WORK, ignore_errors=True)
    for folder in (output, output / "data"):
        _remove_leftovers(folder)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Refuse a second command of the same rank; the system opens the lock again however its holder ends."""
    import fcntl  # not on Windows

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CorpusRunError(f"another process is at work in {path.parents[1]}") from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
            # A shared folder without locks. Two commands would do the same work twice, to the same bytes.
        yield


def _remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of a file, or of any: see `files.replacing`."""
    for path in folder.glob(f".{name}.*" if name else ".*.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
