"""A whole corpus, shard by shard, in as many processes as there are; interrupted anywhere, it goes on where it was.

The folder of a corpus:

    data/train-00000-of-00042.parquet ...   shards; each appears whole or not at all
    rejected.jsonl                          recordings without tokens, and why
    skipped.jsonl                           files that are no recordings
    manifest.json                           settings, counts and the SHA-256 of every file; written last
    .work/                                  the plan, and a record of each shard that is done; gone at the end

What a shard holds depends only on the plan and the settings, which a run writes down before it begins and later runs
must share. A shard is done when its record is there and its bytes are those that the record names; anything else is
made again, to the same bytes, also in a finished corpus that was damaged. So nothing needs to be agreed on between
processes: each takes every n-th shard, and whoever finds all records there writes the manifest, which is the same
whoever does. On CPU, where a recording's tokens do not depend on what is encoded beside it, the processes of one
command share the recordings of a shard if there are fewer shards than processes.
"""

import bisect
import contextlib
import errno
import importlib.metadata
import itertools
import json
import multiprocessing
import operator
import os
import shutil
import time
from collections import Counter
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
from .encoding import Rejection, tokenize_recordings
from .finished import FORMAT, MANIFEST, REJECTED, CorpusRunError, Manifest, ShardRecord, read_manifest, shard_name
from .plan import Plan, PlannedShard, entries_sha256, read_entries, write_plan
from .shard import GATES_KEY, MAX_VOCABULARY, Row, pyarrow, write_shard
from .sources import Census, Source, dataset_digest, list_entries, open_recordings

WORK, SETTINGS, PLAN, ENTRIES, DONE = ".work", "settings.json", "plan.json", "plan.jsonl", "done"
SKIPPED = "skipped.jsonl"
PACKAGES = ("torch", "numpy", "soundfile", "soxr", "pyarrow")  # a change of these may change tokens or bytes
LISTED = {  # of the settings of a corpus, what its list gives
    "sha256": "the list of recordings",
    "times_sha256": "the times of the recordings' files (one was changed at the same size)",
    "skipped": "the list of files that are no recordings",
}
POLL_S = 0.5  # between looks for the plan that another process makes
DAMAGED = (ValueError, TypeError, KeyError, AttributeError, RecursionError)  # what damaged JSON ends in, when read
GO_ON = "nothing that was done is lost; once this is mended, the same command goes on"
MIN_PART_BYTES = 1_000_000  # of sound files, about a minute: with less to do, a process is not worth its start
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
    settings, census = _settings(job), Census()
    if lead:
        _check_folder(output)
        known = _known_settings(output)
        if known is None:
            return settings, _begin(job, settings)
        settings["corpus"]["sha256"] = entries_sha256(list_entries(job.source, census))
        settings["corpus"] |= _seen(job.source, census)
        if "skipped" in settings["corpus"]:  # files that are no recordings may come and go
            settings["corpus"]["skipped"] = known["corpus"].get("skipped")
    else:
        while (known := _known_settings(output)) is None:
            time.sleep(POLL_S)
        settings["corpus"] |= {key: known["corpus"][key] for key in LISTED if key in known["corpus"]}
    if settings != known:
        raise ValueError(f"`OUT` {output} was made with other settings: {_difference(known, settings)}; choose another")
    while (output / MANIFEST).exists():
        records, whole = _finished_records(output)
        if whole:
            _clear_up(output)
            return settings, None
        if lead:
            return settings, _begin(job, settings, records)
        time.sleep(POLL_S)  # until the leading process has begun to mend it
    plan = _read_plan(output, settings["corpus"]["sha256"])
    if plan is None and not lead:
        raise CorpusRunError(f"the plan in {output / WORK} is damaged: the command of rank 0 makes it again")
    if plan is None:
        plan, census = _make_plan(job)
        settings["corpus"] |= _seen(job.source, census)
        write_json(output / WORK / SETTINGS, settings)
    return settings, plan


