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
    # Of a transposed convolution, the gradient of its input is the same convolution.
    reached = torch.zeros(expected.shape, dtype=torch.bfloat16, requires_grad=True)
    F.conv_transpose1d(reached, weight.bfloat16(), stride=8).backward(x.bfloat16())
    assert (reached.grad.float() - expected).norm() < 0.02 * expected.norm()
