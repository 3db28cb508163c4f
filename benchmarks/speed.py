"""Speed, work and memory of our configurations beside transformers' own codecs, in one run on one machine.

    python -m benchmarks.speed [--seconds 12] [--rounds 5] [--threads N]

Weights are random: they make no difference to speed. Every round times every model once, so that other load on the
machine falls on all of them; medians are printed. Memory is the peak of a process of its own above what it used
with the libraries loaded, so it holds the weights. FLOPs are counted by torch (one multiply-add is two).
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from training.timing import RIVALS, SAMPLING_RATE, encode, peak_resident_bytes, seconds_of

HUB_CONFIGS = Path(__file__).parents[1] / "hub_configs"


def ours(name: str) -> Callable[[], JepaDaamModel]:
    return lambda: JepaDaamModel(JepaDaamConfig.from_pretrained(HUB_CONFIGS / name))


def with_inverse_stft(name: str, stages: int = 2) -> Callable[[], JepaDaamModel]:
    """The same, but for the decoder's last stages."""

    def make() -> JepaDaamModel:
        values = JepaDaamConfig.from_pretrained(HUB_CONFIGS / name).to_dict()
        for key in ("decoder_channels", "decoder_kernel_sizes"):
            values[key] = values[key][:-stages]
        return JepaDaamModel(JepaDaamConfig(**values | {"decoder_istft_stages": stages}))

    return make


MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "jepa-daam-24khz": ours("jepa-daam-24khz"),
    "jepa-daam-24khz, inverse STFT": with_inverse_stft("jepa-daam-24khz"),
    "jepa-daam-24khz-fast": ours("jepa-daam-24khz-fast"),
    "jepa-daam-24khz-fast, inverse STFT": with_inverse_stft("jepa-daam-24khz-fast"),
    "jepa-daam-24khz-small": ours("jepa-daam-24khz-small"),
    "jepa-daam-24khz-nano": ours("jepa-daam-24khz-nano"),
    **RIVALS,
}


def work(model: torch.nn.Module, audio: torch.Tensor) -> tuple[Callable, Callable]:
    """Encoding and decoding of one recording as calls without arguments."""
    encoded = encode(model, audio)
    return lambda: encode(model, audio), lambda: model.decode(**encoded)


def flops_of(call: Callable) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matmul_rate(size: int = 2048) -> float:
    """This machine's float32 matrix-multiply rate (FLOP/s)."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / statistics.median(seconds_of(lambda: a @ b) for _ in range(9))


def peak_bytes(name: str, seconds: float, threads: int) -> int:
    """Peak memory of making a model, encoding and decoding, in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.speed",
        "--memory-of",
        name,
        "--seconds",
        str(seconds),
        "--threads",
        str(threads),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


@torch.no_grad()
def print_own_peak(name: str, seconds: float) -> None:
    before = peak_resident_bytes()
    for call in work(MODELS[name]().eval(), noise(seconds)):
        call()
    print(peak_resident_bytes() - before)


def noise(seconds: float) -> torch.Tensor:
    return 0.1 * torch.randn(1, 1, int(seconds * SAMPLING_RATE), generator=torch.Generator().manual_seed(0))


@torch.no_grad()  # inference mode breaks EncodecModel under the FLOP counter
def main(seconds: float, rounds: int, threads: int) -> None:
    audio = noise(seconds)
    progress = Console(stderr=True)
    models = {name: make().eval() for name, make in track(MODELS.items(), "making models", console=progress)}
    calls = {name: work(model, audio) for name, model in models.items()}
    flops = {name: [flops_of(call) for call in pair] for name, pair in calls.items()}
    times: dict[str, list[list[float]]] = {name: [[], []] for name in models}
    for _ in track(range(rounds), "timing", console=progress):
        for name, pair in calls.items():
            for direction, call in enumerate(pair):
                times[name][direction].append(seconds_of(call))
    rate = matmul_rate()

    table = Table(
        title=f"{seconds:g} s of audio, {threads} threads, float32, median of {rounds}; random weights; "
        f"matrix multiply {rate / 1e9:.0f} GFLOP/s"
    )
    table.add_column("model")
    for column in ("parameters", "GFLOP/s of audio", "times real time", "share of matmul", "peak MB"):
        table.add_column(column, justify="right")
    for name, model in models.items():
        median = [statistics.median(runs) for runs in times[name]]
        table.add_row(
            name,
            f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M",
            " / ".join(f"{count / seconds / 1e9:.2f}" for count in flops[name]),
            " / ".join(f"{seconds / duration:.1f}" for duration in median),
            " / ".join(f"{count / duration / rate:.0%}" for count, duration in zip(flops[name], median, strict=True)),
            f"{peak_bytes(name, seconds, threads) / 1e6:.0f}",
        )
    table.caption = "encode / decode; EncodecModel's LSTM is not in its FLOPs"
    Console(width=120).print(table)

    for rival in ("MimiModel", "EncodecModel"):
        rounds_of_both = [zip(times[rival][d], times["jepa-daam-24khz-fast"][d], strict=True) for d in (0, 1)]
        ratios = [statistics.median(slow / quick for slow, quick in pairs) for pairs in rounds_of_both]
        print(f"jepa-daam-24khz-fast against {rival}: {ratios[0]:.2f} times in encoding, {ratios[1]:.2f} in decoding")
    for name in ("jepa-daam-24khz", "jepa-daam-24khz-fast"):
        pairs = zip(times[name][1], times[f"{name}, inverse STFT"][1], strict=True)
        print(f"{name}: {statistics.median(slow / quick for slow, quick in pairs):.2f} times by an inverse STFT head")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        print_own_peak(arguments.memory_of, arguments.seconds)
    else:
        main(arguments.seconds, arguments.rounds, arguments.threads)
