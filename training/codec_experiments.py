"""What gets Stage 2 past the average spectrum, and which of its options help? Train every variant alike, and compare.

    python -m training.codec_experiments SHARDS... [--voice kathleen] [--stage1 runs/experiment] [--steps 300]

Reads tar files of `source/speaker/name.opus` beside `name.json` and trains on the clips of one voice. `--stage1` is
the output of `training.experiments`: the encoders that some variants start from. Writes `results.md`, `results.json`
and `curves.png`. Interrupted and started again, it goes on where it was.
"""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from modeling_jepa_daam.files import replacing

from .experiments import run_folder, run_script, spread_table
from .tracking import read_metrics
from .voice import unpack_voice

CONFIG = Path(__file__).parent / "configs" / "codec_small.yaml"
STAGE_1 = "waveform, DAAM"  # the variant of `training.experiments` whose encoders serve
HIFI_GAN = (
    "model.overrides.decoder_istft_stages=0",
    "model.overrides.decoder_channels=[256, 256, 256, 64, 16, 8]",
    "model.overrides.decoder_kernel_sizes=[[3, 7], [3, 7], [3], [3], [3]]",
)
NO_NORM = "model.overrides.normalize_latents=false"
JEPA = "model.weights={stage1}"
VARIANTS: dict[str, tuple[str, ...]] = {
    "base": (),
    "no normalization": (NO_NORM,),
    "JEPA start": (JEPA,),
    "JEPA start, encoder at a tenth of the rate": (JEPA, "optim.encoder_learning_rate=5e-5"),
    "JEPA start, encoder frozen": (JEPA, "optim.freeze_encoder=true"),
    "HiFi-GAN": HIFI_GAN,
    "all as in the paper": (*HIFI_GAN, NO_NORM, "optim.learning_rate=1.5e-4", "optim.warmup_steps=0"),
    "DAAM in the decoder": ("model.overrides.daam_in_decoder=true",),
    "mel loss": ("losses.mel=2",),
    "windows of 1.6 s, batch of 8": ("data.window_s=1.6", "data.batch_size=8"),
    "segments of 1.6 s, batch of 8": ("data.segment_s=1.6", "data.batch_size=8"),
    "temperature 0.5": ("model.overrides.fsq_temperature=0.5",),
    "temperature 2": ("model.overrides.fsq_temperature=2",),
}
FIGURES = {  # of metrics.jsonl: how the tables call them
    "held_out/mel_distance": "mel distance",
    "held_out/stoi": "STOI",
    "held_out/estoi": "ESTOI",
    "held_out/pesq": "PESQ",
    "tokens/digit_entropy_bits": "bits a digit",
    "tokens/digits_never_change": "dead digits",
}


def train(manifest: Path, output: Path, stage1: Path, variant: str, seed: int, steps: int) -> None:
    """Train one variant of Stage 2, unless it is trained already."""
    changes = [change.format(stage1=run_folder(stage1, STAGE_1, seed) / "model") for change in VARIANTS[variant]]
    changes += ["data.format=manifest", f"data.sources=[{manifest}]", f"run.seed={seed}", f"run.max_steps={steps}"]
    run_script("training.train_tokenizer", CONFIG, run_folder(output, variant, seed), changes)


def last_figures(output: Path, variant: str, seed: int) -> dict[str, float]:
    """Held-out figures at the end of a run, and its seconds a step."""
    entries = read_metrics(run_folder(output, variant, seed) / "metrics.jsonl")
    last = next(entry for entry in reversed(entries) if "held_out/mel_distance" in entry)
    speeds = [entry["speed/batches_per_s"] for entry in entries if "speed/batches_per_s" in entry]
    figures = {name: last[key] for key, name in FIGURES.items() if key in last}
    return figures | {"s a step": 1.0 / float(np.median(speeds))}


def draw_curves(output: Path, variants: Sequence[str], seeds: Sequence[int], path: Path) -> None:
    """Held-out mel distance over steps, a line a run, and the best constant spectrum."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 5.5), layout="constrained")
    colours = plt.get_cmap("tab20")
    for number, variant in enumerate(variants):
        for seed in seeds:
            entries = read_metrics(run_folder(output, variant, seed) / "metrics.jsonl")
            told = [entry for entry in entries if "held_out/mel_distance" in entry]
            steps = [entry["step"] for entry in told]
            distances = [entry["held_out/mel_distance"] for entry in told]
            axis.plot(steps, distances, color=colours(number % 20), label=variant if seed == seeds[0] else None)
    axis.axhline(told[-1]["held_out/mel_distance_of_constant"], color="black", ls=":", label="best constant")
    axis.set(xlabel="step", ylabel="held-out mel distance")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def command(
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    voice: Annotated[str, typer.Option(help="Source of the clips.")] = "kathleen",
    stage1: Annotated[Path, typer.Option(help="Output of training.experiments.")] = Path("runs/experiment"),
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path("runs/codec-experiment"),
    only: Annotated[str, typer.Option(help="Variants, with semicolons; all if empty.")] = "",
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 300,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1",
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
) -> None:
    """Train every variant of Stage 2 on one voice."""
    numbers = [int(seed) for seed in seeds.split(",")]
    variants = only.split(";") if only else list(VARIANTS)
    manifest = unpack_voice(shards, voice, output / "voice")
    with ThreadPoolExecutor(jobs) as pool:
        runs = [(variant, seed) for seed in numbers for variant in variants]
        for future in [pool.submit(train, manifest, output, stage1, variant, seed, steps) for variant, seed in runs]:
            future.result()
    results = {variant: [last_figures(output, variant, seed) for seed in numbers] for variant in variants}
    with replacing(output / "results.json") as temporary:
        temporary.write_text(json.dumps({"steps": steps, "seeds": numbers, "held_out": results}, indent=1))
    text = spread_table(results, f"held-out clips, step {steps}") + "\n"
    with replacing(output / "results.md") as temporary:
        temporary.write_text(text)
    draw_curves(output, variants, numbers, output / "curves.png")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
