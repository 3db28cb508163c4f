"""Speed and memory of codecs side by side: encoding and decoding, one recording and a batch, on one machine.

    python -m training.codec_speed SPEC... --output speed.json [--seconds 6] [--rounds 3] [--batches 1 8]

A SPEC is one of `codecs.SPECS` that encodes here (`opus:6`, `jepa:FOLDER`), `config:FOLDER` for a configuration of
ours with random weights, or `model:mimi`, `model:encodec`, `model:dac` for transformers' codecs at 24 kHz, random too:
weights make no difference to speed. Each figure is taken in a new process, one process at a time, after one call to
warm up; every round takes all figures once, so that other load falls on all codecs; medians are reported.

Times real time is seconds of audio over seconds of work: higher is faster. Programs (Codec2, Opus, Speex, MP3) are
timed with the start of their process and their files, as they are used; their memory is not measured, and neither
they nor Lyra take batches. Memory is the process's peak above what it held before it made the codec, so it holds the
weights. Resampling is not in any figure: each codec gets audio at its own rate.
"""

import argparse
import json
import multiprocessing
import pickle
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing

from . import timing
from .codecs import WaveformCodec, make_codec
from .codecs.programs import ProgramCodec
from .markdown import markdown_table

DIRECTIONS = ("encode", "decode")
COLUMNS = ("codec", "batch", "times real time", "peak MB")  # the last two: encode / decode
RIVALS = {"mimi": "MimiModel", "encodec": "EncodecModel", "dac": "DacModel 24 kHz"}


@dataclass(frozen=True)
class Task:
    """One figure to take.

    Args:
        spec: Of the codec.
        direction: `"encode"` or `"decode"`.
        batch: Clips at a time.
        seconds: Length of each clip (s).
        threads: Of torch.
        recording: What the clips are cut from; noise if None.
        encoded: File that encoding leaves for decoding.
    """

    spec: str
    direction: str
    batch: int
    seconds: float
    threads: int
    recording: str | None
    encoded: Path


@dataclass(frozen=True)
class Measured:
    """Seconds of work, and peak memory (bytes), None where it is another process's."""

    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Row:
    """The figures of one codec, direction and batch size.

    Args:
        times_real_time: Median over rounds of seconds of audio over seconds of work.
        seconds: Of work, each round's.
        peak_bytes: Median over rounds.
    """

    spec: str
    direction: str
    batch: int
    times_real_time: float
    seconds: list[float]
    peak_bytes: int | None


@dataclass(frozen=True)
class Coder:
    """A codec as calls.

    Args:
        sampling_rate: Its own (Hz).
        encode: From `(batch, samples)`, float32, to what `decode` takes.
        decode: From that to samples of any form.
        in_process: Whether it works in this process, so that its memory can be measured.
    """

    sampling_rate: int
    encode: Callable[[np.ndarray], Any]
    decode: Callable[[Any], Any]
    in_process: bool


def takes_batches(spec: str) -> bool:
    """Whether a codec encodes several clips in one call."""
    return spec.partition(":")[0] in ("jepa", "config", "model")


def load(spec: str) -> Coder:
    """Make a codec.

    Raises:
        ValueError: If there is no such codec, or nothing in it to time.
    """
    if takes_batches(spec):
        return _network(spec)
    codec = make_codec(spec)
    if not isinstance(codec, WaveformCodec):
        raise ValueError(f"`spec`: {spec} does not encode here, there is nothing to time")
    program = isinstance(codec, ProgramCodec)
    return Coder(codec.sampling_rate, lambda clips: codec.encode(clips[0]).data, codec.decode, not program)


def _network(spec: str) -> Coder:
    """A codec of torch modules."""
    kind, _, rest = spec.partition(":")
    model: Any
    if kind == "model":
        if rest not in RIVALS:
            raise ValueError(f"`spec`: a model is one of {', '.join(RIVALS)}, got {spec!r}")
        model, sampling_rate = timing.RIVALS[RIVALS[rest]](), timing.SAMPLING_RATE
    else:
        if not (Path(rest) / "config.json").is_file():
            raise ValueError(f"`spec`: no config.json in {rest}")
        config = JepaDaamConfig.from_pretrained(rest)
        model = JepaDaamModel.from_pretrained(rest) if kind == "jepa" else JepaDaamModel(config)
        sampling_rate = config.sampling_rate
    model.eval()
    return Coder(
        sampling_rate,
        lambda clips: timing.encode(model, torch.from_numpy(clips)[:, None]),
        lambda encoded: model.decode(**encoded),
        in_process=True,
    )


