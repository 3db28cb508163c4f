import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from tests.conftest import SPEECH, noise
from training.evaluation import moonshine
from training.evaluation.moonshine import END, START, Moonshine, MoonshineJudge, moonshine_files

RATE = 16000
TEXT = "what was that"  # not what the recording says: the sessions are scripted
# A folder with `moonshine-base-en`, for whoever has the weights.
WEIGHTS = os.environ.get("JEPA_DAAM_JUDGE_WEIGHTS")


class Encoder:
    """The mean of the clip, for a hidden state of one position."""

    def __init__(self):
        self.lengths = []

    def run(self, output_names, feed):
        samples = feed["input_values"]
        assert samples.dtype == np.float32
        self.lengths.append(samples.shape[1])
        return [np.full((1, 1, 4), samples.mean(), np.float32)]


class Decoder:
    """Token n of a script if the caches hold exactly what n steps left; anything else is an error.

    From the second step on, the keys and values of the encoder are empty, as those of the real graph are.
    """

    NAMES = [f"0.{side}.{kind}" for side in ("decoder", "encoder") for kind in ("key", "value")]

    def __init__(self, script, positions=3):
        self.script, self.positions, self.steps = script, positions, 0

    def get_inputs(self):
        past = [SimpleNamespace(name=f"past_key_values.{name}", shape=["b", 2, "t", 5]) for name in self.NAMES]
        others = ("input_ids", "encoder_hidden_states", "use_cache_branch")
        return [*(SimpleNamespace(name=name, shape=[]) for name in others), *past]

    def get_outputs(self):
        return [SimpleNamespace(name=name) for name in ("logits", *(f"present.{name}" for name in self.NAMES))]

    def run(self, output_names, feed):
        step = self.steps
        assert feed["use_cache_branch"].tolist() == [step > 0]
        assert feed["input_ids"].tolist() == [[([START, *self.script])[step]]]
        assert feed["encoder_hidden_states"].shape == (1, 1, 4)
        outputs = {"logits": np.zeros((1, 1, 10), np.float32)}
        outputs["logits"][0, 0, self.script[step]] = 1
        for name in self.NAMES:
            past = feed[f"past_key_values.{name}"]
            assert past.dtype == np.float32
            if ".decoder." in f".{name}":
                assert past.shape == (1, 2, step, 5)
                assert (past == np.arange(step)[:, None]).all()
                outputs[f"present.{name}"] = np.concatenate([past, np.full((1, 2, 1, 5), step, np.float32)], axis=2)
            else:
                assert past.shape == (1, 2, self.positions if step else 0, 5)
                assert (past == 7).all()
                empty = 0 if step else self.positions
                outputs[f"present.{name}"] = np.full((1, 2, empty, 5), 7, np.float32)
        self.steps += 1
        return [outputs[name] for name in output_names]


class Words:
    """Ids as text, without the first and the last."""

    def decode(self, ids, skip_special_tokens):
        assert skip_special_tokens
        return " ".join(str(number) for number in ids if number not in (START, END))


def test_each_step_has_the_token_and_the_cache_of_the_one_before():
    decoder = Decoder([5, 9, 4, END])
    assert Moonshine(Encoder(), decoder, Words())(noise(RATE)) == "5 9 4"
    assert decoder.steps == 4


def test_a_transcript_without_an_end_is_cut_off():
    decoder = Decoder([5] * 100)
    assert Moonshine(Encoder(), decoder, Words())(noise(2 * RATE)) == " ".join(["5"] * (2 * 8 + 8))


def test_a_short_clip_is_padded_to_half_a_second():
    encoder = Encoder()
    for length in (1600, 8000, 20000):
        Moonshine(encoder, Decoder([END]), Words())(noise(length))
    assert encoder.lengths == [8000, 8000, 20000]


