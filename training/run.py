"""What the scripts of both stages share: starting alone or going on, data, randomness, agreement of processes."""

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
import typer
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from datasets import IterableDataset
from torch import Tensor
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam.files import replacing

from .checkpointing import remove_half_written
from .config import TrainingConfig, differences, load_config, save_config
from .data import BatchLoader
from .recordings import is_held_out, open_corpus, read_rows, stream_recordings, write_rows

LISTING_TIMEOUT = timedelta(hours=2)  # of the other processes, while one lists the recordings
# What may change when a run goes on; all else would make another run of it.
FREE_SETTINGS = (
    "data.max_unreadable_share", "model.spectral_features", "optim.decay_steps", "run.output", "run.max_steps",
    "run.log_every", "run.eval_every", "run.eval_batches", "run.eval_clips", "run.eval_clip_s", "run.logged_clips",
    "run.save_every", "run.keep_checkpoints", "run.tracker", "run.progress",
)  # fmt: skip
EVALUATION_SEED = 0  # of the order and the masks of held-out speech: the same in every evaluation of every run


Config = TypeVar("Config", bound=TrainingConfig)
ConfigPath = Annotated[Path, typer.Argument(help="YAML file; see training/configs/.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="section.key=value, as in optim.learning_rate=3e-4.")]


def run_command(kind: type[Config], path: Path, overrides: list[str] | None, main: Callable[[Config], Path]) -> Path:
    """Train as a command does: wrong settings or folders end it with a message and exit code 2."""
    transformers_logging.disable_progress_bar()  # of loading and saving
    try:
        settings = load_config(kind, path, overrides or [])
        settings.model_config()
        return main(settings)
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


@contextlib.contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder`, also in place of the model of a run that had fewer steps."""
    with replacing(folder) as temporary:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)


def run_alone(config: Config, train: Callable[[Config, Accelerator], Path], partly: bool = False) -> Path:
    """Start Accelerate, keep others out of the run's folder, and train; `partly` if a step may leave parameters out.

    Raises:
        ValueError: If another process trains into the folder.
        RuntimeError: If processes were started that do not know of each other.
    """
    accelerator = Accelerator(
        gradient_accumulation_steps=config.optim.accumulation_steps,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.output,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=LISTING_TIMEOUT),
            DistributedDataParallelKwargs(find_unused_parameters=partly),
        ],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would train alone, into the same folder
        raise RuntimeError(
            f"{started} processes were started, but Accelerate knows of {accelerator.num_processes}: it found no GPUs. "
            "To train on CPU, set ACCELERATE_USE_CPU=true (without DeepSpeed)"
        )
    with only_run(Path(config.run.output)) if accelerator.is_main_process else contextlib.nullcontext():
        return train(config, accelerator)


@contextlib.contextmanager
def only_run(output: Path) -> Iterator[None]:
    """Keep a second run out of a folder: a launcher that was killed may have left its processes at work.

    Raises:
        ValueError: If another process trains there.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / ".lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: data workers would inherit it
        except OSError as error:
            raise ValueError(f"`run.output`: another process is training into {output}; end it first") from error
        yield


def prepare_output(config: TrainingConfig, output: Path, fresh: bool) -> None:
    """Write the settings and the list of recordings for all processes; or check that the run to go on is the same."""
    output.mkdir(parents=True, exist_ok=True)
    remove_half_written(output / "checkpoints")
    settings = output / "config.yaml"
    if not fresh and settings.exists():
        try:
            before = load_config(type(config), settings)
        except ValueError as error:
            raise ValueError(f"`run.output`: {output} holds a run of another kind; take another folder") from error
        changed = differences(before, config, FREE_SETTINGS)
        if changed:
            raise ValueError(
                f"`run.output`: {output} holds a run with other settings; take another folder, or go on with its own. "
                f"Its settings and yours: {'; '.join(changed)}"
            )
    save_config(config, settings)
    listing = output / "recordings.jsonl"
    if config.data.format != "dataset" and (fresh or not listing.exists()):
        rows = open_corpus(config.data)
        speakers = {row["speaker"] for row in rows}
        held_out = sum(is_held_out(speaker, config.data.held_out_share) for speaker in speakers)
        if held_out == len(speakers) or (held_out == 0 and config.data.held_out_share > 0):
            raise ValueError(
                f"`data.held_out_share` = {config.data.held_out_share} holds out {held_out} of {len(speakers)} "
                "speakers: choose another share, or 0 for no validation"
            )
        with replacing(listing) as temporary:
            write_rows(rows, temporary)


def run_recordings(config: TrainingConfig, held_out: bool) -> IterableDataset:
    """The recordings of held-out speakers, or of all others, as the run has listed them."""
    dataset = config.data.format == "dataset"
    corpus = open_corpus(config.data) if dataset else read_rows(Path(config.run.output) / "recordings.jsonl")
    return stream_recordings(corpus, config.data.held_out_share, held_out)


def make_loader(config: TrainingConfig, accelerator: Accelerator, sampling_rate: int, held_out: bool) -> BatchLoader:
    """This process's batches: without end to train on, or once through the held-out speakers."""
    return BatchLoader(
        run_recordings(config, held_out),
        config.data,
        sampling_rate,
        seed=EVALUATION_SEED if held_out else config.run.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_epochs=1 if held_out else None,
        pin_memory=accelerator.device.type == "cuda",
    )


def rate_share(step: int, warmup_steps: int, decay_steps: int, max_steps: int) -> float:
    """Share of the learning rate for the step after `step` steps: a linear rise to 1, constant, a linear fall to 0."""
    rise, fall = (step + 1) / (warmup_steps + 1), (max_steps - step) / (decay_steps + 1)
    return min(1.0, rise, fall)


def seed_randomness(seed: int, step: int, micro_step: int, process: int) -> torch.Generator:
    """Seed torch (dropout), and return the source of a batch's masks."""
    for_torch, for_masks = np.random.SeedSequence([seed, step, micro_step, process]).generate_state(2, np.uint64)
    torch.manual_seed(int(for_torch))
    return torch.Generator().manual_seed(int(for_masks))


def mean_over_processes(accelerator: Accelerator, values: dict[str, Tensor]) -> dict[str, float]:
    """Means of scalars, as floats."""
    stacked = torch.stack([value.detach().float() for value in values.values()])
    return dict(zip(values, accelerator.reduce(stacked, "mean").tolist(), strict=True))


def sum_over_processes(accelerator: Accelerator, counts: dict[str, int]) -> dict[str, int]:
    """Sums of counts."""
    stacked = torch.tensor(list(counts.values()), device=accelerator.device)
    return dict(zip(counts, accelerator.reduce(stacked, "sum").tolist(), strict=True))


def stop_unless_finite(accelerator: Accelerator, step: int, loss: Tensor, grad_norm: float) -> None:
    """Stop a run that has nothing left to train, in every process at once.

    Raises:
        FloatingPointError: If the loss is not finite, or the gradient's norm, but for float16's: there, the loss scale
            is too high now and then, the step is left out, and the scale sinks.
    """
    mean = mean_over_processes(accelerator, {"loss": loss})["loss"]
    if not math.isfinite(mean) or not (math.isfinite(grad_norm) or accelerator.mixed_precision == "fp16"):
        raise FloatingPointError(f"the loss is {mean} and the norm of its gradient {grad_norm} at step {step}")
