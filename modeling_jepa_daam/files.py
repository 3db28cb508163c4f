"""Files and folders that appear whole or not at all, and weights that are those that were saved."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers.utils import SAFE_WEIGHTS_NAME, cached_file


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


def verify_weights(reference: str | os.PathLike, sha256: str, **kwargs) -> None:
    """Compare a checkpoint's weights with their SHA-256.

    Args:
        reference: Folder or Hub id.
        sha256: What it has to be.
        **kwargs: Of `transformers.utils.cached_file`: where the files are.

    Raises:
        ValueError: If it is another.
        OSError: If there is no `model.safetensors`.
    """
    file = cached_file(reference, SAFE_WEIGHTS_NAME, **kwargs)
    assert file is not None  # it raises where there is none
    found = sha256_of(file)
    if found != sha256:
        raise ValueError(
            f"{SAFE_WEIGHTS_NAME} of {reference} is damaged or of another checkpoint: its SHA-256 is {found}, "
            f"config.json says {sha256}"
        )
