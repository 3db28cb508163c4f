"""Augmentation of Stage 2: other levels and other speeds than the recordings have. Layout: `(batch, samples)`."""

import torch
from torch import Tensor

from .resampling import resample

QUIET = 1e-3  # peak of a clip that is silence
SIZE_STEP = 480  # samples; the FFT of a multiple is quick


def draw(low: float, high: float, count: int, generator: torch.Generator) -> Tensor:
    """`count` numbers between `low` and `high`, evenly distributed."""
    return low + (high - low) * torch.rand(count, generator=generator)


def change_level(samples: Tensor, gain_db: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Scale each clip by a gain of its own, at most up to full scale; what is beyond already stays.

    Args:
        samples: `(batch, samples)`.
        gain_db: Range of the gains.
        generator: Their source, on CPU.
    """
    gains = 10.0 ** (draw(*gain_db, len(samples), generator).to(samples.device) / 20.0)
    loudest = samples.abs().amax(dim=-1).clamp(min=QUIET).reciprocal()  # gain to full scale
    return samples * torch.minimum(gains, loudest.clamp(min=1.0))[:, None]


def change_speed(
    samples: Tensor, lengths: Tensor, bandwidth_hz: Tensor, speed: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Play a batch faster or slower, pitch and formants with it: as good as other speakers.

    One speed for the batch, by resampling in the frequency domain; clips are zero after their end.

    Args:
        samples: `(batch, samples)`.
        lengths: `(batch,)`, int64, samples of each clip.
        bandwidth_hz: `(batch,)`.
        speed: Range of the speeds, 1 as it was.
        generator: Source of the speed, on CPU.

    Returns:
        The same three, of the changed clips.
    """
    size = samples.shape[-1] + -samples.shape[-1] % SIZE_STEP
    target = SIZE_STEP * max(1, round(size / SIZE_STEP / draw(*speed, 1, generator).item()))
    ratio = target / size
    resampled = resample(samples, size, target)
    lengths = (lengths * ratio).ceil().long()
    valid = torch.arange(target, device=samples.device) < lengths[:, None]
    return (resampled * valid)[:, : int(lengths.max())], lengths, bandwidth_hz / ratio
