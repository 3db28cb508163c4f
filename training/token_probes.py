"""What is in the tokens: the probes of `probes.py` on a codec's latents, on its digits and on its token ids.

    python -m training.token_probes SHARDS... --checkpoint NAME=FOLDER ... --output FOLDER \
        [--untrained CONFIG_FOLDER[:SEED]] [--encoder NAME=FOLDER] [--tones MANIFEST]

Every kind of features meets the same clips in the same parts. Of each codec:

* `latents`: mean and standard deviation over time before quantization, what a Stage 1 encoder is probed by too.
* `quantized`: the same of the quantized values. What it lacks against the latents, rounding took.
* `digits`: how often each digit has each of its values, the mean over time of its one-hot code.
* `token ids`: how often each id comes at each place of a frame, hashed to `HASHED` signed counts: what a linear layer
  finds that does not know which ids are alike.

Beside them: a constant (chance), the clip's length (the floor), the log-mel baseline, and with `--encoder` encoders
without a quantizer. `--tones` tests the tones on another voice. Every figure has a 95 % bootstrap interval over the
test's units (`probes.split_unit`), each codec's distance from the first one too, on the same draws: the difference is
one where its interval leaves out zero. That is the spread of the test set; another run of the training is not in it.

Written are `token_probes.json` and `token_probes.md`.
"""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from sklearn.feature_extraction import FeatureHasher
from torch import Tensor
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamEncoderModel, JepaDaamModel
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.packing import pack_frames

from .bootstrap import interval_of
from .frozen import described, frozen_by_name
from .markdown import markdown_table
from .probes import (
    PROBES,
    SAMPLING_RATE,
    Outcome,
    ProbeClip,
    encoder_features,
    length_features,
    load_probe_clips,
    log_mel_features,
    mean_and_std,
    probe_outcomes,
)
from .tones import PYPINYIN_MISSING, load_tone_clips, load_unseen_speakers

HASHED = 512
KINDS = ("latents", "quantized", "digits", "token ids")
Table = dict[str, dict[str, dict[str, Any]]]  # by kind of features and probe


def codec_features(codec: JepaDaamModel, clips: Sequence[ProbeClip], title: str = "") -> dict[str, np.ndarray]:
    """Each kind of features of each clip: `(clips, channels)`, float32.

    Args:
        codec: In evaluation mode.
        clips: At the codec's sampling rate.
        title: Of the progress bar; none without it.

    Raises:
        ValueError: If the codec has another sampling rate than the clips.
    """
    config = codec.config
    if config.sampling_rate != SAMPLING_RATE:
        raise ValueError(f"`codec` must take the clips' {SAMPLING_RATE} Hz, got {config.sampling_rate} Hz")
    rows: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for clip in track(clips, title, console=Console(stderr=True), disable=not title):
        with torch.inference_mode():
            latents = codec.encode_waveforms([torch.from_numpy(clip.samples)])[0]
            quantized, indices = (each[0] for each in codec.quantizer(latents[None]))
        rows["latents"].append(mean_and_std(latents))
        rows["quantized"].append(mean_and_std(quantized))
        rows["digits"].append(digit_shares(indices, config.levels))
        rows["token ids"].append(hashed_tokens(pack_frames(indices, config.levels, config.group_size)))
    return {kind: np.stack(features) for kind, features in rows.items()}


def digit_shares(indices: Tensor, levels: Sequence[int]) -> np.ndarray:
    """Share of the frames in which each digit has each of its values.

    Args:
        indices: `(frames, dimensions)`, int64.
        levels: Number of values of each dimension.

    Returns:
        `(sum(levels),)`, float32, dimension by dimension.
    """
    shares = [
        torch.bincount(digit, minlength=level) / len(digit) for digit, level in zip(indices.T, levels, strict=True)
    ]
    return torch.cat(shares).cpu().numpy()


def hashed_tokens(tokens: Tensor) -> np.ndarray:
    """`(frames, tokens_per_frame)`, int64 -> `(HASHED,)`, float32: signed counts of pairs of place and id, a frame.

    Source: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning".
    """
    pairs = [f"{place}:{token}" for frame in tokens.tolist() for place, token in enumerate(frame)]
    hashed = FeatureHasher(HASHED, input_type="string").transform([pairs]).toarray()[0]
    return (hashed / len(tokens)).astype(np.float32)


def probe_everything(
    clips: Sequence[ProbeClip], codecs: dict[str, JepaDaamModel], encoders: dict[str, JepaDaamEncoderModel]
) -> dict[str, dict[str, Outcome]]:
    """Every probe of every kind of features, by the names of both. One with a single test unit has no entry."""
    console = Console(stderr=True, markup=False)
    outcomes = {}

    def probe(name: str, features: np.ndarray) -> None:
        console.print(f"probing {name}, {features.shape[0]} clips, {features.shape[1]} channels")
        found = probe_outcomes(features, clips)
        outcomes[name] = {each: outcome for each, outcome in found.items() if len(set(outcome.units)) > 1}

    probe("a constant", np.ones((len(clips), 1)))
    probe("clip length", length_features(clips))
    probe("log-mel", log_mel_features(clips))
    for name, model in encoders.items():
        probe(f"{name}: encoder", encoder_features(model, clips))
    for name, codec in codecs.items():
        for kind, features in codec_features(codec, clips, name).items():
            probe(f"{name}: {kind}", features)
    return outcomes


