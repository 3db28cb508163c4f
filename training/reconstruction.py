"""A fixed set of clips, reconstructed now and then during Stage 2: what comes back, and how good it is."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from modeling_jepa_daam import JepaDaamModel
from modeling_jepa_daam.packing import group_vocabulary_sizes

from .codec import transform_rows
from .config import CodecConfig, DataConfig
from .data import BatchLoader
from .losses import envelope_loss, spectrogram_loss
from .quality import best_constant_mel_distance, mean_quality, reconstruction_quality, token_statistics
from .run import EVALUATION_SEED, run_recordings
from .spectrogram_head import SpectrogramHead


@dataclass(frozen=True)
class Clip:
    """A segment of a recording.

    Args:
        name: Of the recording, and the segment's place in it.
        samples: `(samples,)`, float32, at the model's rate.
        bandwidth_hz: Where its spectrum ends.
    """

    name: str
    samples: np.ndarray
    bandwidth_hz: float


def fixed_clips(config: CodecConfig, sampling_rate: int) -> list[Clip]:
    """The first `run.eval_clips` segments of held-out speakers, in an order that no setting but the data's changes.

    Without held-out speakers they are of the recordings that are trained on.

    Raises:
        ValueError: If there are fewer.
    """
    if config.run.eval_clips == 0:
        return []
    share = config.data.held_out_share
    cut = DataConfig(
        segment_s=config.run.eval_clip_s,
        min_segment_s=min(config.data.min_segment_s, config.run.eval_clip_s / 2),
        batch_size=1,
        bucket_batches=1,
        num_workers=0,
    )
    loader = BatchLoader(run_recordings(config, share > 0.0), cut, sampling_rate, EVALUATION_SEED, max_epochs=1)
    clips = []
    for batch in loader.take(config.run.eval_clips):
        name, index, _ = batch.segments[0]
        clips.append(Clip(f"{name}#{index}", batch.samples[0].numpy(), float(batch.bandwidth_hz[0])))
    if len(clips) < config.run.eval_clips:
        raise ValueError(
            f"`run.eval_clips` is {config.run.eval_clips}, but `data.held_out_share` = {share} leaves only "
            f"{len(clips)} segments of at least {cut.min_segment_s} s to reconstruct: lower the one or raise the other"
        )
    return clips


def reconstruct(codec: JepaDaamModel, samples: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
    """Samples to tokens to samples, as `JepaAudioTokenizer` does it.

    Returns:
        `(samples,)`, float32, as long as the input; and the tokens, `(frames, tokens_per_frame)`.
    """
    with torch.inference_mode():
        codes = codec.encode(torch.from_numpy(samples)[None, None], return_dict=False)[0]
        audio = codec.decode(codes, return_dict=False)[0]
    return audio[0, 0, : len(samples)].float().cpu().numpy(), codes[0].T.cpu()


def spectrogram_distance(codec: JepaDaamModel, head: SpectrogramHead, clips: list[Clip]) -> float:
    """Mean `spectrogram_loss`, or `envelope_loss`, of what the head predicts from the clips' digits.

    Args:
        codec: In evaluation mode.
        head: Reads the features of the codec's decoder.
        clips: What to predict.
    """
    hop, rate, distances = codec.config.hop_length, codec.config.sampling_rate, []
    with torch.inference_mode():
        for clip in clips:
            [latents] = codec.encode_waveforms([torch.from_numpy(clip.samples)])
            quantized = codec.quantizer(latents[None])[0].transpose(1, 2)
            predicted = head(codec.decoder.upsample(quantized, num_stages=head.num_stages)[0])
            real = F.pad(torch.from_numpy(clip.samples), (0, len(latents) * hop - len(clip.samples)))
            told = rate, torch.tensor([len(clip.samples)]), torch.tensor([clip.bandwidth_hz])
            if codec.config.harmonic_source:
                rows = transform_rows(codec, real[None].to(codec.device))[:, : codec.config.transform_bands]
                distance = envelope_loss(predicted.cpu(), rows.transpose(1, 2).cpu(), *told, hop_length=head.hop_length)
            else:
                distance = spectrogram_loss(predicted.cpu(), real[None], *told)
            distances.append(distance.item())
    return sum(distances) / len(distances)


def evaluate(codec: JepaDaamModel, clips: list[Clip], held_out: bool) -> tuple[dict[str, float], list[np.ndarray]]:
    """Figures of the reconstructions and of the tokens, and the reconstructions.

    Args:
        codec: In evaluation mode.
        clips: What to reconstruct.
        held_out: Whether the clips are kept from training; goes into the names of the figures.
    """
    config = codec.config
    reconstructions, tokens, qualities = [], [], []
    for clip in clips:
        reconstruction, of_clip = reconstruct(codec, clip.samples)
        reconstructions.append(reconstruction)
        tokens.append(of_clip)
        qualities.append(reconstruction_quality(clip.samples, reconstruction, config.sampling_rate, clip.bandwidth_hz))
    constant = best_constant_mel_distance(
        [clip.samples for clip in clips], config.sampling_rate, [clip.bandwidth_hz for clip in clips]
    )
    sizes = group_vocabulary_sizes(config.levels, config.group_size)
    statistics = token_statistics([of_clip.numpy() for of_clip in tokens], sizes, config.levels, config.group_size)
    prefix = "held_out" if held_out else "seen"
    quality = mean_quality(qualities) | {"mel_distance_of_constant": constant}
    figures = {f"{prefix}/{name}": value for name, value in quality.items()}
    figures |= {f"tokens/{name}": value for name, value in statistics.items() if isinstance(value, float)}
    return figures, reconstructions
