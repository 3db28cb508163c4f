"""The `evaluate` modules, loaded as a user loads them: in a process of their own, elsewhere, without this package."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from training.quality import reconstruction_quality, token_statistics

from .conftest import ROOT, noise

if importlib.util.find_spec("evaluate") is None:  # not imported here: that takes seconds
    pytest.skip("evaluate is not installed", allow_module_level=True)

METRICS = ROOT / "training" / "metrics"
RATE = 24000
SCRIPT = """
import doctest, json, sys
import numpy as np
import evaluate

def attempt(module, **inputs):
    try:
        module.compute(**inputs)
    except ValueError as error:
        return str(error)

folder, inputs, output = sys.argv[1:]
clips = np.load(inputs)
quality, statistics = evaluate.load(f"{folder}/codec_quality"), evaluate.load(f"{folder}/token_statistics")
original, decoded, tokens = clips["original"], clips["decoded"], clips["tokens"]
pairs = {"references": [original, original[:20000]], "predictions": [decoded.tolist(), decoded[:20000].tolist()]}
late = {"references": [original] * 2, "predictions": [np.pad(decoded, (50, 0))[:-50], np.roll(decoded, 50)]}
ids = {"predictions": [tokens.ravel(), tokens[:3].ravel()], "tokens_per_frame": 2, "vocab_size": [16, 4]}
half = {"figures": ["stoi", "mel_distance"], "sampling_rate": 24000}
results = {
    "all": quality.compute(**pairs, sampling_rate=24000),
    "again": quality.compute(**pairs, **half, bandwidth_hz=4000.0),
    "late": quality.compute(**late, **half, align=True),
    "silent": quality.compute(references=[original * 0], predictions=[decoded], **half),
    "ids": statistics.compute(**ids),
    "digits": statistics.compute(**ids, levels=[4, 4, 4], group_size=2, frame_rate=2.5),
    "one_by_one": [statistics.add_batch(predictions=[clip]) for clip in ids.pop("predictions")]
    and statistics.compute(**ids, duration_s=20.0),
    "errors": [
        attempt(quality, **pairs),
        attempt(quality, **pairs, sampling_rate=24000, figures=["mos"]),
        attempt(quality, references=[original], predictions=[decoded[:-1]], sampling_rate=24000),
        attempt(statistics, predictions=[[0, 1, 2]], tokens_per_frame=2, vocab_size=4),
        attempt(statistics, predictions=[[0, 4]], tokens_per_frame=2, vocab_size=4),
        attempt(statistics, predictions=[[0, 3]], tokens_per_frame=2, vocab_size=[4]),
        attempt(statistics, predictions=[[0, 3]], tokens_per_frame=2),
        attempt(statistics, predictions=[[0, 3]], tokens_per_frame=2, vocab_size=4, frame_rate=0),
    ],
    "cards": [
        [m.description, m.citation, m.inputs_description, m.info.license, m.info.reference_urls, m.module_type]
        for m in (quality, statistics)
    ],
    "examples": [],
    "project": sorted(name for name in sys.modules if name.startswith(("training", "modeling_jepa_daam"))),
}
for module in (quality, statistics):
    examples = module.inputs_description.replace("training/metrics", folder)
    test = doctest.DocTestParser().get_doctest(examples, {}, module.name, None, 0)
    results["examples"].append(list(doctest.DocTestRunner().run(test)))
