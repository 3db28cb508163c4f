"""Types of tensors: which parts of a model keep one of their own, and which inputs have values that can be read."""

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


def with_values(tensor: Tensor, name: str) -> Tensor:
    """The same tensor as plain memory, without a pending conjugation or negation.

    Args:
        tensor: Of any device and layout.
        name: The argument's name in error messages.

    Raises:
        ValueError: If it is a meta tensor.
        TypeError: If it is sparse or nested.
    """
    if tensor.is_meta:
        raise ValueError(f"`{name}` is on the meta device and has no values: pass a tensor of another device")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(
            f"`{name}` must be a dense tensor, got layout {tensor.layout}: pass `{name}.to_dense()` or, of a nested "
            "one, a list of its parts"
        )
    return tensor.resolve_conj().resolve_neg()
