"""A codec as two ONNX graphs, waveform to tokens and tokens to waveform, checked under onnxruntime.

Checks of values, chunks of long audio and context between them are no part of a graph: `onnx_codec.py`, which needs
numpy and onnxruntime alone, does them.
"""

import contextlib
import json
import logging
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .audio import MAX_AMPLITUDE
from .configuration_jepa_daam import JepaDaamConfig
from .files import replacing
from .modeling_jepa_daam import JepaDaamModel
from .onnx_codec import DECODER, ENCODER, METADATA_KEY, OnnxCodec
from .packing import group_levels, group_vocabulary_sizes

OPSET = 18
AUDIO_TOLERANCE = 1e-4
EXAMPLE_FRAMES = 5  # of the trace; any number of frames is right afterwards


@dataclass(frozen=True)
class OnnxCheck:
    """What a self-test compared, and how far the graphs were from PyTorch.

    Args:
        tokens: Tokens that were compared; all were equal.
        latents_difference: Largest difference of a latent, which is about 1 in size.
        audio_difference: Largest difference of a sample, of full scale 1.
    """

    tokens: int
    latents_difference: float
    audio_difference: float


class EncoderGraph(nn.Module):
    """Waveforms of whole frames to tokens, without checks of values."""

    place_values: Tensor

    def __init__(self, model: JepaDaamModel):
        super().__init__()
        self.encoder, self.quantizer = model.encoder, model.quantizer
        levels, group_size = model.config.levels, model.config.group_size
        self.register_buffer("place_values", _place_values(levels, group_size))

    def forward(self, input_values: Tensor) -> tuple[Tensor, Tensor]:
        """Encode.

        Args:
            input_values: `(batch, frames * hop_length)`, float32.

        Returns:
            Tokens, `(batch, tokens_per_frame, frames)`, int64; latents, `(batch, hidden_size, frames)`, float32.
        """
        latents = self.encoder(input_values[:, None])
        indices = self.quantizer.latents_to_indices(self.quantizer.normalized(latents))
        tokens = (indices[..., None] * self.place_values).sum(dim=-2)  # (B, T, C, 1) * (C, G) -> (B, T, G)
        return tokens.transpose(1, 2), latents.transpose(1, 2)


class DecoderGraph(nn.Module):
    """Tokens to waveforms, without checks of values."""

    divisors: Tensor
    radices: Tensor

    def __init__(self, model: JepaDaamModel):
        super().__init__()
        self.quantizer, self.decoder = model.quantizer, model.decoder
        levels, group_size = model.config.levels, model.config.group_size
        self.group_size = group_size
        self.register_buffer("divisors", _place_values(levels, group_size).sum(dim=-1))
        self.register_buffer("radices", torch.tensor(levels))

    def forward(self, audio_codes: Tensor) -> Tensor:
        """Decode: `(batch, tokens_per_frame, frames)`, int64, to `(batch, frames * hop_length)`, float32."""
        tokens = audio_codes.transpose(1, 2).repeat_interleave(self.group_size, dim=-1)[..., : len(self.radices)]
        indices = tokens // self.divisors % self.radices
        return self.decoder(self.quantizer.indices_to_values(indices).transpose(1, 2))[:, 0]


