"""Weights to start the transform path from: classic transform coding of speech, computed instead of learned.

    python -m training.transform_code training/configs/small_codec_transform.yaml "data.sources=[train]"

The Karhunen-Loeve transform (principal components) of patches of the envelope makes coefficients whose variances fall
steeply. Each latent dimension is a digit of two bits; digits are given, one at a time, to the coefficient whose error
they lower most, so that large coefficients get four and small ones none. `modeling_jepa_daam/transform_path.py` has
the formula. The other way, the mean of each coefficient given its digits is a smooth function of the number that they
make, which two layers have by least squares, and the transform goes back.

All else is taken from `model.weights`, but for what would disturb the transform: the Conformer's last layer norm, and
the decoder's features where the transform joins them, begin at zero.

Source: Goyal, Theoretical Foundations of Transform Coding, 2001 (sections on the Karhunen-Loeve transform and greedy
bit allocation).
"""

import heapq
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import soxr
import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from torch import Tensor

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from modeling_jepa_daam.files import write_json
from modeling_jepa_daam.pitch import MIDDLE_F0_HZ, MIN_F0_HZ, OCTAVES, PitchTracker, class_octaves
from modeling_jepa_daam.quantizer import FiniteScalarQuantizer
from modeling_jepa_daam.transform_path import AnalysisTransform, from_rows, to_digits

from .audibility import band_weights
from .codec import transform_rows
from .run import ConfigPath, Overrides, make_loader, prepare_output, replacing_model, run_command, seed_randomness
from .source_filter import set_source_filter
from .train_tokenizer import CodecConfig, augment

SUMMARY = "transform.json"  # what the computation found, beside `config.yaml`
BOUND = 2.3  # standard deviations of a coefficient that tanh brings to tanh(1)
SINGLE_BOUND = 1.8  # of one with a single digit
MAX_DIGITS = 4
LEVELS = 4
BATCH_NORM_EPS = 1e-5  # torch's, which is added to the statistics
TRACKER_BATCH_SIZE, TRACKER_RATE = 96, 2e-3
TEACHER_RATE, VOICED_CONFIDENCE = 16000, 0.5  # of swift-f0
Codec = Any  # a JepaDaamModel with a transform, which its type does not promise
TRIED = 40  # coefficients that tell what a digit is worth
SINGLE_UNITS = LEVELS - 1  # that read a coefficient of one digit: with a bias, they make any function of it
RIDGE = 1e-6  # of the variance of what they tell


def digit_latents(coefficients: Tensor, digits: int) -> Tensor:
    """Latents that carry a coefficient of variance 1 in `digits` digits: `(..., digits)`, the coarsest first."""
    scaled = coefficients / (BOUND if digits > 1 else SINGLE_BOUND)
    return to_digits(scaled[..., None], *gains_and_offsets(digits))


def gains_and_offsets(digits: int) -> tuple[Tensor, Tensor]:
    """What `to_digits` takes to make so many digits of one coefficient, the coarsest first: `(digits,)` each."""
    places = torch.arange(digits)
    return float(LEVELS) ** places, (places > 0).float()


def set_borders(quantizer: FiniteScalarQuantizer) -> None:
    """Let the quantizer's statistics say what puts its borders at -.5, 0 and .5, where a finer wave begins again.

    With those of a batch, borders would lie where the spread of each digit puts them, up to a seventh away: there a
    coarse digit and its fine ones would speak of different cells.
    """
    scale = 0.5 / (quantizer.temperature * math.atanh(0.5))
    quantizer.running_mean.zero_()
    quantizer.running_var.fill_(scale**2 - BATCH_NORM_EPS)


def distortions(coefficients: Tensor, temperature: float) -> list[float]:
    """Mean squared error of coefficients of variance 1, `(samples,)`, decoded from 0 to `MAX_DIGITS` digits."""
    errors = [1.0]
    for digits in range(1, MAX_DIGITS + 1):
        quantizer = FiniteScalarQuantizer([LEVELS] * digits, temperature, normalize=True).eval()
        set_borders(quantizer)
        indices = quantizer(digit_latents(coefficients, digits)[None])[1][0]
        cells = (indices * LEVELS ** torch.arange(digits)).sum(dim=1)
        count = torch.bincount(cells, minlength=LEVELS**digits).clamp(min=1)
        means = torch.zeros(LEVELS**digits).index_add_(0, cells, coefficients) / count
        errors.append((coefficients - means[cells]).square().mean().item())
    return errors


