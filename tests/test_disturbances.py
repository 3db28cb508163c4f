import numpy as np
import pytest

from training.disturbances import (
    BABBLE_VOICES,
    add_babble,
    add_music,
    add_pink_noise,
    add_white_noise,
    change_gain,
    clip_peaks,
    excerpt,
    mix,
    narrow_to_telephone,
    rng_of,
    standard_disturbances,
)

from .conftest import noise

RATE = 24000


def snr_db(samples, disturbed) -> float:
    added = disturbed.astype(np.float64) - samples
    return 10 * np.log10(np.mean(samples.astype(np.float64) ** 2) / np.mean(added**2))


def tone(frequency: float, seconds: float = 1.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32)


@pytest.mark.parametrize("wanted", [20, 10, 0])
def test_signal_to_noise_ratios_are_those_asked_for(speech, wanted):
    voices = [noise(30000, seed) for seed in range(BABBLE_VOICES)]
    for disturbed in (
        add_white_noise(speech, rng_of("a"), wanted),
        add_pink_noise(speech, rng_of("a"), wanted, RATE),
        add_babble(speech, rng_of("a"), wanted, voices),
        add_music(speech, rng_of("a"), wanted, [tone(440)]),
    ):
        assert disturbed.shape == speech.shape
        assert disturbed.dtype == np.float32
        assert snr_db(speech, disturbed) == pytest.approx(wanted, abs=0.01)


def octave_powers_db(samples: np.ndarray) -> np.ndarray:
    """Power from 100 Hz up to 6400 Hz, octave by octave."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    octaves = np.floor(np.log2(np.maximum(np.fft.rfftfreq(len(samples), 1 / RATE), 1) / 100))
    return 10 * np.log10([power[octaves == octave].sum() for octave in range(6)])


def test_pink_noise_is_as_strong_in_every_octave_and_white_noise_doubles():
    clip = noise(20 * RATE)
    pink = octave_powers_db(add_pink_noise(clip, rng_of("a"), 0, RATE) - clip)
    white = octave_powers_db(add_white_noise(clip, rng_of("a"), 0) - clip)
    np.testing.assert_allclose(np.diff(pink), 0.0, atol=0.5)
    np.testing.assert_allclose(np.diff(white), 10 * np.log10(2), atol=0.5)


def test_noise_depends_on_the_name_alone(speech):
    same, again, other = (add_white_noise(speech, rng_of(name), 10) for name in ("a", "a", "b"))
    assert (same == again).all()
    assert (same != other).any()
    louder = add_white_noise(speech, rng_of("a"), 0)  # of the same noise
    np.testing.assert_allclose(louder - speech, (same - speech) * np.sqrt(10), atol=1e-5)


def test_babble_is_of_all_voices_and_equally_loud():
    frequencies = 300 * (1 + np.arange(BABBLE_VOICES))
    voices = [tone(f) * gain for f, gain in zip(frequencies, np.geomspace(0.01, 1, BABBLE_VOICES), strict=True)]
    clip = noise(RATE)
    spectrum = np.abs(np.fft.rfft(add_babble(clip, rng_of("a"), -40, voices) - clip))
    peaks = spectrum[frequencies]  # bins of 1 Hz
    assert peaks.min() > 0.95 * peaks.max()
    assert peaks.min() > 10 * np.delete(spectrum, frequencies).max()


def test_an_excerpt_starts_over_where_its_source_ends():
    source = np.arange(1, 6, dtype=np.float32)
    part = excerpt(source, 12, rng_of("a"))
    assert ((np.diff(part) == 1) | (np.diff(part) == -4)).all()
    assert len(part) == 12


def test_the_telephone_passes_its_band_alone(speech):
    low, high = (narrow_to_telephone(tone(f), rng_of("a"), RATE)[2400:-2400] for f in (1000, 5000))
    np.testing.assert_allclose(low, tone(1000)[2400:-2400], atol=1e-3)
    assert np.abs(high).max() < 1e-3
    for samples in (speech, speech[:1001]):  # 1001 samples are no whole number at 8 kHz
        assert narrow_to_telephone(samples, rng_of("a"), RATE).shape == samples.shape


def test_clipping_and_gain_by_hand():
    samples = np.array([-0.8, -0.1, 0.0, 0.19, 0.3], np.float32)
    np.testing.assert_allclose(clip_peaks(samples, rng_of("a")), [-0.2, -0.1, 0.0, 0.19, 0.2], rtol=1e-6)
    np.testing.assert_allclose(change_gain(samples, rng_of("a"), 20), 10 * samples, rtol=1e-6)
    np.testing.assert_allclose(change_gain(samples, rng_of("a"), -20), samples / 10, rtol=1e-6)
    assert (change_gain(samples, rng_of("a"), 0) == samples).all()


def test_silence_cannot_be_mixed_in(speech):
    with pytest.raises(ValueError, match="`added` must not be silent"):
        mix(speech, np.zeros_like(speech), 10)
    with pytest.raises(ValueError, match="10 samples from sample [0-4] on are silent"):
        add_music(speech[:10], rng_of("a"), 10, [np.zeros(5, np.float32)])


def test_babble_and_music_need_something_to_mix_in(speech):
    without = standard_disturbances(RATE, others=[speech] * (BABBLE_VOICES - 1))
    complete = standard_disturbances(RATE, others=[speech] * BABBLE_VOICES, music=[tone(440)])
    assert set(complete) - set(without) == {"babble, 10 dB", "music, 10 dB"}
    for disturb in complete.values():
        disturbed = disturb(speech, rng_of("a"))
        assert (disturbed.shape, disturbed.dtype) == (speech.shape, np.float32)
        assert (disturbed != speech).any()
