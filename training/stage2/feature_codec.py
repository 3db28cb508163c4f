"""The codec in the domain of features: encoder, quantizer and decoder without waveforms."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.istft_head import OVERLAP
from modeling_jepa_daam.quantizer import FiniteScalarQuantizer
from modeling_jepa_daam.vocoder_decoder import FrameDecoder
from modeling_jepa_daam.vocoder_encoder import FeatureEncoder, LatentProjection

from ..audibility import band_weights
from ..vocoder.karhunen_loeve import KarhunenLoeve, set_linear_paths


class FeatureResult(NamedTuple):
    """A batch of features through the codec."""

    features: Tensor
    """`(batch, rows, time)`, float32, decoded."""
    indices: Tensor
    """`(batch, frames, dimensions)`, int64."""


class FeatureCodec(nn.Module):
    """Encoder, latent projection, quantizer and frame decoder, under the names that they have in `JepaDaamModel`.

    Args:
        config: `JepaDaamConfig` with `feature_bands`.
    """

    def __init__(self, config: JepaDaamConfig):
        super().__init__()
        self.config = config
        self.encoder = FeatureEncoder(config)
        self.latent_projection = LatentProjection(config)
        self.quantizer = FiniteScalarQuantizer(
            config.levels, config.fsq_temperature, config.normalize_latents, config.fsq_gradient
        )
        self.frame_decoder = FrameDecoder(config)

    def start_from(self, transform: KarhunenLoeve) -> None:
        """Set the linear paths beside the networks."""
        set_linear_paths(self.encoder, self.latent_projection, self.frame_decoder, transform, self.config.levels)

    def linear_parameters(self) -> list[nn.Parameter]:
        """Parameters of the linear paths."""
        layers: tuple[nn.Module, ...] = (
            self.encoder.patch_embedding,
            self.latent_projection.linear_path,
            self.frame_decoder.linear_path,
            self.frame_decoder.patches,
        )
        return [parameter for layer in layers for parameter in layer.parameters()]

    def forward(self, features: Tensor) -> FeatureResult:
        """Reconstruct `(batch, rows, frames * patch_size)`."""
        latents = self.latent_projection(self.encoder(features))
        values, indices = self.quantizer(latents)
        decoder = self.frame_decoder
        coefficients, _ = decoder(decoder.pad(values))
        return FeatureResult(decoder.features(coefficients).float(), indices)


def weighted_error(decoded: Tensor, features: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Weighted squared error of each frame: `(batch, frames)`, zero at frames that are not valid.

    Args:
        decoded: `(batch, rows, frames * patch_size)`.
        features: The same shape.
        weights: `(rows,)`, how much errors of a row count.
        valid: `(batch, frames)`, bool.
    """
    error = ((decoded - features) * weights[:, None]).square().sum(dim=1)  # (B, time)
    return error.unflatten(1, (valid.shape[1], -1)).sum(dim=-1) * valid


def feature_loss(decoded: Tensor, features: Tensor, weights: Tensor, valid: Tensor) -> Tensor:
    """Weighted squared error as a share of the weighted variance of the batch's features; arguments as above."""
    error = weighted_error(decoded, features, weights, valid).sum()
    with torch.no_grad():
        mean = features.mean(dim=(0, 2), keepdim=True)
        variance = weighted_error(mean, features, weights, valid).sum()
    return error / variance


def row_weights(config: JepaDaamConfig) -> Tensor:
    """How much errors of each row of features count: of bands as they are heard, of pitch and voicing as scaled."""
    bins = OVERLAP * config.hop_length // config.patch_size // 2 + 1
    bands = band_weights(bins, config.feature_bands, config.sampling_rate)
    return torch.cat([bands, torch.ones(config.feature_rows - config.feature_bands)])


def index_entropies(indices: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Entropy of each dimension's index as a share of its bits: `(dimensions,)`.

    Args:
        indices: `(frames, dimensions)`, int64.
        levels: Of each dimension.
    """
    shares = []
    for dimension, size in enumerate(levels):
        counts = F.one_hot(indices[:, dimension], size).sum(dim=0).double()
        probability = counts / counts.sum()
        bits = -(probability * probability.clamp(min=1e-12).log2()).sum()
        shares.append(bits / torch.tensor(float(size)).log2())
    return torch.stack(shares).float()
