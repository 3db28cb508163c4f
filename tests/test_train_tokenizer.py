import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamForPreTraining,
    JepaDaamModel,
    make_untrained_checkpoint,
)
from tests.conftest import ROOT, STFT, TINY
from tests.librilight import make_librilight
from tests.test_source_filter_head import harmonic_config
from tests.training_runs import figures, finish, kill_after, start
from training import checkpointing
from training.checkpointing import list_checkpoints, verify_checkpoint
from training.config import CodecConfig, PretrainConfig, load_config
from training.discriminators import Discriminators
from training.pretrain_encoder import main as pretrain
from training.reconstruction import fixed_clips, reconstruct
from training.run import prepare_output
from training.train_tokenizer import (
    adversarial_losses,
    average_decay,
    clip_gradients,
    load_weights,
    loss_weights,
    main,
    make_models,
    make_optimizers,
    train,
)

CONFIGS = ROOT / "training" / "configs"
SMALL = (
    "data.segment_s=1.6", "data.window_s=0.8", "data.batch_size=2", "run.eval_clips=2", "optim.discriminator_start=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    return make_librilight(tmp_path_factory.mktemp("librilight"), chapter_s=4.0).with_suffix(".tar")


def settings(librilight, output, *changes):
    path = str(CONFIGS / "codec_smoke.yaml")
    return [path, f"data.sources=[{librilight}]", f"run.output={output}", *SMALL, *changes]


def config_of(librilight, output, *changes):
    path, *overrides = settings(librilight, output, *changes)
    return load_config(CodecConfig, path, overrides)


def state(output):
    """All weights of the last checkpoint: the codec with its average, and the discriminators."""
    checkpoint = list_checkpoints(output / "checkpoints")[-1]
    codec, discriminators = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "model_1.safetensors")
    return codec | {f"discriminators.{name}": value for name, value in discriminators.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(librilight, tmp_path, processes):
    """kill -9 before and after the discriminators start, on 1 and 2 processes with a data worker each."""
    changes = ["run.max_steps=7", "run.save_every=2", "run.eval_every=3", "data.num_workers=1", "data.speed=[0.9, 1.1]"]
    changes += ["optim.discriminator_start=3", "optim.spectrogram_steps=2", "data.gain_db=[-9, 3]"]
    finish(start("train_tokenizer", processes, settings(librilight, tmp_path / "unbroken", *changes)))
    broken = settings(librilight, tmp_path / "broken", *changes)
    for num_entries in (3, 7):
        kill_after(start("train_tokenizer", processes, broken), tmp_path / "broken", num_entries)
    assert "going on from" in finish(start("train_tokenizer", processes, broken))

    checkpoint = list_checkpoints(tmp_path / "broken" / "checkpoints")[-1]
    assert verify_checkpoint(checkpoint)["world_size"] == processes
    expected = figures(tmp_path / "unbroken")
    assert len(expected) == 7 + 3
    assert [("loss/spectrogram" in entry) for entry in expected if "loss/total" in entry] == [True] * 2 + [False] * 5
    assert [("loss/adversarial" in entry) for entry in expected if "loss/total" in entry] == [False] * 3 + [True] * 4
    assert figures(tmp_path / "broken") == expected
    assert same(state(tmp_path / "broken"), state(tmp_path / "unbroken"))


class Pieces:
    """A run of 6 steps, its state after 4, and how to leave out one piece of that."""

    def __init__(self, librilight, folder):
        self.folder = folder
        self.config = lambda output, *changes: config_of(
            librilight, output, "run.save_every=4", "run.eval_every=100", *changes
        )
        main(self.config(folder / "half", "run.max_steps=4"))
        shutil.copytree(folder / "half", folder / "whole")
        main(self.config(folder / "whole", "run.max_steps=6"))
        main(self.config(folder / "fresh", "run.max_steps=1", "run.save_every=1", "optim.learning_rate=1e-30",
                         "optim.discriminator_learning_rate=1e-30"))  # fmt: skip
        self.initial = state(folder / "fresh")

    def go_on_without(self, drop):
        """The state after 6 steps, having gone on from one that `drop(checkpoint)` has changed."""
        output = self.folder / "without"
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(self.folder / "half", output)
        checkpoint = list_checkpoints(output / "checkpoints")[-1]
        drop(self, checkpoint)
        manifest = json.loads((checkpoint / checkpointing.MANIFEST).read_text())
        manifest["files"] = {name: checkpointing._digest(checkpoint / name) for name in manifest["files"]}
        (checkpoint / checkpointing.MANIFEST).write_text(json.dumps(manifest))
        checkpoint.rename(checkpoint.with_name(f"step-{manifest['step']:08d}"))  # as one that was saved then
        main(self.config(output, "run.max_steps=6"))
        return state(output)


@pytest.fixture(scope="module")
def pieces(librilight, tmp_path_factory):
    return Pieces(librilight, tmp_path_factory.mktemp("pieces"))


def reset(file, *prefixes):
    """Weights of these names as they were in the beginning."""

    def drop(pieces, checkpoint):
        values = load_file(checkpoint / file)
        names = [name for name in values if name.startswith(prefixes)]
        assert names
        for name in names:
            values[name] = pieces.initial[f"discriminators.{name}" if file == "model_1.safetensors" else name]
        save_file(values, checkpoint / file, metadata={"format": "pt"})

    return drop


def forget_moments(file):
    def drop(_, checkpoint):
        saved = torch.load(checkpoint / file)
        assert saved["state"]
        torch.save(saved | {"state": {}}, checkpoint / file)

    return drop


def restart_data(_, checkpoint):
    path = checkpoint / "data_position_0.json"
    position = json.loads(path.read_text())
    path.write_text(json.dumps(position | {"positions": [None] * len(position["positions"])}))


def restart_steps(_, checkpoint):
    path = checkpoint / checkpointing.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"step": 3}))


