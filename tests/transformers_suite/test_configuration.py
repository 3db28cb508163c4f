import unittest

from modeling_jepa_daam import JepaDaamConfig

from ..test_configuration_common import ConfigTester
from .tester import JepaDaamModelTester


class JepaDaamConfigTest(unittest.TestCase):
    """`ConfigTester.run_common_tests`, one step a test so that each failure shows."""

    def setUp(self):
        self.model_tester = JepaDaamModelTester(self, frames=7)
        # has_text_modality: asks for `vocab_size`, which the configuration derives. Lists, as JSON has them.
        self.config_tester = ConfigTester(
            self,
            config_class=JepaDaamConfig,
            has_text_modality=True,
            downsampling_ratios=[4, 3, 2],
            encoder_channels=[4, 4, 6, 8],
            encoder_residual_blocks=[1, 1, 1],
            encoder_kernel_sizes=[3, 3, 3],
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            decoder_channels=[8, 6, 4, 4],
            decoder_kernel_sizes=[[3], [3, 5], [7]],
            mask_position="before_conformer",
            daam_in_conformer=True,
            hidden_dropout=0.0,
            untrained_seed=3,
        )

    def test_run_common_tests(self):
        self.config_tester.run_common_tests()


def _add(name):
    def test(self):
        getattr(self.config_tester, name)()

    setattr(JepaDaamConfigTest, "test_" + name.removeprefix("create_and_test_").removeprefix("check_"), test)


for _name in dir(ConfigTester):
    if _name.startswith(("create_and_test_", "check_")):
        _add(_name)
