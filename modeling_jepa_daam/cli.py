"""The command `jepa-audio`: files in, files out."""

import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from .audio import AUDIO_SUFFIXES, PYAV_SUFFIXES, SOUNDFILE_SUFFIXES, read_blocks, write_audio
from .audio_container import check_regular_file
from .cli_common import (
    EXIT_SOME_FAILED,
    SHIPPED_HELP,
    SHIPPED_MODEL,
    DeviceOption,
    Dtype,
    DtypeOption,
    ModelOption,
    console,
    count_parameters,
    errors,
    fail,
    hide_progress_bars,
    lacks_weights,
    load_config,
    load_tokenizer,
)
from .cli_hub import models_command, push_command
from .corpus.command import tokenize_corpus_command
from .version import __version__

MAX_NAMED = 20  # skipped files that are named
RESULT_SUFFIXES = frozenset({".flac", ".jepa", ".wav"})

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Speech to tokens and back. Exit codes: 0 all done, 1 some files failed (they are named), 2 wrong usage.",
)


class AudioFormat(StrEnum):
    """Container of decoded audio."""

    wav = "wav"
    flac = "flac"


InputsArgument = Annotated[list[Path], typer.Argument(help="Files and folders (searched at every depth).")]
SoundsArgument = Annotated[
    list[Path],
    typer.Argument(
        help="Sound files, and folders (searched at every depth): "
        f"{', '.join(SOUNDFILE_SUFFIXES)}; with PyAV (the extra `av`) also {', '.join(PYAV_SUFFIXES)}."
    ),
]
TruncatedOption = Annotated[
    bool,
    typer.Option(
        "--allow-truncated", help="Take what there is of files that are cut short, and report how much is missing."
    ),
]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace results that are already there.")]
FormatOption = Annotated[AudioFormat, typer.Option("--format", help="Format of the audio that is written.")]


@dataclass(frozen=True)
class _Found:
    """What the inputs of a command hold.

    Args:
        files: Every file to work on, and its place below the output folder without its suffix.
        skipped: Files of folders that are of other kinds, and hidden files and folders.
    """

    files: list[tuple[Path, Path]]
    skipped: list[Path]


def _find(inputs: list[Path], suffixes: tuple[str, ...], output: Path) -> _Found:
    """Every file to work on, whether it can be read or not; folders are searched at every depth, through links."""
    if output.suffix in RESULT_SUFFIXES or (output.exists() and not output.is_dir()):
        raise fail(f"--output must be a folder, got {output}")
    if inputs and not any(os.path.lexists(path) for path in inputs):
        raise fail(f"no such file or folder: {', '.join(map(str, inputs))}")
    found: list[tuple[Path, Path]] = []
    skipped: list[Path] = []
    for path in inputs:
        if not path.is_dir():
            found.append((path, Path(path.stem)))
            continue
        for file in _walk(path, output.resolve(), skipped):
            if file.suffix.lower() in suffixes:
                found.append((file, file.relative_to(path).with_suffix("")))
            else:
                skipped.append(file)
    if not found:
        raise fail(f"nothing to do: no {', '.join(suffixes)} in {', '.join(map(str, inputs))}")
    targets: dict[Path, Path] = {}
    for file, target in dict.fromkeys(found):
        if target in targets:
            raise fail(f"{targets[target]} and {file} would both become {target}.*: give them in separate runs")
        targets[target] = file
    return _Found(list(dict.fromkeys(found)), skipped)


def _walk(folder: Path, output: Path, skipped: list[Path]) -> list[Path]:
    """The files of a folder, sorted.

    Hidden files and folders (an interrupted run leaves some) are skipped. Results of earlier runs below the input are
    no input.
    """
    files: list[Path] = []
    seen: set[str] = set()
    below = folder.resolve() in output.parents
    for name, folders, names in os.walk(folder, followlinks=True):
        place = Path(name)
        if os.path.realpath(place) in seen or (below and output in (place.resolve(), *place.resolve().parents)):
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        skipped += [place / each for each in sorted([*folders, *names]) if each.startswith(".")]
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        files += [place / each for each in names if not each.startswith(".")]
    return sorted(files)


def _count_by_suffix(paths: list[Path]) -> str:
    kinds = ["hidden" if path.name.startswith(".") else path.suffix.lower() or "no suffix" for path in paths]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))


