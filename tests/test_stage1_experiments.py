"""Starts of Stage 2 that are compared: what they share, and what makes them differ."""

import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamForPreTraining, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from tests.conftest import STFT, noise
from training.stage1_experiments import beside

CODE = STFT | {"transform_bands": 7, "hidden_dropout": 0.0, "attention_dropout": 0.0}


def test_both_starts_have_one_code_and_networks_of_their_own(tmp_path):
    torch.manual_seed(7)
    computed = JepaDaamModel(JepaDaamConfig(**CODE)).eval()
    computed.quantizer.running_mean.normal_()
    save_checkpoint(computed, tmp_path / "transform")
    stage1 = JepaDaamForPreTraining(JepaDaamConfig(**STFT))
    stage1.save_pretrained(tmp_path / "stage1")

    fresh = beside(tmp_path / "transform", None, seed=1).eval()
    pretrained = beside(tmp_path / "transform", tmp_path / "stage1", seed=1).eval()
    samples = torch.from_numpy(noise(400))
    tokens = fresh.waveforms_to_ids([samples])
    assert tokens == pretrained.waveforms_to_ids([samples])  # the networks add nothing yet
    assert torch.equal(fresh.quantizer.running_mean, computed.quantizer.running_mean)
    assert torch.equal(pretrained.encoder.bottleneck.weight, stage1.encoder.bottleneck.weight)
    assert not torch.equal(fresh.encoder.bottleneck.weight, stage1.encoder.bottleneck.weight)
    assert not torch.equal(
        fresh.encoder.bottleneck.weight, beside(tmp_path / "transform", None, 2).encoder.bottleneck.weight
    )
