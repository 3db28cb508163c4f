"""A Space: speech to tokens and back in a web page, on a CPU.

    pip install -e '.[demo]'
    python hub_configs/space/app.py

`JEPA_MODEL`, a folder or Hub id, names another checkpoint than the small one of the repository.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from modeling_jepa_daam import JepaAudioTokenizer, TokenFileError, read_token_file, write_token_file
from modeling_jepa_daam.audio import read_blocks, write_audio
from modeling_jepa_daam.plotting import plot_decoded, plot_recording
from modeling_jepa_daam.salience import daam_gates
from modeling_jepa_daam.token_file import read_num_samples

MODEL = os.environ.get("JEPA_MODEL") or str(Path(__file__).absolute().parents[1] / "jepa-daam-24khz-small")
if "JEPA_MODEL" not in os.environ and not Path(MODEL).is_dir():
    sys.exit(f"no model in {MODEL}: set the Space's variable JEPA_MODEL to a repository of the Hub")
MAX_S = 60  # seconds of speech at once
MAX_UPLOAD = "50mb"
MAX_WAITING = 16  # visitors; one is served at a time
CLEANING_S, KEPT_S = 600, 1800  # uploads and results older than the second are deleted every so many seconds

TITLE = "Speech as tokens"
ABOUT = """
Speech becomes {token_rate:g} tokens a second out of {vocab_size}, and tokens become speech again: the codec of *JEPA as
a Neural Tokenizer* (Ioannides et al. 2025), small enough for a CPU. What comes back is as good as its card says.

