"""From one line a clip to tables with intervals, and to pictures of quality over bit rate.

A clip is a dict: the recording's own fields (`set`, `speaker`, `bandwidth_hz`, ...), `system`, `seconds`, `bits` and
the figures that it has. A figure's mean is over the clips that have it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_jepa_daam.files import replacing

from .bootstrap import bootstrap_draws, interval_of
from .markdown import markdown_table

GROUPS = ("set", "source", "language", "group", "speaker", "bandwidth_hz")  # fields that the summary groups by
ADDITIONS = {  # what other commands may have written into the same folder
    "speed.md": "Speed and memory, encode / decode (`training.codec_speed`)",
    "robustness.md": "How far tokens move (`training.robustness`)",
    "token_probes.md": "What is in the tokens (`training.token_probes`)",
}
Clip = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """What a column of the tables says.

    Args:
        title: Its head.
        numerator: Field of the clips.
        denominator: Field of the clips whose sum divides the numerator's sum; `None`: the mean over clips.
        digits: Behind the decimal point.
        scale: The ratio is multiplied by it.
        better: 1 if more is better, -1 if less is, 0 if neither.
    """

    title: str
    numerator: str
    denominator: str | None = None
    digits: int = 2
    scale: float = 1.0
    better: int = 1


FIGURES = (
    Figure("kbit/s", "bits", "seconds", 3, 1e-3, 0),
    Figure("PESQ-WB", "pesq"),
    Figure("STOI", "stoi", digits=3),
    Figure("ESTOI", "estoi", digits=3),
    Figure("SI-SDR (dB)", "si_sdr_db", digits=1),
    Figure("mel distance", "mel_distance", digits=3, better=-1),
    Figure("MR-STFT", "mr_stft_distance", digits=3, better=-1),
    Figure("F0 error (cents)", "f0_rmse_cents", digits=0, better=-1),
    Figure("voicing error (%)", "voicing_error", digits=1, scale=100, better=-1),
    Figure("DNSMOS", "dnsmos"),
    Figure("speaker similarity", "speaker_similarity", digits=3),
    Figure("WER (%)", "word_errors", "words", 1, 100, -1),
    Figure("CER (%)", "character_errors", "characters", 1, 100, -1),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over clips, and the bounds of its interval of 95 %."""

    value: float
    low: float
    high: float
    clips: int


def estimate(clips: Sequence[Clip], figure: Figure) -> Estimate | None:
    """Mean, or ratio of sums, over the clips that have the figure, with a percentile bootstrap over clips.

    Returns:
        `None` if no clip has it.
    """
    needed = [figure.numerator] + ([figure.denominator] if figure.denominator else [])
    having = [clip for clip in clips if all(clip.get(key) is not None for key in needed)]
    if not having:
        return None
    numerator = np.array([clip[figure.numerator] for clip in having], dtype=np.float64)
    denominator = np.array([clip[figure.denominator] if figure.denominator else 1.0 for clip in having])
    if denominator.sum() == 0:
        return None
    chosen = bootstrap_draws(len(having))
    sums = denominator[chosen].sum(axis=1)
    low, high = interval_of(figure.scale * numerator[chosen].sum(axis=1)[sums > 0] / sums[sums > 0])
    value = figure.scale * numerator.sum() / denominator.sum()
    return Estimate(float(value), low, high, len(having))


