"""Finite scalar quantization (eq. 12-15): each latent dimension is rounded to one of a few fixed values."""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import staying_wide

STATISTICS_MOMENTUM = 0.02  # of the running mean and variance, each step that learns them


class FiniteScalarQuantizer(nn.Module):
    """Round each dimension to the nearest of its levels; no codebook and no parameters.

    Level `i` of `L` stands for the value `(2i - L + 1) / L` (eq. 13): -.75, -.25, .25, .75 for L = 4. Latents are
    bounded by `tanh(z / T)` (eq. 12) first, all in float32 at least.

    Deviation: published FSQ libraries use other values (-1, -.5, 0, .5 or +-1, +-1/3); these are the paper's.

    Args:
        levels: Number of values of each dimension.
        temperature: T.
        normalize: Whether to bring each dimension to mean 0 and variance 1 before eq. 12, by statistics that are stored
            with the weights. Only `forward(..., learn_statistics=True)` uses and tracks those of a batch; training mode
            alone changes nothing.
        gradient: What a gradient meets on its way back: `"identity"` (eq. 15), or `"tanh"`, the derivative of eq. 12.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        levels: Sequence[int],
        temperature: float = 1.0,
        normalize: bool = False,
        gradient: Literal["identity", "tanh"] = "identity",
    ):
        super().__init__()
        self.gradient = gradient
        self.levels = tuple(levels)
        self.temperature = temperature
        self.normalize = normalize
        if normalize:
            self.register_buffer("running_mean", torch.zeros(len(self.levels)))
            self.register_buffer("running_var", torch.ones(len(self.levels)))

    def _apply(self, fn, recurse=True):
        return super()._apply(staying_wide(fn), recurse)  # rounded statistics would change digits

    def _radices(self, device: torch.device) -> Tensor:
        # Made on use: a buffer outside the checkpoint would come back as zeros from `from_pretrained`.
        return torch.tensor(self.levels, dtype=torch.float32, device=device)

    def normalized(self, latents: Tensor, frame_mask: Tensor | None = None, learn_statistics: bool = False) -> Tensor:
        """The input of eq. 12: `(batch, frames, dimensions)`, float32 at least; padded frames stay as they are.

        Args:
            latents: `(batch, frames, dimensions)`, floating point.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
            learn_statistics: Whether to normalize by the valid frames of this batch (of this process, where there are
                several) and to move the stored statistics towards them.

        Raises:
            ValueError: If `learn_statistics` is set and the batch has fewer than 2 valid frames.
        """
        if not self.normalize:
            return latents.to(torch.promote_types(latents.dtype, torch.float32))
        latents = latents.to(self.running_mean.dtype)  # float32 at least
        valid = latents.flatten(0, 1) if frame_mask is None else latents[frame_mask]
        if learn_statistics and len(valid) < 2:
            raise ValueError(f"`learn_statistics` needs at least 2 frames in a batch, got {len(valid)}")
        valid = F.batch_norm(
            valid,
            self.running_mean,
            self.running_var,
            training=learn_statistics,
            momentum=STATISTICS_MOMENTUM,
        )
        if frame_mask is None:
            return valid.view_as(latents)
        return latents.index_put((frame_mask,), valid)

    def latents_to_indices(self, latents: Tensor) -> Tensor:
        """Index of the nearest level (eq. 12 and 14); a tie goes to the lower one, as arg min has it.

        Args:
            latents: `(batch, frames, dimensions)`, float32, unbounded, normalized.

        Returns:
            `(batch, frames, dimensions)`, int64, with `0 <= indices[..., d] < levels[d]`.
        """
        radices = self._radices(latents.device)
        bounded = torch.tanh(latents / self.temperature)
        # Cell i of L ends at (2i - L + 2) / L, halfway between two values.
        cells = torch.ceil((bounded + 1.0) * 0.5 * radices) - 1.0
        return torch.minimum(cells.clamp(min=0.0), radices - 1.0).long()

    def indices_to_values(self, indices: Tensor) -> Tensor:
        """Values of the levels (eq. 13).

        Args:
            indices: `(batch, frames, dimensions)`, int64.

        Returns:
            `(batch, frames, dimensions)`, float32, in (-1, 1).
        """
        radices = self._radices(indices.device)
        return (2.0 * indices.float() - radices + 1.0) / radices

    def forward(
        self, latents: Tensor, frame_mask: Tensor | None = None, learn_statistics: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Quantize, letting gradients through unchanged (straight-through, eq. 15).

        Args:
            latents: `(batch, frames, dimensions)`, floating point, unbounded.
            frame_mask: `(batch, frames)`, bool, valid frames; `None` if all are.
            learn_statistics: See `normalized`.

        Returns:
            The quantized latents, `(batch, frames, dimensions)` in the dtype of `latents`, and their indices,
            `(batch, frames, dimensions)`, int64.
        """
        with torch.autocast(latents.device.type, enabled=False):
            normalized = self.normalized(latents, frame_mask, learn_statistics)
            indices = self.latents_to_indices(normalized.detach())
            values = self.indices_to_values(indices)
            # dL/dz_e = dL/dz_q: the sum is arranged so that the forward value is exactly the level's.
            passed = normalized if self.gradient == "identity" else torch.tanh(normalized / self.temperature)
            quantized = values + (passed - passed.detach())
        return quantized.to(latents.dtype), indices
