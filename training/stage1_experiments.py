"""Does Stage 1 earn its place? The same Stage 2 from its encoder, fine-tuned or frozen, and from a fresh one.

    python -m training.stage1_experiments SHARDS... --transform runs/small-transform/model [--steps 250]

Trains Stage 1 of `hub_configs/jepa-daam-24khz-small` once a seed, then Stage 2 for every start: spectrograms first,
then waveforms. Twice: of the network alone, as the paper has it, and beside the transform code of `--transform` (what
`training.transform_code` made), as the model that ships has it. There a frozen encoder is the transform alone, whatever
the network knows: it begins with adding nothing.

Writes `results.md` and `results.json`; `runs/*/model` are for `training.token_probes`. Interrupted and started again,
it goes on where it was.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from modeling_jepa_daam.files import replacing, write_json

from .codec_experiments import last_figures
from .experiments import run_folder, run_script, spread_table
from .frozen import load_frozen
from .run import replacing_model
from .tracking import read_metrics
from .transform_code import silence_the_rest, take_weights

CONFIGS = Path(__file__).parent / "configs"
STAGE_1_STEPS = 500  # of the model that ships: later it collapses
ALONE, BESIDE = "network alone", "beside the transform"
PLACES: dict[str, tuple[str, ...]] = {
    ALONE: (
        "model.overrides={transform_bands: 0, harmonic_source: false, fsq_temperature: 1.0}",
        "optim.freeze_transform=false",
        "optim.learning_rate=1.0e-3",
    ),
    BESIDE: ("optim.learning_rate=2.5e-4",),
}
FRESH, TUNED, FROZEN = STARTS = ("fresh", "Stage 1, fine-tuned", "Stage 1, frozen")
SHORTER = (  # than the runs of the model that ships, and with an encoder that learns
    "data.segment_s=3.2",
    "data.window_s=1.6",
    "data.batch_size=12",
    "optim.freeze_encoder=false",
    "optim.warmup_steps=50",
    "optim.average_decay=0.97",
)


def pretrain(sources: str, output: Path, seed: int) -> None:
    """Train Stage 1, unless it is trained already."""
    changes = [f"data.sources={sources}", f"run.seed={seed}", f"run.max_steps={STAGE_1_STEPS}"]
    folder = run_folder(output, "Stage 1", seed)
    run_script("training.pretrain_encoder", CONFIGS / "small_pretrain.yaml", folder, changes)


def save_start(transform: Path, output: Path, start: str, seed: int) -> None:
    """Put a network beside the transform, unless it is there already."""
    folder = start_folder(output, start, seed)
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        stage1 = None if start == FRESH else run_folder(output, "Stage 1", seed) / "model"
        with replacing_model(folder) as temporary:
            save_checkpoint(beside(transform, stage1, seed), temporary)


def beside(transform: Path, stage1: Path | None, seed: int) -> JepaDaamModel:
    """A codec that has a computed transform, and beside it a network that adds nothing yet.

    The network is fresh or Stage 1's; the decoder is fresh, drawn anew for each.
    """
    torch.manual_seed(seed)
    codec = JepaDaamModel(JepaDaamConfig.from_pretrained(transform))
    if stage1 is not None:
        take_weights(codec, str(stage1))
    computed = {
        name: value
        for name, value in load_frozen(JepaDaamModel, transform).state_dict().items()
        if ".transform." in name or name.startswith("quantizer.")
    }
    codec.load_state_dict(computed, strict=False)
    silence_the_rest(codec)
    return codec


def start_folder(output: Path, start: str, seed: int) -> Path:
    """Weights beside the transform that Stage 2 starts from."""
    return output / "starts" / f"{'fresh' if start == FRESH else 'stage1'}-seed{seed}"


def train(sources: str, output: Path, steps: int, waveform_steps: int, place: str, start: str, seed: int) -> None:
    """Train one variant of Stage 2, unless it is trained already."""
    changes = [*PLACES[place], *SHORTER, f"data.sources={sources}", f"run.seed={seed}"]
    changes += [f"optim.spectrogram_steps={steps}", f"run.max_steps={steps + waveform_steps}"]
    changes += [f"optim.decay_steps={steps // 2 + waveform_steps}", f"run.eval_every={steps}"]
    if place == BESIDE:
        changes.append(f"model.weights={start_folder(output, start, seed)}")
    elif start == FRESH:
        changes.append("model.weights=null")
    else:
        changes.append(f"model.weights={run_folder(output, 'Stage 1', seed) / 'model'}")
    if start == FROZEN:
        changes.append("optim.freeze_encoder=true")
    config = CONFIGS / "small_codec_spectrogram.yaml"
    run_script("training.train_tokenizer", config, run_folder(output, f"{place}, {start}", seed), changes)


def found(output: Path, variant: str, seed: int) -> dict[str, float]:
    """Held-out figures: of spectrograms when these end, of sound at the end of the run."""
    metrics = read_metrics(run_folder(output, variant, seed) / "metrics.jsonl")
    name = "held_out/spectrogram_distance"
    distance = next(entry[name] for entry in reversed(metrics) if name in entry)
    return {"spectrogram distance": distance} | last_figures(output, variant, seed)


def command(
    shards: Annotated[list[Path], typer.Argument(help="Sources to train on.")],
    transform: Annotated[
        Path, typer.Option(help="Codec with a transform: `model` of training.transform_code's output.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path("runs/stage1-experiment"),
    steps: Annotated[int, typer.Option(help="Steps of each run on spectrograms.")] = 250,
    waveform_steps: Annotated[int, typer.Option(help="Steps on waveforms after them.")] = 50,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1",
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
) -> None:
    """Train Stage 2 from every start."""
    numbers = [int(seed) for seed in seeds.split(",")]
    sources = f"[{','.join(str(shard.resolve()) for shard in shards)}]"
    variants = [(place, start) for place in PLACES for start in STARTS]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(partial(pretrain, sources, output), numbers))
        for start, seed in itertools.product((FRESH, TUNED), numbers):  # in turn: weights are drawn
            save_start(transform, output, start, seed)
        runs = [(*variant, seed) for seed in numbers for variant in variants]
        list(pool.map(lambda run: train(sources, output, steps, waveform_steps, *run), runs))
    results = {
        f"{place}, {start}": [found(output, f"{place}, {start}", seed) for seed in numbers] for place, start in variants
    }
    settings = {"steps": steps, "waveform_steps": waveform_steps, "seeds": numbers}
    write_json(output / "results.json", settings | {"held_out": results})
    text = spread_table(results, f"held-out clips, steps {steps} + {waveform_steps}") + "\n"
    with replacing(output / "results.md") as temporary:
        temporary.write_text(text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
