import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.decoder import HifiGanDecoder
from tests.conftest import TINY


def shorter(istft_stages):
    """The tiny decoder with an inverse STFT in place of its last stages."""
    kept = 3 - istft_stages
    return TINY | {
        "decoder_istft_stages": istft_stages,
        "decoder_channels": TINY["decoder_channels"][: kept + 1],
        "decoder_kernel_sizes": TINY["decoder_kernel_sizes"][:kept],
    }


@pytest.fixture(params=[0, 1, 2, 3], ids="istft {}".format)
def decoder(request):
    torch.manual_seed(2)
    return HifiGanDecoder(JepaDaamConfig(**shorter(request.param))).double().eval()


@pytest.mark.parametrize("frames", [1, 2, 3, 20])
def test_frames_become_hops_exactly(decoder, frames):
    assert decoder(torch.zeros(1, 16, frames, dtype=torch.float64)).shape == (1, 1, frames * 60)


def test_the_margin_is_enough_and_one_frame_less_is_not(decoder):
    """Frames further away than `margins()[0]` do not reach a frame's samples; the furthest that counts does."""
    reach = decoder.margins()[0]
    latents = torch.randn(1, 16, 2 * reach + 3, dtype=torch.float64, requires_grad=True)
    middle = reach + 1
    decoder(latents)[..., middle * 60 : (middle + 1) * 60].sum().backward()
    seen = latents.grad[0].abs().sum(dim=0).nonzero().flatten()
    assert middle - reach <= seen.min() <= seen.max() <= middle + reach
    assert min(middle - seen.min(), seen.max() - middle) >= reach - 1  # ceilings may cost one frame, not two


@pytest.mark.parametrize(("start", "end"), [(0, 1), (0, 9), (5, 6), (4, 17), (22, 30), (29, 30)])
def test_a_window_with_context_equals_the_whole(decoder, start, end):
    latents = torch.randn(1, 16, 30, dtype=torch.float64)
    whole, reach = decoder(latents), decoder.margins()[0]
    left, right = min(start, reach), min(30 - end, reach)
    part = decoder(latents[..., start - left : end + right], context=(left, right))
    torch.testing.assert_close(part, whole[..., start * 60 : end * 60], rtol=0, atol=1e-12)


def test_without_context_the_window_differs(decoder):
    """The test above would mean nothing if a decoder ignored its neighbours."""
    latents = torch.randn(1, 16, 30, dtype=torch.float64)
    difference = decoder(latents[..., 5:9]) - decoder(latents)[..., 300:540]
    assert difference.abs().max() > 1e-3


def test_padding_does_not_change_valid_samples(decoder):
    latents = torch.randn(2, 16, 12, dtype=torch.float64)
    mask = torch.ones(2, 12, dtype=torch.bool)
    mask[1, 5:] = False
    padded = decoder(latents, mask)
    torch.testing.assert_close(padded[:1], decoder(latents[:1]), rtol=0, atol=1e-12)
    torch.testing.assert_close(padded[1:, :, :300], decoder(latents[1:, :, :5]), rtol=0, atol=1e-12)
