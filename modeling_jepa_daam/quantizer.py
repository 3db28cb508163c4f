"""Finite scalar quantization (eq. 12-15): each latent dimension is rounded to one of a few fixed values."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class FiniteScalarQuantizer(nn.Module):
    """Round each dimension to the nearest of its levels; no codebook and no parameters.

    Level `i` of `L` stands for the value `(2i - L + 1) / L` (eq. 13): -.75, -.25, .25, .75 for L = 4. Latents are
    bounded by `tanh(z / T)` (eq. 12) first, all in float32.

    Deviation: published FSQ libraries use other values (-1, -.5, 0, .5 or +-1, +-1/3); these are the paper's.

    Args:
        levels: Number of values of each dimension.
        temperature: T.
    """

    def __init__(self, levels: Sequence[int], temperature: float = 1.0):
        super().__init__()
        self.levels = tuple(levels)
        self.temperature = temperature

    def _radices(self, device: torch.device) -> Tensor:
        # Made on use: a buffer outside the checkpoint would come back as zeros from `from_pretrained`.
        return torch.tensor(self.levels, dtype=torch.float32, device=device)

    def latents_to_indices(self, latents: Tensor) -> Tensor:
        """Index of the nearest level (eq. 12 and 14); a tie goes to the lower one, as arg min has it.

        Args:
            latents: `(batch, frames, dimensions)`, floating point, unbounded.

        Returns:
            `(batch, frames, dimensions)`, int64, with `0 <= indices[..., d] < levels[d]`.
        """
        radices = self._radices(latents.device)
        bounded = torch.tanh(latents.float() / self.temperature)
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

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize, letting gradients through unchanged (straight-through, eq. 15).

        Args:
            latents: `(batch, frames, dimensions)`, floating point, unbounded.

        Returns:
            The quantized latents, `(batch, frames, dimensions)` in the dtype of `latents`, and their indices,
            `(batch, frames, dimensions)`, int64.
        """
        with torch.autocast(latents.device.type, enabled=False):
            indices = self.latents_to_indices(latents.detach())
            values = self.indices_to_values(indices)
            # dL/dz_e = dL/dz_q: the sum is arranged so that the forward value is exactly the level's.
            quantized = values + (latents.float() - latents.detach().float())
        return quantized.to(latents.dtype), indices
