"""What `jepa-audio push` finds in a folder: secrets, pickles, paths and links of every kind, all at once."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from modeling_jepa_daam.cli import app
from modeling_jepa_daam.publishing_checks import _is_pickle, check_folder, published_files

from .conftest import ROOT, SPEECH

SMALL = ROOT / "hub_configs" / "jepa-daam-24khz-small"
# Put together here, so that no scanner takes this file for a leak.
SECRETS = {
    "GitHub, fine-grained": "github_" + "pat_11ABCDEFG0abcdefghijkl_ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "GitHub": "gh" + "p_" + "a1B2" * 9,
    "GitLab": "glp" + "at-ABCdef123456789_-xyz",
    "Slack": "xo" + "xb-123456789012-abcdefABCDEF",
    "Google": "AI" + "za" + "B" * 35,
    "AWS key id": "AK" + "IA" + "ABCDEFGH12345678",
    "AWS secret": "aws_secret_" + "access_key = " + "wJalr/XUtn" * 4,
    "wandb": "WANDB_" + "API_KEY=" + "0123456789" * 4,
    "wandb in .netrc": "machine api.wandb.ai\n  login user\n  password " + "abcdef0123" * 4,
    "PGP": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----",
    "Hub": "h" + "f_" + "abcdEFGH12" * 3,
    "a password in an address": "https://me:" + "swordfish@example.org/x",
}


class Evil:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.fixture
def folder(tmp_path) -> Path:
    """The small model's folder with other weights and without its sound; nothing is wrong with it."""
    left_out = shutil.ignore_patterns("samples", "logs", "*.png", "model.safetensors")
    folder = shutil.copytree(SMALL, tmp_path / "model", ignore=left_out)
    save_file({"a": np.zeros(3)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def notes(tmp_path) -> Path:
    """A file beside no others, of which much is wrong."""
    (tmp_path / "bare").mkdir()
    return tmp_path / "bare" / "notes.txt"


def problems(folder: Path) -> list[str]:
    return [each for _, found in check_folder(folder) for each in found]


def problems_of(file: Path) -> list[str]:
    return [each for each in problems(file.parent) if each.startswith(f"{file.name} ")]


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch):
    monkeypatch.setattr("modeling_jepa_daam.publishing_checks._loads", lambda folder, recordings: [])


def test_nothing_is_wrong_with_what_ships(folder):
    assert problems(folder) == []
    assert problems(SMALL) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_found_in_any_encoding(notes, secret, encoding):
    notes.write_bytes(f"a line\nkey: {secret}\n".encode(encoding))
    (found,) = problems_of(notes)
    assert found.startswith("notes.txt holds a")
    assert secret not in found


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [Evil(), {"weights": [1.0, 2.0]}, np.zeros(300_000)], ids=["code", "dict", "array"])
def test_pickles_of_every_protocol_are_found(notes, protocol, value):
    notes.write_bytes(pickle.dumps(value, protocol))
    assert problems_of(notes)[0] == "notes.txt is a pickle, which runs code when it is read"


def test_what_is_no_pickle_is_not_taken_for_one():
    for path in [*published_files(ROOT / "tests" / "audio"), *published_files(ROOT / "modeling_jepa_daam")]:
        place = ROOT / "tests" / "audio" if path.suffix in (".flac", ".md", ".txt") else ROOT / "modeling_jepa_daam"
        assert not _is_pickle((place / path).read_bytes()[: 2**20]), path
    for text in (
        b"N. B.: this is a text",
        b"I am\n.",
        b"",
        b".",
        b"(see below).",
        b"codec\nof speech\n(tokens).",
        b"N.",
    ):
        assert not _is_pickle(text), text
    rng = np.random.default_rng(0)
    for _ in range(200):
        assert not _is_pickle(b"\0" + rng.bytes(300))


def test_arrays_of_objects_and_archives_are_found(folder):
    np.save(folder / "good.npy", np.zeros(3))
    assert problems(folder) == []
    np.save(folder / "objects.npy", np.array([Evil(), None]), allow_pickle=True)
    np.savez(folder / "arrays.npz", np.zeros(3))
    import gzip

    (folder / "state.gz").write_bytes(gzip.compress(pickle.dumps(Evil())))
    with tarfile.open(folder / "state.data", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.pkl"), io.BytesIO())
    with zipfile.ZipFile(folder / "model.dat", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Evil()))
    found = problems(folder)
    assert any(each.startswith("objects.npy is an array of objects") for each in found)
    for name in ("arrays.npz", "state.gz", "state.data", "model.dat"):
        assert f"{name} is an archive: it may hold a pickle, which runs code when it is read" in found
    assert len(found) == 5


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("file:///home/me/speech.wav", "file:///home/me/speech.wav"),
        ('{"data": "\\/home\\/me\\/speech.wav"}', "/home/me/speech.wav"),
        (r"D:\data\speech\a.wav", r"D:\data\speech\a.wav"),
        ("C:/Users/me/a.wav", "C:/Users/me/a.wav"),
        ("größer: /home/me/ü.wav", "/home/me/ü.wav"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le", "latin-1"])
def test_absolute_paths_are_found_in_any_encoding(notes, text, path, encoding):
    notes.write_bytes(f"{text}\n".encode(encoding))
    assert problems_of(notes) == [f"notes.txt names a path of one machine: {path}"]


def test_a_path_in_a_recordings_tags_is_found_and_every_path_of_a_file_is_named(folder):
    sound = SPEECH.read_bytes()
    (folder / "clip.flac").write_bytes(sound[:60] + b"COMMENT=/home/me/speech.wav\0" + sound[60:])
    (folder / "notes.txt").write_text("/home/me/a.wav and /mnt/b/c.wav")
    assert problems(folder) == [
        "clip.flac names a path of one machine: /home/me/speech.wav",
        "notes.txt names a path of one machine: /home/me/a.wav, /mnt/b/c.wav",
    ]


def test_links_out_of_the_folder_are_found(folder, tmp_path):
    (tmp_path / "diary.txt").write_text("dear diary")
    (folder / "diary.txt").symlink_to(tmp_path / "diary.txt")
    (folder / "gone.txt").symlink_to(tmp_path / "gone.txt")
    (folder / "same.json").symlink_to("config.json")
    (folder / "home").symlink_to(tmp_path)
    assert problems(folder) == [
        "diary.txt is a link to a file outside the folder: copy the file to its place",
        "gone.txt is a link to nothing",
        "home is a link to a folder, which is not sent",
    ]


def test_a_dry_run_names_every_gap_at_once(folder):
    for name in ("tokens.json", "README.md", "daam.py"):
        (folder / name).unlink()
    (folder / "optimizer.pt").touch()
    (folder / "notes.txt").write_text("hf" + "_" + "a" * 30 + " in /home/me/speech.wav")
    done = CliRunner().invoke(app, ["push", str(folder), "me/model", "--dry-run"])
    assert done.exit_code == 1
    said = " ".join(done.output.split())
    for gap in ("no tokens.json", "no README.md", "no daam.py", "optimizer.pt is a pickle", "a token of the Hub"):
        assert gap in said
    assert "/home/me/speech.wav" in said


@pytest.mark.parametrize("name", ["config.json", "tokens.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["[" * 100_000, "[]", "{", "3", '{"auto_map": {"AutoModel": 5}, "a.flac": 5}'])
def test_damaged_json_is_a_problem_and_no_traceback(folder, name, content):
    (folder / name).write_text(content)
    found = problems(folder)
    assert found
    assert all(each.startswith((f"{name}", "no ")) for each in found), found
