import math

import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from tests.conftest import TINY
from tests.test_decoder import shorter
from training.codec import CodecForTraining
from training.losses import envelope_loss, log_mel, spectrogram_loss
from training.spectrogram_head import SpectrogramHead

HOP = 60


def make(**options):
    torch.manual_seed(0)
    config = JepaDaamConfig(**TINY | {"chunk_frames": 20, "hidden_dropout": 0.0, "attention_dropout": 0.0})
    return CodecForTraining(JepaDaamModel(config), **options)


@pytest.fixture
def codec():
    return make().eval()


@pytest.fixture
def batch():
    """Segments of 20, 12.3 and 5 frames."""
    torch.manual_seed(1)
    lengths = torch.tensor([20 * HOP, 12 * HOP + 20, 5 * HOP])
    samples = torch.randn(3, 20 * HOP) * 0.1
    return samples.masked_fill(torch.arange(20 * HOP) >= lengths[:, None], 0.0), lengths


def run(codec, batch, window_frames=None, seed=0):
    return codec(*batch, window_frames, torch.Generator().manual_seed(seed))


def test_a_whole_segment_is_what_the_codec_makes_of_it(codec, batch):
    result = run(codec, batch)
    samples, lengths = batch
    padding_mask = torch.arange(samples.shape[1]) < lengths[:, None]
    with torch.no_grad():
        expected = codec.codec(samples[:, None], padding_mask).audio_values[:, 0]
    torch.testing.assert_close(result.generated, expected, rtol=0, atol=2e-6)
    assert torch.equal(result.real, samples)
    assert torch.equal(result.lengths, lengths)


def test_a_window_is_a_part_of_the_whole(codec, batch):
    """Wherever it lies: the neighbouring frames are heard, and nothing beyond the segment's ends."""
    whole = run(codec, batch)
    starts_seen = set()
    for seed in range(12):
        window = run(codec, batch, 8, seed)
        assert window.generated.shape == (3, 8 * HOP)
        for row, frames in enumerate((20, 13, 5)):
            real = window.real[row]
            length = int(window.lengths[row])
            places = [
                start
                for start in range(max(1, frames - 8 + 1))
                if torch.equal(batch[0][row, start * HOP : start * HOP + length], real[:length])
            ]
            assert len(places) == 1
            start = places[0] * HOP
            assert length == min(8 * HOP, int(batch[1][row]) - start)
            expected = whole.generated[row, start : start + length]
            torch.testing.assert_close(window.generated[row, :length], expected, rtol=0, atol=2e-6)
            assert not window.generated[row, length:].any()
            assert not real[length:].any()
            starts_seen.add((row, places[0]))
    assert len({start for row, start in starts_seen if row == 0}) > 5
    assert {start for row, start in starts_seen if row == 2} == {0}


def test_the_generator_alone_chooses_the_window(codec, batch):
    assert torch.equal(run(codec, batch, 4, seed=3).real, run(codec, batch, 4, seed=3).real)
    assert not torch.equal(run(codec, batch, 4, seed=3).real, run(codec, batch, 4, seed=4).real)


