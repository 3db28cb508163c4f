"""The bars that a checkpoint has to clear, one after the other, and which of them it does: from figures alone.

An evaluation is what `evidence.describe_evaluations` makes: `name` of the checkpoint, `systems`, `sets`, `tokens`.
"""

from dataclasses import dataclass
from typing import Any

from .report import FIGURES, ORIGINAL, Estimate

DIGIT_ENTROPY_BITS = 1.6  # of 2, mean over digits
CLEAN_SET = "read_en"
BY_NAME = {figure.numerator: figure for figure in FIGURES}


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside what it has to reach.

    Args:
        where: The set.
        what: The figure's title.
        ours: Its value.
        theirs: The other value.
        margin: How much better ours is: negative if it is worse.
        met: Whether that is enough.
    """

    where: str
    what: str
    ours: str
    theirs: str
    margin: str
    met: bool


@dataclass(frozen=True)
class Bar:
    """A claim, and the comparisons that it stands on: without any, it was not measured."""

    letter: str
    claim: str
    comparisons: tuple[Comparison, ...]

    @property
    def verdict(self) -> str:
        """In words."""
        if not self.comparisons:
            return "not measured"
        met = sum(each.met for each in self.comparisons)
        return "met" if met == len(self.comparisons) else f"not met: {met} of {len(self.comparisons)} figures are"


@dataclass(frozen=True)
class Rival:
    """Whom to be better than.

    Args:
        letter: Of the bar.
        claim: In words.
        spec: How its spec begins.
        sets: Where; all sets that have it, if empty.
        figures: Which; fields of the summary.
        level: Whether it is enough that the rival's figure lies within our interval.
    """

    letter: str
    claim: str
    spec: str
    sets: tuple[str, ...]
    figures: tuple[str, ...]
    level: bool = False


RIVALS = (
    Rival(
        "b",
        "better than Codec2 700C",
        "codec2:700C",
        (CLEAN_SET, "nonnative_en"),
        ("stoi", "pesq", "dnsmos", "word_errors"),
    ),
    Rival(
        "c",
        "better than Opus DRED, quality 8",
        "folder:eval_opus_dred_q8",
        (CLEAN_SET,),
        ("stoi", "pesq", "speaker_similarity", "word_errors"),
    ),
    Rival(
        "d",
        "level with FlexiCodec (its figure lies within our 95 % interval, or ours is better; errors: the original's)",
        "folder:flexicodec_640bps",
        (),
        ("pesq", "stoi", "speaker_similarity", "word_errors"),
        level=True,
    ),
)


def judge(evaluation: dict[str, Any]) -> list[Bar]:
    """All bars, in rising order."""
    return [_information(evaluation), *(_against(rival, evaluation) for rival in RIVALS)]


def _information(evaluation: dict[str, Any]) -> Bar:
    claim = f"every digit carries information: mean entropy above {DIGIT_ENTROPY_BITS} of 2 bits, no dead digit"
    tokens = evaluation["tokens"].get(CLEAN_SET)
    if tokens is None:
        return Bar("a", claim, ())
    entropy, dead = tokens["digit_entropy_bits"], tokens["digits_never_change"]
    margin = entropy - DIGIT_ENTROPY_BITS
    rows = (
        Comparison(
            CLEAN_SET,
            "mean entropy of a digit (bits)",
            f"{entropy:.3f}",
            f"{DIGIT_ENTROPY_BITS}",
            f"{margin:+.3f}",
            margin > 0,
        ),
        Comparison(CLEAN_SET, "digits that never change", f"{dead:.0f}", "0", f"{0 - dead:+.0f}", dead == 0),
    )
    return Bar("a", claim, rows)


def _against(rival: Rival, evaluation: dict[str, Any]) -> Bar:
    names = [name for name, spec in evaluation["systems"].items() if spec.startswith(rival.spec)]
    rows = []
    for where, systems in evaluation["sets"].items():
        for name in names:
            if name in systems and where in (rival.sets or evaluation["sets"]):
                rows += [
                    _compared(rival, where, figure, systems[evaluation["name"]], systems[other])
                    for figure in rival.figures
                    if figure in systems[evaluation["name"]]
                    and figure in systems[other := ORIGINAL if rival.level and figure == "word_errors" else name]
                ]
    wanted = len(rival.figures) * max(1, len(rival.sets))
    if rows and len(rows) < wanted:
        return Bar(rival.letter, f"{rival.claim} ({len(rows)} of {wanted} figures measured)", tuple(rows))
    return Bar(rival.letter, rival.claim, tuple(rows))


def _compared(rival: Rival, where: str, name: str, ours: dict[str, Any], theirs: dict[str, Any]) -> Comparison:
    figure = BY_NAME[name]
    own, other = Estimate(**ours[name]), Estimate(**theirs[name])
    margin = figure.better * (own.value - other.value)
    met = margin > 0
    if rival.level and own.low is not None and own.high is not None:
        met |= own.low <= other.value <= own.high
    digits = figure.digits
    return Comparison(
        where,
        figure.title,
        f"{own.value:.{digits}f}",
        f"{other.value:.{digits}f}",
        f"{margin:+.{digits}f}",
        bool(met),
    )
