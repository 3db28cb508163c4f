"""The codec and the encoder as transformers models: checks, chunks, outputs. The maths lies in other files.

The way in is `encoder.py`, `quantizer.py`, `packing.py`; the way out is back through these and `decoder.py`.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedAudioTokenizerBase
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .audio import MAX_AMPLITUDE
from .configuration_jepa_daam import JepaDaamConfig
from .conformer import ConformerAttention, ConformerBlock
from .convolution import SnakeBeta
from .daam import DensityAdaptiveAttention
from .decoder import HifiGanDecoder
from .encoder import JepaDaamEncoder
from .files import check_files, verify_weights
from .framing import lengths_to_mask, mask_to_lengths, num_frames
from .packing import check_tokens, pack_frames, unpack_frames
from .quantizer import FiniteScalarQuantizer
from .source_filter_head import SourceFilterHead, white_noise
from .transform_path import AnalysisTransform

# Chunks that an accelerator encodes at once. On CPU each runs alone: see `JepaDaamModel.encode_waveforms`.
MAX_CHUNKS_PER_BATCH = 32


# Arguments of `from_pretrained` that say where a checkpoint's files are.
_WHERE_FILES_ARE = ("cache_dir", "local_files_only", "token", "revision", "subfolder")


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
    # One checkpoint serves all classes, each of which takes its parts.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^predictor\.", r"^target_encoder\.", r"^mask_token$"]

    def __init__(self, config: JepaDaamConfig, *args, **kwargs):
        config.validate()  # fields may have been set since it was made
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """As inherited; but damaged files, and weights that `config.weights_sha256` does not name, are refused.

        Raises:
            ValueError: If they are damaged, or of another checkpoint.
        """
        folder = os.path.join(pretrained_model_name_or_path or "", kwargs.get("subfolder") or "")
        if os.path.isdir(folder):
            check_files(folder)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.weights_sha256 is not None:
            where = {name: kwargs[name] for name in _WHERE_FILES_ARE if name in kwargs}
            verify_weights(pretrained_model_name_or_path, model.config.weights_sha256, **where)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """As inherited; forgets the configuration's `weights_sha256`, which was that of the weights as loaded."""
        self.config.weights_sha256 = None
        super().save_pretrained(save_directory, *args, **kwargs)

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
        batch, _, samples = input_values.shape
        if padding_mask is None:
            self._check_amplitude(input_values)
            return torch.full((batch,), samples, device=input_values.device)
        if not isinstance(padding_mask, Tensor) or padding_mask.shape != (batch, samples):
            raise ValueError(
                f"`padding_mask` must be a tensor of shape (batch, samples) = {(batch, samples)}, "
                f"got {getattr(padding_mask, 'shape', type(padding_mask).__name__)}"
            )
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

    def _waveform_dtype(self) -> torch.dtype:
        """Of the encoder's input: an STFT takes float32 at least, as rounded samples would be heard as noise."""
        stft = self.config.encoder_stft_stages > 0
        return torch.promote_types(self.dtype, torch.float32) if stft else self.dtype

    def _wants_dict(self, return_dict: bool | None) -> bool:
        return bool(self.config.return_dict if return_dict is None else return_dict)

    def _whole_frames(self, input_values: Tensor, padding_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Pad a checked batch to whole frames: `(batch, 1, frames * hop)` and `(batch, frames)`, bool."""
        lengths = self._waveform_lengths(input_values, padding_mask).to(self.device)
        input_values = input_values.to(self.device, self._waveform_dtype())
        hop = self.config.hop_length
        frames = num_frames(input_values.shape[-1], hop)
        if padding_mask is not None:
            input_values = input_values.masked_fill(~padding_mask.bool().to(self.device)[:, None], 0.0)
        input_values = F.pad(input_values, (0, frames * hop - input_values.shape[-1]))
        return input_values, lengths_to_mask((lengths + hop - 1) // hop, frames)


class JepaDaamEncoderModel(JepaDaamPreTrainedModel):
    """The Stage 1 encoder alone, for features (speech recognition, diarisation, probes).

    It sees each recording whole, up to the length that memory allows; it was trained on at most 15 s at a time. The
    linear transform of `config.transform_bands` is the codec's alone: features come without it.
    """

    _keys_to_ignore_on_load_unexpected = [
        *(JepaDaamPreTrainedModel._keys_to_ignore_on_load_unexpected), r"^quantizer\.", r"^encoder\.transform\."
    ]  # fmt: skip
    _can_record_outputs = {
        "hidden_states": ConformerBlock,
        "attentions": ConformerAttention,
        "daam_gates": OutputRecorder(DensityAdaptiveAttention, index=1),
    }

    def __init__(self, config: JepaDaamConfig):
        super().__init__(config)
        self.encoder = JepaDaamEncoder(config, transform=False)
        self.post_init()

    @capture_outputs
    def forward(self, input_values: Tensor, padding_mask: Tensor | None = None, **kwargs) -> JepaDaamEncoderModelOutput:
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
        unexpected = set(kwargs) - {"output_hidden_states", "output_attentions", "output_daam_gates"}
        if unexpected:
            raise TypeError(f"unexpected arguments: {', '.join(f'`{name}`' for name in sorted(unexpected))}")
        input_values, frame_mask = self._whole_frames(input_values, padding_mask)
        latents = self.encoder(input_values, None if padding_mask is None else frame_mask)
        return JepaDaamEncoderModelOutput(last_hidden_state=latents, frame_mask=frame_mask)


class JepaDaamModel(JepaDaamPreTrainedModel, PreTrainedAudioTokenizerBase):
    """The codec: waveforms to packed tokens and back.

    Long audio is cut into chunks of `config.chunk_frames` frames, each encoded on its own: memory stays bounded, and
    in evaluation mode the tokens of a recording depend on nothing but its samples. Decoding reads neighbouring
    frames across chunks, so that the waveform has no seams.
    """

    _auto_class = "AutoModel"
    _keep_in_fp32_modules_strict = ["quantizer"]  # its running statistics

    def __init__(self, config: JepaDaamConfig):
        super().__init__(config)
        self.encoder = JepaDaamEncoder(config)
        self.quantizer = FiniteScalarQuantizer(config.levels, config.fsq_temperature, config.normalize_latents)
        self.decoder = HifiGanDecoder(config)
        self.post_init()

    def encode_waveforms(self, waveforms: list[Tensor]) -> list[Tensor]:
        """Latents of recordings of any lengths, chunk by chunk.

        In evaluation on CPU each chunk runs by itself: batching gains nothing there, and kernels that choose their
        order of summation by the batch's shape would otherwise let a neighbour flip a digit now and then.

        Args:
            waveforms: Recordings, each `(samples,)`, floating point, at least one sample.

        Returns:
            Latents of each, `(ceil(samples / hop_length), hidden_size)`.
        """
        hop = self.config.hop_length
        chunk_samples = self.config.chunk_frames * hop
        chunks, owners = [], []
        for owner, waveform in enumerate(waveforms):
            for chunk in waveform.to(self.device, self._waveform_dtype()).split(chunk_samples):
                chunks.append(F.pad(chunk, (0, -len(chunk) % hop)))
                owners.append(owner)
        alone = self.device.type == "cpu" and not self.training
        size = 1 if alone else MAX_CHUNKS_PER_BATCH
        latents: list[list[Tensor]] = [[] for _ in waveforms]
        for start in range(0, len(chunks), size):
            batch = chunks[start : start + size]
            frames = torch.tensor([len(chunk) // hop for chunk in batch], device=self.device)
            padded = pad_sequence(batch, batch_first=True)
            uniform = all(len(chunk) == len(batch[0]) for chunk in batch)
            mask = None if uniform else lengths_to_mask(frames, padded.shape[-1] // hop)
            encoded = self.encoder(padded[:, None], mask)  # (B, 1, T) -> (B, frames, C)
            for offset, row in enumerate(encoded):
                latents[owners[start + offset]].append(row[: len(batch[offset]) // hop])
        return [torch.cat(rows) for rows in latents]

    def waveforms_to_ids(self, waveforms: list[Tensor]) -> list[list[int]]:
        """Packed tokens of recordings of any lengths, each frame by frame: `frames * tokens_per_frame` ids."""
        return [self.latents_to_codes(row).T.flatten().tolist() for row in self.encode_waveforms(waveforms)]

    def latents_to_codes(self, latents: Tensor) -> Tensor:
        """Quantize and pack: `(frames, hidden_size)` -> `(tokens_per_frame, frames)`, int64."""
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
            mask_to_lengths(audio_codes_mask, "audio_codes_mask")
            frame_mask = audio_codes_mask.bool().to(self.device)
        audio_codes = audio_codes.to(self.device)
        if frame_mask is not None:
            audio_codes = audio_codes.masked_fill(~frame_mask[:, None], 0)
        check_tokens(audio_codes.transpose(1, 2), self.config.levels, self.config.group_size, "audio_codes")
        return self._iter_synthesize(self.codes_to_latents(audio_codes), frame_mask)

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
        quantized, indices = self.quantizer(latents, frame_mask)
        tokens = pack_frames(indices, self.config.levels, self.config.group_size)
        pieces = self._iter_synthesize(
            quantized.to(self.dtype).transpose(1, 2), frame_mask if len({len(row) for row in rows}) > 1 else None
        )
        waveform = torch.cat(list(pieces), dim=-1)
        # As long as the input: less the last frame's end, or more where whole frames are padding in every row.
        waveform = F.pad(waveform, (0, input_values.shape[-1] - waveform.shape[-1]))
        if padding_mask is not None:
            waveform = waveform.masked_fill(~padding_mask.bool().to(self.device)[:, None], 0.0)
        output = JepaDaamOutput(
            audio_values=waveform,
            audio_codes=tokens.masked_fill(~frame_mask[..., None], 0).transpose(1, 2),
            audio_codes_mask=frame_mask,
            latents=latents.transpose(1, 2),
        )
        return output if self._wants_dict(return_dict) else output.to_tuple()

    def _iter_synthesize(self, latents: Tensor, frame_mask: Tensor | None) -> Iterator[Tensor]:
        """Waveform pieces of quantized latents, `(batch, hidden_size, frames)`."""
        frames, step, reach = latents.shape[-1], self.config.chunk_frames, self.decoder.margins()[0]
        for start in range(0, frames, step):
            end = min(start + step, frames)
            left, right = min(start, reach), min(frames - end, reach)
            window = slice(start - left, end + right)
            mask = None if frame_mask is None else frame_mask[:, window]
            piece = self.decoder(latents[..., window], mask, context=(left, right))
            if frame_mask is not None:
                valid = frame_mask[:, start:end].repeat_interleave(self.config.hop_length, dim=-1)
                piece = piece.masked_fill(~valid[:, None], 0.0)
            yield piece

    def _rows_mask(self, rows: list[Tensor]) -> Tensor:
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        return lengths_to_mask(lengths, int(lengths.max()))


__all__ = ["JepaDaamEncoderModel", "JepaDaamModel", "JepaDaamPreTrainedModel"]
