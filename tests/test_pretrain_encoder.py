import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining

from modeling_jepa_daam import JepaDaamEncoderModel, JepaDaamForPreTraining
from tests.conftest import ROOT
from tests.librilight import make_librilight
from tests.training_runs import figures, finish, kill_after, start
from training.checkpointing import list_checkpoints, verify_checkpoint
from training.config import PretrainConfig, load_config
from training.data import SegmentBatch, UnreadableRecordingsError
from training.pretrain_encoder import main, model_inputs
from training.run import rate_share, seed_randomness
from training.tracking import drop_after, read_metrics


@pytest.fixture(scope="module")
def librilight(tmp_path_factory):
    return make_librilight(tmp_path_factory.mktemp("librilight"), chapter_s=6.0).with_suffix(".tar")


def settings(librilight, output, *changes):
    return [
        str(ROOT / "training" / "configs" / "smoke.yaml"),
        f"data.sources=[{librilight}]",
        f"run.output={output}",
        *changes,
    ]


def config_of(librilight, output, *changes):
    path, *overrides = settings(librilight, output, *changes)
    return load_config(PretrainConfig, path, overrides)


def weights(output):
    return load_file(list_checkpoints(output / "checkpoints")[-1] / "model.safetensors")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(librilight, tmp_path, processes):
    """kill -9 twice, with steps done since the last checkpoint, on 1 and 2 processes with 2 data workers each."""
    changes = ["run.max_steps=9", "run.save_every=4", "run.eval_every=3", "data.num_workers=2", "run.log_every=1"]
    finish(start("pretrain_encoder", processes, settings(librilight, tmp_path / "unbroken", *changes)))
    broken = settings(librilight, tmp_path / "broken", *changes)
    for num_entries in (6, 9):
        kill_after(start("pretrain_encoder", processes, broken), tmp_path / "broken", num_entries)
    assert len(list_checkpoints(tmp_path / "broken" / "checkpoints")) >= 1
    assert "going on from" in finish(start("pretrain_encoder", processes, broken))

    for run in ("unbroken", "broken"):
        checkpoint = list_checkpoints(tmp_path / run / "checkpoints")[-1]
        assert verify_checkpoint(checkpoint)["world_size"] == processes
    assert len(figures(tmp_path / "unbroken")) == 9 + 3
    assert figures(tmp_path / "broken") == figures(tmp_path / "unbroken")
    expected, resumed = weights(tmp_path / "unbroken"), weights(tmp_path / "broken")
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_a_finished_run_loads_like_any_other_and_goes_on_with_more_steps(librilight, tmp_path):
    folder = main(config_of(librilight, tmp_path / "run", "run.max_steps=3", "optim.accumulation_steps=2"))
    jepa = AutoModelForPreTraining.from_pretrained(folder)
    assert isinstance(jepa, JepaDaamForPreTraining)
    encoder = JepaDaamEncoderModel.from_pretrained(folder)
    saved = weights(tmp_path / "run")
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(value, saved[f"encoder.{name}"]), name
    assert any(not torch.equal(value, saved[f"target_{name}"]) for name, value in encoder.state_dict().items())
    more = main(config_of(librilight, tmp_path / "run", "run.max_steps=5", "optim.accumulation_steps=2"))
    assert more == folder
    at_once = main(config_of(librilight, tmp_path / "once", "run.max_steps=5", "optim.accumulation_steps=2"))
    expected, resumed = (load_file(path / "model.safetensors") for path in (at_once, more))
    assert expected.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], value) for name, value in expected.items())


def test_the_target_follows_the_encoder_and_nothing_else(librilight, tmp_path, monkeypatch):
    """After n steps the target is the moving average of the encoders that the steps made."""
    encoders = []
    update = JepaDaamForPreTraining.update_target

    def recording_update(self, decay=None):
        encoders.append([parameter.detach().clone() for parameter in self.encoder.parameters()])
        update(self, decay)

    config = config_of(librilight, tmp_path, "run.max_steps=3", "data.held_out_share=0.0")
    torch.manual_seed(config.run.seed)
    expected = [p.detach().clone() for p in JepaDaamForPreTraining(config.model_config()).encoder.parameters()]
    monkeypatch.setattr(JepaDaamForPreTraining, "update_target", recording_update)
    folder = main(config)
    assert len(encoders) == 3
    for encoder in encoders:
        expected = [0.996 * old + 0.004 * new for old, new in zip(expected, encoder, strict=True)]
    target = JepaDaamForPreTraining.from_pretrained(folder).target_encoder
    for parameter, value in zip(target.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value)


def test_bfloat16_trains_float32_weights(librilight, tmp_path, monkeypatch):
    AcceleratorState._reset_state(reset_partial_state=True)  # of the runs before
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        folder = main(config_of(librilight, tmp_path / "half", "run.max_steps=12"))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.undo()
    main(config_of(librilight, tmp_path / "full", "run.max_steps=12"))
    assert {value.dtype for value in load_file(folder / "model.safetensors").values()} == {torch.float32}
    half, full = (
        [e["loss/predict"] for e in figures(tmp_path / run) if "loss/predict" in e] for run in ("half", "full")
    )
    assert half != full
    assert half == pytest.approx(full, rel=0.05)
    assert half[-1] < 0.8 * half[0]