def by_system(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The clips of each system, in the order in which systems first appear."""
    return grouped(clips, "system")


def grouped(clips: Sequence[Clip], field: str) -> dict[Any, list[Clip]]:
    """The clips of each value of a field; those without the field are left out."""
    groups: dict[Any, list[Clip]] = {}
    for clip in clips:
        if clip.get(field) is not None:
            groups.setdefault(clip[field], []).append(clip)
    return groups


def quality_table(clips: Sequence[Clip]) -> str:
    """Markdown: a line a system, a column a figure that any system has; `mean [low, high]`."""
    systems = by_system(clips)
    estimates = {system: [estimate(rows, figure) for figure in FIGURES] for system, rows in systems.items()}
    used = [number for number in range(len(FIGURES)) if any(row[number] for row in estimates.values())]
    head = ["system", "clips", *(FIGURES[number].title for number in used)]
    lines = [
        [system, str(len(systems[system])), *(_cell(row[number], FIGURES[number]) for number in used)]
        for system, row in estimates.items()
    ]
    return markdown_table(head, lines)


def token_table(of_sets: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a figure, a column a set. Lists, which are by place, are left to the JSON."""
    figures = [name for name, value in next(iter(of_sets.values())).items() if not isinstance(value, list)]
    lines = [
        [figure.replace("_", " "), *(f"{told[figure]:.4g}" if figure in told else "" for told in of_sets.values())]
        for figure in figures
    ]
    return markdown_table(["", *of_sets], lines)


def summary(clips: Sequence[Clip], fields: Sequence[str]) -> dict[str, Any]:
    """The estimates of all figures: `{field: {value: {system: {figure: {value, low, high, clips}}}}}`.

    Args:
        clips: Of all systems.
        fields: Of the clips to group by.
    """
    tables: dict[str, Any] = {}
    for field in fields:
        for value, rows in sorted(grouped(clips, field).items(), key=lambda item: str(item[0])):
            for system, of_system in by_system(rows).items():
                found = {figure.numerator: estimate(of_system, figure) for figure in FIGURES}
                tables.setdefault(field, {}).setdefault(str(value), {})[system] = {
                    name: vars(told) for name, told in found.items() if told
                }
    return tables


def draw_rate_distortion(clips: Sequence[Clip], folder: Path) -> list[Path]:
    """One picture a figure: its mean over bit rate, a panel a set, a point a system, with its interval.

    Returns:
        The files, `rate_<figure>.png`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Picture

    sets = grouped(clips, "set")
    rate, *qualities = FIGURES
    names = list(by_system(clips))
    paths = []
    for quality in qualities:
        points = {
            name: {
                system: (estimate(of_system, rate), estimate(of_system, quality))
                for system, of_system in by_system(rows).items()
            }
            for name, rows in sets.items()
        }
        points = {name: told for name, told in points.items() if any(told_y for _, told_y in told.values())}
        if not points:
            continue
        columns = min(3, len(points))
        rows_of_panels = -(-len(points) // columns)
        picture = Picture(figsize=(5 * columns, 3.8 * rows_of_panels), dpi=90, layout="constrained")
        canvas = FigureCanvasAgg(picture)
        panels = picture.subplots(rows_of_panels, columns, squeeze=False).flat
        for panel, (name, told) in zip(panels, points.items(), strict=False):
            for system, (x, y) in told.items():
                colour = f"C{names.index(system) % 10}"
                if y and x and x.value > 0:
                    spread = [[max(0.0, y.value - y.low)], [max(0.0, y.high - y.value)]]
                    panel.errorbar(x.value, y.value, yerr=spread, fmt="o", color=colour, capsize=2)
                    panel.annotate(system, (x.value, y.value), xytext=(5, 3), textcoords="offset points", fontsize=7)
                elif y:  # the original has no bit rate of its own
                    panel.axhline(y.value, color=colour, ls=":", lw=1)
            panel.set(title=name, xlabel="kbit/s", ylabel=quality.title, xscale="log")
            panel.grid(alpha=0.3)
        for panel in list(panels):
            panel.set_axis_off()
        arrow = {1: "more is better", -1: "less is better"}[quality.better]
        picture.suptitle(f"{quality.title} over bit rate ({arrow}; bars: 95 %, dotted: original)", fontsize=10)
        path = folder / f"rate_{quality.numerator}.png"
        with replacing(path) as temporary:
            canvas.print_png(temporary)
        paths.append(path)
    return paths


def _cell(told: Estimate | None, figure: Figure) -> str:
    if told is None:
        return ""
    value, low, high = (f"{number:.{figure.digits}f}" for number in (told.value, told.low, told.high))
    return value if low == high else f"{value} [{low}, {high}]"


def write_report(
    clips: Sequence[Clip],
    failures: Sequence[dict[str, str]],
    missing: Sequence[str],
    tokens: dict[str, dict[str, dict[str, Any]]],
    output: Path,
) -> Path:
    """`summary.json`, `report.md` and the pictures of rate and distortion; the report holds `ADDITIONS`, too.

    Args:
        clips: Of all systems.
        failures: `system`, `clip` and `error` of what could not be judged.
        missing: What was not measured, and why.
        tokens: Statistics of the tokens, by system and set.
        output: Folder.

    Returns:
        The report.
    """
    with replacing(output / "summary.json") as temporary:
        temporary.write_text(
            json.dumps(summary(clips, GROUPS) | {"tokens": tokens, "failures": list(failures)}, indent=1)
        )
    parts = [
        "# Evaluation",
        "Means over clips (rates: ratios of sums) and their 95 % intervals, by bootstrap over clips.",
    ]
    parts += [f"Not measured: {reason}." for reason in missing]
    for name, rows in grouped(clips, "set").items():
        of_one = next(iter(by_system(rows).values()))
        speakers = len({row.get("speaker") for row in rows})
        minutes = sum(row["seconds"] for row in of_one) / 60
        parts += [f"## {name}: {minutes:.1f} minutes, {len(of_one)} clips, {speakers} speakers", quality_table(rows)]
    for system, of_sets in tokens.items():
        parts += [f"## Tokens of {system}", token_table(of_sets)]
    for name, title in ADDITIONS.items():
        if (output / name).exists():
            parts += [f"## {title}", (output / name).read_text().strip()]
    parts += ["## Rate and distortion"]
    parts += [f"![{path.stem}]({path.name})" for path in draw_rate_distortion(clips, output)]
    if failures:
        lines = [[row["system"], row["clip"], row["error"]] for row in failures]
        parts += ["## Clips that failed", markdown_table(["system", "clip", "error"], lines)]
    with replacing(output / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return output / "report.md"
