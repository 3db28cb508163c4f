"""The codec from its ONNX graphs: speech to token ids and back with numpy and onnxruntime alone.

`jepa-audio export-onnx` puts this file beside the graphs, where it needs nothing else of its package:

    from onnx_codec import OnnxCodec

    codec = OnnxCodec("folder")
    ids = codec.encode(samples)  # float32, mono, at codec.sampling_rate
    samples = codec.decode(ids)
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
METADATA_KEY = "jepa_daam"


class OnnxCodec:
    """Tokens of recordings of any length, and recordings of tokens: `JepaAudioTokenizer` without PyTorch.

    Args:
        folder: What `jepa-audio export-onnx` wrote.
        threads: Threads of onnxruntime; as many as it likes if 0.
        providers: Execution providers of onnxruntime.

    Attributes:
        sampling_rate: Rate (Hz) of all audio.
        hop_length: Samples a frame.
        tokens_per_frame: Ids a frame.
        vocabulary_sizes: Number of ids at each place of a frame.

    Raises:
        ImportError: If onnxruntime is not installed.
        FileNotFoundError: If a graph is not there.
        ValueError: If the graphs are not of one codec of this package.
    """

    def __init__(
        self, folder: str | os.PathLike, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
    ):
        try:
            import onnxruntime
        except ImportError as error:
            raise ImportError("ONNX graphs need onnxruntime: pip install onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions, told = [], []
        for name in (ENCODER, DECODER):
            path = Path(folder) / name
            if not path.is_file():
                raise FileNotFoundError(f"`folder`: no such file: {path}")
            sessions.append(onnxruntime.InferenceSession(path, options, providers=list(providers)))
            told.append(sessions[-1].get_modelmeta().custom_metadata_map.get(METADATA_KEY))
        self._encoder, self._decoder = sessions
        if told[0] is None or told[0] != told[1]:
            raise ValueError(f"`folder`: the graphs in {folder} are not of one codec of this package")
        self.metadata: dict = json.loads(told[0])
        """Rates and sizes; digests of the configuration and the weights."""
        self.sampling_rate: int = self.metadata["sampling_rate"]
        self.hop_length: int = self.metadata["hop_length"]
        self.vocabulary_sizes: list[int] = self.metadata["vocabulary_sizes"]
        self.tokens_per_frame = len(self.vocabulary_sizes)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Tokens of a recording.

        Args:
            samples: `(samples,)`, floating point, in [-1, 1], mono, at `sampling_rate`; any length.

        Returns:
            `(ceil(samples / hop_length) * tokens_per_frame,)`, int64, frame by frame.

        Raises:
            ValueError: If the shape is wrong, or samples are not finite or far beyond full scale.
            TypeError: If they are not floating point.
        """
        return self.encode_with_latents(samples)[0]

    def encode_with_latents(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `encode`; and the latents before quantization, `(frames, hidden_size)`, float32."""
        samples = np.asarray(samples)
        if samples.ndim != 1 or samples.size == 0:
            raise ValueError(f"`samples` must have shape (samples,) and not be empty, got {samples.shape}")
        if samples.dtype.kind != "f":
            raise TypeError(f"`samples` must be floating point, got {samples.dtype}")
        limit = self.metadata["max_amplitude"]
        if not (np.abs(samples) <= limit).all():  # false for NaN too
            raise ValueError(f"`samples` must be finite and within full scale [-1, 1] (at most {limit:g})")
        step = self.metadata["chunk_frames"] * self.hop_length
        tokens, latents = [], []
        for start in range(0, len(samples), step):
            chunk = samples[start : start + step].astype(np.float32)
            chunk = np.pad(chunk, (0, -len(chunk) % self.hop_length))
            codes, features = self._encoder.run(["audio_codes", "latents"], {"input_values": chunk[None]})
            tokens.append(codes[0].T.ravel())
            latents.append(features[0].T)
        return np.concatenate(tokens), np.concatenate(latents)

    def decode(self, ids: Sequence[int] | np.ndarray, num_samples: int | None = None) -> np.ndarray:
        """Audio of tokens, without seams between the chunks that it is made in.

        Args:
            ids: `(frames * tokens_per_frame,)`, integer, as `encode` gives them.
            num_samples: True length of the recording; whole frames if `None`.

        Returns:
            `(samples,)`, float32, in [-1, 1], at `sampling_rate`.

        Raises:
            ValueError: If they are no whole number of frames, an id is out of range (of its place in the frame), or
                `num_samples` does not lie in the last frame.
            TypeError: If they are not integers.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or ids.size == 0 or ids.size % self.tokens_per_frame:
            raise ValueError(
                f"`ids` must be a whole number of frames of {self.tokens_per_frame} tokens, got shape {ids.shape}"
            )
        if ids.dtype.kind not in "iu":
            raise TypeError(f"`ids` must be integers, got {ids.dtype}")
        frames = ids.reshape(-1, self.tokens_per_frame)
        wrong = np.argwhere((frames < 0) | (frames >= np.array(self.vocabulary_sizes)))
        if len(wrong):
            frame, place = wrong[0].tolist()
            raise ValueError(
                f"`ids` must lie in [0, {self.vocabulary_sizes[place]}) at place {place} of a frame, "
                f"got {frames[frame, place]} in frame {frame}"
            )
        if num_samples is not None and -(-num_samples // self.hop_length) != len(frames):
            raise ValueError(f"`num_samples` must lie in the last of {len(frames)} frames, got {num_samples}")
        codes = np.ascontiguousarray(frames.T[None], dtype=np.int64)  # (1, tokens_per_frame, frames)
        step, reach, pieces = self.metadata["chunk_frames"], self.metadata["context_frames"], []
        for start in range(0, len(frames), step):
            end = min(start + step, len(frames))
            first = max(0, start - reach)
            (audio,) = self._decoder.run(["audio_values"], {"audio_codes": codes[..., first : end + reach]})
            left = (start - first) * self.hop_length
            pieces.append(audio[0, left : left + (end - start) * self.hop_length])
        return np.concatenate(pieces)[:num_samples]
