"""Stage 1: train a JEPA encoder by masked prediction in latent space (section 2 of the paper).

    accelerate launch -m training.pretrain_encoder CONFIG.yaml [section.key=value ...]

Killed at any moment and started again with the same command, a run goes on as if nothing had happened. All randomness
of a step is a function of the seed, the step and the process, so that a checkpoint need not hold it.
"""

from pathlib import Path

import torch
import typer
from accelerate import Accelerator
from torch import Tensor

from modeling_jepa_daam import JepaDaamFeatureExtractor, JepaDaamForPreTraining
from modeling_jepa_daam.framing import lengths_to_mask

from .checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from .collapse import SIGNS, collapse_signs
from .config import PretrainConfig, flatten
from .data import BatchLoader, SegmentBatch, judge_unreadable
from .deepspeed_support import autocast, prepare_deepspeed
from .run import (
    EVALUATION_SEED,
    ConfigPath,
    Overrides,
    make_loader,
    mean_over_processes,
    prepare_output,
    rate_share,
    replacing_model,
    run_alone,
    run_command,
    seed_randomness,
    stop_unless_finite,
    sum_over_processes,
)
from .tracking import RunLog, SpeedMeter


def main(config: PretrainConfig) -> Path:
    """Train, and return the folder of the trained model.

    Raises:
        ValueError: If the output folder is in use or holds a run with other settings, a checkpoint is damaged or of
            another number of processes, or there are no recordings to train on or to hold out.
        UnreadableRecordingsError: If too many recordings cannot be read.
        FloatingPointError: If the loss or its gradient is not finite.
        RuntimeError: If processes were started that do not know of each other.
    """
    return run_alone(config, train)


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
        share = rate_share(step, config.optim.warmup_steps, config.optim.decay_steps, config.run.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = config.optim.learning_rate * share
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
            metrics["optim/learning_rate"] = optimizer.param_groups[0]["lr"]
            counts = sum_over_processes(accelerator, training.counts())
            log.write(step, metrics | {f"data/{name}": count for name, count in counts.items()} | meter.read())
            log.watch(step, metrics["std/predictions"])
            judge_unreadable(counts["opened"], counts["unreadable"], config.data.max_unreadable_share)
        if step % config.run.log_every == 0 or step % config.run.save_every == 0 or last:
            stop_unless_finite(accelerator, step, result.loss, float(grad_norm))  # before it reaches a checkpoint
        if step % config.run.eval_every == 0 or last:
            log.write(step, evaluate(accelerator, jepa, held_out, config, log))
            meter.restart()
        if step % config.run.save_every == 0 or last:
            save_checkpoint(accelerator, checkpoints, step, training.state_dict(), config.run.keep_checkpoints)

    trained = output / "model"
    if accelerator.is_main_process:
        save_trained(jepa, trained)
    log.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()  # last: without it, processes that stream data can abort as they exit
    return trained


def make_model(config: PretrainConfig) -> JepaDaamForPreTraining:
    """The model to train, with weights drawn from the seed or loaded; alike in every process."""
    torch.manual_seed(config.run.seed)
    model_config = config.model_config()
    if config.model.weights is None:
        return JepaDaamForPreTraining(model_config)
    return JepaDaamForPreTraining.from_pretrained(config.model.weights, config=model_config, dtype=torch.float32)


def model_inputs(batch: SegmentBatch, device: torch.device) -> dict[str, Tensor | None]:
    """`input_values (batch, 1, samples)` and, unless all segments are equally long, `padding_mask`."""
    samples = batch.samples.to(device, non_blocking=True)
    lengths = batch.lengths.to(device)
    whole = bool((batch.lengths == samples.shape[-1]).all())
    return {
        "input_values": samples[:, None],
        "padding_mask": None if whole else lengths_to_mask(lengths, samples.shape[-1]),
    }


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
    with replacing_model(folder) as temporary:
        jepa.save_pretrained(temporary)
        JepaDaamFeatureExtractor.from_config(jepa.config).save_pretrained(temporary)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Stage 1: train a JEPA encoder on speech."""
    typer.echo(f"trained model: {run_command(PretrainConfig, config, overrides, main)}")


if __name__ == "__main__":
    app()
