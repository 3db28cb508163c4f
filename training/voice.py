"""The clips of one voice out of tar files: sound files, and a manifest of which single clips can be held out.

python -m training.voice OUTPUT SHARDS... [--voice kathleen] [--seconds 30]
"""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import soundfile
import typer

from modeling_jepa_daam.audio import AudioFile
from modeling_jepa_daam.files import replacing

CLIP_S = (1.5, 6.0)  # shortest and longest clip


def unpack_voice(shards: Sequence[Path], voice: str, folder: Path, seconds: float = float("inf")) -> Path:
    """Write clips as FLAC, and `manifest.jsonl`; a clip without speaker is a speaker of its own.

    Args:
        shards: Tar files of `source/speaker/name.opus` beside `name.json`.
        voice: The source.
        folder: Where to.
        seconds: Of sound, after which to stop.

    Returns:
        The manifest.

    Raises:
        ValueError: If there are no clips of the voice.
    """
    manifest = folder / "manifest.jsonl"
    if manifest.exists():
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    lines, unpacked = [], 0.0
    for shard in shards:
        with tarfile.open(shard) as tar:
            files = {member.name for member in tar if member.isfile() and member.name.startswith(f"{voice}/")}
            for name in sorted(files):
                if name.endswith(".json") or unpacked >= seconds:
                    continue
                with AudioFile(_content(tar, name), name) as file:
                    samples, rate = file.read(file.count()), file.sampling_rate
                if CLIP_S[0] <= len(samples) / rate <= CLIP_S[1]:
                    clip = Path(name).with_suffix(".flac").name
                    soundfile.write(folder / clip, samples, rate)
                    sidecar = Path(name).with_suffix(".json").as_posix()
                    metadata = json.loads(_content(tar, sidecar)) if sidecar in files else {}
                    lines.append(json.dumps({"path": clip, "bandwidth_hz": metadata.get("bandwidth_hz")}))
                    unpacked += len(samples) / rate
    if not lines:
        raise ValueError(f"`voice`: no clips of {voice} in {', '.join(map(str, shards))}")
    with replacing(manifest) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    typer.echo(f"{folder}: {len(lines)} clips of {voice}, {unpacked:.0f} s")
    return manifest


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    assert file is not None  # a file's name, not a folder's
    return file.read()


def command(
    output: Annotated[Path, typer.Argument(help="Folder for the clips.")],
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    voice: Annotated[str, typer.Option(help="Source of the clips.")] = "kathleen",
    seconds: Annotated[float, typer.Option(help="Of sound, after which to stop.")] = float("inf"),
) -> None:
    """Unpack the clips of one voice."""
    unpack_voice(shards, voice, output, seconds)


if __name__ == "__main__":
    typer.run(command)
