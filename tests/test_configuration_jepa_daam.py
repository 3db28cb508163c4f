import ast
import json

import pytest

from modeling_jepa_daam import JepaDaamConfig
from tests.conftest import HUB_CONFIGS, ROOT, TINY


def test_the_papers_rates():
    config = JepaDaamConfig()
    assert config.hop_length == 8 * 8 * 5 * 5 * 6 == 9600
    assert config.frame_rate == 2.5
    assert config.tokens_per_frame == 19
    assert config.token_rate == 47.5
    assert config.vocab_size == 16384
    assert config.bitrate_bps == 640.0


def test_levels_repeat_over_the_dimensions():
    config = JepaDaamConfig(fsq_levels=(8, 5, 5), hidden_size=16, num_attention_heads=2, group_size=3)
    assert config.levels == (8, 5, 5) * 5 + (8,)
    assert config.vocab_size == 200
    assert config.tokens_per_frame == 6


def test_saving_and_loading_keeps_every_field(tmp_path):
    config = JepaDaamConfig(**TINY)
    config.save_pretrained(tmp_path)
    loaded = JepaDaamConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.digest == config.digest
    assert isinstance(loaded.downsampling_ratios, tuple)
    assert isinstance(loaded.decoder_kernel_sizes[0], tuple)


def test_unknown_keys_are_refused_also_from_a_file(tmp_path):
    with pytest.raises(ValueError, match="unknown configuration keys: `hidden_sise`, `stride`"):
        JepaDaamConfig(stride=2, hidden_sise=3)
    JepaDaamConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "strides": [2]}))
    with pytest.raises(ValueError, match="unknown configuration keys: `strides`"):
        JepaDaamConfig.from_pretrained(tmp_path)


def test_what_tools_hang_on_a_configuration_is_not_saved(tmp_path):
    config = JepaDaamConfig(**TINY)
    config.use_cache = False  # as transformers' Trainer does
    config.save_pretrained(tmp_path)
    assert JepaDaamConfig.from_pretrained(tmp_path).digest == config.digest


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "128"}, "hidden_size"),
        ({"downsampling_ratios": (8, 1, 5, 5, 6)}, "`downsampling_ratios` must be at least 2"),
        ({"downsampling_ratios": ()}, "`downsampling_ratios` must not be empty"),
        (
            {"downsampling_ratios": (8, 8)},
            "`encoder_residual_blocks` must have 2 entries, as many as the 2 `downsampling_ratios`, got 5",
        ),
        ({"encoder_channels": (1, 2)}, "`encoder_channels` must have 6 entries"),
        ({"decoder_channels": (1, 2)}, "`decoder_channels` must have 6 entries"),
        (
            {"decoder_istft_stages": 2},
            "`decoder_kernel_sizes` must have 3 entries, .*, 2 of them an inverse STFT, got 5",
        ),
        ({"decoder_istft_stages": 6}, "`decoder_istft_stages` must be at most the number of .*, 5, got 6"),
        ({"encoder_kernel_sizes": (3, 3, 3, 3, 4)}, "`encoder_kernel_sizes`.* must be odd"),
        ({"decoder_kernel_sizes": ((3,),) * 4 + ((2,),)}, "`decoder_kernel_sizes`.* must be odd"),
        ({"decoder_kernel_sizes": ((3,),) * 4 + ((),)}, "`decoder_kernel_sizes` must name a kernel"),
        ({"conv_kernel_size": 30}, "`conv_kernel_size` must be odd"),
        ({"num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_attention_heads": 7}, "`hidden_size` must be a multiple of `num_attention_heads`"),
        ({"predictor_num_attention_heads": 7}, "`predictor_hidden_size` must be a multiple"),
        ({"hidden_dropout": 1.5}, r"`hidden_dropout` must lie in \[0, 1\]"),
        ({"mask_ratio": float("nan")}, "`mask_ratio` must lie in"),
        ({"fsq_temperature": 0.0}, "`fsq_temperature` must be positive"),
        ({"daam_alpha": float("inf")}, "`daam_alpha` must be finite"),
        ({"fsq_levels": (4, 1)}, "`fsq_levels` must be at least 2"),
        ({"fsq_levels": ()}, "`fsq_levels` must not be empty"),
        ({"group_size": 0}, "`group_size` must be at least 1"),
        ({"group_size": 32}, "`group_size` must be small enough for 64-bit token ids"),
        ({"chunk_frames": 0}, "`chunk_frames` must be at least 1"),
        (
            {"chunk_frames": 38},
            "`chunk_frames` must last .* 15 s, got 38 of the 9600 samples that `down.* make: 15.2 s",
        ),
        ({"mask_position": "before"}, "mask_position"),
        ({"hidden_size": 2**40}, "`hidden_size` must be at most 1000000"),
        ({"fsq_levels": (4, 10**9)}, "`fsq_levels` must be at most 1000000"),
        ({"sampling_rate": 0}, "`sampling_rate` must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        JepaDaamConfig(**fields)


def test_the_digest_depends_on_what_tokens_mean_and_nothing_else():
    base = JepaDaamConfig(**TINY).digest
    assert JepaDaamConfig(**TINY, hidden_dropout=0, mask_ratio=0.1, ema_decay=0.5, untrained_seed=3).digest == base
    assert JepaDaamConfig(**TINY, fsq_levels=[4], fsq_temperature=1).digest == base
    for change in ({"fsq_temperature": 2.0}, {"group_size": 5}, {"chunk_frames": 8}, {"fsq_levels": (4, 4, 4, 5)}):
        assert JepaDaamConfig(**{**TINY, **change}).digest != base


def test_every_field_is_read_somewhere():
    read = set()
    for path in (ROOT / "modeling_jepa_daam").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                read.add(node.attr)
    assert set(JepaDaamConfig.__annotations__) - {"model_type", "_auto_class"} <= read


@pytest.mark.parametrize("folder", HUB_CONFIGS, ids=lambda folder: folder.name)
def test_every_hub_configuration_keeps_the_papers_tokens(folder):
    config = JepaDaamConfig.from_pretrained(folder)
    assert (config.sampling_rate, config.hop_length) == (24000, 9600)
    assert (config.tokens_per_frame, config.vocab_size, config.bitrate_bps) == (19, 16384, 640.0)
    assert config.chunk_frames / config.frame_rate <= 15
