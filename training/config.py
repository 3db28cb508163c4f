"""The configuration of a training run: YAML files of base and deltas, overrides, and checks of every key."""

import dataclasses
import importlib.util
import os
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import yaml

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.configuration_jepa_daam import MAX_CHUNK_S
from modeling_jepa_daam.files import replacing

SCIENTIFIC = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
MIN_EVALUATED_S = 0.1  # shorter clips have no quality figures
BASE_KEY = "base"  # of a YAML file: the file that it changes


@dataclass(frozen=True)
class DataConfig:
    """Which recordings to train on, and how they become batches."""

    sources: tuple[str, ...] = ()  # files: tar files and folders; manifest: JSONL files; dataset: one Hub id or folder
    format: Literal["files", "manifest", "dataset"] = "files"
    split: str = "train"  # of a dataset
    name: str | None = None  # configuration of a dataset
    speaker_column: str | None = None  # of a dataset; a recording without speaker is its own
    where: dict[str, Any] = field(default_factory=dict)  # metadata that a recording must have, as {"language": "en"}
    held_out_share: float = 0.01  # of the speakers, for validation
    segment_s: float = 15.0  # longest segment, seconds
    min_segment_s: float = 0.8  # shorter recordings are left out, seconds; two frames at 2.5 Hz
    batch_size: int = 32  # segments of a batch, per process, at most
    recordings_per_round: int = 256  # recordings whose segments are shuffled together
    bucket_batches: int = 8  # batches that are cut from segments sorted by length; 1 to leave them unsorted
    num_workers: int = 2  # processes that load data, per training process; 0 to load in the training process
    max_unreadable_share: float = 0.01  # of the recordings (of 100, if they are fewer); more end the run


@dataclass(frozen=True)
class ModelSection:
    """The model: a folder with a `config.json`, and what to change in it."""

    config: str = "hub_configs/jepa-daam-24khz"
    overrides: dict[str, Any] = field(default_factory=dict)  # any field of JepaDaamConfig, as {"daam_alpha": 0.1}
    weights: str | None = None  # checkpoint folder or Hub id to start from; drawn from the seed if null


@dataclass(frozen=True)
class OptimConfig:
    """AdamW as in section 2.5.2 of the paper."""

    learning_rate: float = 1.5e-4
    betas: tuple[float, float] = (0.8, 0.99)
    weight_decay: float = 1e-3
    warmup_steps: int = 0  # steps over which the learning rate rises linearly
    decay_steps: int = 0  # last steps of the run, over which it falls linearly to 0
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm
    accumulation_steps: int = 1  # batches of one step, per process


@dataclass(frozen=True)
class RunConfig:
    """How long, where to, and how often to look."""

    output: str = "runs/pretrain"  # folder of checkpoints, logs and the trained model
    seed: int = 0
    max_steps: int = 24_000  # optimizer steps
    log_every: int = 50  # steps
    eval_every: int = 1000  # steps
    save_every: int = 500  # steps
    keep_checkpoints: int = 3
    tracker: Literal["tensorboard", "wandb", "none"] = "tensorboard"
    progress: bool = True  # a live line on the terminal


@dataclass(frozen=True)
class PretrainRunConfig(RunConfig):
    """Stage 1."""

    eval_batches: int = 16  # of held-out speakers, per process, at most


@dataclass(frozen=True)
class CodecRunConfig(RunConfig):
    """Stage 2."""

    output: str = "runs/codec"
    max_steps: int = 29_000
    eval_clips: int = 16  # of held-out speakers, that are reconstructed, always the same; 0 for no evaluation
    eval_clip_s: float = 10.0  # longest of them, seconds: longer recordings are cut
    logged_clips: int = 4  # of these: written as sound and picture


