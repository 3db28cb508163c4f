"""Where the recordings of a corpus lie: every kind of source as one `datasets` stream of recordings, not yet decoded.

An example of the stream is a row of `RECORDING`: where a sound file is, whose voice it holds, and its bytes if the
source has no file of its own. What is not a `datasets` repository is listed once; each recording is then a shard
of the stream, so that `datasets` shuffles recordings among all speakers without a buffer, and splits them among
processes without a remainder.
"""

import codecs
import functools
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import fsspec
from datasets import Audio, Features, IterableDataset, Value

from .config import DataConfig
from .sound_files import AUDIO_SUFFIXES

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
MANIFEST_PATHS = ("path", "audio_filepath", "file")
SPEAKER_COLUMNS = ("speaker_id", "speaker", "client_id", "reader")


def open_corpus(data: DataConfig) -> IterableDataset | list[dict]:
    """The recordings of `data.sources`: a `datasets` stream for a dataset, else the list of all rows, by name.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If no recording is found, a manifest is damaged, or a dataset has no audio.
    """
    if data.format == "dataset":
        return _dataset_stream(data)
    list_source = list_manifest if data.format == "manifest" else list_files
    rows = [row for source in data.sources for row in list_source(source, data.where)]
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


def list_files(source: str, where: dict[str, Any]) -> Iterator[dict]:
    """List the recordings of a tar file or of a folder, at any depth, without reading or unpacking them.

    A recording's metadata is the `.json` file beside it, if any. Its `speaker` counts, then the path in LibriLight's
    layout, `small/speaker/book/chapter.flac`; and its `bandwidth_hz`. Tar files in a folder are listed as well.

    Args:
        source: Tar file or folder.
        where: Metadata that a recording must have.

    Yields:
        Rows of `RECORDING`.
    """
    path = Path(source)
    if path.is_dir():
        for file in _walk(path):
            if file.suffix == ".tar":
                yield from _list_tar(file, where)
            elif file.suffix.lower() in AUDIO_SUFFIXES:
                sidecar = file.with_suffix(".json")
                metadata = _metadata(sidecar.read_bytes(), str(sidecar)) if sidecar.is_file() else {}
                yield from _row_if(where, metadata, str(Path(path.name, file.relative_to(path))), file, 0, -1)
    elif path.is_file():
        yield from _list_tar(path, where)
    else:
        raise FileNotFoundError(f"`data.sources`: no such tar file or folder: {source}")


def _walk(folder: Path) -> list[Path]:
    """Files of a folder at any depth, through links, each folder once; hidden ones (macOS's `._name`) left out."""
    files, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(parent) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _list_tar(path: Path, where: dict[str, Any]) -> Iterator[dict]:
    members: dict[str, tuple[int, int]] = {}
    sidecars: dict[str, dict] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stem, suffix = os.path.splitext(member.name)
                if not member.isfile() or os.path.basename(stem).startswith("."):
                    continue
                if suffix.lower() in AUDIO_SUFFIXES:
                    members[member.name] = (member.offset_data, member.size)
                elif suffix == ".json":
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    metadata = _metadata(content.read(), f"{path}: {member.name}")
                    # Not all of it: LibriLight's lists of voice activity would fill the memory.
                    sidecars[stem] = {
                        key: metadata[key] for key in ("speaker", "bandwidth_hz", *where) if key in metadata
                    }
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"`data.sources`: {path} is no tar file, or damaged (compressed ones do not serve): {error}"
        ) from error
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops at a damaged header, silently
            raise ValueError(f"`data.sources`: {path} is damaged or cut short at byte {end}: its end mark is missing")
    for name, (offset, size) in members.items():
        yield from _row_if(where, sidecars.get(os.path.splitext(name)[0], {}), name, path, offset, size)


def _metadata(text: bytes, label: str) -> dict:
    try:
        metadata = json.loads(text)
    except ValueError as error:
        raise ValueError(f"`data.sources`: {label} is not JSON: {error}") from error
    return metadata if isinstance(metadata, dict) else {}


def _row_if(where: dict, metadata: dict, name: str, path: Path, offset: int, size: int) -> Iterator[dict]:
    if all(metadata.get(key) == value for key, value in where.items()):
        try:
            (name + str(path)).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"`data.sources`: the name of {os.fsencode(path)!r} ({name!r}) is not UTF-8") from error
        folders = Path(name).parts[:-1]
        speaker = metadata.get("speaker")
        if speaker is None:
            speaker = folders[-2] if len(folders) > 1 else folders[-1] if folders else name
        yield {
            "name": name,
            "speaker": str(speaker),
            "bandwidth_hz": _bandwidth(metadata.get("bandwidth_hz"), name),
            "path": str(path.absolute()),
            "offset": offset,
            "size": size,
            "content": None,
        }


def _bandwidth(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ValueError(f"`data.sources`: `bandwidth_hz` of {name} must be a positive number, got {value!r}")
    return float(value)


def list_manifest(source: str, where: dict[str, Any]) -> Iterator[dict]:
    """List the recordings of a JSONL file: `path` (or `audio_filepath`, `file`), from its own folder on, and `speaker`
    and `bandwidth_hz`, which may both be missing.

    A recording without speaker is its own.

    Yields:
        Rows of `RECORDING`. Whether the files exist shows when they are read.
    """
    if not os.path.isfile(source):
        raise FileNotFoundError(f"`data.sources`: no such manifest: {source}")
    for number, line in enumerate(Path(source).read_bytes().splitlines(), 1):
        if line.strip():
            label = f"{source}, line {number},"
            metadata = _metadata(line.removeprefix(codecs.BOM_UTF8), label)
            path = next((metadata[key] for key in MANIFEST_PATHS if metadata.get(key)), None)
            if not isinstance(path, str):
                raise ValueError(f"`data.sources`: {label} must have a path as one of {', '.join(MANIFEST_PATHS)}")
            if metadata.get("speaker") is None:
                metadata["speaker"] = path
            yield from _row_if(where, metadata, path, Path(source).parent / path, 0, -1)


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


class FileWindow(io.RawIOBase):
    """A part of a file, as a file: a member of a tar file, say.

    Args:
        path: The file.
        offset: Position of the part's first byte.
        size: Bytes of the part; -1 for all to the end.
    """

    def __init__(self, path: str, offset: int = 0, size: int = -1):
        self._file = open(path, "rb")  # noqa: SIM115 closed with this object
        self._offset, self._position = offset, 0
        self._size = size if size >= 0 else os.fstat(self._file.fileno()).st_size - offset

    def close(self) -> None:
        self._file.close()
        super().close()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._offset + self._position)
        read = self._file.readinto(memoryview(buffer)[:wanted])
        self._position += read
        return read


def write_rows(rows: Iterable[dict], path: str | os.PathLike) -> None:
    """Write listed recordings as JSONL."""
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: str | os.PathLike) -> list[dict]:
    """Read what `write_rows` wrote."""
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]