def allocate_digits(variances: Sequence[float], errors: Sequence[float], num_digits: int) -> list[int]:
    """Give digits, one by one, to the coefficient whose squared error falls most.

    Args:
        variances: Of the coefficients.
        errors: Share of the variance that is left with 0, 1, 2... digits, falling.
        num_digits: To give.

    Returns:
        Digits of each coefficient.
    """
    digits = [0] * len(variances)
    heap = [(variance * (errors[1] - errors[0]), index) for index, variance in enumerate(variances)]
    heapq.heapify(heap)
    for _ in range(num_digits):
        _, index = heapq.heappop(heap)
        digits[index] += 1
        if digits[index] < len(errors) - 1:
            gain = errors[digits[index] + 1] - errors[digits[index]]
            heapq.heappush(heap, (variances[index] * gain, index))
    return digits


class Voices(NamedTuple):
    """Frames of training speech, one an entry."""

    power: Tensor
    """`(frames, bins, spectra)`."""
    octaves: Tensor
    """`(frames, spectra)`, pitch above 150 Hz where there is a voice, else NaN."""


def training_audio(config: CodecConfig, codec: Codec, num_batches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of augmented training speech, always the same: waveforms `(batch, samples)` of whole frames, and which
    frames `(batch, frames)` hold speech to their end."""
    hop = codec.config.hop_length
    loader = make_loader(config, Accelerator(cpu=True), codec.config.sampling_rate, held_out=False)
    for step, batch in enumerate(loader.take(num_batches)):
        generator = seed_randomness(config.run.seed, step, 0, 0)
        samples, lengths, _ = augment(batch.samples, batch.lengths, batch.bandwidth_hz, config, generator)
        padded = F.pad(samples, (0, -samples.shape[-1] % hop))
        yield padded, torch.arange(padded.shape[-1] // hop) < (lengths // hop)[:, None]


def of_frames(values: Tensor, whole: Tensor) -> Tensor:
    """`(batch, rows, spectra)` cut into frames, of which the whole ones stay: `(frames, rows, spectra of a frame)`."""
    return values.unflatten(2, (whole.shape[1], -1)).transpose(1, 2)[whole]


@torch.no_grad()
def collect_pitch(config: CodecConfig, codec: Codec, num_batches: int) -> Voices:
    """What the tracker hears of training speech, and what its teacher does."""
    encoder, voices = codec.encoder, []
    teacher = PitchTeacher(codec.config.sampling_rate, encoder.stft_front_end.hop_length)
    for samples, whole in training_audio(config, codec, num_batches):
        power = encoder.stft_front_end.power(samples[:, None])[:, : encoder.transform.tracker.num_bins]
        octaves = torch.stack([teacher(one) for one in samples])
        voices.append((of_frames(power, whole), of_frames(octaves[:, None], whole)[:, 0]))
    return Voices(*(torch.cat(part) for part in zip(*voices, strict=True)))


def collect_patches(config: CodecConfig, codec: Codec, num_batches: int) -> Tensor:
    """Patches of the transform's rows, of training speech: `(patches, rows, spectra)`."""
    return torch.cat(
        [
            of_frames(transform_rows(codec, samples), whole)
            for samples, whole in training_audio(config, codec, num_batches)
        ]
    )


class PitchTeacher:
    """Pitch by swift-f0, which needs the package of that name.

    Args:
        sampling_rate: Of waveforms (Hz).
        hop_length: Samples between spectra.
    """

    def __init__(self, sampling_rate: int, hop_length: int):
        try:
            from swift_f0 import SwiftF0
        except ImportError as error:
            raise ImportError("to teach a pitch tracker: pip install swift-f0") from error
        self.sampling_rate, self.hop_length = sampling_rate, hop_length
        self._detector = SwiftF0(threads=1, spin=False)

    def __call__(self, samples: Tensor) -> Tensor:
        """Octaves above 150 Hz of each spectrum, NaN where there is no voice: `(samples,)` -> `(spectra,)`."""
        heard = soxr.resample(samples.numpy(), self.sampling_rate, TEACHER_RATE)
        highest = MIN_F0_HZ * 2**OCTAVES
        track = self._detector.detect(heard, TEACHER_RATE, MIN_F0_HZ, highest)
        octaves = np.log2(np.clip(track.pitch_hz, MIN_F0_HZ, highest) / MIDDLE_F0_HZ)
        octaves[np.asarray(track.confidence) < VOICED_CONFIDENCE] = np.nan  # and so is what lies next to one
        times = (np.arange(len(samples) // self.hop_length) + 0.5) * self.hop_length / self.sampling_rate
        return torch.from_numpy(np.interp(times, track.timestamps, octaves).astype(np.float32))


def teach_tracker(tracker: PitchTracker, voices: Voices, steps: int) -> tuple[float, float]:
    """Teach the tracker what the teacher heard.

    Returns:
        Median error (cents) where both hear a voice, and share of spectra where only one does.
    """
    classes = class_octaves(voices.octaves)
    spacing = classes[1] - classes[0]
    optimizer = torch.optim.AdamW(tracker.parameters(), lr=TRACKER_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(voices.power), (TRACKER_BATCH_SIZE,), generator=generator)
        wanted = voices.octaves[rows]
        voiced = ~wanted.isnan()
        logits, voicing = tracker.scores(voices.power[rows])
        # Two classes share a pitch between them, by how near each is.
        shares = (1.0 - (classes[:, None] - wanted.nan_to_num()[:, None]).abs() / spacing).clamp(min=0.0)
        spread = -(shares * logits.log_softmax(dim=1)).sum(dim=1)
        loss = F.binary_cross_entropy_with_logits(voicing, voiced.float()) + spread[voiced].sum() / voiced.numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        octaves, heard = (torch.cat(parts) for parts in zip(*map(tracker, voices.power.split(1024)), strict=True))
    return pitch_errors(octaves, heard, voices.octaves)


def pitch_errors(octaves: Tensor, voiced: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Median error (cents) where both hear a voice, and share of spectra where only one does.

    Args:
        octaves: `(patches, spectra)`, pitch.
        voiced: `(patches, spectra)`, probability of a voice.
        wanted: `(patches, spectra)`, NaN where there is no voice.
    """
    told, there = voiced > 0.5, ~wanted.isnan()
    both = told & there
    cents = 1200.0 * (octaves - wanted)[both].abs().median()
    return cents.item(), (told != there).float().mean().item()


@torch.no_grad()
def set_analysis(codec: Codec, patches: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Set the transform, its digits, and the quantizer's statistics.

    Args:
        codec: Whose encoder it is.
        patches: `(patches, bands, spectra)`.

    Returns:
        Mean patch and basis `(coefficients, rows, spectra)` of the coefficients that have digits, and their digits.
        Coefficients are of rows that have been multiplied by `row_weights`.
    """
    weights = row_weights(codec)
    flat = (patches * weights).flatten(1)
    mean = flat.mean(dim=0)
    covariance = torch.zeros(flat.shape[1], flat.shape[1], dtype=torch.float64)
    for part in flat.split(4096):
        covariance += ((part - mean).T @ (part - mean)).double()
    variances, vectors = torch.linalg.eigh(covariance / len(flat))
    size = codec.config.hidden_size
    variances, basis = variances.flip(0)[:size].clamp(min=0.0).float(), vectors.flip(1)[:, :size].T.float()
    tried = ((flat - mean) @ basis[:TRIED].T / variances[:TRIED].sqrt()).flatten()
    errors = distortions(tried, codec.config.fsq_temperature)
    digits = allocate_digits(variances.tolist(), errors, size)
    typer.echo(f"error of 0 to {MAX_DIGITS} digits: {', '.join(f'{error:.4f}' for error in errors)}; {digits=}")

    transform = codec.encoder.transform
    dimension = 0
    for vector, variance, count in zip(basis, variances, digits, strict=True):
        scaled = vector / (variance.sqrt() * (BOUND if count > 1 else SINGLE_BOUND))
        for gain, offset in zip(*gains_and_offsets(count), strict=True):
            transform.project.weight[dimension] = scaled.view(patches.shape[1:]) * weights
            transform.project.bias[dimension] = -(scaled @ mean)
            transform.gain[dimension] = gain
            transform.offset[dimension] = offset
            dimension += 1
    set_borders(codec.quantizer)
    kept = sum(count > 0 for count in digits)
    return patches.mean(dim=0), basis[:kept].view(kept, *patches.shape[1:]), digits


def row_weights(codec: Codec) -> Tensor:
    """How much errors of each row count, `(rows, 1)`: of bands as they are heard, of pitch as it is scaled."""
    config = codec.config
    bins = codec.encoder.stft_front_end.fft_size // 2 + 1
    bands = band_weights(bins, config.transform_bands, config.sampling_rate)
    return torch.cat([bands, torch.ones(config.transform_rows - config.transform_bands)])[:, None]


@torch.no_grad()
def decoded_pitch(codec: Codec, patches: Tensor) -> tuple[Tensor, Tensor]:
    """Octaves and probability of a voice, each `(patches, spectra)`, from the digits of patches."""
    values = codec.quantizer.eval()(latents_of(codec, patches)[None])[0][0]
    rows = torch.cat([codec.decoder.transform.pitch_rows(part[..., None]) for part in values.split(4096)])
    return from_rows(rows)


@torch.no_grad()
def latents_of(codec: Codec, patches: Tensor) -> Tensor:
    """Latents `(patches, dimensions)` of patches of rows, by the transform alone."""
    nothing = torch.zeros(codec.config.hidden_size)  # of the network
    return torch.cat([codec.encoder.transform.latents(part, nothing)[:, 0] for part in patches.split(4096)])


@torch.no_grad()
def set_synthesis(codec: Codec, patches: Tensor, mean: Tensor, basis: Tensor, digits: list[int]) -> float:
    """Find coefficients from digits, and set the transform back.

    Returns:
        Share of the patches' variance that is lost, of rows with their weights.
    """
    synthesis = codec.decoder.transform
    kept, bands = basis.shape[:2]
    if kept == codec.config.hidden_size:
        raise ValueError("no dimension is left for the mean patch: every coefficient has one digit")
    values = codec.quantizer.eval()(latents_of(codec, patches)[None])[0][0]
    weights = row_weights(codec)
    wanted = ((patches - mean) * weights).flatten(1) @ basis.flatten(1).T
    scale = wanted.std(dim=0)
    synthesis.patches.weight.zero_()
    synthesis.patches.bias.zero_()
    synthesis.patches.weight[:kept, :bands] = basis * scale[:, None, None] / weights
    synthesis.patches.weight[kept, :bands] = mean  # of a coefficient that is always 1
    set_reading(synthesis, values, wanted / scale, digits[:kept])
    synthesis.reduce.bias[kept] = 1.0
    lost = total = 0.0
    for part, value in zip(patches.split(4096), values.split(4096), strict=True):
        lost += (weights * (part - synthesis(value[..., None])[:, :bands])).square().sum().item()
        total += (weights * (part - mean)).square().sum().item()
    return lost / total


@torch.no_grad()
def set_reading(synthesis: Any, values: Tensor, wanted: Tensor, digits: list[int]) -> None:
    """Set two layers to the mean of each coefficient given its digits, by least squares.

    Quantized digits of a coefficient, each a fourth of the one before, sum up to the middle of its cell in [-1, 1], of
    which the coefficient is a smooth function. Hidden units that bend at evenly spaced places of it make that.

    Args:
        synthesis: `SynthesisTransform` whose layers they are.
        values: `(patches, dimensions)`, quantized latents.
        wanted: `(patches, coefficients)`, of variance 1.
        digits: Of each coefficient.
    """
    expand, reduce = synthesis.expand, synthesis.reduce
    for parameter in (*expand.parameters(), *reduce.parameters()):
        parameter.zero_()
    singles = digits.count(1)
    shared = (expand.out_channels - SINGLE_UNITS * singles) // max(1, len(digits) - singles)
    unit = dimension = 0
    for coefficient, count in enumerate(digits):
        units = SINGLE_UNITS if count == 1 else shared
        rows, read = slice(unit, unit + units), slice(dimension, dimension + count)
        slope = 2.0 ** math.ceil(math.log2(2 * units))  # as its products with powers of a fourth, exact in float16
        places = (2.0 * torch.arange(units) + 1.0) / units - 1.0
        expand.weight[rows, read, 0] = slope * LEVELS ** -torch.arange(count, dtype=torch.float32)
        expand.bias[rows] = (-slope * places).half().float()  # as weights are shipped
        hidden = F.silu(F.linear(values[:, read], expand.weight[rows, read, 0], expand.bias[rows])).double()
        told, target = hidden - hidden.mean(dim=0), wanted[:, coefficient].double()
        gram = told.T @ told
        ridge = RIDGE * gram.diagonal().mean() * torch.eye(units, dtype=torch.float64)
        solved = torch.linalg.solve(gram + ridge, told.T @ (target - target.mean()))
        reduce.weight[coefficient, rows, 0] = solved.float()
        reduce.bias[coefficient] = (target.mean() - hidden.mean(dim=0) @ solved).float()
        unit, dimension = unit + units, dimension + count


@torch.no_grad()
def silence_the_rest(codec: Codec) -> None:
    """Let the transform alone speak, to begin with: all else learns to add to it."""
    if len(codec.encoder.conformer) > 0:
        norm = codec.encoder.conformer[-1].norm
        norm.weight.zero_()
        norm.bias.zero_()
    stage = codec.decoder.stages[codec.decoder.transform_stage]
    stage.upsample.weight.zero_()
    stage.upsample.bias.zero_()
    for block in stage.residual_blocks:
        for conv in block.plain:
            conv.weight.zero_()
            conv.bias.zero_()


def take_weights(codec: Codec, weights: str) -> None:
    """Take what fits: of the encoder all but its transform has to.

    Raises:
        ValueError: If the encoder does not fit.
    """
    mine = codec.state_dict()
    loaded: Any = JepaDaamModel.from_pretrained(weights, dtype=torch.float32, output_loading_info=True)  # Stage 1's too
    theirs = loaded[0].state_dict()
    fitting = {name: value for name, value in theirs.items() if name in mine and value.shape == mine[name].shape}
    needed = {name for name in {*mine, *theirs} if name.startswith("encoder.") and ".transform." not in name}
    if needed - set(fitting):
        raise ValueError(f"`model.weights` do not fit `model.config`, such as in {sorted(needed - set(fitting))[0]}")
    codec.load_state_dict(fitting, strict=False)


def main(config: CodecConfig, num_batches: int = 400, tracker_steps: int = 2000) -> Path:
    """Compute the weights, and return the folder of the codec."""
    began = time.monotonic()
    model_config: JepaDaamConfig = config.model_config()
    if model_config.transform_bands == 0:
        raise ValueError("`model.config` has no transform path: set `transform_bands`")
    output = Path(config.run.output)
    if any((output / name).exists() for name in ("checkpoints", "metrics.jsonl")):
        raise ValueError(f"`run.output`: {output} holds a training run; take another folder")
    joined = len(model_config.downsampling_ratios) - model_config.encoder_stft_stages
    if model_config.decoder_channels[joined] < model_config.transform_rows:
        raise ValueError(
            f"`decoder_channels` must be at least {model_config.transform_rows}, the rows of a patch, where the "
            f"transform joins, got {model_config.decoder_channels[joined]}"
        )
    if set(model_config.levels) != {LEVELS}:
        raise ValueError(f"`fsq_levels` must all be {LEVELS}, got {model_config.fsq_levels}")
    torch.manual_seed(config.run.seed)
    codec = JepaDaamModel(model_config)
    if config.model.weights is not None:
        take_weights(codec, config.model.weights)
    prepare_output(config, output, fresh=True)
    told: dict[str, Any] = {}
    tracker = cast(AnalysisTransform, codec.encoder.transform).tracker
    if tracker is not None:
        voices = collect_pitch(config, codec, num_batches)
        told["tracker_cents"], told["tracker_voicing_error"] = teach_tracker(tracker, voices, tracker_steps)
        typer.echo(f"pitch tracker against its teacher: {told}")
        set_source_filter(codec)
    patches = collect_patches(config, codec, num_batches)
    typer.echo(f"{len(patches)} patches of {patches.shape[1]} rows and {patches.shape[2]} spectra")
    mean, basis, digits = set_analysis(codec, patches)
    lost = set_synthesis(codec, patches, mean, basis, digits)
    typer.echo(f"variance that is lost: {lost:.4f}")
    if tracker is not None:
        told["coded_cents"], told["coded_voicing_error"] = pitch_errors(*decoded_pitch(codec, patches), voices.octaves)
        typer.echo(f"pitch from digits against the teacher: {told}")
    silence_the_rest(codec)
    frames_per_hour = 3600 * model_config.frame_rate
    told |= {"digits": digits, "lost_variance": lost, "hours_of_audio": len(patches) / frames_per_hour}
    write_json(output / SUMMARY, told | {"minutes": (time.monotonic() - began) / 60})
    with replacing_model(output / "model") as temporary:
        save_checkpoint(codec, temporary)
    return output / "model"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(config: ConfigPath, overrides: Overrides = None) -> None:
    """Compute a transform code to start Stage 2 from."""
    typer.echo(f"codec to start from: {run_command(CodecConfig, config, overrides, main)}")


if __name__ == "__main__":
    app()
