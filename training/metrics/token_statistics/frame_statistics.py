"""How much of their values tokens use, and how much of a frame the frame before tells.

A clip is `(frames, tokens_per_frame)`, integers; the frame before is one of the same clip, never of another. A token
that packs several quantizer indices (mixed radix, first index most significant) also has digits, one for each index.

All entropies are those of the counts ("plug-in"), in bits, which are too low where counts are few: n samples show at
most log2(n) bits. With thousands of ids and few frames, a token's entropy says little and its conditional entropy
nothing; a digit of a few values needs but hundreds of frames. The `_shuffled` figures, the same estimate where the
frames of all clips are in random order, so that the one before tells nothing, show how large the error is: what the
frame before tells is the shuffled figure less the plain one, not the entropy less the conditional entropy.
"""

import math
from collections.abc import Sequence

import numpy as np

SHUFFLES = 5
SHUFFLING_SEED = 0


def token_statistics(
    clips: Sequence[np.ndarray],
    vocab_sizes: Sequence[int],
    levels: Sequence[int] | None = None,
    group_size: int | None = None,
    duration_s: float | None = None,
) -> dict[str, float | list[float]]:
    """Figures of all clips together.

    - `token_entropy_bits`: mean, over the places of a frame, of the entropy of the token.
      `token_entropy_bits_by_place`: of each place, a list.
    - `vocab_used_share`: distinct tokens in full groups (the last may be shorter), as a share of their vocabulary.
      At most the number of these tokens over its size.
    - `token_conditional_entropy_bits`, `token_conditional_entropy_bits_shuffled`: given the token at the same place
      of the frame before, mean over places. Left out if there are fewer frames than a token has values, for they then
      mean nothing.
    - `token_repeat_share`, `frame_repeat_share`: share of tokens, and of whole frames, equal to those before.

    With `levels`:

    - `digit_entropy_bits`, `digit_entropy_bits_min`: mean and least, over dimensions, of the entropy of the digit. At
      most the binary logarithm of the levels. `digit_entropy_bits_by_place`: of each dimension, a list.
    - `digits_never_change`: number of dimensions with a single value.
    - `digit_change_share`: share of digits that differ from the frame before.
    - `digit_conditional_entropy_bits`, `digit_conditional_entropy_bits_shuffled`: as of tokens.

    With `duration_s`:

    - `bitrate_bps`: of a code without any model, log2 of the vocabulary for each token.
    - `entropy_bitrate_bps`: of an ideal coder that knows how often each value comes at each place.
    - `conditional_entropy_bitrate_bps`: of one that also knows the value at the same place in the frame before: the
      former less what that value tells (shuffled less plain conditional entropy). Independent frames save nothing but
      noise of either sign. The two are sums over digits if there are `levels`, else over tokens, and take all clips as
      known in advance.

    Figures that need two frames in a row are left out if no clip has two.

    Args:
        clips: Each `(frames, tokens_per_frame)`, integer.
        vocab_sizes: Number of values of each token of a frame.
        levels: Number of values of each digit of a frame.
        group_size: Digits that make a token; the last token of a frame may have fewer. Comes with `levels`.
        duration_s: Duration of what all clips stand for.

    Raises:
        ValueError: If there are no frames, shapes, levels and sizes do not fit together, or a value is out of range.
    """
    check_clips(clips, vocab_sizes)
    of_tokens = place_statistics(clips, vocab_sizes)
    tokens = np.concatenate(clips)
    if len(tokens) < max(vocab_sizes):
        of_tokens = {"entropy_bits": of_tokens["entropy_bits"]}
    full = np.asarray(vocab_sizes) == max(vocab_sizes)
    figures: dict[str, float | list[float]] = {f"token_{key}": _mean(values) for key, values in of_tokens.items()}
    figures["token_entropy_bits_by_place"] = of_tokens["entropy_bits"]
    figures["vocab_used_share"] = len(np.unique(tokens[:, full])) / max(vocab_sizes)
    coded = of_tokens
    repeated = np.concatenate([clip[1:] == clip[:-1] for clip in clips])
    if len(repeated):
        figures["token_repeat_share"] = float(repeated.mean())
        figures["frame_repeat_share"] = float(repeated.all(axis=1).mean())
    if levels is not None:
        digits = [unpack_digits(clip, vocab_sizes, levels, group_size) for clip in clips]
        coded = place_statistics(digits, levels)
        figures |= {f"digit_{key}": _mean(values) for key, values in coded.items()}
        figures["digit_entropy_bits_min"] = min(coded["entropy_bits"])
        figures["digit_entropy_bits_by_place"] = coded["entropy_bits"]
        joined = np.concatenate(digits)
        figures["digits_never_change"] = float((joined == joined[0]).all(axis=0).sum())
        if len(repeated):
            changed = np.concatenate([clip[1:] != clip[:-1] for clip in digits])
            figures["digit_change_share"] = float(changed.mean())
    if duration_s is not None:
        if not duration_s > 0.0:
            raise ValueError(f"`duration_s` must be above 0, got {duration_s}")
        figures["bitrate_bps"] = len(tokens) * sum(map(math.log2, vocab_sizes)) / duration_s
        bitrates = {key: len(tokens) * sum(values) / duration_s for key, values in coded.items()}
        figures["entropy_bitrate_bps"] = bitrates["entropy_bits"]
        if "conditional_entropy_bits" in bitrates:
            told = bitrates["conditional_entropy_bits_shuffled"] - bitrates["conditional_entropy_bits"]
            figures["conditional_entropy_bitrate_bps"] = bitrates["entropy_bits"] - told
    return figures


