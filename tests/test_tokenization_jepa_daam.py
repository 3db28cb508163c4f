import json
import multiprocessing
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import soxr
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, make_untrained_checkpoint
from tests import reference
from tests.conftest import SPEECH, TINY, noise

HOP, CHUNK = 60, 7 * 60


def test_vocabulary_and_rates_are_the_papers():
    tokenizer = JepaAudioTokenizer()
    assert tokenizer.vocab_size == 16384
    assert len(tokenizer) == 16389
    assert (tokenizer.frame_rate, tokenizer.tokens_per_frame, tokenizer.token_rate) == (2.5, 19, 47.5)
    assert tokenizer.bitrate_bps == 640.0


def test_special_tokens_come_after_the_audio_tokens():
    tokenizer = JepaAudioTokenizer()
    ids = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    ids += [tokenizer.audio_start_token_id, tokenizer.audio_end_token_id]
    assert ids == [16384, 16385, 16386, 16387, 16388]
    assert set(tokenizer.all_special_ids) == set(ids)


def test_every_id_has_a_string_and_every_string_its_id():
    tokenizer = JepaAudioTokenizer()
    ids = list(range(len(tokenizer)))
    strings = tokenizer.convert_ids_to_tokens(ids)
    assert len(set(strings)) == len(ids)
    assert strings[10023] == "<|audio_10023|>"
    assert tokenizer.convert_tokens_to_ids(strings) == ids
    assert tokenizer.get_vocab() == dict(zip(strings, ids, strict=True))
    assert tokenizer(text=tokenizer.decode(ids))["input_ids"] == ids
    assert tokenizer.decode(ids[-6:], skip_special_tokens=True) == "<|audio_16383|>"


@pytest.mark.parametrize("text", ["hello", "<|audio_16384|>", "<|audio_01|>", "<|audio_1|> x"])
def test_strings_that_are_no_tokens_are_refused(text):
    with pytest.raises(ValueError, match=r"`(text|token)` must be"):
        JepaAudioTokenizer()(text=text)


@pytest.mark.parametrize("index", [-1, 16389, 10**9])
def test_ids_that_are_no_tokens_are_refused(index):
    with pytest.raises(ValueError, match=r"`ids` must lie in \[0, 16389\)"):
        JepaAudioTokenizer().convert_ids_to_tokens([index])


def test_an_id_is_the_packed_token(tiny_tokenizer):
    ids = tiny_tokenizer(noise(500), 24000)["input_ids"]
    digits = tiny_tokenizer.unpack(ids)
    assert digits.shape == (9, 16)
    assert ids[:2] == [reference.pack(list(digits[0, :7]), [4] * 7), reference.pack(list(digits[0, 7:14]), [4] * 7)]
    assert tiny_tokenizer.pack(digits) == tiny_tokenizer.pack(torch.tensor(digits)) == ids


def test_the_result_is_that_of_any_tokenizer(tiny_tokenizer):
    one = tiny_tokenizer(noise(500), sampling_rate=24000)
    assert list(one) == ["input_ids", "attention_mask"]
    assert len(one["input_ids"]) == 27
    assert set(one["attention_mask"]) == {1}
    batch = tiny_tokenizer([noise(500), noise(61)], 24000, padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, 27)
    assert batch["attention_mask"].sum(dim=-1).tolist() == [27, 6]
    assert (batch["input_ids"][1, 6:] == tiny_tokenizer.pad_token_id).all()
    left = tiny_tokenizer([noise(500), noise(61)], 24000, padding=True, padding_side="left", return_tensors="np")
    assert left["attention_mask"][1].tolist() == [0] * 21 + [1] * 6
    assert tiny_tokenizer(noise(500), 24000, return_tensors="pt")["input_ids"].shape == (1, 27)


def test_special_tokens_and_truncation(tiny_tokenizer):
    plain = tiny_tokenizer(noise(500), 24000)["input_ids"]
    marked = tiny_tokenizer(noise(500), 24000, add_special_tokens=True)["input_ids"]
    assert marked == [tiny_tokenizer.bos_token_id, *plain, tiny_tokenizer.eos_token_id]
    assert tiny_tokenizer(noise(500), 24000, truncation=True, max_length=11)["input_ids"] == plain[:9]
    cut = tiny_tokenizer(noise(500), 24000, truncation=True, max_length=11, add_special_tokens=True)["input_ids"]
    assert cut == [marked[0], *plain[:9], marked[-1]]
    np.testing.assert_array_equal(tiny_tokenizer.decode_audio(marked), tiny_tokenizer.decode_audio(plain))


