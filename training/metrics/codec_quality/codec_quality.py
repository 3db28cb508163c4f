"""How well a speech codec reconstructs: a module of the `evaluate` library."""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .alignment import constant_lag, remove_lag
from .clip_quality import FIGURES, PESQ_MISSING, reconstruction_quality
from .intelligibility import stoi_scores
from .spectra import mr_stft_distance

# The last two are imported because evaluate brings along only the files that this one names, not what those import.
__all__ = ["CodecQuality", "mr_stft_distance", "stoi_scores"]

_DESCRIPTION = """\
Quality of reconstructed speech beside its originals: wide-band PESQ, STOI and ESTOI (computed at 16 and 10 kHz), SI-SDR
after alignment (dB), mean absolute difference of natural-log mel spectrograms (80 bands, 10 ms), and multi-resolution
STFT distance (spectral convergence + log magnitude, mean of five resolutions). For codecs, vocoders and enhancement.
"""

_INPUTS_DESCRIPTION = """
Args:
    predictions: list of reconstructions, each a list or array of floats (mono, full scale 1).
    references: list of originals; each as long as its reconstruction, at least 0.1 s.
    sampling_rate: of all of them, Hz.
    figures: which to take, of "pesq", "stoi", "estoi", "si_sdr_db", "mel_distance", "mr_stft_distance". Default: all.
    bandwidth_hz: where the originals' own spectrum ends (8000 for speech from 16 kHz at a higher rate): what lies above
        is left out of the two spectral distances. Default: None, all counts.
    align: whether to take away the codec's delay first: one lag for all clips, within 30 ms, found by STOI on the first
        three. Default: False.

Returns:
    One mean for each figure, over the clips that have it, and
    per_clip: for each figure, a list with one number for each clip; None where a clip has none (silence, say).
    lag_samples: with align, the delay that was taken away.
    missing: figures that were not taken because a package is not installed, with what to install; absent if none.

Examples:

    >>> import evaluate, numpy as np
    >>> codec_quality = evaluate.load("training/metrics/codec_quality")
    >>> original = np.random.default_rng(0).normal(0, 0.1, 16000)
    >>> figures = ["si_sdr_db", "mel_distance"]
    >>> results = codec_quality.compute(
    ...     predictions=[original / 2], references=[original], sampling_rate=16000, figures=figures
    ... )
    >>> print(results["si_sdr_db"], round(results["mel_distance"], 3))
    100.0 0.693
"""

_CITATION = """\
@techreport{itu2007p8622,
  title = {Wideband extension to Recommendation P.862 for the assessment of wideband telephone networks and speech
           codecs},
  institution = {International Telecommunication Union}, number = {ITU-T P.862.2}, year = {2007}
}
@article{taal2011stoi,
  title = {An Algorithm for Intelligibility Prediction of Time-Frequency Weighted Noisy Speech},
  author = {Taal, Cees H. and Hendriks, Richard C. and Heusdens, Richard and Jensen, Jesper},
  journal = {IEEE Transactions on Audio, Speech, and Language Processing}, volume = {19}, number = {7}, year = {2011}
}
@article{jensen2016estoi,
  title = {An Algorithm for Predicting the Intelligibility of Speech Masked by Modulated Noise Maskers},
  author = {Jensen, Jesper and Taal, Cees H.},
  journal = {IEEE/ACM Transactions on Audio, Speech, and Language Processing}, volume = {24}, number = {11},
  year = {2016}
}
@inproceedings{leroux2019sdr,
  title = {{SDR} -- Half-baked or Well Done?},
  author = {Le Roux, Jonathan and Wisdom, Scott and Erdogan, Hakan and Hershey, John R.},
  booktitle = {ICASSP}, year = {2019}
}
@inproceedings{yamamoto2020parallel,
  title = {Parallel {WaveGAN}: A Fast Waveform Generation Model Based on Generative Adversarial Networks with
           Multi-Resolution Spectrogram},
  author = {Yamamoto, Ryuichi and Song, Eunwoo and Kim, Jae-Min},
  booktitle = {ICASSP}, year = {2020}
}
"""


class CodecQuality(evaluate.Metric):
    """See `inputs_description`."""

    def _info(self) -> evaluate.MetricInfo:
        clip = datasets.Sequence(datasets.Value("float32"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS_DESCRIPTION,
            features=datasets.Features({"predictions": clip, "references": clip}),
            license="Apache-2.0",
            reference_urls=[
                "https://www.itu.int/rec/T-REC-P.862.2",
                "https://pypi.org/project/pesq/",
                "https://pypi.org/project/pystoi/",
                "https://arxiv.org/abs/1811.02508",
                "https://arxiv.org/abs/1910.11480",
            ],
        )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[Sequence[float]],
        sampling_rate: int | None = None,
        figures: Sequence[str] = FIGURES,
        bandwidth_hz: float | None = None,
        align: bool = False,
    ) -> dict:
        if sampling_rate is None:
            raise ValueError("`sampling_rate` must be given, in Hz: `compute(..., sampling_rate=16000)`")
        originals = [np.asarray(clip, np.float32) for clip in references]
        reconstructions = [np.asarray(clip, np.float32) for clip in predictions]
        results: dict = {}
        if align:
            lag = constant_lag(originals, reconstructions, sampling_rate)
            reconstructions = [remove_lag(clip, lag, len(clip)) for clip in reconstructions]
            results["lag_samples"] = lag
        clips = [
            reconstruction_quality(original, reconstructed, sampling_rate, bandwidth_hz, figures)
            for original, reconstructed in zip(originals, reconstructions, strict=True)
        ]
        for figure in figures:
            if values := [clip[figure] for clip in clips if figure in clip]:
                results[figure] = sum(values) / len(values)
        results["per_clip"] = {figure: [clip.get(figure) for clip in clips] for figure in figures}
        if PESQ_MISSING and "pesq" in figures:
            del results["per_clip"]["pesq"]
            results["missing"] = {"pesq": f"{PESQ_MISSING} (pip install pesq)"}
        return results
