"""Tokenizing a corpus: its speed against the encoder alone, memory over many short files, bytes on disk.

    python -m benchmarks.corpus speed [--model hub_configs/jepa-daam-24khz-small] [--minutes 12] [--rounds 5]
    python -m benchmarks.corpus memory [--files 100000] [--model hub_configs/jepa-daam-24khz-nano]
    python -m benchmarks.corpus sizes RECORDINGS [--model hub_configs/jepa-daam-24khz-small]

For speed and memory, weights are random.

Speed: the recordings in `tests/` as FLAC at 16 kHz, so that they are decoded and resampled, go through
`tokenize_recordings` (reading, decoding, rows, Parquet), and their decoded chunks through the encoder and
quantizer alone, in turn in the same process, whose model has one thread. The ratio is of CPU time, the reading thread's
counted in, since the clock says little on a machine that does other work too.
Then one process and two, in turn, over the same halves. Memory: a manifest that names a few short clips again and
again, by links, goes through the whole of a run in one process; its peak is printed as it grows.

Sizes: a folder, tar file or manifest of recordings becomes rows by the checkpoint's own weights, what ids take depends
on these, and one shard, with and without salience. The same samples, mono at the model's rate, go through libsndfile as
16-bit FLAC, and as Ogg Opus at its setting for 24 kbit/s (variable: what came out is printed).
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, make_untrained_checkpoint
from modeling_jepa_daam.corpus.encoding import _blocks, _recut, tokenize_recordings
from modeling_jepa_daam.corpus.plan import read_entries
from modeling_jepa_daam.corpus.run import ENTRIES, WORK, CorpusJob, ShardWorker, finish, prepare
from modeling_jepa_daam.corpus.shard import GATES_KEY, Row, encode_shard, pyarrow
from modeling_jepa_daam.corpus.sources import Source, guess_format, list_entries, open_recordings
from modeling_jepa_daam.processes import run_in_processes
from tests.librilight import make_librilight, recordings
from training.markdown import markdown_table
from training.timing import peak_resident_bytes, seconds_of

HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"
CLIP_S = 1.0
PARTS = 24  # halves of the corpus that one process, or two, tokenize: many, or the last one is half of the time
SHARD_BYTES = 100_000_000
FLAC: dict = {"format": "FLAC", "subtype": "PCM_16"}
# libsndfile: bits a second = 6000 + 250000 * (1 - level), of one channel
OPUS: dict = {"format": "OGG", "subtype": "OPUS", "compression_level": 1 - 18 / 250}


def make_checkpoint(model: str, folder: Path) -> Path:
    transformers_logging.disable_progress_bar()
    return make_untrained_checkpoint(JepaDaamConfig.from_pretrained(model), folder / "checkpoint")


def measured(call: Callable) -> tuple[float, float]:
    """Seconds by the clock, and of CPU time of all threads, that a call takes."""
    before = time.process_time()
    wall = seconds_of(call)
    return wall, time.process_time() - before


class Reader:
    """A worker of the benchmark's processes: tokenizes its half of the corpus, again and again."""

    def __init__(self, checkpoint: str, source: Source, halves: int):
        transformers_logging.disable_progress_bar()
        self.tokenizer = JepaAudioTokenizer.from_pretrained(checkpoint)
        self.source, self.halves = source, halves
        self.entries = list(list_entries(source))
        self(0)  # loads and warms up

    def __call__(self, number: int) -> tuple[float, float]:
        """When the work on a part of the corpus began and ended."""
        start = time.perf_counter()
        part = self.entries[number % self.halves :: self.halves]
        encode_shard(tokenize_recordings(open_recordings(self.source, part), self.tokenizer)[0], {})
        return start, time.perf_counter()


