"""The configuration of every jepa-daam model: one flat class, nothing derivable stored."""

import functools
import hashlib
import json
import math
import os
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.utils import CONFIG_NAME

from .files import read_json_object, weights_beside
from .packing import group_levels, group_vocabulary_sizes, repeat_levels

if TYPE_CHECKING:
    # The Hub saves the files that it finds imported here: any one class carries the code of all of them.
    from .feature_extraction_jepa_daam import JepaDaamFeatureExtractor  # noqa: F401
    from .modeling_jepa_daam import JepaDaamModel  # noqa: F401
    from .pretraining_jepa_daam import JepaDaamForPreTraining  # noqa: F401
    from .tokenization_jepa_daam import JepaAudioTokenizer  # noqa: F401

AUTO_MAP = {
    "AutoConfig": "configuration_jepa_daam.JepaDaamConfig",
    "AutoModel": "modeling_jepa_daam.JepaDaamModel",
    "AutoModelForAudioTokenization": "modeling_jepa_daam.JepaDaamModel",
    "AutoModelForPreTraining": "pretraining_jepa_daam.JepaDaamForPreTraining",
    "AutoFeatureExtractor": "feature_extraction_jepa_daam.JepaDaamFeatureExtractor",
}

IntSequence = list[int] | tuple[int, ...]
Number = float | int
MAX_SIZE = 1_000_000  # of any count or width; one more digit is a slip, and would fill the memory
MAX_LAYERS = 1000  # of any kind: each is an object in memory, also where its weights are not
MAX_CHUNK_S = 15.0  # what the encoder sees at once in training


class JepaDaamConfigError(StrictDataclassError, ValueError):
    """A configuration that cannot be: names the field, what came and what was expected."""


def _as_value_error(function):
    """Report `@strict`'s own exceptions as `ValueError` too."""

    @functools.wraps(function)
    def wrapper(self, *args, **kwargs):
        try:
            return function(self, *args, **kwargs)
        except StrictDataclassError as error:
            raise JepaDaamConfigError(str(error)) from error

    return wrapper


def _tuples(value: Any) -> Any:
    """Lists, as JSON has them, to tuples, at every depth."""
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


