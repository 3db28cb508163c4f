"""Peak memory of tokenizing a long recording from a file and turning it back into a file.

    python -m benchmarks.memory [--model hub_configs/jepa-daam-24khz-fast] [--minutes 60]

Weights are random. Prints the process's peak resident memory in all, libraries and weights included.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, make_untrained_checkpoint
from training.timing import peak_resident_bytes

HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"


def report(what: str, result: str, start: float) -> None:
    print(f"{what}: {result}, {time.perf_counter() - start:.0f} s, {peak_resident_bytes() / 1e9:.2f} GB", flush=True)


def write_noise(path: Path, sampling_rate: int, minutes: float) -> None:
    rng = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", sampling_rate, channels=1, subtype="PCM_16") as file:
        left = int(minutes * 60 * sampling_rate)
        while left:
            file.write(rng.normal(0.0, 0.1, min(left, 10 * sampling_rate)))
            left -= min(left, 10 * sampling_rate)


def main(model: str, minutes: float) -> None:
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_untrained_checkpoint(JepaDaamConfig.from_pretrained(model), Path(folder) / "checkpoint")
        tokenizer = JepaAudioTokenizer.from_pretrained(checkpoint)
        write_noise(Path(folder) / "long.wav", 44100, minutes)  # another rate, so that resampling is measured too
        print(f"{minutes:g} minutes, {Path(model).name}, {torch.get_num_threads()} threads")
        tokenizer.model  # noqa: B018 (loads it)
        start = time.perf_counter()
        ids = tokenizer(Path(folder) / "long.wav")["input_ids"]
        report("encoded from a file", f"{len(ids)} tokens", start)
        start = time.perf_counter()
        pieces = sum(len(piece) for piece in tokenizer.iter_decode_audio(ids))
        report("decoded piece by piece", f"{pieces} samples", start)
        start = time.perf_counter()
        samples = tokenizer.decode_audio(ids)
        report("decoded to an array", f"{samples.nbytes} bytes", start)
        start = time.perf_counter()
        again = tokenizer(samples, tokenizer.sampling_rate)["input_ids"]
        report("encoded from an array", f"{len(again)} tokens", start)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(HUB_CONFIGS / "jepa-daam-24khz-fast"))
    parser.add_argument("--minutes", type=float, default=60.0)
    arguments = parser.parse_args()
    main(arguments.model, arguments.minutes)
