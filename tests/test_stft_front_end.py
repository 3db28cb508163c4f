import numpy as np
import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.stft_front_end import LOG_MAGNITUDE_SCALE, MIN_LOG_MAGNITUDE, StftFrontEnd
from tests.conftest import STFT, noise
from tests.test_istft_head import spectrogram


def log_magnitude(front_end, waveform):
    return front_end.log_magnitude(front_end.power(waveform))


@pytest.mark.parametrize("hop", [15, 16])
def test_it_is_the_scaled_log_magnitude_of_centred_frames(hop):
    waveform = noise(20 * hop, seed=1)
    expected = np.log(np.maximum(spectrogram(waveform, hop, 4 * hop)[0], 1e-3)) - MIN_LOG_MAGNITUDE
    magnitude = log_magnitude(StftFrontEnd(6, hop), torch.tensor(waveform)[None, None])
    np.testing.assert_allclose(magnitude[0].numpy(), LOG_MAGNITUDE_SCALE * expected, atol=1e-4)


def test_silence_is_zero_and_has_a_finite_gradient():
    silence = torch.zeros(1, 1, 160, requires_grad=True)
    magnitude = log_magnitude(StftFrontEnd(6, 16), silence)
    magnitude.sum().backward()
    assert not magnitude.any()
    assert silence.grad.isfinite().all()


def test_it_runs_in_float32_under_autocast():
    front_end, waveform = StftFrontEnd(6, 16), torch.tensor(noise(320))[None, None]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            log_magnitude(front_end, waveform.bfloat16().float()), log_magnitude(front_end, waveform.bfloat16())
        )
        assert log_magnitude(front_end, waveform).dtype == torch.float32


def test_a_model_with_one_has_the_same_frames_and_tokens_in_a_padded_batch():
    torch.manual_seed(0)
    model = JepaDaamModel(JepaDaamConfig(**STFT)).eval()
    lengths = [59, 60, 61, 300, 1234]
    batch, mask = torch.full((len(lengths), 1, 1500), 0.7), torch.zeros(len(lengths), 1500)
    for row, length in enumerate(lengths):
        batch[row, 0, :length], mask[row, :length] = torch.tensor(noise(length, seed=row)), 1
    together = model.encode(batch, mask)
    for row, length in enumerate(lengths):
        alone = model.encode(batch[row : row + 1, :, :length])
        frames = alone.audio_codes.shape[-1]
        assert frames == -(-length // 60)
        assert torch.equal(together.audio_codes[row, :, :frames], alone.audio_codes[0])
