"""ECAPA-TDNN: one vector for the speaker of a clip; for use only, with the public weights of SpeechBrain.

SpeechBrain's own class does the same, but its import needs torchaudio, whose wheels load beside a CUDA build of PyTorch
only, and where they do not, transformers' audio utilities break as well.

Convolutions are `(batch, channels, frames)`; features `(batch, frames, bands)`.

Source: Desplanques et al. 2020, "ECAPA-TDNN"; filterbank, sizes and names as in SpeechBrain 1.1.2 (Apache-2.0).
"""

import os
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DEFAULT_WEIGHTS = "speechbrain/spkrec-ecapa-voxceleb"
WEIGHTS_FILE = "embedding_model.ckpt"
SAMPLING_RATE = 16000  # Hz
FFT_SIZE = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
NUM_BANDS = 80
POWER_FLOOR = 1e-10
DYNAMIC_RANGE_DB = 80.0
CHANNELS = 1024
POOLED_CHANNELS = 3072
ATTENTION_CHANNELS = 128
EMBEDDING_SIZE = 192
RES2NET_SCALE = 8  # groups of channels, each of which hears the one before


class TimeDelayBlock(nn.Module):
    """Batch norm of the ReLU of a convolution that keeps the number of frames."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(
            in_channels, out_channels, kernel_size, dilation=dilation, padding="same", padding_mode="reflect"
        )
        self.norm = nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu(self.conv(x)))


class Res2NetBlock(nn.Module):
    """Convolutions of groups of channels, each added to the input of the next."""

    def __init__(self, dilation: int):
        super().__init__()
        width = CHANNELS // RES2NET_SCALE
        self.blocks = nn.ModuleList(TimeDelayBlock(width, width, 3, dilation) for _ in range(RES2NET_SCALE - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = x.chunk(RES2NET_SCALE, dim=1)
        outputs, previous = [first], torch.zeros_like(first)
        for block, group in zip(self.blocks, rest, strict=True):
            previous = block(group + previous)
            outputs.append(previous)
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Scale each channel by what all channels' means over time say."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(CHANNELS, ATTENTION_CHANNELS, 1)
        self.conv2 = nn.Conv1d(ATTENTION_CHANNELS, CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv2(F.relu(self.conv1(x.mean(dim=2, keepdim=True)))).sigmoid()


class SERes2NetBlock(nn.Module):
    """The paper's Figure 2, left."""

    def __init__(self, dilation: int):
        super().__init__()
        self.tdnn1 = TimeDelayBlock(CHANNELS, CHANNELS)
        self.res2net_block = Res2NetBlock(dilation)
        self.tdnn2 = TimeDelayBlock(CHANNELS, CHANNELS)
        self.se_block = SqueezeExcitation()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class AttentiveStatisticsPooling(nn.Module):
    """Mean and standard deviation over time, each frame and channel weighted by attention: `(batch, 2 C, 1)`."""

    def __init__(self) -> None:
        super().__init__()
        self.tdnn = TimeDelayBlock(3 * POOLED_CHANNELS, ATTENTION_CHANNELS)
        self.conv = nn.Conv1d(ATTENTION_CHANNELS, POOLED_CHANNELS, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = [x, *(part.expand_as(x) for part in _weighted_statistics(x, torch.full_like(x, 1 / x.shape[2])))]
        attention = self.conv(self.tdnn(torch.cat(context, dim=1)).tanh()).softmax(dim=2)
        return torch.cat(_weighted_statistics(x, attention), dim=1)


class SpeakerEncoder(nn.Module):
    """Clips to embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TimeDelayBlock(NUM_BANDS, CHANNELS, 5), *map(SERes2NetBlock, (2, 3, 4))])
        self.mfa = TimeDelayBlock(3 * CHANNELS, POOLED_CHANNELS)
        self.asp = AttentiveStatisticsPooling()
        self.asp_bn = nn.BatchNorm1d(2 * POOLED_CHANNELS)
        self.fc = nn.Conv1d(2 * POOLED_CHANNELS, EMBEDDING_SIZE, 1)

    def forward(self, waveform: Tensor) -> Tensor:
        """`(batch, samples)`, float32, 16 kHz, at least 50 ms -> `(batch, EMBEDDING_SIZE)`."""
        features = filterbank(waveform)
        x = (features - features.mean(dim=1, keepdim=True)).transpose(1, 2)  # (B, T, C) -> (B, C, T)
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        x = self.mfa(torch.cat(outputs[1:], dim=1))
        return self.fc(self.asp_bn(self.asp(x)))[..., 0]


def load_speaker_encoder(weights: str | os.PathLike = DEFAULT_WEIGHTS) -> SpeakerEncoder:
    """A speaker encoder with SpeechBrain's weights, in evaluation mode.

    Args:
        weights: `embedding_model.ckpt`, a folder that has it, or the id of such a repository on the Hub.

    Raises:
        ValueError: If the weights are not those of this encoder.
    """
    path = Path(weights)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    elif not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(str(weights), WEIGHTS_FILE))
    state = torch.load(path, map_location="cpu", weights_only=True)
    # SpeechBrain wraps each layer: `fc.conv.weight` for our `fc.weight`.
    state = {re.sub(r"\.(conv|norm)\.(\w+)$", r".\2", name): value for name, value in state.items()}
    encoder = SpeakerEncoder()
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"`weights` must be those of SpeechBrain's ECAPA-TDNN, got {path}: {error}") from error
    return encoder.eval().requires_grad_(False)


def filterbank(waveform: Tensor) -> Tensor:
    """Power of 80 mel bands in dB, at most 80 dB below the loudest of the clip: `(batch, frames, NUM_BANDS)`."""
    window = torch.hamming_window(FFT_SIZE, device=waveform.device)
    spectrum = torch.stft(
        waveform, FFT_SIZE, HOP_LENGTH, window=window, center=True, pad_mode="constant", return_complex=True
    )
    power = torch.view_as_real(spectrum).square().sum(dim=-1).transpose(1, 2) @ _mel_filters().to(waveform.device)
    decibels = 10 * power.clamp(min=POWER_FLOOR).log10()
    return torch.maximum(decibels, decibels.amax(dim=(1, 2), keepdim=True) - DYNAMIC_RANGE_DB)


def _mel_filters() -> Tensor:
    """Triangles, each as wide to either side as it is far from the one before: `(bins, NUM_BANDS)`."""
    top_mel = 2595 * torch.tensor(1 + SAMPLING_RATE / 2 / 700, dtype=torch.float64).log10()
    edges = 700 * (10 ** (torch.linspace(0, 1, NUM_BANDS + 2, dtype=torch.float64) * top_mel / 2595) - 1)
    frequencies = torch.linspace(0, SAMPLING_RATE / 2, FFT_SIZE // 2 + 1, dtype=torch.float64)
    slopes = (frequencies[:, None] - edges[1:-1]) / (edges[1:-1] - edges[:-2])
    return (1 - slopes.abs()).clamp(min=0).float()


def _weighted_statistics(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over time, `(batch, channels, 1)` each."""
    mean = (weights * x).sum(dim=2, keepdim=True)
    return mean, (weights * (x - mean).square()).sum(dim=2, keepdim=True).clamp(min=1e-12).sqrt()
