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

WEIGHTS_NAME = re.compile(r"model(\.[^.]+)?(-\d{5}-of-\d{5})?\.safetensors")  # of a variant, of a shard
LFS_POINTER = b"version https://git-lfs"
MAX_JSON_BYTES = 50_000_000
CHECKED_JSON = frozenset({"added_tokens.json", "config.json", "preprocessor_config.json", "tokenizer_config.json"})

# transformers and safetensors are imported where they are used: reading sound needs neither.


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


def read_json_object(path: str | os.PathLike) -> dict:
    """Read a JSON file that must hold an object.

    Raises:
        ValueError: If it is damaged, nested too deeply, of more than 50 MB, or holds something else.
        OSError: If it cannot be read.
    """
    if os.path.getsize(path) > MAX_JSON_BYTES:
        raise ValueError(f"{path} is damaged: {os.path.getsize(path)} bytes are too many for it")
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it must hold an object, got {type(value).__name__}")
    return value


def check_json(folder: str | os.PathLike) -> None:
    """Refuse a checkpoint's folder whose JSON is damaged, before anything is made of it.

    Raises:
        ValueError: If a file is damaged; names it.
    """
    for path in sorted(Path(folder).glob("*.json")):
        if path.name in CHECKED_JSON:
            read_json_object(path)


def weights_sha256(reference: str | os.PathLike, **kwargs) -> str:
    """SHA-256 of a checkpoint's weights; of names and digests where they lie in several files.

    Args:
        reference: Folder or Hub id.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Raises:
        OSError: If there are no weights in safetensors files.
        ValueError: If one is damaged.
    """
    from transformers.utils import SAFE_WEIGHTS_NAME

    files = weight_files(reference, **kwargs)
    if not files:
        raise OSError(f"no {SAFE_WEIGHTS_NAME} in {reference}")
    for file in files:
        check_readable(file)
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
        ValueError: If the index is damaged.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

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
    named = read_json_object(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index} is damaged: `weight_map` must map tensors to files, got {str(named)[:80]}")
    names = sorted(set(named.values()))
    shards = [cached_file(reference, name, **kwargs) for name in names]
    return [Path(shard) for shard in shards if shard is not None]


def weights_beside(folder: str | os.PathLike) -> str | dict[str, str] | None:
    """What `config.weights_sha256` says of the weights in a folder.

    Returns:
        SHA-256 of `model.safetensors`; for shards or variants a mapping of each file's name to its own; `None` if the
        folder has no weights.
    """
    from transformers.utils import SAFE_WEIGHTS_NAME

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

    Reads its header, whose sizes must add up to the file's, and not the weights themselves.

    Raises:
        ValueError: If it is a pointer of Git LFS, or cut off or damaged.
    """
    from safetensors import SafetensorError, safe_open

    with open(file, "rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ValueError(f"{file} is a pointer of Git LFS, not the weights: run `git lfs pull` in its repository")
    try:
        with safe_open(file, "np"):
            pass
    except (SafetensorError, OverflowError) as error:
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
