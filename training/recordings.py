"""Where the recordings of a corpus lie: every kind of source as one `datasets` stream of recordings, not yet decoded.

An example of the stream is a row of `RECORDING`: where a sound file is, whose voice it holds, and its bytes if the
source has no file of its own. What is not a `datasets` repository is listed once; each recording is then a shard
of the stream, so that `datasets` shuffles recordings among all speakers without a buffer, and splits them among
processes without a remainder.
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import fsspec
from datasets import Audio, Features, IterableDataset, Value

from modeling_jepa_daam.corpus.listing import SPEAKER_COLUMNS, list_files, list_manifest, speaker_of

from .config import DataConfig

RECORDING = Features(
    {
        "name": Value("string"),  # for people: the path within its source
        "speaker": Value("string"),
        "bandwidth_hz": Value("float64"),  # where its spectrum ends, if that is known to lie below half its rate
        "path": Value("string"),  # of the file, or of the tar file that holds it
        "offset": Value("int64"),  # of its first byte in there
        "size": Value("int64"),  # in bytes; -1 for all of the file
        "content": Value("binary"),  # the file itself, if there is no path
    }
)


def open_corpus(data: DataConfig) -> IterableDataset | list[dict]:
    """The recordings of `data.sources`: a `datasets` stream for a dataset, else the list of all rows, by name.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If no recording is found, a manifest is damaged, or a dataset has no audio.
    """
    if data.format == "dataset":
        return _dataset_stream(data)
    manifest = data.format == "manifest"
    rows = [row for source in data.sources for row in list_rows(source, data.where, manifest)]
    if not rows:
        wanted = f" with {data.where}" if data.where else ""
        raise ValueError(f"`data.sources`: no recordings{wanted} in {', '.join(data.sources)}")
    if len({(row["path"], row["offset"]) for row in rows}) < len(rows):
        raise ValueError(f"`data.sources` name the same recordings more than once: {', '.join(data.sources)}")
    return sorted(rows, key=lambda row: (row["name"], row["path"], row["offset"]))


def stream_recordings(
    corpus: IterableDataset | list[dict], held_out_share: float = 0.0, held_out: bool = False
) -> IterableDataset:
    """A `datasets` stream of the recordings of held-out speakers, or of all others; a listed recording is a shard."""
    if isinstance(corpus, list):
        # As text, for `datasets` takes a hash of all of it: of dicts that takes five times as long.
        lines = [json.dumps(row) for row in corpus if is_held_out(row["speaker"], held_out_share) == held_out]
        return IterableDataset.from_generator(_each, features=RECORDING, gen_kwargs={"lines": lines})
    keep = functools.partial(_keep, share=held_out_share, held_out=held_out)
    return corpus.filter(keep, input_columns="speaker")


def _each(lines: list[str]) -> Iterator[dict]:
    yield from map(json.loads, lines)


def _keep(speaker: str, share: float, held_out: bool) -> bool:
    return is_held_out(speaker, share) == held_out


def is_held_out(speaker: str, share: float) -> bool:
    """Whether a speaker is kept from training: for about `share` of all names, always the same ones."""
    return int.from_bytes(hashlib.sha256(speaker.encode()).digest()[:8], "big") < share * 2**64


def list_rows(source: str, where: dict[str, Any], manifest: bool = False) -> Iterator[dict]:
    """List the recordings of a tar file or folder, or of a manifest, without reading or unpacking them.

    A recording's metadata is the `.json` file beside it, or its line in the manifest. Its `speaker` counts, then the
    path in LibriLight's layout, `small/speaker/book/chapter.flac` (in a manifest, each recording is its own speaker);
    and its `bandwidth_hz`. Whether the files of a manifest exist shows when they are read.

    Args:
        source: Tar file, folder or manifest.
        where: Metadata that a recording must have.
        manifest: Whether it is a manifest.

    Yields:
        Rows of `RECORDING`.
    """
    for listed in (list_manifest if manifest else list_files)(
        source, {"speaker", "bandwidth_hz", *where}, "`data.sources`"
    ):
        name, path, metadata = listed["name"], listed["path"], listed["metadata"]
        if listed["problem"] and (listed["size"] is not None or listed["offset"]):  # of others, reading finds out
            raise ValueError(f"`data.sources`: {path}: {listed['problem']}")
        if not all(metadata.get(key) == value for key, value in where.items()):
            continue
        try:
            (name + path).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`data.sources`: the name of {os.fsencode(path)!r} ({name!r}) is not UTF-8") from error
        whole = listed["offset"] == 0  # a tar file's members come after a header
        yield {
            "name": name,
            "speaker": name if manifest and metadata.get("speaker") is None else speaker_of(name, metadata),
            "bandwidth_hz": _bandwidth(metadata.get("bandwidth_hz"), name),
            "path": path,
            "offset": listed["offset"],
            "size": -1 if whole else listed["size"],
            "content": None,
        }


def _bandwidth(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"`data.sources`: `bandwidth_hz` of {name} must be a positive number, got {value!r}")
    return float(value)


def _dataset_stream(data: DataConfig) -> IterableDataset:
    """Any audio dataset of the Hub or of this machine, not decoded; Parquet row groups become shards."""
    stream = datasets.load_dataset(data.sources[0], data.name, split=data.split, streaming=True)
    columns = stream.features or {}
    audio = next((name for name, feature in columns.items() if isinstance(feature, Audio)), None)
    if audio is None:
        raise ValueError(f"`data.sources`: {data.sources[0]} has no audio column, only {', '.join(columns) or 'none'}")
    speaker = data.speaker_column or next((name for name in SPEAKER_COLUMNS if name in columns), None)
    missing = [name for name in [*data.where, *([speaker] if speaker else [])] if name not in columns]
    if missing:
        raise ValueError(
            f"`data.where` and `data.speaker_column`: {data.sources[0]} has no columns {', '.join(missing)}, "
            f"only {', '.join(columns)}"
        )
    stream = stream.reshard()
    stream.info.features = None  # as the files have it: even Audio(decode=False) wants torchcodec for a path
    if data.where:
        stream = stream.filter(functools.partial(_has, where=data.where))
    to_row = functools.partial(_row_of_example, audio=audio, speaker=speaker)
    return stream.map(to_row, remove_columns=list(columns), features=RECORDING)


def _has(example: dict, where: dict) -> bool:
    return all(example[key] == value for key, value in where.items())


def _row_of_example(example: dict, audio: str, speaker: str | None) -> dict:
    sound = example[audio] if isinstance(example[audio], dict) else {"path": example[audio]}
    path, content = sound.get("path") or "", sound.get("bytes")
    if content is None and "://" in path:  # a file on the Hub, of a dataset that is not Parquet
        with fsspec.open(path, "rb") as file:
            content = file.read()
    # What an example is must not depend on where it stands: that changes with the epoch and the process.
    identity = path if content is None else hashlib.sha256(content).hexdigest()[:16]
    voice = example[speaker] if speaker else None
    return {
        "name": path or identity,
        "speaker": identity if voice is None else str(voice),
        "bandwidth_hz": _bandwidth(example.get("bandwidth_hz"), path or identity),
        "path": path,
        "offset": 0,
        "size": -1,
        "content": content,
    }


def write_rows(rows: Iterable[dict], path: str | os.PathLike) -> None:
    """Write listed recordings as JSONL."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Read what `write_rows` wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