@dataclass(frozen=True)
class TrainingConfig:
    """What both stages need."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelSection = field(default_factory=ModelSection)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)

    AT_LEAST: ClassVar[dict[str, int]] = {
        "data.batch_size": 1, "data.recordings_per_round": 1, "data.bucket_batches": 1, "data.num_workers": 0,
        "optim.warmup_steps": 0, "optim.decay_steps": 0, "optim.accumulation_steps": 1, "run.seed": 0,
        "run.max_steps": 1, "run.log_every": 1, "run.eval_every": 1, "run.save_every": 1, "run.keep_checkpoints": 1,
    }  # fmt: skip
    SHARES: ClassVar[tuple[str, ...]] = ("data.held_out_share", "data.max_unreadable_share")  # in [0, 1)
    POSITIVE: ClassVar[tuple[str, ...]] = ("data.segment_s", "optim.learning_rate", "optim.max_grad_norm")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = ("optim.weight_decay",)

    def __post_init__(self):
        """Check ranges.

        Raises:
            ValueError: If a value lies outside its range; names the key.
        """
        for key, low in self.AT_LEAST.items():
            if self._value(key) < low:
                raise ValueError(f"`{key}` must be at least {low}, got {self._value(key)}")
        for key in self.SHARES:
            if not 0.0 <= self._value(key) < 1.0:
                raise ValueError(f"`{key}` must lie in [0, 1), got {self._value(key)}")
        for key in self.POSITIVE:
            if not 0.0 < self._value(key) < float("inf"):
                raise ValueError(f"`{key}` must be positive and finite, got {self._value(key)}")
        for key in self.NOT_NEGATIVE:
            if not 0.0 <= self._value(key) < float("inf"):
                raise ValueError(f"`{key}` must be at least 0 and finite, got {self._value(key)}")
        if not all(0.0 <= beta < 1.0 for beta in self.optim.betas):
            raise ValueError(f"`optim.betas` must lie in [0, 1), got {self.optim.betas}")
        if self.data.segment_s > MAX_CHUNK_S:
            raise ValueError(f"`data.segment_s` must be at most {MAX_CHUNK_S:g}, got {self.data.segment_s}")
        if not 0.0 < self.data.min_segment_s <= self.data.segment_s / 2:
            raise ValueError(
                f"`data.min_segment_s` must be positive and at most half of `data.segment_s`, "
                f"got {self.data.min_segment_s} and {self.data.segment_s}"
            )
        if self.run.tracker != "none" and importlib.util.find_spec(self.run.tracker) is None:
            raise ValueError(f"`run.tracker` is {self.run.tracker!r}, which is not installed")
        self._check_sources()

    def _check_sources(self) -> None:
        if not self.data.sources:
            raise ValueError("`data.sources` is empty: name tar files, folders, a manifest or a dataset")
        if self.data.format == "dataset" and len(self.data.sources) != 1:
            raise ValueError(f"`data.sources` must name one dataset, got {list(self.data.sources)}")

    def _value(self, key: str) -> Any:
        section, name = key.split(".")
        return getattr(getattr(self, section), name)

    def model_config(self) -> JepaDaamConfig:
        """The model's configuration.

        Raises:
            ValueError: If `model.config` is no folder with a configuration, or `model.overrides` do not fit it.
        """
        source = Path(self.model.config)
        if not (source / "config.json").is_file():
            raise ValueError(f"`model.config` must be a folder with a config.json, got {self.model.config!r}")
        here = {"untrained_seed": None, "weights_sha256": None}  # of weights that are not loaded
        values = JepaDaamConfig.from_pretrained(source).to_dict() | here | self.model.overrides
        return JepaDaamConfig(**values)


@dataclass(frozen=True)
class PretrainConfig(TrainingConfig):
    """Stage 1. The defaults are the paper's."""

    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)

    AT_LEAST: ClassVar[dict[str, int]] = {**TrainingConfig.AT_LEAST, "run.eval_batches": 0}

    def model_config(self) -> JepaDaamConfig:
        """The model's configuration.

        Raises:
            ValueError: As inherited, or if nothing would be hidden.
        """
        config = super().model_config()
        if config.mask_ratio == 0.0:
            raise ValueError("`mask_ratio` must be above 0 to train: nothing would be hidden")
        return config


@dataclass(frozen=True)
class FeatureDataConfig(DataConfig):
    """Cached spectral features, and their augmentation."""

    features: tuple[str, ...] = ()  # caches that training/extract_features.py wrote, without suffix
    held_out_share: float = 0.05  # of the speakers, for validation
    window_frames: int = 40  # of a training window
    batch_size: int = 20  # windows of a batch
    gain_db: tuple[float, float] = (-34.0, 3.0)  # range of each window's gain; cached recordings peak at 0.7
    equalizer_db: float = 4.6  # standard deviation of each window's random equalizer


