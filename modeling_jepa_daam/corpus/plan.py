"""Which recordings make which shard: decided once, before any is read.

The plan is a file of entries, one JSON value a line, and an index of where each shard's begin: a shard's recordings
are found without reading the others'. How many processes there will be plays no part in it.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import replacing

MAX_RECORDINGS = 20_000  # of a shard, however short they are


@dataclass(frozen=True)
class PlannedShard:
    """A shard's part of the plan.

    Args:
        index: Its number.
        start: Position of its first entry in the file of entries, in bytes.
        entries: Number of its entries.
        size: Bytes of sound files, where known.
    """

    index: int
    start: int
    entries: int
    size: int


@dataclass(frozen=True)
class Plan:
    """A corpus cut into shards.

    Args:
        sha256: SHA-256 of the file of entries: what the corpus is.
        shards: What each shard holds.
    """

    sha256: str
    shards: tuple[PlannedShard, ...]

    def to_dict(self) -> dict:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "Plan":
        """From JSON."""
        return cls(values["sha256"], tuple(PlannedShard(**shard) for shard in values["shards"]))


def write_plan(entries: Iterable[dict], path: str | os.PathLike, shard_bytes: int, parts_per_shard: int) -> Plan:
    """Write entries down as they come and cut them into shards.

    Args:
        entries: Of `sources.list_entries`.
        path: File of entries to write.
        shard_bytes: A shard is full when its sound files have so many bytes, or it has 20,000 recordings.
        parts_per_shard: Of a dataset, whose entries have no size, so many make a shard.

    Raises:
        ValueError: If there are none.
    """
    shards: list[PlannedShard] = []
    digest, position = hashlib.sha256(), 0
    start = count = size = 0
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for entry in entries:
            line = _line(entry)
            file.write(line)
            digest.update(line)
            position += len(line)
            count += 1
            size += entry["size"] or 0
            if size >= shard_bytes or count >= (parts_per_shard if "part" in entry else MAX_RECORDINGS):
                shards.append(PlannedShard(len(shards), start, count, size))
                start, count, size = position, 0, 0
        if count:
            shards.append(PlannedShard(len(shards), start, count, size))
        if not shards:
            raise ValueError("`IN` holds no recordings")
    return Plan(digest.hexdigest(), tuple(shards))


def entries_sha256(entries: Iterable[dict]) -> str:
    """What `write_plan` would give for the SHA-256 of its file."""
    digest = hashlib.sha256()
    for entry in entries:
        digest.update(_line(entry))
    return digest.hexdigest()


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def read_entries(path: str | os.PathLike, shard: PlannedShard) -> Iterator[dict]:
    """The entries of one shard."""
    with open(Path(path), "rb") as file:
        file.seek(shard.start)
        for _ in range(shard.entries):
            yield json.loads(file.readline())
