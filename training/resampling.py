"""Resampling of whole batches, in the frequency domain, on any device. Layout: `(batch, samples)`."""

import torch
from torch import Tensor


def resample(samples: Tensor, size: int, target: int) -> Tensor:
    """Turn the first `size` samples, or as many as there are and silence, into `target` samples of the same time.

    Clips are zero after their end, or it wraps round.
    """
    return target / size * torch.fft.irfft(torch.fft.rfft(samples, n=size), n=target)
