"""How much of their values a codec's tokens use: a module of the `evaluate` library."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .frame_statistics import token_statistics

_DESCRIPTION = """\
Statistics of the tokens of a speech codec: entropy, entropy given the token at the same place of the frame before,
share of the vocabulary in use, repeats, and bit rates: without a model, and as an ideal arithmetic coder would reach.
Where a token packs the values of several quantizers (finite scalar quantization, say), also of those digits.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: list of clips, each a sequence of token ids, frame after frame, `tokens_per_frame` ids a frame.
    tokens_per_frame: ids that make a frame; codebooks of a residual quantizer, for instance.
    vocab_size: number of ids, or a list with one number for each place of a frame.
    levels: number of values of each digit of a frame, where a token packs several (mixed radix, the first most
        significant). Default: None, tokens have no digits.
    group_size: digits a token (the last of a frame may have fewer); needed with levels.
    frame_rate: frames a second, for the bit rates. Default: None.
    duration_s: duration of all clips together, for the bit rates; more exact than frame_rate where clips do not fill
        their last frame. Default: None.

Returns:
    token_entropy_bits, token_entropy_bits_by_place (a list), vocab_used_share, token_repeat_share, frame_repeat_share;
    with no fewer frames than ids: token_conditional_entropy_bits, token_conditional_entropy_bits_shuffled;
    with levels: digit_entropy_bits, digit_entropy_bits_by_place (a list), digit_entropy_bits_min, digits_never_change,
    digit_change_share, digit_conditional_entropy_bits, digit_conditional_entropy_bits_shuffled;
    with frame_rate or duration_s: bitrate_bps, entropy_bitrate_bps, conditional_entropy_bitrate_bps.

    Entropies are those of the counts, and so too low where counts are few: n frames show at most log2(n) bits. Each
    conditional entropy comes with the same estimate for shuffled frames, where the frame before tells nothing: what it
    really tells is the difference of these two, and conditional_entropy_bitrate_bps is entropy_bitrate_bps less that.
    With thousands of ids, trust the digits, not the tokens.

Examples:

    >>> import evaluate
    >>> token_statistics = evaluate.load("training/metrics/token_statistics")
    >>> results = token_statistics.compute(
    ...     predictions=[[0, 3, 1, 3, 2, 3, 3, 3]], tokens_per_frame=2, vocab_size=4, frame_rate=10
    ... )
    >>> print(results["token_entropy_bits_by_place"], results["token_repeat_share"], results["bitrate_bps"])
    [2.0, 0.0] 0.5 40.0
"""

_CITATION = """\
@article{shannon1948communication,
  title = {A Mathematical Theory of Communication},
  author = {Shannon, Claude E.}, journal = {Bell System Technical Journal}, volume = {27}, year = {1948}
}
@inproceedings{mentzer2024fsq,
  title = {Finite Scalar Quantization: {VQ-VAE} Made Simple},
  author = {Mentzer, Fabian and Minnen, David and Agustsson, Eirikur and Tschannen, Michael},
  booktitle = {ICLR}, year = {2024}
}
"""


class TokenStatistics(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": datasets.Sequence(datasets.Value("int64"))}),
            license="Apache-2.0",
            reference_urls=["https://arxiv.org/abs/2309.15505", "https://doi.org/10.1002/j.1538-7305.1948.tb01338.x"],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[int]],
        tokens_per_frame: int = 1,
        vocab_size: int | Sequence[int] | None = None,
        levels: Sequence[int] | None = None,
        group_size: int | None = None,
        frame_rate: float | None = None,
        duration_s: float | None = None,
    ) -> dict:
        if vocab_size is None:
            raise ValueError("`vocab_size` must be given: `compute(..., vocab_size=16384)`")
        sizes = np.ravel(vocab_size).tolist() * (tokens_per_frame if np.ndim(vocab_size) == 0 else 1)
        if len(sizes) != tokens_per_frame:
            raise ValueError(f"`vocab_size` must have one number for each of {tokens_per_frame} places, got {sizes}")
        for number, clip in enumerate(predictions):
            if len(clip) % tokens_per_frame:
                raise ValueError(
                    f"`predictions[{number}]` must be whole frames of {tokens_per_frame} tokens, got {len(clip)} tokens"
                )
        clips = [np.asarray(clip, np.int64).reshape(-1, tokens_per_frame) for clip in predictions]
        if frame_rate is not None and not frame_rate > 0.0:
            raise ValueError(f"`frame_rate` must be above 0, got {frame_rate}")
        if duration_s is None and frame_rate is not None:
            duration_s = sum(map(len, clips)) / frame_rate
        return token_statistics(clips, sizes, levels, group_size, duration_s)
