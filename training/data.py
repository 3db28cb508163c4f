"""From recordings to batches of segments: every segment once an epoch, shuffled among speakers, resumable exactly.

A recording is cut into the fewest equal segments of at most `segment_s`. A stream takes `recordings_per_round`
recordings at a time, shuffles all their segments together and cuts the round into batches. A segment is a function of
its recording and its index, a round is a function of the seed and its number; where a stream stands is therefore told
by a few integers, and a batch carries where its stream stands after it.
"""

import contextlib
import errno
import io
import itertools
import math
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import DataLoader

from modeling_jepa_daam.audio import AudioFile, Resampler, mix_down
from modeling_jepa_daam.audio_container import FileWindow, check_regular_file

from .config import DataConfig

PREFETCH_BATCHES = 4  # that a worker makes ahead
MAX_ROUND_BYTES = 256 * 2**20  # of sound files that a round holds in memory
PASSING_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
MAX_EMPTY_EPOCHS = 10  # a stream may miss out on one when there are few recordings
MIN_RECORDINGS_TO_JUDGE = 100  # a share of fewer than these is not yet a share


# Where a stream stands. `rows` is the position of the round's first recording; `batch` counts the round's batches, and
# `plan` is a checksum of its segments; `unopened` and `broken` are its recordings that could not be read at all, or not
# to their end; the rest counts the epoch's recordings.
START: dict[str, Any] = {
    "epoch": 0,
    "round": 0,
    "rows": None,
    "batch": 0,
    "plan": 0,
    "unopened": [],
    "broken": [],
    "opened": 0,
    "unreadable": 0,
    "too_short": 0,
}


class UnreadableRecordingsError(RuntimeError):
    """More recordings than `data.max_unreadable_share` could not be read."""


@dataclass
class SegmentBatch:
    """Segments of some recordings.

    Args:
        samples: `(batch, samples)`, float32, at the model's rate, zero after each segment's end.
        lengths: `(batch,)`, int64, samples of each segment.
        bandwidth_hz: `(batch,)`, float32, where each recording's spectrum ends, at most half its own rate.
        segments: Name of the recording, index of the segment, and number of segments of the recording.
        unreadable: Name and reason of each recording given up since the stream's last batch.
        position: Where the stream stands after this batch, to go on from.
    """

    samples: Tensor
    lengths: Tensor
    bandwidth_hz: Tensor
    segments: list[tuple[str, int, int]]
    unreadable: list[tuple[str, str]]
    position: dict

    def pin_memory(self) -> "SegmentBatch":
        """Called by the data loader, for an asynchronous copy to an accelerator."""
        self.samples = self.samples.pin_memory()
        return self


@contextlib.contextmanager
def open_sound(recording: dict) -> Iterator[AudioFile]:
    """Open a recording's sound file; `recording` is a row of `RECORDING`.

    Raises:
        ValueError: If the file is missing, is no audio, is damaged or cut short, or holds no samples.
    """
    try:
        if recording["content"] is not None:
            source: Any = io.BytesIO(recording["content"])
        else:
            check_regular_file(recording["path"], recording["name"])
            source = FileWindow(recording["path"], recording["offset"], recording["size"])
        with source, AudioFile(source, recording["name"]) as file:
            if file.count() == 0:
                raise ValueError("it holds no samples")
            yield file
    except OSError as error:
        if error.errno in PASSING_ERRORS:  # of the machine, not of the file
            raise
        raise ValueError(str(error)) from error


def count_segments(num_samples: int, sampling_rate: int, segment_s: float) -> int:
    """Fewest equal segments of at most `segment_s` seconds."""
    return max(1, math.ceil(num_samples / (segment_s * sampling_rate)))


