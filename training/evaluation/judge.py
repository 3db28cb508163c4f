"""The interface of a metric that compares a reconstructed clip with its original."""

import abc
from typing import ClassVar

import numpy as np
import soxr

from ..metrics.codec_quality.clip_quality import check_pair

JUDGE_RATE = 16000  # Hz: what every judge hears

Figures = dict[str, float | str]


class Judge(abc.ABC):
    """What all judges have in common."""

    figures: ClassVar[tuple[str, ...]]
    packages: ClassVar[dict[str, str]]  # what is imported -> what is installed
    pip_options: ClassVar[str] = ""
    language: str | None = None  # of the speech that it reads; None: it needs no text

    @abc.abstractmethod
    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        """The figures of one clip.

        Args:
            original: `(samples,)`, float32.
            reconstructed: `(samples,)`, float32.
            sampling_rate: Of both (Hz).
            text: What is said; of use to judges with a `language` only.

        Raises:
            ValueError: If the two are not equally long mono clips of at least 0.1 s and finite values.
        """


def at_judge_rate(original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int) -> list[np.ndarray]:
    """Both clips at `JUDGE_RATE`, float32.

    Raises:
        ValueError: As `Judge.__call__`.
    """
    check_pair(original, reconstructed, sampling_rate)
    return [
        np.ascontiguousarray(soxr.resample(side, sampling_rate, JUDGE_RATE), np.float32)
        for side in (original, reconstructed)
    ]


def count_errors(reference: str, transcript: str, prefix: str = "") -> dict[str, float]:
    """Errors of the words and characters of a transcript, and the size of the reference.

    Args:
        reference: Normalized text of at least one word.
        transcript: Normalized text; may be empty.
        prefix: Put before the name of each figure.
    """
    import jiwer

    words, characters = jiwer.process_words(reference, transcript), jiwer.process_characters(reference, transcript)
    return {
        f"{prefix}word_errors": words.substitutions + words.deletions + words.insertions,
        f"{prefix}words": words.hits + words.substitutions + words.deletions,
        f"{prefix}character_errors": characters.substitutions + characters.deletions + characters.insertions,
        f"{prefix}characters": characters.hits + characters.substitutions + characters.deletions,
    }
