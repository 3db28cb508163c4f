"""A linear transform beside the network: spectrogram patches to latents, and latents to features of spectra.

Layout: power spectra `(batch, bins, spectra)`, latents `(batch, frames, dimensions)`, features
`(batch, channels, time)`.
"""

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

MIN_MAGNITUDE = 1e-5
LOG_MEAN, LOG_SCALE = -6.5, 2.0  # of natural-log mel magnitudes of speech
EXPANSION = 8  # of the layers that put digits together again: about a unit for each value of each coefficient


@functools.lru_cache(maxsize=16)
def mel_filters(bins: int, num_bands: int, sampling_rate: int) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of equal area, from 0 Hz to the Nyquist frequency: `(bins, bands)`."""
    # Not a buffer: outside the checkpoint it would come back as zeros from `from_pretrained`. Not a tensor: the cache
    # outlives the call that fills it, which may be one under `torch.export`.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands between two bins are empty
        return mel_filter_bank(bins, num_bands, 0.0, sampling_rate / 2, sampling_rate, "slaney", "slaney")


def triangle_wave(x: Tensor) -> Tensor:
    """Identity on [-1, 1]; beyond it goes back and forth between -1 and 1, with period 4."""
    shifted = 0.25 * (x - 1.0)
    return (4.0 * (shifted - shifted.floor()) - 2.0).abs() - 1.0


class AnalysisTransform(nn.Module):
    """One linear layer from patches of the log mel spectrogram to latents, and digits of its coefficients.

    Deviation: not in the paper. Classic codecs transform blocks of signal linearly and spend bits where the variance
    is. A latent dimension has two bits, and the largest coefficients of a patch deserve six: as `triangle_wave(gain *
    tanh(u) + offset)`, several dimensions can be digits of one coefficient, coarse with gain 1, fine with 4 and 16. The
    wave makes them a reflected code: at the border of a coarse cell its fine digits do not jump.

    `training/transform_code.py` computes weights from speech.

    Args:
        config: `JepaDaamConfig`.
        patch: Spectra a latent frame.
    """

    def __init__(self, config, patch: int):
        super().__init__()
        self.sampling_rate, self.num_bands = config.sampling_rate, config.transform_bands
        self.project = nn.Conv1d(self.num_bands, config.hidden_size, kernel_size=patch, stride=patch)
        self.gain = nn.Parameter(torch.ones(config.hidden_size))
        self.offset = nn.Parameter(torch.zeros(config.hidden_size))

    def log_mel(self, power: Tensor) -> Tensor:
        """Log mel magnitudes, scaled to about mean 0 and variance 1: `(batch, bands, spectra)`, float32 at least."""
        filters = mel_filters(power.shape[1], self.num_bands, self.sampling_rate)
        with torch.autocast(power.device.type, enabled=False):
            magnitude = power.clamp(min=1e-16).sqrt()  # the floor keeps the gradient finite
            mel = torch.tensor(filters.T, dtype=power.dtype, device=power.device) @ magnitude
            return (mel.clamp(min=MIN_MAGNITUDE).log() - LOG_MEAN) / LOG_SCALE

    def forward(self, power: Tensor, residual: Tensor) -> Tensor:
        """Latents `(batch, frames, dimensions)`: of coefficients to which `residual`, of that shape, is added.

        In float32 at least, whatever the weights' type: fine digits need more than 8 bits.
        """
        return self.latents(self.log_mel(power), residual)

    def latents(self, mel: Tensor, residual: Tensor) -> Tensor:
        """What `forward` makes, of what `log_mel` has made."""
        with torch.autocast(mel.device.type, enabled=False):
            weight, bias = (parameter.to(mel.dtype) for parameter in self.project.parameters())
            gain, offset = self.gain.to(mel.dtype), self.offset.to(mel.dtype)
            coefficients = F.conv1d(mel, weight, bias, self.project.stride).transpose(1, 2)
            return triangle_wave(gain * torch.tanh(coefficients + residual.to(mel.dtype)) + offset)


class SynthesisTransform(nn.Module):
    """Latents to features of spectra, patch by patch: digits to coefficients, and the linear transform back.

    Args:
        config: `JepaDaamConfig`.
        channels: Channels of the features.
        patch: Spectra a latent frame.
    """

    def __init__(self, config, channels: int, patch: int):
        super().__init__()
        size = config.hidden_size
        self.expand = nn.Conv1d(size, EXPANSION * size, kernel_size=1)
        self.reduce = nn.Conv1d(EXPANSION * size, size, kernel_size=1)
        self.patches = nn.ConvTranspose1d(size, channels, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """`(batch, dimensions, frames)` -> `(batch, channels, frames * patch)`."""
        return self.patches(self.reduce(F.silu(self.expand(latents))))
