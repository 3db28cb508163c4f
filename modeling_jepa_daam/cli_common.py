"""What the commands of `jepa-audio` share: options, messages, and a model loaded or refused.

Here and in the commands torch and transformers are imported where they are used: `--help` needs neither.
"""

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from .configuration_jepa_daam import JepaDaamConfig
    from .tokenization_jepa_daam import JepaAudioTokenizer

EXIT_SOME_FAILED, EXIT_USAGE = 1, 2
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
console, errors = Console(markup=False), Console(stderr=True, markup=False)


class Dtype(StrEnum):
    """Precision of the model; the quantizer always runs in float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


SHIPPED_MODEL = Path(__file__).parents[1] / "hub_configs" / "jepa-daam-24khz-small"
NO_WEIGHTS = (
    "no model: this installation came without any, they lie in hub_configs/ of the repository. Clone it, or give "
    "--model a checkpoint folder or a Hub id"
)
SHIPPED_HELP = "the clone's hub_configs/jepa-daam-24khz-small"
ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="Checkpoint folder or Hub id.", show_default=SHIPPED_HELP)
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
DtypeOption = Annotated[Dtype, typer.Option(help="Below float32 a few digits of the tokens change.")]


def fail(message: str) -> typer.Exit:
    """Print a message about wrong usage; the caller raises what comes back."""
    errors.print(f"error: {message}", style="bold red", highlight=False, soft_wrap=True)
    return typer.Exit(EXIT_USAGE)


def hide_progress_bars() -> None:
    """Transformers' own progress bars would run through ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def load_config(model: str) -> "JepaDaamConfig":
    """The configuration of a folder or Hub id, or a message and exit code 2."""
    if model == str(SHIPPED_MODEL) and not SHIPPED_MODEL.is_dir():
        raise fail(NO_WEIGHTS)
    if not Path(model).is_dir() and not HUB_ID.fullmatch(model):
        raise fail(f"no such folder: {model}")
    from .configuration_jepa_daam import JepaDaamConfig

    try:
        config = JepaDaamConfig.from_pretrained(model)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise fail(f"{model} is neither a folder with a config.json of ours nor such a Hub id: {error}") from error
    # Transformers would fetch and run what these name.
    for name in ("_attn_implementation", "_experts_implementation"):
        if "/" in str(getattr(config, name, None)):
            raise fail(f"{model}: its config.json asks for code of another repository: {getattr(config, name)}")
    return config


def lacks_weights(model: str) -> bool:
    """Whether it is a folder that has a configuration only."""
    return Path(model).is_dir() and not any(Path(model).glob("*.safetensors"))


def count_parameters(config: "JepaDaamConfig") -> dict[str, int]:
    """Parameters of the encoder and of the decoder."""
    import torch

    from .modeling_jepa_daam import JepaDaamModel

    with torch.device("meta"):
        codec = JepaDaamModel(config)
    return {name: sum(p.numel() for p in getattr(codec, name).parameters()) for name in ("encoder", "decoder")}


def load_tokenizer(model: str, device: str, dtype: Dtype) -> "JepaAudioTokenizer":
    """The tokenizer with its model in memory, or a message and exit code 2."""
    hide_progress_bars()
    config = load_config(model)
    if lacks_weights(model):
        raise fail(f"--model {model}: there are no weights in it; `jepa-audio init {model} OUT` makes untrained ones")
    from .tokenization_jepa_daam import JepaAudioTokenizer

    try:
        tokenizer = JepaAudioTokenizer.from_pretrained(model).to(device, dtype.value)
        tokenizer.model  # noqa: B018 (loads it)
    except Exception as error:  # of any kind: a checkpoint that is not ours may be damaged in any way
        kind = "" if isinstance(error, (OSError, ValueError, RuntimeError)) else f"{type(error).__name__}: "
        raise fail(f"--model {model}: {kind}{error}") from error
    if config.untrained_seed is not None:
        errors.print(f"note: untrained weights (seed {config.untrained_seed}): noise comes back, not speech")
    return tokenizer