def _begin(job: CorpusJob, settings: dict, records: list[dict | None] | None = None) -> Plan:
    """Make the plan and write it down with the settings.

    Args:
        job: The job.
        settings: What is to be written down; what a listing adds to them is added.
        records: Of the shards of a finished corpus that is to be mended, `None` for those to be made again.

    Raises:
        ValueError: If there are no recordings, or the plan has not as many shards as there are records.
    """
    output = Path(job.output)
    work = output / WORK
    work.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(work)
    shutil.rmtree(work / DONE, ignore_errors=True)  # of a run whose settings are not known
    plan, census = _make_plan(job)
    if records is not None and len(records) != len(plan.shards):
        raise ValueError(
            f"`OUT` {output} has {len(records)} shards, but this package makes {len(plan.shards)}; choose another"
        )
    (work / DONE).mkdir()
    for index, record in enumerate(records or []):
        if record is not None:
            write_json(work / DONE / f"{index:05d}.json", record)
    settings["corpus"] |= {"sha256": plan.sha256, **_seen(job.source, census)}
    write_json(work / SETTINGS, settings)
    (output / MANIFEST).unlink(missing_ok=True)  # last: killed before, this begins again
    return plan


def _make_plan(job: CorpusJob) -> tuple[Plan, Census]:
    """List the corpus and write down the plan and the files that are no recordings."""
    work, census = Path(job.output) / WORK, Census()
    plan = write_plan(list_entries(job.source, census), work / ENTRIES, job.shard_bytes, job.parts_per_shard)
    skipped = "".join(json.dumps({"id": name}, ensure_ascii=False) + "\n" for name in census.skipped)
    with replacing(work / SKIPPED) as temporary:
        temporary.write_text(skipped, "utf-8")
    write_json(work / PLAN, plan.to_dict())
    return plan, census


def _read_plan(output: Path, sha256: str) -> Plan | None:
    """The plan of a run, if it is there, whole and of this list of recordings."""
    work = output / WORK
    try:
        plan = Plan.from_dict(json.loads((work / PLAN).read_text("utf-8")))
        whole = plan.sha256 == sha256 == sha256_of(work / ENTRIES)
    except (FileNotFoundError, *DAMAGED):
        return None
    return plan if whole else None


def _finished_records(output: Path) -> tuple[list[dict | None], bool]:
    """Of each shard of a finished corpus its record, `None` if it is damaged; and whether nothing is damaged."""
    manifest = read_manifest(output)
    rejections: Iterator[dict] | None = None
    rejected = output / REJECTED
    if rejected.is_file() and sha256_of(rejected) == manifest.rejected_sha256:
        rejections = map(json.loads, rejected.read_text("utf-8").splitlines())
    records: list[dict | None] = []
    for shard in manifest.shards:
        path = output / shard.file
        its_own = [] if rejections is None else list(itertools.islice(rejections, shard.rejected))
        whole = path.is_file() and sha256_of(path) == shard.sha256 and len(its_own) == shard.rejected
        records.append(asdict(shard) | {"rejections": its_own} if whole else None)
    return records, rejections is not None and None not in records


def _seen(source: Source, census: Census) -> dict[str, Any]:
    """What a listing adds to the settings."""
    if source.format == "dataset":
        return {}
    return {"times_sha256": census.times.hexdigest(), "skipped": census.counts()}


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
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES} | _optional_packages(),
    }


def _optional_packages() -> dict[str, str]:
    """Version of PyAV where it is installed: it decides which recordings are read, and how."""
    try:
        return {"av": importlib.metadata.version("av")}
    except importlib.metadata.PackageNotFoundError:
        return {}


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"`OUT` must be a folder, got {output}")
    if (output / WORK).is_file() and (output / WORK).stat().st_size == 0:  # a run's is a folder
        (output / WORK).unlink()
    if output.is_dir() and any(output.iterdir()) and not ((output / WORK).is_dir() or (output / MANIFEST).exists()):
        raise ValueError(f"`OUT` must be new, empty, or of an interrupted run, but {output} holds something else")


def _known_settings(output: Path) -> dict | None:
    """What an earlier run wrote down, if there was one."""
    try:
        settings = json.loads((output / WORK / SETTINGS).read_text("utf-8"))
        if {"model", "corpus", "packages"} <= settings.keys() and "sha256" in settings["corpus"]:
            return settings
    except (FileNotFoundError, NotADirectoryError, *DAMAGED):  # empty or cut after a loss of power
        pass
    return read_manifest(output).settings if (output / MANIFEST).exists() else None


