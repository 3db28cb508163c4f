import json

import pytest

from tests.conftest import ROOT
from tests.librilight import recordings
from training.config import CodecConfig, load_config
from training.tracking import read_metrics
from training.train_tokenizer import main

STEPS = 600


@pytest.mark.slow
def test_the_small_codec_learns_22_seconds_by_heart(tmp_path):
    """Through real tokens: encoder, quantizer, packing and decoder together can carry speech."""
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text(
        "".join(json.dumps({"path": str(path)}) + "\n" for row in recordings().values() for path in row)
    )
    changes = ["data.format=manifest", f"data.sources=[{manifest}]", "data.held_out_share=0", f"run.max_steps={STEPS}"]
    changes += [f"run.output={tmp_path / 'run'}", "run.save_every=1000", f"run.eval_every={STEPS}", "run.eval_clips=7"]
    main(load_config(CodecConfig, ROOT / "training" / "configs" / "codec_small.yaml", changes))
    last = [entry for entry in read_metrics(tmp_path / "run" / "metrics.jsonl") if "seen/stoi" in entry][-1]
    assert last["seen/stoi"] > 0.85
    assert last["seen/mel_distance"] < 0.5 * last["seen/mel_distance_of_constant"]
    assert last["tokens/digits_never_change"] == 0
    assert last["tokens/digit_entropy_bits"] > 1.5
