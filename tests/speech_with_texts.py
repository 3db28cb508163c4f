"""A tar file of the recordings in `tests/audio`, with speakers and texts, for the tests of the language model."""

import io
import json
import tarfile
from pathlib import Path

from tests.librilight import recordings

TEXTS = ("he was in a hurry", "the road was long", None)  # not what is said there; one recording in three has none


def make_speech_with_texts(path: Path) -> Path:
    """Write `path`, a tar file of `source/speaker/name.flac` and `.json`."""
    with tarfile.open(path, "w") as tar:
        number = 0
        for speaker, files in recordings().items():
            for file in files:
                metadata = {"source": "test", "speaker": speaker, "text": TEXTS[number % len(TEXTS)]}
                for suffix, content in ((".flac", file.read_bytes()), (".json", json.dumps(metadata).encode())):
                    member = tarfile.TarInfo(f"test/{speaker}/{file.stem}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1
    return path
