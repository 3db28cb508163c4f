import functools
import importlib.util
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import soxr
import torch

from modeling_jepa_daam.packing import group_vocabulary_sizes, pack_frames, unpack_frames
from training import losses, reconstruction
from training.metrics.codec_quality import clip_quality, spectra
from training.metrics.codec_quality.alignment import constant_lag, remove_lag
from training.metrics.token_statistics.frame_statistics import place_statistics, unpack_digits
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
DISTANCES = {"mel_distance", "mr_stft_distance"}
FIGURES = {"stoi", "estoi", "si_sdr_db", *DISTANCES}


@pytest.fixture
def other_speech() -> np.ndarray:
    return soundfile.read(ROOT / "tests" / "audio" / "1688-142285-0002.flac", dtype="float32")[0]


def test_a_perfect_copy_scores_the_best_there_is(speech):
    figures = reconstruction_quality(speech, speech.copy(), RATE)
    assert set(figures) >= FIGURES
    assert figures["stoi"] == pytest.approx(1.0, abs=1e-6)
    assert figures["estoi"] == pytest.approx(1.0, abs=1e-6)
    assert figures["mel_distance"] == figures["mr_stft_distance"] == 0.0
    assert figures["si_sdr_db"] == clip_quality.MAX_SI_SDR_DB


def test_pesq_of_a_perfect_copy_and_of_noise(speech):
    pytest.importorskip("pesq")
    assert reconstruction_quality(speech, speech.copy(), RATE)["pesq"] == pytest.approx(4.644, abs=1e-3)
    assert reconstruction_quality(speech, noise(len(speech)), RATE)["pesq"] < 1.1


def test_a_silent_reconstruction_has_the_lowest_pesq_and_not_none(speech):
    pytest.importorskip("pesq")
    silence = np.zeros_like(speech)
    quality = functools.partial(reconstruction_quality, sampling_rate=RATE, figures=["pesq"])
    assert quality(speech, silence) == {"pesq": 1.0}
    assert quality(speech, silence)["pesq"] < quality(speech, noise(len(speech)))["pesq"]
    assert quality(silence, silence) == quality(silence, speech) == {}
    short = speech[RATE : RATE + 2400]  # 0.1 s: it has none either way
    assert quality(short, short) == quality(short, short * 0) == {}


def test_pesq_of_a_long_clip_is_the_mean_of_its_pieces(speech):
    pytest.importorskip("pesq")
    quality = functools.partial(reconstruction_quality, sampling_rate=16000, figures=["pesq"])
    at_16_khz = soxr.resample(speech, RATE, 16000)
    original = np.resize(at_16_khz, 45 * 16000)
    original[: 15 * 16000] = 0.0
    decoded = original + np.repeat(np.float32([0.0, 0.003, 0.03]), 15 * 16000) * noise(len(original))
    pieces = [quality(*piece) for piece in zip(np.split(original, 3), np.split(decoded, 3), strict=True)]
    assert pieces[0] == {}  # the silent piece does not count
    assert pieces[1]["pesq"] > pieces[2]["pesq"] + 0.2
    assert quality(original, decoded)["pesq"] == pytest.approx((pieces[1]["pesq"] + pieces[2]["pesq"]) / 2)
    whole = slice(25 * 16000, 45 * 16000)
    expected = importlib.import_module("pesq").pesq(16000, original[whole], decoded[whole], "wb")
    assert quality(original[whole], decoded[whole])["pesq"] == pytest.approx(expected)  # 20 s: one piece


