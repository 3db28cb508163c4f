"""Code in the folders of `hub_configs/`: links to the package's files, so that a folder is what the Hub gets.

python -m training.hub_folders hub_configs/jepa-*/
"""

import os
from pathlib import Path
from typing import Annotated

import typer
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_jepa_daam
from modeling_jepa_daam.configuration_jepa_daam import AUTO_MAP

PACKAGE = Path(modeling_jepa_daam.__file__).parent
CLASSES = (*AUTO_MAP.values(), "tokenization_jepa_daam.JepaAudioTokenizer")


def code_files() -> list[Path]:
    """Files of the package that the auto classes need, which `save_pretrained` copies."""
    roots = {PACKAGE / f"{reference.split('.')[0]}.py" for reference in CLASSES}
    return sorted(roots | {Path(file) for root in roots for file in get_relative_import_files(root)})


def link_code(folder: Path) -> list[Path]:
    """Make a folder's Python files links to the package's, no more and no fewer.

    Raises:
        ValueError: If there is no `config.json`, or a Python file that is no link.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder`: no config.json in {folder}")
    found = sorted(folder.glob("*.py"))
    for path in found:
        if not path.is_symlink():
            raise ValueError(f"`folder`: {path} is no link: remove it if it is not yours")
    for path in found:
        path.unlink()
    files = code_files()
    for file in files:
        (folder / file.name).symlink_to(os.path.relpath(file, folder.resolve()))
    return files


def command(folders: Annotated[list[Path], typer.Argument(help="Of hub_configs/.")]) -> None:
    """Bring links up to date, after a module of the package came or went."""
    try:
        for folder in folders:
            typer.echo(f"{folder}: {len(link_code(folder))} files")
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(command)
