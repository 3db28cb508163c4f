"""Audio of tokens that come in pieces."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .framing import check_integer

if TYPE_CHECKING:
    from .tokenization_jepa_daam import JepaAudioTokenizer


class AudioDecodeStream:
    """Audio of tokens that come in pieces: equal to that of all tokens at once within float32 rounding.

    A sample depends on the frames around its own, `delay_frames` of them to either side, so that it is final when
    these have come. (With `daam_in_decoder` a gate spans what is decoded at once: audio differs slightly.)

    Args:
        tokenizer: The tokenizer.
        frames_per_piece: Frames that are decoded at once: more is less work and more delay.

    Raises:
        ValueError: If `frames_per_piece` is below 1.
    """

    def __init__(self, tokenizer: "JepaAudioTokenizer", frames_per_piece: int = 1):
        self._tokenizer = tokenizer
        self._frames_per_piece = check_integer(frames_per_piece, "frames_per_piece")
        self._ids: list[int] = []  # of the frame that is not whole yet
        self._frames: list[Tensor] = []  # whole ones, each `(tokens_per_frame,)`, from the left context on
        self._context = 0  # how many of them are context: their samples are out
        self._closed = False
        self.num_frames = 0
        """Whole frames taken so far."""
        self._context_frames, self.delay_frames = tokenizer.model.decoder.context_frames
        """Frames that must have come after a frame before its samples are final."""

    def push(self, input_ids: Any) -> np.ndarray:
        """Take ids.

        Args:
            input_ids: List, array or tensor of ids, any number of them; special tokens are left out.

        Returns:
            `(samples,)`, float32: what became final, maybe nothing.

        Raises:
            ValueError: If an id is out of range, or the stream is closed; the stream is as it was before.
            TypeError: If ids are not integers.
        """
        self._check_open()
        width = self._tokenizer.tokens_per_frame
        ids = self._ids + (self._tokenizer.audio_ids(input_ids) if len(input_ids) > 0 else [])
        if ids:  # those of a frame that is not whole yet are checked too: what is refused leaves no trace
            frames = self._tokenizer.frames([*ids, *[0] * (-len(ids) % width)])
            whole = len(ids) // width
            self._frames += frames[:whole].unbind()
            self._ids = ids[whole * width :]
            self.num_frames += whole
        pieces = [np.zeros(0, np.float32)]
        while len(self._frames) - self._context - self.delay_frames >= self._frames_per_piece:
            pieces.append(self._decode(self._frames_per_piece))
        return np.concatenate(pieces)

    def close(self) -> np.ndarray:
        """End the audio.

        Returns:
            The remaining samples, `(samples,)`, float32.

        Raises:
            ValueError: If the last frame is not whole, nothing was pushed, or the stream is closed.
        """
        self._check_open()
        self._closed = True
        if self._ids or self.num_frames == 0:
            raise ValueError(
                f"`input_ids` must be a whole number of frames of {self._tokenizer.tokens_per_frame} tokens, "
                f"got {len(self._ids)} after the last whole one"
            )
        pieces = [np.zeros(0, np.float32)]
        while len(self._frames) > self._context:
            pieces.append(self._decode(min(self._frames_per_piece, len(self._frames) - self._context)))
        return np.concatenate(pieces)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("`input_ids`: the stream is closed; make a new one for other audio")

    @torch.inference_mode()
    def _decode(self, count: int) -> np.ndarray:
        """Samples of the next `count` frames; frames that no later ones will read are forgotten."""
        model, left = self._tokenizer.model, self._context
        right = min(self.delay_frames, len(self._frames) - left - count)
        window = torch.stack(self._frames[: left + count + right], dim=-1)[None]
        window = window.to(model.input_device(window))
        waveform = model.decoder(model.codes_to_latents(window), context=(left, right))
        done = left + count
        self._context = min(self._context_frames, done)
        self._frames = self._frames[done - self._context :]
        return waveform[0, 0].clamp(-1.0, 1.0).float().cpu().numpy()
