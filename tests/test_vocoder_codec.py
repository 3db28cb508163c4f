"""The causal codec of spectral features: tokens of a stream, mixed levels, and parts of which none is idle."""

import pickle

import numpy as np
import pytest
import soundfile
import torch

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamForPreTraining,
    JepaDaamModel,
    read_token_file,
    save_checkpoint,
    write_token_file,
)
from modeling_jepa_daam.causal import CausalMemory
from modeling_jepa_daam.daam import gaussian_mixture, mixture_density, trailing_moments
from modeling_jepa_daam.streaming import AudioTokenStream

from .conftest import SPEECH
from .support_vocoder import SMALL


@pytest.fixture(scope="module")
def model() -> JepaDaamModel:
    torch.manual_seed(0)
    return JepaDaamModel(JepaDaamConfig(**SMALL)).eval()


@pytest.fixture(scope="module")
def speech() -> np.ndarray:
    return soundfile.read(SPEECH, dtype="float32")[0]


class Tokenizer:
    """What a stream needs of a tokenizer."""

    def __init__(self, model):
        self.model, self.sampling_rate = model, model.config.sampling_rate


def ids_of(model, samples) -> list[int]:
    return model.waveforms_to_ids([torch.from_numpy(samples)])[0]


def test_mixed_levels_pack_into_nineteen_tokens_of_640_bits_a_second():
    config = JepaDaamConfig(**SMALL | {"hidden_size": 128, "quantized_size": 73})
    assert config.levels == (16, 64, 4, 4) * 18 + (16,)
    assert (config.tokens_per_frame, config.vocab_size) == (19, 16384)
    assert (config.token_rate, config.bitrate_bps) == (47.5, 640.0)


@pytest.mark.parametrize("piece", [1_000, 9_600, 100_000])
def test_a_stream_has_the_tokens_of_the_whole(model, speech, piece):
    stream = AudioTokenStream(Tokenizer(model), 24000)
    ids = [each for start in range(0, len(speech), piece) for each in stream.push(speech[start : start + piece])]
    assert ids + stream.close() == ids_of(model, speech)


def test_ids_of_a_frame_are_there_20_ms_after_its_last_sample(model, speech):
    stream = AudioTokenStream(Tokenizer(model), 24000)
    assert stream.push(speech[: 9600 + 479]) == []
    assert stream.push(speech[9600 + 479 : 9600 + 480]) == ids_of(model, speech)[: model.config.tokens_per_frame]


