"""The command `jepa-audio tokenize-corpus`."""

import contextlib
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..cli_common import (
    EXIT_SOME_FAILED,
    SHIPPED_MODEL,
    Dtype,
    DtypeOption,
    ModelOption,
    console,
    errors,
    fail,
    hide_progress_bars,
    load_config,
)
from .finished import REJECTED, CorpusRunError, Manifest, decode_sample, read_manifest, verify_corpus

if TYPE_CHECKING:
    from .plan import PlannedShard
    from .run import Meters

MAX_NAMED = 20  # rejected recordings that are named at the end
LOOK_S = 0.5  # between looks at the meters
LAUNCHED = {  # what torchrun, Open MPI and MPICH, and so `accelerate launch`, tell the processes that they start
    "rank": ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"),
    "world_size": ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"),
    "local_rank": ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID"),
    "local_world_size": ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
}


class CorpusFormat(StrEnum):
    """What a corpus is."""

    auto = "auto"
    files = "files"
    manifest = "manifest"
    dataset = "dataset"


class Engine(StrEnum):
    """What runs the processes."""

    local = "local"
    ray = "ray"


def tokenize_corpus_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="Folder, .tar, .jsonl manifest, or id of a dataset; of sound files as `encode --help` lists them.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="Folder of the shards; alone with --verify and --decode.")
    ] = None,
    model: ModelOption = str(SHIPPED_MODEL),
    device: Annotated[
        str, typer.Option(help="cpu, cuda (all GPUs), cuda:1, ...; auto: GPUs if there are any.")
    ] = "auto",
    dtype: DtypeOption = Dtype.float32,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "--workers", min=1, help="Processes with a model each; one a core or GPU by default."),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="ray: Ray Data, on this machine or, with --ray-address, on a cluster.")
    ] = Engine.local,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster, whose nodes share IN and OUT: auto, host:6379.")
    ] = None,
    corpus_format: Annotated[CorpusFormat, typer.Option("--format", help="What IN is.")] = CorpusFormat.auto,
    name: Annotated[str | None, typer.Option(help="Configuration of a dataset.")] = None,
    split: Annotated[str, typer.Option(help="Split of a dataset.")] = "train",
    shard_mb: Annotated[float, typer.Option(min=0.001, help="Megabytes of sound files that fill a shard.")] = 500.0,
    row_groups: Annotated[int, typer.Option(min=1, help="Row groups of a dataset that fill a shard.")] = 8,
    salience: Annotated[
        bool, typer.Option("--salience", help="Add a column with the encoder's gates in each frame.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check a finished corpus.")] = False,
    decode: Annotated[int, typer.Option(min=0, metavar="N", help="Turn N rows of a finished corpus into sound.")] = 0,
    decode_to: Annotated[Path | None, typer.Option(help="Folder for that sound; OUT/decoded by default.")] = None,
) -> None:
    """Turn a corpus into Parquet shards of tokens; interrupted, the same command goes on where it was.

    Exit code 1: some recordings were rejected; they are named here and in OUT/rejected.jsonl. Files that are no
    recordings are named in OUT/skipped.jsonl.
    """
    if verify or decode:
        corpus = output or Path(source)
        with _errors():
            if verify:
                _verify(corpus)
            if decode:
                _decode(corpus, model, decode, decode_to or corpus / "decoded", device)
        return
    if output is None:
        raise fail("IN and OUT must be given")
    import torch

    from .run import CorpusJob, Meters, tokenize_corpus
    from .sources import Source, guess_format

    hide_progress_bars()
    load_config(model)
    rank, world_size = _launched("rank", 0), _launched("world_size", 1)
    with _errors():
        _check_engine(engine, ray_address, device, world_size)
        devices = (device,) if ray_address and device != "auto" else _devices(device)
        kind = guess_format(source) if corpus_format is CorpusFormat.auto else corpus_format.value
        job = CorpusJob(
            Source(source, kind, name, split),
            str(output),
            model,
            torch.device(devices[0]).type,
            dtype.value,
            int(shard_mb * 1e6),
            row_groups,
            salience,
        )
        meters = Meters()
        with _Display(meters) as display:
            manifest: Manifest | None
            if engine is Engine.ray:
                from .ray_engine import tokenize_corpus_with_ray

                manifest = tokenize_corpus_with_ray(job, jobs, ray_address, meters, display.on_shard, display.on_start)
            else:
                manifest = tokenize_corpus(
                    job, jobs or _jobs(devices), devices, rank, world_size, meters, display.on_shard, display.on_start
                )
    if manifest is None:
        console.print(f"rank {rank}: done; the last of {world_size} writes the manifest", highlight=False)
    else:
        console.print(f"{_summary(manifest)} in {output}", highlight=False, soft_wrap=True)
        _report_rejected(output, manifest)
        if manifest.total("rejected") and world_size == 1:  # a launcher would end the other processes
            raise typer.Exit(EXIT_SOME_FAILED)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Messages in place of tracebacks: 2 for what the user can change, 1 for what stopped a run."""
    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise fail(str(error)) from error
    except (CorpusRunError, OSError) as error:
        errors.print(f"stopped: {error}", style="bold red", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_SOME_FAILED) from error


def _launched(what: str, default: int) -> int:
    """What the launcher of this process says, if there is one."""
    return int(next((os.environ[name] for name in LAUNCHED[what] if name in os.environ), default))


def _check_engine(engine: Engine, ray_address: str | None, device: str, world_size: int) -> None:
    if engine is not Engine.ray and ray_address is not None:
        raise ValueError("--ray-address is for --engine ray")
    if engine is Engine.ray and device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device must be auto, cpu or cuda with --engine ray, got {device}")
    if engine is Engine.ray and world_size > 1:
        raise ValueError("--engine ray shares out the work itself: start it once, without a launcher")


def _devices(device: str) -> tuple[str, ...]:
    """Where models run: all GPUs, or the one that a launcher means this process to have."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        if (local_rank := _launched("local_rank", -1)) >= 0:
            return (f"cuda:{local_rank}",)
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {device} cannot be used here: {error}") from error
    return (device,)


