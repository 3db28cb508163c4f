"""A small LibriLight in its exact layout, from the recordings in `tests/audio`.

python -m tests.librilight FOLDER [CHAPTER_S]
"""

import io
import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

RECORDINGS = Path(__file__).parent / "audio"
LIBRILIGHT_RATE = 16000


def recordings() -> dict[str, list[Path]]:
    """The recordings in `tests/audio`, by speaker."""
    by_speaker: dict[str, list[Path]] = {}
    for path in sorted(RECORDINGS.rglob("*.flac")):
        by_speaker.setdefault(path.name.split("-")[0], []).append(path)
    return by_speaker


def make_librilight(folder: Path, chapter_s: float = 20.0, chapters: int = 2) -> Path:
    """Write `small/speaker/book/chapter.flac` and `.json`, 16 kHz, and beside it `small.tar` with the same files.

    Args:
        folder: Where to.
        chapter_s: Shortest and, times `chapters`, longest chapter in seconds; a speaker's recordings are repeated.
        chapters: Chapters of each speaker.

    Returns:
        The folder `small`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    small = folder / "small"
    with tarfile.open(folder / "small.tar", "w") as tar:
        for speaker, paths in recordings().items():
            speech = np.concatenate([soundfile.read(path, dtype="float32")[0] for path in paths])
            speech = soxr.resample(speech, 24000, LIBRILIGHT_RATE)
            for chapter in range(chapters):
                book = Path("small", speaker, f"a_book_of_{speaker}_librivox_64kb_mp3")
                stem = str(book / f"chapter_{chapter:02d}_64kb")
                num_samples = int(chapter_s * (1 + chapter) * LIBRILIGHT_RATE) + 7 * chapter
                sound = io.BytesIO()
                chapter_speech = np.resize(np.roll(speech, -4000 * chapter), num_samples)
                soundfile.write(sound, chapter_speech, LIBRILIGHT_RATE, format="FLAC")
                metadata = {"speaker": speaker, "book_meta": {"title": "A Book"}, "snr": 10.0, "voice_activity": []}
                for suffix, content in ((".flac", sound.getvalue()), (".json", json.dumps(metadata).encode())):
                    (folder / book).mkdir(parents=True, exist_ok=True)
                    (folder / (stem + suffix)).write_bytes(content)
                    member = tarfile.TarInfo(stem + suffix)
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return small


if __name__ == "__main__":
    make_librilight(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 20.0)
