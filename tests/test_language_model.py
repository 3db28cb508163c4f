"""Tokens in a language model: blocks, vocabularies of text and audio, legal generation, audio while it comes."""

import threading

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from modeling_jepa_daam import (
    AudioLogitsProcessor,
    AudioStreamer,
    AudioVocabulary,
    JepaAudioTokenizer,
    JepaDaamConfig,
    add_audio_tokens,
    extend_embeddings,
    make_untrained_checkpoint,
    pack_into_blocks,
)
from modeling_jepa_daam.decoder import HifiGanDecoder
from tests.conftest import ROOT, TINY, noise

CHAT_TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
HOP, WIDTH = 60, 3  # of the tiny codec: samples and tokens a frame


@pytest.fixture
def text_tokenizer() -> PreTrainedTokenizerFast:
    """A small tokenizer of the common kind: byte-level BPE."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((ROOT / "README.md").read_text().splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def small_llama(vocab_size: int, **changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **settings, **changes)).eval()


def legal_ids(tokenizer: JepaAudioTokenizer, frames: int, seed: int = 0) -> list[int]:
    sizes = AudioVocabulary.of(tokenizer).group_sizes
    return np.random.default_rng(seed).integers(sizes, size=(frames, len(sizes))).flatten().tolist()


# Blocks, and training on them


def test_blocks_hold_the_recordings_one_after_another(nano_tokenizer):
    vocabulary = AudioVocabulary.of(nano_tokenizer)
    recordings = [legal_ids(nano_tokenizer, frames, seed=frames) for frames in (3, 1, 7)]
    blocks = pack_into_blocks({"tokens": recordings}, 64, vocabulary)["input_ids"]
    together = [i for ids in recordings for i in (nano_tokenizer.bos_token_id, *ids, nano_tokenizer.eos_token_id)]
    assert [len(block) for block in blocks] == [64] * 3
    assert [i for block in blocks for i in block] == together[: 3 * 64]
    assert pack_into_blocks({"input_ids": [[1, 2], [3]]}, 2)["input_ids"] == [[1, 2]]
    with pytest.raises(ValueError, match="`batch` must have a column input_ids or tokens, got ids"):
        pack_into_blocks({"ids": []}, 2)
    with pytest.raises(ValueError, match="`input_ids` must lie within their place's range"):
        pack_into_blocks({"input_ids": [[16] * 19]}, 2, vocabulary)
    with pytest.raises(ValueError, match="whole frames of 19 tokens"):
        pack_into_blocks({"input_ids": [[0] * 20]}, 2, vocabulary)


def test_audio_alone_trains_with_the_usual_tools(nano_tokenizer, tmp_path):
    """Audio -> tokens -> blocks -> DataCollatorForLanguageModeling -> Trainer, and a plain loader."""
    audio = Dataset.from_dict({"audio": [noise(48000, seed).tolist() for seed in range(4)]})
    tokens = audio.map(
        nano_tokenizer.tokenize_batch, batched=True, fn_kwargs={"sampling_rate": 24000}, remove_columns="audio"
    )
    blocks = tokens.map(
        pack_into_blocks,
        batched=True,
        fn_kwargs={"block_length": 40, "vocabulary": AudioVocabulary.of(nano_tokenizer)},
        remove_columns=tokens.column_names,
    )
    assert len(blocks) == 4 * (2 + 95) // 40
    collator = DataCollatorForLanguageModeling(nano_tokenizer, mlm=False)
    batch = next(iter(DataLoader(blocks, batch_size=2, collate_fn=collator)))
    assert batch["input_ids"].shape == (2, 40)
    assert torch.equal(batch["labels"], batch["input_ids"])
    model = small_llama(len(nano_tokenizer))
    arguments = TrainingArguments(
        str(tmp_path), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
        logging_steps=1, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=blocks, data_collator=collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


# Text and audio


def test_a_text_tokenizer_gets_every_audio_token(text_tokenizer, nano_tokenizer, tmp_path):
    size = len(text_tokenizer)
    text = "What was said?"
    before = text_tokenizer(text)["input_ids"]
    vocabulary = add_audio_tokens(text_tokenizer, nano_tokenizer)
    assert vocabulary == AudioVocabulary(size, (16384,) * 18 + (16,), size + 16384, size + 16385)
    text_tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (text_tokenizer, loaded):
        assert len(tokenizer) == size + 16386
        every = list(range(size, size + 16386))
        names = [f"<|audio_{i}|>" for i in range(16384)] + ["<|audio_start|>", "<|audio_end|>"]
        assert tokenizer.convert_tokens_to_ids(names) == every
        assert tokenizer.convert_ids_to_tokens(every) == names
        assert tokenizer("".join(names), add_special_tokens=False)["input_ids"] == every
        assert tokenizer.decode(every) == "".join(names)
        assert tokenizer(text)["input_ids"] == before
        assert add_audio_tokens(tokenizer, nano_tokenizer) == vocabulary  # they are there already


def test_strings_and_ids_go_round_in_a_chat(text_tokenizer, nano_tokenizer):
    vocabulary = add_audio_tokens(text_tokenizer, nano_tokenizer)
    ids = nano_tokenizer(noise(9600 * 3), 24000)["input_ids"]
    in_text = f"<|audio_start|>{nano_tokenizer.decode(ids)}<|audio_end|>"
    messages = [{"role": "user", "content": f"{in_text} What was said?"}, {"role": "assistant", "content": "Noise."}]
    chat = text_tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert vocabulary.to_audio(chat) == ids
    marked = vocabulary.from_audio(ids)
    place = chat.index(vocabulary.start_id)
    assert chat[place : place + len(marked)] == marked
    assert text_tokenizer.decode(chat) == f"<|user|>{in_text} What was said?</s><|assistant|>Noise.</s>"
    assert nano_tokenizer(text=text_tokenizer.decode(marked[1:-1]))["input_ids"] == ids


def test_a_vocabulary_with_gaps_is_refused(text_tokenizer, nano_tokenizer):
    text_tokenizer.add_tokens(["<|audio_7|>"])
    with pytest.raises(ValueError, match=r"must have all of <\|audio_0\|> .* or none of them; it had 1"):
        add_audio_tokens(text_tokenizer, nano_tokenizer)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_grow_and_text_stays_as_it_was(text_tokenizer, nano_tokenizer, tied):
    spare = 10  # rows that the model has beyond its tokenizer
    model = small_llama(len(text_tokenizer) + spare, tie_word_embeddings=tied)
    text = text_tokenizer("What was said?", return_tensors="pt")
    size = len(text_tokenizer)
    with torch.inference_mode():
        before = model(**text).logits
    vocabulary = add_audio_tokens(text_tokenizer, nano_tokenizer)
    extend_embeddings(model, vocabulary)
    assert model.config.vocab_size == len(text_tokenizer) == model.lm_head.weight.shape[0]
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    with torch.inference_mode():
        after = model(**text).logits
    assert torch.equal(after[..., :size], before[..., :size])
    assert 0.5 < after[..., size:].std() / before[..., :size].std() < 2.0
    again = small_llama(size + spare, tie_word_embeddings=tied)
    extend_embeddings(again, vocabulary)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


# Generation

MIXED = AudioVocabulary(first_id=10, group_sizes=(8, 8, 2), start_id=18, end_id=19)  # text is 0 .. 9
VOCABULARY_SIZE = 21


def is_legal(sequence: list[int]) -> bool:
    """A second reading of the rule, id by id."""
    frame: int | None = None  # audio tokens since the start mark
    for index in sequence:
        if frame is None:
            if index == 18:
                frame = 0
            elif 10 <= index < 18 or index == 19:
                return False
        elif index == 19:
            if frame == 0 or frame % 3:
                return False
            frame = None
        else:
            if not 10 <= index < 10 + MIXED.group_sizes[frame % 3]:
                return False
            frame += 1
    return True


def test_what_may_come_next():
    allowed = AudioLogitsProcessor(MIXED).allowed

    def after(*ids):
        return allowed(torch.tensor([ids]), VOCABULARY_SIZE)[0].nonzero().flatten().tolist()

    text, any_audio = [*range(10), 18, 20], [*range(10, 18)]
    assert after(1, 2) == after(18, 10, 11, 10, 19) == after(18, 10, 10, 10, 19, 4) == text
    assert after(1, 18) == after(18, 17) == any_audio
    assert after(18, 17, 17) == [10, 11]
    assert after(18, 17, 17, 11) == [*any_audio, 19]
    assert after(18, 17, 17, 11, 19, 5, 18) == any_audio  # audio again
    assert after(0, 0, 0, 18, 12) == any_audio  # padded on the left
    limited = AudioLogitsProcessor(MIXED, max_frames=1).allowed
    assert limited(torch.tensor([[18, 17, 17, 11]]), VOCABULARY_SIZE)[0].nonzero().flatten().tolist() == [19]
    with pytest.raises(ValueError, match="`scores` must have a column for each id"):
        allowed(torch.tensor([[1]]), 19)


@pytest.mark.parametrize("search", [{"do_sample": True}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}])
def test_generation_is_legal_in_batches_and_beams(search):
    model = small_llama(VOCABULARY_SIZE)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # decided, and wrongly
    prompts = [[1, 2, 18], [3, 18, 12, 12], [18, 10, 10, 10, 19, 4, 4]]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    for seed in range(3):
        torch.manual_seed(seed)
        settings = {"max_new_tokens": 30, "eos_token_id": 20, "pad_token_id": 0, **search}
        processor = AudioLogitsProcessor(MIXED, max_frames=4)
        free, bound = (
            model.generate(padded, attention_mask=mask, logits_processor=processors, **settings).tolist()
            for processors in ([], [processor])
        )
        for row, prompt in zip(bound, prompts, strict=True):
            sequence = row[longest - len(prompt) :]
            assert sequence[: len(prompt)] == prompt
            assert is_legal(sequence)
        assert not all(is_legal(row) for row in free)


@pytest.mark.parametrize("search", [{"do_sample": True}, {"num_beams": 3}])
def test_generation_from_embeddings_is_legal(search):
    """`generate` passes no ids of the prompt then: `prompt_ids` say whether audio has begun."""
    model = small_llama(VOCABULARY_SIZE)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
    prompts = torch.tensor([[1, 2, 18], [18, 12, 12]])
    embeddings = model.get_input_embeddings()(prompts)
    settings = {"max_new_tokens": 20, "eos_token_id": 20, "pad_token_id": 0, **search}
    for prompt_ids in (prompts, torch.tensor([18]), None):
        torch.manual_seed(0)
        processor = AudioLogitsProcessor(MIXED, max_frames=4, prompt_ids=prompt_ids)
        made = model.generate(inputs_embeds=embeddings, logits_processor=[processor], **settings)
        for number, row in enumerate(made.tolist()):
            before = {0: [], 1: [18], 2: prompts[number].tolist()}[0 if prompt_ids is None else prompt_ids.ndim]
            assert is_legal([*before, *row])
            assert prompt_ids is None or row[0] >= 10  # audio goes on


@pytest.mark.parametrize(
    ("prompt_ids", "error", "message"),
    [
        ([[1.0]], TypeError, "`prompt_ids` must be integers, got torch.float32"),
        ([], (TypeError, ValueError), "`prompt_ids` must"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), ValueError, r"`prompt_ids` must have shape .*got \(1, 1, 1\)"),
    ],
)
def test_prompt_ids_that_are_none_are_refused(prompt_ids, error, message):
    with pytest.raises(error, match=message):
        AudioLogitsProcessor(MIXED, prompt_ids=prompt_ids)


def test_prompt_ids_of_another_batch_are_refused():
    with pytest.raises(ValueError, match="a row for each prompt, got 2 for 3 sequences"):
        AudioLogitsProcessor(MIXED, prompt_ids=[[18], [18]])(torch.zeros(3, 1, dtype=torch.int64), torch.zeros(3, 30))


def test_generated_audio_decodes(nano_tokenizer):
    vocabulary = AudioVocabulary.of(nano_tokenizer)
    model = small_llama(len(nano_tokenizer))
    prompt = vocabulary.from_audio(legal_ids(nano_tokenizer, 1), end=False)
    torch.manual_seed(0)
    ids = model.generate(
        torch.tensor([prompt]),
        do_sample=True,
        max_new_tokens=50,
        logits_processor=[AudioLogitsProcessor(vocabulary, max_frames=3)],
        eos_token_id=vocabulary.end_id,
        pad_token_id=nano_tokenizer.pad_token_id,
    )[0]
    audio = vocabulary.to_audio(ids)
    assert audio[:19] == prompt[1:]
    assert len(audio) == 57
    assert nano_tokenizer.decode_audio(audio).shape == (3 * 9600,)
    assert vocabulary.to_audio(ids[:45]) == audio[:38]  # less an unfinished frame


# Audio while it comes


@pytest.fixture(params=[{}, {"decoder_istft_stages": 2, "decoder_channels": (8, 8), "decoder_kernel_sizes": ((3, 7),)}])
def codec(request, tmp_path):
    config = JepaDaamConfig(**(TINY | request.param))
    return JepaAudioTokenizer.from_pretrained(make_untrained_checkpoint(config, tmp_path / "codec"))


@pytest.mark.parametrize("frames_per_piece", [1, 4])
@pytest.mark.parametrize("frames", [1, 2, 30])
def test_a_decode_stream_gives_what_decoding_all_at_once_gives(codec, frames, frames_per_piece):
    ids = legal_ids(codec, frames)
    whole = codec.decode_audio(ids)
    stream = codec.decode_stream(frames_per_piece)
    pieces = []
    for place in range(0, len(ids), 2):
        pieces.append(stream.push(ids[place : place + 2]))
        out, known = sum(map(len, pieces)), min(place + 2, len(ids)) // WIDTH
        assert out // HOP == max(0, known - stream.delay_frames) // frames_per_piece * frames_per_piece
    pieces.append(stream.close())
    streamed = np.concatenate(pieces)
    assert streamed.shape == whole.shape
    np.testing.assert_allclose(streamed, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_a_decode_stream_needs_its_context(codec, monkeypatch):
    """Without neighbouring frames the samples would differ: the delay is no waste."""
    ids, margins = legal_ids(codec, 30), codec.model.decoder.margins()
    whole = codec.decode_audio(ids)
    stream = codec.decode_stream()
    assert stream.delay_frames == margins[0] > 0
    monkeypatch.setattr(HifiGanDecoder, "margins", lambda decoder: [0, *margins[1:]])
    stream = codec.decode_stream()
    streamed = np.concatenate([stream.push(ids), stream.close()])
    assert np.abs(streamed - whole).max() > 1e-2 * np.abs(whole).max()


def test_a_decode_stream_refuses_what_is_no_audio(tiny_tokenizer):
    stream = tiny_tokenizer.decode_stream()
    assert len(stream.push([])) == 0
    with pytest.raises(ValueError, match="whole number of frames of 3 tokens, got 0"):
        stream.close()
    with pytest.raises(ValueError, match="the stream is closed"):
        stream.push([0])
    stream = tiny_tokenizer.decode_stream()
    stream.push([tiny_tokenizer.bos_token_id, 0, 0, 0, 0])
    with pytest.raises(ValueError, match="got 1 after the last whole one"):
        stream.close()
    with pytest.raises(ValueError, match="must lie in"):
        tiny_tokenizer.decode_stream().push([0, 0, 10**6])


@pytest.mark.parametrize("skip_prompt", [True, False])
def test_a_streamer_gives_what_decoding_gives(codec, skip_prompt):
    """In a thread, after a prompt that ends within audio, and within a frame of it."""
    vocabulary = AudioVocabulary.of(codec)
    model = small_llama(len(codec))
    known = legal_ids(codec, 12)
    prompt = [*vocabulary.from_audio(known[:6]), *vocabulary.from_audio(known[6:], end=False), known[0]]
    streamer = AudioStreamer(codec, skip_prompt=skip_prompt, timeout=60)
    made: list[torch.Tensor] = []

    def generate():
        torch.manual_seed(0)
        processor = AudioLogitsProcessor(vocabulary, max_frames=25)
        made.append(
            model.generate(
                torch.tensor([prompt]), streamer=streamer, do_sample=True, max_new_tokens=70,
                logits_processor=[processor], eos_token_id=vocabulary.end_id, pad_token_id=codec.pad_token_id,
            )[0]
        )  # fmt: skip

    thread = threading.Thread(target=generate)
    thread.start()
    pieces = list(streamer)
    thread.join()
    second = made[0].tolist()[8:]  # the audio that the prompt began
    expected = codec.decode_audio(vocabulary.to_audio(second))
    if skip_prompt:
        expected = expected[10 * HOP :]
    else:
        expected = np.concatenate([codec.decode_audio(known[:6]), expected])
    streamed = np.concatenate(pieces)
    assert len(pieces) > 5
    assert streamed.shape == expected.shape
    np.testing.assert_allclose(streamed, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_streamer_may_be_used_again_and_takes_one_sequence(tiny_tokenizer):
    vocabulary = AudioVocabulary.of(tiny_tokenizer)
    streamer = AudioStreamer(tiny_tokenizer, timeout=1)
    ids = legal_ids(tiny_tokenizer, 3)
    for _ in range(2):
        streamer.put(torch.tensor([[vocabulary.start_id]]))
        for index in [*ids, 0]:  # a frame that is not whole is left out
            streamer.put(torch.tensor([index]))
        streamer.end()
        np.testing.assert_allclose(np.concatenate(list(streamer)), tiny_tokenizer.decode_audio(ids), atol=1e-6)
    with pytest.raises(ValueError, match="got a batch of 2"):
        streamer.put(torch.zeros(2, 3, dtype=torch.int64))


def generation(codec, **changes):
    """A model of the codec's vocabulary, and what the README passes to `generate`."""
    vocabulary = AudioVocabulary.of(codec)
    prompt = torch.tensor([vocabulary.from_audio(legal_ids(codec, 2), end=False)])
    legal = [AudioLogitsProcessor(vocabulary, max_frames=12)]
    settings = {"input_ids": prompt, "logits_processor": legal, "eos_token_id": vocabulary.end_id,
                "pad_token_id": codec.pad_token_id, "max_new_tokens": 200, "do_sample": False}  # fmt: skip
    return small_llama(len(codec)), settings | changes