def test_a_stream_loses_nothing_when_the_model_fails_in_the_midst_of_a_piece(model, speech, monkeypatch):
    stream, encode, calls = AudioTokenStream(Tokenizer(model), 24000, salience=True), JepaDaamModel.encode_block, []

    def fail_at_the_third(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise MemoryError
        return encode(self, *arguments)

    ids = stream.push(speech[:10_000])
    with monkeypatch.context() as patch:
        patch.setattr(JepaDaamModel, "encode_block", fail_at_the_third)
        with pytest.raises(MemoryError):
            stream.push(speech[10_000:60_000])
    ids += stream.push(speech[60_000:]) + stream.close()
    assert ids == ids_of(model, speech)
    assert len(stream.salience()) * model.config.tokens_per_frame == len(ids)


def test_later_sound_does_not_change_earlier_tokens(model, speech):
    changed = speech.copy()
    changed[5 * 9600 + 480 :] *= -0.3
    width = model.config.tokens_per_frame
    before, after = ids_of(model, speech), ids_of(model, changed)
    assert after[: 5 * width] == before[: 5 * width]
    assert after != before


def test_memory_pickles_and_does_not_grow(model, speech):
    margin = model.spectral_features.margin
    padded = torch.from_numpy(np.pad(speech, margin))
    memory, sizes = CausalMemory(), []
    whole = model.encode_waveforms([torch.from_numpy(speech)])[0]
    for frame in range(8):
        block = model.encode_block(padded[frame * 9600 : (frame + 1) * 9600 + 2 * margin], memory)
        memory = pickle.loads(pickle.dumps(block.memory))
        sizes.append([tuple(part.shape) for part in memory.present])
        torch.testing.assert_close(block.latents[0], whole[frame], atol=1e-8, rtol=1e-6)
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("spoil", [lambda parts: parts[:3], lambda parts: [part[..., 1:] for part in parts]])
def test_memory_of_another_model_or_cut_is_refused(model, speech, spoil):
    margin = model.spectral_features.margin
    samples = torch.from_numpy(speech[: 9600 + 2 * margin])
    memory = model.encode_block(samples, CausalMemory()).memory
    memory.present = spoil(memory.present)
    with pytest.raises(ValueError, match="memory"):
        model.encode_block(samples, memory)


def test_gates_come_with_the_latents(model, speech):
    _, [gates] = model.encode_with_gates([torch.from_numpy(speech)])
    assert [tuple(gate.shape) for gate in gates] == [(13, 10), (13, 1)]
    stream = AudioTokenStream(Tokenizer(model), 24000, salience=True)
    stream.push(speech)
    stream.close()
    _, [salience] = model.waveforms_to_ids_with_salience([torch.from_numpy(speech)])
    np.testing.assert_allclose(stream.salience(), salience.numpy(), rtol=1e-6)


def test_a_batch_has_the_tokens_of_its_items(model, speech):
    short = speech[:20_000]
    padded = torch.zeros(2, 1, len(speech))
    padded[0, 0], padded[1, 0, : len(short)] = torch.from_numpy(speech), torch.from_numpy(short)
    mask = torch.arange(len(speech)) < torch.tensor([[len(speech)], [len(short)]])
    codes = model.encode(padded, mask).audio_codes
    assert codes[0].T.flatten().tolist() == ids_of(model, speech)
    assert codes[1, :, :3].T.flatten().tolist() == ids_of(model, short)


def test_training_mode_neither_changes_tokens_nor_state(model, speech):
    before = ids_of(model, speech)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    try:
        assert ids_of(model, speech) == before
    finally:
        model.eval()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_changed_weights_change_tokens(model, speech):
    """The float64 copy that tokens come from follows the weights."""
    before = ids_of(model, speech)
    with torch.no_grad():
        model.latent_projection.project.bias.add_(0.5)
    changed = ids_of(model, speech)
    with torch.no_grad():
        model.latent_projection.project.bias.sub_(0.5)
    assert changed != before
    assert ids_of(model, speech) == before


@pytest.mark.parametrize(
    "part", ["spectral_features.tracker", "encoder.stages", "encoder.bottleneck", "encoder.patch_embedding",
             "encoder.conformer.0", "encoder.conformer.1", "latent_projection"]
)  # fmt: skip
def test_every_part_of_the_encoder_decides_tokens(model, speech, part):
    before = ids_of(model, speech)
    module = model.get_submodule(part)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    after = ids_of(model, speech)
    module.load_state_dict(state)
    assert after != before


def test_decoding_in_pieces_is_decoding_at_once(model, speech):
    codes = torch.tensor(ids_of(model, np.tile(speech, 3))).view(1, -1, model.config.tokens_per_frame).transpose(1, 2)
    pieces = torch.cat(list(model.iter_decode(codes)), dim=-1)
    whole = model.decoder(model.codes_to_latents(codes))
    assert codes.shape[-1] > model.config.chunk_frames
    assert pieces.shape[-1] == codes.shape[-1] * model.config.hop_length
    torch.testing.assert_close(pieces, whole, atol=2e-5, rtol=0)


def test_a_padded_row_decodes_as_alone(model, speech):
    codes = torch.tensor(ids_of(model, speech)).view(1, -1, model.config.tokens_per_frame).transpose(1, 2)
    both = torch.cat([codes, codes])
    mask = torch.ones(2, codes.shape[-1], dtype=torch.bool)
    mask[1, 6:] = False
    row = model.decode(both, mask).audio_values[1]
    torch.testing.assert_close(row[:, : 6 * 9600], model.decode(codes[..., :6]).audio_values[0], atol=2e-5, rtol=0)
    assert not row[:, 6 * 9600 :].any()


@pytest.mark.parametrize("lookahead", [0, 1, 2])
def test_decoded_audio_depends_on_as_many_later_frames_as_configured(lookahead):
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**SMALL | {"decoder_lookahead_frames": lookahead})).eval()
    values = torch.rand(1, 13, 12) * 1.8 - 0.9
    changed = values.clone()
    changed[..., 6 + lookahead :] *= -1
    first, second = (model.decoder.decode(each)[1] for each in (values, changed))
    patch = model.config.patch_size
    assert torch.equal(first[..., : 6 * patch], second[..., : 6 * patch])
    assert not torch.equal(first[..., 6 * patch :], second[..., 6 * patch :])


