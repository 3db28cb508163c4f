"""Both stages on real speech, in one process and in two: do the losses fall, and does the tokenizer load?

    python -m tests.train_smoke

Trains the nano encoder, and the nano codec from it, for some steps on a small LibriLight made of the recordings in
`tests/audio`; then a small language model on the codec's tokens of them.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from modeling_jepa_daam import JepaAudioTokenizer
from tests.librilight import RECORDINGS, make_librilight
from tests.speech_with_texts import make_speech_with_texts
from training.tracking import read_metrics

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "training" / "configs"
LAUNCH = {  # Accelerate's own launcher starts several processes on CPU through MPI only
    1: ["accelerate.commands.launch", "--config_file", str(CONFIGS / "accelerate" / "cpu.yaml")],
    2: ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}
LM_SETTINGS = {
    "held-out-share": 0.2, "hidden-size": 64, "num-layers": 2, "num-heads": 2, "batch-tokens": 1024, "max-steps": 40,
    "log-every": 1, "eval-every": 20, "save-every": 20, "clips": 1, "learning-rate": 1e-2,
}  # fmt: skip


def train(processes: int, module: str, config: str, output: Path, *changes: str) -> list[dict[str, float]]:
    """Train as a user does, and return what was logged."""
    start = time.perf_counter()
    command = [sys.executable, "-m", *LAUNCH[processes], "-m", f"training.{module}", str(CONFIGS / config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command += [f"run.output={output}", *changes]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    print(f"{processes} process(es), {module}: {time.perf_counter() - start:.0f} s", flush=True)
    return read_metrics(output / "metrics.jsonl")


def fall(metrics: list[dict[str, float]], name: str, until: int = 40) -> tuple[float, float]:
    """Mean of a figure over its first five and its last five entries."""
    values = [entry[name] for entry in metrics if name in entry and entry["step"] <= until]
    first, last = float(np.mean(values[:5])), float(np.mean(values[-5:]))
    print(f"    {name} {first:.3f} -> {last:.3f}", flush=True)
    return first, last


def train_language_model(codec: Path, folder: Path) -> None:
    """Train a language model on a codec's tokens, and fail unless its loss falls and it leaves what it should."""
    start, output = time.perf_counter(), folder / "speech-lm"
    speech = make_speech_with_texts(folder / "speech.tar")
    settings = LM_SETTINGS | {"tokenizer": codec, "output": output}
    command = [sys.executable, "-m", "training.train_speech_lm", str(speech)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command += [f"--{name}={value}" for name, value in settings.items()]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(done.stdout + done.stderr)
    print(f"1 process(es), train_speech_lm: {time.perf_counter() - start:.0f} s", flush=True)
    first, last = fall(read_metrics(output / "metrics.jsonl"), "loss/bits")
    if not last < first - 1.0:
        sys.exit("the loss of the language model does not fall")
    if not list((output / "continuations").glob("*_continued.wav")):
        sys.exit("the language model wrote no continuations")
    print(done.stdout)


def main() -> None:
    """Train both stages twice, and a language model; print the losses, and fail unless they fall."""
    with tempfile.TemporaryDirectory() as folder:
        librilight = make_librilight(Path(folder), chapter_s=30.0).with_suffix(".tar")
        for processes in (1, 2):
            encoder, codec = Path(folder, f"encoder-{processes}"), Path(folder, f"codec-{processes}")
            metrics = train(processes, "pretrain_encoder", "smoke.yaml", encoder, f"data.sources=[{librilight}]")
            first, last = fall(metrics, "loss/predict")
            held_out = [entry["held_out/loss/predict"] for entry in metrics if "held_out/loss/predict" in entry]
            if not (last < 0.7 * first and held_out[-1] < held_out[0]):
                sys.exit("the loss of Stage 1 does not fall")
            start_from = (f"model.config={encoder / 'model'}", f"model.weights={encoder / 'model'}")
            metrics = train(
                processes, "train_tokenizer", "codec_smoke.yaml", codec, f"data.sources=[{librilight}]", *start_from
            )
            first, last = fall(metrics, "loss/total", until=30)  # from then on there are adversarial losses
            judged, still_judged = fall(metrics, "loss/discriminators")
            if not (last < 0.8 * first and still_judged < 0.95 * judged):
                sys.exit("the losses of Stage 2 do not fall")
            tokenizer = JepaAudioTokenizer.from_pretrained(codec / "model")
            ids = tokenizer(RECORDINGS / "1688-142285-0003.flac")["input_ids"]
            print(
                f"    the tokenizer that came of it makes {len(ids)} tokens of {RECORDINGS.name}/1688-142285-0003.flac"
            )
        train_language_model(codec / "model", Path(folder))


if __name__ == "__main__":
    main()
