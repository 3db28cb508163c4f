"""`jepa-audio push` and `jepa-audio models`: checkpoints that go to the Hub, and those that ship."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from .cli_common import EXIT_SOME_FAILED, NO_WEIGHTS, SHIPPED_MODEL, console, count_parameters, errors, fail

MAIN_METRICS = ("pesq", "stoi", "wer")
UNKNOWN = "-"


def push_command(
    folder: Annotated[Path, typer.Argument(help="Folder of a checkpoint.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name on the Hub; made if it is not there.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Of a new repository.", show_default="as the Hub has it"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch; made if it is not there.", show_default="main")] = None,
    pull_request: Annotated[bool, typer.Option("--pr", help="Open a pull request, in place of changing main.")] = False,
    tag: Annotated[list[str] | None, typer.Option(help="Of the card, beside its own; may be repeated.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Replace another checkpoint that is there.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove files that are there, and not in FOLDER.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, list the files with sizes, send nothing.")] = False,
    recordings: Annotated[
        Path | None,
        typer.Option(help="Where the recordings of tokens.json lie.", show_default="tests/audio of the clone"),
    ] = None,
) -> None:
    """Check a checkpoint's folder and publish it on the Hub (token: `hf auth login`, or HF_TOKEN).

    One commit: it appears whole or not at all. Started again after an interruption, it does not send files again that
    had arrived.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    from .publishing import publish
    from .publishing_checks import RECORDINGS, check_folder

    if not folder.is_dir():
        raise fail(f"no such folder: {folder}")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise fail(f"REPO_ID: {error}") from error
    if "/" not in repo_id:
        raise fail(f"REPO_ID must be owner/name, got {repo_id}")
    _list_files(folder)
    failed = False
    for title, problems in check_folder(folder, recordings or RECORDINGS):
        console.print(f"{'no: ' if problems else 'ok: '}{title}", highlight=False, soft_wrap=True)
        for problem in problems:
            errors.print(f"    {problem}", style="red", highlight=False, soft_wrap=True)
        failed = failed or bool(problems)
    if failed:
        errors.print("nothing was sent", style="bold red")
        raise typer.Exit(EXIT_SOME_FAILED)
    if dry_run:
        console.print("dry run: nothing was sent")
        return
    try:
        commit = publish(
            folder,
            repo_id,
            private=private,
            revision=revision,
            create_pr=pull_request,
            tags=tag or (),
            message=message,
            replace=yes,
            prune=prune,
        )
    except ValueError as error:
        hint = "; --yes replaces it" if "holds another checkpoint" in str(error) else ""
        raise fail(f"{error}{hint}. Nothing was published") from error
    except OSError as error:
        errors.print(f"failed: {error}", style="bold red", highlight=False, soft_wrap=True)
        errors.print("Nothing was published. The same command goes on: files that arrived are not sent again.")
        raise typer.Exit(EXIT_SOME_FAILED) from error
    console.print(f"published: {commit.pr_url or commit.commit_url}", highlight=False, soft_wrap=True)


def _list_files(folder: Path) -> None:
    from .publishing_checks import published_files

    files = published_files(folder)
    sizes = [(folder / file).stat().st_size for file in files]
    table = Table("file", "bytes", box=None)
    table.columns[1].justify = "right"
    for file, size in zip(files, sizes, strict=True):
        table.add_row(file.as_posix(), f"{size:,}")
    table.add_row(f"{len(files)} files", f"{sum(sizes):,}")
    console.print(table)


def models_command() -> None:
    """List the shipped models: size, speed and quality as their cards tell them."""
    folders = sorted(path.parent for path in SHIPPED_MODEL.parent.glob("*/config.json"))
    if not folders:
        raise fail(NO_WEIGHTS)
    from transformers.utils import SAFE_WEIGHTS_NAME

    from .configuration_jepa_daam import JepaDaamConfig
    from .publishing_checks import CARD_NAME

    name = Column("model", no_wrap=True, min_width=max(len(folder.name) for folder in folders))  # to be copied
    table = Table(name, "size", "weights", "bit/s", "times real time", Column("quality", no_wrap=True), show_lines=True)
    for folder in folders:
        config = JepaDaamConfig.from_pretrained(folder)
        weights = folder / SAFE_WEIGHTS_NAME
        table.add_row(
            folder.name,
            f"{sum(count_parameters(config).values()) / 1e6:.1f}M",
            f"{weights.stat().st_size / 1e6:.1f} MB" if weights.is_file() else UNKNOWN,
            f"{config.bitrate_bps:g}",
            _speed(folder / "speed.json"),
            _quality(folder / CARD_NAME),
        )
    console.print(table)
    console.print(
        f"{SHIPPED_MODEL.parent}: --model takes any of them that has weights; {UNKNOWN}: none yet",
        highlight=False,
        soft_wrap=True,
    )


def _speed(path: Path) -> str:
    """Encoding and decoding of one recording at a time, as `training.model_card` took it over."""
    if not path.is_file():
        return UNKNOWN
    speed: dict[str, Any] = json.loads(path.read_text("utf-8"))
    ours = [row for row in speed["rows"] if row["spec"] == path.parent.name and row["batch"] == 1]
    rows = {row["direction"]: row["times_real_time"] for row in ours}
    return f"{rows['encode']:.0f} / {rows['decode']:.0f}"


def _quality(card: Path) -> str:
    """The main figures of the first set in the card's metadata."""
    from huggingface_hub import ModelCard, ModelCardData

    data = ModelCard.load(card).data if card.is_file() else ModelCardData()
    results = data.eval_results or []
    first = [result for result in results if result.dataset_name == results[0].dataset_name]
    figures = {result.metric_type: f"{result.metric_name} {result.metric_value:g}" for result in first}
    if not figures:
        return UNKNOWN
    lines = [
        f"on {first[0].dataset_name.partition(' (')[0]}:",
        *(figures[key] for key in MAIN_METRICS if key in figures),
    ]
    return "\n".join(lines)
