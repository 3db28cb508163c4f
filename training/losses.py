"""The terms of the stage 2 objective (section 3.4), each unweighted.

Waveforms are `(batch, samples)`, spectra `(batch, frames, bins)`. Everything is computed in float32, whatever the
dtype of the inputs and whether autocast is on. No gradient reaches the real side of a loss. These arguments mean the
same everywhere:

- `sampling_rate`: samples per second.
- `lengths`: `(batch,)`, int64, valid samples of each clip; None if all are valid.
- `bandwidth_hz`: `(batch,)`, the frequency above which a recording holds nothing, because it was sampled at a lower
  rate once; None if all frequencies count alike.
- `gain_above`: what lies above the bandwidth counts this much, from 0 to 1.

Padding never changes a result: a padded clip costs what it costs alone. A batch of clips of equal length costs the mean
of its clips; where lengths differ, a mean is over all valid samples or frames of the batch (so a longer clip counts
more), except in the spectral convergence, which is a ratio for each clip and a mean over clips.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from modeling_jepa_daam.framing import lengths_to_mask, num_frames
from modeling_jepa_daam.transform_path import mel_filters

from .audibility import band_weights

STFT_RESOLUTIONS = ((2048, 512), (1024, 256), (512, 128), (256, 64), (128, 32))  # FFT size and hop, in samples
MEL_RESOLUTIONS = ((32, 5), (64, 10), (128, 20), (256, 40), (512, 80), (1024, 160), (2048, 320))  # FFT size and bands
POWER_FLOOR = 1e-8  # of an STFT bin: below the rounding of 16-bit audio, and near that of a float32 FFT of loud audio
MEL_FLOOR = 1e-5  # of the magnitude of a mel band, as in the Descript codec
SILENCE_RMS = 1e-2  # -40 dB of full scale: the spectral convergence of quieter clips is relative to this level
SPECTROGRAM_OVERLAP = 4  # windows that cover one sample of a predicted spectrogram
TRANSITION_HZ = 200.0  # from full gain at a clip's bandwidth to `gain_above`


class _PowerSpectrum(torch.autograd.Function):
    """`|rfft(x)|^2` of an even number of samples. Autograd's own way back is a complex FFT, three times as slow."""

    @staticmethod
    def forward(ctx, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        ctx.save_for_backward(spectrum)
        return spectrum.real.square() + spectrum.imag.square()

    @staticmethod
    @once_differentiable  # a second derivative would be wrong: the saved spectrum does not lead back to the frames
    def backward(ctx, grad: Tensor) -> Tensor:
        (spectrum,) = ctx.saved_tensors
        # d/dx_n = sum over bins of 2 grad_k Re(S_k e^(2 pi i k n / N)); the inverse counts all bins but two twice.
        spectrum = spectrum * grad
        spectrum[..., 0] *= 2.0
        spectrum[..., -1] *= 2.0
        return torch.fft.irfft(spectrum, norm="forward")


# The caches outlive the call that fills them: made under `inference_mode`, their tensors could never be trained with.
@functools.lru_cache(maxsize=64)
def _hann(fft_size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.hann_window(fft_size, device=device, dtype=torch.float32)


@functools.lru_cache(maxsize=64)
def _mel_filters(fft_size: int, num_bands: int, sampling_rate: int, device: torch.device) -> Tensor:
    """`mel_filters` as a tensor; bands between two bins are empty and get no weight."""
    with torch.inference_mode(False):
        filters = mel_filters(fft_size // 2 + 1, num_bands, sampling_rate)
        return torch.tensor(filters, dtype=torch.float32, device=device)


def _power(waveform: Tensor, fft_size: int, hop_length: int) -> Tensor:
    """Power of frames of which frame `n` is centred on samples `n * hop_length` to `(n + 1) * hop_length`.

    Beyond its ends the waveform is zero. Reflecting it there would make a clip differ from the same clip with padding.

    Returns:
        `(batch, ceil(samples / hop_length), fft_size // 2 + 1)`.
    """
    batch, samples = waveform.shape
    frames = num_frames(samples, hop_length)
    slices = _hann(fft_size, waveform.device).split(hop_length)  # of the window, one for each hop it covers
    before = (fft_size - hop_length) // 2
    after = (frames - 1 + len(slices)) * hop_length - before - samples
    hops = F.pad(waveform, (before, after)).view(batch, -1, hop_length)
    # Faster than `unfold`, forth and back: every copy is of whole hops.
    framed = [hops[:, i : i + frames, : len(window)] * window for i, window in enumerate(slices)]
    return _PowerSpectrum.apply(torch.cat(framed, dim=-1))


def _gain(like: Tensor, fft_size: int, sampling_rate: int, bandwidth_hz: Tensor | None, gain_above: float) -> Tensor:
    """1 up to a clip's bandwidth, `gain_above` from 200 Hz above it, half a cosine between.

    Returns:
        `(batch, fft_size // 2 + 1)`, the gain of each bin for each clip of `like`.
    """
    if not 0.0 <= gain_above <= 1.0:
        raise ValueError(f"`gain_above` must be from 0 to 1, got {gain_above}")
    if bandwidth_hz is None:
        return torch.ones(len(like), fft_size // 2 + 1, device=like.device)
    frequencies = torch.arange(fft_size // 2 + 1, device=like.device) * (sampling_rate / fft_size)
    above = (frequencies - bandwidth_hz.to(like.device, torch.float32)[:, None]) / TRANSITION_HZ
    return 1.0 - (1.0 - gain_above) * (0.5 - 0.5 * torch.cos(math.pi * above.clamp(0.0, 1.0)))


def _weighted_mean(values: Tensor, weights: Tensor, frame_mask: Tensor) -> Tensor:
    """Weighted mean over the bins of each frame, then plain mean over the valid frames of the batch.

    Args:
        values: `(batch, frames, bins)`.
        weights: `(batch, bins)`; their sum does not matter.
        frame_mask: `(batch, frames)`, bool.
    """
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    means = (values * weights[:, None]).sum(dim=-1)  # on a CPU, a fifth of the time of the matrix product
    return means.masked_fill(~frame_mask, 0.0).sum() / frame_mask.sum().clamp(min=1)


def _energy(power: Tensor, gain: Tensor, frame_mask: Tensor) -> Tensor:
    """What is left of `power` `(batch, frames, bins)` after the gain, summed over the valid frames: `(batch,)`."""
    return (power * gain.square()[:, None]).sum(dim=-1).masked_fill(~frame_mask, 0.0).sum(dim=-1)


def _prepare(generated: Tensor, real: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Both waveforms in float32 and zero beyond their lengths, and the lengths."""
    if generated.shape != real.shape or generated.ndim != 2:
        shapes = f"{tuple(generated.shape)} and {tuple(real.shape)}"
        raise ValueError(f"`generated` and `real` must have one shape, (batch, samples), got {shapes}")
    generated, real = generated.float(), real.detach().float()
    if lengths is None:
        return generated, real, torch.full((len(real),), real.shape[-1], device=real.device)
    padding = ~lengths_to_mask(lengths, real.shape[-1])
    return generated.masked_fill(padding, 0.0), real.masked_fill(padding, 0.0), lengths


def _valid_frames(lengths: Tensor, frames: int, hop_length: int) -> Tensor:
    """Frames whose hop begins inside the clip: `(batch, frames)`, bool."""
    return torch.arange(frames, device=lengths.device) * hop_length < lengths[:, None]


def shape_bandwidth(waveform: Tensor, bandwidth_hz: Tensor, sampling_rate: int, gain_above: float) -> Tensor:
    """Scale what lies above each clip's bandwidth, without delay.

    Most public speech was sampled at 16 kHz. A codec at 24 kHz must not learn from it that speech ends at 8 kHz.

    Args:
        waveform: `(batch, samples)`; padding must be zero, or it leaks into the last milliseconds of the clip.
        bandwidth_hz: `(batch,)`. From half the sampling rate on, the clip is returned bit for bit.
        gain_above: 0 to remove, 1 to keep.

    Returns:
        `(batch, samples)`, float32; the waveform itself if nothing is to be done.
    """
    waveform, bandwidth_hz = waveform.float(), bandwidth_hz.to(waveform.device)
    full = bandwidth_hz >= sampling_rate / 2
    if full.all():
        return waveform
    samples = waveform.shape[-1]
    # After ten periods of the transition's width the filter has decayed by 120 dB: that much may wrap round.
    size = samples + round(10 * sampling_rate / TRANSITION_HZ)
    size += -size % 512  # an FFT of a large prime would be slow
    spectrum = torch.fft.rfft(waveform, n=size)
    gain = _gain(waveform, size, sampling_rate, bandwidth_hz, gain_above)
    return torch.where(full[:, None], waveform, torch.fft.irfft(spectrum * gain, n=size)[:, :samples])


def waveform_loss(generated: Tensor, real: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Mean absolute difference of the valid samples. Source: paper, eq. 21."""
    generated, real, lengths = _prepare(generated, real, lengths)
    return (generated - real).abs().sum() / lengths.sum().clamp(min=1)


def stft_losses(
    generated: Tensor,
    real: Tensor,
    sampling_rate: int,
    lengths: Tensor | None = None,
    bandwidth_hz: Tensor | None = None,
    gain_above: float = 0.0,
    resolutions: Sequence[tuple[int, int]] = STFT_RESOLUTIONS,
) -> dict[str, Tensor]:
    """Spectral convergence (eq. 23) and log-magnitude loss (eq. 24), each summed over the resolutions.

    The spectral convergence is that of spectra whose bins were scaled by their gain. In the log magnitude, where scale
    does not show, the gain is the weight of a bin in the mean.

    Deviation: eq. 23 has no bound. A clip below -40 dB of full scale is measured against a clip of that level, or
    pauses would outweigh speech.

    Returns:
        Two scalars, `spectral_convergence` and `log_magnitude`.

    Source: paper, eq. 22-24.
    """
    generated, real, lengths = _prepare(generated, real, lengths)
    convergence = log_magnitude = torch.zeros((), device=real.device)
    for fft_size, hop_length in resolutions:
        power, real_power = (_power(x, fft_size, hop_length).clamp(min=POWER_FLOOR) for x in (generated, real))
        valid = _valid_frames(lengths, power.shape[1], hop_length)
        gain = _gain(real, fft_size, sampling_rate, bandwidth_hz, gain_above)
        error = F.mse_loss(power.sqrt(), real_power.sqrt(), reduction="none")
        # Parseval: a frame of white noise has N / 2 * sum(window^2) in its bins, and sum(window^2) is 3/8 N.
        silence = valid.sum(dim=-1).clamp(min=1) * (3 / 16 * fft_size**2 * SILENCE_RMS**2)
        scale = torch.maximum(_energy(real_power, gain, valid), silence)
        # Not below 1e-20: the square root of zero has no gradient.
        convergence = convergence + (_energy(error, gain, valid).clamp(min=1e-20) / scale).sqrt().mean()
        distance = (power / real_power).log().abs()  # twice that of the magnitudes; one logarithm is faster than two
        log_magnitude = log_magnitude + 0.5 * _weighted_mean(distance, gain, valid)
    return {"spectral_convergence": convergence, "log_magnitude": log_magnitude}


def _log_mel(waveform: Tensor, fft_size: int, hop_length: int, filters: Tensor) -> Tensor:
    # The floor of the power is far below that of a band: it only keeps the gradient of the square root finite.
    magnitude = _power(waveform.float(), fft_size, hop_length).clamp(min=1e-16).sqrt()
    with torch.autocast(waveform.device.type, enabled=False):
        return (magnitude @ filters).clamp(min=MEL_FLOOR).log()


def _scaled_filters(filters: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """Mel filters of bins scaled by a clip's gain, `(batch, bins, bands)`, and each band's mean gain, `(batch, bands)`.

    A band without bins gets 0.
    """
    scaled = gain[..., None] * filters
    return scaled, scaled.sum(dim=1) / filters.sum(dim=0).clamp(min=torch.finfo(filters.dtype).tiny)


def mel_loss(
    generated: Tensor,
    real: Tensor,
    sampling_rate: int,
    lengths: Tensor | None = None,
    bandwidth_hz: Tensor | None = None,
    gain_above: float = 0.0,
) -> Tensor:
    """Mean absolute difference of log10 mel magnitudes, summed over seven resolutions; arguments as `stft_losses`.

    Not in the paper. Source: Descript audio codec (Kumar et al. 2023). Bins are scaled by their gain, so
    that a wide band across a clip's bandwidth compares what lies below; bands are weighted by the mean of their bins.
    """
    generated, real, lengths = _prepare(generated, real, lengths)
    loss = torch.zeros((), device=real.device)
    for fft_size, num_bands in MEL_RESOLUTIONS:
        filters = _mel_filters(fft_size, num_bands, sampling_rate, real.device)
        gain = _gain(real, fft_size, sampling_rate, bandwidth_hz, gain_above)
        scaled, weights = _scaled_filters(filters, gain)
        mel, real_mel = (_log_mel(x, fft_size, fft_size // 4, scaled) for x in (generated, real))
        valid = _valid_frames(lengths, mel.shape[1], fft_size // 4)
        loss = loss + _weighted_mean((mel - real_mel).abs(), weights, valid)
    return loss / math.log(10.0)


def spectrogram_loss(
    predicted: Tensor,
    real: Tensor,
    sampling_rate: int,
    lengths: Tensor | None = None,
    bandwidth_hz: Tensor | None = None,
    gain_above: float = 0.0,
) -> Tensor:
    """Mean absolute difference of predicted log mel magnitudes and those of a waveform; arguments as `stft_losses`.

    Not in the paper. Bands are weighted by the mean gain of their bins.

    Args:
        predicted: `(batch, spectra, bands)`, natural logarithm; windows cover four times what lies between spectra.
        real: `(batch, samples)`.
        sampling_rate: See above, as all others.
    """
    real = real.float()
    hop_length = real.shape[-1] // predicted.shape[1]
    fft_size = SPECTROGRAM_OVERLAP * hop_length
    filters = _mel_filters(fft_size, predicted.shape[2], sampling_rate, real.device)
    target = _log_mel(real, fft_size, hop_length, filters)
    lengths = torch.full((len(real),), real.shape[-1], device=real.device) if lengths is None else lengths
    return _band_distance(predicted, target, sampling_rate, lengths, bandwidth_hz, gain_above, hop_length)


def envelope_loss(
    predicted: Tensor,
    real: Tensor,
    sampling_rate: int,
    lengths: Tensor | None = None,
    bandwidth_hz: Tensor | None = None,
    gain_above: float = 0.0,
    *,
    hop_length: int,
) -> Tensor:
    """Mean absolute difference of the loudness of two envelopes; other arguments as `stft_losses`.

    Not in the paper. Bands count as they are heard (`audibility.py`), times the mean gain of their bins.

    Args:
        predicted: `(batch, spectra, bands)`, as `modeling_jepa_daam.transform_path.loudness` has it.
        real: The same.
        sampling_rate: See above, as those before the last.
        hop_length: Samples between spectra; windows cover four of them.
    """
    if lengths is None:
        lengths = torch.full((len(real),), predicted.shape[1] * hop_length, device=real.device)
    bins = SPECTROGRAM_OVERLAP * hop_length // 2 + 1
    heard = band_weights(bins, predicted.shape[2], sampling_rate).to(real.device)
    return _band_distance(predicted, real, sampling_rate, lengths, bandwidth_hz, gain_above, hop_length, heard)


def _band_distance(
    predicted: Tensor,
    target: Tensor,
    sampling_rate: int,
    lengths: Tensor,
    bandwidth_hz: Tensor | None,
    gain_above: float,
    hop_length: int,
    band_weight: Tensor | float = 1.0,
) -> Tensor:
    """Mean absolute difference of `(batch, spectra, bands)`; a band counts `band_weight` times its bins' mean gain."""
    fft_size = SPECTROGRAM_OVERLAP * hop_length
    filters = _mel_filters(fft_size, predicted.shape[2], sampling_rate, target.device)
    weights = _scaled_filters(filters, _gain(target, fft_size, sampling_rate, bandwidth_hz, gain_above))[1]
    distance = (predicted.float() - target.float()).abs()
    return _weighted_mean(distance, weights * band_weight, _valid_frames(lengths, distance.shape[1], hop_length))


def log_mel(waveform: Tensor, sampling_rate: int, fft_size: int, hop_length: int, num_bands: int) -> Tensor:
    """Natural logarithm of mel magnitudes, of which frame `n` is centred on hop `n`.

    Returns:
        `(batch, ceil(samples / hop_length), num_bands)`, float32, at least log(1e-5).
    """
    filters = _mel_filters(fft_size, num_bands, sampling_rate, waveform.device)
    return _log_mel(waveform, fft_size, hop_length, filters)


def generator_adversarial_loss(scores: Sequence[Tensor]) -> Tensor:
    """Squared distance from 1 of the scores of generated audio, one tensor for each discriminator. Source: eq. 25."""
    return torch.stack([(score.float() - 1.0).square().mean() for score in scores]).sum()


def feature_matching_loss(real_maps: Sequence[Sequence[Tensor]], generated_maps: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean absolute difference of each layer of each discriminator, summed. Source: paper, eq. 26."""
    pairs = [
        (real.detach().float(), generated.float())
        for real_layers, generated_layers in zip(real_maps, generated_maps, strict=True)
        for real, generated in zip(real_layers, generated_layers, strict=True)
    ]
    return torch.stack([F.l1_loss(generated, real) for real, generated in pairs]).sum()


def discriminator_loss(real_scores: Sequence[Tensor], generated_scores: Sequence[Tensor]) -> Tensor:
    """Squared distance of the scores from 1 for real audio, from 0 for generated audio, summed. Source: eq. 28."""
    generated = torch.stack([score.float().square().mean() for score in generated_scores]).sum()
    return generator_adversarial_loss(real_scores) + generated
