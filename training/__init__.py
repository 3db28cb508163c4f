"""Training of the jepa-daam models: `python -m training.pretrain_encoder`. Imports the package, never the reverse."""

import os

# oneDNN as PyTorch 2.13 has it computes strided convolutions of up to 16 channels wrongly in bfloat16 on CPUs with AMX
# (results and gradients as far off as they are large). It reads this before its first convolution.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
