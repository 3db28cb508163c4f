"""Recordings to model inputs: checked, mono, resampled, padded to whole frames."""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor

from .audio import check_sampling_rate, load_audio, to_numpy
from .framing import check_integer


class JepaDaamFeatureExtractor(SequenceFeatureExtractor):
    """Bring recordings to `input_values` and `padding_mask` for the jepa-daam models.

    Args:
        feature_size: Channels of the output; 1.
        sampling_rate: Rate (Hz) of the model.
        padding_value: Value of padding samples; the models ignore them.
        hop_length: Samples a frame; batches are padded to whole frames.
    """

    model_input_names = ["input_values", "padding_mask"]
    _auto_class = "AutoFeatureExtractor"

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24000,
        padding_value: float = 0.0,
        hop_length: int = 9600,
        **kwargs,
    ):
        if not math.isfinite(padding_value):
            raise ValueError(f"`padding_value` must be finite, got {padding_value}")
        if feature_size != 1:
            raise ValueError(f"`feature_size` must be 1 (mono), got {feature_size}")
        if kwargs.get("padding_side", "right") != "right":
            raise ValueError(f"`padding_side` must be 'right', got {kwargs['padding_side']!r}")
        sampling_rate = check_integer(sampling_rate, "sampling_rate")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.hop_length = check_integer(hop_length, "hop_length")

    def __call__(
        self,
        raw_audio: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Prepare one recording or a batch of them.

        Args:
            raw_audio: A recording or a list of recordings. A recording is an array of shape `(samples,)`,
                `(channels, samples)` or `(samples, channels)`, a list of floats, the path of an audio file, or a
                `datasets` audio example. Integer arrays are read as PCM.
            sampling_rate: Rate (Hz) of arrays; they are resampled to the model's if it differs. Files and `datasets`
                examples carry theirs.
            padding: `True` or `"longest"`, `"max_length"`, or `False` for recordings of their own lengths.
            truncation: Whether to cut recordings to `max_length`.
            max_length: Samples (at the model's rate) for truncation and for padding to `"max_length"`.
            return_tensors: `"pt"`, `"np"` or `None` for lists of arrays.

        Returns:
            `input_values (batch, 1, samples)`, float32, and `padding_mask (batch, samples)`, 1 at valid samples. A
            padded batch has a whole number of frames.

        Raises:
            ValueError: If a recording is empty, unreadable, not finite or of a wrong shape, or its rate is missing.
            TypeError: If a recording is none of the above.
            FileNotFoundError: If a path names no file.
        """
        if truncation and max_length is None:
            raise ValueError("`max_length` must be given with `truncation=True`")
        if max_length is not None:
            check_integer(max_length, "max_length")
        if sampling_rate is not None:
            sampling_rate = check_sampling_rate(sampling_rate)
        recordings = [
            load_audio(audio, sampling_rate, self.sampling_rate, "raw_audio") for audio in self.as_batch(raw_audio)
        ]
        if truncation:
            recordings = [recording[:max_length] for recording in recordings]
        length = None if max_length is None else math.ceil(max_length / self.hop_length) * self.hop_length
        return self._padded(recordings, padding, length, return_tensors)

    def pad(
        self,
        processed_features: Any,
        padding: Any = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
    ) -> BatchFeature:
        """As inherited, of `(samples,)` each; or of what `__call__` returned, `(1, samples)` each, whose form it keeps.

        Args:
            processed_features: A batch, or a list of features.
            padding: As of `__call__`.
            max_length: Samples to pad to with `padding="max_length"`.
            truncation: As of any feature extractor; not for what `__call__` returned.
            pad_to_multiple_of: As of any feature extractor; what `__call__` returned is padded to whole frames.
            return_attention_mask: As of any feature extractor; what `__call__` returned has a `padding_mask`.
            return_tensors: As of `__call__`.

        Raises:
            ValueError: If an argument is not for such features.
        """
        features = processed_features
        if isinstance(features, (list, tuple)) and features and isinstance(features[0], Mapping):
            features = {name: [example[name] for example in features] for name in features[0]}
        values = features.get("input_values", ()) if isinstance(features, Mapping) else ()
        if len(values) == 0 or any(np.ndim(value) != 2 for value in values):
            rest = (truncation, pad_to_multiple_of, return_attention_mask, return_tensors)
            return super().pad(processed_features, padding, max_length, *rest)
        if truncation or pad_to_multiple_of is not None:
            name = "truncation" if truncation else "pad_to_multiple_of"
            raise ValueError(f"`{name}` is not for features of shape (1, samples): pass it with the recordings")
        recordings = [to_numpy(value, "input_values")[0] for value in values]
        if "padding_mask" in features:
            masks = [to_numpy(mask, "padding_mask") for mask in features["padding_mask"]]
            recordings = [row[: int(mask.sum())] for row, mask in zip(recordings, masks, strict=True)]
        return self._padded(recordings, padding, max_length, return_tensors)

    def _padded(
        self, recordings: list[np.ndarray], padding: bool | str, max_length: int | None, return_tensors: str | None
    ) -> BatchFeature:
        padded = super().pad(
            BatchFeature({"input_values": recordings}),
            padding=padding,
            max_length=max_length,
            pad_to_multiple_of=self.hop_length if padding else None,
            return_attention_mask=True,
        )
        features = BatchFeature(
            {
                "input_values": [np.asarray(values, np.float32)[None] for values in padded["input_values"]],
                "padding_mask": [np.asarray(mask, np.int32) for mask in padded["attention_mask"]],
            }
        )
        return features if return_tensors is None else features.convert_to_tensors(return_tensors)

    @staticmethod
    def as_batch(audio: Any, name: str = "raw_audio") -> list:
        """One recording as a batch of one; a list (a `datasets` column, an array of objects) of recordings as a list.

        Raises:
            ValueError: If the batch is empty.
        """
        objects = isinstance(audio, np.ndarray) and audio.dtype.kind == "O" and audio.ndim == 1
        if objects or (isinstance(audio, Sequence) and not isinstance(audio, (str, bytes, bytearray))):
            if len(audio) == 0:
                raise ValueError(f"`{name}` is empty: no recording")
            if not isinstance(audio[0], numbers.Number) and getattr(audio[0], "ndim", 1) > 0:
                return list(audio)
        return [audio]

    @classmethod
    def from_config(cls, config) -> "JepaDaamFeatureExtractor":
        """The feature extractor that fits a `JepaDaamConfig`."""
        return cls(sampling_rate=config.sampling_rate, hop_length=config.hop_length)


__all__ = ["JepaDaamFeatureExtractor"]
