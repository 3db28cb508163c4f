"""Tar shards of a corpus: `source/speaker/name.opus` beside `name.json`, as LibriLight has them.

Recordings are dealt to shards by a hash of their paths, so each shard is a fair sample of its source. A shard depends
on its recordings, the recipe and the recordings that are kept out, and on nothing else. It appears by a rename when it
is whole, after its report `SHARD.json`; an interrupted run resumes at the first shard that is missing. Equal input
gives equal bytes with the same versions of libsndfile, libopus and soxr.
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_jepa_daam.files import replacing, sha256_of, write_json

from ..disjoint import Voice, samples_digest
from .recipes import UNKNOWN, Clip, LeftOut, SpeechSource, corpus_of, find_clips, slug
from .sound_files import SAMPLING_RATE, bandwidth_hz, cut, encode_opus, is_silent, read_sound, resample
from .spectral_fingerprint import FingerprintIndex, SpectralFingerprint, fingerprint

LEAST_S = 0.4  # shorter recordings are left out
RECORDINGS_PER_SHARD = 1000
NAME_LENGTH = 48  # characters of a recording's own name that are kept
VERSION = 1  # of what a shard holds; another one makes other bytes of the same recordings


@dataclass(frozen=True)
class KeptOut:
    """What must not be in a corpus.

    Args:
        speakers: Speakers of an evaluation, by corpus.
        digests: Digests of recordings' samples, and their names.
        index: Spectral fingerprints of the same recordings.
    """

    speakers: frozenset[Voice]
    digests: dict[str, str]
    index: FingerprintIndex

    def has_speaker(self, source: str, speaker: str) -> bool:
        """Whether a speaker of a source is one of the evaluation's."""
        return speaker != UNKNOWN and Voice(corpus_of(source), speaker) in self.speakers

    def recording(self, digest: str, spectral: SpectralFingerprint) -> str | None:
        """Name of the recording that is the same sound, or None."""
        if digest in self.digests:
            return self.digests[digest]
        match = self.index.find(spectral)
        return match.name if match else None

    def sha256(self) -> str:
        """SHA-256 of speakers and recordings."""
        text = json.dumps([sorted(self.speakers), sorted(self.digests), self.index.sha256()])
        return hashlib.sha256(text.encode()).hexdigest()


