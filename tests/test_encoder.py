import pytest
import torch

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel
from tests.conftest import STFT, TINY, noise


@pytest.fixture(
    params=[{}, {"daam_in_conformer": True}, {"daam_in_encoder": False}, STFT], ids=["", "conformer", "none", "stft"]
)
def encoder_model(request):
    torch.manual_seed(1)
    return JepaDaamEncoderModel(JepaDaamConfig(**TINY | request.param)).eval()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_and_neighbours_do_not_change_valid_frames(encoder_model, attention):
    encoder_model.set_attn_implementation(attention)
    lengths = [1, 59, 60, 61, 300, 1234]
    batch, mask = torch.full((len(lengths), 1, 1500), 7.0), torch.zeros(len(lengths), 1500)
    for row, length in enumerate(lengths):
        batch[row, 0, :length], mask[row, :length] = torch.tensor(noise(length, seed=row)), 1
    together = encoder_model(batch, mask)
    for row, length in enumerate(lengths):
        alone = encoder_model(batch[row : row + 1, :, :length]).last_hidden_state[0]
        assert together.frame_mask[row].sum() == len(alone)
        torch.testing.assert_close(together.last_hidden_state[row, : len(alone)], alone, rtol=1e-4, atol=1e-5)


def test_samples_past_the_end_never_arrive(encoder_model):
    """With gradients: a valid frame of a padded row depends on no padding sample at all."""
    values = torch.tensor(noise(600))[None, None].requires_grad_()
    mask = torch.zeros(1, 600)
    mask[:, :250] = 1
    valid = encoder_model(values, mask).last_hidden_state[:, :5]
    valid.backward(torch.randn_like(valid))
    assert values.grad[..., :250].any()
    assert not values.grad[..., 250:].any()


@pytest.mark.parametrize("name", ["paddding_mask", "is_causal", "attention_mask"])
def test_unknown_arguments_are_refused(encoder_model, name):
    with pytest.raises(TypeError, match=f"unexpected arguments: `{name}`"):
        encoder_model(torch.zeros(1, 1, 60), **{name: None})


def test_attention_implementations_agree():
    config = JepaDaamConfig(**TINY)
    torch.manual_seed(1)
    model = JepaDaamEncoderModel(config).eval()
    values = torch.tensor(noise(600))[None, None]
    outputs = []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        outputs.append(model(values).last_hidden_state)
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_gates_come_on_request_each_at_its_own_rate():
    model = JepaDaamEncoderModel(JepaDaamConfig(**TINY, daam_in_conformer=True)).eval()
    values = torch.tensor(noise(600))[None, None]
    assert model(values).daam_gates is None
    gates = model(values, output_daam_gates=True).daam_gates
    assert [tuple(gate.shape) for gate in gates] == [(1, 150), (1, 50), (1, 10), (1, 10), (1, 10)]
    assert all((gate > 0).all() for gate in gates)


def test_hidden_states_and_attentions_come_on_request():
    model = JepaDaamEncoderModel(JepaDaamConfig(**TINY))
    model.set_attn_implementation("eager")
    output = model.eval()(torch.tensor(noise(600))[None, None], output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(1, 10, 16)] * 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(1, 2, 10, 10)] * 2
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)


def test_the_signal_reaches_the_low_rates_at_initialisation():
    """A loud and a quiet second differ after the convolutions; with PyTorch's own initialisation they hardly do."""
    torch.manual_seed(0)
    model = JepaDaamEncoderModel(JepaDaamConfig(encoder_residual_blocks=(2,) * 5)).eval()
    envelope = torch.tensor([1.0, 0.05]).repeat_interleave(24000).repeat(2)
    values = (torch.tensor(noise(4 * 24000)) * envelope)[None, None]

    def variation() -> float:
        """How far frames stray from their mean over time, relative to their size."""
        with torch.inference_mode():
            frames = model.encoder.extract_frames(values)
        return float((frames - frames.mean(dim=1, keepdim=True)).norm() / frames.norm())

    ours = variation()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv1d):
            module.reset_parameters()
    assert ours > 0.5
    assert ours > 2 * variation()
