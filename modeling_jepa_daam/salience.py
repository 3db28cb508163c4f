"""Salience of frames: how high the encoder's DAAM gates are while it turns audio into tokens.

A gate is a density of the signal's values over a chunk (`daam.py`): above its mean where the projected signal is usual
for the chunk, near zero where it is rare. Whether that has to do with speech, `python -m training.salience` tells.
"""

import contextlib

import numpy as np
import torch
from torch import Tensor, nn

from .daam import DensityAdaptiveAttention
from .modeling_jepa_daam import JepaDaamModel


class GateRecorder:
    """Takes down the gates of everything that a model encodes inside a `with` statement, frame by frame.

    They are those of the very chunks that the tokens come from: nothing is computed twice. The salience of a frame is
    the mean of each gate over the frame's positions (those of the last frame's padding, which the encoder sees as
    silence, too), one value for every gate of the encoder in signal order.

    Args:
        model: The codec; what encodes with it at the same time in another thread would be taken down too.
        means: Whether to keep the means only; else each gate at its own rate.

    Raises:
        ValueError: If its encoder has no gates.
    """

    def __init__(self, model: JepaDaamModel, means: bool = True):
        self._encoder, self._chunk_frames, self._means = model.encoder, model.config.chunk_frames, means
        self._modules = [part for part in model.encoder.modules() if isinstance(part, DensityAdaptiveAttention)]
        if not self._modules:
            raise ValueError("`salience`: the model's encoder has no DAAM gates")
        self._gates: list[Tensor] = []  # of the batch that is being encoded, each (batch, time)
        self._chunks: list[tuple[Tensor, ...]] = []  # that are encoded: of each gate, (frames, positions)

    def __enter__(self) -> "GateRecorder":
        self._hooks = [part.register_forward_hook(self._on_gate) for part in self._modules]
        self._hooks.append(self._encoder.register_forward_hook(self._on_encoded))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def take(self, frames: int) -> Tensor:
        """The salience of the recording that was encoded first and not yet taken.

        Args:
            frames: Of the recording.

        Returns:
            `(frames, gates)`, float32, positive, on the CPU.
        """
        return torch.stack([gate.mean(dim=-1) for gate in self.take_gates(frames)], dim=-1)

    def take_gates(self, frames: int) -> list[Tensor]:
        """The same as `take`, but of each gate `(frames, positions)`, with as many positions a frame as it has."""
        starts = range(0, frames, self._chunk_frames)
        # What goes beyond the recording is padding within a batch.
        chunks = [[gate[: frames - start] for gate in self._chunks.pop(0)] for start in starts]
        return [torch.cat(parts) for parts in zip(*chunks, strict=True)]

    def _on_gate(self, module: nn.Module, inputs: tuple, outputs: tuple[Tensor, Tensor]) -> None:
        self._gates.append(outputs[1])

    def _on_encoded(self, module: nn.Module, inputs: tuple, latents: Tensor) -> None:
        gates = [gate.unflatten(-1, (latents.shape[1], -1)) for gate in self._gates]  # (batch, frames, positions)
        if self._means:
            gates = [gate.mean(dim=-1, keepdim=True) for gate in gates]
        self._chunks += zip(*(gate.float().cpu() for gate in gates), strict=True)
        self._gates = []


def recorded_gates(model: JepaDaamModel, wanted: bool) -> contextlib.AbstractContextManager[GateRecorder | None]:
    """A `GateRecorder` for a `with` statement, or `None` in its place."""
    return GateRecorder(model) if wanted else contextlib.nullcontext()


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
    with GateRecorder(model, means=False) as gates:
        (latents,) = model.encode_waveforms([torch.from_numpy(samples)])
    return [gate.flatten().numpy() for gate in gates.take_gates(len(latents))]
