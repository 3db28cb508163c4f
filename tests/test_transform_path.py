"""The linear transform beside the network."""

import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel, JepaDaamForPreTraining, JepaDaamModel
from modeling_jepa_daam.source_filter_head import harmonics
from modeling_jepa_daam.stft_front_end import stft
from modeling_jepa_daam.transform_path import (
    LOUDNESS_MEAN,
    LOUDNESS_SCALE,
    log_magnitudes,
    loudness,
    mel_filters,
    of_first_digits,
    sawtooth_wave,
    smoothed,
)
from tests.conftest import STFT, noise

TRANSFORM = STFT | {"transform_bands": 7, "chunk_frames": 20, "hidden_dropout": 0.0, "attention_dropout": 0.0}
HARMONIC = {
    "harmonic_source": True,
    "decoder_istft_stages": 2,
    "decoder_channels": (8, 9),
    "decoder_kernel_sizes": ((3, 7),),
}


FINER = HARMONIC | {"decoder_istft_spectra": 2}


@pytest.fixture(
    params=[0, 1, 2, HARMONIC, FINER], ids=["istft 0", "istft 1", "istft 2", "harmonics", "harmonics, finer"]
)
def model(request):
    torch.manual_seed(0)
    if isinstance(request.param, dict):
        return JepaDaamModel(JepaDaamConfig(**TRANSFORM | request.param)).eval()
    kept = 3 - request.param
    decoder = {
        "decoder_istft_stages": request.param,
        "decoder_channels": STFT["decoder_channels"][: kept + 1],
        "decoder_kernel_sizes": STFT["decoder_kernel_sizes"][:kept],
    }
    return JepaDaamModel(JepaDaamConfig(**TRANSFORM | decoder)).eval()


def test_a_sawtooth_wave_is_the_identity_and_begins_again_beyond():
    x = torch.tensor([-1.0, -0.5, 0.0, 0.75, 1.0, 1.5, 2.0, 3.0, 4.25, -1.5, -3.0, -4.25])
    begun_again = torch.tensor([-1.0, -0.5, 0.0, 0.75, -1.0, -0.5, 0.0, -1.0, 0.25, 0.5, -1.0, -0.25])
    torch.testing.assert_close(sawtooth_wave(x), begun_again)


