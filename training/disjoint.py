"""Whether training and evaluation share a speaker or a recording, with the proof as a small file.

    python -m training.disjoint SHARDS_OR_FOLDERS... --against FOLDER_OR_MANIFEST --output recordings.json

A speaker is a corpus and an id: `librispeech_1688`, and `1688` of the source `librispeech`, are the same one. The
corpus of a source is that of `assembly/speech_sources.yaml`, or its name up to a `_`: `audiocmn_syllables` and
`audiocmn` are one. A speaker whose corpus is unknown is compared with those of every corpus. A recording is found by
the SHA-256 of its samples, 16-bit and mono, which finds lossless copies under another name or in another format, and by
a spectral fingerprint, which also finds copies that a lossy codec, a resampler, a change of level or a cut has changed.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.progress import track

from modeling_jepa_daam.audio import AudioFile
from modeling_jepa_daam.audio_container import FileWindow
from modeling_jepa_daam.files import replacing

from .assembly.recipes import UNKNOWN, corpus_of
from .assembly.spectral_fingerprint import FingerprintIndex, SpectralFingerprint, fingerprint
from .evaluate_tokenizer import list_recordings
from .recordings import list_rows

DIGITS = 12  # of a SHA-256 that are kept: 48 bits; 8,000 recordings against 200 collide by chance once in 10^8
SIDES = ("training", "evaluation")
Recordings = dict[str, dict[str, Any]]  # {source: {"hours": h, "speakers": {speaker: "digest digest ..."}}}


class Voice(NamedTuple):
    """Whose voice a recording holds: source and speaker, `UNKNOWN` where its metadata does not say."""

    source: str
    speaker: str


class Fingerprint(NamedTuple):
    """One recording: its name for people, its voice, the digest of its samples, its length (s), and how it sounds."""

    name: str
    voice: Voice
    digest: str
    seconds: float
    spectral: SpectralFingerprint


def samples_digest(samples: np.ndarray) -> str:
    """The first `DIGITS` hexadecimal digits of the SHA-256 of `(samples,)`, rounded to 16 bits."""
    steps = (samples.astype(np.float64) * 32768).round().clip(-32768, 32767).astype("<i2")
    return hashlib.sha256(steps.tobytes()).hexdigest()[:DIGITS]


def sample_digest(source: Any) -> tuple[str, float]:
    """The digest of a recording's mono samples, as of `samples_digest`, and its length (s).

    Args:
        source: Path, or binary file, as `AudioFile` reads it.

    Raises:
        ValueError: If it is no audio.
    """
    samples, sampling_rate = _read(source)
    return samples_digest(samples), len(samples) / sampling_rate


def _read(source: Any) -> tuple[np.ndarray, int]:
    with AudioFile(source) as file:
        return file.read(file.count()), file.sampling_rate


def training_rows(source: str) -> Iterator[dict]:
    """The recordings of a tar file, folder or manifest, as training lists them."""
    return list_rows(source, {}, manifest=source.endswith(".jsonl"))


def training_voice(row: dict) -> Voice:
    """Of a row of `recordings.RECORDING`: its speaker names the source if that is the first folder of its path, too."""
    source = Path(row["name"]).parts[0]
    if row["speaker"].startswith(f"{source}_"):
        return Voice(source, row["speaker"].removeprefix(f"{source}_"))
    return Voice(UNKNOWN, row["speaker"])


def evaluation_voice(fields: dict[str, Any]) -> Voice:
    """Of the fields of an evaluated recording: `source` and `speaker`, which may begin with it."""
    source, speaker = fields.get("source", UNKNOWN), fields.get("speaker", UNKNOWN)
    return Voice(source, speaker.removeprefix(f"{source}_"))


def training_fingerprints(rows: Iterable[dict]) -> Iterator[Fingerprint]:
    """Of each row of `recordings.RECORDING`.

    Raises:
        ValueError: If one cannot be read.
    """
    for row in rows:
        with FileWindow(row["path"], row["offset"], row["size"]) as file:
            yield _fingerprint(row["name"], training_voice(row), file)


def evaluation_fingerprints(source: Path) -> Iterator[Fingerprint]:
    """Of each recording that evaluation finds in a folder or manifest.

    Raises:
        ValueError: If there are none, or one cannot be read.
    """
    for recording in list_recordings(source):
        yield _fingerprint(recording.name, evaluation_voice(recording.fields), recording.path)


def _fingerprint(name: str, voice: Voice, source: Any) -> Fingerprint:
    try:
        samples, rate = _read(source)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    spectral = fingerprint(samples.astype(np.float32), rate)
    return Fingerprint(name, voice, samples_digest(samples), len(samples) / rate, spectral)


def tabulate(fingerprints: Iterable[Fingerprint]) -> Recordings:
    """By source, its hours; by speaker, the digests in the order of the alphabet, a blank between them."""
    seconds: dict[str, float] = {}
    digests: dict[str, dict[str, list[str]]] = {}
    for _, (source, speaker), digest, length, _ in fingerprints:
        seconds[source] = seconds.get(source, 0.0) + length
        digests.setdefault(source, {}).setdefault(speaker, []).append(digest)
    return {
        source: {
            "hours": round(seconds[source] / 3600, 3),
            "speakers": {speaker: " ".join(sorted(of_one)) for speaker, of_one in sorted(speakers.items())},
        }
        for source, speakers in sorted(digests.items())
    }


def speakers_of(recordings: Recordings) -> set[Voice]:
    """All speakers that are known, by corpus."""
    return {
        Voice(corpus_of(source), speaker)
        for source, told in recordings.items()
        for speaker in told["speakers"]
        if speaker != UNKNOWN
    }


def digests_of(recordings: Recordings) -> list[str]:
    """Of all recordings."""
    tables = [told["speakers"].values() for told in recordings.values()]
    return [digest for table in tables for digests in table for digest in digests.split()]


def common_speakers(training: Recordings, evaluation: Recordings) -> set[Voice]:
    """Speakers of the evaluation that are, or as far as corpora are known may be, in training."""
    trained = speakers_of(training)
    corpora: dict[str, set[str]] = {}
    for corpus, speaker in trained:
        corpora.setdefault(speaker, set()).add(corpus)
    return {
        voice
        for voice in speakers_of(evaluation)
        if voice in trained
        or UNKNOWN in corpora.get(voice.speaker, ())
        or (voice.source == UNKNOWN and voice.speaker in corpora)
    }


def overlaps(training: Sequence[Fingerprint], evaluation: Sequence[Fingerprint]) -> list[str]:
    """What both sides share, a line each: speakers, then recordings with the names of both."""
    shared = common_speakers(tabulate(training), tabulate(evaluation))
    lines = [f"speaker {voice.speaker} of {voice.source}" for voice in sorted(shared)]
    trained: dict[str, list[str]] = {}
    for each in training:
        trained.setdefault(each.digest, []).append(each.name)
    lines += [
        f"recording {each.name} is {', '.join(trained[each.digest])}" for each in evaluation if each.digest in trained
    ]
    evaluated = {each.digest for each in evaluation}
    index = FingerprintIndex([each.name for each in evaluation], [each.spectral for each in evaluation])
    for each in training:
        match = None if each.digest in evaluated else index.find(each.spectral)
        if match:
            lines.append(
                f"recording {match.name} sounds like {each.name}: {match.seconds:.1f} s, "
                f"{100 * match.error_rate:.0f} % of the bits differ"
            )
    return lines


def command(
    sources: Annotated[list[str], typer.Argument(help="What is trained on: tar files, folders, manifests (.jsonl).")],
    against: Annotated[Path, typer.Option(help="What is evaluated on: a folder or a manifest.")],
    output: Annotated[Path, typer.Option(help="JSON file: the speakers and recordings of both sides.")],
) -> None:
    """Compare training and evaluation: exit code 1, and a line each, if they share a speaker or a recording."""
    try:
        rows = [row for source in sources for row in training_rows(source)]
        console = Console(stderr=True)
        sides = {
            "training": list(track(training_fingerprints(rows), "training", len(rows), console=console)),
            "evaluation": list(evaluation_fingerprints(against)),
        }
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    tables = {name: tabulate(side) for name, side in sides.items()}
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(tables, indent=1) + "\n")
    for name, table in tables.items():
        typer.echo(f"{name}: {len(sides[name])} recordings, {len(speakers_of(table))} speakers, {', '.join(table)}")
    found = overlaps(sides["training"], sides["evaluation"])
    for line in found:
        typer.echo(f"overlap: {line}", err=True)
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command)
