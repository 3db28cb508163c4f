import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from training.discriminators import Discriminators, PeriodDiscriminator, ScaleDiscriminator

NARROW = 1 / 64  # 16 channels in every layer
# HiFi-GAN's layers once more, as functional convolutions need them: stride, padding, groups.
PERIOD_GEOMETRY = [(3, 2, 1)] * 4 + [(1, 2, 1), (1, 1, 1)]
SCALE_GEOMETRY = [(1, 7, 1), (2, 20, 4), (2, 20, 16), (4, 20, 16), (4, 20, 16), (1, 20, 16), (1, 2, 1), (1, 1, 1)]


@pytest.fixture
def discriminators():
    torch.manual_seed(1)
    return Discriminators(periods=(2, 3, 5), num_scales=2, width=NARROW).double()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stack_by_hand(module, x, geometry):
    """What a sub-discriminator computes for one sequence `(channels, time)`, weights normalised here."""
    outputs = []
    for conv, (stride, padding, groups) in zip([*module.layers, module.score_layer], geometry, strict=True):
        gain, direction = conv.parametrizations.weight.original0, conv.parametrizations.weight.original1
        norm = direction.flatten(1).norm(dim=1).view_as(gain)
        weight = (gain * direction / norm).flatten(2)  # the width of a 2D kernel is 1
        x = F.conv1d(x, weight, conv.bias, stride, padding, groups=groups)
        if conv is not module.score_layer:
            x = torch.where(x > 0, x, 0.1 * x)
        outputs.append(x)
    return outputs


