import json
import shutil

import pytest
import torch
from accelerate import Accelerator

from training.checkpointing import (
    MANIFEST,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    remove_half_written,
    save_checkpoint,
)


@pytest.fixture
def run(tmp_path):
    """A run with the checkpoints of steps 1, 2 and 3; the weights are the step."""
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(torch.nn.Linear(3, 2))
    for step in range(1, 4):
        with torch.no_grad():
            model.weight.fill_(step)
        save_checkpoint(accelerator, tmp_path, step, {"at": step}, keep=3)
    yield accelerator, model, tmp_path
    accelerator.free_memory()


def test_the_newest_is_restored(run):
    accelerator, model, folder = run
    with torch.no_grad():
        model.weight.zero_()
    assert load_checkpoint(accelerator, list_checkpoints(folder)[-1]) == (3, {"at": 3})
    assert torch.equal(model.weight, torch.full((2, 3), 3.0))
    assert list_checkpoints(folder / "other") == []


def test_only_the_last_few_are_kept(run):
    accelerator, _, folder = run
    save_checkpoint(accelerator, folder, 4, {}, keep=2)
    assert [path.name for path in list_checkpoints(folder)] == ["step-00000003", "step-00000004"]


@pytest.mark.parametrize("harm", ["cut", "flip", "remove", "manifest"])
@pytest.mark.parametrize("name", ["model.safetensors", "data_position_0.json"])
def test_a_damaged_one_is_refused_by_name_and_the_one_before_it_offered(run, name, harm):
    accelerator, _, folder = run
    newest = list_checkpoints(folder)[-1]
    file = newest / (MANIFEST if harm == "manifest" else name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "remove":
        file.unlink()
    else:
        file.write_bytes(content[: len(content) // 2] if harm == "cut" else content)
        if harm == "manifest":
            file.write_text("{")
    with pytest.raises(DamagedCheckpointError, match=rf"step-00000003 is damaged \({file.name}\); .*step-00000002"):
        load_checkpoint(accelerator, newest)
    shutil.rmtree(newest)
    assert load_checkpoint(accelerator, list_checkpoints(folder)[-1]) == (2, {"at": 2})


def test_one_of_another_number_of_processes_is_refused(run):
    accelerator, _, folder = run
    newest = list_checkpoints(folder)[-1]
    manifest = json.loads((newest / MANIFEST).read_text())
    (newest / MANIFEST).write_text(json.dumps({**manifest, "world_size": 2}))
    with pytest.raises(ValueError, match="is of 2 processes, but this run has 1"):
        load_checkpoint(accelerator, newest)


def test_a_half_written_one_is_no_checkpoint(run, monkeypatch):
    accelerator, _, folder = run

    def fail(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("training.checkpointing.json.dumps", fail)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(accelerator, folder, 4, {}, keep=3)
    monkeypatch.undo()
    assert list_checkpoints(folder)[-1].name == "step-00000003"
    assert list(folder.glob(".step-*"))
    remove_half_written(folder)
    assert not list(folder.glob(".step-*"))
    assert len(list_checkpoints(folder)) == 3


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        "[]",
        "3",
        '{"step": 3}',
        '{"step": 3, "world_size": 1, "files": []}',
        '{"step": 3, "world_size": 1, "files": {}}',
        '{"step": 3, "world_size": 1, "files": {"model.safetensors": 5}}',
        '{"step": 1000000000000, "world_size": 1, "files": FILES}',
        '{"step": "3", "world_size": 1, "files": FILES}',
        '{"step": 3, "world_size": 1e400, "files": FILES}',
        '{"step": 3, "world_size": "many", "files": FILES}',
        '{"step": 3, "world_size": 0, "files": FILES}',
    ],
)
def test_a_manifest_edited_by_hand_is_a_damaged_checkpoint(run, content):
    accelerator, model, folder = run
    newest = list_checkpoints(folder)[-1]
    files = json.dumps(json.loads((newest / MANIFEST).read_text())["files"])
    (newest / MANIFEST).write_text(content.replace("FILES", files))
    with pytest.raises(DamagedCheckpointError, match=rf"step-00000003 is damaged \(.*{MANIFEST}\); .*step-00000002"):
        load_checkpoint(accelerator, newest)
    assert torch.equal(model.weight, torch.full((2, 3), 3.0))
