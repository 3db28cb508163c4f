"""Stage 1 on real speech, in one process and in two: does the loss fall?

    python -m tests.train_smoke

Trains the nano encoder for some steps on a small LibriLight made of the recordings in `tests/audio`.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.librilight import make_librilight
from training.tracking import read_metrics

ROOT = Path(__file__).parents[1]
LAUNCH = {  # Accelerate's own launcher starts several processes on CPU through MPI only
    1: ["accelerate.commands.launch", "--config_file", str(ROOT / "training" / "configs" / "accelerate" / "cpu.yaml")],
    2: ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


def main() -> None:
    """Train twice, print the losses, and fail unless they fall."""
    with tempfile.TemporaryDirectory() as folder:
        librilight = make_librilight(Path(folder), chapter_s=30.0).with_suffix(".tar")
        for processes in (1, 2):
            start = time.perf_counter()
            output = Path(folder) / str(processes)
            command = [sys.executable, "-m", *LAUNCH[processes], "-m", "training.pretrain_encoder"]
            command += [str(ROOT / "training" / "configs" / "smoke.yaml")]
            command += [f"data.sources=[{librilight}]", f"run.output={output}"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
            metrics = read_metrics(output / "metrics.jsonl")
            training = [entry["loss/predict"] for entry in metrics if "loss/predict" in entry]
            held_out = [entry["held_out/loss/predict"] for entry in metrics if "held_out/loss/predict" in entry]
            first, last = np.mean(training[:5]), np.mean(training[-5:])
            print(f"{processes} process(es): {len(training)} steps in {time.perf_counter() - start:.0f} s, ", end="")
            print(
                f"loss {first:.3f} -> {last:.3f}, held-out speakers {held_out[0]:.3f} -> {held_out[-1]:.3f}", flush=True
            )
            if not (last < 0.7 * first and held_out[-1] < held_out[0]):
                sys.exit("the loss does not fall")


if __name__ == "__main__":
    main()
