import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam.convolution import ResidualBlock, SnakeBeta, downsampling_conv, upsampling_conv
from tests import reference


@given(st.integers(2, 12), st.integers(1, 30))
def test_strided_convolutions_divide_and_multiply_lengths_exactly(stride, frames):
    assert downsampling_conv(1, 1, stride)(torch.zeros(1, 1, frames * stride)).shape[-1] == frames
    assert upsampling_conv(1, 1, stride)(torch.zeros(1, 1, frames)).shape[-1] == frames * stride


def test_snake_agrees_with_its_formula():
    module = SnakeBeta(2)
    module.raw_beta.data = torch.tensor([[0.3], [-1.0]])
    x = torch.linspace(-3, 3, 7).expand(1, 2, -1)
    expected = [[reference.snake(v, raw) for v in x[0, 0].tolist()] for raw in (0.3, -1.0)]
    torch.testing.assert_close(module(x)[0], torch.tensor(expected))


@pytest.mark.parametrize(("kernel_size", "dilations"), [(3, (1, 3, 5)), (7, (1, 2)), (1, (1,))])
def test_the_radius_of_a_residual_block_is_how_far_it_sees(kernel_size, dilations):
    block = ResidualBlock(1, kernel_size, dilations)
    for parameter in block.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    x = torch.zeros(1, 1, 301, requires_grad=True)
    block(x)[0, 0, 150].backward()
    seen = x.grad[0, 0].nonzero().flatten()
    assert (150 - seen.min(), seen.max() - 150) == (block.radius, block.radius)


def test_a_residual_block_does_not_see_padding():
    block = ResidualBlock(2, 3, (1, 3))
    x = torch.randn(1, 2, 20)
    padded = torch.cat([x, torch.full((1, 2, 10), 9.0)], dim=-1)
    torch.testing.assert_close(block(padded, (torch.arange(30) < 20)[None, None])[..., :20], block(x))
