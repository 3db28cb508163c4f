"""What the decoder knows of the spectrogram halfway up: an auxiliary task, far cheaper than the waveform.

Layout: features `(batch, channels, frames)`, spectrograms `(batch, frames, bands)`.
"""

import math

from torch import Tensor, nn

from modeling_jepa_daam.decoder import HifiGanDecoder
from modeling_jepa_daam.source_filter_head import SourceFilterHead

MIN_RATE = 50.0  # spectra a second: the fewest that tell one sound of speech from the next
NUM_BANDS = 160  # fine enough for the first harmonics of a voice
LOG_MEAN, LOG_SCALE = -2.5, 2.0  # of natural-log magnitudes of speech


class SpectrogramHead(nn.Module):
    """Linear prediction of log mel magnitudes from the features of the decoder's first stage of at least 50 Hz.

    With a source-filter head, of the loudness of the envelope's bands, from the last stage, where that head is to read
    them.

    Args:
        decoder: Whose features it reads.
        sampling_rate: Of the waveform (Hz).
        hop_length: Samples a latent frame.
    """

    def __init__(self, decoder: HifiGanDecoder, sampling_rate: int, hop_length: int):
        super().__init__()
        self.num_stages, self.hop_length = 0, hop_length
        self.of_envelope = isinstance(decoder.istft_head, SourceFilterHead)
        num_bands = decoder.transform.num_bands if self.of_envelope and decoder.transform is not None else NUM_BANDS
        for ratio in decoder.upsampling_ratios:
            if sampling_rate / self.hop_length >= MIN_RATE and not self.of_envelope:
                break
            self.num_stages, self.hop_length = self.num_stages + 1, self.hop_length // ratio
        channels = decoder.channels[self.num_stages]
        self.project = nn.Conv1d(channels, num_bands, kernel_size=1)
        if decoder.transform is not None and decoder.transform_stage == self.num_stages - 1:
            nn.init.dirac_(self.project.weight)  # the first channels are the bands, to begin with
        else:
            nn.init.normal_(self.project.weight, std=0.5 / math.sqrt(channels))
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Natural logarithm of magnitudes, or loudness, float32: `(batch, frames, bands)`."""
        rows = self.project(features).float().transpose(1, 2)
        return rows if self.of_envelope else LOG_MEAN + LOG_SCALE * rows
