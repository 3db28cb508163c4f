"""Do the DAAM gates follow speech? Their correlation with energy, and with where words are.

    python -m training.salience CHECKPOINT RECORDINGS --output FOLDER [--set read_en] [--max-clips 20] \
        [--control FOLDER]

`RECORDINGS` is a folder or a manifest (`.jsonl`), as for `evaluate_tokenizer`. Each gate of the encoder is looked at
once in frames of the codec (its salience, what tokens come with), and once at its own rate where that is higher. At
each position there are, beside the gate,

* `energy`: root mean square of its samples, in dB.
* `word`: the share of it that lies inside a word, 0 to 1: voice activity, but for pauses too short to align.
* `onset`: the number of words that begin in it.

Words come of forced alignment (`alignment.py`) of the texts that the manifest has; without its package, or for a clip
that cannot be aligned, these two are left out, and the report says so.

Figures are Spearman's rank correlations over the positions of a clip, its mean over clips, and a 95 % bootstrap
interval over speakers (over clips, where speakers are not known). `energy with word` is the control: what anything
that knows loudness alone would tell of words. `gate with word, given energy` is the partial rank correlation, what the
gate tells beyond it: near zero, energy would have done. The last position of a clip counts only if it is whole; a clip
with fewer than `MIN_POSITIONS`, or where one side never changes, has no correlation, and is counted as missing.
`--control` takes a second checkpoint, such as an untrained one (`jepa-audio init`), through the same.

Written are `salience.json`, with every clip, and `salience.md`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import track
from scipy.stats import rankdata
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.audio import levels_db, load_audio
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.salience import daam_gates

from .alignment import ALIGNMENT_MISSING, Aligner, Word
from .bootstrap import bootstrap_interval
from .evaluate_tokenizer import Recording, choose_sets, list_recordings
from .frozen import described, load_frozen
from .markdown import markdown_table

MIN_POSITIONS = 6
FIGURES = (
    "gate with energy",
    "gate with word",
    "energy with word",
    "gate with word, given energy",
    "gate with onset",
    "energy with onset",
    "gate with onset, given energy",
)


@dataclass(frozen=True)
class Correlations:
    """Of one clip.

    Args:
        name: Of the clip.
        speaker: Whose voice it is, if known.
        figures: By resolution, then by figure; those that are not defined are missing.
    """

    name: str
    speaker: str | None
    figures: dict[str, dict[str, float]]


def word_positions(words: Sequence[Word], positions: int, position_s: float) -> tuple[np.ndarray, np.ndarray]:
    """Where words are on a grid.

    Args:
        words: With times in seconds, none over another.
        positions: Of the grid.
        position_s: Seconds a position.

    Returns:
        Share of each position inside words, `(positions,)`, 0 to 1, and number of words that begin in it,
        `(positions,)`.
    """
    edges = np.arange(positions + 1) * position_s
    share, onsets = np.zeros(positions), np.zeros(positions)
    for word in words:
        share += np.clip(np.minimum(edges[1:], word.end_s) - np.maximum(edges[:-1], word.start_s), 0, None)
        if (place := int(word.start_s / position_s)) < positions:
            onsets[place] += 1
    return share / position_s, onsets


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of `(positions,)` with `(positions,)`; `None` where it is not defined."""
    if len(first) < MIN_POSITIONS or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def partial_spearman(first: np.ndarray, second: np.ndarray, given: np.ndarray) -> float | None:
    """Rank correlation of two series after what a third explains of both is taken away; `None` if not defined."""
    both, one, other = spearman(first, second), spearman(first, given), spearman(second, given)
    if both is None or one is None or other is None:
        return None
    rest = (1 - one**2) * (1 - other**2)
    return None if rest < 1e-9 else float((both - one * other) / np.sqrt(rest))


def correlate(gate: np.ndarray, energy: np.ndarray, words: tuple[np.ndarray, np.ndarray] | None) -> dict[str, float]:
    """All figures of one gate, each series `(positions,)`; those that are not defined are missing."""
    found = {"gate with energy": spearman(gate, energy)}
    for name, series in zip(("word", "onset"), words or (), strict=False):
        found[f"gate with {name}"] = spearman(gate, series)
        found[f"energy with {name}"] = spearman(energy, series)
        found[f"gate with {name}, given energy"] = partial_spearman(gate, series, energy)
    return {name: value for name, value in found.items() if value is not None}


