import importlib.util
import math
import random
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch

from modeling_jepa_daam.packing import group_vocabulary_sizes, pack_frames
from training import quality
from training.quality import (
    best_constant_mel_distance,
    mean_quality,
    reconstruction_quality,
    si_sdr_db,
    spectrogram_figure,
    token_statistics,
)

from .conftest import ROOT, noise

RATE = 24000
FIGURES = {"stoi", "estoi", "mel_distance", "si_sdr_db"}


@pytest.fixture
def other_speech() -> np.ndarray:
    return soundfile.read(ROOT / "tests" / "audio" / "1688-142285-0002.flac", dtype="float32")[0]


def test_a_perfect_copy_scores_the_best_there_is(speech):
    figures = reconstruction_quality(speech, speech.copy(), RATE)
    assert set(figures) >= FIGURES
    assert figures["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert figures["estoi"] == pytest.approx(1.0, abs=1e-6)
    assert figures["mel_distance"] == 0.0
    assert figures["si_sdr_db"] == quality.MAX_SI_SDR_DB


def test_pesq_of_a_perfect_copy_and_of_noise(speech):
    pytest.importorskip("pesq")
    assert reconstruction_quality(speech, speech.copy(), RATE)["pesq"] == pytest.approx(4.644, abs=1e-3)
    assert reconstruction_quality(speech, noise(len(speech)), RATE)["pesq"] < 1.1


def test_every_figure_falls_as_noise_rises(speech):
    results = [reconstruction_quality(speech, speech + g * noise(len(speech)), RATE) for g in (0.003, 0.03, 0.3)]
    for key in set(results[0]):
        values = [result[key] for result in results]
        assert values == sorted(values, reverse=key != "mel_distance")
        assert len(set(values)) == 3


def test_the_figures_are_those_of_the_packages_at_16_khz(speech):
    # As the published tables are made: both sides at 16 kHz, pesq(16000, r, d, "wb") and stoi(r, d, 16000).
    from pystoi import stoi

    decoded = speech + 0.05 * noise(len(speech))
    figures = reconstruction_quality(speech, decoded, RATE)
    sides = [soxr.resample(side, RATE, 16000) for side in (speech, decoded)]
    assert figures["stoi"] == pytest.approx(stoi(*sides, 16000), abs=2e-3)
    assert figures["estoi"] == pytest.approx(stoi(*sides, 16000, extended=True), abs=2e-3)
    assert figures["stoi"] - figures["estoi"] > 0.02  # that is, not the same figure twice
    if importlib.util.find_spec("pesq"):
        from pesq import pesq

        assert figures["pesq"] == pytest.approx(pesq(16000, *sides, "wb"), abs=1e-6)


def test_si_sdr_of_orthogonal_noise_is_the_ratio_of_the_energies():
    time = np.arange(RATE) / RATE
    signal = np.sin(2 * np.pi * 440 * time)
    error = 0.1 * np.cos(2 * np.pi * 440 * time)  # orthogonal, 20 dB below
    noisy, orthogonal = np.random.default_rng(0).normal(size=(2, RATE))
    noisy -= noisy.mean()
    orthogonal -= orthogonal.mean()
    orthogonal -= orthogonal @ noisy / (noisy @ noisy) * noisy
    orthogonal *= math.sqrt(noisy @ noisy / (orthogonal @ orthogonal) / 10**1.3)
    assert si_sdr_db(noisy, noisy + orthogonal, RATE) == pytest.approx(13.0, abs=1e-6)
    assert si_sdr_db(noisy, 7 * (noisy + orthogonal) + 3, RATE) == pytest.approx(13.0, abs=1e-6)  # scale, offset
    assert si_sdr_db(noisy, -(noisy + orthogonal), RATE) == pytest.approx(13.0, abs=1e-6)  # polarity
    # Their sum is a sine that comes atan(0.1) early, and a sample is 0.1152 of phase: shifted by one, 0.0155 remain.
    step = 2 * np.pi * 440 / RATE
    expected = -20 * math.log10(math.tan(step - math.atan(0.1)))
    assert si_sdr_db(signal, signal + error, RATE) == pytest.approx(expected, abs=0.01)
    assert si_sdr_db(signal, np.zeros(RATE), RATE) == -quality.MAX_SI_SDR_DB


@pytest.mark.parametrize("lag", [-480, -37, 0, 1, 480])
@pytest.mark.parametrize("polarity", [1, -1])
def test_a_copy_that_is_up_to_20_ms_late_or_early_is_aligned(speech, lag, polarity):
    assert si_sdr_db(speech, polarity * np.roll(speech, lag), RATE) > 60


def test_a_copy_that_is_later_than_20_ms_is_not(speech):
    assert si_sdr_db(speech, np.roll(speech, 600), RATE) < 5


def test_polarity_matters_to_no_figure(speech):
    decoded = speech + 0.05 * noise(len(speech))
    assert reconstruction_quality(speech, -decoded, RATE) == pytest.approx(
        reconstruction_quality(speech, decoded, RATE), abs=1e-4
    )


def test_the_mel_distance_of_half_the_amplitude_is_log_2(speech):
    assert quality._log_mel(speech, RATE).shape == (math.ceil(len(speech) / 240), 80)
    loud = speech + noise(len(speech))  # far from the floor in every band
    assert reconstruction_quality(loud, loud / 2, RATE)["mel_distance"] == pytest.approx(math.log(2), abs=1e-3)


def test_bands_above_the_bandwidth_do_not_count(speech):
    low = soxr.resample(soxr.resample(speech, RATE, 8000), 8000, RATE)[: len(speech)]
    full, narrow = (reconstruction_quality(speech, low, RATE, limit)["mel_distance"] for limit in (None, 3000.0))
    assert narrow < 0.05 < 0.5 < full
    assert reconstruction_quality(speech, low, RATE, RATE / 2)["mel_distance"] == full
    with pytest.raises(ValueError, match="bandwidth_hz"):
        reconstruction_quality(speech, low, RATE, 0.0)


@pytest.mark.parametrize("frequency", [300.0, 1000.0, 3500.0, 9000.0])
def test_band_centres_are_those_of_the_mel_spectrogram(frequency):
    tone = np.sin(2 * np.pi * frequency * np.arange(RATE) / RATE).astype(np.float32)
    loudest = quality._log_mel(tone, RATE)[10:-10].mean(axis=0).argmax()
    # Up to that band's centre, it counts; a bandwidth one step (about 1/20 octave) lower leaves it out.
    assert quality._bands(RATE, frequency * 1.06 + 20)[loudest]
    assert not quality._bands(RATE, frequency / 1.06 - 20)[loudest]


def test_figures_that_a_clip_does_not_have_are_left_out(speech):
    silence = np.zeros(RATE, np.float32)
    assert reconstruction_quality(silence, speech[:RATE], RATE).keys() == {"mel_distance"}
    assert reconstruction_quality(silence, silence, RATE) == {"mel_distance": 0.0}
    lost = reconstruction_quality(speech, np.zeros_like(speech), RATE)
    assert lost.keys() == FIGURES
    assert lost["stoi"] == pytest.approx(0.0, abs=0.01)
    assert lost["si_sdr_db"] == -quality.MAX_SI_SDR_DB
    click = np.zeros(RATE, np.float32)
    click[9] = 1.0
    assert si_sdr_db(click, np.zeros(RATE), RATE) == -quality.MAX_SI_SDR_DB
    short = speech[RATE : RATE + 2400]
    assert reconstruction_quality(short, short, RATE).keys() == {"mel_distance", "si_sdr_db"}
    mostly_silent = np.concatenate([short, np.zeros(RATE, np.float32)])
    assert "stoi" not in reconstruction_quality(mostly_silent, mostly_silent, RATE)


def test_without_pesq_the_figure_is_absent_and_a_constant_says_so(speech, monkeypatch):
    assert bool(quality.PESQ_MISSING) == (importlib.util.find_spec("pesq") is None)
    find_spec = importlib.util.find_spec
    spec = importlib.util.spec_from_file_location("training.quality_without_pesq", quality.__file__)
    without = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pesq" else find_spec(name))
    monkeypatch.setitem(sys.modules, "pesq", None)  # importing it fails
    spec.loader.exec_module(without)
    assert without.PESQ_MISSING == "no PESQ figures: the package pesq is not installed"
    assert without.reconstruction_quality(speech, speech, RATE).keys() == FIGURES


def test_no_random_numbers_of_the_training_are_used(speech):
    decoded = speech + noise(len(speech))
    draws, results = [], []
    for evaluate in (True, False):
        np.random.seed(5)
        random.seed(5)
        torch.manual_seed(5)
        if evaluate:
            results.append(reconstruction_quality(speech, decoded, RATE))
        draws.append((np.random.random(), random.random(), torch.rand(()).item()))
    assert draws[0] == draws[1]
    assert reconstruction_quality(speech, decoded, RATE) == results[0]


@pytest.mark.parametrize(
    ("reconstructed", "message"),
    [
        (np.zeros(RATE - 1, np.float32), "`reconstructed` must be mono, as long"),
        (np.zeros((RATE, 1), np.float32), "`reconstructed` must be mono, as long"),
        (np.full(RATE, np.nan, np.float32), "`reconstructed` must be finite"),
    ],
)
def test_what_is_no_clip_is_refused(reconstructed, message):
    with pytest.raises(ValueError, match=message):
        reconstruction_quality(np.zeros(RATE, np.float32), reconstructed, RATE)


def test_a_clip_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match=r"at least 0\.1 s"):
        reconstruction_quality(np.zeros(2399, np.float32), np.zeros(2399, np.float32), RATE)


