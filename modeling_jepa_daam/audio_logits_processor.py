"""Generation that makes legal audio only."""

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

    Raises:
        ValueError: If `max_frames` is below 1.
    """

    def __init__(self, vocabulary: AudioVocabulary, max_frames: int | None = None):
        self.vocabulary = vocabulary
        self.max_frames = None if max_frames is None else check_integer(max_frames, "max_frames")

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Set the scores of forbidden ids to minus infinity.

        Args:
            input_ids: `(batch, length)`, int64, what is there so far.
            scores: `(batch, vocabulary)`, of the next id.

        Raises:
            ValueError: If the model's vocabulary is too small to hold the audio's.
        """
        return scores.masked_fill(~self.allowed(input_ids, scores.shape[-1]), -torch.inf)

    def allowed(self, input_ids: Tensor, vocab_size: int) -> Tensor:
        """Which ids may come next: `(batch, vocab_size)`, bool; arguments as of `__call__`."""
        vocabulary = self.vocabulary
        first, start, end = vocabulary.first_id, vocabulary.start_id, vocabulary.end_id
        if vocab_size <= max(first + vocabulary.num_tokens - 1, start, end):
            raise ValueError(f"`scores` must have a column for each id of {vocabulary}, got {vocab_size}")
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


__all__ = ["AudioLogitsProcessor"]
