"""Checkpoints of a training run: whole or not at all, checked before use, the last few kept.

A checkpoint is a folder `step-00001000`: what Accelerate saves (weights, optimizer, loss scale), one file for each
process with its place in the data, and `checkpoint.json`, which says what each file must hold.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator

MANIFEST = "checkpoint.json"
NAME = re.compile(r"step-(\d{8})")


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files are not those that were written."""


def list_checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Checkpoints of a run, oldest first. Half-written ones have other names, and are not among them."""
    return sorted(path for path in Path(folder).glob("step-*") if NAME.fullmatch(path.name))


def remove_half_written(folder: str | os.PathLike) -> None:
    """Remove what a killed run left of a checkpoint that it was writing."""
    for path in Path(folder).glob(".step-*.tmp"):
        shutil.rmtree(path)


def save_checkpoint(
    accelerator: Accelerator, folder: str | os.PathLike, step: int, data_position: dict, keep: int
) -> Path:
    """Save the state of a run; every process must call this.

    Args:
        accelerator: Knows model, optimizer and loss scale.
        folder: Of the run's checkpoints.
        step: Optimizer steps done.
        data_position: This process's place in the data, of JSON values.
        keep: Checkpoints to keep, this one included.

    Returns:
        The checkpoint.
    """
    final = Path(folder) / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary), safe_serialization=True)
    # Accelerate has no place for what differs between processes: its own files are written over each other.
    _position_file(temporary, accelerator.process_index).write_text(json.dumps(data_position))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        files = {str(path.relative_to(temporary)): _digest(path) for path in _files(temporary)}
        manifest = {"step": step, "world_size": accelerator.num_processes, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1))
        for path in [*_files(temporary), temporary]:
            _sync(path)
        shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed from an older one
        os.replace(temporary, final)
        _sync(final.parent)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final


def load_checkpoint(accelerator: Accelerator, checkpoint: str | os.PathLike) -> tuple[int, dict]:
    """Restore the state of a run; every process must call this.

    Returns:
        Optimizer steps done, and this process's place in the data.

    Raises:
        DamagedCheckpointError: If a file is missing or has other bytes than were written; names the checkpoint before.
        ValueError: If it was written by another number of processes.
    """
    checkpoint = Path(checkpoint)
    manifest = verify_checkpoint(checkpoint)
    if manifest["world_size"] != accelerator.num_processes:
        raise ValueError(
            f"{checkpoint} is of {manifest['world_size']} processes, but this run has {accelerator.num_processes}: "
            "start it with as many"
        )
    accelerator.load_state(str(checkpoint))
    return manifest["step"], json.loads(_position_file(checkpoint, accelerator.process_index).read_text("utf-8"))


def verify_checkpoint(checkpoint: str | os.PathLike) -> dict:
    """Check every file of a checkpoint, and return what `checkpoint.json` says.

    Raises:
        DamagedCheckpointError: If a file is missing or has other bytes than were written; names the checkpoint before.
    """
    checkpoint = Path(checkpoint)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text("utf-8"))
        files, processes = manifest["files"], manifest["world_size"]
        wrong = [
            name
            for name, digest in files.items()
            if not (checkpoint / name).is_file() or _digest(checkpoint / name) != digest
        ]
        place = _position_file(checkpoint, 0).name
        if checkpoint.name != f"step-{manifest['step']:08d}" or place not in files or not 0 < int(processes) < 1e6:
            wrong.append(MANIFEST)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        wrong = [MANIFEST]
    if wrong:
        others = [path for path in list_checkpoints(checkpoint.parent) if path.name < checkpoint.name]
        advice = (
            f"the one before it is {others[-1]}: remove the damaged one to go on from there"
            if others
            else ("there is none before it: remove it to start again")
        )
        raise DamagedCheckpointError(f"the checkpoint {checkpoint} is damaged ({', '.join(wrong)}); {advice}")
    return manifest


def _position_file(checkpoint: Path, process: int) -> Path:
    return checkpoint / f"data_position_{process}.json"


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _sync(path: Path) -> None:
    """Have the file or folder on the disk before anything is built upon it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