def test_going_on_with_every_piece_of_state_gives_the_very_same_weights(pieces):
    assert same(pieces.go_on_without(lambda *_: None), state(pieces.folder / "whole"))


@pytest.mark.parametrize(
    "drop",
    [
        pytest.param(reset("model.safetensors", "codec.encoder."), id="encoder"),
        pytest.param(reset("model.safetensors", "codec.decoder."), id="decoder"),
        pytest.param(reset("model.safetensors", "codec.quantizer.running_mean"), id="running mean"),
        pytest.param(reset("model.safetensors", "codec.quantizer.running_var"), id="running variance"),
        pytest.param(reset("model.safetensors", "average."), id="moving average"),
        pytest.param(reset("model_1.safetensors", "periods."), id="period discriminators"),
        pytest.param(reset("model_1.safetensors", "scales."), id="scale discriminators"),
        pytest.param(forget_moments("optimizer.bin"), id="optimizer of the codec"),
        pytest.param(forget_moments("optimizer_1.bin"), id="optimizer of the discriminators"),
        pytest.param(restart_data, id="place in the data"),
        pytest.param(restart_steps, id="step"),
    ],
)
def test_every_piece_of_state_counts(pieces, drop):
    """The test above would fail without any one of them."""
    assert not same(pieces.go_on_without(drop), state(pieces.folder / "whole"))


def test_the_trained_folder_reconstructs_the_very_samples_that_the_trainer_did(librilight, tmp_path):
    config = config_of(librilight, tmp_path, "run.max_steps=3", "run.eval_every=3")
    folder = main(config)
    clips = fixed_clips(config, 24000)
    assert len(clips) == 2
    tokenizer, model = JepaAudioTokenizer.from_pretrained(folder), JepaDaamModel.from_pretrained(folder)
    average = {name.removeprefix("average."): v for name, v in state(tmp_path).items() if name.startswith("average.")}
    assert same(model.state_dict(), average)
    for number, clip in enumerate(clips):
        ids = tokenizer(clip.samples, 24000)["input_ids"]
        decoded = np.asarray(tokenizer.decode_audio(ids)).reshape(-1)[: len(clip.samples)]
        expected, tokens = reconstruct(model, clip.samples)
        assert ids == tokens.flatten().tolist()
        np.testing.assert_array_equal(decoded, expected)
        written, rate = soundfile.read(tmp_path / "reconstructions" / "step-00000003" / f"{number:02d}.flac")
        assert rate == 24000
        np.testing.assert_allclose(written, expected, atol=2**-15)
    assert {"held_out/stoi", "held_out/mel_distance", "held_out/mel_distance_of_constant"} <= set(figures(tmp_path)[-1])
    assert (tmp_path / "reconstructions" / "step-00000003" / "00.png").stat().st_size > 10_000