def read_segment(recording: dict, index: int, num_segments: int, sampling_rate: int) -> tuple[np.ndarray, float]:
    """Read one segment of a recording, resampled on its own.

    Args:
        recording: Row of `RECORDING`.
        index: Which of `num_segments` equal parts.
        num_segments: Parts of the recording.
        sampling_rate: Wanted rate (Hz).

    Returns:
        `(samples,)`, float32, mono; and where the recording's spectrum ends (Hz), at most half its own rate.

    Raises:
        ValueError: If the file cannot be read, or ends before the segment does.
    """
    with open_sound(recording) as file:
        start, end = (file.count() * part // num_segments for part in (index, index + 1))
        file.seek(start)
        samples = file.read(end - start)
        if len(samples) < end - start:
            raise ValueError(f"it ends at sample {start + len(samples)} of {file.count()}")
        resampler = Resampler(file.sampling_rate, sampling_rate)
        bandwidth_hz = min(file.sampling_rate / 2, recording["bandwidth_hz"] or math.inf)
    resampled = np.concatenate([resampler.push(samples), resampler.close()])
    return mix_down(resampled, recording["name"]), bandwidth_hz  # checks it again: resampling overshoots


class SegmentStream(torch.utils.data.IterableDataset):
    """The batches of one of several streams that share a corpus.

    Args:
        recordings: `datasets` stream of rows of `RECORDING`, the same for all streams.
        data: How to cut and batch.
        sampling_rate: Of the model (Hz).
        seed: Of every order.
        stream: Which of `num_streams` this is.
        num_streams: Streams of all processes together; each recording goes to exactly one of them.
        max_epochs: Passes over the recordings; `None` to go on for ever.
        position: `SegmentBatch.position` to go on after; `None` to start at the beginning.
    """

    def __init__(
        self,
        recordings: IterableDataset,
        data: DataConfig,
        sampling_rate: int,
        seed: int,
        stream: int = 0,
        num_streams: int = 1,
        max_epochs: int | None = None,
        position: dict | None = None,
    ):
        # By shards, each is read by one stream; by examples, all read all, and leave out what is the others'.
        split_by = "shards" if recordings.num_shards >= num_streams else "examples"
        self.recordings = split_dataset_by_node(recordings, stream, num_streams, strategy=split_by)
        self.data, self.sampling_rate, self.seed, self.stream = data, sampling_rate, seed, stream
        self.max_epochs, self.position = max_epochs, position

    def __iter__(self) -> Iterator[SegmentBatch]:
        at = dict(self.position or START)
        failures: list[tuple[str, str]] = []  # not told yet
        empty_epochs = 0
        while self.max_epochs is None or at["epoch"] < self.max_epochs:
            # Shards are shuffled by any epoch but 0, alike in every stream; without a buffer, which would be lost.
            self.recordings.set_epoch(1 + int(np.random.SeedSequence([self.seed, at["epoch"]]).generate_state(1)[0]))
            if at["rows"] is not None:
                self.recordings.load_state_dict(at["rows"])
            rows = iter(self.recordings)
            came = at["round"] + at["batch"] > 0
            while round_ := self._take(rows):
                for batch in self._batches(round_, at, failures):
                    came = True
                    yield batch
                at.update(round=at["round"] + 1, rows=self.recordings.state_dict(), batch=0, unopened=[], broken=[])
            empty_epochs = 0 if came else empty_epochs + 1
            if self.max_epochs is None and (empty_epochs == MAX_EMPTY_EPOCHS or (empty_epochs and at["opened"])):
                first = "".join(f" The first: {name}: {reason}." for name, reason in failures[:1])
                raise ValueError(
                    f"`data.sources`: no segment came to stream {self.stream} in {empty_epochs} epoch(s): "
                    f"{at['opened']} recordings, {at['unreadable']} of them unreadable, {at['too_short']} too short."
                    f"{first} If there are too few, use fewer processes or `data.num_workers`, or another "
                    "`data.held_out_share`"
                )
            at = {**START, "epoch": at["epoch"] + 1}

    def _take(self, rows: Iterator[dict]) -> list[dict]:
        """The next round's recordings."""
        taken: list[dict] = []
        num_bytes = 0
        while len(taken) < self.data.recordings_per_round and num_bytes < MAX_ROUND_BYTES:
            row = next(rows, None)
            if row is None:
                break
            taken.append(row)
            num_bytes += len(row["content"] or b"")
        return taken

    def _batches(self, rows: list[dict], at: dict, failures: list[tuple[str, str]]) -> Iterator[SegmentBatch]:
        """The batches of a round that are still to come; `at` follows."""
        segments = self._plan(rows, at, failures)
        rng = np.random.default_rng([self.seed, at["epoch"], self.stream, at["round"]])
        for batch in cut_into_batches(segments, self.data.batch_size, self.data.bucket_batches, rng)[at["batch"] :]:
            names, arrays, bandwidths = [], [], []
            for _, row, index, num_segments in batch:
                if row in at["broken"]:
                    continue
                try:
                    samples, bandwidth_hz = read_segment(rows[row], index, num_segments, self.sampling_rate)
                    arrays.append(samples)
                    bandwidths.append(bandwidth_hz)
                    names.append((rows[row]["name"], index, num_segments))
                except ValueError as error:
                    self._give_up(rows, row, "broken", error, at, failures)
            at["batch"] += 1
            if arrays:
                yield SegmentBatch(*_pad(arrays), torch.tensor(bandwidths), names, failures[:], dict(at))
                failures.clear()

    def _plan(self, rows: list[dict], at: dict, failures: list) -> list[tuple[float, int, int, int]]:
        """Seconds, recording, index and number of segments, for each segment of a round's recordings."""
        resumed = at["batch"] > 0
        segments: list[tuple[float, int, int, int]] = []
        for row, recording in enumerate(rows):
            if row in at["unopened"]:
                continue
            try:
                with open_sound(recording) as file:
                    num_segments = count_segments(file.count(), file.sampling_rate, self.data.segment_s)
                    seconds = file.count() / file.sampling_rate / num_segments
            except ValueError as error:
                if resumed:
                    raise ValueError(
                        f"cannot go on exactly: {recording['name']} could be read before, and now not: {error}"
                    ) from error
                self._give_up(rows, row, "unopened", error, at, failures)
                continue
            if seconds >= self.data.min_segment_s:
                segments += [(seconds, row, index, num_segments) for index in range(num_segments)]
            elif not resumed:
                at["too_short"] += 1
        plan = zlib.crc32(repr(segments).encode())
        if resumed and plan != at["plan"]:
            raise ValueError("cannot go on exactly: recordings have been replaced by others of other lengths")
        if not resumed:
            at["opened"] += len(rows)
            at["plan"] = plan
        return segments

    def _give_up(self, rows: list[dict], row: int, kind: str, error: ValueError, at: dict, failures: list) -> None:
        at[kind] = [*at[kind], row]  # a new list: earlier positions keep theirs
        at["unreadable"] += 1
        failures.append((rows[row]["name"], str(error)))


def judge_unreadable(opened: int, unreadable: int, max_share: float) -> None:
    """Fail if too many recordings cannot be read.

    Raises:
        UnreadableRecordingsError: If they are more than `max_share` of `opened` ones, or of
            `MIN_RECORDINGS_TO_JUDGE` if there are fewer.
    """
    if unreadable > max_share * max(opened, MIN_RECORDINGS_TO_JUDGE):
        raise UnreadableRecordingsError(
            f"{unreadable} of {opened} recordings are unreadable, more than `data.max_unreadable_share` = {max_share:g}"
        )


def cut_into_batches(segments: list[tuple], batch_size: int, bucket_batches: int, rng: np.random.Generator) -> list:
    """Shuffle segments and cut them into batches of as even sizes as can be, of segments of like length.

    Args:
        segments: Tuples whose first entry is a length.
        batch_size: Largest batch.
        bucket_batches: Batches that are cut from one sorted bucket; 1 leaves the lengths mixed.
        rng: Source of the order of segments and batches.
    """
    order = [segments[index] for index in rng.permutation(len(segments))]
    batches = []
    for bucket in _split_evenly(order, batch_size * bucket_batches):
        if bucket_batches > 1:
            bucket = sorted(bucket, key=lambda segment: segment[0])
        batches += _split_evenly(bucket, batch_size)
    return [batches[index] for index in rng.permutation(len(batches))]


def _split_evenly(items: list, max_size: int) -> list[list]:
    parts = -(-len(items) // max_size)
    return [items[len(items) * part // parts : len(items) * (part + 1) // parts] for part in range(parts)]


def _pad(arrays: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([len(array) for array in arrays])
    samples = torch.zeros(len(arrays), int(lengths.max()))
    for row, array in zip(samples, arrays, strict=True):
        row[: len(array)] = torch.from_numpy(array)
    return samples, lengths


class BatchLoader:
    """The batches of one training process: its streams in turn, each in a worker process of its own.

    Args:
        recordings: `datasets` stream of rows of `RECORDING`.
        data: How to cut and batch; `data.num_workers` streams, or one in this process if 0.
        sampling_rate: Of the model (Hz).
        seed: Of every order.
        rank: This process.
        world_size: Processes.
        max_epochs: Passes over the recordings; `None` to go on for ever.
        pin_memory: Whether to hand out batches in pinned memory.
    """

    def __init__(
        self,
        recordings: IterableDataset,
        data: DataConfig,
        sampling_rate: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        max_epochs: int | None = None,
        pin_memory: bool = False,
    ):
        self._per_process = max(1, data.num_workers)
        self._world_size = world_size
        self._num_workers = data.num_workers
        self._pin_memory = pin_memory
        self._stream = lambda stream, position: SegmentStream(
            recordings,
            data,
            sampling_rate,
            seed,
            rank * self._per_process + stream,
            world_size * self._per_process,
            max_epochs,
            position,
        )
        self._next = 0
        self._positions: list[dict | None] = [None] * self._per_process

    def __iter__(self) -> Generator[SegmentBatch, None, None]:
        streams: dict[int, Iterator] = {}
        for stream, position in enumerate(self._positions):
            loader = DataLoader(
                self._stream(stream, position),
                batch_size=None,
                num_workers=1 if self._num_workers else 0,
                prefetch_factor=PREFETCH_BATCHES if self._num_workers else None,
                pin_memory=self._pin_memory,
            )
            streams[stream] = iter(loader)
        while streams:
            stream = self._next
            self._next = (stream + 1) % self._per_process
            if stream in streams:
                batch = next(streams[stream], None)
                if batch is None:
                    del streams[stream]
                else:
                    self._positions[stream] = batch.position
                    yield batch

    def take(self, num_batches: int) -> Iterator[SegmentBatch]:
        """The first batches from the very beginning, at most `num_batches`."""
        self._next, self._positions = 0, [None] * self._per_process
        batches = iter(self)
        try:
            yield from itertools.islice(batches, num_batches)
        finally:
            batches.close()  # ends the workers

    def counts(self) -> dict[str, int]:
        """Recordings of this process's streams, in the epoch of each: opened, unreadable and too short."""
        positions = [position or START for position in self._positions]
        return {key: sum(position[key] for position in positions) for key in ("opened", "unreadable", "too_short")}

    def state_dict(self) -> dict:
        """Where every stream of this process stands, after the last batch handed out; plain JSON values."""
        return {
            "world_size": self._world_size,
            "streams": self._per_process,
            "next": self._next,
            "positions": list(self._positions),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from a `state_dict()`.

        Raises:
            ValueError: If it is of another number of processes or of streams.
        """
        mine, its = (self._world_size, self._per_process), (state["world_size"], state["streams"])
        if mine != its:
            raise ValueError(
                f"the data position is of {its[0]} processes with {its[1]} streams each (`data.num_workers`), "
                f"but this run has {mine[0]} with {mine[1]}: start it with as many"
            )
        self._next, self._positions = state["next"], list(state["positions"])