@pytest.mark.parametrize(
    ("make", "shapes"),
    [  # output channels, input channels of a group, kernel size
        (
            lambda: PeriodDiscriminator(7),
            [(32, 1, 5), (128, 32, 5), (512, 128, 5), (1024, 512, 5), (1024, 1024, 5), (1, 1024, 3)],
        ),
        (
            ScaleDiscriminator,
            [
                (128, 1, 15),
                (128, 128 // 4, 41),
                (256, 128 // 16, 41),
                (512, 256 // 16, 41),
                (1024, 512 // 16, 41),
                (1024, 1024 // 16, 41),
                (1024, 1024, 5),
                (1, 1024, 3),
            ],
        ),
    ],
)
def test_layers_have_the_published_sizes(make, shapes):
    with torch.device("meta"):
        discriminator = make()
    convs = [*discriminator.layers, discriminator.score_layer]
    assert [tuple(conv.parametrizations.weight.original1.flatten(2).shape) for conv in convs] == shapes


def test_parameter_counts():
    """Weights and biases by hand, and a gain for each output channel: 8 218 433 + 2 721 and 9 870 209 + 4 097."""
    with torch.device("meta"):
        assert count(PeriodDiscriminator(2)) == 8_221_154
        assert count(ScaleDiscriminator()) == 9_874_306
        published = Discriminators()
        assert count(published.periods) == 5 * 8_221_154  # 41.1M
        assert count(published.scales) == 3 * 9_874_306  # 29.6M
        assert count(published) == 70_728_688
        assert count(Discriminators(width=0.125)) == 5 * 130_450 + 3 * 155_730  # 1.1M


@pytest.mark.parametrize("width", [0.01, 0.1, 0.125, 0.3, 0.5, 0.77, 2])
def test_any_width_keeps_the_groups(width):
    with torch.device("meta"):
        groups = [layer.groups for layer in ScaleDiscriminator(width).layers]
    assert groups == [1, 4, 16, 16, 16, 16, 1]


@pytest.mark.parametrize("width", [0, -1])
def test_a_width_that_is_not_positive_is_refused(width):
    with pytest.raises(ValueError, match="width must be positive"):
        Discriminators(width=width)


@pytest.mark.parametrize("period", [2, 3, 5])
def test_each_column_is_every_nth_sample_through_the_same_stack(period):
    torch.manual_seed(2)
    module = PeriodDiscriminator(period, NARROW).double()
    waveform = torch.randn(1, 131 * period, dtype=torch.float64)
    scores, feature_maps = module(waveform)
    for column in range(period):
        expected = stack_by_hand(module, waveform[:, column::period], PERIOD_GEOMETRY)
        for ours, theirs in zip(feature_maps, expected, strict=True):
            torch.testing.assert_close(ours[0, :, :, column], theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(scores[:, column::period], expected[-1], rtol=0, atol=1e-12)


def test_each_scale_is_the_stack_on_a_smoothed_and_halved_waveform():
    torch.manual_seed(3)
    module = Discriminators(periods=(), num_scales=3, width=NARROW).double()
    waveform = torch.randn(1, 1111, dtype=torch.float64)
    output = module(waveform)
    samples = waveform[0].tolist()
    for scale, scores, feature_maps in zip(module.scales, output.scores, output.feature_maps, strict=True):
        expected = stack_by_hand(scale, torch.tensor([samples], dtype=torch.float64), SCALE_GEOMETRY)
        for ours, theirs in zip(feature_maps, expected, strict=True):
            torch.testing.assert_close(ours[0], theirs, rtol=0, atol=1e-12)
        torch.testing.assert_close(scores, expected[-1], rtol=0, atol=1e-12)
        padded = [0, 0, *samples, 0, 0]
        samples = [sum(padded[start : start + 4]) / 4 for start in range(0, len(padded) - 3, 2)]


@given(st.integers(2, 7), st.integers(0, 150))
def test_an_impulse_changes_its_own_column_only(period, place):
    torch.manual_seed(4)
    module = PeriodDiscriminator(period, NARROW).double()
    waveform = torch.randn(1, 151, dtype=torch.float64)
    changed = waveform.clone()
    changed[0, place] += 10
    difference = (module(changed)[0] - module(waveform)[0]).unflatten(-1, (-1, period))
    assert difference[0].abs().sum(dim=0).nonzero().flatten().tolist() == [place % period]


def test_a_batch_equals_its_items(discriminators):
    waveform = torch.randn(3, 500, dtype=torch.float64)
    batch, items = discriminators(waveform), [discriminators(item[None]) for item in waveform]
    for index, scores in enumerate(batch.scores):
        torch.testing.assert_close(scores, torch.cat([item.scores[index] for item in items]), rtol=0, atol=1e-12)


@given(st.integers(1, 400))
@example(1)
@example(2)
@example(11)
def test_any_length_is_filled_up_by_zeros(samples):
    torch.manual_seed(5)
    module = Discriminators(periods=(2, 11), num_scales=2, width=NARROW).double()
    waveform = torch.randn(2, samples, dtype=torch.float64)
    scores = module(waveform).scores
    for period, judge, ours in zip((2, 11), module.periods, scores[:2], strict=True):
        rows = math.ceil(samples / period)
        filled = torch.zeros(2, rows * period, dtype=torch.float64)
        filled[:, :samples] = waveform
        assert ours.shape == (2, math.ceil(rows / 81) * period)
        torch.testing.assert_close(ours, judge(filled)[0], rtol=0, atol=0)
    assert [ours.shape[1] for ours in scores[2:]] == [math.ceil(samples / 64), math.ceil((samples // 2 + 1) / 64)]
    assert all(ours.isfinite().all() for ours in scores)


@pytest.mark.parametrize("shape", [(100,), (2, 1, 100), (2, 0)])
def test_other_shapes_are_refused(discriminators, shape):
    with pytest.raises(ValueError, match=r"waveform must be \(batch, samples\)"):
        discriminators(torch.zeros(shape, dtype=torch.float64))


def test_every_parameter_and_every_sample_gets_a_finite_gradient(discriminators):
    """`DistributedDataParallel` waits for the first, the generator learns from the second."""
    waveform = torch.randn(2, 301, dtype=torch.float64, requires_grad=True)
    all_scores = discriminators(waveform).scores
    for scores in all_scores:
        (gradient,) = torch.autograd.grad((scores - 1).square().mean(), waveform, retain_graph=True)
        assert gradient.isfinite().all()
        assert (gradient != 0).all()
    sum((scores - 1).square().mean() for scores in all_scores).backward()
    for name, parameter in discriminators.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_feature_maps_end_with_the_scores(discriminators):
    output = discriminators(torch.randn(2, 301, dtype=torch.float64))
    assert [len(maps) for maps in output.feature_maps] == [6, 6, 6, 8, 8]
    for scores, maps in zip(output.scores, output.feature_maps, strict=True):
        assert torch.equal(maps[-1].flatten(1), scores)


def test_a_forward_pass_in_training_leaves_no_trace(discriminators):
    """A resumed run, and every process, must see the same discriminator however often it was called."""
    before = copy.deepcopy(discriminators.state_dict())
    waveform = torch.randn(2, 301, dtype=torch.float64)
    first, second = discriminators.train()(waveform), discriminators.eval()(waveform)
    assert all(torch.equal(a, b) for a, b in zip(first.scores, second.scores, strict=True))
    after = discriminators.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not list(discriminators.buffers())


def test_state_dict_round_trip(discriminators, tmp_path):
    torch.save(discriminators.state_dict(), tmp_path / "weights.pt")
    torch.manual_seed(99)
    other = Discriminators(periods=(2, 3, 5), num_scales=2, width=NARROW).double()
    waveform = torch.randn(2, 301, dtype=torch.float64)
    expected = discriminators(waveform).scores
    assert not any(torch.equal(a, b) for a, b in zip(other(waveform).scores, expected, strict=True))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(other(waveform).scores, expected, strict=True))


def test_bfloat16_autocast_is_close(discriminators):
    module = discriminators.float()
    waveform = torch.randn(2, 1001)
    expected = module(waveform).scores
    with torch.autocast("cpu", torch.bfloat16):
        output = module(waveform)
        loss = sum((scores - 1).square().mean() for scores in output.scores)
    loss.backward()
    for ours, exact in zip(output.scores, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), exact, rtol=0, atol=0.02 * exact.abs().max().item())
    assert all(parameter.grad.dtype == torch.float32 for parameter in module.parameters())
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_learns_to_tell_tones_from_noise():
    torch.manual_seed(6)
    module = Discriminators(periods=(2, 3), num_scales=2, width=NARROW)
    optimizer = torch.optim.AdamW(module.parameters(), lr=5e-3, betas=(0.8, 0.99))

    def tones_and_noise(batch_size, samples=1024):
        frequencies = torch.empty(batch_size, 1).uniform_(100, 2000)
        phases = torch.empty(batch_size, 1).uniform_(0, 2 * math.pi)
        seconds = torch.arange(samples) / 24_000
        return (2 * math.pi * frequencies * seconds + phases).sin(), 0.5**0.5 * torch.randn(batch_size, samples)

    def gaps(tones, noise):
        pairs = zip(module(tones).scores, module(noise).scores, strict=True)
        return [(real.mean() - fake.mean()).item() for real, fake in pairs]

    held_out = tones_and_noise(16)
    assert max(map(abs, gaps(*held_out))) < 0.1
    for _ in range(30):
        tones, noise = tones_and_noise(8)
        real, fake = module(tones).scores, module(noise).scores
        loss = sum((r - 1).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(gaps(*held_out)) > 0.5
