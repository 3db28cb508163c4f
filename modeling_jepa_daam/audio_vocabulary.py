"""The ids of audio in a language model's vocabulary, alone or beside those of text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, PreTrainedModel, PreTrainedTokenizerBase

from .packing import group_vocabulary_sizes
from .tokenization_jepa_daam import AUDIO_END, AUDIO_START, JepaAudioTokenizer


@dataclass(frozen=True)
class AudioVocabulary:
    """Where audio lies in a language model's vocabulary.

    Args:
        first_id: Id of the first audio token; the others follow it.
        group_sizes: Number of values of each token of a frame.
        start_id: Id of the mark before audio.
        end_id: Id of the mark after audio.
    """

    first_id: int
    group_sizes: tuple[int, ...]
    start_id: int
    end_id: int

    @classmethod
    def of(cls, tokenizer: JepaAudioTokenizer) -> "AudioVocabulary":
        """That of a model of audio alone: the tokenizer's own ids between its `bos` and `eos`."""
        sizes = group_vocabulary_sizes(tokenizer.levels, tokenizer.group_size)
        return cls(0, tuple(sizes), tokenizer.bos_token_id, tokenizer.eos_token_id)

    @property
    def num_tokens(self) -> int:
        """Number of audio tokens."""
        return max(self.group_sizes)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens a frame."""
        return len(self.group_sizes)

    def from_audio(self, input_ids: Sequence[int], start: bool = True, end: bool = True) -> list[int]:
        """Ids of a `JepaAudioTokenizer` as ids of the language model.

        Args:
            input_ids: Ids of whole frames, without special tokens.
            start: Whether to put the start mark before them.
            end: Whether to put the end mark after them; not for a prompt to be continued.

        Raises:
            ValueError: If an id is out of range, or they are no whole number of frames.
        """
        ids = np.asarray(input_ids, dtype=np.int64)
        if ids.ndim != 1 or len(ids) % self.tokens_per_frame:
            raise ValueError(
                f"`input_ids` must be one sequence of whole frames of {self.tokens_per_frame} tokens, "
                f"got shape {ids.shape}"
            )
        if ((ids < 0) | (ids.reshape(-1, self.tokens_per_frame) >= self.group_sizes).reshape(-1)).any():
            raise ValueError(f"`input_ids` must lie within their place's range in a frame, {self.group_sizes}")
        return [self.start_id] * start + (ids + self.first_id).tolist() + [self.end_id] * end

    def to_audio(self, ids: Any) -> list[int]:
        """The audio in ids of the language model as ids of a `JepaAudioTokenizer`: marks and text are left out, and
        what generation left of an unfinished last frame is too.

        Args:
            ids: One sequence: list, array or tensor.
        """
        ids = np.asarray(torch.as_tensor(ids).cpu(), dtype=np.int64)
        audio = ids[(ids >= self.first_id) & (ids < self.first_id + self.num_tokens)] - self.first_id
        return audio[: len(audio) - len(audio) % self.tokens_per_frame].tolist()


def add_audio_tokens(text_tokenizer: PreTrainedTokenizerBase, audio_tokenizer: JepaAudioTokenizer) -> AudioVocabulary:
    """Extend a text tokenizer by the strings of all audio tokens, `<|audio_0|>` and so on, and the two marks.

    The strings are those of the `JepaAudioTokenizer`: its `decode` writes what the extended tokenizer reads, in a
    chat template or elsewhere. A tokenizer that has them (one that was extended and saved) stays as it is.

    Args:
        text_tokenizer: Any tokenizer of the Hub; it is changed.
        audio_tokenizer: Says how many tokens there are.

    Raises:
        ValueError: If the tokenizer has some of the strings but not all, or not one after another.
    """
    names = audio_tokenizer.convert_ids_to_tokens(list(range(audio_tokenizer.vocab_size)))
    vocabulary = text_tokenizer.get_vocab()
    known = sum(name in vocabulary for name in (*names, AUDIO_START, AUDIO_END))
    if known == 0:
        text_tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
        marks = [AddedToken(mark, normalized=False, special=True) for mark in (AUDIO_START, AUDIO_END)]
        text_tokenizer.add_tokens(marks, special_tokens=True)
        vocabulary = text_tokenizer.get_vocab()
    ids = [vocabulary.get(name) for name in (*names, AUDIO_START, AUDIO_END)]
    first = ids[0]
    if first is None or ids[: len(names)] != list(range(first, first + len(names))) or None in ids:
        raise ValueError(
            f"`text_tokenizer` must have all of {names[0]} .. {names[-1]}, {AUDIO_START} and {AUDIO_END}, one after "
            f"another, or none of them; it had {known}"
        )
    sizes = group_vocabulary_sizes(audio_tokenizer.levels, audio_tokenizer.group_size)
    start_id, end_id = (vocabulary[mark] for mark in (AUDIO_START, AUDIO_END))
    return AudioVocabulary(first, tuple(sizes), start_id, end_id)


@torch.no_grad()
def extend_embeddings(model: PreTrainedModel, vocabulary: AudioVocabulary, seed: int = 0) -> None:
    """Give a text model's embeddings, in and out, rows for the ids that `add_audio_tokens` added.

    The new rows are drawn around the mean of those of text, with their standard deviation in each dimension, so that
    no new token is much more probable than a token of text before training. Rows beyond the text's that the model had
    already (many models have spare ones) are used; none is taken away.

    Args:
        model: Any language model; it is changed.
        vocabulary: What `add_audio_tokens` returned.
        seed: Of the draws.

    Raises:
        ValueError: If the ids do not come after those of text.
    """
    new_ids = [*range(vocabulary.first_id, vocabulary.first_id + vocabulary.num_tokens)]
    new_ids += [vocabulary.start_id, vocabulary.end_id]
    text_rows, needed = min(new_ids), max(new_ids) + 1
    if text_rows < 2:
        raise ValueError(f"`vocabulary` must come after the ids of text, but begins at {text_rows}")
    if needed > len(_embeddings(model)[0]):
        model.resize_token_embeddings(needed, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    for weight in _embeddings(model):
        text = weight[:text_rows].float()
        noise = torch.randn(len(new_ids), weight.shape[1], generator=generator).to(weight.device)
        weight[new_ids] = (text.mean(dim=0) + noise * text.std(dim=0)).to(weight.dtype)


def _embeddings(model: PreTrainedModel) -> list[Tensor]:
    """Matrices of the embeddings in and out; one, where they are tied."""
    layers: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    return list({id(layer.weight): layer.weight for layer in layers if layer is not None}.values())


__all__ = ["AudioVocabulary", "add_audio_tokens", "extend_embeddings"]
