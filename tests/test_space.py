"""The Space's page: what its functions give, and, with a browser, what a visitor sees."""

import contextlib
import importlib.util
import io
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
import soundfile
from PIL import Image

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, read_token_file, write_token_file
from tests.conftest import ROOT, SPEECH

gradio = pytest.importorskip("gradio")

SPACE = ROOT / "hub_configs" / "space"
SECONDS = soundfile.info(SPEECH).duration


@pytest.fixture(scope="module")
def app(nano_folder):
    spec = importlib.util.spec_from_file_location("space_app", SPACE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.MODEL = str(nano_folder)
    return module


@pytest.fixture
def bad_files(tmp_path):
    """By what the page says of them."""
    files = {"Format not recognised": tmp_path / "text.wav", "holds no samples": tmp_path / "empty.wav"}
    files["Format not recognised"].write_text("not a sound")
    soundfile.write(files["holds no samples"], np.zeros(0), 24000)
    files["longer than 60 seconds"] = tmp_path / "hour.flac"
    soundfile.write(files["longer than 60 seconds"], np.zeros(3600 * 8000, np.int16), 8000)
    return files


def test_speech_becomes_what_the_tokenizer_makes_of_it(app, nano_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    steps = app.round_trip(str(SPEECH))
    facts, sound, _, table, tokens = next(steps)
    tokenizer, config = JepaAudioTokenizer.from_pretrained(nano_folder), JepaDaamConfig.from_pretrained(nano_folder)
    ids = tokenizer(SPEECH)["input_ids"]
    assert f"**{len(ids)} tokens**" in facts
    assert f"**{len(ids) // 19 * 256 / SECONDS:.0f} bit/s**" in facts
    assert read_token_file(tokens, config).input_ids.tolist() == ids
    assert [token for row in table for token in row[1:]] == ids
    assert [row[0] for row in table[:3]] == [0.0, 0.4, 0.8]
    samples, rate = soundfile.read(sound, dtype="float32")
    np.testing.assert_allclose(samples, tokenizer.decode_audio(ids, num_samples=len(samples)), atol=1 / 32000)
    assert (rate, len(samples)) == (24000, soundfile.info(SPEECH).frames)

    decoding = app.decode_file(tokens)
    _, again, _, same_table, _ = next(decoding)
    np.testing.assert_array_equal(soundfile.read(again, dtype="float32")[0], samples)
    assert same_table == table
    assert [*steps, *decoding] == []
    assert not list(tmp_path.iterdir())  # what was shown is deleted


def test_what_is_no_speech_gets_a_message(app, bad_files, nano_folder, tmp_path):
    bad_files["Record or upload"] = None
    bad_files["cannot read"] = tmp_path / "nothing.flac"
    bad_files["cannot read"].write_bytes(b"")
    for message, file in bad_files.items():
        with pytest.raises(gradio.Error, match=message) as caught:
            next(app.round_trip(file and str(file)))
        assert str(tmp_path) not in caught.value.message
    long, config = tmp_path / "long.jepa", JepaDaamConfig.from_pretrained(nano_folder)
    write_token_file(long, np.zeros(19 * 151, np.int64), 151 * 9600, config)
    bad = {"Upload a token file": None, "not a token file": bad_files["Format not recognised"], "60 seconds": long}
    for message, file in bad.items():
        with pytest.raises(gradio.Error, match=message) as caught:
            next(app.decode_file(file and str(file)))
        assert str(tmp_path) not in caught.value.message


def test_the_page_serves_one_visitor_at_a_time_and_forgets(nano_folder):
    program = (  # in its own process: gradio leaves event loops open
        "import app; page = app.build(); events = page.fns.values(); "
        "print({(event.concurrency_id, event.concurrency_limit) for event in events}, page.delete_cache)"
    )
    environment = {**os.environ, "JEPA_MODEL": str(nano_folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=SPACE, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{('codec', 1)} (600, 1800)"


def test_its_settings_are_those_of_the_package_that_is_tested():
    settings = (SPACE / "README.md").read_text()
    assert re.search(r"^sdk: gradio$", settings, flags=re.MULTILINE)
    version = re.search(r"^sdk_version: (\S+)$", settings, flags=re.MULTILINE)
    assert version is not None
    pinned = (ROOT / "constraints.txt").read_text()
    assert f"gradio=={version.group(1)}" in pinned.splitlines()
    assert (SPACE / "app.py").is_file()


@pytest.fixture
def server(nano_folder, tmp_path):
    """The page's address, and the folder of what it stores."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stored = tmp_path / "stored"
    environment = {
        **os.environ,
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(stored),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(tmp_path),
    }
    if os.environ.get("SPACE_SCREENSHOT") is None:  # the shipped model, for the picture in the repository
        environment["JEPA_MODEL"] = str(nano_folder)
    log = tmp_path / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, SPACE / "app.py"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        for _ in range(240):
            assert process.poll() is None, log.read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5):
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}", stored
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.slow
def test_a_visitor_uploads_sees_hears_keeps_and_is_told(server, bad_files, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    address, stored = server
    with sync_api.sync_playwright() as playwright:
        # Debian's browser if there is one, else what `playwright install chromium` brought.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 1500})
        page.goto(address)

        def message() -> str:
            toast = page.locator(".toast-body").first
            toast.wait_for(timeout=60_000)
            text = toast.inner_text()
            page.locator(".toast-close").first.click()
            toast.wait_for(state="hidden")
            return text

        def upload_speech(file) -> None:
            page.locator("#speech input[type=file]").set_input_files(file)
            page.locator("#speech [aria-label=Clear]").wait_for(timeout=60_000)

        def heard_s() -> float:
            """Seconds of the reconstruction, as the browser's audio element has them."""
            audio = page.locator("#reconstruction audio")
            audio.wait_for(state="attached", timeout=60_000)
            return audio.evaluate(
                "audio => new Promise((done, failed) => {"
                " if (audio.readyState > 0) done(audio.duration);"
                " audio.onloadedmetadata = () => done(audio.duration);"
                " setTimeout(() => failed('no sound: ' + audio.src), 30000) })"
            )

        page.locator("#encode").click()
        assert "Record or upload some speech" in message()
        for said, file in bad_files.items():
            upload_speech(file)
            page.locator("#encode").click()
            assert said in message()
            page.locator("#speech [aria-label=Clear]").click()

        upload_speech(SPEECH)
        page.locator("#encode").click()
        page.get_by_text("247 tokens").wait_for(timeout=120_000)
        assert heard_s() == pytest.approx(SECONDS, abs=0.01)
        picture = page.locator("#picture img")
        picture.wait_for(timeout=60_000)
        assert picture.evaluate("image => image.naturalWidth") > 1000
        with page.expect_download() as download:
            page.locator("#tokens a").first.click()
        download.value.save_as(tmp_path / "kept.jepa")
        assert (tmp_path / "kept.jepa").stat().st_size == 512 + 13 * 32
        page.wait_for_timeout(1000)
        screenshot = page.screenshot(full_page=True)
        assert len(screenshot) > 50_000
        if target := os.environ.get("SPACE_SCREENSHOT"):
            picture = Image.open(io.BytesIO(screenshot)).convert("RGB").reduce(2).quantize(128)
            picture.save(target, optimize=True)

        page.reload()
        page.locator("#uploaded input[type=file]").set_input_files(tmp_path / "kept.jepa")
        page.get_by_text("kept.jepa").wait_for(timeout=60_000)
        page.locator("#decode").click()
        page.get_by_text("247 tokens").wait_for(timeout=120_000)
        assert heard_s() == pytest.approx(SECONDS, abs=0.01)
        browser.close()
    # Nothing lies about but what the page itself will delete.
    assert {path.name for path in tmp_path.iterdir()} <= {
        "stored", "server.log", "kept.jepa", *(file.name for file in bad_files.values())
    }  # fmt: skip
    assert stored.is_dir()
