import unittest
from unittest.mock import patch

import torch
from transformers.testing_utils import torch_device

from modeling_jepa_daam import JepaDaamForPreTraining

from ..test_modeling_common import ModelTesterMixin
from .tester import JepaDaamModelTester, with_integer_masks

RECORDERS = ("output_attentions", "output_hidden_states")


class PretrainingTester(JepaDaamModelTester):
    def prepare_config_and_inputs_for_common(self):
        # Stage 1 draws its mask; fixed, two calls compare (ViTMAE's tests pass `noise` to the same end).
        config, inputs = super().prepare_config_and_inputs_for_common()
        context_mask = torch.ones(self.batch_size, self.seq_length, dtype=torch.int64, device=torch_device)
        context_mask[:, 1:4] = 0
        return config, {**inputs, "context_mask": context_mask}


class PredictionsAsHiddenStates(JepaDaamForPreTraining):
    """The class for `test_eager_matches_sdpa_inference`, which compares the last of an output's `hidden_states`."""

    _auto_class = None

    def forward(self, input_values, context_mask=None):
        return {"hidden_states": (super().forward(input_values, context_mask=context_mask).predictions,)}


class JepaDaamForPreTrainingTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (JepaDaamForPreTraining,)
    additional_model_inputs = ["context_mask"]
    test_resize_embeddings = False  # raw audio: there is no embedding matrix
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: our files carry no copyright year

    def setUp(self):
        self.model_tester = PretrainingTester(self, frames=7, is_training=True)
        if "sdpa_inference" in self._testMethodName:
            self.all_model_classes = (PredictionsAsHiddenStates,)

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs_dict = super()._prepare_for_class(inputs_dict, model_class, return_labels=return_labels)
        return {name: value for name, value in inputs_dict.items() if name not in RECORDERS}

    def test_model_outputs_equivalence(self):
        with patch.object(self, "all_model_classes", (with_integer_masks(JepaDaamForPreTraining, RECORDERS),)):
            super().test_model_outputs_equivalence()

    @unittest.skip("The input is a waveform: there are no input embeddings.")
    def test_model_get_set_embeddings(self):
        pass

    @unittest.skip("Three stacks of attention, none of them the model's output; JepaDaamEncoderModel returns its own.")
    def test_attention_outputs(self):
        pass

    @unittest.skip("Three stacks of hidden states; JepaDaamEncoderModel returns its own.")
    def test_hidden_states_output(self):
        pass

    @unittest.skip("Three stacks of hidden states and attentions; JepaDaamEncoderModel returns its own.")
    def test_retain_grad_hidden_states_attentions(self):
        pass
