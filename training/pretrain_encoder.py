"""Stage 1: train a JEPA encoder by masked prediction in latent space (section 2 of the paper).

    accelerate launch -m training.pretrain_encoder CONFIG.yaml [section.key=value ...]

Killed at any moment and started again with the same command, a run goes on as if nothing had happened. All randomness
of a step is a function of the seed, the step and the process, so that a checkpoint need not hold it.
"""

import contextlib
import fcntl
import math
import os
import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamFeatureExtractor, JepaDaamForPreTraining
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.framing import lengths_to_mask

from .checkpointing import list_checkpoints, load_checkpoint, remove_half_written, save_checkpoint
from .collapse import SIGNS, collapse_signs
from .config import OptimConfig, PretrainConfig, differences, flatten, load_config, save_config
from .data import BatchLoader, SegmentBatch, judge_unreadable
from .deepspeed_support import autocast, prepare_deepspeed
from .recordings import is_held_out, open_corpus, read_rows, stream_recordings, write_rows
from .tracking import RunLog, SpeedMeter

LISTING_TIMEOUT = timedelta(hours=2)  # of the other processes, while one lists the recordings
# What may change when a run goes on; all else would make another run of it.
FREE_SETTINGS = (
    "data.max_unreadable_share", "run.output", "run.max_steps", "run.log_every", "run.eval_every", "run.eval_batches",
    "run.save_every", "run.keep_checkpoints", "run.tracker", "run.progress",
)  # fmt: skip
EVALUATION_SEED = 0  # of the order and the masks of held-out speech: the same in every evaluation of every run


def main(config: PretrainConfig) -> Path:
    """Train, and return the folder of the trained model.

    Raises:
        ValueError: If the output folder is in use or holds a run with other settings, a checkpoint is damaged or of
            another number of processes, or there are no recordings to train on or to hold out.
        UnreadableRecordingsError: If too many recordings cannot be read.
        FloatingPointError: If the loss or its gradient is not finite.
        RuntimeError: If processes were started that do not know of each other.
    """
    accelerator = Accelerator(
        gradient_accumulation_steps=config.optim.accumulation_steps,
        log_with=None if config.run.tracker == "none" else config.run.tracker,
        project_dir=config.run.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LISTING_TIMEOUT)],
    )
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != accelerator.num_processes:  # each would train alone, into the same folder
        raise RuntimeError(
            f"{started} processes were started, but Accelerate knows of {accelerator.num_processes}: it found no GPUs. "
            "To train on CPU, set ACCELERATE_USE_CPU=true (without DeepSpeed)"
        )
    with only_run(Path(config.run.output)) if accelerator.is_main_process else contextlib.nullcontext():
        return train(config, accelerator)


