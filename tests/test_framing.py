import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam.framing import lengths_to_mask, mask_to_lengths, num_frames, stretch_mask, zero_padding
from tests import reference


@given(st.integers(0, 3000), st.integers(1, 400))
def test_a_frame_for_every_hop_that_is_touched(samples, hop):
    assert num_frames(samples, hop) == reference.frames(samples, hop)


def test_twelve_seconds_are_thirty_frames():
    assert num_frames(12 * 24000, 9600) == 30
    assert num_frames(12 * 24000 + 1, 9600) == 31


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_lengths_and_masks_are_inverse(lengths):
    mask = lengths_to_mask(torch.tensor(lengths), 9)
    assert mask.sum(dim=-1).tolist() == lengths
    assert mask_to_lengths(mask).tolist() == lengths


def test_a_mask_must_be_padded_on_the_right():
    with pytest.raises(ValueError, match="`some_mask` must be padded on the right"):
        mask_to_lengths(torch.tensor([[0, 1, 1]]), "some_mask")
    with pytest.raises(ValueError, match="`padding_mask` must have shape"):
        mask_to_lengths(torch.ones(3))


def test_a_mask_stretches_frame_by_frame():
    stretched = stretch_mask(torch.tensor([[True, False]]), 3)
    assert stretched.tolist() == [[[True, True, True, False, False, False]]]
    assert stretch_mask(None, 3) is None


def test_padding_becomes_zero_even_where_it_was_not_finite():
    x = torch.tensor([[[1.0, float("nan")]]])
    assert zero_padding(x, torch.tensor([[[True, False]]])).tolist() == [[[1.0, 0.0]]]
    assert zero_padding(x, None) is x
