"""Stage 2, first part: train encoder, quantizer and decoder end to end on spectral features, without waveforms.

    accelerate launch -m training.train_features CONFIG.yaml [section.key=value ...]

A step costs a thousandth of one on waveforms. Killed at any moment and started again with the same command, a run
resumes from its last checkpoint. What is evaluated and saved is the moving average of the weights.
"""

import copy
from pathlib import Path

import torch
import typer
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_jepa_daam import JepaDaamEncoderModel, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint as save_model
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.vocoder_decoder import VocoderDecoder

from .checkpointing import list_checkpoints, load_checkpoint, remove_half_written, save_checkpoint
from .config import FeatureConfig, differences, flatten, load_config, save_config
from .even_noise import set_even_noise
from .frozen import load_frozen
from .moving_average import average_decay, move_average
from .run import (
    FREE_SETTINGS,
    ConfigPath,
    Overrides,
    rate_share,
    replacing_model,
    run_alone,
    run_command,
    seed_randomness,
    stop_unless_finite,
)
from .stage2.feature_augmentation import change_gain, random_gains_db
from .stage2.feature_codec import (
    FeatureCodec,
    feature_loss,
    index_entropies,
    row_weights,
    weighted_error,
)
from .stage2.feature_data import FeatureBatches, FeatureCache, held_out_windows
from .tracking import RunLog
from .vocoder.karhunen_loeve import karhunen_loeve
from .vocoder.source_filter import set_vocoder_head

WEIGHTS_NAME = "weights.safetensors"  # of the networks alone, for `model.weights` of another run
MAX_FITTED_PATCHES = 60_000
EVALUATION_GAINS_DB = (-3.0, -26.0)  # of recordings that peak at 0.7
EVALUATION_BATCH = 16


def main(config: FeatureConfig) -> Path:
    """Train, and return the folder of the codec: its decoder speaks the features as they are, until it is trained.

    Raises:
        ValueError: If the output folder is in use or holds a run with other settings, a checkpoint is damaged, or a
            feature cache cannot be read.
        FloatingPointError: If a loss or a gradient is not finite.
    """
    return run_alone(config, train)