def place_statistics(clips: Sequence[np.ndarray], sizes: Sequence[int]) -> dict[str, list[float]]:
    """Entropies of each place of a frame, in bits: lists of `len(sizes)`.

    - `entropy_bits`.
    - `conditional_entropy_bits`, `conditional_entropy_bits_shuffled`: given the value at the same place of the frame
      before. Left out if no clip has two frames.

    Args:
        clips: Each `(frames, places)`, integer: tokens, or digits.
        sizes: Number of values of each place.

    Raises:
        ValueError: If there are no frames, or a value is out of range.
    """
    check_clips(clips, sizes)
    frames = np.concatenate(clips).astype(np.int64)
    figures = {"entropy_bits": [_entropy_bits(values) for values in frames.T]}
    starts = np.cumsum([0, *(len(clip) for clip in clips)])
    second = np.setdiff1d(np.arange(len(frames)), starts)  # frames that have one before, in their clip
    if not len(second):
        return figures
    figures["conditional_entropy_bits"] = _conditional_entropy_bits(frames, second, sizes)
    rng = np.random.default_rng(SHUFFLING_SEED)
    shuffled = [_conditional_entropy_bits(rng.permutation(frames), second, sizes) for _ in range(SHUFFLES)]
    figures["conditional_entropy_bits_shuffled"] = np.mean(shuffled, axis=0).tolist()
    return figures


def unpack_digits(
    tokens: np.ndarray, vocab_sizes: Sequence[int], levels: Sequence[int], group_size: int | None
) -> np.ndarray:
    """Take tokens apart into digits: `(frames, tokens_per_frame)` -> `(frames, len(levels))`, int64.

    Raises:
        ValueError: If the levels of the groups do not multiply to the vocabulary sizes.
    """
    if group_size is None or group_size < 1:
        raise ValueError(f"`group_size` must be at least 1 with `levels`, got {group_size}")
    groups = [levels[start : start + group_size] for start in range(0, len(levels), group_size)]
    if [math.prod(group) for group in groups] != list(vocab_sizes):
        raise ValueError(
            f"`levels` in groups of {group_size} make vocabularies of {[math.prod(group) for group in groups]}, "
            f"but `vocab_sizes` are {list(vocab_sizes)}"
        )
    columns = []
    for rest, group in zip(tokens.T.astype(np.int64), groups, strict=True):
        digits = []
        for level in reversed(group):
            rest, digit = np.divmod(rest, level)
            digits.append(digit)
        columns += digits[::-1]
    return np.stack(columns, axis=1)


def check_clips(clips: Sequence[np.ndarray], sizes: Sequence[int]) -> None:
    """Refuse what are no clips of tokens.

    Raises:
        ValueError: If there are no frames, or a value is out of range.
    """
    for clip in clips:
        if clip.ndim != 2 or clip.shape[1] != len(sizes) or not np.issubdtype(clip.dtype, np.integer):
            raise ValueError(f"`clips` must be integers, (frames, {len(sizes)}), got {clip.dtype} {clip.shape}")
        if ((clip < 0) | (clip >= np.asarray(sizes))).any():
            raise ValueError(f"`clips` must lie in [0, size) for sizes {list(sizes)}, got {clip.min()} to {clip.max()}")
    if not sum(map(len, clips)):
        raise ValueError("`clips` must have at least one frame")


def _conditional_entropy_bits(frames: np.ndarray, second: np.ndarray, sizes: Sequence[int]) -> list[float]:
    """H(value, value before) - H(value before) of each place."""
    before, after = frames[second - 1], frames[second]
    joint = before * np.asarray(sizes) + after
    return [_entropy_bits(pair) - _entropy_bits(one) for pair, one in zip(joint.T, before.T, strict=True)]


def _entropy_bits(values: np.ndarray) -> float:
    share = np.unique(values, return_counts=True)[1] / len(values)
    return abs(float(share @ np.log2(share)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