def test_the_collator_for_language_models_takes_it(tiny_tokenizer):
    rows = [tiny_tokenizer(noise(n), 24000, add_special_tokens=True) for n in (500, 61)]
    batch = DataCollatorForLanguageModeling(tiny_tokenizer, mlm=False)(rows)
    assert batch["input_ids"].shape == batch["labels"].shape == (2, 29)
    assert (batch["labels"][1, 8:] == -100).all()
    assert torch.equal(batch["labels"][0], batch["input_ids"][0])


@pytest.mark.parametrize("samples", [1, 59, 60, 61, CHUNK, CHUNK + 1, 1000])
def test_audio_comes_back_at_its_length(tiny_tokenizer, samples):
    ids = tiny_tokenizer(noise(samples), 24000)["input_ids"]
    assert len(ids) == 3 * -(-samples // HOP)
    assert tiny_tokenizer.decode_audio(ids).shape == (-(-samples // HOP) * HOP,)
    audio = tiny_tokenizer.decode_audio(ids, num_samples=samples)
    assert audio.shape == (samples,)
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(list(tiny_tokenizer.iter_decode_audio(ids)))[:samples], audio)


def test_a_batch_comes_back_as_a_list(tiny_tokenizer):
    batch = tiny_tokenizer([noise(500), noise(61)], 24000, padding=True, return_tensors="pt", add_special_tokens=True)
    for ids in (batch, batch["input_ids"], batch["input_ids"].tolist(), batch["input_ids"].numpy()):
        waveforms = tiny_tokenizer.decode_audio(ids, num_samples=[500, 61])
        assert [len(waveform) for waveform in waveforms] == [500, 61]
    assert tiny_tokenizer.decode_audio([[0, 0, 0], [0] * 6])[1].shape == (120,)


# The same tokens however the audio comes


def _pushed(tokenizer, samples, rate, sizes) -> list[int]:
    stream, ids, start = tokenizer.stream(rate), [], 0
    while start < len(samples):
        size = next(sizes)
        ids += stream.push(samples[start : start + size])
        start += size
    return ids + stream.close()


EDGES = [*range(1, 3 * HOP + 2), *range(CHUNK - 61, CHUNK + 62), *range(2 * CHUNK - 2, 2 * CHUNK + 3), 24000]


def test_every_way_gives_the_same_tokens_at_every_edge(tiny_tokenizer, rng):
    """Alone, in padded batches with any neighbours, pushed in pieces; sample by sample over frame and chunk edges."""
    model = tiny_tokenizer.model
    expected = {n: tiny_tokenizer(noise(n, seed=n), 24000)["input_ids"] for n in EDGES}
    for n in EDGES:
        sizes = iter(lambda: int(rng.integers(1, 500)), None)
        assert _pushed(tiny_tokenizer, noise(n, seed=n), 24000, sizes) == expected[n], n
    for _ in range(40):
        chosen = rng.choice(EDGES, size=rng.integers(2, 9)).tolist()
        together = tiny_tokenizer([noise(n, seed=n) for n in chosen], 24000)["input_ids"]
        assert together == [expected[n] for n in chosen]
        longest = max(chosen)
        values = torch.tensor(rng.normal(size=(len(chosen), 1, longest)), dtype=torch.float32)
        mask = torch.zeros(len(chosen), longest)
        for row, n in enumerate(chosen):
            values[row, 0, :n], mask[row, :n] = torch.tensor(noise(n, seed=n)), 1
        with torch.inference_mode():
            codes = model.encode(values, mask)
        for row, n in enumerate(chosen):
            frames = int(codes.audio_codes_mask[row].sum())
            assert codes.audio_codes[row, :, :frames].T.flatten().tolist() == expected[n]


@pytest.mark.parametrize("rate", [24000, 16000, 44100])
def test_files_arrays_and_streams_agree_at_any_rate(tiny_tokenizer, tmp_path, rate, rng):
    samples = noise(3 * rate + 7)
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    expected = tiny_tokenizer(samples, rate)["input_ids"]
    assert tiny_tokenizer(tmp_path / "a.wav")["input_ids"] == expected
    assert tiny_tokenizer([str(tmp_path / "a.wav"), noise(100)], 24000)["input_ids"][0] == expected
    assert _pushed(tiny_tokenizer, samples, rate, iter(lambda: int(rng.integers(1, 9000)), None)) == expected
    assert tiny_tokenizer(soxr.resample(samples, rate, 24000), 24000)["input_ids"] == expected


def test_minutes_of_speech_agree_at_the_papers_rates(nano_tokenizer, speech, tmp_path):
    samples = np.tile(speech, 30)[: 24000 * 140 + 4321]
    soundfile.write(tmp_path / "a.flac", samples, 24000, subtype="PCM_24")
    samples, _ = soundfile.read(tmp_path / "a.flac", dtype="float32")
    expected = nano_tokenizer(samples, 24000)["input_ids"]
    assert len(expected) == 19 * 351
    assert nano_tokenizer(tmp_path / "a.flac")["input_ids"] == expected
    assert nano_tokenizer([speech, samples], 24000)["input_ids"][1] == expected
    assert _pushed(nano_tokenizer, samples, 24000, iter([100, 288000, 5, 10**6, 10**7])) == expected
    chunk = 30 * 9600
    pieces = [nano_tokenizer(samples[i : i + chunk], 24000)["input_ids"] for i in range(0, len(samples), chunk)]
    assert [token for piece in pieces for token in piece] == expected  # chunks stand alone: a recording is seekable


def test_stereo_pieces_are_samples_by_channels_however_short(tiny_tokenizer):
    stereo = np.stack([noise(961, 1), noise(961, 2)], axis=1)
    stream = tiny_tokenizer.stream(24000)
    ids = [token for start in range(0, 961, 160) for token in stream.push(stereo[start : start + 160])] + stream.close()
    assert stream.num_samples == 961
    assert ids == tiny_tokenizer(stereo, 24000)["input_ids"]
    with pytest.raises(ValueError, match="`samples` must have at most 2 channels"):
        tiny_tokenizer.stream(24000).push(stereo.T)


def test_tokens_become_final_a_chunk_at_a_time(tiny_tokenizer):
    stream = tiny_tokenizer.stream(24000)
    assert stream.push(noise(CHUNK - 1)) == []
    assert len(stream.push([0.5])) == 7 * 3
    assert stream.push([]) == []
    assert stream.push(noise(61)) == []
    assert len(stream.close()) == 2 * 3
    assert stream.num_samples == CHUNK + 61
    with pytest.raises(ValueError, match="the stream is closed"):
        stream.push([0.1])
    with pytest.raises(ValueError, match="closed before any"):
        tiny_tokenizer.stream(24000).close()
    with pytest.raises(ValueError, match="`samples` must be finite"):
        tiny_tokenizer.stream(24000).push([np.nan])
    with pytest.raises(ValueError, match="`sampling_rate` is missing"):
        tiny_tokenizer.stream(None)


def test_real_speech_round_trips(nano_tokenizer, speech):
    encoding = nano_tokenizer(SPEECH)
    assert len(encoding["input_ids"]) == 19 * 13
    assert max(encoding["input_ids"][18::19]) < 16
    audio = nano_tokenizer.decode_audio(encoding, num_samples=len(speech))
    assert audio.shape == speech.shape
    assert np.isfinite(audio).all()


# A light object around a heavy model


def test_it_pickles_small_and_hashes_the_same_after_use(tiny_folder):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
    before = Hasher.hash(tokenizer)
    ids = tokenizer(noise(500), 24000)["input_ids"]
    tokenizer.decode_audio(ids)
    pickled = pickle.dumps(tokenizer)
    assert len(pickled) < 20_000
    assert pickle.loads(pickled)(noise(500), 24000)["input_ids"] == ids
    assert Hasher.hash(tokenizer) == before
    assert Hasher.hash(JepaAudioTokenizer.from_pretrained(tiny_folder)) == before


def test_a_process_loads_a_model_once(tiny_folder):
    first, second = (JepaAudioTokenizer.from_pretrained(tiny_folder) for _ in range(2))
    assert first.model is second.model
    assert second.to(dtype="bfloat16").model is not first.model
    assert second.model.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="`device` nonsense cannot be used here"):
        first.to("nonsense")
    with pytest.raises(TypeError, match="`device` must be a string or torch.device"):
        first.to(torch.bfloat16)
    with pytest.raises(ValueError, match="`dtype` must be float32, bfloat16 or float16"):
        first.to(dtype="int8")


def test_a_forked_worker_does_not_hang(nano_folder):
    """OpenMP's threads do not survive a fork; a worker that waited for them would never end."""
    tokenizer = JepaAudioTokenizer.from_pretrained(nano_folder)
    ids = np.tile(tokenizer(noise(9600), 24000)["input_ids"], 20000)
    digits = tokenizer.unpack(ids)  # large enough for several threads here
    for work in (lambda: tokenizer.unpack(ids), lambda: tokenizer.pack(digits), lambda: tokenizer(noise(9600), 24000)):
        worker = multiprocessing.get_context("fork").Process(target=work)
        worker.start()
        worker.join(timeout=60)
        hangs = worker.is_alive()
        worker.kill()
        assert not hangs


def test_changed_weights_are_loaded_again(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "a")
    before = JepaAudioTokenizer.from_pretrained(tmp_path / "a")(noise(500), 24000)["input_ids"]
    torch.manual_seed(99)
    JepaDaamModel(JepaDaamConfig(**TINY)).save_pretrained(tmp_path / "a")
    assert JepaAudioTokenizer.from_pretrained(tmp_path / "a")(noise(500), 24000)["input_ids"] != before


@pytest.mark.parametrize("columns", ["torch", "numpy", None])
def test_datasets_columns_in_any_format(tiny_tokenizer, columns):
    rows = [{"array": noise(n).tolist(), "sampling_rate": 16000} for n in (500, 300)]
    dataset = Dataset.from_dict({"audio": rows}).with_format(columns)
    expected = [tiny_tokenizer(noise(n), 16000)["input_ids"] for n in (500, 300)]
    assert tiny_tokenizer(dataset["audio"])["input_ids"] == expected
    assert tiny_tokenizer(dataset[:]["audio"])["input_ids"] == expected
    assert tiny_tokenizer(dataset[1]["audio"])["input_ids"] == expected[1]


@pytest.mark.parametrize("num_proc", [None, 2])
def test_datasets_map_runs_and_finds_its_cache(tiny_folder, tmp_path, num_proc):
    rows = {"audio": [noise(n).tolist() for n in (500, 61, 100, 1)]}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "rows")
    calls = []
    for _ in range(2):
        tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder)
        mapped = Dataset.load_from_disk(tmp_path / "rows").map(
            lambda batch, tokenizer=tokenizer: tokenizer(batch["audio"], 24000),
            batched=True,
            num_proc=num_proc,
            remove_columns=["audio"],
        )
        calls.append([file["filename"] for file in mapped.cache_files])
    assert calls[0] == calls[1]
    assert mapped["input_ids"][:] == tokenizer(rows["audio"], 24000)["input_ids"]


