import copy
import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_jepa_daam.files import sha256_of
from training import model_card
from training.bars import judge
from training.config import (
    CodecConfig,
    CodecDataConfig,
    CodecRunConfig,
    DataConfig,
    ModelSection,
    PretrainConfig,
    save_config,
)
from training.evidence import describe_run, portable, portable_spec
from training.report import write_report

from .conftest import ROOT, SPEECH

SETS = {"read_en": "librispeech", "nonnative_en": "speechocean762", "tones_cmn": "audiocmn_syllables"}
SYSTEMS = {
    "original": ("original", 1.0, 0.1),
    "small": ("jepa:{checkpoint}", 0.8, 0.3),
    "codec2": ("codec2:700C", 0.7, 0.5),
    "dred": ("folder:../recordings/rivals/eval_opus_dred_q8:627:20ms", 0.83, 0.4),
    "other": ("jepa:elsewhere", 0.99, 0.1),
}


def write_run(folder: Path, config, entries) -> Path:
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr("training.report.draw_rate_distortion", lambda clips, folder: [])


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    data = DataConfig(sources=("/secret/place/train-000.tar",))
    step = {"optim/learning_rate": 1e-3, "speed/batches_per_s": 2.0, "speed/audio_hours_per_hour": 30.0}
    first = write_run(
        tmp_path / "secret" / "one",
        PretrainConfig(data=data),
        [step | {"step": 60, "loss/predict": 0.5}, step | {"step": 120, "loss/predict": 0.25}],
    )
    second = write_run(
        tmp_path / "secret" / "two",
        CodecConfig(
            data=CodecDataConfig(sources=data.sources),
            model=ModelSection(weights=str(first / "model")),
            run=CodecRunConfig(seed=7),
        ),
        [
            step | {"step": 100, "loss/total": 2.0, "speed/batches_per_s": 1.0},
            {"step": 100, "held_out/stoi": 0.611, "held_out/mel_distance": 0.75, "tokens/digit_entropy_bits": 1.9},
            step | {"step": 200, "loss/total": 1.5},
        ],
    )
    return [first, second]


