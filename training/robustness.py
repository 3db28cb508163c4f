"""How far tokens move when the sound does: shifted in time, or disturbed; and what a reconstruction keeps then.

    python -m training.robustness CHECKPOINT RECORDINGS... --output FOLDER [--music PATH] [--max-clips 20] \
        [--where set=read_en]

`RECORDINGS` are folders of sound files, tar files, or manifests (`.jsonl` with `file` or `path`). Of each recording the
first whole frames count, at most one chunk of the model, so that no boundary of chunks comes in. Mel distances are
taken below its `bandwidth_hz` where it has one: above, they would compare emptiness. Written are `robustness.json`,
with every clip, and `robustness.md`.

What moves, each a mean over clips and, of at least `MIN_CLIPS`, its 95 % bootstrap interval:

* `tokens_changed`, `digits_changed`: share of packed tokens, and of quantizer indices, that differ.
* `digit_steps`: mean absolute difference of the indices, in levels: 1 where every digit goes to a neighbouring level.

How much is much? Two baselines say: the same figures between frames of two recordings that have nothing to do with
each other (`unrelated recording`, chance), and between a frame and the next one of its recording (`next frame`).

* **Shifts.** The same recording read n samples later, so that nothing but the grid of frames moves. After a shift by
  one frame, frame i is compared with frame i + 1: what an encoder changes there comes of its context. The first and
  last `EDGE_FRAMES` are left out everywhere, so that one that hears no farther changes nothing.
* **Disturbances** (`disturbances.py`), and whole frames of zeros before and after. Beside the tokens, quality
  (`quality.py`) three times: of the disturbed `input` against the clean recording, which is what the codec was given;
  of the reconstruction against the `clean` one; and against the `disturbed` one. A gain alone moves the mel distance
  by up to its natural logarithm, 2.3 for 20 dB. A reconstruction lies within full scale, what is 20 dB louder does not.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.audio import MAX_AMPLITUDE
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.packing import unpack_frames

from .bootstrap import bootstrap_interval
from .data import read_segment
from .disturbances import BABBLE_VOICES, GAINS_DB, rng_of, standard_disturbances
from .frozen import described, load_frozen
from .markdown import markdown_table
from .quality import PESQ_MISSING, reconstruction_quality
from .reconstruction import Clip, reconstruct
from .recordings import list_rows

SHIFT_PARTS = (960, 96, 16, 4, 2)  # of a frame; beside 1, these are 10, 100, 600, 2400, 4800 of 9600 samples
EDGE_FRAMES = 2
SILENCE_FRAMES = 3  # 1.2 s at 2.5 frames a second
MAX_PEAK = MAX_AMPLITUDE / 10 ** (max(GAINS_DB) / 20)  # a louder clip would be refused with the gain
QUALITY = ("mel_distance", "stoi", "pesq")  # of the table; the JSON has all of them
SIDES = ("input", "clean", "disturbed")
UNRELATED, NEXT_FRAME, UNDISTURBED = "unrelated recording", "next frame", "undisturbed"

MIN_CLIPS = 5  # of fewer no interval is given: it would be too narrow

Figures = dict[str, float]


def list_recordings(sources: Sequence[str | Path], where: dict[str, str] | None = None) -> list[dict]:
    """Rows of `recordings.RECORDING`, by name.

    Args:
        sources: Folders, whose `manifest.jsonl` counts if there is one; tar files; manifests.
        where: Metadata that a recording must have.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If there are no recordings, or a source is damaged.
    """
    rows: list[dict] = []
    for source in map(Path, sources):
        manifest = source / "manifest.jsonl" if source.is_dir() else source
        listed = manifest.suffix == ".jsonl" and manifest.exists()
        rows += list_rows(str(manifest if listed else source), where or {}, manifest=listed)
    if not rows:
        raise ValueError(f"`recordings`: no sound files in {', '.join(map(str, sources))}")
    return sorted(rows, key=lambda row: (row["name"], row["path"], row["offset"]))


def load_clips(
    rows: Sequence[dict], config: JepaDaamConfig, max_s: float = 10.0, max_clips: int | None = None
) -> tuple[list[Clip], list[str]]:
    """The first whole frames of recordings, and one more frame that the shifts run into.

    Args:
        rows: Of `recordings.RECORDING`.
        config: The codec's configuration.
        max_s: Seconds of each, at most; a chunk of the model, less the silence to be added, is another limit.
        max_clips: Of many that can be used, so many, from all over the list.

    Returns:
        Clips of a whole number of frames each, and what was left out, each with the reason.

    Raises:
        ValueError: If `max_s` or the model's chunks hold too few frames to compare.
    """
    hop, least = config.hop_length, 2 * EDGE_FRAMES + 2  # after a shift of a frame, one is left to compare
    most = min(int(max_s * config.frame_rate), config.chunk_frames - SILENCE_FRAMES)
    if most < least:
        raise ValueError(
            f"`max_s` and the model's chunks must hold {least} frames and {SILENCE_FRAMES} of silence, got "
            f"{max_s:g} s of {config.frame_rate:g} frames and chunks of {config.chunk_frames}"
        )
    clips: list[Clip] = []
    left_out = []
    for row in sorted(rows, key=lambda row: rng_of(row["name"]).random()) if max_clips else rows:
        if len(clips) == max_clips:
            break
        try:
            samples, bandwidth_hz = read_segment(row, 0, 1, config.sampling_rate)
        except ValueError as error:
            left_out.append(f"{row['name']}: {error}")
            continue
        samples = samples[: (most + 1) * hop]
        frames = len(samples) // hop
        if frames <= least:
            left_out.append(f"{row['name']}: shorter than {(least + 1) / config.frame_rate:g} s")
        elif not samples.any():
            left_out.append(f"{row['name']}: silent")
        elif np.abs(samples).max() > MAX_PEAK:
            left_out.append(f"{row['name']}: its peak is above {MAX_PEAK:g}, {max(GAINS_DB)} dB more are too loud")
        else:
            clips.append(Clip(row["name"], samples[: frames * hop], bandwidth_hz))
    return sorted(clips, key=lambda clip: clip.name), left_out


def moved(tokens: Tensor, other: Tensor, config: JepaDaamConfig) -> Figures:
    """How far frames of tokens are from others, `(frames, tokens_per_frame)` each: figures by name, see the top.

    Raises:
        ValueError: If the shapes differ, or there are no frames.
    """
    if tokens.shape != other.shape or len(tokens) == 0:
        raise ValueError(f"need as many frames of both, at least one, got {tuple(tokens.shape)}, {tuple(other.shape)}")
    digits, other_digits = (unpack_frames(each, config.levels, config.group_size) for each in (tokens, other))
    return {
        "tokens_changed": float((tokens != other).double().mean()),
        "digits_changed": float((digits != other_digits).double().mean()),
        "digit_steps": float((digits - other_digits).abs().double().mean()),
    }


def encode(codec: JepaDaamModel, samples: np.ndarray) -> Tensor:
    """`(samples,)`, float32 -> `(frames, tokens_per_frame)`, int64."""
    with torch.inference_mode():
        return codec.encode(torch.from_numpy(samples)[None, None], return_dict=False)[0][0].T.cpu()


def shifts(config: JepaDaamConfig) -> list[int]:
    """Samples that clips are shifted by, up to one frame."""
    return sorted({1, *(max(1, config.hop_length // part) for part in (*SHIFT_PARTS, 1))})


def shift_name(shift: int, config: JepaDaamConfig) -> str:
    """As it stands in the tables."""
    if shift == config.hop_length:
        return f"shifted by one frame ({shift} samples)"
    return f"shifted by {shift} sample{'s' if shift > 1 else ''} ({1000 * shift / config.sampling_rate:.3g} ms)"


def measure_shifts(codec: JepaDaamModel, samples: np.ndarray) -> dict[str, Figures]:
    """What moves when the same sound is read from a later sample on.

    Args:
        codec: In evaluation mode.
        samples: `(samples,)`, float32, whole frames; the last frame is only heard after a shift.
    """
    config = codec.config
    length = len(samples) - config.hop_length
    original = encode(codec, samples[:length])
    figures = {}
    for shift in shifts(config):
        later = shift // config.hop_length  # frames
        shifted = encode(codec, samples[shift : shift + length])
        same = slice(EDGE_FRAMES, len(original) - later - EDGE_FRAMES)
        figures[shift_name(shift, config)] = moved(original[later:][same], shifted[same], config)
    return figures


def measure_disturbances(
    codec: JepaDaamModel, clip: Clip, others: Sequence[np.ndarray] = (), music: Sequence[np.ndarray] = ()
) -> dict[str, Figures]:
    """What moves, and what is left of the quality, under each disturbance; `undisturbed` first.

    Args:
        codec: In evaluation mode.
        clip: A whole number of frames.
        others: Other clips, for babble.
        music: Music to be mixed in.
    """
    config, clean = codec.config, clip.samples
    reconstructed, tokens = reconstruct(codec, clean)

    def quality(original: np.ndarray, other: np.ndarray, side: str) -> Figures:
        found = reconstruction_quality(original, other, config.sampling_rate, clip.bandwidth_hz)
        return {f"{side}/{name}": value for name, value in found.items()}

    def measure(disturbed: np.ndarray, lead_frames: int = 0) -> Figures:
        """`disturbed` has so many frames before the clip."""
        answer, disturbed_tokens = reconstruct(codec, disturbed)
        here = slice(lead_frames * config.hop_length, lead_frames * config.hop_length + len(clean))
        heard = disturbed[here]
        return (
            moved(tokens, disturbed_tokens[lead_frames : lead_frames + len(tokens)], config)
            | quality(clean, heard, "input")
            | quality(clean, answer[here], "clean")
            | quality(heard, answer[here], "disturbed")
        )

    figures = {UNDISTURBED: quality(clean, reconstructed, "clean")}
    for name, disturb in standard_disturbances(config.sampling_rate, others, music).items():
        figures[name] = measure(disturb(clean, rng_of(clip.name)))
    silence = np.zeros(SILENCE_FRAMES * config.hop_length, np.float32)
    silence_s = f"{len(silence) / config.sampling_rate:g} s"
    figures[f"silence before, {silence_s}"] = measure(np.concatenate([silence, clean]), SILENCE_FRAMES)
    figures[f"silence after, {silence_s}"] = measure(np.concatenate([clean, silence]))
    return figures


def measure_baselines(tokens: Sequence[Tensor], config: JepaDaamConfig) -> list[dict[str, Figures]]:
    """How far frames lie apart that need not agree, for each clip of `(frames, tokens_per_frame)`.

    A clip is compared with the one half the list further, which in a list by name is seldom of the same speaker. A
    single clip has no other.
    """
    figures = []
    for i, clip in enumerate(tokens):
        figures.append({NEXT_FRAME: moved(clip[1:], clip[:-1], config)})
        if len(tokens) > 1:
            other = tokens[(i + len(tokens) // 2) % len(tokens)]
            frames = min(len(clip), len(other))
            figures[-1] = {UNRELATED: moved(clip[:frames], other[:frames], config)} | figures[-1]
    return figures


def summarize(clips: Sequence[dict[str, Figures]]) -> dict[str, dict[str, dict[str, Any]]]:
    """Each figure of each row over the `clips` that have it: `mean` and, from `MIN_CLIPS` on, `interval`."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in dict.fromkeys(row for clip in clips for row in clip):
        found = [clip[row] for clip in clips if row in clip]
        table[row] = {}
        for figure in dict.fromkeys(figure for figures in found for figure in figures):
            values = np.array([figures[figure] for figures in found if figure in figures])
            table[row][figure] = {"mean": float(values.mean()), "clips": len(values)}
            if len(values) >= MIN_CLIPS:
                table[row][figure]["interval"] = bootstrap_interval(partial(_mean_of, values), len(values))
    return table


