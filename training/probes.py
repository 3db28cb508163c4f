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
* `tone` and `tone_unseen_speaker`, where the clips of `tones.py` are given: the tone, 1 to 4, of a single Mandarin
  syllable. Balanced accuracy, chance 0.25, on syllables that were not trained on in any tone; and, trained on the same
  voice, on another one.
"""

import hashlib
import json
import tarfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from transformers.audio_utils import mel_filter_bank
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import JepaDaamEncoderModel, JepaDaamFeatureExtractor
from modeling_jepa_daam.audio import load_audio
from modeling_jepa_daam.files import replacing

from .bootstrap import bootstrap_figures
from .frozen import frozen_by_name
from .markdown import markdown_table

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
    "tone": ("tones",),
    "tone_unseen_speaker": ("tones", "tones_unseen_speaker"),
}
TEST_SHARE = {"speaker_speechocean": 0.3, "words_an4": 0.2, "language": 0.3, "tone": 0.3, "tone_unseen_speaker": 0.0}
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

    def is_used(name: str) -> bool:
        return share_of(f"use/{name}") < SOURCES.get(name.split("/")[0], (0.0, 0.0))[0]

    clips = []
    for name, sound, labels in read_shards(shards, is_used):
        source, speaker, language = labels["source"], labels["speaker"], labels["language"]
        samples = load_audio(sound, None, SAMPLING_RATE, name)[: int(SOURCES[source][1] * SAMPLING_RATE)]
        for number, piece in enumerate(np.array_split(samples, PIECES if source == "librispeech" else 1)):
            text = (labels["text"] or "").lower()
            clips.append(ProbeClip(name, source, speaker, language, text, piece.copy(), number))
    if not clips:
        raise ValueError(f"`shards` must hold clips of {', '.join(SOURCES)}; got none in {len(shards)} files")
    return sorted(clips, key=lambda clip: (clip.name, clip.piece))


def read_shards(shards: Sequence[str | Path], is_used: Callable[[str], bool]) -> Iterator[tuple[str, bytes, dict]]:
    """Name, sound file and labels of the clips whose name, without its suffix, is used.

    Raises:
        ValueError: If a sound has no `.json` beside it.
    """
    for shard in shards:
        files: dict[str, dict[str, bytes]] = {"opus": {}, "json": {}}
        with tarfile.open(shard) as tar:
            for member in tar:
                name, _, suffix = member.name.rpartition(".")
                file = tar.extractfile(member)
                if file is not None and suffix in files and is_used(name):
                    files[suffix][name] = file.read()
        for name, sound in files["opus"].items():
            if name not in files["json"]:
                raise ValueError(f"`shards`: {shard} has {name}.opus, but no {name}.json beside it")
            yield name, sound, json.loads(files["json"][name])


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
                features[i] = mean_and_std(latents[mask])
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
        rows.append(mean_and_std(mels.clamp(min=MEL_FLOOR).log().T))
    return np.stack(rows)


def mean_and_std(frames: Tensor) -> np.ndarray:
    """`(frames, channels)` -> `(2 * channels,)`; the biased deviation, as a short clip may have one frame."""
    return torch.cat([frames.mean(dim=0), frames.std(dim=0, correction=0)]).cpu().numpy()


def length_features(clips: Sequence[ProbeClip]) -> np.ndarray:
    """The length of each clip in seconds, and its logarithm, `(clips, 2)`, float32."""
    duration_s = np.array([len(clip.samples) for clip in clips], np.float32) / SAMPLING_RATE
    return np.stack([duration_s, np.log(duration_s)], axis=1)


@dataclass(frozen=True)
class Outcome:
    """What the classifiers of a probe say of its test clips.

    Args:
        probe: Its name.
        labels: What is true, columns of `(clips,)` by name: bool for each word, or the one label.
        answers: What they say, likewise: a margin for each word, or the predicted label.
        lengths: `(clips,)`, samples.
        units: `(clips,)`, what the clips were drawn by: see `split_unit`.
    """

    probe: str
    labels: dict[str, np.ndarray]
    answers: dict[str, np.ndarray]
    lengths: np.ndarray
    units: np.ndarray

    def figure(self, rows: np.ndarray | slice = slice(None)) -> float:
        """Mean score over the columns, in [0, 1], of all test clips or of some, which may come more than once."""
        scores = [
            score(self.probe, self.labels[name][rows], self.answers[name][rows], self.lengths[rows])
            for name in self.labels
        ]
        return float(np.mean(scores))

    def resampled(self) -> np.ndarray:
        """The figure, had other units been drawn for the test: see `bootstrap_figures`."""
        rows = [np.flatnonzero(self.units == unit) for unit in np.unique(self.units)]
        return bootstrap_figures(lambda drawn: self.figure(np.concatenate([rows[i] for i in drawn])), len(rows))


def probe_all(features: np.ndarray, clips: Sequence[ProbeClip]) -> dict[str, float]:
    """The figures of `probe_outcomes`, in [0, 1] by probe: see the top of this file."""
    return {probe: outcome.figure() for probe, outcome in probe_outcomes(features, clips).items()}


def probe_outcomes(features: np.ndarray, clips: Sequence[ProbeClip]) -> dict[str, Outcome]:
    """Run every probe that the clips allow; one whose clips are missing or too few has no entry.

    Args:
        features: `(clips, channels)`, one row per clip; finite.
        clips: What the rows are of.

    Raises:
        ValueError: If there is not one row per clip, or a feature is not finite.
    """
    if features.ndim != 2 or len(features) != len(clips):
        raise ValueError(f"`features` must have shape (clips, channels) with {len(clips)} clips, got {features.shape}")
    if not np.isfinite(features).all():
        raise ValueError(f"`features` must be finite, got {np.count_nonzero(~np.isfinite(features))} that are not")
    outcomes = {}
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
            outcomes[probe] = _fit(probe, features[rows].astype(np.float64), chosen, columns, part)
            digits = {name: column for name, column in outcomes[probe].labels.items() if name in DIGITS}
            if digits:
                outcomes["digits_an4"] = replace(outcomes[probe], labels=digits)
    return outcomes


def parts(probe: str, clips: Sequence[ProbeClip]) -> np.ndarray:
    """The part of each clip in a probe, one of `PARTS`: `(clips,)`. It depends on the clip's names alone."""
    if probe == "speaker_librispeech":
        return np.array([PARTS[max(0, clip.piece - PIECES + len(PARTS))] for clip in clips])
    part = []
    for clip in clips:
        name = split_unit(probe, clip)
        if clip.source == "tones_unseen_speaker" or share_of(f"test/{name}") < TEST_SHARE[probe]:
            part.append("test")
        else:
            part.append("validation" if share_of(f"validation/{name}") < VALIDATION_SHARE else "train")
    return np.array(part)