def speed(model: str, minutes: float, rounds: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = make_checkpoint(model, folder)
        speakers = len(recordings())
        source = Source(str(make_librilight(folder / "corpus", chapter_s=60 * minutes / speakers / 3)))
        tokenizer = JepaAudioTokenizer.from_pretrained(checkpoint)
        codec, rate = tokenizer.model, tokenizer.sampling_rate
        entries = list(list_entries(source))
        size = codec.config.chunk_frames * codec.config.hop_length
        chunks = [
            torch.from_numpy(chunk)
            for recording in open_recordings(source, entries)
            for chunk in _recut(_blocks(recording.audio, rate), size)
        ]
        audio_s = sum(map(len, chunks)) / rate

        @torch.inference_mode()
        def encoder_alone() -> None:
            for chunk in chunks:
                codec.waveforms_to_ids([chunk])

        def corpus() -> None:
            encode_shard(tokenize_recordings(open_recordings(source, entries), tokenizer)[0], {})

        encoder_alone()
        corpus()
        ratios, walls_both, times = [], [], []
        for _ in range(rounds):
            (alone, alone_cpu), (whole, whole_cpu) = measured(encoder_alone), measured(corpus)
            ratios.append(alone_cpu / whole_cpu)
            walls_both.append(alone / whole)
            times.append(whole_cpu)
        print(
            f"{Path(model).name}, {audio_s / 60:.1f} minutes of audio, one thread: tokenizing at "
            f"{statistics.median(ratios):.1%} of the encoder's own speed ({min(ratios):.1%} to {max(ratios):.1%} in "
            f"{rounds} rounds) in CPU time of all threads, {statistics.median(walls_both):.1%} by the clock; "
            f"{audio_s / statistics.median(times):.1f} times real time of a core",
            flush=True,
        )
        gains = []
        parts = [(number,) for number in range(PARTS)]
        for _ in range(rounds):
            walls = []
            for jobs in (1, 2):
                spans = [result for _, result, _ in run_in_processes(parts, jobs, Reader, (str(checkpoint), source, 2))]
                walls.append(max(end for _, end in spans) - min(start for start, _ in spans))
            gains.append(walls[0] / walls[1])
        print(
            f"two processes: {statistics.median(gains):.2f} times one ({min(gains):.2f} to {max(gains):.2f} in "
            f"{rounds} rounds; {os.cpu_count()} cores)"
        )


def memory(model: str, files: int) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        checkpoint = make_checkpoint(model, folder)
        for number, path in enumerate(path for paths in recordings().values() for path in paths):
            samples, rate = soundfile.read(path, dtype="float32")
            soundfile.write(folder / f"{number}.flac", np.resize(samples, int(CLIP_S * rate)), rate)
        clips = sorted(folder.glob("*.flac"))
        with open(folder / "corpus.jsonl", "w") as manifest:
            for number in range(files):
                link = folder / "clips" / f"{number:07d}.flac"
                os.link(clips[number % len(clips)], link)
                manifest.write(f'{{"path": "clips/{link.name}"}}\n')
        source = Source(str(folder / "corpus.jsonl"), "manifest")
        job = CorpusJob(source, str(folder / "out"), str(checkpoint), shard_bytes=SHARD_BYTES)
        start = time.perf_counter()
        settings, plan = prepare(job)
        assert plan is not None
        print(f"{files} files listed, {len(plan.shards)} shards, {peak_resident_bytes() / 1e6:.0f} MB", flush=True)
        worker = ShardWorker(job, settings, plan)
        done = 0
        for shard in plan.shards:
            done += len(list(read_entries(Path(job.output) / WORK / ENTRIES, shard)))
            worker(shard.index)
            spent = time.perf_counter() - start
            print(f"{done} files, {spent:.0f} s, peak {peak_resident_bytes() / 1e6:.0f} MB", flush=True)
        finished = finish(job.output)
        assert finished is not None
        print(f"{finished.total('rows')} rows, {8 * finished.total('bytes') / finished.duration_s:.0f} bit/s in all")


def sound_bytes(recordings: list[np.ndarray], rate: int, options: dict) -> int:
    """Bytes of all recordings, each as a file of its own."""
    total = 0
    for samples in recordings:
        file = io.BytesIO()
        soundfile.write(file, samples.clip(-1.0, 1.0), rate, **options)
        total += len(file.getbuffer())
    return total


def shard_sizes(rows: list[Row], facts: dict) -> dict[str, int]:
    """Compressed bytes of the columns of one shard, and of the `whole shard`."""
    data = encode_shard(rows, facts)
    metadata = pyarrow().parquet.ParquetFile(io.BytesIO(data)).metadata
    sizes: dict[str, int] = {}
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            name = column.path_in_schema.split(".")[0]
            sizes[name] = sizes.get(name, 0) + column.total_compressed_size
    return sizes | {"whole shard": len(data)}


def sizes(model: str, location: str) -> None:
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    tokenizer = JepaAudioTokenizer.from_pretrained(model)
    rate, config = tokenizer.sampling_rate, tokenizer.model.config
    source = Source(location, guess_format(location))
    found = list(open_recordings(source, list_entries(source)))
    rows, rejected = tokenize_recordings(found, tokenizer, salience=config.num_encoder_gates > 0)
    unusable = {each.id for each in rejected}
    sounds = [np.concatenate(list(_blocks(each.audio, rate))) for each in found if each.id not in unusable]
    duration_s = sum(map(len, sounds)) / rate
    plain = shard_sizes([replace(row, salience=None) for row in rows], {})
    measured = {
        "16-bit FLAC": sound_bytes(sounds, rate, FLAC),
        "Ogg Opus, 24 kbit/s": sound_bytes(sounds, rate, OPUS),
        "column `tokens`": plain["tokens"],
        "whole shard (ids, texts, digests)": plain["whole shard"],
    }
    if config.num_encoder_gates:
        facts = {GATES_KEY: config.num_encoder_gates}
        more = shard_sizes(rows, facts)
        measured |= {
            f"column `salience`, {config.num_encoder_gates} gates": more["salience"],
            "whole shard with salience": more["whole shard"],
        }
    # Of whole frames, which recordings fill but for their ends.
    frames_s = sum(len(row.tokens) for row in rows) / tokenizer.token_rate
    lines = [
        [name, str(size), f"{size / duration_s:.1f}", f"{8 * size / duration_s:.0f}",
         f"{8 * size / duration_s / tokenizer.bitrate_bps:.3f}"]
        for name, size in measured.items()
    ]  # fmt: skip
    print(f"{len(rows)} recordings, {duration_s:.1f} s (whole frames: {frames_s:.1f} s), {len(rejected)} rejected\n")
    ratio = f"ratio to {tokenizer.bitrate_bps:g} bit/s"
    print(markdown_table(["", "bytes", "bytes a second", "bit/s", ratio], lines))
    column = 8 * plain["tokens"] / frames_s
    print(f"\ncolumn `tokens` by whole frames: {column:.0f} bit/s, ratio {column / tokenizer.bitrate_bps:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("speed", "memory", "sizes"))
    parser.add_argument("recordings", nargs="?", help="for sizes: folder, tar file or manifest")
    parser.add_argument("--model")
    parser.add_argument("--minutes", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=100_000)
    arguments = parser.parse_args()
    if arguments.what == "sizes":
        if arguments.recordings is None:
            parser.error("sizes needs RECORDINGS")
        sizes(arguments.model or str(HUB_CONFIGS / "jepa-daam-24khz-small"), arguments.recordings)
    elif arguments.what == "speed":
        speed(arguments.model or str(HUB_CONFIGS / "jepa-daam-24khz-small"), arguments.minutes, arguments.rounds)
    else:
        memory(arguments.model or str(HUB_CONFIGS / "jepa-daam-24khz-nano"), arguments.files)
