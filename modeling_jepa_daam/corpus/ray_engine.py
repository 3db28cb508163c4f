"""A corpus tokenized by Ray Data: on this machine, or on a cluster by its address, to the same bytes.

`ray.data.from_items(missing shards).map_batches(actor)`: an actor holds one model and makes one shard at a time, with
`run.ShardWorker`. When it is killed, Ray Data starts another, as often as need be, and gives it the same shard again; a
shard that ends its actor again and again ends the run. When the command is killed, the same command, or that of the
other engine, goes on where it was.

On a cluster all nodes need the same packages and, under the same paths, what is being read (a checkpoint folder and
`IN`, or the Hub) and `OUT`: the plan and the shards lie there, nothing but the numbers of shards goes through Ray. An
actor that does not find the run in `OUT`, or has other packages or weights, says so and ends the run. Nodes of other
processors, or other GPUs, may round differently: then shards are right, but depend on who made them.
"""

import contextlib
import dataclasses
import json
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .finished import Manifest, ShardRecord
from .plan import Plan, PlannedShard
from .run import (
    GO_ON,
    POLL_S,
    WORK,
    CorpusJob,
    CorpusRunError,
    Meters,
    ShardWorker,
    _read_record,
    complete_corpus,
    prepare,
)

TRIES = "tries"
MAX_TRIES = 4  # of one shard
OBJECT_STORE_BYTES = 100_000_000  # little more than Ray's least: it holds numbers of shards
SHARED_S = 90.0  # until a shared folder shows what another node wrote: NFS remembers for up to a minute


def tokenize_corpus_with_ray(
    job: CorpusJob,
    workers: int | None = None,
    address: str | None = None,
    meters: Meters | None = None,
    on_shard: Callable[[PlannedShard, ShardRecord], None] = lambda shard, record: None,
    on_start: Callable[[list[PlannedShard], int], None] = lambda shards, total: None,
) -> Manifest:
    """Tokenize a corpus, or what is left of it, as a pipeline of Ray Data.

    Args:
        job: The job; an actor takes one GPU where its device is `"cuda"`, else one CPU.
        workers: Actors, each with a model; as many as Ray has CPUs or GPUs if `None`.
        address: Of a cluster: `"auto"` on one of its nodes, or `"host:6379"`; if `None`, Ray starts on this
            machine and ends with the run. A connection that this process has already is used as it is.
        meters: Where to count progress, shard by shard.
        on_shard: Told of each shard that is done.
        on_start: Told of the shards that are left, and the number of all.

    Returns:
        The manifest.

    Raises:
        ImportError: If Ray is not installed.
        ValueError: As `run.tokenize_corpus`; if a node has other packages or another checkpoint; if no node has a GPU.
        FileNotFoundError: If the corpus is not there.
        CorpusRunError: As `run.tokenize_corpus`; if `OUT` is not in storage that all nodes share, or one shard ends
            its actor again and again.
    """
    ray = _ray()
    job, meters = _with_absolute_paths(job), meters or Meters()

    def make_shards(settings: dict, plan: Plan, missing: list[PlannedShard]) -> None:
        on_start(missing, len(plan.shards))
        if not missing:
            return
        _begin_to_count_tries(Path(job.output))
        rate = settings["model"]["sampling_rate"]
        with _connection(ray, address, workers if job.device == "cpu" else None):
            for index, record in _outcomes(ray, job, missing, workers):
                meters.add(record.num_samples / rate, plan.shards[index].size, record.rejected)
                on_shard(plan.shards[index], record)
        _wait_for_records(Path(job.output), missing)

    manifest = complete_corpus(job, make_shards)
    if manifest is None:
        raise CorpusRunError(
            f"all shards were made, but not all are in {job.output}: it must lie in storage that all nodes share"
        )
    return manifest


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray.data
    except ImportError as error:
        raise ImportError("the Ray engine needs Ray: pip install 'jepa-daam[ray]'") from error
    return ray


def _with_absolute_paths(job: CorpusJob) -> CorpusJob:
    """The same job for processes that work in other folders; ids of the Hub stay as they are."""
    location, model = job.source.location, job.model
    return dataclasses.replace(
        job,
        source=dataclasses.replace(job.source, location=str(Path(location).absolute()))
        if os.path.exists(location)
        else job.source,
        output=str(Path(job.output).absolute()),
        model=str(Path(model).absolute()) if os.path.isdir(model) else model,
    )


