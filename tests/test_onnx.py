"""The graphs beside the model that they are of."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.onnx_codec import ENCODER, METADATA_KEY, OnnxCodec
from tests.conftest import SPEECH, STFT, noise

from .test_cli import run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from modeling_jepa_daam import onnx_export as module  # noqa: E402
from modeling_jepa_daam.onnx_export import (  # noqa: E402
    check_onnx,
    export_onnx,
    inverse_real_fourier,
    made_up_signals,
    real_fourier,
)

# Transforms at both ends, levels that differ, a group that is not full, gates everywhere.
MIXED = STFT | {
    "fsq_levels": (4, 5, 3),
    "group_size": 5,
    "daam_in_conformer": True,
    "decoder_istft_stages": 1,
    "decoder_channels": (8, 8, 6),
    "decoder_kernel_sizes": ((3, 7), (3,)),
}


@pytest.fixture(scope="module")
def nano_graphs(nano_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "nano"
    output = run("export-onnx", folder, "--model", nano_folder, "--check", SPEECH)
    assert "tokens the same as PyTorch's" in output
    return folder


@pytest.fixture(scope="module")
def mixed_model():
    torch.manual_seed(0)
    return JepaDaamModel(JepaDaamConfig(**MIXED)).eval()


@pytest.fixture(scope="module")
def mixed_graphs(mixed_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "mixed"
    report = export_onnx(mixed_model, folder, [noise(60 * 7 + 1)])
    assert report.tokens > 7 * mixed_model.config.tokens_per_frame
    assert report.latents_difference < 1e-4
    assert report.audio_difference < 1e-5
    return folder


def test_speech_has_the_tokenizers_ids_and_comes_back_the_same(nano_graphs, nano_folder, speech):
    tokenizer, codec = JepaAudioTokenizer.from_pretrained(nano_folder), OnnxCodec(nano_graphs, threads=1)
    long = np.tile(speech, 3)  # more than a chunk
    ids = codec.encode(long)
    assert ids.tolist() == tokenizer(long, sampling_rate=24000)["input_ids"]
    expected = tokenizer.decode_audio(ids, num_samples=len(long))
    found = codec.decode(ids, num_samples=len(long))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_graph_takes_batches_of_any_number_of_frames(nano_graphs, nano_folder, mixed_graphs, mixed_model):
    import onnxruntime

    for folder, model in (
        (nano_graphs, JepaDaamModel.from_pretrained(nano_folder).eval()),
        (mixed_graphs, mixed_model),
    ):
        hop = model.config.hop_length
        encoder = onnxruntime.InferenceSession(folder / ENCODER)
        for batch, frames in ((1, 1), (3, 4)):
            audio = noise(batch * frames * hop).reshape(batch, frames * hop)
            codes, latents = encoder.run(None, {"input_values": audio})
            expected = model.encode(torch.from_numpy(audio)[:, None])
            np.testing.assert_array_equal(codes, expected.audio_codes.numpy())
            np.testing.assert_allclose(latents, expected.latents.detach().numpy(), atol=1e-4)


def test_the_folder_works_without_this_package(nano_graphs, nano_folder, tmp_path):
    expected = JepaAudioTokenizer.from_pretrained(nano_folder)(noise(24000), sampling_rate=24000)["input_ids"]
    program = (
        "import sys; import numpy as np; from onnx_codec import OnnxCodec; "
        "ids = OnnxCodec('.').encode(np.random.default_rng(0).normal(0.0, 0.1, 24000).astype(np.float32)); "
        "assert not {'torch', 'transformers', 'modeling_jepa_daam'} & set(sys.modules); print(*ids)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=nano_graphs, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == expected


def test_graphs_that_do_something_else_are_not_left(mixed_model, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "real_fourier", lambda signal, dim=-1: 1.1 * torch.view_as_complex(
        torch.stack([signal[..., : signal.shape[-1] // 2 + 1]] * 2, dim=-1)))  # fmt: skip
    with pytest.raises(ValueError, match=r"onnxruntime makes \d+ of \d+ tokens other than PyTorch"):
        export_onnx(mixed_model, tmp_path / "graphs")
    monkeypatch.undo()
    monkeypatch.setattr(
        module, "inverse_real_fourier", lambda *args, **kwargs: 1.1 * inverse_real_fourier(*args, **kwargs)
    )
    with pytest.raises(ValueError, match="the audio that onnxruntime makes differs"):
        export_onnx(mixed_model, tmp_path / "graphs")
    assert not list(tmp_path.iterdir())


def test_other_weights_are_noticed(mixed_graphs, mixed_model):
    torch.manual_seed(1)
    other = JepaDaamModel(JepaDaamConfig(**MIXED)).eval()
    assert check_onnx(mixed_model, mixed_graphs, made_up_signals(mixed_model.config)).tokens > 0
    with pytest.raises(ValueError, match="tokens other than PyTorch"):
        check_onnx(other, mixed_graphs, made_up_signals(mixed_model.config))


def test_what_a_user_can_get_wrong_is_named(nano_graphs, mixed_graphs, mixed_model, tmp_path):
    codec = OnnxCodec(nano_graphs)
    assert (codec.sampling_rate, codec.hop_length, codec.tokens_per_frame) == (24000, 9600, 19)
    for samples, error, message in (
        (np.zeros(0, np.float32), ValueError, r"shape \(samples,\)"),
        (np.zeros((1, 9600), np.float32), ValueError, r"shape \(samples,\)"),
        (np.zeros(9600, np.int16), TypeError, "floating point, got int16"),
        (np.full(9600, np.nan, np.float32), ValueError, "finite"),
        (np.full(9600, 17.0, np.float32), ValueError, "full scale"),
    ):
        with pytest.raises(error, match=message):
            codec.encode(samples)
    for ids, error, message in (
        ([], ValueError, "whole number of frames of 19"),
        ([0] * 20, ValueError, "whole number of frames of 19"),
        ([0.0] * 19, TypeError, "integers, got float64"),
        ([0] * 18 + [16], ValueError, r"\[0, 16\) at place 18 of a frame, got 16 in frame 0"),
        ([-1] + [0] * 18, ValueError, r"\[0, 16384\) at place 0"),
    ):
        with pytest.raises(error, match=message):
            codec.decode(ids)
    with pytest.raises(ValueError, match="`num_samples` must lie in the last of 1 frames"):
        codec.decode([0] * 19, num_samples=9601)
    with pytest.raises(FileNotFoundError, match="encoder.onnx"):
        OnnxCodec(tmp_path)
    (tmp_path / "encoder.onnx").write_bytes((nano_graphs / "encoder.onnx").read_bytes())
    (tmp_path / "decoder.onnx").write_bytes((mixed_graphs / "decoder.onnx").read_bytes())
    with pytest.raises(ValueError, match="not of one codec"):
        OnnxCodec(tmp_path)
    assert "is there already" in run("export-onnx", tmp_path, "--model", "hub_configs/jepa-daam-24khz-small", code=2)
    with pytest.raises(ValueError, match=r"float32 on the CPU, got torch\.bfloat16"):
        export_onnx(JepaDaamModel(mixed_model.config).to(torch.bfloat16), tmp_path / "half")


def test_graphs_say_whose_they_are(nano_graphs, nano_folder):
    config = JepaDaamConfig.from_pretrained(nano_folder)
    graph = onnx.load(nano_graphs / ENCODER)
    onnx.checker.check_model(graph)
    assert METADATA_KEY in {entry.key for entry in graph.metadata_props}
    metadata = OnnxCodec(nano_graphs).metadata
    assert metadata["weights_sha256"] == config.weights_sha256
    assert metadata["config_digest"] == config.digest
    assert sorted(path.name for path in nano_graphs.iterdir()) == ["decoder.onnx", "encoder.onnx", "onnx_codec.py"]


@pytest.mark.parametrize("n", [12, 15])
def test_products_with_matrices_are_fourier_transforms(n):
    signal = torch.randn(3, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = real_fourier(signal, dim=1)
    torch.testing.assert_close(spectrum, torch.fft.rfft(signal, dim=1))
    torch.testing.assert_close(inverse_real_fourier(spectrum, n, dim=1), signal)
