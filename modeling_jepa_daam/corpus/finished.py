"""A finished corpus: its manifest, its shards, whether they are still what was written, and how they sound."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..audio import write_audio
from ..files import sha256_of, weights_sha256
from .shard import read_rows, row_digest

if TYPE_CHECKING:
    from ..tokenization_jepa_daam import JepaAudioTokenizer

FORMAT = "jepa-daam corpus 1"
MANIFEST, REJECTED = "manifest.json", "rejected.jsonl"


class CorpusRunError(RuntimeError):
    """A run that cannot go on; the same command goes on where it was, once the cause is gone."""


@dataclass(frozen=True)
class ShardRecord:
    """What a shard holds.

    Args:
        file: Its path within the corpus.
        sha256: Of the file.
        bytes: Of the file.
        rows: Recordings in it.
        tokens: Tokens in it.
        num_samples: Samples of these recordings, at the model's rate.
        rejected: Recordings that should have been in it, but have no tokens.
    """

    file: str
    sha256: str
    bytes: int
    rows: int
    tokens: int
    num_samples: int
    rejected: int


@dataclass(frozen=True)
class Manifest:
    """What a corpus holds and what made it.

    Args:
        format: `FORMAT`.
        settings: Model, corpus and packages.
        shards: In order.
        rejected_sha256: Of `rejected.jsonl`.
    """

    format: str
    settings: dict
    shards: list[ShardRecord]
    rejected_sha256: str

    def total(self, what: str) -> int:
        """The sum over all shards of `rows`, `tokens`, `num_samples`, `rejected` or `bytes`."""
        return sum(getattr(shard, what) for shard in self.shards)

    @property
    def duration_s(self) -> float:
        """Seconds of audio."""
        return self.total("num_samples") / self.settings["model"]["sampling_rate"]

    def to_dict(self) -> dict:
        """As JSON, totals first."""
        totals = {what: self.total(what) for what in ("rows", "rejected", "tokens", "num_samples", "bytes")}
        return {
            "format": self.format,
            "totals": totals | {"hours": round(self.duration_s / 3600, 3)},
            "settings": self.settings,
            "rejected_sha256": self.rejected_sha256,
            "shards": list(map(asdict, self.shards)),
        }


def read_manifest(corpus: str | os.PathLike) -> Manifest:
    """The manifest of a corpus.

    Raises:
        FileNotFoundError: If there is none: the corpus is not finished, or no corpus.
        ValueError: If it is damaged or of another format.
    """
    path = Path(corpus, MANIFEST)
    if not path.is_file():
        raise FileNotFoundError(f"no finished corpus in {corpus}: it has no {MANIFEST}")
    try:
        values = json.loads(path.read_text("utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"it is of format {values['format']!r}, this package reads {FORMAT!r}")
        shards = [ShardRecord(**shard) for shard in values["shards"]]
        settings = values["settings"]
        for place in (settings["model"], settings["corpus"], settings["packages"]):
            if not isinstance(place, dict):
                raise ValueError("its settings are not those of a run")
        for name in ("sampling_rate", "hop_length"):
            if not isinstance(settings["model"][name], int) or settings["model"][name] < 1:
                raise ValueError(f"`{name}` must be a positive integer, got {settings['model'][name]!r}")
        for number, shard in enumerate(shards):
            if shard.file != shard_name(number, len(shards)):
                raise ValueError(f"shard {number} must be {shard_name(number, len(shards))}, got {shard.file!r}")
            for name in ("bytes", "rows", "tokens", "num_samples", "rejected"):
                if not isinstance(getattr(shard, name), int) or getattr(shard, name) < 0:
                    raise ValueError(f"`{name}` of {shard.file} must be a count, got {getattr(shard, name)!r}")
        return Manifest(values["format"], settings, shards, values["rejected_sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged: {reason}") from error


def shard_name(index: int, total: int) -> str:
    """Where a shard lies in its corpus; `datasets.load_dataset` finds it there."""
    return f"data/train-{index:05d}-of-{total:05d}.parquet"


def shard_paths(corpus: str | os.PathLike) -> list[Path]:
    """The shards of a finished corpus, in order.

    Raises:
        FileNotFoundError: If the corpus is not finished.
    """
    return [Path(corpus, shard.file) for shard in read_manifest(corpus).shards]


def verify_corpus(
    corpus: str | os.PathLike, on_shard: Callable[[ShardRecord], None] = lambda record: None
) -> list[str]:
    """Check every file, row and count of a finished corpus; no model is needed.

    Args:
        corpus: Its folder.
        on_shard: Told of each shard that was checked.

    Returns:
        What is wrong; nothing if all is as it was written.

    Raises:
        FileNotFoundError: If the corpus is not finished.
        ValueError: If its manifest cannot be read.
    """
    corpus, manifest = Path(corpus), read_manifest(corpus)
    problems: list[str] = []
    totals = json.loads((corpus / MANIFEST).read_text("utf-8")).get("totals")
    if totals != manifest.to_dict()["totals"]:
        problems.append(f"{MANIFEST}: its totals are not the sums of its shards")
    foreign = {str(path.relative_to(corpus)) for path in (corpus / "data").glob("*")}
    problems += [f"{name}: not in the manifest" for name in sorted(foreign - {each.file for each in manifest.shards})]
    rejected = corpus / REJECTED
    if not rejected.is_file():
        problems.append(f"{REJECTED}: missing")
    elif sha256_of(rejected) != manifest.rejected_sha256:
        problems.append(f"{REJECTED}: damaged: its SHA-256 is another")
    elif len(rejected.read_bytes().splitlines()) != manifest.total("rejected"):
        problems.append(f"{REJECTED}: it does not hold {manifest.total('rejected')} recordings")
    seen: set[bytes] = set()
    for record in manifest.shards:
        problems += [f"{record.file}: {problem}" for problem in _verify_shard(corpus, record, manifest, seen)]
        on_shard(record)
    return problems


def _verify_shard(corpus: Path, record: ShardRecord, manifest: Manifest, seen: set[bytes]) -> Iterator[str]:
    from ..framing import num_frames  # of torch

    path = corpus / record.file
    if not path.is_file():
        yield "missing"
        return
    if sha256_of(path) != record.sha256:
        yield "damaged: its SHA-256 is another"
    try:
        rows, digests, facts = read_rows(path)
    except ValueError as error:
        yield str(error).removeprefix(f"{path}: ")
        return
    if facts != manifest.settings["model"]:
        yield "made by another model than the manifest says"
    values = np.array(manifest.settings["model"]["token_values"])
    hop = manifest.settings["model"]["hop_length"]
    for row, digest in zip(rows, digests, strict=True):
        if row_digest(row) != digest:
            yield f"{row.id}: damaged: its digest is another"
        if len(row.tokens) != num_frames(row.num_samples, hop) * len(values):
            yield f"{row.id}: {len(row.tokens)} tokens do not fit {row.num_samples} samples"
        elif not (row.tokens.reshape(-1, len(values)) < values).all():
            yield f"{row.id}: a token is out of range"
        if row.salience is not None and not _is_salience(row.salience, num_frames(row.num_samples, hop)):
            yield f"{row.id}: its salience does not fit {row.num_samples} samples, or is no density"
        identity = hashlib.sha256(row.id.encode()).digest()[:12]
        if identity in seen:
            yield f"{row.id}: comes more than once"
        seen.add(identity)
    counts = (len(rows), sum(len(row.tokens) for row in rows), sum(row.num_samples for row in rows))
    if counts != (record.rows, record.tokens, record.num_samples):
        yield f"its counts of rows, tokens and samples are {counts}"


def _is_salience(values: np.ndarray, frames: int) -> bool:
    return len(values) == frames and bool((np.isfinite(values) & (values >= 0)).all())


def decode_sample(
    corpus: str | os.PathLike, model: str, count: int, folder: str | os.PathLike, device: str = "cpu"
) -> list[Path]:
    """Turn some rows of a corpus, evenly spread over it, back into sound files.

    Args:
        corpus: Its folder.
        model: The checkpoint that made it.
        count: How many rows.
        folder: Where to; files are named by the row's number in the corpus and its id.
        device: Where the model runs.

    Raises:
        FileNotFoundError: If the corpus is not finished.
        ValueError: If another checkpoint made it, or a shard is damaged.
    """
    from ..tokenization_jepa_daam import JepaAudioTokenizer

    manifest, folder = read_manifest(corpus), Path(folder)
    tokenizer = JepaAudioTokenizer.from_pretrained(model).to(device)
    _check_model(tokenizer, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    total = manifest.total("rows")
    wanted = sorted({place * total // count for place in range(min(count, total))})
    written, first = [], 0
    for record, path in zip(manifest.shards, shard_paths(corpus), strict=True):
        inside = [number for number in wanted if first <= number < first + record.rows]
        rows = read_rows(path)[0] if inside else []
        for number in inside:
            row = rows[number - first]
            name = re.sub(r"[^\w.-]+", "_", row.id)[-80:]
            written.append(folder / f"{number:08d}_{Path(name).stem}.flac")
            write_audio(written[-1], tokenizer.iter_decode_audio(row.tokens), row.num_samples, tokenizer.sampling_rate)
        first += record.rows
    return written


def _check_model(tokenizer: "JepaAudioTokenizer", manifest: Manifest) -> None:
    made = manifest.settings["model"]["weights_sha256"]
    revision = tokenizer.codec_revision or "main"
    if weights_sha256(tokenizer.codec_reference, revision=revision) != made:
        raise ValueError(f"`model`: not the checkpoint that made the corpus, whose weights' SHA-256 is {made}")