def write_result(folder: Path, checkpoint: Path, sets=SETS) -> Path:
    """A result folder as the evaluation writes it, of made-up clips."""
    clips, settings, tokens = [], {}, {}
    for name, (spec, stoi, errors) in SYSTEMS.items():
        spec = spec.format(checkpoint=checkpoint)
        rows = [
            {"system": name, "clip": f"{each}/{n}.flac", "seconds": 3.0, "bits": 1920.0, "stoi": stoi - n / 1000}
            | {"pesq": 1 + stoi, "dnsmos": 2 + stoi, "speaker_similarity": stoi, "word_errors": 10 * errors}
            | {"words": 10, "recording": {"set": each, "source": source, "speaker": f"{source}_{n}"}}
            for each, source in sets.items()
            for n in range(6)
        ]
        clips += rows
        (folder / name).mkdir(parents=True)
        (folder / name / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings[name] = {"system": spec, "names": ["words"], "recognizer": "/secret/whisper-base", "missing": []}
        settings[name] |= {"versions": {"torch": "2"}}
        if spec.startswith("jepa:"):
            tokens[name] = {each: {"digit_entropy_bits": 1.75, "digits_never_change": 0.0} for each in sets}
    write_report(clips, [], [], tokens, settings, folder)
    return folder


@pytest.fixture
def checkpoint(nano_folder, tmp_path) -> Path:
    return shutil.copytree(nano_folder, tmp_path / "hub_configs" / "some-model")


@pytest.fixture
def whole(checkpoint, runs, tmp_path) -> Path:
    """A checkpoint with all that a card can tell."""
    model_card.collect_command(
        runs, output=checkpoint / "training.json", machine="two slow cores", cores=2, environment="A=1"
    )
    result = write_result(tmp_path / "secret" / "result", checkpoint)
    row = {key: {"mean": 0.25, "clips": 8, "interval": None} for key in ("tokens_changed", "digits_changed")}
    robustness = {"checkpoint": str(checkpoint), "table": {"gain -20 dB": row, "of no interest": row}, "clips": {}}
    (result / "robustness.json").write_text(json.dumps(robustness))
    rows = [
        {"spec": spec, "direction": direction, "batch": 1, "times_real_time": speed, "seconds": [1.0], "peak_bytes": 1}
        for spec, direction, speed in (
            (f"jepa:{checkpoint}", "encode", 123.4),
            (f"jepa:{checkpoint}", "decode", 56.7),
            ("model:mimi", "encode", 8.9),
            ("model:mimi", "decode", 10.0),
        )
    ]
    speed = {"machine": "x86_64", "torch": "2", "seconds": 3.0, "threads": 2, "rounds": 3, "recording": "/secret/a.wav"}
    (result / "speed.json").write_text(json.dumps(speed | {"rows": rows}))
    model_card.evaluation_command(checkpoint, [result])
    index = {
        "weights_sha256": sha256_of(checkpoint / "model.safetensors"),
        "systems": {"original": "original", "ours": "some-model"},
        "clips": [
            {
                "clip": "read_en/1",
                "set": "read_en",
                "text": "a sentence",
                "corpus": "LibriSpeech",
                "licence": "CC BY 4.0",
            }
            | {"seconds": 2.0, "picture": "1.png", "systems": {"ours": {"file": "1-ours.opus", "bits": 1280}}}
        ],
    }
    (checkpoint / "samples").mkdir()
    (checkpoint / "samples" / "samples.json").write_text(json.dumps(index))
    shutil.copy(ROOT / "hub_configs" / "jepa-daam-24khz-small" / "recordings.json", checkpoint)
    return checkpoint


def card_of(folder: Path) -> str:
    model_card.render_command(folder)
    return (folder / "README.md").read_text()


def test_the_card_has_all_parts_and_metadata_of_the_hub(whole):
    text = card_of(whole)
    parts = ["Use", "How good it is", "What the tokens hold", "The bars", "Speed", "Samples", "Training", "Data"]
    parts += ["Limits", "Bias and misuse", "Environmental cost", "Licence and citation"]
    assert re.findall("^## (.+)", text, re.MULTILINE) == parts
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["library_name"] == "transformers"
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["mispeech/speechocean762", "openslr/librispeech_asr"]
    assert metadata["language"] == ["cmn", "en", "fr", "nl"]
    data = ModelCard(text).data
    found = {(each.dataset_name, each.metric_type): each.metric_value for each in data.eval_results}
    assert data.model_name == "some-model"
    assert found["read_en (LibriSpeech)", "stoi"] == pytest.approx(0.7975, abs=6e-4)
    assert found["nonnative_en (speechocean762)", "wer"] == 30.0


def test_no_path_of_the_machine_is_in_the_folder(whole, tmp_path):
    card_of(whole)
    for path in whole.rglob("*"):
        if path.suffix in (".json", ".md", ".csv"):
            assert "secret" not in path.read_text(), path
            assert str(tmp_path) not in path.read_text(), path


def test_every_figure_of_the_tables_comes_from_the_data(whole):
    """Each one is changed on its own, and the card with it, in one cell of its table."""
    before = card_of(whole)
    path = whole / "evaluation.json"
    evaluation = json.loads(path.read_text())
    keys = {"bits", "pesq", "stoi", "dnsmos", "speaker_similarity", "word_errors"}
    for each in ("read_en", "nonnative_en"):
        for system in ("original", "some-model", "codec2", "dred"):
            assert keys <= evaluation["sets"][each][system].keys()
            for key in keys:
                changed = copy.deepcopy(evaluation)
                changed["sets"][each][system][key] |= {"value": 77.7, "low": None, "high": None}
                path.write_text(json.dumps(changed))
                lines = [line for line in card_of(whole).splitlines() if line not in before.splitlines()]
                assert any(line.startswith(f"| {system} |".replace("some-model", "**some-model**")) for line in lines)
                assert any("77.7" in line for line in lines), (each, system, key)


def test_metrics_that_taught_nothing_have_columns_of_their_own(whole):
    before = card_of(whole)
    assert "Moonshine" not in before
    path = whole / "evaluation.json"
    evaluation = json.loads(path.read_text())
    figures = {"voice_similarity": 0.873, "moonshine_word_errors": 6.1, "moonshine_character_errors": 2.3}
    figures["phone_errors"] = 17.8
    for system in ("original", "some-model"):
        for key, value in figures.items():
            evaluation["sets"]["read_en"][system][key] = {"value": value, "low": None, "high": None, "clips": 6}
    evaluation["runs"][0]["judge_files"] = {"moonshine": 64 * "a", "voice": 64 * "b"}
    path.write_text(json.dumps(evaluation))
    text = card_of(whole)
    head = next(line for line in text.splitlines() if line.startswith("| system |"))
    titles = ["speaker similarity, GE2E", "WER, Moonshine (%)", "CER, Moonshine (%)", "phone difference (%)"]
    assert head.strip("| ").split(" | ")[-4:] == titles
    assert "0.873 | 6.1 | 2.3 | 17.8 |" in text
    assert "| WER of originals (%) | WER of originals, Moonshine (%) |" in text
    assert "weights begins: moonshine `aaaaaaaaaaaa`, voice `bbbbbbbbbbbb`." in text
    assert text.count("were teachers of no model") == 1
    results = ModelCard(text).data.eval_results
    assert {each.metric_name: each.metric_value for each in results if each.metric_type == "wer"} == {
        "WER (%)": 30.0,
        "WER, Moonshine (%)": 6.1,
    }


def test_weights_of_judges_are_in_the_command_and_in_the_figures(checkpoint, tmp_path):
    result = write_result(tmp_path / "result", checkpoint)
    summary = json.loads((result / "summary.json").read_text())
    summary["settings"]["small"] |= {"names": ["voice", "moonshine"], "voice_encoder": "resemblyzer"}
    summary["settings"]["small"] |= {"moonshine": "/secret/moonshine-base-en", "moonshine_files": "c" * 64}
    (result / "summary.json").write_text(json.dumps(summary))
    model_card.evaluation_command(checkpoint, [result])
    (run,) = json.loads((checkpoint / "evaluation.json").read_text())["runs"]
    assert run["judge_files"] == {"moonshine": "c" * 64}
    assert run["command"].endswith("--voice-encoder resemblyzer \\\n    --moonshine moonshine-base-en")


def test_every_number_about_training_comes_from_its_runs(whole):
    path = whole / "training.json"
    training = json.loads(path.read_text())
    before = card_of(whole)
    assert "120 steps, 0.5 hours of audio heard, 1 minutes of training steps, seed 0, from weights drawn" in before
    assert "seed 7, from `runs/one/model`, on two slow cores" in before
    for key, value in {"steps": 4321, "hours_of_audio": 98.76, "minutes": 543.2, "seed": 99, "machine": "M"}.items():
        changed = copy.deepcopy(training)
        changed[1][key] = value
        path.write_text(json.dumps(changed))
        assert card_of(whole) != before, key
    (whole / "training.json").unlink()
    text = card_of(whole)
    assert "## Training" not in text
    assert "## Environmental cost" not in text


def test_a_computed_code_is_no_training(checkpoint, runs, tmp_path):
    code = shutil.copytree(runs[1], tmp_path / "code")
    (code / "metrics.jsonl").unlink()
    (code / "transform.json").write_text(
        json.dumps({"digits": [3, 2, 1, 1, 0], "lost_variance": 0.0723, "hours_of_audio": 1.26, "minutes": 2.6})
    )
    model_card.collect_command([runs[0], code, runs[1]], output=checkpoint / "training.json", machine="M")
    text = card_of(checkpoint)
    assert "python -m training.transform_code code.yaml" in text
    assert "computed from 1.3 hours of speech in 3 minutes, seed 7, with all else from `runs/one/model`, on M." in text
    assert "as variances want them: 3 2 1 1. Of the variance of log mel patches, 7.2 % is lost." in text
    assert sorted(path.name for path in (checkpoint / "logs").iterdir()) == ["one.csv", "two.csv"]


def test_teachers_are_told(checkpoint, runs, tmp_path):
    taught = shutil.copytree(runs[1], tmp_path / "taught")
    settings = yaml.safe_load((taught / "config.yaml").read_text())
    settings["losses"] |= {"speaker": 1.0, "speaker_encoder": "/secret/ecapa"}
    (taught / "config.yaml").write_text(yaml.safe_dump(settings))
    assert (describe_run(runs[0], "M", 2)["teachers"], describe_run(runs[1], "M", 2)["teachers"]) == ([], [])
    model_card.collect_command([*runs, taught], output=checkpoint / "training.json", machine="M")
    text = card_of(checkpoint)
    assert text.count("was a teacher, in training only.") == 1
    assert "SpeechBrain's ECAPA-TDNN was a teacher, in training only. (Speaker similarity," in text
    assert "speaker_encoder: ecapa" in text


def test_what_is_missing_is_left_out(checkpoint):
    text = card_of(checkpoint)
    assert re.findall("^## (.+)", text, re.MULTILINE) == ["Use", "Limits", "Bias and misuse", "Licence and citation"]
    assert "|---|" in text, "its parameters are known"
    assert "model-index" not in text
    assert "datasets" not in yaml.safe_load(text.split("---")[1])
    (checkpoint / "model.safetensors").unlink()
    assert "SHA-256" not in card_of(checkpoint)


def test_rates_and_parameters_are_those_of_the_files(checkpoint, nano_tokenizer):
    text = card_of(checkpoint)
    model = nano_tokenizer.model
    assert f"| all | {sum(each.numel() for each in model.parameters()):,} |" in text
    assert "47.5 tokens a second out of 16384 (2.5 frames" in text
    assert sha256_of(checkpoint / "model.safetensors") in text


def test_speed_stands_beside_that_of_rivals(whole):
    text = card_of(whole)
    assert "| some-model | 1 | 123.4 | 56.7 |\n| model:mimi | 1 | 8.9 | 10.0 |" in text
    assert "clips of 3 s, 2 threads, median of 3" in text


def test_bias_and_cost_are_reckoned_from_the_data(whole):
    text = card_of(whole)
    assert "It heard 8.6 hours in training, 6.1 hours of English," in text
    assert "4.1 hours are of 5 speakers alone" in text
    assert "at an assumed 10 W a core it is 0.00 kWh" in text
    runs = json.loads((whole / "training.json").read_text())
    runs[0]["minutes"] = 6000
    (whole / "training.json").write_text(json.dumps(runs))
    assert "at an assumed 10 W a core it is 2.00 kWh" in card_of(whole)


def test_untrained_weights_are_told(whole):
    assert "**Untrained**: the weights were drawn from seed 0" in card_of(whole)
    config = json.loads((whole / "config.json").read_text())
    (whole / "config.json").write_text(json.dumps(config | {"untrained_seed": None}))
    assert "Untrained" not in card_of(whole)


def test_the_use_that_it_shows_runs(checkpoint, monkeypatch, capsys):
    (block,) = re.findall("```python\n(.+?)```", card_of(checkpoint), re.DOTALL)
    assert len(block.strip().splitlines()) <= 10
    shutil.copy(SPEECH, checkpoint.parents[1] / "speech.flac")
    monkeypatch.chdir(checkpoint.parents[1])
    capsys.readouterr()
    exec(block, scope := {})
    assert capsys.readouterr().out.split()[1:] == ["16384", "47.5"]
    assert len(scope["waveform"]) == len(scope["ids"]) // 19 * 9600


@pytest.mark.parametrize("name", ["evaluation.json", "robustness.json", "speed.json", "samples/samples.json"])
def test_figures_of_other_weights_are_refused(whole, name):
    told = json.loads((whole / name).read_text())
    (whole / name).write_text(json.dumps(told | {"weights_sha256": "0" * 64}))
    with pytest.raises(ValueError, match=f"{name.split('/')[-1]} was made with weights 000000000000"):
        card_of(whole)


def test_results_of_other_weights_are_refused(checkpoint, tiny_folder, tmp_path):
    result = write_result(tmp_path / "result", tiny_folder)
    with pytest.raises(ValueError, match="must hold one system with the weights of .*, got 0"):
        model_card.evaluation_command(checkpoint, [result])
    assert not (checkpoint / "evaluation.json").exists()


def test_results_of_more_folders_are_joined(checkpoint, tmp_path):
    results = [write_result(tmp_path / each, checkpoint, {each: source}) for each, source in list(SETS.items())[:2]]
    model_card.evaluation_command(checkpoint, results)
    evaluation = json.loads((checkpoint / "evaluation.json").read_text())
    assert evaluation["sets"].keys() == {"read_en", "nonnative_en"}
    assert evaluation["sets"]["read_en"].keys() == {"original", "some-model", "codec2", "dred"}, "not another of ours"
    assert evaluation["systems"]["dred"] == "folder:eval_opus_dred_q8:627:20ms"
    assert "--system some-model=jepa:hub_configs/some-model" in evaluation["runs"][0]["command"]
    assert "--recognizer whisper-base" in evaluation["runs"][0]["command"]
    assert evaluation["extent"]["read_en"] == {
        "clips": 6,
        "minutes": 0.3,
        "speakers": 6,
        "sources": ["librispeech"],
    }
    with pytest.raises(ValueError, match="read_en in .* is in another folder, too"):
        model_card.evaluation_command(checkpoint, [results[0], results[0]])


def test_rivals_need_not_be_measured_again(whole, tmp_path, monkeypatch):
    earlier = json.loads((whole / "evaluation.json").read_text())
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    monkeypatch.setattr(f"{__name__}.SYSTEMS", {"small": ("jepa:{checkpoint}", 0.9, 0.2)})
    result = write_result(tmp_path / "ours", whole)
    model_card.evaluation_command(whole, [result], tmp_path / "earlier.json")
    found = json.loads((whole / "evaluation.json").read_text())
    for each, systems in earlier["sets"].items():
        assert found["sets"][each].keys() == systems.keys()
        assert found["sets"][each]["dred"] == systems["dred"]
        assert found["sets"][each]["original"] == systems["original"]
        assert found["sets"][each]["some-model"]["stoi"]["value"] == pytest.approx(0.8975)
    assert found["runs"] == earlier["runs"]
    assert "Originals and rivals were judged beside earlier weights" in card_of(whole)
    other = write_result(tmp_path / "fewer", whole, {"read_en": "librispeech"})
    with pytest.raises(ValueError, match="`rivals`: of other clips"):
        model_card.evaluation_command(whole, [other], tmp_path / "earlier.json")
    earlier["runs"][0]["versions"] = {"torch": "1"}
    (tmp_path / "earlier.json").write_text(json.dumps(earlier))
    with pytest.raises(ValueError, match="`rivals`: judged by"):
        model_card.evaluation_command(whole, [result], tmp_path / "earlier.json")


def test_the_bars_are_computed(whole):
    evaluation = json.loads((whole / "evaluation.json").read_text())
    information, codec2, dred, flexicodec = judge(evaluation)
    assert information.verdict == codec2.verdict == "met"
    assert [row.margin for row in information.comparisons] == ["+0.150", "+0"]
    assert len(codec2.comparisons) == 8
    assert {row.what: row.margin for row in codec2.comparisons if row.where == "read_en"} == {
        "STOI": "+0.100",
        "PESQ-WB": "+0.10",
        "DNSMOS": "+0.10",
        "WER (%)": "+20.0",
    }
    assert dred.verdict == "not met: 1 of 4 figures are", "fewer word errors only"
    assert flexicodec.verdict == "not measured"
    evaluation["tokens"]["read_en"]["digits_never_change"] = 2.0
    assert judge(evaluation)[0].verdict == "not met: 1 of 2 figures are"
    del evaluation["sets"]["nonnative_en"]
    assert "4 of 8 figures measured" in judge(evaluation)[1].claim


def test_level_is_within_our_interval_or_better(whole):
    evaluation = json.loads((whole / "evaluation.json").read_text())

    def figure(value, low, high):
        return {"value": value, "low": low, "high": high, "clips": 15}

    ours = {"pesq": figure(2.3, 2.2, 2.4), "stoi": figure(0.8, 0.7, 0.9), "word_errors": figure(11.0, 8.0, 14.0)}
    theirs = {"pesq": figure(2.38, 2, 3), "stoi": figure(0.92, 0.9, 0.95), "word_errors": figure(5.0, 4.0, 6.0)}
    evaluation["systems"]["flexicodec"] = "folder:flexicodec_640bps:640"
    evaluation["sets"]["fifteen"] = {"some-model": ours, "flexicodec": theirs}
    evaluation["sets"]["fifteen"]["original"] = {"word_errors": figure(9.9, 7.0, 12.0)}
    bar = judge(evaluation)[3]
    assert [(row.what, row.theirs, row.met) for row in bar.comparisons] == [
        ("PESQ-WB", "2.38", True),
        ("STOI", "0.920", False),
        ("WER (%)", "9.9", True),
    ]


def test_a_run_tells_time_and_audio_by_its_own_measure_of_speed(runs):
    told = describe_run(runs[1], "here", 2, "A=1")
    assert told["minutes"] == pytest.approx((100 / 1.0 + 100 / 2.0) / 60)
    assert told["hours_of_audio"] == pytest.approx(30.0 * told["minutes"] / 60)
    assert told["command"] == "A=1 python -m training.train_tokenizer two.yaml"
    assert told["loss"] == {"total": 1.5}
    assert told["stage"] == 2
    settings = yaml.safe_load(told["config"])
    assert settings["data"]["sources"] == ["train-000.tar"]
    assert settings["run"]["output"] == "runs/two"
    assert describe_run(runs[0], "here", 2)["stage"] == 1
    assert told["steps"] == 200
    with (runs[1] / "metrics.jsonl").open("a") as file:  # the last steps, of which only the evaluation is logged
        file.write(json.dumps({"step": 240, "held_out/stoi": 0.5}) + "\n")
    assert describe_run(runs[1], "here", 2)["steps"] == 240


def test_a_log_is_kept_whole(whole, runs):
    rows = list(csv.DictReader((whole / "logs" / "two.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["100", "100", "200"]
    assert rows[1]["held_out/stoi"] == "0.611"
    assert "[logs/two.csv](logs/two.csv)" in card_of(whole)


def test_paths_are_cut_to_what_others_have():
    assert portable("/secret/place/train-000.tar") == "train-000.tar"
    assert portable("- /root/x/hub_configs/some-model\n- a/b") == "- hub_configs/some-model\n- a/b"
    assert portable("12 h/h, https://www.openslr.org/12") == "12 h/h, https://www.openslr.org/12"
    assert portable_spec("folder:../a/b/rival:640:1.5ms") == "folder:rival:640:1.5ms"
    assert portable_spec("codec2:700C") == "codec2:700C"


def test_commands_end_with_a_message(checkpoint, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        model_card.main([str(tmp_path / "nothing")])
    assert ended.value.code == 2
    assert "error: `folder`: no config.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        model_card.main(["collect", str(tmp_path), "--output", str(tmp_path / "training.json")])
    assert ended.value.code == 2
    assert "no run in" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        model_card.main(["tokens", str(checkpoint), str(SPEECH)])
    assert ended.value.code == 0
    assert len(json.loads((checkpoint / "tokens.json").read_text())[SPEECH.name]) == 64
