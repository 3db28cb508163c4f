import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling_jepa_daam import (
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamForPreTraining,
    JepaDaamModel,
    modeling_jepa_daam,
)
from tests.conftest import HUB_CONFIGS, ROOT, TINY, noise

HOP, CHUNK = 60, 7 * 60


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameter_counts_are_the_papers(capsys):
    with torch.device("meta"):
        stage_1, codec = JepaDaamForPreTraining(JepaDaamConfig()), JepaDaamModel(JepaDaamConfig())
    online = _count(stage_1.encoder) + _count(stage_1.predictor) + stage_1.mask_token.numel()
    table = [
        ("encoder without predictor", _count(stage_1.encoder), 118.5, 118_512_562),
        ("predictor", _count(stage_1.predictor), 3.2, 3_177_600),
        ("online network", online, 121.7, 121_690_290),
        ("target encoder", _count(stage_1.target_encoder), 118.5, 118_512_562),
        ("Stage 1 total", _count(stage_1), 240.2, 240_202_852),
        ("FSQ + decoder", _count(codec.quantizer) + _count(codec.decoder), 69.3, 69_291_649),
    ]
    with capsys.disabled():
        print("\nTable 3                        ours   paper")
        for name, ours, paper, _ in table:
            print(f"{name:25} {ours:>11,}  {paper}M")
    for name, ours, paper, exact in table:
        assert round(ours / 1e6, 1) == paper, name
        assert ours == exact, name


def test_the_small_configurations_keep_their_sizes():
    sizes = {}
    for folder in HUB_CONFIGS:
        with torch.device("meta"):
            sizes[folder.name] = _count(JepaDaamModel(JepaDaamConfig.from_pretrained(folder)))
    assert sizes["jepa-daam-24khz-nano"] < 1_000_000
    assert sizes["jepa-daam-24khz-fast"] < sizes["jepa-daam-24khz"]


def test_shapes_are_the_public_ones(tiny_model):
    output = tiny_model.encode(torch.tensor(noise(10 * HOP + 1))[None, None])
    assert output.audio_codes.shape == (1, tiny_model.config.tokens_per_frame, 11)
    assert output.audio_codes.dtype == torch.int64
    assert output.latents.shape == (1, 16, 11)
    assert output.audio_codes_mask.shape == (1, 11)
    decoded = tiny_model.decode(output.audio_codes)
    assert decoded.audio_values.shape == (1, 1, 11 * HOP)
    assert decoded.audio_values.abs().max() <= 1
    assert isinstance(tiny_model.encode(torch.zeros(1, 1, 5), return_dict=False), tuple)
    assert isinstance(tiny_model.decode(output.audio_codes, return_dict=False), tuple)


