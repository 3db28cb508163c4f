"""Share of FSQ indices and tokens that change when the model runs below float32, as the README's table.

    python benchmarks/precision.py [--model hub_configs/jepa-daam-24khz-small --model hub_configs/jepa-daam-24khz-fast]

The recordings are those of `tests/audio` and loud test signals. A configuration without weights gets random ones.
The quantizer and the DAAM gates run in float32 in all cases; in float16 the whole encoder does.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, make_untrained_checkpoint

ROOT = Path(__file__).parents[1]


def test_signals() -> list[np.ndarray]:
    """Two seconds each: loud noise, a sine and a square of full scale, silence, a click."""
    time = np.arange(48000)
    signals = (
        np.random.default_rng(0).normal(0.0, 0.3, len(time)),
        np.sin(0.3 * time),
        np.sign(np.sin(0.05 * time)),
        np.zeros(len(time)),
        time == 100,
    )
    return [signal.astype(np.float32) for signal in signals]


def row(model: str) -> str:
    """One row of the table."""
    recordings = [*map(str, sorted((ROOT / "tests" / "audio").glob("*.flac"))), *test_signals()]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, name = Path(model), Path(model).name
        if not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
            checkpoint = make_untrained_checkpoint(JepaDaamConfig.from_pretrained(model), Path(folder) / "checkpoint")
            name += " (random weights)"
        tokenizer = JepaAudioTokenizer.from_pretrained(checkpoint)
        ids = {}
        for dtype in ("float32", "bfloat16", "float16"):
            tokenizer.to(dtype=dtype)
            ids[dtype] = np.concatenate([tokenizer(audio, 24000)["input_ids"] for audio in recordings])
    indices = {dtype: tokenizer.unpack(tokens) for dtype, tokens in ids.items()}
    cells = [
        f"{(values[dtype] != values['float32']).mean():.2%}"
        for dtype in ("bfloat16", "float16")
        for values in (indices, ids)
    ]
    return f"| {name} | {len(ids['float32'])} | {' | '.join(cells)} |"


def main(models: list[str]) -> None:
    transformers_logging.disable_progress_bar()
    print("| model | tokens | bfloat16: indices | tokens | float16: indices | tokens |")
    print("|---|---|---|---|---|---|")
    for model in models:
        print(row(model))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="checkpoint or configuration folder; repeat for several")
    shipped = [str(ROOT / "hub_configs" / f"jepa-daam-24khz-{name}") for name in ("small", "fast")]
    main(parser.parse_args().model or shipped)
