"""A linear transform beside the network: spectrogram patches to latents, and latents to features of spectra.

Layout: power spectra `(batch, bins, spectra)`, latents `(batch, frames, dimensions)`, features
`(batch, channels, time)`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .istft_head import OVERLAP
from .pitch import PitchTracker, finest_dtype, pitch_hz
from .vocoder_envelope import (  # noqa: F401
    EXPONENT,
    LOUDNESS_MEAN,
    LOUDNESS_SCALE,
    MIN_WIDTH_HZ,
    SILENCE,
    VOICING_SLOPE,
    from_rows,
    log_magnitudes,
    loudness,
    mel_filters,
    mel_matrix,
    smoothed,
    to_rows,
)

EXPANSION = 8  # of the layers that put digits together again
MAX_BOUNDED = 1.0 - 1e-6  # at 1, and at what a runtime's tanh may make less than -1, the wave would begin again
FINER = 2.0  # a gain above it makes a finer digit of the number before; one below, the first digit of the next


def sawtooth_wave(x: Tensor) -> Tensor:
    """Identity on [-1, 1); beyond it begins again at -1, with period 2."""
    return x - 2.0 * (0.5 * (x + 1.0)).floor()


def to_digits(coefficients: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Digits of the bounded coefficients, not yet quantized, in [-1, 1); arguments have shapes that go together."""
    return sawtooth_wave(gain * torch.tanh(coefficients).clamp(-MAX_BOUNDED, MAX_BOUNDED) + offset)


def of_first_digits(values: Tensor, gain: Tensor) -> Tensor:
    """Each dimension's value, `(..., dimensions)`, replaced by that of its number's first digit.

    Digits of one number have to agree: what is added to it must be the same for all of them, to the last bit.
    """
    first = gain < FINER
    number = first.long().cumsum(0)
    return values @ ((number == number[:, None]) & first).to(values.dtype).T