@contextlib.contextmanager
def _connection(ray: Any, address: str | None, num_cpus: int | None) -> Iterator[None]:
    """Ray for a while: the process's own, a cluster, or one that is started here."""
    if ray.is_initialized():
        yield
        return
    if address is None:
        ray.init(
            address="local",  # not what RAY_ADDRESS says
            num_cpus=num_cpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_level=logging.WARNING,
        )
    else:
        try:
            ray.init(address=address, logging_level=logging.WARNING)
        except ConnectionError as error:
            raise CorpusRunError(f"no Ray cluster at {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def _outcomes(
    ray: Any, job: CorpusJob, missing: list[PlannedShard], workers: int | None
) -> Iterator[tuple[int, ShardRecord]]:
    """Make shards, each a task of its own, so that a killed actor loses no other; as they are done.

    Raises:
        ValueError: If a node would make other shards, or no node can hold an actor.
        CorpusRunError: If a shard cannot be made.
    """
    kind = "CPU" if job.device == "cpu" else "GPU"
    found = int(ray.cluster_resources().get(kind, 0))
    if not found:
        raise ValueError(f"`device`: {job.device!r}, but Ray finds no {kind}")
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # a shard may take hours
    with ray.data.DataContext.current(context):
        shards = ray.data.from_items([{"shard": each.index} for each in missing], override_num_blocks=len(missing))
        outcomes = shards.map_batches(
            _Actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(workers or found, len(missing)), max_tasks_in_flight_per_actor=1
            ),
            num_cpus=1,
            num_gpus=1 if kind == "GPU" else 0,
        )
        for row in outcomes.iter_rows():
            outcome = json.loads(row["outcome"])
            if "refused" in outcome:
                raise ValueError(outcome["refused"])
            if "stopped" in outcome:
                raise CorpusRunError(outcome["stopped"])
            yield outcome["shard"], ShardRecord(**outcome["record"])


class _Actor:
    """What Ray runs: makes the shard of each batch of one number, with a model that it loads for the first."""

    def __init__(self, job: CorpusJob):
        self.job = job
        self._worker: ShardWorker | None = None

    def __call__(self, batch: dict) -> dict:
        """From `shard`, its number, to `outcome`: JSON with its record, or why the run has to end."""
        (shard,) = batch["shard"].tolist()
        try:
            _count_try(Path(self.job.output), shard)
            if self._worker is None:
                self._worker = self._make_worker()
            outcome = {"shard": shard, "record": dataclasses.asdict(self._worker(shard))}
        except ValueError as error:
            outcome = {"refused": f"{platform.node()}: {error}"}
        except (CorpusRunError, OSError) as error:
            outcome = {"stopped": f"{platform.node()}: {error}: {GO_ON}"}
        return {"outcome": [json.dumps(outcome)]}

    def _make_worker(self) -> ShardWorker:
        settings, plan = prepare(self.job, lead=False)
        assert plan is not None  # or there would be no shard to make
        return ShardWorker(self.job, settings, plan)


def _begin_to_count_tries(output: Path) -> None:
    shutil.rmtree(output / WORK / TRIES, ignore_errors=True)
    (output / WORK / TRIES).mkdir()


def _count_try(output: Path, shard: int) -> None:
    """Note which process tries a shard; refuse one that has ended too many: Ray would go on for ever."""
    if not (output / WORK / TRIES).is_dir():
        raise CorpusRunError(f"the run is not in {output}, which must lie in storage that all nodes share")
    path = output / WORK / TRIES / f"{shard:05d}"
    with open(path, "a") as file:
        file.write(f"{platform.node()} {os.getpid()}\n")
    before = path.read_text().splitlines()[:-1]
    if len(before) >= MAX_TRIES:
        raise CorpusRunError(
            f"shard {shard} ended its process {len(before)} times ({', '.join(before)}): a crash in a decoder, or too "
            "little memory?"
        )


def _wait_for_records(output: Path, shards: list[PlannedShard]) -> None:
    """Wait until records that other nodes wrote are seen here, where a network's storage is slow to show them."""
    end = time.monotonic() + SHARED_S
    while any(_read_record(output, shard.index) is None for shard in shards) and time.monotonic() < end:
        time.sleep(POLL_S)
