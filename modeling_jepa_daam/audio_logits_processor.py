"""Generation that makes legal audio only."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from .audio_vocabulary import AudioVocabulary
from .framing import check_integer


class AudioLogitsProcessor(LogitsProcessor):
    """Forbid what would be no audio: `model.generate(..., logits_processor=[AudioLogitsProcessor(vocabulary)])`.

    Between the start and the end mark there are audio tokens alone, each within the range of its place in the frame
    (the paper's 19th token is below 16), and the end mark comes after whole frames, at least one. Elsewhere there are
    neither audio tokens nor an end mark. A prompt may hold text, finished audio and the beginning of more audio, which
    is continued.

    All is read from the sequences themselves, so that beams may be reordered and prompts padded on the left.

    Args:
        vocabulary: Where audio lies in the model's vocabulary.
        max_frames: Frames of audio, those of the prompt among them, after which the end mark must come; as many as the
            model likes if `None`.
        prompt_ids: For `generate(inputs_embeds=...)`, which passes no ids of the prompt: what stands before the
            generated ids, `(length,)` or `(batch, length)`. The start mark alone says that audio has begun.

    Raises:
        ValueError: If `max_frames` is below 1, or `prompt_ids` has another shape.
        TypeError: If `prompt_ids` are not integers.
    """

    def __init__(self, vocabulary: AudioVocabulary, max_frames: int | None = None, prompt_ids: Any = None):
        self.vocabulary = vocabulary
        self.max_frames = None if max_frames is None else check_integer(max_frames, "max_frames")
        self._prompt_ids: Tensor | None = None
        if prompt_ids is not None:
            ids = torch.as_tensor(prompt_ids)
            if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
                raise TypeError(f"`prompt_ids` must be integers, got {ids.dtype}")
            if ids.ndim not in (1, 2) or 0 in ids.shape:
                raise ValueError(
                    f"`prompt_ids` must have shape (length,) or (batch, length), none of them 0, got {tuple(ids.shape)}"
                )
            self._prompt_ids = ids.long().view(-1, ids.shape[-1])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores of forbidden ids to minus infinity.

        Args:
            input_ids: `(batch, length)`, int64, what is there so far.
            scores: `(batch, vocabulary)`, of the next id.

        Raises:
            ValueError: If the model's vocabulary is too small to hold the audio's, or `prompt_ids` has rows for another
                batch.
        """
        return scores.masked_fill(~self.allowed(input_ids, scores.shape[-1]), -torch.inf)

    def allowed(self, input_ids: Tensor, vocab_size: int) -> Tensor:
        """Which ids may come next: `(batch, vocab_size)`, bool; arguments as of `__call__`."""
        vocabulary = self.vocabulary
        first, start, end = vocabulary.first_id, vocabulary.start_id, vocabulary.end_id
        if vocab_size <= max(first + vocabulary.num_tokens - 1, start, end):
            raise ValueError(f"`scores` must have a column for each id of {vocabulary}, got {vocab_size}")
        if self._prompt_ids is not None:
            input_ids = torch.cat([self._prompt_of(input_ids), input_ids], dim=1)
        if input_ids.shape[1] == 0:  # of `inputs_embeds`: nothing is known, as in text
            input_ids = input_ids.new_full((len(input_ids), 1), end)
        place_of_next = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        after_start = (place_of_next * (input_ids == start)).amax(dim=1)  # 0 where there is none
        after_end = (place_of_next * (input_ids == end)).amax(dim=1)
        in_audio = (after_start > after_end)[:, None]
        count = (input_ids.shape[1] - after_start)[:, None]  # audio tokens since the mark
        place = count % vocabulary.tokens_per_frame

        ids = torch.arange(vocab_size, device=input_ids.device)
        is_audio = (ids >= first) & (ids < first + vocabulary.num_tokens)
        sizes = torch.tensor(vocabulary.group_sizes, device=input_ids.device)
        inside = is_audio & (ids < first + sizes[place])
        may_end = (place == 0) & (count > 0)
        if self.max_frames is not None:
            inside &= count < self.max_frames * vocabulary.tokens_per_frame
        return torch.where(in_audio, inside | ((ids == end) & may_end), ~is_audio & (ids != end))

    def _prompt_of(self, input_ids: Tensor) -> Tensor:
        # One row for each sequence: beams of one prompt are neighbours.
        assert self._prompt_ids is not None
        rows, sequences = len(self._prompt_ids), len(input_ids)
        if sequences % rows:
            raise ValueError(f"`prompt_ids` must have a row for each prompt, got {rows} for {sequences} sequences")
        return self._prompt_ids.to(input_ids.device).repeat_interleave(sequences // rows, dim=0)


__all__ = ["AudioLogitsProcessor"]
