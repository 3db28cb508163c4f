"""Transform coding, computed from speech to start training from."""

import json

import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.pitch import PitchTracker
from modeling_jepa_daam.quantizer import FiniteScalarQuantizer
from modeling_jepa_daam.source_filter_head import harmonics
from modeling_jepa_daam.stft_front_end import stft
from modeling_jepa_daam.transform_path import to_rows
from tests.conftest import STFT
from tests.librilight import RECORDINGS, make_librilight
from tests.test_train_tokenizer import config_of
from training import train_tokenizer
from training.codec import CodecForTraining
from training.evidence import describe_run
from training.source_filter import set_source_filter
from training.train_tokenizer import begin_waveforms
from training.transform_code import (
    BOUND,
    MAX_DIGITS,
    PitchTeacher,
    Voices,
    allocate_digits,
    digit_latents,
    distortions,
    latents_of,
    main,
    row_weights,
    set_analysis,
    set_borders,
    set_synthesis,
    silence_the_rest,
    teach_tracker,
)

CODE = STFT | {"transform_bands": 12, "hidden_size": 16, "fsq_temperature": 1.8, "decoder_channels": (16, 14, 6, 4)}


def gaussian(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, generator=torch.Generator().manual_seed(seed))


def patches(num: int = 4000) -> torch.Tensor:
    """Of 12 bands and 3 spectra, whose coefficients have standard deviations from 8 down to far below 1."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(36, 36, generator=generator))[0]
    scales = 8.0 * 0.75 ** torch.arange(36)
    return ((torch.randn(num, 36, generator=generator) * scales) @ basis.T + 1.5).view(num, 12, 3)


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    return make_librilight(tmp_path_factory.mktemp("librilight"), chapter_s=4.0)


@pytest.fixture
def codec():
    """A patch is 3 spectra, of 12 bands."""
    torch.manual_seed(0)
    return JepaDaamModel(JepaDaamConfig(**CODE | {"downsampling_ratios": (4, 3, 3)})).eval()


def test_greedy_digits_lower_the_error_most():
    """By hand: errors 1, .1, .01 of variances 100, 20, 1; gains are 90, 9 / 18, 1.8 / .9, .09."""
    assert allocate_digits([100.0, 20.0, 1.0], [1.0, 0.1, 0.01], 1) == [1, 0, 0]
    assert allocate_digits([100.0, 20.0, 1.0], [1.0, 0.1, 0.01], 2) == [1, 1, 0]
    assert allocate_digits([100.0, 20.0, 1.0], [1.0, 0.1, 0.01], 3) == [2, 1, 0]
    assert allocate_digits([100.0, 20.0, 1.0], [1.0, 0.1, 0.01], 5) == [2, 2, 1]


def test_every_digit_lowers_the_error_by_far():
    """The best quantizers of a normal variable leave .1175 with 4 levels, .0095 with 16, .00063 with 64."""
    errors = distortions(gaussian(40000), temperature=1.8)
    assert len(errors) == MAX_DIGITS + 1
    for error, best in zip(errors[1:], (0.1175, 0.0095, 0.00063, 0.00004), strict=True):
        assert best * 0.98 < error < best * 1.3


def test_digits_are_those_of_one_number():
    """Quantized, each a fourth of the one before, they sum up to the middle of its cell, also at the ends."""
    coefficients = torch.cat([torch.linspace(-6, 6, 20001), torch.tensor([-60.0, 60.0])])
    quantizer = FiniteScalarQuantizer([4] * 3, 1.8, normalize=True).eval()
    set_borders(quantizer)
    values = quantizer(digit_latents(coefficients, 3)[None])[0][0]
    summed = values @ torch.tensor([1.0, 1 / 4, 1 / 16])
    error = (summed - torch.tanh(coefficients / BOUND)).abs()
    assert error.max() <= (1 + 1e-4) / 64
    assert error[-2:].max() <= (1 + 1e-4) / 64


def test_the_code_loses_little_and_less_than_single_digits(codec):
    data = patches()
    mean, basis, digits = set_analysis(codec, data)
    assert sum(digits) == 16
    assert digits[0] > 1
    assert sorted(digits, reverse=True) == digits
    lost = set_synthesis(codec, data, mean, basis, digits)
    assert lost < 0.05
    # The best quantizer of four levels leaves .1175 of each of the 16 largest variances.
    variances = torch.linalg.eigvalsh(torch.cov((data * row_weights(codec)).flatten(1).T)).flip(0)
    assert lost < 0.5 * (0.1175 * variances[:16].sum() + variances[16:].sum()) / variances.sum()


def test_the_rest_is_silent_at_first(codec):
    data = patches(2000)
    code = set_analysis(codec, data)
    set_synthesis(codec, data, *code)
    silence_the_rest(codec)
    waveform = torch.randn(1, 1, 36 * 5) * 0.1
    transform = codec.encoder.transform
    rows = transform.rows(codec.encoder.stft_front_end.power(waveform))
    alone = latents_of(codec, rows[0].unflatten(1, (-1, 3)).permute(1, 0, 2))
    torch.testing.assert_close(codec.encoder(waveform)[0], alone, atol=1e-5, rtol=0)
    latents = torch.randn(1, 16, 5)
    features, _, _ = codec.decoder.upsample(latents, num_stages=1)
    torch.testing.assert_close(features, codec.decoder.transform(latents), atol=1e-5, rtol=0)


def test_it_is_computed_from_speech_and_training_starts_from_it(librilight, tmp_path):
    changes = ["model.overrides={transform_bands: 20, fsq_temperature: 1.8}", "data.segment_s=4.0"]
    config = config_of(librilight, tmp_path / "transform", "model.config=hub_configs/jepa-daam-24khz-small", *changes)
    folder = main(config, num_batches=4, tracker_steps=60)
    told = describe_run(tmp_path / "transform", "here", 2)
    assert (told["start"], sum(told["code"]["digits"])) == (None, 128)
    assert told["hours_of_audio"] == pytest.approx(48 * 0.4 / 3600)
    codec = JepaDaamModel.from_pretrained(folder)
    assert not codec.encoder.conformer[-1].norm.weight.any()
    assert codec.encoder.transform.gain.max() == 4.0 ** (MAX_DIGITS - 1)
    training = CodecForTraining(codec, freeze_transform=True).train()
    assert not any(weight.requires_grad for weight in training.codec.encoder.transform.parameters())
    statistics = training.codec.quantizer.running_mean.clone()
    training(torch.randn(2, 24000) * 0.1, torch.tensor([24000, 24000]), None, torch.Generator())
    assert torch.equal(training.codec.quantizer.running_mean, statistics)
    # What comes back is the spectrogram, more or less: of 48 patches not much can be learned.
    waveform = torch.from_numpy(load_audio(next(RECORDINGS.rglob("*.flac")), None, 24000)[:48000])[None, None]
    codec.eval()
    values = codec.quantizer(codec.encoder(waveform))[0].transpose(1, 2)
    features = codec.decoder.upsample(values, num_stages=2)[0][:, :20]
    rows = codec.encoder.transform.rows(codec.encoder.stft_front_end.power(waveform))[:, :20]
    assert (features - rows).abs().mean() < 0.5 * (rows - rows.mean()).abs().mean()


HARMONIC = (
    "model.overrides={transform_bands: 20, fsq_temperature: 1.8, harmonic_source: true, decoder_istft_stages: 3, "
    "decoder_channels: [64, 64, 32], decoder_kernel_sizes: [[3], [3]]}"
)


def voices_of(frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Harmonics of one pitch a frame, then noise: waveforms `(frames, 9600)`, octaves above 150 Hz `(frames, 30)`."""
    generator = torch.Generator().manual_seed(0)
    octaves = torch.rand(frames, 1, generator=generator) * 2.0 - 1.0
    waveform = harmonics((150.0 * 2.0**octaves).expand(-1, 30)[None], 9600, 24000)[0] / 50.0
    waveform = waveform + 0.05 * torch.randn(frames, 9600, generator=generator)
    waveform[:, 5000:] = torch.randn(frames, 4600, generator=generator)
    octaves = octaves.repeat(1, 30)
    octaves[:, 16:] = torch.nan
    return waveform, octaves


