"""Cache the spectral features of a corpus, for Stage 2 on features.

    python -m training.extract_features SOURCE... --model FOLDER --output runs/features/train

Sources are tar files and folders in LibriLight's manner. Each recording is scaled to the same peak, since training
draws its own levels; its features are those of whole frames.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from modeling_jepa_daam import JepaDaamEncoderModel
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.float64_copy import in_float64
from modeling_jepa_daam.vocoder_features import SpectralFeatures

from .config import DataConfig
from .data import read_segment
from .frozen import load_frozen
from .recordings import open_corpus

PEAK = 0.7  # of full scale
MIN_PEAK = 1e-3  # below it a recording is silence
REPORT_EVERY = 1000  # recordings


@torch.inference_mode()
def extract(features: SpectralFeatures, samples: np.ndarray, hop_length: int) -> np.ndarray | None:
    """Features of the whole frames of a recording: `(time, rows)`, float16; `None` for silence or less than a frame."""
    frames = len(samples) // hop_length
    peak = float(np.abs(samples).max(initial=0.0))
    if frames == 0 or peak < MIN_PEAK:
        return None
    scaled = np.pad(samples[: frames * hop_length] * (PEAK / peak), features.margin)
    return features(torch.from_numpy(scaled).double()[None])[0].T.half().numpy()


def main(sources: list[str], model: str, output: Path) -> int:
    """Write `output`.npy and `output`.json; returns the number of recordings.

    Raises:
        ValueError: If the model has no spectral features, or no recording has sound.
    """
    encoder = load_frozen(JepaDaamEncoderModel, model)
    if encoder.config.feature_bands == 0:
        raise ValueError(f"`model` must have spectral features (`feature_bands`), got {model}")
    features = in_float64(encoder.spectral_features)
    assert isinstance(features, SpectralFeatures)
    config = encoder.config
    arrays, rows, skipped = [], [], 0
    start, seconds = time.perf_counter(), 0.0
    for recording in open_corpus(DataConfig(sources=tuple(sources))):
        samples, _ = read_segment(recording, 0, 1, config.sampling_rate)
        array = extract(features, samples, config.hop_length)
        if array is None:
            skipped += 1
            continue
        arrays.append(array)
        frames = len(array) // config.patch_size
        rows.append({"name": recording["name"], "speaker": recording["speaker"], "frames": frames})
        seconds += frames / config.frame_rate
        if len(rows) % REPORT_EVERY == 0:
            speed = seconds / (time.perf_counter() - start)
            typer.echo(f"{len(rows)} recordings, {seconds / 3600:.2f} h, {speed:.0f} times real time")
    if not rows:
        raise ValueError(f"`sources`: no recording of {sources} has a frame of sound")
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output.with_name(f"{output.name}.npy")) as temporary, open(temporary, "wb") as file:
        np.save(file, np.concatenate(arrays))
    with replacing(output.with_name(f"{output.name}.json")) as temporary:
        temporary.write_text(json.dumps(rows))
    typer.echo(f"{len(rows)} recordings, {seconds / 3600:.2f} h; {skipped} silent or shorter than a frame")
    return len(rows)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def command(
    sources: Annotated[list[str], typer.Argument(help="Tar files and folders of recordings.")],
    model: Annotated[str, typer.Option(help="Checkpoint folder whose spectral features to take.")],
    output: Annotated[Path, typer.Option(help="Cache to write, without suffix.")] = Path("runs/features/train"),
) -> None:
    """Cache the spectral features of a corpus."""
    try:
        main(sources, model, output)
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    app()
