"""Reconstruct recordings with one or more codecs, and say how good they are, and what their tokens hold.

    python -m training.evaluate_tokenizer RECORDINGS --system CHECKPOINT --system codec2:700C --output DIR

Writes into DIR, for each system, `clips.jsonl`, a line a clip; then `summary.json`, `report.md` and pictures. Started
again, it goes on where it was; clips that failed are tried again.
"""

import difflib
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import soundfile
import typer
from rich.console import Console
from rich.progress import track

from modeling_jepa_daam import JepaDaamConfig, __version__
from modeling_jepa_daam.audio import AUDIO_SUFFIXES, AudioFile, load_audio
from modeling_jepa_daam.files import replacing, sha256_of
from modeling_jepa_daam.packing import group_vocabulary_sizes
from modeling_jepa_daam.processes import Outcome, run_in_processes

from .codecs import SPECS, make_codec, with_lag
from .evaluation.ge2e import voice_encoder_file
from .evaluation.moonshine import moonshine_files
from .evaluation.phones import phone_recognizer_file
from .judges import (
    DEFAULT_MOONSHINE,
    DEFAULT_RECOGNIZER,
    DEFAULT_SPEAKER_ENCODER,
    DEFAULT_VOICE_ENCODER,
    JUDGES,
    Judge,
    make_judges,
    missing_judges,
)
from .quality import PESQ_MISSING, reconstruction_quality, token_statistics
from .report import ORIGINAL, Clip, by_system, grouped, write_report

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # not on macOS
SAMPLING_RATE = 24000  # Hz, at which systems are fed and judged
ALL_FILES = ("**/*",)
CHECKPOINT_FILES = ("config.json", "*.safetensors")  # not its card, samples and figures, which say what was measured
WEIGHT_OPTIONS = {  # of judges whose weights do not come with a package that pip fetches whole
    "speaker": "--speaker-encoder",
    "words": "--recognizer",
    "voice": "--voice-encoder",
    "moonshine": "--moonshine",
}
FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "set": (str,),
    "speaker": (str,),
    "group": (str,),
    "source": (str,),
    "language": (str,),
    "text": (str,),
    "bandwidth_hz": (int, float),
}


@dataclass(frozen=True)
class Recording:
    """A file, and what is known of it.

    Args:
        name: Its path within the folder or manifest: what makes a clip the same clip.
        path: Where it is.
        fields: `set`, `speaker`, `group`, `language`, `text`, `bandwidth_hz`, ...; as far as known.
    """

    name: str
    path: Path
    fields: dict[str, Any] = field(hash=False)

    def digest(self) -> str:
        """Of its content and of what is known of it: what its figures depend on.

        Raises:
            OSError: If it cannot be read.
        """
        digest = hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode())
        digest.update(self.path.read_bytes())
        return digest.hexdigest()

    def file_name(self) -> PurePosixPath:
        """A name below a folder of one's own, whatever the manifest says."""
        return PurePosixPath(*(part for part in Path(self.name).parts if part not in (Path(self.name).anchor, "..")))

    def clip_name(self) -> str:
        """As files of its reconstructions are called, but for their endings."""
        return self.file_name().with_suffix("").as_posix()


def list_recordings(source: Path) -> list[Recording]:
    """The recordings of a manifest (`.jsonl`, with `file` or `path`) or of a folder, at every depth.

    A folder's `manifest.jsonl` counts, if there is one. Without, the set is the first part of a file's path, or the
    folder's own name.

    Raises:
        ValueError: If there are none, a line is not a recording, or a name comes twice.
    """
    manifest = source / "manifest.jsonl" if source.is_dir() else source
    if manifest.suffix == ".jsonl" and manifest.is_file():
        lines = manifest.read_text(encoding="utf-8").splitlines()
        found = [_from_line(line, f"{manifest}, line {n}", manifest) for n, line in enumerate(lines, 1) if line.strip()]
    elif source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
        names = [path.relative_to(source) for path in files]
        found = [
            Recording(name.as_posix(), path, {"set": name.parts[0] if len(name.parts) > 1 else source.name})
            for name, path in zip(names, files, strict=True)
        ]
    else:
        raise ValueError(f"`recordings` must be a folder or a manifest (.jsonl), got {source}")
    if not found:
        raise ValueError(f"`recordings`: no sound files ({', '.join(AUDIO_SUFFIXES)}) in {source}")
    if len({recording.file_name() for recording in found}) < len(found):
        raise ValueError(f"`recordings`: {manifest} names a file more than once")
    return found


