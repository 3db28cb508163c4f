"""Files and folders that appear whole or not at all: written under a temporary name, then renamed."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


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