def test_a_tracker_is_taught():
    torch.manual_seed(0)
    waveform, octaves = voices_of(96)
    spectrum = stft(waveform, 320)
    voices = Voices(spectrum.abs().square()[:, :160], octaves)
    tracker = PitchTracker(1280, 24000)
    cents, voicing_error = teach_tracker(tracker, voices, steps=60)
    assert cents < 60.0
    assert voicing_error < 0.1


def test_the_teacher_hears_pitch_where_there_is_a_voice():
    teacher = PitchTeacher(24000, 320)
    waveform, octaves = voices_of(1)
    found = teacher(waveform[0])
    assert found.shape == (30,)
    torch.testing.assert_close(found[3:13], octaves[0, 3:13], atol=0.05, rtol=0)
    assert found[20:].isnan().all()


def test_the_head_begins_as_a_vocoder_of_bands_and_pitch():
    """Rows of a recording, shaped by nothing but the weights computed, have the recording's spectrum."""
    config = JepaDaamConfig.from_dict(
        JepaDaamConfig.from_pretrained("hub_configs/jepa-daam-24khz-small").to_diff_dict()
    )
    shape = config.to_diff_dict() | {
        "transform_bands": 80,
        "harmonic_source": True,
        "decoder_istft_stages": 3,
        "decoder_channels": (16, 16, 82),
        "decoder_kernel_sizes": ((3,), (3,)),
    }
    for name in ("architectures", "auto_map", "dtype", "transformers_version", "weights_sha256"):
        shape.pop(name, None)
    torch.manual_seed(0)
    codec = JepaDaamModel(JepaDaamConfig(**shape)).eval()
    set_source_filter(codec)
    waveform = torch.from_numpy(load_audio(next(RECORDINGS.rglob("*.flac")), None, 24000)[:48000])
    transform, head = codec.encoder.transform, codec.decoder.istft_head
    octaves = PitchTeacher(24000, 320)(waveform)

    def envelope(sound: torch.Tensor) -> torch.Tensor:
        return transform.envelope(codec.encoder.stft_front_end.power(sound), octaves.nan_to_num()[None])

    real = envelope(waveform[None, None])
    voiced = (~octaves.isnan()).float()
    rows = torch.cat([real, to_rows(octaves.nan_to_num()[None], voiced[None])], dim=1)
    pitch = 150.0 * 2.0 ** octaves.nan_to_num().view(1, 5, 30)
    with torch.no_grad():
        sources = head.spectra(pitch, voiced.view(1, 5, 30), torch.randint(0, 4, (1, 128, 5)) / 2 - 0.75, None)
        sound = head(rows, None, sources)
        made, quiet = envelope(sound), envelope(0.5 * sound)
    distance = (made - real).abs().mean()
    assert distance < 0.35  # of a standard deviation
    assert distance < (quiet - real).abs().mean()