def assemble(
    source: str,
    recipe: SpeechSource,
    folder: Path,
    output: Path,
    kept_out: KeptOut,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Write the shards of a source and its manifest `SOURCE.manifest.json`; return the manifest.

    Args:
        source: Name of the recipe.
        recipe: The recipe.
        folder: The corpus.
        output: Folder of the shards.
        kept_out: What must not be in them.
        report: Receives a line for each shard and for each damaged file.

    Raises:
        ValueError: If there are no recordings, or `output` has shards of other recordings or of another recipe.
    """
    clips, left_out = find_clips(recipe, folder)
    copies: dict[str, str] = {}
    digests = {}
    for clip in clips:
        digest = sha256_of(folder / clip.path)
        if digest in copies:
            left_out.append(LeftOut(clip.path, f"a copy of {copies[digest]}"))
        else:
            copies[digest] = clip.path
            digests[clip.path] = digest
    clips = sorted((clip for clip in clips if clip.path in digests), key=lambda clip: _order(clip.path))
    plan = json.dumps([VERSION, source, LEAST_S, RECORDINGS_PER_SHARD, recipe.segment_s, kept_out.sha256()])
    listed = json.dumps([[asdict(clip), digests[clip.path]] for clip in clips])
    plan_sha256 = hashlib.sha256((plan + listed).encode()).hexdigest()

    reports = []
    starts = range(0, len(clips), RECORDINGS_PER_SHARD)
    for number, start in enumerate(starts):
        tar = output / f"{source}-{number:03d}.tar"
        if not tar.exists():
            batch = clips[start : start + RECORDINGS_PER_SHARD]
            _write_shard(tar, source, recipe, folder, batch, digests, kept_out, report, plan_sha256)
        reports.append(_read_report(tar, plan_sha256))
        report(f"{tar.name}: {len(reports[-1]['clips'])} clips ({number + 1} of {len(starts)} shards)")
    manifest = _manifest(source, recipe, reports, left_out)
    write_json(output / f"{source}.manifest.json", manifest)
    return manifest


def _order(path: str) -> str:
    return hashlib.sha256(path.encode()).hexdigest()


def _report_path(tar: Path) -> Path:
    return tar.with_suffix(".json")


def _read_report(tar: Path, plan_sha256: str) -> dict[str, Any]:
    path = _report_path(tar)
    report = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if report.get("plan_sha256") != plan_sha256:
        raise ValueError(
            f"`output`: {tar} holds other recordings, or was made by another recipe or with other recordings kept out; "
            "remove it or choose another folder"
        )
    if report["sha256"] != sha256_of(tar):
        raise ValueError(f"`output`: {tar} is damaged: its SHA-256 is not that of {path.name}; remove it")
    return report


def _write_shard(
    tar: Path,
    source: str,
    recipe: SpeechSource,
    folder: Path,
    clips: Sequence[Clip],
    digests: dict[str, str],
    kept_out: KeptOut,
    report: Callable[[str], None],
    plan_sha256: str,
) -> None:
    written: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    with replacing(tar) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            for clip in clips:
                try:
                    samples, rate = read_sound(folder / clip.path)
                except ValueError as error:
                    report(f"refused: {error}")
                    left_out.append(LeftOut(clip.path, str(error).removeprefix(f"{folder / clip.path}: ")))
                    continue
                if kept_out.has_speaker(source, clip.speaker):
                    left_out.append(LeftOut(clip.path, f"speaker of the evaluation: {clip.speaker}"))
                    continue
                for part in _parts(source, recipe, clip, samples, rate, kept_out):
                    if isinstance(part, LeftOut):
                        left_out.append(part)
                        continue
                    name, opus, metadata, digest = part
                    _add(archive, f"{name}.opus", opus)
                    _add(archive, f"{name}.json", json.dumps(metadata, ensure_ascii=False).encode())
                    written.append(
                        {
                            "name": name,
                            "path": clip.path,
                            "path_sha256": digests[clip.path],
                            "samples_sha256": digest,
                            "opus_sha256": hashlib.sha256(opus).hexdigest(),
                            "duration_s": metadata["duration_s"],
                            "speaker": metadata["speaker"],
                            "language": metadata["language"],
                            "licence": metadata["licence"],
                        }
                    )
        write_json(
            _report_path(tar),
            {
                "plan_sha256": plan_sha256,
                "sha256": sha256_of(temporary),
                "clips": written,
                "left_out": [asdict(each) for each in left_out],
            },
        )


def _parts(
    source: str, recipe: SpeechSource, clip: Clip, samples: np.ndarray, rate: int, kept_out: KeptOut
) -> Iterator[LeftOut | tuple[str, bytes, dict[str, Any], str]]:
    """The clips of one recording: name without suffix, Ogg Opus file, metadata, and digest of the samples."""
    digest = samples_digest(samples)
    parts = cut(resample(samples, rate), SAMPLING_RATE, recipe.segment_s)
    for number, part in enumerate(parts):
        path = clip.path if len(parts) == 1 else f"{clip.path}, clip {number}"
        if len(part) < LEAST_S * SAMPLING_RATE:
            yield LeftOut(path, f"shorter than {LEAST_S} s")
            continue
        if is_silent(part, SAMPLING_RATE):
            yield LeftOut(path, "silent")
            continue
        found = kept_out.recording(digest, fingerprint(part, SAMPLING_RATE))
        if found is not None:
            yield LeftOut(path, f"kept out: {found}")
            continue
        own = slug(Path(clip.path).stem)[:NAME_LENGTH] + f"-{_order(clip.path)[:8]}"
        name = own if len(parts) == 1 else f"{own}-{number:02d}"
        metadata = {
            "source": source,
            "speaker": f"{source}_{clip.speaker}",
            "language": clip.language,
            "text": clip.text if len(parts) == 1 else None,
            "duration_s": round(len(part) / SAMPLING_RATE, 3),
            "source_rate": rate,
            "bandwidth_hz": bandwidth_hz(part, rate),
            "licence": clip.licence,
        }
        yield f"{source}/{metadata['speaker']}/{name}", encode_opus(part), metadata, digest


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # its owner, group and time are 0
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def _manifest(
    source: str, recipe: SpeechSource, reports: Sequence[dict[str, Any]], left_out: Sequence[LeftOut]
) -> dict[str, Any]:
    clips = [clip for report in reports for clip in report["clips"]]
    rejected = [asdict(each) for each in left_out] + [each for report in reports for each in report["left_out"]]
    hours: dict[str, dict[str, float]] = {"language": {}, "licence": {}}
    for clip in clips:
        for key, table in hours.items():
            table[clip[key]] = table.get(clip[key], 0.0) + clip["duration_s"] / 3600
    return {
        "source": source,
        "title": recipe.title,
        "url": recipe.url,
        "hours": round(sum(clip["duration_s"] for clip in clips) / 3600, 3),
        "clips": len(clips),
        "speakers": len({clip["speaker"] for clip in clips}),
        "hours_by_language": {name: round(value, 3) for name, value in sorted(hours["language"].items())},
        "hours_by_licence": {name: round(value, 3) for name, value in sorted(hours["licence"].items())},
        "shards": {f"{source}-{number:03d}.tar": each["sha256"] for number, each in enumerate(reports)},
        "left_out": rejected,
    }
