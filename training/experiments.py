"""Do DAAM and the place of the mask matter? Train every variant of Stage 1 alike, probe the frozen encoders, compare.

    python -m training.experiments SHARDS... --output runs/experiment [--steps 2000] [--seeds 0,1] [--jobs 2]

Reads tar files of `source/speaker/name.opus` beside `name.json`. Writes `results.json`, `results.md` (the tables) and
`curves.png` (Figure 4 of the paper). Interrupted and started again, it goes on where it was.
"""

import functools
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import typer

from modeling_jepa_daam import JepaDaamEncoderModel
from modeling_jepa_daam.audio import AudioFile
from modeling_jepa_daam.files import replacing

from .config import PretrainConfig, load_config
from .frozen import load_frozen
from .markdown import markdown_table
from .pretrain_encoder import make_model
from .probes import encoder_features, length_features, load_probe_clips, log_mel_features, probe_all
from .tracking import read_metrics

CONFIG = Path(__file__).parent / "configs" / "experiment.yaml"
MASK_PLACES = ("after_encoder", "before_conformer", "waveform")
VARIANTS = {
    f"{place}, {'DAAM' if daam else 'no DAAM'}": {"mask_position": place, "daam_in_encoder": daam}
    for place, daam in (
        ("after_encoder", True),
        ("after_encoder", False),
        ("before_conformer", True),
        ("waveform", True),
        ("waveform", False),
    )
}
# Of glibc: large tensors are not handed back to the system after each use, which takes a quarter off a step.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
SMOOTHING_STEPS = 100  # of the drawn curves


def decode_shards(shards: Sequence[Path], folder: Path) -> Path:
    """Unpack sound once for all runs: the same files, as 16-bit WAV, in `folder/speech.tar`."""
    decoded = folder / "speech.tar"
    if decoded.exists():
        return decoded
    with replacing(decoded) as temporary, tarfile.open(temporary, "w") as out:
        for shard in shards:
            with tarfile.open(shard) as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is None:
                        continue
                    data, name = content.read(), Path(member.name)
                    if name.suffix != ".json":
                        with AudioFile(data, str(name)) as file:
                            samples, rate = file.read(file.count()), file.sampling_rate
                        sound = io.BytesIO()
                        soundfile.write(sound, samples, rate, format="WAV", subtype="PCM_16")
                        data, name = sound.getvalue(), name.with_suffix(".wav")
                    copy = tarfile.TarInfo(str(name))
                    copy.size = len(data)
                    out.addfile(copy, io.BytesIO(data))
    return decoded


def run_folder(output: Path, variant: str, seed: int) -> Path:
    """Where a run of a variant lies."""
    return output / "runs" / file_name(f"{variant}, seed{seed}")


def train(speech: Path, output: Path, variant: str, seed: int, steps: int) -> None:
    """Train one variant of Stage 1, unless it is trained already."""
    changes = [f"model.overrides.{key}={json.dumps(value)}" for key, value in VARIANTS[variant].items()]
    changes += [f"data.sources=[{speech}]", f"run.seed={seed}", f"run.max_steps={steps}"]
    run_script("training.pretrain_encoder", CONFIG, run_folder(output, variant, seed), changes)


def run_script(module: str, config: Path, folder: Path, changes: Sequence[str]) -> None:
    """Train into a folder in a process of its own, on one thread, unless the folder holds a trained model already."""
    if (folder / "model").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, str(config), f"run.output={folder}", *changes]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **KEEP_MEMORY}
    with open(folder / "log.txt", "a") as log:
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)


def probe(shards: Sequence[Path], output: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, float]]]:
    """Probe figures by kind of features, one entry a seed; kept in `output/probes`, each as soon as it is known."""
    load_clips = functools.cache(functools.partial(load_probe_clips, shards))

    def figures(name: str, features: Callable[[list], np.ndarray]) -> dict[str, float]:
        path = output / "probes" / f"{file_name(name)}.json"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            found = probe_all(features(load_clips()), load_clips())
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(found))
        return json.loads(path.read_text())

    def of_encoders(name: str, encoder: Callable[[int], JepaDaamEncoderModel]) -> list[dict[str, float]]:
        def features(seed: int, clips: list) -> np.ndarray:
            return encoder_features(encoder(seed), clips)

        return [figures(f"{name}, seed{seed}", functools.partial(features, seed)) for seed in seeds]

    results = {
        "clip length": [figures("clip length", length_features)],
        "log-mel mean and std": [figures("log-mel", log_mel_features)],
        "untrained, DAAM": of_encoders("untrained, DAAM", functools.partial(untrained_encoder, True)),
        "untrained, no DAAM": of_encoders("untrained, no DAAM", functools.partial(untrained_encoder, False)),
    }
    for variant in VARIANTS:
        results[variant] = of_encoders(variant, functools.partial(trained_encoder, output, variant))
    return results