# Folders


def test_a_saved_tokenizer_finds_its_model_again(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path / "alone")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "alone")
    assert isinstance(loaded, JepaAudioTokenizer)
    assert loaded.model is not None
    assert loaded(noise(500), 24000)["input_ids"] == tiny_tokenizer(noise(500), 24000)["input_ids"]
    assert tiny_tokenizer.codec is None


def test_a_folder_with_a_model_uses_it_whatever_was_saved_first(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(99)
    model = JepaDaamModel(JepaDaamConfig(**TINY)).eval()
    model.save_pretrained(tmp_path)
    loaded = JepaAudioTokenizer.from_pretrained(tmp_path)
    assert loaded.codec_reference == str(tmp_path)
    with torch.inference_mode():
        assert loaded(noise(500), 24000)["input_ids"] == model.waveforms_to_ids([torch.tensor(noise(500))])[0]


def test_a_name_with_a_slip_is_no_tokenizer(tmp_path):
    for name in (str(tmp_path), str(tmp_path / "no-such"), "tests/no-such"):
        with pytest.raises(OSError, match=f"{name} is neither a folder with a tokenizer nor such a Hub id"):
            JepaAudioTokenizer.from_pretrained(name, local_files_only=True)


def test_a_relative_folder_is_found_from_anywhere(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_folder.parent)
    tokenizer = JepaAudioTokenizer.from_pretrained("checkpoint")
    below = JepaAudioTokenizer.from_pretrained(tiny_folder.parent, subfolder="checkpoint")
    monkeypatch.chdir(tmp_path)
    assert tokenizer(noise(500), 24000)["input_ids"] == below(noise(500), 24000)["input_ids"]


def test_what_is_published_names_no_folder_of_this_machine(tiny_tokenizer, tmp_path, monkeypatch):
    published = {}

    def keep(self, folder, *arguments, **keywords):
        published.update(json.loads((Path(folder) / "tokenizer_config.json").read_text()))
        assert not list(Path(folder).glob("_*"))

    monkeypatch.setattr(JepaAudioTokenizer, "_upload_modified_files", keep)
    monkeypatch.setattr(JepaAudioTokenizer, "_get_files_timestamps", lambda *_: {})
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/x"))
    tiny_tokenizer.push_to_hub("me/x")
    assert published.pop("codec", "missing") is None
    tiny_tokenizer.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/x")
    assert published["codec"] is None
    # The copy that stays here finds its model.
    assert AutoTokenizer.from_pretrained(tmp_path)(noise(500), 24000) == tiny_tokenizer(noise(500), 24000)


def test_trainer_publishes_no_folder_of_this_machine(tiny_tokenizer, tmp_path, monkeypatch):
    """What `Trainer.push_to_hub` uploads: the folder that `save_model` writes, without names that begin with `_`."""
    uploaded = {}

    def upload(self, *, folder_path, ignore_patterns, **keywords):
        for path in Path(folder_path).iterdir():
            if not any(path.match(pattern) for pattern in ignore_patterns):
                uploaded[path.name] = path.read_bytes()

    monkeypatch.setattr("huggingface_hub.HfApi.upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **__: SimpleNamespace(repo_id="me/x"))
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes))
    arguments = TrainingArguments(tmp_path / "lm", report_to=[], use_cpu=True, hub_model_id="me/x")
    trainer = Trainer(model, arguments, processing_class=tiny_tokenizer)
    monkeypatch.setattr(trainer, "create_model_card", lambda *_, **__: None)
    trainer.push_to_hub()
    assert "tokenizer_config.json" in uploaded
    assert not [name for name, content in uploaded.items() if tiny_tokenizer.name_or_path.encode() in content]
    assert AutoTokenizer.from_pretrained(tmp_path / "lm")(noise(500), 24000) == tiny_tokenizer(noise(500), 24000)


