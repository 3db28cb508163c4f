"""Runs of a training script in processes of their own, to be killed and started again."""

import os
import signal
import subprocess
import sys
import time

from tests.conftest import ROOT
from training.tracking import read_metrics


def figures(output):
    """Every logged figure but the speed."""
    entries = read_metrics(output / "metrics.jsonl")
    return [{key: entry[key] for key in entry if not key.startswith("speed/")} for entry in entries]


def start(script, processes, arguments, **extra):
    """Start `training.<script>`, as a user does."""
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return subprocess.Popen(
        [*launch, f"training.{script}", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true", **extra},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_after(process, output, num_entries):
    """kill -9 all processes of a run as soon as it has logged so many entries."""
    deadline = time.monotonic() + 200
    while not (output / "metrics.jsonl").exists() or len(read_metrics(output / "metrics.jsonl")) < num_entries:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