def test_trailing_moments_are_those_of_the_window():
    signal = torch.randn(1, 1, 9, dtype=torch.float64)
    padded, valid = (torch.cat([torch.zeros(1, 1, 3), part], dim=-1) for part in (signal, torch.ones(1, 1, 9)))
    mean, variance = trailing_moments(padded.double(), valid.double(), 4)
    for t in range(9):
        window = signal[0, 0, max(0, t - 3) : t + 1]
        assert mean[0, 0, t].item() == pytest.approx(window.mean().item())
        assert variance[0, 0, t].item() == pytest.approx(window.var(unbiased=False).item())


def test_a_window_over_everything_gives_the_papers_gate_at_the_end():
    signal, delta, nu = torch.randn(1, 1, 7, dtype=torch.float64), torch.randn(4).double(), torch.randn(4).double()
    padded, valid = (torch.cat([torch.zeros(1, 1, 6), part], dim=-1).double() for part in (signal, torch.ones(1, 1, 7)))
    gate = gaussian_mixture(signal, *trailing_moments(padded, valid, 7), delta, nu)
    torch.testing.assert_close(gate[..., -1], mixture_density(signal, delta, nu)[..., -1])


def test_stage_1_trains_the_encoder_that_makes_the_tokens(speech):
    torch.manual_seed(0)
    jepa = JepaDaamForPreTraining(JepaDaamConfig(**SMALL))
    output = jepa(torch.from_numpy(speech)[None, None], generator=torch.Generator().manual_seed(0))
    output.loss.backward()
    assert output.predictions.shape == (1, 13, 32)
    for name, parameter in jepa.encoder.named_parameters():
        assert parameter.grad is not None, name
        assert name.endswith("k_proj.bias") or parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in jepa.target_encoder.parameters())


def test_features_are_the_output_of_the_network_that_makes_the_tokens(model, speech, tmp_path):
    model.save_pretrained(tmp_path)
    encoder = JepaDaamEncoderModel.from_pretrained(tmp_path).eval()
    output = encoder(torch.from_numpy(speech)[None, None], output_daam_gates=True)
    assert output.last_hidden_state.shape == (1, 13, 32)
    assert [gate.shape[1] for gate in output.daam_gates] == [13 * 10, 13]
    latents = model.encode_waveforms([torch.from_numpy(speech)])[0]
    frames = model.encoder(
        model.spectral_features(
            torch.nn.functional.pad(torch.from_numpy(np.pad(speech, (0, 13 * 9600 - len(speech))))[None], (480, 480))
        )
    )
    torch.testing.assert_close(output.last_hidden_state, frames.hidden)
    torch.testing.assert_close(model.latent_projection(frames)[0], latents, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"transform_bands": 8}, "exclude each other"),
        ({"encoder_stft_stages": 0}, "encoder_stft_stages"),
        (
            {"decoder_istft_stages": 3, "decoder_channels": (8, 8, 16), "decoder_kernel_sizes": ((3,), (3,))},
            "decoder_istft_stages",
        ),
        ({"encoder_channels": (17, 16, 32)}, "feature_bands"),
        ({"quantized_size": 33}, "quantized_size"),
        ({"normalize_latents": True}, "normalize_latents"),
        ({"feature_bands": 0}, "quantized_size"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        JepaDaamConfig(**SMALL | changes)


def test_the_tokenizer_of_a_checkpoint_has_the_mixed_levels(speech, tmp_path):
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**SMALL | {"hidden_size": 80, "quantized_size": 73}))
    folder = save_checkpoint(model, tmp_path / "checkpoint", half=True)
    tokenizer = JepaAudioTokenizer.from_pretrained(folder)
    assert tokenizer.levels == model.config.levels
    ids = tokenizer(speech, sampling_rate=24000)["input_ids"]
    assert ids == ids_of(JepaDaamModel.from_pretrained(folder), speech)
    assert len(ids) == 13 * 19
    assert max(ids[18::19]) < 16
    assert tokenizer.pack(tokenizer.unpack(ids)) == ids
    assert tokenizer.decode_audio(ids).shape == (13 * 9600,)
    write_token_file(tmp_path / "speech.jepa", ids, len(speech), model.config)
    assert read_token_file(tmp_path / "speech.jepa", model.config).input_ids.tolist() == ids
