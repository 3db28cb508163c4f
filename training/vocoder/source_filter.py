"""A vocoder head to start from: bins read mel bands, a voice is harmonics below 4.5 kHz and noise above."""

import numpy as np
import torch
from torch import Tensor, nn

from modeling_jepa_daam.vocoder_decoder import VocoderDecoder
from modeling_jepa_daam.vocoder_envelope import mel_filters

HARMONIC_HZ, HARMONIC_SLOPE_HZ = 4500.0, 600.0  # a voice is noise above
MAX_LOGIT = 6.0


@torch.no_grad()
def set_vocoder_head(decoder: VocoderDecoder, sampling_rate: int) -> None:
    """Let the head speak the features' bands as they are: what the network adds is zero to begin with."""
    head, bands = decoder.istft_head, decoder.num_bands
    nearness = band_nearness(head.fft_size // 2 + 1, bands, sampling_rate)
    for layer in (head.project, head.project_share):
        assert layer is not None
        nn.init.zeros_(layer.weight)
        assert layer.bias is not None
        nn.init.zeros_(layer.bias)
    head.project.weight[:, :bands, 0] = nearness.repeat(head.num_spectra, 1)
    frequency = torch.linspace(0.0, sampling_rate / 2, len(nearness))
    head.share.copy_(((HARMONIC_HZ - frequency) / HARMONIC_SLOPE_HZ).clamp(-MAX_LOGIT, MAX_LOGIT)[:, None])


def band_nearness(bins: int, bands: int, sampling_rate: int) -> Tensor:
    """How much each bin takes from each mel band, rows of sum 1: `(bins, bands)`."""
    frequency = torch.linspace(0.0, sampling_rate / 2, bins)
    filters = torch.from_numpy(mel_filters(bins, bands, sampling_rate)).float()  # (bins, bands)
    gains = filters.sum(dim=0).clamp(min=1e-8)
    # A bin lies between the middles of two bands; those without any bin have their place among the others.
    middles = (filters * frequency[:, None]).sum(dim=0) / gains
    heard = filters.sum(dim=0) > 0.0
    numbers = np.arange(bands)
    middles = torch.from_numpy(np.interp(numbers, numbers[heard.numpy()], middles[heard].numpy()))
    place = torch.from_numpy(np.interp(frequency, middles, numbers))
    return (1.0 - (place[:, None] - torch.from_numpy(numbers)).abs()).clamp(min=0.0).float()
