"""Reconstruct recordings with one or more codecs, and say how good they are, and what their tokens hold.

    python -m training.evaluate_tokenizer RECORDINGS --system CHECKPOINT --system codec2:700C --output DIR

Writes into DIR, for each system, `clips.jsonl`, a line a clip; then `summary.json`, `report.md` and pictures. Started
again, it goes on where it was; clips that failed are tried again.
"""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer
from rich.progress import track

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.packing import group_vocabulary_sizes

from .codecs import Codec, make_codec, with_lag
from .judges import DEFAULT_RECOGNIZER, DEFAULT_SPEAKER_ENCODER, JUDGES, Judge, make_judges, missing_judges
from .metrics.token_statistics.frame_statistics import place_statistics, unpack_digits
from .quality import PESQ_MISSING, reconstruction_quality, token_statistics
from .report import Clip, by_system, grouped, write_report

AUDIO_SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")
SAMPLING_RATE = 24000  # Hz, at which systems are fed and judged
ORIGINAL = "original"  # the system that gives its input back: the reference of every error rate


@dataclass(frozen=True)
class Recording:
    """A file, and what is known of it.

    Args:
        name: Its path within the folder or manifest: what makes a clip the same clip.
        path: Where it is.
        fields: `set`, `speaker`, `group`, `language`, `text`, `bandwidth_hz`, ...; as far as known.
    """

    name: str
    path: Path
    fields: dict[str, Any]


