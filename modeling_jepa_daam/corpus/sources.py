"""The recordings of a corpus, whatever it is: first as a list of small entries, then with their sound.

An entry is what can be written down of a recording (or of a part of a dataset) without reading its sound. Entries come
in an order that depends on nothing but the corpus, so that a list of them is a plan.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..audio_container import FileWindow
from .listing import SPEAKER_COLUMNS, list_files, list_manifest, speaker_of

ARGUMENT = "`IN`"
FORMATS = ("files", "manifest", "dataset")
TEXT_COLUMNS = ("text", "transcription", "transcript", "sentence", "normalized_text")
AUDIO_COLUMN = "audio"
MAX_BYTES_AT_ONCE = 2**28  # a longer file is read piece by piece


@dataclass(frozen=True)
class Source:
    """A corpus to tokenize.

    Args:
        location: Folder, tar file, manifest, or id or folder of a dataset.
        format: `"files"`, `"manifest"` or `"dataset"`.
        name: Configuration of a dataset.
        split: Split of a dataset.
    """

    location: str
    format: str = "files"
    name: str | None = None
    split: str = "train"

    @property
    def root(self) -> str:
        """The folder that entries' paths start from."""
        path = Path(self.location).absolute()
        return str(path if self.format == "files" and path.is_dir() else path.parent)

    @property
    def dataset_name(self) -> str:
        """A dataset's id on the Hub, or the name of its folder."""
        path = Path(self.location)
        return path.absolute().name if path.is_dir() else self.location


@dataclass(frozen=True)
class Recording:
    """One recording of a corpus.

    Args:
        id: Unique in the corpus: its path, as a rule.
        audio: Path, bytes or a window of a sound file, or a decoded `datasets` example; `None` if there is a problem.
        source: Name of the collection it is from.
        speaker: Whose voice it holds.
        text: What is said, if known.
        size: Bytes, for the progress bar.
        problem: Why it cannot be tokenized, if that is known already.
    """

    id: str
    audio: Any
    source: str
    speaker: str
    text: str | None = None
    size: int = 0
    problem: str | None = None


@dataclass
class Census:
    """What a listing comes by beside its entries.

    Args:
        skipped: Names of files that are no recordings.
        times: Names and times of the recordings' files: one that was replaced by another of the same size is noticed.
    """

    skipped: list[str] = field(default_factory=list)
    times: Any = field(default_factory=hashlib.sha256)

    def counts(self) -> dict[str, int]:
        """Number of files that are no recordings, by suffix."""
        suffixes = [_kind_of_skipped(name) for name in self.skipped]
        return {suffix: suffixes.count(suffix) for suffix in sorted(set(suffixes))}


def _kind_of_skipped(name: str) -> str:
    if name.endswith("/") or os.path.basename(name).startswith("."):
        return "hidden"
    return os.path.splitext(name)[1].lower() or "no suffix"


def guess_format(location: str) -> str:
    """What kind of corpus a path or id means.

    Raises:
        FileNotFoundError: If it is no file or folder, and cannot be a dataset's id.
    """
    if os.path.isdir(location) or location.endswith(".tar"):
        return "files"
    if location.endswith((".jsonl", ".json")):
        return "manifest"
    if os.path.exists(location):
        raise ValueError(
            f"{ARGUMENT} must be a folder, a .tar file, a .jsonl manifest or a dataset's id, got {location}"
        )
    if location.startswith((".", "/", "~")) or location.count("/") > 1:
        raise FileNotFoundError(f"{ARGUMENT}: no such file or folder: {location}")
    return "dataset"