def _mean_of(values: np.ndarray, drawn: np.ndarray) -> float:
    return float(values[drawn].mean())


def markdown(table: dict[str, dict[str, dict[str, Any]]]) -> str:
    """What moved, with intervals, and below it the quality under each disturbance."""

    def cell(figure: dict[str, Any], scale: float, digits: int) -> str:
        mean, *interval = (f"{scale * x:.{digits}f}" for x in (figure["mean"], *figure.get("interval", ())))
        return f"{mean} ({' to '.join(interval)})" if interval else mean

    movement = [
        [
            row,
            cell(figures["tokens_changed"], 100, 1),
            cell(figures["digits_changed"], 100, 1),
            cell(figures["digit_steps"], 1, 2),
        ]
        for row, figures in table.items()
        if "tokens_changed" in figures
    ]
    columns = [f"{side}/{name}" for name in QUALITY for side in SIDES]
    quality = [
        [row, *("" if column not in figures else f"{figures[column]['mean']:.2f}" for column in columns)]
        for row, figures in table.items()
        if "clean/mel_distance" in figures
    ]
    return (
        markdown_table(
            ["compared with the clip as it is", "tokens changed %", "digits changed %", "digit steps"], movement
        )
        + "\n\n"
        + markdown_table(["quality", *(column.replace("/", " ") for column in columns)], quality)
        + "\n"
    )