def train(config: PretrainConfig, accelerator: Accelerator) -> Path:
    """The run itself; see `main`."""
    output = Path(config.run.output)
    checkpoints = output / "checkpoints"
    checkpoint = next(reversed(list_checkpoints(checkpoints)), None)
    if accelerator.is_main_process:
        prepare_output(config, output, fresh=checkpoint is None)
    accelerator.wait_for_everyone()

    jepa = make_model(config)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in jepa.parameters() if parameter.requires_grad],
        lr=config.optim.learning_rate,
        betas=config.optim.betas,
        weight_decay=config.optim.weight_decay,
    )
    prepare_deepspeed(accelerator, config)
    model, optimizer = accelerator.prepare(jepa, optimizer)
    training, held_out = (make_loader(config, accelerator, jepa.config.sampling_rate, which) for which in (False, True))

    step = 0  # optimizer steps done
    if checkpoint is not None:
        step, position = load_checkpoint(accelerator, checkpoint)
        training.load_state_dict(position)
    log = RunLog(accelerator, output, step, config.run.max_steps, flatten(config), config.run.progress)
    if accelerator.is_main_process:
        log.say(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, mixed precision "
            f"{accelerator.mixed_precision}, {jepa.num_parameters(only_trainable=True) / 1e6:.1f}M parameters to train"
        )
        log.say("from the beginning" if checkpoint is None else f"going on from {checkpoint}")
    meter = SpeedMeter(jepa.config.sampling_rate, accelerator.num_processes)
    batches = iter(training)
    model.train()
    while step < config.run.max_steps:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config.optim)
        for micro_step in range(config.optim.accumulation_steps):
            with meter.waiting():
                batch = next(batches)
            generator = seed_randomness(config.run.seed, step, micro_step, accelerator.process_index)
            with accelerator.accumulate(model):
                result = model(**model_inputs(batch, accelerator.device), generator=generator)
                accelerator.backward(result.loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.optim.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(batch)
            log.unreadable(batch)
        jepa.update_target()  # eq. 11, after the step, outside autograd
        step += 1
        log.advance(step)

        last = step == config.run.max_steps
        if step % config.run.log_every == 0:
            signs = collapse_signs(result.predictions, result.targets, result.context_mask, result.frame_mask)
            metrics = mean_over_processes(accelerator, {"loss/predict": result.loss, **signs})
            metrics["optim/grad_norm"] = float(grad_norm)
            metrics["optim/learning_rate"] = learning_rate(step - 1, config.optim)
            counts = sum_over_processes(accelerator, training.counts())
            log.write(step, metrics | {f"data/{name}": count for name, count in counts.items()} | meter.read())
            log.watch(step, metrics["std/predictions"])
            judge_unreadable(counts["opened"], counts["unreadable"], config.data.max_unreadable_share)
        if step % config.run.log_every == 0 or step % config.run.save_every == 0 or last:
            stop_unless_finite(accelerator, step, result.loss, float(grad_norm))  # before it reaches a checkpoint
        if step % config.run.eval_every == 0 or last:
            log.write(step, evaluate(accelerator, jepa, held_out, config, log))
        if step % config.run.save_every == 0 or last:
            save_checkpoint(accelerator, checkpoints, step, training.state_dict(), config.run.keep_checkpoints)

    trained = output / "model"
    if accelerator.is_main_process:
        save_trained(jepa, trained)
    log.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()  # last: without it, processes that stream data can abort as they exit
    return trained


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


def prepare_output(config: PretrainConfig, output: Path, fresh: bool) -> None:
    """Write the settings and the list of recordings for all processes; or check that the run to go on is the same."""
    output.mkdir(parents=True, exist_ok=True)
    remove_half_written(output / "checkpoints")
    settings = output / "config.yaml"
    if not fresh and settings.exists():
        changed = differences(load_config(settings), config, FREE_SETTINGS)
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


def make_model(config: PretrainConfig) -> JepaDaamForPreTraining:
    """The model to train, with weights drawn from the seed or loaded; alike in every process."""
    torch.manual_seed(config.run.seed)
    model_config = config.model_config()
    if config.model.weights is None:
        return JepaDaamForPreTraining(model_config)
    return JepaDaamForPreTraining.from_pretrained(config.model.weights, config=model_config, dtype=torch.float32)


def make_loader(config: PretrainConfig, accelerator: Accelerator, sampling_rate: int, held_out: bool) -> BatchLoader:
    """This process's batches: without end to train on, or once through the held-out speakers."""
    dataset = config.data.format == "dataset"
    corpus = open_corpus(config.data) if dataset else read_rows(Path(config.run.output) / "recordings.jsonl")
    return BatchLoader(
        stream_recordings(corpus, config.data.held_out_share, held_out),
        config.data,
        sampling_rate,
        seed=EVALUATION_SEED if held_out else config.run.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        max_epochs=1 if held_out else None,
        pin_memory=accelerator.device.type == "cuda",
    )


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Of the step after `step` steps: a linear rise, then constant."""
    return optim.learning_rate * min(1.0, (step + 1) / (optim.warmup_steps + 1))


def seed_randomness(seed: int, step: int, micro_step: int, process: int) -> torch.Generator:
    """Seed torch (dropout), and return the source of a batch's masks."""
    for_torch, for_masks = np.random.SeedSequence([seed, step, micro_step, process]).generate_state(2, np.uint64)
    torch.manual_seed(int(for_torch))
    return torch.Generator().manual_seed(int(for_masks))


def model_inputs(batch: SegmentBatch, device: torch.device) -> dict[str, Tensor | None]:
    """`input_values (batch, 1, samples)` and, unless all segments are equally long, `padding_mask`."""
    samples = batch.samples.to(device, non_blocking=True)
    lengths = batch.lengths.to(device)
    whole = bool((batch.lengths == samples.shape[-1]).all())
    return {
        "input_values": samples[:, None],
        "padding_mask": None if whole else lengths_to_mask(lengths, samples.shape[-1]),
    }


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


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, jepa: JepaDaamForPreTraining, loader: BatchLoader, config: PretrainConfig, log: RunLog
) -> dict[str, float]:
    """Mean loss and signs of collapse over held-out speakers, each batch weighted by its hidden frames."""
    if config.data.held_out_share == 0.0 or config.run.eval_batches == 0:
        return {}
    jepa.eval()
    totals: dict[str, Tensor] = {}
    weights = torch.zeros((), device=accelerator.device)
    for number, batch in enumerate(loader.take(config.run.eval_batches)):
        generator = seed_randomness(EVALUATION_SEED, number, 0, accelerator.process_index)
        with autocast(accelerator):
            result = jepa(**model_inputs(batch, accelerator.device), generator=generator)
        log.unreadable(batch)
        weight = (result.frame_mask & ~result.context_mask).sum()
        signs = collapse_signs(result.predictions, result.targets, result.context_mask, result.frame_mask)
        for name, value in {"loss/predict": result.loss, **signs}.items():
            totals[name] = totals.get(name, torch.zeros_like(weights)) + weight * value
        weights += weight
    jepa.train()
    names = ["loss/predict", *SIGNS]
    summed = accelerator.reduce(
        torch.stack([weights, *(totals.get(name, torch.zeros_like(weights)) for name in names)])
    )
    if summed[0] == 0:
        raise ValueError(f"`data.held_out_share` = {config.data.held_out_share} leaves no speech to evaluate on")
    return {f"held_out/{name}": float(value / summed[0]) for name, value in zip(names, summed[1:], strict=True)}


def save_trained(jepa: JepaDaamForPreTraining, folder: Path) -> None:
    """Save the model as transformers does, with its feature extractor."""
    with replacing(folder) as temporary:
        jepa.save_pretrained(temporary)
        JepaDaamFeatureExtractor.from_config(jepa.config).save_pretrained(temporary)
        if folder.exists():  # of a run that had fewer steps
            shutil.rmtree(folder)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    config: Annotated[Path, typer.Argument(help="YAML file; see training/configs/.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="section.key=value, as in optim.learning_rate=3e-4.")
    ] = None,
) -> None:
    """Stage 1: train a JEPA encoder on speech."""
    try:
        settings = load_config(config, overrides or [])
        settings.model_config()
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    transformers_logging.disable_progress_bar()  # of saving
    trained = main(settings)
    typer.echo(f"trained model: {trained}")


if __name__ == "__main__":
    app()
