"""The causal codec of features on waveforms, with the moving average of its weights."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.framing import lengths_to_mask
from modeling_jepa_daam.vocoder_decoder import VocoderDecoder

from ..codec import CodecResult
from ..moving_average import move_average
from .feature_codec import feature_loss, row_weights


class VocoderForTraining(nn.Module):
    """Encoder, quantizer and decoder on whole segments, beside the moving average of all their weights.

    Args:
        codec: To train, with `feature_bands`.
        freeze_encoder: Whether the encoder and its projection stay as they are.
    """

    spectrogram_head = average_head = semantic_head = None

    def __init__(self, codec: JepaDaamModel, freeze_encoder: bool = False):
        super().__init__()
        self.codec = codec
        self.config: JepaDaamConfig = codec.config
        self.freeze_encoder = freeze_encoder
        codec.spectral_features.requires_grad_(False)
        for part in (codec.encoder, codec.latent_projection):
            part.requires_grad_(not freeze_encoder)
        self.average = copy.deepcopy(codec).requires_grad_(False)
        self.row_weights = row_weights(self.config)
        self.train()

    def train(self, mode: bool = True):
        """Set training mode, except for the moving average and the features: these have none."""
        super().train(mode)
        self.average.eval()
        self.codec.spectral_features.eval()
        return self

    def update_average(self, decay: float) -> None:
        """After a step: move the average towards the weights."""
        move_average(self.average, self.codec, decay)

    def forward(
        self,
        samples: Tensor,
        lengths: Tensor,
        window_frames: int | None,
        generator: torch.Generator,
        spectrogram: bool = False,
    ) -> CodecResult:
        """Reconstruct segments.

        Args:
            samples: `(batch, samples)`, at the model's rate, zero after each segment's end.
            lengths: `(batch,)`, int64, samples of each segment.
            window_frames: Must be `None`: segments are short, and decoded whole.
            generator: Not used.
            spectrogram: Must be false.
        """
        if window_frames is not None or spectrogram:
            raise ValueError("`data.window_s` must be null and `optim.spectrogram_steps` 0 with `feature_bands`")
        codec, hop = self.codec, self.config.hop_length
        samples = F.pad(samples, (0, -samples.shape[-1] % hop))
        frame_mask = lengths_to_mask(-(-lengths // hop), samples.shape[-1] // hop)
        mask = None if bool(frame_mask.all()) else frame_mask
        margin = codec.spectral_features.margin
        with torch.no_grad():
            features = codec.spectral_features(F.pad(samples, (margin, margin)))
        with torch.set_grad_enabled(not self.freeze_encoder and torch.is_grad_enabled()):
            latents = codec.latent_projection(codec.encoder(features))
        quantized, _ = codec.quantizer(latents)
        assert isinstance(codec.decoder, VocoderDecoder)
        generated, decoded = codec.decoder.decode(quantized.transpose(1, 2), mask)
        inside = lengths_to_mask(lengths, samples.shape[-1])
        weights = self.row_weights.to(samples.device)
        return CodecResult(
            generated=generated[:, 0].float().masked_fill(~inside, 0.0),
            real=samples.masked_fill(~inside, 0.0),
            lengths=lengths,
            features=feature_loss(decoded.float(), features, weights, frame_mask),
        )