def measure_all(
    codec: JepaDaamModel, clips: Sequence[Clip], music: Sequence[np.ndarray] = (), live: bool = False
) -> dict[str, dict[str, Figures]]:
    """Every figure of every clip: by clip and row.

    Args:
        codec: In evaluation mode.
        clips: As `load_clips` gives them; no two of one name.
        music: Music to be mixed in.
        live: Whether to show progress on the error stream.

    Raises:
        ValueError: If two clips have one name.
    """
    if len({clip.name for clip in clips}) < len(clips):
        raise ValueError("`clips` must have names that differ")
    hop = codec.config.hop_length
    whole = [Clip(clip.name, clip.samples[:-hop], clip.bandwidth_hz) for clip in clips]
    baselines = measure_baselines([encode(codec, clip.samples) for clip in whole], codec.config)
    figures = {}
    numbers = track(range(len(clips)), "clips", console=Console(stderr=True), disable=not live)
    for i in numbers:
        others = [clip.samples for clip in whole if clip.name != whole[i].name]
        figures[whole[i].name] = (
            baselines[i]
            | measure_shifts(codec, clips[i].samples)
            | measure_disturbances(codec, whole[i], others, music)
        )
    return figures


def _key_and_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`where` must be KEY=VALUE, got {text!r}")
    return key, value