@strict
class JepaDaamConfig(PreTrainedConfig):
    """Configuration of the JEPA encoder, the quantizer, the packing and the decoder.

    The defaults are the paper's model (118.5M encoder, 69.3M decoder). Lists with one entry a stage run in signal
    order: the encoder's from 24 kHz down to 2.5 Hz, the decoder's from 2.5 Hz up to 24 kHz.

    Args:
        sampling_rate: Samples a second (Hz) of the model's audio.
        downsampling_ratios: Stride of each encoder stage; the decoder takes them in reverse. Each at least 2.
        encoder_channels: Channels after the input convolution and after each encoder stage.
        encoder_residual_blocks: Residual blocks of each encoder stage.
        encoder_kernel_sizes: Kernel size of each encoder stage's residual blocks, odd.
        encoder_stft_stages: First encoder stages that one STFT replaces; the other encoder lists are shorter by as
            many entries.
        residual_dilations: Dilation of each pair of convolutions in a residual block, encoder and decoder.
        hidden_size: Dimension of the latents, of the Conformer and of the quantizer.
        num_hidden_layers: Conformer blocks.
        num_attention_heads: Attention heads of a Conformer block.
        intermediate_size: Width of a Conformer feed-forward layer.
        conv_kernel_size: Kernel size (frames) of the Conformer's depthwise convolution, odd.
        hidden_dropout: Dropout probability of the Conformer's layers, in training.
        attention_dropout: Dropout probability of attention weights, in training.
        layer_norm_eps: Epsilon of the layer norms.
        daam_num_gaussians: K of eq. 6, in every gate.
        daam_alpha: Initial modulation strength of eq. 9.
        daam_in_encoder: A gate after each encoder stage (the paper).
        daam_in_conformer: A gate after each Conformer block.
        daam_in_decoder: A gate after each decoder stage. Its statistics span what is decoded at once, so long
            audio decoded in pieces differs slightly from audio decoded whole.
        predictor_hidden_size: Width of the Stage 1 predictor.
        predictor_num_hidden_layers: Conformer blocks of the predictor.
        predictor_num_attention_heads: Attention heads of the predictor.
        predictor_intermediate_size: Width of a feed-forward layer of the predictor.
        mask_position: Where Stage 1 hides frames: `"waveform"` (visible frames know nothing of hidden ones),
            `"before_conformer"` (they have not attended to them) or `"after_encoder"` (the paper; they have).
            Deviation: the default is the one whose features were best in linear probes (`training/RESULTS.md`).
        mask_ratio: Share of valid frames that Stage 1 hides (rho of section 2.1).
        mask_min_span: Shortest hidden span, in frames.
        mask_max_span: Longest hidden span as a share of the recording's frames (never below 4 frames).
        ema_decay: tau of eq. 11.
        fsq_levels: Number of values of each latent dimension; repeated until it covers `hidden_size` dimensions.
        fsq_temperature: T in z' = tanh(z / T).
        normalize_latents: Bring each latent dimension to mean 0 and variance 1 before tanh.
        group_size: Latent dimensions packed into one token (G of eq. 16).
        decoder_channels: Channels after the decoder's input convolution and after each decoder stage.
        decoder_kernel_sizes: Kernel sizes of the residual blocks that each decoder stage averages, odd.
        decoder_istft_stages: Last decoder stages that one inverse STFT replaces; the other decoder lists are
            shorter by as many entries.
        decoder_istft_spectra: Spectra of that inverse STFT for each of the features it reads, of windows shorter by as
            much. More than one needs `harmonic_source`, and has to divide the hop of a feature.
        transform_bands: Mel bands of the linear transform beside encoder and decoder (`transform_path.py`); 0 for none.
            It needs `encoder_stft_stages`, whose spectra it reads, and the decoder has to reach their rate.
        harmonic_source: Whether the transform also carries a voice's pitch, and the decoder shapes its harmonics, and
            noise, instead of predicting phases (`pitch.py`, `source_filter_head.py`). It needs `transform_bands`, and
            an inverse STFT at the rate of the encoder's spectra.
        feature_bands: Mel bands of the spectral features that a causal encoder reads and a vocoder speaks; 0 for the
            paper's waveform encoder. It needs `encoder_stft_stages`, whose rate the features have.
        quantized_size: Latent dimensions that are quantized; `hidden_size` if `None`. Another number needs
            `feature_bands`.
        fsq_gradient: What a gradient through the quantizer meets: `"identity"` (eq. 15) or `"tanh"`, the derivative
            of the bound of eq. 12 too, so latents that are out of reach are not pushed further.
        attention_window: Frames that a causal encoder's attention sees, the current one included.
        daam_window: Frames that the statistics of a causal encoder's gates run over.
        decoder_num_hidden_layers: Conformer blocks of a causal decoder.
        decoder_attention_window: Frames that a causal decoder's attention sees, the current one included.
        decoder_conv_kernel_size: Kernel size (frames) of the depthwise convolutions of a causal decoder.
        decoder_lookahead_frames: Later frames that a causal decoder reads to decode a frame.
        decoder_num_blocks: Convolutional blocks of a vocoder's network at the features' rate, of `decoder_channels[0]`.
        chunk_frames: Frames that the encoder sees at once; longer audio is cut into such chunks, each on its own.
        untrained_seed: Seed that the weights were drawn from, if they were never trained.
        weights_sha256: SHA-256 of the checkpoint's `model.safetensors`, which loading verifies; for shards and variants
            a mapping of file names to digests. Every save writes that of the weights in the same folder.

    Raises:
        ValueError: If a key is unknown, a value has the wrong type or range, or fields contradict each other.
    """

    model_type = "jepa_daam"
    _auto_class: ClassVar[str | None] = "AutoConfig"

    sampling_rate: int = 24000
    downsampling_ratios: IntSequence = (8, 8, 5, 5, 6)
    encoder_channels: IntSequence = (64, 128, 256, 384, 512, 512)
    encoder_residual_blocks: IntSequence = (8, 8, 8, 8, 8)
    encoder_kernel_sizes: IntSequence = (3, 3, 3, 3, 3)
    encoder_stft_stages: int = 0
    residual_dilations: IntSequence = (1, 3, 5)
    hidden_size: int = 128
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    intermediate_size: int = 512
    conv_kernel_size: int = 31
    hidden_dropout: Number = 0.1
    attention_dropout: Number = 0.1
    layer_norm_eps: Number = 1e-5
    daam_num_gaussians: int = 4
    daam_alpha: Number = 0.05
    daam_in_encoder: bool = True
    daam_in_conformer: bool = False
    daam_in_decoder: bool = False
    predictor_hidden_size: int = 256
    predictor_num_hidden_layers: int = 2
    predictor_num_attention_heads: int = 16
    predictor_intermediate_size: int = 1024
    mask_position: Literal["after_encoder", "before_conformer", "waveform"] = "waveform"
    mask_ratio: Number = 0.5
    mask_min_span: int = 2
    mask_max_span: Number = 0.25
    ema_decay: Number = 0.996
    fsq_levels: IntSequence = (4, 4, 4, 4)
    fsq_temperature: Number = 1.0
    normalize_latents: bool = True
    group_size: int = 7
    decoder_channels: IntSequence = (512, 512, 384, 256, 128, 64)
    decoder_kernel_sizes: list[list[int]] | tuple[tuple[int, ...], ...] = ((3, 7, 11),) * 5
    decoder_istft_stages: int = 0
    decoder_istft_spectra: int = 1
    transform_bands: int = 0
    harmonic_source: bool = False
    feature_bands: int = 0
    quantized_size: int | None = None
    fsq_gradient: Literal["identity", "tanh"] = "identity"
    attention_window: int = 32
    daam_window: int = 20
    decoder_num_hidden_layers: int = 0
    decoder_attention_window: int = 16
    decoder_conv_kernel_size: int = 7
    decoder_lookahead_frames: int = 0
    decoder_num_blocks: int = 4
    chunk_frames: int = 30
    untrained_seed: int | None = None
    weights_sha256: str | dict[str, str] | None = None

    def __post_init__(self, **kwargs):
        unknown = set(kwargs) - _INHERITED_KEYS
        if unknown:
            names = ", ".join(f"`{name}`" for name in sorted(unknown))
            raise JepaDaamConfigError(f"unknown configuration keys: {names}; see JepaDaamConfig for the known ones")
        for name, annotation in JepaDaamConfig.__annotations__.items():
            value = getattr(self, name)
            if isinstance(value, list):
                setattr(self, name, _tuples(value))
            elif annotation is Number:
                setattr(self, name, float(value))
        super().__post_init__(**kwargs)

    # Derived values

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return math.prod(self.downsampling_ratios)

    @property
    def upsampling_ratios(self) -> tuple[int, ...]:
        """Stride of each decoder stage."""
        return tuple(reversed(self.downsampling_ratios))

    @property
    def frame_rate(self) -> float:
        """Frames a second (Hz)."""
        return self.sampling_rate / self.hop_length

    @property
    def levels(self) -> tuple[int, ...]:
        """Number of values of each quantized latent dimension."""
        return repeat_levels(self.fsq_levels, self.quantized_size or self.hidden_size)

    @property
    def feature_rows(self) -> int:
        """Rows of the spectral features: mel bands, pitch and voicing."""
        return self.feature_bands + 2

    @property
    def patch_size(self) -> int:
        """Feature vectors a frame."""
        return math.prod(self.downsampling_ratios[self.encoder_stft_stages :])

    @property
    def tokens_per_frame(self) -> int:
        """Packed tokens a frame."""
        return len(group_levels(self.levels, self.group_size))

    @property
    def vocab_size(self) -> int:
        """Number of packed token ids: the largest group's number of values."""
        return max(group_vocabulary_sizes(self.levels, self.group_size))

    @property
    def token_rate(self) -> float:
        """Tokens a second."""
        return self.frame_rate * self.tokens_per_frame

    @property
    def bitrate_bps(self) -> float:
        """Information a second, in bits: what the quantizer's values hold, not the tokens' slots."""
        return self.frame_rate * sum(math.log2(level) for level in self.levels)

    @property
    def num_encoder_gates(self) -> int:
        """DAAM gates of the encoder: one a convolutional stage, one a Conformer block, where they have any."""
        stages = len(self.downsampling_ratios) - self.encoder_stft_stages
        return stages * self.daam_in_encoder + self.num_hidden_layers * self.daam_in_conformer

    @property
    def transform_rows(self) -> int:
        """Rows of a patch that is transformed: mel bands and, with `harmonic_source`, pitch and voicing."""
        return self.transform_bands + 2 * self.harmonic_source

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ when the architecture, the quantizer or the packing differs."""
        shape = {name: getattr(self, name) for name in _DIGEST_KEYS} | {"fsq_levels": self.levels}
        if self.transform_bands == 0:  # as it was before there was any
            del shape["transform_bands"]
        if not self.harmonic_source:
            del shape["harmonic_source"]
        if self.feature_bands == 0:
            shape = {name: value for name, value in shape.items() if name not in _FEATURE_KEYS}
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]

    # Checks

    def validate_architecture(self):
        """Ranges first: the later checks divide by what they find."""
        self._check_ranges()
        self._check_features()
        self._check_stages()
        self._check_attention()
        self._check_packing()

    def _check_ranges(self):
        for name, low in _AT_LEAST.items():
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if not values:
                raise ValueError(f"`{name}` must not be empty")
            if any(item < low for item in values):
                raise ValueError(f"`{name}` must be at least {low}, got {value}")
            limit = MAX_LAYERS if name.endswith(("_layers", "_blocks", "_stages")) else MAX_SIZE
            if len(values) > MAX_LAYERS or any(item > limit for item in values):
                raise ValueError(f"`{name}` must be at most {limit}, of {MAX_LAYERS} entries, got {str(value)[:80]}")
        for name in ("hidden_dropout", "attention_dropout", "mask_ratio", "mask_max_span", "ema_decay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must lie in [0, 1], got {getattr(self, name)}")
        for name in ("fsq_temperature", "layer_norm_eps"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be positive and finite, got {getattr(self, name)}")
        named = self.weights_sha256
        for digest in named.values() if isinstance(named, dict) else () if named is None else (named,):
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"`weights_sha256` must be 64 hexadecimal digits, got {digest!r}")
        if not math.isfinite(self.daam_alpha):
            raise ValueError(f"`daam_alpha` must be finite, got {self.daam_alpha}")
        if self.chunk_frames > MAX_CHUNK_S * self.frame_rate:
            raise ValueError(
                f"`chunk_frames` must last at most {MAX_CHUNK_S:g} s, got {self.chunk_frames} of the {self.hop_length} "
                f"samples that `downsampling_ratios` make: {self.chunk_frames / self.frame_rate:g} s"
            )

    def _check_stages(self):
        # One entry a stage in every list, one more in the channels; odd kernels, which alone keep the length.
        stages = len(self.downsampling_ratios)
        for name in ("encoder_stft_stages", "decoder_istft_stages"):
            if getattr(self, name) > stages:
                raise ValueError(
                    f"`{name}` must be at most the number of `downsampling_ratios`, {stages}, got {getattr(self, name)}"
                )
        convolved, upsampled = stages - self.encoder_stft_stages, stages - self.decoder_istft_stages
        entries = {
            "encoder_residual_blocks": convolved,
            "encoder_kernel_sizes": convolved,
            "encoder_channels": convolved + 1,
            "decoder_kernel_sizes": upsampled,
            "decoder_channels": upsampled + 1,
        }
        for name, wanted in entries.items():
            if len(getattr(self, name)) != wanted:
                transformed, transform = (
                    (self.encoder_stft_stages, "an STFT")
                    if name.startswith("encoder")
                    else (self.decoder_istft_stages, "an inverse STFT")
                )
                less = f", {transformed} of them {transform}" if transformed > 0 else ""
                one_more = "one more than" if name.endswith("channels") else "as many as"
                raise ValueError(
                    f"`{name}` must have {wanted} entries, {one_more} the {stages} `downsampling_ratios`{less}, "
                    f"got {len(getattr(self, name))}"
                )
        kernels = [*self.encoder_kernel_sizes, *(k for stage in self.decoder_kernel_sizes for k in stage)]
        if any(kernel < 1 or kernel % 2 == 0 for kernel in [*kernels, self.conv_kernel_size]):
            raise ValueError(
                "`encoder_kernel_sizes`, `decoder_kernel_sizes` and `conv_kernel_size` must be odd and positive, got "
                f"{self.encoder_kernel_sizes}, {self.decoder_kernel_sizes} and {self.conv_kernel_size}"
            )
        if any(kernel > MAX_SIZE for kernel in kernels):
            raise ValueError(
                f"`decoder_kernel_sizes` must be at most {MAX_SIZE}, got {str(self.decoder_kernel_sizes)[:80]}"
            )
        if any(not stage for stage in self.decoder_kernel_sizes):
            raise ValueError(
                f"`decoder_kernel_sizes` must name a kernel for each stage, got {self.decoder_kernel_sizes}"
            )

        if self.transform_bands > 0 and self.encoder_stft_stages < max(1, self.decoder_istft_stages):
            raise ValueError(
                "`transform_bands` needs `encoder_stft_stages` of at least 1 and at least `decoder_istft_stages`, "
                f"got {self.encoder_stft_stages} and {self.decoder_istft_stages}"
            )
        if self.harmonic_source and not (
            self.transform_bands > 0 and self.encoder_stft_stages == self.decoder_istft_stages
        ):
            raise ValueError(
                "`harmonic_source` needs `transform_bands` above 0 and `decoder_istft_stages` equal to "
                f"`encoder_stft_stages`, got {self.transform_bands}, {self.decoder_istft_stages} and "
                f"{self.encoder_stft_stages}"
            )
        if self.harmonic_source and self.decoder_channels[-1] < self.transform_rows:
            raise ValueError(
                "`harmonic_source` needs a last entry of `decoder_channels` of at least `transform_bands` + 2 = "
                f"{self.transform_rows}, for pitch and voicing, got {self.decoder_channels[-1]}"
            )
        if self.decoder_istft_spectra > 1:
            if not self.harmonic_source and self.feature_bands == 0:
                raise ValueError(
                    f"`decoder_istft_spectra` above 1 needs `harmonic_source`, got {self.decoder_istft_spectra}"
                )
            stages = self.encoder_stft_stages if self.feature_bands > 0 else self.decoder_istft_stages
            hop_length = math.prod(self.downsampling_ratios[:stages])
            if hop_length % self.decoder_istft_spectra != 0:
                raise ValueError(
                    f"`decoder_istft_spectra` must divide the {hop_length} samples of a feature, "
                    f"got {self.decoder_istft_spectra}"
                )

    def _check_features(self):
        # A causal codec of spectral features, or none of its settings.
        if self.feature_bands == 0:
            if self.quantized_size not in (None, self.hidden_size):
                raise ValueError(
                    f"`quantized_size` other than `hidden_size` = {self.hidden_size} needs `feature_bands`, "
                    f"got {self.quantized_size}"
                )
            return
        if self.transform_bands > 0:
            raise ValueError(f"`transform_bands` and `feature_bands` exclude each other, got {self.transform_bands}")
        if not 0 < self.encoder_stft_stages < len(self.downsampling_ratios):
            raise ValueError(
                f"`feature_bands` needs `encoder_stft_stages` between 1 and {len(self.downsampling_ratios) - 1}, "
                f"got {self.encoder_stft_stages}"
            )
        if self.decoder_istft_stages != len(self.downsampling_ratios):
            raise ValueError(
                f"`feature_bands` needs `decoder_istft_stages` = {len(self.downsampling_ratios)}, one for each of "
                f"`downsampling_ratios`, got {self.decoder_istft_stages}"
            )
        if self.encoder_channels[0] != self.feature_rows:
            raise ValueError(
                f"`encoder_channels` must begin with `feature_bands` + 2 = {self.feature_rows}, for pitch and voicing, "
                f"got {self.encoder_channels[0]}"
            )
        if self.quantized_size is not None and not 1 <= self.quantized_size <= self.hidden_size:
            raise ValueError(
                f"`quantized_size` must lie in [1, hidden_size = {self.hidden_size}], got {self.quantized_size}"
            )
        if self.normalize_latents:
            raise ValueError(
                "`normalize_latents` must be false with `feature_bands`: nothing of it has running statistics"
            )

    def _check_attention(self):
        for width, heads in (
            ("hidden_size", "num_attention_heads"),
            ("predictor_hidden_size", "predictor_num_attention_heads"),
        ):
            if getattr(self, width) % getattr(self, heads) != 0:
                raise ValueError(
                    f"`{width}` must be a multiple of `{heads}`, got {getattr(self, width)} and {getattr(self, heads)}"
                )

    def _check_packing(self):
        bits = max(sum(map(math.log2, group)) for group in group_levels(self.levels, self.group_size))
        if bits > 64 or self.vocab_size >= 2**63:  # the exact number only where it is not astronomical
            raise ValueError(
                f"`group_size` must be small enough for 64-bit token ids: {self.group_size} dimensions of "
                f"`fsq_levels` {str(self.fsq_levels)[:80]} hold 2 to the power of {bits:.1f} values"
            )

    def to_dict(self) -> dict[str, Any]:
        """As inherited, less what tools hang on a configuration (`Trainer` sets `use_cache`): what is saved loads."""
        known = {field.name for field in fields(self)} | _INHERITED_KEYS
        return {name: value for name, value in super().to_dict().items() if name in known}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        """As inherited, but a place without the configuration of a jepa-daam model has no defaults.

        Raises:
            OSError: If there is no `config.json`.
            ValueError: If it is damaged, or that of another kind of model.
        """
        path = os.path.join(pretrained_model_name_or_path, kwargs.get("subfolder") or "", CONFIG_NAME)
        if os.path.isfile(path):
            read_json_object(path)
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if not values:
            raise OSError(f"no config.json in {pretrained_model_name_or_path}")
        if values.get("model_type", cls.model_type) != cls.model_type:
            raise ValueError(
                f"config.json of {pretrained_model_name_or_path} is of a {values['model_type']} model, "
                f"not of a {cls.model_type} model"
            )
        return values, kwargs

    def save_pretrained(self, save_directory, push_to_hub: bool = False, **kwargs):
        """Save, naming every auto class, so that all of them load from the one folder, and the weights beside it."""
        self.auto_map = dict(AUTO_MAP)
        named, self.weights_sha256 = self.weights_sha256, weights_beside(save_directory)
        try:
            super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.weights_sha256 = named


_AT_LEAST = {
    "sampling_rate": 1,
    "downsampling_ratios": 2,
    "encoder_channels": 1,
    "encoder_residual_blocks": 0,
    "encoder_kernel_sizes": 1,
    "encoder_stft_stages": 0,
    "residual_dilations": 1,
    "hidden_size": 1,
    "num_hidden_layers": 0,
    "num_attention_heads": 1,
    "intermediate_size": 1,
    "conv_kernel_size": 1,
    "daam_num_gaussians": 1,
    "predictor_hidden_size": 1,
    "predictor_num_hidden_layers": 0,
    "predictor_num_attention_heads": 1,
    "predictor_intermediate_size": 1,
    "mask_min_span": 1,
    "fsq_levels": 2,
    "group_size": 1,
    "decoder_channels": 1,
    "decoder_istft_stages": 0,
    "decoder_istft_spectra": 1,
    "transform_bands": 0,
    "feature_bands": 0,
    "attention_window": 1,
    "daam_window": 1,
    "decoder_num_hidden_layers": 0,
    "decoder_attention_window": 1,
    "decoder_conv_kernel_size": 1,
    "decoder_lookahead_frames": 0,
    "decoder_num_blocks": 0,
    "chunk_frames": 1,
}

# What a token means depends on these: training settings and dropout are left out, and so is how finely the last layer
# of a decoder speaks, which two decoders of the same tokens may differ in.
_DIGEST_KEYS = {
    name
    for name in JepaDaamConfig.__annotations__
    if not name.startswith(("predictor_", "mask_"))
    and "dropout" not in name
    and name not in ("ema_decay", "daam_alpha", "untrained_seed", "weights_sha256", "model_type", "_auto_class")
    and name != "decoder_istft_spectra"
}

# Of a causal codec of spectral features alone: other digests are as they were before there was any.
_FEATURE_KEYS = {
    "feature_bands", "quantized_size", "fsq_gradient", "attention_window", "daam_window", "decoder_num_hidden_layers",
    "decoder_attention_window", "decoder_conv_kernel_size", "decoder_lookahead_frames",
    "decoder_num_blocks",
}  # fmt: skip

# Keys that transformers itself writes into or passes along with a configuration.
_INHERITED_KEYS = {
    "_attn_implementation", "_name_or_path", "attn_implementation", "auto_map", "model_type", "name_or_path",
    "num_labels", "output_attentions", "tie_word_embeddings", "torch_dtype", "transformers_weights",
    "quantization_config", "_commit_hash", "_experts_implementation", "experts_implementation",
}  # fmt: skip

JepaDaamConfig.__init__ = _as_value_error(JepaDaamConfig.__init__)  # type: ignore[method-assign]
JepaDaamConfig.validate = _as_value_error(JepaDaamConfig.validate)  # type: ignore[attr-defined]
JepaDaamConfig.__setattr__ = _as_value_error(JepaDaamConfig.__setattr__)  # type: ignore[method-assign]