@torch.no_grad()
def measure(task: Task) -> Measured:
    """Take one figure, in a process that does nothing else."""
    torch.set_num_threads(task.threads)
    before = timing.peak_resident_bytes()
    coder = load(task.spec)
    if task.direction == "encode":
        clips = _clips(task, coder.sampling_rate)
        task.encoded.write_bytes(pickle.dumps(coder.encode(clips)))
        seconds = timing.seconds_of(lambda: coder.encode(clips))
    else:
        encoded = pickle.loads(task.encoded.read_bytes())
        coder.decode(encoded)
        seconds = timing.seconds_of(lambda: coder.decode(encoded))
    return Measured(seconds, timing.peak_resident_bytes() - before if coder.in_process else None)


def compare(
    specs: list[str],
    seconds: float = 6.0,
    rounds: int = 3,
    batches: tuple[int, ...] = (1, 8),
    threads: int | None = None,
    recording: str | None = None,
) -> list[Row]:
    """Take all figures of some codecs.

    Args:
        specs: See above.
        seconds: Length of each clip (s).
        rounds: Times that each figure is taken.
        batches: Clips at a time; only 1 for a codec that takes no more.
        threads: Of torch; its own choice if None.
        recording: A sound file to cut the clips from; noise if None.

    Raises:
        ValueError: If a spec names no codec that can be timed, or a number is not positive.
    """
    if not (seconds > 0 and rounds > 0 and batches and min(batches) > 0):
        raise ValueError(f"`seconds`, `rounds` and `batches` must be positive, got {seconds}, {rounds}, {batches}")
    threads = threads or torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            Task(spec, direction, batch, seconds, threads, recording, Path(folder) / f"{place}-{batch}")
            for place, spec in enumerate(specs)
            for batch in batches
            if batch == 1 or takes_batches(spec)
            for direction in DIRECTIONS
        ]
        results: list[list[Measured]] = [[] for _ in tasks]
        steps = [(task, result) for _ in range(rounds) for task, result in zip(tasks, results, strict=True)]
        for task, result in track(steps, "measuring", console=Console(stderr=True)):
            with ProcessPoolExecutor(1, spawn) as pool:
                result.append(pool.submit(measure, task).result())
    return [_row(task, result) for task, result in zip(tasks, results, strict=True)]


def write_report(path: Path, rows: list[Row], **settings: Any) -> None:
    """Write rows and what they depend on as JSON, and beside it a table in Markdown."""
    machine = {"machine": platform.machine(), "python": platform.python_version(), "torch": torch.__version__}
    report = {**machine, **settings, "rows": [asdict(row) for row in rows]}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    with replacing(path.with_suffix(".md")) as temporary:
        temporary.write_text(markdown_table(COLUMNS, cells(rows)) + "\n")


def table(rows: list[Row], title: str) -> Table:
    """Rows as a table: one line a codec and batch size, encode / decode in each cell."""
    result = Table(title=title, caption="encode / decode; - is not measured")
    for column in COLUMNS:
        result.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for line in cells(rows):
        result.add_row(*line)
    return result


def cells(rows: list[Row]) -> list[list[str]]:
    """The texts of the table's lines."""
    return [
        [
            encoding.spec,
            str(encoding.batch),
            " / ".join(f"{row.times_real_time:.1f}" for row in (encoding, decoding)),
            " / ".join(
                "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}" for row in (encoding, decoding)
            ),
        ]
        for encoding, decoding in zip(rows[::2], rows[1::2], strict=True)
    ]


def _clips(task: Task, sampling_rate: int) -> np.ndarray:
    """`(batch, samples)`, float32."""
    shape = (task.batch, round(task.seconds * sampling_rate))
    if task.recording is None:
        return np.random.default_rng(0).normal(0.0, 0.1, shape).astype(np.float32)
    return np.resize(load_audio(task.recording, None, sampling_rate), shape)


def _row(task: Task, measured: list[Measured]) -> Row:
    seconds = [one.seconds for one in measured]
    peaks = [one.peak_bytes for one in measured if one.peak_bytes is not None]
    speed = task.batch * task.seconds / statistics.median(seconds)
    return Row(task.spec, task.direction, task.batch, speed, seconds, int(statistics.median(peaks)) if peaks else None)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specs", nargs="+", metavar="SPEC")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--recording", help="sound file to cut the clips from; noise without it")
    options = vars(parser.parse_args(arguments))
    specs, output = options.pop("specs"), options.pop("output")
    if not output.absolute().parent.is_dir():
        parser.error(f"--output: no folder {output.parent}")
    rows = compare(specs, **options)
    write_report(output, rows, **options)
    title = f"clips of {options['seconds']:g} s, {options['threads']} threads, median of {options['rounds']}"
    Console(width=120).print(table(rows, title))


if __name__ == "__main__":
    main(sys.argv[1:])
