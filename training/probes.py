"""Linear probes: how much of speaker, words and language a line through frozen, pooled features tells.

    python -m training.probes SHARDS... --checkpoint [NAME=]FOLDER --untrained CONFIG_FOLDER[:SEED] --output table.json

A recording becomes one vector, mean and standard deviation over time; logistic regression on standardised vectors
predicts the label. Beside the checkpoints stands a baseline without training, the same statistics of a log-mel
spectrogram (160 numbers; 2 * `hidden_size` of an encoder). Parts depend on names alone, so that all features meet the
same ones. The weight of the penalty is the best of `INVERSE_PENALTIES` on a validation cut of the training part.

* `speaker_librispeech`: each of 185 recordings in 4 pieces, trained on the first 3, tested on the last. Accuracy,
  chance 0.005. Speaker and channel are one: there is one recording of each speaker.
* `speaker_speechocean`: about 30 % of each speaker's clips are tested. Accuracy, chance about 0.008.
* `words_an4`: for each word that is frequent enough, does the clip contain it? Tested on unseen speakers. Mean over
  words of the area under the ROC curve, chance 0.5. One vector for up to 12 words is coarse: expect low figures.
  `digits_an4` is the mean over the digits alone.
* `language`: English, Dutch, French and Mandarin, balanced accuracy, chance 0.25. English is tested on unseen
  speakers. The other three are one voice each, so that language is confounded with voice, channel and, for Mandarin
  (single words of 1.3 s), length: this figure proves little.
"""

import hashlib
import json
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel, JepaDaamFeatureExtractor
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing

SAMPLING_RATE = 24000  # Hz, of the clips
# Share of a source's clips that is read, and seconds of each that are kept: what a run of a minute or two can pay.
SOURCES = {
    "librispeech": (1.0, 20.0),
    "speechocean762": (1.0, 4.0),
    "an4": (1.0, 7.0),  # no clip is cut: its words must be in it
    "nathalie": (0.35, 4.0),
    "fleursdumal": (0.4, 4.0),
    "audiocmn": (0.15, 4.0),
}
PARTS = ("train", "validation", "test")
PROBES = {  # the sources of each
    "speaker_librispeech": ("librispeech",),
    "speaker_speechocean": ("speechocean762",),
    "words_an4": ("an4",),
    "language": tuple(SOURCES),
}
PIECES = 4  # of a recording of librispeech
DIGITS = ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MIN_WORD_CLIPS = 30  # a rarer word is left out
LENGTH_RATIO = 1.15  # of clips that are compared for a word
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's `C`
MAX_ITERATIONS = 1000
VALIDATION_SHARE = 0.25  # of the training part
BATCH_S = 60.0  # seconds that the encoder sees at once, padding included
NUM_MELS, WINDOW_LENGTH, HOP_LENGTH, FFT_LENGTH = 80, 600, 240, 1024  # 25 ms and 10 ms; lengths in samples
MEL_FLOOR = 1e-5  # power; a sine at full scale has 2e4


@dataclass(frozen=True)
class ProbeClip:
    """A clip, or a piece of one: `samples (samples,)`, float32, at `SAMPLING_RATE`, and its labels."""

    name: str
    source: str
    speaker: str
    language: str
    text: str
    samples: np.ndarray
    piece: int = 0


