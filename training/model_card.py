"""The card of a checkpoint: `README.md` from the files in its folder, never from typed figures.

    python -m training.model_card collect RUN_FOLDER... --output FOLDER/training.json
    python -m training.model_card evaluation FOLDER RESULT_FOLDER...
    python -m training.model_card tokens FOLDER RECORDING...
    python -m training.model_card FOLDER

The first three write what the last one reads, beside `config.json`, `model.safetensors`, `samples/samples.json`
(`training.samples`) and `recordings.json` (`training.disjoint`). What is not there is left out of the card.
"""

import collections
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from modeling_jepa_daam import JepaDaamConfig
from modeling_jepa_daam.files import replacing, sha256_of, write_json

from .assembly.recipes import SPEECH_SOURCES
from .bars import BY_NAME, CLEAN_SET, judge
from .disjoint import Recordings, common_speakers, digests_of, speakers_of
from .evidence import (
    WEIGHTS,
    describe_evaluations,
    describe_robustness,
    describe_run,
    describe_speed,
    portable_path,
    this_machine,
    token_digests,
    write_log,
)
from .markdown import markdown_table
from .report import ORIGINAL, Estimate, format_cell, token_table

PAPER_PARAMETERS = 118_512_562 + 69_291_649  # encoder without predictor, quantizer and decoder: Table 3 of the paper
SPACE_PICTURE = "space.png"  # what a browser showed: see hub_configs/space/README.md
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
UNTAUGHT_FIGURES = ("voice_similarity", "moonshine_word_errors", "moonshine_character_errors", "phone_errors")
TABLE_FIGURES = (
    "bits",
    "pesq",
    "stoi",
    "estoi",
    "dnsmos",
    "speaker_similarity",
    "word_errors",
    "character_errors",
    *UNTAUGHT_FIGURES,
)
LIMIT_FIGURES = (
    "pesq",
    "stoi",
    "dnsmos",
    "speaker_similarity",
    "voice_similarity",
    "word_errors",
    "moonshine_word_errors",
)
LIMIT_ORIGINALS = {"word_errors": "WER of originals (%)", "moonshine_word_errors": "WER of originals, Moonshine (%)"}
MAIN_SETS = (CLEAN_SET, "nonnative_en")  # come first, and into the metadata
METRIC_TYPES = {"pesq": "pesq", "stoi": "stoi", "dnsmos": "dnsmos", "speaker_similarity": "speaker_similarity"} | {
    "word_errors": "wer",
    "character_errors": "cer",
    "voice_similarity": "voice_similarity",
    "moonshine_word_errors": "wer",
    "moonshine_character_errors": "cer",
    "phone_errors": "phone_error_rate",
}
ROBUSTNESS_ROWS = (
    "undisturbed",
    "telephone band",
    "gain -20 dB",
    "gain +20 dB",
    "white noise, 10 dB",
    "babble, 10 dB",
    "music, 10 dB",
    "shifted by 1 sample (0.0417 ms)",
    "shifted by 600 samples (25 ms)",
)
ROBUSTNESS_FIGURES = {
    "tokens_changed": ("tokens changed (%)", 100, 1),
    "digits_changed": ("digits changed (%)", 100, 1),
    "input/stoi": ("STOI of the input", 1, 3),
    "clean/stoi": ("STOI, to the undisturbed clip", 1, 3),
}
LOG_COLUMNS = {
    "held_out/spectrogram_distance": "spectrogram distance",
    "held_out/mel_distance": "mel distance",
    "held_out/stoi": "STOI",
    "held_out/pesq": "PESQ",
    "tokens/digit_entropy_bits": "bits a digit",
    "held_out/loss/predict": "loss",
    "held_out/loss/recording_mean": "loss of each recording's mean",
}
WATTS_PER_CORE = 10  # assumed: a share of a server's processor, memory and fans
LANGUAGES = {
    "cmn": "Mandarin",
    "cs": "Czech",
    "de": "German",
    "en": "English",
    "fr": "French",
    "it": "Italian",
    "mul": "corpora of several languages",
    "nl": "Dutch",
    "ru": "Russian",
    "unknown": "unknown languages",
}
INTRODUCTION = (
    "Means over clips (error rates: ratios of sums), with 95 % bootstrap intervals over speakers where there are "
    "enough, else over clips. The original itself is judged beside them."
)


