"""An hour of audio in bounded memory. Slow: run by `make test-slow`."""

import re
import subprocess
import sys

import pytest

from tests.conftest import ROOT

LIMIT_GB = 3.0


def _peaks(model: str, minutes: float) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.memory", "--model", f"hub_configs/{model}", "--minutes", str(minutes)]
    output = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    print(output)
    return [float(peak) for peak in re.findall(r"([0-9.]+) GB", output)]


@pytest.mark.slow
def test_an_hour_encodes_and_decodes_within_3_gb():
    peaks = _peaks("jepa-daam-24khz-fast", 60)
    assert len(peaks) == 4
    assert max(peaks) < LIMIT_GB


@pytest.mark.slow
def test_the_papers_model_stays_within_3_gb_as_well():
    """Two minutes hold ten chunks: what grows after them is the hour's samples, 0.35 GB an array."""
    assert max(_peaks("jepa-daam-24khz", 2)) + 2 * 0.35 < LIMIT_GB