def _from_line(line: str, where: str, manifest: Path) -> Recording:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error}") from error
    name = (row.get("file") or row.get("path")) if isinstance(row, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{where}: need `file` or `path`, got {line.strip()[:100]}")
    fields = {key: value for key, value in row.items() if key not in ("file", "path") and value is not None}
    for key in fields.keys() - FIELD_TYPES.keys():
        if meant := difflib.get_close_matches(key, FIELD_TYPES, 1, 0.8):
            raise ValueError(f"{where}: `{key}` is no field that counts: do you mean `{meant[0]}`?")
    for key, kind in FIELD_TYPES.items():
        if key in fields and not isinstance(fields[key], kind):
            wanted = " or ".join(each.__name__ for each in kind)
            raise ValueError(f"{where}: `{key}` must be {wanted}, got {fields[key]!r}")
    return Recording(name, manifest.parent / name, {"set": manifest.parent.name} | fields)


def choose_sets(recordings: Sequence[Recording], sets: Sequence[str]) -> list[Recording]:
    """The recordings of some sets, or all of them.

    Raises:
        ValueError: If a set has none.
    """
    if unknown := sorted(set(sets) - {recording.fields["set"] for recording in recordings}):
        raise ValueError(f"`sets`: no recordings of {', '.join(unknown)}")
    return [recording for recording in recordings if not sets or recording.fields["set"] in sets]


@dataclass(frozen=True)
class Judging:
    """Which slower judges a worker makes, and of what.

    Args:
        names: Of `judges.JUDGES`; those whose packages are not installed are left out.
        recognizer: faster-whisper model: a folder, a size, or an id on the Hub.
        speaker_encoder: Weights of SpeechBrain's ECAPA-TDNN: a file, a folder, or an id on the Hub.
        language: Of the clips whose words the recognizer counts.
        voice_encoder: Weights of Resemblyzer's GE2E network: "resemblyzer" for its package, a file, a folder, or an id
            on the Hub.
        moonshine: Moonshine's ONNX graphs: a folder, or an id on the Hub.
    """

    names: tuple[str, ...] = tuple(JUDGES)
    recognizer: str = DEFAULT_RECOGNIZER
    speaker_encoder: str = DEFAULT_SPEAKER_ENCODER
    language: str = "en"
    voice_encoder: str = DEFAULT_VOICE_ENCODER
    moonshine: str = DEFAULT_MOONSHINE

    def make(self) -> dict[str, Judge]:
        """The judges, by name.

        Raises:
            ValueError: If one has no such name, or its weights cannot be had.
        """
        made: dict[str, Judge] = {}
        for name in self.names:
            try:
                made |= make_judges(
                    [name], self.speaker_encoder, self.recognizer, self.language, self.voice_encoder, self.moonshine
                )
            except (OSError, RuntimeError) as error:
                raise _no_weights(name, error) from error
        return made

    def missing(self) -> list[str]:
        """Figures that cannot be taken here, and what to install."""
        return [
            message for message in (PESQ_MISSING, *missing_judges(self.names, self.voice_encoder).values()) if message
        ]

    def hears_words_of(self, fields: dict[str, Any], language: str | None = None) -> bool:
        """Whether a recording's words can be counted: it has a text, in the recognizer's language.

        Args:
            fields: Of the recording.
            language: The recognizer's; `language` of these settings if None.
        """
        own = fields.get("language", self.language).split("-")[0]
        return bool(fields.get("text")) and own == (language or self.language)


class Evaluator:
    """What a worker process keeps: the judges, and the codec of the clips before."""

    def __init__(self, judging: Judging, keep_in: Path | None):
        self.judging, self.judges, self.keep_in = judging, judging.make(), keep_in
        self.spec, self.codec = "", make_codec(ORIGINAL)

    def __call__(self, system: str, spec: str, recording: Recording, digest: str) -> Clip:
        """Code one recording, and judge it.

        Raises:
            Exception: If the file cannot be read, or the codec or a judge fails: the clip is listed with it.
        """
        if spec != self.spec:
            self.codec, self.spec = make_codec(spec), spec
        original = load_audio(recording.path, None, SAMPLING_RATE)
        coded = self.codec.run(original, SAMPLING_RATE, recording.clip_name())
        fields = dict(recording.fields)
        with AudioFile(recording.path) as file:
            limits = (file.sampling_rate / 2, SAMPLING_RATE / 2, fields.get("bandwidth_hz", np.inf))
        fields["bandwidth_hz"] = min(limits)
        row: Clip = {"system": system, "clip": recording.name, "digest": digest, "recording": fields}
        row |= {"seconds": len(original) / SAMPLING_RATE, "bits": coded.bits, "file_bits": coded.file_bits}
        row |= reconstruction_quality(original, coded.samples, SAMPLING_RATE, fields["bandwidth_hz"])
        for judge in self.judges.values():
            if judge.language is None or self.judging.hears_words_of(fields, judge.language):
                row |= judge(original, coded.samples, SAMPLING_RATE, fields.get("text"))
        if coded.tokens is not None and spec.startswith("jepa:"):
            row["tokens"] = coded.tokens.tolist()
        if self.keep_in:
            path = audio_file(self.keep_in, system, recording)
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                soundfile.write(temporary, coded.samples.clip(-1.0, 1.0), SAMPLING_RATE)
        return row


def audio_file(output: Path, system: str, recording: Recording) -> Path:
    """Where the reconstruction of a recording is kept."""
    return output / system / "audio" / f"{recording.file_name()}.flac"


class Results:
    """The lines of one system in a folder of its own, and with what settings they were made.

    Args:
        folder: `clips.jsonl` and `settings.json` are in it; made if it is not there.
        settings: What the figures depend on.

    Raises:
        ValueError: If the folder's lines were made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.path = folder / "clips.jsonl"
        told = folder / "settings.json"
        folder.mkdir(parents=True, exist_ok=True)
        if told.exists() and (before := json.loads(told.read_text())) != settings:
            other = sorted(key for key in before | settings if before.get(key) != settings.get(key))
            raise ValueError(
                f"`output`: {folder} was made with other settings ({', '.join(other)}): remove it, or choose another"
            )
        with replacing(told) as temporary:
            temporary.write_text(json.dumps(settings, indent=1))

    def restart(self) -> dict[str, Clip]:
        """The clips that are there, by name; what an interruption cut off is dropped from the file."""
        text = self.path.read_text() if self.path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(whole))
        return {clip["clip"]: clip for clip in map(json.loads, whole)}

    def add(self, clip: Clip) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(clip) + "\n")


def system_settings(spec: str) -> dict[str, Any]:
    """What the lines of a system depend on: the content of its files; of a checkpoint, its weights and config."""
    kind, *parts = spec.split(":")
    patterns = CHECKPOINT_FILES if kind == "jepa" else ALL_FILES
    files = {part: _content_digest(Path(part), patterns) for part in parts if Path(part).exists()}
    return {"system": spec, "system_files": files}


def common_settings(judging: Judging) -> dict[str, Any]:
    """What all lines depend on: the judges, with the content of their files, and versions."""
    distributions = [name for kind in JUDGES.values() for name in kind.packages.values()]
    versions = {name: _version(name) for name in ["pesq", "pystoi", "torch", *distributions]}
    return {
        "sampling_rate": SAMPLING_RATE,
        **asdict(judging),
        "names": list(judging.names),
        "recognizer_files": _content_digest(Path(judging.recognizer)) if "words" in judging.names else None,
        "speaker_encoder_files": _content_digest(Path(judging.speaker_encoder)) if "speaker" in judging.names else None,
        **_untaught_files(judging),
        "missing": judging.missing(),
        "versions": {"jepa-daam": __version__, **versions},
    }


def _untaught_files(judging: Judging) -> dict[str, str | None]:
    """Digests of the weights of the judges that are no teachers; those that are not made have none.

    SHA-256 of a file; of Moonshine's three, of their digests one after the other.

    Raises:
        ValueError: If weights are not there.
    """
    phones = phone_recognizer_file()
    files: dict[str, Callable[[], tuple[Path, ...]]] = {
        "voice": lambda: (voice_encoder_file(judging.voice_encoder),),
        "moonshine": lambda: moonshine_files(judging.moonshine),
        "phones": lambda: (phones,) if phones else (),
    }
    made = set(judging.names) - missing_judges(judging.names, judging.voice_encoder).keys()
    digests: dict[str, str | None] = dict.fromkeys(files)
    for name in made & files.keys():
        try:
            found = [sha256_of(file) for file in files[name]()]
        except OSError as error:
            raise _no_weights(name, error) from error
        digests[name] = found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()
    return {
        "voice_encoder_files": digests["voice"],
        "moonshine_files": digests["moonshine"],
        "phone_recognizer_files": digests["phones"],
    }


def _no_weights(judge: str, error: Exception) -> ValueError:
    given = f"give {WEIGHT_OPTIONS[judge]}, or " if judge in WEIGHT_OPTIONS else ""
    problem = f"{type(error).__name__}: {error}"
    return ValueError(f"`judges`: {judge} has no weights here: {given}leave it out of --judges: {problem}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _content_digest(path: Path, patterns: Sequence[str] = ALL_FILES) -> str | None:
    """Of a file, or of the files of a folder that match a pattern; `None` if it is not there."""
    if not path.exists():
        return None
    digest = hashlib.sha256()
    found = sorted({file for pattern in patterns for file in path.glob(pattern)}) if path.is_dir() else [path]
    for file in found:
        if file.is_file():
            digest.update(file.relative_to(path).as_posix().encode())
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def evaluate_systems(
    recordings: Sequence[Recording],
    systems: dict[str, str],
    output: Path,
    judging: Judging,
    jobs: int = 1,
    keep_audio: bool = False,
) -> tuple[list[Clip], list[dict[str, str]]]:
    """Judge every clip of every system that has no line yet.

    Args:
        recordings: What to code.
        systems: Spec of each system (see `codecs.make_codec`) by name.
        output: A folder a system.
        judging: The slower figures.
        jobs: Processes, one thread each; 0: this process does it, with its threads.
        keep_audio: Whether to write the reconstructions, under `audio` in a system's folder.

    Returns:
        The clips, in the order of systems and recordings; and those that failed: `system`, `clip` and `error`.

    Raises:
        ValueError: If a system or a judge cannot be made, or `output` has lines that were made with other settings.
    """
    files = [(recording.clip_name(), recording.path) for recording in recordings]
    systems = {name: with_lag(spec, files) for name, spec in systems.items()}
    for spec in systems.values():  # what is missing is noticed here, and not in each worker
        make_codec(spec)
    common = common_settings(judging)
    results = {name: Results(output / name, system_settings(spec) | common) for name, spec in systems.items()}
    found = {name: result.restart() for name, result in results.items()}
    digests, failures = {}, []
    for recording in recordings:
        try:
            digests[recording.name] = recording.digest()
        except OSError as error:
            failures += [_failure(name, recording, error) for name in systems]

    clips: dict[tuple[str, str], Clip] = {}
    tasks = []
    for name, spec in systems.items():
        for recording in recordings:
            digest = digests.get(recording.name)
            before = found[name].get(recording.name, {})
            kept = not keep_audio or audio_file(output, name, recording).exists()
            if before.get("digest") == digest is not None and kept:
                clips[name, recording.name] = before
            elif digest is not None:
                tasks.append((name, spec, recording, digest))
    if tasks and jobs > 0:  # so are judges; in this process they are made once
        judging.make()
    console = Console(stderr=True)
    outcomes: Iterator[Outcome] = run_in_processes(tasks, jobs, Evaluator, (judging, output if keep_audio else None))
    for (name, _, recording, _), clip, problem in track(outcomes, "clips", len(tasks), console=console):
        if problem is not None:
            failures.append(_failure(name, recording, problem))
        else:
            results[name].add(clip)
            clips[name, recording.name] = clip
    order = [(name, recording.name) for name in systems for recording in recordings]
    return [clips[key] for key in order if key in clips], failures


def _failure(system: str, recording: Recording, error: BaseException) -> dict[str, str]:
    return {"system": system, "clip": recording.name, "error": f"{type(error).__name__}: {error}"}


def token_figures(clips: Sequence[Clip], config: JepaDaamConfig) -> dict[str, Any]:
    """What the tokens of some clips hold: see `token_statistics`."""
    tokens = [np.array(clip["tokens"], dtype=np.int64) for clip in clips]
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    return token_statistics(tokens, sizes, config.levels, config.group_size, sum(clip["seconds"] for clip in clips))


def named_systems(systems: Sequence[str]) -> dict[str, str]:
    """`[name=]spec` to specs by name: a folder without `:` is a checkpoint of ours.

    Raises:
        ValueError: If a name comes twice, or cannot be a folder's.
    """
    named = {ORIGINAL: ORIGINAL}
    for system in systems:
        name, is_named, spec = system.partition("=")
        if not is_named or "/" in name or ":" in name:  # an equals sign within a path
            name, spec = system.strip("/").replace(":", "-").replace("/", "-").lstrip("."), system
        if name in (*named, "", ".", ".."):
            raise ValueError(f"`system`: need a name of its own, as in name={spec}, got {system!r}")
        named[name] = spec if ":" in spec or spec in SPECS else f"jepa:{spec}"
    return named


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def command(
    recordings: Annotated[Path, typer.Argument(help="Folder or manifest of recordings.")],
    system: Annotated[list[str], typer.Option(help=f"[name=]checkpoint, or one of {', '.join(SPECS)}")],
    output: Annotated[Path, typer.Option(help="Folder for figures, report and pictures.")],
    judges: Annotated[str, typer.Option(help="Slower figures: some of these, or none.")] = ",".join(JUDGES),
    recognizer: Annotated[str, typer.Option(help="faster-whisper: folder, size or Hub id.")] = Judging.recognizer,
    speaker_encoder: Annotated[str, typer.Option(help="ECAPA-TDNN: file, folder or Hub id.")] = Judging.speaker_encoder,
    voice_encoder: Annotated[
        str, typer.Option(help="GE2E of Resemblyzer: its package, a file, folder or Hub id.")
    ] = Judging.voice_encoder,
    moonshine: Annotated[str, typer.Option(help="Moonshine's ONNX graphs: folder or Hub id.")] = Judging.moonshine,
    language: Annotated[str, typer.Option(help="Of the clips whose words are counted.")] = Judging.language,
    sets: Annotated[str, typer.Option(help="Sets to take, with commas; all if empty.")] = "",
    jobs: Annotated[int, typer.Option(min=0, help="Processes, one thread each.")] = CORES,
    keep_audio: Annotated[bool, typer.Option(help="Write the reconstructions.")] = False,
    original: Annotated[bool, typer.Option(help="Judge the originals, too.")] = True,
) -> None:
    """Judge codecs on recordings: quality, bit rate and tokens. Started again, it goes on where it was."""
    try:
        chosen = choose_sets(list_recordings(recordings), sets.split(",") if sets else [])
        names = tuple(judges.split(",")) if judges else ()
        judging = Judging(names, recognizer, speaker_encoder, language, voice_encoder, moonshine)
        not_measured = judging.missing()
        if "words" in judging.names and (silent := sum(not judging.hears_words_of(each.fields) for each in chosen)):
            not_measured.append(f"words of {silent} recordings, which have no text in language {language!r}")
        for missing in not_measured:
            typer.echo(f"not measured: {missing}", err=True)
        systems = named_systems(system)
        if not original:
            del systems[ORIGINAL]
        clips, failures = evaluate_systems(chosen, systems, output, judging, jobs, keep_audio)
    except ValueError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    tokens: dict[str, dict[str, dict[str, Any]]] = {}
    for name, rows in by_system([clip for clip in clips if "tokens" in clip]).items():
        config = JepaDaamConfig.from_pretrained(systems[name].removeprefix("jepa:"))
        tokens[name] = {of_set: token_figures(part, config) for of_set, part in grouped(rows, "set").items()}
    settings = {name: json.loads((output / name / "settings.json").read_text()) for name in systems}
    typer.echo(f"report: {write_report(clips, failures, not_measured, tokens, settings, output)}")
    for failure in failures:
        typer.echo(f"failed: {failure['system']}, {failure['clip']}: {failure['error']}", err=True)
    if failures:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
