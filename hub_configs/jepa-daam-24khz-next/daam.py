"""Density adaptive attention (eq. 1-9): a gate over time that is high where a signal is usual for the recording.

Convolutional layout: `(batch, channels, time)`.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import staying_wide

SCALE_EPSILON = 1e-3  # epsilon of eq. 3 and eq. 4
MIN_VARIANCE = 1e-6

# The list of `collecting_gates` that is open in this thread.
_collected: ContextVar[list[Tensor] | None] = ContextVar("collected_gates", default=None)


@contextlib.contextmanager
def collecting_gates() -> Iterator[list[Tensor]]:
    """Collect the gates that this thread computes inside a `with` statement.

    Yields:
        A list that receives every gate, `(batch, time)`, float32, in the order of computation. Gates of other threads
        and of compiled layers are not in it.
    """
    gates: list[Tensor] = []
    token = _collected.set(gates)
    try:
        yield gates
    finally:
        _collected.reset(token)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the last axis, valid positions only: `(batch, 1, time)` -> `(batch, 1, 1)`."""
    if mask is None:
        return x.mean(dim=-1, keepdim=True)
    return (x * mask).sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True).clamp(min=1)


def mixture_density(signal: Tensor, delta: Tensor, nu: Tensor, mask: Tensor | None = None) -> Tensor:
    """Density of each value of a signal under a mixture of Gaussians around the signal's own mean.

    Args:
        signal: `(batch, 1, time)`, float.
        delta: `(gaussians,)`, offsets of the means from the signal's mean.
        nu: `(gaussians,)`, scales before softplus.
        mask: `(batch, 1, time)`, bool, valid positions; `None` if all are.

    Returns:
        `(batch, 1, time)`, the gate G(x_t), positive.

    Source: paper, eq. 1-7.
    """
    mu = masked_mean(signal, mask)  # eq. 1
    variance = masked_mean((signal - mu) ** 2, mask)  # eq. 2
    return gaussian_mixture(signal, mu, variance, delta, nu)


def trailing_moments(signal: Tensor, valid: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of a signal over the positions that end at each one: eq. 1 and 2 of the past alone.

    Deviation: the paper's statistics run over the whole recording, of which a stream knows only the past.

    Args:
        signal: `(batch, 1, window - 1 + time)`, zero where it is not valid.
        valid: The same shape, 1 where there is a signal and 0 before the beginning of a stream.
        window: Positions.

    Returns:
        Mean and variance, each `(batch, 1, time)`.
    """
    moments = torch.cat([signal, signal.square(), valid], dim=1)
    total, squares, count = F.avg_pool1d(moments, window, stride=1).chunk(3, dim=1)
    mu = total / count
    return mu, squares / count - mu.square()


def gaussian_mixture(signal: Tensor, mu: Tensor, variance: Tensor, delta: Tensor, nu: Tensor) -> Tensor:
    """Density of each value under a mixture of Gaussians around `mu` (eq. 3-7): `(batch, 1, time)`, positive.

    Args:
        signal: `(batch, 1, time)`, float.
        mu: Mean of the signal, `(batch, 1, time)` or `(batch, 1, 1)`.
        variance: Variance of the signal, as `mu`.
        delta: `(gaussians,)`, offsets of the means from the signal's mean.
        nu: `(gaussians,)`, scales before softplus.
    """
    sigma = variance.clamp(min=MIN_VARIANCE).sqrt()[..., None]  # (B, 1, T or 1, 1)
    scale = F.softplus(nu) + SCALE_EPSILON  # eq. 3
    z = ((signal - mu)[..., None] - delta) / (sigma * scale + SCALE_EPSILON)  # eq. 4, (B, 1, T, K)
    log_density = -0.5 * z**2 - scale.log() - 0.5 * math.log(2.0 * math.pi)  # eq. 5
    return (log_density.logsumexp(dim=-1) - math.log(len(delta))).exp()  # eq. 6 and 7


class DensityAdaptiveAttention(nn.Module):
    """Scale features over time by the density of a learned one-channel projection of them.

    `y = x * (1 + alpha * G(projection(x)))` (eq. 9), computed in float32 whatever the model's dtype: its weights stay
    float32 when the model is moved to another floating point type.

    Deviation: eq. 8 multiplies by the gate alone; eq. 9, which section 2.3.1 states for the encoder, holds.

    Args:
        channels: Channels of the features.
        num_gaussians: K.
        alpha: Initial modulation strength.
    """

    def __init__(self, channels: int, num_gaussians: int = 4, alpha: float = 0.05):
        super().__init__()
        self.initial_alpha = alpha
        self.projection = nn.Conv1d(channels, 1, kernel_size=1)
        self.delta = nn.Parameter(torch.zeros(num_gaussians))
        self.nu = nn.Parameter(torch.full((num_gaussians,), math.log(0.5)))
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))

    def _apply(self, fn, recurse=True):
        return super()._apply(staying_wide(fn), recurse)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, window: int | None = None, memory=None
    ) -> tuple[Tensor, Tensor]:
        """Gate the features.

        Args:
            x: `(batch, channels, time)`.
            mask: `(batch, 1, time)`, bool, valid positions; statistics run over these. `None` if all are.
            window: Positions of the past, the current one included, that statistics run over; `None` for the whole
                recording (the paper).
            memory: With a window, `CausalMemory`, the past of the stream.

        Returns:
            The gated features, `(batch, channels, time)`, and the gate, `(batch, time)`, float32 (with a window, in the
            precision of the weights).
        """
        if window is not None:
            return self._forward_causal(x, window, memory)
        with torch.autocast(x.device.type, enabled=False):
            signal = self.projection(x.to(self.delta.dtype))  # float32 at least
            gate = mixture_density(signal, self.delta, self.nu, mask)
            gated = x * (1.0 + self.alpha * gate).to(x.dtype)
        if not torch.compiler.is_compiling() and (gates := _collected.get()) is not None:
            gates.append(gate[:, 0])
        return gated, gate[:, 0]

    def _forward_causal(self, x: Tensor, window: int, memory) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            signal = self.projection(x.to(self.projection.weight.dtype))
            past = memory.extend(torch.cat([signal, torch.ones_like(signal)], dim=1), window - 1)
            mu, variance = trailing_moments(past[:, :1], past[:, 1:], window)
            gate = gaussian_mixture(signal, mu, variance, self.delta, self.nu)
            gated = x * (1.0 + self.alpha * gate).to(x.dtype)
        return gated, gate[:, 0]
