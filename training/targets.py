"""Measure a model, and say which targets of the release it meets.

    python -m training.targets MODEL --clips CLIPS --recordings EVAL --output DIR

MODEL is a checkpoint's folder, a folder of reconstructions in files of the clips' names, or any spec of
`training.evaluate_tokenizer`. CLIPS are the originals of the 15 LibriSpeech clips: a folder with `texts.json` in it or
beside it (texts by file names without endings), or a manifest. EVAL has the sets read_en and nonnative_en.

Clips that were judged are kept in DIR, by the content of model, code and judges' weights: a second call judges only
what is new. One core takes about five minutes for a model, and as long once for the originals.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers.utils import SAFE_WEIGHTS_NAME

import modeling_jepa_daam
from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.audio import AUDIO_SUFFIXES
from modeling_jepa_daam.files import replacing, write_json

from .codec_speed import compare
from .codecs import make_codec
from .codecs.folder import Folder
from .evaluate_tokenizer import (
    Judging,
    Recording,
    choose_sets,
    common_settings,
    evaluate_systems,
    list_recordings,
    named_systems,
    system_settings,
    token_figures,
)
from .evaluation.targets import (
    FIFTEEN,
    JUDGES_OF_SETS,
    NONNATIVE,
    READ,
    Outcome,
    information_outcomes,
    outcome_table,
    quality_outcomes,
    size_outcome,
    speed_outcomes,
)
from .report import ORIGINAL, Clip, quality_table, summary

TEXTS = "texts.json"
SPEED_SECONDS = 6.0
MIMI = "model:mimi"


def fifteen_clips(source: Path) -> list[Recording]:
    """The originals of the 15 clips with their texts, as the set `FIFTEEN`.

    Args:
        source: Folder of sound files, with `texts.json` in it or beside it, or a manifest (see `list_recordings`).

    Raises:
        ValueError: If there are none, or a clip has no text.
    """
    recordings = [replace(each, fields=each.fields | {"set": FIFTEEN}) for each in list_recordings(source)]
    files = [folder / TEXTS for folder in (source, source.parent)]
    file = next((file for file in files if file.is_file()), None)
    texts = json.loads(file.read_text(encoding="utf-8")) if file else {}
    for each in recordings:
        if not each.fields.get("text"):
            each.fields["text"] = texts.get(each.path.stem)
        if not each.fields["text"]:
            raise ValueError(
                f"`clips`: no text of {each.name}, neither in a manifest nor in {' or '.join(map(str, files))}"
            )
    return recordings


def named_model(model: str) -> tuple[str, str]:
    """Name and spec of a model: a folder with `config.json` is a checkpoint, any other folder has reconstructions.

    Raises:
        ValueError: If a folder is neither.
    """
    folder = Path(model)
    if model == ORIGINAL:
        return ORIGINAL, ORIGINAL
    if not folder.is_dir():
        return list(named_systems([model]).items())[-1]
    if (folder / "config.json").is_file():
        return folder.absolute().name, f"jepa:{model}"
    if not any(path.suffix.lower() in AUDIO_SUFFIXES for path in folder.rglob("*")):
        raise ValueError(f"`model`: {model} has neither config.json nor reconstructions ({', '.join(AUDIO_SUFFIXES)})")
    return folder.absolute().name, f"folder:{model}"


def available(spec: str, recordings: Sequence[Recording]) -> list[Recording]:
    """The recordings that a system can be judged by: all, or those that a folder of reconstructions has."""
    if not spec.startswith("folder:"):
        return list(recordings)
    folder, found = Folder.from_spec(spec.removeprefix("folder:")), []
    for each in recordings:
        try:
            folder.find(each.clip_name())
        except ValueError:  # counted by the caller, who compares the lengths
            continue
        found.append(each)
    return found


def cache_name(name: str, spec: str, common: dict[str, Any]) -> str:
    """A folder's name that no other system, code or judges share; `common` is of `common_settings`."""
    settings: dict[str, Any] = system_settings(spec) | common
    if spec.startswith("jepa:"):
        files = sorted(Path(modeling_jepa_daam.__file__).parent.glob("*.py"))
        settings["code"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return f"{name}-{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]}"


def judge_set(
    recordings: Sequence[Recording], systems: dict[str, str], output: Path, judging: Judging, jobs: int
) -> tuple[list[Clip], list[dict[str, str]]]:
    """`evaluate_systems`, of the recordings that each system has, with `cache_name`s for its folders.

    Returns:
        Clips and failures, which name systems as `systems` does.
    """
    clips: list[Clip] = []
    failures: list[dict[str, str]] = []
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    found = {name: available(spec, recordings) for name, spec in systems.items()}
    for name, spec in systems.items():  # systems of the same recordings share one load of the judges
        groups.setdefault(tuple(each.name for each in found[name]), {})[name] = spec
    common = common_settings(judging)
    for group in groups.values():
        chosen = found[next(iter(group))]
        if not chosen:
            continue
        names = {cache_name(name, spec, common): name for name, spec in group.items()}
        cached = {cache: systems[name] for cache, name in names.items()}
        rows, failed = evaluate_systems(chosen, cached, output, judging, jobs)
        clips += [row | {"system": names[row["system"]]} for row in rows]
        failures += [row | {"system": names[row["system"]]} for row in failed]
    return clips, failures


def measured_speed(spec: str, recording: Path, output: Path) -> dict[str, float]:
    """Speed over Mimi's by direction, of one clip on one thread; kept in `output`.

    Args:
        spec: Of a checkpoint.
        recording: What the clips are cut from.
        output: A file.
    """
    if not output.is_file():
        rows = compare([spec, MIMI], SPEED_SECONDS, batches=(1,), threads=1, recording=str(recording))
        write_json(output, [asdict(row) for row in rows])
    speeds = {(row["spec"], row["direction"]): row["times_real_time"] for row in json.loads(output.read_text())}
    return {direction: speeds[spec, direction] / speeds[MIMI, direction] for direction in ("encode", "decode")}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command(
    model: Annotated[str, typer.Argument(help="Checkpoint, folder of reconstructions, or a spec as codec2:700C.")],
    output: Annotated[Path, typer.Option(help="Folder for figures; clips that were judged are kept in it.")],
    clips: Annotated[
        Path | None, typer.Option(help="Originals of the 15 LibriSpeech clips: folder with texts.json, or manifest.")
    ] = None,
    recordings: Annotated[
        Path | None, typer.Option(help="Folder or manifest with the sets read_en and nonnative_en.")
    ] = None,
    sets: Annotated[str, typer.Option(help="Sets to measure, with commas.")] = ",".join(JUDGES_OF_SETS),
    baseline: Annotated[list[str] | None, typer.Option(help="[name=]spec of another system in the tables.")] = None,
    recognizer: Annotated[str, typer.Option(help="faster-whisper: folder, size or Hub id.")] = Judging.recognizer,
    speaker_encoder: Annotated[str, typer.Option(help="ECAPA-TDNN: file, folder or Hub id.")] = Judging.speaker_encoder,
    voice_encoder: Annotated[
        str, typer.Option(help="GE2E of Resemblyzer: its package, a file, folder or Hub id.")
    ] = Judging.voice_encoder,
    moonshine: Annotated[str, typer.Option(help="Moonshine's ONNX graphs: folder or Hub id.")] = Judging.moonshine,
    jobs: Annotated[int, typer.Option(min=0, help="Processes, one thread each; 0: this one.")] = 0,
    original: Annotated[bool, typer.Option(help="Judge the originals, too.")] = True,
    speed: Annotated[bool, typer.Option(help="Time encoding and decoding beside Mimi's, on one thread.")] = False,
) -> None:
    """Measure a model, and say which targets of the release it meets. A second call judges only what is new."""
    if jobs == 0:
        torch.set_num_threads(1)
    try:
        name, spec = named_model(model)
        make_codec(spec)
        systems = {**({ORIGINAL: ORIGINAL} if original else {}), name: spec}
        systems |= {key: each for key, each in named_systems(baseline or []).items() if key != ORIGINAL}
        chosen = _recordings(clips, recordings, sets.split(","))
        rows: list[Clip] = []
        failures: list[dict[str, str]] = []
        for each, of_set in chosen.items():
            judging = Judging(JUDGES_OF_SETS[each], recognizer, speaker_encoder, "en", voice_encoder, moonshine)
            for missing in judging.missing():
                typer.echo(f"not measured in {each}: {missing}", err=True)
            judged, failed = judge_set(of_set, systems, output / each, judging, jobs)
            rows += judged
            failures += failed
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    counts = {each: len(of_set) for each, of_set in chosen.items()}
    outcomes = quality_outcomes(summary(rows, ["set"]).get("set", {}), name, counts)
    outcomes += _of_checkpoint(spec, [row for row in rows if row["system"] == name], counts, output, speed, chosen)
    parts = [f"# Targets: {name}", outcome_table(outcomes)]
    parts += [f"## {each}\n\n{quality_table(judged_rows)}" for each in chosen
              if (judged_rows := [row for row in rows if row["recording"]["set"] == each])]  # fmt: skip
    text = "\n\n".join(parts) + "\n"
    output.mkdir(parents=True, exist_ok=True)
    with replacing(output / f"{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(output / f"{name}.json", {"system": spec, "outcomes": [asdict(each) for each in outcomes]})
    typer.echo(text)
    for failure in failures:
        typer.echo(f"failed: {failure['system']}, {failure['clip']}: {failure['error']}", err=True)
    typer.echo(f"{sum(each.met for each in outcomes)} of {len(outcomes)} targets met: {output / f'{name}.md'}")
    if failures:
        raise typer.Exit(1)


def _recordings(clips: Path | None, recordings: Path | None, sets: Sequence[str]) -> dict[str, list[Recording]]:
    """The recordings of each set that can be measured with what was given."""
    if unknown := sorted(set(sets) - JUDGES_OF_SETS.keys()):
        raise ValueError(f"`sets` must be among {', '.join(JUDGES_OF_SETS)}, got {', '.join(unknown)}")
    chosen = {}
    if clips is not None and FIFTEEN in sets:
        chosen[FIFTEEN] = fifteen_clips(clips)
    if recordings is not None:
        listed = list_recordings(recordings)
        chosen |= {each: choose_sets(listed, [each]) for each in (READ, NONNATIVE) if each in sets}
    if not chosen:
        raise ValueError("nothing to measure: give --clips (the 15 clips), --recordings (the other sets), or both")
    return chosen


def _of_checkpoint(
    spec: str,
    rows: Sequence[Clip],
    counts: dict[str, int],
    output: Path,
    speed: bool,
    chosen: dict[str, list[Recording]],
) -> list[Outcome]:
    """Outcomes that only a checkpoint has: of its indices, its size and its speed."""
    if not spec.startswith("jepa:"):
        return []
    folder = Path(spec.removeprefix("jepa:"))
    weights = folder / SAFE_WEIGHTS_NAME
    config = JepaDaamConfig.from_pretrained(folder)
    read = [row for row in rows if row["recording"]["set"] == READ]
    entropies = None
    if read and len(read) == counts[READ]:
        entropies = token_figures(read, config)["digit_entropy_bits_by_place"]
    ratios = {}
    if speed:
        recording = next(iter(chosen.values()))[0].path
        file = output / f"{cache_name('speed', spec, common_settings(Judging(())))}.json"
        ratios = measured_speed(spec, recording, file)
    size = weights.stat().st_size if weights.is_file() else None
    return [*information_outcomes(entropies, config.levels), size_outcome(size), *speed_outcomes(ratios)]


if __name__ == "__main__":
    app(prog_name="python -m training.targets", args=sys.argv[1:])
