"""Judges of a reconstructed clip: models that measure its pitch, quality, speaker, words and phones.

ECAPA-TDNN (`speaker`) and Whisper (`words`) may also have been teachers in training. The judges of `evaluation/` never
are: GE2E (`voice`), Moonshine (`moonshine`) and hama (`phones`).

Each is made once a process and called with a clip: `(samples,)`, float32 numpy, mono, and its reconstruction, as long
and aligned (`metrics/codec_quality/alignment.py`). A figure that a clip does not have is left out of the dict; none is
NaN. A judge of the original itself gives the best that can be expected: `judge(original, original, ...)`.

All are deterministic: the same clip gives the same figures, whatever came before. What runs outside PyTorch keeps to
one thread; for PyTorch that is the process's to say (`torch.set_num_threads(1)`).
"""

import importlib.util
import os
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
import torch

from .ecapa import DEFAULT_WEIGHTS as DEFAULT_SPEAKER_ENCODER
from .ecapa import load_speaker_encoder
from .evaluation.ge2e import DEFAULT_VOICE_ENCODER, VoiceJudge
from .evaluation.judge import JUDGE_RATE, Figures, Judge, at_judge_rate, count_errors
from .evaluation.moonshine import DEFAULT_MOONSHINE, MoonshineJudge
from .evaluation.phones import PhoneJudge
from .metrics.codec_quality.clip_quality import check_pair

DEFAULT_RECOGNIZER = "base"
SPEECH_F0_HZ = (50.0, 600.0)  # where F0 is looked for
VOICED_CONFIDENCE = 0.5  # as swift-f0 calibrates it
DNSMOS_WINDOW_S = 9.01
RECOGNIZER_SEED = 0  # of the sampling with which Whisper tries again what it could not make out


class PitchJudge(Judge):
    """Errors of the fundamental frequency, by swift-f0 (frames of 16 ms).

    - `f0_rmse_cents`: root mean square of 1200 log2(f / f0) over the frames that are voiced in both; none if there are
      no such frames. An octave error of the tracker counts 1200, so single clips may stand out.
    - `voicing_error`: share of all frames that are voiced in one and unvoiced in the other.
    """

    figures = ("f0_rmse_cents", "voicing_error")
    packages = {"swift_f0": "swift-f0"}

    def __init__(self) -> None:
        from swift_f0 import SwiftF0

        self._detector = SwiftF0(threads=1, spin=False)

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        tracks = [
            self._detector.detect(side, JUDGE_RATE, *SPEECH_F0_HZ)
            for side in at_judge_rate(original, reconstructed, sampling_rate)
        ]
        voiced = [track.confidence >= VOICED_CONFIDENCE for track in tracks]
        figures: Figures = {"voicing_error": float((voiced[0] != voiced[1]).mean())}
        both = voiced[0] & voiced[1]
        if both.any():
            cents = 1200 * np.log2(tracks[1].pitch_hz[both] / tracks[0].pitch_hz[both])
            figures["f0_rmse_cents"] = float(np.sqrt(np.square(cents).mean()))
        return figures