def test_the_loudest_is_not_taken_for_the_quietest(model):
    """tanh is exactly 1 there, where the wave would begin again."""
    transform, rows = model.encoder.transform, torch.zeros(1, model.config.transform_rows, 60)
    residual = torch.full((1, 60 // transform.project.kernel_size[0], 16), 100.0)
    assert transform.latents(rows, residual).min() > 0.99
    assert transform.latents(rows, -residual).max() < -0.99


def test_digits_of_a_number_take_the_residual_of_the_first():
    """Two numbers of three and of two digits, and one of a single digit."""
    gain = torch.tensor([0.9, 4.0, 16.0, 1.0, 4.0, 1.1])
    values = torch.tensor([[[0.1, 7.0, 8.0, 0.2, 9.0, 0.3]]])
    assert of_first_digits(values, gain).tolist() == torch.tensor([[[0.1, 0.1, 0.1, 0.2, 0.2, 0.3]]]).tolist()


def test_digits_agree_whatever_the_network_adds(model):
    """Decoded, coarse and fine digit are the sum that was coded, to the fine one's half step."""
    transform = model.encoder.transform
    with torch.no_grad():
        transform.project.weight.normal_(std=0.02)
        pairs = transform.project.weight.unflatten(0, (-1, 2))
        pairs[:, 1] = pairs[:, 0]  # each coefficient has two digits
        transform.project.bias.zero_()
        transform.gain.copy_(torch.tensor([1.0, 4.0]).repeat(8))
        transform.offset.copy_(torch.tensor([0.0, 1.0]).repeat(8))
        rows = torch.randn(1, model.config.transform_rows, 60)
        residual = torch.randn(1, 60 // transform.project.kernel_size[0], 16)
        coarse, fine = transform.latents(rows, residual).unflatten(2, (8, 2)).unbind(3)
        alone = torch.nn.functional.conv1d(rows, transform.project.weight, None, transform.project.stride)
        coded = torch.tanh(alone.transpose(1, 2)[..., ::2] + residual[..., ::2])
    middles = (2.0 * coarse).floor() / 2.0 + 0.25  # of four cells
    torch.testing.assert_close(middles + fine / 4.0, coded, atol=1e-5, rtol=0)


def test_an_envelope_has_the_loudness_of_each_band():
    """By hand: one spectrum of 121 bins, bands as the filters say, and a floor of 0.001."""
    transform = JepaDaamModel(JepaDaamConfig(**TRANSFORM)).encoder.transform
    power = torch.rand(1, 121, 3, generator=torch.Generator().manual_seed(0))
    filters = mel_filters(121, 7, 24000)
    for band in range(7):
        weights = filters[:, band] / filters[:, band].sum()
        mean = weights @ power[0].numpy()
        expected = (np.sqrt(mean + 0.001**2) ** 0.15 - LOUDNESS_MEAN) / LOUDNESS_SCALE
        np.testing.assert_allclose(transform.envelope(power)[0, band].detach(), expected, rtol=1e-5)


def test_magnitudes_come_back_from_loudness():
    """Those that are heard within half a percent; below, what is asked for is bounded, and has a gradient."""
    magnitude = torch.logspace(-1.5, 2.5, 50)
    torch.testing.assert_close(log_magnitudes(loudness(magnitude.square())).exp(), magnitude, rtol=5e-3, atol=0)
    absurd = torch.tensor([-4.0], requires_grad=True)
    silent = log_magnitudes(absurd)
    assert silent.exp() < 2e-4
    silent.backward()
    assert absurd.grad > 0.0


def test_smoothing_is_the_mean_over_a_harmonics_width():
    """Of one bin, 20 bins wide: what lies within keeps 1/20 of it, what lies beyond nothing."""
    power = torch.zeros(1, 641, 1)
    power[0, 300] = 1.0
    found = smoothed(power, torch.tensor([[20.0 / 1280.0]]))[0, :, 0]
    torch.testing.assert_close(found.sum(), torch.tensor(1.0), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[292:309], torch.full((17,), 0.05), atol=5e-4, rtol=0)
    assert found[:289].max() < 1e-4
    assert found[312:].max() < 1e-4


def test_a_loud_harmonic_is_not_heard_in_a_quiet_band():
    """90 dB below it, half of the spectrum away."""
    power = torch.full((1, 641, 1), 1e-5)
    power[0, 20] = 1e4
    found = smoothed(power, torch.tensor([[10.0 / 1280.0]]))
    torch.testing.assert_close(found[:, 300:620], power[:, 300:620], rtol=0.05, atol=0)


@pytest.mark.parametrize("hz", [110.0, 220.0, 400.0])
def test_what_is_smoothed_by_its_pitch_has_no_harmonics(hz):
    """Of harmonics of equal strength a flat envelope is left, of which the pitch can no longer be told."""
    wave = harmonics(torch.full((1, 3, 30), hz, dtype=torch.float64), 9600, 24000).flatten()[None]
    power = stft(wave, 320)[..., 10:80].abs().square()
    flat = smoothed(power, torch.full((1, 70), hz / 24000))[0, 40:360].sqrt().log()
    sharp = power[0, 40:360].sqrt().clamp(min=1e-3).log()
    assert sharp.std(dim=0).mean() > 1.0
    assert flat.std(dim=0).mean() < 0.06


def test_fine_digits_tell_more_than_coarse_ones(model):
    """Two dimensions of one coefficient: the second one, with gain 4, moves four times as far, and begins again."""
    transform = model.encoder.transform
    with torch.no_grad():
        transform.project.weight[1] = transform.project.weight[0]
        transform.gain[1], transform.offset[1] = 4.0, 1.0
    power = model.encoder.stft_front_end.power(torch.tensor(noise(1200))[None, None])
    latents = transform.latents(transform.rows(power), torch.zeros(1, 20, 16))
    torch.testing.assert_close(latents[..., 1], sawtooth_wave(4.0 * latents[..., 0] + 1.0))


def test_tokens_do_not_depend_on_the_batch(model):
    lengths = [59, 60, 61, 300, 1234]
    batch, mask = torch.full((len(lengths), 1, 1500), 0.7), torch.zeros(len(lengths), 1500)
    for row, length in enumerate(lengths):
        batch[row, 0, :length], mask[row, :length] = torch.tensor(noise(length, seed=row)), 1
    together = model.encode(batch, mask)
    for row, length in enumerate(lengths):
        alone = model.encode(batch[row : row + 1, :, :length])
        assert torch.equal(together.audio_codes[row, :, : alone.audio_codes.shape[-1]], alone.audio_codes[0])


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 9), (5, 6), (4, 17), (22, 30), (29, 30)])
def test_a_window_with_context_equals_the_whole(model, start, end):
    decoder = model.decoder.double()
    latents = torch.randn(1, 16, 30, dtype=torch.float64)
    whole, reach = decoder(latents), decoder.margins()[0]
    left, right = min(start, reach), min(30 - end, reach)
    part = decoder(latents[..., start - left : end + right], context=(left, right))
    torch.testing.assert_close(part, whole[..., start * 60 : end * 60], rtol=0, atol=1e-12)


def test_the_decoder_hears_it(model):
    latents = torch.randn(1, 16, 5)
    before = model.decoder(latents)
    torch.nn.init.zeros_(model.decoder.transform.patches.weight)
    assert (model.decoder(latents) - before).abs().max() > 1e-4


def test_stage_1_and_its_features_know_nothing_of_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    pretraining = JepaDaamForPreTraining.from_pretrained(tmp_path).eval()
    assert not [name for name, _ in pretraining.named_parameters() if "transform" in name]
    torch.testing.assert_close(pretraining.encoder.bottleneck.weight, model.encoder.bottleneck.weight)
    pretraining.save_pretrained(tmp_path / "stage1")
    waveform = torch.tensor(noise(600))[None, None]
    for folder in (tmp_path, tmp_path / "stage1"):
        features = JepaDaamEncoderModel.from_pretrained(folder).eval()(waveform).last_hidden_state
        torch.testing.assert_close(features, pretraining.encoder(waveform))


