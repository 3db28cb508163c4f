"""Spectral features of a corpus, cached in one file, and windows of them to train on.

A cache is `NAME.npy`, `(vectors, rows)`, float16, of all recordings one after the other, and `NAME.json`, a list of
`name`, `speaker`, `language`, `frames` of each. `training/extract_features.py` writes it.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..recordings import is_held_out

MAX_HELD_OUT_S = 600.0  # of one speaker: who speaks longer is worth more to train on


@dataclass(frozen=True)
class Span:
    """Frames of one recording, in feature vectors."""

    start: int
    """First vector."""
    frames: int


class FeatureCache:
    """Features of a corpus, memory-mapped.

    Args:
        paths: Caches, without suffix.
        held_out_share: Share of the speakers that are held out, by a hash of their names. Speakers of more than ten
            minutes are never held out.
        patch_size: Vectors a frame.
        frame_rate: Frames a second (Hz).

    Raises:
        ValueError: If a cache is missing, or its two files disagree.
    """

    def __init__(self, paths: list[str] | tuple[str, ...], held_out_share: float, patch_size: int, frame_rate: float):
        self.patch_size = patch_size
        self._arrays: list[np.ndarray] = []
        self._offsets: list[int] = []
        self.training: list[Span] = []
        self.held_out: list[Span] = []
        total = 0
        for path in paths:
            try:
                array = np.load(f"{path}.npy", mmap_mode="r")
                rows = json.loads(Path(f"{path}.json").read_text())
            except (OSError, ValueError) as error:
                raise ValueError(f"`data.features`: no feature cache at {path}: {error}") from error
            if len(array) != sum(row["frames"] for row in rows) * patch_size:
                raise ValueError(f"`data.features`: {path}.npy and {path}.json are not of the same recordings")
            self._arrays.append(array)
            self._offsets.append(total)
            start = total
            lengths: Counter[str] = Counter()
            for row in rows:
                lengths[row["speaker"]] += row["frames"]
            short = {name for name, frames in lengths.items() if frames <= MAX_HELD_OUT_S * frame_rate}
            for row in rows:
                held = row["speaker"] in short and is_held_out(row["speaker"], held_out_share)
                spans = self.held_out if held else self.training
                spans.append(Span(start, row["frames"]))
                start += row["frames"] * patch_size
            total += len(array)

    def read(self, start: int, vectors: int) -> np.ndarray:
        """`(vectors, rows)`, float16, from `start` on."""
        index = int(np.searchsorted(self._offsets, start, side="right")) - 1
        start -= self._offsets[index]
        return self._arrays[index][start : start + vectors]

    def window(self, spans: list[Span], frames: int) -> tuple[Tensor, Tensor]:
        """Spans one after the other, in a window of `frames`: features `(rows, vectors)` and valid frames."""
        rows = self._arrays[0].shape[1]
        features = np.zeros((frames * self.patch_size, rows), np.float16)
        place = 0
        for span in spans:
            vectors = span.frames * self.patch_size
            features[place : place + vectors] = self.read(span.start, vectors)
            place += vectors
        valid = torch.arange(frames) < place // self.patch_size
        return torch.from_numpy(features).float().T, valid


def training_windows(cache: FeatureCache, frames: int, seed: int, epoch: int) -> Iterator[list[Span]]:
    """All training recordings once, in random order, packed into windows; the grid of frames is shifted at random."""
    generator = np.random.default_rng([seed, epoch])
    windows: list[list[Span]] = []
    current: list[Span] = []
    room = frames
    for index in generator.permutation(len(cache.training)):
        span = cache.training[index]
        shift = int(generator.integers(cache.patch_size))
        left, start = span.frames - (shift > 0), span.start + shift
        while left > 0:
            taken = min(left, room)
            current.append(Span(start, taken))
            start, left, room = start + taken * cache.patch_size, left - taken, room - taken
            if room == 0:
                windows.append(current)
                current, room = [], frames
    yield from (windows[index] for index in generator.permutation(len(windows)))


def held_out_windows(cache: FeatureCache, frames: int) -> Iterator[list[Span]]:
    """Recordings of held-out speakers, each alone, cut to windows."""
    for span in cache.held_out:
        for first in range(0, span.frames, frames):
            yield [Span(span.start + first * cache.patch_size, min(frames, span.frames - first))]


class FeatureBatches:
    """Batches of training windows without end; `state_dict` says where they are.

    Args:
        cache: Features.
        frames: Frames of a window.
        batch_size: Windows of a batch.
        seed: Of the order.
    """

    def __init__(self, cache: FeatureCache, frames: int, batch_size: int, seed: int):
        self._cache, self._frames, self._batch_size, self._seed = cache, frames, batch_size, seed
        self.epoch, self.taken = 0, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            windows = list(training_windows(self._cache, self._frames, self._seed, self.epoch))
            if len(windows) < self._batch_size:
                raise ValueError(f"`data.batch_size` must be at most {len(windows)}, the windows there are")
            while self.taken + self._batch_size <= len(windows):
                batch = windows[self.taken : self.taken + self._batch_size]
                self.taken += self._batch_size
                parts = [self._cache.window(spans, self._frames) for spans in batch]
                yield torch.stack([part[0] for part in parts]), torch.stack([part[1] for part in parts])
            self.epoch, self.taken = self.epoch + 1, 0

    def state_dict(self) -> dict:
        """Place in the data, of JSON values."""
        return {"epoch": self.epoch, "taken": self.taken}

    def load_state_dict(self, state: dict) -> None:
        """Go to a place."""
        self.epoch, self.taken = state["epoch"], state["taken"]
