"""Weights between those of two codecs."""

import json

import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.checkpoint import save_checkpoint
from tests.conftest import TINY
from training.blend import blend
from training.evidence import describe_run


@pytest.fixture
def folders(tmp_path):
    """Two codecs of one configuration, as runs leave them."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        codec = JepaDaamModel(JepaDaamConfig(**TINY))
        codec.quantizer.running_mean.normal_()
        save_checkpoint(codec, tmp_path / name / "model")
    return tmp_path / "one" / "model", tmp_path / "two" / "model"


def test_every_weight_lies_between(folders, tmp_path):
    found = JepaDaamModel.from_pretrained(blend(*folders, 0.75, tmp_path / "three")).state_dict()
    first, second = (JepaDaamModel.from_pretrained(folder).state_dict() for folder in folders)
    for name, value in found.items():
        torch.testing.assert_close(value, 0.25 * first[name] + 0.75 * second[name])
    assert any(not torch.equal(first[name], second[name]) for name in first if name.startswith("encoder."))


def test_the_card_can_tell_of_what_it_was_made(folders, tmp_path):
    blend(*folders, 0.25, tmp_path / "three")
    told = describe_run(tmp_path / "three", "here", 2)
    assert told["blend"] == {"first": "runs/one/model", "second": "runs/two/model", "share": 0.25}
    assert told["command"] == "python -m training.blend runs/one/model runs/two/model 0.25 runs/three"
    assert json.loads((tmp_path / "three" / "blend.json").read_text()) == told["blend"]


def test_wrong_input(folders, tmp_path):
    with pytest.raises(ValueError, match=r"`share` must lie in \[0, 1\], got 1.5"):
        blend(*folders, 1.5, tmp_path / "three")
    save_checkpoint(JepaDaamModel(JepaDaamConfig(**TINY | {"group_size": 4})), tmp_path / "other" / "model")
    with pytest.raises(ValueError, match="has another configuration"):
        blend(folders[0], tmp_path / "other" / "model", 0.5, tmp_path / "three")
    assert not (tmp_path / "three").exists()
