"""The launch configurations that cannot run on the machine of the tests are at least ones that Accelerate reads."""

import json

import pytest
from accelerate.commands.config.config_args import load_config_from_file

from tests.conftest import ROOT

LAUNCH = ROOT / "training" / "configs" / "accelerate"


@pytest.mark.parametrize(
    ("name", "distributed_type", "mixed_precision", "num_processes"),
    [
        ("cpu", "NO", "no", 1),
        ("one_gpu", "NO", "bf16", 1),
        ("two_gpus_fp16", "MULTI_GPU", "fp16", 2),
        ("two_gpus_bf16", "MULTI_GPU", "bf16", 2),
        ("two_gpus_zero2", "DEEPSPEED", "no", 2),
    ],
)
def test_accelerate_reads_the_launch_configuration(name, distributed_type, mixed_precision, num_processes):
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert config.distributed_type == distributed_type
    assert config.num_processes == num_processes
    if distributed_type == "DEEPSPEED":
        zero = json.loads((ROOT / config.deepspeed_config["deepspeed_config_file"]).read_text())
        assert zero["zero_optimization"]["stage"] == 2
        # bf16.enabled would make the target encoder bfloat16, in which an average of 0.996 never moves.
        assert not zero["bf16"]["enabled"]
        assert zero["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    else:
        assert config.mixed_precision == mixed_precision
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == {
        "cpu", "one_gpu", "two_gpus_fp16", "two_gpus_bf16", "two_gpus_zero2",
    }  # fmt: skip
