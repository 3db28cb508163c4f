import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel, JepaDaamModel
from training.frozen import frozen_by_name, load_frozen

from .conftest import TINY, noise


def features(model: JepaDaamEncoderModel) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(noise(600))[None, None]).last_hidden_state[0].numpy()


def test_models_are_loaded_as_they_were_saved(tiny_folder):
    saved, *drawn = (features(load_frozen(JepaDaamEncoderModel, tiny_folder, seed)) for seed in (None, 0, 1, 1))
    np.testing.assert_array_equal(saved, features(JepaDaamEncoderModel.from_pretrained(tiny_folder).eval()))
    assert (drawn[1] == drawn[2]).all()
    assert not np.allclose(drawn[0], drawn[1])


def test_drawing_weights_leaves_the_random_state_alone(tiny_folder):
    state = torch.get_rng_state()
    load_frozen(JepaDaamEncoderModel, tiny_folder, 5)
    assert (torch.get_rng_state() == state).all()


def test_models_are_named(tiny_folder):
    models = frozen_by_name(
        JepaDaamModel, [f"mine={tiny_folder}", str(tiny_folder)], [str(tiny_folder), f"{tiny_folder}:3"]
    )
    assert list(models) == ["mine", "checkpoint", "checkpoint, untrained 0", "checkpoint, untrained 3"]
    assert not any(model.training for model in models.values())
    with pytest.raises(ValueError, match="names that differ"):
        frozen_by_name(JepaDaamModel, [str(tiny_folder), str(tiny_folder)])


def test_folders_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(ValueError, match="existing folder, got nowhere"):
        load_frozen(JepaDaamEncoderModel, "nowhere")
    small = JepaDaamEncoderModel(JepaDaamConfig(**TINY | {"num_hidden_layers": 1}))
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ValueError, match="small lacks weights of JepaDaamModel: decoder"):  # nor a quantizer
        load_frozen(JepaDaamModel, tmp_path / "small")
    JepaDaamConfig(**TINY).save_pretrained(tmp_path / "small")  # one block more than there are weights
    with pytest.raises(ValueError, match="small lacks weights of JepaDaamEncoderModel: encoder"):
        load_frozen(JepaDaamEncoderModel, tmp_path / "small")