def test_special_tokens_of_ones_own(tiny_folder):
    tokenizer = JepaAudioTokenizer(pad_token="<|eos|>", bos_token=None, extra_special_tokens=["<|mine|>"])
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (16384, 16384, None)
    assert tokenizer.convert_tokens_to_ids(["<|mine|>", "<|audio_start|>", "<|audio_end|>"]) == [16385, 16386, 16387]
    assert tokenizer.add_tokens(["<|text|>"]) == 1
    assert tokenizer.convert_tokens_to_ids("<|text|>") == 16388 == len(tokenizer) - 1
    with pytest.raises(ValueError, match="has the form of an audio token"):
        tokenizer.add_tokens(["<|audio_999999|>"])
    with pytest.raises(TypeError, match="`extra_special_tokens` must be a list"):
        JepaAudioTokenizer(extra_special_tokens={"a": "<a>"})
    with pytest.raises(ValueError, match="saved special tokens begin at 16384"):
        JepaAudioTokenizer.from_pretrained(tiny_folder, group_size=3)


def test_added_tokens_survive_saving(tiny_tokenizer, tmp_path):
    tiny_tokenizer.add_tokens(["<|text|>"])
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = JepaAudioTokenizer.from_pretrained(tmp_path)
    assert loaded.get_added_vocab() == tiny_tokenizer.get_added_vocab()
    assert len(loaded) == len(tiny_tokenizer) == 16390


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"fsq_levels": []}, ValueError, "`fsq_levels` must not be empty"),
        ({"fsq_levels": [1]}, ValueError, "`fsq_levels` must be at least 2"),
        ({"fsq_levels": [4.0]}, TypeError, "`fsq_levels` must be an integer"),
        ({"group_size": 0}, ValueError, "`group_size` must be at least 1"),
        ({"hop_length": 0}, ValueError, "`hop_length` must be at least 1"),
        ({"num_dimensions": 0}, ValueError, "`num_dimensions` must be at least 1"),
        ({"sampling_rate": -1}, ValueError, "`sampling_rate` must be at least 1"),
    ],
)
def test_bad_settings_are_refused_by_name(settings, error, message):
    with pytest.raises(error, match=message):
        JepaAudioTokenizer(**settings)