def _difference(before: dict, now: dict) -> str:
    """Which settings differ, and how."""
    parts = []
    for group in sorted(before.keys() | now.keys()):
        old, new = before.get(group, {}), now.get(group, {})
        for key in sorted(old.keys() | new.keys()):
            if old.get(key) != new.get(key):
                label = LISTED[key] if group == "corpus" and key in LISTED else f"{group}.{key}"
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
        return self.write(index, *self.tokenize(index))

    def tokenize(self, index: int, start: int = 0, end: int | None = None) -> tuple[list[Row], list[Rejection]]:
        """Rows and rejections of a shard's entries from `start` to `end`.

        Raises:
            OSError: If a recording that was listed is gone.
        """
        if self._tokenizer is None:  # not before: what fails here is told as what fails in a shard
            transformers_logging.disable_progress_bar()
            self._tokenizer = JepaAudioTokenizer.from_pretrained(self.job.model).to(self.device, self.job.dtype)
        entries = read_entries(Path(self.job.output) / WORK / ENTRIES, self.plan.shards[index])
        recordings = open_recordings(self.job.source, itertools.islice(entries, start, end))
        return tokenize_recordings(recordings, self._tokenizer, self.on_progress, self.job.salience)

    def write(self, index: int, rows: list[Row], rejections: list[Rejection]) -> ShardRecord:
        """Write a shard, and the record that says so.

        Raises:
            OSError: If they cannot be written.
        """
        output, name = Path(self.job.output), shard_name(index, len(self.plan.shards))
        (output / name).parent.mkdir(exist_ok=True)
        _remove_leftovers((output / name).parent, (output / name).name)
        sha256, size = write_shard(output / name, rows, self.settings["model"])
        record = ShardRecord(
            file=name,
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
) -> Callable[[int, int, int], ShardRecord | tuple[list[Row], list[Rejection]]]:
    """The worker of a new process: makes a shard, or gives back the rows and rejections of a part of it."""
    with meters.workers.get_lock():
        number = meters.workers.value
        meters.workers.value += 1
    worker = ShardWorker(job, settings, plan, devices[number % len(devices)], meters.add)

    def work(index: int, start: int, end: int) -> ShardRecord | tuple[list[Row], list[Rejection]]:
        whole = (start, end) == (0, plan.shards[index].entries)
        return worker(index) if whole else worker.tokenize(index, start, end)

    return work


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
    lock = output / WORK / f"lock-{rank}-of-{world_size}"
    try:
        if rank == 0:
            _check_folder(output)
        with _lock(lock, True) if rank == 0 else contextlib.nullcontext():  # two must not make one plan
            with _nothing_left_of_failure(output) if rank == 0 else contextlib.nullcontext():
                settings, plan = prepare(job, lead=rank == 0)
            if plan is None:
                return read_manifest(output)
            with _lock(lock) if rank > 0 else contextlib.nullcontext():
                make_shards(settings, plan, list(_missing(output, plan, rank, world_size)))
                return finish(output)
    except OSError as error:
        # Another rank was first, and has cleared up.
        if (plan is not None or not was_finished) and (output / MANIFEST).exists():
            return read_manifest(output)
        if plan is None and isinstance(error, FileNotFoundError):
            raise
        raise CorpusRunError(_explained(error, job)) from error


