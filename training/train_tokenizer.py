"""Stage 2: train quantizer and decoder, and fine-tune the encoder, against discriminators (section 3 of the paper).

    accelerate launch -m training.train_tokenizer CONFIG.yaml [section.key=value ...]

Killed at any moment and started again with the same command, a run goes on as if nothing had happened. What is
evaluated and saved is the moving average of the weights.
"""

import copy
from pathlib import Path
from typing import Any

import torch
import typer
from accelerate import Accelerator
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamConfig, JepaDaamForPreTraining, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint as save_model

from .augmentation import change_level, change_speed
from .checkpointing import list_checkpoints, load_checkpoint, save_checkpoint
from .codec import CodecForTraining, CodecResult
from .config import CodecConfig, flatten
from .data import judge_unreadable
from .discriminators import Discriminators
from .even_noise import set_even_noise
from .losses import (
    discriminator_loss,
    envelope_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    mel_loss,
    shape_bandwidth,
    spectrogram_loss,
    stft_losses,
    waveform_loss,
)
from .moving_average import average_decay
from .quality import PESQ_MISSING
from .reconstruction import evaluate, fixed_clips, spectrogram_distance
from .run import (
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
from .source_filter import read_source_filter, set_source_filter, with_spectra
from .speaker_teacher import SpeakerTeacher
from .stage2.vocoder_codec import VocoderForTraining
from .teacher import WhisperTeacher, semantic_loss
from .tracking import RunLog, SpeedMeter

# What makes an encoder: weights of one with other values would load, in part or with another meaning.
ENCODER_FIELDS = (
    "sampling_rate", "downsampling_ratios", "encoder_channels", "encoder_residual_blocks", "encoder_kernel_sizes",
    "encoder_stft_stages", "residual_dilations", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "conv_kernel_size", "layer_norm_eps", "daam_num_gaussians", "daam_in_encoder",
    "daam_in_conformer", "feature_bands", "quantized_size", "attention_window", "daam_window",
)  # fmt: skip


def main(config: CodecConfig) -> Path:
    """Train, and return the folder of the trained tokenizer.

    Raises:
        ValueError: If the output folder is in use or holds a run with other settings, a checkpoint is damaged or of
            another number of processes, or there are no recordings to train on or to hold out.
        UnreadableRecordingsError: If too many recordings cannot be read.
        FloatingPointError: If a loss or a gradient is not finite.
        RuntimeError: If processes were started that do not know of each other.
    """
    return run_alone(config, train, partly=config.optim.spectrogram_steps > 0)


def train(config: CodecConfig, accelerator: Accelerator) -> Path:
    """The run itself; see `main`."""
    if accelerator.state.deepspeed_plugin is not None:
        raise ValueError("Stage 2 has two models, of which DeepSpeed takes one: launch it without DeepSpeed")
    if accelerator.mixed_precision == "fp16" and config.optim.accumulation_steps > 1:
        # A step of the discriminators may change the loss scale that half of the codec's gradients carry already.
        raise ValueError("`optim.accumulation_steps` must be 1 with float16: launch with bfloat16")
    output = Path(config.run.output)
    checkpoints = output / "checkpoints"
    checkpoint = next(reversed(list_checkpoints(checkpoints)), None)
    if accelerator.is_main_process:
        prepare_output(config, output, fresh=checkpoint is None)
    accelerator.wait_for_everyone()

    codec, discriminators, teacher, speaker_teacher = make_models(config)
    for each in (teacher, speaker_teacher):
        if each is not None:
            each.to(accelerator.device)
    optimizer, discriminator_optimizer = make_optimizers(config, codec, discriminators)
    model, judges, optimizer, discriminator_optimizer = accelerator.prepare(
        codec, discriminators, optimizer, discriminator_optimizer
    )
    rates = [[group["lr"] for group in each.param_groups] for each in (optimizer, discriminator_optimizer)]
    rate = codec.config.sampling_rate
    training = make_loader(config, accelerator, rate, held_out=False)
    window_s = config.data.window_s
    window_frames = None if window_s is None else max(1, round(window_s * codec.config.frame_rate))
    weights, max_norm = loss_weights(config), config.optim.max_grad_norm
    parts: dict[str, nn.Module] = {"encoder": codec.codec.encoder, "decoder": codec.codec.decoder}
    judged_at_all = weights["adversarial"] + weights["feature_matching"] > 0.0
    judging: dict[str, nn.Module] = {"discriminators": discriminators}

    step = 0  # optimizer steps done
    if checkpoint is not None:
        step, position = load_checkpoint(accelerator, checkpoint)
        training.load_state_dict(position)
    log = RunLog(accelerator, output, step, config.run.max_steps, flatten(config), config.run.progress)
    clips = fixed_clips(config, rate) if accelerator.is_main_process else []
    if accelerator.is_main_process:
        log.say(
            f"{accelerator.num_processes} process(es) on {accelerator.device.type}, mixed precision "
            f"{accelerator.mixed_precision}; parameters to train: {count(codec) / 1e6:.1f}M of the codec, "
            f"{count(discriminators) / 1e6:.1f}M of the discriminators; {len(clips)} clips to reconstruct"
        )
        log.say("from the beginning" if checkpoint is None else f"going on from {checkpoint}")
        if PESQ_MISSING and clips:
            log.say(PESQ_MISSING)
    meter = SpeedMeter(rate, accelerator.num_processes)
    batches = iter(training)
    codec.train()
    while step < config.run.max_steps:
        halfway = step < config.optim.spectrogram_steps
        if 0 < step == config.optim.spectrogram_steps:
            begin_waveforms(codec)
        adversarial = judged_at_all and not halfway and step >= config.optim.discriminator_start
        share = rate_share(step, config.optim.warmup_steps, config.optim.decay_steps, config.run.max_steps)
        for each, base in zip((optimizer, discriminator_optimizer), rates, strict=True):
            for group, learning_rate in zip(each.param_groups, base, strict=True):
                group["lr"] = learning_rate * share
        for micro_step in range(config.optim.accumulation_steps):
            with meter.waiting():
                batch = next(batches)
            generator = seed_randomness(config.run.seed, step, micro_step, accelerator.process_index)
            samples, lengths, bandwidth_hz = (
                value.to(accelerator.device) for value in (batch.samples, batch.lengths, batch.bandwidth_hz)
            )
            samples, lengths, bandwidth_hz = augment(samples, lengths, bandwidth_hz, config, generator)
            with accelerator.accumulate(model, judges):
                result = model(samples, lengths, window_frames, generator, halfway)
                if halfway:
                    losses = halfway_losses(result, bandwidth_hz, config, rate, teacher)
                else:
                    real, generated = (
                        shape_bandwidth(waveform, bandwidth_hz, rate, config.data.gain_above_bandwidth)
                        for waveform in (result.real, result.generated)
                    )
                    losses = reconstruction_losses(result, real, generated, bandwidth_hz, config, rate)
                    if teacher is not None and weights["words"] > 0.0:
                        with accelerator.autocast():
                            losses["words"] = teacher.distance(generated, real, rate, result.lengths)
                    if speaker_teacher is not None:
                        with accelerator.autocast():
                            losses["speaker"] = speaker_teacher(generated, real, rate)
                norms = {}
                if adversarial:
                    scores = judges(torch.cat([real, generated.detach()])).scores
                    judged = discriminator_loss(*zip(*(score.chunk(2) for score in scores), strict=True))
                    accelerator.backward(judged)
                    if accelerator.sync_gradients:
                        norms = clip_gradients(accelerator, discriminator_optimizer, judging, max_norm)
                    discriminator_optimizer.step()
                    discriminator_optimizer.zero_grad()
                    losses |= adversarial_losses(accelerator.unwrap_model(judges), real, generated)
                loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()  # eq. 20
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    norms |= clip_gradients(accelerator, optimizer, parts, max_norm)
                optimizer.step()
                optimizer.zero_grad()
            meter.add(batch)
            log.unreadable(batch)
        codec.update_average(average_decay(step, config.optim.average_decay))
        step += 1
        log.advance(step)

        last = step == config.run.max_steps
        if step % config.run.log_every == 0:
            told = {"total": loss, **losses} | ({"discriminators": judged} if adversarial else {})
            metrics = mean_over_processes(accelerator, {f"loss/{name}": value for name, value in told.items()})
            metrics |= norms
            metrics["optim/learning_rate"] = optimizer.param_groups[-1]["lr"]
            counts = sum_over_processes(accelerator, training.counts())
            log.write(step, metrics | {f"data/{name}": value for name, value in counts.items()} | meter.read())
            judge_unreadable(counts["opened"], counts["unreadable"], config.data.max_unreadable_share)
        if step % config.run.log_every == 0 or step % config.run.save_every == 0 or last:
            stop_unless_finite(accelerator, step, loss, sum(norms.values()))  # before it reaches a checkpoint
        if (step % config.run.eval_every == 0 or last) and clips:
            held_out = config.data.held_out_share > 0.0
            if halfway and codec.average_head is not None:
                distance = spectrogram_distance(codec.average, codec.average_head, clips)
                log.write(step, {f"{'held_out' if held_out else 'seen'}/spectrogram_distance": distance})
            else:
                figures, reconstructions = evaluate(codec.average, clips, held_out)
                log.write(step, figures)
                log.reconstructions(step, clips[: config.run.logged_clips], reconstructions, rate)
                log.watch_digits(step, figures)
            meter.restart()
        if step % config.run.save_every == 0 or last:
            save_checkpoint(accelerator, checkpoints, step, training.state_dict(), config.run.keep_checkpoints)

    trained = output / "model"
    if config.run.max_steps <= config.optim.spectrogram_steps:
        begin_waveforms(codec)
    if accelerator.is_main_process:
        save_trained(codec.average, trained)
    log.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()  # last: without it, processes that stream data can abort as they exit
    return trained


def make_models(
    config: CodecConfig,
) -> tuple[Any, Discriminators, WhisperTeacher | None, SpeakerTeacher | None]:
    """The models to train, with weights drawn from the seed or loaded, alike in every process; and the teachers."""
    torch.manual_seed(config.run.seed)
    model_config = config.model_config()
    if model_config.normalize_latents and config.data.min_segment_s * model_config.frame_rate <= 1.0:
        raise ValueError(
            f"`data.min_segment_s` must be more than a frame of {1.0 / model_config.frame_rate:g} s to normalize "
            f"latents, got {config.data.min_segment_s}"
        )
    if config.losses.envelope > 0.0 and not model_config.harmonic_source:
        raise ValueError(
            "`losses.envelope` needs `harmonic_source` in `model.config`: no other decoder has an envelope"
        )
    weights = config.model.weights
    codec = JepaDaamModel(model_config) if weights is None else load_weights(weights, model_config)
    set_even_noise(codec)
    try:
        teacher = None if config.losses.teacher is None else WhisperTeacher(config.losses.teacher)
    except (OSError, ValueError) as error:
        raise ValueError(f"`losses.teacher`: no Whisper model at {config.losses.teacher}: {error}") from error
    try:
        encoder = config.losses.speaker_encoder
        speaker_teacher = None if encoder is None else SpeakerTeacher(encoder)
    except (OSError, ValueError) as error:
        raise ValueError(f"`losses.speaker_encoder`: no ECAPA-TDNN at {encoder}: {error}") from error
    taught = 0 if teacher is None or config.losses.semantic == 0.0 else teacher.num_features
    optim = config.optim
    predicted = optim.spectrogram_steps > 0 or config.losses.envelope > 0.0
    if model_config.feature_bands > 0:
        sizes = config.discriminators
        return (
            VocoderForTraining(codec, optim.freeze_encoder),
            Discriminators(sizes.periods, sizes.num_scales, sizes.width),
            teacher,
            speaker_teacher,
        )
    training = CodecForTraining(
        codec, optim.freeze_encoder, optim.freeze_transform, predicted, taught, optim.freeze_reading
    )
    if weights is not None and model_config.harmonic_source:
        for of_codec, head in ((training.codec, training.spectrogram_head), (training.average, training.average_head)):
            if head is not None:
                read_source_filter(of_codec, head)
    sizes = config.discriminators
    return training, Discriminators(sizes.periods, sizes.num_scales, sizes.width), teacher, speaker_teacher


def load_weights(weights: str, config: JepaDaamConfig) -> JepaDaamModel:
    """The codec that starts from a Stage 1 model, or from another codec.

    Raises:
        ValueError: If there is no model, or its encoder is another than the configuration's.
    """
    local = Path(weights).exists() or weights.count("/") != 1  # else it may be a Hub id
    if local and not (Path(weights) / "config.json").is_file():
        raise ValueError(
            f"`model.weights` must be a folder with a config.json (of a run: its `model`), or a Hub id, got {weights!r}"
        )
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # Stage 1 has no decoder; no table has to say so
    try:
        theirs = JepaDaamConfig.from_pretrained(weights)
        differing = [name for name in ENCODER_FIELDS if getattr(theirs, name) != getattr(config, name)]
        if theirs.transform_bands > 0 and JepaDaamForPreTraining.__name__ not in (theirs.architectures or ()):
            fields = ("transform_bands", "harmonic_source")
            differing += [name for name in fields if getattr(theirs, name) != getattr(config, name)]
        if differing:
            raise ValueError(f"its encoder has other values of {', '.join(differing)}")
        stored = copy.deepcopy(config)
        if theirs.harmonic_source and config.harmonic_source:  # else there is no head that could be made finer
            stored.decoder_istft_spectra = theirs.decoder_istft_spectra
        loaded: Any = JepaDaamModel.from_pretrained(
            weights, config=stored, dtype=torch.float32, output_loading_info=True
        )
        codec, report = loaded
        missing = [name for name in report["missing_keys"] if name.startswith("encoder.")]
        if missing and all(name.startswith("encoder.transform.") for name in missing):
            raise ValueError("it has no transform: compute one with `python -m training.transform_code`")
        if missing:
            raise ValueError(f"{len(missing)} weights of the encoder are missing, such as {missing[0]}")
        if stored.decoder_istft_spectra != config.decoder_istft_spectra:
            codec = with_spectra(codec, config.decoder_istft_spectra)
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"`model.weights`: {weights} does not fit `model.config`: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    return codec


def make_optimizers(
    config: CodecConfig, codec: CodecForTraining, discriminators: Discriminators
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """AdamW of encoder and decoder, and AdamW of the discriminators."""
    optim = config.optim
    decoder = [*codec.codec.decoder.parameters()]
    for head in (codec.spectrogram_head, codec.semantic_head):
        if head is not None:
            decoder.extend(head.parameters())
    groups: list[dict[str, Any]] = [{"params": decoder}]
    if codec.config.feature_bands > 0:
        frames = list(codec.codec.decoder.frames.parameters())
        others = [each for each in decoder if all(each is not parameter for parameter in frames)]
        groups = [{"params": frames, "lr": optim.learning_rate * optim.frames_rate_share}, {"params": others}]
    if not optim.freeze_encoder:
        rate = optim.learning_rate if optim.encoder_learning_rate is None else optim.encoder_learning_rate
        encoder = list(codec.codec.encoder.parameters())
        if codec.config.feature_bands > 0:
            encoder += codec.codec.latent_projection.parameters()
        groups.insert(0, {"params": encoder, "lr": rate})
    return (
        torch.optim.AdamW(groups, lr=optim.learning_rate, betas=optim.betas, weight_decay=optim.weight_decay),
        torch.optim.AdamW(
            discriminators.parameters(),
            lr=optim.discriminator_learning_rate,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
        ),
    )


def augment(
    samples: Tensor, lengths: Tensor, bandwidth_hz: Tensor, config: CodecConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A batch at other levels and another speed, if the configuration says so."""
    if config.data.speed != (1.0, 1.0):
        samples, lengths, bandwidth_hz = change_speed(samples, lengths, bandwidth_hz, config.data.speed, generator)
    if config.data.gain_db != (0.0, 0.0):
        samples = change_level(samples, config.data.gain_db, generator)
    return samples, lengths, bandwidth_hz


def loss_weights(config: CodecConfig) -> dict[str, float]:
    """Weight of each of the codec's losses in the total (eq. 20)."""
    weights = config.losses
    return {
        "waveform": weights.waveform,
        "spectral_convergence": weights.stft,
        "log_magnitude": weights.stft,
        "mel": weights.mel,
        "spectrogram": 1.0,
        "semantic": weights.semantic,
        "envelope": weights.envelope,
        "features": weights.features,
        "pitch": weights.pitch,
        "words": weights.words,
        "speaker": weights.speaker,
        "adversarial": weights.adversarial,
        "feature_matching": weights.feature_matching,
    }


def reconstruction_losses(
    result: CodecResult, real: Tensor, generated: Tensor, bandwidth_hz: Tensor, config: CodecConfig, sampling_rate: int
) -> dict[str, Tensor]:
    """Unweighted losses of the codec but the adversarial ones; those of weight 0 are left out.

    `real` and `generated` are the windows of `result`, `(batch, samples)`, less what lies above each clip's bandwidth.
    """
    weights, gain = config.losses, config.data.gain_above_bandwidth
    spectral = (result.generated, result.real, sampling_rate, result.lengths, bandwidth_hz, gain)
    losses = {}
    if weights.waveform > 0.0:
        losses["waveform"] = waveform_loss(generated, real, result.lengths)
    if weights.stft > 0.0:
        losses |= stft_losses(*spectral)
    if weights.mel > 0.0:
        losses["mel"] = mel_loss(*spectral)
    if weights.envelope > 0.0:
        losses["envelope"] = distance_of_envelopes(result, result.predicted, bandwidth_hz, gain, sampling_rate)
    if result.pitch is not None:
        losses["pitch"] = result.pitch
    if result.features is not None:
        losses["features"] = result.features
    return losses


def halfway_losses(
    result: CodecResult, bandwidth_hz: Tensor, config: CodecConfig, sampling_rate: int, teacher: WhisperTeacher | None
) -> dict[str, Tensor]:
    """Unweighted losses of the warm start: of predicted spectrograms, and of what a teacher would make of them."""
    gain = config.data.gain_above_bandwidth
    told = (sampling_rate, result.lengths, bandwidth_hz, gain)
    if result.envelope is None:
        losses = {"spectrogram": spectrogram_loss(result.generated, result.real, *told)}
    else:
        losses = {"spectrogram": distance_of_envelopes(result, result.generated, bandwidth_hz, gain, sampling_rate)}
    if teacher is not None and result.semantic is not None:
        taught = teacher(result.real, sampling_rate)
        losses["semantic"] = semantic_loss(result.semantic, taught, result.lengths, result.real.shape[1])
    if result.pitch is not None:
        losses["pitch"] = result.pitch
    return losses


def distance_of_envelopes(
    result: CodecResult, predicted: Tensor | None, bandwidth_hz: Tensor, gain_above: float, sampling_rate: int
) -> Tensor:
    """How far the predicted envelope of a batch, `(batch, spectra, bands)`, is from that of its windows."""
    assert predicted is not None
    assert result.envelope is not None
    hop_length = result.real.shape[1] // predicted.shape[1]
    told = (sampling_rate, result.lengths, bandwidth_hz, gain_above)
    return envelope_loss(predicted, result.envelope, *told, hop_length=hop_length)


def begin_waveforms(codec: CodecForTraining) -> None:
    """Let the head that shapes sources read the spectrograms that the decoder has learned, if it has such a head."""
    if codec.config.harmonic_source and codec.spectrogram_head is not None:
        set_source_filter(codec.codec, codec.spectrogram_head)
        set_source_filter(codec.average, codec.average_head)


def adversarial_losses(discriminators: nn.Module, real: Tensor, generated: Tensor) -> dict[str, Tensor]:
    """Unweighted adversarial losses of the codec (eq. 25 and 26); no gradient reaches the discriminators."""
    discriminators.requires_grad_(False)
    with torch.no_grad():
        real_maps = discriminators(real).feature_maps
    judged = discriminators(generated)
    discriminators.requires_grad_(True)
    return {
        "adversarial": generator_adversarial_loss(judged.scores),
        "feature_matching": feature_matching_loss(real_maps, judged.feature_maps),
    }


def clip_gradients(
    accelerator: Accelerator, optimizer: torch.optim.Optimizer, parts: dict[str, nn.Module], max_norm: float
) -> dict[str, float]:
    """Scale the gradients of an optimizer's parts down to a common norm; returns each part's own, before that."""
    accelerator.unscale_gradients(optimizer)
    gradients = {
        name: [parameter.grad for parameter in part.parameters() if parameter.grad is not None]
        for name, part in parts.items()
    }
    norms = {name: nn.utils.get_total_norm(of_part) for name, of_part in gradients.items() if of_part}
    nn.utils.clip_grad_norm_([parameter for part in parts.values() for parameter in part.parameters()], max_norm)
    return {f"grad_norm/{name}": float(norm) for name, norm in norms.items()}


def count(module: nn.Module) -> int:
    """Parameters to train."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def save_trained(codec: JepaDaamModel, folder: Path) -> None:
    """Save the tokenizer as one folder from which all auto classes load."""
    with replacing_model(folder) as temporary:
        save_model(codec, temporary)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Stage 2: train a speech tokenizer on speech."""
    typer.echo(f"trained tokenizer: {run_command(CodecConfig, config, overrides, main)}")


if __name__ == "__main__":
    app()