@dataclass(frozen=True)
class FeatureOptimConfig(OptimConfig):
    """AdamW of the networks on features."""

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.03
    warmup_steps: int = 200
    linear_rate_share: float = 0.1  # of the learning rate, for the linear paths
    average_decay: float = 0.999  # of the moving average of the weights


@dataclass(frozen=True)
class FeatureLossConfig:
    """Weight of each loss of Stage 2 on features; 0 leaves it out."""

    features: float = 1.0  # weighted squared error, as a share of the features' weighted variance


@dataclass(frozen=True)
class FeatureModelSection(ModelSection):
    """The model, and where its spectral features come from."""

    spectral_features: str | None = None  # checkpoint folder whose features the caches hold; its tracker is taken over


@dataclass(frozen=True)
class FeatureConfig(TrainingConfig):
    """Stage 2, first part: encoder, quantizer and decoder end to end on spectral features."""

    data: FeatureDataConfig = field(default_factory=FeatureDataConfig)
    model: FeatureModelSection = field(default_factory=FeatureModelSection)
    optim: FeatureOptimConfig = field(default_factory=FeatureOptimConfig)
    losses: FeatureLossConfig = field(default_factory=FeatureLossConfig)

    AT_LEAST: ClassVar[dict[str, int]] = TrainingConfig.AT_LEAST | {"data.window_frames": 2}
    SHARES: ClassVar[tuple[str, ...]] = (*TrainingConfig.SHARES, "optim.average_decay")
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.NOT_NEGATIVE, "data.equalizer_db", "optim.linear_rate_share", "losses.features"
    )  # fmt: skip

    def _check_sources(self) -> None:
        if not self.data.features:
            raise ValueError("`data.features` is empty: name caches of training/extract_features.py")


@dataclass(frozen=True)
class CodecDataConfig(DataConfig):
    """Recordings for Stage 2: of each segment the encoder hears all, and a window is decoded and judged."""

    batch_size: int = 8
    window_s: float | None = 3.2  # longest window, seconds, rounded to frames, at least one; null for all
    gain_above_bandwidth: float = 0.1  # weight of losses above a recording's own bandwidth: 0 to 1
    gain_db: tuple[float, float] = (0.0, 0.0)  # augmentation: range of each segment's gain
    speed: tuple[float, float] = (1.0, 1.0)  # augmentation: range of each batch's speed, pitch with it


@dataclass(frozen=True)
class CodecOptimConfig(OptimConfig):
    """Two AdamW as in section 3.4 of the paper: of encoder and decoder, and of the discriminators."""

    encoder_learning_rate: float | None = None  # as `learning_rate` if null
    freeze_encoder: bool = False  # train the decoder alone
    frames_rate_share: float = 0.1  # of the learning rate, for the decoder's networks that learned on features
    freeze_reading: bool = False  # leave the decoder's layers that read digits, of which fine ones are easily blurred
    freeze_transform: bool = False  # leave the linear transform and the borders of its digits as they were computed
    spectrogram_steps: int = 0  # first steps, in which the decoder's first stages learn spectrograms, no waveform
    discriminator_learning_rate: float = 0.75e-4
    discriminator_start: int = 5000  # steps before which discriminators rest, and adversarial losses are absent
    average_decay: float = 0.999  # of the moving average of the weights, which is what is evaluated and saved


@dataclass(frozen=True)
class LossConfig:
    """Weight of each loss of Stage 2; 0 leaves it out."""

    waveform: float = 1.0  # eq. 21
    stft: float = 2.0  # eq. 22: spectral convergence and log magnitude
    adversarial: float = 0.1  # eq. 25
    feature_matching: float = 0.1  # eq. 26
    mel: float = 0.0  # log-mel spectrograms of several resolutions; not in the paper
    semantic: float = 0.0  # features of `teacher`, while spectrograms are learned; not in the paper
    envelope: float = 0.0  # predicted beside waveforms, if it has a source of harmonics; not in the paper
    features: float = 0.0  # weighted squared error of decoded features, of a codec with `feature_bands`
    pitch: float = 0.25  # of the decoder, if it has a source of harmonics; not in the paper
    words: float = 0.0  # distance of features by `teacher`, of waveforms; not in the paper
    teacher: str | None = None  # Whisper model, folder or Hub id
    speaker: float = 0.0  # distance of embeddings by `speaker_encoder`, of waveforms; not in the paper
    speaker_encoder: str | None = None  # SpeechBrain's ECAPA-TDNN: file, folder or Hub id


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Multi-period and multi-scale discriminators; the defaults are HiFi-GAN's."""

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    num_scales: int = 3
    width: float = 1.0  # of every layer; smaller for small budgets


