"""What a speech language model has to beat: models of tokens that see no context.

All but the uniform one are counts of the training part, mixed with the uniform distribution by a weight that is best
on the validation part, so that an id that was never seen costs no infinity, and no baseline is weaker than it need be.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from modeling_jepa_daam.packing import group_levels, group_vocabulary_sizes, unpack_frames

UNIFORM_WEIGHTS = np.geomspace(1e-4, 1.0, 60)  # of the uniform distribution in a mixture


def uniform_bits(levels: Sequence[int], group_size: int) -> np.ndarray:
    """Bits of each token of a frame if all its values are equally probable: `(tokens_per_frame,)`."""
    return np.log2(group_vocabulary_sizes(levels, group_size))


def unigram_bits(training: np.ndarray, validation: np.ndarray, test: np.ndarray, vocab_size: int) -> np.ndarray:
    """Bits of each token by how often its id came, anywhere in a frame.

    Args:
        training: `(frames, tokens_per_frame)`, int64, to count.
        validation: The same, to choose the weight of the uniform distribution.
        test: `(frames, tokens_per_frame)`.
        vocab_size: Number of ids.

    Returns:
        `(frames, tokens_per_frame)`, bits.
    """
    one, two, three = (part.reshape(-1, 1) for part in (training, validation, test))
    return _mixture_bits(one, two, three, [vocab_size]).reshape(test.shape)


def positional_unigram_bits(
    training: np.ndarray, validation: np.ndarray, test: np.ndarray, sizes: Sequence[int]
) -> np.ndarray:
    """Bits of each token by how often its id came at its place of the frame; `sizes`: number of values of each place.

    Arguments and result otherwise as of `unigram_bits`.
    """
    return _mixture_bits(training, validation, test, sizes)


def positional_digit_bits(
    training: np.ndarray, validation: np.ndarray, test: np.ndarray, levels: Sequence[int], group_size: int
) -> np.ndarray:
    """Bits of each token by how often each of its digits had its value: few counts of many, where ids are rarely seen
    twice. Digits are taken as independent of each other.

    Arguments and result otherwise as of `unigram_bits`.
    """
    one, two, three = (
        unpack_frames(torch.from_numpy(part), levels, group_size).numpy() for part in (training, validation, test)
    )
    bits = _mixture_bits(one, two, three, levels)
    ends = np.cumsum([0, *map(len, group_levels(levels, group_size))])
    return np.stack([bits[:, start:end].sum(axis=1) for start, end in itertools.pairwise(ends)], axis=1)


def _mixture_bits(training: np.ndarray, validation: np.ndarray, test: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Each column on its own: `(rows, columns)` in, bits of `test`'s entries out."""
    counted = [
        np.bincount(column, minlength=size) / len(column) for column, size in zip(training.T, sizes, strict=True)
    ]

    def shares(part: np.ndarray) -> np.ndarray:
        return np.stack([share[column] for share, column in zip(counted, part.T, strict=True)], axis=1)

    def bits(share: np.ndarray, weight: float) -> np.ndarray:
        return -np.log2((1 - weight) * share + weight / np.asarray(sizes))

    of_validation = shares(validation)
    best = min(UNIFORM_WEIGHTS, key=lambda weight: bits(of_validation, weight).sum())
    return bits(shares(test), best)
