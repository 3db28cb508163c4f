import random
import unittest

import numpy as np
import torch

from modeling_jepa_daam import JepaDaamFeatureExtractor

from ..test_sequence_feature_extraction_common import SequenceFeatureExtractionTestMixin


def floats(count):
    return [random.random() for _ in range(count)]


class FeatureExtractionTester:
    batch_size = 7
    min_seq_length = 400
    max_seq_length = 2000
    feature_size = 1
    padding_value = 0.0
    sampling_rate = 24000
    hop_length = 96

    def __init__(self):
        self.seq_length_diff = (self.max_seq_length - self.min_seq_length) // (self.batch_size - 1)

    def prepare_feat_extract_dict(self):
        names = ("feature_size", "padding_value", "sampling_rate", "hop_length")
        return {name: getattr(self, name) for name in names}

    def prepare_inputs_for_common(self, equal_length=False, numpify=False):
        if equal_length:
            inputs = [floats(self.max_seq_length) for _ in range(self.batch_size)]
        else:
            inputs = [floats(n) for n in range(self.min_seq_length, self.max_seq_length, self.seq_length_diff)]
        return [np.asarray(x) for x in inputs] if numpify else inputs


class JepaDaamFeatureExtractorTest(SequenceFeatureExtractionTestMixin, unittest.TestCase):
    feature_extraction_class = JepaDaamFeatureExtractor

    def setUp(self):
        self.feat_extract_tester = FeatureExtractionTester()

    # What every audio extractor of transformers is tested for in a module of its own.

    def test_call(self):
        extractor = self.feature_extraction_class(**self.feat_extract_dict)
        lists = [floats(n) for n in (800, 1000, 1200)]
        arrays = [np.asarray(x) for x in lists]
        one, other = (
            extractor(x, sampling_rate=24000, return_tensors="np").input_values for x in (lists[0], arrays[0])
        )
        np.testing.assert_allclose(one, other, atol=1e-3)
        one, other = (extractor(x, sampling_rate=24000, return_tensors="np").input_values for x in (lists, arrays))
        np.testing.assert_allclose(one, other, atol=1e-3)

    def test_double_precision_pad(self):
        extractor = self.feature_extraction_class(**self.feat_extract_dict)
        array = np.random.rand(100).astype(np.float64)
        for inputs in (array.tolist(), array):
            padded = extractor.pad([{"input_values": inputs}], return_tensors="np")
            assert padded.input_values.dtype == np.float32
            padded = extractor.pad([{"input_values": inputs}], return_tensors="pt")
            assert padded.input_values.dtype == torch.float32