def split_unit(probe: str, clip: ProbeClip) -> str:
    """What is never in two parts: the speaker, the syllable in all its tones, or the recording."""
    if probe == "words_an4" or (probe == "language" and clip.language == "en"):
        return clip.speaker
    return clip.text[:-1] if probe.startswith("tone") else clip.name


def _labels(probe: str, clips: Sequence[ProbeClip]) -> dict[str, np.ndarray]:
    """What a probe predicts, columns of `(clips,)` by name: bool for each frequent word, or the one label."""
    if probe.startswith("tone"):
        return {"tone": np.array([clip.text[-1] for clip in clips])}
    if probe != "words_an4":
        label = "language" if probe == "language" else "speaker"
        return {label: np.array([getattr(clip, label) for clip in clips])}
    texts = [set(clip.text.split()) for clip in clips]
    columns = {word: np.array([word in text for text in texts]) for word in sorted(set().union(*texts))}
    return {word: column for word, column in columns.items() if column.sum() >= MIN_WORD_CLIPS}


def _fit(
    probe: str, features: np.ndarray, clips: Sequence[ProbeClip], columns: dict[str, np.ndarray], part: np.ndarray
) -> Outcome:
    """Test one classifier per column, all with the penalty that is best for their mean in validation."""
    lengths = np.array([len(clip.samples) for clip in clips])

    def answers(inverse_penalty: float, fitted: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for name, column in columns.items():
            classifier = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=MAX_ITERATIONS)
            pipeline = make_pipeline(StandardScaler(), classifier)
            with warnings.catch_warnings():  # speakers are many and are classes all the same
                warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")
                pipeline.fit(features[fitted], column[fitted])
            answer = pipeline.decision_function if probe == "words_an4" else pipeline.predict
            found[name] = answer(features[asked])
        return found

    def outcome(inverse_penalty: float, fitted: np.ndarray, asked: np.ndarray) -> Outcome:
        labels = {name: column[asked] for name, column in columns.items()}
        units = np.array([split_unit(probe, clip) for clip in clips])[asked]
        return Outcome(probe, labels, answers(inverse_penalty, fitted, asked), lengths[asked], units)

    train, validation, test = (part == name for name in PARTS)
    figures = [outcome(penalty, train, validation).figure() for penalty in INVERSE_PENALTIES]
    return outcome(INVERSE_PENALTIES[int(np.argmax(figures))], train | validation, test)


def score(probe: str, labels: np.ndarray, answers: np.ndarray, lengths: np.ndarray) -> float:
    """How good the answers of one classifier are, each `(clips,)`: the measure that the probe has, in [0, 1]."""
    if probe == "words_an4":
        return matched_area(answers, labels, lengths)
    right = labels == answers
    if probe.startswith("speaker"):
        return float(right.mean())
    return float(np.mean([right[labels == one].mean() for one in np.unique(labels)]))  # balanced accuracy


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
        encoders = frozen_by_name(
            JepaDaamEncoderModel, checkpoint or [], untrained or []
        )  # first: a wrong name shall cost no time
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
    probes = list(next(iter(figures.values())))
    rows = [[name, *(f"{row[probe]:.3f}" for probe in probes)] for name, row in figures.items()]
    typer.echo(markdown_table(["features", *probes], rows))


if __name__ == "__main__":
    typer.run(command)