def test_everything_but_the_average_gets_a_gradient(batch):
    codec = make()
    result = run(codec, batch, 6)
    result.generated.square().sum().backward()
    for name, parameter in codec.named_parameters():
        if name.startswith("average."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    assert any(parameter.grad.any() for parameter in codec.codec.encoder.parameters())


def test_a_frozen_encoder_neither_learns_nor_drops():
    torch.manual_seed(0)
    codec = CodecForTraining(JepaDaamModel(JepaDaamConfig(**TINY, hidden_dropout=0.5)), freeze_encoder=True)
    codec.train()
    assert not any(parameter.requires_grad for parameter in codec.codec.encoder.parameters())
    assert not any(module.training for module in codec.codec.encoder.modules())
    assert not any(module.training for module in codec.average.modules())
    assert codec.codec.decoder.training


def test_the_average_follows_weights_and_statistics_at_one_pace(batch):
    codec = make()
    old = [parameter.clone() for parameter in codec.average.parameters()]
    run(codec, batch)
    with torch.no_grad():
        latents = codec.codec.encoder(batch[0][:, None], torch.arange(20) < torch.tensor([[20], [13], [5]]))
        valid = torch.cat([latents[0], latents[1, :13], latents[2, :5]])
        for parameter in codec.codec.parameters():
            parameter.add_(torch.randn_like(parameter))
    codec.update_average(0.9)
    for average, before, now in zip(codec.average.parameters(), old, codec.codec.parameters(), strict=True):
        torch.testing.assert_close(average, 0.9 * before + 0.1 * now)
    torch.testing.assert_close(codec.average.quantizer.running_mean, 0.1 * valid.mean(dim=0))
    torch.testing.assert_close(codec.average.quantizer.running_var, 0.9 + 0.1 * valid.var(dim=0))


@pytest.mark.parametrize("istft_stages", [0, 2])
def test_the_waveform_is_float32_under_autocast(batch, istft_stages):
    torch.manual_seed(0)
    codec = CodecForTraining(JepaDaamModel(JepaDaamConfig(**shorter(istft_stages))))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = run(codec, batch, 6)
    assert result.generated.dtype == torch.float32
    assert not torch.equal(result.generated, result.generated.bfloat16().float())


def test_a_predicted_window_is_a_part_of_the_whole_spectrogram(batch):
    """Its spectra are those of the same samples, and the loss finds the window they belong to."""
    codec = make(spectrogram_head=True).eval()
    head = codec.spectrogram_head
    assert head.num_stages == 0  # 400 frames a second are enough
    with torch.no_grad():
        whole = codec(*batch, None, torch.Generator(), spectrogram=True)
        assert whole.generated.shape == (3, 20 * HOP // head.hop_length, 160)
        for seed in range(6):
            window = codec(*batch, 8, torch.Generator().manual_seed(seed), spectrogram=True)
            assert window.generated.shape == (3, 8 * HOP // head.hop_length, 160)
            same_place = codec(*batch, 8, torch.Generator().manual_seed(seed))
            assert torch.equal(window.real, same_place.real)
            [start] = [s for s in range(13) if torch.equal(batch[0][0, s * HOP : (s + 8) * HOP], window.real[0])]
            torch.testing.assert_close(window.generated[0], whole.generated[0, start : start + 8], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rate", "stages", "hop"), [(24000, 0, 60), (2000, 1, 12), (500, 2, 4), (100, 3, 1)])
def test_spectra_come_from_the_first_stage_of_fifty_a_second(rate, stages, hop):
    head = SpectrogramHead(make().codec.decoder, rate, HOP)
    assert (head.num_stages, head.hop_length) == (stages, hop)
    features = torch.zeros(2, TINY["decoder_channels"][stages], 5)
    assert head(features).shape == (2, 5, 160)
    torch.nn.init.constant_(head.project.bias, -5.0)
    assert (head(features) < math.log(1e-5)).all()  # what `log_mel` has where nothing sounds


def test_the_spectrogram_loss_of_the_right_spectrogram_is_zero():
    real = 0.1 * torch.randn(2, 3200, generator=torch.Generator().manual_seed(0))
    spectra = log_mel(real, 24000, 1280, 320, 160)
    lengths, bandwidth_hz = torch.tensor([3200, 1600]), torch.tensor([8000.0, 12000.0])
    assert spectrogram_loss(spectra, real, 24000, lengths, bandwidth_hz) == 0.0
    spoiled = spectra.clone()
    spoiled[0, :, -1] += 9.0  # above the first clip's bandwidth
    spoiled[1, 5:] += 9.0  # after the second clip's end
    assert spectrogram_loss(spoiled, real, 24000, lengths, bandwidth_hz) == 0.0
    torch.testing.assert_close(spectrogram_loss(spectra + 0.5, real, 24000, lengths), torch.tensor(0.5))


def test_the_envelope_loss_counts_what_is_heard():
    real = torch.randn(2, 12, 64, generator=torch.Generator().manual_seed(0))
    told = {"sampling_rate": 24000, "hop_length": 320}
    lengths, bandwidth_hz = torch.tensor([3840, 1920]), torch.tensor([12000.0, 8000.0])
    torch.testing.assert_close(envelope_loss(real + 0.5, real, lengths=lengths, **told), torch.tensor(0.5))
    spoiled = real.clone()
    spoiled[1, 6:] = 9.0  # after its end
    spoiled[1, :, -3:] = 9.0  # above its bandwidth
    assert envelope_loss(spoiled, real, lengths=lengths, bandwidth_hz=bandwidth_hz, **told) == 0.0
    assert envelope_loss(spoiled, real, **told) > 0.1
    low, high = real.clone(), real.clone()
    low[:, :, 10] += 1.0
    high[:, :, -2] += 1.0
    assert envelope_loss(low, real, **told) > 5.0 * envelope_loss(high, real, **told)