Tokens can be turned back into the voice: treat them as you would the recording. Sound files are deleted here within
{minutes:g} minutes.
"""


def read_recording(path: str | None, sampling_rate: int) -> np.ndarray:
    """What a visitor recorded or uploaded, `(samples,)`, float32, or a message in the page."""
    if path is None:
        raise gr.Error("Record or upload some speech first.", title="Nothing to do")
    blocks, samples = [], 0
    try:
        for block in read_blocks(Path(path).read_bytes(), sampling_rate, block_s=10):
            blocks.append(block)
            samples += len(block)
            if samples > MAX_S * sampling_rate:
                raise gr.Error(f"The recording is longer than {MAX_S} seconds: cut it.", title="Too long")
    except ValueError as error:
        reason = str(error).removeprefix("`audio`: ")
        raise gr.Error(f"{Path(path).name}: {reason}", title="Cannot read it") from error
    return np.concatenate(blocks)


def round_trip(path: str | None) -> Iterator[tuple]:
    """A recording through tokens and back: what `results` shows."""
    tokenizer = load_tokenizer()
    rate, hop = tokenizer.sampling_rate, tokenizer.hop_length
    samples = read_recording(path, rate)
    start = time.perf_counter()
    ids = np.array(tokenizer(samples, rate)["input_ids"])
    encoded = time.perf_counter()
    decoded = tokenizer.decode_audio(ids, num_samples=len(samples))
    done = time.perf_counter()
    frames, gates = tokenizer.frames(ids).numpy(), daam_gates(tokenizer.model, samples)
    with tempfile.TemporaryDirectory() as folder:
        sound, picture, tokens = (Path(folder) / name for name in ("reconstruction.wav", "picture.png", "speech.jepa"))
        write_audio(sound, iter([decoded]), len(decoded), rate)
        plot_recording(picture, "", rate, hop, samples, decoded, frames.T, gates)
        write_token_file(tokens, ids, len(samples), tokenizer.model.config)
        speed = f" Encoded in {encoded - start:.2f} s, decoded in {done - encoded:.2f} s."
        facts = describe(tokenizer, len(samples), len(frames), tokens.stat().st_size) + speed
        yield facts, str(sound), str(picture), table(frames, hop / rate), str(tokens)  # copied before it goes on


def decode_file(path: str | None) -> Iterator[tuple]:
    """A token file to speech: what `results` shows."""
    if path is None:
        raise gr.Error("Upload a token file (.jepa) first.", title="Nothing to do")
    tokenizer = load_tokenizer()
    rate, hop = tokenizer.sampling_rate, tokenizer.hop_length
    try:
        if read_num_samples(path, tokenizer.model.config) > MAX_S * rate:  # before a long file is read
            raise gr.Error(f"The tokens are of more than {MAX_S} seconds.", title="Too long")
        tokens = read_token_file(path, tokenizer.model.config)
    except TokenFileError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise gr.Error(f"{Path(path).name}: {reason}", title="Cannot read it") from error
    decoded = tokenizer.decode_audio(tokens.input_ids, num_samples=tokens.num_samples)
    frames = tokenizer.frames(tokens.input_ids).numpy()
    with tempfile.TemporaryDirectory() as folder:
        sound, picture = Path(folder) / "decoded.wav", Path(folder) / "picture.png"
        write_audio(sound, iter([decoded]), len(decoded), rate)
        plot_decoded(picture, "", rate, hop, decoded, frames.T)
        facts = describe(tokenizer, tokens.num_samples, len(frames), Path(path).stat().st_size)
        yield facts, str(sound), str(picture), table(frames, hop / rate), path


def describe(tokenizer: JepaAudioTokenizer, num_samples: int, frames: int, size: int) -> str:
    """Length, tokens and bit rate in a sentence."""
    seconds = num_samples / tokenizer.sampling_rate
    bits = frames * tokenizer.bitrate_bps / tokenizer.frame_rate
    return (
        f"**{seconds:.2f} s** of speech: {frames} frames, **{frames * tokenizer.tokens_per_frame} tokens**, "
        f"{bits:.0f} bits, **{bits / seconds:.0f} bit/s**; the file has {size} bytes."
    )


def table(frames: np.ndarray, frame_s: float) -> list[list[Any]]:
    """A line a frame: where it begins (s), and its tokens."""
    return [[round(number * frame_s, 3), *frame] for number, frame in enumerate(frames.tolist())]


def load_tokenizer() -> JepaAudioTokenizer:
    """The tokenizer; its model is loaded once a process."""
    return JepaAudioTokenizer.from_pretrained(MODEL)


def build() -> gr.Blocks:
    """The page."""
    tokenizer = load_tokenizer()
    tokenizer.model  # noqa: B018 (loads it: the first visitor need not wait)
    places = [str(place) for place in range(1, tokenizer.tokens_per_frame + 1)]
    minutes = (CLEANING_S + KEPT_S) / 60
    about = ABOUT.format(token_rate=tokenizer.token_rate, vocab_size=tokenizer.vocab_size, minutes=minutes)
    with gr.Blocks(title=TITLE, delete_cache=(CLEANING_S, KEPT_S), analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\n{about}")
        with gr.Row():
            with gr.Column():
                speech = gr.Audio(
                    label=f"Speech, at most {MAX_S} s",
                    sources=["upload", "microphone"],
                    type="filepath",
                    elem_id="speech",
                )
                encode = gr.Button("To tokens and back", variant="primary", elem_id="encode")
            with gr.Column():
                uploaded = gr.File(label="Token file (.jepa)", type="filepath", elem_id="uploaded", height=150)
                decode = gr.Button("To speech", elem_id="decode")
        facts = gr.Markdown(elem_id="facts")
        with gr.Row():
            sound = gr.Audio(
                label="Reconstruction",
                type="filepath",
                interactive=False,
                waveform_options=gr.WaveformOptions(show_recording_waveform=False),  # the picture has more
                elem_id="reconstruction",
            )
            file = gr.File(label="Tokens to keep (.jepa)", interactive=False, elem_id="tokens", height=150)
        picture = gr.Image(
            label="Spectrograms, tokens and gates",
            show_label=False,  # it would hide the first title
            type="filepath",
            interactive=False,
            elem_id="picture",
        )
        tokens = gr.Dataframe(label="Tokens", headers=["from (s)", *places], interactive=False, elem_id="table")
        results: list[Any] = [facts, sound, picture, tokens, file]
        encode.click(round_trip, speech, results, api_name="encode", concurrency_id="codec", concurrency_limit=1)
        decode.click(decode_file, uploaded, results, api_name="decode", concurrency_id="codec", concurrency_limit=1)
    return page.queue(max_size=MAX_WAITING)


if __name__ == "__main__":
    build().launch(max_file_size=MAX_UPLOAD)
