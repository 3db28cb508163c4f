"""What DeepSpeed must be told that Accelerate does not tell it."""

from contextlib import AbstractContextManager

import torch
from accelerate import Accelerator

from .config import TrainingConfig


def prepare_deepspeed(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Before `accelerator.prepare`: batch size and gradient clipping, if the run uses DeepSpeed at all."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.data.batch_size  # else of a data loader
        plugin.deepspeed_config["gradient_clipping"] = config.optim.max_grad_norm  # `clip_grad_norm_` only measures


def autocast(accelerator: Accelerator) -> AbstractContextManager:
    """The precision of training, for a model that was not prepared; Accelerate does not know DeepSpeed's."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None:
        return accelerator.autocast()
    section = plugin.deepspeed_config.get("torch_autocast", {})
    dtype = getattr(torch, section.get("dtype", "bfloat16"))
    return torch.autocast(accelerator.device.type, dtype, enabled=section.get("enabled", False))