def test_it_starts_from_stage_1(librilight, tmp_path):
    smoke = [f"data.sources=[{librilight}]", f"run.output={tmp_path / 'stage1'}", "run.max_steps=2"]
    first = pretrain(load_config(PretrainConfig, CONFIGS / "smoke.yaml", smoke))
    changes = [f"model.config={first}", f"model.weights={first}", "run.max_steps=2", "run.eval_clips=0"]
    frozen = main(config_of(librilight, tmp_path / "frozen", *changes, "optim.freeze_encoder=true"))
    tuned = main(config_of(librilight, tmp_path / "tuned", *changes))
    encoders = [JepaDaamEncoderModel.from_pretrained(folder).state_dict() for folder in (first, frozen, tuned)]
    assert same(encoders[0], encoders[1])
    assert not same(encoders[0], encoders[2])


@pytest.mark.parametrize("options", [["data.window_s=null"], ["optim.accumulation_steps=2"], ["losses.mel=1"],
                                     ["data.held_out_share=0"]])  # fmt: skip
def test_options_train_and_stay_finite(librilight, tmp_path, options):
    main(config_of(librilight, tmp_path, "run.max_steps=4", "run.eval_every=4", *options))
    last = figures(tmp_path)
    assert all(np.isfinite(value) for entry in last for value in entry.values())
    assert any(("seen/stoi" if "data.held_out_share=0" in options else "held_out/stoi") in entry for entry in last)
    assert any("loss/mel" in entry for entry in last) == ("losses.mel=1" in options)


def test_spectrograms_are_learned_first_and_the_learning_rate_falls(librilight, tmp_path):
    main(
        config_of(librilight, tmp_path, "run.max_steps=40", "optim.spectrogram_steps=40", "optim.decay_steps=20",
                  "run.eval_every=20", "optim.warmup_steps=0")
    )  # fmt: skip
    entries = figures(tmp_path)
    assert sum("loss/spectrogram" in entry for entry in entries) == 40
    first, last = (
        entry["held_out/spectrogram_distance"] for entry in entries if "held_out/spectrogram_distance" in entry
    )
    assert last < 0.97 * first
    rates = [entry["optim/learning_rate"] for entry in entries if "optim/learning_rate" in entry]
    assert rates[19] == rates[0] > rates[30] > rates[39] > 0.0


@pytest.mark.parametrize(
    "change", ["data.speed=[0.4, 1]", "data.speed=[1.1, 0.9]", "data.gain_db=[0, 61]", "optim.decay_steps=-1"]
)
def test_ranges_of_augmentation_are_checked(librilight, tmp_path, change):
    with pytest.raises(ValueError, match=f"`{change.split('=')[0]}` must be"):
        config_of(librilight, tmp_path, change)


def test_envelopes_need_a_source_of_harmonics(librilight, tmp_path):
    with pytest.raises(ValueError, match="`losses.envelope` needs `harmonic_source`"):
        make_models(config_of(librilight, tmp_path, "losses.envelope=1.0"))