def command(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of a codec.")],
    recordings: Annotated[list[Path], typer.Argument(help="Folders, tar files, manifests (.jsonl).")],
    output: Annotated[Path, typer.Option(help="Folder to write to.")],
    music: Annotated[Path | None, typer.Option(help="Folder, tar file or manifest of music to mix in.")] = None,
    max_clips: Annotated[int | None, typer.Option(min=1, help="Of more, as many from all over.")] = None,
    max_s: Annotated[float, typer.Option(help="Seconds of each recording, at most.")] = 10.0,
    where: Annotated[list[str] | None, typer.Option(help="KEY=VALUE of a recording's metadata; repeatable.")] = None,
) -> None:
    """Shift and disturb recordings, and see what the tokens and the reconstructions do."""
    transformers_logging.disable_progress_bar()
    console = Console(stderr=True, markup=False)
    try:
        codec = load_frozen(JepaDaamModel, checkpoint)
        wanted = dict(_key_and_value(each) for each in where or [])
        clips, left_out = load_clips(list_recordings(recordings, wanted), codec.config, max_s, max_clips)
        rate = codec.config.sampling_rate
        sounds = [] if music is None else [read_segment(row, 0, 1, rate)[0] for row in list_recordings([music])]
        if not clips:
            raise ValueError(f"`recordings`: none can be used: {'; '.join(left_out)}")
        if music is None:
            left_out.append("music: no --music was given")
        if len(clips) <= BABBLE_VOICES:
            left_out.append(f"babble: needs {BABBLE_VOICES + 1} recordings, got {len(clips)}")
        if len(clips) == 1:
            left_out.append(f"{UNRELATED}: there is only one")
        if PESQ_MISSING:
            left_out.append(PESQ_MISSING)
        figures = measure_all(codec, clips, sounds, live=True)
    except (ValueError, FileNotFoundError) as error:
        console.print(f"error: {error}", style="red", soft_wrap=True)
        raise typer.Exit(2) from error
    table = summarize(list(figures.values()))
    result = {"checkpoint": str(checkpoint), "left_out": left_out, "table": table, "clips": figures}
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / "robustness.json") as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")
    text = (
        f"{described(checkpoint)}; {len(clips)} clips\n\n{markdown(table)}"
        + "".join(f"\nLeft out: {reason}" for reason in left_out)
        + "\n"
    )
    with replacing(output / "robustness.md") as temporary:
        temporary.write_text(text)
    typer.echo(text)


if __name__ == "__main__":
    typer.run(command)
