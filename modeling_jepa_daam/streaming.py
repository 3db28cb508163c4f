"""Tokens of audio that comes in pieces."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .audio import Resampler, check_sampling_rate, mix_down

if TYPE_CHECKING:
    from .tokenization_jepa_daam import JepaAudioTokenizer


class AudioTokenStream:
    """Tokens of audio that comes in pieces: the same as of the whole recording.

    The encoder sees `chunk_frames` frames at once, so tokens become final a chunk at a time, the rest on `close`.

    Args:
        tokenizer: The tokenizer.
        sampling_rate: Rate (Hz) of the pieces.

    Raises:
        ValueError: If the rate is missing or not positive.
        TypeError: If the rate is no number.
    """

    def __init__(self, tokenizer: "JepaAudioTokenizer", sampling_rate: int):
        self._tokenizer = tokenizer
        self._resampler = Resampler(check_sampling_rate(sampling_rate), tokenizer.sampling_rate)
        self._pending = np.zeros(0, np.float32)
        self._closed = False
        self.num_samples = 0
        """Samples taken so far, at the model's rate."""

    def push(self, samples: Any) -> list[int]:
        """Take a piece.

        Args:
            samples: `(samples,)`, or `(samples, channels)` as soundfile and sounddevice give them; may be empty.

        Returns:
            Ids that became final, maybe none.

        Raises:
            ValueError: If a sample is not finite, the shape is wrong, or the stream is closed.
            TypeError: If the piece does not hold real numbers.
        """
        self._check_open()
        if np.size(samples) == 0:
            return []
        return self._take(self._resampler.push(mix_down(samples, "samples", channel_axis=1)), last=False)

    def close(self) -> list[int]:
        """End the recording.

        Returns:
            The remaining ids.

        Raises:
            ValueError: If nothing was pushed, or the stream is closed.
        """
        self._check_open()
        self._closed = True
        ids = self._take(self._resampler.close(), last=True)
        if self.num_samples == 0:
            raise ValueError("`samples`: the stream was closed before any came")
        return ids

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("`samples`: the stream is closed; make a new one for another recording")

    @torch.inference_mode()
    def _take(self, samples: np.ndarray, last: bool) -> list[int]:
        self.num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        model = self._tokenizer.model
        chunk_samples = model.config.chunk_frames * model.config.hop_length
        ready = len(self._pending) if last else len(self._pending) // chunk_samples * chunk_samples
        if ready == 0:
            return []
        ids = model.waveforms_to_ids([torch.from_numpy(self._pending[:ready])])[0]
        self._pending = self._pending[ready:]  # only now: after an error, nothing is lost
        return ids