json.dump(results, open(output, "w"))
"""


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, [16, 4], (40, 2))


@pytest.fixture(scope="module")
def results(speech, tokens, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("elsewhere")
    decoded = speech + 0.03 * noise(len(speech))
    np.savez(folder / "clips.npz", original=speech, decoded=decoded, tokens=tokens)
    environment = os.environ | {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    for name in ("HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_METRICS_CACHE"):
        environment.pop(name, None)
    command = [sys.executable, "-c", SCRIPT, str(METRICS), "clips.npz", "results.json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "results.json").read_text()) | {"printed": done.stdout}


def test_codec_quality_is_that_of_the_training(results, speech):
    decoded = speech + 0.03 * noise(len(speech))
    clips = [reconstruction_quality(speech[:n], decoded[:n], RATE) for n in (None, 20000)]
    found = results["all"]
    for figure in clips[0]:
        values = [clip[figure] for clip in clips]
        assert found["per_clip"][figure] == pytest.approx(values, rel=1e-6)
        assert found[figure] == pytest.approx(sum(values) / 2, rel=1e-6)
    assert found.get("missing", {}).keys() == {"pesq"} - set(clips[0])
    narrow = reconstruction_quality(speech, decoded, RATE, 4000.0)
    assert results["again"]["per_clip"].keys() == {"stoi", "mel_distance"}
    assert results["again"]["per_clip"]["mel_distance"][0] == pytest.approx(narrow["mel_distance"], rel=1e-6)


def test_codec_quality_takes_a_delay_away_on_demand(results):
    assert results["late"]["lag_samples"] == 50
    assert results["late"]["stoi"] == pytest.approx(results["all"]["per_clip"]["stoi"][0], abs=1e-3)


def test_a_figure_that_no_clip_has_is_null(results):
    assert "stoi" not in results["silent"]
    assert results["silent"]["per_clip"]["stoi"] == [None]
    assert results["silent"]["mel_distance"] == results["silent"]["per_clip"]["mel_distance"][0] > 1


def test_token_statistics_are_those_of_the_training(results, tokens):
    expected = token_statistics([tokens, tokens[:3]], [16, 4], (4, 4, 4), 2, duration_s=43 / 2.5)
    assert results["digits"] == expected
    assert results["digits"]["bitrate_bps"] == pytest.approx(15.0)
    assert [len(expected[f"{unit}_entropy_bits_by_place"]) for unit in ("token", "digit")] == [2, 3]
    assert results["ids"] == token_statistics([tokens, tokens[:3]], [16, 4])
    assert results["one_by_one"] == token_statistics([tokens, tokens[:3]], [16, 4], duration_s=20.0)


def test_bad_input_is_refused_by_name(results):
    patterns = [
        "`sampling_rate` must be given",
        "`figures` must be among",
        "`reconstructed` must be mono, as long as",
        r"`predictions\[0\]` must be whole frames of 2 tokens, got 3",
        r"must lie in \[0, size\)",
        "`vocab_size` must have one number for each of 2 places",
        "`vocab_size` must be given",
        "`frame_rate` must be above 0, got 0",
    ]
    for pattern, message in zip(patterns, results["errors"], strict=True):
        assert re.search(pattern, message)


def test_the_examples_of_the_cards_run(results):
    for failed, attempted in results["examples"]:
        assert failed == 0, results["printed"]
        assert attempted >= 4


def test_nothing_of_the_project_is_imported(results):
    assert results["project"] == []


@pytest.mark.parametrize(("place", "name"), [(0, "codec_quality"), (1, "token_statistics")])
def test_the_card_is_filled(results, place, name):
    description, citation, inputs, license_name, urls, kind = results["cards"][place]
    assert len(description) > 200
    assert citation.count("@") >= 2
    assert {"Args:", "Returns:", "Examples:"} <= {line.strip() for line in inputs.splitlines()}
    assert (license_name, kind) == ("Apache-2.0", "metric")
    assert all(url.startswith("https://") for url in urls)
    assert len(urls) >= 2
    card = Path(METRICS / name / "README.md").read_text()
    assert card.startswith("---\n")
    assert all(f"\n## {title}\n" in card for title in ("How to use", "Inputs", "Output values", "Limits", "Citation"))
    assert not set(re.findall(r"`(\w+)`", card)) & {"TODO"}


@pytest.mark.parametrize("name", ["codec_quality", "token_statistics"])
def test_the_module_imports_every_file_of_its_folder(name):
    # evaluate copies only what the module itself imports, not what those files import in turn.
    folder = METRICS / name
    imported = set(re.findall(r"^from \.(\w+) import", (folder / f"{name}.py").read_text(), re.MULTILINE))
    assert imported == {file.stem for file in folder.glob("*.py")} - {name, "__init__"}
