"""Reconstructions that someone else made: files with the clips' names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import numpy as np

from modeling_jepa_daam.audio import AUDIO_SUFFIXES, load_audio

from ..metrics.codec_quality.alignment import CLIPS as LAG_CLIPS
from ..metrics.codec_quality.alignment import constant_lag, remove_lag
from .base import Codec, Coded, check_clip

SPEC = re.compile(r"(?P<path>.+?)(:(?P<bps>\d+(\.\d+)?))?(:(?P<lag>-?\d+(\.\d+)?)ms)?")
LAG_RATE = 16000  # Hz, at which lags are found


class Folder(Codec):
    """Published reconstructions, one file a clip, at any rate.

    A clip's file is found by their paths, that of the clip within its source and that of the file within the folder,
    both without their endings. It is the file

    1. of the clip's path; if there is none,
    2. whose path ends with the clip's: `model/read/0001.wav` for the clip `read/0001`; if there is none,
    3. whose path the clip's ends with: `read/0001.wav` or `0001.wav` for the clip `eval/read/0001`, the bare name only
       if no other file of the folder has it.

    So `a/0001.wav` is never taken for `b/0001`. More than one file found in a step is an error.

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
        self._files: dict[str, list[Path]] = defaultdict(list)  # by stem, within the folder
        for file in sorted(Path(path).rglob("*")):
            if file.suffix.lower() in AUDIO_SUFFIXES:
                self._files[file.stem].append(file.relative_to(path))
        if not self._files:
            raise ValueError(f"`spec`: no {', '.join(AUDIO_SUFFIXES)} files in {path}")

    @classmethod
    def from_spec(cls, rest: str) -> "Folder":
        """From `PATH[:BPS][:LAGms]`."""
        match = SPEC.fullmatch(rest)
        if match is None:
            raise ValueError(f"`spec` must be folder:PATH[:BPS][:LAGms], got folder:{rest}")
        bps, lag_ms = (None if value is None else float(value) for value in match.group("bps", "lag"))
        return cls(match["path"], bps, lag_ms)

    def find(self, name: str | None) -> Path:
        """The file of a clip.

        Raises:
            ValueError: If there is none, or more than one.
        """
        clip = PurePosixPath(name or "").parts
        same_stem = self._files.get(clip[-1], []) if clip else []
        paths = {file: file.with_suffix("").parts for file in same_stem}
        files = (
            [file for file, path in paths.items() if path == clip]
            or [file for file, path in paths.items() if path[-len(clip) :] == clip]
            or [file for file, path in paths.items() if clip[-len(path) :] == path and (path[1:] or len(paths) == 1)]
        )
        if len(files) != 1:
            found = f"{len(files)} files: {', '.join(map(str, files))}" if files else "no file"
            raise ValueError(f"`name`: {found} for clip {name!r} in {self.path}")
        return Path(self.path) / files[0]

    def run(self, samples: np.ndarray, sampling_rate: int, name: str | None = None) -> Coded:
        check_clip(samples)
        if self.lag_ms is None:
            raise ValueError(f"`spec`: the lag of {self.path} is not known: take the spec that `with_lag` gives")
        decoded = load_audio(self.find(name), None, sampling_rate)
        bits = None if self.nominal_bps is None else self.nominal_bps * len(samples) / sampling_rate
        return Coded(remove_lag(decoded, round(self.lag_ms * sampling_rate / 1000), len(samples)), bits)


def with_lag(spec: str, recordings: Iterable[tuple[str, Path]]) -> str:
    """The spec of a folder with its constant lag written in; any other spec as it is.

    It is the `constant_lag` of the folder's first three files, in the order of their paths, whose originals are among
    the recordings; those that cannot be read do not count. No other file is opened. Do this once, before workers make
    codecs: each of them sees other clips.

    Args:
        spec: As for `make_codec`.
        recordings: Name, as for `Codec.run`, and file of originals.

    Raises:
        ValueError: If the folder has none of the recordings, or none that can be read.
    """
    kind, _, rest = spec.partition(":")
    if kind != "folder":
        return spec
    folder = Folder.from_spec(rest)
    if folder.lag_ms is not None:
        return spec
    problems, pairs = [], []
    for name, path in recordings:
        try:
            pairs.append((folder.find(name), path))
        except ValueError as error:
            problems.append(str(error))
    originals, reconstructions = [], []
    for reconstructed, original in sorted(pairs):
        try:
            sides = [load_audio(path, None, LAG_RATE) for path in (original, reconstructed)]
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        originals.append(sides[0])
        reconstructions.append(remove_lag(sides[1], 0, len(sides[0])))
        if len(originals) == LAG_CLIPS:
            break
    if not originals:
        why = f" ({problems[-1]})" if problems else ""
        raise ValueError(f"`recordings`: no lag, for none of them can be read in {folder.path}{why}")
    return f"{spec}:{1000 * constant_lag(originals, reconstructions, LAG_RATE) / LAG_RATE:g}ms"
