import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam.packing import (
    group_levels,
    group_vocabulary_sizes,
    pack_frames,
    pack_indices,
    unpack_frames,
    unpack_token,
)
from tests import reference

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=40)


@st.composite
def frames_of_indices(draw):
    levels = draw(LEVELS)
    frames = draw(st.integers(1, 4))
    rows = [[draw(st.integers(0, level - 1)) for level in levels] for _ in range(frames)]
    return torch.tensor(rows), levels, draw(st.integers(1, 10))


def test_the_papers_example():
    indices = torch.tensor([2, 1, 3, 0, 2, 1, 3])
    assert pack_indices(indices, [4] * 7).item() == 10023  # eq. 17-18
    assert unpack_token(torch.tensor(10023), [4] * 7).tolist() == indices.tolist()


def test_the_papers_groups():
    levels = [4] * 128
    assert [len(group) for group in group_levels(levels, 7)] == [7] * 18 + [2]
    assert group_vocabulary_sizes(levels, 7) == [16384] * 18 + [16]


@given(frames_of_indices())
def test_packing_agrees_with_equation_16_and_has_an_inverse(case):
    indices, levels, group_size = case
    tokens = pack_frames(indices, levels, group_size)
    for row, packed in zip(indices.tolist(), tokens.tolist(), strict=True):
        for place, token in enumerate(packed):
            part = slice(place * group_size, (place + 1) * group_size)
            radices = levels[part]
            assert token == reference.pack(row[part], radices)
            assert reference.unpack(token, radices) == row[part]
            # The paper fills the last group with dimensions of radix 1 and index 0: the same token.
            filled = group_size - len(radices)
            assert token == reference.pack(row[part] + [0] * filled, radices + [1] * filled)
    assert torch.equal(unpack_frames(tokens, levels, group_size), indices)


@given(LEVELS, st.integers(1, 10), st.data())
def test_unpacking_has_an_inverse(levels, group_size, data):
    sizes = group_vocabulary_sizes(levels, group_size)
    tokens = torch.tensor([[data.draw(st.integers(0, size - 1)) for size in sizes]])
    assert torch.equal(pack_frames(unpack_frames(tokens, levels, group_size), levels, group_size), tokens)


def test_tokens_fill_their_range_in_lexicographic_order():
    levels = [3, 2, 4]
    grid = torch.cartesian_prod(*(torch.arange(level) for level in levels))
    assert pack_indices(grid, levels).tolist() == list(range(math.prod(levels)))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 4]), r"`indices` must lie in \[0, level\)"),
        (torch.tensor([0, -1]), r"`indices` must lie in \[0, level\)"),
        (torch.tensor([0, 0, 0]), "`indices` must have a last axis of 2"),
        (torch.tensor(0), "`indices` must have a last axis of 2"),
    ],
)
def test_indices_out_of_range_are_refused(indices, message):
    with pytest.raises(ValueError, match=message):
        pack_indices(indices, [4, 4])


@pytest.mark.parametrize("token", [-1, 16])
def test_tokens_out_of_range_are_refused(token):
    with pytest.raises(ValueError, match=rf"`tokens` must lie in \[0, 16\) .* got {token}"):
        unpack_token(torch.tensor([3, token]), [4, 4])


def test_a_wrong_number_of_tokens_or_dimensions_is_refused():
    with pytest.raises(ValueError, match="`tokens` must have 2 tokens a frame"):
        unpack_frames(torch.zeros(1, 3, dtype=torch.int64), [4] * 3, 2)
    with pytest.raises(ValueError, match="`indices` must have a last axis of 3"):
        pack_frames(torch.zeros(1, 2, dtype=torch.int64), [4] * 3, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_only_integers_are_packed(dtype):
    with pytest.raises(TypeError, match="`indices` must be integers"):
        pack_indices(torch.zeros(2, dtype=dtype), [4, 4])
    with pytest.raises(TypeError, match="`tokens` must be integers"):
        unpack_token(torch.zeros(2, dtype=dtype), [4, 4])