def test_pitch_is_part_of_the_code_and_of_training(librilight, tmp_path):
    changes = [HARMONIC, "data.segment_s=4.0"]
    config = config_of(librilight, tmp_path / "transform", "model.config=hub_configs/jepa-daam-24khz-small", *changes)
    folder = main(config, num_batches=4, tracker_steps=60)
    code = describe_run(tmp_path / "transform", "here", 2)["code"]
    assert code["tracker_voicing_error"] < 0.1
    assert code["coded_voicing_error"] < 0.4
    codec = JepaDaamModel.from_pretrained(folder)
    training = CodecForTraining(codec, spectrogram_head=True).train()
    assert not any(weight.requires_grad for weight in codec.encoder.transform.tracker.parameters())
    samples = torch.from_numpy(load_audio(next(RECORDINGS.rglob("*.flac")), None, 24000)[: 9600 * 6])[None]
    samples = torch.cat([samples, samples])
    samples[1, 30000:] = 0.0
    lengths = torch.tensor([9600 * 6, 30000])
    for spectrogram in (True, False):
        result = training(samples, lengths, 2, torch.Generator(), spectrogram)
        assert 0.0 < result.pitch.item() < 10.0
    result.pitch.backward()
    assert codec.decoder.transform.patches.weight.grad[:, 20:22].abs().max() > 0.0
    assert not codec.decoder.transform.patches.weight.grad[:, :20].any()
    assert codec.decoder.istft_head.project.weight.grad is None
    # What is predicted beside a waveform is what would be alone.
    predicted = [training(samples, lengths, 2, torch.Generator(), spectrogram) for spectrogram in (True, False)]
    torch.testing.assert_close(predicted[1].predicted, predicted[0].generated)
    torch.testing.assert_close(predicted[1].envelope, predicted[0].envelope)
    assert predicted[0].predicted is None
    # Where spectrograms end and waveforms begin, the head says what the spectrogram head does.
    with torch.no_grad():
        training.spectrogram_head.project.weight.zero_()
    begin_waveforms(training)
    assert not codec.decoder.istft_head.project.weight.any()
    assert training.average.decoder.istft_head.project.weight.any()
    # While waveforms are learned, envelopes go on being predicted, from what the head reads at the start.
    changes += ["model.config=hub_configs/jepa-daam-24khz-small", f"model.weights={folder}", "losses.envelope=2.0"]
    changes += ["optim.freeze_transform=true", "optim.freeze_reading=true"]
    trained = train_tokenizer.main(
        config_of(librilight, tmp_path / "codec", *changes, "run.max_steps=1", "run.eval_clips=0")
    )
    (entry,) = [json.loads(line) for line in (tmp_path / "codec" / "metrics.jsonl").read_text().splitlines()]
    assert 0.0 < entry["loss/envelope"] < 1.0
    assert entry["loss/total"] > 2.0 * entry["loss/envelope"]
    # What reads digits stays as it is, and the rest of the decoder does not.
    before, after = (JepaDaamModel.from_pretrained(path).decoder.transform for path in (folder, trained))
    assert torch.equal(after.expand.weight, before.expand.weight)
    assert torch.equal(after.reduce.weight, before.reduce.weight)
    assert not torch.equal(after.patches.weight, before.patches.weight)


def test_a_training_run_is_not_overwritten(librilight, tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    small = ["model.config=hub_configs/jepa-daam-24khz-small", "model.overrides={transform_bands: 20}"]
    with pytest.raises(ValueError, match="holds a training run"):
        main(config_of(librilight, tmp_path, *small))


def test_other_levels_and_no_transform_are_errors(librilight, tmp_path):
    with pytest.raises(ValueError, match="set `transform_bands`"):
        main(config_of(librilight, tmp_path))
    small = ["model.config=hub_configs/jepa-daam-24khz-small", "model.overrides={transform_bands: 20, fsq_levels: [3]}"]
    with pytest.raises(ValueError, match="`fsq_levels` must all be 4"):
        main(config_of(librilight, tmp_path, *small))
