"""Signs of collapse (section 2.5.2): a low loss proves nothing when the targets have become predictable.

Shapes: latents are `(batch, frames, dimensions)`, masks `(batch, frames)`, bool.
"""

import torch
from torch import Tensor

from modeling_jepa_daam.pretraining_jepa_daam import masked_prediction_loss

SIGNS = (
    "loss/constant",
    "loss/recording_mean",
    "std/predictions",
    "std/targets",
    "rank/predictions",
    "rank/targets",
)
MIN_PREDICTION_STD = 0.01  # below it, the paper logs a warning


def mean_std(latents: Tensor, frame_mask: Tensor) -> Tensor:
    """Standard deviation over batch and time of each dimension, averaged over dimensions."""
    return latents[frame_mask].float().std(dim=0, correction=0).mean()


def effective_rank(latents: Tensor, frame_mask: Tensor) -> Tensor:
    """How many directions the frames use: from 1 (or 0 if all are equal) to the number of dimensions.

    The exponential of the entropy of the normalised singular values of the centred frames (Roy and Vetterli 2007).
    """
    frames = latents[frame_mask].float()
    if not frames.isfinite().all():
        return torch.full((), torch.nan, device=latents.device)
    singular = torch.linalg.svdvals(frames - frames.mean(dim=0))
    if singular.sum() <= torch.finfo(torch.float32).eps * frames.abs().max() * len(frames):
        return torch.zeros((), device=latents.device)
    share = singular / singular.sum()
    return torch.exp(-(share * share.clamp(min=torch.finfo(torch.float32).tiny).log()).sum())


def constant_loss(targets: Tensor, context_mask: Tensor, frame_mask: Tensor) -> Tensor:
    """Eq. 10 of the best constant: one vector for the whole batch, the mean of its hidden frames."""
    hidden = frame_mask & ~context_mask
    mean = (targets.float() * hidden[..., None]).sum(dim=(0, 1)) / hidden.sum().clamp(min=1)
    return masked_prediction_loss(mean.expand_as(targets), targets, hidden)


def recording_mean_loss(targets: Tensor, context_mask: Tensor, frame_mask: Tensor) -> Tensor:
    """Eq. 10 of predicting, for each recording, the mean of its visible frames: no look at the order of time."""
    visible = (frame_mask & context_mask)[..., None]
    mean = (targets.float() * visible).sum(dim=1, keepdim=True) / visible.sum(dim=1, keepdim=True).clamp(min=1)
    return masked_prediction_loss(mean.expand_as(targets), targets, frame_mask & ~context_mask)


@torch.no_grad()
def collapse_signs(predictions: Tensor, targets: Tensor, context_mask: Tensor, frame_mask: Tensor) -> dict[str, Tensor]:
    """Everything to watch beside the loss of one batch, as `JepaDaamForPreTraining` returns it."""
    figures = (
        constant_loss(targets, context_mask, frame_mask),
        recording_mean_loss(targets, context_mask, frame_mask),
        mean_std(predictions, frame_mask),
        mean_std(targets, frame_mask),
        effective_rank(predictions, frame_mask),
        effective_rank(targets, frame_mask),
    )
    return dict(zip(SIGNS, figures, strict=True))
