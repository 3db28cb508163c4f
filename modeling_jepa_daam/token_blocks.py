"""Blocks of one length, without padding, to train a language model on."""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from .audio_vocabulary import AudioVocabulary
from .framing import check_integer

TOKEN_COLUMNS = ("input_ids", "tokens")


def pack_into_blocks(
    batch: Mapping[str, Any], block_length: int, vocabulary: AudioVocabulary | None = None
) -> dict[str, list]:
    """Put the sequences of a batch after one another, and cut what comes of it into blocks.

    For `dataset.map(pack_into_blocks, batched=True, fn_kwargs={"block_length": 1024, "vocabulary": vocabulary},
    remove_columns=dataset.column_names)`. Less than a block is left at the end of each batch, and left out: take
    large ones (`batch_size`). The blocks are what `DataCollatorForLanguageModeling(tokenizer, mlm=False)` takes.

    Args:
        batch: Columns by name, with the ids in `input_ids` or `tokens`.
        block_length: Ids of a block.
        vocabulary: Turns the audio's ids into those of the language model, each recording between the marks; ids stay
            as they are if `None`.

    Returns:
        A column `input_ids`, of blocks.

    Raises:
        ValueError: If there is no column of ids, an id is out of range, or `block_length` is below 1.
    """
    check_integer(block_length, "block_length")
    column = next((name for name in TOKEN_COLUMNS if name in batch), None)
    if column is None:
        raise ValueError(f"`batch` must have a column {' or '.join(TOKEN_COLUMNS)}, got {', '.join(batch) or 'none'}")
    sequences: Iterable[list[int]] = batch[column]
    if vocabulary is not None:
        sequences = (vocabulary.from_audio(ids) for ids in sequences)
    ids = list(chain.from_iterable(sequences))
    whole = len(ids) - len(ids) % block_length
    return {"input_ids": [ids[start : start + block_length] for start in range(0, whole, block_length)]}


__all__ = ["pack_into_blocks"]