def test_a_copied_folder_uses_its_own_model(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert tokenizer.codec_reference == str(tmp_path / "copy")
    tokenizer.save_pretrained(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").codec is None


def test_a_model_of_another_configuration_is_refused(tmp_path):
    make_untrained_checkpoint(JepaDaamConfig(**TINY), tmp_path / "a")
    other = JepaAudioTokenizer(codec=str(tmp_path / "a"))
    with pytest.raises(ValueError, match="`codec`: the model at .* is of another configuration"):
        other(noise(500), 24000)


def test_a_tokenizer_without_a_model_still_packs(tiny_folder):
    tokenizer = JepaAudioTokenizer()
    assert tokenizer.pack(np.zeros((1, 128), int)) == [0] * 19
    with pytest.raises(ValueError, match="`codec` is missing"):
        tokenizer(noise(500), 24000)
    with pytest.raises(OSError, match="nowhere"):
        JepaAudioTokenizer(codec="./nowhere")(noise(500), 24000)


def test_the_model_decodes_its_own_tokens(tiny_folder, tiny_tokenizer):
    model = JepaDaamModel.from_pretrained(tiny_folder).eval()
    values = torch.tensor(noise(1000))[None, None]
    with torch.inference_mode():
        expected = model(values).audio_values[0, 0].numpy()
    ids = tiny_tokenizer(noise(1000), 24000)["input_ids"]
    np.testing.assert_array_equal(tiny_tokenizer.decode_audio(ids, num_samples=1000), expected)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "`audio` is missing"),
        ({"audio": noise(5)}, ValueError, "`sampling_rate` is missing"),
        ({"audio": noise(5), "text": "x"}, ValueError, "`audio` and `text` cannot both"),
        ({"audio": noise(5), "sampling_rate": 24000, "strid": 3}, TypeError, "unexpected arguments .*`strid`"),
        ({"audio": [], "sampling_rate": 24000}, ValueError, "is empty"),
        ({"audio": [np.nan], "sampling_rate": 24000}, ValueError, "`audio` must be finite"),
        ({"audio": np.zeros((1, 1, 3)), "sampling_rate": 24000}, ValueError, "`audio` must have shape"),
        ({"audio": "nowhere.wav"}, FileNotFoundError, "no such file: nowhere.wav"),
        ({"audio": noise(5), "sampling_rate": 24000, "truncation": True}, ValueError, "`max_length` must be given"),
        (
            {"audio": noise(5), "sampling_rate": 24000, "truncation": True, "max_length": 2},
            ValueError,
            "`max_length` must",
        ),
    ],
)
def test_bad_audio_is_refused_by_name(tiny_tokenizer, arguments, error, message):
    with pytest.raises(error, match=message):
        tiny_tokenizer(**arguments)


