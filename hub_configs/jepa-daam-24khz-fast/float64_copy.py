"""Float64 copies of small networks whose output is rounded: equal tokens whatever the batch, the block or the machine.

Rounding errors of float32 move an index over a threshold about once in 10,000 tokens when a batch or a block has
another size. Those of float64 do so once in 10^12.
"""

import copy
import threading
import weakref

import torch
from torch import nn

_copies: "weakref.WeakKeyDictionary[nn.Module, tuple[tuple, nn.Module]]" = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def in_float64(module: nn.Module) -> nn.Module:
    """The module in float64 and evaluation mode, without gradients; copied again after its weights or hooks changed.

    The module itself stays as it is. On Apple's devices, which have no float64, the copy is in float32.

    Args:
        module: Any, small: its copy stays in memory as long as it does.
    """
    tensors = [*module.parameters(), *module.buffers()]
    hooks = [each for part in module.modules() for each in (*part._forward_pre_hooks, *part._forward_hooks)]
    state = (
        *((tensor.data_ptr(), tensor._version, tensor.device, tensor.dtype) for tensor in tensors),
        tuple(hooks),  # numbers, never given twice
    )
    with _lock:
        known = _copies.get(module)
        if known is not None and known[0] == state:
            return known[1]
        mps = any(tensor.device.type == "mps" for tensor in tensors)
        with torch.no_grad():
            copied = copy.deepcopy(module).to(torch.float32 if mps else torch.float64)
        copied = copied.eval().requires_grad_(False)
        _copies[module] = (state, copied)
        return copied
