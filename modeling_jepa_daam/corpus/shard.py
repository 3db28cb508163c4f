"""One shard of a tokenized corpus: a Parquet file, the same bytes whoever writes it and whenever.

`tokens` are plain lists of 16-bit integers, so that every reader of Parquet has them, stored by BYTE_STREAM_SPLIT and
zstd: the two streams that hold only zeros vanish, the upper byte of a 14-bit id takes 6 bits and the lower one 8. Ids
without any redundancy take 666 bit/s in this way (4 % above the 640 that are in them), those of speech less.
The optional column `salience` has as many 16-bit floats a frame as the metadata's `salience_gates`, frame by frame.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import replacing

DIGEST_BYTES = 8
METADATA_KEY = b"jepa-daam"
GATES_KEY = "salience_gates"  # of a shard's facts
MAX_VOCABULARY = 2**16


@dataclass(frozen=True)
class Row:
    """The tokens of a recording.

    Args:
        id: Of the recording.
        tokens: `(frames * tokens_per_frame,)`, uint16, frame by frame.
        num_samples: True length of the recording, in samples at the model's rate.
        duration_s: The same in seconds.
        source, speaker, text: As `sources.Recording` has them.
        salience: `(frames, gates)`, float16, means of the encoder's gates, where the corpus has it.
    """

    id: str
    tokens: np.ndarray
    num_samples: int
    duration_s: float
    source: str
    speaker: str
    text: str | None
    salience: np.ndarray | None = None


def row_digest(row: Row) -> bytes:
    """The first 8 bytes of a SHA-256 over everything in a row."""
    facts = json.dumps([row.id, row.num_samples, row.duration_s, row.source, row.speaker, row.text])
    digest = hashlib.sha256(facts.encode() + b"\0" + row.tokens.astype("<u2").tobytes())
    if row.salience is not None:
        digest.update(row.salience.astype("<f2").tobytes())
    return digest.digest()[:DIGEST_BYTES]


def pyarrow() -> Any:
    """PyArrow with its Parquet part.

    Raises:
        ImportError: If it is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("a corpus of tokens needs pyarrow: pip install 'jepa-daam[corpus]'") from error
    return pyarrow


def schema(facts: dict) -> Any:
    """The columns of a shard, with what its tokens mean as metadata of the file."""
    pa = pyarrow()
    token, gate = (pa.field("element", kind, nullable=False) for kind in (pa.uint16(), pa.float16()))
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("tokens", pa.list_(token), nullable=False),
            *([pa.field("salience", pa.list_(gate), nullable=False)] if GATES_KEY in facts else []),
            pa.field("num_samples", pa.int64(), nullable=False),
            pa.field("duration_s", pa.float64(), nullable=False),
            pa.field("source", pa.string(), nullable=False),
            pa.field("speaker", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("digest", pa.binary(), nullable=False),
        ],
        metadata={METADATA_KEY: json.dumps(facts, sort_keys=True).encode()},
    )


def encode_shard(rows: Sequence[Row], facts: dict) -> bytes:
    """Rows as the bytes of a Parquet file."""
    pa = pyarrow()
    columns = schema(facts)
    arrays = [pa.array([row.id for row in rows], pa.string())]
    arrays.append(_list_array([row.tokens for row in rows], np.uint16, columns.field("tokens").type))
    if GATES_KEY in facts:
        frames = [row.salience for row in rows if row.salience is not None]
        arrays.append(_list_array([each.ravel() for each in frames], np.float16, columns.field("salience").type))
    arrays += [
        pa.array([getattr(row, name) for row in rows], columns.field(name).type)
        for name in ("num_samples", "duration_s", "source", "speaker", "text")
    ]
    arrays.append(pa.array([row_digest(row) for row in rows], pa.binary()))
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(
        pa.Table.from_arrays(arrays, schema=columns),
        sink,
        version="2.6",
        compression="zstd",
        compression_level=3,
        use_dictionary=["source", "speaker"],
        column_encoding={
            f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in ("tokens", "salience") if name in columns.names
        },
        write_statistics=["id", "num_samples"],
    )
    return sink.getvalue().to_pybytes()


def _list_array(rows: Sequence[np.ndarray], dtype: type, kind: Any) -> Any:
    pa = pyarrow()
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int32)
    values = np.concatenate([np.zeros(0, dtype), *rows])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)


def write_shard(path: str | os.PathLike, rows: Sequence[Row], facts: dict) -> tuple[str, int]:
    """Write a shard; the file appears whole or not at all.

    Returns:
        Its SHA-256, and its size in bytes.
    """
    data = encode_shard(rows, facts)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return hashlib.sha256(data).hexdigest(), len(data)


def read_tokens(table: Any) -> list[np.ndarray]:
    """The tokens of a table of shards, or of any part of it.

    Args:
        table: `pyarrow.Table` or `RecordBatch` with the column `tokens`.

    Returns:
        For each row `(frames * tokens_per_frame,)`, uint16, a view of the table's memory.
    """
    return _lists(table.column("tokens"))


def read_salience(table: Any) -> list[np.ndarray]:
    """The salience of a table of shards that have it, or of any part of it.

    Args:
        table: `pyarrow.Table` or `RecordBatch` with the column `salience` and the metadata of a shard.

    Returns:
        For each row `(frames, gates)`, float16, a view of the table's memory.
    """
    gates = json.loads(table.schema.metadata[METADATA_KEY])[GATES_KEY]
    return [values.reshape(-1, gates) for values in _lists(table.column("salience"))]


def _lists(column: Any) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for chunk in getattr(column, "chunks", [column]):
        offsets = chunk.offsets.to_numpy()
        values = chunk.values.to_numpy()
        rows += [values[start:end] for start, end in itertools.pairwise(offsets)]
    return rows


def read_rows(path: str | os.PathLike) -> tuple[list[Row], list[bytes], dict]:
    """Rows, their digests as they were written, and the facts of a shard.

    Raises:
        ValueError: If it is no such shard.
    """
    pa = pyarrow()
    try:
        table = pa.parquet.ParquetFile(Path(path)).read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    facts = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if not table.schema.equals(schema(facts)):
        raise ValueError(f"{path}: not a shard of tokens: its columns are {', '.join(table.column_names)}")
    names = ("id", "num_samples", "duration_s", "source", "speaker", "text")
    values = zip(*(table.column(name).to_pylist() for name in names), strict=True)
    salience: Sequence[np.ndarray | None] = [None] * table.num_rows
    if GATES_KEY in facts:
        salience = read_salience(table)
    rows = [
        Row(tokens=tokens, salience=frames, **dict(zip(names, others, strict=True)))
        for tokens, frames, others in zip(read_tokens(table), salience, values, strict=True)
    ]
    return rows, table.column("digest").to_pylist(), facts