def test_a_decoder_of_another_form_is_refused():
    decoder = Decoder([END])
    decoder.get_inputs = lambda: [SimpleNamespace(name="input_ids", shape=[])]
    with pytest.raises(ValueError, match="`decoder` must be merged, with use_cache_branch .*, got input_ids"):
        Moonshine(Encoder(), decoder, Words())


def test_errors_are_counted_after_normalization(monkeypatch):
    pytest.importorskip("jiwer")
    heard = "What, was  THAT?!"
    monkeypatch.setattr(Moonshine, "from_pretrained", lambda model: lambda samples: heard)
    clip = noise(24000)
    figures = MoonshineJudge("folder")(clip, clip, 24000, "what is that")
    assert figures == {
        "moonshine_transcript": TEXT,
        "moonshine_word_errors": 1,
        "moonshine_words": 3,
        "moonshine_character_errors": 2,
        "moonshine_characters": 12,
    }
    assert MoonshineJudge("folder")(clip, clip, 24000, " ... ") == {}


def test_graphs_are_found_in_both_layouts(tmp_path):
    for folder, suffix in (("flat", "ort"), ("hub/onnx", "onnx")):
        (tmp_path / folder).mkdir(parents=True)
        for name in moonshine.GRAPHS:
            (tmp_path / folder / f"{name}.{suffix}").touch()
    for name in ("flat", "hub"):
        with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
            moonshine_files(tmp_path / name)
        (tmp_path / name / "tokenizer.json").touch()
    assert [path.name for path in moonshine_files(tmp_path / "flat")] == [
        "encoder_model.ort",
        "decoder_model_merged.ort",
        "tokenizer.json",
    ]
    assert moonshine_files(tmp_path / "hub")[1] == tmp_path / "hub" / "onnx" / "decoder_model_merged.onnx"
    (tmp_path / "flat" / "encoder_model.ort").unlink()
    with pytest.raises(FileNotFoundError, match=r"no encoder_model.onnx or encoder_model.ort in .*flat"):
        moonshine_files(tmp_path / "flat")


def test_an_ort_graph_with_branches_gives_what_it_gave(tmp_path):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.array([3, -5], np.int8), "weights")

    def branch(name, operation):
        nodes = [
            helper.make_node("Cast", ["weights"], [f"{name}_floats"], to=floats),
            helper.make_node(operation, ["x", f"{name}_floats"], [name]),
        ]
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, floats, [2])])

    node = helper.make_node("If", ["flag"], ["y"], then_branch=branch("a", "Mul"), else_branch=branch("b", "Add"))
    inputs = [
        helper.make_tensor_value_info("x", floats, [2]),
        helper.make_tensor_value_info("flag", onnx.TensorProto.BOOL, [1]),
    ]
    graph = helper.make_graph([node], "graph", inputs, [helper.make_tensor_value_info("y", floats, [2])], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = str(tmp_path / "graph.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session = moonshine._session(tmp_path / "graph.ort")
    for flag, expected in ((True, [6.0, -20.0]), (False, [5.0, -1.0])):
        feed = {"x": np.array([2, 4], np.float32), "flag": np.array([flag])}
        assert session.run(None, feed)[0].tolist() == expected


@pytest.mark.skipif(not WEIGHTS, reason="JEPA_DAAM_JUDGE_WEIGHTS names no folder of weights")
def test_with_the_public_weights_a_copy_is_perfect_and_noise_is_not():
    judge = MoonshineJudge(Path(WEIGHTS) / "moonshine-base-en")
    clip, rate = soundfile.read(SPEECH.with_name("1688-142285-0002.flac"), dtype="float32")
    text = "you don't mean that you thought me so silly"
    figures = judge(clip, clip, rate, text)
    assert (figures["moonshine_word_errors"], figures["moonshine_words"]) == (0, 10)
    assert figures["moonshine_transcript"] == "you don t mean that you thought me so silly"
    lost = judge(clip, noise(len(clip)), rate, text)
    assert lost["moonshine_word_errors"] >= lost["moonshine_words"] - 1
