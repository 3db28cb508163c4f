import unittest
from unittest.mock import patch

from modeling_jepa_daam import JepaDaamEncoderModel

from ..test_modeling_common import ModelTesterMixin
from .tester import JepaDaamModelTester, with_integer_masks


class JepaDaamEncoderModelTest(ModelTesterMixin, unittest.TestCase):
    all_model_classes = (JepaDaamEncoderModel,)
    test_resize_embeddings = False  # raw audio: there is no embedding matrix
    test_can_init_all_missing_weights_before_2023 = True  # else skipped: our files carry no copyright year

    def setUp(self):
        # Not training: features carry no loss.
        self.model_tester = JepaDaamModelTester(self, frames=7)

    def test_model_outputs_equivalence(self):
        with patch.object(self, "all_model_classes", (with_integer_masks(JepaDaamEncoderModel),)):
            super().test_model_outputs_equivalence()

    @unittest.skip("The input is a waveform: there are no input embeddings.")
    def test_model_get_set_embeddings(self):
        pass
