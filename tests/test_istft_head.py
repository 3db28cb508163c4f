import math

import numpy as np
import pytest
import torch

from modeling_jepa_daam.istft_head import InverseStftHead


@pytest.fixture
def head():
    torch.manual_seed(0)
    return InverseStftHead(channels=6, hop_length=15).double()


def spectrogram(waveform, hop, fft_size):
    """Magnitude and phase of centred frames, by numpy: what the head would have to predict."""
    before = (fft_size - hop) // 2
    padded = np.pad(waveform, (before, fft_size))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(fft_size) / fft_size)
    frames = [padded[n * hop : n * hop + fft_size] * window for n in range(len(waveform) // hop)]
    spectrum = np.fft.rfft(np.stack(frames), axis=1).T
    return np.abs(spectrum), np.angle(spectrum)


def test_the_spectrogram_of_a_waveform_gives_the_waveform_back():
    """Ends included: there, fewer windows overlap."""
    hop = 16
    waveform = np.random.default_rng(0).uniform(-0.5, 0.5, 20 * hop)
    magnitude, phase = (torch.from_numpy(part)[None] for part in spectrogram(waveform, hop, 4 * hop))
    restored = InverseStftHead(6, hop).synthesize(magnitude.log(), phase)
    np.testing.assert_allclose(restored[0, 0].numpy(), waveform, atol=1e-7)


def test_a_full_scale_tone_passes_and_can_still_be_learned():
    hop = 320
    tone = np.sin(2 * np.pi * 200 / 24000 * np.arange(20 * hop))
    magnitude, phase = (torch.from_numpy(part)[None] for part in spectrogram(tone, hop, 4 * hop))
    log_magnitude = magnitude.log().requires_grad_()
    restored = InverseStftHead(6, hop).synthesize(log_magnitude, phase)
    np.testing.assert_allclose(restored[0, 0].detach().numpy(), tone, atol=1e-6)
    (0.5 * restored).square().sum().backward()
    loudest = magnitude[0, :, 10].argmax()
    assert log_magnitude.grad[0, loudest, 10].abs() > 1.0


def test_what_is_too_loud_is_clipped_and_can_still_become_softer(head):
    features = torch.randn(1, 6, 30, dtype=torch.float64)
    head.project.bias.data[:31] = math.log(60.0)
    with torch.no_grad():
        clipped = head.eval()(features)
        assert clipped.abs().max() == 1.0
        assert (clipped.abs() < 1.0).any()
    too_loud = head.train()(features)
    assert too_loud.abs().max() > 1.5
    torch.testing.assert_close(too_loud.clamp(-1.0, 1.0), clipped)
    energy = too_loud.square().sum()
    energy.backward()
    with torch.no_grad():
        head.project.bias -= 1e-4 * head.project.bias.grad
    assert head(features).square().sum() < 0.99 * energy


def test_padding_does_not_change_valid_samples(head):
    features = torch.randn(2, 6, 12, dtype=torch.float64)
    mask = torch.ones(2, 1, 12, dtype=torch.bool)
    mask[1, :, 5:] = False
    padded = head(features, mask)
    torch.testing.assert_close(padded[:1], head(features[:1]))
    torch.testing.assert_close(padded[1:, :, : 5 * 15], head(features[1:, :, :5]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_gives_the_dtype_that_it_takes_and_finite_gradients(dtype):
    torch.manual_seed(0)
    head = InverseStftHead(6, 16).to(dtype)
    features = torch.randn(1, 6, 4, dtype=dtype, requires_grad=True)
    head.project.bias.data[0], head.project.bias.data[1] = 200.0, -200.0  # exp of these is infinite, and zero
    waveform = head(features)
    assert waveform.dtype == dtype
    waveform.float().square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in head.parameters())
