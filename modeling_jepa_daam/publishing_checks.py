"""What must hold of a checkpoint's folder before it is published. Nothing here needs the network."""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

CARD_NAME = "README.md"
TOKENS_NAME = "tokens.json"  # SHA-256 of the tokens of recordings, by the recording's name
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
SHIPPED_IMPORTS = frozenset({"huggingface_hub", "numpy", "torch", "transformers"}) | sys.stdlib_module_names
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
SECRETS = {
    "a token of the Hub": re.compile(rb"\bhf_[A-Za-z0-9]{20,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "an access key": re.compile(rb"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bsk-[A-Za-z0-9_-]{32,}"),
}
ABSOLUTE_PATH = re.compile(r"(?<![\w.~/<-])/[A-Za-z]\w*/[^\s\"'`)]*|\b[A-Za-z]:\\+Users\\+[^\s\"'`)]*")
RECORDINGS = Path(__file__).parents[1] / "tests" / "audio"  # of a clone

# Runs where this package cannot be imported. Prints the digest of each recording's tokens.
FRESH_PROCESS = """
import hashlib, json, sys
sys.modules["modeling_jepa_daam"] = None
import numpy as np
import transformers
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization,
                          AutoModelForPreTraining, AutoTokenizer)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
folder, *recordings = sys.argv[1:]
for auto in (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, AutoModelForPreTraining):
    assert type(auto.from_pretrained(folder, trust_remote_code=True)).__module__.startswith("transformers_modules.")
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = {path: np.array(tokenizer(path)["input_ids"], dtype="<i8") for path in recordings}
print(json.dumps({path: hashlib.sha256(tokens.tobytes()).hexdigest() for path, tokens in ids.items()}))
"""


def published_files(folder: Path) -> list[Path]:
    """What is sent of a folder, relative to it, in order: all but hidden files and Python's caches."""
    found = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [path for path in found if not any(part.startswith(".") or part == "__pycache__" for part in path.parts)]


def check_folder(folder: Path, recordings: Path = RECORDINGS) -> Iterator[tuple[str, list[str]]]:
    """Check a checkpoint's folder.

    Args:
        folder: Of the checkpoint.
        recordings: Where the recordings of `tokens.json` lie that the folder does not hold itself.

    Yields:
        What was checked, and what is wrong: nothing, if all is well. What needs a process of its own comes last, and
        only if all else is well.
    """
    files = published_files(folder)
    sound = True
    for title, problems in (
        ("weights are safetensors, and nothing is a pickle", _weights(folder, files)),
        ("code is complete", _code(folder)),
        ("the card's metadata and licence", _card(folder)),
        ("no secret", _secrets(folder, files)),
        ("no absolute path", _absolute_paths(folder, files)),
    ):
        found = list(problems)
        sound = sound and not found
        yield title, found
    if sound:
        yield (
            "every auto class loads in a fresh process, and the tokens are those noted",
            list(_loads(folder, recordings)),
        )


def _weights(folder: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        if file.suffix in PICKLE_SUFFIXES or _is_pickle(folder / file):
            yield f"{file} is a pickle, which runs code when it is read"
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        yield f"no {SAFE_WEIGHTS_NAME}"
        return
    try:
        with safe_open(folder / SAFE_WEIGHTS_NAME, "pt"):
            pass
    except SafetensorError as error:
        yield f"{SAFE_WEIGHTS_NAME} cannot be read: {error}"


def _is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of protocol 2 or later, or an archive, as torch writes it."""
    with path.open("rb") as file:
        start = file.read(2)
    return (start[:1] == b"\x80" and start[1:] in (b"\x02", b"\x03", b"\x04", b"\x05")) or zipfile.is_zipfile(path)


def _code(folder: Path) -> Iterator[str]:
    """Follow `from .sibling import name` from the classes that the configurations name, as transformers does."""
    needed: dict[str, str] = {}
    for name in (CONFIG_NAME, "preprocessor_config.json", "tokenizer_config.json"):
        try:
            auto_map = json.loads((folder / name).read_text("utf-8")).get("auto_map", {})
        except (OSError, ValueError) as error:
            yield f"{name}: {error}"
            continue
        if not auto_map:
            yield f"{name} names no class"
        for reference in auto_map.values():
            for each in reference if isinstance(reference, list) else [reference]:
                if each is not None:
                    needed.setdefault(each.split(".")[0], name)
    pending = list(needed)
    while pending:
        module = pending.pop()
        path = folder / f"{module}.py"
        if not path.is_file():
            yield f"no {path.name}, which {needed[module]} needs"
            continue
        siblings, wrong = _imports(path)
        yield from wrong
        for sibling in sorted(siblings - needed.keys()):
            needed[sibling] = path.name
            pending.append(sibling)


def _imports(path: Path) -> tuple[set[str], list[str]]:
    """Modules beside a file that it imports, and imports that fail where only transformers and torch are."""
    siblings, wrong = set(), []
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, ValueError) as error:
        return set(), [f"{path.name} is no Python: {error}"]
    guarded = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level == 1 and node.module and "." not in node.module:
                siblings.add(node.module)
            else:
                wrong.append(f"{path.name}: `{ast.unparse(node)}` is not followed on the Hub")
        elif isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in guarded:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for package in sorted({name.split(".")[0] for name in names} - SHIPPED_IMPORTS):
                wrong.append(f"{path.name} imports {package}, which users of the Hub may not have")
    return siblings, wrong


def _card(folder: Path) -> Iterator[str]:
    """Metadata of the card, as far as it can be judged without the Hub, which judges it again."""
    if not (folder / CARD_NAME).is_file():
        yield f"no {CARD_NAME}, the model card: in a clone, `python -m training.model_card render {folder}` writes one"
        return
    try:
        data = ModelCard.load(folder / CARD_NAME).data
    except (ValueError, OSError, yaml.YAMLError) as error:
        yield f"{CARD_NAME}: {error}"
        return
    if not isinstance(data.license, str) or not data.license:
        yield f"{CARD_NAME}: no licence: its metadata must have `license`"
    elif data.license == "other" and not (data.license_name and data.license_link):
        yield f"{CARD_NAME}: `license: other` goes with `license_name` and `license_link`"
    for key in ("library_name", "pipeline_tag"):
        if not isinstance(data.get(key), str):
            yield f"{CARD_NAME}: `{key}` must be a text, got {data.get(key)!r}"
    for language in _list(data.language):
        if not LANGUAGE.fullmatch(str(language)):
            yield f"{CARD_NAME}: `language` must hold ISO 639 codes, got {language!r}"
    for dataset in _list(data.datasets):
        try:
            validate_repo_id(dataset)
        except HFValidationError as error:
            yield f"{CARD_NAME}: `datasets`: {error}"


def _list(value: str | list[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _secrets(folder: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        content = _header(folder / file) if file.suffix == ".safetensors" else (folder / file).read_bytes()
        for name, pattern in SECRETS.items():
            if pattern.search(content):
                yield f"{file} holds {name}"


def _header(path: Path) -> bytes:
    """The text at the start of a safetensors file."""
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))


def _absolute_paths(folder: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        content = (folder / file).read_bytes() if file.suffix != ".safetensors" else _header(folder / file)
        try:
            found = ABSOLUTE_PATH.search(content.decode("utf-8"))
        except UnicodeDecodeError:  # sound or picture
            continue
        if found:
            yield f"{file} names a path of one machine: {found[0]}"


def _loads(folder: Path, recordings: Path) -> Iterator[str]:
    if not (folder / TOKENS_NAME).is_file():
        yield f"no {TOKENS_NAME}: in a clone, `python -m training.model_card tokens {folder} RECORDING` writes it"
        return
    try:
        noted = dict(json.loads((folder / TOKENS_NAME).read_text("utf-8")))
    except (ValueError, TypeError) as error:
        yield f"{TOKENS_NAME} is damaged: {error}"
        return
    found = {name: next((p for p in (folder / name, recordings / name) if p.is_file()), None) for name in noted}
    if missing := [name for name, path in found.items() if path is None]:
        yield f"{TOKENS_NAME} tells of {', '.join(missing)}, which is neither in the folder nor in {recordings}"
        return
    if not noted:
        yield f"{TOKENS_NAME} tells of no recording"
        return
    paths = {str(path.absolute()): name for name, path in found.items() if path is not None}
    with tempfile.TemporaryDirectory() as place:
        environment = {**os.environ, "HF_HOME": place, "HF_HUB_OFFLINE": "1"}
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_MODULES_CACHE"):
            environment.pop(name, None)
        done = subprocess.run(
            [sys.executable, "-c", FRESH_PROCESS, str(folder.absolute()), *paths],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        yield f"a fresh process could not load it: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        return
    for path, digest in json.loads(done.stdout.splitlines()[-1]).items():
        if digest != noted[paths[path]]:
            yield f"tokens of {paths[path]} have SHA-256 {digest[:12]}, {TOKENS_NAME} says {noted[paths[path]][:12]}"
