"""Quality that the shipped model must reach, and quality that it aims at, beside what was measured.

Figures are those of `report.summary`: an `Estimate` as a dict, by set, system and field.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bars import BY_NAME
from ..markdown import markdown_table
from ..report import ORIGINAL, Estimate, format_cell

FIFTEEN = "librispeech_15"  # 15 LibriSpeech clips, of which reconstructions by other codecs are published
READ, NONNATIVE = "read_en", "nonnative_en"
JUDGES_OF_SETS = {  # what the targets of each set need; `voice` and `phones` take little time
    FIFTEEN: ("speaker", "words", "voice", "moonshine", "phones"),
    READ: ("opinion", "words", "voice", "moonshine"),
    NONNATIVE: ("words", "voice"),
}
MAX_MEGABYTES = 40.0
SPEED_RATIO = 10.0  # times the speed of Mimi
MEAN_INFORMATION, LEAST_INFORMATION = 0.85, 0.60  # share of log2(levels) that the entropy of an FSQ index reaches
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Target:
    """One figure to reach, in the unit of its column in reports.

    Args:
        where: Set of recordings.
        key: Field of the summary.
        before: Value of the first release.
        must: Value that a release needs.
        aim: Value beyond that.
    """

    where: str
    key: str
    before: float
    must: float
    aim: float


TARGETS = (
    Target(FIFTEEN, "moonshine_word_errors", 16.6, 12.0, 7.0),
    Target(FIFTEEN, "word_errors", 21.7, 17.0, 11.0),
    Target(READ, "moonshine_word_errors", 31.1, 23.0, 15.0),
    Target(READ, "word_errors", 36.0, 28.0, 18.0),
    Target(NONNATIVE, "word_errors", 49.0, 44.0, 32.0),
    Target(FIFTEEN, "voice_similarity", 0.866, 0.90, 0.95),
    Target(FIFTEEN, "speaker_similarity", 0.480, 0.52, 0.70),
    Target(FIFTEEN, "stoi", 0.879, 0.89, 0.92),
    Target(FIFTEEN, "pesq", 1.73, 1.80, 2.38),
    Target(READ, "dnsmos", 2.84, 2.9, 3.0),
)


@dataclass(frozen=True)
class Outcome:
    """One line of the table, as text; `value` is empty where nothing was measured.

    Args:
        where: Set of recordings; empty for figures of the model itself.
        figure: Title.
        original: Value of the originals.
        before: Value of the first release.
        value: Measured value, with its interval.
        must: Value that a release needs.
        aim: Value beyond that.
        verdict: "aim met", "met", "not met", or why it was not measured.
    """

    where: str
    figure: str
    original: str
    before: str
    value: str
    must: str
    aim: str
    verdict: str

    @property
    def met(self) -> bool:
        """Whether the model reaches what a release needs."""
        return self.verdict in ("met", "aim met")


def verdict_of(value: float, must: float, aim: float | None, better: int) -> str:
    """Compare a value, before it is rounded, with what it has to reach; `better`: 1 if more is better, -1 if less."""
    if aim is not None and better * (value - aim) >= 0:
        return "aim met"
    return "met" if better * (value - must) >= 0 else "not met"


def quality_outcomes(
    sets: Mapping[str, Mapping[str, Mapping[str, Any]]], name: str, clips: Mapping[str, int]
) -> list[Outcome]:
    """The outcome of each of `TARGETS`.

    Args:
        sets: Estimates by set, system and field, as in `report.summary`.
        name: The system.
        clips: Number of clips of each set: figures of fewer clips count as not measured.
    """
    outcomes = []
    for target in TARGETS:
        figure = BY_NAME[target.key]
        systems = sets.get(target.where, {})
        found = _estimate(systems.get(name, {}), target.key)
        original = _estimate(systems.get(ORIGINAL, {}), target.key)
        whole = clips.get(target.where, 0)
        if found is None:
            verdict = NOT_MEASURED
        elif found.clips < whole:
            verdict = f"{NOT_MEASURED}: {found.clips} of {whole} clips"
        else:
            verdict = verdict_of(found.value, target.must, target.aim, figure.better)
        before, must, aim = (f"{value:.{figure.digits}f}" for value in (target.before, target.must, target.aim))
        cells = [format_cell(each, figure, each.clips) if each else "" for each in (original, found)]
        outcomes.append(Outcome(target.where, figure.title, cells[0], before, cells[1], must, aim, verdict))
    return outcomes


def information_outcomes(entropies: Sequence[float] | None, levels: Sequence[int]) -> list[Outcome]:
    """Whether every FSQ index carries information on `READ`: the entropy as a share of `log2(levels)`.

    Args:
        entropies: Of each index (bits); None if they were not measured.
        levels: Number of values of each index.

    Raises:
        ValueError: If the two are not of one length.
    """
    titles = ("information of FSQ indices (%)", "information of the least FSQ index (%)")
    wanted = (MEAN_INFORMATION, LEAST_INFORMATION)
    if entropies is None:
        return [_model_outcome(title, None, must, 100, 0, 1, READ) for title, must in zip(titles, wanted, strict=True)]
    if len(entropies) != len(levels):
        raise ValueError(f"`entropies` must be {len(levels)}, one of each FSQ index, got {len(entropies)}")
    capacities = [math.log2(level) for level in levels]
    shares = (sum(entropies) / sum(capacities), min(e / c for e, c in zip(entropies, capacities, strict=True)))
    return [
        _model_outcome(title, share, must, 100, 1, 1, READ)
        for title, share, must in zip(titles, shares, wanted, strict=True)
    ]


def size_outcome(num_bytes: int | None) -> Outcome:
    """Whether the weights are small enough; None if the system has none."""
    megabytes = None if num_bytes is None else num_bytes / 1e6
    return _model_outcome("size of the weights (MB)", megabytes, MAX_MEGABYTES, 1, 1, -1)


def speed_outcomes(ratios: Mapping[str, float]) -> list[Outcome]:
    """Whether the model is fast enough.

    Args:
        ratios: Its speed over Mimi's, by direction ("encode", "decode"); empty if not measured.
    """
    return [
        _model_outcome(f"{direction}: speed over Mimi's", ratios.get(direction), SPEED_RATIO, 1, 1, 1)
        for direction in ("encode", "decode")
    ]


def outcome_table(outcomes: Sequence[Outcome]) -> str:
    """Markdown, a line an outcome."""
    head = ["set", "figure", "original", "first release", "this model", "must", "aim", "verdict"]
    rows = [[o.where, o.figure, o.original, o.before, o.value, o.must, o.aim, o.verdict] for o in outcomes]
    return markdown_table(head, rows)


def _model_outcome(
    title: str, value: float | None, must: float, scale: float, digits: int, better: int, where: str = ""
) -> Outcome:
    limit = f"{scale * must:.{digits}f}".removesuffix(".0")
    if value is None:
        return Outcome(where, title, "", "", "", limit, "", NOT_MEASURED)
    cell = f"{scale * value:.{digits}f}"
    return Outcome(where, title, "", "", cell, limit, "", verdict_of(value, must, None, better))


def _estimate(figures: Mapping[str, Any], key: str) -> Estimate | None:
    return Estimate(**figures[key]) if key in figures else None