@pytest.mark.parametrize(
    ("ids", "num_samples", "error", "message"),
    [
        ([], None, ValueError, "`input_ids` must have"),
        ([0, 0], None, ValueError, "`input_ids` must be a whole number of frames of 3 tokens, got 2"),
        ([16384], None, ValueError, "`input_ids` must be a whole number of frames of 3 tokens, got 0"),
        ([0, 0, 16], None, ValueError, r"`input_ids` must lie in \[0, 16\) at place 2 of a frame, got 16 in frame 0$"),
        ([0, 0, 0, -1, 0, 0], None, ValueError, r"`input_ids` must lie in .* got -1 in frame 1$"),
        ([99999, 0, 0], None, ValueError, r"`input_ids` must lie in \[0, 16384\) at place 0"),
        ([0.5, 0, 0], None, TypeError, "`input_ids` must be integers"),
        (["a", "b", "c"], None, TypeError, "`input_ids` must be integers"),
        ({"ids": [0]}, None, ValueError, "`input_ids` must hold 'input_ids'"),
        ([0, 0, 0], 61, ValueError, r"`num_samples` must lie in the last of 1 frames: \(0, 60\], got 61"),
        ([0, 0, 0], 0, ValueError, "`num_samples` must be at least 1"),
        ([0, 0, 0], 59.5, TypeError, "`num_samples` must be an integer"),
        ([0, 0, 0], "60", TypeError, "`num_samples` must be an integer"),
        ([[0, 0, 0]], [5, 6], ValueError, "`num_samples` must have one entry"),
    ],
)
def test_bad_ids_are_refused_by_name(tiny_tokenizer, ids, num_samples, error, message):
    with pytest.raises(error, match=message):
        tiny_tokenizer.decode_audio(ids, num_samples=num_samples)


def test_bad_digits_are_refused_by_name(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"`indices` must have shape \(frames, 16\)"):
        tiny_tokenizer.pack(np.zeros((2, 15), int))
    with pytest.raises(ValueError, match="`indices` must lie in"):
        tiny_tokenizer.pack(np.full((2, 16), 4))
    with pytest.raises(TypeError, match="`indices` must be integers"):
        tiny_tokenizer.pack(np.zeros((2, 16)))
    with pytest.raises(ValueError, match="`input_ids` must be a whole number of frames"):
        tiny_tokenizer.unpack([1, 2])