@dataclass(frozen=True)
class CodecConfig(TrainingConfig):
    """Stage 2. The defaults are the paper's but where `training/RESULTS.md` has a reason."""

    data: CodecDataConfig = field(default_factory=CodecDataConfig)
    optim: CodecOptimConfig = field(default_factory=CodecOptimConfig)
    losses: LossConfig = field(default_factory=LossConfig)
    discriminators: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    run: CodecRunConfig = field(default_factory=CodecRunConfig)

    AT_LEAST: ClassVar[dict[str, int]] = TrainingConfig.AT_LEAST | {
        "optim.spectrogram_steps": 0, "optim.discriminator_start": 0, "discriminators.num_scales": 0,
        "run.eval_clips": 0, "run.logged_clips": 0,
    }  # fmt: skip
    SHARES: ClassVar[tuple[str, ...]] = (*TrainingConfig.SHARES, "optim.average_decay")
    POSITIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.POSITIVE, "optim.discriminator_learning_rate", "optim.frames_rate_share",
        "discriminators.width", "run.eval_clip_s"
    )  # fmt: skip
    NOT_NEGATIVE: ClassVar[tuple[str, ...]] = (
        *TrainingConfig.NOT_NEGATIVE,
        *(f"losses.{item.name}" for item in dataclasses.fields(LossConfig) if item.type is float),
    )  # fmt: skip

    def __post_init__(self):
        """Check ranges.

        Raises:
            ValueError: If a value lies outside its range; names the key.
        """
        super().__post_init__()
        for key in ("optim.encoder_learning_rate", "data.window_s"):
            if self._value(key) is not None and not 0.0 < self._value(key) < float("inf"):
                raise ValueError(f"`{key}` must be positive and finite, or null, got {self._value(key)}")
        if not 0.0 <= self.data.gain_above_bandwidth <= 1.0:
            raise ValueError(f"`data.gain_above_bandwidth` must lie in [0, 1], got {self.data.gain_above_bandwidth}")
        for key, low, high in (("data.gain_db", -60.0, 60.0), ("data.speed", 0.5, 2.0)):
            lowest, highest = self._value(key)
            if not low <= lowest <= highest <= high:
                raise ValueError(f"`{key}` must be a range within [{low:g}, {high:g}], got {self._value(key)}")
        if (self.losses.semantic + self.losses.words > 0.0) != (self.losses.teacher is not None):
            raise ValueError("`losses.semantic` or `losses.words` above 0, and `losses.teacher`, need each other")
        if self.losses.semantic > 0.0 and self.optim.spectrogram_steps == 0:
            raise ValueError("`losses.semantic` needs `optim.spectrogram_steps`: features are predicted in these alone")
        if (self.losses.speaker > 0.0) != (self.losses.speaker_encoder is not None):
            raise ValueError("`losses.speaker` above 0 and `losses.speaker_encoder` need each other")
        if self.losses.waveform == self.losses.stft == self.losses.mel == 0.0:
            raise ValueError("`losses`: one of waveform, stft and mel must be above 0, or the decoder learns nothing")
        if self.data.min_segment_s < MIN_EVALUATED_S:
            raise ValueError(
                f"`data.min_segment_s` must be at least {MIN_EVALUATED_S}, or clips cannot be evaluated, "
                f"got {self.data.min_segment_s}"
            )
        if self.optim.freeze_encoder and self.model.weights is None:
            raise ValueError("`optim.freeze_encoder` needs `model.weights`: a random encoder would stay random")
        if self.optim.freeze_transform and self.model.weights is None:
            raise ValueError("`optim.freeze_transform` needs `model.weights`: a random transform would stay random")
        if self.optim.freeze_encoder and self.optim.encoder_learning_rate is not None:
            raise ValueError("`optim.freeze_encoder` and `optim.encoder_learning_rate` exclude each other")
        if not self.discriminators.periods and self.discriminators.num_scales == 0:
            raise ValueError("`discriminators` must have a period or a scale")
        if any(period < 1 for period in self.discriminators.periods):
            raise ValueError(f"`discriminators.periods` must be at least 1, got {self.discriminators.periods}")


