import numpy as np
import pytest
import soundfile
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

from tests.conftest import SPEECH
from tests.test_train_tokenizer import config_of
from training.teacher import WhisperTeacher, semantic_loss


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    """A Whisper with weights from a seed; its positions are those of 30 s."""
    torch.manual_seed(0)
    config = WhisperConfig(
        d_model=16, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=32, decoder_layers=1, vocab_size=8,
        decoder_attention_heads=2, decoder_ffn_dim=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, max_target_positions=8,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("whisper") / "model"
    WhisperModel(config).save_pretrained(folder)
    return folder


def test_spectrograms_are_those_of_whisper(whisper):
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    samples = samples[: rate * 4]
    ours = WhisperTeacher(str(whisper)).log_mel(torch.from_numpy(samples)[None], rate)[0]
    at_16k = torch.fft.irfft(torch.fft.rfft(torch.from_numpy(samples))[: 2 * 16000 + 1], n=4 * 16000) * (16000 / rate)
    theirs = WhisperFeatureExtractor()(at_16k.numpy(), sampling_rate=16000, padding=False)["input_features"][0]
    assert ours.shape == theirs.shape == (80, 400)
    np.testing.assert_allclose(ours[:, :-2].numpy(), theirs[:, :-2], atol=1e-3)


def test_features_of_thirty_seconds_are_those_of_whisper(whisper):
    teacher = WhisperTeacher(str(whisper))
    samples = 0.1 * torch.randn(1, 30 * 24000, generator=torch.Generator().manual_seed(0))
    features = teacher(samples, 24000)
    assert features.shape == (1, 1500, 16)
    theirs = WhisperModel.from_pretrained(whisper).eval().encoder(teacher.log_mel(samples, 24000)).last_hidden_state
    torch.testing.assert_close(features, torch.nn.functional.layer_norm(theirs, (16,)), rtol=1e-4, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_loss_is_a_cosine_distance_over_valid_frames():
    taught = torch.nn.functional.layer_norm(torch.randn(2, 20, 8, generator=torch.Generator().manual_seed(0)), (8,))
    predicted = 3.0 * torch.nn.functional.interpolate(taught.transpose(1, 2), 30, mode="linear").transpose(1, 2)
    lengths = torch.tensor([9600, 4800])
    torch.testing.assert_close(semantic_loss(predicted, taught, lengths, 9600), torch.tensor(0.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(semantic_loss(-predicted, taught, lengths, 9600), torch.tensor(2.0))
    spoiled = predicted.clone()
    spoiled[1, 15:] *= -1
    torch.testing.assert_close(semantic_loss(spoiled, taught, lengths, 9600), torch.tensor(0.0), rtol=0, atol=1e-6)


def test_the_gradient_of_words_reaches_the_reconstruction_alone(whisper):
    teacher = WhisperTeacher(str(whisper)).train()
    assert not teacher.encoder.training
    real = 0.1 * torch.randn(2, 9600, generator=torch.Generator().manual_seed(0))
    generated, real = (0.5 * real.flip(0)).requires_grad_(), real.requires_grad_()
    lengths = torch.tensor([9600, 4800])
    same, distance = (teacher.distance(heard, real, 24000, lengths) for heard in (real.detach(), generated))
    assert same.item() == pytest.approx(0.0, abs=1e-6)
    assert distance.item() > same.item() + 5e-6
    distance.backward()
    assert generated.grad.abs().max() > 0.0
    assert real.grad is None


def test_a_teacher_needs_something_to_teach(tmp_path):
    message = "`losses.semantic` or `losses.words` above 0, and `losses.teacher`, need each other"
    for change in ("losses.words=1.0", "losses.semantic=1.0", "losses.teacher=somewhere"):
        with pytest.raises(ValueError, match=message):
            config_of("no.tar", tmp_path, change)
    config_of("no.tar", tmp_path, "losses.words=1.0", "losses.teacher=somewhere")
