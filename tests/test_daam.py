import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from modeling_jepa_daam.daam import DensityAdaptiveAttention, mixture_density
from tests import reference


def test_the_gate_agrees_with_equations_1_to_7(rng):
    signal, delta, nu = rng.normal(2.0, 3.0, 50), rng.normal(0, 0.5, 4), rng.normal(-0.5, 0.5, 4)
    gate = mixture_density(torch.tensor(signal)[None, None], torch.tensor(delta), torch.tensor(nu))
    np.testing.assert_allclose(gate[0, 0].numpy(), reference.daam_gate(signal, delta, nu), rtol=1e-10)


def test_a_constant_signal_has_the_density_of_its_mean(rng):
    gate = mixture_density(torch.full((1, 1, 5), 3.0), torch.zeros(4), torch.full((4,), math.log(0.5)))
    np.testing.assert_allclose(gate[0, 0].numpy(), reference.daam_gate([3.0] * 5, [0.0] * 4, [math.log(0.5)] * 4), 1e-5)


def test_the_module_modulates_as_equation_9_says(rng):
    module = DensityAdaptiveAttention(channels=3, num_gaussians=4, alpha=0.05)
    x = torch.tensor(rng.normal(size=(2, 3, 20)), dtype=torch.float32)
    y, gate = module(x)
    signal = module.projection(x).detach().numpy()[:, 0]
    expected = np.stack([reference.daam_gate(s, [0.0] * 4, [math.log(0.5)] * 4) for s in signal])
    np.testing.assert_allclose(gate.detach().numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(y.detach().numpy(), x.numpy() * (1 + 0.05 * expected[:, None]), rtol=1e-4)


def test_initial_values_are_the_papers():
    module = DensityAdaptiveAttention(channels=3)
    assert module.alpha.item() == pytest.approx(0.05)
    assert module.delta.tolist() == [0.0] * 4
    assert module.nu.tolist() == pytest.approx([math.log(0.5)] * 4)


def test_padding_is_outside_the_statistics(rng):
    module = DensityAdaptiveAttention(channels=3)
    x = torch.tensor(rng.normal(size=(1, 3, 20)), dtype=torch.float32)
    padded = torch.cat([x, torch.full((1, 3, 9), 1e3)], dim=-1)
    mask = (torch.arange(29) < 20)[None, None]
    torch.testing.assert_close(module(padded, mask)[0][..., :20], module(x)[0])
    torch.testing.assert_close(module(padded, mask)[1][..., :20], module(x)[1])


def test_gradients_are_those_of_the_formula(rng):
    delta = torch.tensor(rng.normal(0, 0.5, 4), requires_grad=True)
    nu = torch.tensor(rng.normal(-0.5, 0.5, 4), requires_grad=True)
    signal = torch.tensor(rng.normal(size=(2, 1, 6)), requires_grad=True)
    assert gradcheck(mixture_density, (signal, delta, nu))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gate_is_computed_in_float32(dtype, rng):
    module = DensityAdaptiveAttention(channels=3).to(dtype)
    x = torch.tensor(rng.normal(size=(1, 3, 20))).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, gate = module(x)
    assert gate.dtype == torch.float32
    assert y.dtype == dtype
    torch.testing.assert_close(gate, module.float()(x.float())[1])