def test_bfloat16_trains_float32_weights(librilight, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # of the runs before
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        folder = main(config_of(librilight, tmp_path / "half", "run.max_steps=4"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.undo()
    main(config_of(librilight, tmp_path / "full", "run.max_steps=4"))
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    half, full = ([e["loss/total"] for e in figures(tmp_path / run) if "loss/total" in e] for run in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.1)


def test_tensorboard_gets_sound_and_picture(librilight, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(config_of(librilight, tmp_path, "run.max_steps=1", "run.tracker=tensorboard"))
    events = EventAccumulator(str(next(Path(tmp_path, "jepa-daam").glob("events*")).parent))
    events.Reload()
    assert events.Tags()["audio"] == ["reconstruction/00", "reconstruction/01"]
    assert events.Tags()["images"] == ["spectrogram/00", "spectrogram/01"]
    assert "held_out/stoi" in events.Tags()["scalars"]


def launched(**state):
    """As much of an Accelerator as is looked at first."""
    return SimpleNamespace(
        state=SimpleNamespace(deepspeed_plugin=state.get("plugin")), mixed_precision=state["precision"]
    )


def test_what_cannot_be_launched_is_refused(librilight, tmp_path):
    config = config_of(librilight, tmp_path, "optim.accumulation_steps=2")
    with pytest.raises(ValueError, match="launch it without DeepSpeed"):
        train(config, launched(plugin=object(), precision="bf16"))
    with pytest.raises(ValueError, match="`optim.accumulation_steps` must be 1 with float16"):
        train(config, launched(precision="fp16"))


def test_weights_of_a_coarser_head_are_made_finer(tmp_path):
    coarse = harmonic_config(7, 10)
    JepaDaamModel(coarse).save_pretrained(tmp_path)
    codec = load_weights(str(tmp_path), harmonic_config(7, 10, num_spectra=2))
    assert codec.config.decoder_istft_spectra == codec.decoder.istft_head.num_spectra == 2
    expected = JepaDaamModel.from_pretrained(tmp_path).decoder.istft_head.project.weight[::2]
    for spectrum in codec.decoder.istft_head.project.weight.chunk(2):
        torch.testing.assert_close(spectrum, expected)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    config = JepaDaamConfig(**TINY)
    torch.manual_seed(0)
    stage1 = JepaDaamForPreTraining(config)
    stage1.save_pretrained(tmp_path / "stage1")
    codec = load_weights(str(tmp_path / "stage1"), config)
    assert same(codec.encoder.state_dict(), stage1.encoder.state_dict())
    for change in ({"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"num_attention_heads": 4}):
        with pytest.raises(
            ValueError, match=f"does not fit `model.config`: its encoder has other .* {next(iter(change))}"
        ):
            load_weights(str(tmp_path / "stage1"), JepaDaamConfig(**TINY | change))
    JepaDaamForPreTraining(JepaDaamConfig(**STFT, transform_bands=7)).save_pretrained(tmp_path / "beside")
    load_weights(str(tmp_path / "beside"), JepaDaamConfig(**STFT))  # Stage 1 has no transform, whatever it is called
    for wrong in ("nowhere", "."):
        with pytest.raises(
            ValueError, match=r"`model.weights` must be a folder with a config.json \(of a run: its `model`"
        ):
            load_weights(str(tmp_path / wrong), config)
    save_file({"other": torch.zeros(1)}, tmp_path / "stage1" / "model.safetensors", metadata={"format": "pt"})
    settings = tmp_path / "stage1" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"weights_sha256": None}))
    with pytest.raises(ValueError, match="weights of the encoder are missing, such as encoder."):
        load_weights(str(tmp_path / "stage1"), config)


def test_no_gradient_of_the_codecs_losses_reaches_the_discriminators():
    torch.manual_seed(0)
    discriminators = Discriminators((2,), 1, 1 / 64)
    real, generated = torch.randn(2, 400), torch.randn(2, 400, requires_grad=True)
    losses = adversarial_losses(discriminators, real, generated)
    sum(losses.values()).backward()
    assert set(losses) == {"adversarial", "feature_matching"}
    assert generated.grad.any()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminators.parameters())


def test_adversarial_losses_of_weight_0_are_left_out(librilight, tmp_path):
    off = ["optim.discriminator_start=0", "losses.adversarial=0", "losses.feature_matching=0", "run.eval_clips=0"]
    main(config_of(librilight, tmp_path, "run.max_steps=2", *off))
    assert not any("adversarial" in key or "discriminators" in key for entry in figures(tmp_path) for key in entry)


def test_the_clips_are_the_same_whatever_the_batches(librilight, tmp_path):
    config = config_of(librilight, tmp_path, "run.max_steps=1")
    prepare_output(config, tmp_path, fresh=True)
    other = config_of(librilight, tmp_path, "data.batch_size=3", "data.segment_s=0.8", "data.min_segment_s=0.4")
    one, two = fixed_clips(config, 24000), fixed_clips(other, 24000)
    assert [clip.name for clip in one] == [clip.name for clip in two]
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(one, two, strict=True))
    assert all(clip.bandwidth_hz == 8000.0 for clip in one)
    with pytest.raises(ValueError, match="`run.eval_clips` is 1000, but `data.held_out_share` = 0.4 leaves only"):
        fixed_clips(config_of(librilight, tmp_path, "run.eval_clips=1000"), 24000)


def test_a_trained_tokenizer_is_not_called_untrained(librilight, tmp_path):
    make_untrained_checkpoint(
        JepaDaamConfig.from_pretrained(ROOT / "hub_configs" / "jepa-daam-24khz-nano"), tmp_path / "u"
    )
    assert config_of(librilight, tmp_path, f"model.config={tmp_path / 'u'}").model_config().untrained_seed is None


def test_the_folder_of_another_stage_is_refused(librilight, tmp_path):
    smoke = [f"data.sources=[{librilight}]", f"run.output={tmp_path}", "run.max_steps=1", "run.save_every=1"]
    pretrain(load_config(PretrainConfig, CONFIGS / "smoke.yaml", smoke))
    with pytest.raises(ValueError, match="`run.output`: .* holds a run of another kind"):
        main(config_of(librilight, tmp_path))


def test_encoder_decoder_and_discriminators_have_rates_of_their_own(librilight, tmp_path):
    rates = ["optim.encoder_learning_rate=1e-5", "optim.discriminator_learning_rate=2e-4"]
    config = config_of(librilight, tmp_path, *rates)
    codec, discriminators, *_ = make_models(config)
    for_codec, for_discriminators = make_optimizers(config, codec, discriminators)
    assert [group["lr"] for group in for_codec.param_groups] == [1e-5, 1.5e-3]
    assert [group["lr"] for group in for_discriminators.param_groups] == [2e-4]
    encoder = {id(parameter) for parameter in codec.codec.encoder.parameters()}
    assert {id(parameter) for parameter in for_codec.param_groups[0]["params"]} == encoder
    trained = [parameter for group in for_codec.param_groups for parameter in group["params"]]
    assert {id(p) for p in trained} == {id(p) for p in codec.parameters() if p.requires_grad}


def test_gradients_are_scaled_down_together_and_told_apart():
    from accelerate import Accelerator

    parts = {name: torch.nn.Linear(1, 1, bias=False) for name in ("a", "b")}
    parts["a"].weight.grad, parts["b"].weight.grad = torch.full((1, 1), 3.0), torch.full((1, 1), 4.0)
    optimizer = torch.optim.SGD([p for part in parts.values() for p in part.parameters()])
    assert clip_gradients(Accelerator(cpu=True), optimizer, parts, 1.0) == {"grad_norm/a": 3.0, "grad_norm/b": 4.0}
    assert parts["a"].weight.grad.item() == pytest.approx(0.6)
    assert parts["b"].weight.grad.item() == pytest.approx(0.8)


def test_every_loss_has_a_weight_and_the_average_starts_fast(librilight, tmp_path):
    weights = loss_weights(config_of(librilight, tmp_path))
    assert (weights["waveform"], weights["log_magnitude"], weights["adversarial"]) == (1.0, 2.0, 0.1)
    assert [average_decay(step, 0.5) for step in (0, 1, 7, 8, 100)] == pytest.approx([0.1, 2 / 11, 8 / 17, 0.5, 0.5])
