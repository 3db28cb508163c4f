"""A checkpoint folder in a fresh process in which this package cannot be imported."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForPreTraining,
    AutoTokenizer,
)

import modeling_jepa_daam
from modeling_jepa_daam import JepaAudioTokenizer
from modeling_jepa_daam.configuration_jepa_daam import AUTO_MAP
from tests.conftest import HUB_CONFIGS, ROOT, SPEECH

SHIPPED_TOP_LEVEL_IMPORTS = {"torch", "transformers", "numpy", "huggingface_hub", "safetensors"}

PROGRAM = """
import importlib.util, json, sys
assert importlib.util.find_spec("modeling_jepa_daam") is None
import soundfile, torch
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization,
                          AutoModelForPreTraining, AutoTokenizer)
folder, out, clip = sys.argv[1:]
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
extractor = AutoFeatureExtractor.from_pretrained(folder, **trust)
codec = AutoModel.from_pretrained(folder, **trust).eval()
assert type(AutoModelForAudioTokenization.from_pretrained(folder, **trust)) is type(codec)
stage_1 = AutoModelForPreTraining.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
samples, rate = soundfile.read(clip, dtype="float32")
with torch.inference_mode():
    codes = codec.encode(extractor(samples, rate, return_tensors="pt")["input_values"][..., :len(samples)]).audio_codes
    loss = stage_1(torch.from_numpy(samples)[None, None]).loss
ids = tokenizer(clip)["input_ids"]
assert codes[0].T.flatten().tolist() == ids
assert tokenizer.decode_audio(ids, num_samples=len(samples)).shape == samples.shape
assert loss.isfinite()
# Whichever is saved first brings the code of all; the others add their settings.
order = {"model": [codec, extractor, tokenizer], "tokenizer": [tokenizer, extractor, codec]}[sys.argv[2].split("/")[-1]]
for part in order:
    part.save_pretrained(out)
print(json.dumps(ids))
"""


def _run(folder, out, cwd) -> list[int]:
    """Tokens of the recorded sentence by a folder, whose parts are then saved to another."""
    environment = {**os.environ, "HF_HOME": str(cwd / "hf"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    # -S hides the editable install; the libraries come back through sys.path.
    bootstrap = f"import sys; sys.path += {[p for p in sys.path if 'site-packages' in p]!r}\n"
    done = subprocess.run(
        [sys.executable, "-S", "-c", bootstrap + PROGRAM, folder, out, SPEECH],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("first", ["model", "tokenizer"])
def test_a_folder_loads_where_the_package_is_not_and_saves_and_loads_again(nano_folder, tmp_path, first):
    expected = JepaAudioTokenizer.from_pretrained(nano_folder)(SPEECH)["input_ids"]
    assert _run(nano_folder, tmp_path / first, tmp_path) == expected
    assert _run(tmp_path / first, tmp_path / "again" / first, tmp_path) == expected
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    code = {path.name for path in nano_folder.glob("*.py")}
    assert {path.name for path in (tmp_path / "again" / first).glob("*.py")} == code


def test_the_auto_classes_know_us_once_the_package_is_imported(nano_folder):
    for auto, ours in (
        (AutoConfig, modeling_jepa_daam.JepaDaamConfig),
        (AutoModel, modeling_jepa_daam.JepaDaamModel),
        (AutoModelForAudioTokenization, modeling_jepa_daam.JepaDaamModel),
        (AutoModelForPreTraining, modeling_jepa_daam.JepaDaamForPreTraining),
        (AutoFeatureExtractor, modeling_jepa_daam.JepaDaamFeatureExtractor),
        (AutoTokenizer, modeling_jepa_daam.JepaAudioTokenizer),
    ):
        assert type(auto.from_pretrained(nano_folder)) is ours


def test_every_auto_class_points_at_a_class_of_ours(nano_folder):
    auto_map = json.loads((nano_folder / "config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP
    for reference in auto_map.values():
        module, name = reference.split(".")
        assert (nano_folder / f"{module}.py").is_file()
        assert hasattr(modeling_jepa_daam, name)


def test_shipped_code_follows_the_import_rule(nano_folder):
    """Only `from .sibling import name`, siblings that are shipped too, and no package that Hub users may lack."""
    shipped = sorted(nano_folder.glob("*.py"))
    assert {path.name for path in shipped} >= {"modeling_jepa_daam.py", "pretraining_jepa_daam.py", "audio.py"}
    for path in shipped:
        text = path.read_text()
        assert text == (ROOT / "modeling_jepa_daam" / path.name).read_text()
        assert "modeling_jepa_daam." not in re.sub(r'"[^"]*"|`[^`]*`', "", text)
        tree = ast.parse(text)
        guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = {node.module.split(".")[0]}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 1, f"{path.name}: {ast.unparse(node)}"
                assert node.module, f"{path.name}: {ast.unparse(node)}"
                assert (nano_folder / f"{node.module}.py").is_file(), f"{path.name}: {ast.unparse(node)}"
                continue
            else:
                continue
            if id(node) not in guarded:
                assert names <= SHIPPED_TOP_LEVEL_IMPORTS | set(sys.stdlib_module_names), f"{path.name}: {names}"


@pytest.mark.parametrize("folder", HUB_CONFIGS, ids=lambda folder: folder.name)
def test_folders_of_hub_configs_hold_the_code_that_saving_writes(folder, nano_folder):
    """Copies, not links: `cp -r`, a wheel or a clone on Windows would leave them dangling."""
    assert not [path for path in folder.rglob("*") if path.is_symlink()]
    copies = {path.name: path.read_text() for path in folder.glob("*.py")}
    shipped = {path.name: path.read_text() for path in nano_folder.glob("*.py")}
    assert copies == shipped, "python -m training.hub_folders hub_configs/jepa-*/"


def test_the_package_never_imports_the_training_code():
    for path in (ROOT / "modeling_jepa_daam").rglob("*.py"):
        assert not re.search(r"^\s*(from|import) training\b", path.read_text(), flags=re.MULTILINE), path.name


def test_no_model_class_has_a_tokenizers_name(nano_folder):
    """transformers writes a two-element `auto_map` for such classes, and every auto class then dies on load."""
    for path in nano_folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and "Tokenizer" in node.name:
                assert node.name == "JepaAudioTokenizer"


@pytest.mark.parametrize("folder", HUB_CONFIGS, ids=lambda folder: folder.name)
def test_hub_configurations_are_what_saving_writes(folder, tmp_path):
    config = modeling_jepa_daam.JepaDaamConfig.from_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # which the configuration names
        shutil.copy(weights, tmp_path)
    config.save_pretrained(tmp_path)
    modeling_jepa_daam.JepaDaamFeatureExtractor.from_config(config).save_pretrained(tmp_path)
    JepaAudioTokenizer.from_config(config).save_pretrained(tmp_path)
    for path in tmp_path.glob("*.json"):  # a shipped checkpoint's folder has more: its evidence
        saved, kept = (json.loads((where / path.name).read_text()) for where in (tmp_path, folder))
        saved.pop("transformers_version", None)
        kept.pop("transformers_version", None)
        assert saved == kept, path.name
    assert isinstance(AutoTokenizer.from_pretrained(folder), JepaAudioTokenizer)
    assert AutoFeatureExtractor.from_pretrained(folder).hop_length == config.hop_length