def summarize(outcomes: dict[str, dict[str, Outcome]], codecs: Sequence[str]) -> dict[str, Any]:
    """Figures and intervals of what `probe_everything` gives.

    Args:
        outcomes: By kind of features and probe.
        codecs: Names of the codecs; the first is what the others are compared with.

    Returns:
        `figures` and `differences`, by kind of features and probe `figure` and `interval`; and `tested`, by probe the
        number of test `clips` and of the `units` that are drawn.
    """
    drawn = {name: {each: outcome.resampled() for each, outcome in found.items()} for name, found in outcomes.items()}

    def entry(figure: float, resampled: np.ndarray) -> dict[str, Any]:
        return {"figure": figure, "interval": interval_of(resampled)}

    figures = {
        name: {each: entry(outcome.figure(), drawn[name][each]) for each, outcome in found.items()}
        for name, found in outcomes.items()
    }
    differences: Table = {}
    for codec, kind in itertools.product(codecs[1:], KINDS):
        name, first = f"{codec}: {kind}", f"{codecs[0]}: {kind}"
        differences[name] = {
            each: entry(figure["figure"] - figures[first][each]["figure"], drawn[name][each] - drawn[first][each])
            for each, figure in figures[name].items()
        }
    tested = {
        each: {"clips": len(outcome.units), "units": len(set(outcome.units))}
        for each, outcome in next(iter(outcomes.values())).items()
    }
    return {"tested": tested, "figures": figures, "differences": differences}


def markdown(result: dict[str, Any], first: str) -> str:
    """The tables of what `summarize` gives; `first` is the codec that the others are compared with."""

    def table(title: str, figures: Table, sign: str = "") -> str:
        """A row per kind of features, a column per probe."""
        probes = list(result["tested"])
        lines = []
        for name, row in figures.items():
            cells = []
            for probe in probes:
                figure, low, high = (f"{x:{sign}.3f}" for x in (row[probe]["figure"], *row[probe]["interval"]))
                cells.append(f"{figure} ({low} to {high})")
            lines.append([name, *cells])
        return markdown_table([title, *probes], lines)

    counts = (f"{probe} {count['clips']} ({count['units']})" for probe, count in result["tested"].items())
    text = table("features", result["figures"])
    text += f"\n\nTest clips (units that are drawn): {', '.join(counts)}."
    if result["differences"]:
        text += f"\n\n{table(f'higher than {first} by', result['differences'], sign='+')}"
    return text + "".join(f"\n\nLeft out: {reason}" for reason in result["left_out"]) + "\n"


def load_clips(shards: Sequence[Path], tones: Path | None) -> tuple[list[ProbeClip], list[str]]:
    """The clips of all probes, and which are left out.

    Raises:
        ValueError: If there are none, one has no labels, or `tones` has no syllables.
        FileNotFoundError: If a shard or `tones` does not exist.
    """
    clips, left_out = load_probe_clips(shards), []
    if PYPINYIN_MISSING:
        left_out.append(PYPINYIN_MISSING)
    else:
        clips += load_tone_clips(shards)
        if tones is None:
            left_out.append("tone_unseen_speaker: no --tones were given")
        else:
            clips += load_unseen_speakers(tones)
    return clips, left_out


def command(
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    checkpoint: Annotated[list[str] | None, typer.Option(help="[NAME=]FOLDER of a codec; repeatable.")] = None,
    untrained: Annotated[list[str] | None, typer.Option(help="CONFIG_FOLDER[:SEED] of a codec; repeatable.")] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="[NAME=]FOLDER of an encoder alone; repeatable.")] = None,
    tones: Annotated[Path | None, typer.Option(help="Manifest of Mandarin syllables of another voice.")] = None,
) -> None:
    """Probe latents, digits and tokens of codecs, beside encoders and baselines."""
    transformers_logging.disable_progress_bar()
    try:
        codecs = frozen_by_name(JepaDaamModel, checkpoint or [], untrained or [])
        encoders = frozen_by_name(JepaDaamEncoderModel, encoder or [])
        clips, left_out = load_clips(shards, tones)
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    result = summarize(probe_everything(clips, codecs, encoders), list(codecs))
    missing = [probe for probe in PROBES if probe not in result["tested"]]
    if missing:
        left_out.append(f"too few clips for {', '.join(missing)}")
    result["left_out"] = left_out
    folders = [value.rpartition("=")[2] for value in (*(checkpoint or []), *(encoder or []))]
    text = "\n".join(["; ".join(map(described, folders)), "", markdown(result, next(iter(codecs), ""))])
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "token_probes.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    with replacing(output / "token_probes.md") as temporary:
        temporary.write_text(text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
