"""Audio of a language model while it generates."""

from collections.abc import Iterator
from queue import Queue

import numpy as np
from torch import Tensor
from transformers.generation import BaseStreamer

from .audio_vocabulary import AudioVocabulary
from .decode_stream import AudioDecodeStream
from .tokenization_jepa_daam import JepaAudioTokenizer


class AudioStreamer(BaseStreamer):
    """Turns ids into audio while they come: `model.generate(..., streamer=streamer)`, and `for samples in streamer`.

    Run `generate` in a thread of its own, and take the pieces in another; or in the same one afterwards. The pieces
    add up to what decoding all ids at once gives, but for the rounding of float32. What comes between a start and an
    end mark is decoded on its own; an unfinished frame at the end is left out.

    Args:
        tokenizer: Decodes.
        vocabulary: Where audio lies in the model's vocabulary; the tokenizer's own ids if `None`.
        skip_prompt: Whether to leave out the prompt's audio. What continues it is decoded with it all the same.
        frames_per_piece: Frames that are decoded at once: more is less work and more delay.
        timeout: Seconds to wait for a piece; without end if `None`.
    """

    def __init__(
        self,
        tokenizer: JepaAudioTokenizer,
        vocabulary: AudioVocabulary | None = None,
        skip_prompt: bool = True,
        frames_per_piece: int = 1,
        timeout: float | None = None,
    ):
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary or AudioVocabulary.of(tokenizer)
        self._skip_prompt, self._frames_per_piece, self._timeout = skip_prompt, frames_per_piece, timeout
        self._pieces: Queue[np.ndarray | None] = Queue()
        self._restart()

    def _restart(self) -> None:
        self._stream: AudioDecodeStream | None = None
        self._frame: list[int] = []  # that is not whole yet
        self._to_skip = 0  # samples of the stream that are the prompt's
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        """Take ids: the prompt first, `(1, length)`, then one after another, `(1,)`.

        Raises:
            ValueError: If they are a batch, or an audio token is out of its place's range.
        """
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"`value` must be one sequence, got a batch of {value.shape[0]}: stream them one by one")
        skip, self._in_prompt = self._in_prompt and self._skip_prompt, False
        for index in value.flatten().tolist():
            self._take(index, skip)

    def end(self) -> None:
        """End the audio; the streamer may then be used again."""
        self._finish(skip=False)
        self._restart()
        self._pieces.put(None)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Pieces of audio, `(samples,)`, float32, until generation ends.

        Raises:
            queue.Empty: If none comes within `timeout` seconds.
        """
        while (piece := self._pieces.get(timeout=self._timeout)) is not None:
            yield piece

    def _take(self, index: int, skip: bool) -> None:
        if index in (self._vocabulary.start_id, self._vocabulary.end_id):
            self._finish(skip)
        elif 0 <= index - self._vocabulary.first_id < self._vocabulary.num_tokens:
            self._frame.append(index - self._vocabulary.first_id)
            if len(self._frame) == self._vocabulary.tokens_per_frame:
                if self._stream is None:
                    self._stream = self._tokenizer.decode_stream(self._frames_per_piece)
                self._to_skip += self._tokenizer.hop_length * skip
                samples, self._frame = self._stream.push(self._frame), []
                self._give(samples)

    def _finish(self, skip: bool) -> None:
        stream, self._stream, self._frame = self._stream, None, []
        if stream is not None and not skip:
            self._give(stream.close())
        self._to_skip = 0

    def _give(self, samples: np.ndarray) -> None:
        skipped = min(self._to_skip, len(samples))
        self._to_skip -= skipped
        if len(samples) > skipped:
            self._pieces.put(samples[skipped:])


__all__ = ["AudioStreamer"]
