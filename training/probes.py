"""Linear probes: how much of speaker, words and language a line through frozen, pooled features tells.

    python -m training.probes SHARDS... --checkpoint [NAME=]FOLDER --untrained CONFIG_FOLDER[:SEED] --output table.json

A clip becomes one vector, mean and standard deviation over time; logistic regression on standardised vectors predicts
the label. Beside the encoders stand two baselines without training: the statistics of a log-mel spectrogram (160
numbers; an encoder gives 2 * `hidden_size`), and the clip's length alone, which is the floor. Train, validation and
test parts depend on names alone, so that all features meet the same ones; validation only chooses the penalty.

* `speaker_librispeech`: each of 185 recordings in 4 pieces, tested on the last. Accuracy, chance 0.005. Speaker and
  channel are one: there is one recording of each speaker.
* `speaker_speechocean`: tested on about 30 % of each of 125 speakers' clips. Accuracy, chance 0.008.
* `words_an4`: does the clip contain the word? For each frequent word, on unseen speakers, among clips of about one
  length (`matched_area`); mean over words, chance 0.5. One vector for up to 12 words is coarse: expect low figures.
  `digits_an4` is the mean over the digits alone.
* `language`: English, Dutch, French and Mandarin. Balanced accuracy, chance 0.25. English is tested on unseen speakers;
  the others are one voice each, so that language is confounded with voice, channel and length (Mandarin: single words
  of 1.3 s). Read it beside the floor: it proves little.
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
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamConfig, JepaDaamEncoderModel, JepaDaamFeatureExtractor
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing

SAMPLING_RATE = 24000  # Hz, of the clips
# Share of a source's clips that is read, and seconds of each that are kept: what a run of two minutes can pay.
SOURCES = {
    "librispeech": (1.0, 9.6),  # 4 of 5 are longer: pieces of one length do not tell the speaker by it
    "speechocean762": (1.0, 4.0),
    "an4": (1.0, 7.0),  # longer than any of them: a clip must have all its words
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
TEST_SHARE = {"speaker_speechocean": 0.3, "words_an4": 0.2, "language": 0.3}
VALIDATION_SHARE = 0.25  # of what is not tested
PIECES = 4  # of a recording of librispeech
DIGITS = ("zero", "oh", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MIN_WORD_CLIPS = 30  # a rarer word is left out
LENGTH_RATIO = 1.1  # of the clips that are compared for a word, at most
INVERSE_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's `C`
MAX_ITERATIONS = 1000
BATCH_S = 20.0  # seconds that the encoder sees at once, padding included; more is slower on a CPU
NUM_MELS, WINDOW_LENGTH, HOP_LENGTH, FFT_LENGTH = 80, 600, 240, 1024  # lengths in samples: 25 ms, 10 ms
MEL_FLOOR = 1e-5  # power; a sine at full scale has 2e4


@dataclass(frozen=True)
class ProbeClip:
    """A clip or a piece of one: its labels and `samples (samples,)`, float32, at `SAMPLING_RATE`."""

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
        The clips, sorted by name and piece, whatever the order of the shards.

    Raises:
        ValueError: If there are none, or one has no `.json` beside it.
    """
    clips = []
    for shard in shards:
        files: dict[str, dict[str, bytes]] = {"opus": {}, "json": {}}
        with tarfile.open(shard) as tar:
            for member in tar:
                name, _, suffix = member.name.rpartition(".")
                share = SOURCES.get(name.split("/")[0], (0.0, 0.0))[0]
                file = tar.extractfile(member)
                if file is not None and suffix in files and share_of(f"use/{name}") < share:
                    files[suffix][name] = file.read()
        for name, sound in files["opus"].items():
            if name not in files["json"]:
                raise ValueError(f"`shards`: {shard} has {name}.opus, but no {name}.json beside it")
            labels = json.loads(files["json"][name])
            source, speaker, language = labels["source"], labels["speaker"], labels["language"]
            samples = load_audio(sound, None, SAMPLING_RATE, name)[: int(SOURCES[source][1] * SAMPLING_RATE)]
            for number, piece in enumerate(np.array_split(samples, PIECES if source == "librispeech" else 1)):
                text = (labels["text"] or "").lower()
                clips.append(ProbeClip(name, source, speaker, language, text, piece.copy(), number))
    if not clips:
        raise ValueError(f"`shards` must hold clips of {', '.join(SOURCES)}; got none in {len(shards)} files")
    return sorted(clips, key=lambda clip: (clip.name, clip.piece))


