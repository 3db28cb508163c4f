"""When each word of a known text is said: forced alignment by PocketSphinx and the models that its package brings.

English only; times are in steps of 10 ms. Words that its dictionary lacks make a clip unusable, and are named.
"""

import importlib.util
import re
from dataclasses import dataclass

import numpy as np
import soxr

ALIGNMENT_MISSING = (
    None if importlib.util.find_spec("pocketsphinx") else "they need pocketsphinx: pip install 'jepa-daam[alignment]'"
)
SAMPLING_RATE = 16000  # Hz, of its acoustic model
STEPS_HZ = 100
FILLERS = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")  # silence and noise, as its dictionary of fillers has them
WORD = re.compile(r"[\w']+")


@dataclass(frozen=True)
class Word:
    """A word and its times, in seconds from the recording's beginning."""

    word: str
    start_s: float
    end_s: float


class Aligner:
    """Aligns texts to recordings, one after another.

    Raises:
        ImportError: If PocketSphinx is not installed.
    """

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        self._make = lambda: Decoder(lm=None, loglevel="FATAL")
        self._dictionary = self._make()

    def align(self, samples: np.ndarray, sampling_rate: int, text: str) -> list[Word]:
        """The words of a text in their order.

        Args:
            samples: `(samples,)`, float32, in [-1, 1].
            sampling_rate: Of the samples, Hz.
            text: What is said; its case and punctuation do not matter.

        Raises:
            ValueError: If there is no text, a word is not in the dictionary, or it does not fit the sound.
        """
        words = WORD.findall(text.lower().replace("\u2019", "'"))
        if not words:
            raise ValueError("there is no text")
        if unknown := sorted({word for word in words if self._dictionary.lookup_word(word) is None}):
            raise ValueError(f"not in the dictionary: {', '.join(unknown)}")
        pcm = soxr.resample(samples, sampling_rate, SAMPLING_RATE)
        decoder = self._make()  # a new one: its estimate of the mean cepstrum goes on from one recording to the next
        decoder.set_align_text(" ".join(words))
        decoder.start_utt()
        decoder.process_raw(np.clip(np.rint(pcm * 32767), -32768, 32767).astype(np.int16).tobytes(), full_utt=True)
        decoder.end_utt()
        segments = [each for each in decoder.seg() or () if not FILLERS.fullmatch(each.word)]
        if [re.sub(r"\(\d+\)$", "", each.word) for each in segments] != words:
            raise ValueError("the text does not fit the sound")
        return [
            Word(word, each.start_frame / STEPS_HZ, (each.end_frame + 1) / STEPS_HZ)
            for word, each in zip(words, segments, strict=True)
        ]