def clip_correlations(
    model: JepaDaamModel, samples: np.ndarray, words: Sequence[Word] | None
) -> dict[str, dict[str, float]]:
    """Figures of one recording by resolution, `"gate 1, 2.5 Hz"` and the like.

    Args:
        model: The codec.
        samples: `(samples,)`, float32, at its rate.
        words: Aligned, if they are known.
    """
    config = model.config
    frames = -(-len(samples) // config.hop_length)
    figures = {}
    for number, gate in enumerate(daam_gates(model, samples), 1):
        per_frame = len(gate) // frames
        for positions in sorted({1, per_frame}):
            hop = config.hop_length // positions
            whole = len(samples) // hop
            series = gate.reshape(frames * positions, -1).mean(axis=-1)[:whole]
            energy = levels_db(samples[: whole * hop], hop)
            aligned = None if words is None else word_positions(words, whole, hop / config.sampling_rate)
            figures[f"gate {number}, {config.sampling_rate / hop:g} Hz"] = correlate(series, energy, aligned)
    return figures


def measure(
    models: dict[str, JepaDaamModel], recordings: Sequence[Recording], aligner: Aligner | None
) -> tuple[dict[str, list[Correlations]], list[str]]:
    """Correlations of every recording by model, and what was left out, each with the reason."""
    rate = next(iter(models.values())).config.sampling_rate
    measured: dict[str, list[Correlations]] = {name: [] for name in models}
    left_out = []
    for recording in track(recordings, "correlating"):
        try:
            samples = load_audio(str(recording.path), None, rate)
        except (ValueError, OSError) as error:
            left_out.append(f"{recording.name}: {error}")
            continue
        words = None
        if aligner is not None:
            try:
                words = aligner.align(samples, rate, recording.fields.get("text") or "")
            except ValueError as error:
                left_out.append(f"{recording.name}, words: {error}")
        for name, model in models.items():
            figures = clip_correlations(model, samples, words)
            measured[name].append(Correlations(recording.name, recording.fields.get("speaker"), figures))
    return measured, left_out


def summarize(clips: Sequence[Correlations]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean over clips and interval of each figure: by resolution and figure, `mean`, `interval`, `clips`, `units`.

    Raises:
        ValueError: If there are no clips.
    """
    if not clips:
        raise ValueError("`recordings`: none could be read")
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for resolution in clips[0].figures:
        rows = summary[resolution] = {}
        for figure in FIGURES:
            having = [clip for clip in clips if figure in clip.figures[resolution]]
            if having:
                units = _by_unit(having, [clip.figures[resolution][figure] for clip in having])
                rows[figure] = _mean(units) | {"clips": len(having), "units": len(units)}
    return summary


def _by_unit(clips: Sequence[Correlations], values: Sequence[float]) -> list[list[float]]:
    """Values of each speaker; of each clip, unless all speakers are known and there are two."""
    speakers = [clip.speaker for clip in clips]
    named = None not in speakers and len(set(speakers)) > 1
    units: dict[str, list[float]] = {}
    for clip, value in zip(clips, values, strict=True):
        units.setdefault(str(clip.speaker) if named else clip.name, []).append(value)
    return list(units.values())


def _mean(units: list[list[float]]) -> dict[str, Any]:
    sums, counts = np.array([sum(unit) for unit in units]), np.array([len(unit) for unit in units])
    interval = None
    if len(units) > 1:
        interval = bootstrap_interval(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(units))
    return {"mean": float(sums.sum() / counts.sum()), "interval": interval}


def markdown(summaries: dict[str, dict], left_out: Sequence[str]) -> str:
    """Tables of what `summarize` gives for each model."""
    parts = []
    for model, summary in summaries.items():
        rows = []
        for figure in FIGURES:
            cells = [_cell(figures.get(figure)) for figures in summary.values()]
            if any(cell != "-" for cell in cells):
                rows.append([figure, *cells])
        counts = {(each["clips"], each["units"]) for figures in summary.values() for each in figures.values()}
        spread = ", ".join(f"{clips} ({units})" for clips, units in sorted(counts, reverse=True))
        parts.append(f"{model}; clips (units that are drawn) of a figure: {spread}")
        parts.append(markdown_table(["Spearman's rank correlation", *summary], rows))
    return "\n\n".join([*parts, *(f"Left out: {reason}" for reason in left_out)]) + "\n"


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "-"
    interval = figure["interval"]
    return f"{figure['mean']:+.2f}" + (f" ({interval[0]:+.2f} to {interval[1]:+.2f})" if interval else "")


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a codec.")],
    recordings: Annotated[Path, typer.Argument(help="Folder, or manifest (.jsonl).")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    chosen: Annotated[list[str] | None, typer.Option("--set", help="Only this set; repeatable.")] = None,
    max_clips: Annotated[int | None, typer.Option(min=1, help="So many, evenly spread over the list.")] = None,
    control: Annotated[Path | None, typer.Option(help="Folder of another codec, to compare.")] = None,
) -> None:
    """Correlate the gates of a codec with energy, and with where words are."""
    transformers_logging.disable_progress_bar()
    try:
        folders = [folder for folder in (checkpoint, control) if folder is not None]
        models = {described(folder): load_frozen(JepaDaamModel, folder) for folder in folders}
        found = choose_sets(list_recordings(recordings), chosen or [])
        if max_clips is not None:
            found = [found[place * len(found) // max_clips] for place in range(min(max_clips, len(found)))]
        if any(model.config.num_encoder_gates == 0 for model in models.values()):
            raise ValueError("`checkpoint`: its encoder has no DAAM gates")
        measured, left_out = measure(models, found, None if ALIGNMENT_MISSING else Aligner())
        summaries = {name: summarize(clips) for name, clips in measured.items()}
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    if ALIGNMENT_MISSING:
        left_out.insert(0, f"all words: {ALIGNMENT_MISSING}")
    text = markdown(summaries, left_out)
    clips = {name: [vars(clip) for clip in each] for name, each in measured.items()}
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "salience.json") as temporary:
        temporary.write_text(json.dumps({"summary": summaries, "clips": clips, "left_out": left_out}, indent=2) + "\n")
    with replacing(output / "salience.md") as temporary:
        temporary.write_text(text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