def test_a_streamer_generates_in_a_thread_of_its_own(tiny_tokenizer):
    model, arguments = generation(tiny_tokenizer)
    streamer = AudioStreamer(tiny_tokenizer, timeout=60)
    whole = AudioVocabulary.of(tiny_tokenizer).to_audio(model.generate(**arguments)[0])
    expected = tiny_tokenizer.decode_audio(whole)[2 * HOP :]
    for _ in range(2):
        np.testing.assert_allclose(np.concatenate(list(streamer.generate(model, **arguments))), expected, atol=1e-6)


def no_logits(input_ids, scores):
    raise RuntimeError("the model fails")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"logits_processor": [lambda ids, scores: torch.eye(scores.shape[-1])[300:301]]}, ValueError, "must lie in"),
        ({"logits_processor": [no_logits]}, RuntimeError, "the model fails"),
        ({"input_ids": torch.zeros(2, 3, dtype=torch.int64)}, ValueError, "got a batch of 2"),
    ],
    ids=["illegal ids", "model", "batch"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_producer_reaches_the_consumer(tiny_tokenizer, changes, error, message):
    model, arguments = generation(tiny_tokenizer, **changes)
    streamer = AudioStreamer(tiny_tokenizer, timeout=60)
    with pytest.raises(error, match=message):
        list(streamer.generate(model, **arguments))
    if error is ValueError:  # of `put`: also where the caller has the thread
        thread = threading.Thread(target=model.generate, kwargs={"streamer": streamer, **arguments})
        thread.start()
        with pytest.raises(error, match=message):
            list(streamer)
        thread.join()
    model, arguments = generation(tiny_tokenizer)
    assert sum(map(len, streamer.generate(model, **arguments))) == 10 * HOP  # it may be used again


def test_a_consumer_that_stops_ends_the_generation(tiny_tokenizer):
    model, arguments = generation(tiny_tokenizer, max_new_tokens=100_000)
    arguments["logits_processor"] = [AudioLogitsProcessor(AudioVocabulary.of(tiny_tokenizer))]
    model.config.max_position_embeddings = 100_010
    before = threading.active_count()
    pieces = AudioStreamer(tiny_tokenizer, timeout=60).generate(model, **arguments)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before
