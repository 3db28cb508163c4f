"""Code in the folders of `hub_configs/`: copies of the package's files, so that a folder is what the Hub gets.

python -m training.hub_folders hub_configs/jepa-*/

Copies and not links: a folder must stay whole when it is copied, put into a wheel or checked out on Windows.
"""

import shutil
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


def copy_code(folder: Path) -> list[Path]:
    """Make a folder's Python files copies of the package's, no more and no fewer.

    Raises:
        ValueError: If there is no `config.json`, or a Python file that is no module of the package.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder`: no config.json in {folder}")
    files = code_files()
    for path in sorted(folder.glob("*.py")):
        if not path.is_symlink() and not (PACKAGE / path.name).is_file():
            raise ValueError(f"`folder`: {path} is no module of the package: remove it if it is not yours")
        if path.is_symlink() or path.name not in {file.name for file in files}:
            path.unlink()
    for file in files:
        shutil.copyfile(file, folder / file.name)
    return files


def command(folders: Annotated[list[Path], typer.Argument(help="Of hub_configs/.")]) -> None:
    """Bring the copies up to date, after a module of the package has changed."""
    try:
        for folder in folders:
            typer.echo(f"{folder}: {len(copy_code(folder))} files")
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(command)
