import torch
from hypothesis import given
from hypothesis import strategies as st

from modeling_jepa_daam.masking import block_mask


def _spans(row):
    """Lengths of the runs of hidden frames."""
    runs, current = [], 0
    for visible in [*row, True]:
        if visible and current:
            runs.append(current)
        current = 0 if visible else current + 1
    return runs


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**31))
def test_masks_keep_something_visible_and_hide_only_valid_frames(lengths, ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    mask = block_mask(lengths, 60, mask_ratio=ratio, generator=generator)
    for row, length in zip(mask, lengths, strict=True):
        assert row[:length].any()
        assert not row[length:].any()
        if length > 1 and int(ratio * length) > 0:
            assert not row[:length].all()


def test_spans_are_as_long_as_section_2_1_says():
    generator = torch.Generator().manual_seed(0)
    mask = block_mask([40] * 200, 40, mask_ratio=0.2, generator=generator)
    spans = [span for row in mask.tolist() for span in _spans(row)]
    assert min(spans) >= 2
    shares = (~mask).float().mean(dim=-1)
    # floor(0.2 * 40) = 8 drawn frames are reached, and passed by at most one span of 40 / 4 = 10 less one.
    assert shares.max() <= (8 + 9) / 40
    assert 0.15 < shares.mean() < 0.35


def test_a_seed_fixes_the_mask():
    masks = [block_mask([30, 20], 30, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
