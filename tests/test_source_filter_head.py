"""Harmonics of a pitch, and noise, shaped by magnitudes."""

import math

import numpy as np
import pytest
import torch

from modeling_jepa_daam.source_filter_head import HIGHEST_HARMONIC, SourceFilterHead, harmonics, noise

HOP, RATE = 9600, 24000


def constant_pitch(hz: float, frames: int = 3) -> torch.Tensor:
    return torch.full((1, frames, 30), hz, dtype=torch.float64)


@pytest.mark.parametrize("hz", [55.0, 150.0, 500.0])
def test_harmonics_are_a_sum_of_cosines(hz):
    """Of pitches that have a whole number of periods a frame: phases go on from frame to frame."""
    found = harmonics(constant_pitch(hz), HOP, RATE).flatten()
    angle = 2 * torch.pi * hz / RATE * torch.arange(1, 3 * HOP + 1, dtype=torch.float64)
    count = math.floor(HIGHEST_HARMONIC * RATE / hz)
    expected = sum((k * angle).cos() for k in range(1, count + 1))
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert found.max() == count  # at whole periods, where the closed form has no value


def test_any_pitch_is_moved_to_the_nearest_whole_number_of_periods():
    torch.testing.assert_close(harmonics(constant_pitch(151.2), HOP, RATE), harmonics(constant_pitch(150.0), HOP, RATE))
    torch.testing.assert_close(harmonics(constant_pitch(151.3), HOP, RATE), harmonics(constant_pitch(152.5), HOP, RATE))


def test_a_gliding_pitch_has_no_steps():
    """A crest a period, as far from the last one as the pitch says, across the borders of frames."""
    glide = torch.linspace(100.0, 200.0, 90, dtype=torch.float64).view(1, 3, 30)
    loud = np.flatnonzero(harmonics(glide, HOP, RATE).flatten().numpy() > 30.0)
    crests = np.array([group.mean() for group in np.split(loud, np.flatnonzero(np.diff(loud) > 5) + 1)])
    assert len(crests) == 1 + 180  # periods
    middles = (crests[:-1] + crests[1:]) / 2
    wanted = RATE / np.interp(middles, np.arange(90) * 320 + 160, glide.flatten().numpy())
    np.testing.assert_allclose(np.diff(crests), wanted, rtol=0.02)


def test_noise_is_white_and_another_one_for_other_latents():
    latents = (torch.randint(0, 4, (1, 128, 50), generator=torch.Generator().manual_seed(0)) * 2 - 3) / 4
    latents[..., 7] = latents[..., 3]
    sound = noise(latents, HOP)
    assert sound.shape == (1, 50, HOP)
    assert sound.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(sound[0, 7], sound[0, 3])
    correlation = np.corrcoef(sound[0, :7].numpy())
    assert np.abs(correlation - np.eye(7)).max() < 0.1


def head_that_passes(which: int) -> SourceFilterHead:
    head = SourceFilterHead(4, 320, RATE).eval()
    torch.nn.init.zeros_(head.project.weight)
    torch.nn.init.constant_(head.project.bias, -30.0)
    head.project.bias.data[which * 641 : (which + 1) * 641] = math.log(2.0)
    return head


def test_gains_are_magnitudes_of_spectra():
    """A harmonic of gain 2 has an amplitude of 2 / 320 (half the sum of the window); noise, a mean of 2."""
    voiced, latents = torch.ones(1, 3, 30), torch.full((1, 128, 3), 0.25)
    for which in (0, 1):
        head = head_that_passes(which)
        sources = head.spectra(constant_pitch(375.0).float(), voiced, latents, None)
        waveform = head(torch.zeros(1, 4, 90), None, sources)
        assert waveform.shape == (1, 1, 3 * HOP)
        spectrum = torch.stft(waveform[0], 1280, 320, window=torch.hann_window(1280), return_complex=True).abs()
        found = spectrum[0, 20:21, 5:-5] if which == 0 else spectrum[0, 5:400, 5:-5]  # bin 20 is the first harmonic
        assert found.mean().item() == pytest.approx(2.0, rel=0.02)


def test_without_a_voice_there_are_no_harmonics():
    head = head_that_passes(0)
    voiced = torch.zeros(1, 3, 30)
    voiced[:, 2] = 1.0
    sources = head.spectra(constant_pitch(200.0).float(), voiced, torch.zeros(1, 128, 3), None)
    waveform = head(torch.zeros(1, 4, 90), None, sources)[0, 0]
    assert waveform[: HOP * 3 // 2].abs().max() < 1e-6
    assert waveform[-HOP:].abs().max() > 0.05


def test_what_is_too_loud_is_clipped_and_can_still_become_softer():
    head = head_that_passes(0)
    head.project.bias.data[:641] = 6.0
    sources = head.spectra(constant_pitch(200.0).float(), torch.ones(1, 3, 30), torch.zeros(1, 128, 3), None)
    clipped = head(torch.zeros(1, 4, 90), None, sources)
    assert clipped.abs().max() == 1.0
    too_loud = head.train()(torch.zeros(1, 4, 90), None, sources)
    torch.testing.assert_close(too_loud.clamp(-1.0, 1.0), clipped)
    too_loud.square().sum().backward()
    assert head.project.bias.grad[10:100].abs().max() > 0.1