def test_many_pauses_do_not_crash_pesq():
    pytest.importorskip("pesq")
    # 60 bursts, where the package has room for 50: in a process of its own, for it would take this one with it.
    script = """
import numpy as np
from training.quality import reconstruction_quality
bursts = np.random.default_rng(0).normal(0, 0.1, (60, 8000)).astype(np.float32)
bursts[:, 4000:] = 0.0
print(reconstruction_quality(bursts.ravel(), 0.5 * bursts.ravel(), 16000, figures=["pesq"])["pesq"])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) > 4.0


def test_every_figure_falls_as_noise_rises(speech):
    results = [reconstruction_quality(speech, speech + g * noise(len(speech)), RATE) for g in (0.003, 0.03, 0.3)]
    for key in set(results[0]):
        values = [result[key] for result in results]
        assert values == sorted(values, reverse=key not in DISTANCES)
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
    assert si_sdr_db(signal, np.zeros(RATE), RATE) == -clip_quality.MAX_SI_SDR_DB


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
    assert spectra.log_mel(speech, RATE).shape == (math.ceil(len(speech) / 240), 80)
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
    loudest = spectra.log_mel(tone, RATE)[10:-10].mean(axis=0).argmax()
    # Up to that band's centre, it counts; a bandwidth one step (about 1/20 octave) lower leaves it out.
    assert spectra.bands_below(RATE, frequency * 1.06 + 20)[loudest]
    assert not spectra.bands_below(RATE, frequency / 1.06 - 20)[loudest]


def test_figures_that_a_clip_does_not_have_are_left_out(speech):
    silence = np.zeros(RATE, np.float32)
    assert reconstruction_quality(silence, speech[:RATE], RATE).keys() == DISTANCES
    assert reconstruction_quality(silence, silence, RATE) == dict.fromkeys(DISTANCES, 0.0)
    lost = reconstruction_quality(speech, np.zeros_like(speech), RATE)
    assert lost.keys() - {"pesq"} == FIGURES
    assert lost["stoi"] == pytest.approx(0.0, abs=0.01)
    assert lost["si_sdr_db"] == -clip_quality.MAX_SI_SDR_DB
    click = np.zeros(RATE, np.float32)
    click[9] = 1.0
    assert si_sdr_db(click, np.zeros(RATE), RATE) == -clip_quality.MAX_SI_SDR_DB
    short = speech[RATE : RATE + 2400]
    assert reconstruction_quality(short, short, RATE).keys() == {"si_sdr_db", *DISTANCES}
    mostly_silent = np.concatenate([short, np.zeros(RATE, np.float32)])
    assert "stoi" not in reconstruction_quality(mostly_silent, mostly_silent, RATE)


def test_without_pesq_the_figure_is_absent_and_a_constant_says_so(speech, monkeypatch):
    assert bool(clip_quality.PESQ_MISSING) == (importlib.util.find_spec("pesq") is None)
    find_spec = importlib.util.find_spec
    spec = importlib.util.spec_from_file_location(f"{clip_quality.__package__}.without_pesq", clip_quality.__file__)
    without = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pesq" else find_spec(name))
    monkeypatch.setitem(sys.modules, "pesq", None)  # importing it fails
    spec.loader.exec_module(without)
    assert without.PESQ_MISSING == (
        "no PESQ figures: the package pesq is not installed (pip install pesq, which needs a C compiler)"
    )
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
    frames = [spectra.log_mel(clip, RATE) for clip in clips]
    return float(np.mean([np.abs(s - constant)[:, b].mean() for s, b in zip(frames, bands, strict=True)]))


@pytest.mark.parametrize("bandwidths", [None, [4000.0, None]])
def test_no_other_constant_beats_the_best(speech, other_speech, bandwidths, rng):
    clips = [speech, other_speech]
    bands = [spectra.bands_below(RATE, limit) for limit in bandwidths or [None, None]]
    best = best_constant_mel_distance(clips, RATE, bandwidths)
    frames = np.concatenate([spectra.log_mel(clip, RATE) for clip in clips])
    median = np.median(frames, axis=0)
    others = [median, frames.mean(axis=0), *(np.quantile(frames, q, axis=0) for q in (0.4, 0.45, 0.55, 0.6))]
    others += [median + rng.normal(scale=0.05, size=80) for _ in range(20)]
    distances = [constant_distance(clips, bands, other) for other in others]
    assert best < min(distances)
    assert best == pytest.approx(distances[0], rel=0.02)  # the plain median is near: the clips are almost as long


def test_the_best_constant_of_clips_of_one_length_is_the_median(speech):
    clips = [speech[:RATE], speech[RATE : 2 * RATE], speech[2 * RATE : 3 * RATE]]
    median = np.median(np.concatenate([spectra.log_mel(clip, RATE) for clip in clips]), axis=0)
    expected = constant_distance(clips, [np.ones(80, bool)] * 3, median)
    assert best_constant_mel_distance(clips, RATE) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="zip"):
        best_constant_mel_distance(clips, RATE, [4000.0])


def test_a_figure_is_averaged_over_the_clips_that_have_it():
    means = mean_quality([{"pesq": 2.0, "stoi": 0.8}, {"stoi": 0.6}, {"pesq": 3.0, "stoi": 0.1}])
    assert means == {"clips/pesq": 2.0, "clips/stoi": 3.0, "pesq": 2.5, "stoi": pytest.approx(0.5)}
    assert mean_quality([]) == {}


@pytest.mark.parametrize("sampling_rate", [24000, 16000])
def test_the_distances_are_those_of_the_training_losses(speech, sampling_rate):
    decoded = speech + 0.01 * noise(len(speech))
    sides = [torch.from_numpy(side)[None] for side in (decoded, speech)]
    expected = losses.log_mel(sides[1], sampling_rate, spectra.FFT_SIZE, sampling_rate // 100, spectra.NUM_BANDS)[0]
    difference = np.abs(spectra.log_mel(speech, sampling_rate) - expected.numpy())
    assert difference.mean() < 1e-5
    assert difference.max() < 5e-3  # the quietest bands are the rounding of a float32 FFT
    terms = losses.stft_losses(*sides, sampling_rate)
    distance = spectra.mr_stft_distance(speech, decoded, sampling_rate)
    assert distance == pytest.approx(float(sum(terms.values())) / len(losses.STFT_RESOLUTIONS), rel=1e-4)
    assert losses.STFT_RESOLUTIONS == spectra.STFT_RESOLUTIONS


def test_what_lies_above_the_bandwidth_does_not_count_in_stft_distance(speech):
    low = soxr.resample(soxr.resample(speech, RATE, 8000), 8000, RATE)[: len(speech)]
    full, narrow = (spectra.mr_stft_distance(speech, low, RATE, limit) for limit in (None, 3000.0))
    assert narrow < 0.15 < 0.5 < full


def test_only_the_figures_asked_for_are_taken(speech):
    assert reconstruction_quality(speech, speech, RATE, figures=["estoi"]).keys() == {"estoi"}
    with pytest.raises(ValueError, match="`figures` must be among .* got loudness"):
        reconstruction_quality(speech, speech, RATE, figures=["loudness"])


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    """Five speakers, 24 kHz."""
    files = sorted((ROOT / "tests" / "audio" / "librispeech").rglob("*.flac"))
    return [soundfile.read(file, dtype="float32")[0] for file in files]


def test_a_shuffled_pairing_is_clearly_worse(sentences):
    decoded = [clip + 0.02 * noise(len(clip), seed) for seed, clip in enumerate(sentences)]
    matched, shuffled = (
        mean_quality(
            [reconstruction_quality(a, remove_lag(b, 0, len(a)), RATE) for a, b in zip(sentences, other, strict=True)]
        )
        for other in (decoded, decoded[1:] + decoded[:1])
    )
    assert matched["stoi"] > shuffled["stoi"] + 0.4
    assert matched["estoi"] > shuffled["estoi"] + 0.4
    assert matched["si_sdr_db"] > shuffled["si_sdr_db"] + 15
    assert matched["mel_distance"] < shuffled["mel_distance"] - 0.4
    assert matched["mr_stft_distance"] < shuffled["mr_stft_distance"] - 0.4
    if "pesq" in matched:
        assert matched["pesq"] > shuffled["pesq"] + 0.3


def test_against_noise_every_figure_is_at_its_floor(speech):
    floor = reconstruction_quality(speech, noise(len(speech)), RATE)
    assert floor["stoi"] < 0.5  # its floor for stationary noise is not 0
    assert floor["estoi"] < 0.1
    assert floor["si_sdr_db"] < -25
    assert floor["mel_distance"] > 2.5
    assert floor["mr_stft_distance"] > 3


@pytest.mark.parametrize("lag", [-700, 0, 37])
def test_the_delay_of_a_codec_is_found_and_taken_away(sentences, lag):
    late = [remove_lag(clip, -lag, len(clip)) for clip in sentences]
    assert constant_lag(sentences, late, RATE) == lag
    aligned = remove_lag(late[0], lag, len(late[0]))
    np.testing.assert_array_equal(aligned[700:-700], sentences[0][700:-700])
    assert len(aligned) == len(sentences[0])


def test_the_delay_of_a_codec_that_does_not_keep_the_waveform_is_found_by_stoi(sentences, rng):
    def vocoded(clip: np.ndarray) -> np.ndarray:  # the magnitudes of short-time spectra, with random phases
        spectrum = torch.stft(torch.from_numpy(clip), 512, 128, window=torch.hann_window(512), return_complex=True)
        phases = torch.from_numpy(rng.uniform(-np.pi, np.pi, spectrum.shape).astype(np.float32))
        noisy = torch.polar(spectrum.abs(), phases)
        return torch.istft(noisy, 512, 128, window=torch.hann_window(512), length=len(clip)).numpy()

    late = [remove_lag(vocoded(clip), -480, len(clip)) for clip in sentences]
    assert constant_lag(sentences, late, RATE) == pytest.approx(480, abs=90)  # within 4 ms


LEVELS = (4, 4, 4)
SIZES = [16, 4]


def packed(*frames: list[int]) -> np.ndarray:
    return pack_frames(torch.tensor(frames), LEVELS, 2).numpy()


def test_token_statistics_of_a_hand_made_matrix():
    # Uniform, dead, and three times one value: 2 bits, 0 bits, 2 - 0.75 log2(3) bits.
    tokens = packed([0, 2, 1], [1, 2, 1], [2, 2, 1], [3, 2, 0])  # (2, 6, 10, 14) and (1, 1, 1, 0)
    figures = token_statistics([tokens], SIZES, LEVELS, 2, duration_s=2.0)
    skewed = 2 - 0.75 * math.log2(3)
    # Of three pairs, each has a first of its own in the first digit; (1, 1) twice and (1, 0) once in the last.
    given = math.log2(3) - 2 / 3
    expected = {
        "digit_entropy_bits": (2 + 0 + skewed) / 3,
        "digit_entropy_bits_min": 0.0,
        "digits_never_change": 1.0,
        "digit_change_share": (3 + 0 + 1) / 9,
        "digit_conditional_entropy_bits": given / 3,
        "token_entropy_bits": (2 + skewed) / 2,
        "token_repeat_share": 2 / 6,
        "frame_repeat_share": 0.0,
        "vocab_used_share": 4 / 16,
        "bitrate_bps": 4 * 6 / 2,
        "entropy_bitrate_bps": 4 * (2 + skewed) / 2,
    }
    by_place = {"token_entropy_bits_by_place": [2, skewed], "digit_entropy_bits_by_place": [2, 0, skewed]}
    shuffled = figures.pop("digit_conditional_entropy_bits_shuffled")
    # Less what the frame before tells: in bits a digit, shuffled less plain.
    told = 3 * (shuffled - given / 3)
    assert figures.pop("conditional_entropy_bitrate_bps") == pytest.approx(4 * (2 + skewed - told) / 2)
    for key, values in by_place.items():
        assert figures.pop(key) == pytest.approx(values)
    assert figures == pytest.approx(expected)
    assert all(type(value) is float for value in figures.values())
    figures["token_entropy_bits_by_place"] = by_place["token_entropy_bits_by_place"]
    of_tokens = token_statistics([tokens], SIZES)
    assert of_tokens.pop("token_entropy_bits_by_place") == pytest.approx(figures["token_entropy_bits_by_place"])
    assert of_tokens == {key: figures[key] for key in of_tokens}
    assert not any(key.startswith("digit") or key.endswith("bps") for key in of_tokens)


def test_the_frame_before_is_never_one_of_another_clip():
    one, other = packed([0, 0, 0], [0, 0, 0]), packed([3, 3, 3], [3, 3, 3])
    figures = token_statistics([one, other], SIZES, LEVELS, 2)
    assert figures["frame_repeat_share"] == figures["token_repeat_share"] == 1.0
    assert figures["digit_change_share"] == 0.0
    assert figures["digit_entropy_bits"] == 1.0
    assert figures["digit_conditional_entropy_bits"] == 0.0
    joined = token_statistics([np.concatenate([one, other])], SIZES, LEVELS, 2)
    assert joined["digit_change_share"] == pytest.approx(1 / 3)
    singles = token_statistics([one[:1], other[:1]], SIZES, LEVELS, 2)
    assert not any("repeat" in key or "change_share" in key or "conditional" in key for key in singles)


def test_what_the_frame_before_tells_is_the_difference_from_shuffled_frames(rng):
    # A digit that stays with probability 0.7, else is drawn anew: H = 2, H given the one before = 1.2 bits or so.
    clips = []
    for _ in range(4):
        digits = rng.integers(0, 4, (300, 3))
        for frame in range(1, 300):
            stays = rng.random(3) < 0.7
            digits[frame, stays] = digits[frame - 1, stays]
        clips.append(packed(*digits.tolist()))
    stay, leave = 0.7 + 0.3 / 4, 0.3 / 4
    given = -stay * math.log2(stay) - 3 * leave * math.log2(leave)
    figures = token_statistics(clips, SIZES, LEVELS, 2)
    assert figures["digit_conditional_entropy_bits"] == pytest.approx(given, abs=0.05)
    assert figures["digit_conditional_entropy_bits_shuffled"] == pytest.approx(2.0, abs=0.02)
    # Independent digits: nothing is told, and the difference says so even where counts are too few for the entropies.
    few = [packed(*rng.integers(0, 4, (12, 3)).tolist()) for _ in range(4)]
    figures = token_statistics(few, SIZES, LEVELS, 2)
    assert figures["token_entropy_bits"] - figures["token_conditional_entropy_bits"] > 0.5
    told = figures["token_conditional_entropy_bits_shuffled"] - figures["token_conditional_entropy_bits"]
    assert abs(told) < 0.2


def test_entropies_reach_their_bounds_and_no_more(rng):
    levels = (4,) * 14
    tokens = pack_frames(torch.tensor(rng.integers(0, 4, (64, 14))), levels, 7).numpy()
    sizes = group_vocabulary_sizes(levels, 7)
    figures = token_statistics([tokens], sizes, levels, 7)
    assert 1.8 < figures["digit_entropy_bits_min"] < figures["digit_entropy_bits"] < 2.0
    assert 5.9 < figures["token_entropy_bits"] <= 6.0  # 64 frames, though a token holds 14 bits
    assert 0.9 * 128 / 16384 < figures["vocab_used_share"] <= 128 / 16384
    assert figures["digit_change_share"] == pytest.approx(0.75, abs=0.05)
    by_place = figures["token_entropy_bits_by_place"]
    assert by_place == place_statistics([tokens], sizes)["entropy_bits"]
    assert len(by_place) == 2
    assert sum(by_place) / 2 == figures["token_entropy_bits"]
    assert len(figures["digit_entropy_bits_by_place"]) == 14


@pytest.mark.parametrize(("frames", "has"), [(15, False), (16, True)])
def test_what_a_token_is_given_the_one_before_needs_as_many_frames_as_ids(rng, frames, has):
    tokens = rng.integers(0, SIZES, (frames, 2))
    figures = token_statistics([tokens], SIZES, LEVELS, 2)
    assert any(key.startswith("token_conditional") for key in figures) == has
    assert "digit_conditional_entropy_bits" in figures
    assert ("conditional_entropy_bitrate_bps" in token_statistics([tokens], SIZES, duration_s=1.0)) == has


def test_independent_digits_save_no_bits_and_dependent_ones_do(rng):
    levels, sizes = (4,) * 128, group_vocabulary_sizes((4,) * 128, 7)

    def rates(digits: np.ndarray) -> tuple[float, float]:
        tokens = pack_frames(torch.tensor(digits), levels, 7).numpy()
        figures = token_statistics([tokens], sizes, levels, 7, duration_s=len(digits) / 2.5)
        assert figures["bitrate_bps"] == pytest.approx(640)
        return figures["entropy_bitrate_bps"], figures["conditional_entropy_bitrate_bps"]

    independent = rng.integers(0, 4, (68, 128))
    entropy, conditional = rates(independent)
    assert conditional == pytest.approx(entropy, abs=5)
    assert entropy == pytest.approx(640, abs=15)
    # Each frame four times: 13 in 16 digits stay, and so 0.99 bits of 2 are new, of 128 digits at 2.5 Hz.
    entropy, conditional = rates(np.repeat(rng.integers(0, 4, (200, 128)), 4, axis=0))
    assert entropy == pytest.approx(640, abs=10)
    assert conditional == pytest.approx(318, abs=15)


@pytest.mark.parametrize(("levels", "group_size"), [((4, 4, 4), 2), ((8, 5, 3, 2), 3), ((7,), 1), ((2, 3, 4, 5, 6), 2)])
def test_digits_are_those_of_the_models_packing(levels, group_size, rng):
    sizes = group_vocabulary_sizes(levels, group_size)
    tokens = rng.integers(0, sizes, (50, len(sizes)))
    expected = unpack_frames(torch.tensor(tokens), levels, group_size).numpy()
    np.testing.assert_array_equal(unpack_digits(tokens, sizes, levels, group_size), expected)


@pytest.mark.parametrize(
    ("clips", "levels", "group_size", "message"),
    [
        ([[[0, 4]]], (4, 4, 4), 2, r"must lie in \[0, size\)"),
        ([[[-1, 0]]], (4, 4, 4), 2, r"must lie in \[0, size\)"),
        ([[[0, 0, 0]]], (4, 4, 4), 2, r"must be integers, \(frames, 2\)"),
        ([[[0.0, 0.0]]], (4, 4, 4), 2, r"must be integers, \(frames, 2\)"),
        ([], (4, 4, 4), 2, "at least one frame"),
        ([[[0, 0]]], (4, 4, 4), 3, "make vocabularies of"),
        ([[[0, 0]]], (4, 4, 4), None, "`group_size` must be at least 1"),
    ],
)
def test_statistics_of_what_no_quantizer_gives_are_refused(clips, levels, group_size, message):
    with pytest.raises(ValueError, match=message):
        token_statistics([np.array(clip) for clip in clips], SIZES, levels, group_size)


def test_what_a_tracker_gets_are_plain_numbers(tiny_model):
    clip = reconstruction.Clip("a", noise(RATE), RATE / 2)
    figures, _ = reconstruction.evaluate(tiny_model, [clip], held_out=True)
    assert {"tokens/digit_entropy_bits", "held_out/stoi"} <= figures.keys()
    assert {type(value) for value in figures.values()} == {float}


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