def test_half_precision_keeps_the_code(model):
    """Only the waveform and the weights are rounded: with weights that float16 has, coefficients hardly move."""
    with torch.no_grad():
        for parameter in model.encoder.transform.parameters():
            parameter.copy_(parameter.half())
    encoder, waveform = model.encoder, torch.tensor(noise(1200)).half().float()[None, None]
    power, residual = encoder.stft_front_end.power(waveform), torch.zeros(1, 20, 16)
    expected = encoder.transform.latents(encoder.transform.rows(power), residual)
    transform = encoder.half().transform
    found = transform.latents(transform.rows(power), residual.half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "wrong",
    [
        {"transform_bands": -1},
        {"decoder_istft_stages": 3, "decoder_channels": (8,), "decoder_kernel_sizes": ()},
    ],
    ids=["negative", "the decoder ends before"],
)
def test_where_it_cannot_join_is_an_error(wrong):
    with pytest.raises(ValueError, match="`transform_bands`"):
        JepaDaamConfig(**TRANSFORM | wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"transform_bands": 0}, "`harmonic_source` needs `transform_bands` above 0"),
        (
            {"decoder_istft_stages": 1, "decoder_channels": (8, 9, 9), "decoder_kernel_sizes": ((3,), (3,))},
            "`decoder_istft_stages` equal to `encoder_stft_stages`, got 7, 1 and 2",
        ),
        ({"decoder_channels": (8, 8)}, "at least `transform_bands` \\+ 2 = 9"),
    ],
    ids=["no transform", "another rate", "no channels"],
)
def test_harmonics_need_a_transform_at_their_rate(wrong, message):
    with pytest.raises(ValueError, match=message):
        JepaDaamConfig(**TRANSFORM | HARMONIC | wrong)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_there_and_back(model, tmp_path, dtype):
    """Latents and pitch stay in float32, the decoder's weights do not."""
    model.save_pretrained(tmp_path)
    half = JepaDaamModel.from_pretrained(tmp_path, dtype=dtype).eval()
    values = torch.tensor(noise(400))[None, None]
    with torch.inference_mode():
        there_and_back = half(values.to(dtype))
        decoded = half.decode(there_and_back.audio_codes).audio_values
    assert there_and_back.audio_values.dtype == dtype
    assert there_and_back.audio_values.isfinite().all()
    assert torch.equal(there_and_back.audio_values, decoded[..., :400])


def test_both_ways_compile_as_a_whole(model):
    """Tables that numpy makes are constants there. "eager": no compiler of C is needed."""
    torch.compiler.reset()
    waveform = torch.tensor(noise(480))[None, None]
    with torch.inference_mode():
        latents = model.encoder(waveform)
        quantized = model.quantizer(latents)[0].transpose(1, 2)
        for part, given in ((model.encoder, waveform), (model.decoder, quantized)):
            compiled = torch.compile(part, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(given), part(given))


def test_a_codec_from_stage_1_has_no_weights_left_to_chance(tmp_path):
    JepaDaamForPreTraining(JepaDaamConfig(**TRANSFORM | HARMONIC)).save_pretrained(tmp_path)
    codec, _ = JepaDaamModel.from_pretrained(tmp_path, output_loading_info=True)  # a part of a codec
    assert not codec.decoder.istft_head.share.any()


def test_spectra_of_features_are_whole_and_of_harmonics():
    with pytest.raises(ValueError, match="`decoder_istft_spectra` must divide the 12 samples of a feature, got 5"):
        JepaDaamConfig(**TRANSFORM | HARMONIC | {"decoder_istft_spectra": 5})
    with pytest.raises(ValueError, match="`decoder_istft_spectra` above 1 needs `harmonic_source`, got 2"):
        JepaDaamConfig(**TRANSFORM | {"decoder_istft_spectra": 2})


def test_a_finer_decoder_reads_the_same_code():
    assert JepaDaamConfig(**TRANSFORM | HARMONIC).digest == JepaDaamConfig(**TRANSFORM | FINER).digest


def test_pitch_makes_another_code():
    harmonic = JepaDaamConfig(**TRANSFORM | HARMONIC)
    without = JepaDaamConfig(**TRANSFORM | HARMONIC | {"harmonic_source": False})
    assert harmonic.digest != without.digest


def test_digests_are_those_from_before_there_was_a_transform_and_a_pitch():
    assert JepaDaamConfig().digest == "2aaadf16e81a2627"
    assert JepaDaamConfig(**TRANSFORM).digest == "f667700bc6f6a634"


def test_a_spectrogram_front_end_is_needed():
    with pytest.raises(ValueError, match="`transform_bands` needs `encoder_stft_stages`"):
        JepaDaamConfig(transform_bands=80)


def test_the_floor_of_silence_has_a_finite_gradient(model):
    silence = torch.zeros(1, 1, 240, requires_grad=True)
    latents = model.encoder(silence)
    latents.sum().backward()
    assert silence.grad.isfinite().all()
    assert np.isfinite(latents.detach().numpy()).all()