def export_onnx(model: JepaDaamModel, folder: str | os.PathLike, clips: Sequence[np.ndarray] = ()) -> OnnxCheck:
    """Write `encoder.onnx`, `decoder.onnx` and `onnx_codec.py`, which runs them without PyTorch.

    The folder appears only after onnxruntime made the same tokens as PyTorch of every clip, in float32, and audio
    within 1e-4.

    Args:
        model: The codec, in float32 on the CPU.
        folder: Where to; must not exist, or be empty.
        clips: Recordings to compare, each `(samples,)`, float32, at the model's rate; beside signals made up here.

    Raises:
        FileExistsError: If the folder holds something.
        ImportError: If onnx, onnxscript or onnxruntime is not installed.
        ValueError: If the model is not in float32 on the CPU, or the graphs do not do what the model does.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`folder` must be new or empty, got {folder}")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(f"`model` must be in float32 on the CPU, got {model.dtype} on {model.device}")
    model = model.eval()
    config = model.config
    folder.parent.mkdir(parents=True, exist_ok=True)
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames")
    with replacing(folder) as temporary:
        temporary.mkdir()
        _write_graph(
            EncoderGraph(model),
            torch.zeros(2, EXAMPLE_FRAMES * config.hop_length),
            {0: batch, 1: config.hop_length * frames},
            ["audio_codes", "latents"],
            temporary / ENCODER,
            config,
            model.decoder.margins()[0],
        )
        _write_graph(
            DecoderGraph(model),
            torch.zeros(2, config.tokens_per_frame, EXAMPLE_FRAMES, dtype=torch.int64),
            {0: batch, 2: frames},
            ["audio_values"],
            temporary / DECODER,
            config,
            model.decoder.margins()[0],
        )
        shutil.copyfile(Path(__file__).with_name("onnx_codec.py"), temporary / "onnx_codec.py")
        return check_onnx(model, temporary, [*made_up_signals(config), *clips])


@torch.inference_mode()
def check_onnx(model: JepaDaamModel, folder: str | os.PathLike, clips: Sequence[np.ndarray]) -> OnnxCheck:
    """Compare exported graphs with the model that they are of.

    Args:
        model: The codec, in evaluation mode, in float32 on the CPU.
        folder: What `export_onnx` wrote.
        clips: Recordings, each `(samples,)`, float32, at the model's rate.

    Raises:
        ValueError: If a token differs, or a sample by more than 1e-4.
    """
    codec = OnnxCodec(folder)
    tokens, latents_difference, audio_difference = 0, 0.0, 0.0
    for number, clip in enumerate(clips):
        codes, _, exact = model.encode(torch.from_numpy(clip)[None, None], return_dict=False)
        expected = codes[0].T.numpy()
        ids, latents = codec.encode_with_latents(clip)
        found = ids.reshape(expected.shape)
        latents_difference = max(latents_difference, float(np.abs(latents - exact[0].T.numpy()).max()))
        if different := int((found != expected).sum()):
            raise ValueError(
                f"`model`: of clip {number}, onnxruntime makes {different} of {expected.size} tokens other than "
                f"PyTorch; latents differ by up to {latents_difference:.1e}"
            )
        audio = model.decode(codes, return_dict=False)[0][0, 0].numpy()
        audio_difference = max(audio_difference, float(np.abs(codec.decode(ids) - audio).max()))
        if not audio_difference <= AUDIO_TOLERANCE:  # NaN too
            raise ValueError(
                f"`model`: of clip {number}, the audio that onnxruntime makes differs from PyTorch's by "
                f"{audio_difference:.1e}, at most {AUDIO_TOLERANCE:g} is allowed"
            )
        tokens += expected.size
    return OnnxCheck(tokens, latents_difference, audio_difference)


def made_up_signals(config: JepaDaamConfig) -> list[np.ndarray]:
    """Signals with the rhythm of speech, and extremes: each `(samples,)`, float32, the longest in three chunks."""
    rng = np.random.default_rng(0)
    signals = [np.zeros(1, np.float32), np.full(config.hop_length, 1.0, np.float32)]
    for samples in (config.hop_length + 1, 2 * config.chunk_frames * config.hop_length + config.hop_length // 2):
        time_s = np.arange(samples) / config.sampling_rate
        pitch = np.cumsum(120 + 40 * np.sin(2 * np.pi * 0.4 * time_s)) / config.sampling_rate
        voice = sum(np.sin(2 * np.pi * k * pitch) / k for k in range(1, 30))
        syllables = np.maximum(0, np.sin(2 * np.pi * 3.1 * time_s)) * np.maximum(0, np.sin(2 * np.pi * 0.37 * time_s))
        signals.append((0.2 * syllables * voice + 0.003 * rng.normal(size=samples)).astype(np.float32))
    return signals


def _write_graph(
    graph: nn.Module,
    example: Tensor,
    dynamic: dict[int, object],
    outputs: list[str],
    path: Path,
    config: JepaDaamConfig,
    context_frames: int,
) -> None:
    try:
        import onnxruntime  # noqa: F401 (the self-test's)
        import onnxscript  # noqa: F401 (torch.onnx's)
    except ImportError as error:
        raise ImportError(f"ONNX graphs need onnx, onnxscript and onnxruntime: {error}") from error
    with _quiet(), torch.no_grad(), MatrixFourier():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA_KEY] = json.dumps(
        {
            "sampling_rate": config.sampling_rate,
            "hop_length": config.hop_length,
            "chunk_frames": config.chunk_frames,
            "context_frames": context_frames,
            "max_amplitude": MAX_AMPLITUDE,
            "vocabulary_sizes": group_vocabulary_sizes(config.levels, config.group_size),
            "config_digest": config.digest,
            "weights_sha256": config.weights_sha256,
        }
    )
    program.save(path, external_data=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to itself what torch.onnx logs, and warns of in its own code."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


class MatrixFourier(TorchFunctionMode):
    """Within a `with` statement, Fourier transforms of real signals are products with matrices in float64.

    A graph of them rounds as PyTorch's own transform does but for the last bit; onnxruntime's would not, and errors
    grow in the logarithm of quiet bins.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.fft.rfft:
            return real_fourier(*args, **kwargs)
        if function is torch.fft.irfft:
            return inverse_real_fourier(*args, **kwargs)
        return function(*args, **kwargs)


