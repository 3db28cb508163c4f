"""Lyra v2, from its own tflite files."""

import importlib.util
from pathlib import Path

import numpy as np

from .base import Encoded, WaveformCodec

FILES = ("soundstream_encoder.tflite", "quantizer.tflite", "lyragan.tflite")
MAX_QUANTIZERS = 46
HOP_LENGTH = 320  # samples; 50 frames a second


class Lyra(WaveformCodec):
    """Lyra v2 at 16 kHz: a causal SoundStream encoder, a residual quantizer of 4 bits a stage, a GAN decoder.

    Bits: 4 a stage and frame, the last frame whole: Lyra's own packets of 8, 15 or 23 bytes. They have no headers,
    and so neither does the file. No delay (its output correlates best at 0 samples).

    Args:
        bps: 3200, 6000 or 9200 bit/s, the rates it was made for.
        folder: Of `FILES`.

    Raises:
        ValueError: If the rate is another, a file is missing, or the package ai-edge-litert is not installed.

    Source: https://github.com/google/lyra, version 1.3.2.
    """

    sampling_rate = 16000
    quantizers = {3200: 16, 6000: 30, 9200: 46}  # bit/s -> stages

    def __init__(self, bps: int, folder: str):
        if bps not in self.quantizers:
            raise ValueError(f"`spec`: Lyra has rates of {list(self.quantizers)} bit/s, got {bps}")
        missing = [name for name in FILES if not (Path(folder) / name).is_file()]
        if missing:
            raise ValueError(f"`spec`: Lyra needs {', '.join(FILES)}; in {folder} there is no {', '.join(missing)}")
        if importlib.util.find_spec("ai_edge_litert") is None:
            raise ValueError("`spec`: Lyra needs the package ai-edge-litert: pip install ai-edge-litert")
        self.name = f"Lyra {bps / 1000:g} kbit/s"
        self.nominal_bps = bps
        self.num_quantizers = self.quantizers[bps]
        self.folder = Path(folder)

    @classmethod
    def from_spec(cls, rest: str) -> "Lyra":
        """From `BPS:FOLDER`."""
        bps, _, folder = rest.partition(":")
        if not bps.isdecimal() or not folder:
            raise ValueError(f"`spec` must be lyra:BPS:FOLDER, with the folder of {', '.join(FILES)}, got lyra:{rest}")
        return cls(int(bps), folder)

    def encode(self, samples: np.ndarray) -> Encoded:
        encoder, quantizer = self._load("soundstream_encoder"), self._load("quantizer")
        quantize = quantizer.get_signature_runner("encode")
        frames = np.pad(samples, (0, -len(samples) % HOP_LENGTH)).reshape(-1, HOP_LENGTH)
        stages = np.array(self.num_quantizers, dtype=np.int32)
        indices = []
        for frame in frames:
            features = _apply(encoder, frame).reshape(1, 1, -1)
            found = quantize(num_quantizers=stages, input_frames=features)["output_0"]
            indices.append(found.reshape(-1)[: self.num_quantizers])
        tokens = np.array(indices, dtype=np.int64)
        nibbles = tokens.astype(np.uint8)
        data = (nibbles[:, ::2] << 4 | nibbles[:, 1::2]).tobytes()
        return Encoded(data, 8 * len(data), tokens)

    def decode(self, data: bytes) -> np.ndarray:
        decoder, quantizer = self._load("lyragan"), self._load("quantizer")
        dequantize = quantizer.get_signature_runner("decode")
        packed = np.frombuffer(data, np.uint8).reshape(-1, self.num_quantizers // 2)
        pieces = []
        for indices in np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), -1):
            stages = np.full((MAX_QUANTIZERS, 1, 1), -1, np.int32)  # -1: not sent
            stages[: self.num_quantizers, 0, 0] = indices
            features = dequantize(encoding_indices=stages)["output_0"]
            pieces.append(_apply(decoder, features).reshape(-1))
        return np.concatenate(pieces)

    def _load(self, name: str):
        """A network in its first state; each clip needs one, for `reset_all_variables` does not bring that back."""
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(str(self.folder / f"{name}.tflite"), num_threads=1)
        interpreter.allocate_tensors()
        return interpreter


def _apply(interpreter, values: np.ndarray) -> np.ndarray:
    """One step of a network with a state, one input and one output."""
    place = interpreter.get_input_details()[0]
    interpreter.set_tensor(place["index"], values.reshape(place["shape"]))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
