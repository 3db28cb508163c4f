"""Run transformers' own test suites on our classes.

    python tests/transformers_suite/run.py

The suites (`ModelTesterMixin`, the feature extractors' and configurations') are not in transformers' wheel but in its
source distribution: that of the installed version is downloaded with pip, and the modules of this folder run inside it.
Each module runs twice: with the default branches of the configuration and, for models, with the others.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

HERE = Path(__file__).parent
SUITES = (
    "test_modeling_common",
    "test_configuration_common",
    "test_sequence_feature_extraction_common",
    "test_feature_extraction_common",
)
# What the suites import beside each other and we have no use for: no class of ours generates or is exported here.
STUBS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = dict(return_dict=False, output_hidden_states=True, dtype='float16',\n"
        "                            chunk_size_feed_forward=5, problem_type='regression')\n"
    ),
}


def prepare(folder: Path) -> None:
    """Lay out the suites, the stubs and our modules as a package `tests` in `folder`."""
    version = transformers.__version__
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
    subprocess.run([*command, "--dest", folder, f"transformers=={version}"], check=True)
    (folder / "tests" / "jepa_daam").mkdir(parents=True)
    with tarfile.open(folder / f"transformers-{version}.tar.gz") as archive:
        for suite in SUITES:
            member = archive.extractfile(f"transformers-{version}/tests/{suite}.py")
            assert member is not None, suite
            (folder / "tests" / f"{suite}.py").write_bytes(member.read())
    for name, text in STUBS.items():
        (folder / "tests" / name).parent.mkdir()
        (folder / "tests" / name).write_text(text)
    for path in HERE.glob("*.py"):
        if path.name != "run.py":
            shutil.copy(path, folder / "tests" / "jepa_daam")
    for package in (folder / "tests", *(path for path in (folder / "tests").iterdir() if path.is_dir())):
        (package / "__init__.py").touch()
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -q -p no:cacheprovider\n")


def main() -> int:
    failures = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        for variant, pattern in (("", "test_*.py"), ("1", "test_modeling_*.py")):
            environment["JEPA_VARIANT"] = variant
            for path in sorted((folder / "tests" / "jepa_daam").glob(pattern)):
                print(f"{path.stem}, {'the other branches' if variant else 'default branches'}", flush=True)
                command = [sys.executable, "-m", "pytest", path, "--tb=short", "--disable-warnings"]
                failures += subprocess.run(command, cwd=folder, env=environment, check=False).returncode != 0
    return min(failures, 1)


if __name__ == "__main__":
    sys.exit(main())
