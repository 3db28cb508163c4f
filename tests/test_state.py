"""A forward pass changes nothing that turns audio into tokens, and no result passes through shared modules."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, model_cache
from tests.conftest import TINY, noise

LOUD = TINY | {"hidden_dropout": 0.5, "attention_dropout": 0.5}


@pytest.fixture
def model() -> JepaDaamModel:
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**LOUD))
    model.quantizer.running_mean.normal_(std=0.1)
    return model


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("prepare", [lambda m: m, lambda m: m.train(), lambda m: nn.Sequential(m).train()[0]],
                         ids=["new", "train", "trained with its parent"])  # fmt: skip
@torch.no_grad()
def test_training_mode_gives_the_same_tokens_and_changes_nothing(model, prepare):
    values = torch.tensor(noise(2000)).view(2, 1, 1000)
    mask = torch.ones(2, 1000)
    mask[1, 500:] = 0
    expected = copy.deepcopy(model).eval()
    codes, before = expected.encode(values, mask).audio_codes, state_of(model)
    model = prepare(model)
    for _ in range(3):
        assert torch.equal(model.encode(values, mask).audio_codes, codes)
        assert torch.equal(model(values, mask).audio_codes, codes)
        assert torch.equal(model.decode(codes).audio_values, expected.decode(codes).audio_values)
    assert model.waveforms_to_ids([values[0, 0]]) == expected.waveforms_to_ids([values[0, 0]])
    assert_same(model, before)


def test_training_around_a_frozen_codec_leaves_it_as_it_was(model):
    codec = model.requires_grad_(False)
    network = nn.ModuleDict({"codec": codec, "head": nn.Linear(16, 2)}).train()
    before = state_of(codec)
    values = torch.tensor(noise(1200)).view(2, 1, 600)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.1)
    for _ in range(4):
        output = network["codec"](values)
        network["head"](output.latents.transpose(1, 2)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(codec, before)


def test_one_users_training_mode_is_not_anothers(tiny_folder):
    first, second = (JepaAudioTokenizer.from_pretrained(tiny_folder) for _ in range(2))
    expected = second(noise(1000), 24000)["input_ids"]
    first.model.train()
    for _ in range(3):
        first.model(torch.tensor(noise(600))[None, None])
    assert second(noise(1000), 24000)["input_ids"] == expected
    first.model.eval()


def test_statistics_are_learned_by_name_alone(model):
    latents = torch.randn(2, 50, 16) + 2.0
    before = model.quantizer.running_mean.clone()
    model.train().quantizer(latents)
    assert torch.equal(model.quantizer.running_mean, before)
    quantized, _ = model.quantizer.eval()(latents, learn_statistics=True)
    assert not torch.equal(model.quantizer.running_mean, before)
    assert abs(quantized.mean().item()) < 0.1  # by the batch's own mean


def test_dropout_is_asked_for_by_name(model):
    model.encoder.train()
    values = torch.tensor(noise(600))[None, None]
    assert not torch.equal(model(values).latents, model(values).latents)


@pytest.mark.parametrize("calls", ["salience", "tokens"])
def test_salience_beside_another_call_is_what_it_is_alone(tiny_tokenizer, calls):
    waveforms = [noise(60 * (20 + 3 * n), seed=n) for n in range(6)]
    expected = [tiny_tokenizer.salience(samples, 24000) for samples in waveforms]
    tokens = [tiny_tokenizer(samples, 24000)["input_ids"] for samples in waveforms]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            other = tiny_tokenizer.salience if calls == "salience" else tiny_tokenizer
            found = [pool.submit(tiny_tokenizer.salience, samples, 24000) for samples in waveforms]
            others = [pool.submit(other, samples, 24000) for samples in waveforms]
            for future, salience in zip(found, expected, strict=True):
                np.testing.assert_array_equal(future.result(), salience)
            for future, ids, salience in zip(others, tokens, expected, strict=True):
                if calls == "tokens":
                    assert future.result()["input_ids"] == ids
                else:
                    np.testing.assert_array_equal(future.result(), salience)


def test_salience_leaves_no_hook_on_the_shared_model(tiny_tokenizer):
    tiny_tokenizer.salience(noise(600), 24000)
    assert not any(part._forward_hooks for part in tiny_tokenizer.model.modules())


def test_the_first_call_of_eight_threads_loads_the_model_once(tiny_folder, tmp_path, monkeypatch):
    loads, start = [], threading.Barrier(8)
    load = JepaDaamModel.from_pretrained
    monkeypatch.setattr(model_cache, "_models", {})
    monkeypatch.setattr(
        model_cache.JepaDaamModel,
        "from_pretrained",
        lambda *args, **kwargs: loads.append(args) or load(*args, **kwargs),
    )
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)

    def first_call(_):
        start.wait()
        return tokenizer(noise(600), 24000)["input_ids"]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(first_call, range(8)))
    assert len(loads) == 1
    assert all(ids == found[0] for ids in found)
