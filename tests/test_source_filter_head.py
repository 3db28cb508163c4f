"""Harmonics and noise, and what shapes them."""

import math

import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.source_filter_head import (
    HIGHEST_HARMONIC,
    SourceFilterHead,
    Sources,
    harmonics,
    noise_of,
    white_noise,
)
from modeling_jepa_daam.stft_front_end import stft
from modeling_jepa_daam.transform_path import loudness
from tests.conftest import TINY
from training.even_noise import even_noise, set_even_noise
from training.source_filter import band_nearness, read_source_filter, set_source_filter, with_spectra
from training.spectrogram_head import SpectrogramHead

HOP, RATE = 9600, 24000


def harmonic_config(bands: int, channels: int, num_spectra: int = 1) -> JepaDaamConfig:
    """Of a small codec whose last stage, of so many channels, is at 375 Hz."""
    stages = {"encoder_stft_stages": 2, "decoder_istft_stages": 2, "decoder_channels": (8, 9, channels)}
    shape = {"downsampling_ratios": (8, 8, 5, 30), "decoder_kernel_sizes": ((3,), (3,)), "transform_bands": bands}
    lists = {"encoder_channels": (6, 8, 8), "encoder_residual_blocks": (1, 1), "encoder_kernel_sizes": (3, 3)}
    finer = {"harmonic_source": True, "decoder_istft_spectra": num_spectra}
    return JepaDaamConfig(**TINY | stages | shape | lists | finer)


def constant_pitch(hz: float, frames: int = 3) -> torch.Tensor:
    return torch.full((1, frames, 30), hz, dtype=torch.float64)


@pytest.mark.parametrize("hz", [55.0, 150.0, 500.0])
def test_harmonics_are_a_sum_of_cosines(hz):
    """Of pitches that have a whole number of periods a frame: phases go on from frame to frame."""
    found = harmonics(constant_pitch(hz), HOP, RATE).flatten()
    angle = 2 * torch.pi * hz / RATE * torch.arange(1, 3 * HOP + 1, dtype=torch.float64)
    count = math.floor(HIGHEST_HARMONIC * RATE / hz)
    expected = sum((k * angle).cos() for k in range(1, count + 1))
    torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=0)
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
    sound = noise_of(latents, HOP, torch.from_numpy(white_noise()))
    assert sound.shape == (1, 50, HOP)
    assert sound.std().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(sound[0, 7], sound[0, 3])
    correlation = np.corrcoef(sound[0, :7].numpy())
    assert np.abs(correlation - np.eye(7)).max() < 0.1


def spread_db(sound: torch.Tensor, hop: int) -> float:
    """How far levels of short stretches of narrow bands are from each other."""
    return (20.0 * stft(sound[None], hop)[0, 1:-1].abs().log10()).std().item()


