import numpy as np
import pytest
import torch

from training.augmentation import change_level, change_speed

RATE = 24000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def tone(frequency, samples):
    return torch.sin(2 * torch.pi * frequency / RATE * torch.arange(samples)) * torch.hann_window(samples)


def test_each_clip_gets_a_level_of_its_own_within_the_range():
    samples = torch.full((500, 10), 0.1)
    gains_db = 20 * (change_level(samples, (-12.0, 6.0), generator())[:, 0] / 0.1).log10()
    assert -12.0 <= gains_db.min() < -11.0
    assert 5.0 < gains_db.max() <= 6.001
    assert len(gains_db.unique()) > 400


def test_no_clip_becomes_louder_than_full_scale():
    samples = torch.tensor([[0.9, -0.2], [1.4, 0.1], [0.0, 0.0]])
    louder = change_level(samples, (20.0, 20.0), generator())
    torch.testing.assert_close(louder, torch.tensor([[1.0, -0.2 / 0.9], [1.4, 0.1], [0.0, 0.0]]))
    softer = change_level(samples, (-20.0, -20.0), generator())
    torch.testing.assert_close(softer, samples / 10)


@pytest.mark.parametrize("speed", [0.8, 1.0, 1.25])
def test_a_tone_played_faster_is_a_higher_and_shorter_one(speed):
    samples, lengths = torch.zeros(2, 24000), torch.tensor([24000, 12000])
    samples[0], samples[1, :12000] = tone(1000.0, 24000), tone(500.0, 12000)
    changed, new_lengths, bandwidth_hz = change_speed(
        samples, lengths, torch.tensor([8000.0, 4000.0]), (speed, speed), generator()
    )
    assert changed.shape[-1] == new_lengths.max()
    torch.testing.assert_close(new_lengths.float(), lengths / speed, rtol=0.01, atol=0)  # sizes that an FFT likes
    played = float(lengths[0] / new_lengths[0])
    torch.testing.assert_close(bandwidth_hz, played * torch.tensor([8000.0, 4000.0]), rtol=1e-3, atol=0)
    for row, length, frequency in zip(changed, new_lengths.tolist(), (1000.0, 500.0), strict=True):
        expected = tone(frequency * played, length)
        np.testing.assert_allclose(row[:length].numpy(), expected.numpy(), atol=0.02)
        assert not row[length:].any()


def test_speeds_are_drawn_from_the_range():
    lengths = [
        int(
            change_speed(
                torch.zeros(1, 48000), torch.tensor([48000]), torch.tensor([8000.0]), (0.8, 1.25), generator(s)
            )[1]
        )
        for s in range(50)
    ]
    assert 48000 / 1.27 < min(lengths) < 48000 / 1.1
    assert 48000 / 0.9 < max(lengths) < 48000 / 0.79
