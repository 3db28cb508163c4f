"""Publishing a checkpoint on a local Hub, and loading it from there in a fresh process."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from huggingface_hub.utils import close_session
from typer.testing import CliRunner

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamFeatureExtractor,
    JepaDaamForPreTraining,
    JepaDaamModel,
    make_untrained_checkpoint,
)
from modeling_jepa_daam.cli import app
from modeling_jepa_daam.cli_common import SHIPPED_MODEL
from modeling_jepa_daam.files import sha256_of
from modeling_jepa_daam.publishing import TAGS, publish
from modeling_jepa_daam.publishing_checks import FRESH_PROCESS, check_folder, published_files
from training import model_card

from .conftest import HUB_CONFIGS, SPEECH
from .hub_server import TOKEN, HubServer

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's uploads

REPO = "tester/nano"
SHIPPED = [folder for folder in HUB_CONFIGS if (folder / "model.safetensors").exists()]


@pytest.fixture(scope="module")
def ready(nano_folder, tmp_path_factory) -> Path:
    """A checkpoint with a card and digests of tokens; not to be changed."""
    folder = shutil.copytree(nano_folder, tmp_path_factory.mktemp("ready") / "nano-model")
    model_card.tokens_command(folder, [SPEECH])
    model_card.render_command(folder)
    (folder / "samples").mkdir()
    shutil.copy(SPEECH, folder / "samples" / "sentence.flac")
    return folder


@pytest.fixture
def folder(ready, tmp_path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(ready, tmp_path / "nano-model")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with HubServer() as server:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between tries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server
        close_session()
        assert not server.unknown


def push(*arguments) -> tuple[int, str]:
    """Exit code and words of `jepa-audio push`."""
    result = CliRunner().invoke(app, ["push", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.as_posix(): (folder / file).read_bytes() for file in published_files(folder)}


def load_elsewhere(hub: HubServer, place: Path, *repo_ids: str) -> list[dict[str, str]]:
    """Digests of tokens by a process that has only the server, and none of this machine's caches."""
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(place), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN}
    program = "import sys\nclip, *ids = sys.argv[1:]\n"
    program += f"for each in ids:\n    sys.argv = ['', each, clip]\n    exec({FRESH_PROCESS!r})"
    done = subprocess.run(
        [sys.executable, "-c", program, str(SPEECH), *repo_ids],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_checkpoint_goes_to_the_hub_and_loads_in_a_fresh_process(hub, ready, nano_tokenizer, tmp_path):
    code, said = push(ready, REPO, "--private")
    assert code == 0, said
    assert f"published: {hub.url}/{REPO}/commit/" in said
    assert hub.files(REPO) == contents(ready)
    assert hub.repositories[REPO].private
    config = JepaDaamConfig.from_pretrained(ready)
    for part in (
        JepaDaamModel.from_pretrained(ready),
        JepaDaamFeatureExtractor.from_pretrained(ready),
        JepaAudioTokenizer.from_pretrained(ready),
        config,
    ):
        part.push_to_hub("tester/parts", private=True)
    hub.cut = {sha256_of(ready / "model.safetensors")}
    (noted,) = json.loads((ready / "tokens.json").read_text()).values()
    assert load_elsewhere(hub, tmp_path, REPO, "tester/parts") == [{str(SPEECH): noted}] * 2
    assert not hub.cut, "a download that broke was made up for"
    parameters = huggingface_hub.HfApi().get_safetensors_metadata(REPO).parameter_count  # by a part of the file
    assert sum(parameters.values()) == sum(each.numel() for each in nano_tokenizer.model.state_dict().values())
    assert hub.ranges


def test_nobody_loads_a_private_repository_without_the_token(hub, ready, monkeypatch, tmp_path):
    publish(ready, REPO, private=True)
    assert JepaDaamConfig.from_pretrained(REPO).weights_sha256 == sha256_of(ready / "model.safetensors")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(OSError, match="private repository"):
        JepaDaamConfig.from_pretrained(REPO, cache_dir=tmp_path / "empty")


def test_a_broken_connection_publishes_nothing_and_the_same_command_goes_on(hub, folder, monkeypatch):
    monkeypatch.setattr("modeling_jepa_daam.publishing_checks.check_folder", lambda *_: [])
    weights, clip = (sha256_of(folder / name) for name in ("model.safetensors", "samples/sentence.flac"))
    hub.broken = {weights}
    code, said = push(folder, REPO)
    assert code == 1
    assert "Error while uploading 'model.safetensors'" in said
    assert "Nothing was published. The same command goes on" in said
    assert hub.files(REPO) == {}
    assert hub.received.count(clip) == 1
    hub.broken = set()
    code, said = push(folder, REPO)
    assert code == 0, said
    assert hub.files(REPO) == contents(folder)
    assert hub.received.count(clip) == 1, "what had arrived is not sent again"
    assert hub.received[-1] == weights
    sent = len(hub.received)
    code, said = push(folder, REPO)
    assert (code, len(hub.received)) == (0, sent)
    assert len(hub.repositories[REPO].commits) == 2, "nothing had changed"


@pytest.mark.parametrize(("token", "message"), [("hf_wrong", "Invalid user token"), (None, "Token is required")])
def test_a_wrong_token_publishes_nothing(hub, ready, monkeypatch, token, message):
    monkeypatch.setattr("modeling_jepa_daam.publishing_checks.check_folder", lambda *_: [])
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    code, said = push(ready, REPO)
    assert code == 1
    assert message in said
    assert "Nothing was published" in said
    assert not hub.repositories
    assert not hub.received


def test_another_checkpoint_is_replaced_only_when_asked(hub, ready, folder, monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_jepa_daam.publishing_checks.check_folder", lambda *_: [])
    publish(ready, REPO)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    publish(folder, REPO)
    assert hub.files(REPO) == contents(folder), "the same weights with another card"
    other = make_untrained_checkpoint(JepaDaamConfig.from_pretrained(folder), tmp_path / "other", seed=1)
    shutil.copy(folder / "README.md", other)
    code, said = push(other, REPO)
    assert code == 2
    assert "tester/nano holds another checkpoint: SHA-256 model.safetensors" in said
    assert "--yes replaces it. Nothing was published" in said
    assert hub.files(REPO) == contents(folder)
    code, said = push(other, REPO, "--yes", "--prune")
    assert code == 0, said
    assert hub.files(REPO) == contents(other)
    assert "samples/sentence.flac" not in hub.files(REPO)


def test_branches_pull_requests_and_tags(hub, ready):
    publish(ready, REPO, revision="trial", tags=["pirates", "audio"])
    assert hub.files(REPO) == {}
    metadata = yaml.safe_load(hub.files(REPO, "trial")["README.md"].split(b"---")[1])
    assert metadata["tags"] == [*TAGS, "pirates"]
    commit = publish(ready, REPO, create_pr=True)
    assert commit.pr_url == f"{hub.url}/{REPO}/discussions/1"
    assert hub.files(REPO) == {}
    assert hub.files(REPO, "refs/pr/1") == contents(ready)
    with pytest.raises(ValueError, match="`revision` must be left out with a pull request"):
        publish(ready, REPO, create_pr=True, revision="trial")


def test_a_public_repository_takes_nothing_that_should_be_private(hub, ready):
    publish(ready, REPO, private=False, revision="trial")
    with pytest.raises(ValueError, match="`private`: tester/nano is public already"):
        publish(ready, REPO, private=True)
    assert hub.files(REPO) == {}


def test_a_card_that_the_hub_refuses_is_not_sent(hub, folder):
    card = folder / "README.md"
    card.write_text(card.read_text().replace("license: apache-2.0", "license: my-own"))
    with pytest.raises(ValueError, match='the Hub refuses the metadata of README.md.*"license.* must be one of'):
        publish(folder, REPO)
    assert not hub.repositories


@pytest.mark.parametrize("kind", [JepaDaamEncoderModel, JepaDaamForPreTraining])
def test_the_other_models_go_to_the_hub(hub, tiny_config, kind):
    kind(tiny_config).push_to_hub("tester/stage-1", tags=["jepa"])
    files = hub.files("tester/stage-1")
    assert {"config.json", "model.safetensors", "README.md", "modeling_jepa_daam.py"} <= files.keys()
    assert b"- jepa" in files["README.md"]


def rewrite(name: str, old: str, new: str):
    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return change


def add(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (remove("model.safetensors"), "no model.safetensors"),
        (add("model.safetensors", b"12345678901234567890"), "model.safetensors cannot be read"),
        (add("optimizer.pt", b"x"), "optimizer.pt is a pickle"),
        (add("notes.txt", b"\x80\x04\x95"), "notes.txt is a pickle"),
        (remove("daam.py"), "no daam.py, which"),
        (add("framing.py", b"from . import audio\n"), "framing.py: `from . import audio` is not followed"),
        (add("framing.py", b"import soxr\n"), "framing.py imports soxr, which users of the Hub may not have"),
        (add("framing.py", b"def ("), "framing.py is no Python"),
        (remove("tokenizer_config.json"), "tokenizer_config.json: "),
        (remove("README.md"), "no README.md, the model card"),
        (rewrite("README.md", "license: apache-2.0\n", ""), "README.md: no licence"),
        (rewrite("README.md", "license: apache-2.0", "license: other"), "goes with `license_name`"),
        (rewrite("README.md", "license: apache-2.0", "license: mit\nlanguage: English"), "must hold ISO 639 codes"),
        (rewrite("README.md", "license: apache-2.0", "license: mit\ndatasets: a b"), "`datasets`: Repo id"),
        (rewrite("README.md", "pipeline_tag: audio-to-audio\n", ""), "`pipeline_tag` must be a text, got None"),
        (rewrite("README.md", "license: apache-2.0", "license: [mit"), "README.md: while parsing"),
        (add("notes.txt", TOKEN.encode()), "notes.txt holds a token of the Hub"),
        (add("key", b"-----BEGIN OPENSSH PRIVATE KEY-----"), "key holds a private key"),
        (add("notes.txt", b"from /home/me/a.wav"), "notes.txt names a path of one machine: /home/me/a.wav"),
        (add("notes.txt", rb"C:\Users\me\speech.wav"), "notes.txt names a path of one machine"),
        (remove("tokens.json"), "no tokens.json"),
        (add("tokens.json", b'{"nowhere.flac": ""}'), "nowhere.flac, which is neither in the folder nor in"),
        (rewrite("daam.py", "\nimport torch\n", "\nimport torch_of_another_kind as torch\n"), "torch_of_another_kind"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(folder, change, problem):
    change(folder)
    problems = [each for _, found in check_folder(folder) for each in found]
    assert any(problem in each for each in problems), problems


def test_what_is_wrong_is_told_and_not_sent(hub, folder):
    (folder / "optimizer.pt").touch()
    code, said = push(folder, REPO)
    assert code == 1
    assert "no: weights are safetensors" in said
    assert "optimizer.pt is a pickle" in said
    assert said.endswith("nothing was sent")
    assert not hub.repositories


@pytest.mark.parametrize(
    ("returned", "problem"),
    [
        ((0, '{"PATH": "00ff"}', ""), f"tokens of {SPEECH.name} have SHA-256 00ff, tokens.json says "),
        ((1, "", "Traceback\nImportError: no soxr\n"), "a fresh process could not load it: ImportError: no soxr"),
    ],
)
def test_a_fresh_process_has_the_last_word(ready, monkeypatch, returned, problem):
    code, said, complained = returned
    done = subprocess.CompletedProcess([], code, said.replace("PATH", str(SPEECH)), complained)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    (*_, (title, found)) = check_folder(ready)
    assert title.startswith("every auto class loads in a fresh process")
    assert len(found) == 1
    assert found[0].startswith(problem)


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda folder: folder.name)
def test_a_dry_run_finds_nothing_wrong_with_what_ships_and_lists_it(shipped):
    code, said = push(shipped, REPO, "--dry-run")  # without a server: any request would fail
    assert code == 0, said
    for file in published_files(shipped):
        assert f"{file.as_posix()} {(shipped / file).stat().st_size:,} " in said
    assert said.count("ok: ") == 8
    assert "no: " not in said
    assert said.endswith("dry run: nothing was sent")


@pytest.mark.parametrize("shipped", SHIPPED, ids=lambda folder: folder.name)
def test_the_folders_that_ship_are_those_of_the_hub(hub, shipped):
    """With `test_the_card_is_what_its_files_say` and `test_folders_of_hub_configs_hold_the_code_that_saving_writes`."""
    publish(shipped, "tester/shipped")
    assert hub.files("tester/shipped") == contents(shipped)


def test_hidden_files_stay_here(folder):
    before = published_files(folder)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").touch()
    (folder / ".DS_Store").touch()
    assert published_files(folder) == before


def test_wrong_usage_is_told(ready, tmp_path):
    assert push(tmp_path / "nothing", REPO) == (2, f"error: no such folder: {tmp_path / 'nothing'}")
    assert push(ready, "nano") == (2, "error: REPO_ID must be owner/name, got nano")
    code, said = push(ready, "a/b/c")
    assert code == 2
    assert said.startswith("error: REPO_ID: ")


def test_models_are_listed_from_their_folders():
    result = CliRunner().invoke(app, ["models"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for folder in HUB_CONFIGS:
        assert folder.name in result.output
    assert "187.8M" in result.output
    small = result.output.split("24khz-small", 1)[1]
    speed = json.loads((SHIPPED_MODEL / "speed.json").read_text())["rows"][0]
    assert f"{speed['times_real_time']:.0f} / " in small
    assert "STOI 0." in small
    assert "on read_en:" in small


def test_models_of_an_installation_without_any(monkeypatch, tmp_path):
    monkeypatch.setattr("modeling_jepa_daam.cli_hub.SHIPPED_MODEL", tmp_path / "hub_configs" / "small")
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 2
    assert "Clone it, or give --model a checkpoint folder or a Hub id" in " ".join(result.output.split())


def test_digests_are_of_64_bit_integers(nano_tokenizer, ready):
    ids = nano_tokenizer(str(SPEECH))["input_ids"]
    digest = hashlib.sha256(b"".join(token.to_bytes(8, "little") for token in ids)).hexdigest()
    assert json.loads((ready / "tokens.json").read_text()) == {SPEECH.name: digest}
