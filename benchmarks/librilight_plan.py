"""What tokenizing LibriLight would take, reckoned from measured rates: a plan on paper, not a run.

    python -m benchmarks.librilight_plan --core-speed 238 [--cores 64] [--core-hour-price 0.04]
        [--gpu-speed ...] [--decoding-speed 2200] [--hours 60000] [--shard-mb 500] [--clips tests/audio]

Speeds are multiples of real time: of a core, as `python -m benchmarks.corpus speed` prints it; of a GPU, which is left
out unless it is given; of the thread that decodes and resamples for a model, as `make bench-training` prints it, which
no GPU that one worker feeds can outrun. Two rates are measured here: bytes a second of 16-bit FLAC, of the FLAC files
in `--clips` (by default LibriSpeech's in `tests/audio`) at LibriLight's 16 kHz; and bits a second of the Parquet column
of tokens, of uniform ids, which nothing compresses, in recordings of 12 minutes. Prices are assumptions, in whatever
currency. One rate is assumed for all recordings.
"""

import argparse
import io
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import soundfile
import soxr

from modeling_jepa_daam.corpus.shard import Row, encode_shard
from tests.librilight import LIBRILIGHT_RATE, RECORDINGS

FRAME_S, TOKENS_PER_FRAME, VOCABULARY, LAST_VOCABULARY = 0.4, 19, 16384, 16
BITS_PER_S = 640  # (18 * 14 + 4) / 0.4 s
OPUS_BPS = 24_000
ROW_S, ROWS = 720, 100


def flac_bytes_per_s(files: list[Path]) -> tuple[float, float]:
    """Bytes a second of recordings as 16-bit FLAC at 16 kHz, and their seconds."""
    size, duration_s = 0, 0.0
    for file in files:
        samples, rate = soundfile.read(file, dtype="float32")
        sound = io.BytesIO()
        soundfile.write(sound, soxr.resample(samples, rate, LIBRILIGHT_RATE), LIBRILIGHT_RATE, format="FLAC")
        size += len(sound.getvalue())
        duration_s += len(samples) / rate
    return size / duration_s, duration_s


def column_bits_per_s() -> float:
    """Bits a second of tokens without redundancy in their column of a shard."""
    rng = np.random.default_rng(0)
    frames = round(ROW_S / FRAME_S)
    rows = []
    for number in range(ROWS):
        tokens = rng.integers(0, VOCABULARY, (frames, TOKENS_PER_FRAME), dtype=np.uint16)
        tokens[:, -1] %= LAST_VOCABULARY
        rows.append(Row(str(number), tokens.ravel(), ROW_S * 24_000, ROW_S, "", "", None))
    metadata = pq.ParquetFile(io.BytesIO(encode_shard(rows, {}))).metadata
    columns = [
        metadata.row_group(group).column(number)
        for group in range(metadata.num_row_groups)
        for number in range(metadata.num_columns)
    ]
    size = sum(column.total_compressed_size for column in columns if column.path_in_schema.startswith("tokens."))
    return 8 * size / (ROWS * ROW_S)


def plan(options: argparse.Namespace) -> list[tuple[str, str, str]]:
    """Rows of the table: what, how much, from which rates."""
    seconds, column = 3600 * options.hours, column_bits_per_s()
    flac, clips_s = flac_bytes_per_s(sorted(options.clips.rglob("*.flac")))
    read, core_hours = seconds * flac, options.hours / options.core_speed
    megabytes = options.core_speed * flac / 1e6
    rows = [
        ("read", f"{read / 1e12:.2f} TB", f"{flac / 1e3:.1f} kB/s of 16-bit FLAC at 16 kHz: {clips_s:.0f} s of clips"),
        ("information", f"{seconds * BITS_PER_S / 8e9:.1f} GB", f"{BITS_PER_S} bit/s"),
        ("written, tokens", f"{seconds * column / 8e9:.1f} GB", f"{column:.0f} bit/s of a Parquet column"),
        ("Opus, for comparison", f"{seconds * OPUS_BPS / 8e9:.0f} GB", f"{OPUS_BPS // 1000} kbit/s"),
        ("shards", f"{math.ceil(read / 1e6 / options.shard_mb)}", f"of {options.shard_mb:g} MB of FLAC"),
        ("a shard", f"{options.shard_mb * 1e6 / flac / options.core_speed:.0f} s", "of a core: what a kill may cost"),
        ("CPU", f"{core_hours:.0f} core-hours", f"{options.core_speed:g} times real time a core"),
        ("time", f"{core_hours / options.cores:.1f} h", f"on {options.cores} cores"),
        ("reading", f"{megabytes * options.cores:.0f} MB/s", f"by {options.cores} cores, {megabytes:.1f} each"),
        ("CPU cost", f"{core_hours * options.core_hour_price:.0f}", f"at {options.core_hour_price:g} a core-hour"),
    ]
    if options.gpu_speed:
        speed = min(options.gpu_speed, options.decoding_speed)
        gpu_hours = options.hours / speed
        rows.append(("GPU", f"{gpu_hours:.0f} GPU-hours", f"{speed:g} times real time a GPU"))
        rows.append(("GPU cost", f"{gpu_hours * options.gpu_hour_price:.0f}", f"at {options.gpu_hour_price:g} an hour"))
    else:
        least = options.hours / options.decoding_speed
        basis = f"not measured; one thread decodes for each at {options.decoding_speed:g} times real time"
        rows.append(("GPU", f"{least:.0f} GPU-hours at least", basis))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=60_000)
    parser.add_argument("--core-speed", type=float, required=True)
    parser.add_argument("--cores", type=int, default=64)
    parser.add_argument("--core-hour-price", type=float, default=0.04)
    parser.add_argument("--gpu-speed", type=float)
    parser.add_argument("--gpu-hour-price", type=float, default=2.0)
    parser.add_argument("--decoding-speed", type=float, default=2200)
    parser.add_argument("--shard-mb", type=float, default=500)
    parser.add_argument("--clips", type=Path, default=RECORDINGS)
    print("| | | from |\n|---|---|---|")
    for what, amount, basis in plan(parser.parse_args()):
        print(f"| {what} | {amount} | {basis} |")