def constant_distance(clips: list[np.ndarray], bands: list[np.ndarray], constant: np.ndarray) -> float:
    spectra = [quality._log_mel(clip, RATE) for clip in clips]
    return float(np.mean([np.abs(s - constant)[:, b].mean() for s, b in zip(spectra, bands, strict=True)]))


@pytest.mark.parametrize("bandwidths", [None, [4000.0, None]])
def test_no_other_constant_beats_the_best(speech, other_speech, bandwidths, rng):
    clips = [speech, other_speech]
    bands = [quality._bands(RATE, limit) for limit in bandwidths or [None, None]]
    best = best_constant_mel_distance(clips, RATE, bandwidths)
    frames = np.concatenate([quality._log_mel(clip, RATE) for clip in clips])
    median = np.median(frames, axis=0)
    others = [median, frames.mean(axis=0), *(np.quantile(frames, q, axis=0) for q in (0.4, 0.45, 0.55, 0.6))]
    others += [median + rng.normal(scale=0.05, size=80) for _ in range(20)]
    distances = [constant_distance(clips, bands, other) for other in others]
    assert best < min(distances)
    assert best == pytest.approx(distances[0], rel=0.02)  # the plain median is near: the clips are almost as long


def test_the_best_constant_of_clips_of_one_length_is_the_median(speech):
    clips = [speech[:RATE], speech[RATE : 2 * RATE], speech[2 * RATE : 3 * RATE]]
    median = np.median(np.concatenate([quality._log_mel(clip, RATE) for clip in clips]), axis=0)
    expected = constant_distance(clips, [np.ones(80, bool)] * 3, median)
    assert best_constant_mel_distance(clips, RATE) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="zip"):
        best_constant_mel_distance(clips, RATE, [4000.0])


