"""Pitch of a voice, from spectra."""

import pytest
import torch

from modeling_jepa_daam.pitch import (
    MIN_F0_HZ,
    NUM_CLASSES,
    OCTAVES,
    PitchTracker,
    class_octaves,
    interpolated,
    pitch_hz,
)


@pytest.fixture
def tracker():
    torch.manual_seed(0)
    return PitchTracker(fft_size=1280, sampling_rate=24000)


def test_classes_are_half_a_semitone_apart():
    octaves = class_octaves(torch.zeros(1, dtype=torch.float64))
    assert len(octaves) == NUM_CLASSES
    torch.testing.assert_close(pitch_hz(octaves[0]), torch.tensor(MIN_F0_HZ, dtype=torch.float64))
    torch.testing.assert_close(octaves.diff(), torch.full((NUM_CLASSES - 1,), 0.5 / 12, dtype=torch.float64))


def test_hz_stay_where_voices_are():
    assert pitch_hz(torch.tensor([0.0, 1.0, -9.0, 9.0])).tolist() == pytest.approx(
        [150.0, 300.0, MIN_F0_HZ, MIN_F0_HZ * 2**OCTAVES]
    )


def test_pitch_lies_between_the_classes_around_the_likeliest(tracker):
    """What two neighbours share lies between them; what is said an octave away does not count."""
    logits = torch.full((NUM_CLASSES, 30), -20.0)
    logits[40:42] = 5.0
    logits[64] = 4.9
    tracker.scores = lambda power: (logits[None], torch.full((1, 30), 9.0))
    octaves, voiced = tracker(torch.ones(1, 641, 30))
    expected = class_octaves(logits)[40:42].mean().item()
    assert octaves.flatten().tolist() == pytest.approx([expected] * 30, rel=0.01, abs=1e-3)
    assert voiced.min() > 0.99


def test_of_equals_the_one_in_the_middle_is_taken(tracker):
    tracker.scores = lambda power: (torch.zeros(1, NUM_CLASSES, 30), torch.full((1, 30), 9.0))
    assert tracker(torch.ones(1, 641, 30))[0].abs().max() < 0.5 / 12


def test_level_does_not_matter(tracker):
    power = torch.rand(2, 641, 30) + 0.1
    for soft, loud in zip(tracker.scores(power), tracker.scores(100.0 * power), strict=True):
        torch.testing.assert_close(soft, loud, atol=1e-4, rtol=0)


def test_frames_are_tracked_alone(tracker):
    power = torch.rand(3, 641, 30)
    together = tracker(power)
    for frame in range(3):
        for whole, alone in zip(together, tracker(power[frame : frame + 1]), strict=True):
            torch.testing.assert_close(whole[frame : frame + 1], alone)


def test_where_there_is_no_voice_pitch_is_that_of_the_nearest_ones():
    """By hand: spectra 0 and 4 have a voice; in the middle, both are equally far."""
    pitch, voiced = torch.tensor([[1.0, 9.0, 9.0, 9.0, 2.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0]])
    found = interpolated(pitch, voiced)[0]
    assert found[2].item() == pytest.approx(1.5, abs=0.1)
    near, far = 0.5**-1.5, 16.5**-1.5
    assert found[0].item() == pytest.approx((near + 2 * far) / (near + far + 1e-3), abs=1e-6)
    assert found.diff().min() > 0.0


def test_without_any_voice_it_is_in_the_middle():
    assert not interpolated(torch.full((1, 30), 1.3), torch.zeros(1, 30)).any()


def test_half_precision_weights_track_in_single(tracker):
    with torch.no_grad():
        for parameter in tracker.parameters():
            parameter.copy_(parameter.half())
    power = torch.rand(1, 641, 30)
    expected = tracker(power)
    for half, single in zip(tracker.half()(power), expected, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, single)
