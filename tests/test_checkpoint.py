import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModel, Trainer, TrainingArguments, modeling_utils
from transformers.utils.hub import PushToHubMixin

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamForPreTraining,
    JepaDaamModel,
)
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


def changed(model):
    with torch.no_grad():
        model.encoder.bottleneck.bias += 1.0
    return model


def save_with_trainer(model, folder):
    Trainer(model, TrainingArguments(folder / "run", report_to=[], use_cpu=True)).save_model(folder)


SAVES = {
    "model": lambda model, folder: model.save_pretrained(folder),
    "shards": lambda model, folder: model.save_pretrained(folder, max_shard_size="10KB"),
    "state": lambda model, folder: model.save_pretrained(folder, state_dict=model.state_dict()),
    "checkpoint": save_checkpoint,
    "Trainer": save_with_trainer,
    "configuration after weights": lambda model, folder: (
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"}),
        model.config.save_pretrained(folder),
    ),
    "weights over others": lambda model, folder: (
        JepaDaamModel(model.config).save_pretrained(folder),
        model.save_pretrained(folder),
    ),
    "shards over one file": lambda model, folder: (
        JepaDaamModel(model.config).save_pretrained(folder),
        model.save_pretrained(folder, max_shard_size="10KB"),
    ),
    "one file over shards": lambda model, folder: (
        JepaDaamModel(model.config).save_pretrained(folder, max_shard_size="10KB"),
        model.save_pretrained(folder),
    ),
}


@pytest.mark.parametrize("save", SAVES.values(), ids=SAVES.keys())
def test_every_way_to_save_names_the_weights_that_lie_there(save, model, tmp_path):
    trained = changed(JepaDaamModel.from_pretrained(save_checkpoint(model, tmp_path / "checkpoint")))
    folder = tmp_path / "trained"
    folder.mkdir()
    save(trained, folder)
    named = named_hash(folder)
    if isinstance(named, dict):
        assert named == {file.name: sha256_of(file) for file in folder.glob("model-*.safetensors")}
        assert len(named) > 1
    else:
        assert named == sha256_of(folder / "model.safetensors")
    again = JepaDaamModel.from_pretrained(folder)
    assert torch.equal(again.encoder.bottleneck.bias, trained.encoder.bottleneck.bias)
    damage(next(folder.glob("model*.safetensors")))
    with pytest.raises(ValueError, match="is damaged or of another checkpoint"):
        JepaDaamModel.from_pretrained(folder)


def damage(file):
    with open(file, "r+b") as opened:
        opened.seek(-1, 2)
        last = opened.read(1)
        opened.seek(-1, 2)
        opened.write(bytes([last[0] ^ 1]))


def test_what_is_uploaded_names_its_weights(model, tmp_path, monkeypatch):
    """`save_pretrained(push_to_hub=True)` uploads before it returns."""
    uploaded = []
    monkeypatch.setattr(
        PushToHubMixin,
        "_upload_modified_files",
        lambda self, folder, *args, **kwargs: uploaded.append(named_hash(folder)),
    )
    monkeypatch.setattr(modeling_utils, "hf_api", lambda: SimpleNamespace(
        create_repo=lambda repo, **kwargs: SimpleNamespace(repo_id=repo)))  # fmt: skip
    monkeypatch.setattr(modeling_utils, "create_and_tag_model_card", lambda *args, **kwargs: SimpleNamespace(
        save=lambda path: None))  # fmt: skip
    model.save_pretrained(tmp_path, push_to_hub=True, repo_id="someone/model")
    assert uploaded == [sha256_of(tmp_path / "model.safetensors")]


def test_a_configuration_without_weights_names_none(model, tmp_path):
    loaded = JepaDaamModel.from_pretrained(save_checkpoint(model, tmp_path / "checkpoint"))
    assert loaded.config.weights_sha256 is not None
    loaded.config.save_pretrained(tmp_path / "configuration")
    assert named_hash(tmp_path / "configuration") is None


def test_a_variant_is_verified_by_its_own_file(model, tmp_path):
    model.save_pretrained(tmp_path)
    changed(model).save_pretrained(tmp_path, variant="other")
    for variant, added in ((None, 0.0), ("other", 1.0)):
        loaded = JepaDaamModel.from_pretrained(tmp_path, variant=variant)
        torch.testing.assert_close(loaded.encoder.bottleneck.bias.detach(), torch.full((16,), added))
    damage(tmp_path / "model.other.safetensors")
    JepaDaamModel.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.other\.safetensors of .* is damaged"):
        JepaDaamModel.from_pretrained(tmp_path, variant="other")


def test_a_renamed_file_is_the_one_that_is_verified(model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    assert JepaDaamModel.from_pretrained(folder, variant="fp16").config.digest == model.config.digest


def without_hash(folder):
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"weights_sha256": None}))


LOADS = {
    "codec": JepaDaamModel.from_pretrained,
    "encoder": JepaDaamEncoderModel.from_pretrained,
    "Stage 1": JepaDaamForPreTraining.from_pretrained,
    "auto": AutoModel.from_pretrained,
    "own configuration": lambda folder: JepaDaamModel.from_pretrained(folder, config=JepaDaamConfig(**TINY)),
    "tokenizer": tokenize,
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
def test_weights_that_lack_a_tensor_are_refused(load, model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    state = load_file(folder / "model.safetensors")
    del state["encoder.bottleneck.bias"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    without_hash(folder)
    with pytest.raises(ValueError, match=r"lacks 1 tensors of .*such as encoder\.bottleneck\.bias"):
        load(folder)
    _, info = JepaDaamModel.from_pretrained(folder, output_loading_info=True)  # who asks may go on
    assert info["missing_keys"] == {"encoder.bottleneck.bias"}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(load, value, model, tmp_path):
    with torch.no_grad():
        model.encoder.bottleneck.weight[0, 0] = value
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"weights that are not finite, in (target_)?encoder\.bottleneck\.weight"):
        load(folder)


@pytest.mark.parametrize("load", [*LOADS.values(), JepaDaamConfig.from_pretrained])
def test_a_folder_without_a_configuration_is_refused(load, model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    (folder / "config.json").unlink()
    with pytest.raises((OSError, ValueError), match="config.json|Unrecognized model|`codec`"):
        load(folder)


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS.keys())
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n", "a pointer of Git LFS.*git lfs pull"),
        (b"", "damaged or not a safetensors file"),
        (b"\xff" * 100, "damaged or not a safetensors file"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused_by_its_reason(load, content, reason, model, tmp_path):
    folder = save_checkpoint(model, tmp_path / "checkpoint")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        load(folder)


def test_weights_that_come_from_memory_are_not_compared_with_a_file(model, tmp_path):
    config = JepaDaamConfig.from_pretrained(save_checkpoint(model, tmp_path / "checkpoint"))
    loaded = JepaDaamModel.from_pretrained(None, config=config, state_dict=changed(model).state_dict())
    torch.testing.assert_close(loaded.encoder.bottleneck.bias.detach(), torch.ones(16))


def test_a_configuration_of_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="is of a llama model, not of a jepa_daam model"):
        JepaDaamConfig.from_pretrained(tmp_path)


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
