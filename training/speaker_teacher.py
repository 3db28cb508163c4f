"""ECAPA-TDNN as a frozen teacher: who speaks, beside how it sounds. In training only."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .ecapa import SAMPLING_RATE, load_speaker_encoder
from .resampling import resample


class SpeakerTeacher(nn.Module):
    """Hears whether reconstructions are of the speaker of the originals.

    Args:
        weights: As `load_speaker_encoder` takes them.

    Raises:
        OSError: If there are none.
        ValueError: If they are those of another encoder.
    """

    def __init__(self, weights: str | os.PathLike):
        super().__init__()
        self.encoder = load_speaker_encoder(weights)

    def train(self, mode: bool = True):
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(self, generated: Tensor, real: Tensor, sampling_rate: int) -> Tensor:
        """Mean cosine distance of the embeddings of two batches, `(batch, samples)` each: scalar."""
        with torch.no_grad():
            wanted = self.embed(real, sampling_rate)
        return (1.0 - F.cosine_similarity(self.embed(generated, sampling_rate), wanted)).mean()

    def embed(self, samples: Tensor, sampling_rate: int) -> Tensor:
        """`(batch, samples)` -> `(batch, EMBEDDING_SIZE)`, float32."""
        wanted = samples.shape[-1] * SAMPLING_RATE // sampling_rate
        heard = resample(samples.float(), wanted * sampling_rate // SAMPLING_RATE, wanted)
        return self.encoder(heard).float()
