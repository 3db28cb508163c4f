"""A linear transform beside the network: spectrogram patches to latents, and latents to features of spectra.

Layout: power spectra `(batch, bins, spectra)`, latents `(batch, frames, dimensions)`, features
`(batch, channels, time)`.
"""

import functools
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from .istft_head import OVERLAP
from .pitch import PitchTracker, finest_dtype, pitch_hz

SILENCE = 1e-3  # a bin's magnitude below which nothing is told apart: rooms' noise would take bits from speech
EXPONENT = 0.15  # of magnitudes: see `loudness`
LOUDNESS_MEAN, LOUDNESS_SCALE = 0.67, 0.225  # of speech
MIN_LOUDNESS, LOUDNESS_SLOPE = 0.25, 25.0  # of what is decoded: a magnitude of 1e-4; how sharply it ends there
MIN_WIDTH_HZ = 100.0  # over which a spectrum is smoothed, whatever the pitch
PITCH_SCALE, VOICING_SCALE = 20.0, 1.5  # of octaves and of a probability, beside loudness of variance 1
VOICING_SLOPE = 16.0  # of a voice's amplitude over the probability of one, at 0.5
EXPANSION = 8  # of the layers that put digits together again
MAX_BOUNDED = 1.0 - 1e-6  # at 1, and at what a runtime's tanh may make less than -1, the wave would begin again
FINER = 2.0  # a gain above it makes a finer digit of the number before; one below, the first digit of the next


@functools.lru_cache(maxsize=16)
def mel_filters(bins: int, num_bands: int, sampling_rate: int) -> np.ndarray:
    """Triangles on Slaney's mel scale, each of equal area, from 0 Hz to the Nyquist frequency: `(bins, bands)`."""
    # Not a buffer: outside the checkpoint it would come back as zeros from `from_pretrained`. Not a tensor: the cache
    # outlives the call that fills it, which may be one under `torch.export`.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bands between two bins are empty
        return mel_filter_bank(bins, num_bands, 0.0, sampling_rate / 2, sampling_rate, "slaney", "slaney")


@torch.compiler.assume_constant_result
def mel_matrix(bins: int, num_bands: int, sampling_rate: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """`mel_filters`, `(bands, bins)`: a constant for `torch.compile`."""
    return torch.tensor(mel_filters(bins, num_bands, sampling_rate).T, dtype=dtype, device=device)


def smoothed(power: Tensor, pitch: Tensor) -> Tensor:
    """Power spectra, averaged around each bin over as many Hz as a harmonic is wide: what is left is their envelope.

    Harmonics are as far apart as the pitch says, so that any stretch of that width holds one of them. The average is a
    product with a sinc on the other side of a Fourier transform, of the autocorrelation; a cosine there, which averages
    three neighbours, keeps loud harmonics from being heard in all other bins.

    Args:
        power: `(batch, bins, spectra)`.
        pitch: `(batch, spectra)`, as a share of the sampling rate.

    Returns:
        `(batch, bins, spectra)`, at least 0.

    Source: Morise 2015, CheapTrick, a spectral envelope estimator for high-quality speech synthesis (its first step).
    """
    dtype = finest_dtype(power.device)  # the loudest bin may have 10^12 times the power of another
    spectrum = power.transpose(1, 2).to(dtype)  # (B, spectra, bins)
    size = 2 * (spectrum.shape[-1] - 1)
    correlation = torch.fft.irfft(torch.complex(spectrum, torch.zeros_like(spectrum)), n=size, dim=-1)
    places = torch.arange(size, dtype=dtype, device=power.device)
    lags = torch.minimum(places, size - places)
    half_turn = torch.tensor(torch.pi, dtype=dtype, device=power.device)  # as a number it would be float32 in ONNX
    angles = half_turn * pitch[..., None].to(dtype) * lags.clamp(min=1e-6)
    window = angles.sin() / angles * (0.5 + 0.5 * (half_turn * lags / (size // 2)).cos())
    return torch.fft.rfft(correlation * window, dim=-1).real.transpose(1, 2).clamp(min=0.0).to(power.dtype)


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


def to_rows(octaves: Tensor, voiced: Tensor) -> Tensor:
    """Octaves above 150 Hz and probability of a voice, `(batch, spectra)`, as two rows: `(batch, 2, spectra)`."""
    return torch.stack([PITCH_SCALE * octaves, VOICING_SCALE * (voiced - 0.5)], dim=1)


def from_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """What `to_rows` has put together."""
    return rows[:, 0] / PITCH_SCALE, rows[:, 1] / VOICING_SCALE + 0.5


def loudness(power: Tensor) -> Tensor:
    """A small power of magnitudes, scaled to about mean 0 and variance 1 of speech.

    Between the logarithm, for which an error in what is hardly heard is as bad as one in a vowel, and the magnitudes
    themselves.

    Source: Stevens 1957, On the psychophysical law (with a larger exponent).
    """
    return ((power + SILENCE**2) ** (0.5 * EXPONENT) - LOUDNESS_MEAN) / LOUDNESS_SCALE


def log_magnitudes(rows: Tensor) -> Tensor:
    """The way back from `loudness`: natural logarithm of magnitudes."""
    louder = LOUDNESS_MEAN + LOUDNESS_SCALE * rows - MIN_LOUDNESS
    return (MIN_LOUDNESS + F.softplus(louder, beta=LOUDNESS_SLOPE)).log() / EXPONENT


class AnalysisTransform(nn.Module):
    """One linear layer from patches of the mel spectrogram, as loudness, to latents, and digits of its coefficients.

    With `config.harmonic_source` a patch has two more rows, pitch and voicing, and its bands are those of the envelope:
    the harmonics, of which these two tell everything, would move up and down through the bands.

    Deviation: not in the paper. Classic codecs transform blocks of signal linearly and spend bits where the variance
    is. A latent dimension has two bits, and the largest coefficients of a patch deserve eight: as `sawtooth_wave(gain *
    tanh(u) + offset)`, several dimensions can be the digits of one number, coarse with gain 1, fine with 4, 16 and 64.
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
