"""How many digits and tokens of recorded speech change when the model runs below float32.

    python benchmarks/precision.py [--model hub_configs/jepa-daam-24khz-fast]

Of a checkpoint without weights they are random. Quantizer, DAAM gates and the linear transform run in float32 in all
cases.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from transformers.utils import SAFE_WEIGHTS_NAME
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, make_untrained_checkpoint

ROOT = Path(__file__).parents[1]


def main(model: str) -> None:
    transformers_logging.disable_progress_bar()
    recordings = sorted((ROOT / "tests" / "audio").glob("*.flac"))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(model)
        if not (checkpoint / SAFE_WEIGHTS_NAME).is_file():
            checkpoint = make_untrained_checkpoint(JepaDaamConfig.from_pretrained(model), Path(folder) / "checkpoint")
        tokenizer = JepaAudioTokenizer.from_pretrained(checkpoint)
        ids = {}
        for dtype in ("float32", "bfloat16", "float16"):
            tokenizer.to(dtype=dtype)
            ids[dtype] = np.concatenate([tokenizer(path)["input_ids"] for path in recordings])
    digits = {dtype: tokenizer.unpack(tokens) for dtype, tokens in ids.items()}
    print(f"{Path(model).name}, {len(ids['float32'])} tokens of {len(recordings)} recordings")
    for dtype in ("bfloat16", "float16"):
        changed_digits = (digits[dtype] != digits["float32"]).mean()
        changed_tokens = (ids[dtype] != ids["float32"]).mean()
        print(f"{dtype}: {changed_digits:.2%} of the digits and {changed_tokens:.1%} of the tokens differ from float32")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "hub_configs" / "jepa-daam-24khz-fast"))
    main(parser.parse_args().model)
