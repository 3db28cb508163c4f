"""The tokenizer: audio to ids of a 16384-entry vocabulary and back, with the interface of any Hub tokenizer."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizer
from transformers.tokenization_utils_base import LARGE_INTEGER, TOKENIZER_CONFIG_FILE
from transformers.utils import cached_file

from .audio import check_sampling_rate, file_source, load_audio, read_blocks, to_numpy
from .configuration_jepa_daam import MAX_SIZE, JepaDaamConfig
from .decode_stream import AudioDecodeStream
from .feature_extraction_jepa_daam import JepaDaamFeatureExtractor
from .files import check_json, check_readable, read_json_object, weight_files, write_json
from .framing import check_integer, num_frames
from .model_cache import cached_model, codec_digest
from .modeling_jepa_daam import JepaDaamModel
from .packing import check_tokens, group_levels, group_vocabulary_sizes, pack_frames, repeat_levels, unpack_frames
from .streaming import AudioTokenStream

TOKEN_PATTERN = re.compile(r"<\|audio_(0|[1-9][0-9]*)\|>")
HUB_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "token"}  # what `from_pretrained` takes for it
AUDIO_START, AUDIO_END = "<|audio_start|>", "<|audio_end|>"
DTYPES = ("float32", "bfloat16", "float16")
AUDIO_COLUMNS = ("audio", "path", "file", "audio_filepath")  # of a dataset, where nobody says which; the first it has
PCM_TYPES = {"uint8": np.uint8, "int8": np.int8, "int16": np.int16, "int32": np.int32}  # names as of Arrow
LOCAL_CODEC_FILE = "_codec.json"  # the underscore keeps it out of what `Trainer` pushes
MAX_PENDING_S = 600  # seconds of recordings that are in memory at once, of a batch of any size

_rendering: ContextVar[bool] = ContextVar("rendering_a_chat", default=False)


class JepaAudioTokenizer(PreTrainedTokenizer):
    """Audio to `input_ids` and back.

    An id below `vocab_size` is a packed token of the codec, frame after frame, `tokens_per_frame` each; the special
    tokens come after them. The tokenizer refers to its model by path or Hub id and loads it on first use, once a
    process, so it pickles small and hashes the same every time (`datasets.map` finds its cache).

    Args:
        codec: Path or Hub id of the model. A model in the folder that the tokenizer was loaded from goes before it.
        codec_revision: Git revision of the model on the Hub.
        sampling_rate: Rate (Hz) of the model.
        hop_length: Samples a frame.
        fsq_levels: Number of values of each latent dimension, repeated over `num_dimensions`.
        num_dimensions: Latent dimensions of a frame.
        group_size: Dimensions a token.

    Attributes:
        frame_rate: Frames a second.
        tokens_per_frame: Tokens a frame.
        token_rate: Tokens a second.
        bitrate_bps: Information a second, in bits.
    """

    vocab_files_names: dict[str, str] = {}
    model_input_names = ["input_ids", "attention_mask"]
    _auto_class = "AutoTokenizer"

    def __init__(
        self,
        codec: str | None = None,
        codec_revision: str | None = None,
        sampling_rate: int = 24000,
        hop_length: int = 9600,
        fsq_levels: Sequence[int] = (4, 4, 4, 4),
        num_dimensions: int = 128,
        group_size: int = 7,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        **kwargs,
    ):
        self.codec = None if codec is None else str(codec)
        self.codec_revision = codec_revision
        self.sampling_rate = check_integer(sampling_rate, "sampling_rate")
        self.hop_length = check_integer(hop_length, "hop_length")
        self.num_dimensions = check_integer(num_dimensions, "num_dimensions")
        self.group_size = check_integer(group_size, "group_size")
        if self.num_dimensions > MAX_SIZE:
            raise ValueError(f"`num_dimensions` must be at most {MAX_SIZE}, got {self.num_dimensions}")
        if not isinstance(fsq_levels, (list, tuple)):
            raise TypeError(f"`fsq_levels` must be a list of integers, got {fsq_levels!r}")
        self.fsq_levels = [check_integer(level, "fsq_levels", low=2) for level in fsq_levels]
        if not self.fsq_levels:
            raise ValueError("`fsq_levels` must not be empty")
        self.levels = repeat_levels(self.fsq_levels, num_dimensions)
        self._vocab_size = max(group_vocabulary_sizes(self.levels, group_size))
        self._device, self._dtype, self._publishing = "cpu", "float32", False
        self._codec_digest: str | None = None  # for fingerprints: a cache of tokens of other weights would be stale
        extra = kwargs.pop("extra_special_tokens", None) or []
        if not isinstance(extra, (list, tuple)):
            raise TypeError(f"`extra_special_tokens` must be a list, got {type(extra).__name__}")
        # In this order from `vocab_size` on, each once; a loaded tokenizer brings its own, which must begin there too.
        specials = [token for token in (pad_token, bos_token, eos_token) if token is not None]
        kwargs["extra_special_tokens"] = list(dict.fromkeys([*map(str, extra), AUDIO_START, AUDIO_END]))
        self._added_tokens_decoder = {
            self._vocab_size + place: AddedToken(token, special=True, normalized=False)
            for place, token in enumerate(dict.fromkeys([*map(str, specials), *kwargs["extra_special_tokens"]]))
        }
        if saved := kwargs.get("added_tokens_decoder"):
            if min(saved) != self._vocab_size:
                raise ValueError(
                    f"`fsq_levels` and `group_size` make {self._vocab_size} audio tokens, but the saved special tokens "
                    f"begin at {min(saved)}"
                )
            self._added_tokens_decoder = {}
        kwargs.setdefault("special_tokens_pattern", "bos_eos")
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(
            codec=self.codec,
            codec_revision=codec_revision,
            sampling_rate=sampling_rate,
            hop_length=hop_length,
            fsq_levels=self.fsq_levels,
            num_dimensions=num_dimensions,
            group_size=group_size,
            pad_token=pad_token,
            bos_token=bos_token,
            eos_token=eos_token,
            **kwargs,
        )

    @classmethod
    def from_config(cls, config, codec: str | None = None) -> "JepaAudioTokenizer":
        """The tokenizer that fits a `JepaDaamConfig`; `codec` says where the model lies."""
        return cls(
            codec=codec,
            sampling_rate=config.sampling_rate,
            hop_length=config.hop_length,
            fsq_levels=list(config.fsq_levels),
            num_dimensions=len(config.levels),
            group_size=config.group_size,
        )

    # Vocabulary: computed, not stored

    @property
    def vocab_size(self) -> int:
        """Number of audio tokens, without the special tokens after them (`len(tokenizer)` counts those)."""
        return self._vocab_size

    def get_vocab(self) -> dict[str, int]:
        """Every token's string and id."""
        vocabulary = {self._convert_id_to_token(index): index for index in range(self.vocab_size)}
        return {**vocabulary, **self._added_tokens_encoder}

    def _update_total_vocab_size(self) -> None:
        self.total_vocab_size = self.vocab_size + sum(i >= self.vocab_size for i in self._added_tokens_decoder)

    def _add_tokens(self, new_tokens, special_tokens: bool = False) -> int:
        # As the base class has it, without building the vocabulary: the next id is known.
        added = 0
        for token in new_tokens or ():
            content = str(token)
            if not content or content in self._added_tokens_encoder:
                continue
            if TOKEN_PATTERN.fullmatch(content):
                raise ValueError(f"`new_tokens`: {content} has the form of an audio token")
            index = self.vocab_size + len(self._added_tokens_decoder)
            if isinstance(token, str):
                special = special_tokens or content in self.all_special_tokens
                token = AddedToken(content, lstrip=False, rstrip=False, normalized=not special, special=special)
            elif special_tokens:
                token.special = True
            if token.special and content not in self.all_special_tokens:
                self._extra_special_tokens.append(token)
            self._added_tokens_decoder[index] = token
            self._added_tokens_encoder[content] = index
            added += 1
        self._update_trie()
        self._update_total_vocab_size()
        return added

    def _tokenize(self, text: str, **kwargs) -> list[str]:
        rest = TOKEN_PATTERN.sub("", text).strip()
        if rest:
            raise ValueError(
                f"`text` must be made of {self._convert_id_to_token(0)} .. "
                f"{self._convert_id_to_token(self.vocab_size - 1)} and special tokens, got {rest[:40]!r}"
            )
        return [match.group() for match in TOKEN_PATTERN.finditer(text)]

    def _convert_token_to_id(self, token: str) -> int:
        match = TOKEN_PATTERN.fullmatch(token)
        if match is None or int(match.group(1)) >= self.vocab_size:
            raise ValueError(
                f"`token` must be an audio token below {self.vocab_size} or a special token, got {token!r}"
            )
        return int(match.group(1))

    def _convert_id_to_token(self, index: int) -> str:
        if not 0 <= index < self.vocab_size:
            raise ValueError(f"`ids` must lie in [0, {len(self)}), got {index}")
        return f"<|audio_{index}|>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Join tokens without spaces: the string form of a sequence."""
        return "".join(tokens)

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Nothing to save: strings and ids are computed."""
        return ()

    @property
    def audio_start_token_id(self) -> int:
        """Id of the mark that opens audio in a mixed sequence."""
        return self._added_tokens_encoder[AUDIO_START]

    @property
    def audio_end_token_id(self) -> int:
        """Id of the mark that closes audio in a mixed sequence."""
        return self._added_tokens_encoder[AUDIO_END]

    # Rates

    @property
    def frame_rate(self) -> float:
        """Frames a second (Hz)."""
        return self.sampling_rate / self.hop_length

    @property
    def tokens_per_frame(self) -> int:
        """Tokens a frame."""
        return len(group_levels(self.levels, self.group_size))

    @property
    def token_rate(self) -> float:
        """Tokens a second."""
        return self.frame_rate * self.tokens_per_frame

    @property
    def bitrate_bps(self) -> float:
        """Information a second, in bits."""
        return self.frame_rate * float(np.log2(self.levels).sum())

    # The model behind it

    @property
    def codec_reference(self) -> str:
        """Path or Hub id of the model: the tokenizer's own folder if a model lies there, else `codec`.

        Raises:
            ValueError: If the tokenizer was made without one.
        """
        own = self.name_or_path
        reference = own if own and (self.codec is None or _holds_codec(own)) else self.codec
        if not reference:
            raise ValueError("`codec` is missing: load the tokenizer from a folder, or name the model's")
        return reference

    @property
    def model(self) -> JepaDaamModel:
        """The model, loaded on first use and kept for the process.

        Raises:
            ValueError: If the model's rates or levels are not the tokenizer's.
            OSError: If there is no model at `codec_reference`.
        """
        model = cached_model(self.codec_reference, self.codec_revision, self._device, self._dtype)
        config = model.config
        ours = (self.sampling_rate, self.hop_length, self.levels, self.group_size)
        theirs = (config.sampling_rate, config.hop_length, config.levels, config.group_size)
        if ours != theirs:
            raise ValueError(
                f"`codec`: the model at {self.codec_reference} is of another configuration than the tokenizer: "
                f"(sampling_rate, hop_length, levels, group_size) are {_short(theirs)}, not {_short(ours)}"
            )
        return model

    def to(self, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None):
        """Choose where and in what precision the model runs; returns the tokenizer.

        Args:
            device: Such as `"cpu"` or `"cuda:0"`.
            dtype: `"float32"`, `"bfloat16"` or `"float16"`. Below float32 some digits change.

        Raises:
            ValueError: If the device cannot be used here, or the dtype is another.
            TypeError: If the device is no device.
        """
        if device is not None:
            if not isinstance(device, (str, torch.device)):
                raise TypeError(f"`device` must be a string or torch.device, got {device!r}")
            try:
                torch.empty(0, device=device)
            except (RuntimeError, AssertionError) as error:
                raise ValueError(f"`device` {device} cannot be used here: {error}") from error
            self._device = str(device)
        if dtype is not None:
            name = str(dtype).removeprefix("torch.")
            if name not in DTYPES:
                raise ValueError(f"`dtype` must be float32, bfloat16 or float16, got {dtype}")
            self._dtype = name
        return self

    # Folders

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, *args, revision: str = "main", subfolder: str | None = None, **kwargs
    ):
        """Load the tokenizer of a folder or Hub id; its model comes from the same place and revision.

        Raises:
            OSError: If there is none.
        """
        path = pretrained_model_name_or_path
        if os.path.isdir(path):  # wherever the process goes, the model is found again
            path = os.path.abspath(os.path.join(path, subfolder or ""))
        elif subfolder:
            raise ValueError(f"`subfolder` needs a local folder, got {path}")
        # A tokenizer without a vocabulary file has no file that transformers asks for: of a name with a slip in it, it
        # would make one with the paper's rates.
        hub = {key: kwargs[key] for key in HUB_ARGUMENTS & kwargs.keys()}
        try:
            file = cached_file(path, TOKENIZER_CONFIG_FILE, revision=revision, **hub)
        except OSError as error:
            raise OSError(f"{path} is neither a folder with a tokenizer nor such a Hub id: {error}") from error
        assert file is not None  # it raises where there is none
        _check_settings(file, read_json_object(file))
        if os.path.isdir(path):
            check_json(path)
            for weights in weight_files(path) if _holds_codec(path) else ():
                check_readable(weights)
        tokenizer = super().from_pretrained(path, *args, revision=revision, **kwargs)
        local = os.path.join(path, LOCAL_CODEC_FILE)
        if tokenizer.codec is None and os.path.isdir(path) and os.path.isfile(local):
            tokenizer.codec = read_json_object(local).get("codec")
            if not isinstance(tokenizer.codec, str):
                raise ValueError(f"{local} is damaged: `codec` must be a path, got {tokenizer.codec!r}")
        if tokenizer.codec is None and revision != "main":
            tokenizer.codec_revision = revision
        if os.path.isdir(tokenizer.codec_reference):
            tokenizer._codec_digest = codec_digest(tokenizer.codec_reference, None)
        return tokenizer

    def save_pretrained(self, save_directory, legacy_format=None, filename_prefix=None, push_to_hub=False, **kwargs):
        """Save the tokenizer; a folder without a jepa-daam model gets a reference to where the model lies.

        A model on the Hub is named in `tokenizer_config.json`. The path of a folder of this machine goes to a file of
        its own, `_codec.json`, which no push of transformers uploads: what is published refers to a model on the Hub,
        or to the one in its own repository.
        """
        codec, local = self.codec, Path(save_directory) / LOCAL_CODEC_FILE
        if _holds_codec(save_directory):
            self.codec = None
        elif self.codec is None:
            self.codec = self.name_or_path or None
        folder = None
        if self.codec is not None and _is_path(self.codec):
            folder, self.codec = os.path.abspath(self.codec), None
        local.unlink(missing_ok=True)
        try:
            files = super().save_pretrained(save_directory, legacy_format, filename_prefix, push_to_hub, **kwargs)
        finally:
            self.codec = codec
        if folder is not None and not self._publishing:
            write_json(local, {"codec": folder})
        return files

    def push_to_hub(self, *args, **kwargs):
        """Push the tokenizer to the Hub; see `save_pretrained`."""
        self._publishing = True
        try:
            return super().push_to_hub(*args, **kwargs)
        finally:
            self._publishing = False

    # Audio to ids

    def __call__(
        self,
        audio: Any = None,
        sampling_rate: int | None = None,
        *,
        text: str | list[str] | None = None,
        add_special_tokens: bool = False,
        padding: bool | str = False,
        truncation: bool | str = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        **kwargs,
    ) -> BatchEncoding:
        """Tokenize a recording or a batch of them.

        Args:
            audio: A recording or a list of recordings: array `(samples,)`, `(channels, samples)` or
                `(samples, channels)`, list of floats, path or bytes of an audio file, or a `datasets` audio example.
            sampling_rate: Rate (Hz) of arrays, any; files and `datasets` examples carry theirs.
            text: In place of `audio`: the string form of token sequences.
            add_special_tokens: Whether to put each sequence between `bos` and `eos`.
            padding: As of any tokenizer: `True`, `"longest"`, `"max_length"` or `False`.
            truncation: Whether to cut sequences to `max_length` tokens, whole frames only, at the `truncation_side`:
                `True`, `"longest_first"` or `"only_first"`; `False` or `"do_not_truncate"`.
            max_length: Tokens for truncation and for padding to `"max_length"`; if `None`, `model_max_length`, where
                the tokenizer has one.
            pad_to_multiple_of: Pad to a multiple of so many tokens.
            padding_side: `"right"` or `"left"`; the tokenizer's own if `None`.
            return_attention_mask: Whether to return the mask; yes if `None`.
            return_tensors: `"pt"`, `"np"` or `None` for lists.
            **kwargs: With `text`, further arguments of any tokenizer.

        Returns:
            `input_ids` and `attention_mask`: lists of ints, one a recording (or a single one for a single
            recording), or `(batch, tokens)` tensors.

        Raises:
            ValueError: If a recording is empty, unreadable, not finite or of a wrong shape, or its rate is missing;
                if `truncation` is unknown, or `max_length` is missing or holds no whole frame.
            TypeError: If a recording is of no known kind, or an argument is unknown.
            FileNotFoundError: If a path names no file.
        """
        padding_arguments: dict[str, Any] = {
            "padding": padding,
            "max_length": max_length,
            "pad_to_multiple_of": pad_to_multiple_of,
            "padding_side": padding_side,
            "return_attention_mask": return_attention_mask,
            "return_tensors": return_tensors,
        }
        if _rendering.get():  # `apply_chat_template` passes its text as the first argument
            audio, text = None, audio
        if text is not None:
            if audio is not None:
                raise ValueError("`audio` and `text` cannot both be given")
            return super().__call__(
                text, add_special_tokens=add_special_tokens, truncation=truncation, **padding_arguments, **kwargs
            )
        if kwargs:
            raise TypeError(f"unexpected arguments with `audio`: {', '.join(f'`{name}`' for name in sorted(kwargs))}")
        if audio is None:
            raise ValueError("`audio` is missing")
        if sampling_rate is not None:
            sampling_rate = check_sampling_rate(sampling_rate)
        if pad_to_multiple_of is not None:
            check_integer(pad_to_multiple_of, "pad_to_multiple_of")
        if max_length is not None:
            check_integer(max_length, "max_length")
        cut = _cuts(truncation)
        if cut and max_length is None:
            if self.model_max_length > LARGE_INTEGER:
                raise ValueError(
                    f"`max_length` must be given with `truncation={truncation!r}`: there is no longest input"
                )
            max_length = self.model_max_length
        room = max_length - 2 * bool(add_special_tokens) if cut and max_length is not None else None
        if room is not None and room < self.tokens_per_frame:
            raise ValueError(
                f"`max_length` must hold a frame of {self.tokens_per_frame} tokens"
                f"{' and bos and eos' if add_special_tokens else ''}, got {max_length}"
            )
        batch = JepaDaamFeatureExtractor.as_batch(audio, "audio")
        single = len(batch) == 1 and batch[0] is audio
        sequences = [ids for ids, _, _ in self._encode_batch(batch, [sampling_rate] * len(batch))]
        if room is not None:
            kept = room - room % self.tokens_per_frame
            side = slice(-kept, None) if self.truncation_side == "left" else slice(kept)
            sequences = [ids[side] for ids in sequences]
        if add_special_tokens:
            sequences = [self.build_inputs_with_special_tokens(ids) for ids in sequences]
        encoding: dict[str, Any] = {"input_ids": sequences[0] if single and return_tensors is None else sequences}
        return self.pad(encoding, **padding_arguments)

    def apply_chat_template(self, *args, **kwargs):
        """As of any tokenizer; the rendered chat must be made of audio tokens and special tokens.

        Raises:
            ValueError: If it has other text: `add_audio_tokens` extends a tokenizer of text by audio tokens.
        """
        token = _rendering.set(True)
        try:
            return super().apply_chat_template(*args, **kwargs)
        finally:
            _rendering.reset(token)

    @torch.inference_mode()
    def _encode_batch(
        self,
        batch: list,
        sampling_rates: Sequence[int | None],
        place: str = "",
        salience: bool = False,
        reasons: list[str | None] | None = None,
    ) -> list[tuple[list[int], int, np.ndarray | None]]:
        """Ids, number of samples and salience, if wanted, of each recording.

        `place` begins the error of a recording that cannot be read; if `reasons` is a list, errors go there instead.
        """
        encoded: list[tuple[list[int], int, np.ndarray | None]] = [([], 0, None) for _ in batch]
        pending: dict[int, Tensor] = {}

        def encode_pending() -> None:
            if not pending:
                return
            waveforms, saliences = list(pending.values()), None
            if salience:
                sequences, saliences = self.model.waveforms_to_ids_with_salience(waveforms)
            else:
                sequences = self.model.waveforms_to_ids(waveforms)
            for number, (position, ids) in enumerate(zip(pending, sequences, strict=True)):
                frames = None if saliences is None else saliences[number].numpy()
                encoded[position] = (ids, len(pending[position]), frames)
            pending.clear()

        on_cpu = torch.device(self._device).type == "cpu"
        for position, (audio, sampling_rate) in enumerate(zip(batch, sampling_rates, strict=True)):
            try:
                source = file_source(audio)
                if source is not None and on_cpu:
                    encoded[position] = self._encode_file(source, salience)
                else:
                    pending[position] = torch.from_numpy(load_audio(audio, sampling_rate, self.sampling_rate))
            except (ValueError, TypeError, FileNotFoundError) as error:
                if reasons is not None:
                    reasons[position] = str(error)
                    continue
                if not place:
                    raise
                kind = next(kind for kind in (ValueError, TypeError, FileNotFoundError) if isinstance(error, kind))
                raise kind(f"{place.format(position)}{error}") from error
            if sum(map(len, pending.values())) > MAX_PENDING_S * self.sampling_rate:
                encode_pending()
        encode_pending()
        return encoded

    def encode_file(self, source: Any, on_truncated: Callable[[str], None] | None = None) -> tuple[list[int], int]:
        """Tokenize an audio file block by block: hours of it fit in memory.

        Args:
            source: Path, bytes or open binary file, of a format that `audio.read_blocks` reads.
            on_truncated: A file that ends before its header says is refused, unless this is given: then what there is
                of it is tokenized, and this is called with what is missing.

        Returns:
            Ids, frame by frame, and the recording's length in samples at `sampling_rate`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no audio, is damaged or holds no samples.
        """
        return self._encode_file(source, salience=False, on_truncated=on_truncated)[:2]

    def _encode_file(
        self, source: Any, salience: bool, on_truncated: Callable[[str], None] | None = None
    ) -> tuple[list[int], int, np.ndarray | None]:
        stream, ids = AudioTokenStream(self, self.sampling_rate, salience), []
        for block in read_blocks(source, self.sampling_rate, on_truncated=on_truncated):
            ids += stream.push(block)
        ids += stream.close()
        return ids, stream.num_samples, stream.salience() if salience else None

    def stream(self, sampling_rate: int) -> AudioTokenStream:
        """A stream that takes samples as they come and gives the tokens that became final.

        Args:
            sampling_rate: Rate (Hz) of the samples to come.
        """
        return AudioTokenStream(self, sampling_rate)

    def salience(self, audio: Any, sampling_rate: int | None = None) -> np.ndarray | list[np.ndarray]:
        """How high the encoder's DAAM gates are in each frame, while the recording is turned into tokens.

        Args:
            audio: A recording or a list of recordings, as for `__call__`.
            sampling_rate: Rate (Hz) of arrays, any; files and `datasets` examples carry theirs.

        Returns:
            `(frames, gates)`, float32, positive, one value for every gate of the encoder in signal order: the mean
            over the frame of each; a list of them for a batch.

        Raises:
            ValueError: If the model has no gates, or as `__call__`.
            TypeError, FileNotFoundError: As `__call__`.
        """
        if sampling_rate is not None:
            sampling_rate = check_sampling_rate(sampling_rate)
        batch = JepaDaamFeatureExtractor.as_batch(audio, "audio")
        saliences: Any = [row for _, _, row in self._encode_batch(batch, [sampling_rate] * len(batch), salience=True)]
        return saliences[0] if len(batch) == 1 and batch[0] is audio else saliences

    # Datasets to ids

    @property
    def tokenize_batch(self) -> Callable[..., dict[str, list]]:
        """The function to map over a `datasets` dataset: `dataset.map(tokenizer.tokenize_batch, batched=True, ...)`.

        It takes a batch of rows and `audio_column`, `sampling_rate`, `salience`, `on_error` (all through `fn_kwargs`,
        all may be missing) and returns columns `input_ids` and `num_samples` (length at the model's rate); with
        `salience=True` a column `salience`, too, as the method of this name has it. Their types are
        `features_beside(dataset, ...)`, or `features` and `salience_features` where no other column is kept.
        A recording that cannot be read ends the map by an error; with `on_error="null"` its columns are null, and a
        column `reason` says why.
        The audio may be anything that `__call__` takes. A column of type `Audio` is not decoded by `datasets`, so that
        no torchcodec is needed; streams need `cast_column(column, Audio(decode=False))` for that.

        `datasets` recognises the same call, and takes its results from the cache, while the recordings, the settings
        and the model's weights are the same: their digest is taken whenever this attribute is read.
        """
        self._codec_digest = codec_digest(self.codec_reference, self.codec_revision)
        return self._tokenize_batch

    def _tokenize_batch(
        self,
        batch: Mapping[str, Any],
        audio_column: str | None = None,
        sampling_rate: int | None = None,
        salience: bool = False,
        on_error: str = "raise",
    ) -> dict[str, list]:
        """Tokenize rows of a dataset; see `tokenize_batch`.

        Args:
            batch: Columns by name.
            audio_column: The column with the recordings; if `None`, the first of `AUDIO_COLUMNS` that is there.
            sampling_rate: Rate (Hz) of arrays; if `None`, that of a column `sampling_rate`, if there is one.
            salience: Whether to add the column `salience`, `(frames, gates)` a row.
            on_error: `"raise"`, or `"null"` for null values and a column `reason`, the error or null, of recordings
                that cannot be read.

        Raises:
            ValueError: If there is no such column, or a recording cannot be read: names its place in the batch; if
                `salience` is wanted of a model without gates; if `on_error` is something else.
            TypeError: If `batch` is no mapping.
        """
        _check_on_error(on_error)
        if not isinstance(batch, Mapping):
            raise TypeError(f"`batch` must be columns by name (`batched=True`), got {type(batch).__name__}")
        column = audio_column or next((name for name in AUDIO_COLUMNS if name in batch), None)
        if column is None or column not in batch:
            raise ValueError(
                f"`audio_column`: no column {column or ' or '.join(AUDIO_COLUMNS)}, only {', '.join(batch) or 'none'}"
            )
        recordings = _undecoded(batch, column)
        rates: list[int | None] = [None if sampling_rate is None else check_sampling_rate(sampling_rate)]
        if sampling_rate is None and "sampling_rate" in batch:
            rates = [check_sampling_rate(rate) for rate in batch["sampling_rate"]]
        else:
            rates *= len(recordings)
        reasons: list[str | None] | None = None if on_error == "raise" else [None] * len(recordings)
        place = f"`batch`: recording {{}} of column {column}: "
        encoded = self._encode_batch(recordings, rates, place, salience, reasons)
        columns: dict[str, list] = {
            "input_ids": [ids for ids, _, _ in encoded],
            "num_samples": [length for _, length, _ in encoded],
        }
        if salience:
            columns["salience"] = [frames for _, _, frames in encoded]
        if reasons is not None:
            for values in columns.values():
                values[:] = [value if reason is None else None for value, reason in zip(values, reasons, strict=True)]
            columns["reason"] = list(reasons)
        return columns

    @property
    def features(self):
        """Types of the columns that `tokenize_batch` makes: `datasets.Features`, ids in 16 bits where they fit.

        Raises:
            ImportError: If datasets is not installed.
        """
        return self._features(salience=False)

    @property
    def salience_features(self):
        """Types of the columns that `tokenize_batch` makes with `salience=True`: `features`, and `salience`.

        Raises:
            ImportError: If datasets is not installed.
        """
        return self._features(salience=True)

    def features_beside(
        self,
        dataset: Any,
        remove_columns: str | Sequence[str] = (),
        salience: bool = False,
        on_error: str = "raise",
    ):
        """Types of all columns of a map of `tokenize_batch` that keeps some columns of the dataset.

        Args:
            dataset: A `datasets` dataset, or its `features`.
            remove_columns: As of the map: columns that are not kept.
            salience: As of the map's `fn_kwargs`.
            on_error: As of the map's `fn_kwargs`.

        Returns:
            `datasets.Features`, for `dataset.map(tokenizer.tokenize_batch, features=...)`.

        Raises:
            ValueError: If the dataset has no such column, or does not know its columns (a stream may not).
            ImportError: If datasets is not installed.
        """
        _check_on_error(on_error)
        kept = getattr(dataset, "features", dataset)
        if not isinstance(kept, Mapping):
            raise ValueError(f"`dataset` must have `features`, got {type(dataset).__name__} with {kept!r}")
        removed = [remove_columns] if isinstance(remove_columns, str) else list(remove_columns)
        if unknown := [name for name in removed if name not in kept]:
            raise ValueError(f"`remove_columns`: no column {', '.join(unknown)}, only {', '.join(kept)}")
        made = self._features(salience, on_error)
        return type(made)({name: kind for name, kind in kept.items() if name not in removed} | dict(made))

    def _features(self, salience: bool, on_error: str = "raise"):
        try:
            from datasets import Features, List, Value
        except ImportError as error:
            raise ImportError("`features` needs datasets: pip install datasets") from error
        bits = 16 if self.vocab_size <= 2**16 else 64
        columns = {"input_ids": List(Value(f"uint{bits}")), "num_samples": Value("int64")}
        if salience:
            columns["salience"] = List(List(Value("float32")))
        if on_error == "null":
            columns["reason"] = Value("string")
        return Features(columns)

    # Ids to audio

    def decode_stream(self, frames_per_piece: int = 1) -> AudioDecodeStream:
        """A stream that takes ids as they come and gives the samples that became final.

        Args:
            frames_per_piece: Frames that are decoded at once: more is less work and more delay.
        """
        return AudioDecodeStream(self, frames_per_piece)

    def decode_audio(self, input_ids: Any, num_samples: int | Sequence[int] | None = None):
        """Turn ids back into waveforms.

        Args:
            input_ids: One sequence of ids, or a batch: list, array, tensor, or what `__call__` returned. Special
                tokens are left out.
            num_samples: True length (samples at `sampling_rate`) of each recording, within its last frame; whole
                frames if `None`.

        Returns:
            `(samples,)`, float32, in [-1, 1]; a list of them for a batch.

        Raises:
            ValueError: If an id is out of range (of its place in the frame), a sequence is empty or no whole number
                of frames, or `num_samples` does not fit.
            TypeError: If ids are not integers.
        """
        sequences, single = self._id_sequences(input_ids)
        if num_samples is None or getattr(num_samples, "ndim", None) == 0 or not isinstance(num_samples, Iterable):
            given = [num_samples] * (len(sequences) if num_samples is None else 1)
        else:
            given = list(num_samples)
        lengths = [None if length is None else check_integer(length, "num_samples") for length in given]
        if len(lengths) != len(sequences):
            raise ValueError(f"`num_samples` must have one entry for each of {len(sequences)}, got {len(lengths)}")
        waveforms = []
        for ids, length in zip(sequences, lengths, strict=True):
            codes = self.frames(ids)
            if length is not None and num_frames(length, self.hop_length) != len(codes):
                raise ValueError(
                    f"`num_samples` must lie in the last of {len(codes)} frames: "
                    f"({(len(codes) - 1) * self.hop_length}, {len(codes) * self.hop_length}], got {length}"
                )
            waveforms.append(np.concatenate(list(self._iter_waveform(codes)))[:length])
        return waveforms[0] if single else waveforms

    def iter_decode_audio(self, input_ids: Any):
        """Turn one sequence of ids back into audio piece by piece, in bounded memory.

        Args:
            input_ids: One sequence of ids, as for `decode_audio`.

        Yields:
            `(samples,)`, float32; concatenated, what `decode_audio` returns.

        Raises:
            ValueError, TypeError: As `decode_audio`.
        """
        sequences, single = self._id_sequences(input_ids)
        if not single:
            raise ValueError(f"`input_ids` must be one sequence, got a batch of {len(sequences)}")
        yield from self._iter_waveform(self.frames(sequences[0]))

    @torch.inference_mode()
    def _iter_waveform(self, frames: Tensor) -> Iterator[np.ndarray]:
        for piece in self.model.iter_decode(frames.T[None]):
            yield piece[0, 0].float().cpu().numpy()

    def _id_sequences(self, input_ids: Any) -> tuple[list[Tensor], bool]:
        """Ids of any form as a list of 1-D int64 tensors, and whether it was one sequence."""
        if isinstance(input_ids, (dict, BatchEncoding)):
            if "input_ids" not in input_ids:
                raise ValueError(f"`input_ids` must hold 'input_ids', got keys {sorted(input_ids)}")
            input_ids = input_ids["input_ids"]
        if isinstance(input_ids, (list, tuple)) and len(input_ids) > 0 and np.ndim(input_ids[0]) > 0:
            return [_integers(ids, "input_ids") for ids in input_ids], False
        ids = _integers(input_ids, "input_ids", max_ndim=2)
        return ([ids], True) if ids.ndim == 1 else (list(ids), False)

    def audio_ids(self, input_ids: Any) -> list[int]:
        """One sequence (list, array or tensor, not empty) without its special tokens; ids are not checked further."""
        ids = _integers(input_ids, "input_ids")
        special = [i for i in self._added_tokens_decoder if i >= self.vocab_size]
        return ids[~torch.isin(ids, torch.tensor(special, dtype=torch.int64, device="cpu"))].tolist()

    def frames(self, input_ids: Any) -> Tensor:
        """One sequence without its special tokens as frames.

        Args:
            input_ids: List, array or tensor of ids.

        Returns:
            `(frames, tokens_per_frame)`, int64.

        Raises:
            ValueError: If an id is out of range (of its place in the frame), or the sequence is empty or no whole
                number of frames.
            TypeError: If ids are not integers.
        """
        ids = torch.tensor(self.audio_ids(input_ids), dtype=torch.int64, device="cpu")
        if len(ids) == 0 or len(ids) % self.tokens_per_frame:
            raise ValueError(
                f"`input_ids` must be a whole number of frames of {self.tokens_per_frame} tokens, got {len(ids)}"
            )
        frames = ids.view(-1, self.tokens_per_frame)
        check_tokens(frames, self.levels, self.group_size, "input_ids")
        return frames

    # Ids to digits

    def pack(self, indices: Any) -> list[int]:
        """Pack quantizer indices into ids.

        Args:
            indices: `(frames, num_dimensions)`, integer, `0 <= indices[:, d] < levels[d]`.

        Returns:
            `frames * tokens_per_frame` ids.

        Raises:
            ValueError: If the shape is wrong or an index is out of range.
            TypeError: If the indices are not integers.
        """
        indices = _integers(indices, "indices", max_ndim=2)
        if indices.ndim != 2 or indices.shape[1] != self.num_dimensions:
            raise ValueError(f"`indices` must have shape (frames, {self.num_dimensions}), got {tuple(indices.shape)}")
        return pack_frames(indices, self.levels, self.group_size).flatten().tolist()

    def unpack(self, input_ids: Any) -> np.ndarray:
        """Take ids apart into quantizer indices; special tokens are left out.

        Args:
            input_ids: One sequence of ids: list, array or tensor.

        Returns:
            `(frames, num_dimensions)`, int64.

        Raises:
            ValueError: If an id is out of range, or the sequence is empty or no whole number of frames.
            TypeError: If ids are not integers.
        """
        frames = self.frames(input_ids)
        return unpack_frames(frames, self.levels, self.group_size).numpy()


def _cuts(truncation: bool | str) -> bool:
    """Whether a `truncation` argument cuts a single sequence."""
    named = {"longest_first": True, "only_first": True, "do_not_truncate": False}
    if isinstance(truncation, bool):
        return truncation
    name = getattr(truncation, "value", truncation)
    if name not in named:
        raise ValueError(f"`truncation` must be a bool or one of {', '.join(named)}, got {truncation!r}")
    return named[name]


def _check_on_error(on_error: str) -> None:
    if on_error not in ("raise", "null"):
        raise ValueError(f"`on_error` must be 'raise' or 'null', got {on_error!r}")


def _undecoded(batch: Mapping[str, Any], column: str) -> list:
    """A column's recordings; files as they lie in the table, before `datasets` would decode them."""
    table = getattr(batch, "pa_table", None)  # of a batch that `datasets` formats on access
    if table is not None and column in table.column_names:
        stored = table.column(column)
        if {field.name for field in getattr(stored.type, "fields", ())} == {"bytes", "path"}:
            return [_opened(row) for row in stored.to_pylist()]
        width = PCM_TYPES.get(str(getattr(stored.type, "value_type", "")))
        if width is not None:  # a list of Python's integers would no longer say how loud they are
            return [None if row is None else np.array(row, width) for row in stored.to_pylist()]
    return [_opened(row) for row in batch[column]]


def _opened(row: Any) -> Any:
    """A recording; the content of a remote file that a streamed dataset refers to."""
    path = row.get("path") if isinstance(row, Mapping) and row.get("bytes") is None else None
    if path is None or "://" not in path:
        return row
    try:
        import fsspec
    except ImportError as error:
        raise ImportError("reading remote files needs fsspec: pip install fsspec") from error
    with fsspec.open(path, "rb") as file:
        return file.read()


def _integers(values: Any, name: str, max_ndim: int = 1) -> Tensor:
    """Array-likes of whole numbers as an int64 tensor of one or up to `max_ndim` dimensions."""
    array = to_numpy(values, name)
    if array.size == 0 or not 1 <= array.ndim <= max_ndim:
        dimensions = "1 dimension" if max_ndim == 1 else f"1 to {max_ndim} dimensions"
        raise ValueError(f"`{name}` must have {dimensions} and not be empty, got shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise TypeError(f"`{name}` must be integers, got dtype {array.dtype}")
    if array.dtype == np.uint64 and (array > np.iinfo(np.int64).max).any():
        raise ValueError(f"`{name}` must fit signed 64-bit integers, got {array.max()}")
    return torch.from_numpy(array.astype(np.int64))


def _holds_codec(folder: str | os.PathLike) -> bool:
    """Whether a folder holds a model of this package (and not, say, a language model that was trained on its ids)."""
    config = os.path.join(os.fspath(folder), "config.json")
    return os.path.isfile(config) and read_json_object(config).get("model_type") == JepaDaamConfig.model_type


def _check_settings(file: str, settings: dict) -> None:
    """Refuse a tokenizer's file whose tokens have been damaged; the numbers are checked where they are used.

    Raises:
        ValueError: If they have; names the key.
    """
    added = settings.get("added_tokens_decoder", {})
    if not isinstance(added, dict) or not all(
        index.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)
        for index, token in added.items()
    ):
        raise ValueError(f"{file} is damaged: `added_tokens_decoder` must map ids to tokens, got {str(added)[:80]}")
    for name in ("pad_token", "bos_token", "eos_token"):
        if not isinstance(settings.get(name), (str, dict, type(None))):
            raise ValueError(f"{file} is damaged: `{name}` must be a text, got {settings[name]!r}")


def _is_path(codec: str) -> bool:
    """Whether a reference to a model is a path of this machine, and not a Hub id."""
    return os.path.isdir(codec) or os.path.isabs(codec) or codec.startswith((".", "~")) or "\\" in codec


def _short(values: tuple) -> str:
    text = str(values)
    return text if len(text) < 120 else f"{text[:60]} ... {text[-40:]}"


__all__ = ["JepaAudioTokenizer"]
