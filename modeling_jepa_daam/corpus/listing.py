"""Where the recordings of a corpus lie: in folders, in tar files, or as a manifest says; nothing is decoded.

Everything is listed as it is found, in an order that depends on nothing but names: a folder's entries by name, a tar
file's in its own order, a manifest's line by line. So a corpus of any size is listed without being held in memory:
only one folder's names or one tar file's members are at a time.
"""

import codecs
import json
import os
import stat
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypedDict

from ..audio import AUDIO_SUFFIXES

MANIFEST_PATHS = ("path", "audio_filepath", "file")
SPEAKER_COLUMNS = ("speaker", "speaker_id", "client_id", "reader")  # the first that is there says whose voice it is


class ListedFile(TypedDict):
    """Where one recording lies.

    Args:
        name: The path within its source.
        archive: The tar file's path within the folder that was listed; empty if there is none.
        path: Absolute path of the file, or of the tar file that holds it.
        offset: Position of its first byte in there.
        size: Bytes; `None` if there is no file that can be read.
        modified_ns: When the file, or the tar file that holds it, was last changed; 0 if that is not known.
        metadata: What was asked for of the `.json` file beside it, or of its line in the manifest.
        problem: Why its metadata, or the recording itself, cannot be read, if so.
    """

    name: str
    archive: str
    path: str
    offset: int
    size: int | None
    modified_ns: int
    metadata: dict[str, Any]
    problem: str | None


def _no_report(name: str) -> None:
    pass


def list_files(
    source: str | os.PathLike,
    keys: Collection[str],
    argument: str,
    on_skipped: Callable[[str], None] = _no_report,
) -> Iterator[ListedFile]:
    """List the recordings of a tar file or of a folder, at any depth; tar files in a folder are listed as well.

    What has a sound file's suffix is listed, readable or not. Of all else, only the metadata of recordings is used.

    Args:
        source: Tar file or folder.
        keys: What is wanted of the metadata, the `.json` file beside a recording.
        argument: What the source is called in error messages.
        on_skipped: Called with the name of each file that is no recording and no recording's metadata, and of each
            hidden folder, which ends with a slash.

    Raises:
        FileNotFoundError: If there is no such file or folder.
        ValueError: If a tar file is damaged or cut short.
    """
    path = Path(source).absolute()
    if path.is_dir():
        yield from _list_folder(path, path.name, set(), keys, argument, on_skipped)
    elif path.is_file():
        yield from _list_tar(path, "", keys, argument, on_skipped)
    else:
        raise FileNotFoundError(f"{argument}: no such tar file or folder: {source}")


def _list_folder(
    folder: Path,
    prefix: str,
    seen: set[str],
    keys: Collection[str],
    argument: str,
    on_skipped: Callable[[str], None],
) -> Iterator[ListedFile]:
    """Files at any depth, through links, each folder once; hidden ones (macOS's `._name`) left out."""
    real = os.path.realpath(folder)
    if real in seen:
        on_skipped(f"{prefix}/")
        return
    seen.add(real)
    names = sorted(os.listdir(folder))
    present = set(names)
    recordings = {Path(name).stem for name in names if Path(name).suffix.lower() in AUDIO_SUFFIXES}
    for name in names:
        path, label = folder / name, os.path.join(prefix, name)
        suffix = path.suffix.lower()
        if name.startswith("."):
            on_skipped(f"{label}/" if path.is_dir() else label)
        elif path.is_dir():
            yield from _list_folder(path, label, seen, keys, argument, on_skipped)
        elif path.suffix == ".tar" and path.is_file():
            yield from _list_tar(path, label, keys, argument, on_skipped)
        elif suffix in AUDIO_SUFFIXES:
            sidecar = path.with_suffix(".json")
            found = _chosen(sidecar.read_bytes(), sidecar.name, keys) if sidecar.name in present else ({}, None)
            yield _listed_path(label, path, *found)
        elif suffix != ".json" or path.stem not in recordings:
            on_skipped(label)


