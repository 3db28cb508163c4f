"""What the package imports before it is used: commands that only print start fast, and Auto classes know ours."""

import resource
import subprocess
import sys

import pytest

import modeling_jepa_daam

from .conftest import ROOT

HEAVY = ("torch", "transformers", "huggingface_hub", "safetensors", "pyarrow", "datasets", "matplotlib", "ray")
EVERY_HELP = f"""
import sys
from typer.main import get_command
from modeling_jepa_daam.cli import app
for arguments in ([], *([name] for name in get_command(app).commands if name != "evaluate")):
    assert app([*arguments, "--help"], standalone_mode=False) == 0
print("loaded:", sorted(name for name in {HEAVY} if name in sys.modules))
"""
AUTO_CLASSES = """
from transformers import (AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization,
                          AutoModelForPreTraining, AutoTokenizer)
"""
USE = """
config = AutoConfig.from_pretrained("hub_configs/jepa-daam-24khz-nano")
for auto in (AutoModel, AutoModelForAudioTokenization, AutoModelForPreTraining):
    print(auto.__name__, auto._model_mapping[type(config)].__name__)
print(type(AutoTokenizer.from_pretrained("hub_configs/jepa-daam-24khz-nano")).__name__)
print(type(AutoFeatureExtractor.from_pretrained("hub_configs/jepa-daam-24khz-nano")).__name__)
print({type(each).__module__.split(".")[0] for each in (config,)})
"""
REGISTERED = """AutoModel JepaDaamModel
AutoModelForAudioTokenization JepaDaamModel
AutoModelForPreTraining JepaDaamForPreTraining
JepaAudioTokenizer
JepaDaamFeatureExtractor
{'modeling_jepa_daam'}
"""


def python(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_of_every_command_loads_neither_torch_nor_transformers():
    assert python(EVERY_HELP).splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_commands_that_only_print_take_less_than_half_a_second_of_cpu(argument):
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        program = [sys.executable, "-m", "modeling_jepa_daam.cli", argument]
        subprocess.run(program, check=True, capture_output=True, cwd=ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.5


@pytest.mark.parametrize(
    "program",
    [
        "import modeling_jepa_daam" + AUTO_CLASSES,
        AUTO_CLASSES + "import modeling_jepa_daam",
        "import modeling_jepa_daam.tokenization_jepa_daam" + AUTO_CLASSES,
    ],
    ids=["before the Auto classes", "after them", "one module of it"],
)
def test_importing_the_package_registers_its_classes(program):
    assert python(program + USE) == REGISTERED


def test_every_public_name_is_that_of_its_module():
    assert sorted([*modeling_jepa_daam._MODULES, "__version__"]) == modeling_jepa_daam.__all__
    for name, module in modeling_jepa_daam._MODULES.items():
        value = getattr(modeling_jepa_daam, name)
        assert value.__module__ == f"modeling_jepa_daam.{module}"
        assert name in dir(modeling_jepa_daam)
    with pytest.raises(AttributeError, match="'modeling_jepa_daam' has no attribute 'JepaTokenizer'"):
        modeling_jepa_daam.JepaTokenizer  # noqa: B018 (the access is the test)
