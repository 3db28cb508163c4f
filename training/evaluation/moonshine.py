"""Word and character errors by Moonshine, a speech recognizer that is no teacher of any model here.

Source: Jeffries et al. 2024, "Moonshine: Speech Recognition for Live Transcription and Voice Commands"; MIT.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .judge import JUDGE_RATE, Figures, Judge, at_judge_rate, count_errors

DEFAULT_MOONSHINE = "onnx-community/moonshine-base-ONNX"
GRAPHS = ("encoder_model", "decoder_model_merged")
TOKENIZER = "tokenizer.json"
START, END = 1, 2  # ids
MIN_SAMPLES = 8000  # 0.5 s: a shorter clip is padded with zeros
TOKENS_PER_S = 8  # at most, and `SPARE_TOKENS` more: a recognizer that repeats itself is cut off
SPARE_TOKENS = 8
USE_CACHE = "use_cache_branch"
PAST, PRESENT = "past_key_values.", "present."


class Session(Protocol):
    """The part of onnxruntime's `InferenceSession` that is used here."""

    def run(self, output_names: Sequence[str] | None, feed: dict[str, np.ndarray]) -> list[np.ndarray]: ...
    def get_inputs(self) -> Sequence[Any]: ...
    def get_outputs(self) -> Sequence[Any]: ...


class Moonshine:
    """Clips of up to about 30 s to English text, by greedy search.

    Args:
        encoder: Session with the input `input_values`, `(batch, samples)`.
        decoder: Session of a merged decoder: `input_ids`, `encoder_hidden_states`, `use_cache_branch` and
            `past_key_values.<layer>.<decoder|encoder>.<key|value>`, `(batch, heads, positions, width)`; its outputs are
            `logits` and `present.*`.
        tokenizer: With `decode(ids, skip_special_tokens)`.

    Raises:
        ValueError: If the decoder is not of this form.
    """

    def __init__(self, encoder: Session, decoder: Session, tokenizer: Any):
        self._encoder, self._decoder, self._tokenizer = encoder, decoder, tokenizer
        inputs = {each.name: each.shape for each in decoder.get_inputs()}
        self._past = {name: shape for name, shape in inputs.items() if name.startswith(PAST)}
        if USE_CACHE not in inputs or not self._past:
            raise ValueError(f"`decoder` must be merged, with {USE_CACHE} and {PAST}*, got {', '.join(inputs)}")
        self._present = [each.name for each in decoder.get_outputs() if each.name.startswith(PRESENT)]

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike) -> "Moonshine":
        """Load the graphs, on one thread.

        Args:
            model: Folder or Hub id: see `moonshine_files`.

        Raises:
            OSError: If there is no such model.
        """
        from tokenizers import Tokenizer

        encoder, decoder, tokenizer = moonshine_files(model)
        return cls(_session(encoder), _session(decoder), Tokenizer.from_file(str(tokenizer)))

    def __call__(self, samples: np.ndarray) -> str:
        """Transcribe `(samples,)`, float32, 16 kHz."""
        padded = np.pad(samples, (0, max(0, MIN_SAMPLES - len(samples))))[None].astype(np.float32)
        (hidden,) = self._encoder.run(None, {"input_values": padded})
        past = {name: np.zeros((1, shape[1], 0, shape[3]), np.float32) for name, shape in self._past.items()}
        wanted = self._present  # the encoder's keys and values come with the first step, and stay
        ids = [START]
        for step in range(int(len(samples) / JUDGE_RATE * TOKENS_PER_S) + SPARE_TOKENS):
            feed = {"input_ids": np.array([ids[-1:]], np.int64), "encoder_hidden_states": hidden, **past}
            feed[USE_CACHE] = np.array([step > 0])
            logits, *present = self._decoder.run(["logits", *wanted], feed)
            ids.append(int(logits[0, -1].argmax()))
            if ids[-1] == END:
                break
            past |= {PAST + name.removeprefix(PRESENT): value for name, value in zip(wanted, present, strict=True)}
            if step == 0:
                wanted = [name for name in self._present if ".encoder." not in name]
        return self._tokenizer.decode(ids, skip_special_tokens=True)


class MoonshineJudge(Judge):
    """Errors of Moonshine beside a text, counted as `WordJudge` counts those of Whisper; in English only.

    Its figures have the names of `WordJudge`'s, after `moonshine_`.

    Args:
        model: Folder or Hub id: see `moonshine_files`.
    """

    figures = (
        "moonshine_word_errors",
        "moonshine_words",
        "moonshine_character_errors",
        "moonshine_characters",
        "moonshine_transcript",
    )
    packages = {"onnxruntime": "onnxruntime", "onnx": "onnx", "jiwer": "jiwer"}
    language = "en"

    def __init__(self, model: str | os.PathLike = DEFAULT_MOONSHINE):
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        self._transcribe = Moonshine.from_pretrained(model)
        self._normalize = BasicTextNormalizer()

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        samples = at_judge_rate(original, reconstructed, sampling_rate)[1]
        reference = self._normalize(text or "").strip()
        if not reference:
            return {}
        transcript = self._normalize(self._transcribe(samples)).strip()
        return {"moonshine_transcript": transcript, **count_errors(reference, transcript, "moonshine_")}


def moonshine_files(model: str | os.PathLike) -> tuple[Path, Path, Path]:
    """Encoder, decoder and tokenizer of a model.

    Args:
        model: Folder with `tokenizer.json`, `encoder_model` and `decoder_model_merged`, both graphs `.onnx` or `.ort`,
            in the folder or in `onnx` below it; or the id of such a repository on the Hub, with graphs in `onnx`.

    Raises:
        OSError: If a file is not there.
    """
    if not Path(model).is_dir():
        from huggingface_hub import hf_hub_download

        encoder, decoder = (Path(hf_hub_download(str(model), f"onnx/{name}.onnx")) for name in GRAPHS)
        return encoder, decoder, Path(hf_hub_download(str(model), TOKENIZER))
    places = [Path(model), Path(model) / "onnx"]
    found = []
    for name in GRAPHS:
        files = [place / f"{name}.{suffix}" for place in places for suffix in ("onnx", "ort")]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise FileNotFoundError(f"`model`: no {name}.onnx or {name}.ort in {model}")
        found.append(file)
    if not (places[0] / TOKENIZER).is_file():
        raise FileNotFoundError(f"`model`: no {TOKENIZER} in {model}")
    return found[0], found[1], places[0] / TOKENIZER


def _session(path: Path) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    graph = _as_onnx(path) if path.suffix == ".ort" else str(path)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _as_onnx(path: Path) -> bytes:
    """An `.ort` graph as ONNX.

    onnxruntime runs an `.ort` graph as stored: the 8-bit weights become floats again at every step, which takes four
    fifths of the time. Of an ONNX graph it does this once, when it loads it; the text is the same.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.save_model_format", "ONNX")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        options.optimized_model_filepath = str(file)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        model = onnx.load(file)
    for node in model.graph.node:  # onnxruntime drops the names of branches, and refuses branches without a name
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH and not attribute.g.name:
                attribute.g.name = attribute.name
    return model.SerializeToString()
