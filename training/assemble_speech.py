"""Assemble public recordings of speech into tar shards to train on.

    pip install -e '.[corpora]'
    git clone https://github.com/rhasspy/dataset-voice-kerstin
    python -m training.assemble_speech kerstin=dataset-voice-kerstin --output shards --held-out eval --already train

A source is read as `assembly/speech_sources.yaml` describes it; `--list` prints the sources and the commands that fetch
them. The shards hold 24 kHz mono Ogg Opus of 32 kbit/s beside JSON metadata. Nothing is trimmed. Recordings below 0.4 s
and silent ones are left out. Damaged files are refused by name. `SOURCE.manifest.json` has hours, licences, SHA-256 of
the shards, and each recording that was left out with the reason. An interrupted run resumes.
"""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track

from .assembly.recipes import RECIPES, load_sources
from .assembly.shards import KeptOut, assemble
from .assembly.spectral_fingerprint import FingerprintIndex
from .disjoint import evaluation_fingerprints, speakers_of, tabulate, training_fingerprints, training_rows


def keep_out(held_out: list[Path], already: list[str]) -> KeptOut:
    """Speakers and recordings of `held_out`, evaluations, and the recordings of `already`, shards or folders.

    Raises:
        ValueError: If a recording cannot be read.
    """
    rows = [row for source in already for row in training_rows(source)]
    console = Console(stderr=True)
    evaluated = [each for source in held_out for each in evaluation_fingerprints(source)]
    trained = list(track(training_fingerprints(rows), "recordings that are there", len(rows), console=console))
    return KeptOut(
        speakers=frozenset(speakers_of(tabulate(evaluated))),
        digests={each.digest: each.name for each in [*trained, *evaluated]},
        index=FingerprintIndex(
            [each.name for each in [*evaluated, *trained]], [each.spectral for each in [*evaluated, *trained]]
        ),
    )


def command(
    sources: Annotated[list[str] | None, typer.Argument(help="SOURCE=FOLDER, a recipe's name and its corpus.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the shards; made if it does not exist.")] = Path("speech"),
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Evaluation, folder or manifest: its speakers and recordings stay out.")
    ] = None,
    already: Annotated[
        list[str] | None, typer.Option(help="Shard, folder or manifest (.jsonl) whose recordings stay out.")
    ] = None,
    recipes: Annotated[Path, typer.Option(help="YAML file of recipes.")] = RECIPES,
    list_sources: Annotated[bool, typer.Option("--list", help="Print the sources and how to fetch them.")] = False,
) -> None:
    """Assemble sources into tar shards."""
    try:
        known = load_sources(recipes)
        if list_sources:
            for name, recipe in known.items():
                if recipe.files:
                    typer.echo(f"{name}  {recipe.title}, {recipe.language}, {recipe.licence}\n  {recipe.obtain}")
            return
        chosen = _named_folders(sources or [], sorted(name for name, recipe in known.items() if recipe.files))
        kept_out = keep_out(held_out or [], already or [])
        output.mkdir(parents=True, exist_ok=True)
        for name, folder in chosen.items():
            manifest = assemble(name, known[name], folder, output, kept_out, lambda line: typer.echo(line, err=True))
            typer.echo(
                f"{name}: {manifest['hours']:.2f} h, {manifest['clips']} clips, {manifest['speakers']} speakers, "
                f"{len(manifest['hours_by_language'])} languages, {len(manifest['left_out'])} left out"
            )
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _named_folders(sources: list[str], known: list[str]) -> dict[str, Path]:
    folders = {}
    for text in sources:
        name, equals, folder = text.partition("=")
        if not equals or not folder or name not in known:
            raise ValueError(f"`sources`: expected SOURCE=FOLDER with SOURCE of {', '.join(known)}, got {text!r}")
        if name in folders:
            raise ValueError(f"`sources`: {name} is there twice")
        folders[name] = Path(folder)
    if not folders:
        raise ValueError("`sources`: expected at least one SOURCE=FOLDER, got none")
    return folders


if __name__ == "__main__":
    typer.run(command)
