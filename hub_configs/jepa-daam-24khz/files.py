"""Files and folders that appear whole or not at all, and weights that are those that were saved."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

WEIGHTS_NAME = re.compile(r"model(\.[^.]+)?(-\d{5}-of-\d{5})?\.safetensors")  # of a variant, of a shard
LFS_POINTER = b"version https://git-lfs"


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary name beside `path`; what was written there takes `path`'s place if nothing went wrong.

    Args:
        path: The file or folder to appear. A folder that is there already must be empty.

    Yields:
        The name to write to, or to make a folder at; of the same suffix, in a folder of its own.
    """
    path = Path(path).absolute()
    workspace = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield workspace / path.name
        os.replace(workspace / path.name, path)
    finally:
        shutil.rmtree(workspace)


def sha256_of(path: str | os.PathLike) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: str | os.PathLike, content: Any) -> Path:
    """Write JSON with indentation; the file appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return Path(path)


def weights_sha256(reference: str | os.PathLike, **kwargs) -> str:
    """SHA-256 of a checkpoint's weights; of names and digests where they lie in several files.

    Args:
        reference: Folder or Hub id.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Raises:
        OSError: If there are no weights in safetensors files.
    """
    files = weight_files(reference, **kwargs)
    if not files:
        raise OSError(f"no {SAFE_WEIGHTS_NAME} in {reference}")
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("\n".join(f"{file.name} {sha256_of(file)}" for file in files).encode()).hexdigest()


def weight_files(reference: str | os.PathLike, variant: str | None = None, **kwargs) -> list[Path]:
    """The safetensors files that loading a checkpoint reads: one, or the shards that an index names.

    Args:
        reference: Folder or Hub id.
        variant: As of `from_pretrained`: `model.<variant>.safetensors`.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Returns:
        Their paths; none if the checkpoint has no such file.

    Raises:
        OSError: If the index names a file that is not there.
    """

    def find(name: str) -> str | None:
        if variant is not None:  # model.safetensors -> model.fp16.safetensors
            stem, _, suffix = name.rpartition(".")
            name = f"{stem}.{variant}.{suffix}"
        return cached_file(reference, name, _raise_exceptions_for_missing_entries=False, **kwargs)

    if file := find(SAFE_WEIGHTS_NAME):
        return [Path(file)]
    index = find(SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        return []
    names = sorted(set(json.loads(Path(index).read_text("utf-8"))["weight_map"].values()))
    shards = [cached_file(reference, name, **kwargs) for name in names]
    return [Path(shard) for shard in shards if shard is not None]


def weights_beside(folder: str | os.PathLike) -> str | dict[str, str] | None:
    """What `config.weights_sha256` says of the weights in a folder.

    Returns:
        SHA-256 of `model.safetensors`; for shards or variants a mapping of each file's name to its own; `None` if the
        folder has no weights.
    """
    files = sorted(path for path in Path(folder).glob("model*.safetensors") if WEIGHTS_NAME.fullmatch(path.name))
    digests = {path.name: sha256_of(path) for path in files}
    return digests.get(SAFE_WEIGHTS_NAME) if digests.keys() <= {SAFE_WEIGHTS_NAME} else digests


def remove_replaced_weights(folder: str | os.PathLike) -> None:
    """Remove the older of `model.safetensors` and the index of its shards, where a save left both.

    transformers would go on loading the single file, although the shards are newer.
    """
    for index in Path(folder).glob("model.safetensors.index*.json"):
        variant = index.name.removeprefix("model.safetensors.index").removesuffix(".json")
        single = index.with_name(f"model{variant}.safetensors")
        if single.exists():
            min(single, index, key=lambda path: path.stat().st_mtime_ns).unlink()


def check_readable(file: Path) -> None:
    """Refuse a weights file that is no safetensors file, by the reason.

    Raises:
        ValueError: If it is a pointer of Git LFS, or cut off or damaged.
    """
    with open(file, "rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its repository")
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or not a safetensors file: {error}") from error


def verify_weights(reference: str | os.PathLike, files: list[Path], named: str | Mapping[str, str]) -> None:
    """Compare weights with what the configuration says of them.

    Args:
        reference: The checkpoint, for the error.
        files: What was loaded.
        named: `config.weights_sha256`.

    Raises:
        ValueError: If a file is another one, or none is there.
    """
    if not files or (isinstance(named, str) and len(files) > 1):
        raise ValueError(
            f"`weights_sha256` in config.json of {reference} names other weights than the {len(files)} safetensors "
            "files there: save the model again"
        )
    for file in files:
        found, expected = sha256_of(file), named if isinstance(named, str) else named.get(file.name)
        if found != expected:
            says = "does not name it" if expected is None else f"says {expected}"
            raise ValueError(
                f"{file.name} of {reference} is damaged or of another checkpoint: its SHA-256 is {found}, "
                f"config.json {says}"
            )
