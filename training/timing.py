"""What benchmarks share: a clock, peak memory, and transformers' codecs with random weights, exact for speed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

SAMPLING_RATE = 24000
RIVALS: dict[str, Callable[[], nn.Module]] = {
    "MimiModel": lambda: MimiModel(MimiConfig()),
    "EncodecModel": lambda: EncodecModel(EncodecConfig()),
    "DacModel 24 kHz": lambda: DacModel(DacConfig(sampling_rate=SAMPLING_RATE)),
}


def encode(model: Any, audio: Tensor) -> dict[str, Tensor]:
    """Encode `(batch, 1, samples)` with a codec of ours or of `RIVALS`, to the arguments of its `decode`."""
    encoded = model.encode(audio)
    names = ("audio_codes", "audio_scales") if isinstance(model, EncodecModel) else ("audio_codes",)
    return {name: encoded[name] for name in names}


def seconds_of(call: Callable) -> float:
    """Wall-clock seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_resident_bytes() -> int:
    """Peak resident memory of this process (Linux); `getrusage` would begin with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
