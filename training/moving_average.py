"""Exponential moving average of the weights, which is what is evaluated and saved."""

import torch
from torch import nn


def average_decay(step: int, decay: float) -> float:
    """Of the moving average after `step` steps: lower at first, or it would long consist of the initial weights."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def move_average(average: nn.Module, module: nn.Module, decay: float) -> None:
    """Move the average towards a module of the same parameters, of which it keeps the share `decay`."""
    for averaged, current in zip(average.parameters(), module.parameters(), strict=True):
        averaged.lerp_(current, 1.0 - decay)
