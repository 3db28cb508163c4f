"""Which parts of a model keep a floating point type of their own."""

import contextlib
from collections.abc import Callable, Collection

import torch
from torch import Tensor

NARROW = frozenset({torch.float16, torch.bfloat16})


def staying_wide(fn: Callable[[Tensor], Tensor], refused: Collection[torch.dtype] = NARROW) -> Callable:
    """The function that `nn.Module._apply` takes, except that tensors keep their type where the new one is refused.

    Args:
        fn: Moves a tensor to a device, a type, or both.
        refused: Types that float32 and wider tensors do not take; they only move to the device.
    """

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        if moved.dtype in refused and tensor.dtype not in NARROW:
            return tensor.to(moved.device)
        return moved

    return move


def without_float16_autocast(device_type: str) -> contextlib.AbstractContextManager:
    """A `with` statement that suspends autocast to float16, whose range is too small for the encoder's features."""
    if torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16:
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