def train(config: FeatureConfig, accelerator: Accelerator) -> Path:
    """The run itself; see `main`."""
    output = Path(config.run.output)
    checkpoints = output / "checkpoints"
    checkpoint = next(reversed(list_checkpoints(checkpoints)), None)
    prepare(config, output, checkpoint is None)
    torch.manual_seed(config.run.seed)
    model_config = config.model_config()
    cache = FeatureCache(
        config.data.features, config.data.held_out_share, model_config.patch_size, model_config.frame_rate
    )
    if not cache.held_out or not cache.training:
        raise ValueError(
            f"`data.held_out_share` = {config.data.held_out_share} leaves {len(cache.training)} recordings to train on "
            f"and {len(cache.held_out)} to evaluate: both are needed"
        )
    weights = row_weights(model_config).to(accelerator.device)
    codec = make_codec(config, cache, weights)
    average = copy.deepcopy(codec).requires_grad_(False).eval()
    linear = codec.linear_parameters()
    others = [each for each in codec.parameters() if all(each is not parameter for parameter in linear)]
    optim = config.optim
    optimizer = torch.optim.AdamW(
        [{"params": others, "share": 1.0}, {"params": linear, "share": optim.linear_rate_share, "weight_decay": 0.0}],
        lr=optim.learning_rate,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
        fused=True,
    )
    model, average, optimizer = accelerator.prepare(codec, average, optimizer)
    batches = FeatureBatches(cache, config.data.window_frames, config.data.batch_size, config.run.seed)
    step = 0
    if checkpoint is not None:
        step, position = load_checkpoint(accelerator, checkpoint)
        batches.load_state_dict(position)
    log = RunLog(accelerator, output, step, config.run.max_steps, flatten(config), config.run.progress)
    log.say(
        f"{sum(each.numel() for each in codec.parameters()) / 1e6:.2f}M parameters; {len(cache.training)} recordings"
    )
    log.say("from the beginning" if checkpoint is None else f"resumed from {checkpoint}")
    if step == 0:
        log.write(0, evaluate(average, cache, weights, config.data.window_frames))

    running: dict[str, Tensor] = {}
    for features, valid in batches:
        if step >= config.run.max_steps:
            break
        share = rate_share(step, optim.warmup_steps, optim.decay_steps, config.run.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = optim.learning_rate * share * group["share"]
        generator = seed_randomness(config.run.seed, step, 0, accelerator.process_index)
        features, valid = features.to(accelerator.device), valid.to(accelerator.device)
        gains = random_gains_db(
            len(features), model_config.feature_bands, config.data.gain_db, config.data.equalizer_db, generator
        )
        features = change_gain(features, gains.to(accelerator.device), model_config.feature_bands)
        with accelerator.autocast():
            decoded = model(features).features
        losses = {"features": feature_loss(decoded, features, weights, valid)}
        loss = torch.stack([getattr(config.losses, name) * value for name, value in losses.items()]).sum()
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(codec.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        move_average(average, codec, average_decay(step, optim.average_decay))
        step += 1
        log.advance(step)
        for name, value in (losses | {"total": loss}).items():
            before = running.get(name, value.detach())
            running[name] = before.lerp(value.detach(), 0.02)
        last = step == config.run.max_steps
        if step % config.run.log_every == 0:
            stop_unless_finite(accelerator, step, loss, float(norm))
            log.write(
                step,
                {f"loss/{name}": float(value) for name, value in running.items()}
                | {"optim/grad_norm": float(norm), "optim/learning_rate": optim.learning_rate * share},
            )
        if step % config.run.eval_every == 0 or last:
            log.write(step, evaluate(average, cache, weights, config.data.window_frames))
        if step % config.run.save_every == 0 or last:
            save_checkpoint(accelerator, checkpoints, step, batches.state_dict(), config.run.keep_checkpoints)
            save_weights(average, output / WEIGHTS_NAME)
    if config.model.spectral_features is not None:
        with replacing_model(output / "model") as temporary:
            save_model(as_codec(average, config.model.spectral_features), temporary)
    log.close()
    accelerator.end_training()
    return output / "model"


def prepare(config: FeatureConfig, output: Path, fresh: bool) -> None:
    """Write the settings, or check that the run to resume has the same.

    Raises:
        ValueError: If it has others.
    """
    output.mkdir(parents=True, exist_ok=True)
    remove_half_written(output / "checkpoints")
    settings = output / "config.yaml"
    if not fresh and settings.exists():
        changed = differences(load_config(FeatureConfig, settings), config, FREE_SETTINGS)
        if changed:
            raise ValueError(f"`run.output`: {output} holds a run with other settings: {'; '.join(changed)}")
    save_config(config, settings)


def make_codec(config: FeatureConfig, cache: FeatureCache, weights: Tensor) -> FeatureCodec:
    """The codec to train: from `model.weights`, or from the seed and the Karhunen-Loeve transform of the features."""
    model_config = config.model_config()
    codec = FeatureCodec(model_config)
    if config.model.weights is not None:
        try:
            codec.load_state_dict(read_weights(config.model.weights, codec))
        except (OSError, RuntimeError) as error:
            raise ValueError(f"`model.weights` must have the weights of this configuration: {error}") from error
        return codec
    initialize(codec)
    spans = cache.training
    order = torch.randperm(len(spans), generator=torch.Generator().manual_seed(config.run.seed))
    patches: list[Tensor] = []
    for index in order.tolist():
        features, _ = cache.window([spans[index]], spans[index].frames)
        patches += features.unflatten(1, (-1, model_config.patch_size)).transpose(0, 1).half()
        if len(patches) >= MAX_FITTED_PATCHES:
            break
    fitted = torch.stack(patches)
    generator = torch.Generator().manual_seed(config.run.seed)
    gains = random_gains_db(len(fitted), model_config.feature_bands, config.data.gain_db, 0.0, generator)
    fitted = torch.cat(
        [
            change_gain(part.float(), gain, model_config.feature_bands)
            for part, gain in zip(fitted.split(4096), gains.split(4096), strict=True)
        ]
    )
    codec.start_from(karhunen_loeve(fitted, weights.cpu(), model_config.hidden_size))
    return codec


def read_weights(weights: str, codec: FeatureCodec) -> dict[str, Tensor]:
    """Weights of the networks, float32, from what another run wrote or from a checkpoint folder of a codec."""
    folder = Path(weights)
    state = load_file(folder / SAFE_WEIGHTS_NAME if folder.is_dir() else folder)
    state = {name.replace("decoder.frames.", "frame_decoder.", 1): value.float() for name, value in state.items()}
    return {name: value for name, value in state.items() if name in codec.state_dict()}


def initialize(codec: FeatureCodec) -> None:
    """Draw the weights as `JepaDaamModel` does."""
    for module in codec.modules():
        JepaDaamModel._init_weights(codec, module)  # type: ignore[arg-type]


@torch.no_grad()
def evaluate(codec: FeatureCodec, cache: FeatureCache, weights: Tensor, frames: int) -> dict[str, float]:
    """Share of the held-out speakers' weighted variance that is lost, at two levels, and bits that indices carry."""
    figures, indices = {}, []
    windows = list(held_out_windows(cache, frames))
    mean = None
    for gain_db in EVALUATION_GAINS_DB:
        lost = total = 0.0
        for first in range(0, len(windows), EVALUATION_BATCH):
            parts = [
                cache.window([span for span in window], frames) for window in windows[first : first + EVALUATION_BATCH]
            ]
            features = torch.stack([part[0] for part in parts]).to(weights.device)
            valid = torch.stack([part[1] for part in parts]).to(weights.device)
            features = change_gain(features, torch.full((1, 1, 1), gain_db), codec.config.feature_bands)
            if mean is None:
                mean = codec.frame_decoder.patches.bias.view(codec.config.feature_rows, -1)
            result = codec(features)
            lost += float(weighted_error(result.features, features, weights, valid).sum())
            total += float(weighted_error(mean.repeat(1, frames), features, weights, valid).sum())
            indices.append(result.indices[valid].cpu())
        figures[f"held_out/lost_{-gain_db:g}_db"] = lost / total
    shares = index_entropies(torch.cat(indices), codec.config.levels)
    figures["codebook/bits_used"] = float(shares.mean())
    figures["codebook/least_used"] = float(shares.min())
    return figures


def as_codec(codec: FeatureCodec, spectral_features: str) -> JepaDaamModel:
    """The codec with waveforms at both ends: features of another checkpoint, and a vocoder head that is computed."""
    model = JepaDaamModel(codec.config)
    trained = codec.state_dict().items()
    state = {name.replace("frame_decoder.", "decoder.frames.", 1): value.float() for name, value in trained}
    source = load_frozen(JepaDaamEncoderModel, spectral_features)
    state |= {f"spectral_features.{name}": value for name, value in source.spectral_features.state_dict().items()}
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected
    assert isinstance(model.decoder, VocoderDecoder)
    set_vocoder_head(model.decoder, codec.config.sampling_rate)
    set_even_noise(model)
    return model


def save_weights(codec: FeatureCodec, path: Path) -> None:
    """Write the averaged weights, float32."""
    with replacing(path) as temporary:
        save_file({name: value.contiguous() for name, value in codec.state_dict().items()}, temporary)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Train the networks of the tokenizer on spectral features."""
    run_command(FeatureConfig, config, overrides, main)


if __name__ == "__main__":
    app()
