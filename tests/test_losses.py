import math

import numpy as np
import pytest
import torch

from tests import reference_losses as reference
from tests.conftest import noise
from training import losses
from training.losses import (
    discriminator_loss,
    feature_matching_loss,
    generator_adversarial_loss,
    log_mel,
    mel_loss,
    shape_bandwidth,
    stft_losses,
    waveform_loss,
)

RATE = 24000
SAMPLES = 5003  # no whole number of any hop


def spectral_convergence(*args, **kwargs):
    return stft_losses(*args, **kwargs)["spectral_convergence"]


def log_magnitude(*args, **kwargs):
    return stft_losses(*args, **kwargs)["log_magnitude"]


SPECTRAL = {
    "spectral_convergence": (spectral_convergence, reference.spectral_convergence),
    "log_magnitude": (log_magnitude, reference.log_magnitude),
    "mel": (mel_loss, reference.mel_loss),
}
spectral = pytest.mark.parametrize(("loss", "slow_loss"), SPECTRAL.values(), ids=SPECTRAL.keys())


def waveform_only(generated, real, sampling_rate, lengths=None):
    return waveform_loss(generated, real, lengths)


every_loss = pytest.mark.parametrize(
    "loss", [waveform_only, spectral_convergence, log_magnitude, mel_loss], ids=["waveform", *SPECTRAL]
)