def test_a_figure_is_averaged_over_the_clips_that_have_it():
    means = mean_quality([{"pesq": 2.0, "stoi": 0.8}, {"stoi": 0.6}, {"pesq": 3.0, "stoi": 0.1}])
    assert means == {"clips/pesq": 2.0, "clips/stoi": 3.0, "pesq": 2.5, "stoi": pytest.approx(0.5)}
    assert mean_quality([]) == {}


def test_token_statistics_of_a_hand_made_matrix():
    levels = (4, 4, 4)
    # Uniform, dead, and three times one value: 2 bits, 0 bits, 2 - 0.75 log2(3) bits.
    indices = np.array([[0, 2, 1], [1, 2, 1], [2, 2, 1], [3, 2, 0]])
    tokens = pack_frames(torch.tensor(indices), levels, 2)  # (2, 6, 10, 14) and (1, 1, 1, 0)
    figures = token_statistics(indices, levels, tokens, group_vocabulary_sizes(levels, 2))
    skewed = 2 - 0.75 * math.log2(3)
    assert figures == pytest.approx(
        {
            "digit_entropy_bits": (2 + 0 + skewed) / 3,
            "digit_entropy_bits_min": 0.0,
            "digits_never_change": 1.0,
            "digit_change_share": (3 + 0 + 1) / 9,
            "token_entropy_bits": (2 + skewed) / 2,
            "vocab_used_share": 4 / 16,
        }
    )
    assert all(type(value) is float for value in figures.values())
    tensors = token_statistics(torch.tensor(indices), levels, tokens.numpy(), group_vocabulary_sizes(levels, 2))
    assert tensors == figures


def test_entropies_reach_their_bounds_and_no_more(rng):
    levels = (4,) * 14
    indices = torch.tensor(rng.integers(0, 4, (64, 14)))
    tokens = pack_frames(indices, levels, 7)
    figures = token_statistics(indices, levels, tokens, group_vocabulary_sizes(levels, 7))
    assert 1.8 < figures["digit_entropy_bits_min"] < figures["digit_entropy_bits"] < 2.0
    assert 5.9 < figures["token_entropy_bits"] <= 6.0  # 64 frames, though a token holds 14 bits
    assert 0.9 * 128 / 16384 < figures["vocab_used_share"] <= 128 / 16384
    assert figures["digit_change_share"] == pytest.approx(0.75, abs=0.05)
    assert "digit_change_share" not in token_statistics(
        indices[:1], levels, tokens[:1], group_vocabulary_sizes(levels, 7)
    )


@pytest.mark.parametrize(
    ("indices", "tokens"),
    [
        ([[0, 4]], [[0]]),
        ([[0, 0, 0]], [[0]]),
        ([[0, 0]], [[16]]),
        ([[0, 0]], [[0], [0]]),
        (np.zeros((0, 2), int), np.zeros((0, 1), int)),
    ],
)
def test_statistics_of_what_no_quantizer_gives_are_refused(indices, tokens):
    with pytest.raises(ValueError, match=r"indices|tokens|frames"):
        token_statistics(np.array(indices), (4, 4), np.array(tokens), [16])


def test_the_picture_shows_both_clips_on_one_scale(speech):
    same = spectrogram_figure(speech, speech, RATE, "step 5, $ is no formula")
    quiet = spectrogram_figure(speech, speech * 0.01, RATE, "step 5, $ is no formula")
    assert same.dtype == np.uint8
    assert same.ndim == 3
    assert same.shape[2] == 3
    middle = len(same) // 2
    changed = (same != quiet).any(axis=(1, 2))
    assert not changed[: middle - 60].any()  # the original above is as it was
    assert changed[middle + 60 :].any()  # the reconstruction below is darker, not brought to the same range
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
