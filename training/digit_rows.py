"""Rows of an embedding that tokens share by their digits."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modeling_jepa_daam.packing import unpack_token


class DigitRows(nn.Module):
    """A parametrization of an embedding matrix: an audio token's row is the sum of rows of its digits and their pairs.

    A token packs 7 digits of 4 values: 16384 ids, most of which a few hours of speech hold once or never. Their rows
    are made of 28 rows of single digits and 336 of pairs, each of which is trained by thousands of tokens. As the
    output layer it is a softmax over digits that depend on each other in pairs; once trained, it is folded into
    an ordinary matrix (`fold`), so that the model is what any Llama is.

    Args:
        levels: Number of values of each digit of a token.
        first_id: The first audio token's row; there are `prod(levels)` of them.
        seed: Of the first weights.
    """

    parts: Tensor

    def __init__(self, levels: Sequence[int], first_id: int, seed: int = 0):
        super().__init__()
        self.first_id, self.seed = first_id, seed
        self.num_tokens = int(torch.tensor(levels).prod())
        digits = unpack_token(torch.arange(self.num_tokens), levels)
        columns, self.num_parts = [], 0
        for place, level in enumerate(levels):
            columns.append(digits[:, place] + self.num_parts)
            self.num_parts += level
        for one, other in itertools.combinations(range(len(levels)), 2):
            columns.append(digits[:, one] * levels[other] + digits[:, other] + self.num_parts)
            self.num_parts += levels[one] * levels[other]
        self.register_buffer("parts", torch.stack(columns, dim=1), persistent=False)

    def forward(self, compact: Tensor) -> Tensor:
        """`(others + parts, dim)` -> `(vocabulary, dim)`."""
        others = compact[: -self.num_parts]
        audio = F.embedding_bag(self.parts, compact[-self.num_parts :], mode="sum")
        return torch.cat([others[: self.first_id], audio, others[self.first_id :]])

    def right_inverse(self, weight: Tensor) -> Tensor:
        """First weights, about as large as those of `weight (vocabulary, dim)`; they do not make the same rows."""
        others = torch.cat([weight[: self.first_id], weight[self.first_id + self.num_tokens :]])
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(self.num_parts, weight.shape[1], generator=generator)
        return torch.cat([others, drawn * weight.std().cpu() / self.parts.shape[1] ** 0.5])


def share_rows(layer: nn.Module, rows: DigitRows) -> None:
    """Make a layer's `weight (vocabulary, dim)` one of `rows`."""
    parametrize.register_parametrization(layer, "weight", rows, unsafe=True)


def fold(layer: nn.Module) -> None:
    """Make a layer's `weight` an ordinary one again, with the values that it has."""
    parametrize.remove_parametrizations(layer, "weight")
