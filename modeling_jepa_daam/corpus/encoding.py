"""Recordings to rows of tokens: a thread reads and decodes ahead while the model encodes.

Recordings are cut where `JepaDaamModel` cuts them, into chunks that are encoded each on its own, so that one of many
hours takes no more memory than a short one. On CPU each chunk runs alone, and its tokens are those of
`JepaAudioTokenizer`. On an accelerator chunks of like length run together, in groups that depend only on the
recordings given here and their order.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from ..audio import load_audio, read_blocks
from ..audio_container import FileWindow
from ..modeling_jepa_daam import MAX_CHUNKS_PER_BATCH
from ..tokenization_jepa_daam import JepaAudioTokenizer
from .shard import Row
from .sources import Recording

CHUNKS_AHEAD = 32  # decoded and waiting, at most: 37 MB of 12 s
POOLED_BATCHES = 8  # of chunks that an accelerator's batches are chosen from: 300 MB of 12 s

T = TypeVar("T")
Chunk = tuple[int, int, np.ndarray]  # number of the recording, of the chunk in it, and `(samples,)`, float32


@dataclass
class Rejection:
    """A recording that has no tokens, and why."""

    id: str
    reason: str


@dataclass
class _Pending:
    """What is known of a recording so far."""

    recording: Recording
    tokens: dict[int, np.ndarray] = field(default_factory=dict)  # by chunk
    salience: dict[int, np.ndarray] = field(default_factory=dict)
    num_samples: int = 0
    reason: str | None = None


def tokenize_recordings(
    recordings: Iterable[Recording],
    tokenizer: JepaAudioTokenizer,
    on_progress: Callable[[float, int, int], None] = lambda seconds, size, rejected: None,
    salience: bool = False,
) -> tuple[list[Row], list[Rejection]]:
    """Turn recordings into rows, in their order.

    Args:
        recordings: Of `sources.open_recordings`; read ahead in a thread.
        tokenizer: The tokenizer; its model's device decides about batches.
        on_progress: Told of what is done: seconds of audio, bytes of sound files, recordings that were rejected.
        salience: Whether rows have it.

    Returns:
        Rows, and the recordings that cannot be read or are empty.

    Raises:
        OSError: If a recording that was listed is gone, or its disk fails.
    """
    pending: list[_Pending] = []
    rate, model = tokenizer.sampling_rate, tokenizer.model
    chunk_samples = model.config.chunk_frames * model.config.hop_length
    alone = model.device.type == "cpu"
    ahead = _Ahead(_chunks(recordings, pending, rate, chunk_samples, on_progress))
    with torch.inference_mode(), _one_thread() if alone else contextlib.nullcontext(), ahead as chunks:
        for batch in _batches(chunks, alone):
            waveforms = [torch.from_numpy(samples) for _, _, samples in batch]
            if salience:
                sequences, saliences = model.waveforms_to_ids_with_salience(waveforms)
                for (position, number, _), gates in zip(batch, saliences, strict=True):
                    pending[position].salience[number] = gates.numpy().astype(np.float16)
            else:
                sequences = model.waveforms_to_ids(waveforms)
            for (position, number, samples), ids in zip(batch, sequences, strict=True):
                pending[position].tokens[number] = np.array(ids, np.uint16)
                on_progress(len(samples) / rate, 0, 0)
    rows, rejections = [], []
    for each in pending:
        recording = each.recording
        if each.reason is not None:
            rejections.append(Rejection(recording.id, each.reason))
            continue
        tokens = np.concatenate([each.tokens[number] for number in range(len(each.tokens))])
        frames = np.concatenate([each.salience[number] for number in range(len(each.tokens))]) if salience else None
        duration_s = each.num_samples / rate
        rows.append(
            Row(
                recording.id,
                tokens,
                each.num_samples,
                duration_s,
                recording.source,
                recording.speaker,
                recording.text,
                frames,
            )
        )
    return rows, rejections


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On CPU, digits may depend on the number of threads; all that tokenize a corpus have one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _chunks(
    recordings: Iterable[Recording],
    pending: list[_Pending],
    rate: int,
    chunk_samples: int,
    on_progress: Callable[[float, int, int], None],
) -> Iterator[Chunk]:
    """Decode recordings chunk by chunk; what becomes of each is noted in `pending`."""
    for position, recording in enumerate(recordings):
        state = _Pending(recording, reason=recording.problem)
        pending.append(state)
        if state.reason is None:
            try:
                for number, samples in enumerate(_recut(_blocks(recording.audio, rate), chunk_samples)):
                    state.num_samples += len(samples)
                    yield position, number, samples
                if state.num_samples == 0:
                    state.reason = "empty: it holds no samples"
            except (ValueError, TypeError) as error:
                state.reason = _reason(error, recording)
        on_progress(0.0, recording.size, state.reason is not None)
        state.recording = _without_sound(recording)


def _blocks(audio: Any, rate: int) -> Iterator[np.ndarray]:
    if isinstance(audio, FileWindow):
        with audio:
            yield from read_blocks(audio, rate)
    elif isinstance(audio, (str, bytes)):
        yield from read_blocks(audio, rate)
    else:
        yield load_audio(audio, None, rate)


def _recut(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Blocks of any sizes as blocks of one size; the last may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        whole = len(rest) // size * size
        for start in range(0, whole, size):
            yield rest[start : start + size]
        rest = rest[whole:]
    if len(rest):
        yield rest


def _reason(error: Exception, recording: Recording) -> str:
    """The message without paths of this machine."""
    message = str(error).removeprefix("`audio`: ").replace("audio bytes", recording.id)
    return message.replace(recording.audio, recording.id) if isinstance(recording.audio, str) else message


def _without_sound(recording: Recording) -> Recording:
    return Recording(recording.id, None, recording.source, recording.speaker, recording.text)


def _batches(chunks: Iterable[Chunk], alone: bool) -> Iterator[list[Chunk]]:
    """Chunks that are encoded at once: one, or as many as an accelerator takes, of like length."""
    if alone:
        for chunk in chunks:
            yield [chunk]
        return
    pool: list[Chunk] = []
    for chunk in chunks:
        pool.append(chunk)
        if len(pool) == POOLED_BATCHES * MAX_CHUNKS_PER_BATCH:
            yield from _by_length(pool)
            pool = []
    yield from _by_length(pool)


def _by_length(pool: list[Chunk]) -> Iterator[list[Chunk]]:
    pool = sorted(pool, key=lambda chunk: (-len(chunk[2]), chunk[:2]))
    for start in range(0, len(pool), MAX_CHUNKS_PER_BATCH):
        yield pool[start : start + MAX_CHUNKS_PER_BATCH]


class _Ahead:
    """An iterator that a thread runs ahead of its reader; what it raises, the reader is told.

    Use it in a `with` statement, whose end stops the thread.
    """

    def __init__(self, items: Iterator[Any]):
        self._items, self._stopped = items, False
        self._queue: queue.Queue = queue.Queue(CHUNKS_AHEAD)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "_Ahead":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def __iter__(self) -> Iterator[Any]:
        while True:
            item, error, last = self._queue.get()
            if error is not None:
                raise error
            if last:
                return
            yield item

    def _run(self) -> None:
        try:
            for item in self._items:
                self._queue.put((item, None, False))
                if self._stopped:
                    return
            self._queue.put((None, None, True))
        except BaseException as error:  # the reader raises it
            self._queue.put((None, error, True))
