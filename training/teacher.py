"""Whisper's encoder as a frozen teacher: what is said, beside how it sounds. In training only."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WhisperModel
from transformers.audio_utils import mel_filter_bank

from modeling_jepa_daam.framing import lengths_to_mask

from .resampling import resample

RATE, FFT_SIZE, HOP_LENGTH = 16000, 400, 160  # of Whisper's spectrograms
LOG_RANGE = 8.0  # decades below the loudest that it looks at


class WhisperTeacher(nn.Module):
    """Features of Whisper's encoder, 50 a second, of segments that are shorter than the 30 s it was trained on.

    Source: Zhang et al. 2023 (SpeechTokenizer) and Défossez et al. 2024 (Moshi), with other
    models as teachers.

    Args:
        reference: Folder or Hub id of a Whisper model, such as `openai/whisper-base`.

    Raises:
        OSError: If there is none.
    """

    filters: Tensor

    def __init__(self, reference: str):
        super().__init__()
        self.encoder = WhisperModel.from_pretrained(reference, dtype=torch.float32).get_encoder()
        self.encoder.eval().requires_grad_(False)
        self.num_features: int = self.encoder.config.d_model
        bands = self.encoder.config.num_mel_bins
        filters = mel_filter_bank(FFT_SIZE // 2 + 1, bands, 0.0, RATE / 2, RATE, "slaney", "slaney")
        self.register_buffer("filters", torch.tensor(filters, dtype=torch.float32), persistent=False)

    def train(self, mode: bool = True):
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, samples: Tensor, sampling_rate: int) -> Tensor:
        """As `features`, to be learned: no gradient goes back."""
        return self.features(samples, sampling_rate)

    def features(self, samples: Tensor, sampling_rate: int) -> Tensor:
        """Features of waveforms.

        Args:
            samples: `(batch, samples)`, zero after each segment's end, at most 30 s.
            sampling_rate: Theirs (Hz).

        Returns:
            `(batch, ceil(seconds * 50), num_features)`, normalized for each frame.
        """
        encoder = self.encoder
        hidden = F.gelu(encoder.conv1(self.log_mel(samples, sampling_rate)))
        hidden = F.gelu(encoder.conv2(hidden)).transpose(1, 2)  # (B, C, T) -> (B, T, C)
        hidden = hidden + encoder.embed_positions.weight[: hidden.shape[1]]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        return F.layer_norm(encoder.layer_norm(hidden).float(), (self.num_features,))

    def distance(self, generated: Tensor, real: Tensor, sampling_rate: int, lengths: Tensor) -> Tensor:
        """How far what is said in reconstructions is from what is said in the originals: scalar, as `semantic_loss`.

        Args:
            generated: `(batch, samples)`, as `features` takes them.
            real: The same.
            sampling_rate: Theirs (Hz).
            lengths: `(batch,)`, int64, valid samples of each clip.
        """
        heard, taught = self.features(generated, sampling_rate), self(real, sampling_rate)
        return semantic_loss(heard, taught, lengths, real.shape[-1])

    def log_mel(self, samples: Tensor, sampling_rate: int) -> Tensor:
        """Whisper's input: `(batch, bands, frames)`, an even number of frames, 100 a second."""
        size = math.ceil(samples.shape[-1] / sampling_rate * 50) * sampling_rate // 50
        resampled = resample(samples.float(), size, size * RATE // sampling_rate)
        window = torch.hann_window(FFT_SIZE, device=samples.device)
        stft = torch.stft(resampled, FFT_SIZE, HOP_LENGTH, window=window, return_complex=True)[..., :-1]
        power = stft.real.square() + stft.imag.square()
        log = (self.filters.T @ power).clamp(min=1e-10).log10()
        return (torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - LOG_RANGE) + 4.0) / 4.0


def semantic_loss(predicted: Tensor, taught: Tensor, lengths: Tensor, samples: int) -> Tensor:
    """Mean cosine distance of predicted features from the teacher's, over valid frames.

    Args:
        predicted: `(batch, frames, features)`, at any rate.
        taught: `(batch, other frames, features)`, of the same stretch of time.
        lengths: `(batch,)`, int64, valid samples of each clip.
        samples: Samples that all frames together stand for.
    """
    frames = predicted.shape[1]
    taught = F.interpolate(taught.transpose(1, 2), frames, mode="linear").transpose(1, 2)
    distance = 1.0 - F.cosine_similarity(predicted.float(), taught, dim=-1)
    valid = lengths_to_mask((lengths * frames + samples - 1) // samples, frames)
    return distance.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)