@torch.no_grad()
def encoder_features(model: JepaDaamEncoderModel, clips: Sequence[ProbeClip]) -> np.ndarray:
    """Mean and standard deviation of the encoder's features over valid frames, `(clips, 2 * hidden_size)`, float32.

    The model runs in evaluation mode, on its device, and is left in the mode that it was in.
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
                features[i] = _mean_and_std(latents[mask])
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
    """Mean and standard deviation over time of a log-mel spectrogram, `(clips, 2 * NUM_MELS)`, float32.

    80 bands on Slaney's mel scale from 0 to 12 kHz, natural logarithm of the power.
    """
    bands = mel_filter_bank(FFT_LENGTH // 2 + 1, NUM_MELS, 0.0, SAMPLING_RATE / 2, SAMPLING_RATE, mel_scale="slaney")
    filters, window = torch.from_numpy(bands.T).float(), torch.hann_window(WINDOW_LENGTH)
    rows = []
    for clip in clips:
        spectrum = torch.stft(  # zeros at the ends: a clip may be too short to be reflected
            torch.from_numpy(clip.samples),
            FFT_LENGTH,
            HOP_LENGTH,
            WINDOW_LENGTH,
            window,
            pad_mode="constant",
            return_complex=True,
        )
        mels = filters @ spectrum.abs().square()  # (bands, frames)
        rows.append(_mean_and_std(mels.clamp(min=MEL_FLOOR).log().T))
    return np.stack(rows)


def _mean_and_std(frames: Tensor) -> np.ndarray:
    """`(frames, channels)` -> `(2 * channels,)`; the biased deviation, as a short clip may have one frame."""
    return torch.cat([frames.mean(dim=0), frames.std(dim=0, correction=0)]).cpu().numpy()


def length_features(clips: Sequence[ProbeClip]) -> np.ndarray:
    """The length of each clip in seconds, and its logarithm, `(clips, 2)`, float32."""
    duration_s = np.array([len(clip.samples) for clip in clips], np.float32) / SAMPLING_RATE
    return np.stack([duration_s, np.log(duration_s)], axis=1)


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
        rows = [i for i, clip in enumerate(clips) if clip.source in sources]
        chosen = [clips[i] for i in rows]
        part = parts(probe, chosen)
        columns = {  # nothing can be learnt or measured where a part has one class alone
            name: column
            for name, column in _labels(probe, chosen).items()
            if all(len(set(column[part == one])) > 1 for one in PARTS)
        }
        if columns:
            scores = _fit_and_score(probe, features[rows].astype(np.float64), chosen, columns, part)
            figures[probe] = float(np.mean(list(scores.values())))
            digits = [score for name, score in scores.items() if name in DIGITS]
            if digits:
                figures["digits_an4"] = float(np.mean(digits))
    return figures


def parts(probe: str, clips: Sequence[ProbeClip]) -> np.ndarray:
    """The part of each clip in a probe, one of `PARTS`: `(clips,)`. It depends on the clip's names alone."""
    if probe == "speaker_librispeech":
        return np.array([PARTS[max(0, clip.piece - PIECES + len(PARTS))] for clip in clips])
    part = []
    for clip in clips:
        by_speaker = probe == "words_an4" or (probe == "language" and clip.language == "en")
        name = clip.speaker if by_speaker else clip.name
        if share_of(f"test/{name}") < TEST_SHARE[probe]:
            part.append("test")
        else:
            part.append("validation" if share_of(f"validation/{name}") < VALIDATION_SHARE else "train")
    return np.array(part)


def _labels(probe: str, clips: Sequence[ProbeClip]) -> dict[str, np.ndarray]:
    """What a probe predicts, columns of `(clips,)` by name: bool for each frequent word, or the one label."""
    if probe != "words_an4":
        label = "language" if probe == "language" else "speaker"
        return {label: np.array([getattr(clip, label) for clip in clips])}
    texts = [set(clip.text.split()) for clip in clips]
    columns = {word: np.array([word in text for text in texts]) for word in sorted(set().union(*texts))}
    return {word: column for word, column in columns.items() if column.sum() >= MIN_WORD_CLIPS}


def _fit_and_score(
    probe: str, features: np.ndarray, clips: Sequence[ProbeClip], columns: dict[str, np.ndarray], part: np.ndarray
) -> dict[str, float]:
    """Test score of one classifier per column, all with the penalty that is best for their mean in validation."""
    lengths = np.array([len(clip.samples) for clip in clips])

    def score(column: np.ndarray, inverse_penalty: float, fitted: np.ndarray, scored: np.ndarray) -> float:
        classifier = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
        pipeline = make_pipeline(StandardScaler(), classifier).fit(features[fitted], column[fitted])
        if probe == "words_an4":
            return matched_area(pipeline.decision_function(features[scored]), column[scored], lengths[scored])
        metric = balanced_accuracy_score if probe == "language" else accuracy_score
        return metric(column[scored], pipeline.predict(features[scored]))

    train, validation, test = (part == name for name in PARTS)
    means = [np.mean([score(column, c, train, validation) for column in columns.values()]) for c in INVERSE_PENALTIES]
    best = INVERSE_PENALTIES[int(np.argmax(means))]
    return {name: score(column, best, train | validation, test) for name, column in columns.items()}


