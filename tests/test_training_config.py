import dataclasses
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT
from training.config import CodecConfig, FeatureConfig, PretrainConfig, differences, load_config, save_config

CONFIGS = sorted((ROOT / "training" / "configs").glob("*.yaml"))


def kind_of(path):
    if path.name == "small_features.yaml":
        return FeatureConfig
    return CodecConfig if "codec" in path.name or path.name == "small_vocoder.yaml" else PretrainConfig


@pytest.fixture
def write(tmp_path):
    def write_config(text, name="config.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_config


def test_the_defaults_are_the_papers(write):
    config = load_config(PretrainConfig, write("data: {sources: [small.tar]}"))
    assert (config.optim.learning_rate, config.optim.betas, config.optim.weight_decay) == (1.5e-4, (0.8, 0.99), 1e-3)
    assert (config.data.batch_size, config.data.segment_s, config.run.max_steps) == (32, 15.0, 24_000)
    model = config.model_config()
    assert (model.mask_ratio, model.ema_decay, model.daam_num_gaussians, model.daam_alpha) == (0.5, 0.996, 4, 0.05)
    # The paper's file says the same in so many words.
    paper = load_config(PretrainConfig, ROOT / "training" / "configs" / "pretrain.yaml", ["data.sources=[small.tar]"])
    assert differences(paper, config, ("data.num_workers",)) == [
        "model.overrides: {'mask_ratio': 0.5, 'ema_decay': 0.996}, {}"
    ]
    assert paper.model_config().to_dict() == model.to_dict()


def test_the_defaults_of_stage_2_are_the_papers(write):
    config = load_config(CodecConfig, write("data: {sources: [small.tar]}"))
    optim, losses = config.optim, config.losses
    assert (optim.learning_rate, optim.discriminator_learning_rate, optim.betas) == (1.5e-4, 0.75e-4, (0.8, 0.99))
    assert (optim.weight_decay, optim.discriminator_start, optim.freeze_encoder) == (1e-3, 5000, False)
    assert (losses.waveform, losses.stft, losses.adversarial, losses.feature_matching) == (1.0, 2.0, 0.1, 0.1)
    assert (config.data.batch_size, config.data.segment_s, config.run.max_steps) == (8, 15.0, 29_000)
    paper = load_config(CodecConfig, ROOT / "training" / "configs" / "codec.yaml", ["data.sources=[small.tar]"])
    assert differences(paper, config, ("data.num_workers",)) == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_of_ours_loads(path):
    config = load_config(kind_of(path), path, ["data.sources=[small.tar]"])
    assert config.model_config().frame_rate == 2.5


def test_a_delta_changes_its_base_and_an_override_changes_both(write):
    write("{data: {sources: [a]}, optim: {learning_rate: 1e-3, warmup_steps: 5}, run: {max_steps: 10}}", "base.yaml")
    delta = write("{base: base.yaml, run: , optim: {learning_rate: 2.0e-3}, model: {overrides: {daam_alpha: 1e-1}}}")
    config = load_config(
        PretrainConfig, delta, ["run.max_steps=20", "model.overrides.daam_num_gaussians=2", "data.where={language: en}"]
    )
    assert (config.optim.learning_rate, config.optim.warmup_steps, config.run.max_steps) == (2e-3, 5, 20)
    assert (config.model_config().daam_alpha, config.model_config().daam_num_gaussians) == (0.1, 2)
    assert config.data.where == {"language": "en"}


def test_a_saved_configuration_is_whole_and_loads_the_same(write, tmp_path):
    config = load_config(
        PretrainConfig, write("data: {sources: [a, b], speaker_column: reader}"), ["optim.learning_rate=3e-4"]
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(PretrainConfig, tmp_path / "saved.yaml") == config
    text = (tmp_path / "saved.yaml").read_text()
    assert all(f"{item.name}:" in text for section in (config.data, config.run) for item in dataclasses.fields(section))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.lr=1", "unknown configuration keys: `optim.lr`; known here: learning_rate"),
        ("optimizer.lr=1", "unknown configuration keys: `optimizer`"),
        ("model.overrides.daam=1", "unknown configuration keys: `daam`"),
        ("run.max_steps=many", "`run.max_steps` must be of type int, got 'many'"),
        ("run.max_steps=1.5", "`run.max_steps` must be of type int, got 1.5"),
        ("run.max_steps=true", "`run.max_steps` must be of type int, got True"),
        ("run.progress=1", "`run.progress` must be of type bool, got 1"),
        ("optim.betas=[0.9]", "`optim.betas` must be of type .*, got \\[0.9\\]"),
        ("optim.betas=[0.9, 1.0]", "`optim.betas` must lie in"),
        ("data.sources=small.tar", "`data.sources` must be of type .*, got 'small.tar'"),
        ("data.sources=[]", "`data.sources` is empty"),
        ("data.format=tar", "`data.format` must be one of 'files', 'manifest', 'dataset', got 'tar'"),
        ("data.segment_s=16", "`data.segment_s` must be at most 15, got 16"),
        ("data.segment_s=.nan", "`data.segment_s` must be positive and finite"),
        ("data.min_segment_s=8", "`data.min_segment_s` must be positive and at most half"),
        ("data.held_out_share=1", "`data.held_out_share` must lie in \\[0, 1\\)"),
        ("data.batch_size=0", "`data.batch_size` must be at least 1, got 0"),
        ("data=3", "`data` must be a section, got 3"),
        ("data.sources=[a", "the value of 'data.sources' is not YAML"),
        ("model.overrides={1: 2}", "`model.overrides` must be of type"),
        ("model.overrides.mask_ratio=0", "`mask_ratio` must be above 0 to train"),
        ("run.tracker=wandb", "`run.tracker` is 'wandb', which is not installed"),
        ("model.config=nowhere", "`model.config` must be a folder with a config.json, got 'nowhere'"),
        ("run.max_steps", "an override must look like section.key=value"),
    ],
)
def test_a_wrong_value_is_refused_by_name(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(PretrainConfig, write("data: {sources: [a]}"), [override]).model_config()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("losses.l1=1", "unknown configuration keys: `losses.l1`; known here: waveform"),
        ("losses={waveform: 0, stft: 0}", "one of waveform, stft and mel must be above 0"),
        (
            "data.min_segment_s=0.05",
            "`data.min_segment_s` must be at least 0.1, or clips cannot be .*, got 0.05",
        ),
        ("optim.freeze_encoder=true", "`optim.freeze_encoder` needs `model.weights`"),
        ("losses.mel=-1", "`losses.mel` must be at least 0 and finite, got -1"),
        ("data.window_s=0", "`data.window_s` must be positive and finite, or null, got 0"),
        ("data.gain_above_bandwidth=2", "`data.gain_above_bandwidth` must lie in \\[0, 1\\], got 2"),
        ("optim.average_decay=1", "`optim.average_decay` must lie in \\[0, 1\\), got 1"),
        ("optim.encoder_learning_rate=-1", "`optim.encoder_learning_rate` must be positive and finite, or null"),
        ("optim.discriminator_start=-1", "`optim.discriminator_start` must be at least 0, got -1"),
        ("run.eval_batches=3", "unknown configuration keys: `run.eval_batches`"),
        ("discriminators.width=0", "`discriminators.width` must be positive and finite, got 0"),
        ("discriminators={periods: [], num_scales: 0}", "`discriminators` must have a period or a scale"),
        ("discriminators.periods=[0]", "`discriminators.periods` must be at least 1"),
    ],
)
def test_a_wrong_value_of_stage_2_is_refused_by_name(write, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(CodecConfig, write("data: {sources: [a]}"), [override])


def test_a_wrong_file_is_refused(write, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such configuration: .*nowhere.yaml"):
        load_config(PretrainConfig, tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="is a base of itself"):
        load_config(PretrainConfig, write("base: config.yaml"))
    with pytest.raises(ValueError, match="is not YAML"):
        load_config(PretrainConfig, write("data: [", "broken.yaml"))


@pytest.mark.parametrize("kind", [PretrainConfig, CodecConfig])
def test_every_key_is_read_somewhere(kind):
    code = "".join(path.read_text() for path in Path(ROOT, "training").glob("*.py") if path.name != "config.py")
    code += re.split(r"def model_config", (ROOT / "training" / "config.py").read_text())[1]
    for section in dataclasses.fields(kind):
        for item in dataclasses.fields(section.default_factory):
            reads = rf"\b({section.name}|weights|sizes)\.{item.name}\b"
            assert re.search(reads, code), f"nobody reads {section.name}.{item.name}"
