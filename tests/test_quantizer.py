import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.quantizer import FiniteScalarQuantizer
from tests import reference
from tests.conftest import TINY

LEVEL = st.integers(2, 12)


def test_the_papers_four_values_and_three_thresholds():
    quantizer = FiniteScalarQuantizer([4])
    values = quantizer.indices_to_values(torch.arange(4)[:, None, None])
    assert values.flatten().tolist() == [-0.75, -0.25, 0.25, 0.75]
    half = math.atanh(0.5)
    latents = torch.tensor([-half - 1e-4, -half + 1e-4, -1e-4, 1e-4, half - 1e-4, half + 1e-4])
    assert quantizer.latents_to_indices(latents[:, None, None]).flatten().tolist() == [0, 1, 1, 2, 2, 3]


@given(LEVEL, st.floats(-6, 6), st.floats(0.25, 4))
def test_rounding_agrees_with_equations_12_to_14(level, latent, temperature):
    quantizer = FiniteScalarQuantizer([level], temperature)
    index = quantizer.latents_to_indices(torch.tensor([[[latent]]])).item()
    bounded = math.tanh(latent / temperature)
    expected = reference.fsq_index(latent, level, temperature)
    near_a_threshold = min(abs((bounded + 1) / 2 * level - k) for k in range(level + 1)) < 1e-5
    assert index == expected or (near_a_threshold and abs(index - expected) == 1)


@given(LEVEL)
def test_values_agree_with_equation_13(level):
    values = FiniteScalarQuantizer([level]).indices_to_values(torch.arange(level)[:, None, None])
    torch.testing.assert_close(
        values.flatten().double(), torch.tensor(reference.fsq_values(level), dtype=torch.float64)
    )


@given(st.lists(LEVEL, min_size=1, max_size=6), st.floats(-50, 50))
def test_indices_are_in_range_and_monotone_in_each_dimension(levels, start):
    quantizer = FiniteScalarQuantizer(levels)
    latents = torch.linspace(start, start + 5, 101)[:, None].expand(-1, len(levels))[None]
    indices = quantizer.latents_to_indices(latents)
    assert (indices >= 0).all()
    assert (indices < torch.tensor(levels)).all()
    assert (indices.diff(dim=1) >= 0).all()


@given(st.lists(LEVEL, min_size=1, max_size=6))
def test_a_levels_value_is_in_that_levels_cell(levels):
    quantizer = FiniteScalarQuantizer(levels)
    for index in range(min(levels)):
        indices = torch.full((1, 1, len(levels)), index)
        values = quantizer.indices_to_values(indices)
        assert torch.equal(quantizer.latents_to_indices(values.atanh()), indices)


def test_a_tie_goes_to_the_lower_level():
    assert FiniteScalarQuantizer([4]).latents_to_indices(torch.zeros(1, 1, 1)).item() == 1
    assert reference.fsq_index(0.0, 4) == 1


def test_forward_gives_the_levels_value_and_the_gradient_passes_through():
    quantizer = FiniteScalarQuantizer([4, 5, 3])
    latents = (torch.randn(2, 7, 3) * 3).requires_grad_()
    quantized, indices = quantizer(latents)
    assert torch.equal(quantized, quantizer.indices_to_values(indices))
    upstream = torch.randn_like(quantized)
    quantized.backward(upstream)
    assert torch.equal(latents.grad, upstream)  # eq. 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_runs_in_float32_whatever_comes(dtype):
    quantizer = FiniteScalarQuantizer([4])
    latents = torch.linspace(-3, 3, 1001)[None, :, None].to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, indices = quantizer(latents)
    assert quantized.dtype == dtype
    assert torch.equal(indices, quantizer.latents_to_indices(latents.float()))
    assert sum(p.numel() for p in quantizer.parameters()) == len(list(quantizer.buffers())) == 0


def normalizing(dimensions=3):
    return FiniteScalarQuantizer([4] * dimensions, normalize=True)


def test_normalization_brings_dead_digits_to_life():
    """Latents far from zero, or hardly moving, fall into one cell each; normalized, into all."""
    torch.manual_seed(0)
    latents = torch.randn(8, 40, 3) * torch.tensor([0.01, 1.0, 0.1]) + torch.tensor([0.2, 3.0, -2.0])
    plain = FiniteScalarQuantizer([4] * 3)(latents)[1].flatten(0, 1)
    assert [len(digit.unique()) for digit in plain.T] == [1, pytest.approx(2, abs=1), 1]
    normalized = normalizing()(latents, learn_statistics=True)[1].flatten(0, 1)
    for digit in normalized.T:
        assert digit.bincount(minlength=4).min() > 0.1 * len(digit)


def test_normalization_is_by_valid_frames_alone():
    torch.manual_seed(0)
    latents, mask = torch.randn(2, 10, 3), torch.ones(2, 10, dtype=torch.bool)
    mask[1, 4:] = False
    quantizer, other = normalizing(), normalizing()
    normalized = quantizer.normalized(latents, mask, learn_statistics=True)
    valid = torch.cat([latents[0], latents[1, :4]])
    torch.testing.assert_close(
        normalized[0], ((latents - valid.mean(0)) / (valid.var(0, correction=0) + 1e-5).sqrt())[0]
    )
    other.normalized(valid[None], learn_statistics=True)
    torch.testing.assert_close(quantizer.running_mean, other.running_mean)
    torch.testing.assert_close(quantizer.running_var, other.running_var)


def test_a_frames_digits_depend_on_nothing_but_the_frame():
    torch.manual_seed(0)
    quantizer = normalizing()
    latents = torch.randn(4, 10, 3) + 2.0
    for _ in range(300):
        quantizer(latents, learn_statistics=True)
    torch.testing.assert_close(quantizer.running_mean, latents.mean(dim=(0, 1)), rtol=0.01, atol=0.01)
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    together = quantizer(latents)[1]
    assert torch.equal(quantizer(latents[2:3, 4:5])[1], together[2:3, 4:5])
    assert all(torch.equal(value, before[name]) for name, value in quantizer.state_dict().items())


def test_one_frame_is_too_few_to_learn_statistics_from():
    with pytest.raises(ValueError, match="`learn_statistics` needs at least 2 frames in a batch, got 1"):
        normalizing()(torch.randn(1, 1, 3), learn_statistics=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_stay_float32_in_a_model_of_another_dtype(tmp_path, dtype):
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**TINY)).eval()
    model.quantizer.running_mean.normal_()
    mean = model.quantizer.running_mean.clone()
    model.save_pretrained(tmp_path)
    for other in (JepaDaamModel.from_pretrained(tmp_path, dtype=dtype), model.to(dtype)):
        assert other.dtype == dtype
        assert torch.equal(other.quantizer.running_mean, mean)
        assert other.encode(torch.zeros(1, 1, 600)).audio_codes.shape[-1] == 10
