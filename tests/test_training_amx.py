"""What oneDNN computes in bfloat16, where importing `training` keeps it from AMX."""

import torch
import torch.nn.functional as F

import training  # noqa: F401


def test_bfloat16_convolutions_of_few_channels_are_right():
    """Those of a stride, forwards and backwards: with AMX, off by as much as they are large."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((2, 8, 600), (16, 8, 16)))
    expected = F.conv1d(x, weight, stride=8)
    found = F.conv1d(x.bfloat16(), weight.bfloat16(), stride=8).float()
    assert (found - expected).norm() < 0.02 * expected.norm()
    gradient = torch.randn(expected.shape, generator=generator)
    halved = gradient.bfloat16().requires_grad_()
    F.conv_transpose1d(halved, weight.bfloat16(), stride=8).backward(x[..., :600].bfloat16())
    wanted = F.conv1d(x[..., :600], weight, stride=8)
    assert (halved.grad.float() - wanted).norm() < 0.02 * wanted.norm()