@contextlib.contextmanager
def _nothing_left_of_failure(output: Path) -> Iterator[None]:
    """Remove the folder of a run that could not even be prepared, unless an earlier run has settings there."""
    try:
        yield
    except BaseException:
        if not (output / WORK / SETTINGS).exists():
            shutil.rmtree(output / WORK, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds something else
                output.rmdir()
        raise


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
    tasks = _parts(job, plan, missing, jobs)
    parts: dict[int, dict[int, tuple]] = {shard.index: {} for shard in missing}  # by shard, then by their start
    left = Counter(index for index, _, _ in tasks)
    writer = ShardWorker(job, settings, plan)
    broken: set[int] = set()
    outcomes = run_in_processes(
        tasks, max(1, min(jobs, len(tasks))), _make_worker, (job, settings, plan, devices, meters)
    )
    with contextlib.closing(outcomes):  # type: ignore[type-var]
        try:
            for (index, start, _), result, error in outcomes:
                left[index] -= 1
                if isinstance(error, BrokenProcessPool):
                    broken.add(index)
                    if len(broken) >= MAX_BROKEN_SHARDS:
                        raise CorpusRunError(f"{len(broken)} shards ended their process, alone: too little memory?")
                elif error is not None:
                    raise error
                elif isinstance(result, ShardRecord):
                    on_shard(plan.shards[index], result)
                else:
                    parts[index][start] = result
                    if left[index] == 0 and index not in broken:
                        whole = [each for _, each in sorted(parts.pop(index).items(), key=operator.itemgetter(0))]
                        rows, rejections = (list(itertools.chain(*lists)) for lists in zip(*whole, strict=True))
                        on_shard(plan.shards[index], writer.write(index, rows, rejections))
        except BaseException:
            meters.stop.value = 1  # or the others would finish their shards first
            raise
    if broken:
        names = ", ".join(shard_name(index, len(plan.shards)) for index in sorted(broken))
        raise CorpusRunError(f"{names}: making it ends the process (a crash in a decoder, or too little memory)")


def _parts(job: CorpusJob, plan: Plan, missing: list[PlannedShard], jobs: int) -> list[tuple[int, int, int]]:
    """What processes are given at once: shard, first entry and the one after the last.

    As a rule a whole shard; part of one on CPU, if there are fewer shards than processes. On an accelerator, rounding
    may depend on what is encoded beside a recording, and so a shard is always encoded as a whole.
    """
    if job.device != "cpu" or not 0 < len(missing) < jobs:
        return [(shard.index, 0, shard.entries) for shard in missing]
    tasks = []
    for shard in missing:
        entries = read_entries(Path(job.output) / WORK / ENTRIES, shard)
        ends = list(itertools.accumulate(entry["size"] or 0 for entry in entries))
        count = min(-(-jobs // len(missing)), shard.entries)
        if shard.size:
            count = min(count, max(1, shard.size // MIN_PART_BYTES))
            cuts = {bisect.bisect_left(ends, shard.size * part / count) + 1 for part in range(1, count)}
        else:  # parts of a dataset, whose sizes are not known
            cuts = {shard.entries * part // count for part in range(1, count)}
        edges = sorted({0, shard.entries} | cuts)
        tasks += [(shard.index, start, end) for start, end in itertools.pairwise(edges)]
    return tasks


def _missing(output: Path, plan: Plan, rank: int, world_size: int) -> Iterator[PlannedShard]:
    """The shards of this rank that are not done."""
    for shard in plan.shards[rank::world_size]:
        record = _read_record(output, shard.index)
        path = output / shard_name(shard.index, len(plan.shards))
        if record is None or not path.is_file() or sha256_of(path) != record["sha256"]:
            yield shard


def _read_record(output: Path, index: int) -> dict | None:
    """The record of a shard that is done; `None` if it is missing or damaged: the shard is made again."""
    try:
        record = json.loads((output / WORK / DONE / f"{index:05d}.json").read_text("utf-8"))
        ShardRecord(**{key: value for key, value in record.items() if key != "rejections"})
        return record if isinstance(record["rejections"], list) else None
    except (FileNotFoundError, *DAMAGED):
        return None


def finish(output: str | os.PathLike) -> Manifest | None:
    """Write the manifest if every shard is done; the same whoever does it, and if several do at once.

    Returns:
        The manifest; `None` if a shard is missing.
    """
    output = Path(output)
    try:
        plan = Plan.from_dict(json.loads((output / WORK / PLAN).read_text("utf-8")))
        settings = json.loads((output / WORK / SETTINGS).read_text("utf-8"))
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
    if (output / WORK / SKIPPED).exists():
        with replacing(output / SKIPPED) as temporary:
            shutil.copyfile(output / WORK / SKIPPED, temporary)
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
def _lock(path: Path, make_folder: bool = False) -> Iterator[None]:
    """Refuse a second command of the same rank; the system opens the lock again however its holder ends."""
    import fcntl  # not on Windows

    while True:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = open(path, "w")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            if make_folder:  # another command has just finished the run, and removed the folder
                continue
            raise
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise CorpusRunError(f"another process is at work in {path.parents[1]}") from error
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                    raise
                # A shared folder without locks. Two commands would do the same work twice, to the same bytes.
            if os.fstat(file.fileno()).st_nlink > 0:
                yield
                return
            # Removed by its last holder, since it was opened: open the new one.


def _remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left of a file, or of any: see `files.replacing`."""
    for path in folder.glob(f".{name}.*" if name else ".*.*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
