"""Linear paths to start from: the Karhunen-Loeve transform of feature patches, both ways.

Training then starts where transform coding ends, and the networks learn what a linear code of single patches loses.

Source: Goyal, Theoretical Foundations of Transform Coding, 2001 (section on the Karhunen-Loeve transform).
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from modeling_jepa_daam.vocoder_decoder import FrameDecoder
from modeling_jepa_daam.vocoder_encoder import FeatureEncoder, LatentProjection

FINE_LEVELS = 8  # more of them reach further
BOUND, COARSE_BOUND = 2.3, 1.8  # standard deviations that tanh brings to tanh(1), of fine and of coarse dimensions
MIN_DEVIATION = 1e-3


class KarhunenLoeve(NamedTuple):
    """Principal components of weighted patches."""

    mean: Tensor
    """`(rows * patch_size,)`, of the patches, not weighted."""
    basis: Tensor
    """`(rows * patch_size, components)`, orthonormal, largest variance first."""
    deviation: Tensor
    """`(components,)`, standard deviation of each coefficient."""
    weights: Tensor
    """`(rows * patch_size,)`, of the patches' entries."""


@torch.no_grad()
def karhunen_loeve(patches: Tensor, row_weights: Tensor, components: int) -> KarhunenLoeve:
    """Fit the transform.

    Args:
        patches: `(patches, rows, patch_size)`.
        row_weights: `(rows,)`, how much errors of a row count.
        components: To keep.
    """
    weights = row_weights[:, None].expand(patches.shape[1:]).reshape(-1)
    flat = patches.flatten(1)
    mean = flat.mean(dim=0)
    weighted = (flat - mean) * weights
    covariance = torch.zeros(len(weights), len(weights), dtype=torch.float64)
    for part in weighted.split(4096):
        covariance += part.T.double() @ part.double()
    variance, vectors = torch.linalg.eigh(covariance / len(flat))
    variance, vectors = variance.flip(0)[:components], vectors.flip(1)[:, :components]
    return KarhunenLoeve(mean, vectors.float(), variance.clamp(min=0).sqrt().float().clamp(min=MIN_DEVIATION), weights)


@torch.no_grad()
def set_linear_paths(
    encoder: FeatureEncoder,
    projection: LatentProjection,
    decoder: FrameDecoder,
    transform: KarhunenLoeve,
    levels: tuple[int, ...],
) -> None:
    """Set the linear paths to the transform, and the networks' last layers to zero.

    The finest levels go to the coefficients of the largest variance. Patch embeddings are coefficients divided by the
    root of their standard deviation: halfway between their own scale, and all of one scale.
    """
    mean, basis, deviation, weights = transform
    scale = deviation.sqrt()
    analysis = (basis * weights[:, None] / scale).T  # (components, entries)
    encoder.patch_embedding.weight.copy_(analysis.view_as(encoder.patch_embedding.weight))
    assert encoder.patch_embedding.bias is not None
    encoder.patch_embedding.bias.copy_(-analysis @ mean)

    sizes = torch.tensor(levels, dtype=torch.float32)
    order = torch.argsort(-sizes, stable=True)  # dimension of the first, second, ... coefficient
    bound = torch.where(sizes > FINE_LEVELS, BOUND, COARSE_BOUND)[order]
    first = torch.arange(len(levels))
    for layer in (projection.linear_path, decoder.linear_path, projection.project, decoder.project):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    projection.linear_path.weight[order, first] = scale[first] / (bound * deviation[first])
    decoder.linear_path.weight[first, order] = bound * deviation[first] / scale[first]
    decoder.patches.weight.copy_(basis * scale / weights[:, None])
    decoder.patches.bias.copy_(mean)
