"""Salience of frames: how high the encoder's DAAM gates are while it turns audio into tokens.

A gate is a density of the signal's values over a chunk (`daam.py`): above its mean where the projected signal is usual
for the chunk, near zero where it is rare. Whether that has to do with speech, `python -m training.salience` tells.
"""

import numpy as np
import torch

from .modeling_jepa_daam import JepaDaamModel


@torch.inference_mode()
def daam_gates(model: JepaDaamModel, samples: np.ndarray) -> list[np.ndarray]:
    """Gates of a recording at their own rates, as the tokenizer computes them, chunk by chunk.

    Args:
        model: The codec.
        samples: `(samples,)`, float32, at the model's rate.

    Returns:
        Gate of every DAAM module of the encoder in signal order, each `(time,)`, float32, whole numbers a frame; none
        if it has none.
    """
    if model.config.num_encoder_gates == 0:
        return []
    _, [gates] = model.encode_with_gates([torch.from_numpy(samples)])
    return [gate.flatten().numpy() for gate in gates]
