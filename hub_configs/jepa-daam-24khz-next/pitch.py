"""Pitch of a voice, from spectra: fundamental frequency and whether there is any. Layout: `(batch, bins, spectra)`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_F0_HZ, OCTAVES = 55.0, 3.25  # to 523 Hz
NUM_CLASSES = 79  # half a semitone apart
MIDDLE_F0_HZ = 150.0  # of adult speech; what is said of a frame without any voice
HEARD_HZ = 3000.0  # harmonics above tell little more
CHANNELS, KERNEL_SIZE = 96, 5
MIN_POWER = 1e-8
MIDDLE_BIAS = 1e-2  # of logits, an octave: where nothing speaks for any class, rounding must not choose one
NEIGHBOURS = 2  # classes to either side of the likeliest one that have a say


class PitchTracker(nn.Module):
    """A small convolutional network over the spectra of one latent frame, and an interpolation where there is no voice.

    Deviation: not in the paper. 2.5 Hz latents lose the harmonics of a voice, of which two numbers tell everything.

    A frame is tracked alone: what it hears does not depend on its neighbours. `training/transform_code.py` teaches it.

    Args:
        fft_size: Of the spectra.
        sampling_rate: Of the waveform (Hz).
    """

    def __init__(self, fft_size: int, sampling_rate: int):
        super().__init__()
        self.num_bins = min(fft_size // 2 + 1, max(1, int(HEARD_HZ * fft_size / sampling_rate)))
        self.layers = nn.Sequential(
            nn.Conv1d(self.num_bins, CHANNELS, kernel_size=1),
            nn.SiLU(),
            nn.Conv1d(CHANNELS, CHANNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2),
            nn.SiLU(),
            nn.Conv1d(CHANNELS, CHANNELS, KERNEL_SIZE, padding=KERNEL_SIZE // 2),
            nn.SiLU(),
            nn.Conv1d(CHANNELS, NUM_CLASSES + 1, kernel_size=1),
        )

    def scores(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of classes of pitch `(frames, classes, spectra)`, and of voicing `(frames, spectra)`.

        Args:
            power: `(frames, bins, spectra)`, the spectra of each frame.
        """
        magnitude = 0.5 * power[:, : self.num_bins].clamp(min=MIN_POWER).log()
        magnitude = magnitude - magnitude.mean(dim=(1, 2), keepdim=True)  # at any level
        for layer in self.layers:
            magnitude = convolved(layer, magnitude) if isinstance(layer, nn.Conv1d) else layer(magnitude)
        return magnitude[:, :-1], magnitude[:, -1]

    def forward(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Octaves above 150 Hz, and the probability of a voice: each `(frames, spectra)`, float32 at least."""
        with torch.autocast(power.device.type, enabled=False):
            logits, voicing = self.scores(power)
            octaves = class_octaves(logits)
            logits = logits - MIDDLE_BIAS * octaves.abs()[:, None]
            classes = torch.arange(NUM_CLASSES, device=power.device)[:, None]
            near = (classes - logits.argmax(dim=1, keepdim=True)).abs() <= NEIGHBOURS
            pitch = (logits.masked_fill(~near, -torch.inf).softmax(dim=1) * octaves[:, None]).sum(dim=1)
            voiced = voicing.sigmoid()
            return interpolated(pitch, voiced), voiced


def convolved(layer: nn.Conv1d, x: Tensor) -> Tensor:
    """A convolution of stride 1, in the precision of `x`, whatever the weights' is."""
    assert layer.bias is not None
    return F.conv1d(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype), padding=layer.padding)


def class_octaves(like: Tensor) -> Tensor:
    """Pitch of each class, in octaves above 150 Hz: `(classes,)`, of the type and device of `like`."""
    lowest = torch.tensor(MIN_F0_HZ / MIDDLE_F0_HZ, dtype=like.dtype, device=like.device).log2()
    return lowest + torch.linspace(0.0, OCTAVES, NUM_CLASSES, dtype=like.dtype, device=like.device)


def interpolated(pitch: Tensor, voiced: Tensor) -> Tensor:
    """Pitch where there is a voice, and between such spectra a mean of theirs, weighted by distance and probability.

    Source: Shepard 1968, A two-dimensional interpolation function for irregularly-spaced data.
    """
    places = torch.arange(pitch.shape[-1], dtype=pitch.dtype, device=pitch.device)
    closeness = 1.0 / (0.5 + (places[:, None] - places).square()) ** 1.5
    weights = voiced.square()
    return (weights * pitch) @ closeness / (weights @ closeness + 1e-3)


def pitch_hz(octaves: Tensor) -> Tensor:
    """Hz of octaves above 150 Hz, within what can be tracked."""
    return (MIDDLE_F0_HZ * torch.exp2(octaves)).clamp(MIN_F0_HZ, MIN_F0_HZ * 2**OCTAVES)


def finest_dtype(device: torch.device) -> torch.dtype:
    """Float64, or float32 on the devices of Apple, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64
