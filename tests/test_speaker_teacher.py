"""ECAPA-TDNN as a teacher."""

import numpy as np
import pytest
import torch

from modeling_jepa_daam.audio import load_audio
from tests.conftest import SPEECH
from tests.test_judges import write_speaker_encoder
from tests.test_train_tokenizer import config_of
from training.ecapa import EMBEDDING_SIZE
from training.judges import SpeakerJudge
from training.speaker_teacher import SpeakerTeacher


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of the right shape, from a seed."""
    return write_speaker_encoder(tmp_path_factory.mktemp("ecapa"))


def clips() -> torch.Tensor:
    samples = torch.from_numpy(load_audio(SPEECH, None, 24000))
    return torch.stack([samples[:24000], samples[24000:48000]])


def test_it_hears_what_the_judge_hears(weights):
    real = clips()
    generated = real + 0.05 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    judge = SpeakerJudge(weights)
    similar = [
        judge(one.numpy(), other.numpy(), 24000)["speaker_similarity"]
        for one, other in zip(real, generated, strict=True)
    ]
    distance = SpeakerTeacher(weights)(generated, real, 24000).item()
    assert distance > 1e-4
    assert distance == pytest.approx(1.0 - np.mean(similar), rel=0.1)


def test_the_gradient_reaches_the_reconstruction_alone(weights):
    teacher, real = SpeakerTeacher(weights).train(), clips()
    assert not teacher.encoder.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.embed(real, 24000).shape == (2, EMBEDDING_SIZE)
    generated, real = (0.5 * real.flip(0)).requires_grad_(), real.requires_grad_()
    teacher(generated, real, 24000).backward()
    assert generated.grad.abs().max() > 0.0
    assert real.grad is None


def test_the_weight_and_the_encoder_need_each_other(tmp_path):
    for change in ("losses.speaker=1.0", "losses.speaker_encoder=somewhere"):
        with pytest.raises(ValueError, match="`losses.speaker` above 0 and `losses.speaker_encoder` need each other"):
            config_of("no.tar", tmp_path, change)
