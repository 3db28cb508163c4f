"""The codec and the encoder as transformers models: checks, chunks, outputs. The maths lies in other files.

The way in is `encoder.py`, `quantizer.py`, `packing.py`; the way out is back through these and `decoder.py`.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import CONFIG_NAME, ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .audio import MAX_AMPLITUDE
from .causal import CausalMemory
from .configuration_jepa_daam import JepaDaamConfig
from .conformer import ConformerAttention, ConformerBlock
from .convolution import SnakeBeta
from .daam import DensityAdaptiveAttention, collecting_gates
from .decoder import HifiGanDecoder
from .encoder import JepaDaamEncoder
from .files import (
    check_json,
    check_readable,
    remove_replaced_weights,
    replacing,
    verify_weights,
    weight_files,
    weights_beside,
)
from .float64_copy import in_float64
from .framing import lengths_to_mask, mask_to_lengths, num_frames
from .packing import check_integers, check_tokens, pack_frames, unpack_frames
from .precision import NARROW, staying_wide, with_values, without_float16_autocast
from .quantizer import FiniteScalarQuantizer
from .source_filter_head import SourceFilterHead, white_noise
from .transform_path import AnalysisTransform
from .vocoder_decoder import VocoderDecoder
from .vocoder_encoder import FeatureEncoder, LatentProjection
from .vocoder_features import SpectralFeatures

# Chunks that are encoded at once, by type of device. On CPU each runs alone: see `JepaDaamModel.encode_waveforms`.
CHUNKS_PER_BATCH = {"cpu": 1}
MAX_CHUNKS_PER_BATCH = 32  # of other devices
BLOCK_FRAMES = 32  # that a causal encoder takes at once: more is more memory, and no faster

# Parts that stay float32 in a model of another type. Features of the encoder leave the range of float16; a step of the
# moving average is smaller than what bfloat16 resolves.
FLOAT32_PARTS = {"encoder": frozenset({torch.float16}), "target_encoder": NARROW}


# Arguments of `from_pretrained` that say where a checkpoint's files are.
_WHERE_FILES_ARE = ("cache_dir", "local_files_only", "token", "revision", "subfolder")


class EncodedBlock(NamedTuple):
    """Frames of a stream, encoded."""

    latents: Tensor
    """`(frames, dimensions)`, float32, before quantization."""
    gates: tuple[Tensor, ...]
    """Each DAAM gate in signal order, `(frames, positions)`, float32, on the CPU."""
    memory: CausalMemory
    """Past of the next block."""


@dataclass
class JepaDaamEncoderModelOutput(ModelOutput):
    """Features of the Stage 1 encoder.

    Args:
        last_hidden_state: `(batch, frames, hidden_size)`. At padded frames it means nothing.
        frame_mask: `(batch, frames)`, bool, true at valid frames.
        hidden_states: Input and output of every Conformer block, each `(batch, frames, hidden_size)`.
        attentions: Weights of every Conformer block, each `(batch, heads, frames, frames)` (eager attention only).
        daam_gates: Gate of every DAAM module in signal order, each `(batch, time)`, float32, at its own rate.
    """

    last_hidden_state: Tensor | None = None
    frame_mask: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    daam_gates: tuple[Tensor, ...] | None = None


@dataclass
class JepaDaamEncoderOutput(ModelOutput):
    """Tokens of a batch of recordings.

    Args:
        audio_codes: `(batch, tokens_per_frame, frames)`, int64, the packed tokens; zero at padded frames.
        audio_codes_mask: `(batch, frames)`, bool, true at valid frames.
        latents: `(batch, hidden_size, frames)`, before quantization; zero at padded frames.
    """

    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class JepaDaamDecoderOutput(ModelOutput):
    """Waveforms of a batch of token sequences.

    Args:
        audio_values: `(batch, 1, frames * hop_length)`, in [-1, 1]; zero at padded frames.
    """

    audio_values: Tensor | None = None


@dataclass
class JepaDaamOutput(ModelOutput):
    """Reconstruction of a batch of recordings.

    Args:
        audio_values: `(batch, 1, samples)`, as long as the input, in [-1, 1]; zero where the input was padding.
        audio_codes: `(batch, tokens_per_frame, frames)`, int64.
        audio_codes_mask: `(batch, frames)`, bool.
        latents: `(batch, hidden_size, frames)`, before quantization.
    """

    audio_values: Tensor | None = None
    audio_codes: Tensor | None = None
    audio_codes_mask: Tensor | None = None
    latents: Tensor | None = None


class JepaDaamPreTrainedModel(PreTrainedModel):
    """What the three models share: the configuration, initialisation, and checks of the waveform."""

    config: JepaDaamConfig
    config_class = JepaDaamConfig
    base_model_prefix = ""
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = False
    _no_split_modules = ["EncoderStage", "ConformerBlock", "DecoderStage"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _may_be_new: tuple[str, ...] = ()  # tensors that a checkpoint may lack: what only training needs
    _keep_in_fp32_modules = ["encoder"]  # see FLOAT32_PARTS
    _keep_in_fp32_modules_strict = ["daam", "target_encoder"]
    # One checkpoint serves all classes, each of which takes its parts.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^predictor\.", r"^target_encoder\.", r"^mask_token$"]

    def __init__(self, config: JepaDaamConfig, *args, **kwargs):
        config.validate()  # fields may have been set since it was made
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As inherited, but a checkpoint must be complete: see `check_checkpoint`.

        A caller that asks for `output_loading_info=True` receives the names of missing tensors and may go on without
        them; a caller that passes `state_dict` brings weights of its own, which may be a part and are compared with no
        file.

        Raises:
            ValueError: If weights are damaged, of another checkpoint, missing or not finite.
            OSError: If there are none.
        """
        reference, wants_info = pretrained_model_name_or_path, kwargs.pop("output_loading_info", False)
        from_files = reference is not None and kwargs.get("state_dict") is None
        where = {name: kwargs[name] for name in _WHERE_FILES_ARE if name in kwargs}
        files: list[Path] | None = None
        if reference is not None and os.path.isdir(folder := os.path.join(reference, kwargs.get("subfolder") or "")):
            check_json(folder)
        if from_files and os.path.isdir(reference):
            files = weight_files(reference, kwargs.get("variant"), **where)
            for file in files:
                check_readable(file)
        loaded: Any = super().from_pretrained(reference, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        named = None
        if getattr(model, "_hf_peft_config_loaded", False):  # `reference` was an adapter's
            reference, files = model.name_or_path, None
        if from_files:
            named = JepaDaamConfig.get_config_dict(reference, **where)[0].get("weights_sha256")
            files = weight_files(reference, kwargs.get("variant"), **where) if files is None else files
        model.config.weights_sha256 = named
        missing = info["missing_keys"] if from_files and not wants_info else ()
        model.check_checkpoint(reference, files or [], missing)
        return (model, info) if wants_info else model

    def check_checkpoint(
        self, reference: str | os.PathLike | None, files: list[Path], missing: Collection[str]
    ) -> None:
        """Say whether what was loaded is a complete checkpoint: these files, every tensor, each of them finite.

        Args:
            reference: Folder or Hub id, for errors.
            files: Weight files that were loaded, compared with `config.weights_sha256` if that is set.
            missing: Names of the model's tensors that are not in the checkpoint.

        Raises:
            ValueError: If it is not.
        """
        if self.config.weights_sha256 is not None:
            verify_weights(str(reference), files, self.config.weights_sha256)
        lacking = sorted(name for name in missing if not any(re.search(new, name) for new in self._may_be_new))
        if lacking:
            raise ValueError(
                f"{reference} lacks {len(lacking)} tensors of {type(self).__name__}, such as {lacking[0]}: it is not a "
                "checkpoint of this model, or was saved in part (`output_loading_info=True` loads it all the same)"
            )
        for name, tensor in self.state_dict().items():
            if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all():
                raise ValueError(f"{reference} has weights that are not finite, in {name}")

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As inherited; the configuration then names the SHA-256 of the weights, which loading verifies."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", args[0] if args else True):
            self._name_weights(save_directory)

    def _upload_modified_files(self, working_dir, *args, **kwargs):
        self._name_weights(working_dir)  # `save_pretrained(push_to_hub=True)` uploads before it returns
        return super()._upload_modified_files(working_dir, *args, **kwargs)

    def _name_weights(self, folder: str | os.PathLike) -> None:
        config = Path(folder) / CONFIG_NAME
        if not config.is_file():  # of an adapter, or of a process that does not write
            return
        values = json.loads(config.read_text("utf-8"))
        remove_replaced_weights(folder)
        named = weights_beside(folder)
        if values.get("weights_sha256") != named:
            with replacing(config) as temporary:
                temporary.write_text(json.dumps(values | {"weights_sha256": named}, indent=2, sort_keys=True) + "\n")

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # Fan-in normal weights and zero biases: PyTorch's default shrinks the signal at each of some hundred
        # convolutions until the biases dominate, and the waveform never reaches the low rates.
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
            if isinstance(module, nn.ConvTranspose1d):
                fan_in = module.in_channels * module.kernel_size[0] / module.stride[0]
            else:
                fan_in = module.weight[0].numel()
            init.normal_(module.weight, std=getattr(module, "init_gain", 1.0) / math.sqrt(fan_in))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, SnakeBeta):
            init.zeros_(module.raw_beta)
        elif isinstance(module, DensityAdaptiveAttention):
            init.zeros_(module.delta)
            init.constant_(module.nu, math.log(0.5))
            init.constant_(module.alpha, module.initial_alpha)
        elif isinstance(module, AnalysisTransform):
            init.ones_(module.gain)
            init.zeros_(module.offset)
        elif isinstance(module, SourceFilterHead):
            init.zeros_(module.share)
            init.copy_(module.noise, torch.from_numpy(white_noise()))
        elif isinstance(module, FiniteScalarQuantizer) and module.normalize:
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)

    def _waveform_lengths(self, input_values: Tensor, padding_mask: Tensor | None) -> Tensor:
        """Check a batch of waveforms and return each one's valid samples, `(batch,)`, int64."""
        if not isinstance(input_values, Tensor):
            raise TypeError(f"`input_values` must be a tensor, got {type(input_values).__name__}")
        if input_values.ndim != 3 or input_values.shape[1] != 1 or 0 in input_values.shape:
            raise ValueError(
                f"`input_values` must have shape (batch, 1, samples), none of them 0, got {tuple(input_values.shape)}"
            )
        if not input_values.is_floating_point():
            raise TypeError(f"`input_values` must be floating point, got {input_values.dtype}")
        input_values = with_values(input_values, "input_values")
        batch, _, samples = input_values.shape
        if padding_mask is None:
            self._check_amplitude(input_values)
            return torch.full((batch,), samples, device=input_values.device)
        if not isinstance(padding_mask, Tensor) or padding_mask.shape != (batch, samples):
            raise ValueError(
                f"`padding_mask` must be a tensor of shape (batch, samples) = {(batch, samples)}, "
                f"got {getattr(padding_mask, 'shape', type(padding_mask).__name__)}"
            )
        padding_mask = with_values(padding_mask, "padding_mask").to(input_values.device)
        lengths = mask_to_lengths(padding_mask)
        if not lengths.all():
            raise ValueError("`padding_mask` must mark at least one valid sample in every row")
        self._check_amplitude(input_values[:, 0][padding_mask.bool()])
        return lengths

    def _check_amplitude(self, samples: Tensor) -> None:
        if not (samples.abs() <= MAX_AMPLITUDE).all():  # false for NaN too
            raise ValueError(
                f"`input_values` must be finite and within full scale [-1, 1] (at most {MAX_AMPLITUDE:g}), "
                f"got samples between {samples.min().item()} and {samples.max().item()}"
            )

    def _apply(self, fn, recurse=True):
        if recurse:
            for name, part in self.named_children():
                part._apply(staying_wide(fn, FLOAT32_PARTS[name]) if name in FLOAT32_PARTS else fn)
        return super()._apply(fn, recurse=False)

    def input_device(self, values: Tensor) -> torch.device:
        """The device of the inputs: the model's; where layers are offloaded, hooks move what they take."""
        return values.device if self.device.type == "meta" else self.device

    def _encoder_input(self, values: Tensor, encoder: nn.Module) -> Tensor:
        """Samples in the type of an encoder: an STFT takes float32 at least, as rounded samples sound like noise."""
        dtype = next(encoder.parameters()).dtype
        stft = self.config.encoder_stft_stages > 0
        return values.to(torch.promote_types(dtype, torch.float32) if stft else dtype)

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def _whole_frames(self, input_values: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pad a checked batch to whole frames: `(batch, 1, frames * hop)` and `(batch, frames)`, bool."""
        device = self.input_device(input_values)
        lengths = self._waveform_lengths(input_values, padding_mask).to(device)
        input_values = input_values.to(device)
        hop = self.config.hop_length
        frames = num_frames(input_values.shape[-1], hop)
        if padding_mask is not None:
            input_values = input_values.masked_fill(~padding_mask.bool().to(device)[:, None], 0.0)
        input_values = F.pad(input_values, (0, frames * hop - input_values.shape[-1]))
        return input_values, lengths_to_mask((lengths + hop - 1) // hop, frames)


class JepaDaamEncoderModel(JepaDaamPreTrainedModel):
    """The Stage 1 encoder alone, for features (speech recognition, diarisation, probes).

    It sees each recording whole, up to the length that memory allows; it was trained on at most 15 s at a time. The
    linear transform of `config.transform_bands` is the codec's alone: features come without it.
    """

    _keys_to_ignore_on_load_unexpected = [
        *(JepaDaamPreTrainedModel._keys_to_ignore_on_load_unexpected), r"^quantizer\.", r"^encoder\.transform\.",
        r"^latent_projection\.",
    ]  # fmt: skip
    _can_record_outputs = {
        "hidden_states": ConformerBlock,
        "attentions": ConformerAttention,
        "daam_gates": OutputRecorder(DensityAdaptiveAttention, index=1),
    }

    def __init__(self, config: JepaDaamConfig):
        super().__init__(config)
        self.encoder: Any  # a JepaDaamEncoder, or a FeatureEncoder
        if config.feature_bands > 0:
            self.spectral_features = SpectralFeatures(config)
            self.encoder = FeatureEncoder(config)
        else:
            self.encoder = JepaDaamEncoder(config, transform=False)
        self.post_init()

    @capture_outputs
    def forward(
        self, input_values: Tensor | None = None, padding_mask: Tensor | None = None, **kwargs
    ) -> JepaDaamEncoderModelOutput:
        """Encode recordings to features.

        Args:
            input_values: `(batch, 1, samples)`, at `config.sampling_rate`, in [-1, 1].
            padding_mask: `(batch, samples)`, 1 at valid samples, padding on the right; `None` if all are valid.
            **kwargs: `output_hidden_states`, `output_attentions`, `output_daam_gates`, `return_dict`: bool.

        Raises:
            ValueError: If a shape is wrong, the mask is not padded on the right, or samples are not finite or
                beyond full scale.
            TypeError: If `input_values` are not floating point, or an argument is unknown.
        """
        if input_values is None:  # as of `pipeline("feature-extraction")`, which takes a tokenizer
            raise TypeError(
                "`input_values` is missing; the encoder takes a feature extractor's output, not a tokenizer's: "
                "`model(**feature_extractor(audio, sampling_rate, return_tensors='pt'))`"
            )
        unexpected = set(kwargs) - {"output_hidden_states", "output_attentions", "output_daam_gates"}
        if unexpected:
            raise TypeError(f"unexpected arguments: {', '.join(f'`{name}`' for name in sorted(unexpected))}")
        input_values, frame_mask = self._whole_frames(input_values, padding_mask)
        if self.config.feature_bands > 0:
            margin = self.spectral_features.margin
            features = self.spectral_features(F.pad(input_values[:, 0], (margin, margin)))
            hidden = self.encoder(self._encoder_input(features, self.encoder)).hidden
            return JepaDaamEncoderModelOutput(last_hidden_state=hidden, frame_mask=frame_mask)
        with without_float16_autocast(input_values.device.type):
            latents = self.encoder(
                self._encoder_input(input_values, self.encoder), None if padding_mask is None else frame_mask
            )
        return JepaDaamEncoderModelOutput(last_hidden_state=latents, frame_mask=frame_mask)


class JepaDaamModel(JepaDaamPreTrainedModel, PreTrainedAudioTokenizerBase):
    """The codec: waveforms to packed tokens and back.

    Long audio is cut into chunks of `config.chunk_frames` frames, each encoded on its own: memory stays bounded, and
    the tokens of a recording depend on nothing but its samples and the weights. Decoding reads neighbouring frames
    across chunks, so that the waveform has no seams.

    No forward pass changes the model, and tokens are the same in training and in evaluation mode: `train()` leaves the
    encoder in evaluation mode, without dropout. Training asks by name for what it needs: `model.encoder.train()` for
    dropout, `model.quantizer(..., learn_statistics=True)` for the statistics of the quantizer.
    """

    _auto_class = "AutoModel"
    _keep_in_fp32_modules_strict = ["daam", "quantizer"]  # the quantizer: its statistics

    def __init__(self, config: JepaDaamConfig):
        super().__init__(config)
        self.quantizer = FiniteScalarQuantizer(
            config.levels, config.fsq_temperature, config.normalize_latents, config.fsq_gradient
        )
        self.encoder: Any  # a JepaDaamEncoder, or a FeatureEncoder
        self.decoder: Any  # a HifiGanDecoder, or a VocoderDecoder
        if config.feature_bands > 0:
            self.spectral_features = SpectralFeatures(config)
            self.encoder = FeatureEncoder(config)
            self.latent_projection = LatentProjection(config)
            self.decoder = VocoderDecoder(config)
        else:
            self.encoder = JepaDaamEncoder(config)
            self.decoder = HifiGanDecoder(config)
        self.encoder.eval()
        self.post_init()

    @property
    def dtype(self) -> torch.dtype:
        """Floating point type of the decoder; the encoder and the quantizer may keep a wider one."""
        return next(parameter.dtype for parameter in self.decoder.parameters())

    def train(self, mode: bool = True):
        """Set training mode, leaving the encoder in evaluation mode: tokens have no dropout."""
        super().train(mode)
        self.encoder.eval()
        return self

    def encode_waveforms(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Latents of recordings of any lengths, chunk by chunk.

        On CPU each chunk runs by itself: batching gains nothing there, and kernels that choose their
        order of summation by the batch's shape would otherwise let a neighbour flip a digit now and then.

        Args:
            waveforms: Recordings, each `(samples,)`, floating point, at least one sample.

        Returns:
            Latents of each, `(ceil(samples / hop_length), hidden_size)`.
        """
        return self._encode_chunks(waveforms)

    def encode_with_gates(
        self, waveforms: list[Tensor], mean: bool = False
    ) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        """Latents and the DAAM gates of the same computation.

        Args:
            waveforms: Recordings, as for `encode_waveforms`.
            mean: Whether to return the mean of each gate over each frame, instead of the gate at its own rate.

        Returns:
            Latents, as of `encode_waveforms`, and for each recording every gate of the encoder in signal order,
            `(frames, positions)`, float32, on the CPU. The last frame's positions include its padding.

        Raises:
            ValueError: If the encoder has no gates, or its layers are compiled.
        """
        if self.config.num_encoder_gates == 0:
            raise ValueError("`salience`: the model's encoder has no DAAM gates")
        chunks: list[list[list[Tensor]]] = [[] for _ in waveforms]
        latents = self._encode_chunks(waveforms, chunks, mean)
        return latents, [tuple(torch.cat(gate) for gate in zip(*each, strict=True)) for each in chunks]

    def _encode_chunks(
        self, waveforms: list[Tensor], gates: list[list[list[Tensor]]] | None = None, mean: bool = False
    ) -> list[Tensor]:
        # `gates` receives, for each recording, those of its chunks.
        hop = self.config.hop_length
        if self.config.feature_bands > 0:
            taken: list[list[list[Tensor]] | None] = [None] * len(waveforms) if gates is None else [*gates]
            return [self._encode_causally(*pair, mean) for pair in zip(waveforms, taken, strict=True)]
        chunk_samples = self.config.chunk_frames * hop
        chunks, owners = [], []
        for owner, waveform in enumerate(waveforms):
            values = self._encoder_input(waveform.to(self.input_device(waveform)), self.encoder)
            for chunk in values.split(chunk_samples):
                chunks.append(F.pad(chunk, (0, -len(chunk) % hop)))
                owners.append(owner)
        latents: list[list[Tensor]] = [[] for _ in waveforms]
        device = chunks[0].device if chunks else self.device
        size = CHUNKS_PER_BATCH.get(device.type, MAX_CHUNKS_PER_BATCH)
        for start in range(0, len(chunks), size):
            batch = chunks[start : start + size]
            frames = torch.tensor([len(chunk) // hop for chunk in batch], device=device)
            padded = pad_sequence(batch, batch_first=True)
            uniform = all(len(chunk) == len(batch[0]) for chunk in batch)
            mask = None if uniform else lengths_to_mask(frames, padded.shape[-1] // hop)
            with without_float16_autocast(device.type), collecting_gates() as computed:
                encoded = self.encoder(padded[:, None], mask)  # (B, 1, T) -> (B, frames, C)
            for offset, row in enumerate(encoded):
                latents[owners[start + offset]].append(row[: len(batch[offset]) // hop])
            if gates is None:
                continue
            if len(computed) != self.config.num_encoder_gates:
                raise ValueError(
                    f"`salience`: the encoder has {self.config.num_encoder_gates} DAAM gates, but {len(computed)} were "
                    "computed outside of compiled layers"
                )
            positions = [gate.unflatten(-1, (encoded.shape[1], -1)) for gate in computed]  # (B, frames, positions)
            if mean:
                positions = [gate.mean(dim=-1, keepdim=True) for gate in positions]
            positions = [gate.float().cpu() for gate in positions]
            for offset, chunk in enumerate(batch):
                gates[owners[start + offset]].append([gate[offset, : len(chunk) // hop] for gate in positions])
        return [torch.cat(rows) for rows in latents]

    def _encode_causally(self, waveform: Tensor, gates: list[list[Tensor]] | None, mean: bool) -> Tensor:
        # One recording of any length, block by block; `gates` receives those of its blocks.
        hop, margin = self.config.hop_length, self.spectral_features.margin
        frames = num_frames(len(waveform), hop)
        padded = F.pad(waveform.to(self.input_device(waveform)), (margin, frames * hop - len(waveform) + margin))
        memory, latents = CausalMemory(), []
        for start in range(0, frames, BLOCK_FRAMES):
            end = min(start + BLOCK_FRAMES, frames)
            block = self.encode_block(padded[start * hop : end * hop + 2 * margin], memory)
            memory = block.memory
            latents.append(block.latents)
            if gates is not None:
                gates.append([gate.mean(dim=-1, keepdim=True) if mean else gate for gate in block.gates])
        return torch.cat(latents)

    @torch.no_grad()
    def encode_block(self, samples: Tensor, memory: CausalMemory) -> EncodedBlock:
        """Encode the next frames of a stream, with a causal encoder.

        In float64, without gradients, in training mode too: what is rounded to tokens depends neither on the size of
        blocks nor on neighbors in a batch.

        Args:
            samples: `(margin + frames * hop_length + margin,)`: the frames, and the samples before and after them, zero
                outside of the recording; `margin` is that of `spectral_features`.
            memory: Of the block before; a new one at the beginning of a stream.

        Raises:
            ValueError: If the samples are no whole number of frames with their margins, or the memory is of a stream of
                another model.
        """
        hop, margin = self.config.hop_length, self.spectral_features.margin
        if samples.ndim != 1 or len(samples) <= 2 * margin or (len(samples) - 2 * margin) % hop != 0:
            raise ValueError(
                f"`samples` must be frames of {hop} samples with {margin} before and after them, got shape "
                f"{tuple(samples.shape)}"
            )
        features, encoder, projection = (
            in_float64(part) for part in (self.spectral_features, self.encoder, self.latent_projection)
        )
        memory = CausalMemory(memory.present)
        dtype = next(encoder.parameters()).dtype
        with torch.autocast(samples.device.type, enabled=False):
            frames = encoder(features(samples[None].to(dtype)), memory)
            latents = projection(frames)[0].float()
        gates = tuple(gate[0].unflatten(0, (len(latents), -1)).float().cpu() for gate in frames.gates)
        return EncodedBlock(latents, gates, memory)

    def waveforms_to_ids(self, waveforms: list[Tensor]) -> list[list[int]]:
        """Packed tokens of recordings of any lengths, each frame by frame: `frames * tokens_per_frame` ids."""
        return [self.latents_to_codes(row).T.flatten().tolist() for row in self.encode_waveforms(waveforms)]

    def waveforms_to_ids_with_salience(self, waveforms: list[Tensor]) -> tuple[list[list[int]], list[Tensor]]:
        """As `waveforms_to_ids`, and the salience of each recording's frames, of the same computation.

        Returns:
            Ids, and the mean of each gate over each frame, `(frames, gates)`, float32, on the CPU.

        Raises:
            ValueError: As `encode_with_gates`.
        """
        latents, gates = self.encode_with_gates(waveforms, mean=True)
        ids = [self.latents_to_codes(row).T.flatten().tolist() for row in latents]
        return ids, [torch.cat(each, dim=-1) for each in gates]

    def latents_to_codes(self, latents: Tensor) -> Tensor:
        """Quantize and pack: `(frames, hidden_size)` -> `(tokens_per_frame, frames)`, int64.

        Raises:
            ValueError: If the latents are not finite.
        """
        self._check_latents(latents)
        indices = self.quantizer(latents[None])[1][0]
        return pack_frames(indices, self.config.levels, self.config.group_size).T

    def codes_to_latents(self, audio_codes: Tensor) -> Tensor:
        """Unpack and dequantize: `(batch, tokens_per_frame, frames)` -> `(batch, hidden_size, frames)`."""
        tokens = audio_codes.transpose(1, 2)  # (B, G, T) -> (B, T, G)
        indices = unpack_frames(tokens, self.config.levels, self.config.group_size)
        return self.quantizer.indices_to_values(indices).to(self.dtype).transpose(1, 2)  # (B, T, C) -> (B, C, T)

    def encode(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> JepaDaamEncoderOutput | tuple:
        """Encode recordings to tokens.

        Args:
            input_values: `(batch, 1, samples)`, at `config.sampling_rate`, in [-1, 1]; any length.
            padding_mask: `(batch, samples)`, 1 at valid samples, padding on the right; `None` if all are valid.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: If a shape is wrong, the mask is not padded on the right, or samples are not finite or
                beyond full scale.
            TypeError: If `input_values` are not floating point.
        """
        lengths = self._waveform_lengths(input_values, padding_mask).tolist()
        rows = self.encode_waveforms([row[0, :length] for row, length in zip(input_values, lengths, strict=True)])
        output = JepaDaamEncoderOutput(
            audio_codes=pad_sequence([self.latents_to_codes(row).T for row in rows], batch_first=True).transpose(1, 2),
            audio_codes_mask=self._rows_mask(rows),
            latents=pad_sequence(rows, batch_first=True).transpose(1, 2),
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def decode(
        self, audio_codes: Tensor, audio_codes_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> JepaDaamDecoderOutput | tuple:
        """Decode tokens to waveforms.

        Args:
            audio_codes: `(batch, tokens_per_frame, frames)`, integer, as `encode` returns them.
            audio_codes_mask: `(batch, frames)`, 1 at valid frames, padding on the right; `None` if all are valid.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: If a shape is wrong, or a token is out of its group's range.
            TypeError: If `audio_codes` are not integers.
        """
        waveform = torch.cat(list(self.iter_decode(audio_codes, audio_codes_mask)), dim=-1)
        output = JepaDaamDecoderOutput(audio_values=waveform)
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def iter_decode(self, audio_codes: Tensor, audio_codes_mask: Tensor | None = None) -> Iterator[Tensor]:
        """Decode piece by piece: yields `(batch, 1, samples)`, at most `chunk_frames` frames each, in order.

        Arguments and errors are those of `decode`; no more than one piece's activations are in memory at a time.
        """
        if not isinstance(audio_codes, Tensor):
            raise TypeError(f"`audio_codes` must be a tensor, got {type(audio_codes).__name__}")
        check_integers(audio_codes, "audio_codes")
        audio_codes = with_values(audio_codes, "audio_codes").long()
        groups = self.config.tokens_per_frame
        if audio_codes.ndim != 3 or audio_codes.shape[1] != groups or 0 in audio_codes.shape:
            raise ValueError(
                f"`audio_codes` must have shape (batch, {groups}, frames), none of them 0, "
                f"got {tuple(audio_codes.shape)}"
            )
        frame_mask = None
        if audio_codes_mask is not None:
            expected = (audio_codes.shape[0], audio_codes.shape[2])
            if not isinstance(audio_codes_mask, Tensor) or audio_codes_mask.shape != expected:
                raise ValueError(
                    f"`audio_codes_mask` must be a tensor of shape (batch, frames) = {expected}, "
                    f"got {getattr(audio_codes_mask, 'shape', type(audio_codes_mask).__name__)}"
                )
            audio_codes_mask = with_values(audio_codes_mask, "audio_codes_mask")
            mask_to_lengths(audio_codes_mask, "audio_codes_mask")
            frame_mask = audio_codes_mask.bool().to(self.input_device(audio_codes_mask))
        audio_codes = audio_codes.to(self.input_device(audio_codes))
        if frame_mask is not None:
            audio_codes = audio_codes.masked_fill(~frame_mask[:, None], 0)
        check_tokens(audio_codes.transpose(1, 2), self.config.levels, self.config.group_size, "audio_codes")
        pieces = self._iter_synthesize(self.codes_to_latents(audio_codes), frame_mask)
        return (piece.clamp(-1.0, 1.0) for piece in pieces)  # in training mode the decoder does not clip

    def forward(
        self, input_values: Tensor, padding_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> JepaDaamOutput | tuple:
        """Reconstruct recordings through the quantizer; gradients pass straight through it.

        Args:
            input_values: `(batch, 1, samples)`, at `config.sampling_rate`, in [-1, 1]; any length.
            padding_mask: `(batch, samples)`, 1 at valid samples, padding on the right; `None` if all are valid.
            return_dict: `False` for a plain tuple.

        Raises:
            ValueError: If a shape is wrong, the mask is not padded on the right, or samples are not finite or
                beyond full scale.
            TypeError: If `input_values` are not floating point.
        """
        lengths = self._waveform_lengths(input_values, padding_mask).tolist()
        rows = self.encode_waveforms([row[0, :length] for row, length in zip(input_values, lengths, strict=True)])
        latents = pad_sequence(rows, batch_first=True)
        frame_mask = self._rows_mask(rows)
        self._check_latents(latents)
        quantized, indices = self.quantizer(latents, frame_mask)
        tokens = pack_frames(indices, self.config.levels, self.config.group_size)
        pieces = self._iter_synthesize(
            quantized.to(self.dtype).transpose(1, 2), frame_mask if len({len(row) for row in rows}) > 1 else None
        )
        waveform = torch.cat(list(pieces), dim=-1)
        # As long as the input: less the last frame's end, or more where whole frames are padding in every row.
        waveform = F.pad(waveform, (0, input_values.shape[-1] - waveform.shape[-1]))
        if padding_mask is not None:
            waveform = waveform.masked_fill(~padding_mask.bool().to(waveform.device)[:, None], 0.0)
        output = JepaDaamOutput(
            audio_values=waveform,
            audio_codes=tokens.masked_fill(~frame_mask[..., None], 0).transpose(1, 2),
            audio_codes_mask=frame_mask,
            latents=latents.transpose(1, 2),
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _iter_synthesize(self, latents: Tensor, frame_mask: Tensor | None) -> Iterator[Tensor]:
        """Waveform pieces of quantized latents, `(batch, hidden_size, frames)`."""
        frames, step, (before, after) = latents.shape[-1], self.config.chunk_frames, self.decoder.context_frames
        for start in range(0, frames, step):
            end = min(start + step, frames)
            left, right = min(start, before), min(frames - end, after)
            window = slice(start - left, end + right)
            mask = None if frame_mask is None else frame_mask[:, window]
            piece = self.decoder(latents[..., window], mask, context=(left, right))
            if frame_mask is not None:
                valid = frame_mask[:, start:end].repeat_interleave(self.config.hop_length, dim=-1)
                piece = piece.masked_fill(~valid[:, None], 0.0)
            yield piece

    @staticmethod
    def _check_latents(latents: Tensor) -> None:
        if not latents.isfinite().all():
            raise ValueError(
                f"the encoder made latents that are not finite, in {latents.dtype}: its weights are damaged, or beyond "
                "the range of that type"
            )

    def _rows_mask(self, rows: list[Tensor]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        return lengths_to_mask(lengths, int(lengths.max()))


__all__ = ["JepaDaamEncoderModel", "JepaDaamModel", "JepaDaamPreTrainedModel"]
