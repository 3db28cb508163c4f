"""Difference of the phones of a reconstruction and of its original, by the phone recognizer of hama.

It needs no text, so it measures clips of any language that the recognizer knows (English and Korean).

Source: hama 1.7.0 (Apache-2.0): a CTC network on the waveform; its engine is a C library in the package.
"""

import importlib.util
from pathlib import Path

import numpy as np

from .judge import JUDGE_RATE, Figures, Judge, at_judge_rate

WEIGHTS_FILE = Path("assets") / "asr_waveform.hama"


class PhoneJudge(Judge):
    """Edits from the phones of the original to those of the reconstruction.

    - `phone_errors`: substitutions, deletions and insertions.
    - `phones`: number of phones recognized in the original. A rate over clips is the sum of the errors by their sum.

    A clip without any phone in the original has neither.
    """

    figures = ("phone_errors", "phones")
    packages = {"hama": "hama", "jiwer": "jiwer"}

    def __init__(self) -> None:
        from hama import ASRModel

        self._recognizer = ASRModel()

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        import jiwer

        sides = at_judge_rate(original, reconstructed, sampling_rate)
        reference, recognized = (" ".join(self._recognizer(side, JUDGE_RATE).phonemes) for side in sides)
        if not reference:
            return {}
        found = jiwer.process_words(reference, recognized)
        return {
            "phone_errors": found.substitutions + found.deletions + found.insertions,
            "phones": found.hits + found.substitutions + found.deletions,
        }


def phone_recognizer_file() -> Path | None:
    """The weights in the installed package; None if it is not installed."""
    spec = importlib.util.find_spec("hama")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE
