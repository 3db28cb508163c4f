"""`dataset.map(tokenizer.tokenize_batch)` over columns of every kind, in processes, from the cache and not."""

import functools
import io
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Audio, Dataset, Features, load_dataset
from datasets.fingerprint import Hasher

from modeling_jepa_daam import JepaAudioTokenizer, JepaDaamConfig, JepaDaamModel, save_checkpoint
from tests.conftest import TINY, noise

LENGTHS = (500, 61, 100, 1, 900)


def wav(samples: np.ndarray, rate: int = 24000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def cache_files(dataset: Dataset) -> list[str]:
    return [file["filename"] for file in dataset.cache_files]


@pytest.fixture
def waveforms() -> list[np.ndarray]:
    return [noise(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture
def expected(tiny_tokenizer, waveforms) -> dict[str, list]:
    ids = [tiny_tokenizer(samples, 24000)["input_ids"] for samples in waveforms]
    return {"input_ids": ids, "num_samples": list(LENGTHS)}


@pytest.fixture
def parquet(tmp_path, waveforms):
    """A Parquet file as the Hub has them: sound files in the table, in a column of type `Audio`."""
    storage = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"bytes": wav(samples), "path": f"{place}.wav"} for place, samples in enumerate(waveforms)]
    table = pa.table({"audio": pa.array(rows, storage), "text": [str(place) for place in range(len(rows))]})
    dataset = Dataset(table)
    dataset = dataset.cast(Features(dataset.features | {"audio": Audio(sampling_rate=16000)}))  # a rate that it has not
    pq.write_table(dataset.data.table, tmp_path / "train.parquet")
    return tmp_path / "train.parquet"


def columns(kind: str, waveforms, folder) -> dict:
    if kind == "bytes":
        return {"audio": [wav(samples) for samples in waveforms]}
    if kind == "undecoded":
        return {"audio": [{"bytes": wav(samples), "path": None} for samples in waveforms]}
    if kind == "arrays":
        return {"audio": [samples.tolist() for samples in waveforms], "sampling_rate": [24000] * len(waveforms)}
    if kind == "decoded":
        return {"audio": [{"array": samples.tolist(), "sampling_rate": 24000} for samples in waveforms]}
    paths = [folder / f"{place}.wav" for place in range(len(waveforms))]
    for path, samples in zip(paths, waveforms, strict=True):
        path.write_bytes(wav(samples))
    return {"path": [str(path) for path in paths]}


@pytest.mark.parametrize("kind", ["bytes", "undecoded", "arrays", "decoded", "paths"])
def test_columns_of_every_kind_stay_or_go(tiny_tokenizer, waveforms, expected, tmp_path, kind):
    dataset = Dataset.from_dict(columns(kind, waveforms, tmp_path) | {"text": list("abcde")})
    mapped = dataset.map(tiny_tokenizer.tokenize_batch, batched=True, batch_size=2)
    assert mapped.column_names == [*dataset.column_names, "input_ids", "num_samples"]
    dropped = dataset.map(
        tiny_tokenizer.tokenize_batch,
        batched=True,
        remove_columns=dataset.column_names,
        features=tiny_tokenizer.features,
    )
    assert dropped[:] == {name: mapped[name][:] for name in ("input_ids", "num_samples")} == expected
    assert dropped.features == tiny_tokenizer.features
    assert dropped.data.column("input_ids").type.value_type == pa.uint16()


@pytest.mark.parametrize("num_proc", [None, 2])
def test_an_audio_column_needs_no_torchcodec(tiny_tokenizer, parquet, expected, num_proc, tmp_path):
    dataset = load_dataset("parquet", data_files=str(parquet), split="train", cache_dir=str(tmp_path / "cache"))
    assert isinstance(dataset.features["audio"], Audio)
    mapped = dataset.select([3, 0, 4]).map(
        tiny_tokenizer.tokenize_batch, batched=True, num_proc=num_proc, remove_columns="audio"
    )
    assert mapped["input_ids"][:] == [expected["input_ids"][place] for place in (3, 0, 4)]
    assert mapped["text"][:] == ["3", "0", "4"]


def test_a_stream(tiny_tokenizer, parquet, expected):
    stream = load_dataset("parquet", data_files=str(parquet), split="train", streaming=True)
    stream = stream.cast_column("audio", Audio(decode=False))
    mapped = stream.map(
        tiny_tokenizer.tokenize_batch,
        batched=True,
        batch_size=2,
        remove_columns=["audio", "text"],
        features=tiny_tokenizer.features,
    )
    assert [row["input_ids"] for row in mapped] == expected["input_ids"]


def test_a_stream_of_remote_files(tiny_tokenizer, tmp_path, waveforms, expected):
    (tmp_path / "a.wav").write_bytes(wav(waveforms[0]))
    batch = {"audio": [{"bytes": None, "path": f"file://{tmp_path}/a.wav"}]}
    assert tiny_tokenizer.tokenize_batch(batch)["input_ids"] == expected["input_ids"][:1]


def test_processes_and_the_cache(tiny_folder, tmp_path, waveforms, expected):
    """Two processes give the rows of one; a second call finds them; other settings and other weights do not."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    dataset = Dataset.from_dict(columns("bytes", waveforms, tmp_path))
    dataset.save_to_disk(tmp_path / "rows")

    def tokenize(num_proc=2, change=lambda tokenizer: tokenizer, **settings):
        tokenizer = change(JepaAudioTokenizer.from_pretrained(tmp_path / "model"))
        dataset = Dataset.load_from_disk(tmp_path / "rows")
        mapped = dataset.map(
            tokenizer.tokenize_batch, batched=True, num_proc=num_proc, remove_columns="audio", **settings
        )
        return cache_files(mapped), mapped

    first, mapped = tokenize()
    assert len(first) == 2  # a file of each process
    assert mapped[:] == expected
    written = {file: (tmp_path / "rows" / file).stat().st_mtime_ns for file in first}
    again, _ = tokenize()
    assert again == first
    assert {file: (tmp_path / "rows" / file).stat().st_mtime_ns for file in again} == written

    assert tokenize(fn_kwargs={"sampling_rate": 16000})[0] != first
    assert tokenize(change=lambda tokenizer: tokenizer.to(dtype="bfloat16"))[0] != first
    shutil.rmtree(tmp_path / "model")
    torch.manual_seed(5)
    save_checkpoint(JepaDaamModel(JepaDaamConfig(**TINY)), tmp_path / "model")  # in the same place
    other, remapped = tokenize()
    assert not set(other) & set(first)
    assert remapped["input_ids"][:] != expected["input_ids"]


def test_a_fingerprint_follows_the_weights(tiny_folder, tmp_path):
    """Of a tokenizer that was there before they changed, too; and stays through use and pickling."""
    shutil.copytree(tiny_folder, tmp_path / "model")
    tokenizer = JepaAudioTokenizer.from_pretrained(tmp_path / "model")
    before = Hasher.hash(tokenizer.tokenize_batch)
    lambda_before = Hasher.hash(lambda batch: tokenizer(batch["audio"]))
    tokenizer.tokenize_batch({"audio": [noise(500)]}, sampling_rate=24000)
    assert Hasher.hash(tokenizer.tokenize_batch) == before
    assert Hasher.hash(pickle.loads(pickle.dumps(tokenizer)).tokenize_batch) == before
    partial = Hasher.hash(functools.partial(tokenizer.tokenize_batch, audio_column="audio"))
    assert Hasher.hash(functools.partial(tokenizer.tokenize_batch, audio_column="audio")) == partial != before
    torch.manual_seed(5)
    JepaDaamModel(JepaDaamConfig(**TINY)).save_pretrained(tmp_path / "model")
    assert Hasher.hash(tokenizer.tokenize_batch) != before
    reloaded = JepaAudioTokenizer.from_pretrained(tmp_path / "model")
    tokenizer = reloaded  # what the lambda below sees
    assert Hasher.hash(lambda batch: tokenizer(batch["audio"])) != lambda_before


def test_wrong_columns_are_named(tiny_tokenizer):
    with pytest.raises(ValueError, match="`audio_column`: no column audio or path or .*, only speech, text"):
        tiny_tokenizer.tokenize_batch({"speech": [], "text": []})
    with pytest.raises(ValueError, match="`audio_column`: no column voice, only speech"):
        tiny_tokenizer.tokenize_batch({"speech": []}, audio_column="voice")
    with pytest.raises(TypeError, match="`batch` must be columns by name"):
        tiny_tokenizer.tokenize_batch([noise(500)])
    with pytest.raises(ValueError, match="`batch`: recording 1 of column audio: .*cannot read audio bytes"):
        tiny_tokenizer.tokenize_batch({"audio": [wav(noise(100)), b"no sound"]})


def test_a_column_by_another_name(tiny_tokenizer, waveforms, expected):
    dataset = Dataset.from_dict({"speech": [wav(samples) for samples in waveforms]})
    mapped = dataset.map(
        tiny_tokenizer.tokenize_batch, batched=True, fn_kwargs={"audio_column": "speech"}, remove_columns="speech"
    )
    assert mapped[:] == expected


@pytest.mark.parametrize("salience", [False, True])
def test_types_beside_columns_that_are_kept(tiny_tokenizer, waveforms, expected, salience):
    dataset = Dataset.from_dict({"audio": [wav(samples) for samples in waveforms], "text": list("abcde")})
    for removed in ([], "audio", ["text", "audio"]):
        features = tiny_tokenizer.features_beside(dataset, removed, salience)
        mapped = dataset.map(
            tiny_tokenizer.tokenize_batch,
            batched=True,
            remove_columns=removed,
            features=features,
            fn_kwargs={"salience": salience},
        )
        assert mapped.features == features
        assert mapped["input_ids"][:] == expected["input_ids"]
        assert mapped.data.column("input_ids").type.value_type == pa.uint16()
        assert ("text" in mapped.column_names) == ("text" not in removed)
    with pytest.raises(ValueError, match="`remove_columns`: no column speech, only audio, text"):
        tiny_tokenizer.features_beside(dataset, "speech")
    with pytest.raises(ValueError, match="`dataset` must have `features`, got list"):
        tiny_tokenizer.features_beside([])


def test_bad_files_are_null_with_their_reason(tiny_tokenizer, waveforms, expected, tmp_path):
    rows = [
        wav(waveforms[0]),
        b"no sound",
        wav(waveforms[1]),
        str(tmp_path / "gone.wav").encode(),
        wav(waveforms[2])[:60],
    ]
    dataset = Dataset.from_dict({"audio": rows, "text": list("abcde")})
    settings = {"on_error": "null", "salience": True}
    mapped = dataset.map(
        tiny_tokenizer.tokenize_batch,
        batched=True,
        batch_size=2,
        remove_columns="audio",
        features=tiny_tokenizer.features_beside(dataset, "audio", **settings),
        fn_kwargs=settings,
    )
    good = [0, 2]
    for place, row in enumerate(mapped):
        if place in good:
            assert row["input_ids"] == expected["input_ids"][good.index(place)]
            assert row["reason"] is None
        else:
            assert (row["input_ids"], row["num_samples"], row["salience"]) == (None, None, None)
            assert "cannot read audio bytes" in row["reason"]
    assert mapped["text"][:] == list("abcde")
    missing = tiny_tokenizer.tokenize_batch({"path": [str(tmp_path / "gone.wav")]}, on_error="null")
    assert "gone.wav" in missing["reason"][0]
    with pytest.raises(ValueError, match="`on_error` must be 'raise' or 'null', got 'skip'"):
        tiny_tokenizer.tokenize_batch({"audio": []}, on_error="skip")
