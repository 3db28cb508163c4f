"""Mixed-radix packing of quantizer indices into tokens (eq. 16-19), for any levels and any group size.

A frame has one index a latent dimension. Groups of `group_size` neighbouring dimensions become one token each; the
last group may be shorter (the paper fills it with dimensions of radix 1, which hold nothing).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def repeat_levels(levels: Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Repeat a pattern of levels until it covers so many dimensions: `([8, 5], 3)` -> `(8, 5, 8)`."""
    repeats = -(-dimensions // len(levels))
    return (tuple(levels) * repeats)[:dimensions]


def group_levels(levels: Sequence[int], group_size: int) -> list[tuple[int, ...]]:
    """Cut the levels of a frame's dimensions into the groups that share a token (section 3.2.3).

    Args:
        levels: Number of values of each dimension.
        group_size: Dimensions a token.

    Returns:
        One tuple of levels for each token of a frame; the last may be shorter.
    """
    return [tuple(levels[start : start + group_size]) for start in range(0, len(levels), group_size)]


def group_vocabulary_sizes(levels: Sequence[int], group_size: int) -> list[int]:
    """Number of values of each token of a frame."""
    return [math.prod(group) for group in group_levels(levels, group_size)]


def pack_indices(indices: Tensor, levels: Sequence[int]) -> Tensor:
    """Pack one group of indices into a token: mixed radix, first index most significant.

    Args:
        indices: `(..., group)`, integer, with `0 <= indices[..., i] < levels[i]`.
        levels: Number of values of each dimension, length `group`.

    Returns:
        `(...)`, int64, in `[0, prod(levels))`.

    Raises:
        ValueError: If the last axis of `indices` is not as long as `levels`, or an index is out of range.
        TypeError: If `indices` are not integers.

    Source: paper, eq. 16, evaluated by Horner's rule (eq. 19). Inverse: `unpack_token`.
    Deviation: the paper's recipe "right to left" (section 3.2.2) computes the reverse digit order and contradicts
    eq. 16 and its worked example (eq. 17-18), which hold here.
    """
    check_integers(indices, "indices")
    if indices.ndim == 0 or indices.shape[-1] != len(levels):
        raise ValueError(f"`indices` must have a last axis of {len(levels)}, got shape {tuple(indices.shape)}")
    indices = indices.long()  # unsigned types have no comparisons
    radices = torch.tensor(levels, device=indices.device)
    if ((indices < 0) | (indices >= radices)).any():
        raise ValueError(f"`indices` must lie in [0, level) for levels {tuple(levels)}")
    token = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=indices.device)
    for position, radix in enumerate(levels):
        token = token * radix + indices[..., position]
    return token


def check_tokens(tokens: Tensor, levels: Sequence[int], group_size: int, name: str = "tokens") -> None:
    """Refuse frames of tokens that no indices pack to.

    Args:
        tokens: `(frames, tokens_per_frame)`, or with more axes before these.
        levels: Number of values of each dimension.
        group_size: Dimensions a token.
        name: The argument's name in error messages.

    Raises:
        ValueError: If a frame has another number of tokens, or a token is out of its group's range.
        TypeError: If `tokens` are not integers.
    """
    check_integers(tokens, name)
    tokens, sizes = tokens.long(), group_vocabulary_sizes(levels, group_size)  # unsigned types have no comparisons
    if tokens.ndim == 0 or tokens.shape[-1] != len(sizes):
        raise ValueError(f"`{name}` must have {len(sizes)} tokens a frame, got shape {tuple(tokens.shape)}")
    wrong = ((tokens < 0) | (tokens >= torch.tensor(sizes, device=tokens.device))).reshape(-1, len(sizes))
    if wrong.any():
        frame, place = wrong.nonzero()[0].tolist()
        got = tokens.reshape(-1, len(sizes))[frame, place].item()
        raise ValueError(
            f"`{name}` must lie in [0, {sizes[place]}) at place {place} of a frame, got {got} in frame {frame}"
        )


def unpack_token(tokens: Tensor, levels: Sequence[int]) -> Tensor:
    """Take a token apart into its group of indices.

    Args:
        tokens: `(...)`, integer, in `[0, prod(levels))`.
        levels: Number of values of each dimension, length `group`.

    Returns:
        `(..., group)`, int64, with `0 <= indices[..., i] < levels[i]`.

    Raises:
        ValueError: If a token is out of range.
        TypeError: If `tokens` are not integers.

    Source: paper, section 3.2.4. Inverse: `pack_indices`.
    """
    check_tokens(tokens[..., None], levels, len(levels))
    remainder, indices = tokens.long(), []
    for radix in reversed(levels):
        indices.append(remainder % radix)
        remainder = remainder // radix
    return torch.stack(indices[::-1], dim=-1)


def pack_frames(indices: Tensor, levels: Sequence[int], group_size: int) -> Tensor:
    """Pack whole frames of indices into tokens.

    Args:
        indices: `(..., dimensions)`, integer.
        levels: Number of values of each dimension.
        group_size: Dimensions a token.

    Returns:
        `(..., tokens_per_frame)`, int64.

    Raises:
        ValueError: If `indices` has another number of dimensions than `levels`, or an index is out of range.
        TypeError: If `indices` are not integers.
    """
    if indices.ndim == 0 or indices.shape[-1] != len(levels):
        raise ValueError(f"`indices` must have a last axis of {len(levels)}, got shape {tuple(indices.shape)}")
    groups = group_levels(levels, group_size)
    return torch.stack(
        [pack_indices(part, group) for part, group in zip(indices.split(group_size, dim=-1), groups, strict=True)],
        dim=-1,
    )


def unpack_frames(tokens: Tensor, levels: Sequence[int], group_size: int) -> Tensor:
    """Take whole frames of tokens apart into indices.

    Args:
        tokens: `(..., tokens_per_frame)`, integer.
        levels: Number of values of each dimension.
        group_size: Dimensions a token.

    Returns:
        `(..., dimensions)`, int64.

    Raises:
        ValueError: If a frame has another number of tokens, or a token is out of its group's range.
        TypeError: If `tokens` are not integers.
    """
    check_tokens(tokens, levels, group_size)
    groups = group_levels(levels, group_size)
    return torch.cat(
        [unpack_token(token, group) for token, group in zip(tokens.unbind(dim=-1), groups, strict=True)], dim=-1
    )


def check_integers(values: Tensor, name: str) -> None:
    """Refuse tensors that are not integers, by a `TypeError` that names the argument."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise TypeError(f"`{name}` must be integers, got {values.dtype}")