def matched_area(margins: np.ndarray, labels: np.ndarray, lengths: np.ndarray) -> float:
    """Area under the ROC curve over pairs of clips of about one length.

    A long clip has more words, so that over all pairs the length alone reaches 0.69 on an4.

    Args:
        margins: `(clips,)`, what the classifier gives; higher for "contains the word".
        labels: `(clips,)`, bool, whether it does.
        lengths: `(clips,)`, in any unit.

    Returns:
        Over pairs of a clip with the word and one without, with lengths within a factor of `LENGTH_RATIO`, the share in
        which the first has the larger margin; ties count half. 0.5 without pairs.
    """
    gaps = margins[labels][:, None] - margins[~labels]
    ratios = lengths[labels][:, None] / lengths[~labels]
    gaps = gaps[(ratios <= LENGTH_RATIO) & (ratios >= 1 / LENGTH_RATIO)]
    return float(np.mean((np.sign(gaps) + 1) / 2)) if gaps.size else 0.5


def load_encoder(folder: str | Path, seed: int | None = None) -> JepaDaamEncoderModel:
    """The encoder of a checkpoint folder, float32; with a seed, weights drawn from it instead of the folder's.

    Raises:
        ValueError: If there is no such folder, or it lacks weights of the encoder.
    """
    if not Path(folder).is_dir():  # else transformers would look for it on the Hub
        raise ValueError(f"an encoder must be given as an existing folder, got {folder}")
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return JepaDaamEncoderModel(JepaDaamConfig.from_pretrained(folder))
    loaded: Any = JepaDaamEncoderModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:  # transformers would draw them at random and go on
        raise ValueError(f"{folder} lacks weights of the encoder: {', '.join(sorted(report['missing_keys'])[:3])}")
    return model


def encoders_by_name(checkpoints: Sequence[str], untrained: Sequence[str]) -> dict[str, JepaDaamEncoderModel]:
    """Load `[NAME=]FOLDER` checkpoints and `CONFIG_FOLDER[:SEED]` untrained encoders; the folder names them.

    Raises:
        ValueError: If a folder cannot be used, or two encoders have one name.
    """
    named = []
    for value in checkpoints:
        name, _, folder = value.rpartition("=")
        named.append((name or Path(folder).resolve().name, load_encoder(folder)))
    for value in untrained:
        folder, _, seed = value.rpartition(":") if value.rpartition(":")[2].isdecimal() else (value, "", "0")
        named.append((f"{Path(folder).resolve().name}, untrained {seed}", load_encoder(folder, int(seed))))
    encoders = dict(named)
    if len(encoders) < len(named):
        raise ValueError(f"`checkpoint` must be NAME=FOLDER with names that differ, got {[name for name, _ in named]}")
    return encoders


def markdown_table(figures: dict[str, dict[str, float]]) -> str:
    """A row per kind of features, a column per probe."""
    probes = list(next(iter(figures.values())))
    lines = [["features", *probes], ["---"] * (1 + len(probes))]
    lines += [[name, *(f"{row[probe]:.3f}" for probe in probes)] for name, row in figures.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def command(
    shards: Annotated[list[Path], typer.Argument(help="Tar files of source/speaker/name.opus and .json.")],
    output: Annotated[Path, typer.Option(help="JSON file to write: figures by features and probe.")],
    checkpoint: Annotated[list[str] | None, typer.Option(help="[NAME=]FOLDER of an encoder; repeatable.")] = None,
    untrained: Annotated[list[str] | None, typer.Option(help="CONFIG_FOLDER[:SEED]; repeatable.")] = None,
) -> None:
    """Probe two baselines and frozen encoders."""
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
    progress(f"{len(clips)} clips, {sum(len(clip.samples) for clip in clips) / SAMPLING_RATE / 3600:.2f} h")
    figures = {}
    figures["clip length"] = probe_all(length_features(clips), clips)
    figures["log-mel mean/std"] = probe_all(log_mel_features(clips), clips)
    progress("baselines")
    for name, encoder in encoders.items():
        figures[name] = probe_all(encoder_features(encoder, clips), clips)
        progress(name)
    with replacing(output) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    typer.echo(markdown_table(figures))


if __name__ == "__main__":
    typer.run(command)