def _run(
    found: _Found,
    output: Path,
    suffix: str,
    overwrite: bool,
    work: Callable[[Path, Path], float],
    check_kept: Callable[[Path], object] = lambda target: None,
) -> None:
    """Apply `work(file, target) -> seconds of audio` to every file; name what failed and exit accordingly."""
    failed: list[tuple[Path, str]] = []
    kept, written, audio_s, start = 0, 0, 0.0, time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors) as progress:
        task = progress.add_task("", total=len(found.files))
        for file, name in found.files:
            progress.update(task, description=file.name)
            target = output / name.with_name(name.name + suffix)
            try:
                check_regular_file(file, "not readable")
            except (OSError, ValueError) as error:
                failed.append((file, str(error).removeprefix("not readable: ")))
                progress.advance(task)
                continue
            if target.exists() and target.samefile(file):
                failed.append((file, "the result would take the place of the recording: choose another --output"))
                progress.advance(task)
                continue
            try:
                if target.exists() and not overwrite:
                    check_kept(target)
                    kept += 1
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    audio_s += work(file, target)
                    written += target.stat().st_size
            except (OSError, ValueError) as error:
                failed.append((file, str(error).removeprefix(f"{file}: ")))
            progress.advance(task)
    elapsed = time.perf_counter() - start
    done = len(found.files) - len(failed) - kept
    summary = f"{done} done, {kept} kept, {len(failed)} failed"
    if found.skipped:
        summary += f", {len(found.skipped)} skipped ({_count_by_suffix(found.skipped)})"
    summary += f" in {output}"
    if done:
        summary += f": {audio_s:.1f} s of audio in {elapsed:.2f} s, {audio_s / elapsed:.1f} times real time"
        summary += f"; {written} bytes written"
    console.print(summary, highlight=False, soft_wrap=True)
    for path in found.skipped[:MAX_NAMED]:
        errors.print(f"skipped: {path}", highlight=False, soft_wrap=True)
    if len(found.skipped) > MAX_NAMED:
        errors.print(f"... and {len(found.skipped) - MAX_NAMED} more are skipped", highlight=False, soft_wrap=True)
    for file, reason in failed:
        errors.print(f"failed: {file}: {reason}", style="red", highlight=False, soft_wrap=True)
    if failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _reporter(file: Path, allow_truncated: bool) -> Callable[[str], None] | None:
    """What reports how much of a file is missing, if such files are taken."""
    if not allow_truncated:
        return None
    return lambda problem: errors.print(f"truncated: {file}: {problem}", highlight=False, soft_wrap=True)


def _version(value: bool) -> None:
    if value:
        console.print(f"jepa-audio {__version__}", highlight=False)
        raise typer.Exit()


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Speech to tokens and back."""


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="Checkpoint folder, folder with a config.json, or Hub id.", show_default=SHIPPED_HELP)
    ] = str(SHIPPED_MODEL),
) -> None:
    """Print a model's rates, vocabulary and sizes."""
    config = load_config(model)
    size = count_parameters(config)
    named = config.weights_sha256
    weights = "not verified" if named is None else f"SHA-256 {str(named)[:12]}..."
    if isinstance(named, dict):
        weights = ", ".join(f"{file}: SHA-256 {digest[:12]}..." for file, digest in named.items())
    if config.untrained_seed is not None:
        weights = f"untrained, seed {config.untrained_seed}"
    elif lacks_weights(model):
        weights = "none, a configuration only"
    table = Table(show_header=False, title=Text(model))
    for name, value in (
        ("sampling rate", f"{config.sampling_rate} Hz"),
        ("frame", f"{config.hop_length} samples, {config.frame_rate:g} frames/s"),
        ("tokens", f"{config.tokens_per_frame} a frame, {config.token_rate:g} tokens/s"),
        ("vocabulary", f"{config.vocab_size} ids"),
        ("information", f"{config.bitrate_bps:g} bit/s"),
        ("chunk", f"{config.chunk_frames} frames, {config.chunk_frames / config.frame_rate:g} s"),
        ("encoder", f"{size['encoder'] / 1e6:.1f}M parameters"),
        ("decoder", f"{size['decoder'] / 1e6:.1f}M parameters"),
        ("config digest", config.digest),
        ("weights", weights),
    ):
        table.add_row(name, value)
    console.print(table)


