"""Tokens of audio that comes in pieces."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .audio import Resampler, check_sampling_rate, mix_down
from .causal import CausalMemory

if TYPE_CHECKING:
    from .tokenization_jepa_daam import JepaAudioTokenizer


class AudioTokenStream:
    """Tokens of audio that comes in pieces: the same as of the whole recording.

    With a causal encoder (`feature_bands`), the tokens of a frame are final 20 ms after the frame's last sample, and
    the state of the stream is small, of constant size, and pickles. The paper's encoder sees `chunk_frames` frames at
    once, so its tokens become final a chunk at a time, the rest on `close`.

    Args:
        tokenizer: The tokenizer.
        sampling_rate: Rate (Hz) of the pieces.
        salience: Whether to collect the salience of the frames, for `salience()`.

    Raises:
        ValueError: If the rate is missing or not positive, or the model has no gates for `salience`.
        TypeError: If the rate is no number.
    """

    def __init__(self, tokenizer: "JepaAudioTokenizer", sampling_rate: int, salience: bool = False):
        self._tokenizer = tokenizer
        self._resampler = Resampler(check_sampling_rate(sampling_rate), tokenizer.sampling_rate)
        self._pending = np.zeros(0, np.float32)
        self._memory = CausalMemory()
        self._started = False
        self._closed = False
        self._salience: list[torch.Tensor] | None = [] if salience else None
        self.num_samples = 0
        """Samples taken so far, at the model's rate."""

    def push(self, samples: Any) -> list[int]:
        """Take a piece.

        Args:
            samples: `(samples,)`, or `(samples, channels)` as soundfile and sounddevice give them; may be empty.

        Returns:
            Ids that became final, maybe none.

        Raises:
            ValueError: If a sample is not finite, the shape is wrong, or the stream is closed.
            TypeError: If the piece does not hold real numbers.
        """
        self._check_open()
        if np.size(samples) == 0:
            return []
        return self._take(self._resampler.push(mix_down(samples, "samples", channel_axis=1)), last=False)

    def close(self) -> list[int]:
        """End the recording.

        Returns:
            The remaining ids.

        Raises:
            ValueError: If nothing was pushed, or the stream is closed.
        """
        self._check_open()
        self._closed = True
        ids = self._take(self._resampler.close(), last=True)
        if self.num_samples == 0:
            raise ValueError("`samples`: the stream was closed before any came")
        return ids

    def salience(self) -> np.ndarray:
        """Salience of the frames whose ids are final: `(frames, gates)`, float32.

        Raises:
            ValueError: If the stream does not collect it, or no frame is final.
        """
        if not self._salience:
            raise ValueError("`salience` needs a stream that was made with `salience=True`, and a final frame")
        return torch.cat(self._salience).numpy()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("`samples`: the stream is closed; make a new one for another recording")

    @torch.inference_mode()
    def _take(self, samples: np.ndarray, last: bool) -> list[int]:
        self.num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        model = self._tokenizer.model
        if model.config.feature_bands > 0:
            return self._take_causally(model, last)
        chunk_samples = model.config.chunk_frames * model.config.hop_length
        ready = len(self._pending) if last else len(self._pending) // chunk_samples * chunk_samples
        if ready == 0:
            return []
        final = [torch.from_numpy(self._pending[:ready])]
        if self._salience is None:
            ids = model.waveforms_to_ids(final)[0]
        else:
            [ids], [salience] = model.waveforms_to_ids_with_salience(final)
            self._salience.append(salience)
        self._pending = self._pending[ready:]  # only now: after an error, nothing is lost
        return ids

    def _take_causally(self, model: Any, last: bool) -> list[int]:
        # Pending are the margin before the next frame, and what has come since.
        hop, margin = model.config.hop_length, model.spectral_features.margin
        pending = self._pending if self._started else np.pad(self._pending, (margin, 0))
        frames = max(0, len(pending) - 2 * margin) // hop
        if last:
            frames = -(-(len(pending) - margin) // hop)
            pending = np.pad(pending, (0, frames * hop + 2 * margin - len(pending)))
        memory, ids, saliences = self._memory, [], []
        for frame in range(frames):
            block = torch.from_numpy(pending[frame * hop : (frame + 1) * hop + 2 * margin]).to(model.device)
            encoded = model.encode_block(block, memory)
            memory = encoded.memory
            ids += model.latents_to_codes(encoded.latents).T.flatten().tolist()
            if self._salience is not None:
                saliences.append(torch.stack([gate.mean(dim=-1) for gate in encoded.gates], dim=-1))
        # Only now: after an error, nothing is lost.
        self._pending, self._memory, self._started = pending[frames * hop :], memory, True
        if self._salience is not None:
            self._salience += saliences
        return ids
