"""Put the trained codec of a run where it ships, in float16.

    python -m training.ship runs/small-codec/model hub_configs/jepa-daam-24khz-small

The files of the folder that describe other weights (`training.model_card` makes them) are to be made anew.
"""

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint

from .hub_folders import copy_code

MAX_MB = 38.7  # of the weights: with card and samples, a folder of ours stays below 40 MB


def ship(trained: Path, folder: Path) -> Path:
    """Write weights, configuration, feature extractor and tokenizer, and copy the package's code.

    Args:
        trained: Folder of a trained codec.
        folder: Where to; may hold earlier weights and other files.

    Raises:
        ValueError: If the weights are too large, or were never trained.
        OSError: If there is no codec in `trained`.
    """
    model = JepaDaamModel.from_pretrained(trained)
    if model.config.untrained_seed is not None:
        raise ValueError(f"`trained`: the weights of {trained} were never trained")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        saved = save_checkpoint(model, Path(temporary) / folder.name, half=True)
        megabytes = (saved / "model.safetensors").stat().st_size / 1e6
        if megabytes > MAX_MB:
            raise ValueError(f"`trained`: {megabytes:.1f} MB of weights in float16, at most {MAX_MB:g} ship")
        # Weights first: until the configuration with their hash follows, the folder does not load.
        for file in sorted(saved.glob("*"), key=lambda file: file.suffix != ".safetensors"):
            if file.suffix in (".safetensors", ".json"):
                os.replace(file, folder / file.name)
    copy_code(folder)
    return folder


def command(
    trained: Annotated[Path, typer.Argument(help="Folder of a trained codec.")],
    folder: Annotated[Path, typer.Argument(help="Where to, in hub_configs/.")],
) -> None:
    """Put a trained codec where it ships."""
    transformers_logging.disable_progress_bar()
    try:
        typer.echo(f"shipped: {ship(trained, folder)}")
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(command)