def _list_tar(
    path: Path, archive: str, keys: Collection[str], argument: str, on_skipped: Callable[[str], None]
) -> Iterator[ListedFile]:
    members: dict[str, tuple[int, int | None, str | None]] = {}
    sidecars: dict[str, tuple[dict, str | None]] = {}
    prefix = f"{archive}/" if archive else ""
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                stem, suffix = os.path.splitext(member.name)
                hidden = os.path.basename(stem).startswith(".")
                if member.isfile() and not hidden and suffix.lower() in AUDIO_SUFFIXES:
                    if member.issparse():  # what lies in the tar file is not its content
                        problem = "a sparse member of a tar file: archive it without --sparse, or unpack it"
                        members[member.name] = (member.offset_data, None, problem)
                    else:
                        members[member.name] = (member.offset_data, member.size, None)
                elif member.isfile() and not hidden and suffix == ".json":
                    content = tar.extractfile(member)
                    assert content is not None  # it is a file
                    sidecars[stem] = _chosen(content.read(), os.path.basename(member.name), keys)
                elif not member.isdir():
                    on_skipped(prefix + member.name)
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile would keep them all
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(
            f"{argument}: {path} is no tar file, or damaged (compressed ones do not serve): {error}"
        ) from error
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile stops at a damaged header, silently
            raise ValueError(f"{argument}: {path} is damaged or cut short at byte {end}: its end mark is missing")
    used = {os.path.splitext(name)[0] for name in members}
    for stem in sorted(sidecars.keys() - used):
        on_skipped(f"{prefix}{stem}.json")
    modified_ns = path.stat().st_mtime_ns
    for name, (offset, size, sparse) in members.items():
        metadata, unread = sidecars.get(os.path.splitext(name)[0], ({}, None))
        yield _listed(name, archive, path, offset, size, modified_ns, metadata, sparse or unread)


def list_manifest(source: str | os.PathLike, keys: Collection[str], argument: str) -> Iterator[ListedFile]:
    """List the recordings of a JSONL file: `path` (or `audio_filepath`, `file`), from its own folder on.

    Args:
        source: The manifest.
        keys: What else is wanted of a line.
        argument: What the manifest is called in error messages.

    Raises:
        FileNotFoundError: If there is no such manifest.
        ValueError: If a line is not JSON or names no path.
    """
    if not os.path.isfile(source):
        raise FileNotFoundError(f"{argument}: no such manifest: {source}")
    folder = Path(source).absolute().parent
    with open(source, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            label = f"{source}, line {number},"
            metadata, problem = _parsed(line.removeprefix(codecs.BOM_UTF8), label)
            if problem:
                raise ValueError(f"{argument}: {problem}")
            name = next((metadata[key] for key in MANIFEST_PATHS if metadata.get(key)), None)
            if not isinstance(name, str):
                raise ValueError(f"{argument}: {label} must have a path as one of {', '.join(MANIFEST_PATHS)}")
            path = folder / name
            yield _listed_path(name, path, {key: metadata[key] for key in keys if key in metadata}, None)


def speaker_of(name: str, metadata: dict) -> str:
    """Whose voice it is: `speaker` of the metadata, or as LibriLight's paths have it, `small/speaker/book/name`."""
    folders = Path(name).parts[:-1]
    speaker = metadata.get("speaker")
    if speaker is None:
        speaker = folders[-2] if len(folders) > 1 else folders[-1] if folders else name
    return str(speaker)


def _listed_path(name: str, path: Path, metadata: dict, problem: str | None) -> ListedFile:
    """A file of its own; what is no regular file is listed with the reason why it cannot be read."""
    try:
        status = path.stat()
    except OSError:
        broken = f"broken link to {os.readlink(path)}" if path.is_symlink() else "no such file"
        return _listed(name, "", path, 0, None, 0, metadata, broken)
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        return _listed(name, "", path, 0, None, 0, metadata, f"{kind}, not a regular file")
    return _listed(name, "", path, 0, status.st_size, status.st_mtime_ns, metadata, problem)


def _listed(
    name: str,
    archive: str,
    path: Path,
    offset: int,
    size: int | None,
    modified_ns: int,
    metadata: dict,
    problem: str | None,
) -> ListedFile:
    return {
        "name": name,
        "archive": archive,
        "path": str(path),
        "offset": offset,
        "size": size,
        "modified_ns": modified_ns,
        "metadata": metadata,
        "problem": problem,
    }


def _chosen(text: bytes, label: str, keys: Collection[str]) -> tuple[dict, str | None]:
    # Not all of it: LibriLight's lists of voice activity would fill the memory.
    metadata, problem = _parsed(text, label)
    return {key: metadata[key] for key in keys if key in metadata}, problem


def _parsed(text: bytes, label: str) -> tuple[dict, str | None]:
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"{label} is not JSON: {error}"
    return (metadata if isinstance(metadata, dict) else {}), None