def test_another_run_in_the_same_folder_is_refused(librilight, tmp_path):
    main(config_of(librilight, tmp_path, "run.max_steps=2"))
    with pytest.raises(ValueError, match=r"holds a run with other settings; .*optim.learning_rate: 0.0015, 0.001"):
        main(config_of(librilight, tmp_path, "run.max_steps=3", "optim.learning_rate=1e-3"))
    with pytest.raises(ValueError, match=r"holds a run with other settings; .*run.seed: 0, 1"):
        main(config_of(librilight, tmp_path, "run.max_steps=3", "run.seed=1"))


def test_a_second_run_in_the_same_folder_is_refused(librilight, tmp_path):
    program = "import sys, pathlib; from training.run import only_run\n"
    program += "with only_run(pathlib.Path(sys.argv[1])): print('training', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert first.stdout.readline() == b"training\n"
        with pytest.raises(ValueError, match="another process is training into"):
            main(config_of(librilight, tmp_path, "run.max_steps=1"))
    finally:
        first.kill()
        first.communicate()
    main(config_of(librilight, tmp_path, "run.max_steps=1"))


def test_a_corpus_without_held_out_or_other_speakers_is_an_error_at_once(librilight, tmp_path):
    for share, held_out in (("1e-9", 0), ("0.999999", 6)):
        with pytest.raises(ValueError, match=f"holds out {held_out} of 6 speakers: choose another share"):
            main(config_of(librilight, tmp_path, "run.max_steps=1", f"data.held_out_share={share}"))
    main(config_of(librilight, tmp_path, "run.max_steps=1", "data.held_out_share=0"))  # and then it runs


def test_unreadable_files_are_logged_and_too_many_end_the_run(librilight, tmp_path, capfd):
    small = make_librilight(tmp_path, chapter_s=6.0)
    bad = sorted(small.rglob("chapter_00_64kb.flac"))[:3]
    for path in bad:
        path.write_text("no sound")
    options = ["data.held_out_share=0", "data.recordings_per_round=20", "run.max_steps=3"]
    main(config_of(small, tmp_path / "run", "data.max_unreadable_share=0.05", *options))
    said = capfd.readouterr().err
    assert all(f"warning: unreadable, left out: {path.relative_to(tmp_path)}: " in said for path in bad)
    assert figures(tmp_path / "run")[-1]["data/unreadable"] == 3
    with pytest.raises(UnreadableRecordingsError, match=r"3 of 12 recordings are unreadable, more than .* = 0.02"):
        main(config_of(small, tmp_path / "other", "data.max_unreadable_share=0.02", *options))


def test_weights_that_are_not_finite_reach_no_checkpoint(librilight, tmp_path):
    options = ["optim.learning_rate=1e30", "run.save_every=1", "run.log_every=100", "data.held_out_share=0"]
    with pytest.raises(FloatingPointError, match="the loss is nan .* at step"):
        main(config_of(librilight, tmp_path, "run.max_steps=10", *options))
    assert list_checkpoints(tmp_path / "checkpoints")
    for checkpoint in list_checkpoints(tmp_path / "checkpoints"):
        assert all(value.isfinite().all() for value in load_file(checkpoint / "model.safetensors").values())


def test_a_wrong_setting_ends_the_command_with_a_message(librilight, tmp_path):
    process = start("pretrain_encoder", 1, settings(librilight, tmp_path, "optim.lr=1"))
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "error: unknown configuration keys: `optim.lr`" in output
    assert "Traceback" not in output


def test_processes_that_do_not_know_of_each_other_are_refused(librilight, tmp_path):
    process = start("pretrain_encoder", 2, settings(librilight, tmp_path), ACCELERATE_USE_CPU="false")
    output, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "2 processes were started, but Accelerate knows of 1: it found no GPUs" in output


def test_the_learning_rate_rises_and_stays():
    assert [rate_share(step, 3, 0, 5) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [rate_share(step, 0, 3, 6) for step in range(6)] == [1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert rate_share(0, 0, 0, 1) == 1.0


def test_randomness_differs_by_seed_step_batch_and_process():
    drawn = set()
    for changed in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        generator = seed_randomness(*changed)
        drawn.add((torch.rand(()).item(), torch.rand((), generator=generator).item()))
    assert len({a for a, _ in drawn}) == len({b for _, b in drawn}) == 5
    assert torch.equal(
        torch.rand(3, generator=seed_randomness(0, 1, 2, 3)), torch.rand(3, generator=seed_randomness(0, 1, 2, 3))
    )


def test_interrupted_metrics_lose_what_is_not_in_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "a": 0.1}\n{"step": 2, "a": 0.2}\n{"step": 3, "a"')
    assert read_metrics(path) == [{"step": 1, "a": 0.1}, {"step": 2, "a": 0.2}]
    drop_after(path, 1)
    assert path.read_text() == '{"step": 1, "a": 0.1}\n'


def test_a_batch_of_whole_segments_needs_no_mask(librilight):
    batch = SegmentBatch(torch.zeros(2, 6), torch.tensor([6, 6]), torch.ones(2), [], [], {})
    assert model_inputs(batch, torch.device("cpu"))["padding_mask"] is None
    batch.lengths = torch.tensor([6, 4])
    inputs = model_inputs(batch, torch.device("cpu"))
    assert inputs["input_values"].shape == (2, 1, 6)
    assert inputs["padding_mask"].tolist() == [[True] * 6, [True] * 4 + [False] * 2]
