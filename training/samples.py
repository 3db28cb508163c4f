"""Samples to hear and see: a few clips, by us and by rivals, as small Ogg Opus files and spectrograms.

    python -m training.samples CHECKPOINT MANIFEST --clips ID ID --rival codec2=codec2:700C --output FOLDER

A clip's ID is its path within the manifest's folder, or the end of it, without the ending. The same call writes the
same bytes, on the same versions of its packages.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing, sha256_of

from .assembly.recipes import SPEECH_SOURCES
from .codecs import SPECS, Codec, make_codec, with_lag
from .evaluate_tokenizer import SAMPLING_RATE, Recording, list_recordings, named_systems
from .metrics.codec_quality.spectra import NUM_BANDS, log_mel
from .ogg import with_serial_number
from .report import ORIGINAL

OURS = "ours"
COMPRESSION = 0.93  # of libsndfile, 0 to 1: about 24 kbit/s of mono Opus
COLOURS = 64  # of a picture's palette
DYNAMIC_RANGE = 9.2  # nepers that a picture shows, below the loudest of the original: 80 dB
MAX_BYTES = 2_000_000  # of all files together


def choose_clips(recordings: Sequence[Recording], names: Sequence[str]) -> list[Recording]:
    """The recordings of some IDs, in their order.

    Raises:
        ValueError: If there is none of an ID, more than one, or one twice.
    """
    chosen = []
    for name in names:
        found = [each for each in recordings if f"/{each.clip_name()}".endswith(f"/{name}")]
        if len(found) != 1:
            raise ValueError(f"`clips`: {name!r} must be one recording, got {len(found)} of that name")
        chosen.append(found[0])
    if len({each.path.stem for each in chosen}) < len(chosen):
        raise ValueError(f"`clips` must have names of their own, got {', '.join(names)}")
    return chosen


def write_opus(path: Path, samples: np.ndarray) -> None:
    """Write `(samples,)` at 24 kHz as Ogg Opus; libsndfile draws the stream's number, which is replaced by 1."""
    with replacing(path) as temporary:
        soundfile.write(
            temporary,
            samples.clip(-1.0, 1.0),
            SAMPLING_RATE,
            format="OGG",
            subtype="OPUS",
            compression_level=COMPRESSION,
        )
        temporary.write_bytes(with_serial_number(temporary.read_bytes(), 1))


def write_picture(path: Path, sounds: dict[str, np.ndarray], title: str) -> None:
    """Log-mel spectrograms above each other, all in the range of colours of the first, as a PNG with a palette.

    Args:
        path: The PNG.
        sounds: `(samples,)` at 24 kHz, all as long as each other, by name.
        title: Of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(7, 0.5 + 1.4 * len(sounds)), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, parse_math=False, fontsize=9, wrap=True)
    axes = figure.subplots(len(sounds), 1, sharex=True, squeeze=False)[:, 0]
    top = None
    for axis, (name, samples) in zip(axes, sounds.items(), strict=True):
        spectrum = log_mel(samples, SAMPLING_RATE).T
        top = spectrum.max() if top is None else top
        axis.imshow(
            spectrum,
            aspect="auto",
            origin="lower",
            extent=(0, len(samples) / SAMPLING_RATE, -0.5, NUM_BANDS - 0.5),
            vmin=top - DYNAMIC_RANGE,
            vmax=top,
            cmap="magma",
        )
        axis.set_title(name, loc="left", fontsize=8, pad=2)
        axis.set_yticks([])
    axes[-1].set_xlabel("time (s)", fontsize=8)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    with replacing(path) as temporary:
        picture.quantize(COLOURS, dither=Image.Dither.NONE).save(temporary, optimize=True)


def describe_recording(recording: Recording) -> dict[str, Any]:
    """What the index says of a clip: whose it is, and its corpus with its licence as far as known."""
    fields = ("set", "source", "speaker", "language", "text")
    known: dict[str, Any] = {key: recording.fields[key] for key in fields if key in recording.fields}
    source = SPEECH_SOURCES.get(recording.fields.get("source", ""))
    if source is not None:
        known |= {"corpus": source.title, "licence": source.licence, "url": source.url}
    return {"clip": recording.clip_name()} | known


def write_samples(recordings: Sequence[Recording], codecs: dict[str, Codec], folder: Path) -> list[dict[str, Any]]:
    """Write sound and picture of each recording, original first, then every codec.

    Returns:
        What the index says of each clip.
    """
    clips = []
    for recording in recordings:
        original = load_audio(recording.path, None, SAMPLING_RATE)
        clip = describe_recording(recording) | {"seconds": len(original) / SAMPLING_RATE, "systems": {}}
        sounds = {}
        for name, codec in codecs.items():
            coded = codec.run(original, SAMPLING_RATE, recording.clip_name())
            sounds[name] = coded.samples
            file = f"{recording.path.stem}-{name}.opus"
            write_opus(folder / file, coded.samples)
            clip["systems"][name] = {"file": file, "bits": None if name == ORIGINAL else coded.bits}
        clip["picture"] = f"{recording.path.stem}.png"
        write_picture(folder / clip["picture"], sounds, recording.fields.get("text") or recording.clip_name())
        clips.append(clip)
    return clips


def main(checkpoint: Path, manifest: Path, clips: Sequence[str], rivals: Sequence[str], output: Path) -> Path:
    """Write all samples into a new folder, with `samples.json`.

    Returns:
        The index.

    Raises:
        ValueError: If a clip or a system cannot be had, or all together take more than `MAX_BYTES`.
        FileExistsError: If the folder is there, and not empty.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"`output` must be new or empty, got {output}")
    recordings = list_recordings(manifest)
    chosen = choose_clips(recordings, clips)
    files = [(recording.clip_name(), recording.path) for recording in recordings]
    specs = named_systems([f"{OURS}=jepa:{checkpoint}", *rivals])
    codecs = {name: make_codec(with_lag(spec, files)) for name, spec in specs.items()}
    output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        temporary.mkdir()
        index = {
            "weights_sha256": sha256_of(checkpoint / "model.safetensors"),
            "systems": {name: codec.name for name, codec in codecs.items()},
            "clips": write_samples(chosen, codecs, temporary),
        }
        (temporary / "samples.json").write_text(json.dumps(index, indent=1, ensure_ascii=False) + "\n")
        size = sum(file.stat().st_size for file in temporary.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"`clips`: samples take {size} bytes, more than {MAX_BYTES}: choose fewer or shorter ones")
    return output / "samples.json"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m training.samples", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="folder of a checkpoint of ours")
    parser.add_argument("manifest", type=Path, help="folder or manifest (.jsonl) of recordings")
    parser.add_argument("--clips", nargs="+", required=True, metavar="ID", help="recordings of it")
    parser.add_argument("--rival", action="append", default=[], metavar="NAME=SPEC", help=f"one of {', '.join(SPECS)}")
    parser.add_argument("--output", type=Path, required=True, help="new folder")
    return parser.parse_args()


if __name__ == "__main__":
    arguments = parse_arguments()
    try:
        index = main(arguments.checkpoint, arguments.manifest, arguments.clips, arguments.rival, arguments.output)
        print(f"samples: {index}")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
