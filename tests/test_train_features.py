"""Stage 2 on features: the cache, the augmentation, the linear paths, and a run that resumes."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from modeling_jepa_daam import JepaDaamConfig, JepaDaamModel
from training.config import FeatureConfig, FeatureDataConfig, FeatureModelSection, FeatureOptimConfig, RunConfig
from training.extract_features import main as extract_features
from training.stage2.feature_augmentation import change_gain, random_gains_db
from training.stage2.feature_codec import FeatureCodec, index_entropies, row_weights, weighted_error
from training.stage2.feature_data import FeatureBatches, FeatureCache, training_windows
from training.train_features import evaluate, main, make_codec

from .conftest import SPEECH
from .support_vocoder import SMALL


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of a small causal codec."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("causal")
    JepaDaamModel(JepaDaamConfig(**SMALL | {"hidden_size": 128})).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    """Features of recorded speech, as of ten speakers."""
    path = tmp_path_factory.mktemp("features") / "cache"
    sources = tmp_path_factory.mktemp("recordings")
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    for number in range(10):
        speaker = sources / f"speaker{number}"
        speaker.mkdir()
        soundfile.write(speaker / "clip.flac", np.roll(samples, 5000 * number) * (0.2 + 0.08 * number), rate)
        (speaker / "clip.json").write_text(json.dumps({"speaker": f"speaker{number}", "bandwidth_hz": 8000}))
    assert extract_features([str(sources)], str(folder), path) == 10
    return path


@pytest.fixture
def config(folder, cache, tmp_path):
    return FeatureConfig(
        data=FeatureDataConfig(features=(str(cache),), held_out_share=0.5, window_frames=8, batch_size=4),
        model=FeatureModelSection(config=str(folder), spectral_features=str(folder)),
        optim=FeatureOptimConfig(warmup_steps=2, learning_rate=1e-2, average_decay=0.8),
        run=RunConfig(
            output=str(tmp_path / "run"), max_steps=48, log_every=4, eval_every=48, save_every=8, tracker="none",
            progress=False,
        ),
    )  # fmt: skip


def test_a_gain_of_features_is_a_gain_of_the_waveform(folder):
    model = JepaDaamModel.from_pretrained(folder)
    samples = torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0][: 5 * 9600])
    features = model.spectral_features
    padded = torch.nn.functional.pad(samples, (features.margin, features.margin))[None].double()
    features = features.double()
    for gain_db in (-20.0, 3.0):
        expected = features(padded * 10 ** (gain_db / 20))
        found = change_gain(features(padded), torch.full((1, 1, 1), gain_db), model.config.feature_bands)
        # The tracker reads logarithms with a floor, so pitch moves a little; bands follow it.
        error = (found - expected)[:, : model.config.feature_bands].abs()
        assert error.mean() < 2e-3
        assert error.flatten().quantile(0.99) < 0.05


def test_random_gains_are_within_their_range():
    gains = random_gains_db(1000, 16, (-30.0, 0.0), 0.0, torch.Generator().manual_seed(0))
    assert gains.shape == (1000, 16, 1)
    assert -30.0 <= gains.min() < -29.0 < -1.0 < gains.max() <= 0.0
    assert torch.equal(gains[:, :1].expand_as(gains), gains)


def test_windows_hold_every_recording_once(cache):
    features = FeatureCache([str(cache)], 0.0, 30, 2.5)
    windows = list(training_windows(features, 8, seed=0, epoch=0))
    frames = [span for window in windows for span in window]
    assert len(windows) >= 100 // 8
    # A shifted grid costs a recording one frame at most.
    total, taken = sum(span.frames for span in features.training), sum(span.frames for span in frames)
    assert total - len(features.training) - 8 < taken <= total
    starts = {start for span in frames for start in range(span.start, span.start + span.frames * 30, 30)}
    assert len(starts) == taken


def test_batches_resume_where_they_were(cache):
    features = FeatureCache([str(cache)], 0.0, 30, 2.5)
    whole = FeatureBatches(features, 8, 4, seed=0)
    seen = [batch for batch, _ in zip(iter(whole), range(7), strict=False)]
    first = FeatureBatches(features, 8, 4, seed=0)
    for _ in zip(range(4), first, strict=False):
        pass
    second = FeatureBatches(features, 8, 4, seed=0)
    second.load_state_dict(first.state_dict() | {"taken": first.taken})
    rest = [batch for _, batch in zip(range(3), second, strict=False)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, seen[4:], strict=True))


def test_speakers_of_much_speech_are_not_held_out(tmp_path):
    np.save(tmp_path / "long.npy", np.zeros((2 * 1600 * 30, 18), np.float16))
    rows = [{"name": str(n), "speaker": name, "frames": 1600} for n, name in enumerate(("one", "two"))]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    features = FeatureCache([str(tmp_path / "long")], 0.999, 30, 2.5)
    assert len(features.training) == 2
    assert not features.held_out


def test_a_run_without_held_out_speakers_is_refused(config):
    with pytest.raises(ValueError, match="held_out_share"):
        main(dataclasses.replace(config, data=dataclasses.replace(config.data, held_out_share=0.0)))


def test_a_cache_of_other_recordings_is_refused(tmp_path):
    np.save(tmp_path / "odd.npy", np.zeros((90, 18), np.float16))
    (tmp_path / "odd.json").write_text(json.dumps([{"name": "a", "speaker": "a", "frames": 2}]))
    with pytest.raises(ValueError, match="odd"):
        FeatureCache([str(tmp_path / "odd")], 0.0, 30, 2.5)
    with pytest.raises(ValueError, match="absent"):
        FeatureCache([str(tmp_path / "absent")], 0.0, 30, 2.5)


def test_linear_paths_start_as_a_transform_code(config, cache):
    """Before any step the codec loses what quantized principal components lose: far less than all."""
    features = FeatureCache(config.data.features, 0.5, 30, 2.5)
    codec = make_codec(config, features, row_weights(config.model_config())).eval()
    figures = evaluate(codec, features, row_weights(config.model_config()), 8)
    assert figures["held_out/lost_3_db"] < 0.4
    assert figures["codebook/least_used"] > 0.3


def test_training_lowers_the_loss_and_resumes_to_equal_weights(config, tmp_path):
    model = main(config)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    lost = [row["held_out/lost_3_db"] for row in log if "held_out/lost_3_db" in row]
    assert lost[-1] < lost[0] - 5e-4  # of 42 bits a frame, most are spent on what a linear code keeps
    whole = load_file(tmp_path / "run" / "weights.safetensors")

    part = dataclasses.replace(config, run=dataclasses.replace(config.run, output=str(tmp_path / "part"), max_steps=8))
    main(part)
    main(dataclasses.replace(part, run=dataclasses.replace(part.run, max_steps=48)))
    resumed = load_file(tmp_path / "part" / "weights.safetensors")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())

    codec = JepaDaamModel.from_pretrained(model)
    samples = torch.from_numpy(soundfile.read(SPEECH, dtype="float32")[0])[None, None]
    audio = codec.decode(codec.encode(samples).audio_codes).audio_values
    assert audio.abs().max() > 0.01


def test_another_run_starts_from_a_checkpoint_folder(config, folder):
    settings = dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(folder)))
    features = FeatureCache(config.data.features, 0.5, 30, 2.5)
    codec = make_codec(settings, features, row_weights(config.model_config()))
    model = JepaDaamModel.from_pretrained(folder)
    assert torch.equal(codec.encoder.bottleneck.weight, model.encoder.bottleneck.weight)
    assert torch.equal(codec.frame_decoder.patches.weight, model.decoder.frames.patches.weight)


def test_other_settings_do_not_resume_a_run(config):
    run = dataclasses.replace(config.run, max_steps=8)
    main(dataclasses.replace(config, run=run))
    other = dataclasses.replace(config, run=run, optim=dataclasses.replace(config.optim, learning_rate=1e-3))
    with pytest.raises(ValueError, match="learning_rate"):
        main(other)


def test_weighted_error_leaves_padding_out():
    features, valid = torch.randn(2, 18, 60), torch.tensor([[True, True], [True, False]])
    error = weighted_error(torch.zeros_like(features), features, torch.full((18,), 2.0), valid)
    assert error[1, 1] == 0
    assert error[0, 0].item() == pytest.approx(4 * features[0, :, :30].square().sum().item(), rel=1e-5)


def test_entropies_are_shares_of_the_bits():
    indices = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    assert index_entropies(indices, (4, 16)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)


def test_the_codec_has_the_names_of_the_model(folder):
    model = JepaDaamModel.from_pretrained(folder)
    codec = FeatureCodec(model.config)
    names = {name.replace("frame_decoder.", "decoder.frames.") for name in codec.state_dict()}
    assert names <= set(model.state_dict())
