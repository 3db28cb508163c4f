"""Block masks over time for Stage 1 (section 2.1)."""

import torch
from torch import Tensor


def block_mask(
    lengths: list[int],
    max_length: int,
    mask_ratio: float = 0.5,
    min_span: int = 2,
    max_span_ratio: float = 0.25,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide spans of frames in each recording, about a share `mask_ratio` of them.

    Args:
        lengths: Valid frames T of each recording.
        max_length: Frames of the mask.
        mask_ratio: rho, in [0, 1].
        min_span: Shortest span, in frames.
        max_span_ratio: Longest span as a share of T; never below 4 frames.
        generator: Source of randomness, on CPU; torch's default if `None`.

    Returns:
        `(batch, max_length)`, bool, true where a frame is visible (context), false where it is hidden or padding.

    Source: paper, section 2.1: spans are drawn until their lengths add up to `floor(rho * T)`. As there, overlapping
    spans count twice, so that fewer frames may hide.
    Deviation: a span leaves at least one frame of its recording outside, and a recording of one frame hides none;
    both would otherwise leave nothing to predict from.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    mask = torch.zeros(len(lengths), max_length, dtype=torch.bool)
    for row, length in zip(mask, lengths, strict=True):
        row[:length] = True
        longest = min(max(4, int(max_span_ratio * length)), length - 1)
        num_masked = 0
        while longest > 0 and num_masked < int(mask_ratio * length) and row.sum() > 1:
            span = min(draw(min(min_span, longest), longest), int(row.sum()) - 1)
            start = draw(0, length - span)
            row[start : start + span] = False
            num_masked += span
    return mask
