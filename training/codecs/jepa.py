"""Our own codec in a comparison."""

import tempfile
from pathlib import Path

import numpy as np

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, read_token_file, write_token_file
from modeling_jepa_daam.token_file import HEADER_BYTES

from .base import Encoded, WaveformCodec


class Jepa(WaveformCodec):
    """A checkpoint of ours.

    Bits: of the `.jepa` file, all but its header of 512 bytes; 256 a frame for the paper's levels, the last frame
    whole. Every clip really goes through the file. No delay.

    Args:
        folder: Of a model, with its tokenizer or without.

    Raises:
        ValueError: If there is no model of ours.
    """

    def __init__(self, folder: str):
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"`spec`: no checkpoint, that is no config.json, in {folder}")
        self.config = JepaDaamConfig.from_pretrained(folder)
        self.tokenizer = JepaAudioTokenizer.from_config(self.config, codec=str(Path(folder).absolute()))
        self.tokenizer.model  # noqa: B018 (a missing model is noticed now)
        self.name = Path(folder).name
        self.nominal_bps = self.config.bitrate_bps
        self.sampling_rate = self.config.sampling_rate

    def encode(self, samples: np.ndarray) -> Encoded:
        ids = self.tokenizer(samples, self.sampling_rate)["input_ids"]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.jepa"
            write_token_file(path, ids, len(samples), self.config)
            data = path.read_bytes()
        tokens = np.array(ids, dtype=np.int64).reshape(-1, self.tokenizer.tokens_per_frame)
        return Encoded(data, 8 * (len(data) - HEADER_BYTES), tokens)

    def decode(self, data: bytes) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "clip.jepa"
            path.write_bytes(data)
            file = read_token_file(path, self.config)
        return self.tokenizer.decode_audio(file.input_ids, file.num_samples)