@app.command()
def init(
    config: Annotated[str, typer.Argument(help="Folder with a config.json, or Hub id.")],
    output: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Make a checkpoint with untrained weights, to try the tools and to measure speed."""
    from .checkpoint import make_untrained_checkpoint

    hide_progress_bars()
    try:
        make_untrained_checkpoint(load_config(config), output, seed)
    except FileExistsError as error:
        raise fail(f"{output} is there already: choose another folder, or remove it") from error
    except OSError as error:
        raise fail(str(error)) from error
    console.print(f"untrained checkpoint (seed {seed}) in {output}", highlight=False, soft_wrap=True)


@app.command()
def encode(
    inputs: SoundsArgument,
    output: OutputOption,
    model: ModelOption = str(SHIPPED_MODEL),
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    overwrite: OverwriteOption = False,
    allow_truncated: TruncatedOption = False,
) -> None:
    """Turn audio files into token files (.jepa)."""
    from .token_file import TokenFileError, read_token_file, write_token_file

    found = _find(inputs, AUDIO_SUFFIXES, output)
    tokenizer = load_tokenizer(model, device, dtype)

    def work(file: Path, target: Path) -> float:
        ids, num_samples = tokenizer.encode_file(file, _reporter(file, allow_truncated))
        write_token_file(target, ids, num_samples, tokenizer.model.config)
        return num_samples / tokenizer.sampling_rate

    def check_kept(target: Path) -> None:
        try:
            read_token_file(target, tokenizer.model.config)
        except TokenFileError as error:
            raise TokenFileError(f"{error}; --overwrite replaces it") from error

    _run(found, output, ".jepa", overwrite, work, check_kept)


@app.command()
def decode(
    inputs: InputsArgument,
    output: OutputOption,
    model: ModelOption = str(SHIPPED_MODEL),
    audio_format: FormatOption = AudioFormat.wav,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    overwrite: OverwriteOption = False,
) -> None:
    """Turn token files (.jepa) back into audio files."""
    from .token_file import read_token_file

    found = _find(inputs, (".jepa",), output)
    tokenizer = load_tokenizer(model, device, dtype)

    def work(file: Path, target: Path) -> float:
        tokens = read_token_file(file, tokenizer.model.config)
        pieces = tokenizer.iter_decode_audio(tokens.input_ids)
        write_audio(target, pieces, tokens.num_samples, tokenizer.sampling_rate)
        return tokens.num_samples / tokenizer.sampling_rate

    _run(found, output, f".{audio_format.value}", overwrite, work)


@app.command()
def reconstruct(
    inputs: SoundsArgument,
    output: OutputOption,
    model: ModelOption = str(SHIPPED_MODEL),
    audio_format: FormatOption = AudioFormat.wav,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
    overwrite: OverwriteOption = False,
    allow_truncated: TruncatedOption = False,
) -> None:
    """Send audio files through the tokens and back."""
    found = _find(inputs, AUDIO_SUFFIXES, output)
    tokenizer = load_tokenizer(model, device, dtype)

    def work(file: Path, target: Path) -> float:
        ids, num_samples = tokenizer.encode_file(file, _reporter(file, allow_truncated))
        write_audio(target, tokenizer.iter_decode_audio(ids), num_samples, tokenizer.sampling_rate)
        return num_samples / tokenizer.sampling_rate

    _run(found, output, f".{audio_format.value}", overwrite, work)


@app.command()
def plot(
    audio: Annotated[Path, typer.Argument(help="Audio file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG file to write.")],
    model: ModelOption = str(SHIPPED_MODEL),
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds from the start that are drawn.")] = 30.0,
    salience: Annotated[
        bool, typer.Option("--salience", help="Draw the gates in each frame under waveform and energy, instead.")
    ] = False,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Draw waveform, both spectrograms, tokens and DAAM gates of a recording."""
    try:
        from .plotting import plot_recording, plot_salience
        from .salience import daam_gates
    except ImportError as error:
        raise fail(f"plotting needs matplotlib: pip install matplotlib ({error})") from error
    if not audio.is_file():
        raise fail(f"no such file: {audio}")
    tokenizer = load_tokenizer(model, device, dtype)
    rate, limit = tokenizer.sampling_rate, int(seconds * tokenizer.sampling_rate)
    try:
        blocks, taken = [], 0
        for block in read_blocks(audio, rate):
            blocks.append(block[: limit - taken])
            taken += len(blocks[-1])
            if taken >= limit:
                break
        samples = np.concatenate(blocks)
        output.parent.mkdir(parents=True, exist_ok=True)
        if salience:
            frames = np.asarray(tokenizer.salience(samples, rate))
            plot_salience(output, audio.name, rate, tokenizer.hop_length, samples, frames)
        else:
            ids = tokenizer(samples, rate)["input_ids"]
            reconstruction = tokenizer.decode_audio(ids, num_samples=len(samples))
            tokens = np.reshape(ids, (-1, tokenizer.tokens_per_frame)).T
            gates = daam_gates(tokenizer.model, samples)
            plot_recording(output, audio.name, rate, tokenizer.hop_length, samples, reconstruction, tokens, gates)
    except (OSError, ValueError) as error:
        errors.print(f"failed: {audio}: {error}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_SOME_FAILED) from error
    console.print(f"{len(samples) / rate:.1f} s of {audio.name} in {output}", highlight=False, soft_wrap=True)


@app.command()
def bench(
    model: ModelOption = str(SHIPPED_MODEL),
    seconds: Annotated[float, typer.Option(min=0.4, max=3600, help="Seconds of noise to encode and decode.")] = 12.0,
    runs: Annotated[int, typer.Option(min=1, help="Runs of which the median is printed.")] = 5,
    device: DeviceOption = "cpu",
    dtype: DtypeOption = Dtype.float32,
) -> None:
    """Measure how much faster than real time a model encodes and decodes here."""
    import torch

    tokenizer = load_tokenizer(model, device, dtype)
    rate = tokenizer.sampling_rate
    samples = np.random.default_rng(0).normal(0.0, 0.1, int(seconds * rate)).astype(np.float32)
    ids = tokenizer(samples, rate)["input_ids"]
    table = Table(
        "",
        "median (s)",
        "times real time",
        title=f"{seconds:g} s, {torch.get_num_threads()} threads, {device}, {dtype.value}",
    )
    for name, work in (("encode", lambda: tokenizer(samples, rate)), ("decode", lambda: tokenizer.decode_audio(ids))):
        work()
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        median = statistics.median(times)
        table.add_row(name, f"{median:.3f}", f"{seconds / median:.1f}")
    console.print(table)


@app.command("export-onnx")
def export_onnx_command(
    output: Annotated[Path, typer.Argument(help="Folder of the graphs.")],
    model: ModelOption = str(SHIPPED_MODEL),
    check: Annotated[
        list[Path], typer.Option(help="Recordings whose tokens have to be the same too (files and folders).")
    ] = [],  # noqa: B006 (typer's way)
) -> None:
    """Write encoder and decoder as ONNX graphs that make the same tokens under onnxruntime, or nothing."""
    files = [file for file, _ in _find(check, AUDIO_SUFFIXES, output).files] if check else []
    tokenizer = load_tokenizer(model, "cpu", Dtype.float32)
    errors.print("tracing both directions and comparing them with PyTorch's takes a while", highlight=False)
    try:
        from .onnx_export import export_onnx

        clips = [np.concatenate(list(read_blocks(file, tokenizer.sampling_rate))) for file in files]
        report = export_onnx(tokenizer.model, output, clips)
    except ImportError as error:
        raise fail(str(error)) from error
    except FileExistsError as error:
        raise fail(f"{output} is there already: choose another folder, or remove it") from error
    except (OSError, ValueError) as error:
        errors.print(f"failed: {error}", style="red", highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_SOME_FAILED) from error
    sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in sorted(output.glob("*.onnx")))
    console.print(
        f"{output}: {sizes}; {report.tokens} tokens the same as PyTorch's, latents within "
        f"{report.latents_difference:.1e}, audio within {report.audio_difference:.1e}",
        highlight=False,
        soft_wrap=True,
    )


app.command("tokenize-corpus")(tokenize_corpus_command)
app.command("push")(push_command)
app.command("models")(models_command)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def evaluate(context: typer.Context) -> None:
    """Measure quality, bit rate and tokens on recordings, beside other codecs (`evaluate --help`; in a clone only)."""
    clone = Path(__file__).parents[1]
    if not (clone / "training" / "evaluate_tokenizer.py").is_file():
        raise fail(
            "evaluation is part of the repository, not of the package: clone it, `pip install -e '.[evaluation]'`"
        )
    sys.path.insert(0, str(clone))
    try:
        evaluation = importlib.import_module("training.evaluate_tokenizer")  # of the clone: the package works without
    except ModuleNotFoundError as error:
        raise fail(f"evaluation needs `pip install -e '.[evaluation]'`, or at least `.[train]`: {error}") from error
    evaluation.app(args=context.args, prog_name="jepa-audio evaluate")


if __name__ == "__main__":
    app()
