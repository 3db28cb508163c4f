"""Weights between those of two codecs, of which the second was trained on from the first.

    python -m training.blend runs/small-spectrogram/model runs/small-codec/model 0.75 runs/small-blend

What later training gained and what it lost need not grow at the same rate on the way: see RESULTS.md, 2026-11-28.

Source: Wortsman et al. 2022, Robust fine-tuning of zero-shot models.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from modeling_jepa_daam.files import write_json

from .evidence import BLEND
from .frozen import load_frozen
from .run import replacing_model


def blend(first: Path, second: Path, share: float, output: Path) -> Path:
    """Write the codec between two, and from what it was made.

    Args:
        first: Folder of a codec.
        second: Folder of another of the same configuration.
        share: Of the second's weights, 0 to 1.
        output: Folder for `model`, and for `blend.json` beside it.

    Returns:
        The codec's folder.

    Raises:
        ValueError: If `share` is out of range, or the two have other configurations.
        OSError: If a folder has no codec.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"`share` must lie in [0, 1], got {share}")
    codec, other = (load_frozen(JepaDaamModel, folder) for folder in (first, second))
    if codec.config.digest != other.config.digest:
        raise ValueError(f"`second`: {second} has another configuration than {first}")
    with torch.no_grad():
        for (_, value), theirs in zip(codec.state_dict().items(), other.state_dict().values(), strict=True):
            if value.is_floating_point():
                value.lerp_(theirs, share)
    output.mkdir(parents=True, exist_ok=True)
    with replacing_model(output / "model") as temporary:
        save_checkpoint(codec, temporary)
    paths = [f"runs/{folder.absolute().parent.name}/{folder.name}" for folder in (first, second)]
    write_json(output / BLEND, {"first": paths[0], "second": paths[1], "share": share})
    return output / "model"


def command(
    first: Annotated[Path, typer.Argument(help="Folder of a codec.")],
    second: Annotated[Path, typer.Argument(help="Folder of one that was trained on from it.")],
    share: Annotated[float, typer.Argument(help="Of the second's weights, 0 to 1.")],
    output: Annotated[Path, typer.Argument(help="Folder to write `model` to.")],
) -> None:
    """Put a codec between two."""
    try:
        typer.echo(f"blended: {blend(first, second, share, output)}")
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    typer.run(command)
