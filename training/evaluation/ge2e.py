"""Speaker similarity by the GE2E network of Resemblyzer, which is no teacher of any model here.

Resemblyzer's own audio code needs librosa and webrtcvad, which do not install everywhere, so only its weights are used.
Features are `(frames, bands)`.

Source: Wan et al. 2018, "Generalized end-to-end loss for speaker verification"; sizes and features as in Resemblyzer
0.1.4 (Apache-2.0).
Deviation: long pauses are not cut out, windows overlap by half, and a last window that is not whole is left out.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .judge import JUDGE_RATE, Figures, Judge, at_judge_rate, check_pair

DEFAULT_VOICE_ENCODER = "resemblyzer"  # the weights in the installed package
WEIGHTS_FILE = "pretrained.pt"
FFT_SIZE = 400  # 25 ms
HOP_LENGTH = 160  # 10 ms
NUM_BANDS = 40
WINDOW_FRAMES = 160
WINDOW_STEP = 80
LEVEL_DBFS = -30.0  # quieter clips are made as loud
HIDDEN_SIZE = 256
NUM_LAYERS = 3
LINEAR_HZ = 200 / 3  # of a mel of Slaney's scale, below `LOG_START_HZ`
LOG_START_HZ = 1000.0
LOG_START_MEL = LOG_START_HZ / LINEAR_HZ
LOG_STEP = np.log(6.4) / 27


class VoiceEncoder(nn.Module):
    """Windows of mel power to unit vectors, of which none has a negative value."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(NUM_BANDS, HIDDEN_SIZE, NUM_LAYERS, batch_first=True)
        self.linear = nn.Linear(HIDDEN_SIZE, HIDDEN_SIZE)

    def forward(self, windows: Tensor) -> Tensor:
        """`(windows, WINDOW_FRAMES, NUM_BANDS)`, float32 -> `(windows, HIDDEN_SIZE)`."""
        _, (hidden, _) = self.lstm(windows)
        return F.normalize(F.relu(self.linear(hidden[-1])), dim=1)

    @torch.inference_mode()
    def embed(self, samples: np.ndarray) -> Tensor:
        """Embed a clip: the mean over its windows, as a unit vector.

        Args:
            samples: `(samples,)`, float32, 16 kHz.

        Returns:
            `(HIDDEN_SIZE,)`, float32.
        """
        power = mel_power(at_level(samples))
        power = np.pad(power, ((0, max(0, WINDOW_FRAMES - len(power))), (0, 0)))
        starts = range(0, len(power) - WINDOW_FRAMES + 1, WINDOW_STEP)
        windows = torch.from_numpy(np.stack([power[start : start + WINDOW_FRAMES] for start in starts]))
        return F.normalize(self(windows).mean(dim=0), dim=0)


class VoiceJudge(Judge):
    """`voice_similarity`: cosine of the GE2E embeddings of the two clips, 0 to 1.

    Clips of different speakers have about 0.57.

    Args:
        weights: As `load_voice_encoder`.
    """

    figures = ("voice_similarity",)
    packages = {"resemblyzer": "Resemblyzer"}  # needed for the default weights only
    pip_options = "--no-deps "

    def __init__(self, weights: str | os.PathLike = DEFAULT_VOICE_ENCODER):
        self._encoder = load_voice_encoder(weights)

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        check_pair(original, reconstructed, sampling_rate)
        if np.array_equal(original, reconstructed):  # saves the time
            return {"voice_similarity": 1.0}
        embedding, other = map(self._encoder.embed, at_judge_rate(original, reconstructed, sampling_rate))
        return {"voice_similarity": float(embedding @ other)}


def load_voice_encoder(weights: str | os.PathLike = DEFAULT_VOICE_ENCODER) -> VoiceEncoder:
    """A voice encoder with Resemblyzer's weights, in evaluation mode.

    Args:
        weights: As `voice_encoder_file`.

    Raises:
        OSError: If there are none.
        ValueError: If the weights are not those of this network.
    """
    path = voice_encoder_file(weights)
    content = torch.load(path, map_location="cpu", weights_only=True)
    problem = f"`weights` must be those of Resemblyzer's voice encoder, got {path}"
    if not isinstance(content, dict) or "model_state" not in content:
        raise ValueError(f"{problem}: no `model_state`")
    # The other two parameters scale similarities in training.
    state = {name: value for name, value in content["model_state"].items() if not name.startswith("similarity_")}
    encoder = VoiceEncoder()
    try:
        encoder.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{problem}: {error}") from error
    return encoder.eval().requires_grad_(False)


def voice_encoder_file(weights: str | os.PathLike) -> Path:
    """The file of a voice encoder's weights.

    Args:
        weights: "resemblyzer" for those of the installed package; a file, a folder with `pretrained.pt`, or the id of
            such a repository on the Hub.

    Raises:
        OSError: If there are none.
    """
    path = Path(weights)
    if path.is_dir():
        path = path / WEIGHTS_FILE
    elif str(weights) == DEFAULT_VOICE_ENCODER:
        spec = importlib.util.find_spec("resemblyzer")  # does not import it
        if spec is None or not spec.submodule_search_locations:
            raise FileNotFoundError("`weights`: the package Resemblyzer is not installed")
        path = Path(spec.submodule_search_locations[0]) / WEIGHTS_FILE
    elif not path.is_file():
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(str(weights), WEIGHTS_FILE))
    if not path.is_file():
        raise FileNotFoundError(f"`weights`: no file {path}")
    return path


def at_level(samples: np.ndarray) -> np.ndarray:
    """Raise a clip below `LEVEL_DBFS` (root mean square) to this level; silence stays silence."""
    level = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    wanted = 10 ** (LEVEL_DBFS / 20)
    return (samples * (wanted / level)).astype(np.float32) if 0 < level < wanted else samples


def mel_power(samples: np.ndarray) -> np.ndarray:
    """Power of mel bands, not its logarithm: `(1 + samples // HOP_LENGTH, NUM_BANDS)`, float32.

    As `librosa.feature.melspectrogram` computes it: periodic Hann window, frames centred, zeros around the clip.
    """
    window = torch.hann_window(FFT_SIZE, dtype=torch.float64)
    spectrum = torch.stft(
        torch.from_numpy(samples.astype(np.float64)),
        FFT_SIZE,
        HOP_LENGTH,
        window=window,
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    return (spectrum.abs().square().T.numpy() @ mel_filters()).astype(np.float32)


def mel_filters() -> np.ndarray:
    """Triangles on Slaney's mel scale, each of unit area: `(FFT_SIZE // 2 + 1, NUM_BANDS)`, float64."""
    top_mel = LOG_START_MEL + np.log(JUDGE_RATE / 2 / LOG_START_HZ) / LOG_STEP
    mels = np.linspace(0, top_mel, NUM_BANDS + 2)
    edges = np.where(mels < LOG_START_MEL, LINEAR_HZ * mels, LOG_START_HZ * np.exp(LOG_STEP * (mels - LOG_START_MEL)))
    frequencies = np.linspace(0, JUDGE_RATE / 2, FFT_SIZE // 2 + 1)[:, None]
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (frequencies - low) / (center - low), (high - frequencies) / (high - center)
    return np.minimum(rising, falling).clip(min=0) * 2 / (high - low)
