import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamEncoderModel, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from modeling_jepa_daam.files import sha256_of
from tests.conftest import TINY, noise


@pytest.fixture
def model():
    torch.manual_seed(0)
    return JepaDaamModel(JepaDaamConfig(**TINY)).eval()


def named_hash(folder):
    return json.loads((folder / "config.json").read_text())["weights_sha256"]


def test_the_configuration_names_the_hash_of_the_weights(model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    assert named_hash(folder) == sha256_of(folder / "model.safetensors")
    assert JepaDaamModel.from_pretrained(folder).config.digest == model.config.digest


def tokenize(folder):
    return JepaAudioTokenizer.from_pretrained(folder)(noise(600), sampling_rate=24000)


@pytest.mark.parametrize(
    "load",
    [JepaDaamModel.from_pretrained, JepaDaamEncoderModel.from_pretrained, AutoModel.from_pretrained, tokenize],
    ids=["codec", "encoder", "auto", "tokenizer"],
)
def test_other_weights_are_refused(load, model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    state = load_file(folder / "model.safetensors")
    state["encoder.bottleneck.bias"][0] += 1e-3
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors of .*checkpoint is damaged or of another checkpoint"):
        load(folder)


def test_a_model_saved_by_itself_forgets_the_hash_and_loads(model, tmp_path):
    trained = JepaDaamModel.from_pretrained(save_checkpoint(model, tmp_path / "checkpoint"))
    assert trained.config.weights_sha256 is not None
    with torch.no_grad():
        trained.encoder.bottleneck.bias += 1.0
    trained.save_pretrained(tmp_path / "trained")
    assert named_hash(tmp_path / "trained") is None
    again = JepaDaamModel.from_pretrained(tmp_path / "trained")
    assert torch.equal(again.encoder.bottleneck.bias, trained.encoder.bottleneck.bias)


def test_half_takes_half_the_space_and_loads_as_float32(model, tmp_path):
    model.quantizer.running_var.fill_(0.1)  # not a float16 number
    folder = save_checkpoint(model, tmp_path / "half", half=True)
    with safe_open(folder / "model.safetensors", "pt") as file:
        dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (no mapping)
    assert {dtype for name, dtype in dtypes.items() if not name.startswith("quantizer.")} == {torch.float16}
    assert dtypes["quantizer.running_var"] == torch.float32
    loaded = JepaDaamModel.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.quantizer.running_var, model.quantizer.running_var)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-6)
    audio = torch.tensor(noise(600))[None, None]
    assert torch.equal(
        loaded.encode(audio).audio_codes, JepaDaamModel.from_pretrained(folder).encode(audio).audio_codes
    )


def test_a_hash_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`weights_sha256` must be 64 hexadecimal digits, got 'abc'"):
        JepaDaamConfig(weights_sha256="abc")
