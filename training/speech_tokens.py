"""Tokens of recordings: made once and kept, or read from a corpus that was tokenized before."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
from datasets import Dataset, Features, Value, load_dataset

from modeling_jepa_daam import JepaAudioTokenizer
from modeling_jepa_daam.audio_container import FileWindow
from modeling_jepa_daam.corpus.listing import list_files, speaker_of
from modeling_jepa_daam.token_blocks import TOKEN_COLUMNS

RECORDING = Features(
    {"name": Value("string"), "speaker": Value("string"), "text": Value("string"), "audio": Value("binary")}
)


def tokenize_sources(
    sources: Sequence[str], tokenizer: JepaAudioTokenizer, cache: Path, num_proc: int | None = None
) -> Dataset:
    """Tokens of tar files and folders, by `datasets`, which keeps them in `cache` and finds them there again.

    For hundreds of hours, not for more: the sound is copied into the cache first.

    Args:
        sources: Tar files and folders, with metadata as `.json` files beside the recordings (`speaker`, `text`).
        tokenizer: Of the checkpoint; its weights are part of what the cache goes by.
        cache: Folder.
        num_proc: Processes; this one if `None`.

    Returns:
        Rows of `name`, `speaker`, `text` (or none), `input_ids`, `num_samples`.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If there are no recordings, or one cannot be read.
    """
    state = [_state(Path(source)) for source in sources]  # changed sources are other sources
    recordings = Dataset.from_generator(
        _read_recordings,
        features=RECORDING,
        cache_dir=str(cache),
        gen_kwargs={"sources": list(map(str, sources)), "state": state},
    )
    if len(recordings) == 0:
        raise ValueError(f"`sources`: no recordings in {', '.join(map(str, sources))}")
    columns = {**RECORDING, **tokenizer.features}
    return recordings.map(
        tokenizer.tokenize_batch,
        batched=True,
        batch_size=100,
        num_proc=num_proc,
        remove_columns="audio",
        features=Features({name: kind for name, kind in columns.items() if name != "audio"}),
        desc="tokenizing",
    )


def read_token_dataset(folder: Path) -> Dataset:
    """Tokens of a corpus in Parquet files: ids in a column `input_ids` or `tokens`, `speaker`, `text` if there is one.

    Raises:
        ValueError: If there are no Parquet files, or the columns are missing.
    """
    files = sorted(map(str, folder.rglob("*.parquet")))
    if not files:
        raise ValueError(f"`tokens`: no Parquet files in {folder}")
    dataset = load_dataset("parquet", data_files=files, split="train")
    column = next((name for name in TOKEN_COLUMNS if name in dataset.column_names), None)
    if column is None or "speaker" not in dataset.column_names:
        raise ValueError(
            f"`tokens` must have columns {' or '.join(TOKEN_COLUMNS)} and speaker, "
            f"got {', '.join(dataset.column_names)}"
        )
    if not isinstance(dataset.features[column], datasets.List):
        raise ValueError(f"`tokens`: column {column} must be a list of ids, got {dataset.features[column]}")
    if "name" not in dataset.column_names:
        names = dataset["id"][:] if "id" in dataset.column_names else list(map(str, range(len(dataset))))
        dataset = dataset.add_column("name", names)
    return dataset.rename_column(column, "input_ids") if column != "input_ids" else dataset


def _state(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a source's files."""
    if not path.exists():
        raise FileNotFoundError(f"`sources`: no such tar file or folder: {path}")
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read_recordings(sources: list[str], state: list) -> Iterator[dict]:
    for source in sources:
        for listed in list_files(source, {"speaker", "text"}, "`sources`"):
            name, metadata, size = listed["name"], listed["metadata"], listed["size"]
            assert size is not None  # no manifest
            with FileWindow(listed["path"], listed["offset"], size) as file:
                speaker = speaker_of(name, metadata)
                audio = file.read()
                if len(audio) < size:
                    raise ValueError(f"`sources`: {listed['path']} has become shorter since it was listed")
                yield {"name": name, "speaker": speaker, "text": metadata.get("text"), "audio": audio}
