"""Train a small Llama on tokens of speech, and say how well it predicts those of speakers that it never heard.

    python -m training.train_speech_lm SOURCES... --tokenizer CHECKPOINT --output runs/speech-lm

A recording is `<s> its text <|audio_start|> its tokens <|audio_end|>`, without text where there is none: one model for
text to speech and for continuation. Writes into the output folder `model` (an ordinary Llama with its tokenizer),
`report.md`, `results.json`, and sound in `continuations`. Killed and started again, it goes on where it was.

Some speakers (`--held-out-share`) are for the test, as many others choose the best step and the weights of the
baselines. Cross-entropy is that of audio tokens in their legal range: the ids that `AudioLogitsProcessor` forbids have
no probability. The end mark is not counted.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import soundfile
import torch
import torch.nn.functional as F
import typer
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from modeling_jepa_daam import AudioLogitsProcessor, AudioVocabulary, JepaAudioTokenizer, add_audio_tokens
from modeling_jepa_daam.files import replacing
from modeling_jepa_daam.packing import group_levels

from .bootstrap import bootstrap_interval
from .checkpointing import list_checkpoints, load_checkpoint, remove_half_written, save_checkpoint
from .digit_rows import DigitRows, fold, share_rows
from .markdown import markdown_table
from .recordings import is_held_out
from .run import only_run, rate_share, replacing_model, seed_randomness, stop_unless_finite
from .speech_tokens import read_token_dataset, tokenize_sources
from .token_baselines import positional_digit_bits, positional_unigram_bits, uniform_bits, unigram_bits
from .tracking import RunLog

TEXT_VOCABULARY = 512  # of the tokenizer that is made from the training part's texts
BASELINES = {
    "uniform": "uniform",
    "unigram": "unigram",
    "positional_unigram": "unigram by place in the frame",
    "positional_digits": "digits by place, independent",
}
MODEL = "language model"
PROMPT_SHARE = 0.4  # of a recording that is continued
POOL_BATCHES = 20  # batches that are cut from examples sorted by length


@dataclass(frozen=True)
class Settings:
    """Of a run; what a number means stands beside the command's options."""

    tokenizer: str
    output: str
    sources: tuple[str, ...] = ()
    tokens: str | None = None
    text_tokenizer: str | None = None
    held_out_share: float = 0.1
    max_frames: int = 30
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    embeddings: Literal["digits", "free"] = "digits"
    batch_tokens: int = 4096
    max_steps: int = 2000
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dropout: float = 0.1
    seed: int = 0
    log_every: int = 20
    eval_every: int = 200
    eval_recordings: int = 200
    save_every: int = 200
    clips: int = 4
    jobs: int = 1

    FREE = ("output", "log_every", "save_every", "clips", "jobs")  # may change when a run goes on

    def __post_init__(self):
        """Check ranges.

        Raises:
            ValueError: If a value lies outside its range; names it.
        """
        if bool(self.sources) == (self.tokens is not None):
            raise ValueError("`sources` or `tokens` must be given, and not both")
        for name in ("max_frames", "hidden_size", "num_layers", "num_heads", "batch_tokens", "max_steps", "log_every",
                     "eval_every", "eval_recordings", "save_every", "jobs"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if not 0.0 < self.held_out_share < 0.5:
            raise ValueError(f"`held_out_share` must lie in (0, 0.5), got {self.held_out_share}")
        if self.hidden_size % (2 * self.num_heads):
            raise ValueError(
                f"`hidden_size` must be a multiple of twice `num_heads`, got {self.hidden_size} and {self.num_heads}"
            )


class Example(NamedTuple):
    """A sequence to train or to be judged on."""

    ids: list[int]
    audio_place: int  # of the first audio token in `ids`
    num_audio: int  # audio tokens
    speaker: str
    text: str | None
    name: str


def main(settings: Settings) -> dict[str, Any]:
    """Train, judge, write the report; returns what is in `results.json`.

    Raises:
        ValueError: If the output folder holds another run, a part has no recordings, or a setting does not fit.
        FileNotFoundError: If a source does not exist.
    """
    output = Path(settings.output)
    accelerator = Accelerator()
    main_process = accelerator.is_main_process
    with only_run(output) if main_process else contextlib.nullcontext():
        audio_tokenizer = JepaAudioTokenizer.from_pretrained(settings.tokenizer)
        with accelerator.main_process_first():
            rows = read_tokens(settings, audio_tokenizer)
            parts = split_speakers(rows, settings.held_out_share)
            if main_process:
                prepare_folder(settings, rows, output)
            text_tokenizer = make_text_tokenizer(settings, parts["training"], output / "tokenizer")
        vocabulary = add_audio_tokens(text_tokenizer, audio_tokenizer)
        examples = {
            name: [example for row in part for example in make_examples(row, text_tokenizer, vocabulary, settings)]
            for name, part in parts.items()
        }
        model, best = train(settings, accelerator, examples, vocabulary, text_tokenizer, audio_tokenizer)
        result = {"best": best, **judge(model, examples, parts, vocabulary, audio_tokenizer, settings)}
        if main_process:
            with replacing(output / "results.json") as temporary:
                temporary.write_text(json.dumps(result, indent=2) + "\n")
            with replacing(output / "report.md") as temporary:
                temporary.write_text(report(result))
            write_continuations(model, examples["test"], vocabulary, text_tokenizer, audio_tokenizer, settings)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return result


# Data


def read_tokens(settings: Settings, tokenizer: JepaAudioTokenizer) -> Dataset:
    """Rows of `name`, `speaker`, `text` and `input_ids`, made now or before."""
    if settings.tokens is not None:
        return read_token_dataset(Path(settings.tokens))
    num_proc = settings.jobs if settings.jobs > 1 else None
    return tokenize_sources(settings.sources, tokenizer, Path(settings.output) / "tokens", num_proc)


def split_speakers(rows: Dataset, share: float) -> dict[str, list[dict]]:
    """Rows by part: `test` and `validation`, each of about `share` of the speakers, and `training`.

    Raises:
        ValueError: If a part would be empty.
    """
    parts: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    for row in rows:
        speaker = str(row["speaker"])
        if is_held_out(speaker, share):
            parts["test"].append(row)
        elif is_held_out(f"validation {speaker}", share / (1 - share)):
            parts["validation"].append(row)
        else:
            parts["training"].append(row)
    empty = [name for name, part in parts.items() if not part]
    if empty:
        raise ValueError(f"`held_out_share` = {share} leaves nothing for {' and '.join(empty)}: take another share")
    return parts


def make_examples(
    row: dict, text_tokenizer: PreTrainedTokenizerBase, vocabulary: AudioVocabulary, settings: Settings
) -> Iterator[Example]:
    """A recording as one sequence, with its text; a longer one than `max_frames` as equal parts without."""
    width = vocabulary.tokens_per_frame
    frames = len(row["input_ids"]) // width
    count = math.ceil(frames / settings.max_frames)
    ends = [round(frames * part / count) for part in range(count + 1)]
    for part, (start, end) in enumerate(itertools.pairwise(ends)):
        text = row.get("text") if count == 1 else None
        audio = vocabulary.from_audio(row["input_ids"][start * width : end * width])
        before = [text_tokenizer.bos_token_id, *text_ids(text, text_tokenizer)]
        yield Example(
            before + audio, len(before) + 1, len(audio) - 2, str(row["speaker"]), text or None, f"{row['name']} {part}"
        )


def text_ids(text: str | None, text_tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of a text, without special tokens."""
    return text_tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def make_text_tokenizer(settings: Settings, rows: Sequence[dict], folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of `text_tokenizer`, or one of bytes and their pairs, made from texts; kept in `folder`."""
    if folder.is_dir():
        return AutoTokenizer.from_pretrained(folder)
    if settings.text_tokenizer is not None:
        tokenizer = AutoTokenizer.from_pretrained(settings.text_tokenizer)
        if tokenizer.bos_token_id is None:
            tokenizer.add_special_tokens({"bos_token": "<s>"})
    else:
        bpe = Tokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=TEXT_VOCABULARY,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator((row["text"] for row in rows if row.get("text")), trainer)
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    with replacing(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return AutoTokenizer.from_pretrained(folder)


def prepare_folder(settings: Settings, rows: Dataset, output: Path) -> None:
    """Write the settings, or check that the run to go on is the same, of the same tokens.

    Raises:
        ValueError: If it is another.
    """
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps([row["name"], row["speaker"], row.get("text"), row["input_ids"]]).encode())
    said = json.loads(json.dumps(asdict(settings))) | {"tokens_sha256": digest.hexdigest()}
    path = output / "settings.json"
    if path.exists():
        before = json.loads(path.read_text())
        changed = [
            f"{name}: {before.get(name)!r}, {said[name]!r}"
            for name in said
            if name not in Settings.FREE and before.get(name) != said[name]
        ]
        if changed:
            raise ValueError(
                f"`output`: {output} holds a run with other settings; take another folder, or go on with its own. "
                f"Its settings and yours: {'; '.join(changed)}"
            )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(said, indent=2) + "\n")


def batch_order(lengths: Sequence[int], batch_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Examples of an epoch in batches of at most `batch_tokens` ids, padding included, those of about one length
    together; one that is longer is a batch of its own."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    pool = max(1, round(POOL_BATCHES * batch_tokens / np.mean(lengths)))
    batches: list[list[int]] = []
    for start in range(0, len(order), pool):
        batch: list[int] = []
        for place in sorted(order[start : start + pool].tolist(), key=lambda place: lengths[place]):
            if batch and (len(batch) + 1) * lengths[place] > batch_tokens:
                batches.append(batch)
                batch = []
            batch.append(place)
        batches.append(batch)
    return [batches[place] for place in generator.permutation(len(batches))]


def training_batches(
    examples: Sequence[Example], settings: Settings, process: int, processes: int
) -> Iterator[list[Example]]:
    """This process's batches, without end."""
    lengths = [len(example.ids) for example in examples]
    for epoch in itertools.count():
        batches = batch_order(lengths, settings.batch_tokens, settings.seed, epoch)
        whole = max(len(batches) - len(batches) % processes, 1)
        for batch in batches[:whole][process::processes]:
            yield [examples[place] for place in batch]


def collate(batch: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, each `(batch, length)`; audio tokens and end marks are labels."""
    ids = [torch.tensor(example.ids) for example in batch]
    labels = [
        torch.where(torch.arange(len(row)) < example.audio_place, -100, row)
        for row, example in zip(ids, batch, strict=True)
    ]
    padded = pad_sequence(ids, batch_first=True)
    lengths = torch.tensor([len(row) for row in ids])
    return {
        "input_ids": padded.to(device),
        "attention_mask": (torch.arange(padded.shape[1]) < lengths[:, None]).long().to(device),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100).to(device),
    }


# Model


def make_model(
    settings: Settings, vocabulary: AudioVocabulary, text_tokenizer: PreTrainedTokenizerBase, tokenizer: Any
) -> LlamaForCausalLM:
    """A Llama with weights drawn from the seed; its audio rows are made of digits, if the settings say so."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(text_tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=4 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        attention_dropout=settings.dropout,
        bos_token_id=text_tokenizer.bos_token_id,
        eos_token_id=vocabulary.end_id,
        pad_token_id=text_tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    if settings.embeddings == "digits":
        largest = max(group_levels(tokenizer.levels, tokenizer.group_size), key=math.prod)
        for place, layer in enumerate((model.model.embed_tokens, model.lm_head)):
            share_rows(layer, DigitRows(largest, vocabulary.first_id, seed=settings.seed + place))
    return model


def train(
    settings: Settings,
    accelerator: Accelerator,
    examples: dict[str, list[Example]],
    vocabulary: AudioVocabulary,
    text_tokenizer: PreTrainedTokenizerBase,
    audio_tokenizer: JepaAudioTokenizer,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """The model at its best step, as an ordinary Llama; saved as `model`, with the tokenizer that has the audio.

    Returns:
        The model, and its best step with its bits a token on the validation part.
    """
    output = Path(settings.output)
    checkpoints, best_file = output / "checkpoints", output / "best.safetensors"
    checkpoints.mkdir(exist_ok=True)
    remove_half_written(checkpoints)
    llama = make_model(settings, vocabulary, text_tokenizer, audio_tokenizer)
    optimizer = torch.optim.AdamW(
        llama.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    model, optimizer = accelerator.prepare(llama, optimizer)
    step, best = 0, {"step": 0, "bits": math.inf}
    if checkpoint := next(reversed(list_checkpoints(checkpoints)), None):
        step, best = load_checkpoint(accelerator, checkpoint)
    log = RunLog(accelerator, output, step, settings.max_steps, {}, live=True)
    if accelerator.is_main_process:
        recordings = ", ".join(f"{len(part)} {name}" for name, part in examples.items())
        log.say(f"{llama.num_parameters() / 1e6:.1f}M parameters; examples: {recordings}")
        log.say("from the beginning" if checkpoint is None else f"going on from {checkpoint}")
    order = np.random.default_rng(settings.seed).permutation(len(examples["validation"]))
    watched = [examples["validation"][place] for place in order[: settings.eval_recordings]]
    batches = training_batches(examples["training"], settings, accelerator.process_index, accelerator.num_processes)
    decay = settings.max_steps // 2
    model.train()
    for batch in itertools.islice(batches, step, settings.max_steps):
        share = rate_share(step, min(100, settings.max_steps // 10), decay, settings.max_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * share
        seed_randomness(settings.seed, step, 0, accelerator.process_index)
        loss = model(**collate(batch, accelerator.device)).loss
        accelerator.backward(loss)
        grad_norm = float(accelerator.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        log.advance(step)
        last = step == settings.max_steps
        if step % settings.log_every == 0 or last:
            stop_unless_finite(accelerator, step, loss, grad_norm)
            log.write(step, {"loss/bits": loss.item() / math.log(2), "optim/grad_norm": grad_norm})
        if step % settings.eval_every == 0 or last:
            bits = float(np.concatenate(audio_bits(llama, watched, vocabulary, settings)).mean())
            log.write(step, {"validation/bits": bits})
            if bits < best["bits"]:
                best = {"step": step, "bits": bits}
                if accelerator.is_main_process:
                    with replacing(best_file) as temporary:
                        save_file(llama.state_dict(), temporary)
        if step % settings.save_every == 0 or last:
            save_checkpoint(accelerator, checkpoints, step, best, keep=2)
    log.close()
    accelerator.wait_for_everyone()
    llama.load_state_dict(load_file(best_file, device=str(accelerator.device)))
    if settings.embeddings == "digits":
        for layer in (llama.model.embed_tokens, llama.lm_head):
            fold(layer)
    if accelerator.is_main_process:
        with replacing_model(output / "model") as temporary:
            llama.save_pretrained(temporary)
            text_tokenizer.save_pretrained(temporary)
    return llama.eval(), best


@parametrize.cached()
@torch.no_grad()
def audio_bits(
    model: LlamaForCausalLM, examples: Sequence[Example], vocabulary: AudioVocabulary, settings: Settings
) -> list[np.ndarray]:
    """Bits of each audio token of each example, among the ids that its place in the frame allows: `(frames, width)`."""
    training, width = model.training, vocabulary.tokens_per_frame
    model.eval()
    sizes = torch.tensor(vocabulary.group_sizes, device=model.device)
    legal = torch.arange(vocabulary.num_tokens, device=model.device) < sizes[:, None]  # (width, num_tokens)
    bits: list[np.ndarray] = [np.zeros((0, width))] * len(examples)
    lengths = [len(example.ids) for example in examples]
    for places in batch_order(lengths, settings.batch_tokens, seed=0, epoch=0):
        batch = collate([examples[place] for place in places], model.device)
        del batch["labels"]
        hidden = model.model(**batch).last_hidden_state
        for row, place in enumerate(places):
            _, first, count, *_ = examples[place]
            target = batch["input_ids"][row, first : first + count] - vocabulary.first_id
            logits = model.lm_head(hidden[row, first - 1 : first - 1 + count]).float()
            logits = logits[:, vocabulary.first_id : vocabulary.first_id + vocabulary.num_tokens]
            logits = logits.view(-1, width, vocabulary.num_tokens).masked_fill(~legal, -torch.inf)
            nats = F.cross_entropy(logits.flatten(0, 1), target, reduction="none")
            bits[place] = nats.view(-1, width).double().cpu().numpy() / math.log(2)
    model.train(training)
    return bits


# Judgement


def judge(
    model: LlamaForCausalLM,
    examples: dict[str, list[Example]],
    parts: dict[str, list[dict]],
    vocabulary: AudioVocabulary,
    tokenizer: JepaAudioTokenizer,
    settings: Settings,
) -> dict[str, Any]:
    """Cross-entropy of the model and of the baselines on the test part, in bits a token and bits a second."""
    test, width = examples["test"], vocabulary.tokens_per_frame
    frames = {
        name: np.concatenate([np.array(row["input_ids"], np.int64).reshape(-1, width) for row in part])
        for name, part in parts.items()
    }
    three = (frames["training"], frames["validation"], frames["test"])
    levels, group_size = tokenizer.levels, tokenizer.group_size
    bits = {
        "uniform": np.broadcast_to(uniform_bits(levels, group_size), frames["test"].shape),
        "unigram": unigram_bits(*three, vocabulary.num_tokens),
        "positional_unigram": positional_unigram_bits(*three, vocabulary.group_sizes),
        "positional_digits": positional_digit_bits(*three, levels, group_size),
        MODEL: np.concatenate(audio_bits(model, test, vocabulary, settings)),
    }
    owners = np.repeat(np.arange(len(test)), [example.num_audio // width for example in test])
    told = np.array([example.text is not None for example in test])[owners]
    result: dict[str, Any] = {
        "settings": asdict(settings),
        "frames": {name: len(part) for name, part in frames.items()},
        "speakers": {name: len({str(row["speaker"]) for row in part}) for name, part in parts.items()},
        "token_rate": tokenizer.token_rate,
        "bits": {name: float(values.mean()) for name, values in bits.items()},
        "bits_by_place": {name: values.mean(axis=0).tolist() for name, values in bits.items()},
    }
    speakers = sorted({example.speaker for example in test})
    of_speaker = np.array([speakers.index(example.speaker) for example in test])[owners]
    counts = np.bincount(of_speaker, minlength=len(speakers)) * width
    if len(speakers) > 1:
        result["gain"] = {}
        for name in BASELINES:
            gained = np.bincount(of_speaker, (bits[name] - bits[MODEL]).sum(axis=1), len(speakers))
            share = functools.partial(_share_of, gained, counts)
            low, high = bootstrap_interval(share, len(speakers))
            result["gain"][name] = {"bits": float(gained.sum() / counts.sum()), "interval": [low, high]}
    if told.any():
        untold = [
            example._replace(ids=[example.ids[0], *example.ids[example.audio_place - 1 :]], audio_place=2)
            for example in test
            if example.text is not None
        ]
        without = np.concatenate(audio_bits(model, untold, vocabulary, settings))
        result["text"] = {
            "frames": int(told.sum()),
            "bits": float(bits[MODEL][told].mean()),
            "bits_without": float(without.mean()),
        }
    return result


def _share_of(gained: np.ndarray, counts: np.ndarray, drawn: np.ndarray) -> float:
    return float(gained[drawn].sum() / counts[drawn].sum())


def report(result: dict[str, Any]) -> str:
    """The results in Markdown."""
    rate = result["token_rate"]
    lines = [[BASELINES.get(name, name), f"{bits:.3f}", f"{bits * rate:.1f}"] for name, bits in result["bits"].items()]
    counts = ", ".join(
        f"{name} {result['frames'][name]} frames of {result['speakers'][name]} speakers" for name in result["frames"]
    )
    text = markdown_table(["on unseen speakers", "bits a token", "bits a second"], lines) + f"\n\n{counts}.\n"
    if "gain" in result:
        gain = result["gain"]["positional_unigram"]
        low, high = gain["interval"]
        verdict = "beats" if low > 0 else "does not beat"
        text += (
            f"\nThe language model {verdict} the unigram by place: it saves {gain['bits']:.3f} bits a token "
            f"(95 % interval over speakers {low:.3f} to {high:.3f})"
        )
        digits = result["gain"]["positional_digits"]
        text += (
            f"; against digits by place it saves {digits['bits']:.3f} "
            f"({digits['interval'][0]:.3f} to {digits['interval'][1]:.3f}).\n"
        )
    if "text" in result:
        of_text = result["text"]
        text += (
            f"\nRecordings with text ({of_text['frames']} frames): {of_text['bits']:.3f} bits a token after their "
            f"text, {of_text['bits_without']:.3f} without.\n"
        )
    return text


@torch.inference_mode()
def write_continuations(
    model: LlamaForCausalLM,
    examples: Sequence[Example],
    vocabulary: AudioVocabulary,
    text_tokenizer: PreTrainedTokenizerBase,
    audio_tokenizer: JepaAudioTokenizer,
    settings: Settings,
) -> None:
    """Write sound of `clips` test recordings: as they are, continued from their beginning, and said from their text."""
    folder = Path(settings.output) / "continuations"
    folder.mkdir(exist_ok=True)
    width = vocabulary.tokens_per_frame
    chosen: list[Example] = []
    for example in sorted(examples, key=lambda example: (-example.num_audio, example.name)):
        if example.speaker not in {other.speaker for other in chosen}:
            chosen.append(example)
    with_text = [example for example in examples if example.text is not None]
    for number, example in enumerate([*chosen[: settings.clips], *with_text[: settings.clips]]):
        frames = example.num_audio // width
        prompt_frames = max(1, round(PROMPT_SHARE * frames))
        spoken = number >= len(chosen[: settings.clips])
        end = example.audio_place + (0 if spoken else prompt_frames * width)
        torch.manual_seed(settings.seed + number)
        prompt = torch.tensor([example.ids[:end]], device=model.device)
        legal = AudioLogitsProcessor(vocabulary, max_frames=max(frames, prompt_frames + 1))
        ids = model.generate(  # type: ignore[misc]
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            max_new_tokens=settings.max_frames * width + 1,
            logits_processor=LogitsProcessorList([legal]),
            eos_token_id=vocabulary.end_id,
            pad_token_id=text_tokenizer.pad_token_id or vocabulary.end_id,
        )[0]
        sounds = {"spoken" if spoken else "continued": ids, "original": example.ids}
        for kind, sequence in sounds.items():
            samples = audio_tokenizer.decode_audio(vocabulary.to_audio(sequence))
            with replacing(folder / f"{number:02d}_{kind}.wav") as temporary:
                soundfile.write(temporary, samples, audio_tokenizer.sampling_rate)
        told = {"name": example.name, "text": example.text, "prompt_frames": 0 if spoken else prompt_frames}
        with replacing(folder / f"{number:02d}.json") as temporary:
            temporary.write_text(json.dumps(told, ensure_ascii=False) + "\n")


def command(
    tokenizer: Annotated[str, typer.Option(help="Checkpoint that tokenizes: a folder or Hub id.")],
    output: Annotated[str, typer.Option(help="Folder to write to, or of the run to go on.")],
    sources: Annotated[list[str] | None, typer.Argument(help="Tar files and folders of recordings.")] = None,
    tokens: Annotated[str | None, typer.Option(help="In their place: a folder of Parquet files with tokens.")] = None,
    text_tokenizer: Annotated[str | None, typer.Option(help="Folder or Hub id; made from the texts if absent.")] = None,
    held_out_share: Annotated[float, typer.Option(help="Of the speakers, to test; as many to validate.")] = 0.1,
    max_frames: Annotated[int, typer.Option(help="Of a sequence; longer recordings are cut.")] = 30,
    hidden_size: Annotated[int, typer.Option(help="Width of the model.")] = 256,
    num_layers: Annotated[int, typer.Option(help="Layers of the model.")] = 4,
    num_heads: Annotated[int, typer.Option(help="Attention heads.")] = 4,
    embeddings: Annotated[str, typer.Option(help="digits: rows are sums over digits; free: one an id.")] = "digits",
    batch_tokens: Annotated[int, typer.Option(help="Ids of a batch, padding included.")] = 4096,
    max_steps: Annotated[int, typer.Option(help="Steps of the optimizer.")] = 2000,
    learning_rate: Annotated[float, typer.Option(help="After warm-up; falls to 0 in the second half.")] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="Of attention.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 0,
    log_every: Annotated[int, typer.Option(help="Steps.")] = 20,
    eval_every: Annotated[int, typer.Option(help="Steps between looks at the validation part.")] = 200,
    eval_recordings: Annotated[int, typer.Option(help="Of the validation part that are looked at.")] = 200,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 200,
    clips: Annotated[int, typer.Option(help="Recordings to continue, and as many to say from text.")] = 4,
    jobs: Annotated[int, typer.Option(help="Processes that tokenize.")] = 1,
) -> None:
    """Train a language model on tokens of speech, and judge it on speakers that it never heard."""
    values = {**locals(), "sources": tuple(sources or ())}
    transformers_logging.disable_progress_bar()
    if embeddings not in ("digits", "free"):
        raise typer.BadParameter(f"`embeddings` must be digits or free, got {embeddings!r}")
    try:
        result = main(Settings(**values))
    except (ValueError, FileNotFoundError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    typer.echo(report(result))


if __name__ == "__main__":
    typer.run(command)