def list_recordings(source: Path) -> list[Recording]:
    """The recordings of a manifest (`.jsonl`, with `file` or `path` beside it) or of a folder, at every depth.

    In a folder the set is the first part of a file's path, or the folder's own name.

    Raises:
        ValueError: If there are none, a line is not a recording, or a name comes twice.
    """
    manifest = source / "manifest.jsonl" if source.is_dir() else source
    if manifest.is_file():
        found = []
        for number, line in enumerate(manifest.read_text(encoding="utf-8").splitlines(), 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{manifest}, line {number}: not JSON: {error}") from error
            name = row.get("file") or row.get("path")
            if not name:
                raise ValueError(f"{manifest}, line {number}: need `file` or `path`, got {sorted(row)}")
            fields = {key: value for key, value in row.items() if key not in ("file", "path") and value is not None}
            found.append(Recording(str(name), manifest.parent / name, {"set": manifest.parent.name} | fields))
    elif source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        names = [path.relative_to(source) for path in files]
        found = [
            Recording(name.as_posix(), path, {"set": name.parts[0] if len(name.parts) > 1 else source.name})
            for name, path in zip(names, files, strict=True)
        ]
    else:
        raise ValueError(f"`recordings`: no such folder or manifest: {source}")
    if not found:
        raise ValueError(f"`recordings`: no sound files ({', '.join(AUDIO_SUFFIXES)}) in {source}")
    if len({recording.name for recording in found}) < len(found):
        raise ValueError(f"`recordings`: {manifest} names a file more than once")
    return found


def choose_sets(recordings: Sequence[Recording], sets: Sequence[str]) -> list[Recording]:
    """The recordings of some sets, or all of them.

    Raises:
        ValueError: If a set has none.
    """
    if unknown := sorted(set(sets) - {recording.fields["set"] for recording in recordings}):
        raise ValueError(f"`sets`: no recordings of {', '.join(unknown)}")
    return [recording for recording in recordings if not sets or recording.fields["set"] in sets]


@dataclass(frozen=True)
class Judging:
    """Which slower judges a worker makes, and of what.

    Args:
        names: Of `judges.JUDGES`; those whose packages are not installed are left out.
        recognizer: faster-whisper model: a folder, a size, or an id on the Hub.
        speaker_encoder: Weights of SpeechBrain's ECAPA-TDNN: a file, a folder, or an id on the Hub.
        language: Of the clips whose words are counted.
    """

    names: tuple[str, ...] = tuple(JUDGES)
    recognizer: str = DEFAULT_RECOGNIZER
    speaker_encoder: str = DEFAULT_SPEAKER_ENCODER
    language: str = "en"

    def make(self) -> dict[str, Judge]:
        """The judges, by name.

        Raises:
            ValueError: If one has no such name, or its weights cannot be had.
        """
        made: dict[str, Judge] = {}
        for name in self.names:
            try:
                made |= make_judges([name], self.speaker_encoder, self.recognizer, self.language)
            except (OSError, RuntimeError) as error:
                problem = f"{type(error).__name__}: {error}"
                raise ValueError(f"`judges`: {name}: name its weights, or leave it out: {problem}") from error
        return made

    def missing(self) -> list[str]:
        """Figures that cannot be taken here, and what to install."""
        return [message for message in (PESQ_MISSING, *missing_judges(self.names).values()) if message]


class Evaluator:
    """What a worker process keeps: the judges and the codecs that it has met."""

    def __init__(self, judging: Judging, keep_in: Path | None):
        self.judges, self.language, self.keep_in = judging.make(), judging.language, keep_in
        self.codecs: dict[str, Codec] = {}

    def clip(self, system: str, spec: str, recording: Recording) -> Clip:
        """Code one recording, and judge it.

        Raises:
            ValueError: If the file cannot be read, or the codec or a judge refuses it.
        """
        if spec not in self.codecs:
            self.codecs[spec] = make_codec(spec)
        original = load_audio(recording.path, None, SAMPLING_RATE)
        coded = self.codecs[spec].run(original, SAMPLING_RATE, recording.path.stem)
        fields = recording.fields
        row: Clip = {"system": system, "clip": recording.name, **fields, "seconds": len(original) / SAMPLING_RATE}
        row |= {"bits": coded.bits, "file_bits": coded.file_bits}
        row |= reconstruction_quality(original, coded.samples, SAMPLING_RATE, fields.get("bandwidth_hz"))
        for name, judge in self.judges.items():
            if name != "words" or fields.get("language") in (None, self.language):
                row |= judge(original, coded.samples, SAMPLING_RATE, fields.get("text"))
        if coded.tokens is not None:
            row["tokens"] = coded.tokens.tolist()
        if self.keep_in:
            path = (self.keep_in / system / "audio" / recording.name).with_suffix(".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                soundfile.write(temporary, coded.samples.clip(-1.0, 1.0), SAMPLING_RATE)
        return row


_evaluator: Evaluator  # of a worker process


def _start_worker(judging: Judging, keep_in: Path | None) -> None:
    global _evaluator
    torch.set_num_threads(1)
    _evaluator = Evaluator(judging, keep_in)


def _evaluate(system: str, spec: str, recording: Recording) -> Clip:
    return _evaluator.clip(system, spec, recording)


class Results:
    """The lines of one system in a folder of its own, and with what settings they were made.

    Args:
        folder: `clips.jsonl` and `settings.json` are in it; made if it is not there.
        settings: What the figures depend on.

    Raises:
        ValueError: If the folder's lines were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / "clips.jsonl"
        told = folder / "settings.json"
        folder.mkdir(parents=True, exist_ok=True)
        if told.exists() and (before := json.loads(told.read_text())) != settings:
            other = sorted(key for key in before | settings if before.get(key) != settings.get(key))
            raise ValueError(
                f"`output`: {folder} was made with other settings ({', '.join(other)}): remove it, or choose another"
            )
        with replacing(told) as temporary:
            temporary.write_text(json.dumps(settings, indent=1))

    def read(self) -> list[Clip]:
        """All whole lines; what an interruption cut off is not among them."""
        if not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def restart(self, clips: Sequence[Clip]) -> None:
        """Keep these lines only."""
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(clip) + "\n" for clip in clips))

    def add(self, clip: Clip) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(clip) + "\n")


def settings_of(spec: str, judging: Judging) -> dict[str, Any]:
    """What the lines of a system depend on: its spec, its weights if it is a checkpoint, and the judges."""
    settings: dict[str, Any] = {"system": spec, "sampling_rate": SAMPLING_RATE}
    settings |= vars(judging) | {"names": list(judging.names), "missing": judging.missing()}
    folder = Path(spec.removeprefix("jepa:"))
    if spec.startswith("jepa:") and folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors"))
        settings["sha256"] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return settings


def evaluate_systems(
    recordings: Sequence[Recording],
    systems: dict[str, str],
    output: Path,
    judging: Judging,
    jobs: int = 1,
    keep_audio: bool = False,
) -> tuple[list[Clip], list[dict[str, str]]]:
    """Judge every clip of every system that has no line yet.

    Args:
        recordings: What to code.
        systems: Spec of each system (see `codecs.make_codec`) by name.
        output: A folder a system.
        judging: The slower figures.
        jobs: Processes, one thread each.
        keep_audio: Whether to write the reconstructions, under `audio` in a system's folder.

    Returns:
        The clips, in the order of systems and recordings; and those that failed: `system`, `clip` and `error`.

    Raises:
        ValueError: If a system or a judge cannot be made, or `output` has lines that were made with other settings.
    """
    for spec in systems.values():  # what is missing is noticed here, and not in each worker
        make_codec(spec)
    judging.make()
    systems = {name: with_lag(spec, _originals(recordings)) for name, spec in systems.items()}
    results = {name: Results(output / name, settings_of(spec, judging)) for name, spec in systems.items()}
    done = {name: {clip["clip"]: clip for clip in result.read()} for name, result in results.items()}
    for name, result in results.items():
        result.restart(list(done[name].values()))
    tasks = [(name, spec, each) for name, spec in systems.items() for each in recordings if each.name not in done[name]]
    failures = []
    spawn, arguments = multiprocessing.get_context("spawn"), (judging, output if keep_audio else None)
    with ProcessPoolExecutor(jobs, spawn, _start_worker, arguments) as pool:
        futures = {pool.submit(_evaluate, *task): task for task in tasks}
        for future in track(as_completed(futures), "clips", total=len(tasks)):
            name, _, recording = futures[future]
            try:
                clip = future.result()
            except (ValueError, OSError, RuntimeError) as error:
                failures.append({"system": name, "clip": recording.name, "error": f"{type(error).__name__}: {error}"})
                continue
            results[name].add(clip)
            done[name][recording.name] = clip
    clips = [done[name].get(recording.name) for name in systems for recording in recordings]
    return [clip for clip in clips if clip], failures


def token_figures(clips: Sequence[Clip], config: JepaDaamConfig) -> dict[str, float | list[float]]:
    """What the tokens of some clips hold: `token_statistics`, and the entropy of each place of a frame."""
    tokens = [np.array(clip["tokens"], dtype=np.int64) for clip in clips]
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    seconds = sum(clip["seconds"] for clip in clips)
    figures: dict[str, Any] = token_statistics(tokens, sizes, config.levels, config.group_size, seconds)
    digits = [unpack_digits(clip, sizes, config.levels, config.group_size) for clip in tokens]
    figures["token_entropy_bits_by_place"] = place_statistics(tokens, sizes)["entropy_bits"]
    figures["digit_entropy_bits_by_place"] = place_statistics(digits, config.levels)["entropy_bits"]
    return figures


def _originals(recordings: Sequence[Recording]) -> Iterator[tuple[str, np.ndarray, int]]:
    for recording in recordings:
        yield recording.path.stem, load_audio(recording.path, None, SAMPLING_RATE), SAMPLING_RATE


def named_systems(systems: Sequence[str]) -> dict[str, str]:
    """`[name=]spec` to specs by name: a folder without `:` is a checkpoint of ours.

    Raises:
        ValueError: If a name comes twice, or cannot be a folder's.
    """
    named = {ORIGINAL: ORIGINAL}
    for system in systems:
        name, _, spec = system.rpartition("=")
        name = name or spec.strip("/").replace(":", "-").replace("/", "-")
        if ":" not in spec and spec != ORIGINAL:
            spec = f"jepa:{spec}"
        if name in named or "/" in name:
            raise ValueError(f"`system`: need a name of its own, without '/', got {system!r}")
        named[name] = spec
    return named


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    recordings: Annotated[Path, typer.Argument(help="Folder or manifest of recordings.")],
    system: Annotated[list[str], typer.Option(help="[name=]checkpoint folder, or codec2:700C, opus:6, ...")],
    output: Annotated[Path, typer.Option(help="Folder for figures, report and pictures.")],
    judges: Annotated[str, typer.Option(help="Slower figures: some of these.")] = ",".join(JUDGES),
    recognizer: Annotated[str, typer.Option(help="faster-whisper: folder, size or Hub id.")] = Judging.recognizer,
    speaker_encoder: Annotated[str, typer.Option(help="ECAPA-TDNN: file, folder or Hub id.")] = Judging.speaker_encoder,
    language: Annotated[str, typer.Option(help="Of the clips whose words are counted.")] = Judging.language,
    sets: Annotated[str, typer.Option(help="Sets to take, with commas; all if empty.")] = "",
    jobs: Annotated[int, typer.Option(min=1, help="Processes, one thread each.")] = os.cpu_count() or 1,
    keep_audio: Annotated[bool, typer.Option(help="Write the reconstructions.")] = False,
) -> None:
    """Judge codecs on recordings: quality, bit rate and tokens. Started again, it goes on where it was."""
    try:
        chosen = choose_sets(list_recordings(recordings), sets.split(",") if sets else [])
        judging = Judging(tuple(judges.split(",")) if judges else (), recognizer, speaker_encoder, language)
        for missing in judging.missing():
            typer.echo(missing, err=True)
        systems = named_systems(system)
        clips, failures = evaluate_systems(chosen, systems, output, judging, jobs, keep_audio)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    tokens: dict[str, dict[str, dict[str, Any]]] = {}
    for name, rows in by_system([clip for clip in clips if "tokens" in clip]).items():
        config = JepaDaamConfig.from_pretrained(systems[name].removeprefix("jepa:"))
        tokens[name] = {of_set: token_figures(part, config) for of_set, part in grouped(rows, "set").items()}
    typer.echo(f"report: {write_report(clips, failures, judging.missing(), tokens, output)}")
    for failure in failures:
        typer.echo(f"failed: {failure['system']}, {failure['clip']}: {failure['error']}", err=True)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
