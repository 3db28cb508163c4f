"""Codec models that this process has loaded, so that tokenizers stay small to hash and to pickle."""

import hashlib
import os
import threading
from pathlib import Path

import torch
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from .files import sha256_of
from .modeling_jepa_daam import JepaDaamModel

# (reference, revision, device, dtype) -> (state of the files, model)
_models: dict[tuple, tuple[tuple, JepaDaamModel]] = {}
_digests: dict[str, tuple[tuple, str]] = {}  # reference -> (state of the files, digest)
_lock = threading.Lock()  # loading sets torch's and transformers' global state: one thread at a time


def cached_model(reference: str, revision: str | None, device: str, dtype: str) -> JepaDaamModel:
    """Load a codec for inference, once a process; again if the files of a local folder have changed.

    Args:
        reference: Folder or Hub id.
        revision: Git revision on the Hub; the default branch if `None`.
        device: Where it runs.
        dtype: Name of a torch dtype.

    Returns:
        The model, in evaluation mode.

    Raises:
        OSError: If there is no model.
    """
    key = (reference, revision, device, dtype)
    files = _state_of(reference)
    with _lock:
        if key not in _models or _models[key][0] != files:
            _models.pop(key, None)
            with torch.device("cpu"):  # whatever the default device
                model = JepaDaamModel.from_pretrained(
                    reference, revision=revision or "main", dtype=getattr(torch, dtype)
                )
            _models[key] = (files, model.eval().to(device=device))
        return _models[key][1]


def codec_digest(reference: str, revision: str | None) -> str:
    """What differs when a codec's weights or configuration do.

    Args:
        reference: Folder or Hub id.
        revision: Git revision on the Hub; the default branch if `None`.

    Returns:
        SHA-256 of a local folder's weights and configuration, computed again if the files have changed; the commit of
        a Hub id.

    Raises:
        OSError: If a Hub id has no configuration.
    """
    if not os.path.isdir(reference):
        return str(extract_commit_hash(cached_file(reference, CONFIG_NAME, revision=revision or "main"), None))
    files = _state_of(reference)
    if reference not in _digests or _digests[reference][0] != files:
        digests = [f"{name} {sha256_of(os.path.join(reference, name))}" for name, *_ in files]
        _digests[reference] = (files, hashlib.sha256("\n".join(digests).encode()).hexdigest())
    return _digests[reference][1]


def _state_of(reference: str) -> tuple:
    """Names, sizes and times of a local folder's weights and configuration; nothing for a Hub id."""
    files = [path for path in Path(reference).glob("*") if path.suffix == ".safetensors" or path.name == "config.json"]
    return tuple(sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


def _prepare_child() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    torch.set_num_threads(1)


# A forked worker (`datasets.map(num_proc=...)`) inherits OpenMP's books but not its threads: its first parallel loop
# would wait for them for ever. One thread needs none; torch's DataLoader does the same in its workers.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_prepare_child)
