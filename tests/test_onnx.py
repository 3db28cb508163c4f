"""The graphs beside the model that they are of."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, make_untrained_checkpoint
from modeling_jepa_daam.cli_common import SHIPPED_MODEL
from modeling_jepa_daam.onnx_codec import DECODER, ENCODER, OnnxCodec
from modeling_jepa_daam.transform_path import SILENCE, smoothed
from tests.conftest import SPEECH, STFT, noise

from .test_cli import run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from modeling_jepa_daam import onnx_export as module  # noqa: E402
from modeling_jepa_daam.onnx_export import (  # noqa: E402
    export_onnx,
    inverse_real_fourier,
    real_fourier,
)

# Transforms at both ends, gates everywhere, levels that differ, a group that is not full; one block of each kind, for
# tracing takes its time.
MIXED = STFT | {
    "num_hidden_layers": 1,
    "residual_dilations": (1,),
    "fsq_levels": (4, 5, 3),
    "group_size": 5,
    "daam_in_conformer": True,
    "decoder_istft_stages": 1,
    "transform_bands": 7,
    "decoder_channels": (8, 8, 6),
    "decoder_kernel_sizes": ((3, 7), (3,)),
}


HARMONIC = MIXED | {
    "decoder_istft_stages": 2,
    "harmonic_source": True,
    "decoder_channels": (8, 9),
    "decoder_kernel_sizes": ((3, 7),),
}


FINER = HARMONIC | {"decoder_istft_spectra": 2}


@pytest.fixture(scope="module", params=[MIXED, HARMONIC, FINER], ids=["mixed", "harmonics", "harmonics, finer"])
def checkpoint(request, tmp_path_factory):
    return make_untrained_checkpoint(JepaDaamConfig(**request.param), tmp_path_factory.mktemp("mixed") / "checkpoint")


@pytest.fixture(scope="module")
def model(checkpoint):
    return JepaDaamModel.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def graphs(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx") / "graphs"
    soundfile.write(folder.parent / "clip.wav", noise(60 * 20 + 1), 24000, subtype="FLOAT")
    output = run("export-onnx", folder, "--model", checkpoint, "--check", folder.parent / "clip.wav")
    assert "tokens the same as PyTorch's" in output
    assert sorted(path.name for path in folder.iterdir()) == ["decoder.onnx", "encoder.onnx", "onnx_codec.py"]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano", "shipped"])
def test_speech_has_the_ids_of_real_models_and_comes_back_the_same(name, nano_folder, speech, tmp_path):
    folder = {"nano": nano_folder, "shipped": SHIPPED_MODEL}[name]
    run("export-onnx", tmp_path / name, "--model", folder, "--check", SPEECH)
    tokenizer, codec = JepaAudioTokenizer.from_pretrained(folder), OnnxCodec(tmp_path / name, threads=1)
    assert_the_same(tokenizer, codec, np.tile(speech, 3))


def test_recordings_of_any_length_have_the_tokenizers_ids_and_come_back_the_same(graphs, checkpoint):
    tokenizer, codec = JepaAudioTokenizer.from_pretrained(checkpoint), OnnxCodec(graphs, threads=1)
    for samples in (1, 60, 61, 60 * 7, 60 * 7 + 1, 60 * 20):  # a chunk has 7 frames of 60 samples
        assert_the_same(tokenizer, codec, noise(samples))


def assert_the_same(tokenizer, codec, samples):
    ids = codec.encode(samples)
    assert ids.tolist() == tokenizer(samples, sampling_rate=24000)["input_ids"]
    expected = tokenizer.decode_audio(ids, num_samples=len(samples))
    found = codec.decode(ids, num_samples=len(samples))
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_graphs_take_batches_of_any_number_of_frames(graphs, model):
    encoder, decoder = (onnxruntime.InferenceSession(graphs / name) for name in (ENCODER, DECODER))
    for batch, frames in ((1, 1), (3, 4)):
        audio = noise(batch * frames * 60).reshape(batch, frames * 60)
        codes, latents = encoder.run(None, {"input_values": audio})
        with torch.inference_mode():
            expected = model.encode(torch.from_numpy(audio)[:, None])
            restored = model.decode(expected.audio_codes).audio_values[:, 0]
        np.testing.assert_array_equal(codes, expected.audio_codes.numpy())
        np.testing.assert_allclose(latents, expected.latents.numpy(), atol=1e-4)
        np.testing.assert_allclose(decoder.run(None, {"audio_codes": codes})[0], restored.numpy(), atol=1e-4)


def test_the_folder_works_without_this_package(graphs, checkpoint):
    expected = JepaAudioTokenizer.from_pretrained(checkpoint)(noise(600), sampling_rate=24000)["input_ids"]
    program = (
        "import sys; import numpy as np; from onnx_codec import OnnxCodec; "
        "ids = OnnxCodec('.').encode(np.random.default_rng(0).normal(0.0, 0.1, 600).astype(np.float32)); "
        "assert not {'torch', 'transformers', 'modeling_jepa_daam'} & set(sys.modules); print(*ids)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=graphs, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [int(word) for word in done.stdout.split()] == expected


def test_graphs_that_do_something_else_are_not_left(graphs, checkpoint, tmp_path, monkeypatch):
    other = make_untrained_checkpoint(JepaDaamConfig(**MIXED), tmp_path / "other", seed=1)
    # In place of the trace: the graphs of other weights.
    monkeypatch.setattr(
        module, "_write_graph", lambda *arguments: shutil.copy(graphs / arguments[4].name, arguments[4])
    )
    assert "failed: `model`: of clip" in run("export-onnx", tmp_path / "out", "--model", other, code=1)
    encode, decode = OnnxCodec.encode_with_latents, OnnxCodec.decode

    def slip(self, samples):
        ids, latents = encode(self, samples)
        ids[0] += 1 if ids[0] == 0 else -1
        return ids, latents

    monkeypatch.setattr(OnnxCodec, "encode_with_latents", slip)
    assert "onnxruntime makes 1 of 4 tokens other than PyTorch" in run(
        "export-onnx", tmp_path / "out", "--model", checkpoint, code=1
    )
    monkeypatch.setattr(OnnxCodec, "encode_with_latents", encode)
    monkeypatch.setattr(OnnxCodec, "decode", lambda self, ids: decode(self, ids) + np.float32(2e-4))
    assert "audio that onnxruntime makes differs from PyTorch's by 2.0e-04" in run(
        "export-onnx", tmp_path / "out", "--model", checkpoint, code=1
    )
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_what_a_user_can_get_wrong_is_named(graphs, checkpoint, model, tmp_path):
    codec = OnnxCodec(graphs)
    assert (codec.sampling_rate, codec.hop_length, codec.tokens_per_frame) == (24000, 60, 4)
    assert codec.vocabulary_sizes == [4 * 5 * 3 * 4 * 5, 3 * 4 * 5 * 3 * 4, 5 * 3 * 4 * 5 * 3, 4]
    for samples, error, message in (
        (np.zeros(0, np.float32), ValueError, r"shape \(samples,\)"),
        (np.zeros((1, 60), np.float32), ValueError, r"shape \(samples,\)"),
        (np.zeros(60, np.int16), TypeError, "floating point, got int16"),
        (np.full(60, np.nan, np.float32), ValueError, "finite"),
        (np.full(60, 17.0, np.float32), ValueError, "full scale"),
    ):
        with pytest.raises(error, match=message):
            codec.encode(samples)
    for ids, error, message in (
        ([], ValueError, "whole number of frames of 4"),
        ([0] * 5, ValueError, "whole number of frames of 4"),
        ([0.0] * 4, TypeError, "integers, got float64"),
        ([0, 0, 0, 0, 0, 0, 0, 4], ValueError, r"\[0, 4\) at place 3 of a frame, got 4 in frame 1"),
        ([-1, 0, 0, 0], ValueError, r"\[0, 1200\) at place 0"),
    ):
        with pytest.raises(error, match=message):
            codec.decode(ids)
    with pytest.raises(ValueError, match="`num_samples` must lie in the last of 1 frames"):
        codec.decode([0] * 4, num_samples=61)
    with pytest.raises(FileNotFoundError, match=r"encoder\.onnx"):
        OnnxCodec(tmp_path)
    assert "is there already" in run("export-onnx", graphs, "--model", checkpoint, code=2)
    with pytest.raises(ValueError, match=r"float32 on the CPU, got torch\.bfloat16"):
        export_onnx(JepaDaamModel(model.config).to(torch.bfloat16), tmp_path / "half")


def test_graphs_say_whose_they_are(graphs, checkpoint, tmp_path):
    config = JepaDaamConfig.from_pretrained(checkpoint)
    encoder, decoder = (onnx.load(graphs / name) for name in (ENCODER, DECODER))
    onnx.checker.check_model(encoder)
    onnx.checker.check_model(decoder)
    metadata = OnnxCodec(graphs).metadata
    assert metadata["weights_sha256"] == config.weights_sha256
    assert metadata["config_digest"] == config.digest
    shutil.copy(graphs / ENCODER, tmp_path)
    decoder.metadata_props[0].value = "{}"
    onnx.save(decoder, tmp_path / DECODER)
    with pytest.raises(ValueError, match="not of one codec"):
        OnnxCodec(tmp_path)


@pytest.mark.parametrize("n", [12, 15])
def test_products_with_matrices_are_fourier_transforms(n):
    signal = torch.randn(3, n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = real_fourier(signal, dim=1)
    torch.testing.assert_close(spectrum, torch.fft.rfft(signal, dim=1))
    torch.testing.assert_close(inverse_real_fourier(spectrum, n, dim=1), signal)


def test_a_bin_in_the_dark_stays_dark_beside_a_loud_one(tmp_path):
    class Smoothing(nn.Module):
        def forward(self, power):
            return smoothed(power, torch.full((1, 1), 0.005))

    power = torch.zeros(1, 1281, 1)  # as of the shipped encoder, of a constant of full scale
    power[:, 0], power[:, 1] = 640.0**2, 320.0**2
    graph, path = Smoothing().eval(), tmp_path / "graph.onnx"
    with module._quiet(), torch.no_grad(), module.MatrixFourier():
        torch.onnx.export(graph, (power,), path, dynamo=True, opset_version=module.OPSET)
    (found,) = onnxruntime.InferenceSession(path).run(None, {"power": power.numpy()})
    np.testing.assert_allclose(found, graph(power), rtol=1e-6, atol=SILENCE**2 * 1e-3)
