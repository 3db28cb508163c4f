"""What is built of the sources, and what an installation of it does without a clone."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

from modeling_jepa_daam import __version__

from .conftest import ROOT, SPEECH


@pytest.fixture(scope="module")
def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder with the wheel and the source distribution of what git would ship."""
    place = tmp_path_factory.mktemp("build")
    left_out = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "hub_configs", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, place / "tree", ignore=left_out)
    # From the source distribution, as `python -m build` does, so that it is known to be whole.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", place / "dist", place / "tree"], check=True
    )
    return place / "dist"


def test_the_citation_has_what_the_format_needs(settings):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == __version__
    assert citation["license"] == settings["metadata"]["license_expression"]
    assert citation["type"] == "software"
    assert citation["title"]
    assert citation["message"]
    for work in (citation, *citation["references"]):
        assert work["authors"]
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    (paper,) = citation["references"]
    assert (paper["type"], paper["year"]) == ("article", 2025)


def test_every_package_is_listed(settings):
    found = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "modeling_jepa_daam").rglob("*.py")}
    assert {name.replace(".", "/") for name in settings["options"]["packages"].split()} == found


@pytest.mark.slow
def test_the_wheel_has_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f"modeling_jepa_daam/{path.relative_to(ROOT / 'modeling_jepa_daam').as_posix()}" for path in
               (ROOT / "modeling_jepa_daam").rglob("*") if path.suffix == ".py"}  # fmt: skip
    information = {name for name in names if name.startswith(f"jepa_daam-{__version__}.dist-info/")}
    assert names - information == package | {"modeling_jepa_daam/py.typed"}
    metadata = zipfile.ZipFile(wheel).read(f"jepa_daam-{__version__}.dist-info/METADATA").decode()
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert "\nClassifier: Typing :: Typed\n" in metadata


@pytest.mark.slow
def test_the_source_distribution_has_no_tests_and_no_data(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as members:
        names = {name.split("/", 1)[1] for name in members.getnames() if "/" in name}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE", "CITATION.cff"} <= names
    assert not [name for name in names if name.startswith(("tests", "hub_configs", "training"))]


@pytest.mark.slow
def test_an_installed_wheel_works_without_a_clone(built, tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = built.glob("*.whl")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(part) for part in command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    installed = run(python, "-m", "pip", "install", "--no-deps", "--no-index", wheel)
    assert installed.returncode == 0, installed.stderr
    # The libraries of this environment, without what it has installed as editable.
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = tmp_path / "venv" / "bin" / "jepa-audio"
    assert run(command, "--version").stdout.split() == ["jepa-audio", __version__]
    place = run(python, "-c", "import modeling_jepa_daam; print(modeling_jepa_daam.__file__)").stdout
    assert place.startswith(str(site))
    for arguments in (["models"], ["info"], ["encode", SPEECH, "--output", "tokens"]):
        done = run(command, *arguments)
        assert done.returncode == 2
        assert "this installation came without any" in done.stderr
        assert "--model a checkpoint folder or a Hub id" in done.stderr
