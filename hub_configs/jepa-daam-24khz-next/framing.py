"""Arithmetic between samples, frames and tokens.

One frame is `hop_length` samples; a recording of `n` samples has `ceil(n / hop_length)` frames, the last of which
may be partly silence. Valid samples and frames come first, padding after them.
"""

import operator
from typing import Any

import torch
from torch import Tensor


def check_integer(value: Any, name: str, low: int = 1) -> int:
    """Return a whole number as an int.

    Raises:
        TypeError: If it is not a whole number.
        ValueError: If it is below `low`.
    """
    try:
        integer = operator.index(value)
    except TypeError as error:
        raise TypeError(f"`{name}` must be an integer, got {value!r}") from error
    if integer < low:
        raise ValueError(f"`{name}` must be at least {low}, got {integer}")
    return integer


def num_frames(num_samples: int, hop_length: int) -> int:
    """Number of frames that cover `num_samples` samples: `ceil(num_samples / hop_length)`."""
    return -(-num_samples // hop_length)


def lengths_to_mask(lengths: Tensor, max_length: int) -> Tensor:
    """Turn lengths into a mask of valid positions.

    Args:
        lengths: `(batch,)`, integer, number of valid positions of each row.
        max_length: Number of positions of the mask.

    Returns:
        `(batch, max_length)`, bool, true at valid positions.
    """
    return torch.arange(max_length, device=lengths.device) < lengths[:, None]


def mask_to_lengths(mask: Tensor, name: str = "padding_mask") -> Tensor:
    """Turn a mask of valid positions into lengths.

    Args:
        mask: `(batch, positions)`, bool or 0/1, true at valid positions.
        name: The argument's name in error messages.

    Returns:
        `(batch,)`, int64, number of valid positions of each row.

    Raises:
        ValueError: If the mask is not two-dimensional, or its valid positions do not come first.
    """
    if mask.ndim != 2:
        raise ValueError(f"`{name}` must have shape (batch, positions), got {tuple(mask.shape)}")
    valid = mask.bool()
    lengths = valid.sum(dim=-1)
    if not torch.equal(valid, lengths_to_mask(lengths, mask.shape[-1])):
        raise ValueError(f"`{name}` must be padded on the right: ones (valid) first, zeros (padding) after them")
    return lengths


def stretch_mask(frame_mask: Tensor | None, factor: int) -> Tensor | None:
    """Repeat each frame's validity `factor` times, for a signal with `factor` values a frame.

    Args:
        frame_mask: `(batch, frames)`, bool; `None` when every frame is valid.
        factor: Values a frame of the signal to be masked.

    Returns:
        `(batch, 1, frames * factor)`, bool, or `None`.
    """
    if frame_mask is None:
        return None
    return frame_mask[:, None].repeat_interleave(factor, dim=-1)


def zero_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    """Set padded positions of `x (batch, channels, time)` to zero, as if the signal had been alone.

    A convolution pads with zeros where a signal ends; a row of a padded batch must see the same zeros.
    """
    return x if mask is None else x.masked_fill(~mask, 0.0)
