"""Stage 1: predict the target encoder's latents of hidden frames (Figure 1, eq. 10-11)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils import ModelOutput

from .causal import CausalMemory
from .conformer import ConformerBlock
from .encoder import JepaDaamEncoder
from .framing import stretch_mask, zero_padding
from .masking import block_mask
from .modeling_jepa_daam import JepaDaamPreTrainedModel
from .precision import NARROW, without_float16_autocast
from .vocoder_encoder import FeatureEncoder
from .vocoder_features import SpectralFeatures

MASK_TOKEN_STD = 0.02


@dataclass
class JepaDaamForPreTrainingOutput(ModelOutput):
    """Stage 1 loss and what it came from.

    Args:
        loss: Scalar, eq. 10: mean squared error over the hidden frames.
        predictions: `(batch, frames, hidden_size)`, the predictor's output at every frame.
        targets: `(batch, frames, hidden_size)`, the target encoder's latents; no gradient.
        context_mask: `(batch, frames)`, bool, true at visible frames.
        frame_mask: `(batch, frames)`, bool, true at valid frames.
    """

    loss: Tensor | None = None
    predictions: Tensor | None = None
    targets: Tensor | None = None
    context_mask: Tensor | None = None
    frame_mask: Tensor | None = None


class JepaDaamPredictor(nn.Module):
    """Expansion, Conformer blocks with pointwise layers between, projection (Figure 3)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.predictor_hidden_size
        self.expand = nn.ModuleList(
            nn.Conv1d(config.hidden_size if layer == 0 else width, width, kernel_size=1)
            for layer in range(config.predictor_num_hidden_layers)
        )
        self.conformer = nn.ModuleList(
            ConformerBlock(config, width, config.predictor_num_attention_heads, config.predictor_intermediate_size)
            for _ in range(config.predictor_num_hidden_layers)
        )
        last = width if self.expand else config.hidden_size
        self.project = nn.Conv1d(last, config.hidden_size, kernel_size=1)

    def forward(self, context: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """`(batch, frames, hidden_size)` -> the same shape; `frame_mask` is `(batch, frames)`, bool, or `None`."""
        attention_mask = create_bidirectional_mask(self.config, context, frame_mask)
        for expand, block in zip(self.expand, self.conformer, strict=True):
            context = F.gelu(expand(context.transpose(1, 2))).transpose(1, 2)  # (B, T, C) -> (B, C, T) -> (B, T, C)
            context = block(context, attention_mask, frame_mask)
        return self.project(context.transpose(1, 2)).transpose(1, 2)


def masked_prediction_loss(predictions: Tensor, targets: Tensor, hidden: Tensor) -> Tensor:
    """Mean squared error over hidden frames (eq. 10), in float32; zero if no frame is hidden.

    Args:
        predictions: `(batch, frames, dimensions)`.
        targets: `(batch, frames, dimensions)`; gradients are stopped.
        hidden: `(batch, frames)`, bool, the set M of hidden frames.

    Returns:
        Scalar, float32.
    """
    squares = (predictions.float() - targets.detach().float()).square().mean(dim=-1)  # (B, T, C) -> (B, T)
    return (squares * hidden).sum() / hidden.sum().clamp(min=1)


class JepaDaamForPreTraining(JepaDaamPreTrainedModel):
    """Online encoder, predictor and EMA target encoder with the Stage 1 loss.

    `config.mask_position` says where frames are hidden: `"waveform"`, where visible frames know nothing of them;
    `"before_conformer"`, where they still share the reach of the convolutions and the gates' statistics; or
    `"after_encoder"` as printed in the paper, where visible frames have attended to hidden ones. The target encoder
    sees everything, without dropout and without gradients; call `update_target()` after each optimizer step. It stays
    float32 in a model of another type: bfloat16 cannot hold the small steps of its average.
    """

    _auto_class = "AutoModelForPreTraining"
    _keys_to_ignore_on_load_unexpected = [
        r"^decoder\.", r"^quantizer\.", r"^encoder\.transform\.", r"^latent_projection\."
    ]  # fmt: skip
    # A checkpoint without a target encoder starts with a copy of its encoder.
    _keys_to_ignore_on_load_missing = [r"^target_encoder\."]
    _may_be_new = (r"^predictor\.", r"^mask_token$")

    def __init__(self, config):
        super().__init__(config)
        self.encoder = self._make_encoder()
        self.predictor = JepaDaamPredictor(config)
        self.mask_token = nn.Parameter(torch.zeros(config.hidden_size))
        self.target_encoder = self._make_encoder().requires_grad_(False)
        if config.feature_bands > 0:
            self.spectral_features = SpectralFeatures(config).requires_grad_(False)
        self.post_init()

    def _make_encoder(self) -> Any:
        causal = self.config.feature_bands > 0
        return FeatureEncoder(self.config) if causal else JepaDaamEncoder(self.config, transform=False)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a checkpoint; loading makes new parameters, so that the target encoder has to be frozen again."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).target_encoder.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.normal_(self.mask_token, std=MASK_TOKEN_STD)
            for target, online in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
                init.copy_(target, online)

    def train(self, mode: bool = True):
        """Set training mode, leaving the target encoder in evaluation mode: its targets have no dropout."""
        super().train(mode)
        self.target_encoder.eval()
        return self

    @torch.no_grad()
    def update_target(self, decay: float | None = None) -> None:
        """Move the target encoder towards the online encoder (eq. 11); buffers are copied.

        Args:
            decay: tau; `config.ema_decay` if `None`.

        Raises:
            ValueError: If the decay lies outside [0, 1], or the target encoder is narrower than float32.
        """
        decay = self.config.ema_decay if decay is None else decay
        if not 0.0 <= decay <= 1.0:
            raise ValueError(f"`decay` must lie in [0, 1], got {decay}")
        for name, target in self.target_encoder.named_parameters():
            if target.dtype in NARROW:
                raise ValueError(
                    f"`target_encoder` must be float32 to follow small steps, got {target.dtype} in {name}"
                )
        for target, online in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
            target.lerp_(online.to(target.dtype), 1.0 - decay)
        for target_buffer, buffer in zip(self.target_encoder.buffers(), self.encoder.buffers(), strict=True):
            target_buffer.copy_(buffer)

    def forward(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        return_dict: bool | None = None,
        return_loss: bool = True,
    ) -> JepaDaamForPreTrainingOutput | tuple:
        """Predict hidden frames and return the loss.

        Args:
            input_values: `(batch, 1, samples)`, at `config.sampling_rate`, in [-1, 1].
            padding_mask: `(batch, samples)`, 1 at valid samples, padding on the right; `None` if all are valid.
            context_mask: `(batch, frames)`, bool, true at visible frames; drawn as in section 2.1 if `None`.
            generator: Source of the drawn mask's randomness, on CPU; torch's default if `None`.
            return_dict: `False` for a plain tuple.
            return_loss: Whether to compute the loss. By this name `Trainer` knows that it needs no labels.

        Raises:
            ValueError: If a shape is wrong, the mask is not padded on the right, or samples are not finite or
                beyond full scale.
            TypeError: If `input_values` are not floating point.
        """
        input_values, frame_mask = self._whole_frames(input_values, padding_mask)
        if context_mask is None:
            context_mask = block_mask(
                frame_mask.sum(dim=-1).tolist(),
                frame_mask.shape[-1],
                self.config.mask_ratio,
                self.config.mask_min_span,
                self.config.mask_max_span,
                generator,
            )
        elif not isinstance(context_mask, Tensor) or context_mask.shape != frame_mask.shape:
            raise ValueError(
                f"`context_mask` must be a tensor of shape (batch, frames) = {tuple(frame_mask.shape)}, "
                f"got {getattr(context_mask, 'shape', type(context_mask).__name__)}"
            )
        context_mask = context_mask.bool().to(input_values.device)
        valid = None if padding_mask is None else frame_mask
        place = self.config.mask_position

        # A causal encoder reads features, and no padding on the right reaches valid frames.
        inputs, factor = input_values, self.config.hop_length
        causal = isinstance(self.encoder, FeatureEncoder)
        if causal:
            margin = self.spectral_features.margin
            with torch.no_grad():
                inputs = self.spectral_features(F.pad(input_values[:, 0], (margin, margin)))
            factor = self.config.patch_size
        inputs = self._encoder_input(inputs, self.encoder)
        shown = zero_padding(inputs, stretch_mask(context_mask, factor)) if place == "waveform" else inputs
        past = CausalMemory() if causal else valid  # what a layer takes beside its input
        with without_float16_autocast(input_values.device.type):
            frames = self.encoder.extract_frames(shown, past)
            frames = frames.hidden if causal else frames
            if place != "after_encoder":
                frames = self._hide(frames, context_mask)
            latents = self.encoder.mix_frames(frames, past)
            with torch.no_grad():
                seen = self._encoder_input(inputs, self.target_encoder)
                targets = self.target_encoder(seen).hidden if causal else self.target_encoder(seen, valid)
        context = self._hide(latents, context_mask) if place == "after_encoder" else latents
        predictions = self.predictor(context.to(self.mask_token.dtype), valid)

        output = JepaDaamForPreTrainingOutput(
            loss=masked_prediction_loss(predictions, targets, frame_mask & ~context_mask) if return_loss else None,
            predictions=predictions,
            targets=targets,
            context_mask=context_mask,
            frame_mask=frame_mask,
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _hide(self, frames: Tensor, context_mask: Tensor) -> Tensor:
        return torch.where(context_mask[..., None], frames, self.mask_token.to(frames.dtype))


__all__ = ["JepaDaamForPreTraining"]
