import numpy as np
import pytest
import torch
from transformers import AutoModelForPreTraining

from modeling_jepa_daam import JepaDaamConfig, JepaDaamForPreTraining, daam
from modeling_jepa_daam.pretraining_jepa_daam import masked_prediction_loss
from tests import reference
from tests.conftest import TINY, noise

BATCH = torch.tensor(noise(2 * 1200)).view(2, 1, 1200)


@pytest.fixture(params=["after_encoder", "before_conformer", "waveform"])
def model(request):
    torch.manual_seed(0)
    return JepaDaamForPreTraining(JepaDaamConfig(**TINY, mask_position=request.param))


def test_the_loss_agrees_with_equation_10(rng):
    predictions, targets = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))
    hidden = rng.random((2, 5)) < 0.5
    loss = masked_prediction_loss(*(torch.tensor(a) for a in (predictions, targets, hidden)))
    np.testing.assert_allclose(loss.item(), reference.masked_prediction_loss(predictions, targets, hidden), rtol=1e-5)
    assert masked_prediction_loss(torch.ones(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=bool)) == 0


def test_the_output_holds_its_own_loss(model):
    output = model(BATCH)
    assert output.predictions.shape == output.targets.shape == (2, 20, 16)
    assert (~output.context_mask).sum(dim=-1).ge(2).all()
    expected = ((output.predictions - output.targets) ** 2).mean(dim=-1)[~output.context_mask].mean()
    torch.testing.assert_close(output.loss, expected)
    assert isinstance(model(BATCH, return_dict=False), tuple)


def test_the_target_is_an_exact_copy_at_first(model):
    for target, online in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        assert torch.equal(target, online)


def test_no_gradient_reaches_the_target_and_one_reaches_everything_else(model):
    model.train()
    assert not any(parameter.requires_grad for parameter in model.target_encoder.parameters())
    model.target_encoder.requires_grad_(True)  # nor if somebody should thaw them
    output = model(BATCH)
    assert not output.targets.requires_grad
    output.loss.backward()
    assert all(parameter.grad is None for parameter in model.target_encoder.parameters())
    missing = [n for n, p in model.named_parameters() if p.grad is None and not n.startswith("target_encoder.")]
    assert not missing


def test_the_target_has_no_dropout(model):
    model.train()
    assert model.encoder.training
    assert not any(module.training for module in model.target_encoder.modules())
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 5:9] = False
    first, second = model(BATCH, context_mask=mask), model(BATCH, context_mask=mask)
    assert torch.equal(first.targets, second.targets)
    assert not torch.equal(first.predictions, second.predictions)


def test_the_target_follows_by_equation_11(model):
    before = [p.clone() for p in model.target_encoder.parameters()]
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.update_target()
    for old, new, online in zip(before, model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(new, 0.996 * old + 0.004 * online)
    for decay in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="`decay` must lie in"):
            model.update_target(decay)
    model.update_target(decay=0.0)
    for target, online in zip(model.target_encoder.parameters(), model.encoder.parameters(), strict=True):
        torch.testing.assert_close(target, online)


@pytest.mark.parametrize("place", ["after_encoder", "before_conformer", "waveform"])
def test_what_visible_frames_may_know_of_hidden_ones(place):
    """Hidden sound reaches the predictions by the ways that the place of the mask leaves open."""
    torch.manual_seed(0)
    model = JepaDaamForPreTraining(JepaDaamConfig(**TINY, mask_position=place)).eval()
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[:, 8:12] = False
    mixed = []
    original = model.encoder.mix_frames
    model.encoder.mix_frames = lambda frames, valid=None: original(mixed.append(frames) or frames, valid)
    changed = BATCH[:1].clone()
    changed[:, :, 8 * 60 : 12 * 60] *= -2.0  # sound that is hidden, and no other
    predictions = [model(values, context_mask=mask).predictions for values in (BATCH[:1], changed)]
    # mix_frames is the online encoder's: frames before the Conformer, of both inputs
    hidden_alike = torch.equal(mixed[0][:, 8:12], mixed[1][:, 8:12])
    visible_alike = torch.equal(mixed[0][:, [*range(8), *range(12, 20)]], mixed[1][:, [*range(8), *range(12, 20)]])
    assert hidden_alike == (place != "after_encoder")
    assert visible_alike == (place == "waveform")
    assert torch.equal(*predictions) == (place == "waveform")
    if place != "after_encoder":
        assert torch.equal(mixed[0][0, 8:12], model.mask_token.expand(4, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_sensitive_parts_in_float32(model, dtype, monkeypatch):
    gates = []
    density = daam.mixture_density
    monkeypatch.setattr(daam, "mixture_density", lambda *args: gates.append(density(*args)) or gates[-1])
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 5:9] = False
    expected = model.eval()(BATCH, context_mask=mask).loss  # no dropout
    gates.clear()
    with torch.autocast("cpu", dtype):
        output = model(BATCH, context_mask=mask)
    output.loss.backward()
    assert {gate.dtype for gate in gates} == {torch.float32} == {output.loss.dtype}
    assert all(
        p.grad is None or (p.grad.dtype == torch.float32 and p.grad.isfinite().all()) for p in model.parameters()
    )
    torch.testing.assert_close(output.loss, expected, rtol=0.05, atol=0.0)


def test_padding_changes_neither_loss_nor_predictions():
    torch.manual_seed(0)
    model = JepaDaamForPreTraining(JepaDaamConfig(**TINY)).eval()
    context = torch.ones(1, 10, dtype=torch.bool)
    context[:, 4:7] = False
    alone = model(BATCH[:1, :, :600], context_mask=context)
    mask = (torch.arange(1200) < 600)[None]
    padded = model(BATCH[:1], mask, torch.cat([context, torch.ones(1, 10, dtype=torch.bool)], dim=1))
    torch.testing.assert_close(padded.loss, alone.loss)
    torch.testing.assert_close(padded.predictions[:, :10], alone.predictions, rtol=1e-4, atol=1e-5)


def test_training_lowers_the_loss():
    torch.manual_seed(0)
    model = JepaDaamForPreTraining(JepaDaamConfig(**TINY, hidden_dropout=0.0, attention_dropout=0.0)).train()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-3, betas=(0.8, 0.99))
    losses = []
    for _ in range(40):
        loss = model(BATCH, generator=torch.Generator().manual_seed(0)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.update_target()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_saving_keeps_encoder_and_target_apart(model, tmp_path):
    with torch.no_grad():
        model.encoder.bottleneck.bias.add_(1.0)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert isinstance(loaded, JepaDaamForPreTraining)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not any(p.requires_grad for p in loaded.target_encoder.parameters())


def test_a_wrong_context_mask_is_refused(model):
    with pytest.raises(ValueError, match="`context_mask` must be a tensor of shape"):
        model(BATCH, context_mask=torch.ones(2, 19))
