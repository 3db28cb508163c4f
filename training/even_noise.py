"""Noise for the source-filter head that is about as loud at any time and frequency as at any other.

White noise is so in the mean only: of two pieces of it, with the same spectrum, each short stretch of a narrow band
differs by 8 dB or so. A codec cannot say which piece it was; a piece that nowhere strays far is nearest to all others.
"""

import torch
from torch import Tensor

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.istft_head import OVERLAP, inverse_stft
from modeling_jepa_daam.source_filter_head import SourceFilterHead, white_noise
from modeling_jepa_daam.stft_front_end import stft

HOPS = (320, 160)  # in samples: of windows of 53 and 27 ms at 24 kHz, about those by which speech is judged
ROUNDS = 100


@torch.no_grad()
def even_noise(table: Tensor, hops: tuple[int, ...] = HOPS, rounds: int = ROUNDS) -> Tensor:
    """The noise, `(samples,)`, of variance 1, that is left when magnitudes of spectra are set to 1 again and again.

    Args:
        table: `(samples,)`, at least one window, taken for a circle.
        hops: Between windows of four hops each, by turns.
        rounds: Through all hops.

    Source: Griffin and Lim 1984, of magnitudes that no sound has: what is found only comes near to them.
    """
    sound = table.double()[None]
    for _ in range(rounds):
        for hop in hops:
            margin = OVERLAP * hop
            around = torch.cat([sound[:, -margin:], sound, sound[:, :margin]], dim=1)
            spectrum = stft(around, hop)
            spectrum = spectrum / spectrum.abs().clamp(min=1e-9)
            sound = inverse_stft(spectrum, hop)[0, :, margin : margin + table.shape[0]]
            sound = sound / sound.std()
    return sound[0].to(table.dtype)


def set_even_noise(codec: JepaDaamModel) -> None:
    """Let the head of a codec cut from even noise, if it has such a head and its noise is still that of chance."""
    head = codec.decoder.istft_head
    if isinstance(head, SourceFilterHead) and torch.equal(head.noise.cpu(), torch.from_numpy(white_noise())):
        head.noise.copy_(even_noise(head.noise))