Config = TypeVar("Config", bound=TrainingConfig)


def load_config(kind: type[Config], path: str | os.PathLike, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a run's configuration.

    Args:
        kind: Of which stage: `PretrainConfig` or `CodecConfig`.
        path: YAML file. Its key `base` may name another file, relative to it, whose values it changes.
        overrides: `section.key=value`, the value in YAML; `section.key.name=value` sets one entry of a mapping.

    Returns:
        The configuration, checked.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a key is unknown, or a value has the wrong type or range.
    """
    values = _read(Path(path))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"an override must look like section.key=value, got {override!r}")
        value = _parse(text, f"the value of {key!r}")
        for name in reversed(key.split(".")):
            value = {name: value}
        values = _merge(values, value)
    return _build(kind, values, "")


def save_config(config: TrainingConfig, path: str | os.PathLike) -> None:
    """Write the whole configuration, defaults and all, as YAML that `load_config` reads."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False))


def flatten(config: TrainingConfig) -> dict[str, str]:
    """Settings as `section.key: value`, for trackers."""
    return {key: str(value) for key, value in _flat(config).items()}


def differences(config: TrainingConfig, other: TrainingConfig, ignored: tuple[str, ...]) -> list[str]:
    """Say in which settings two configurations differ, as `section.key: one, other`, but for `ignored` ones.

    Args:
        config: One configuration.
        other: The other.
        ignored: Keys as `section.key`.
    """
    mine, its = _flat(config), _flat(other)
    return [f"{key}: {mine[key]!r}, {its[key]!r}" for key in mine if mine[key] != its[key] and key not in ignored]


def _flat(config: TrainingConfig) -> dict[str, Any]:
    sections = dataclasses.asdict(config).items()
    return {f"{section}.{key}": value for section, values in sections for key, value in values.items()}


def _read(path: Path, seen: tuple[Path, ...] = ()) -> dict:
    if path.resolve() in seen:
        raise ValueError(f"`{BASE_KEY}`: {path} is a base of itself")
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration: {path}")
    values = _parse(path.read_text(), str(path)) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold sections, got {type(values).__name__}")
    base = values.pop(BASE_KEY, None)
    return values if base is None else _merge(_read(path.parent / base, (*seen, path.resolve())), values)


def _parse(text: str, label: str) -> Any:
    try:
        return _numbers(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(f"{label} is not YAML: {error}") from error


def _numbers(value: Any) -> Any:
    """YAML 1.1 takes 1e-4 for a string."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if isinstance(value, str) and SCIENTIFIC.fullmatch(value) else value


def _merge(values: dict, changes: dict) -> dict:
    merged = dict(values)
    for key, change in changes.items():
        old = merged.get(key)
        if isinstance(old, dict) and (change is None or isinstance(change, dict)):
            change = _merge(old, change or {})  # an empty section changes nothing
        merged[key] = change
    return merged


def _build(cls: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"`{where}` must be a section, got {values!r}")
    hints = typing.get_type_hints(cls)
    known = {item.name: hints[item.name] for item in dataclasses.fields(cls)}
    unknown = [f"`{where}{'.' if where else ''}{key}`" for key in values if key not in known]
    if unknown:
        raise ValueError(f"unknown configuration keys: {', '.join(unknown)}; known here: {', '.join(known)}")
    return cls(**{key: _convert(known[key], value, f"{where}.{key}".lstrip(".")) for key, value in values.items()})


def _convert(kind: Any, value: Any, key: str) -> Any:
    """Bring a YAML value to a field's type, or say that it does not fit."""
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), {} if value is None else value, key)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise ValueError(f"`{key}` must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if origin in (typing.Union, types.UnionType):  # `X | None`
        return None if value is None else _convert(arguments[0], value, key)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) == len(value):
            return tuple(_convert(kind, item, key) for kind, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    expected = getattr(kind, "__name__", str(kind)) if origin is None else str(kind)
    if origin is tuple:
        expected = "list, as in [a, b]"
    raise ValueError(f"`{key}` must be of type {expected}, got {value!r}")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