def file_name(name: str) -> str:
    """A name of ours as a file's."""
    return name.replace(", ", "-").replace(" ", "-")


def trained_encoder(output: Path, variant: str, seed: int) -> JepaDaamEncoderModel:
    """What a run made."""
    return load_frozen(JepaDaamEncoderModel, run_folder(output, variant, seed) / "model")


def untrained_encoder(daam: bool, seed: int) -> JepaDaamEncoderModel:
    """The encoder that a run of this seed starts with."""
    changes = [f"model.overrides.daam_in_encoder={json.dumps(daam)}", f"run.seed={seed}"]
    jepa = make_model(load_config(PretrainConfig, CONFIG, ["data.sources=[-]", *changes]))
    model = JepaDaamEncoderModel(jepa.config)
    model.encoder = jepa.encoder
    return model


def curve(output: Path, variant: str, seed: int, key: str) -> np.ndarray:
    """`(entries, 2)`: steps and values of a metric of one run."""
    entries = read_metrics(run_folder(output, variant, seed) / "metrics.jsonl")
    return np.array([(entry["step"], entry[key]) for entry in entries if key in entry])


def last_figures(output: Path, variant: str, seeds: Sequence[int]) -> list[dict[str, float]]:
    """The held-out figures at the end of each run."""
    last = []
    for seed in seeds:
        entries = read_metrics(run_folder(output, variant, seed) / "metrics.jsonl")
        last.append(next(entry for entry in reversed(entries) if "held_out/loss/predict" in entry))
    prefix = "held_out/"
    return [{key.removeprefix(prefix): entry[key] for key in entry if key.startswith(prefix)} for entry in last]


def spread_table(figures: dict[str, list[dict[str, float]]], title: str) -> str:
    """A Markdown table of means over seeds, with half the range from the lowest to the highest."""
    keys = list(dict.fromkeys(key for rows in figures.values() for row in rows for key in row))
    lines = []
    for name, rows in figures.items():
        cells = [np.array([row[key] for row in rows]) for key in keys]
        lines.append(
            [name, *(f"{cell.mean():.3f}" + (f" ± {np.ptp(cell) / 2:.3f}" if len(cell) > 1 else "") for cell in cells)]
        )
    return markdown_table([title, *keys], lines)


def draw_curves(output: Path, seeds: Sequence[int], path: Path) -> None:
    """Figure 4 for each place of the mask: masked prediction loss over steps with and without DAAM, a line a seed."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(MASK_PLACES), figsize=(12, 3.6), sharey=True, layout="constrained")
    for axis, place in zip(axes, MASK_PLACES, strict=True):
        for variant, changes in VARIANTS.items():
            if changes["mask_position"] != place:
                continue
            colour = "tab:blue" if changes["daam_in_encoder"] else "tab:orange"
            for seed in seeds:
                for key, style, name in (("loss/predict", "-", "loss"), ("loss/constant", ":", "best constant")):
                    steps, values = curve(output, variant, seed, key).T
                    width = max(1, round(SMOOTHING_STEPS / (steps[1] - steps[0])))
                    smooth = np.convolve(values, np.ones(width) / width, mode="valid")
                    label = f"{variant.split(', ')[1]}: {name}" if seed == seeds[0] else None
                    axis.plot(steps[width - 1 :], smooth, style, color=colour, alpha=0.8, lw=1, label=label)
        axis.set(title=f"mask {place.replace('_', ' ')}", xlabel="step", yscale="log")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("masked prediction loss (MSE)")
    axes[-1].legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    plt.close(figure)


def command(
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path("runs/experiment"),
    steps: Annotated[int, typer.Option(help="Steps of each run.")] = 2000,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1",
    jobs: Annotated[int, typer.Option(help="Runs at a time, one thread each.")] = 2,
) -> None:
    """Train and probe every variant of Stage 1."""
    numbers = [int(seed) for seed in seeds.split(",")]
    output.mkdir(parents=True, exist_ok=True)
    speech = decode_shards(shards, output)
    with ThreadPoolExecutor(jobs) as pool:
        runs = [(variant, seed) for seed in numbers for variant in VARIANTS]
        for future in [pool.submit(train, speech, output, variant, seed, steps) for variant, seed in runs]:
            future.result()
    probes = probe(shards, output, numbers)
    held_out = {variant: last_figures(output, variant, numbers) for variant in VARIANTS}
    results = {"steps": steps, "seeds": numbers, "probes": probes, "held_out": held_out}
    with replacing(output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    text = f"{spread_table(probes, 'features')}\n\n{spread_table(held_out, f'held-out speech, step {steps}')}\n"
    with replacing(output / "results.md") as temporary:
        temporary.write_text(text)
    draw_curves(output, numbers, output / "curves.png")
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
