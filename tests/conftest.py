"""Small models and one recorded sentence for every test."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a wrong folder's name must not go looking for it

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, settings

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, make_untrained_checkpoint

settings.register_profile(
    "tests",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("tests")

collect_ignore = ["transformers_suite"]  # runs inside transformers' own tests: see its run.py

ROOT = Path(__file__).parents[1]
SPEECH = ROOT / "tests" / "audio" / "1688-142285-0003.flac"
HUB_CONFIGS = sorted(path.parent for path in (ROOT / "hub_configs").glob("*/config.json"))

# Strides 4, 3, 5: a hop of 60 samples, odd and even, that a test can walk sample by sample.
TINY = {
    "downsampling_ratios": (4, 3, 5),
    "encoder_channels": (4, 6, 8, 8),
    "encoder_residual_blocks": (1, 2, 1),
    "encoder_kernel_sizes": (3, 3, 3),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 5,
    "predictor_hidden_size": 16,
    "predictor_num_hidden_layers": 2,
    "predictor_num_attention_heads": 2,
    "predictor_intermediate_size": 32,
    "decoder_channels": (8, 8, 6, 4),
    "decoder_kernel_sizes": ((3, 7), (3,), (3, 5)),
    "chunk_frames": 7,
}
# The same with an STFT in place of the first two stages of the encoder.
STFT = TINY | {
    "encoder_stft_stages": 2,
    "encoder_channels": (6, 8),
    "encoder_residual_blocks": (1,),
    "encoder_kernel_sizes": (3,),
}


@pytest.fixture
def tiny_config() -> JepaDaamConfig:
    return JepaDaamConfig(**TINY)


@pytest.fixture(scope="session")
def tiny_model() -> JepaDaamModel:
    torch.manual_seed(0)
    return JepaDaamModel(JepaDaamConfig(**TINY)).eval()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return make_untrained_checkpoint(JepaDaamConfig(**TINY), tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def nano_folder(tmp_path_factory) -> Path:
    config = JepaDaamConfig.from_pretrained(ROOT / "hub_configs" / "jepa-daam-24khz-nano")
    return make_untrained_checkpoint(config, tmp_path_factory.mktemp("nano") / "checkpoint")


@pytest.fixture
def tiny_tokenizer(tiny_folder) -> JepaAudioTokenizer:
    return JepaAudioTokenizer.from_pretrained(tiny_folder)


@pytest.fixture
def nano_tokenizer(nano_folder) -> JepaAudioTokenizer:
    return JepaAudioTokenizer.from_pretrained(nano_folder)


@pytest.fixture(scope="session")
def speech() -> np.ndarray:
    """The recorded sentence, `(samples,)`, float32, 24 kHz."""
    samples, sampling_rate = soundfile.read(SPEECH, dtype="float32")
    assert sampling_rate == 24000
    return samples


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    """`(samples,)`, float32, about as loud as speech."""
    return np.random.default_rng(seed).normal(0.0, 0.1, samples).astype(np.float32)