def list_entries(source: Source, census: Census | None = None) -> Iterator[dict]:
    """The entries of a corpus, in its order; `census` is filled on the way.

    Yields:
        JSON values; `size` is in bytes, `None` if it is not known.

    Raises:
        FileNotFoundError: If the corpus is not there.
        ValueError: If it is damaged, or a manifest names a file twice.
    """
    if source.format == "dataset":
        stream, _ = _open_dataset(source)
        yield from ({"part": part, "size": None} for part in range(stream.num_shards))
        return
    manifest = source.format == "manifest"
    keys = {"source", *SPEAKER_COLUMNS, *TEXT_COLUMNS}
    default, root = Path(source.location).absolute().stem, source.root + os.sep
    seen: set[bytes] = set()
    census = census or Census()
    if manifest:
        listing = list_manifest(source.location, keys, ARGUMENT)
    else:
        listing = list_files(source.location, keys, ARGUMENT, lambda name: census.skipped.append(_utf8(name)))
    for listed in listing:
        metadata, problem = listed["metadata"], listed["problem"]
        name = "/".join(filter(None, (listed["archive"], listed["name"])))
        if os.path.isabs(name):  # in a manifest; a corpus that is passed on says nothing of this machine
            name = os.path.relpath(name, source.root)
        identity = _utf8(name)
        if manifest:  # elsewhere, names are paths: none comes twice
            digest = hashlib.sha256(identity.encode()).digest()[:12]
            if digest in seen:
                raise ValueError(f"{ARGUMENT}: {source.location} names {identity} more than once")
            seen.add(digest)
        if identity != name:
            problem = "its name is not UTF-8"
        speaker = next((metadata[key] for key in SPEAKER_COLUMNS if metadata.get(key) is not None), None)
        text = next((metadata[key] for key in TEXT_COLUMNS if metadata.get(key) is not None), None)
        census.times.update(f"{identity}\0{listed['modified_ns']}\n".encode())
        yield {
            "id": identity,
            "path": listed["path"].removeprefix(root),
            "offset": listed["offset"],
            "size": listed["size"],
            "source": _utf8(str(metadata.get("source") or default)),
            "speaker": _utf8(speaker_of(listed["name"], {"speaker": speaker})),
            "text": None if text is None else _utf8(str(text)),
            "problem": problem,
        }


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def open_recordings(source: Source, entries: Iterable[dict]) -> Iterator[Recording]:
    """The recordings of entries, in order, with their sound, not yet decoded.

    Raises:
        OSError: If a file that was listed cannot be read any more: the corpus has changed, or its disk is gone.
    """
    if source.format == "dataset":
        stream, columns = _open_dataset(source)
        for entry in entries:
            part = stream.shard(num_shards=stream.num_shards, index=entry["part"])
            for number, example in enumerate(part):
                yield _recording_of_example(source, columns, entry["part"], number, example)
        return
    for entry in entries:
        path = os.path.join(source.root, entry["path"])
        audio: str | bytes | FileWindow | None = path
        problem = entry["problem"]
        if problem is None and entry["size"] is None:
            problem = "no such file"
        elif problem is None and entry["size"] == 0:
            problem = "empty: the file has no bytes"
        if problem is not None:
            audio = None
        elif not os.access(path, os.R_OK) and os.path.exists(path):
            audio, problem = None, "permission denied"
        elif entry["offset"] == 0 and os.stat(path).st_size != entry["size"]:
            raise OSError(f"{path} has changed since it was listed")
        elif entry["size"] > MAX_BYTES_AT_ONCE:
            if entry["offset"]:
                audio = FileWindow(path, entry["offset"], entry["size"])
        else:
            # Here, and not in libsndfile: a disk that fails is no damaged recording.
            with open(path, "rb") as file:
                file.seek(entry["offset"])
                audio = file.read(entry["size"])
            if len(audio) < entry["size"]:
                raise OSError(f"{path} has become shorter since it was listed")
        yield Recording(
            entry["id"], audio, entry["source"], entry["speaker"], entry["text"], entry["size"] or 0, problem
        )


def _open_dataset(source: Source) -> tuple[Any, dict[str, str | None]]:
    """A stream of undecoded examples, Parquet row groups as its shards, and which column is what."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("reading a dataset needs datasets: pip install 'jepa-daam[corpus]'") from error
    stream = datasets.load_dataset(source.location, source.name, split=source.split, streaming=True).reshard()
    features: dict[str, Any] = stream.features or next(iter(stream), {})
    audio = next((name for name, feature in features.items() if isinstance(feature, datasets.Audio)), None)
    if audio is None and AUDIO_COLUMN in features:
        audio = AUDIO_COLUMN
    if audio is None:
        raise ValueError(f"{ARGUMENT}: {source.location} has no audio column, only {', '.join(features) or 'none'}")
    columns = {
        "audio": audio,
        "speaker": next((name for name in SPEAKER_COLUMNS if name in features), None),
        "text": next((name for name in TEXT_COLUMNS if name in features), None),
        "source": "source" if "source" in features else None,
    }
    stream.info.features = None  # as the files have it: even Audio(decode=False) wants torchcodec for a path
    return stream, columns


def dataset_digest(source: Source) -> str:
    """SHA-256 of what names a dataset's files: their repository and commit on the Hub, or their times here."""
    import datasets

    builder = datasets.load_dataset_builder(source.location, source.name)
    files = (builder.config.data_files or {}).get(source.split)
    origin = [list(files), list(getattr(files, "origin_metadata", []))] if files is not None else builder.hash
    return hashlib.sha256(json.dumps(origin, default=str).encode()).hexdigest()


def _recording_of_example(source: Source, columns: dict, part: int, number: int, example: dict) -> Recording:
    def text_of(column: str) -> str | None:
        name = columns[column]
        return None if name is None or example[name] is None else str(example[name])

    audio = example[columns["audio"]]
    path = audio.get("path") if isinstance(audio, dict) else audio if isinstance(audio, str) else None
    identity = "/".join(filter(None, (f"{part:06d}", f"{number:06d}", path and os.path.basename(path))))
    problem, size = None, 0
    if isinstance(audio, dict) and audio.get("bytes") is not None:
        audio = audio["bytes"]
    elif isinstance(audio, dict) and "array" not in audio:
        audio = path
    if audio is None:
        problem = "no audio"
    elif isinstance(audio, str) and "://" in audio:  # on the Hub, of a dataset that is not Parquet
        import fsspec

        with fsspec.open(audio, "rb") as file:
            audio = file.read()
    elif isinstance(audio, str) and not os.path.isfile(audio):
        problem = "no such file"
    if isinstance(audio, bytes):
        size = len(audio)
    name = text_of("source") or source.dataset_name
    return Recording(identity, audio, name, text_of("speaker") or "", text_of("text"), size, problem)