def share_of(name: str) -> float:
    """A number in [0, 1) that depends on the name alone, evenly spread over names."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6]) / 2**48


def load_probe_clips(shards: Sequence[str | Path]) -> list[ProbeClip]:
    """Read the clips of `SOURCES` from tar files of `source/speaker/name.opus` beside `name.json`.

    Returns:
        The clips, sorted by name and piece whatever the order of the shards.

    Raises:
        ValueError: If no clip is of a source that the probes use, or a clip has no `.json` beside it.
    """
    clips = []
    for shard in shards:
        sounds, labels = {}, {}
        with tarfile.open(shard) as tar:
            for member in tar:
                name, _, suffix = member.name.rpartition(".")
                share = SOURCES.get(name.split("/")[0], (0.0, 0.0))[0]
                if member.isfile() and suffix in ("opus", "json") and share_of(f"use/{name}") < share:
                    content = tar.extractfile(member).read()  # type: ignore[union-attr]  # a file has content
                    (sounds if suffix == "opus" else labels)[name] = content
        for name, sound in sounds.items():
            if name not in labels:
                raise ValueError(f"`shards`: {shard} has {name}.opus, but no {name}.json beside it")
            clips += _cut(name, load_audio(sound, None, SAMPLING_RATE, name), json.loads(labels[name]))
    if not clips:
        raise ValueError(f"`shards` must hold clips of {', '.join(SOURCES)}, got none in {len(shards)} files")
    return sorted(clips, key=lambda clip: (clip.name, clip.piece))


def _cut(name: str, samples: np.ndarray, labels: dict) -> list[ProbeClip]:
    source = labels["source"]
    samples = samples[: int(SOURCES[source][1] * SAMPLING_RATE)]
    pieces = np.array_split(samples, PIECES) if source == "librispeech" else [samples]
    text = (labels["text"] or "").lower()
    return [
        ProbeClip(name, source, labels["speaker"], labels["language"], text, np.array(piece), number)
        for number, piece in enumerate(pieces)
    ]


@torch.no_grad()
def encoder_features(model: JepaDaamEncoderModel, clips: Sequence[ProbeClip]) -> np.ndarray:
    """Mean and standard deviation over valid frames of the encoder's features.

    The deviation is the biased one (a short clip may have one frame). The model runs in evaluation mode, on its device,
    and is left in the mode that it was in.

    Returns:
        `(clips, 2 * hidden_size)`, float32.
    """
    extractor = JepaDaamFeatureExtractor.from_config(model.config)
    features = np.zeros((len(clips), 2 * model.config.hidden_size), np.float32)
    was_training = model.training
    model.eval()
    try:
        for batch in _batches(clips):
            inputs = extractor([clips[i].samples for i in batch], SAMPLING_RATE, return_tensors="pt").to(model.device)
            output = model(**inputs)
            for i, latents, mask in zip(batch, output.last_hidden_state.float(), output.frame_mask, strict=True):
                features[i] = _mean_and_std(latents[mask]).cpu().numpy()
    finally:
        model.train(was_training)
    return features


def _batches(clips: Sequence[ProbeClip]) -> list[list[int]]:
    """Positions of clips of similar lengths, at most `BATCH_S` together when padded."""
    batches: list[list[int]] = []
    for i in sorted(range(len(clips)), key=lambda i: len(clips[i].samples)):  # the last of a batch is its longest
        if not batches or (len(batches[-1]) + 1) * len(clips[i].samples) > BATCH_S * SAMPLING_RATE:
            batches.append([])
        batches[-1].append(i)
    return batches


def log_mel_features(clips: Sequence[ProbeClip]) -> np.ndarray:
    """Mean and standard deviation over time of a log-mel spectrogram, `(clips, 2 * NUM_MELS)`, float32."""
    filters = torch.from_numpy(mel_bands()).float()
    window = torch.hann_window(WINDOW_LENGTH)
    rows = []
    for clip in clips:
        samples = torch.from_numpy(clip.samples)
        spectrum = torch.stft(  # zeros at the ends: a clip may be too short to be reflected
            samples, FFT_LENGTH, HOP_LENGTH, WINDOW_LENGTH, window, pad_mode="constant", return_complex=True
        )
        mels = filters.T @ spectrum.abs().square()  # (bands, frames)
        rows.append(_mean_and_std(mels.clamp(min=MEL_FLOOR).log().T).numpy())
    return np.stack(rows)


def mel_bands() -> np.ndarray:
    """Triangles on Slaney's mel scale from 0 to 12 kHz, `(FFT_LENGTH // 2 + 1, NUM_MELS)`, each with its peak at 1."""
    return mel_filter_bank(FFT_LENGTH // 2 + 1, NUM_MELS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="slaney")


def _mean_and_std(frames: torch.Tensor) -> torch.Tensor:
    """`(frames, channels)` -> `(2 * channels,)`."""
    return torch.cat([frames.mean(dim=0), frames.std(dim=0, correction=0)])


def probe_all(features: np.ndarray, clips: Sequence[ProbeClip]) -> dict[str, float]:
    """Run every probe that the clips allow; one whose clips are missing or too few has no entry.

    Args:
        features: `(clips, channels)`, one row per clip; finite.
        clips: What the rows are of.

    Returns:
        Figures in [0, 1] by probe, see the top of this file.

    Raises:
        ValueError: If there is not one row per clip, or a feature is not finite.
    """
    if features.ndim != 2 or len(features) != len(clips):
        raise ValueError(f"`features` must have shape (clips, channels) with {len(clips)} clips, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"`features` must be finite, got {np.count_nonzero(~np.isfinite(features))} that are not")
    figures = {}
    for probe, sources in PROBES.items():
        chosen = [i for i, clip in enumerate(clips) if clip.source in sources]
        columns, part = targets(probe, [clips[i] for i in chosen]), parts(probe, [clips[i] for i in chosen])
        columns = {  # nothing can be learnt or measured where a part has one class alone
            name: column for name, column in columns.items() if min(len(set(column[part == p])) for p in PARTS) > 1
        }
        if not columns:
            continue
        lengths = np.array([len(clips[i].samples) for i in chosen])
        rows = features[chosen].astype(np.float64)  # lbfgs stops short in float32
        scores = _fit_and_score(probe, rows, list(columns.values()), lengths, part)
        figures[probe] = float(np.mean(scores))
        digits = [score for name, score in zip(columns, scores, strict=True) if name in DIGITS]
        if digits:
            figures["digits_an4"] = float(np.mean(digits))
    return figures


def targets(probe: str, clips: Sequence[ProbeClip]) -> dict[str, np.ndarray]:
    """What a probe predicts: `(clips,)` labels by name, one name alone or, of `words_an4`, each frequent word."""
    if probe != "words_an4":
        label = "language" if probe == "language" else "speaker"
        return {label: np.array([getattr(clip, label) for clip in clips])}
    texts = [set(clip.text.split()) for clip in clips]
    columns = {word: np.array([word in text for text in texts]) for word in sorted(set().union(*texts))}
    return {word: column for word, column in columns.items() if column.sum() >= MIN_WORD_CLIPS}


def parts(probe: str, clips: Sequence[ProbeClip]) -> np.ndarray:
    """The part of each clip in a probe, one of `PARTS`: `(clips,)`. It depends on names, never on other clips."""
    if probe == "speaker_librispeech":
        return np.array([PARTS[max(0, clip.piece - PIECES + len(PARTS))] for clip in clips])
    test_share = {"speaker_speechocean": 0.3, "words_an4": 0.2, "language": 0.3}[probe]
    part = []
    for clip in clips:
        by_speaker = probe == "words_an4" or (probe == "language" and clip.language == "en")
        name = clip.speaker if by_speaker else clip.name
        if share_of(f"test/{name}") < test_share:
            part.append("test")
        else:
            part.append("validation" if share_of(f"validation/{name}") < VALIDATION_SHARE else "train")
    return np.array(part)


def _fit_and_score(
    probe: str, features: np.ndarray, columns: list[np.ndarray], lengths: np.ndarray, part: np.ndarray
) -> list[float]:
    """Test scores of one classifier per column, all with the penalty that is best for their mean in validation."""

    def scores(inverse_penalty: float, fitted: np.ndarray, scored: np.ndarray) -> list[float]:
        classifier = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
        pipeline = make_pipeline(StandardScaler(), classifier)
        results = []
        for column in columns:
            pipeline.fit(features[fitted], column[fitted])
            if probe == "words_an4":
                margins = pipeline.decision_function(features[scored])
                results.append(matched_area(margins, column[scored], lengths[scored]))
            else:
                metric = balanced_accuracy_score if probe == "language" else accuracy_score
                results.append(metric(column[scored], pipeline.predict(features[scored])))
        return results

    train, validation, test = (part == name for name in PARTS)
    best = max(INVERSE_PENALTIES, key=lambda penalty: np.mean(scores(penalty, train, validation)))
    return scores(best, train | validation, test)


def matched_area(margins: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> float:
    """Area under the ROC curve over pairs of clips of about one length.

    A long clip has more words, so that without the match the length alone reaches 0.69 on an4.

    Args:
        margins: `(clips,)`, what the classifier gives; higher for "contains the word".
        labels: `(clips,)`, bool, whether it does.
        lengths: `(clips,)`, of any unit.

    Returns:
        Of the pairs of a clip with the word and one without, whose lengths differ by at most `LENGTH_RATIO`, the share
        in which the first has the larger margin, ties counted half; 0.5 without pairs.
    """
    gaps = margins[labels][:, None] - margins[~labels]
    ratios = lengths[labels][:, None] / lengths[~labels]
    gaps = gaps[(ratios <= LENGTH_RATIO) & (ratios >= 1 / LENGTH_RATIO)]
    return float(np.mean((np.sign(gaps) + 1) / 2)) if gaps.size else 0.5


def load_encoder(folder: str | Path) -> JepaDaamEncoderModel:
    """The encoder of a checkpoint folder, float32.

    Raises:
        ValueError: If there is no such folder, or it lacks weights of the encoder.
    """
    if not Path(folder).is_dir():  # else transformers would look for it on the Hub
        raise ValueError(f"`checkpoint` must be a folder, got {folder}")
    loaded: Any = JepaDaamEncoderModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:  # transformers would draw them at random and go on
        raise ValueError(f"`checkpoint` {folder} lacks weights of the encoder: {sorted(report['missing_keys'])[:3]}")
    return model


def untrained_encoder(folder: str | Path, seed: int = 0) -> JepaDaamEncoderModel:
    """The encoder that a folder's `config.json` describes, with weights drawn from a seed.

    Raises:
        ValueError: If there is no such folder.
    """
    if not Path(folder).is_dir():
        raise ValueError(f"`untrained` must be a folder with a config.json, got {folder}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return JepaDaamEncoderModel(JepaDaamConfig.from_pretrained(folder))


def markdown_table(figures: dict[str, dict[str, float]]) -> str:
    """A row per kind of features, a column per probe."""
    probes = list(dict.fromkeys(probe for row in figures.values() for probe in row))
    lines = [["features", *probes], ["---"] * (1 + len(probes))]
    lines += [[name, *(f"{row[probe]:.3f}" for probe in probes)] for name, row in figures.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def encoders_by_name(checkpoints: Sequence[str], untrained: Sequence[str]) -> dict[str, JepaDaamEncoderModel]:
    """Load `[NAME=]FOLDER` checkpoints and `CONFIG_FOLDER[:SEED]` untrained encoders; a folder's name is the default.

    Raises:
        ValueError: If a folder cannot be used, or two encoders have one name.
    """
    named = []
    for value in checkpoints:
        name, _, folder = value.rpartition("=")
        named.append((name or Path(folder).resolve().name, load_encoder(folder)))
    for value in untrained:
        folder, _, seed = value.rpartition(":")
        if not seed.isdecimal():
            folder, seed = value, "0"
        named.append((f"{Path(folder).resolve().name}, untrained {seed}", untrained_encoder(folder, int(seed))))
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ValueError(f"`checkpoint` must be given as NAME=FOLDER with a name of its own, got names {names}")
    return dict(named)


def command(
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    output: Annotated[Path, typer.Option(help="JSON file to write: figures by features and probe.")],
    checkpoint: Annotated[list[str] | None, typer.Option(help="[NAME=]FOLDER of an encoder; repeatable.")] = None,
    untrained: Annotated[list[str] | None, typer.Option(help="CONFIG_FOLDER[:SEED]; repeatable.")] = None,
) -> None:
    """Probe a log-mel baseline and frozen encoders."""
    transformers_logging.disable_progress_bar()
    start = time.perf_counter()

    def progress(what: str) -> None:
        typer.echo(f"{time.perf_counter() - start:5.0f} s: {what}", err=True)

    try:
        encoders = encoders_by_name(checkpoint or [], untrained or [])  # first: a wrong name shall cost no time
        clips = load_probe_clips(shards)
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    progress(f"{len(clips)} clips read, {sum(len(clip.samples) for clip in clips) / SAMPLING_RATE / 3600:.2f} h")
    figures = {}
    for name, encoder in [("log-mel mean/std", None), *encoders.items()]:
        features = log_mel_features(clips) if encoder is None else encoder_features(encoder, clips)
        progress(f"{name}: features {features.shape}")
        figures[name] = probe_all(features, clips)
        progress(f"{name}: probes done")
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    typer.echo(markdown_table(figures))


if __name__ == "__main__":
    typer.run(command)
