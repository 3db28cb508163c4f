"""The gates of the very chunks that tokens come from, in arrays, datasets, shards and pictures."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from datasets import Dataset, load_dataset
from datasets.fingerprint import Hasher

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamConfig,
    JepaDaamEncoderModel,
    JepaDaamModel,
    modeling_jepa_daam,
    save_checkpoint,
)
from modeling_jepa_daam.audio import levels_db
from modeling_jepa_daam.corpus import read_manifest, read_salience, shard_paths
from modeling_jepa_daam.corpus.finished import verify_corpus
from modeling_jepa_daam.corpus.run import CorpusJob
from modeling_jepa_daam.corpus.shard import read_rows, row_digest, write_shard
from modeling_jepa_daam.corpus.sources import Source
from modeling_jepa_daam.plotting import plot_salience
from modeling_jepa_daam.salience import daam_gates
from tests.conftest import STFT, TINY, noise
from tests.librilight import recordings
from tests.test_cli import PNG_SIGNATURE, run
from tests.test_corpus import tokenize

LENGTHS = (500, 61, 100, 1, 900)  # of 60 samples a frame and 7 frames a chunk


def chunk_gates(model: JepaDaamModel, samples: np.ndarray) -> list[list[np.ndarray]]:
    """The gates of each chunk as `JepaDaamEncoderModel` gives them, each `(time,)`."""
    encoder = JepaDaamEncoderModel(model.config).eval()
    encoder.encoder.load_state_dict(model.encoder.state_dict())
    size = model.config.chunk_frames * model.config.hop_length
    with torch.inference_mode():
        chunks = [encoder(chunk[None, None], output_daam_gates=True) for chunk in torch.tensor(samples).split(size)]
    return [[gate[0].numpy() for gate in chunk.daam_gates] for chunk in chunks]


def expected(model: JepaDaamModel, samples: np.ndarray) -> np.ndarray:
    """Means of these over each frame."""
    rows = []
    for chunk in chunk_gates(model, samples):
        frames = len(chunk[-1])  # the last gate has one position a frame
        rows.append(np.stack([gate.reshape(frames, -1).mean(axis=-1) for gate in chunk], axis=-1))
    return np.concatenate(rows)


def sound(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, 24000, format="WAV", subtype="FLOAT")
    return file.getvalue()


@pytest.mark.parametrize("kind", [lambda samples: samples, sound])
def test_it_is_the_frame_mean_of_each_gate(tiny_tokenizer, kind):
    """In a batch as alone, from an array as from a file, over one chunk or three."""
    waveforms = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    batch = tiny_tokenizer.salience([kind(samples) for samples in waveforms], 24000)
    for samples, salience in zip(waveforms, batch, strict=True):
        assert (salience.shape, salience.dtype) == ((-(-len(samples) // 60), 3), np.float32)
        np.testing.assert_allclose(salience, expected(tiny_tokenizer.model, samples), rtol=1e-6)
        np.testing.assert_array_equal(tiny_tokenizer.salience(kind(samples), 24000), salience)
    assert batch[0].std() > 0


def test_gates_come_at_their_own_rates_again_and_again(tiny_model):
    whole = [np.concatenate(parts) for parts in zip(*chunk_gates(tiny_model, noise(500)), strict=True)]
    for _ in range(2):
        gates = daam_gates(tiny_model, noise(500))
        assert [len(gate) for gate in gates] == [9 * 15, 9 * 5, 9]
        for gate, other in zip(gates, whole, strict=True):
            np.testing.assert_allclose(gate, other, rtol=1e-6)


def test_the_gates_of_the_conformer_and_of_the_stages_that_are_left_count(tmp_path):
    config = JepaDaamConfig(**STFT, daam_in_conformer=True)
    save_checkpoint(JepaDaamModel(config), tmp_path / "model")
    tokenizer = JepaAudioTokenizer.from_pretrained(tmp_path / "model")
    salience = tokenizer.salience(noise(500), 24000)
    assert salience.shape == (9, config.num_encoder_gates) == (9, 3)
    np.testing.assert_allclose(salience, expected(tokenizer.model, noise(500)), rtol=1e-6)


def test_a_model_without_gates_is_refused(tmp_path):
    config = JepaDaamConfig(**TINY, daam_in_encoder=False)
    save_checkpoint(JepaDaamModel(config), tmp_path / "model")
    with pytest.raises(ValueError, match="`salience`: the model's encoder has no DAAM gates"):
        JepaAudioTokenizer.from_pretrained(tmp_path / "model").salience(noise(500), 24000)
    assert config.num_encoder_gates == 0


@torch.inference_mode()
def test_chunks_that_an_accelerator_encodes_together_come_back_to_their_recordings(tiny_model, monkeypatch):
    waveforms = [torch.from_numpy(noise(length, seed)) for seed, length in enumerate(LENGTHS)]
    monkeypatch.setitem(modeling_jepa_daam.CHUNKS_PER_BATCH, "cpu", 4)
    ids, saliences = tiny_model.waveforms_to_ids_with_salience(waveforms)
    for samples, row, salience in zip(waveforms, ids, saliences, strict=True):
        assert len(salience) == len(row) // tiny_model.config.tokens_per_frame
        np.testing.assert_allclose(salience, expected(tiny_model, samples.numpy()), rtol=1e-4)


def test_a_dataset_has_it_as_a_column_of_its_own(tiny_tokenizer):
    waveforms = [noise(length, seed) for seed, length in enumerate(LENGTHS)]
    dataset = Dataset.from_dict({"audio": [sound(samples) for samples in waveforms]})
    before = Hasher.hash(tiny_tokenizer.tokenize_batch)

    def mapped(**arguments):
        return dataset.map(
            tiny_tokenizer.tokenize_batch, batched=True, batch_size=2, remove_columns="audio", **arguments
        )

    with_it = mapped(fn_kwargs={"salience": True}, features=tiny_tokenizer.salience_features)
    assert with_it.features == tiny_tokenizer.salience_features
    assert with_it.column_names == ["input_ids", "num_samples", "salience"]
    for samples, row in zip(waveforms, with_it, strict=True):
        np.testing.assert_array_equal(np.float32(row["salience"]), tiny_tokenizer.salience(samples, 24000))
    without = mapped(features=tiny_tokenizer.features)
    assert without[:] == with_it.remove_columns("salience")[:]
    assert without._fingerprint != with_it._fingerprint
    again = mapped(fn_kwargs={"salience": True}, features=tiny_tokenizer.salience_features)
    assert again._fingerprint == with_it._fingerprint
    inferred = mapped(fn_kwargs={"salience": True}).features["salience"]
    assert inferred == tiny_tokenizer.salience_features["salience"]
    assert Hasher.hash(tiny_tokenizer.tokenize_batch) == before


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "speech"
    folder.mkdir()
    for number, path in enumerate(path for paths in list(recordings().values())[:3] for path in paths[:1]):
        samples, rate = soundfile.read(path, dtype="float32")
        soundfile.write(folder / f"{number}.flac", samples[: 2 * rate], rate)
    soundfile.write(folder / "long.flac", np.resize(samples, 13 * rate), rate)
    return folder


@pytest.fixture
def job(folder, nano_folder, tmp_path) -> CorpusJob:
    return CorpusJob(Source(str(folder)), str(tmp_path / "out"), str(nano_folder), shard_bytes=100_000, salience=True)


def test_a_corpus_has_it_in_16_bits(job, folder, nano_tokenizer, tmp_path):
    manifest = tokenize(job)
    assert manifest.settings["model"]["salience_gates"] == 5
    for path in shard_paths(job.output):
        table = pq.read_table(path)
        assert table.schema.field("salience").type.value_type == pa.float16()
        for row, salience in zip(read_rows(path)[0], read_salience(table), strict=True):
            expected = nano_tokenizer.salience(folder.parent / row.id)
            np.testing.assert_array_equal(row.salience, expected.astype(np.float16))
            np.testing.assert_array_equal(salience, row.salience)
            assert row_digest(dataclasses.replace(row, salience=row.salience + np.float16(1))) != row_digest(row)
            assert row_digest(dataclasses.replace(row, salience=None)) != row_digest(row)
    assert verify_corpus(job.output) == []
    rows = load_dataset("parquet", data_files=[str(path) for path in shard_paths(job.output)], split="train",
                        cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert len(rows[0]["salience"]) == 5 * len(rows[0]["tokens"]) // 19

    plain = dataclasses.replace(job, output=str(tmp_path / "plain"), salience=False)
    tokenize(plain)
    for path, other in zip(shard_paths(plain.output), shard_paths(job.output), strict=True):
        assert pq.read_table(path, columns=["id", "tokens"]).equals(pq.read_table(other, columns=["id", "tokens"]))
        assert "salience" not in pq.read_table(path).column_names
    assert "salience_gates" not in read_manifest(plain.output).settings["model"]


def test_a_corpus_begun_without_it_is_not_continued_with_it(job):
    tokenize(dataclasses.replace(job, salience=False))
    with pytest.raises(ValueError, match="model.salience_gates was None, is 5"):
        tokenize(job)


def test_damaged_salience_is_found(job):
    tokenize(job)
    path = shard_paths(job.output)[0]
    rows, _, facts = read_rows(path)
    negative = [dataclasses.replace(row, salience=-row.salience) for row in rows]
    short = [dataclasses.replace(row, salience=row.salience[1:]) for row in rows]
    for damaged in (negative, short):
        sha256, size = write_shard(path, damaged, facts)
        manifest = json.loads(Path(job.output, "manifest.json").read_text())
        manifest["totals"]["bytes"] += size - manifest["shards"][0]["bytes"]
        manifest["shards"][0] |= {"sha256": sha256, "bytes": size}
        Path(job.output, "manifest.json").write_text(json.dumps(manifest))
        assert all("its salience does not fit" in problem for problem in verify_corpus(job.output))
        assert len(verify_corpus(job.output)) == len(rows)


def test_a_corpus_of_a_model_without_gates_is_refused(job, tmp_path):
    save_checkpoint(JepaDaamModel(JepaDaamConfig(**TINY, daam_in_encoder=False)), tmp_path / "model")
    with pytest.raises(ValueError, match="`salience`: the model's encoder has no DAAM gates"):
        tokenize(dataclasses.replace(job, model=str(tmp_path / "model")))


def test_the_commands_have_it(folder, nano_folder, tmp_path):
    run("tokenize-corpus", folder, tmp_path / "out", "-m", nano_folder, "--jobs", 1, "--salience")
    assert "salience" in pq.read_table(shard_paths(tmp_path / "out")[0]).column_names
    run("plot", folder / "0.flac", "-m", nano_folder, "-o", tmp_path / "a.png", "--salience")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_picture_shows_each_gate(tmp_path):
    pictures = []
    for salience in (np.ones((2, 2), np.float32), np.float32([[1, 0], [1, 1]])):
        plot_salience(tmp_path / "a.png", "a", 24000, 9600, noise(15000), salience)
        pictures.append((tmp_path / "a.png").read_bytes())
    assert pictures[0] != pictures[1]


def test_levels_are_decibels_of_full_scale():
    samples = np.concatenate([np.ones(10), np.full(10, 0.1), np.zeros(10), [0.1, 0.1]]).astype(np.float32)
    np.testing.assert_allclose(levels_db(samples, 10), [0, -20, -100, -20], atol=1e-6)
