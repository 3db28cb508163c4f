import math

import numpy as np
import pytest
import torch

from training.collapse import collapse_signs, constant_loss, effective_rank, mean_std, recording_mean_loss

ALL = torch.ones(1, 4, dtype=torch.bool)


def test_the_effective_rank_counts_the_directions_that_frames_use(rng):
    equal = torch.eye(4)[None] * 3.0 + 7.0  # four corners of a simplex around a mean: three equal directions
    assert effective_rank(equal, ALL).item() == pytest.approx(3.0, rel=1e-4)
    line = torch.tensor([[[0.0, 1.0], [0.0, 2.0], [0.0, 5.0], [0.0, -1.0]]])
    assert effective_rank(line, ALL).item() == pytest.approx(1.0, rel=1e-4)
    assert effective_rank(torch.full((1, 4, 3), 0.1), ALL) == 0.0
    assert effective_rank(torch.full((1, 4, 3), torch.nan), ALL).isnan()
    values = rng.normal(size=(50, 8)) * np.arange(1, 9)
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    shares = singular / singular.sum()
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    frames = torch.tensor(values).view(2, 25, 8)
    assert effective_rank(frames, torch.ones(2, 25, dtype=torch.bool)).item() == pytest.approx(expected, rel=1e-4)


def test_padding_does_not_count(rng):
    latents = torch.tensor(rng.normal(size=(2, 6, 4)), dtype=torch.float32)
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    context = torch.tensor([[True, False] * 3, [True, False] * 3])
    changed = latents.clone()
    changed[1, 3:] = 1e3
    before = collapse_signs(latents, latents, context, mask)
    after = collapse_signs(changed, changed, context, mask)
    assert before == after
    assert mean_std(latents, mask).item() == pytest.approx(latents[mask].std(dim=0, correction=0).mean().item())


def test_the_baselines_are_the_losses_of_what_they_predict():
    targets = torch.tensor([[[0.0], [2.0], [4.0], [6.0]], [[10.0], [10.0], [12.0], [12.0]]])
    mask = torch.ones(2, 4, dtype=torch.bool)
    context = torch.tensor([[True, True, False, False], [True, True, False, False]])
    # Hidden: 4, 6, 12, 12. Their mean is 8.5; the recordings' visible means are 1 and 10.
    assert constant_loss(targets, context, mask).item() == pytest.approx((4.5**2 + 2.5**2 + 2 * 3.5**2) / 4)
    assert recording_mean_loss(targets, context, mask).item() == pytest.approx((3**2 + 5**2 + 2 * 2**2) / 4)
    collapsed = collapse_signs(torch.zeros(2, 4, 1), torch.ones(2, 4, 1), context, mask)
    assert all(value == 0 for value in collapsed.values())
