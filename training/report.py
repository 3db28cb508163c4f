"""From one line a clip to tables with intervals, and to pictures of quality over bit rate.

A clip is a dict: `system`, `clip`, `seconds`, `bits`, the figures that it has, and in `recording` what is known of the
recording (`set`, `speaker`, `bandwidth_hz`, ...). A figure's mean is over the clips that have it.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modeling_jepa_daam.files import replacing

from .bootstrap import bootstrap_draws, interval_of
from .markdown import markdown_table

OF_THE_ORIGINAL = (  # figures that are news of the original itself
    "dnsmos",
    "word_errors",
    "character_errors",
    "moonshine_word_errors",
    "moonshine_character_errors",
)
MARKERS = "os^D"
ORIGINAL = "original"  # the system that gives its input back
MIN_UNITS = 5  # speakers or clips that an interval needs
INTRODUCTION = (
    "Means over clips (error and bit rates: ratios of sums), with 95 % bootstrap intervals over speakers where there "
    f"are at least {MIN_UNITS}, else over clips. kbit/s: what a codec writes for the sound; of files: with headers, "
    "which weigh most in short clips. A mean over fewer clips says so; compare it with care. Where a codec's settings "
    "are not in the table, they are in `settings.json` in its folder."
)
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
    Figure("kbit/s of files", "file_bits", "seconds", 3, 1e-3, 0),
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
    Figure("speaker similarity, GE2E", "voice_similarity", digits=3),
    Figure("WER (%)", "word_errors", "words", 1, 100, -1),
    Figure("CER (%)", "character_errors", "characters", 1, 100, -1),
    Figure("WER, Moonshine (%)", "moonshine_word_errors", "moonshine_words", 1, 100, -1),
    Figure("CER, Moonshine (%)", "moonshine_character_errors", "moonshine_characters", 1, 100, -1),
    Figure("phone difference (%)", "phone_errors", "phones", 1, 100, -1),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over clips, and the bounds of its 95 % interval: none with too few units to draw."""

    value: float
    low: float | None
    high: float | None
    clips: int


