"""The speech language model: its baselines, its shared rows, its parts, and a run that is killed and goes on."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_jepa_daam import add_audio_tokens
from modeling_jepa_daam.packing import unpack_token
from tests.speech_with_texts import make_speech_with_texts
from tests.training_runs import figures, finish, kill_after, start
from training.digit_rows import DigitRows, fold, share_rows
from training.speech_tokens import read_token_dataset, tokenize_sources
from training.token_baselines import positional_digit_bits, positional_unigram_bits, uniform_bits, unigram_bits
from training.train_speech_lm import (
    Settings,
    audio_bits,
    batch_order,
    make_examples,
    make_model,
    make_text_tokenizer,
    prepare_folder,
    split_speakers,
)

LEVELS, GROUP_SIZE, SIZES = (4, 4, 4), 2, (16, 4)  # two tokens a frame


# Baselines


def test_uniform_bits_are_those_of_the_quantizer():
    assert uniform_bits(LEVELS, GROUP_SIZE).tolist() == [4.0, 2.0]
    paper = uniform_bits((4,) * 128, 7)
    assert paper.sum() == 256
    assert paper.sum() * 2.5 == 640


def test_counts_without_smoothing_are_entropies():
    """Where all three parts are alike, the best weight of the uniform part is the smallest."""
    frames = np.array([[0, 1], [0, 1], [5, 1], [5, 2]])
    by_place = positional_unigram_bits(frames, frames, frames, SIZES)
    np.testing.assert_allclose(by_place[:, 0], 1.0, atol=1e-3)
    np.testing.assert_allclose(by_place[:, 1], -np.log2([0.75, 0.75, 0.75, 0.25]), atol=1e-3)
    anywhere = unigram_bits(frames, frames, frames, 16)
    np.testing.assert_allclose(anywhere[:, 1], -np.log2([3 / 8, 3 / 8, 3 / 8, 1 / 8]), atol=1e-3)
    digits = positional_digit_bits(frames, frames, frames, LEVELS, GROUP_SIZE)
    np.testing.assert_allclose(digits[:, 0], 2.0, atol=1e-3)  # 0 = (0, 0) and 5 = (1, 1), taken as independent
    np.testing.assert_allclose(digits[:, 1], by_place[:, 1], atol=1e-3)


def test_no_baseline_is_worse_than_uniform_or_infinite(rng):
    parts = [rng.integers(SIZES, size=(count, 2)) for count in (20, 400, 400)]
    for bits in (
        positional_unigram_bits(*parts, SIZES),
        positional_digit_bits(*parts, LEVELS, GROUP_SIZE),
    ):
        assert np.isfinite(bits).all()
        assert bits.sum(axis=1).mean() < 6.05
    unseen = np.array([[15, 3]])
    assert np.isfinite(unigram_bits(np.zeros((9, 2), np.int64), unseen, unseen, 16)).all()


def test_digits_generalize_where_ids_are_rare(rng):
    """Skewed digits, and fewer frames than ids."""
    parts = [rng.choice(4, p=[0.7, 0.1, 0.1, 0.1], size=(count, 14)) for count in (300, 100, 100)]
    ids = [np.stack([p[:, :7] @ 4 ** np.arange(6, -1, -1), p[:, 7:] @ 4 ** np.arange(6, -1, -1)], 1) for p in parts]
    levels = (4,) * 14
    by_digit = positional_digit_bits(*ids, levels, 7).mean()
    assert by_digit < positional_unigram_bits(*ids, [4**7] * 2).mean() - 1
    entropy = -7 * (0.7 * np.log2(0.7) + 0.3 * np.log2(0.1))
    assert abs(by_digit - entropy) < 0.4


# Rows that are shared


def test_rows_are_sums_over_digits_and_fold_into_a_matrix():
    torch.manual_seed(0)
    levels, first = (3, 2, 4), 5
    layer = nn.Embedding(5 + 24 + 2, 8)
    free = layer.weight.detach().clone()
    rows = DigitRows(levels, first)
    share_rows(layer, rows)
    weight = layer.weight.detach()
    assert weight.shape == free.shape
    assert torch.equal(weight[:5], free[:5])
    assert torch.equal(weight[-2:], free[-2:])
    assert 0.5 < weight[5:29].std() / free.std() < 2
    table = layer.parametrizations.weight.original.detach()[-rows.num_parts :]
    singles, pairs = [0, 3, 5], [9, 15, 27]  # where the digits of a place, and the pairs of two, begin
    for token, digits in enumerate(unpack_token(torch.arange(24), levels).tolist()):
        expected = sum(table[begin + digit] for begin, digit in zip(singles, digits, strict=True))
        for begin, (i, j) in zip(pairs, itertools.combinations(range(3), 2), strict=True):
            expected = expected + table[begin + digits[i] * levels[j] + digits[j]]
        torch.testing.assert_close(weight[first + token], expected)
    layer.weight.sum().backward()
    assert layer.parametrizations.weight.original.grad.abs().sum() > 0
    fold(layer)
    assert type(layer.weight) is nn.Parameter
    assert torch.equal(layer.weight, weight)


# Data


def test_speakers_are_in_one_part():
    rows = [{"speaker": str(n % 40), "name": str(n)} for n in range(200)]
    parts = split_speakers(rows, 0.2)
    speakers = [{row["speaker"] for row in part} for part in parts.values()]
    assert sum(map(len, parts.values())) == 200
    assert len(set.union(*speakers)) == sum(map(len, speakers)) == 40
    assert all(2 <= len(part) <= 16 for part in speakers[1:])
    with pytest.raises(ValueError, match="`held_out_share` = 0.01 leaves nothing for validation and test"):
        split_speakers(rows[:1], 0.01)


def test_batches_hold_every_example_once_within_the_budget():
    lengths = np.random.default_rng(0).integers(5, 60, 300).tolist()
    batches = batch_order(lengths, 128, seed=0, epoch=3)
    assert sorted(place for batch in batches for place in batch) == list(range(300))
    assert all(len(batch) * max(lengths[place] for place in batch) <= 128 for batch in batches)
    assert batches == batch_order(lengths, 128, seed=0, epoch=3) != batch_order(lengths, 128, seed=0, epoch=4)
    assert batch_order([200], 128, 0, 0) == [[0]]


def test_tokens_are_made_once_and_read_from_parquet(nano_tokenizer, tmp_path):
    tar = make_speech_with_texts(tmp_path / "speech.tar")
    rows = tokenize_sources([str(tar)], nano_tokenizer, tmp_path / "cache")
    again = tokenize_sources([str(tar)], nano_tokenizer, tmp_path / "cache")
    assert again.cache_files == rows.cache_files
    assert rows[0]["text"] == "he was in a hurry"
    assert rows["text"][:].count(None) == 2
    assert len({*rows["speaker"][:]}) == 6
    table = pa.table({"id": rows["name"][:], "tokens": pa.array(rows["input_ids"][:], pa.list_(pa.uint16())),
                      "speaker": rows["speaker"][:], "text": rows["text"][:]})  # fmt: skip
    (tmp_path / "corpus").mkdir()
    pq.write_table(table, tmp_path / "corpus" / "shard-0.parquet")
    read = read_token_dataset(tmp_path / "corpus")
    for column in ("name", "speaker", "text", "input_ids"):
        assert read[column][:] == rows[column][:]
    with pytest.raises(ValueError, match="`tokens`: no Parquet files"):
        read_token_dataset(tmp_path / "cache")
    pq.write_table(table.select(["tokens"]), tmp_path / "corpus" / "shard-0.parquet")
    with pytest.raises(ValueError, match="must have columns input_ids or tokens and speaker, got tokens"):
        read_token_dataset(tmp_path / "corpus")
    with pytest.raises(FileNotFoundError, match="no such tar file or folder"):
        tokenize_sources([str(tmp_path / "missing.tar")], nano_tokenizer, tmp_path / "cache")


def settings(tmp_path, **changes) -> Settings:
    small = {"hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_frames": 5, "batch_tokens": 512}
    return Settings(tokenizer="", output=str(tmp_path), tokens="", **small | changes)


def test_examples_and_what_a_model_is_charged(nano_tokenizer, tmp_path):
    """A recording is text and audio; bits are a softmax over the ids that are legal at each place."""
    text_tokenizer = make_text_tokenizer(settings(tmp_path), [{"text": "so it is"}], tmp_path / "tokenizer")
    vocabulary = add_audio_tokens(text_tokenizer, nano_tokenizer)
    ids = np.random.default_rng(0).integers(vocabulary.group_sizes, size=(12, 19))
    short, long = ({"input_ids": ids[:n].flatten().tolist(), "speaker": 7, "text": "so", "name": "a"} for n in (4, 12))
    (example,) = make_examples(short, text_tokenizer, vocabulary, settings(tmp_path))
    assert example.ids[0] == text_tokenizer.bos_token_id
    assert text_tokenizer.decode(example.ids[1 : example.audio_place - 1]) == "so"
    assert example.ids[example.audio_place - 1] == vocabulary.start_id
    assert vocabulary.to_audio(example.ids[example.audio_place : -1]) == short["input_ids"]
    assert example.ids[-1] == vocabulary.end_id
    pieces = list(make_examples(long, text_tokenizer, vocabulary, settings(tmp_path)))
    assert [piece.num_audio // 19 for piece in pieces] == [4, 4, 4]
    assert all(piece.text is None for piece in pieces)
    assert [i for piece in pieces for i in vocabulary.to_audio(piece.ids)] == long["input_ids"]

    model = make_model(settings(tmp_path), vocabulary, text_tokenizer, nano_tokenizer).eval()
    both = [example, pieces[2]]
    bits = audio_bits(model, both, vocabulary, settings(tmp_path))
    for one, got in zip(both, bits, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([one.ids])).logits[0].double()
        expected = []
        for count in range(one.num_audio):
            place = one.audio_place + count
            allowed = logits[place - 1, vocabulary.first_id :][: vocabulary.group_sizes[count % 19]]
            chosen = one.ids[place] - vocabulary.first_id
            expected.append(float(-(allowed[chosen] - allowed.logsumexp(0)) / np.log(2)))
        np.testing.assert_allclose(got.flatten(), expected, rtol=1e-4)


# Runs


def arguments(tar, nano_folder, output, *more):
    given = {
        "tokenizer": nano_folder, "output": output, "held-out-share": 0.2, "hidden-size": 32, "num-layers": 1,
        "num-heads": 2, "batch-tokens": 512, "max-frames": 10, "max-steps": 6, "log-every": 1, "eval-every": 2,
        "eval-recordings": 2, "save-every": 2, "clips": 1, "learning-rate": 1e-2,
    }  # fmt: skip
    return [str(tar), *(f"--{name}={value}" for name, value in given.items()), *more]


def test_a_killed_run_goes_on_to_the_same_end(nano_folder, tmp_path):
    tar = make_speech_with_texts(tmp_path / "speech.tar")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    told = finish(start("train_speech_lm", 1, arguments(tar, nano_folder, whole)))
    assert "| unigram by place in the frame |" in told
    kill_after(start("train_speech_lm", 1, arguments(tar, nano_folder, killed)), killed, 4)
    finish(start("train_speech_lm", 1, arguments(tar, nano_folder, killed)))
    assert figures(killed) == figures(whole)
    results = [json.loads((folder / "results.json").read_text()) for folder in (whole, killed)]
    assert results[0]["bits"] == results[1]["bits"]
    assert results[0]["bits"]["uniform"] == pytest.approx(256 / 19)
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    assert model.lm_head.weight.shape[0] == len(tokenizer)
    assert tokenizer.convert_tokens_to_ids("<|audio_end|>") == model.config.eos_token_id == len(tokenizer) - 1
    sounds = {path.name: path.read_bytes() for path in (whole / "continuations").iterdir()}
    assert any(name.endswith("_continued.wav") for name in sounds)
    assert sounds == {path.name: path.read_bytes() for path in (killed / "continuations").iterdir()}


def test_a_folder_keeps_to_its_run(tmp_path):
    rows = Dataset.from_list([{"name": "a", "speaker": "b", "text": None, "input_ids": [1, 2]}])
    prepare_folder(settings(tmp_path), rows, tmp_path)
    prepare_folder(settings(tmp_path, clips=9), rows, tmp_path)
    with pytest.raises(ValueError, match="holds a run with other settings; .* seed: 0, 1"):
        prepare_folder(settings(tmp_path, seed=1), rows, tmp_path)
    with pytest.raises(ValueError, match="tokens_sha256"):
        prepare_folder(settings(tmp_path), rows.map(lambda row: {"input_ids": [1, 3]}), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ("a",)}, "`sources` or `tokens` must be given, and not both"),
        ({"held_out_share": 0.5}, r"`held_out_share` must lie in \(0, 0.5\), got 0.5"),
        ({"num_heads": 3}, "`hidden_size` must be a multiple of twice `num_heads`, got 32 and 3"),
        ({"max_steps": 0}, "`max_steps` must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)
