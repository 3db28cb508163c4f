"""What the Space does with a visitor's file before any model runs; a stand-in for gradio, which few have installed."""

import importlib.util
import sys
import types

import numpy as np
import pytest
import soundfile

from modeling_jepa_daam import JepaDaamConfig, write_token_file

from .conftest import ROOT, SPEECH, noise


class PageError(Exception):
    """As `gradio.Error`: not a `ValueError`."""

    def __init__(self, message: str, title: str):
        super().__init__(message)
        self.message, self.title = message, title


@pytest.fixture
def app(nano_folder, monkeypatch):
    gradio = types.ModuleType("gradio")
    gradio.Error, gradio.Blocks = PageError, object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    spec = importlib.util.spec_from_file_location("space_uploads", ROOT / "hub_configs" / "space" / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODEL = str(nano_folder)
    return module


def test_a_long_token_file_is_refused_before_it_is_read(app, nano_folder, tmp_path, monkeypatch):
    """One that says that it is short, but is not, is refused as well; 3 MB here, up to 50 MB on the page."""
    config = JepaDaamConfig.from_pretrained(nano_folder)
    write_token_file(tmp_path / "long.jepa", np.zeros(19 * 100_000, np.int64), 100_000 * 9600, config)
    write_token_file(tmp_path / "lies.jepa", np.zeros(19, np.int64), 9600, config)
    with open(tmp_path / "lies.jepa", "ab") as file:
        file.truncate(3_000_000)

    def fail(*arguments, **named):
        raise AssertionError("its frames were parsed")

    monkeypatch.setattr("safetensors.numpy.load", fail)
    for name, title, message in (
        ("long", "Too long", "The tokens are of more than 60 seconds."),
        ("lies", "Cannot read it", "lies.jepa: corrupted: 9600 samples take 544 bytes, the file has 3000000"),
    ):
        with pytest.raises(PageError) as caught:
            next(app.decode_file(str(tmp_path / f"{name}.jepa")))
        assert (caught.value.title, caught.value.message) == (title, message)


def test_each_kind_of_recording_gets_its_own_title(app, tmp_path):
    soundfile.write(tmp_path / "long.flac", noise(61 * 8000), 8000)
    (tmp_path / "text.wav").write_text("not a sound")
    (tmp_path / "cut.flac").write_bytes(SPEECH.read_bytes()[:50_000])
    for name, title in (("long.flac", "Too long"), ("text.wav", "Cannot read it"), ("cut.flac", "Cannot read it")):
        with pytest.raises(PageError) as caught:
            app.read_recording(str(tmp_path / name), 24000)
        assert caught.value.title == title
        assert str(tmp_path) not in caught.value.message