class OpinionJudge(Judge):
    """Mean opinion score of the reconstruction as DNSMOS P.835 predicts it: `dnsmos` (overall), 1 to 5.

    `dnsmos_sig` and `dnsmos_bak` are its scores of the speech and of the background. The original is not listened to:
    print its own score beside.

    Source: Reddy et al. 2022. Model and polynomials are those of the package speechmos 0.0.1.1, whose own function
    also computes P.808 scores, for which it needs librosa. Windows are the same: a clip shorter than 9.01 s is
    repeated; n whole seconds have windows of 9.01 s that start at seconds 0 to n - 10 (one if n is 9), but for 7 to 23,
    which the package loses to rounding.
    """

    figures = ("dnsmos", "dnsmos_sig", "dnsmos_bak")
    packages = {"speechmos": "speechmos", "onnxruntime": "onnxruntime"}

    def __init__(self) -> None:
        import onnxruntime
        import speechmos

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        model = Path(speechmos.__path__[0]) / "dnsmos_models" / "sig_bak_ovr.onnx"
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        samples = at_judge_rate(original, reconstructed, sampling_rate)[1].clip(-1.0, 1.0)
        length = int(DNSMOS_WINDOW_S * JUDGE_RATE)
        while len(samples) < length:
            samples = np.append(samples, samples)
        starts = range(int(len(samples) // JUDGE_RATE - DNSMOS_WINDOW_S) + 1)  # s
        windows = [samples[start * JUDGE_RATE : int((start + DNSMOS_WINDOW_S) * JUDGE_RATE)] for start in starts]
        raw = [self._session.run(None, {"input_1": one[None]})[0][0] for one in windows if len(one) == length]
        speech, background, overall = np.stack(raw, axis=1, dtype=np.float64)
        return {
            "dnsmos": float(np.polyval([-0.06766283, 1.11546468, 0.04602535], overall).mean()),
            "dnsmos_sig": float(np.polyval([-0.08397278, 1.22083953, 0.0052439], speech).mean()),
            "dnsmos_bak": float(np.polyval([-0.13166888, 1.60915514, -0.39604546], background).mean()),
        }


class SpeakerJudge(Judge):
    """`speaker_similarity`: cosine of the ECAPA-TDNN embeddings of the two, up to 1.

    Two clips of one speaker have about 0.65, of two speakers below 0.2.

    Args:
        weights: Of SpeechBrain's encoder: a file, a folder, or an id on the Hub.
    """

    figures = ("speaker_similarity",)
    packages = {}

    def __init__(self, weights: str | os.PathLike = DEFAULT_SPEAKER_ENCODER):
        self._encoder = load_speaker_encoder(weights)

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        check_pair(original, reconstructed, sampling_rate)
        if np.array_equal(original, reconstructed):  # saves the time
            return {"speaker_similarity": 1.0}
        sides = at_judge_rate(original, reconstructed, sampling_rate)
        with torch.inference_mode():
            embedding, other = (self._encoder(torch.from_numpy(side)[None])[0] for side in sides)
        return {"speaker_similarity": float(torch.cosine_similarity(embedding, other, dim=0))}


class WordJudge(Judge):
    """Errors of a speech recognizer, Whisper, beside a text.

    - `word_errors`, `words`, `character_errors`, `characters`: substitutions, deletions and insertions, and how much
      the text has. A rate over clips is the sum of the errors by the sum of the words, not the mean of rates.
    - `transcript`: what was heard, normalized as the text is (Whisper's `BasicTextNormalizer`).

    A clip without text, or whose text has no words, has none of them, and is not listened to.

    Args:
        model: Of faster-whisper: a folder, a size ("base"), or an id on the Hub.
        language: That is spoken.
    """

    figures = ("word_errors", "words", "character_errors", "characters", "transcript")
    packages = {"faster_whisper": "faster-whisper", "jiwer": "jiwer"}

    def __init__(self, model: str | os.PathLike = DEFAULT_RECOGNIZER, language: str = "en"):
        from faster_whisper import WhisperModel
        from transformers.models.whisper.english_normalizer import BasicTextNormalizer

        self._model = WhisperModel(str(model), device="cpu", compute_type="int8", cpu_threads=1)
        self.language = language
        self._normalize = BasicTextNormalizer()

    def __call__(
        self, original: np.ndarray, reconstructed: np.ndarray, sampling_rate: int, text: str | None = None
    ) -> Figures:
        samples = at_judge_rate(original, reconstructed, sampling_rate)[1]
        reference = self._normalize(text or "").strip()
        if not reference:
            return {}
        transcript = self._transcribe(samples)
        return {"transcript": transcript, **count_errors(reference, transcript)}

    def _transcribe(self, samples: np.ndarray) -> str:
        import ctranslate2

        ctranslate2.set_random_seed(RECOGNIZER_SEED)
        segments, _ = self._model.transcribe(
            samples, language=self.language, beam_size=5, condition_on_previous_text=False
        )
        return self._normalize(" ".join(segment.text for segment in segments)).strip()


JUDGES: dict[str, type[Judge]] = {
    "pitch": PitchJudge,
    "opinion": OpinionJudge,
    "speaker": SpeakerJudge,
    "words": WordJudge,
    "voice": VoiceJudge,
    "moonshine": MoonshineJudge,
    "phones": PhoneJudge,
}


def missing_judges(
    names: Iterable[str] = tuple(JUDGES), voice_encoder: str | os.PathLike = DEFAULT_VOICE_ENCODER
) -> dict[str, str]:
    """Which judges cannot be made here, and what to install: judge -> message.

    Args:
        names: Of `JUDGES`.
        voice_encoder: As `VoiceJudge`: the package is not needed for other weights than its own.

    Raises:
        ValueError: If a judge is unknown.
    """
    messages = {}
    for name in names:
        if name not in JUDGES:
            raise ValueError(f"`names` must be among {', '.join(JUDGES)}, got {name!r}")
        if name == "voice" and str(voice_encoder) != DEFAULT_VOICE_ENCODER:
            continue
        kind = JUDGES[name]
        absent = [pip for module, pip in kind.packages.items() if importlib.util.find_spec(module) is None]
        if absent:
            command = f"pip install {kind.pip_options}{' '.join(absent)}"
            messages[name] = f"no {', '.join(kind.figures)}: not installed: {', '.join(absent)} ({command})"
    return messages


def make_judges(
    names: Collection[str] = tuple(JUDGES),
    speaker_encoder: str | os.PathLike = DEFAULT_SPEAKER_ENCODER,
    recognizer: str | os.PathLike = DEFAULT_RECOGNIZER,
    language: str = "en",
    voice_encoder: str | os.PathLike = DEFAULT_VOICE_ENCODER,
    moonshine: str | os.PathLike = DEFAULT_MOONSHINE,
) -> dict[str, Judge]:
    """The judges among `names` that can be made here; `missing_judges` says which cannot.

    Args:
        names: Of `JUDGES`.
        speaker_encoder: As `SpeakerJudge`.
        recognizer: As `WordJudge`.
        language: As `WordJudge`.
        voice_encoder: As `VoiceJudge`.
        moonshine: As `MoonshineJudge`.
    """
    settings: dict[str, dict] = {
        "speaker": {"weights": speaker_encoder},
        "words": {"model": recognizer, "language": language},
        "voice": {"weights": voice_encoder},
        "moonshine": {"model": moonshine},
    }
    missing = missing_judges(names, voice_encoder)
    return {name: JUDGES[name](**settings.get(name, {})) for name in names if name not in missing}
