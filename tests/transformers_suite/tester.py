"""A tiny configuration and inputs for it."""

import os

import torch
from transformers.testing_utils import torch_device

from modeling_jepa_daam import JepaDaamConfig

from ..test_modeling_common import floats_tensor

HOP = 4 * 3 * 2

# JEPA_VARIANT=1: the branches that the default configuration does not take.
VARIANT = {}
if os.environ.get("JEPA_VARIANT"):
    VARIANT = {"daam_in_conformer": True, "daam_in_decoder": True, "mask_position": "before_conformer", "group_size": 3}


class JepaDaamModelTester:
    def __init__(self, parent, frames, is_training=False, batch_size=3):
        self.parent = parent
        self.batch_size = batch_size
        self.is_training = is_training
        self.seq_length = frames
        self.samples = frames * HOP - 5  # the last frame is partly padding
        self.hidden_size = 16
        self.num_hidden_layers = 2
        self.num_attention_heads = 2

    def get_config(self):
        return JepaDaamConfig(
            downsampling_ratios=(4, 3, 2),
            encoder_channels=(4, 4, 6, 8),
            encoder_residual_blocks=(1, 1, 1),
            encoder_kernel_sizes=(3, 3, 3),
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=32,
            conv_kernel_size=3,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            predictor_hidden_size=16,
            predictor_num_hidden_layers=2,
            predictor_num_attention_heads=2,
            predictor_intermediate_size=32,
            decoder_channels=(8, 6, 4, 4),
            decoder_kernel_sizes=((3,), (3,), (3,)),
            chunk_frames=8,
            **VARIANT,
        )

    def prepare_config_and_inputs_for_common(self):
        # floats_tensor draws from [0, scale): centred, so that samples fill [-1, 1].
        input_values = 2.0 * floats_tensor([self.batch_size, 1, self.samples], scale=1.0) - 1.0
        # The first row, which the batching test takes out by itself, is padded by more than a frame.
        padding_mask = torch.ones(self.batch_size, self.samples, dtype=torch.int64, device=torch_device)
        padding_mask[0, self.samples - 2 * HOP - 3 :] = 0
        return self.get_config(), {"input_values": input_values, "padding_mask": padding_mask}


def with_integer_masks(model_class, ignored=()):
    """The class for `test_model_outputs_equivalence`: that test subtracts every output, which torch refuses for bool.

    `ignored` names arguments that the test passes without asking whether `forward` has them.
    """

    class WithIntegerMasks(model_class):
        _auto_class = None

        def forward(self, *args, return_dict=True, **kwargs):
            kwargs = {name: value for name, value in kwargs.items() if name not in ignored}
            outputs = super().forward(*args, return_dict=return_dict, **kwargs)

            def cast(value):
                return value.int() if isinstance(value, torch.Tensor) and value.dtype == torch.bool else value

            if isinstance(outputs, tuple):
                return tuple(cast(value) for value in outputs)
            return type(outputs)(**{name: cast(value) for name, value in outputs.items()})

    return WithIntegerMasks