class AnalysisTransform(nn.Module):
    """One linear layer from patches of the mel spectrogram, as loudness, to latents, and digits of its coefficients.

    With `config.harmonic_source` a patch has two more rows, pitch and voicing, and its bands are those of the envelope:
    the harmonics, of which these two tell everything, would move up and down through the bands.

    Deviation: not in the paper. Classic codecs transform blocks of signal linearly and spend bits where the variance
    is. A latent dimension has two bits, and the largest coefficients of a patch deserve eight: as `sawtooth_wave(gain *
    tanh(u) + offset)`, several dimensions can code one number, coarse with gain 1, fine with 4, 16 and 64.
    For that the quantizer's borders have to lie where the finer wave begins again: at -.5, 0 and .5.

    `training/transform_code.py` computes weights from speech, and the quantizer's statistics to these borders.

    Args:
        config: `JepaDaamConfig`.
        patch: Spectra a latent frame.
    """

    def __init__(self, config, patch: int):
        super().__init__()
        self.sampling_rate, self.num_bands = config.sampling_rate, config.transform_bands
        self.tracker = None
        if config.harmonic_source:
            fft_size = OVERLAP * config.hop_length // patch
            self.tracker = PitchTracker(fft_size, config.sampling_rate)
        self.project = nn.Conv1d(config.transform_rows, config.hidden_size, kernel_size=patch, stride=patch)
        self.gain = nn.Parameter(torch.ones(config.hidden_size))
        self.offset = nn.Parameter(torch.zeros(config.hidden_size))

    def envelope(self, power: Tensor, octaves: Tensor | None = None) -> Tensor:
        """`loudness` of mel bands: `(batch, bands, spectra)`.

        Args:
            power: `(batch, bins, spectra)`, float32 at least.
            octaves: `(batch, spectra)`, pitch above 150 Hz: by it spectra are smoothed.
        """
        filters = mel_matrix(power.shape[1], self.num_bands, self.sampling_rate, power.dtype, power.device)
        filters = filters / filters.sum(dim=1, keepdim=True).clamp(min=1e-8)  # the mean of a band's bins
        with torch.autocast(power.device.type, enabled=False):
            if octaves is not None:
                power = smoothed(power, pitch_hz(octaves).clamp(min=MIN_WIDTH_HZ) / self.sampling_rate)
            return loudness(filters @ power)

    def rows(self, power: Tensor) -> Tensor:
        """What patches are cut from: `envelope` and, if there is a tracker, its two: `(batch, rows, spectra)`."""
        if self.tracker is None:
            return self.envelope(power)
        octaves, voiced = self.track(power)
        return torch.cat([self.envelope(power, octaves), to_rows(octaves, voiced)], dim=1)

    def track(self, power: Tensor) -> tuple[Tensor, Tensor]:
        """Octaves above 150 Hz and probability of a voice: each `(batch, spectra)`, float32 at least."""
        assert self.tracker is not None
        frames = power.unflatten(2, (-1, self.project.kernel_size[0])).transpose(1, 2)  # (B, frames, bins, patch)
        octaves, voiced = (
            track.unflatten(0, frames.shape[:2]).flatten(1) for track in self.tracker(frames.flatten(0, 1))
        )
        return octaves, voiced

    def latents(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Latents `(batch, frames, dimensions)`, of coefficients of `rows` with `residual`, of that shape, added.

        Digits of one coefficient all take what `residual` has for the first of them.

        In float32 at least, whatever the weights' type: fine digits need more than 8 bits.
        """
        with torch.autocast(rows.device.type, enabled=False):
            weight, bias = (parameter.to(rows.dtype) for parameter in self.project.parameters())
            gain, offset = self.gain.to(rows.dtype), self.offset.to(rows.dtype)
            coefficients = F.conv1d(rows, weight, bias, self.project.stride).transpose(1, 2)
            added = of_first_digits(residual.to(rows.dtype), gain)
            return to_digits(coefficients + added, gain, offset)


class SynthesisTransform(nn.Module):
    """Latents to features of spectra, patch by patch: digits to coefficients, and the linear transform back.

    Args:
        config: `JepaDaamConfig`.
        channels: Channels of the features.
        patch: Spectra a latent frame.
    """

    def __init__(self, config, channels: int, patch: int):
        super().__init__()
        size = config.hidden_size
        self.num_bands, self.num_rows = config.transform_bands, config.transform_rows
        self.expand = nn.Conv1d(size, EXPANSION * size, kernel_size=1)
        self.reduce = nn.Conv1d(EXPANSION * size, size, kernel_size=1)
        self.patches = nn.ConvTranspose1d(size, channels, kernel_size=patch, stride=patch)

    def forward(self, latents: Tensor) -> Tensor:
        """`(batch, dimensions, frames)` -> `(batch, channels, frames * patch)`."""
        return self.patches(self.reduce(F.silu(self.expand(latents))))

    def pitch_rows(self, latents: Tensor) -> Tensor:
        """The two features after the bands, in float64: `(batch, 2, frames * patch)`."""
        # Phases are sums of pitch: what float32 rounds away in one frame is heard, and differs between machines. As
        # products of matrices, for onnxruntime has no convolution in float64.
        dtype = finest_dtype(latents.device)
        (expand, expand_bias), (reduce, reduce_bias), (patches, patches_bias) = (
            (parameter.to(dtype) for parameter in layer.parameters())
            for layer in (self.expand, self.reduce, self.patches)
        )
        wanted = slice(self.num_bands, self.num_rows)
        with torch.autocast(latents.device.type, enabled=False):
            hidden = F.silu(expand[..., 0] @ latents.to(dtype) + expand_bias[:, None])
            coefficients = reduce[..., 0] @ hidden + reduce_bias[:, None]  # (B, dimensions, frames)
            rows = coefficients.transpose(1, 2) @ patches[:, wanted].flatten(1)  # (B, frames, 2 * patch)
            return (
                rows.unflatten(2, (self.num_rows - self.num_bands, -1)).transpose(1, 2).flatten(2)
                + patches_bias[wanted, None]
            )

    def pitch(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Pitch (Hz), in float64, and how much of a voice there is, in [0, 1]: each `(batch, frames, patch)`."""
        octaves, voiced = from_rows(self.pitch_rows(latents).unflatten(2, (latents.shape[2], -1)))
        # A probability that comes back as 0.8 means that there is one.
        voiced = (VOICING_SLOPE * (voiced - 0.5)).sigmoid()
        return pitch_hz(octaves), voiced.to(torch.promote_types(latents.dtype, torch.float32))