@pytest.mark.parametrize("samples", [1, HOP - 1, HOP, HOP + 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
def test_a_reconstruction_is_as_long_as_its_original(tiny_model, samples):
    with torch.inference_mode():
        assert tiny_model(torch.tensor(noise(samples))[None, None]).audio_values.shape == (1, 1, samples)


def test_a_batch_may_be_padded_further_than_any_row_needs(tiny_model):
    values, mask = torch.tensor(noise(1000))[None, None], (torch.arange(1000) < 130)[None]
    with torch.inference_mode():
        padded = tiny_model(values, mask).audio_values
        assert padded.shape == (1, 1, 1000)
        torch.testing.assert_close(padded[..., :130], tiny_model(values[..., :130]).audio_values)
    assert not padded[..., 130:].any()


def test_forward_is_encode_then_decode(tiny_model):
    values, mask = torch.tensor(noise(2000)).view(2, 1, 1000), torch.ones(2, 1000)
    mask[1, 411:] = 0
    with torch.inference_mode():
        whole = tiny_model(values, mask)
        codes = tiny_model.encode(values, mask)
        decoded = tiny_model.decode(codes.audio_codes, codes.audio_codes_mask)
    assert torch.equal(whole.audio_codes, codes.audio_codes)
    torch.testing.assert_close(whole.audio_values * mask[:, None], decoded.audio_values[..., :1000] * mask[:, None])
    assert not whole.audio_values[1, :, 411:].any()
    assert not codes.audio_codes[1, :, 7:].any()


def test_a_decoded_row_does_not_depend_on_its_neighbours(tiny_model):
    sizes = torch.tensor([16384, 16384, 16])
    codes = (torch.rand(2, 3, 20, generator=torch.Generator().manual_seed(0)) * sizes[:, None]).long()
    mask = torch.ones(2, 20)
    mask[1, 9:] = 0
    with torch.inference_mode():
        together = tiny_model.decode(codes, mask).audio_values
        alone = tiny_model.decode(codes[1:, :, :9]).audio_values
    torch.testing.assert_close(together[1:, :, : 9 * HOP], alone, rtol=0, atol=1e-5)
    assert not together[1, :, 9 * HOP :].any()


@pytest.mark.parametrize("chunk_frames", [1, 4, 11, 1000])
def test_decoding_has_no_seams_wherever_chunks_end(tiny_model, chunk_frames):
    """Decoding with any chunk length gives the samples of decoding everything at once."""
    codes = tiny_model.encode(torch.tensor(noise(50 * HOP))[None, None]).audio_codes
    with torch.inference_mode():
        whole = tiny_model.decoder(tiny_model.codes_to_latents(codes))
        config = JepaDaamConfig(**{**TINY, "chunk_frames": chunk_frames})
        other = JepaDaamModel(config).eval()
        other.load_state_dict(tiny_model.state_dict())
        torch.testing.assert_close(other.decode(codes).audio_values, whole, rtol=0, atol=1e-5)


def test_seams_of_real_speech_are_as_smooth_as_the_rest(nano_folder, speech):
    """The paper's rates: jumps of the waveform at chunk borders are those of decoding with shifted borders."""
    model = JepaDaamModel.from_pretrained(nano_folder).eval()
    with torch.inference_mode():
        codes = model.encode(torch.tensor(np.tile(speech, 6))[None, None]).audio_codes
        usual = model.decode(codes).audio_values
        model.config.chunk_frames = 13
        shifted = model.decode(codes).audio_values
    torch.testing.assert_close(usual, shifted, rtol=0, atol=1e-5)


def test_gradients_pass_the_quantizer_and_reach_every_parameter():
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**TINY)).train()
    values = torch.tensor(noise(2 * 900)).view(2, 1, 900)
    mask = torch.ones(2, 900)
    mask[1, 300:] = 0
    (model(values, mask).audio_values - values).abs().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert not without
    assert model.encoder.input_conv.weight.grad.abs().sum() > 0


