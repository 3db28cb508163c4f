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
    """SHA-256 of a checkpoint's weights.

    Args:
        reference: Folder or Hub id.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Raises:
        OSError: If there is no `model.safetensors`.
    """
    from transformers.utils import SAFE_WEIGHTS_NAME, cached_file  # here: reading sound needs no transformers

    file = cached_file(reference, SAFE_WEIGHTS_NAME, **kwargs)
    assert file is not None  # it raises where there is none
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
