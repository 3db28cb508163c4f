"""Reconstructions that someone else made: files with the clips' names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import soxr

from modeling_jepa_daam.audio import load_audio

from ..metrics.codec_quality.alignment import CLIPS as LAG_CLIPS
from ..metrics.codec_quality.alignment import constant_lag
from .base import Codec, Coded, check_clip, shift

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
SPEC = re.compile(r"(?P<path>.+?)(:(?P<bps>\d+(\.\d+)?))?(:(?P<lag>-?\d+(\.\d+)?)ms)?")
LAG_RATE = 16000  # Hz, at which lags are found


class Folder(Codec):
    """Published reconstructions, one file a clip, in any subfolder, at any rate.

    Bits: of the stated rate over the clip's duration; None without one. Nothing of it is checked here.

    Args:
        path: The folder.
        bps: Its stated rate (bit/s).
        lag_ms: How late all its files come (ms): a system's constant delay, found by `with_lag`.

    Raises:
        ValueError: If there is no such folder, or no sound in it.
    """

    def __init__(self, path: str, bps: float | None = None, lag_ms: float | None = None):
        if not Path(path).is_dir():
            raise ValueError(f"`spec`: no folder {path}")
        self.name = Path(path).name
        self.nominal_bps = bps
        self.path, self.lag_ms = path, lag_ms
        self._files: dict[str, list[Path]] = defaultdict(list)
        for file in sorted(Path(path).rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                self._files[file.stem].append(file)
        if not self._files:
            raise ValueError(f"`spec`: no {', '.join(SUFFIXES)} files in {path}")

    @classmethod
    def from_spec(cls, rest: str) -> "Folder":
        """From `PATH[:BPS][:LAGms]`."""
        match = SPEC.fullmatch(rest)
        if match is None:
            raise ValueError(f"`spec` must be folder:PATH[:BPS][:LAGms], got folder:{rest}")
        bps, lag_ms = (None if value is None else float(value) for value in match.group("bps", "lag"))
        return cls(match["path"], bps, lag_ms)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def read(self, name: str | None, sampling_rate: int) -> np.ndarray:
        """The file of a clip, `(samples,)`, float32, as it lies there.

        Raises:
            ValueError: If there is no file of that name, or more than one.
        """
        files = self._files.get(name or "", [])
        if len(files) != 1:
            found = f"{len(files)} files: {', '.join(map(str, files))}" if files else "no file"
            raise ValueError(f"`name`: {found} for clip {name!r} in {self.path}")
        return load_audio(files[0], None, sampling_rate)

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        if self.lag_ms is None:
            raise ValueError(f"`spec`: the lag of {self.path} is not known: take the spec that `with_lag` gives")
        decoded = self.read(name, sampling_rate)
        bits = None if self.nominal_bps is None else self.nominal_bps * len(samples) / sampling_rate
        return Coded(shift(decoded, round(self.lag_ms * sampling_rate / 1000), len(samples)), bits)


def with_lag(spec: str, clips: Iterable[tuple[str, np.ndarray, int]]) -> str:
    """The spec of a folder with its constant lag written in; any other spec as it is.

    It is the `constant_lag` of the first clips that the folder has. Do this once, before workers make codecs: each of
    them sees other clips.

    Args:
        spec: As for `make_codec`.
        clips: Name, `(samples,)` float32 and rate (Hz) of originals; read no further than needed.

    Raises:
        ValueError: If the folder has none of the clips.
    """
    kind, _, rest = spec.partition(":")
    if kind != "folder":
        return spec
    folder = Folder.from_spec(rest)
    if folder.lag_ms is not None:
        return spec
    originals, reconstructions = [], []
    for name, samples, sampling_rate in clips:
        if name in folder:
            originals.append(soxr.resample(samples, sampling_rate, LAG_RATE))
            reconstructions.append(shift(folder.read(name, LAG_RATE), 0, len(originals[-1])))
        if len(originals) == LAG_CLIPS:
            break
    if not originals:
        raise ValueError(f"`clips`: none of them is in {folder.path}")
    return f"{spec}:{1000 * constant_lag(originals, reconstructions, LAG_RATE) / LAG_RATE:g}ms"
