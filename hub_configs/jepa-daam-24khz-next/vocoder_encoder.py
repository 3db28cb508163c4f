"""The causal encoder of spectral features: DAAM-gated stages and Conformer blocks, 75 Hz to 2.5 Hz.

Layout: features `(batch, rows, time)`, frames `(batch, frames, dim)`.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .causal import CausalEncoderStage, CausalMemory
from .causal_conformer import CausalConformerBlock


class EncodedFrames(NamedTuple):
    """What the encoder makes of features."""

    hidden: Tensor
    """`(batch, frames, hidden_size)`, the Conformer's output."""
    patches: Tensor
    """`(batch, frames, hidden_size)`, the patch embedding, for the linear path to the latents."""
    gates: tuple[Tensor, ...]
    """Gate of each stage, `(batch, time)`, each at its own rate."""


class FeatureEncoder(nn.Module):
    """Spectral features to frames: patch embedding, strided DAAM stages, causal Conformer blocks.

    Deviation: the paper's encoder learns from the waveform and sees the whole recording. This one reads features that
    are computed (`vocoder_features.py`) and looks back only, over windows, so a stream of sound is encoded as it comes.

    Args:
        config: `JepaDaamConfig` with `feature_bands`.
    """

    def __init__(self, config):
        super().__init__()
        self.ratios = tuple(config.downsampling_ratios[config.encoder_stft_stages :])
        self.patch_size = math.prod(self.ratios)
        """Feature vectors a frame."""
        self.daam_window = config.daam_window
        self.stages = nn.ModuleList(CausalEncoderStage(config, stage) for stage in range(len(self.ratios)))
        self.bottleneck = nn.Linear(config.encoder_channels[-1], config.hidden_size)
        self.patch_embedding = nn.Conv1d(
            config.feature_rows, config.hidden_size, kernel_size=self.patch_size, stride=self.patch_size
        )
        self.patch_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.conformer = nn.ModuleList(
            CausalConformerBlock(config, config.attention_window, config.conv_kernel_size)
            for _ in range(config.num_hidden_layers)
        )

    def extract_frames(self, features: Tensor, memory: CausalMemory) -> EncodedFrames:
        """The half before the Conformer: frames that have not attended to each other, in `hidden`."""
        patches = self.patch_embedding(features).transpose(1, 2)  # (B, D, T) -> (B, T, D)
        x, gates, factor = features, [], self.patch_size
        for stage, ratio in zip(self.stages, self.ratios, strict=True):
            factor //= ratio
            x, gate = stage(x, memory, self.daam_window * factor)
            gates.append(gate)
        hidden = self.bottleneck(x.transpose(1, 2)) + self.patch_norm(patches)
        return EncodedFrames(hidden, patches, tuple(gates))

    def mix_frames(self, hidden: Tensor, memory: CausalMemory) -> Tensor:
        """The Conformer half: `(batch, frames, hidden_size)` -> the same shape."""
        for block in self.conformer:
            hidden = block(hidden, memory)
        return hidden

    def forward(self, features: Tensor, memory: CausalMemory | None = None) -> EncodedFrames:
        """Encode.

        Args:
            features: `(batch, feature_rows, frames * patch_size)`.
            memory: Past of the stream; `None` at its beginning.
        """
        memory = CausalMemory() if memory is None else memory
        frames = self.extract_frames(features, memory)
        return frames._replace(hidden=self.mix_frames(frames.hidden, memory))


class LatentProjection(nn.Module):
    """Frames to the latents that the quantizer takes: the Conformer's output and a linear path beside it.

    The linear path starts as the Karhunen-Loeve transform of patches (`training/vocoder/karhunen_loeve.py`), so that
    training starts where transform coding ends.

    Args:
        config: `JepaDaamConfig`.
    """

    def __init__(self, config):
        super().__init__()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.project = nn.Linear(config.hidden_size, len(config.levels))
        self.linear_path = nn.Linear(config.hidden_size, len(config.levels))

    def forward(self, frames: EncodedFrames) -> Tensor:
        """Latents, `(batch, frames, dimensions)`, in the precision of the weights."""
        with torch.autocast(frames.hidden.device.type, enabled=False):
            dtype = self.project.weight.dtype
            return self.project(self.norm(frames.hidden.to(dtype))) + self.linear_path(frames.patches.to(dtype))