def test_batched_encoding_agrees_with_one_by_one(monkeypatch):
    """What an accelerator does (a padded batch of chunks) against what a CPU does (each chunk by itself)."""
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**TINY))
    waveforms = [torch.tensor(noise(n, seed=n)) for n in (1, 61, CHUNK, 2 * CHUNK + 5)]
    with torch.inference_mode():
        alone = model.encode_waveforms(waveforms)
        monkeypatch.setitem(modeling_jepa_daam.CHUNKS_PER_BATCH, "cpu", 32)
        batched = model.encode_waveforms(waveforms)
    for a, b in zip(batched, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_keeps_most_digits(tiny_folder, dtype):
    full = JepaDaamModel.from_pretrained(tiny_folder).eval()
    half = JepaDaamModel.from_pretrained(tiny_folder, dtype=dtype).eval()
    values = torch.tensor(noise(40 * HOP))[None, None]
    with torch.inference_mode():
        reconstruction = half(values.to(dtype)).audio_values
        digits = [m.quantizer(m.encode(values).latents.transpose(1, 2))[1] for m in (full, half)]
    assert reconstruction.dtype == dtype
    assert reconstruction.isfinite().all()
    assert (digits[0] == digits[1]).float().mean() > 0.9


def test_a_checkpoint_serves_every_class(tiny_folder):
    codec = JepaDaamModel.from_pretrained(tiny_folder)
    encoder = JepaDaamEncoderModel.from_pretrained(tiny_folder)
    stage_1 = JepaDaamForPreTraining.from_pretrained(tiny_folder)
    for name, parameter in codec.encoder.named_parameters():
        assert torch.equal(parameter, encoder.encoder.get_parameter(name))
        assert torch.equal(parameter, stage_1.encoder.get_parameter(name))
        assert torch.equal(parameter, stage_1.target_encoder.get_parameter(name))


def test_a_configuration_changed_by_hand_is_checked_again(tiny_folder):
    with pytest.raises(ValueError, match="`hidden_size` must be a multiple of `num_attention_heads`"):
        JepaDaamModel.from_pretrained(tiny_folder, num_attention_heads=3)
    config = JepaDaamConfig(**TINY)
    config.chunk_frames = 0
    with pytest.raises(ValueError, match="`chunk_frames` must be at least 1"):
        JepaDaamModel(config)


def test_loading_loses_nothing(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    loaded = JepaDaamModel.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == tiny_model.state_dict().keys()
    values = torch.tensor(noise(1000))[None, None]
    with torch.inference_mode():
        assert torch.equal(loaded(values).audio_values, tiny_model(values).audio_values)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".py", ".safetensors"}


@pytest.mark.parametrize(
    ("values", "mask", "error", "message"),
    [
        (torch.zeros(1, 10), None, ValueError, r"`input_values` must have shape \(batch, 1, samples\).* got \(1, 10\)"),
        (torch.zeros(1, 2, 10), None, ValueError, "`input_values` must have shape"),
        (torch.zeros(1, 1, 0), None, ValueError, "`input_values` must have shape"),
        (torch.zeros(0, 1, 9), None, ValueError, "`input_values` must have shape"),
        (torch.zeros(1, 1, 9, dtype=torch.int64), None, TypeError, "`input_values` must be floating point"),
        (np.zeros((1, 1, 9)), None, TypeError, "`input_values` must be a tensor, got ndarray"),
        (torch.full((1, 1, 9), float("nan")), None, ValueError, "`input_values` must be finite"),
        (torch.full((1, 1, 9), float("inf")), None, ValueError, "`input_values` must be finite"),
        (torch.full((1, 1, 9), 3e4), None, ValueError, "within full scale"),
        (torch.zeros(1, 1, 9), torch.ones(1, 8), ValueError, "`padding_mask` must be a tensor of shape"),
        (torch.zeros(1, 1, 3), torch.tensor([[0, 1, 1]]), ValueError, "`padding_mask` must be padded on the right"),
        (torch.zeros(1, 1, 3), torch.zeros(1, 3), ValueError, "`padding_mask` must mark at least one valid sample"),
    ],
)
def test_bad_waveforms_are_refused_by_name(tiny_model, values, mask, error, message):
    with pytest.raises(error, match=message):
        tiny_model.encode(values, mask)
    with pytest.raises(error, match=message):
        tiny_model(values, mask)


@pytest.mark.parametrize(
    ("codes", "mask", "error", "message"),
    [
        (
            torch.zeros(1, 4, 2, dtype=torch.int64),
            None,
            ValueError,
            r"must have shape \(batch, 3, frames\)",
        ),
        (torch.zeros(3, 2, dtype=torch.int64), None, ValueError, "`audio_codes` must have shape"),
        (torch.zeros(1, 3, 0, dtype=torch.int64), None, ValueError, "`audio_codes` must have shape"),
        (torch.zeros(1, 3, 2), None, TypeError, "`audio_codes` must be integers"),
        (torch.full((1, 3, 2), -1), None, ValueError, "must lie in"),
        (torch.tensor([[[0], [0], [16]]]), None, ValueError, r"`audio_codes` must lie in \[0, 16\) at place 2"),
        ([[[0], [0], [0]]], None, TypeError, "`audio_codes` must be a tensor"),
        (torch.zeros(1, 3, 2, dtype=torch.int64), torch.ones(1, 3), ValueError, "`audio_codes_mask` must be a tensor"),
        (
            torch.zeros(1, 3, 2, dtype=torch.int64),
            torch.tensor([[0, 1]]),
            ValueError,
            "`audio_codes_mask` must be padded",
        ),
    ],
)
def test_bad_codes_are_refused_by_name(tiny_model, codes, mask, error, message):
    with pytest.raises(error, match=message):
        tiny_model.decode(codes, mask)


def test_importing_needs_no_optional_package():
    """torch, transformers, numpy, soundfile, soxr and safetensors are enough."""
    program = (
        "import sys\n"
        "for name in ('typer', 'matplotlib', 'datasets', 'accelerate', 'pytest', 'torchaudio', 'librosa', 'scipy'):\n"
        "    sys.modules[name] = None\n"
        "import modeling_jepa_daam\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT)
