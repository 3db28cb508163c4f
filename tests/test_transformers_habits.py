"""What users of transformers' other audio models and tokenizers are used to."""

import io

import numpy as np
import pytest
import soundfile
import torch
from datasets import Dataset, Features, List, Value
from transformers import Trainer, TrainingArguments, pipeline

from modeling_jepa_daam import (
    JepaAudioTokenizer,
    JepaDaamEncoderModel,
    JepaDaamFeatureExtractor,
    JepaDaamForPreTraining,
    JepaDaamModel,
)
from tests.conftest import noise

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
CHAT = [{"role": "user", "content": "<|audio_1|><|audio_2|><|audio_3|>"}]
SAMPLES, WIDTH = noise(1000), 3


def test_a_chat_template_renders_to_ids(tiny_tokenizer):
    tiny_tokenizer.chat_template = TEMPLATE
    assert tiny_tokenizer.apply_chat_template(CHAT)["input_ids"] == [1, 2, 3]
    assert tiny_tokenizer.apply_chat_template(CHAT, return_dict=False) == [1, 2, 3]
    assert tiny_tokenizer.apply_chat_template(CHAT, tokenize=False) == CHAT[0]["content"]
    batch = tiny_tokenizer.apply_chat_template([CHAT, CHAT], return_tensors="pt")
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 3]]
    with pytest.raises(ValueError, match="`text` must be made of .* got 'Hello'"):
        tiny_tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    assert len(tiny_tokenizer(SAMPLES, 24000)["input_ids"]) == 17 * WIDTH  # audio again


@pytest.mark.parametrize("truncation", [True, "longest_first", "only_first"])
def test_truncation_cuts_whole_frames_at_its_side(tiny_folder, truncation):
    for side, kept in (("right", slice(2 * WIDTH)), ("left", slice(-2 * WIDTH, None))):
        tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder, truncation_side=side)
        ids = tokenizer(SAMPLES, 24000)["input_ids"]
        assert tokenizer(SAMPLES, 24000, truncation=truncation, max_length=2 * WIDTH + 1)["input_ids"] == ids[kept]


@pytest.mark.parametrize("truncation", [False, "do_not_truncate"])
def test_no_truncation(tiny_tokenizer, truncation):
    assert len(tiny_tokenizer(SAMPLES, 24000, truncation=truncation, max_length=6)["input_ids"]) == 17 * WIDTH


def test_the_longest_input_of_the_model(tiny_folder, tiny_tokenizer):
    tokenizer = JepaAudioTokenizer.from_pretrained(tiny_folder, model_max_length=60)
    assert len(tokenizer(SAMPLES, 24000, padding="max_length")["input_ids"]) == 60
    tokenizer.model_max_length = 7
    assert len(tokenizer(SAMPLES, 24000, truncation=True)["input_ids"]) == 6
    with pytest.raises(ValueError, match="`max_length` must be given with `truncation=True`"):
        tiny_tokenizer(SAMPLES, 24000, truncation=True)
    with pytest.raises(ValueError, match="`truncation` must be a bool or one of .*, got 'middle'"):
        tiny_tokenizer(SAMPLES, 24000, truncation="middle", max_length=6)


class Recordings(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"input_values": torch.tensor(noise(600, seed=index))[None]}


def test_trainer_reports_the_loss_of_an_evaluation(tiny_folder, tmp_path):
    model = JepaDaamForPreTraining.from_pretrained(tiny_folder)
    arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, dataloader_pin_memory=False)
    evaluated = Trainer(model, arguments, eval_dataset=Recordings()).evaluate()
    assert 0.0 < evaluated["eval_loss"] < 100.0
    assert model(Recordings()[0]["input_values"][None], return_loss=False).loss is None


def test_a_pipeline_of_features_says_what_to_pass(tiny_folder, tiny_tokenizer):
    model = JepaDaamEncoderModel.from_pretrained(tiny_folder)
    extract = pipeline("feature-extraction", model=model, tokenizer=tiny_tokenizer)
    with pytest.raises(TypeError, match="takes a feature extractor's output, not a tokenizer's"):
        extract([soundfile_of(SAMPLES)])
    features = JepaDaamFeatureExtractor.from_pretrained(tiny_folder)(SAMPLES, 24000, return_tensors="pt")
    assert model(**features).last_hidden_state.shape == (1, 17, 16)


def test_an_extractor_pads_what_it_made(tiny_folder):
    extractor = JepaDaamFeatureExtractor.from_pretrained(tiny_folder)
    waveforms = [noise(100), noise(300, seed=1)]
    expected = extractor(waveforms, 24000, return_tensors="np")
    single = [{name: value[0] for name, value in extractor(samples, 24000).items()} for samples in waveforms]
    for features in (single, {name: [each[name] for each in single] for name in single[0]}):
        padded = extractor.pad(features, return_tensors="np")
        assert padded.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(padded[name], value)
    plain = extractor.pad([{"input_values": samples} for samples in waveforms], return_tensors="np")
    assert plain["input_values"].shape == plain["attention_mask"].shape == (2, 300)
    with pytest.raises(ValueError, match="`truncation` is not for features of shape"):
        extractor.pad(single, truncation=True)


def soundfile_of(samples: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    soundfile.write(file, samples, 24000, format="WAV", subtype="FLOAT")
    file.seek(0)
    return file


def test_an_open_file_is_read(tiny_tokenizer, tiny_folder):
    expected = tiny_tokenizer(SAMPLES, 24000)["input_ids"]
    assert tiny_tokenizer(soundfile_of(SAMPLES))["input_ids"] == expected
    assert tiny_tokenizer([soundfile_of(SAMPLES)])["input_ids"] == [expected]
    extractor = JepaDaamFeatureExtractor.from_pretrained(tiny_folder)
    assert extractor(soundfile_of(SAMPLES))["input_values"][0].shape == (1, 1020)
    with pytest.raises(TypeError, match="`audio` must be open in binary mode, but gives str"):
        tiny_tokenizer(io.StringIO("no sound"))


@pytest.mark.parametrize("dtype", ["int16", "int32"])
def test_a_column_of_pcm(tiny_tokenizer, dtype):
    pcm = (SAMPLES.astype(np.float64) * np.iinfo(dtype).max).astype(dtype)
    dataset = Dataset.from_dict({"audio": [pcm]}, features=Features({"audio": List(Value(dtype))}))
    mapped = dataset.map(tiny_tokenizer.tokenize_batch, batched=True, fn_kwargs={"sampling_rate": 24000})
    assert mapped[0]["input_ids"] == tiny_tokenizer(pcm, 24000)["input_ids"]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable:FutureWarning")  # its name in transformers 5
def test_what_has_no_activation_checkpointing_says_so(tiny_folder):
    for kind in (JepaDaamModel, JepaDaamEncoderModel, JepaDaamForPreTraining):
        with pytest.raises(ValueError, match=f"{kind.__name__} does not support .*checkpointing"):
            kind.from_pretrained(tiny_folder).gradient_checkpointing_enable()
