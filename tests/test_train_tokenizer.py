import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamEncoderModel, JepaDaamModel
from tests.conftest import ROOT
from tests.librilight import make_librilight
from training import checkpointing
from training.checkpointing import list_checkpoints, verify_checkpoint
from training.config import CodecConfig, PretrainConfig, load_config
from training.pretrain_encoder import main as pretrain
from training.reconstruction import fixed_clips, reconstruct
from training.tracking import read_metrics
from training.train_tokenizer import average_decay, clip_gradients, loss_weights, main, make_models, make_optimizers

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


def figures(output):
    """Every logged figure but the speed."""
    entries = read_metrics(output / "metrics.jsonl")
    return [{key: entry[key] for key in entry if not key.startswith("speed/")} for entry in entries]


def state(output):
    """All weights of the last checkpoint: the codec with its average, and the discriminators."""
    checkpoint = list_checkpoints(output / "checkpoints")[-1]
    codec, discriminators = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / "model_1.safetensors")
    return codec | {f"discriminators.{name}": value for name, value in discriminators.items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def start(processes, arguments):
    """Start a run in processes of its own, as a user does."""
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes), "-m"]
    return subprocess.Popen(
        [*launch, "training.train_tokenizer", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def kill_after(process, output, num_entries):
    """kill -9 all processes of a run as soon as it has logged so many entries."""
    deadline = time.monotonic() + 200
    while not (output / "metrics.jsonl").exists() or len(read_metrics(output / "metrics.jsonl")) < num_entries:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(librilight, tmp_path, processes):
    """kill -9 before and after the discriminators start, on 1 and 2 processes with a data worker each."""
    changes = ["run.max_steps=7", "run.save_every=2", "run.eval_every=3", "data.num_workers=1"]
    changes += ["optim.discriminator_start=3"]
    finish(start(processes, settings(librilight, tmp_path / "unbroken", *changes)))
    broken = settings(librilight, tmp_path / "broken", *changes)
    for num_entries in (3, 7):
        kill_after(start(processes, broken), tmp_path / "broken", num_entries)
    assert "going on from" in finish(start(processes, broken))

    checkpoint = list_checkpoints(tmp_path / "broken" / "checkpoints")[-1]
    assert verify_checkpoint(checkpoint)["world_size"] == processes
    expected = figures(tmp_path / "unbroken")
    assert len(expected) == 7 + 3
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
        pytest.param(reset("model.safetensors", "patch_heads."), id="patch heads"),
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


@pytest.mark.parametrize("options", [["data.window_s=null"], ["optim.accumulation_steps=2"], ["losses.patches=0"],
                                     ["losses.mel=1"], ["data.held_out_share=0"]])  # fmt: skip
def test_options_train_and_stay_finite(librilight, tmp_path, options):
    main(config_of(librilight, tmp_path, "run.max_steps=4", "run.eval_every=4", *options))
    last = figures(tmp_path)
    assert all(np.isfinite(value) for entry in last for value in entry.values())
    assert any(("seen/stoi" if "data.held_out_share=0" in options else "held_out/stoi") in entry for entry in last)
    assert any("loss/mel" in entry for entry in last) == ("losses.mel=1" in options)
    assert any("loss/patches_latents" in entry for entry in last) == ("losses.patches=0" not in options)


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


def test_deepspeed_is_refused():
    class State:
        deepspeed_plugin = object()

    class Launched:
        state = State()

    from training.train_tokenizer import train

    with pytest.raises(ValueError, match="launch it without DeepSpeed"):
        train(None, Launched())


def test_encoder_decoder_and_discriminators_have_rates_of_their_own(librilight, tmp_path):
    config = config_of(librilight, tmp_path, "optim.encoder_learning_rate=1e-5")
    codec, discriminators = make_models(config)
    for_codec, for_discriminators = make_optimizers(config, codec, discriminators)
    assert [group["lr"] for group in for_codec.param_groups] == [1e-5, 1.5e-3]
    assert [group["lr"] for group in for_discriminators.param_groups] == [0.75e-4]
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