def real_fourier(signal: Tensor, dim: int = -1) -> Tensor:
    """`torch.fft.rfft` along an axis: of `n` values, `n // 2 + 1` complex ones."""
    values = signal.double().movedim(dim, -1)
    bins = values.shape[-1] // 2 + 1
    real, imaginary = (part[..., :bins].to(signal.dtype) for part in fourier(values, torch.zeros_like(values)))
    return torch.complex(real, imaginary).movedim(-1, dim)


def inverse_real_fourier(spectrum: Tensor, n: int, dim: int = -1) -> Tensor:
    """`torch.fft.irfft` along an axis: of `n // 2 + 1` complex values, `n` real ones.

    The signal is the real part of the transform of the conjugate spectrum, each bin counted for its mirror image too.
    """
    counts = torch.full((n // 2 + 1,), 2.0, dtype=torch.float64)
    counts[0] = 1.0
    if n % 2 == 0:
        counts[-1] = 1.0
    padding = (0, n - len(counts))
    real, imaginary = (
        F.pad(part.double().movedim(dim, -1) * (counts / n), padding) for part in (spectrum.real, -spectrum.imag)
    )
    return fourier(real, imaginary)[0].to(spectrum.real.dtype).movedim(-1, dim)


def fourier(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    """Discrete Fourier transform along the last axis, both parts `(..., n)`, float64, as two products with matrices.

    Source: Cooley and Tukey 1965: with n = rows * columns, samples at `row * columns + column` are transformed over
    rows, turned, then transformed over columns, to bins at `column * rows + row`.
    """
    n = real.shape[-1]
    columns = next(count for count in range(math.isqrt(n), n + 1) if n % count == 0)
    rows = n // columns
    real, imaginary = _transposed(real.unflatten(-1, (rows, columns)), imaginary.unflatten(-1, (rows, columns)))
    real, imaginary = _turned(real, imaginary, *_turns(rows, rows, rows), torch.matmul)  # (..., columns, rows)
    real, imaginary = _transposed(*_turned(real, imaginary, *_turns(columns, rows, n), torch.mul))
    real, imaginary = _transposed(*_turned(real, imaginary, *_turns(columns, columns, columns), torch.matmul))
    return real.flatten(-2), imaginary.flatten(-2)


def _transposed(real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
    return real.transpose(-1, -2), imaginary.transpose(-1, -2)


def _turns(rows: int, columns: int, period: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `row * column` parts of a turn of `period`: `(rows, columns)`, float64."""
    parts = torch.outer(torch.arange(rows), torch.arange(columns)) % period
    # Numbers as tensors: torch.onnx rounds those of Python to float32, also where they meet float64.
    angles = torch.tensor(2.0 * math.pi, dtype=torch.float64) * parts / period
    return angles.cos(), angles.sin()


def _turned(
    real: Tensor, imaginary: Tensor, cosine: Tensor, sine: Tensor, product: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Complex product with `cosine - i sine`."""
    return product(real, cosine) + product(imaginary, sine), product(imaginary, cosine) - product(real, sine)


def _place_values(levels: Sequence[int], group_size: int) -> Tensor:
    """What an index of each dimension counts in each token of a frame: `(dimensions, tokens_per_frame)`, int64."""
    groups = group_levels(levels, group_size)
    values = torch.zeros(len(levels), len(groups), dtype=torch.int64)
    for token, group in enumerate(groups):
        for place in range(len(group)):
            values[token * group_size + place, token] = math.prod(group[place + 1 :])
    return values
