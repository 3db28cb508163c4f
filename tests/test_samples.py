import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_jepa_daam.files import sha256_of
from training import samples
from training.ogg import pages, with_serial_number

from .conftest import ROOT, SPEECH

AUDIO = ROOT / "tests" / "audio"
CLIPS = ["1688-142285-0003", "1998/15444/1998-15444-0008"]


@pytest.fixture(scope="module")
def written(nano_folder, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name in ("first", "second"):
        samples.main(nano_folder, AUDIO, CLIPS, ["hiss=noise"], folder / name)
    return folder


def test_the_index_tells_of_every_file(written, nano_folder):
    folder = written / "first"
    index = json.loads((folder / "samples.json").read_text())
    assert index["weights_sha256"] == sha256_of(nano_folder / "model.safetensors")
    assert list(index["systems"]) == ["original", "ours", "hiss"]
    assert [clip["clip"] for clip in index["clips"]] == [CLIPS[0], f"librispeech/{CLIPS[1]}"]
    told = {"samples.json"}
    for clip in index["clips"]:
        told |= {clip["picture"], *(system["file"] for system in clip["systems"].values())}
    assert told == {path.name for path in folder.iterdir()}
    first = index["clips"][0]
    assert first["systems"]["ours"]["bits"] == 256 * np.ceil(first["seconds"] * 2.5)
    assert str(ROOT) not in json.dumps(index)


def test_the_original_is_heard_in_its_file(written):
    heard, rate = soundfile.read(written / "first" / f"{CLIPS[0]}-original.opus", dtype="float32")
    speech = soundfile.read(SPEECH, dtype="float32")[0]
    assert rate == 24000
    assert len(heard) == len(speech)
    assert np.corrcoef(heard, speech)[0, 1] > 0.9
    noise = soundfile.read(written / "first" / f"{CLIPS[0]}-hiss.opus", dtype="float32")[0]
    assert abs(np.corrcoef(noise, speech)[0, 1]) < 0.1


def test_files_are_small_and_pictures_have_a_palette(written):
    for path in (written / "first").glob("*.opus"):
        assert 8 * path.stat().st_size / soundfile.info(path).duration < 60_000, path.name
    with Image.open(written / "first" / f"{CLIPS[0]}.png") as picture:
        assert picture.mode == "P"
        assert 20 < len(np.unique(np.asarray(picture))) <= samples.COLOURS


def test_the_same_call_writes_the_same_bytes(written):
    names = sorted(path.name for path in (written / "first").iterdir())
    assert len(names) == 2 * 4 + 1
    for name in names:
        assert (written / "first" / name).read_bytes() == (written / "second" / name).read_bytes(), name


def test_a_renumbered_stream_is_whole(tmp_path):
    path = tmp_path / "a.opus"
    samples.write_opus(path, soundfile.read(SPEECH, dtype="float32")[0])
    data = path.read_bytes()
    assert {page[14:18] for page in pages(data)} == {b"\1\0\0\0"}
    assert with_serial_number(data, 1) == data
    other = with_serial_number(data, 2**32 - 1)
    assert other != data
    (tmp_path / "b.opus").write_bytes(other)  # a page of a wrong checksum would be skipped
    np.testing.assert_array_equal(soundfile.read(path)[0], soundfile.read(tmp_path / "b.opus")[0])
    with pytest.raises(ValueError, match="ends inside a page"):
        with_serial_number(data[:-1], 1)
    with pytest.raises(ValueError, match="one stream, got 2"):
        with_serial_number(data + other, 1)
    with pytest.raises(ValueError, match="no Ogg page"):
        with_serial_number(SPEECH.read_bytes(), 1)


def test_checksums_are_those_of_libogg(tmp_path):
    path = tmp_path / "drawn.opus"
    soundfile.write(path, np.zeros(24000, np.float32), 24000, format="OGG", subtype="OPUS")
    data = path.read_bytes()
    assert with_serial_number(data, int.from_bytes(data[14:18], "little")) == data


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (["nobody"], "'nobody' must be one recording, got 0"),
        ([CLIPS[0], CLIPS[0]], "names of their own"),
    ],
)
def test_clips_must_be_there_once(nano_folder, tmp_path, clips, message):
    with pytest.raises(ValueError, match=message):
        samples.main(nano_folder, AUDIO, clips, [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_samples_have_a_limit(nano_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="more than 10000"):
        samples.main(nano_folder, AUDIO, CLIPS[:1], [], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_usage_ends_with_a_message(nano_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "training.samples",
        nano_folder,
        AUDIO,
        "--clips",
        "x",
        "--output",
        tmp_path / "out",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: `clips`")
