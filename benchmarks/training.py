"""Speed of Stage 1: the data stream by its parts, and the training step fed by it.

    python -m benchmarks.training [--config hub_configs/jepa-daam-24khz-nano] [--batch-size 8] [--steps 20]

The corpus is a LibriLight tar file of the recordings in `tests/audio`, repeated to chapters of some minutes, FLAC at
16 kHz. The stream is timed in one process on one thread, median of several rounds; each part of its work is timed on
the same segments in the same round. The step is timed by the training script's own log, with one worker to feed it,
after the first steps. The nano configuration is the hardest case for the stream: no other takes less time for a step.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from modeling_jepa_daam.audio import Resampler
from tests.librilight import make_librilight
from training.config import DataConfig, PretrainConfig, load_config
from training.data import SegmentStream, open_sound
from training.pretrain_encoder import main as pretrain
from training.recordings import open_corpus, stream_recordings
from training.timing import peak_resident_bytes
from training.tracking import read_metrics

CONFIGS = Path(__file__).parents[1] / "training" / "configs"
SAMPLING_RATE = 24000
WARM_UP_STEPS = 3


def time_stream(corpus: list[dict], data: DataConfig) -> dict[str, float]:
    """Seconds of one epoch, of each part of its work alone, and seconds of audio that came out."""
    seconds = dict.fromkeys(("open and seek", "decode FLAC", "resample", "all"), 0.0)
    names = {row["name"]: row for row in corpus}
    start = time.perf_counter()
    batches = list(SegmentStream(stream_recordings(corpus), data, SAMPLING_RATE, seed=0, max_epochs=1))
    seconds["all"] = time.perf_counter() - start
    for name, index, num_segments in [segment for batch in batches for segment in batch.segments]:
        start = time.perf_counter()
        with open_sound(names[name]) as file:
            first, last = (file.count() * part // num_segments for part in (index, index + 1))
            file.seek(first)
            seconds["open and seek"] += time.perf_counter() - start
            start = time.perf_counter()
            samples = file.read(last - first)
            seconds["decode FLAC"] += time.perf_counter() - start
            start = time.perf_counter()
            resampler = Resampler(file.sampling_rate, SAMPLING_RATE)
            resampler.push(samples), resampler.close()
            seconds["resample"] += time.perf_counter() - start
    return seconds | {"audio": sum(int(batch.lengths.sum()) for batch in batches) / SAMPLING_RATE}


def report_stream(console: Console, librilight: Path, rounds: int) -> None:
    """Print how many times real time the stream delivers, and where the time goes."""
    data = DataConfig(sources=(str(librilight),), batch_size=32, num_workers=0)
    corpus = open_corpus(data)
    timed = [time_stream(corpus, data) for _ in range(rounds)]
    median = {part: statistics.median(times[part] for times in timed) for part in timed[0]}
    rest = median["all"] - sum(median[part] for part in ("open and seek", "decode FLAC", "resample"))
    table = Table("part", "ms per audio second", "share", title="data stream, one process")
    for part, taken in [*((part, median[part]) for part in median if part not in ("all", "audio")), ("rest", rest)]:
        table.add_row(part, f"{1000 * taken / median['audio']:.3f}", f"{taken / median['all']:.0%}")
    console.print(table)
    console.print(f"{median['audio'] / median['all']:.0f} times real time, from FLAC at 16 kHz in a tar file\n")


def report_step(console: Console, librilight: Path, folder: Path, arguments: argparse.Namespace) -> None:
    """Print the speed of the training script's own steps."""
    changes = [f"data.sources=[{librilight}]", f"run.output={folder / 'run'}", f"model.config={arguments.config}"]
    changes += [f"data.batch_size={arguments.batch_size}", f"run.max_steps={arguments.steps + WARM_UP_STEPS}"]
    changes += ["data.held_out_share=0", "data.num_workers=1", "run.log_every=1", "run.tracker=none"]
    pretrain(load_config(PretrainConfig, CONFIGS / "pretrain.yaml", changes))
    metrics = read_metrics(folder / "run" / "metrics.jsonl")
    steps = [entry for entry in metrics if "loss/predict" in entry][WARM_UP_STEPS:]
    seconds = [1 / entry["speed/batches_per_s"] for entry in steps]
    waited = sum(entry["speed/data_wait_share"] * second for entry, second in zip(steps, seconds, strict=True))
    table = Table(
        "measure", "value", title=f"training step, {Path(arguments.config).name}, {torch.get_num_threads()} threads"
    )
    table.add_row("steps a second (median)", f"{1 / statistics.median(seconds):.3f}")
    table.add_row(
        "audio-hours an hour (median)", f"{statistics.median(e['speed/audio_hours_per_hour'] for e in steps):.1f}"
    )
    table.add_row("share of time waiting for data", f"{waited / sum(seconds):.2%}")
    table.add_row("peak memory of the training process", f"{peak_resident_bytes() / 1e9:.2f} GB")
    console.print(table)


def main() -> None:
    """Make the corpus, time the stream, time the step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="hub_configs/jepa-daam-24khz-nano")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    console = Console(width=100)
    with tempfile.TemporaryDirectory() as folder:
        librilight = make_librilight(Path(folder), chapter_s=60.0).with_suffix(".tar")
        report_stream(console, librilight, arguments.rounds)
        report_step(console, librilight, Path(folder), arguments)


if __name__ == "__main__":
    main()
