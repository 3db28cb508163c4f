"""Files and folders that appear whole or not at all, and weights that are those that were saved."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 50_000_000
CHECKED_JSON = frozenset({"added_tokens.json", "config.json", "preprocessor_config.json", "tokenizer_config.json"})


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


def check_files(folder: str | os.PathLike) -> None:
    """Refuse a checkpoint's folder whose JSON or weights are damaged, before anything is made of them.

    Reads the headers of weights, whose sizes must add up to the file's, and not the weights themselves.

    Raises:
        ValueError: If a file is damaged; names it.
    """
    for path in sorted(Path(folder).glob("*.json")):
        if path.name in CHECKED_JSON:
            read_json_object(path)
    for path in sorted(Path(folder).glob("*.safetensors")):
        check_weights(path)


def check_weights(path: str | os.PathLike) -> None:
    """Refuse a safetensors file whose header or size is damaged.

    Raises:
        ValueError: If it is.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except (SafetensorError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def weights_sha256(reference: str | os.PathLike, **kwargs) -> str:
    """SHA-256 of a checkpoint's weights.

    Args:
        reference: Folder or Hub id.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Raises:
        OSError: If there is no `model.safetensors`.
        ValueError: If it is damaged.
    """
    from transformers.utils import SAFE_WEIGHTS_NAME, cached_file  # here: reading sound needs no transformers

    file = cached_file(reference, SAFE_WEIGHTS_NAME, **kwargs)
    assert file is not None  # it raises where there is none
    check_weights(file)
    return sha256_of(file)


def verify_weights(reference: str | os.PathLike, sha256: str, **kwargs) -> None:
    """Compare a checkpoint's weights with their SHA-256.

    Args:
        reference: Folder or Hub id.
        sha256: What it has to be.
        **kwargs: As of `weights_sha256`.

    Raises:
        ValueError: If it is another.
        OSError: If there is no `model.safetensors`.
    """
    found = weights_sha256(reference, **kwargs)
    if found != sha256:
        raise ValueError(
            f"model.safetensors of {reference} is damaged or of another checkpoint: its SHA-256 is {found}, "
            f"config.json says {sha256}"
        )