def test_even_noise_is_as_loud_everywhere():
    """Half as far from it, and less, as noise of chance; and still noise: white, and nowhere like itself."""
    white = torch.from_numpy(white_noise())
    even = even_noise(white, rounds=30)
    for hop in (320, 160):
        assert spread_db(white, hop) > 5.0
        assert spread_db(even, hop) < 2.6
    assert even.std().item() == pytest.approx(1.0, abs=1e-3)
    levels = stft(even[None], 320)[0].abs().square().mean(dim=1)[1:-1]
    assert levels.max() / levels.min() < 1.5
    correlation = torch.fft.irfft(torch.fft.rfft(even).abs().square())
    assert correlation[100 : len(even) // 2].abs().max() < 0.1 * correlation[0]


def test_even_noise_is_nearly_the_same_on_machines_that_round_differently():
    white = torch.from_numpy(white_noise()).double()
    disturbed = white + 1e-12 * torch.randn(white.shape, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(even_noise(disturbed), even_noise(white), atol=1e-6, rtol=0)


def test_noise_is_made_even_once_and_kept_with_the_weights(tmp_path):
    codec = JepaDaamModel(harmonic_config(7, 10))
    head = codec.decoder.istft_head
    assert torch.equal(head.noise, torch.from_numpy(white_noise()))
    set_even_noise(codec)
    made = head.noise.clone()
    assert not torch.equal(made, torch.from_numpy(white_noise()))
    set_even_noise(codec)
    assert torch.equal(head.noise, made)
    codec.save_pretrained(tmp_path)
    assert torch.equal(JepaDaamModel.from_pretrained(tmp_path).decoder.istft_head.noise, made)


def test_weights_without_noise_get_white_noise(tmp_path):
    """Those from before it was stored."""
    codec = JepaDaamModel(harmonic_config(7, 10))
    weights = {name: value for name, value in codec.state_dict().items() if not name.endswith(".noise")}
    codec.save_pretrained(tmp_path, state_dict=weights)
    loaded, _ = JepaDaamModel.from_pretrained(tmp_path, output_loading_info=True)
    assert torch.equal(loaded.decoder.istft_head.noise, torch.from_numpy(white_noise()))


def head_of(magnitude: float, share: float, num_spectra: int = 1) -> SourceFilterHead:
    """A head of the same magnitude in all bins, and of that share of harmonics in a voice."""
    head = SourceFilterHead(4, 320, RATE, num_spectra).eval()
    torch.nn.init.zeros_(head.project.weight)
    torch.nn.init.constant_(head.project.bias, loudness(torch.tensor(magnitude**2)).item())
    torch.nn.init.constant_(head.share, math.log(share / (1.0 - share)))
    return head


def sources_of(head: SourceFilterHead, hz: float, voiced: torch.Tensor) -> Sources:
    latents = (torch.randint(0, 4, (1, 128, 3), generator=torch.Generator().manual_seed(0)) * 2 - 3) / 4
    return head.spectra(constant_pitch(hz), voiced, latents, None)


def spectrum_of(waveform: torch.Tensor) -> torch.Tensor:
    """Of the inside of `(1, 1, samples)`: `(bins, spectra)`, complex."""
    window = torch.hann_window(1280)
    return torch.stft(waveform[0, 0], 1280, 320, window=window, return_complex=True)[:, 5:-5]


@pytest.mark.parametrize("num_spectra", [1, 2])
def test_sources_have_equal_power(num_spectra):
    head = head_of(2.0, 0.5, num_spectra)
    for hz in (200.0, 375.0):
        sources = sources_of(head, hz, torch.full((1, 3, 30), 0.7))
        assert sources.voice.shape == (1, 2, 640 // num_spectra + 1, 90 * num_spectra)
        harmonic, noisy = (part[0, :, 20 : 400 // num_spectra, 3:-3].square().sum(dim=0).mean() for part in sources[:2])
        assert harmonic.item() == pytest.approx(1.0, rel=0.1)
        assert noisy.item() == pytest.approx(1.0, rel=0.1)
        assert (sources.voiced == 0.7).all()


@pytest.mark.parametrize("num_spectra", [1, 2, 4])
def test_magnitudes_are_those_of_the_features(num_spectra):
    """What overlaps does not agree everywhere, but in the mean it does; however long the windows are."""
    for voiced in (torch.ones(1, 3, 30), torch.zeros(1, 3, 30)):
        head = head_of(2.0, 0.5, num_spectra)
        waveform = head(torch.zeros(1, 4, 90), None, sources_of(head, 375.0, voiced))
        assert waveform.shape == (1, 1, 3 * HOP)
        assert spectrum_of(waveform)[20:400].abs().square().mean().sqrt().item() == pytest.approx(2.0, rel=0.2)


def test_a_voice_has_harmonics_and_no_voice_has_none():
    """Bins 20, 40, 60... are those of 375 Hz."""
    head = head_of(2.0, 0.999)
    levels = {}
    for name, voiced in (("voice", torch.ones(1, 3, 30)), ("none", torch.zeros(1, 3, 30))):
        magnitude = spectrum_of(head(torch.zeros(1, 4, 90), None, sources_of(head, 375.0, voiced))).abs().mean(dim=1)
        levels[name] = (magnitude[20:401:20].mean() / magnitude[30:411:20].mean()).item()
    assert levels["voice"] > 3.0
    assert levels["none"] == pytest.approx(1.0, abs=0.1)


def test_each_spectrum_of_a_feature_has_weights_of_its_own():
    """Of two, the second is silent: so is the second half of each feature's samples, as far as windows allow."""
    head = head_of(2.0, 0.5, 2)
    with torch.no_grad():
        head.project.bias.view(2, -1)[1] = loudness(torch.tensor(0.0)).item()
    sources = Sources(*(part.clone() for part in sources_of(head, 375.0, torch.zeros(1, 3, 30))))
    heard = head(torch.zeros(1, 4, 90), None, sources)
    sources.noise[..., 1::2] = 0.0
    sources.voice[..., 1::2] = 0.0
    torch.testing.assert_close(head(torch.zeros(1, 4, 90), None, sources), heard, atol=1e-3, rtol=0)
    sources.noise[..., ::2] = 0.0
    assert head(torch.zeros(1, 4, 90), None, sources).abs().max() < 1e-3 < heard.abs().max()


def test_a_head_of_more_spectra_begins_as_the_one_before():
    """All else is the same, its bins have the magnitudes of the nearest ones, and so have its features in time."""
    codec = JepaDaamModel(harmonic_config(20, 30)).eval()
    torch.nn.init.normal_(codec.decoder.istft_head.share)
    finer = with_spectra(codec, 2)
    assert (codec.config.decoder_istft_spectra, finer.config.decoder_istft_spectra) == (1, 2)
    before, after = codec.decoder.istft_head, finer.decoder.istft_head
    x = torch.randn(1, 30, 5)
    torch.testing.assert_close(after.share, before.share[::2])
    for spectrum in after.project(x).chunk(2, dim=1):
        torch.testing.assert_close(spectrum, before.project(x)[:, ::2])
    torch.testing.assert_close(finer.decoder.transform.state_dict(), codec.decoder.transform.state_dict())
    assert torch.equal(after.noise, before.noise)
    back = with_spectra(finer, 1).decoder.istft_head
    torch.testing.assert_close(back.project(x)[:, ::2], before.project(x)[:, ::2])


def test_phases_of_a_voice_are_those_of_its_harmonics():
    """Crests of the waveform are where those of the sum of cosines are, as far up as that has any."""
    head = head_of(2.0, 0.999)
    waveform = head(torch.zeros(1, 4, 90), None, sources_of(head, 100.0, torch.ones(1, 3, 30)))[0, 0, HOP : 2 * HOP]
    expected = harmonics(constant_pitch(100.0), HOP, RATE)[0, 1]
    assert torch.corrcoef(torch.stack([waveform, expected]))[0, 1] > 0.65
    assert torch.corrcoef(torch.stack([waveform, expected.roll(120)]))[0, 1] < 0.1  # half a period


def test_silence_of_a_voice_has_a_gradient():
    head = head_of(2.0, 0.5)
    voiced = torch.zeros(1, 3, 30, requires_grad=True)
    head(torch.zeros(1, 4, 90), None, sources_of(head, 375.0, voiced)).square().sum().backward()
    assert head.share.grad.isfinite().all()
    assert voiced.grad.isfinite().all()


def test_the_head_learns_where_it_will_read():
    """Of the decoder's last stage, at 375 Hz, and not of the first one that is fine enough."""
    decoder = JepaDaamModel(harmonic_config(7, 10)).decoder
    head = SpectrogramHead(decoder, 24000, 9600)
    assert (head.num_stages, head.hop_length, head.project.in_channels) == (2, 64, 10)


@pytest.mark.parametrize("num_spectra", [1, 2])
def test_what_a_head_reads_is_found_again(num_spectra):
    """Bands to magnitudes and back; of bands that no bin is near there is nothing to find."""
    codec = JepaDaamModel(harmonic_config(20, 30, num_spectra))
    heads = [SpectrogramHead(codec.decoder, 24000, 9600) for _ in range(2)]
    project = codec.decoder.istft_head.project
    with torch.no_grad():
        heads[0].project.weight.normal_()
        heads[0].project.bias.normal_()
    set_source_filter(codec, heads[0])
    expected = [parameter.clone() for parameter in project.parameters()]
    read_source_filter(codec, heads[1])
    set_source_filter(codec, heads[1])
    torch.testing.assert_close([*project.parameters()], expected, atol=1e-4, rtol=0, check_stride=False)
    near = band_nearness(codec).sum(dim=0) > 0.5
    assert near.sum() > 10
    torch.testing.assert_close(heads[1].project.weight[near], heads[0].project.weight[near], atol=1e-3, rtol=0)


def test_what_is_too_loud_is_clipped_and_can_still_become_softer():
    head = head_of(300.0, 0.9)
    sources = sources_of(head, 200.0, torch.ones(1, 3, 30))
    clipped = head(torch.zeros(1, 4, 90), None, sources)
    assert clipped.abs().max() == 1.0
    too_loud = head.train()(torch.zeros(1, 4, 90), None, sources)
    torch.testing.assert_close(too_loud.clamp(-1.0, 1.0), clipped)
    too_loud.square().sum().backward()
    assert head.project.bias.grad[10:100].abs().max() > 0.1