def estimate(clips: Sequence[Clip], figure: Figure) -> Estimate | None:
    """Mean, or ratio of sums, over the clips that have the figure, with a percentile bootstrap.

    Drawn are speakers with all their clips, which are alike, if there are `MIN_UNITS`; else clips, if there are enough.

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
    value = float(figure.scale * numerator.sum() / denominator.sum())
    units = np.array(units_of(having))
    if (num_units := int(units.max()) + 1) < MIN_UNITS:
        return Estimate(value, None, None, len(having))
    drawn = bootstrap_draws(num_units)
    sums = np.bincount(units, denominator)[drawn].sum(axis=1)
    low, high = interval_of(figure.scale * np.bincount(units, numerator)[drawn].sum(axis=1)[sums > 0] / sums[sums > 0])
    return Estimate(value, low, high, len(having))


def units_of(clips: Sequence[Clip]) -> list[int]:
    """Number of the unit of each clip: its speaker, if all have one and there are `MIN_UNITS`; else the clip itself."""
    speakers = [clip["recording"].get("speaker") for clip in clips]
    known = list(dict.fromkeys(speakers))
    if None in known or len(known) < MIN_UNITS:
        return list(range(len(clips)))
    return [known.index(speaker) for speaker in speakers]


def by_system(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """The clips of each system, in the order in which systems first appear."""
    systems: dict[str, list[Clip]] = {}
    for clip in clips:
        systems.setdefault(clip["system"], []).append(clip)
    return systems


def grouped(clips: Sequence[Clip], field: str) -> dict[Any, list[Clip]]:
    """The clips of each value of a field of their recordings; those without the field are left out."""
    groups: dict[Any, list[Clip]] = {}
    for clip in clips:
        if (value := clip["recording"].get(field)) is not None:
            groups.setdefault(value, []).append(clip)
    return groups


def quality_table(clips: Sequence[Clip]) -> str:
    """Markdown: a line a system, a column a figure that any system has; `mean [low, high]`."""
    systems = by_system(clips)
    estimates = {system: [estimate(rows, figure) for figure in FIGURES] for system, rows in systems.items()}
    used = [number for number in range(len(FIGURES)) if any(row[number] for row in estimates.values())]
    head = ["system", "clips", *(FIGURES[number].title for number in used)]
    lines = [
        [
            system,
            str(len(systems[system])),
            *(format_cell(row[number], FIGURES[number], len(systems[system])) for number in used),
        ]
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
    from matplotlib.ticker import LogLocator

    sets = grouped(clips, "set")
    rate, _, *qualities = FIGURES
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
        points = {name: told for name, told in points.items() if any(x and y for x, y in told.values())}
        if not points:
            continue
        columns = min(3, len(points))
        rows_of_panels = -(-len(points) // columns)
        size = (8, 5) if len(points) == 1 else (5 * columns, 3.8 * rows_of_panels)
        picture = Picture(figsize=size, dpi=90, layout="constrained")
        canvas = FigureCanvasAgg(picture)
        panels = picture.subplots(rows_of_panels, columns, squeeze=False).flat
        for panel, (name, told) in zip(panels, points.items(), strict=False):
            for system, (x, y) in told.items():
                style = {"color": f"C{names.index(system) % 10}", "marker": MARKERS[names.index(system) // 10 % 4]}
                if y and x and x.value > 0:
                    low, high = (y.value if bound is None else bound for bound in (y.low, y.high))
                    spread = [[max(0.0, y.value - low)], [max(0.0, high - y.value)]]
                    panel.errorbar(x.value, y.value, yerr=spread, capsize=2, **style)
                    panel.annotate(system, (x.value, y.value), xytext=(5, 3), textcoords="offset points", fontsize=7)
                elif y and system == ORIGINAL and quality.numerator in OF_THE_ORIGINAL:
                    panel.axhline(y.value, color="black", ls=":", lw=1)
            panel.set(title=name, xlabel="kbit/s", ylabel=quality.title, xscale="log")
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_formatter("")
            panel.margins(x=0.15)
            panel.grid(alpha=0.3)
        for panel in list(panels):
            panel.set_axis_off()
        arrow = {1: "more is better", -1: "less is better"}[quality.better]
        dotted = ", dotted: original" if quality.numerator in OF_THE_ORIGINAL else ""
        picture.suptitle(f"{quality.title} over bit rate ({arrow}; bars: 95 %{dotted})", fontsize=10)
        path = folder / f"rate_{quality.numerator}.png"
        with replacing(path) as temporary:
            canvas.print_png(temporary)
        paths.append(path)
    return paths


def format_cell(told: Estimate | None, figure: Figure, clips: int) -> str:
    """An estimate as a table has it, with its interval; says over how many clips it is, where it is not `clips`."""
    if told is None:
        return ""
    text, *bounds = (
        "" if number is None else f"{number:.{figure.digits}f}" for number in (told.value, told.low, told.high)
    )
    if set(bounds) - {"", text}:  # none, or one that rounding hides
        text += f" [{', '.join(bounds)}]"
    return text if told.clips == clips else f"{text} ({told.clips} clips)"


def write_report(
    clips: Sequence[Clip],
    failures: Sequence[dict[str, str]],
    missing: Sequence[str],
    tokens: dict[str, dict[str, dict[str, Any]]],
    settings: dict[str, dict[str, Any]],
    output: Path,
) -> Path:
    """`summary.json`, `report.md` and the pictures of rate and distortion; the report holds `ADDITIONS`, too.

    Args:
        clips: Of all systems.
        failures: `system`, `clip` and `error` of what could not be judged.
        missing: What was not measured, and why.
        tokens: Statistics of the tokens, by system and set.
        settings: What the figures of each system depend on.
        output: Folder.

    Returns:
        The report.
    """
    told = summary(clips, GROUPS) | {"tokens": tokens, "settings": settings, "failures": list(failures)}
    with replacing(output / "summary.json") as temporary:
        temporary.write_text(json.dumps(told, indent=1))
    parts = ["# Evaluation", INTRODUCTION, _systems_table(settings)]
    parts += [f"Not measured: {reason}." for reason in missing]
    for name, rows in grouped(clips, "set").items():
        parts += [f"## {name}: {_extent(rows)}", quality_table(rows)]
    for system, of_sets in tokens.items():
        parts += [f"## Tokens of {system}", token_table(of_sets)]
    for name, title in ADDITIONS.items():
        if (output / name).exists():
            parts += [f"## {title}", (output / name).read_text().strip()]
    parts += ["## Rate and distortion"]
    if importlib.util.find_spec("matplotlib") is None:
        parts += ["No pictures: the package matplotlib is not installed."]
    else:
        parts += [f"![{path.stem}]({path.name})" for path in draw_rate_distortion(clips, output)]
    if failures:
        lines = [[row["system"], row["clip"], row["error"]] for row in failures]
        parts += ["## Clips that failed", markdown_table(["system", "clip", "error"], lines)]
    with replacing(output / "report.md") as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return output / "report.md"


def _systems_table(settings: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name, told in settings.items():
        digests = [digest[:12] for digest in told.get("system_files", {}).values()]
        lines.append([name, f"`{told['system']}`", " ".join(digests)])
    return markdown_table(["system", "what it is", "SHA-256 of its files begins"], lines)


def _extent(clips: Sequence[Clip]) -> str:
    """How much a set holds: of the system with the most clips."""
    most = max(by_system(clips).values(), key=len)
    seconds = sum(clip["seconds"] for clip in most)
    speakers = len({clip["recording"].get("speaker") for clip in most} - {None})
    return f"{len(most)} clips, {seconds / 60:.1f} minutes" + (f", {speakers} speakers" if speakers else "")