def _jobs(devices: tuple[str, ...]) -> int:
    """One process a GPU, or a core; a launcher's processes share the cores."""
    if devices[0] != "cpu":
        return len(devices)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _launched("local_world_size", 1))


def _summary(manifest: Manifest) -> str:
    size, duration_s = manifest.total("bytes"), manifest.duration_s
    rate = f", {8 * size / duration_s:.0f} bit/s with ids, texts and digests" if duration_s else ""
    by_suffix = manifest.settings["corpus"].get("skipped") or {}
    skipped = f"{sum(by_suffix.values())} skipped"
    if by_suffix:
        skipped += f" ({', '.join(f'{count} {suffix}' for suffix, count in by_suffix.items())})"
    return (
        f"{manifest.total('rows')} recordings, {duration_s / 3600:.2f} hours, {manifest.total('tokens')} tokens, "
        f"{manifest.total('rejected')} rejected, {skipped}: {len(manifest.shards)} shards of {size} bytes{rate}"
    )


def _report_rejected(output: Path, manifest: Manifest) -> None:
    """Name recordings without tokens, the first of many, and say where the others are named."""
    total = manifest.total("rejected")
    if total == 0:
        return
    with open(output / REJECTED, encoding="utf-8") as file:
        for line in itertools.islice(file, MAX_NAMED):
            each = json.loads(line)
            errors.print(f"rejected: {each['id']}: {each['reason']}", style="red", highlight=False, soft_wrap=True)
    if total > MAX_NAMED:
        errors.print(f"... and {total - MAX_NAMED} more, in {output / REJECTED}", highlight=False, soft_wrap=True)


def _verify(corpus: Path) -> None:
    problems = verify_corpus(corpus)
    for problem in problems:
        errors.print(f"failed: {problem}", style="red", highlight=False, soft_wrap=True)
    if problems:
        errors.print(
            "the command that made the corpus makes what is damaged again, and leaves the rest", highlight=False
        )
        raise typer.Exit(EXIT_SOME_FAILED)
    console.print(f"as it was written: {_summary(read_manifest(corpus))}", highlight=False, soft_wrap=True)


def _decode(corpus: Path, model: str, count: int, folder: Path, device: str) -> None:
    hide_progress_bars()
    written = decode_sample(corpus, model, count, folder, _devices(device)[0])
    console.print(f"{len(written)} rows as sound in {folder}", highlight=False, soft_wrap=True)


class _Display:
    """A bar with audio-hours an hour, time left and rejected recordings."""

    def __init__(self, meters: "Meters"):
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._meters, self._progress = meters, Progress(*columns, console=errors)
        self._task = self._progress.add_task("listing", total=None, state="")
        self._by_shards, self._done, self._start = False, 0, time.perf_counter()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Display":
        self._progress.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._show()
        self._progress.stop()

    def on_start(self, shards: "list[PlannedShard]", total: int) -> None:
        """Called with what is left to do."""
        size = sum(shard.size for shard in shards)
        self._by_shards, self._start = size == 0, time.perf_counter()
        description = f"{len(shards)} of {total} shards"
        self._progress.reset(self._task, total=size or len(shards), description=description)

    def on_shard(self, shard: "PlannedShard", record: object) -> None:
        """Called when a shard is done."""
        self._done += 1

    def _look(self) -> None:
        while not self._end.wait(LOOK_S):
            self._show()

    def _show(self) -> None:
        hours, elapsed = self._meters.seconds.value / 3600, time.perf_counter() - self._start
        state = f"{hours:.1f} h of audio, {3600 * hours / elapsed:.0f} h/h, {self._meters.rejected.value} bad"
        completed = self._done if self._by_shards else self._meters.size.value
        self._progress.update(self._task, completed=completed, state=state)
