"""The ONNX graphs beside PyTorch: the same tokens? how fast? and what becomes of both in 8 bits?

    python -m benchmarks.onnx RECORDINGS... [--model hub_configs/jepa-daam-24khz-small] [--graphs FOLDER]

RECORDINGS are sound files, and folders of them. Of all, tokens are compared; of every n-th, as many as `--quality`
says, the reconstructions. Speed is that of 12 s of the first long one, a chunk, on one thread; every round takes each
figure once, so that other load falls on all of them; medians are printed. In 8 bits: onnxruntime's dynamic
quantization, of matrix products alone (`int8`) and with convolutions (`int8 conv`). PyTorch in float64 tells what
rounding does.
"""

import argparse
import copy
import math
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.cli import AUDIO_SUFFIXES
from modeling_jepa_daam.onnx_codec import DECODER, ENCODER, OnnxCodec
from modeling_jepa_daam.onnx_export import export_onnx
from modeling_jepa_daam.packing import unpack_frames
from training.markdown import markdown_table
from training.quality import mean_quality, reconstruction_quality
from training.timing import seconds_of

SHIPPED = Path(__file__).parents[1] / "hub_configs" / "jepa-daam-24khz-small"
INT8 = {"int8": ["MatMul", "Gemm"], "int8 conv": ["MatMul", "Gemm", "Conv"]}
FIGURES = ("stoi", "mel_distance")


class TorchCodec:
    """PyTorch's side, with the two calls of `OnnxCodec`."""

    def __init__(self, model: JepaDaamModel):
        self.model = model

    @torch.inference_mode()
    def encode(self, samples: np.ndarray) -> np.ndarray:
        return np.array(self.model.waveforms_to_ids([torch.from_numpy(samples)])[0])

    @torch.inference_mode()
    def decode(self, ids: np.ndarray) -> np.ndarray:
        codes = torch.from_numpy(ids.reshape(-1, self.model.config.tokens_per_frame).T[None])
        return self.model.decode(codes).audio_values[0, 0].numpy()


def quantized(graphs: Path, folder: Path, operators: list[str]) -> Path:
    """The graphs with 8-bit weights."""
    folder.mkdir()
    for name in (ENCODER, DECODER):
        quantize_dynamic(graphs / name, folder / name, op_types_to_quantize=operators, weight_type=QuantType.QUInt8)
    return folder


def token_rows(model: JepaDaamModel, codecs: dict, clips: list[np.ndarray]) -> list[list[str]]:
    """Of each codec, tokens and digits that are not those of the first."""
    config = model.config
    tokens = {name: np.concatenate([codec.encode(clip) for clip in clips]) for name, codec in codecs.items()}
    digits = {
        name: unpack_frames(
            torch.from_numpy(ids.reshape(-1, config.tokens_per_frame)), config.levels, config.group_size
        ).numpy()
        for name, ids in tokens.items()
    }
    first = next(iter(codecs))
    rows = []
    for name in codecs:
        other, moved = tokens[name] != tokens[first], digits[name] != digits[first]
        rows.append([name, f"{other.sum()} of {other.size}", f"{other.mean():.2%}", f"{moved.sum()} of {moved.size}"])
    return rows


def speed_rows(codecs: dict, clip: np.ndarray, seconds: float, rounds: int) -> dict[str, list[str]]:
    """Of each codec, times real time of encoding and decoding one chunk."""
    calls: dict[str, tuple[Callable, Callable]] = {}
    for name, codec in codecs.items():
        ids = codec.encode(clip)
        codec.decode(ids)
        calls[name] = (lambda codec=codec: codec.encode(clip), lambda codec=codec, ids=ids: codec.decode(ids))
    times: dict[str, tuple[list, list]] = {name: ([], []) for name in codecs}
    for _ in range(rounds):
        for name, pair in calls.items():
            for call, taken in zip(pair, times[name], strict=True):
                taken.append(seconds_of(call))
    return {name: [f"{seconds / statistics.median(taken):.0f}" for taken in both] for name, both in times.items()}


def main(recordings: list[Path], model_folder: Path, graphs: Path | None, rounds: int, quality: int) -> None:
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    model = JepaDaamModel.from_pretrained(model_folder).eval()
    rate, chunk = model.config.sampling_rate, model.config.chunk_frames * model.config.hop_length
    files = [file for path in recordings for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    clips = [load_audio(file, None, rate) for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    print(f"{len(clips)} clips, {sum(map(len, clips)) / rate / 60:.1f} minutes, {model_folder.name}, one thread\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if graphs is None:
            graphs = folder / "float32"
            export_onnx(model, graphs)
        folders = {"float32": graphs}
        for title, operators in INT8.items():
            folders[title] = quantized(graphs, folder / title.replace(" ", "-"), operators)
        codecs: dict = {"PyTorch": TorchCodec(model)}
        codecs |= {f"onnxruntime {title}": OnnxCodec(graphs, threads=1) for title, graphs in folders.items()}
        rows = token_rows(model, codecs, clips)
        double = TorchCodec(copy.deepcopy(model).double())
        rows += token_rows(model, {"PyTorch": codecs["PyTorch"], "PyTorch float64": double}, clips)[1:]
        print(markdown_table(["tokens other than PyTorch's", "tokens", "share", "digits"], rows), "\n")

        long = next((clip for clip in clips if len(clip) >= chunk), np.resize(clips[0], chunk))[:chunk]
        speeds = speed_rows(codecs, long, chunk / rate, rounds)
        judged = clips[:: max(1, len(clips) // quality)][:quality]
        rows = []
        for title, codec in codecs.items():
            made = [codec.decode(codec.encode(clip))[: len(clip)] for clip in judged]
            figures = mean_quality(
                [
                    reconstruction_quality(clip, back, rate, figures=FIGURES)
                    for clip, back in zip(judged, made, strict=True)
                ]
            )
            where = folders.get(title.removeprefix("onnxruntime "))
            sizes = [f"{(where / part).stat().st_size / 1e6:.1f}" for part in (ENCODER, DECODER)] if where else [""]
            rows.append(
                [
                    title,
                    " / ".join(speeds[title]),
                    *(f"{figures.get(key, math.nan):.4f}" for key in FIGURES),
                    " / ".join(sizes),
                ]
            )
        print(markdown_table(["encode / decode", "times real time", *FIGURES, "MB"], rows))
        print(f"\nQuality: means of {len(judged)} clips; each codec decodes its own tokens.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED)
    parser.add_argument("--graphs", type=Path, help="of `jepa-audio export-onnx`; made anew if not given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quality", type=int, default=40, help="clips whose reconstructions are judged")
    arguments = parser.parse_args()
    main(arguments.recordings, arguments.model, arguments.graphs, arguments.rounds, arguments.quality)
