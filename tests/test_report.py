import json

import numpy as np
import pytest

from training.report import Figure, draw_rate_distortion, estimate, quality_table, summary, write_report

MEAN, RATE = Figure("STOI", "stoi", digits=3), Figure("WER (%)", "word_errors", "words", 1, 100, -1)


def clips(system="ours", seed=0, count=40):
    rng = np.random.default_rng(seed)
    return [
        {"system": system, "clip": f"{n}.flac", "recording": {"set": "read", "speaker": str(n % 4)}}
        | {"seconds": 2.0, "bits": 1200.0, "stoi": rng.normal(0.8, 0.05)}
        | {"word_errors": int(rng.integers(0, 4)), "words": int(rng.integers(4, 20))}
        for n in range(count)
    ]


def test_a_rate_is_a_ratio_of_sums_and_not_a_mean_of_ratios():
    rows = [{"recording": {}, "word_errors": 1, "words": 1}, {"recording": {}, "word_errors": 0, "words": 99}]
    assert estimate(rows, RATE).value == pytest.approx(1.0)


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    rows = clips(count=400)
    values = np.array([row["stoi"] for row in rows])
    told = estimate(rows, MEAN)
    assert told.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / len(values) ** 0.5
    assert told.high - told.value == pytest.approx(half, rel=0.15)
    assert told.value - told.low == pytest.approx(half, rel=0.15)
    assert told == estimate(rows, MEAN)


def test_clips_without_a_figure_are_left_out_and_counted():
    silent = {"system": "ours", "clip": "silence.flac", "recording": {"set": "read"}, "seconds": 1.0, "bits": 5.0}
    rows = [*clips(count=6), silent]
    assert estimate(rows, MEAN).clips == 6
    assert estimate([silent], MEAN) is None
    assert estimate([silent | {"word_errors": 2, "words": 0}], RATE) is None
    assert "(6 clips)" in quality_table(rows)
    assert "(6 clips)" not in quality_table(rows[:-1])


def test_too_few_clips_have_no_interval():
    told = estimate(clips(count=4), MEAN)
    assert (told.low, told.high) == (None, None)
    assert "[" not in quality_table(clips(count=4))


def test_speakers_are_drawn_where_there_are_enough():
    """Clips of a speaker are alike: twenty copies of a clip tell no more than one."""
    rows = clips(count=6)
    copies = [row | {"recording": {"set": "read", "speaker": str(n)}} for n, row in enumerate(rows) for _ in range(20)]
    single = [row | {"recording": {"set": "read"}} for row in rows]
    assert estimate(copies, MEAN).low == pytest.approx(estimate(single, MEAN).low)
    assert estimate(copies, MEAN).high == pytest.approx(estimate(single, MEAN).high)


def test_the_table_has_a_line_a_system_and_only_figures_that_there_are():
    table = quality_table([*clips(), *clips("theirs", seed=1)]).splitlines()
    assert [line.split("|")[1].strip() for line in table] == ["system", "---", "ours", "theirs"]
    head = [cell.strip() for cell in table[0].split("|")[1:-1]]
    assert head == ["system", "clips", "kbit/s", "STOI", "WER (%)"]  # no file was written
    assert "0.600" in table[2]


def test_the_summary_groups_by_fields():
    told = summary([*clips(), *clips("theirs", seed=1)], ["set", "speaker", "source"])
    assert list(told) == ["set", "speaker"]
    assert told["speaker"]["3"]["theirs"]["stoi"]["clips"] == 10
    assert told["set"]["read"]["ours"]["bits"]["value"] == pytest.approx(0.6)


def test_a_report_names_failures_and_what_was_not_measured(tmp_path):
    failures = [{"system": "ours", "clip": "a.flac", "error": "ValueError: no"}]
    tokens = {"ours": {"read": {"digit_entropy_bits": 1.5, "by_place": [1.0, 2.0]}}}
    settings = {"ours": {"system": "jepa:model", "system_files": {"model": 64 * "a"}}}
    (tmp_path / "robustness.md").write_text("| shifted by 1 sample | 9.1 |\n")
    text = write_report(clips(), failures, ["no PESQ"], tokens, settings, tmp_path).read_text()
    assert "| ours | `jepa:model` | aaaaaaaaaaaa |" in text
    assert "| shifted by 1 sample | 9.1 |" in text
    assert "## read: 40 clips, 1.3 minutes, 4 speakers" in text
    assert "Not measured: no PESQ." in text
    assert "| ours | a.flac | ValueError: no |" in text
    assert "| digit entropy bits | 1.5 |" in text
    assert "by place" not in text
    told = json.loads((tmp_path / "summary.json").read_text())
    assert told["failures"] == failures
    assert told["tokens"]["ours"]["read"]["by_place"] == [1.0, 2.0]


def test_a_picture_a_figure(tmp_path):
    originals = [row | {"bits": None} for row in clips("original", seed=2)]
    paths = draw_rate_distortion([*originals, *clips(), *clips("theirs", seed=1)], tmp_path)
    assert [path.name for path in paths] == ["rate_stoi.png", "rate_word_errors.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
