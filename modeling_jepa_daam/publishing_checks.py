"""What must hold of a checkpoint's folder before it is published. Nothing here needs the network."""

import ast
import codecs
import json
import os
import pickletools
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

CARD_NAME = "README.md"
TOKENS_NAME = "tokens.json"  # SHA-256 of the tokens of recordings, by the recording's name
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
SHIPPED_IMPORTS = (
    frozenset({"huggingface_hub", "numpy", "safetensors", "torch", "transformers"}) | sys.stdlib_module_names
)
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
SECRETS = {
    "a token of the Hub": re.compile(rb"\b(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    "a private key": re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----"),
    "an access key": re.compile(
        rb"\b(?:"
        rb"(?:AKIA|ASIA)[A-Z0-9]{16}\b"  # AWS
        rb"|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,}"  # GitHub
        rb"|gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[A-Za-z0-9_.-]{20,}"  # GitLab
        rb"|xox[a-z]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{10,}"  # Slack
        rb"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}"  # Google
        rb"|sk-[A-Za-z0-9_-]{32,}|[rs]k_live_[A-Za-z0-9]{20,}"  # OpenAI, Anthropic, Stripe
        rb"|wandb_v\d_[A-Za-z0-9_]{20,}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,}|dckr_pat_[A-Za-z0-9_-]{20,}"
        rb"|eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"  # JSON web token
        rb")"
    ),
    "a secret access key": re.compile(  # of AWS, Azure and wandb: bare characters, known by the name before them
        rb"(?i:aws.{0,20}secret.{0,20}|secret.?access.?key.{0,8}|AccountKey)[\s\"':=]{1,8}[A-Za-z0-9/+]{40,}"
        rb"|(?i:wandb)[^\n]{0,60}(?:\n[^\n]{0,60}){0,3}?\b[0-9a-f]{40}\b"
    ),
    "a password": re.compile(rb"\b[a-z][a-z0-9+.-]*://[^\s/:@<>{}\"']+:[^\s/:@<>{}\"']+@[\w.-]+"),  # in an address
}
# Of text; `\/` is how JSON may write a slash.
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.~/<-])/[A-Za-z]\w*/[^\s\"'`)]*"
    r"|\bfile:/+[^\s\"'`)]+"
    r"|\b[A-Za-z]:\\+Users\\+[^\s\"'`)]*|\b[A-Za-z]:(?:\\{1,2}|/)[\w.-]+(?:\\{1,2}|/)[^\s\"'`)]*"
)
# Of sound and pictures, where two slashes may come by chance.
HOME_PATH = re.compile(
    rb"/(?:home|root|Users|mnt|media|tmp|opt|srv|scratch|workspace|data|var)/[\w.-]{2,}[\w./-]*"
    rb"|[A-Za-z]:\\{1,2}Users\\{1,2}[\w.-]{2,}"
)
ARCHIVES = {b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"\x04\x22\x4d\x18"}
RUNS_CODE = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "BUILD", "NEWOBJ", "NEWOBJ_EX", "PERSID"})
CHECKED_BYTES = 2**20  # of a file, when its kind is looked for
MAX_PICKLE_OPERATIONS = 10_000  # that are looked at; no other file begins with so many
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
        only if weights, code and `tokens.json` are well.
    """
    files = published_files(folder)
    loadable = True
    for title, problems, needed in (
        ("weights are safetensors, and nothing is a pickle", _weights(folder, files), True),
        ("code is complete", _code(folder), True),
        ("the card's metadata and licence", _card(folder), False),
        ("no secret", _secrets(folder, files), False),
        ("no absolute path", _absolute_paths(folder, files), False),
        ("no link out of the folder", _links(folder), True),
        (f"the recordings of {TOKENS_NAME} are there", _noted_tokens(folder, recordings), True),
    ):
        found = list(problems)
        loadable = loadable and not (needed and found)
        yield title, found
    if loadable:
        yield (
            "every auto class loads in a fresh process, and the tokens are those noted",
            list(_loads(folder, recordings)),
        )


def _weights(folder: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        if problem := _opaque(folder / file):
            yield f"{file} {problem}"
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        yield f"no {SAFE_WEIGHTS_NAME}"
        return
    try:
        with safe_open(folder / SAFE_WEIGHTS_NAME, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        yield f"{SAFE_WEIGHTS_NAME} cannot be read: {error}"


def _opaque(path: Path) -> str | None:
    """Why reading a file would run code, or why what is in it cannot be checked."""
    with path.open("rb") as file:
        start = file.read(CHECKED_BYTES)
    if path.suffix in PICKLE_SUFFIXES or _is_pickle(start):
        return "is a pickle, which runs code when it is read"
    if zipfile.is_zipfile(path) or tarfile.is_tarfile(path) or any(start.startswith(each) for each in ARCHIVES):
        return "is an archive: it may hold a pickle, which runs code when it is read"
    if start.startswith(b"\x93NUMPY"):
        try:
            np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            return f"is an array of objects, which is a pickle, or damaged: {error}"
    return None


def _is_pickle(start: bytes) -> bool:
    """Whether the first bytes of a file are a pickle, of any protocol, that runs code or has nothing behind it."""
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return True
    names: list[str] = []
    try:
        for count, (operation, _, position) in enumerate(pickletools.genops(start), 1):
            names.append(operation.name)
            if operation.name == "STOP":
                last = not start[(position or 0) + 1 :].strip()
                return not RUNS_CODE.isdisjoint(names) or (last and count > 2)
            if count == MAX_PICKLE_OPERATIONS:
                return True
    except (ValueError, IndexError, OverflowError):  # no pickle, or a long one that was cut here
        return len(start) == CHECKED_BYTES and len(names) > 3 and not RUNS_CODE.isdisjoint(names)
    return False


def _code(folder: Path) -> Iterator[str]:
    """Follow `from .sibling import name` from the classes that the configurations name, as transformers does."""
    needed: dict[str, str] = {}
    for name in (CONFIG_NAME, "preprocessor_config.json", "tokenizer_config.json"):
        try:
            auto_map = dict(json.loads((folder / name).read_text("utf-8")).get("auto_map", {}))
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            yield f"{name}: {error}"
            continue
        if not auto_map:
            yield f"{name} names no class"
        for reference in auto_map.values():
            for each in reference if isinstance(reference, list) else [reference]:
                if each is not None and not isinstance(each, str):
                    yield f"{name}: its `auto_map` must hold names of classes, got {each!r}"
                elif each is not None:
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
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
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
    except (ValueError, OSError, RecursionError, yaml.YAMLError) as error:
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
        content = _content(folder / file)
        views = (content, content.replace(b"\0", b"")) if b"\0" in content else (content,)  # of UTF-16 and UTF-32
        for name, pattern in SECRETS.items():
            if any(pattern.search(view) for view in views):
                yield f"{file} holds {name}"


def _content(path: Path) -> bytes:
    return _header(path) if path.suffix == ".safetensors" else path.read_bytes()


def _header(path: Path) -> bytes:
    """The text at the start of a safetensors file."""
    with path.open("rb") as file:
        return file.read(min(int.from_bytes(file.read(8), "little"), 100_000_000))


def _absolute_paths(folder: Path, files: list[Path]) -> Iterator[str]:
    for file in files:
        content = _content(folder / file)
        text = _text(content)
        if text is None:  # sound or picture, which may have a text somewhere
            found = [match.decode("utf-8", "replace") for match in HOME_PATH.findall(content)]
        else:
            found = [match[0] for match in ABSOLUTE_PATH.finditer(text.replace("\\/", "/"))]
        if found:
            yield f"{file} names a path of one machine: {', '.join(list(dict.fromkeys(found))[:5])}"


def _text(content: bytes) -> str | None:
    """A text of any of the usual encodings; `None` for anything else."""
    marks = ((codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
             (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
    encodings = [name for mark, name in marks if content.startswith(mark)]
    if not encodings and b"\0" in content:  # every second byte of Latin letters in UTF-16
        zeros = [content[place::2].count(0) for place in (0, 1)]
        if max(zeros) > 0.4 * len(content) / 2:
            encodings.append("utf-16-be" if zeros[0] > zeros[1] else "utf-16-le")
    for encoding in (*encodings, "utf-8"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    control = sum(content.count(value) for value in range(32) if value not in b"\t\n\r\f\x1b")
    return None if control else content.decode("latin-1")


def _links(folder: Path) -> Iterator[str]:
    """Links are sent as what they point to: to the package's code, in a clone, or to a file of the folder itself."""
    for path in sorted(path for path in folder.rglob("*") if path.is_symlink()):
        name, target = path.relative_to(folder), path.resolve()
        if any(part.startswith(".") for part in name.parts):
            continue
        if not target.exists():
            yield f"{name} is a link to nothing"
        elif path.is_dir():
            yield f"{name} is a link to a folder, which is not sent"
        elif not target.is_relative_to(folder.resolve()) and not (
            target.parent.name == Path(__file__).parent.name and target.suffix == ".py" and target.name == path.name
        ):
            yield f"{name} is a link to a file outside the folder: copy the file to its place"


def _noted_tokens(folder: Path, recordings: Path) -> Iterator[str]:
    """What is wrong with the digests of tokens that a fresh process is to compare."""
    if not (folder / TOKENS_NAME).is_file():
        yield f"no {TOKENS_NAME}: in a clone, `python -m training.model_card tokens {folder} RECORDING` writes it"
        return
    try:
        noted = json.loads((folder / TOKENS_NAME).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"{TOKENS_NAME} is damaged: {error}"
        return
    if not isinstance(noted, dict) or not all(isinstance(digest, str) for digest in noted.values()):
        yield f"{TOKENS_NAME} is damaged: it must map names of recordings to SHA-256 digests"
    elif not noted:
        yield f"{TOKENS_NAME} tells of no recording"
    elif missing := [name for name in noted if _recording(folder, recordings, name) is None]:
        yield f"{TOKENS_NAME} tells of {', '.join(missing)}, which is neither in the folder nor in {recordings}"


def _recording(folder: Path, recordings: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, recordings / name) if path.is_file()), None)


def _loads(folder: Path, recordings: Path) -> Iterator[str]:
    noted = json.loads((folder / TOKENS_NAME).read_text("utf-8"))
    found = {name: _recording(folder, recordings, name) for name in noted}
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
