"""Audio of a language model while it generates."""

import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.generation import BaseStreamer

from .audio_vocabulary import AudioVocabulary
from .decode_stream import AudioDecodeStream
from .tokenization_jepa_daam import JepaAudioTokenizer


class AudioStreamer(BaseStreamer):
    """Turns ids into audio while they come: `for samples in streamer.generate(model, **prompt, **legal)`.

    `legal` is an `AudioLogitsProcessor` and the end mark's id: what a model generates without them need not be audio.
    The pieces add up to what decoding all ids at once gives, except for the rounding of float32. What comes between a
    start and an end mark is decoded on its own; an unfinished frame at the end is left out.

    A streamer may also be passed to `model.generate(..., streamer=streamer)` in a thread of the caller's, and iterated
    in another, or in the same one afterwards. The iteration raises what `put` raised; errors of the model itself reach
    it through `fail`, which `streamer.generate` calls.

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
        self._pieces: Queue[np.ndarray | Exception | None] = Queue()
        self._restart()

    def _restart(self) -> None:
        self._stream: AudioDecodeStream | None = None
        self._frame: list[int] = []  # that is not whole yet
        self._to_skip = 0  # samples of the stream that are the prompt's
        self._in_prompt = True

    def put(self, value: Tensor) -> None:
        """Take ids: the prompt first, `(1, length)`, then one after another, `(1,)`.

        Raises:
            ValueError: If they are a batch, or an audio token is out of its place's range; the iteration raises it too.
        """
        try:
            self._put(value)
        except Exception as error:
            self.fail(error)
            raise

    def _put(self, value: Tensor) -> None:
        if value.ndim > 1 and value.shape[0] > 1:
            raise ValueError(f"`value` must be one sequence, got a batch of {value.shape[0]}: stream them one by one")
        skip, self._in_prompt = self._in_prompt and self._skip_prompt, False
        for index in value.flatten().tolist():
            self._take(index, skip)

    def end(self) -> None:
        """End the audio; the streamer may then be used again."""
        try:
            self._finish(skip=False)
        except Exception as error:
            self.fail(error)
            raise
        self._restart()
        self._pieces.put(None)

    def fail(self, error: Exception) -> None:
        """End the audio by an error, which the iteration raises; the streamer may then be used again."""
        self._restart()
        self._pieces.put(error)

    def generate(self, model: Any, **arguments: Any) -> Iterator[np.ndarray]:
        """Generate in another thread and give the audio as it comes.

        Args:
            model: A language model of transformers.
            **arguments: Of its `generate`. If the caller stops iterating, generation stops at the next token.

        Yields:
            `(samples,)`, float32.

        Raises:
            ValueError: If a generated id is no audio in its place.
            Exception: Any error of `model.generate`.
        """
        stopped = threading.Event()

        def stop_criterion(input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), stopped.is_set(), device=input_ids.device)

        def produce() -> None:
            try:
                model.generate(streamer=self, stopping_criteria=criteria, **arguments)
            except Exception as error:
                self.fail(error)

        criteria: list[Any] = [*(arguments.pop("stopping_criteria", None) or ()), stop_criterion]
        thread = threading.Thread(target=produce, daemon=True)
        thread.start()
        try:
            yield from self
        finally:
            stopped.set()
            thread.join(self._timeout)
            while not self._pieces.empty():  # of a caller that stopped, or an error that came twice
                self._pieces.get_nowait()

    def __iter__(self) -> Iterator[np.ndarray]:
        """Pieces of audio, `(samples,)`, float32, until generation ends.

        Raises:
            queue.Empty: If none comes within `timeout` seconds.
            Exception: What ended the generation, if it was an error.
        """
        while (piece := self._pieces.get(timeout=self._timeout)) is not None:
            if isinstance(piece, Exception):
                raise piece
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
