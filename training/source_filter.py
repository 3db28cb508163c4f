"""Weights to start a source-filter head from: a vocoder of mel bands and pitch, computed instead of learned."""

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from modeling_jepa_daam import JepaDaamModel

from .spectrogram_head import SpectrogramHead
from .vocoder.source_filter import HARMONIC_HZ, HARMONIC_SLOPE_HZ, MAX_LOGIT
from .vocoder.source_filter import band_nearness as nearness_of_bands


@torch.no_grad()
def set_source_filter(codec: Any, spectrogram_head: SpectrogramHead | None = None) -> None:
    """Let the head read its bins from bands of the envelope; a voice is harmonics up to 4.5 kHz, and noise above.

    Args:
        codec: `JepaDaamModel` with a source of harmonics; its head is changed.
        spectrogram_head: What reads the envelope from the decoder's features; `None` if these are the transform's
            rows, to begin with.
    """
    head, bands = codec.decoder.istft_head, codec.config.transform_bands
    nearness = band_nearness(codec)
    reads, offset = torch.eye(bands, head.project.in_channels), torch.zeros(bands)
    if spectrogram_head is not None:
        reads, offset = (cast(Tensor, part).cpu() for part in spectrogram_head.project.parameters())
    head.project.weight.copy_((nearness @ reads.flatten(1)).repeat(head.num_spectra, 1)[..., None])
    head.project.bias.copy_((nearness @ offset).repeat(head.num_spectra))
    frequency = torch.linspace(0.0, codec.config.sampling_rate / 2, len(nearness))
    head.share.copy_(((HARMONIC_HZ - frequency) / HARMONIC_SLOPE_HZ).clamp(-MAX_LOGIT, MAX_LOGIT)[:, None])


@torch.no_grad()
def read_source_filter(codec: Any, spectrogram_head: SpectrogramHead) -> None:
    """The way back of `set_source_filter`, by least squares: what bands the bins of a trained head are made of.

    Where it has several spectra for a feature, their mean.

    Args:
        codec: `JepaDaamModel` with a source of harmonics.
        spectrogram_head: It is changed.
    """
    head = codec.decoder.istft_head
    weight, bias = (cast(Tensor, part).cpu().double() for part in head.project.parameters())
    wanted = torch.cat([weight.flatten(1), bias[:, None]], dim=1).unflatten(0, (head.num_spectra, -1)).mean(dim=0)
    # Of the smallest ones that do it: a band that is far from any bin is read by none.
    read = torch.linalg.lstsq(band_nearness(codec).double(), wanted, driver="gelsd").solution
    spectrogram_head.project.weight.copy_(read[:, :-1, None])
    cast(Tensor, spectrogram_head.project.bias).copy_(read[:, -1])


@torch.no_grad()
def with_spectra(codec: Any, num_spectra: int) -> JepaDaamModel:
    """The same codec, but for its head, which has so many spectra for a feature and says the same in all of them.

    Args:
        codec: `JepaDaamModel` with a source of harmonics; it stays as it is.
        num_spectra: `decoder_istft_spectra` of the new one.
    """
    config = copy.deepcopy(codec.config)
    config.decoder_istft_spectra = num_spectra
    finer: Any = JepaDaamModel(config)
    head, finer_head = codec.decoder.istft_head, finer.decoder.istft_head
    weights = codec.state_dict()
    for name, parameter in head.named_parameters():
        bins = parameter.reshape(-1, len(head.share), *parameter.shape[1:]).mean(dim=0)  # over its spectra
        values = bins.reshape(len(bins), -1).T[None]  # (1, values of a bin, bins)
        moved = F.interpolate(values, len(finer_head.share), mode="linear", align_corners=True)[0].T
        wanted = finer.get_parameter(f"decoder.istft_head.{name}")
        weights[f"decoder.istft_head.{name}"] = moved.repeat(len(wanted) // len(moved), 1).view_as(wanted)
    finer.load_state_dict(weights)
    return finer


def band_nearness(codec: Any) -> Tensor:
    """How much each bin of the head takes from each band of the envelope, rows of sum 1: `(bins, bands)`."""
    bins = codec.decoder.istft_head.fft_size // 2 + 1
    return nearness_of_bands(bins, codec.config.transform_bands, codec.config.sampling_rate)
