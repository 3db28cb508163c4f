import pytest
import torch

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, make_untrained_checkpoint
from modeling_jepa_daam.checkpoint import save_checkpoint
from tests.conftest import TINY, noise
from training import ship as module
from training.hub_folders import code_files, copy_code
from training.ship import ship


def trained(folder, seed):
    torch.manual_seed(seed)
    return save_checkpoint(JepaDaamModel(JepaDaamConfig(**TINY)), folder)


def test_what_ships_loads_and_takes_the_place_of_what_did(tmp_path):
    ids = []
    for seed in (0, 1):
        folder = ship(trained(tmp_path / f"run-{seed}", seed), tmp_path / "shipped")
        (folder / "README.md").write_text("stays")
        ids.append(JepaAudioTokenizer.from_pretrained(folder)(noise(600), sampling_rate=24000)["input_ids"])
    assert ids[0] != ids[1]
    assert (folder / "README.md").read_text() == "stays"
    assert sorted(path.name for path in folder.glob("*.py")) == [file.name for file in code_files()]
    assert all((folder / file.name).read_text() == file.read_text() for file in code_files())
    (folder / "conformer.py").unlink()
    (folder / "conformer.py").symlink_to("nowhere.py")  # as the folders once had them
    (folder / "model_cache.py").write_text("old")
    assert copy_code(folder) == code_files()
    assert all((folder / file.name).read_text() == file.read_text() for file in code_files())
    (folder / "mine.py").touch()
    with pytest.raises(ValueError, match="mine.py is no module of the package"):
        copy_code(folder)
    (folder / "mine.py").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0", "run-1", "shipped"]


def test_untrained_or_large_weights_do_not_ship(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="never trained"):
        ship(make_untrained_checkpoint(JepaDaamConfig(**TINY), tmp_path / "untrained"), tmp_path / "shipped")
    monkeypatch.setattr(module, "MAX_MB", 0.001)
    with pytest.raises(ValueError, match=r"at most 0\.001 ship"):
        ship(trained(tmp_path / "large", 0), tmp_path / "shipped")
    assert not list((tmp_path / "shipped").iterdir())
