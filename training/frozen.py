"""Models as a checkpoint folder has them, or untrained ones of its configuration, to measure and not to train."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.files import sha256_of
from modeling_jepa_daam.modeling_jepa_daam import JepaDaamPreTrainedModel

Model = TypeVar("Model", bound=JepaDaamPreTrainedModel)


def load_frozen(model_class: type[Model], folder: str | Path, seed: int | None = None) -> Model:
    """The model of a checkpoint folder, float32, in evaluation mode.

    Args:
        model_class: What to load: the codec, or the encoder alone.
        folder: A checkpoint, or with a seed any folder with a configuration.
        seed: Draw the weights from it instead of reading the folder's.

    Raises:
        ValueError: If there is no such folder, or it lacks weights of the model.
    """
    if not Path(folder).is_dir():  # else transformers would look for it on the Hub
        raise ValueError(f"a model must be given as an existing folder, got {folder}")
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return model_class(JepaDaamConfig.from_pretrained(folder)).eval()
    loaded: Any = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if report["missing_keys"]:  # transformers would draw them at random and go on
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ValueError(f"{folder} lacks weights of {model_class.__name__}: {missing}")
    return model.eval()


def described(folder: str | Path) -> str:
    """A checkpoint for the head of a report: its folder, and how the digest of its weights begins."""
    return f"`{folder}` (SHA-256 of its weights begins {sha256_of(Path(folder) / 'model.safetensors')[:12]})"


def frozen_by_name(
    model_class: type[Model], checkpoints: Sequence[str], untrained: Sequence[str] = ()
) -> dict[str, Model]:
    """Load `[NAME=]FOLDER` checkpoints and `CONFIG_FOLDER[:SEED]` untrained models; the folder names them.

    Raises:
        ValueError: If a folder cannot be used, or two models have one name.
    """
    named = []
    for value in checkpoints:
        name, _, folder = value.rpartition("=")
        named.append((name or Path(folder).resolve().name, load_frozen(model_class, folder)))
    for value in untrained:
        folder, _, seed = value.rpartition(":") if value.rpartition(":")[2].isdecimal() else (value, "", "0")
        named.append((f"{Path(folder).resolve().name}, untrained {seed}", load_frozen(model_class, folder, int(seed))))
    models = dict(named)
    if len(models) < len(named):
        raise ValueError(f"models must be NAME=FOLDER with names that differ, got {[name for name, _ in named]}")
    return models