def pair(clips: int = 1, samples: int = SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    """Real and generated clips, of which the later ones are louder and more alike."""
    real = torch.tensor(noise(clips * samples, 1)).view(clips, samples)
    levels = torch.arange(1.0, clips + 1)[:, None]
    return real * 0.7 + torch.tensor(noise(clips * samples, 2)).view(clips, samples) / levels, real * levels


def tone(frequency: float, samples: int = 12000) -> torch.Tensor:
    """A tone that swells and fades: no click whose spectrum is everywhere."""
    time = torch.arange(samples, dtype=torch.float64)
    envelope = torch.hann_window(samples, dtype=torch.float64)
    return (0.1 * envelope * torch.sin(2 * math.pi * frequency / RATE * time)).float()[None]


# -- each equation, once more in numpy


@spectral
@pytest.mark.parametrize(("bandwidth", "gain_above"), [(None, 0.0), (8000.0, 0.3), (3100.0, 0.0), (12000.0, 0.0)])
def test_spectral_losses_equal_the_slow_ones(loss, slow_loss, bandwidth, gain_above):
    generated, real = pair()
    bandwidths = None if bandwidth is None else torch.tensor([bandwidth])
    fast = loss(generated, real, RATE, bandwidth_hz=bandwidths, gain_above=gain_above)
    slow = slow_loss(generated[0].double().numpy(), real[0].double().numpy(), RATE, bandwidth, gain_above)
    assert fast.item() == pytest.approx(slow, rel=2e-5)


@spectral
def test_gradients_of_spectral_losses_are_those_of_the_slow_ones(loss, slow_loss):
    generated, real = pair(samples=2500)
    generated.requires_grad_()
    loss(generated, real, RATE, bandwidth_hz=torch.tensor([6000.0]), gain_above=0.4).backward()
    # One random direction, and one single sample at the clip's edge.
    for direction in (noise(2500, 3).astype(np.float64), np.eye(1, 2500)[0] * 0.1):
        around = [
            slow_loss(
                generated[0].detach().double().numpy() + step * direction, real[0].double().numpy(), RATE, 6000, 0.4
            )
            for step in (1e-5, -1e-5)
        ]
        derivative = (generated.grad[0].double().numpy() * direction).sum()
        assert derivative == pytest.approx((around[0] - around[1]) / 2e-5, rel=2e-3)


@pytest.mark.parametrize(("rate", "fft_size", "hop", "bands"), [(24000, 1024, 240, 80), (16000, 256, 96, 100)])
def test_log_mel_equals_the_slow_one(rate, fft_size, hop, bands):
    clips = np.stack([noise(SAMPLES), noise(SAMPLES, 1) * 1e-3])  # one near the floor
    fast = log_mel(torch.tensor(clips), rate, fft_size, hop, bands)
    slow = [reference.log_mel(clip.astype(np.float64), rate, fft_size, hop, bands) for clip in clips]
    np.testing.assert_allclose(fast, slow, atol=2e-4)
    if bands == 100:  # too many for the bins: the empty ones are at the floor
        empty = ~reference.triangles(fft_size, bands, rate).any(axis=0)
        assert empty.any()
        assert np.allclose(fast[..., torch.tensor(empty)], math.log(1e-5))


@pytest.mark.parametrize("bandwidth", [500.0, 8000.0, 11950.0])
def test_shape_bandwidth_equals_the_slow_one(bandwidth):
    clip = torch.tensor(noise(SAMPLES))
    clip[-1] = 1.0  # its ringing would come back at the start if it wrapped round
    fast = shape_bandwidth(clip[None], torch.tensor([bandwidth]), RATE, 0.2)[0]
    slow = reference.shape_bandwidth(clip.double().numpy(), bandwidth, RATE, 0.2)
    np.testing.assert_allclose(fast, slow, atol=1e-5)


# -- values to redo by hand


def test_waveform_loss_by_hand():
    generated = torch.tensor([[1.0, -2.0, 9.0], [0.0, 0.5, 0.0]])
    real = torch.tensor([[0.0, 1.0, 4.0], [0.0, 0.0, 1.0]])
    assert waveform_loss(generated, real).item() == pytest.approx((1 + 3 + 5 + 0.5 + 1) / 6)
    assert waveform_loss(generated, real, torch.tensor([2, 3])).item() == pytest.approx((1 + 3 + 0.5 + 1) / 5)


def test_a_change_of_level_by_hand():
    real = torch.tensor(noise(SAMPLES))[None]
    halved = stft_losses(real / 2, real, RATE)
    assert halved["spectral_convergence"].item() == pytest.approx(5 * 0.5, rel=1e-5)
    assert halved["log_magnitude"].item() == pytest.approx(5 * math.log(2), rel=1e-5)
    assert mel_loss(real * 10, real, RATE).item() == pytest.approx(7 * 1.0, rel=1e-5)  # 10 times: one unit of log10
    assert spectral_convergence(torch.zeros_like(real), real, RATE).item() == pytest.approx(
        5 * 1.0, rel=2e-4
    )  # the floor


@every_loss
def test_a_perfect_copy_costs_nothing(loss):
    _, real = pair(2)
    generated = real.clone().requires_grad_()
    value = loss(generated, real, RATE)
    value.backward()
    assert value.item() == pytest.approx(0.0, abs=1e-7)
    assert (generated.grad == 0).all()


def test_adversarial_losses_by_hand():
    real_scores = [torch.tensor([[1.0, 0.5]]), torch.tensor([2.0])]
    generated_scores = [torch.tensor([[0.0, 3.0]]), torch.tensor([0.5])]
    assert generator_adversarial_loss(generated_scores).item() == (1 + 4) / 2 + 0.25
    assert discriminator_loss(real_scores, generated_scores).item() == (0 + 0.25) / 2 + 9 / 2 + 1 + 0.25


def test_feature_matching_by_hand():
    real = [[torch.tensor([1.0, 2.0]), torch.tensor([5.0])], [torch.tensor([[0.0, 0.0, 3.0]])]]
    generated = [[torch.tensor([0.0, 4.0]), torch.tensor([5.5])], [torch.tensor([[0.0, 3.0, 0.0]])]]
    assert feature_matching_loss(real, generated).item() == 3 / 2 + 0.5 + 6 / 3


def test_feature_matching_refuses_different_numbers_of_layers():
    layers = [torch.zeros(1), torch.zeros(1)]
    with pytest.raises(ValueError):
        feature_matching_loss([layers], [layers[:1]])


def test_no_gradient_reaches_the_real_side():
    generated, real = (x.requires_grad_() for x in (torch.ones(1, 600), torch.zeros(1, 600)))
    losses_ = [loss(generated, real, RATE) for loss in (waveform_only, spectral_convergence, log_magnitude, mel_loss)]
    total = sum(losses_) + feature_matching_loss([[real]], [[generated]])
    total.backward()
    assert real.grad is None
    assert generated.grad.abs().sum() > 0


# -- padding and batches


@every_loss
def test_padding_does_not_change_a_loss(loss):
    generated, real = pair()
    alone = loss(generated, real, RATE)
    for padding in (1, 300, 3001):
        rubbish = torch.full((1, padding), 7.0)
        padded = [torch.cat([generated, rubbish], dim=1), torch.cat([real, -rubbish], dim=1)]
        result = loss(*padded, RATE, lengths=torch.tensor([SAMPLES]))
        assert result.item() == pytest.approx(alone.item(), rel=1e-6)


@every_loss
def test_no_gradient_reaches_padding(loss):
    generated, real = pair()
    generated.requires_grad_()
    loss(generated, real, RATE, lengths=torch.tensor([3000])).backward()
    assert (generated.grad[:, 3000:] == 0).all()
    assert (generated.grad[:, 2990:3000] != 0).all()


@every_loss
def test_a_batch_of_equal_lengths_is_the_mean_of_its_clips(loss):
    generated, real = pair(3)
    clips = [loss(generated[i : i + 1], real[i : i + 1], RATE).item() for i in range(3)]
    assert max(clips) > 1.1 * min(clips)
    assert loss(generated, real, RATE).item() == pytest.approx(np.mean(clips), rel=1e-5)


@spectral
def test_clips_of_different_bandwidths_weigh_alike(loss, slow_loss):
    generated, real = pair(3)
    bandwidths = torch.tensor([4000.0, 8000.0, 12000.0])
    clips = [
        loss(generated[i : i + 1], real[i : i + 1], RATE, bandwidth_hz=bandwidths[i : i + 1], gain_above=0.1).item()
        for i in range(3)
    ]
    batch = loss(generated, real, RATE, bandwidth_hz=bandwidths, gain_above=0.1)
    assert batch.item() == pytest.approx(np.mean(clips), rel=1e-5)


def test_longer_clips_weigh_more_except_in_the_spectral_convergence():
    generated, real = pair(2, 6144)
    lengths = torch.tensor([6144, 2048])  # whole hops: three times the frames of every resolution
    for loss, weights in [
        (waveform_only, (3, 1)),
        (log_magnitude, (3, 1)),
        (mel_loss, (3, 1)),
        (spectral_convergence, (1, 1)),
    ]:
        clips = [loss(generated[:1], real[:1], RATE).item(), loss(generated[1:, :2048], real[1:, :2048], RATE).item()]
        expected = np.average(clips, weights=weights)
        assert loss(generated, real, RATE, lengths=lengths).item() == pytest.approx(expected, rel=1e-5)


# -- bandwidth


@spectral
def test_energy_above_the_bandwidth_costs_as_much_as_the_gain(loss, slow_loss):
    real = tone(1000.0)
    generated = real + tone(10000.0)

    def cost(bandwidth, gain_above):
        return loss(generated, real, RATE, bandwidth_hz=torch.tensor([bandwidth]), gain_above=gain_above).item()

    full = loss(generated, real, RATE).item()
    assert full > 0.3
    assert cost(12000.0, 0.0) == pytest.approx(full, rel=1e-6)
    assert cost(8000.0, 1.0) == pytest.approx(full, rel=1e-6)
    assert cost(8000.0, 0.0) < 0.04 * full  # what leaks out of short windows
    if loss is spectral_convergence:
        assert cost(8000.0, 0.25) == pytest.approx(0.25 * full, rel=1e-3)
    else:  # a weight in a mean, most of whose weights remain
        assert 0.2 * full < cost(8000.0, 0.25) < 0.4 * full
    # And what lies below costs in any case.
    assert loss(real / 2, real, RATE, bandwidth_hz=torch.tensor([8000.0])).item() > 0.5


def test_shape_bandwidth_scales_what_lies_above():
    low, high = tone(6000.0), tone(10000.0)
    shaped = shape_bandwidth(low + high, torch.tensor([8000.0]), RATE, 0.25)
    torch.testing.assert_close(shaped, low + 0.25 * high, atol=1e-5, rtol=0)


def test_full_band_clips_come_back_unchanged():
    clips = torch.tensor(noise(2000)).view(2, 1000)
    assert shape_bandwidth(clips, torch.tensor([12000.0, 24000.0]), RATE, 0.0) is clips
    mixed = shape_bandwidth(clips, torch.tensor([12000.0, 8000.0]), RATE, 0.0)
    assert torch.equal(mixed[0], clips[0])
    assert (mixed[1] - clips[1]).abs().max() > 0.01


def test_the_gradient_of_shape_bandwidth():
    clip = torch.tensor(noise(1000))[None].requires_grad_()
    direction = torch.tensor(noise(1000, 1))[None]
    weights = torch.tensor(noise(1000, 2))[None]
    (shape_bandwidth(clip, torch.tensor([5000.0]), RATE, 0.1) * weights).sum().backward()
    # Linear, so its derivative along a direction is its value there.
    expected = (shape_bandwidth(direction, torch.tensor([5000.0]), RATE, 0.1) * weights).sum()
    assert (clip.grad * direction).sum().item() == pytest.approx(expected.item(), rel=1e-4)


def test_shape_bandwidth_of_a_padded_clip():
    clip = torch.tensor(noise(SAMPLES))[None]
    padded = torch.nn.functional.pad(clip, (0, 2000))
    bandwidth = torch.tensor([8000])
    alone = shape_bandwidth(clip, bandwidth, RATE, 0.0)
    torch.testing.assert_close(shape_bandwidth(padded, bandwidth, RATE, 0.0)[:, :SAMPLES], alone, atol=3e-6, rtol=0)


# -- delicate inputs


@every_loss
@pytest.mark.parametrize("silent", ["generated", "real", "both"])
def test_silence_gives_finite_gradients(loss, silent):
    generated, real = pair(2)
    if silent in ("generated", "both"):
        generated[0] = 0.0
    if silent in ("real", "both"):
        real[0] = 0.0
    generated.requires_grad_()
    value = loss(generated, real, RATE)
    value.backward()
    assert value.isfinite()
    assert generated.grad.isfinite().all()
    assert generated.grad[1].abs().sum() > 0


def test_silence_does_not_outweigh_speech():
    """A ratio to digital silence would be infinite: it is one to noise of -40 dB instead."""
    silence = torch.zeros(1, SAMPLES)
    noise_40_db = torch.randn(1, SAMPLES, generator=torch.Generator().manual_seed(0)) * 0.01
    assert spectral_convergence(noise_40_db, silence, RATE).item() == pytest.approx(5.0, rel=0.1)
    assert spectral_convergence(noise_40_db / 10, silence, RATE).item() == pytest.approx(0.5, rel=0.1)


@every_loss
@pytest.mark.parametrize("samples", [SAMPLES, 0])
def test_a_clip_of_no_samples_is_no_reason_for_nan(loss, samples):
    generated, real = pair(2)
    generated.requires_grad_()
    value = loss(generated, real, RATE, lengths=torch.tensor([samples, 0]))
    value.backward()
    assert value.isfinite()
    assert generated.grad.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_are_float32_for_any_input(loss, dtype):
    generated, real = (x.to(dtype) for x in pair())
    value = loss(generated, real, RATE)
    assert value.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert loss(generated, real, RATE).item() == value.item()
    assert value.item() == loss(generated.float(), real.float(), RATE).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_everything_else_is_float32_too(dtype, autocast):
    x = torch.tensor(noise(2400), dtype=dtype)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        mel = log_mel(x, RATE, 512, 128, 40)
        values = [
            mel,
            shape_bandwidth(x, torch.tensor([8000.0]), RATE, 0.5),
            shape_bandwidth(x, torch.tensor([12000.0]), RATE, 0.5),
            generator_adversarial_loss([x]),
            discriminator_loss([x], [x]),
            feature_matching_loss([[x]], [[x]]),
        ]
    assert [value.dtype for value in values] == [torch.float32] * len(values)
    assert torch.equal(mel, log_mel(x.float(), RATE, 512, 128, 40))


def test_an_evaluation_before_training_does_not_spoil_the_caches():
    losses._hann.cache_clear()
    losses._mel_filters.cache_clear()
    generated, _ = pair()
    with torch.inference_mode():
        log_mel(generated, RATE, 1024, 256, 80)
    generated.requires_grad_()
    log_mel(generated, RATE, 1024, 256, 80).sum().backward()
    assert generated.grad.abs().sum() > 0


@every_loss
def test_shapes_that_would_broadcast_are_refused(loss):
    with pytest.raises(ValueError, match=r"one shape.*\(1, 600\).*\(2, 600\)"):
        loss(torch.zeros(1, 600), torch.zeros(2, 600), RATE)
    with pytest.raises(ValueError, match="one shape"):
        loss(torch.zeros(1, 1, 600), torch.zeros(1, 1, 600), RATE)


def test_a_gain_is_from_0_to_1():
    with pytest.raises(ValueError, match=r"gain_above.*1\.5"):
        shape_bandwidth(torch.zeros(1, 100), torch.tensor([8000.0]), RATE, 1.5)


def test_no_second_derivative():
    """It would be wrong, so there is none."""
    generated, real = pair()
    generated.requires_grad_()
    (gradient,) = torch.autograd.grad(log_magnitude(generated, real, RATE), generated, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_bands_without_a_valid_bin_count_for_nothing():
    """Below 50 Hz lies no bin of a short window."""
    generated, real = pair()
    for bandwidth in (None, torch.tensor([50.0])):
        assert mel_loss(generated, real, RATE, bandwidth_hz=bandwidth).isfinite()