def render(folder: Path) -> str:
    """The card of a checkpoint: YAML, then Markdown.

    Raises:
        ValueError: If a file was made with other weights than those of the folder, or there is no `config.json`.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder`: no config.json in {folder}")
    config = JepaDaamConfig.from_pretrained(folder)
    weights = describe_weights(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else None
    evaluation, robustness, speed, samples = (
        _read(folder / name, weights)
        for name in ("evaluation.json", "robustness.json", "speed.json", "samples/samples.json")
    )
    training, recordings = _read(folder / "training.json"), _read(folder / "recordings.json")
    name = folder.absolute().name
    card = ModelCard.from_template(
        card_data=metadata(name, evaluation, recordings),
        template_path=str(TEMPLATE),
        name=name,
        path=portable_path(str(folder.absolute())),
        rates=config,
        transform=config.transform_bands,
        weights=weights,
        paper_parameters=PAPER_PARAMETERS,
        introduction=INTRODUCTION,
        evaluation=evaluation,
        quality=quality_tables(evaluation) if evaluation else [],
        untaught=evaluation is not None and _has_figures(evaluation, UNTAUGHT_FIGURES),
        tokens=tokens_table(evaluation) if evaluation else "",
        bars=judge(evaluation) if evaluation else [],
        speed=speed | {"table": speed_table(speed)} if speed else None,
        samples=samples,
        space=(folder / SPACE_PICTURE).is_file(),
        training=[run | {"log_table": log_table(run)} for run in training or []],
        recordings=describe_recordings(recordings) if recordings else None,
        unnamed=[each for each, extent in evaluation["extent"].items() if not extent["sources"]] if evaluation else [],
        limits={
            "reference": CLEAN_SET,
            "sets": limits_table(evaluation) if evaluation else "",
            "robustness": robustness_table(robustness["table"]) if robustness else "",
            "languages": languages_of(recordings["training"]) if recordings else "",
        },
        bias=bias_of(recordings["training"]) if recordings else "",
        cost=cost_of(training) if training else "",
    )
    return str(card).rstrip() + "\n"


def _read(path: Path, weights: dict[str, Any] | None = None) -> Any:
    """A JSON file, `None` if it is not there; with `weights`, one that was measured with them.

    Raises:
        ValueError: If it was measured with others.
    """
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    if weights and content["weights_sha256"] != weights["sha256"]:
        raise ValueError(
            f"`folder`: {path.name} was made with weights {content['weights_sha256'][:12]}, "
            f"but {WEIGHTS} is {weights['sha256'][:12]}: make it anew"
        )
    return content


def describe_weights(path: Path) -> dict[str, Any]:
    """Of a safetensors file: `sha256`, `bytes`, `dtypes`, and `parts`, the parameters of each with their sum.

    The quantizer has none: only statistics, which are not counted.
    """
    parts: collections.Counter[str] = collections.Counter()
    dtypes = set()
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 (it is no dict)
            tensor = file.get_slice(name)
            part = name.split(".")[0]
            if part != "quantizer":
                parts[part] += math.prod(tensor.get_shape())
                dtypes.add(tensor.get_dtype())
    counts = dict(sorted(parts.items())) | {"all": sum(parts.values())}
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size, "dtypes": sorted(dtypes), "parts": counts}


def metadata(name: str, evaluation: dict | None, recordings: dict | None) -> ModelCardData:
    """The YAML at the head of the card, with the figures of the main sets."""
    trained = [SPEECH_SOURCES[source] for source in (recordings or {"training": {}})["training"] if
               source in SPEECH_SOURCES]  # fmt: skip
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="audio-to-audio",
        tags=["audio", "speech", "neural-codec", "speech-tokenizer", "jepa"],
        license="apache-2.0",
        language=sorted({source.language for source in trained} - {"mul"}) or None,
        datasets=sorted({source.hub_id for source in trained if source.hub_id}) or None,
        model_name=name,
        eval_results=(_eval_results(evaluation) if evaluation else None) or None,
    )


def _eval_results(evaluation: dict) -> list[EvalResult]:
    results = []
    for each in ordered_sets(evaluation):
        if each in MAIN_SETS:
            figures = evaluation["sets"][each][evaluation["name"]]
            sources = [SPEECH_SOURCES[key] for key in evaluation["extent"][each]["sources"] if key in SPEECH_SOURCES]
            hub_id = next((source.hub_id for source in sources if source.hub_id), each)
            title = f"{each} ({', '.join(source.title for source in sources)})" if sources else each
            results += [
                EvalResult(
                    task_type="audio-to-audio",
                    dataset_type=hub_id,
                    dataset_name=title,
                    metric_type=METRIC_TYPES[key],
                    metric_name=BY_NAME[key].title,
                    metric_value=round(figures[key]["value"], BY_NAME[key].digits),
                )
                for key in METRIC_TYPES
                if key in figures
            ]
    return results


def ordered_sets(evaluation: dict) -> list[str]:
    """The main sets, then the others."""
    return sorted(evaluation["sets"], key=lambda each: (each not in MAIN_SETS, each != CLEAN_SET, each))


def quality_tables(evaluation: dict) -> list[dict[str, str]]:
    """`title` and `text` of a table for each set where a rival stands beside us, original first, then ours."""
    tables = []
    for each in ordered_sets(evaluation):
        systems = evaluation["sets"][each]
        names = sorted(systems, key=lambda name: (name != ORIGINAL, name != evaluation["name"]))
        if each not in MAIN_SETS and not set(names) - {ORIGINAL, evaluation["name"]}:
            continue
        keys = [key for key in TABLE_FIGURES if any(key in systems[name] for name in names)]
        extent = evaluation["extent"][each]
        title = f"{each}: {extent['clips']} clips, {extent['minutes']:.1f} minutes"
        if extent["speakers"]:
            title += f", {extent['speakers']} speakers"
        rows = [[f"**{name}**" if name == evaluation["name"] else name,
                 *(_cell(systems[name], key, extent["clips"]) for key in keys)] for name in names]  # fmt: skip
        tables.append({"title": title, "text": markdown_table(["system", *(BY_NAME[key].title for key in keys)], rows)})
    return tables


def _has_figures(evaluation: dict, keys: Sequence[str]) -> bool:
    """Whether any set has one of some figures of ours."""
    return any(key in systems[evaluation["name"]] for systems in evaluation["sets"].values() for key in keys)


def _cell(figures: dict, key: str, clips: int) -> str:
    return format_cell(Estimate(**figures[key]) if key in figures else None, BY_NAME[key], clips)


def tokens_table(evaluation: dict) -> str:
    """What our tokens hold, a column a main set; empty if no such set was measured."""
    measured = {each: evaluation["tokens"][each] for each in MAIN_SETS if each in evaluation["tokens"]}
    return token_table(measured) if measured else ""


def speed_table(speed: dict) -> str:
    """A line a codec and batch size."""
    found: dict[tuple[str, int], dict[str, str]] = collections.defaultdict(dict)
    for row in speed["rows"]:
        found[row["spec"], row["batch"]][row["direction"]] = f"{row['times_real_time']:.1f}"
    rows = [[spec, str(batch), cells["encode"], cells["decode"]] for (spec, batch), cells in found.items()]
    return markdown_table(["system", "batch", "encoding", "decoding"], rows)


def limits_table(evaluation: dict) -> str:
    """A line a set: our figures, and the word errors of the originals."""
    sets = ordered_sets(evaluation)
    ours = {each: evaluation["sets"][each][evaluation["name"]] for each in sets}
    keys = [key for key in LIMIT_FIGURES if any(key in figures for figures in ours.values())]
    of_originals = [key for key in LIMIT_ORIGINALS if key in keys]
    rows = []
    for each in sets:
        original = evaluation["sets"][each].get(ORIGINAL, {})
        clips = evaluation["extent"][each]["clips"]
        cells = [_cell(ours[each], key, clips) for key in keys]
        rows.append([each, str(clips), *cells, *(_cell(original, key, clips) for key in of_originals)])
    head = ["set", "clips", *(BY_NAME[key].title for key in keys), *(LIMIT_ORIGINALS[key] for key in of_originals)]
    return markdown_table(head, rows)


def robustness_table(table: dict) -> str:
    """A line a disturbance."""
    rows = [
        [row, *(f"{scale * table[row][key]['mean']:.{digits}f}" if key in table[row] else ""
                for key, (_, scale, digits) in ROBUSTNESS_FIGURES.items())]
        for row in ROBUSTNESS_ROWS if row in table
    ]  # fmt: skip
    return markdown_table(["disturbance", *(title for title, _, _ in ROBUSTNESS_FIGURES.values())], rows)


def log_table(run: dict) -> str:
    """What evaluations on held-out speakers said during a run: a line each."""
    evaluations = run.get("evaluations", [])
    keys = [key for key in LOG_COLUMNS if any(key in entry for entry in evaluations)]
    if not keys:
        return ""
    rows = [
        [str(entry["step"]), *(f"{entry[key]:.3f}" if key in entry else "" for key in keys)] for entry in evaluations
    ]
    return markdown_table(["step", *(f"{LOG_COLUMNS[key]}" for key in keys)], rows)


def describe_recordings(recordings: dict[str, Recordings]) -> dict[str, Any]:
    """`text`, `table` and number of `shared` speakers and recordings of both sides."""
    training, evaluation = recordings["training"], recordings["evaluation"]
    rows = []
    for side, table in recordings.items():
        for source, told in table.items():
            known = SPEECH_SOURCES.get(source)
            title, licence = (f"[{known.title}]({known.url})", known.licence) if known else (source, "not recorded")
            clips = sum(len(text.split()) for text in told["speakers"].values())
            named = len(told["speakers"].keys() - {"unknown"})
            speakers = str(named) if named else "not named"
            rows.append([side, title, f"{told['hours']:.2f}", str(clips), speakers, licence])
    shared = len(common_speakers(training, evaluation)) + len(set(digests_of(training)) & set(digests_of(evaluation)))
    counts = " ".join(
        f"{side.capitalize()}: {sum(told['hours'] for told in table.values()):.2f} hours, "
        f"{len(digests_of(table))} clips, {len(speakers_of(table))} known speakers."
        for side, table in recordings.items()
    )
    head = ["side", "corpus", "hours", "clips", "speakers", "licence"]
    return {"text": counts, "table": markdown_table(head, rows), "shared": shared}


def languages_of(training: Recordings) -> str:
    """Languages of the corpora with their hours, most first."""
    hours: collections.Counter[str] = collections.Counter()
    for source, told in training.items():
        language = SPEECH_SOURCES[source].language if source in SPEECH_SOURCES else "unknown"
        hours[LANGUAGES.get(language, language)] += told["hours"]
    return ", ".join(f"{count:.1f} hours of {language}" for language, count in hours.most_common())


def bias_of(training: Recordings) -> str:
    """How much of what was heard is of one language, and of few speakers."""
    hours = sum(told["hours"] for told in training.values())
    single = {source: told["hours"] for source, told in training.items() if len(told["speakers"].keys()) == 1
              and "unknown" not in told["speakers"]}  # fmt: skip
    return (
        f"It heard {hours:.1f} hours in training, {languages_of(training)}; {sum(single.values()):.1f} hours are of "
        f"{len(single)} speakers alone. How old speakers are, and of which sex or region, is not recorded here."
    )


def cost_of(training: Sequence[dict]) -> str:
    """Hours of training steps, and at most how many hours of CPU cores they took."""
    hours = sum(run["minutes"] for run in training) / 60
    cores = sum(run["minutes"] * run["cores"] for run in training) / 60
    machines = "; ".join(dict.fromkeys(run["machine"] for run in training))
    return (
        f"Training steps took {hours:.1f} hours, at most {cores:.1f} hours of CPU cores ({machines}). Energy was not "
        f"measured: at an assumed {WATTS_PER_CORE} W a core it is {cores * WATTS_PER_CORE / 1000:.2f} kWh. "
        "Evaluations, and the trials that led here, are not counted."
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
Checkpoint = Annotated[Path, typer.Argument(help="Folder of a checkpoint.")]


@app.command("render")
def render_command(folder: Checkpoint) -> None:
    """Write README.md from what lies in the folder."""
    card = render(folder)
    with replacing(folder / "README.md") as temporary:
        temporary.write_text(card, encoding="utf-8")
    typer.echo(f"card: {folder / 'README.md'}")


@app.command("collect")
def collect_command(
    runs: Annotated[list[Path], typer.Argument(help="Folders of the runs that led to the checkpoint, in order.")],
    output: Annotated[Path, typer.Option(help="training.json; logs go into a folder beside it.")],
    machine: Annotated[str | None, typer.Option(help="What they ran on; this machine if not given.")] = None,
    cores: Annotated[int, typer.Option(min=1, help="How many of its CPU cores they had.")] = os.cpu_count() or 1,
    environment: Annotated[str, typer.Option(help="Variables that the commands need: NAME=value.")] = "",
    processes: Annotated[str, typer.Option(help="Of each run, with commas; one if not given.")] = "",
) -> None:
    """Say what training runs were, from their settings and logs."""
    counts = [int(count) for count in processes.split(",")] if processes else [1] * len(runs)
    if len(counts) != len(runs):
        raise ValueError(f"`processes` must have a number for each of {len(runs)} runs, got {processes!r}")
    machine = machine or this_machine()
    told = [describe_run(run, machine, cores, environment, count) for run, count in zip(runs, counts, strict=True)]
    for run, entry in zip(runs, told, strict=True):
        if "code" in entry or "blend" in entry:  # it has no steps, and so no log
            continue
        log = write_log(run, output.parent / "logs" / f"{entry['name']}.csv")
        entry["log_file"] = log.relative_to(output.parent).as_posix()
    typer.echo(f"runs: {write_json(output, told)}")


@app.command("evaluation")
def evaluation_command(
    folder: Checkpoint,
    results: Annotated[list[Path], typer.Argument(help="Folders that training.evaluate_tokenizer wrote.")],
    rivals: Annotated[
        Path | None, typer.Option(help="evaluation.json of earlier weights, to take other systems' figures from.")
    ] = None,
) -> None:
    """Take over what evaluations, `training.robustness` and `training.codec_speed` in these folders found."""
    typer.echo(f"figures: {write_json(folder / 'evaluation.json', describe_evaluations(folder, results, rivals))}")
    for name, describe in (("robustness.json", describe_robustness), ("speed.json", describe_speed)):
        measured = [result / name for result in results if (result / name).is_file()]
        if len(measured) > 1:
            raise ValueError(f"`results` must hold one {name}, got {', '.join(map(str, measured))}")
        for file in measured:
            typer.echo(f"{name.removesuffix('.json')}: {write_json(folder / name, describe(folder, file))}")


@app.command("tokens")
def tokens_command(folder: Checkpoint, recordings: Annotated[list[Path], typer.Argument(help="Sound files.")]) -> None:
    """Keep a digest of the tokens of recordings, so that a test sees when they change."""
    typer.echo(f"tokens: {write_json(folder / 'tokens.json', token_digests(folder, recordings))}")


def main(arguments: Sequence[str]) -> None:
    """Run a command; a folder alone renders its card. Wrong input ends with a message and exit code 2."""
    commands = [command.name for command in app.registered_commands]
    words = list(arguments)
    if words and words[0] not in commands and not words[0].startswith("-"):
        words.insert(0, "render")
    try:
        app(words, prog_name="python -m training.model_card")
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main(sys.argv[1:])
