"""What the README says is so."""

import re
from pathlib import Path

import datasets
import pytest
import torch

from modeling_jepa_daam import AudioStreamer, JepaDaamConfig, JepaDaamModel
from modeling_jepa_daam.cli import app
from modeling_jepa_daam.corpus import read_manifest
from tests.conftest import HUB_CONFIGS, ROOT
from tests.test_cli import run

README = (ROOT / "README.md").read_text()


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A folder that looks like the clone to what is run in it, and keeps what it writes."""
    for name in ("hub_configs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def run_python_of(title: str) -> dict:
    """Run the Python of a section, from top to bottom; return the names it makes."""
    program = "\n".join(re.findall(r"```python\n(.*?)```", section(title), flags=re.DOTALL))
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    return names


def test_its_python_lines_run_in_the_clone(clone, capsys):
    names = run_python_of("From Python")
    assert "247 16384 47.5 640.0" in capsys.readouterr().out
    assert names["waveform"].shape == (13 * 9600,)
    assert names["codes"][0].T.flatten().tolist() == names["ids"]
    assert names["restored"].shape == (1, 1, 13 * 9600)


def test_a_language_model_is_fed_as_it_says(clone):
    text = section("Feed a language model")
    assert len(f"## Feed a language model\n{text}".strip().splitlines()) <= 25
    (command,) = re.findall(r"`jepa-audio (tokenize-corpus .*?)`", text)
    run(*command.split())
    names = run_python_of("Feed a language model")
    assert len(read_manifest("corpus").shards) > 0
    assert len(names["blocks"]) > 2
    assert len(names["speech"]) > 5 * 9600  # more than the prompt
    assert names["speech"].std() > 0
    (loop,) = re.findall(r"`for samples in (AudioStreamer.*?\))`", text)
    pieces = list(eval(loop, {**names, "AudioStreamer": AudioStreamer}))
    assert len(pieces) > 0


def test_nothing_was_left_to_fill_in():
    variables = {"ACCELERATE_USE_CPU", "HF_TOKEN", "OMP_NUM_THREADS"}  # of the environment
    assert not set(re.findall(r"[A-Z]{2,}(?:_[A-Z]{2,})+|TODO|TBD|\?\?", README)) - variables


def test_it_lists_the_commands_there_are():
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    expected = {"info", "init", "encode", "decode", "reconstruct", "plot", "bench", "evaluate", "tokenize-corpus"}
    expected |= {"push", "models", "export-onnx"}
    assert commands == expected
    assert all(re.search(rf"jepa-audio {name}|`{name}`", README) for name in commands)


@pytest.mark.parametrize("folder", HUB_CONFIGS, ids=lambda folder: folder.name)
def test_its_table_has_every_configuration_with_its_size(folder):
    with torch.device("meta"):
        model = JepaDaamModel(JepaDaamConfig.from_pretrained(folder))
    sizes = [sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model.decoder)]
    row = next(line for line in README.splitlines() if line.startswith(f"| `hub_configs/{folder.name}`"))
    assert f"{sizes[0]:.1f}M + {sizes[1]:.1f}M" in row
