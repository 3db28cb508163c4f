"""One folder for a whole checkpoint: model, feature extractor and tokenizer, with the code of all of them."""

import os
from pathlib import Path

import torch
from transformers import PreTrainedModel

from .configuration_jepa_daam import JepaDaamConfig
from .feature_extraction_jepa_daam import JepaDaamFeatureExtractor
from .files import replacing
from .modeling_jepa_daam import JepaDaamModel
from .tokenization_jepa_daam import JepaAudioTokenizer


def save_checkpoint(model: PreTrainedModel, folder: str | os.PathLike, half: bool = False) -> Path:
    """Save a model with its feature extractor and tokenizer; the folder appears whole or not at all.

    The configuration names the SHA-256 of the weights, and loading verifies it.

    Args:
        model: Any model of this package; a `JepaDaamModel` for a checkpoint that tokenizes.
        folder: Where to; must not exist, or be empty.
        half: Whether to store the weights in float16, half the size; they load as float32 all the same. The
            quantizer's statistics stay as they are.

    Returns:
        The folder.

    Raises:
        FileExistsError: If the folder holds something.
    """
    folder = Path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"`folder` must be new or empty, got {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing(folder) as temporary:
        state = model.state_dict()
        if half:
            state = {name: value if name.startswith("quantizer.") else value.half() for name, value in state.items()}
        model.save_pretrained(temporary, state_dict=state)
        JepaDaamFeatureExtractor.from_config(model.config).save_pretrained(temporary)
        JepaAudioTokenizer.from_config(model.config).save_pretrained(temporary)
        for file in temporary.iterdir():
            file.chmod(0o644)  # safetensors writes for its owner alone
    return folder


def make_untrained_checkpoint(config: JepaDaamConfig, folder: str | os.PathLike, seed: int = 0) -> Path:
    """Save a codec with weights drawn from a seed: real tokens and real speed, but speech only after training.

    Args:
        config: The model's configuration.
        folder: Where to; must not exist, or be empty.
        seed: Seed of the weights; torch's own random state is left as it was.

    Returns:
        The folder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JepaDaamModel(config)
    model.config.untrained_seed = seed
    return save_checkpoint(model, folder)
